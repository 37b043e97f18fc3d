"""The card of a prepared case: everything about it but its voxels, as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from homolog.geometry.affine import Affine, Index, Triple
from homolog.scans.volume import PICTURE_SUFFIXES, Channel
from homolog.store.preprocess import Box, ChannelLevels, Intensities, Prepared

# More than any scan has; a card with more would take all memory.
MOST_VOXELS = 1 << 36
# The files of a case beside its card.
IMAGE, LABEL, POINTS = "image.b2nd", "label.b2nd", "points.npy"


@dataclass(frozen=True)
class Card:
    """One case of a store.

    Attributes:
        id: Name of the case, unique in its store.
        shape: Prepared size (D, H, W).
        channels: Images stored on this grid. Of several each has numbers of its own,
            see ``levels``; ``scale`` to ``spread`` are then those of the first.
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
            them as ``no finding`` (``homolog.label_names``).
        types: Further findings, in the same way.
        boxes: Findings on the prepared grid: ``label``, and ``min`` and ``max`` as
            edges in voxels (voxel i reaches from i to i + 1).
        label_values: Label values present, without background and unlabelled.
        label_counts: Voxels of each of them.
        label_map: Value in the label file -> value stored, where they differ; -1
            teaches nothing.
        channel_levels: Of each channel; empty where there is one.
        channel_files: Where each channel is from, see ``channel_sources``; likewise.
        has_label: Whether a label map is stored.
        source: Path of the scan.
        label_source: Path of its label map, or None.
        source_hash: Content hash of the scan; equal scans have equal hashes.
        original: ``axes``, ``flips``, ``affine``, ``shape`` of the scan's own grid.
        foreground: Box of the body: first voxel and one past the last.
        key: Hash of contents, code and recipe; another key means it must be rebuilt.
        files: Size in bytes of each file of the case.
        checksums: CRC-32 of each file, in hexadecimal digits: of an array that of its
            header and index, then of each chunk. Empty in cards of earlier versions.
        note: What had to be done to the values, or empty.
        sized: Whether voxels have a known size; None: as its kind of file says.
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
    checksums: dict[str, str] = field(default_factory=dict)
    note: str = ""
    types: str | None = None
    label_map: dict[int, int] = field(default_factory=dict)
    channel_levels: tuple[ChannelLevels, ...] = ()
    channel_files: tuple[dict[str, Any], ...] = ()
    sized: bool | None = None

    @property
    def is_sized(self) -> bool:
        """Whether its voxels have a size in a body that is known."""
        picture = self.source.lower().endswith(PICTURE_SUFFIXES)
        return self.sized if self.sized is not None else not picture

    @property
    def levels(self) -> tuple[ChannelLevels, ...]:
        """What the numbers of each channel mean."""
        if self.channel_levels:
            return self.channel_levels
        one = ChannelLevels("", self.modality, self.scale, self.offset, self.intensity)
        return (one,) * self.channels

    @property
    def channel_names(self) -> tuple[str, ...]:
        """What the channels are called; "" where nobody says."""
        return tuple(one.name for one in self.levels)

    @property
    def channel_sources(self) -> tuple[Channel, ...]:
        """The files of the channels; empty where there is one file of one image."""
        return tuple(Channel.from_dict(told) for told in self.channel_files)

    @property
    def is_labelled(self) -> bool:
        """Whether it can be tested on: a label map, a class or boxes."""
        return self.has_label or self.target is not None or bool(self.boxes)

    def unlabelled(self) -> Card:
        """The same case, as if nothing of it had ever been labelled."""
        return dataclasses.replace(
            self, has_label=False, label_values=(), label_counts={}, boxes=(),
            target=None, types=None,
        )  # fmt: skip

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

    def array_shape(self, name: str) -> Index | tuple[int, int, int, int]:
        """Shape of ``image.b2nd`` (with channels) or ``label.b2nd``."""
        return (self.channels, *self.shape) if name == IMAGE else self.shape

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
        if self.sized is None:
            del plain["sized"]  # as cards were before
        plain["channel_levels"] = [one.to_dict() for one in self.channel_levels]
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
        told = values.get("channel_levels", ())
        values["channel_levels"] = tuple(ChannelLevels.from_dict(one) for one in told)
        values["channel_files"] = tuple(values.get("channel_files", ()))
        for name in ("shape", "label_values", "boxes"):
            values[name] = tuple(values[name])
        return cls(**values)


def signed(plain: dict[str, Any]) -> dict[str, Any]:
    """JSON contents with a checksum over them."""
    return {**plain, "sha256": _digest(plain)}


def is_as_written(plain: Mapping[str, Any]) -> bool:
    """Whether signed JSON contents are those that were signed; also without one."""
    return plain.get("sha256", None) in (None, _digest(plain))


def _digest(plain: Mapping[str, Any]) -> str:
    own = {name: value for name, value in plain.items() if name != "sha256"}
    text = json.dumps(own, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_plain_name(text: object) -> bool:
    """Whether a case id is a plain folder name without a leading dot."""
    if not isinstance(text, str) or text in ("", ".", ".."):
        return False
    return not text.startswith(".") and not set(text) & {"/", "\\", "\0"}


def check_card(card: Card) -> None:
    """Raise ValueError where a card holds what no prepared case can be.

    A card may come from someone else: what it holds decides what memory is taken, and
    which files are opened.
    """
    d, h, w = card.shape
    whole = (d, h, w, card.channels, *card.label_values, *card.files.values())
    if not all(type(n) is int for n in whole) or min(d, h, w, card.channels) < 1:
        raise ValueError("a size is no whole number above 0")
    if d * h * w * card.channels > MOST_VOXELS:
        raise ValueError("it is larger than any scan")
    numbers = (card.scale, card.offset, card.low, card.high, card.centre, card.spread)
    if not all(math.isfinite(n) for n in numbers) or card.scale == 0:
        raise ValueError("a number is not finite")
    _check_channels(card)
    files = {IMAGE, LABEL, POINTS}
    if not (set(card.files) | set(card.checksums)) <= files or IMAGE not in card.files:
        raise ValueError("it names other files than a case has")
    if card.has_label and not files <= set(card.files):
        raise ValueError("it names no label map")
    start, stop = card.foreground
    for a, b, n in zip(start, stop, card.shape, strict=True):
        if not 0 <= a < b <= n:
            raise ValueError("its foreground lies outside")


def _check_channels(card: Card) -> None:
    """Raise ValueError where the numbers of the channels cannot be meant."""
    for told in (card.channel_levels, card.channel_files):
        if told and len(told) != card.channels:
            raise ValueError("its channels are not as many as it says")
    for one in card.channel_levels:
        numbers = (one.scale, one.offset, *dataclasses.astuple(one.intensity))
        if not all(math.isfinite(n) for n in numbers) or one.scale == 0:
            raise ValueError("a number is not finite")


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
        "channel_levels": prepared.levels if len(prepared.levels) > 1 else (),
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


def box_name(box: Mapping[str, Any]) -> str:
    """What a box is called; ``box`` where it has no name."""
    return str(box.get("label") or "box").strip()
