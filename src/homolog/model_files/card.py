"""The card of a model, ``model.json``: what every reader of a model folder relies on.

No torch here. The card also keeps the voxel size that a model learnt at, so that scans
are brought to it: a network counts in voxels, and a store whose scans agree is not
resampled, so that its recipe names no size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homolog.config import to_dict
from homolog.errors import UnusableInput
from homolog.json_files import Shape, check_shape, read_object
from homolog.model_files.library import CARD as CARD
from homolog.store.learnt_spacing import (
    KEY,
    SCANNED_KEY,
    Learnt,
    LearntSpacing,
    size_bounds,
)
from homolog.store.preprocess import Preprocessing, recipe_words

# Of a model made of several: what each of them is.
MEMBERS = "members"
_TRIPLE = tuple[float, float, float]
_BOUNDS = tuple[float | None, float | None, float | None]
_INDEX = tuple[int, int, int]
_TEXTS = list[str]
_TASK_SPEC: Shape = {
    "window?": _INDEX | None, "divisor?": _INDEX, "smallest?": _INDEX,
    "overlap?": float, "slicewise?": bool, "channels?": int, "modalities?": _TEXTS,
    "channel_names?": _TEXTS, "channel_modalities?": _TEXTS,
    "label_values?": list[int], "label_names?": dict[str, str],
    "label_colours?": dict, "flip?": list, "label_spaces?": list[dict],
    "labels_note?": str | None, "across?": int | None, "classes?": _TEXTS,
    "several?": bool, "slices?": int,
    "types?": _TEXTS, "thresholds?": list[float] | None,
}  # fmt: skip
_SHAPE: Shape = {
    "weights?": str, "sha256?": dict[str, str], "kind?": str,
    "backbone?": dict | None, "method?": str | None, "method_config?": dict,
    "title?": str | None, "preprocessing?": dict, "preprocessings?": list[dict],
    "task_config?": dict, "task_spec?": _TASK_SPEC, "label_names?": dict[str, str],
    "window?": list[int] | None, "embedding?": dict | None, "encoder?": dict,
    "modalities?": dict | list[str], "cases?": int | dict, "steps?": int,
    "complete?": bool, "validation?": dict, "trained_on?": list[str],
    "encoder_id?": str, "homolog_version?": str, "created?": str,
    "learnt_spacing_mm?": dict | None, "scanned_spacing_mm?": dict | None,
    "decoder?": dict | None,
    "members?": list[dict],
    "licence?": str | None, "data?": list[dict], "scores?": list[dict],
}  # fmt: skip
_WEIGHTS: Shape = {"weights": str, "sha256": dict}
_BACKBONE: Shape = {"backbone?": {"name": str, "config?": dict}}
_EMBEDDING: Shape = {
    "embedding?": {"maps?": dict[str, int], "heads?": _TEXTS, "strides?": dict}
}
_DECODER: Shape = {"decoder?": {"kind?": str, "width?": int, "parameters?": int}}
_RANGE: Shape = {"smallest": _BOUNDS, "largest": _BOUNDS}
_LEARNT: Shape = {"learnt_spacing_mm?": _RANGE}
_SCANNED: Shape = {"scanned_spacing_mm?": _RANGE}
_SPACING: Shape = {"preprocessing?": {"spacing_mm?": _TRIPLE | None}}


def read_card(folder: Path, *, usable: bool = True) -> dict[str, Any]:
    """``model.json`` of a model folder, its fields of the types they are written with.

    Args:
        folder: The model folder.
        usable: It must name its weights and their checksums; to be shown it need not.

    Raises:
        UnusableInput: It is missing or damaged; names the file and the field.
    """
    path = folder / CARD
    try:
        card = read_object(path, _SHAPE)
        if usable:
            check_shape(card, _WEIGHTS)
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableInput(f"{path} is missing.") from None
    except UnusableInput:
        raise
    except ValueError as error:
        raise UnusableInput(f"{path} is damaged ({error}).") from None
    for name, shape in (
        ("backbone", _BACKBONE), ("embedding", _EMBEDDING),
        ("preprocessing", _SPACING), ("learnt_spacing_mm", _LEARNT),
        ("scanned_spacing_mm", _SCANNED),
        ("decoder", _DECODER),
    ):  # fmt: skip
        if card.get(name):  # null or empty where a model has none
            _check(card, shape, path)
    for name in (card.get("weights", CARD), *card.get("sha256", {})):
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


def unlike_store(
    card: Mapping[str, Any], stored: Preprocessing, source: str | Path
) -> str:
    """A sentence where an encoder learnt from scans prepared otherwise; else empty.

    Args:
        card: Of the encoder.
        stored: How the store's scans were prepared.
        source: The encoder, for the advice.
    """
    recipe = card.get("preprocessing")
    if recipe is None:
        return ""
    # a card of an earlier version names fewer settings
    given = {**to_dict(Preprocessing()), **recipe}
    own = to_dict(stored)
    if given["modality"] is None:
        given["modality"] = own["modality"]  # any will do
    odd = [name for name in {**own, **given} if given.get(name) != own.get(name)]
    if not odd:
        return ""
    return (
        f"the encoder was pretrained on scans prepared otherwise ({', '.join(odd)}: "
        f"{recipe_words(given)}); its features may fit less well. A store prepared "
        f"alike: homolog prepare ... --like {source}"
    )


# The voxel size learnt at.


def learnt_of(card: Mapping[str, Any], folder: Path | None) -> Learnt:
    """The voxel size of a model, by its card or else by its training data.

    Args:
        card: ``model.json``, or what is known of a weight file.
        folder: The model folder; in a run, what it was trained on is looked at where
            the card does not say. None: a weight file.
    """
    if KEY in card:
        own, scanned = (_stated(card, key, folder) for key in (KEY, SCANNED_KEY))
        return Learnt(own, scanned=scanned)
    recipe = card.get("preprocessing") or {}
    if recipe.get("spacing_mm") is not None:
        return Learnt()
    if card.get("kind") == "few_voxels" and not card.get("backbone"):
        return Learnt()  # smoothing and place are in millimetres
    modalities = set(
        card.get("modalities") or (card.get("task_spec") or {}).get("modalities") or ()
    )
    if modalities and modalities <= {"XR"}:
        return Learnt()
    spacing = _of_encoder_card(card)
    if spacing is not None:
        return Learnt(spacing)
    found = None if folder is None else _of_run(folder.parent, card)
    if found is not None:
        place, spacing = found
        if spacing is None:
            return Learnt()
        return Learnt(
            spacing,
            "the model was made before models kept their voxel size; that of its "
            f"training data in {place}, {spacing.text}, is taken.",
        )
    return Learnt(
        None,
        "the model does not say at which voxel size it learnt, so scans are taken as "
        "they are: results are wrong where theirs is another. Training it again cures "
        "this.",
    )


def _stated(
    card: Mapping[str, Any], key: str, folder: Path | None
) -> LearntSpacing | None:
    """A range of voxel sizes that a card states; None where it does not."""
    try:
        kept = card.get(key)
        return None if kept is None else LearntSpacing.from_dict(kept)
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableInput(
            f"{folder}/model.json is damaged ({key}: {error})."
        ) from error


def _of_encoder_card(card: Mapping[str, Any]) -> LearntSpacing | None:
    """Cards of encoders always held the first and last voxel size in sorted order."""
    sizes = card.get("spacing_mm")
    try:
        first, last = ([float(v) for v in row] for row in sizes or ())
        low, high = ([f(p) for p in zip(first, last, strict=True)] for f in (min, max))
        return LearntSpacing(size_bounds(low), size_bounds(high))
    except (TypeError, ValueError):
        return None


def _of_run(
    run: Path, card: Mapping[str, Any]
) -> tuple[Path, LearntSpacing | None] | None:
    """The stores a run was trained on, where they are there unchanged.

    Returns:
        The first store and the voxel size of the cases; None where they are not found.
    """
    from homolog.store.store import Store

    hashes = list(card.get("store_hashes") or [card.get("store_hash")])
    try:
        config = read_object(run / "run.json", {"config": dict})["config"]
        paths = config.get("stores") or [config["store"], *config["more_stores"]]
        stores = [Store.open(path) for path in paths]
    except (OSError, ValueError, KeyError, TypeError, UnusableInput):
        return None
    if not stores or [store.hash for store in stores] != hashes:
        return None
    seen = set(card.get("trained_on") or ())
    cards = [c for s in stores for c in s.cards if not seen or c.source_hash in seen]
    return stores[0].path, LearntSpacing.of_cases(cards)
