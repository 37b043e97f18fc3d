"""What is known of a whole scan: its classes, its types, which slices show a finding.

It travels with the batches as one row of numbers per scan (``View.target``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homolog.errors import UnusableInput
from homolog.feed.reading import CaseRef
from homolog.label_names import findings_of, has_several, says_none
from homolog.store.card import Card

# What is told where slices alone are told apart.
SLICES, FINDING = "slices", "finding"
# Planes of a label map read at once.
_PLANES = 16
# Numbers that lead from world mm to the scan's slice.
_PLACE = 4


@dataclass(frozen=True)
class Space:
    """What a model can tell of a scan.

    Attributes:
        classes: Names.
        several: Whether a scan may have several of them, or none.
        types: Names of further findings.
        slices: Most slices of a scan; 0 where slices are not learnt from.
        by_slice: Slices alone are told apart; a scan shows what any of them does.
    """

    classes: tuple[str, ...]
    several: bool = False
    types: tuple[str, ...] = ()
    slices: int = 0
    by_slice: bool = False

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Space:
        """As a model's spec has it."""
        return cls(
            tuple(spec["classes"]),
            bool(spec.get("several", False)),
            tuple(spec.get("types", ())),
            int(spec.get("slices", 0)),
            bool(spec.get("by_slice", False)),
        )


@dataclass(frozen=True)
class Truth:
    """What is known of the scans of a batch.

    Attributes:
        classes: (B,) int64 class of each scan; with several classes (B, K), 1 there,
            0 absent, -1 not known.
        types: (B, T), in the same way.
        place: (B, 4) world mm (z, y, x, 1) -> slice of the scan.
        slices: (B, Z); 1 where a slice shows a finding, 0 where not, -1 not known.
    """

    classes: Tensor
    types: Tensor
    place: Tensor
    slices: Tensor

    @classmethod
    def of(cls, rows: Tensor, space: Space) -> Truth:
        """Inverse of ``truth_rows``, (B, F)."""
        wide = len(space.classes) if space.several else 1
        place = _PLACE if space.slices else 0
        ends = [wide, wide + len(space.types)]
        ends += [ends[1] + place, ends[1] + place + space.slices]
        classes = rows[:, :wide].long()
        return cls(
            classes if space.several else classes[:, 0],
            rows[:, ends[0] : ends[1]].long(),
            rows[:, ends[1] : ends[2]],
            rows[:, ends[2] : ends[3]].long(),
        )


def space_of(
    cases: Sequence[CaseRef], labels: str, *, types: bool, slices: bool
) -> Space:
    """What the cases' cards tell of.

    Args:
        cases: Of known class.
        labels: ``one``, ``several``, ``slices``, or ``auto``: several where any scan
            has them.
        types: Whether types are to be learnt.
        slices: Whether slices are.

    Raises:
        UnusableInput: A scan of several classes where one is wanted.
    """
    depth = max(c.card.shape[0] for c in cases)
    if labels == SLICES:
        if depth == 1:
            raise UnusableInput("labels=slices needs volumes, all scans are images.")
        return Space((FINDING,), True, (), depth, by_slice=True)
    texts = [str(case.card.target) for case in cases]
    several = labels == "several" or (labels == "auto" and any(map(has_several, texts)))
    if not several:
        odd = [c.card for c in cases if has_several(str(c.card.target))]
        if odd:
            raise UnusableInput(
                f"labels=one wants one class per scan, {odd[0].id!r} has "
                f"{odd[0].target!r}."
            )
        names = set(texts)
    else:
        names = {name for text in texts for name in findings_of(text)}
    told = {name for c in cases for name in findings_of(c.card.types or "")}
    return Space(
        tuple(sorted(names)),
        several,
        tuple(sorted(told)) if types else (),
        depth if slices and depth > 1 else 0,
    )


class Annotated:
    """Which names each store speaks of: what it never mentions is not known there."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[set[str], set[str]]] = {}

    def names(self, case: CaseRef) -> tuple[set[str], set[str]]:
        """Classes and types that the case's store tells of, as far as met."""
        known = self._known.get(case.store.path)
        if known is None:
            known = self._known[case.store.path] = _named(case.store.cards)
        for names, own in zip(known, _named([case.card]), strict=True):
            names |= own
        return known


def _named(cards: Sequence[Card]) -> tuple[set[str], set[str]]:
    classes: set[str] = set()
    types: set[str] = set()
    for card in cards:
        classes.update(findings_of(card.target or ""))
        types.update(findings_of(card.types or ""))
    return classes, types


def class_row(card: Card, space: Space, annotated: set[str]) -> list[int]:
    """The first numbers of a scan's row.

    Raises:
        UnusableInput: A class the model does not know.
    """
    if space.by_slice:
        return [int(bool(card.label_values) or bool(card.boxes))]
    assert card.target is not None
    shown = findings_of(card.target) if space.several else (card.target,)
    odd = [name for name in shown if name not in space.classes]
    if odd:
        raise UnusableInput(
            f"the class {odd[0]!r} of case {card.id!r} is none of the model's: "
            f"{', '.join(space.classes)}."
        )
    if not space.several:
        return [space.classes.index(card.target)]
    return _marks(shown, space.classes, annotated)


def type_row(card: Card, space: Space, annotated: set[str]) -> list[int]:
    """Types of a scan; a scan without any finding has none of them."""
    if card.types is None and not says_none(card.target):
        return [-1] * len(space.types)
    shown = () if card.types is None else findings_of(card.types)
    return _marks(shown, space.types, annotated)


def _marks(
    shown: Sequence[str], names: Sequence[str], annotated: set[str]
) -> list[int]:
    return [int(n in shown) if n in annotated else -1 for n in names]


def truth_rows(
    cases: Sequence[CaseRef], space: Space, annotated: Annotated
) -> list[list[float]]:
    """One row of numbers per case, see Truth. Reads label maps where slices count."""
    for case in cases:
        annotated.names(case)
    rows = []
    for case in cases:
        classes, types = annotated.names(case)
        row: list[float] = [
            *class_row(case.card, space, classes), *type_row(case.card, space, types),
        ]  # fmt: skip
        if space.slices:
            marks = np.full(space.slices, -1, np.int64)
            known = slice_truth(case)
            if known is not None:
                marks[: len(known)] = known[: space.slices]
            row += [*slice_place(case.card), *marks.tolist()]
        rows.append(row)
    return rows


def slice_place(card: Card) -> list[float]:
    """World mm (z, y, x, 1) -> slice of the stored scan, four numbers."""
    return [float(v) for v in card.affine.inverse().matrix[0]]


def slice_truth(case: CaseRef) -> NDArray[np.int64] | None:
    """Which slices of a stored scan show a finding; None where nothing tells.

    A label map tells (anything above 0), or else boxes, or else a class that says there
    is no finding.

    Returns:
        (D,); 1 shows, 0 does not, -1 not known.
    """
    card = case.card
    label = case.store.label(card.id) if card.has_label else None
    if label is not None:
        marks = np.zeros(card.shape[0], np.int64)
        for z in range(0, card.shape[0], _PLANES):
            planes = np.asarray(label[z : z + _PLANES])
            high, low = planes.max(axis=(1, 2)), planes.min(axis=(1, 2))
            # a finding may hide in what is not labelled
            marks[z : z + _PLANES] = np.where(high > 0, 1, np.minimum(low, 0))
        return np.maximum(marks, -1)
    if not card.boxes and not says_none(card.target):
        return None
    marks = np.zeros(card.shape[0], np.int64)
    for box in card.boxes:
        first, last = box["min"][0], box["max"][0]  # edges
        marks[max(0, int(np.floor(first))) : max(0, int(np.ceil(last)))] = 1
    return marks


def slices_in_view(
    truth: Truth, affine: Tensor, size: Sequence[int], valid: Tensor
) -> Tensor:
    """What is known of the slices of views that keep the scan's z axis.

    A slice of a view is positive where any slice of the scan is that it covers.

    Args:
        truth: Of the scans, with slices.
        affine: (B, 4, 4) view voxel -> world mm.
        size: Of the views (D, H, W).
        valid: (B, D) bool, slices that lie in the scan.

    Returns:
        (B, D) int64; 1, 0, or -1 where not known.
    """
    at, step = slice_positions(truth.place, affine, size)
    reach = (step / 2).clamp_min(0.5)[:, None, None] + 1e-3
    numbers = torch.arange(truth.slices.shape[1], dtype=at.dtype, device=at.device)
    covered = (numbers - at[..., None]).abs() <= reach  # (B, D, Z)
    marks = truth.slices[:, None]
    positive = (covered & (marks == 1)).any(2)
    known = (covered & (marks >= 0)).any(2) & valid
    return positive.long().masked_fill(~known, -1)


def slice_positions(
    place: Tensor, affine: Tensor, size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Where the slices of views lie among the scan's slices.

    Args:
        place: (B, 4), see Truth.
        affine: (B, 4, 4) view voxel -> world mm.
        size: Of the views (D, H, W).

    Returns:
        (B, D) positions, and (B,) the distance of two of them, in slices of the scan.
    """
    line = (place.to(affine.dtype)[:, None] @ affine)[:, 0]  # (B, 4): z, y, x, 1
    middle = line[:, 1] * (size[1] - 1) / 2 + line[:, 2] * (size[2] - 1) / 2
    numbers = torch.arange(size[0], dtype=line.dtype, device=line.device)
    at = line[:, :1] * numbers + (middle + line[:, 3])[:, None]
    return at, line[:, 0].abs()
