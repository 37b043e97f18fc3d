"""What a detector is to find: true boxes of cases, classes, and how a window sees them.

Boxes count edges: voxel i reaches from i to i + 1, so that a box from 2 to 5 holds
three voxels. Those of a case lie on its stored grid.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from homolog.config import option
from homolog.errors import UnusableInput
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Index, Triple
from homolog.label_names import EMPTY_CLASSES, IGNORE, holds_nothing, key_of
from homolog.store.card import Card, box_name
from homolog.tasks.base import LearnedConfig

SOURCES = ("auto", "boxes", "parts", "labels")
# Parts of a label smaller than this share of its largest one are specks.
_SPECK = 0.01
# Numbers per box in a row of ``target_rows``: class, centre, three half edges.
_NUMBERS = 13
# Side in cells of a box that a level looks for: from half to twice as long.
CELLS = 4.0


@dataclass(frozen=True)
class BoxConfig(LearnedConfig):
    """Which boxes are learnt; what is common to all that learns from boxes."""

    boxes_from: str = option(
        "auto",
        "boxes: those of the manifest; parts: one around each connected part of each "
        "label; labels: one around each label; auto: boxes where a case has some, else "
        "parts",
        choices=SOURCES,
    )
    empty_classes: tuple[str, ...] = option(
        EMPTY_CLASSES,
        "classes of scans that are known to hold no box, beside 'no finding'; * means "
        "all scans without one. Others are not looked at",
    )
    least_voxels: int = option(
        8,
        "parts of a label with fewer voxels, or less than a hundredth of the largest "
        "part, are no box",
        minimum=1,
        advanced=True,
    )


def is_usable(card: Card, config: BoxConfig) -> bool:
    """Whether it is known which boxes a case has, or that it has none."""
    if config.boxes_from in ("parts", "labels"):
        return card.has_label
    if card.boxes or is_empty(card, config):
        return True
    return config.boxes_from == "auto" and card.has_label


def is_empty(card: Card, config: BoxConfig) -> bool:
    """Whether it is said that there is nothing to find."""
    if "*" in config.empty_classes:
        return True
    return holds_nothing(card.target, config.empty_classes)


class KnownBoxes:
    """The true boxes of cases; those of label maps are looked for once.

    Args:
        config: Where boxes come from.
    """

    def __init__(self, config: BoxConfig) -> None:
        self.config = config
        self._found: dict[tuple[Path, str], tuple[dict[str, Any], ...]] = {}

    def of(self, case: CaseRef) -> tuple[dict[str, Any], ...]:
        """Boxes of a case as on a card: ``label``, ``min`` and ``max`` (z, y, x)."""
        drawn = self.config.boxes_from in ("parts", "labels")
        if not drawn and (case.card.boxes or not case.card.has_label):
            return tuple(
                {"label": box_name(b), "min": list(b["min"]), "max": list(b["max"])}
                for b in case.card.boxes
            )
        key = case.store.path, case.card.id
        if key not in self._found:
            self._found[key] = self._of_labels(case)
        return self._found[key]

    def placing(self, case: CaseRef) -> CaseRef:
        """The case with these boxes alone: crops are centred on them."""
        card = dataclasses.replace(
            case.card, boxes=self.of(case), has_label=False, label_values=(),
            label_counts={},
        )  # fmt: skip
        return CaseRef(case.store, card)

    def _of_labels(self, case: CaseRef) -> tuple[dict[str, Any], ...]:
        stored = case.store.label(case.card.id)
        if stored is None:
            return ()
        label = np.asarray(stored[:])
        found = []
        for value in case.card.label_values:
            name = case.store.label_names.get(value) or f"label {value}"
            if key_of(name) == IGNORE:
                continue
            for low, high in boxes_of_label(
                label == value,
                parts=self.config.boxes_from != "labels",
                least=self.config.least_voxels,
            ):
                found.append({"label": name, "min": low, "max": high})
        return tuple(found)


def boxes_of_label(
    mask: NDArray[np.bool_], *, parts: bool, least: int = 1
) -> list[tuple[list[float], list[float]]]:
    """Boxes around a label, or around each of its connected parts.

    Voxels that touch at a corner belong together.

    Args:
        mask: (D, H, W).
        parts: One box for each part; else one around all of them.
        least: Parts of fewer voxels are passed over, as are specks.

    Returns:
        Low and high edges (z, y, x) in voxels, in the order of the parts' first voxels.
    """
    numbered, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(numbered.ravel())[1:]
    if not len(sizes):
        return []
    kept = sizes >= max(least, _SPECK * sizes.max())
    spans = [
        span
        for span, keep in zip(ndimage.find_objects(numbered), kept, strict=True)
        if keep and span is not None
    ]
    boxes = [
        ([float(s.start) for s in span], [float(s.stop) for s in span])
        for span in spans
    ]
    if parts or not boxes:
        return boxes
    low, high = (np.array(side) for side in zip(*boxes, strict=True))
    return [(low.min(0).tolist(), high.max(0).tolist())]


# Classes, by name; a store teaches what some case of it names.


@dataclass(frozen=True)
class BoxSpace:
    """What a detector tells apart.

    Attributes:
        classes: Names.
        stores: Hash of each of several stores -> the classes it annotates.
    """

    classes: tuple[str, ...]
    stores: Mapping[str, tuple[str, ...]]

    def number(self, name: str) -> int | None:
        """Place of a class; None for a stranger."""
        keys = [key_of(known) for known in self.classes]
        return keys.index(key_of(name)) if key_of(name) in keys else None

    def known(self, case: CaseRef) -> NDArray[np.bool_]:
        """(K,) which classes would have a box if the case showed them."""
        named = self.stores.get(case.store.hash)
        if named is None:
            return np.ones(len(self.classes), bool)
        keys = {key_of(name) for name in named}
        return np.array([key_of(name) in keys for name in self.classes])


def box_space(cases: Sequence[CaseRef], boxes: KnownBoxes) -> BoxSpace:
    """The classes of all boxes of cases.

    Raises:
        UnusableInput: There is no box.
    """
    spelt: dict[str, str] = {}
    stores: dict[str, dict[str, None]] = {}
    for case in cases:
        of_store = stores.setdefault(case.store.hash, {})
        for box in boxes.of(case):
            name = spelt.setdefault(key_of(box["label"]), box["label"])
            of_store[name] = None
    if not spelt:
        raise UnusableInput(
            "detect needs boxes, but no case has any; name them in a manifest (column "
            "boxes, or x, y, w, h), or give label maps."
        )
    names = tuple(sorted(spelt.values()))
    told = {store: tuple(sorted(named)) for store, named in stores.items()}
    return BoxSpace(names, told if len(told) > 1 else {})


# How large the boxes are, and at which voxel size and levels a network finds them.


@dataclass(frozen=True)
class Sizes:
    """Extents of the boxes of all cases.

    Attributes:
        small_mm: What nine of ten boxes are larger than, along their shortest side.
        large_mm: What nine of ten boxes are smaller than, z, y, x.
    """

    small_mm: float
    large_mm: Triple


def sizes_of(cases: Sequence[CaseRef], boxes: KnownBoxes, axes: Sequence[int]) -> Sizes:
    """Extents of all boxes; of slices only ``axes`` count."""
    extents = [
        (np.array(box["max"]) - np.array(box["min"])) * case.card.spacing_mm
        for case in cases
        for box in boxes.of(case)
    ]
    whole = np.stack(extents)
    z, y, x = np.quantile(whole, 0.9, axis=0)
    small = float(np.quantile(whole[:, list(axes)].min(1), 0.1))
    return Sizes(max(small, 1e-3), (float(z), float(y), float(x)))


def chosen_spacing(
    sizes: Sizes, own_mm: Triple, axes: Sequence[int], side: int
) -> Triple:
    """Voxel size at which a network looks, never finer than the scans' own.

    So coarse that small boxes are still 8 voxels wide (16 pixels in slices) and that a
    large one fills at most three quarters of a window; but a small one is never less
    than 4 voxels wide for that.

    Args:
        sizes: Of the boxes.
        own_mm: Voxel size of a typical scan.
        axes: Those that count: 0, 1, 2, or 1, 2 of slices.
        side: Of a window that is affordable, in voxels.
    """
    wide = 8.0 if len(axes) == 3 else 16.0
    large = max(sizes.large_mm[a] for a in axes)
    wanted = max(sizes.small_mm / wide, large / (0.75 * side))
    wanted = min(wanted, sizes.small_mm / 4.0)
    # what is hardly coarser is not worth mixing voxels for
    if wanted <= 1.25 * min(own_mm[a] for a in axes):
        return own_mm
    z, y, x = (max(mm, wanted) if a in axes else mm for a, mm in enumerate(own_mm))
    return z, y, x


@dataclass(frozen=True)
class Levels:
    """Which maps of an encoder a detector looks at.

    Attributes:
        maps: Places of the encoder's maps that the pyramid is built on, fine to coarse.
        finer: Levels that are made finer than the finest of them.
        count: Levels that are looked at, from the finest on.
        strides: Voxels (z, y, x) per cell of these.
    """

    maps: tuple[int, ...]
    finer: int
    count: int
    strides: tuple[Index, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "maps": list(self.maps), "finer": self.finer, "count": self.count,
            "strides": [list(s) for s in self.strides],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Levels:
        """Inverse of ``to_dict``."""
        return cls(
            tuple(int(n) for n in told["maps"]), int(told["finer"]),
            int(told["count"]),
            tuple((int(z), int(y), int(x)) for z, y, x in told["strides"]),
        )  # fmt: skip


def affordable_levels(
    strides: Sequence[Index],
    small: float,
    large: float,
    *,
    window: Index,
    most: int,
) -> Levels:
    """Levels from cells half as long as a small box, or as long where those are many.

    A level of half the cells' length costs eight times as much, in slices four times.
    On two cores with organs in windows of 64^3 voxels it made a step 2.7 times as long,
    and the detector worse for the time it took.

    Args:
        strides: Of the encoder's maps.
        small: Shortest side of a small box, in voxels of the window.
        large: Longest side of a large one.
        window: Voxels (D, H, W); one slice does not count along z.
        most: Cells of the finest level, where it need not be finer.
    """
    planar = window[0] == 1
    found = chosen_levels(strides, small, large, planar)
    cells = math.prod(n / s for n, s in zip(window, found.strides[0], strict=True))
    if cells <= most:
        return found
    return chosen_levels(strides, 2.0 * small, large, planar)


def chosen_levels(
    strides: Sequence[Index], small: float, large: float, planar: bool
) -> Levels:
    """Levels from cells half as long as a small box to those of a large one.

    Args:
        strides: Of the encoder's maps.
        small: Shortest side of a small box, in voxels of the window.
        large: Longest side of a large one.
        planar: Of slices: z does not count.
    """
    own = {stride: place for place, stride in enumerate(strides)}  # the last of each
    ladder = sorted(own, key=lambda s: (max(s), math.prod(s)))
    fit = [s for s in ladder if max(s) <= max(1.0, small / 2)]
    first = ladder.index(fit[-1]) if fit else 0
    finer, finest = 0, ladder[first]
    made: list[Index] = []
    while max(finest) > max(1.0, small / 2) and finer < 2:
        z, y, x = (max(1, n // 2) for n in finest)
        finest = (1 if planar else z, y, x)
        made.insert(0, finest)
        finer += 1
    levels = [*made, *ladder[first:]]
    enough = [i for i, s in enumerate(levels) if CELLS * max(s) >= 0.7 * large]
    count = (enough[0] if enough else len(levels) - 1) + 1
    return Levels(
        tuple(own[s] for s in ladder[first:]), finer, count, tuple(levels[:count])
    )


# Rows of numbers that travel with the scans, and boxes as a view sees them.


def target_rows(
    cases: Sequence[CaseRef], boxes: KnownBoxes, space: BoxSpace
) -> list[list[float]]:
    """One row per case: which classes it would tell, then its boxes in world mm.

    Of each box: its class, its middle (z, y, x) and the vectors from there to the
    middles of three faces. Rows are filled up to one length with NaN.
    """
    rows = []
    for case in cases:
        row = space.known(case).astype(float).tolist()
        affine = case.card.affine
        for box in boxes.of(case):
            number = space.number(box["label"])
            if number is None:
                continue
            low, high = np.array(box["min"]), np.array(box["max"])
            middle = affine.apply((low + high) / 2 - 0.5)
            faces = affine.matrix[:3, :3] * ((high - low) / 2)
            row += [float(number), *middle.tolist(), *faces.T.ravel().tolist()]
        rows.append(row)
    length = max(len(row) for row in rows)
    return [row + [math.nan] * (length - len(row)) for row in rows]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """On a device, without waiting for it."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Seen:
    """The boxes of one sample in its view.

    Attributes:
        label: (N,) int64.
        low: (N, 3) float32, edges in voxels of the view, z, y, x.
        high: (N, 3).
        known: (K,) bool, classes that would have a box.
    """

    label: Tensor
    low: Tensor
    high: Tensor
    known: Tensor

    def to(self, device: torch.device) -> Seen:
        """On a device."""
        parts = (self.label, self.low, self.high, self.known)
        return Seen(*(sent(part, device) for part in parts))


def boxes_in_view(row: Tensor, affine: Tensor, classes: int) -> Seen:
    """Boxes of a row of ``target_rows`` in the voxels of a view.

    In a turned view a box becomes what holds the ellipsoid that filled it: about what a
    turned finding fills, where the box of its corners would grow.

    Args:
        row: (F,).
        affine: (4, 4) view voxel -> world mm.
        classes: How many there are (K).

    Source: Kalra et al., "Towards Rotation Invariance in Object Detection", ICCV 2021.
    """
    known = row[:classes] > 0.5
    told = row[classes:].reshape(-1, _NUMBERS).double()
    told = told[~told[:, 0].isnan()]
    inverse = torch.linalg.inv(affine.double())
    middle = told[:, 1:4] @ inverse[:3, :3].T + inverse[:3, 3] + 0.5
    faces = told[:, 4:].reshape(-1, 3, 3)  # one vector a row
    half = (faces @ inverse[:3, :3].T).square().sum(1).sqrt()
    return Seen(
        told[:, 0].long(), (middle - half).float(), (middle + half).float(), known
    )
