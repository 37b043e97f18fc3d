"""Which open layers are the channels that a model takes together; no Qt, no torch.

A model of T1 and FLAIR wants two scans of one person on one grid. Names of channels
come from the model's card; who is who is guessed by the names of layers and files and
by modality, and is the user's to say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.layers import (
    ScanRef,
    file_grid,
    is_kind,
    layer_scan,
    notes_of,
    shape_of,
    true_affine,
)
from homolog.scans.channels import NUMBERED, SEPARATOR, case_path, grid_gap, grouped
from homolog.scans.formats import ScanHeader
from homolog.scans.paths import scan_stem
from homolog.scans.volume import Channel
from homolog.words import listed

# What speaks for a layer being a channel, strongest first. One that lies on another
# grid than the layer in hand, or is of another modality, is not guessed at all.
_NUMBERED, _CALLED, _PLACED, _KIND = 8.0, 6.0, 4.0, 1.0
# Of equal evidence, the layer whose name goes on as that of the layer in hand.
_ALIKE = 0.5
_NO = -1e6


@dataclass(frozen=True)
class Wanted:
    """A channel that a model takes.

    Attributes:
        name: For people.
        modality: Of what it learnt from; "" where nobody says.
        own_name: As the card calls it; "" where it does not.
    """

    name: str
    modality: str = ""
    own_name: str = ""

    @property
    def is_mask(self) -> bool:
        """Whether it marks places: labels will do."""
        return Channel(Path(), self.own_name).is_mask


def wanted_channels(model: ModelChoice | None) -> tuple[Wanted, ...]:
    """The channels that a model takes together; none for a model of single scans."""
    spec: Mapping[str, Any] = (model.card.get("task_spec") if model else None) or {}
    count = int(spec.get("channels") or 1)
    if count < 2:
        return ()
    names = [str(n) for n in spec.get("channel_names") or ()] + [""] * count
    kinds = [str(m) for m in spec.get("channel_modalities") or ()] + [""] * count
    return tuple(
        Wanted(name or f"Channel {i}", "" if kind == "OTHER" else kind, name)
        for i, (name, kind) in enumerate(zip(names[:count], kinds[:count], strict=True))
    )


@dataclass(frozen=True)
class OpenScan:
    """A layer that may be a channel.

    Attributes:
        key: Tells it from others while it lives.
        ref: What it is.
        stem: Name of its file without suffix, or the layer's.
        place: Shape and affine of the file that a worker will read.
        number: Of an image of several in one file; None for others.
        is_labels: Whether it marks places.
    """

    key: str
    ref: ScanRef
    stem: str
    place: ScanHeader
    number: int | None = None
    is_labels: bool = False


def open_scans_of(layers: Sequence[Any], *, with_labels: bool) -> list[OpenScan]:
    """The layers of a viewer that may be channels, in its order.

    Args:
        layers: Of the viewer.
        with_labels: Whether a channel marks places.
    """
    found = []
    for layer in layers:
        is_labels = with_labels and is_kind(layer, "Labels")
        ref = _labels_ref(layer) if is_labels else layer_scan(layer)
        if ref is None or len(layer.data.shape) not in (2, 3):
            continue
        notes, name = notes_of(layer), str(layer.name)
        source = str(notes.get("source") or "")
        several = re.search(r" (\d)$", name) if notes.get("images") else None
        affine, shape = file_grid(layer)
        found.append(
            OpenScan(
                str(layer.unique_id), ref,
                scan_stem(Path(source)) if source and not several else name,
                ScanHeader(Path(source or name), shape, 1, 1, affine, "", "", ""),
                int(several[1]) if several else None, is_labels,
            )
        )  # fmt: skip
    return found


def _labels_ref(layer: Any) -> ScanRef:
    spacing = true_affine(layer).spacing_mm
    return ScanRef(str(layer.name), None, "OTHER", shape_of(layer), spacing)


def guessed(
    wanted: Sequence[Wanted], scans: Sequence[OpenScan], in_hand: str = ""
) -> list[str]:
    """Which scan is most likely each channel.

    Numbers of nnU-Net (``_0001``) speak first, then names, the place in a file of
    several images, and a modality that no other channel has. Where one channel and one
    scan on the same grid are left over, they are each other's.

    Args:
        wanted: The channels.
        scans: Open ones.
        in_hand: Key of the scan that the user works on: the others must lie on its
            grid.

    Returns:
        A key for each channel; "" where nothing speaks for a scan.
    """
    anchor = next((scan for scan in scans if scan.key == in_hand), None)
    worth = np.array(
        [
            [_worth(i, wanted, scan, anchor) for scan in scans]
            for i in range(len(wanted))
        ]
    ).reshape(len(wanted), len(scans))
    found = [""] * len(wanted)
    for row, column in zip(*linear_sum_assignment(-worth), strict=True):
        if worth[row, column] >= _KIND:
            found[row] = scans[column].key
    anchor = anchor or next((s for s in scans if s.key in found), None)
    open_rows = [row for row, key in enumerate(found) if not key]
    if anchor is not None and len(open_rows) == 1:
        (row,) = open_rows
        left = [
            scan for scan in scans
            if scan.key not in found and _fits(wanted[row], scan, anchor)
        ]  # fmt: skip
        if len(left) == 1:
            found[row] = left[0].key
    return found


def _fits(wanted: Wanted, scan: OpenScan, anchor: OpenScan | None) -> bool:
    """Whether nothing speaks against a scan being a channel."""
    if scan.is_labels and not wanted.is_mask:
        return False
    kind = scan.ref.modality
    if wanted.modality and kind != "OTHER" and kind != wanted.modality:
        return False
    return anchor is None or not grid_gap("", scan.place, "", anchor.place)


def _worth(
    number: int, wanted: Sequence[Wanted], scan: OpenScan, anchor: OpenScan | None
) -> float:
    """How much speaks for a scan being a channel."""
    own = wanted[number]
    if not _fits(own, scan, anchor):
        return _NO
    worth = 0.0
    numbered = NUMBERED.search(scan.stem)
    if numbered:
        worth += _NUMBERED if int(numbered[1]) == number else 0.0
    elif scan.number is not None:
        worth += _PLACED if scan.number == number else 0.0
    if own.own_name and _called(own.own_name, (scan.stem, scan.ref.name)):
        worth += _CALLED
    alone = [w.modality for w in wanted].count(own.modality) == 1
    if own.modality and alone and scan.ref.modality == own.modality:
        worth += _KIND
    if own.is_mask and scan.is_labels:
        worth += _KIND
    if worth and anchor is not None:
        worth += _ALIKE * _alike(scan.stem, anchor.stem)
    return worth


def _called(name: str, texts: Sequence[str]) -> bool:
    """Whether a channel's name stands in a text as words of its own."""
    parts = [re.escape(p) for p in re.split(r"[^A-Za-z0-9]+", name) if p]
    if not parts:
        return False
    pattern = r"(?<![a-z0-9])" + r"[^a-z0-9]*".join(parts).lower() + r"(?![a-z0-9])"
    return any(re.search(pattern, text.lower()) for text in texts)


def _alike(one: str, other: str) -> float:
    """Share of two names that they begin with alike, 0..1."""
    same = 0
    for a, b in zip(one.lower(), other.lower(), strict=False):
        if a != b:
            break
        same += 1
    return same / max(len(one), len(other), 1)


def channels_problem(
    wanted: Sequence[Wanted], chosen: Sequence[OpenScan | None]
) -> str:
    """Why the chosen layers are no case of the model, one sentence; empty if they are.

    Args:
        wanted: The channels.
        chosen: A scan for each; None where none is.
    """
    lost = [own.name for own, scan in zip(wanted, chosen, strict=True) if scan is None]
    if lost:
        return f"Choose which open scan is {listed(lost)}."
    found = [scan for scan in chosen if scan is not None]
    for i, scan in enumerate(found):
        for j in range(i):
            if found[j].key == scan.key:
                return f"{wanted[j].name} and {wanted[i].name} are the same layer."
    for own, scan in zip(wanted[1:], found[1:], strict=True):
        if gap := grid_gap(own.name, scan.place, wanted[0].name, found[0].place):
            return gap[:1].upper() + gap[1:]
    return ""


def odd_kinds(wanted: Sequence[Wanted], chosen: Sequence[OpenScan]) -> list[str]:
    """Sentences on scans of another kind than the model learnt the channel from."""
    told = []
    for own, scan in zip(wanted, chosen, strict=True):
        kind = scan.ref.modality
        if own.modality and kind not in ("OTHER", own.modality):
            told.append(
                f"{scan.ref.name} is {kind}, but the model learnt {own.name} from "
                f"{own.modality}. Continue takes it for {own.modality}."
            )
    return told


def together(files: Sequence[Path | str]) -> str:
    """The files of a case in one word, as the ``predict`` job takes them."""
    return SEPARATOR.join(str(path) for path in files)


# Files of a batch.


def cases_of(
    files: Sequence[Path], wanted: Sequence[Wanted]
) -> dict[Path, tuple[Channel, ...]]:
    """The cases that files make for a model; reads headers of NIfTI files.

    Args:
        files: In the order they were added.
        wanted: The channels it takes together; none: file by file.

    Returns:
        What the ``predict`` job calls a case -> its channels; none for single scans.
    """
    if not wanted:
        return dict.fromkeys(files, ())
    names = [channel.own_name for channel in wanted]
    found: dict[Path, tuple[Channel, ...]] = {}
    for case, channels in grouped(files, names, len(wanted)).items():
        whole = len(channels) == len(wanted) and channels[0].frame is None
        paths = [channel.path for channel in channels]
        # what the job makes of files that are named together
        found[case_path(paths, names) if whole else case] = channels
    return found


def lacking(channels: Sequence[Channel], wanted: Sequence[Wanted]) -> str:
    """Why the files of a case are not all that a model takes; empty when they are."""
    if len(channels) == len(wanted):
        return ""
    have = {channel.name for channel in channels}
    lost = [own.name for own in wanted if own.own_name not in have]
    if not lost or len(lost) == len(wanted):
        return f"One file, where the model takes {listed(w.name for w in wanted)}."
    return f"{listed(lost)} of the case is not in the list."


def said_files(channels: Sequence[Channel]) -> Path:
    """A case of a batch as the ``predict`` job takes it."""
    first = channels[0]
    if first.frame is not None or len(channels) == 1:
        return first.path
    return Path(together([channel.path for channel in channels]))
