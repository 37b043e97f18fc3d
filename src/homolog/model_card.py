"""``model.json``: what every reader of a model folder may rely on; no torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.json_files import Shape, check_shape, read_object

CARD = "model.json"

_TRIPLE = tuple[float, float, float]
_BOUNDS = tuple[float | None, float | None, float | None]
_INDEX = tuple[int, int, int]
_TEXTS = list[str]

_TASK_SPEC: Shape = {
    "window?": _INDEX | None, "divisor?": _INDEX, "smallest?": _INDEX,
    "overlap?": float, "slicewise?": bool, "channels?": int, "modalities?": _TEXTS,
    "label_values?": list[int], "label_names?": dict[str, str],
    "label_colours?": dict, "flip?": list, "label_spaces?": list[dict],
    "labels_note?": str | None, "classes?": _TEXTS, "several?": bool, "slices?": int,
    "types?": _TEXTS, "thresholds?": list[float] | None,
}  # fmt: skip

_SHAPE: Shape = {
    "weights": str, "sha256": dict[str, str], "kind?": str,
    "backbone?": dict | None, "method?": str | None, "method_config?": dict,
    "title?": str | None, "preprocessing?": dict, "preprocessings?": list[dict],
    "task_config?": dict, "task_spec?": _TASK_SPEC, "label_names?": dict[str, str],
    "window?": list[int] | None, "embedding?": dict | None, "encoder?": dict,
    "modalities?": dict | list[str], "cases?": int | dict, "steps?": int,
    "complete?": bool, "validation?": dict, "trained_on?": list[str],
    "encoder_id?": str, "homolog_version?": str, "created?": str,
    "learnt_spacing_mm?": dict | None,
}  # fmt: skip

_BACKBONE: Shape = {"backbone?": {"name": str, "config?": dict}}
_EMBEDDING: Shape = {
    "embedding?": {"maps?": dict[str, int], "heads?": _TEXTS, "strides?": dict}
}
_LEARNT: Shape = {"learnt_spacing_mm?": {"smallest": _BOUNDS, "largest": _BOUNDS}}
_SPACING: Shape = {"preprocessing?": {"spacing_mm?": _TRIPLE | None}}


def read_card(folder: Path) -> dict[str, Any]:
    """``model.json`` of a model folder, its fields of the types they are written with.

    Raises:
        UnusableInput: It is missing or damaged; names the file and the field.
    """
    path = folder / CARD
    try:
        card = read_object(path, _SHAPE)
    except FileNotFoundError:
        raise UnusableInput(f"{path} is missing.") from None
    for name, shape in (
        ("backbone", _BACKBONE), ("embedding", _EMBEDDING),
        ("preprocessing", _SPACING), ("learnt_spacing_mm", _LEARNT),
    ):  # fmt: skip
        if card.get(name):  # null or empty where a model has none
            _check(card, shape, path)
    for name in (card["weights"], *card["sha256"]):
        if Path(name).name != name or "\\" in name:
            raise UnusableInput(
                f"{path} is damaged (weights must be the names of files beside it, "
                f"got {name!r})."
            )
    return card


def _check(card: dict[str, Any], shape: Shape, path: Path) -> None:
    try:
        check_shape(card, shape)
    except ValueError as error:
        raise UnusableInput(f"{path} is damaged ({error}).") from None
