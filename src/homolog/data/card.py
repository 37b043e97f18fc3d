"""The card of a prepared case: everything about it but its voxels, as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from homolog.data.foreground import Box
from homolog.data.preprocess import Intensities, Prepared
from homolog.geometry.affine import Affine, Index, Triple


@dataclass(frozen=True)
class Card:
    """One case of a store.

    Attributes:
        id: Name of the case, unique in its store.
        shape: Prepared size (D, H, W).
        channels: Images stored on this grid.
        affine: Prepared voxel -> world mm, LPS.
        scale: Value units per stored step.
        offset: Value of a stored 0.
        low: Darkest value kept, in value units (as are the next three).
        high: Brightest value kept.
        centre: Subtracted after clipping.
        spread: Divided by after that.
        modality: One of MODALITIES.
        subject: Person or animal; cases of one subject share a split.
        split: ``train``, ``val`` or ``test``; written by the store, not by the case.
        target: Class of the whole scan, where it is known; several as ``a|b``, none of
            them as ``no finding`` (``homolog.data.findings``).
        types: Further findings, in the same way.
        boxes: Findings on the prepared grid: ``label``, and ``min`` and ``max`` as
            edges in voxels (voxel i reaches from i to i + 1).
        label_values: Label values present, without background and unlabelled.
        label_counts: Voxels of each of them.
        label_map: Value in the label file -> value stored, where they differ; -1
            teaches nothing.
        has_label: Whether a label map is stored.
        source: Path of the scan.
        label_source: Path of its label map, or None.
        source_hash: Content hash of the scan; equal scans have equal hashes.
        original: ``axes``, ``flips``, ``affine``, ``shape`` of the scan's own grid.
        foreground: Box of the body: first voxel and one past the last.
        key: Hash of contents, code and recipe; another key means it must be rebuilt.
        files: Size in bytes of each file of the case.
        note: What had to be done to the values, or empty.
    """

    id: str
    shape: Index
    channels: int
    affine: Affine
    scale: float
    offset: float
    low: float
    high: float
    centre: float
    spread: float
    modality: str
    subject: str
    split: str | None
    target: str | None
    boxes: tuple[dict[str, Any], ...]
    label_values: tuple[int, ...]
    has_label: bool
    source: str
    source_hash: str
    original: dict[str, Any]
    foreground: Box
    label_counts: dict[int, int] = field(default_factory=dict)
    label_source: str | None = None
    key: str = ""
    files: dict[str, int] = field(default_factory=dict)
    note: str = ""
    types: str | None = None
    label_map: dict[int, int] = field(default_factory=dict)

    @property
    def is_labelled(self) -> bool:
        """Whether it can be tested on: a label map, a class or boxes."""
        return self.has_label or self.target is not None or bool(self.boxes)

    @property
    def intensity(self) -> Intensities:
        """How values are normalised."""
        return Intensities(self.low, self.high, self.centre, self.spread)

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size (z, y, x)."""
        return self.affine.spacing_mm

    @property
    def fill(self) -> int:
        """Stored value of ``low``: what lies outside the scan."""
        return max(-32768, min(32767, round((self.low - self.offset) / self.scale)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["affine"] = self.affine.to_list()
        plain["original"] = {
            **self.original,
            "affine": self.original["affine"].to_list(),
        }
        for name in ("label_counts", "label_map"):
            plain[name] = {str(v): n for v, n in getattr(self, name).items()}
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Card:
        """Inverse of to_dict; fields of a newer version are dropped."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {name: value for name, value in plain.items() if name in known}
        original = values["original"]
        values["affine"] = Affine(values["affine"])
        values["original"] = {
            "axes": tuple(original["axes"]),
            "flips": tuple(original["flips"]),
            "affine": Affine(original["affine"]),
            "shape": tuple(original["shape"]),
        }
        start, stop = values["foreground"]
        values["foreground"] = (tuple(start), tuple(stop))
        for name in ("label_counts", "label_map"):
            told = values.get(name, {})
            values[name] = {int(v): int(n) for v, n in told.items()}
        for name in ("shape", "label_values", "boxes"):
            values[name] = tuple(values[name])
        return cls(**values)


def prepared_fields(prepared: Prepared, original: Affine) -> dict[str, Any]:
    """The fields of a card that follow from the prepared scan.

    Args:
        prepared: What ``prepare_volume`` made.
        original: Affine of the scan's own grid.
    """
    numbers = prepared.intensity
    return {
        "shape": prepared.grid.shape,
        "channels": prepared.data.shape[0],
        "affine": prepared.affine,
        "scale": prepared.scale,
        "offset": prepared.offset,
        "low": numbers.low,
        "high": numbers.high,
        "centre": numbers.centre,
        "spread": numbers.spread,
        "modality": prepared.modality,
        "original": {
            "axes": prepared.axes,
            "flips": prepared.flips,
            "affine": original,
            "shape": prepared.own_shape,
        },
        "foreground": prepared.foreground,
        "note": prepared.note,
    }


def boxes_on_grid(
    boxes: Sequence[Mapping[str, Any]], own: Affine, prepared: Affine
) -> tuple[dict[str, Any], ...]:
    """Boxes of the scan's own grid on the prepared one; both count edges in voxels.

    Args:
        boxes: Each with ``min`` and ``max`` (z, y, x).
        own: Affine of the scan's own grid.
        prepared: Affine of the prepared grid, whose axes are parallel.
    """
    turned = prepared.inverse() @ own
    result = []
    for box in boxes:
        edges = np.array([box["min"], box["max"]], dtype=np.float64)
        corners = turned.apply(edges - 0.5) + 0.5
        low, high = corners.min(axis=0), corners.max(axis=0)
        plain = {"min": low.round(6).tolist(), "max": high.round(6).tolist()}
        result.append({**box, **plain})
    return tuple(result)
