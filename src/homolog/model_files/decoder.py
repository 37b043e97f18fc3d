"""The dense decoder that a pretraining or a segmentation model hands on.

A pretraining that trained one keeps it in ``decoder.safetensors`` beside the encoder; a
segmentation model holds its own within its weights. What fits of it, by name and shape,
starts the decoder of another network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homolog.errors import UnusableInput
from homolog.label_names import has_name, key_of
from homolog.model_files.card import CARD, read_card
from homolog.model_files.folder import find_model, read_weights
from homolog.nn.decoders import Decoder

STEM = "decoder"
FILE = f"{STEM}.safetensors"
_HEAD = "head."
_BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class SavedDecoder:
    """A decoder's weights, read and verified.

    Attributes:
        state: Names as within the decoder -> tensor on the CPU.
        classes: What the head's channels stand for, background first, as keys; empty
            where they are no classes, and "" for a class without a name.
        segments: Whether it comes from a segmentation model, not from a pretraining.
    """

    state: dict[str, Tensor]
    classes: tuple[str, ...] = ()
    segments: bool = False

    @property
    def source(self) -> str:
        """Where it comes from, in a word or two."""
        return "the segmentation model" if self.segments else "pretraining"


@dataclass(frozen=True)
class Taken:
    """What of a decoder was filled.

    Attributes:
        whole: Names of tensors that are the saved ones.
        classes: Classes whose part of the head is, where not all are.
        new: Names of all others.
    """

    whole: tuple[str, ...]
    classes: tuple[str, ...]
    new: tuple[str, ...]

    def words(self, source: str) -> str:
        """``decoder: 14 of 16 tensors from pretraining, 2 new (head)``."""
        total = len(self.whole) + len(self.new)
        text = f"decoder: {len(self.whole)} of {total} tensors from {source}"
        if not self.new:
            return text
        parts = dict.fromkeys(name.partition(".")[0] for name in self.new)
        some = ", ".join(list(parts)[:4]) + (", ..." if len(parts) > 4 else "")
        text += f", {len(self.new)} new ({some})"
        if self.classes:
            text += f"; of the head {', '.join(self.classes)}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for a model's card."""
        return {
            "taken": len(self.whole),
            "new": list(self.new[:20]),
            "classes": list(self.classes),
        }


def decoder_card(decoder: Decoder) -> dict[str, Any]:
    """What a model's card says of its decoder."""
    return {
        "kind": decoder.kind,
        "width": decoder.width,
        "spatial_dims": decoder.spatial_dims,
        "parameters": sum(p.numel() for p in decoder.parameters()),
    }


def load_decoder(source: str | Path) -> SavedDecoder | None:
    """The decoder of a RUN, a model folder or a file inside one; None: it has none.

    Another project's weight file has none.

    Raises:
        UnusableInput: No model there, or the decoder is damaged.
    """
    path = Path(source)
    if path.is_file() and not (path.parent / CARD).is_file():
        return None
    folder = find_model(path)
    return read_decoder(folder, read_card(folder))


def read_decoder(folder: Path, card: Mapping[str, Any]) -> SavedDecoder | None:
    """The decoder of a model folder; None where it has none.

    Raises:
        UnusableInput: It is damaged.
    """
    if FILE in card.get("sha256", {}):
        return SavedDecoder(read_weights(folder, card, FILE))
    values = (card.get("task_spec") or {}).get("label_values")
    if not values or card.get("weights") != "model.safetensors":
        return None
    within = read_weights(folder, card, card["weights"])
    own = {
        name.removeprefix(f"{STEM}."): value
        for name, value in within.items()
        if name.startswith(f"{STEM}.")
    }
    names = card["task_spec"].get("label_names") or {}
    classes = head_classes(values, names)
    return SavedDecoder(own, classes, segments=True) if own else None


def head_classes(
    values: Sequence[int], names: Mapping[str, str] | Mapping[int, str]
) -> tuple[str, ...]:
    """What a head's channels stand for, as keys; "" where a class has no name.

    Args:
        values: Label value of each channel, background (0) first.
        names: Value -> name.
    """
    called = {int(value): str(name) for value, name in names.items()}
    found = [_BACKGROUND]
    for value in values[1:]:
        name = called.get(int(value), "")
        found.append(key_of(name) if has_name(int(value), name) else "")
    return tuple(found)


def fill_decoder(
    decoder: Decoder,
    saved: SavedDecoder,
    classes: Sequence[str] | None = None,
    source: str | Path = "the decoder",
) -> Taken:
    """Load what fits by name and shape; the rest keeps its random start.

    Args:
        decoder: To be filled.
        saved: Whose weights.
        classes: What the head's channels are to stand for, of ``head_classes``: the
            part of a class that ``saved`` knows by name is taken. Empty: the head is
            never taken. None: it is like any other tensor.
        source: For the error.

    Raises:
        UnusableInput: Weights that are no numbers.
    """
    own = decoder.state_dict()
    found = {
        name: value
        for name, value in saved.state.items()
        if name in own
        and own[name].shape == value.shape
        and (classes is None or not name.startswith(_HEAD))
    }
    rows = _same_classes(classes or (), saved.classes)
    head = _head_rows(own, saved.state, rows)
    bad = [name for name, value in (found | head).items() if not _numbers(value)]
    if bad:
        raise UnusableInput(
            f"{source} holds NaN or infinite weights in {len(bad)} tensors of its "
            f"decoder (first {bad[0]}); nothing can be computed with them."
        )
    decoder.load_state_dict(found | head, strict=False)
    known: list[str] = []
    if head and len(rows) == len(classes or ()):
        found |= head
    elif head:
        known = [name for name in (saved.classes[i] for i in rows.values()) if name]
    return Taken(
        whole=tuple(name for name in own if name in found),
        classes=tuple(name for name in known if name != _BACKGROUND),
        new=tuple(name for name in own if name not in found),
    )


def _same_classes(wanted: Sequence[str], known: Sequence[str]) -> dict[int, int]:
    """Channel -> the saved head's of the same name; none if that is background alone.

    Names that stand for several channels are nobody's.
    """
    pairs = {
        index: known.index(name)
        for index, name in enumerate(wanted)
        if name and wanted.count(name) == 1 and known.count(name) == 1
    }
    return pairs if len(pairs) > 1 else {}


def _head_rows(
    own: Mapping[str, Tensor], saved: Mapping[str, Tensor], rows: Mapping[int, int]
) -> dict[str, Tensor]:
    """The head's tensors with some channels replaced; empty where they do not fit."""
    names = [name for name in own if name.startswith(_HEAD)]
    fits = all(
        name in saved and saved[name].shape[1:] == own[name].shape[1:] for name in names
    )
    if not rows or not fits:
        return {}
    made = {name: own[name].detach().clone() for name in names}
    with torch.no_grad():
        for name, value in made.items():
            for index, other in rows.items():
                value[index] = saved[name][other]
    return made


def _numbers(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
