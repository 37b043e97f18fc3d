"""Which cases a pretraining sees, and how large they are against its crops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from homolog.data.store import Store
from homolog.errors import UnusableInput
from homolog.feed import CaseRef, Feed
from homolog.geometry.affine import Index
from homolog.views.view import ViewSpec, Whole


def chosen_cases(
    stores: Sequence[Store], without_splits: Sequence[str]
) -> tuple[CaseRef, ...]:
    """Every case of the stores outside the given splits, in a fixed order.

    Raises:
        UnusableInput: None is left, or their channels differ.
    """
    cases = tuple(
        CaseRef(store, card)
        for store in stores
        for card in store.cards
        if card.split not in without_splits
    )
    paths = ", ".join(str(store.path) for store in stores)
    if not cases:
        raise UnusableInput(
            f"no case to learn from in {paths}: all {sum(len(s) for s in stores)} are "
            f"in the splits left out ({', '.join(without_splits)})."
        )
    channels = {case.card.channels for case in cases}
    if len(channels) > 1:
        raise UnusableInput(
            f"cases with {' and '.join(map(str, sorted(channels)))} channels in "
            f"{paths} cannot be mixed in one pretraining."
        )
    return cases


def fitted_size(size: Index, cases: Sequence[CaseRef], divisor: Index) -> Index:
    """The smallest legal crop that holds nine of ten scans, at most ``size``.

    Args:
        size: The recipe's crop (z, y, x).
        cases: What is learnt from.
        divisor: Sides must be multiples of this.
    """
    shapes = np.array([case.card.shape for case in cases])
    needed = np.percentile(shapes, 90, axis=0, method="lower")
    whole = [int(-(-n // m) * m) for n, m in zip(needed, divisor, strict=True)]
    z, y, x = (min(old, new) for old, new in zip(size, whole, strict=True))
    return z, y, x


def padding_note(specs: dict[str, ViewSpec], cases: Sequence[CaseRef]) -> str:
    """A sentence when most of a typical crop lies outside its scan, else empty."""
    shapes = np.array([case.card.shape for case in cases])
    median = np.median(shapes, axis=0)
    for spec in specs.values():
        if isinstance(spec.place, Whole) or spec.spacing_mm is not None:
            continue
        share = float(np.prod(np.minimum(median / np.array(spec.size), 1.0)))
        if share < 0.5:
            size, typical = (
                " x ".join(f"{n:g}" for n in v) for v in (spec.size, median)
            )
            return (
                f"crops of {size} voxels are larger than most scans (median "
                f"{typical}): about {1 - share:.0%} of a crop is padding, which costs "
                "time. Smaller crops: --set method.size=z,y,x"
            )
    return ""


def shares_note(feed: Feed) -> str:
    """What share of the samples each modality gives; empty where there is only one.

    Stages that see the same scans are told together.
    """
    stages: dict[str, list[str]] = {}
    for groups, shares in feed.modality_shares():
        told = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
        if len(shares) > 1:
            stages.setdefault(told, []).append(groups[0])
    if not stages:
        return ""
    parts = [
        told if len(stages) == 1 else f"{' and '.join(groups)}: {told}"
        for told, groups in stages.items()
    ]
    return f"share of each modality in the samples: {'; '.join(parts)}."
