"""A store of small arrays in memory, with real cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine, Index
from homolog.store.card import Card

# scale, offset, low, high, centre, spread: nothing cancels by chance
NUMBERS = {
    "scale": 0.5,
    "offset": 10.0,
    "low": -300.0,
    "high": 400.0,
    "centre": 50.0,
    "spread": 200.0,
}


class MemoryStore:
    """What a Feed needs of a Store."""

    path = Path("memory")

    def __init__(self) -> None:
        self.cards: list[Card] = []
        self.images: dict[str, np.ndarray] = {}
        self.labels: dict[str, np.ndarray] = {}
        self.label_names: dict[int, str] = {}

    def add(
        self, image: np.ndarray, affine: Affine, label: np.ndarray | None = None
    ) -> CaseRef:
        """A case of an int16 image (C, D, H, W)."""
        name, shape = f"case_{len(self.cards):03}", image.shape[1:]
        values = (
            () if label is None else tuple(int(v) for v in np.unique(label) if v > 0)
        )
        card = Card(
            id=name, shape=shape, channels=len(image), affine=affine, **NUMBERS,
            modality="CT", subject=name, split=None, target=None, boxes=(),
            label_values=values, has_label=label is not None, source="", source_hash="",
            original={}, foreground=((0, 0, 0), shape),
        )  # fmt: skip
        self.cards.append(card)
        self.images[name] = image.astype(np.int16)
        if label is not None:
            self.labels[name] = label.astype(np.int16)
        return CaseRef(self, card)  # type: ignore[arg-type]

    def image(self, case: str) -> np.ndarray:
        return self.images[case]

    def label(self, case: str) -> np.ndarray | None:
        return self.labels.get(case)

    def depth(self, card: Card) -> None:
        """None was made: depths are found where they are needed."""

    def label_points(self, case: str) -> dict[int, np.ndarray]:
        label = self.labels[case]
        return {int(v): np.argwhere(label == v) for v in np.unique(label) if v > 0}


def normalised(image: np.ndarray) -> np.ndarray:
    """What the network should see of stored numbers."""
    value = np.clip(
        image * NUMBERS["scale"] + NUMBERS["offset"], NUMBERS["low"], NUMBERS["high"]
    )
    return (value - NUMBERS["centre"]) / NUMBERS["spread"]


def random_cases(
    shapes: Sequence[Index], affine: Affine, seed: int = 0
) -> list[CaseRef]:
    """Cases of random images and labels 0..3."""
    rng, store = np.random.default_rng(seed), MemoryStore()
    return [
        store.add(
            rng.integers(-900, 900, (1, *shape)), affine, rng.integers(0, 4, shape)
        )
        for shape in shapes
    ]
