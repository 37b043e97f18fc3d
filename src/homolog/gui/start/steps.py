"""What a newcomer has done and what comes next; no Qt here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.gui.shared.choices import (
    ModelChoice,
    begin_with,
    list_embedders,
    list_models,
)
from homolog.gui.shared.layers import ScanRef, is_kind, layer_scan, notes_of
from homolog.words import listed, spacing_text

DONE, NEXT, LATER = "done", "next", "later"
# A shape and, for screen readers, a word: colour is never alone.
SIGNS = {DONE: "✓", NEXT: "▶", LATER: "○"}


@dataclass(frozen=True)
class Known:
    """What lies on the disk.

    Attributes:
        embedders: Models whose features tell what is alike.
        models: Models that label, classify, search or translate scans.
        has_features: Whether features of any scan were computed.
    """

    embedders: tuple[ModelChoice, ...] = ()
    models: tuple[ModelChoice, ...] = ()
    has_features: bool = False


def look(runs: Path, models: Path, features: Path) -> Known:
    """Read what there is; for a thread."""
    there = features.is_dir() and any(features.iterdir())
    return Known(
        tuple(list_embedders(runs, models)), tuple(list_models(runs, models)), there
    )


@dataclass(frozen=True)
class Step:
    """One line of the list.

    Attributes:
        state: DONE, NEXT or LATER.
        text: What to do.
        hint: How.
    """

    state: str
    text: str
    hint: str


def front_scan(layers: Sequence[Any], active: Any) -> tuple[Any, ScanRef] | None:
    """The scan that a door leads to: the selected one, or the topmost that is seen.

    Args:
        layers: Of the viewer, the lowest first.
        active: The selected layer, or None.
    """
    seen = [x for x in reversed(layers) if x.visible]
    for layer in [*([active] if active is not None else []), *seen, *reversed(layers)]:
        ref = layer_scan(layer)
        if ref is not None:
            return layer, ref
    return None


def scan_words(ref: ScanRef | None) -> str:
    """``"btcv_00: CT, 1.5 x 1.5 x 5 mm"``, or that there is none."""
    if ref is None:
        return (
            "No scan is open. Drop a NIfTI, NRRD, MHA or DICOM file or folder here, or "
            "take:"
        )
    kind = "modality unknown" if ref.modality == "OTHER" else ref.modality
    size = spacing_text(ref.spacing_mm)
    if ref.shape[0] == 1 and set(ref.spacing_mm) == {1.0}:
        size = "pixels of unknown size"
    return f"Open: {ref.name} ({kind}, {size})"


def alike_words(known: Known, ref: ScanRef | None) -> str:
    """What the first door does, and with which model."""
    told = "Point at a place: whatever is like it lights up, in this and other scans. "
    kinds = [] if ref is None or ref.modality == "OTHER" else [ref.modality]
    model = begin_with(known.embedders, kinds)
    if model is None:
        return told + "It needs a model: pretrain one, or import one."
    learnt = [m for m in model.modalities if m != "OTHER"]
    whence = f", learnt from {listed(learnt)}" if learnt else ""
    told += f"Model: {model.path.name}{whence}."
    if kinds and learnt and kinds[0] not in learnt:
        told += f" This is {kinds[0]}: expect less."
    return told


def label_words() -> str:
    """What the second door does."""
    return (
        "Paint a little of an organ and a little of the rest: the whole scan is "
        "labelled. Grey values take seconds, features of a model a minute or two, once."
    )


def segment_words(known: Known, ref: ScanRef | None = None) -> str:
    """What the third door does, and whether there is a model for it."""
    if not known.models:
        return (
            "There is no model that segments yet: keep one from the tab Label, "
            "fine-tune one, or import one."
        )
    first = begin_with(known.models, [] if ref is None else [ref.modality])
    name = "" if first is None else first.path.name
    more = len(known.models) - 1
    others = f", or one of {more} more" if more else ""
    begins = " It begins at once." if not more else ""
    learnt = [m for m in (first.modalities if first else ()) if m != "OTHER"]
    if learnt and ref is not None and ref.modality not in (*learnt, "OTHER"):
        begins = f" It learnt from {listed(learnt)}, this is {ref.modality}."
    return f"Every voxel gets its name from a trained model: {name}{others}.{begins}"


def steps(layers: Iterable[Any], known: Known) -> list[Step]:
    """The list: done ones ticked, the first open one is next."""
    layers = list(layers)
    labels = [x for x in layers if is_kind(x, "Labels") and notes_of(x).get("derived")]
    by_paint = [x for x in labels if notes_of(x).get("few")]
    own = [m for m in known.models if m.where != "shipped"]
    rows = (
        (
            any(layer_scan(x) is not None for x in layers),
            "Open a scan",
            "A file, a DICOM folder, or the phantom",
        ),
        (
            known.has_features,
            "See what is alike",
            "The first door; the features are kept for the next time",
        ),
        (
            bool(by_paint),
            "Label a few voxels",
            "The second door; two classes are enough to begin",
        ),
        (
            bool(own),
            "Get a model that segments",
            "Keep what you painted as a model in Label, fine-tune one on labelled "
            "scans, or import one in Models",
        ),
        (
            len(labels) > len(by_paint),
            "Segment a scan with it",
            "The third door; Segment takes many files, too",
        ),
    )
    found, is_first = [], True
    for done, text, hint in rows:
        state = DONE if done else NEXT if is_first else LATER
        is_first = is_first and done
        found.append(Step(state, text, hint))
    return found
