"""Several images of one case on one grid: files side by side, or a file of four axes.

nnU-Net keeps a case as ``NAME_0000``, ``NAME_0001`` ..., the Decathlon as one NIfTI
file whose fourth axis is the channel. Either way it becomes one volume (C, D, H, W).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.scans.files import read_header, read_scan
from homolog.scans.formats import ScanHeader
from homolog.scans.nifti import read_nifti, read_nifti_header
from homolog.scans.paths import scan_stem, scan_suffix
from homolog.scans.problems import Problem, Unsound
from homolog.scans.volume import (
    CHANNELS,
    Channel,
    ValueStats,
    Volume,
    guess_modality,
)
from homolog.words import listed, times

# Labels may lie off their image by this share of a voxel: qform and sform of one grid,
# written by different programs, differ by rounding up to a few hundredths.
GRID_TOLERANCE = 0.1
# Parts the files of a case that are named in the order of their channels: ``a|b``.
SEPARATOR = "|"
# How nnU-Net numbers the files of a case.
NUMBERED = re.compile(r"_(\d{4})$")
# Of files that a name may have said to hold several images.
SEVERAL = ("4d", "vector")


def frames_of(path: Path) -> int:
    """How many images on one grid a NIfTI file holds; 1 for every other file.

    Along its fourth axis, or as a vector in every voxel; both at once are none.
    """
    if scan_suffix(path) not in (".nii", ".nii.gz"):
        return 1
    try:
        header = read_header(path)
    except (UnusableInput, OSError):
        return 1
    if header.kind != "nifti" or min(header.frames, header.channels) > 1:
        return 1
    return max(header.frames, header.channels)


def frames(path: Path, names: Sequence[str] = ()) -> tuple[Channel, ...]:
    """The images of a file of several, called as told or by their number."""
    count = frames_of(path)
    called = [*names, *("" for _ in range(count))][:count]
    return tuple(Channel(path, name, frame=i) for i, name in enumerate(called))


def read_channels(channels: Sequence[Channel], name: str = "") -> Volume:
    """The images of a case as one volume.

    Args:
        channels: In the order of the result.
        name: Of the case; that of the first file if empty.

    Returns:
        (C, D, H, W) of a number type that holds them all. ``meta`` holds ``channels``:
        name and modality of each; the modality of the whole is theirs where they agree,
        else OTHER.

    Raises:
        Unsound: A file cannot be used, or does not lie on the first one's grid.
    """
    volumes = _read_each(channels)
    first = volumes[0]
    for channel, volume in zip(channels[1:], volumes[1:], strict=True):
        if gap := other_grid(channel, _place(volume), channels[0], _place(first)):
            raise Unsound(gap.code, gap.text, channel.path)
    told = [
        {"name": channel.name, "modality": channel.modality or volume.modality}
        for channel, volume in zip(channels, volumes, strict=True)
    ]
    kinds = {entry["modality"] for entry in told}
    data = [volume.data for volume in volumes]
    return Volume(
        data[0] if len(data) == 1 else np.concatenate(_of_one_type(data)),
        first.affine,
        name or NUMBERED.sub("", first.name),
        kinds.pop() if len(kinds) == 1 else "OTHER",
        {**first.meta, CHANNELS: told},
    )


def _of_one_type(parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    kind = np.result_type(*(part.dtype for part in parts))
    return [part.astype(kind, copy=False) for part in parts]


def _read_each(channels: Sequence[Channel]) -> list[Volume]:
    """A volume (1, D, H, W) per channel; a file of several is read once."""
    whole: dict[Path, Volume] = {}
    found = []
    for channel in channels:
        if channel.frame is None:
            found.append(read_scan(channel.path))
            continue
        if channel.path not in whole:
            whole[channel.path] = read_frames(channel.path)
        every = whole[channel.path]
        if channel.frame >= len(every.data):
            text = f"holds {len(every.data)} images, not one of number {channel.frame}."
            raise Unsound("missing", text, channel.path)
        data = every.data[channel.frame : channel.frame + 1]
        stats = ValueStats(content=False)
        stats.update(data)
        named = channel.modality or every.modality
        found.append(replace(every, data=data, modality=guess_modality(stats, named)))
    return found


def read_frames(path: Path) -> Volume:
    """A NIfTI file of several images on one grid, (C, D, H, W).

    Raises:
        Unsound: It has another fault, or holds one image only.
    """
    header = read_header(path)
    _refuse(header)
    values = read_nifti(read_nifti_header(path))
    data = values.reshape(-1, *values.shape[2:])
    meta = {
        **header.meta, "source": str(path), "kind": header.kind,
        "remarks": tuple(p.text for p in header.problems if p.code not in SEVERAL),
    }  # fmt: skip
    return Volume(data, header.affine, scan_stem(path), header.modality, meta)


def _refuse(header: ScanHeader) -> None:
    """Raise the first fault but that of holding several images."""
    for problem in header.problems:
        if problem.fatal and problem.code not in SEVERAL:
            raise Unsound(problem.code, problem.text, header.path)
    if header.kind != "nifti" or min(header.frames, header.channels) > 1:
        header.refuse()


# Whether images lie on one grid.


def same_grid(a: ScanHeader, b: ScanHeader) -> bool:
    """Whether two scans have the same voxels in the same places.

    Pictures have no place of their own and only need the same size.
    """
    if a.shape != b.shape:
        return False
    if "image2d" in (a.kind, b.kind):
        return True
    return a.affine.close_to(b.affine, a.shape, GRID_TOLERANCE)


def gap_mm(a: ScanHeader, b: ScanHeader) -> float:
    """How far apart the corners of two scans of one size lie, mm, at most."""
    corners = np.array(
        [[z, y, x] for z in (0, 1) for y in (0, 1) for x in (0, 1)], dtype=float
    ) * (np.array(a.shape) - 1)
    gaps = np.linalg.norm(a.affine.apply(corners) - b.affine.apply(corners), axis=1)
    return float(gaps.max())


def _place(volume: Volume) -> ScanHeader:
    """What ``same_grid`` compares."""
    kind = str(volume.meta.get("kind", ""))
    return ScanHeader(
        Path(), volume.shape, 1, 1, volume.affine, "", volume.modality, kind
    )


def other_grid(
    channel: Channel, header: ScanHeader, first: Channel, other: ScanHeader
) -> Problem | None:
    """The finding that two images of a case do not lie on one grid."""
    mine, theirs = (c.name or c.path.name for c in (channel, first))
    text = grid_gap(mine, header, theirs, other)
    return Problem("channel_grid", text) if text else None


def grid_gap(mine: str, header: ScanHeader, theirs: str, other: ScanHeader) -> str:
    """Why two images cannot be channels of one case; empty where they can.

    Args:
        mine: What the first is called.
        header: Its shape, affine and kind.
        theirs: What the other is called.
        other: Likewise.
    """
    if same_grid(header, other):
        return ""
    if header.shape != other.shape:
        text = f"{mine} has {times(header.shape)} voxels, {theirs} {times(other.shape)}"
    else:
        gap = gap_mm(header, other)
        text = f"{mine} lies up to {gap:.3g} mm away from {theirs}"
    return f"{text}; the channels of a case must lie on one grid."


# Which files of a list are one case.


def grouped(
    scans: Sequence[Path], names: Sequence[str], count: int
) -> dict[Path, tuple[Channel, ...]]:
    """Files of channels brought together case by case.

    ``scan_0000``, ``scan_0001`` are one case, and so are ``scan_T1``, ``scan_T2`` where
    the channels are called so; a NIfTI file of ``count`` images is one by itself; and
    ``count`` files with neither are one case in the order given.

    Args:
        scans: Files of images.
        names: What the channels are called; "" where they are not.
        count: Channels of a case.

    Returns:
        Where a case would lie if it were one file -> its channels. A case that lacks
        channels has fewer; what cannot be told apart stays alone.
    """
    found: dict[Path, dict[int, Channel]] = {}
    whole: dict[Path, tuple[Channel, ...]] = {}
    called = [*names, *("" for _ in range(count))][:count]
    for path in scans:
        number, case = _number_of(path, called)
        if number is not None:
            found.setdefault(case, {})[number] = Channel(path, called[number])
        elif not path.is_dir() and frames_of(path) == count:
            whole[path] = frames(path, called)
        else:
            whole[path] = (Channel(path),)
    joined = {case: tuple(p[i] for i in sorted(p)) for case, p in found.items()}
    loose = [path for path, parts in whole.items() if len(parts) < count]
    if not joined and len(loose) == len(scans) == count:
        parts = zip(loose, called, strict=True)
        return {loose[0]: tuple(Channel(path, name) for path, name in parts)}
    return joined | whole


def named_together(path: Path) -> tuple[Path, ...]:
    """The files of a case named in one word, ``a.nii.gz|b.nii.gz``; none for others.

    A file whose own name has a ``|`` is one.
    """
    parts = [part.strip() for part in str(path).split(SEPARATOR)]
    if len(parts) < 2 or not all(parts) or os.path.exists(path):
        return ()
    return tuple(Path(part) for part in parts)


def case_path(files: Sequence[Path], names: Sequence[str]) -> Path:
    """Where a case would lie if it were one file: without what tells its channel.

    Args:
        files: Of its channels, at least one.
        names: What the channels are called; "" where they are not.
    """
    return _number_of(files[0], [*names, *("" for _ in files)][: len(files)])[1]


def _number_of(path: Path, names: Sequence[str]) -> tuple[int | None, Path]:
    """Which channel a file's name says it is, and the path of its case."""
    stem = scan_stem(path)
    end = path.name[len(stem) :]
    numbered = NUMBERED.search(stem)
    if numbered and int(numbered[1]) < len(names):
        return int(numbered[1]), path.with_name(stem[: numbered.start()] + end)
    for number, name in enumerate(names):
        if name and stem.lower() == name.lower():  # the folder is the case
            return number, path.with_name(path.absolute().parent.name + end)
        for sign in "_-. ":
            tail = f"{sign}{name}".lower()
            if name and stem.lower().endswith(tail) and len(stem) > len(tail):
                return number, path.with_name(stem[: -len(tail)] + end)
    return None, path


def lacking_text(channels: Sequence[Channel], names: Sequence[str], count: int) -> str:
    """Why the files of a case are not all that a model takes, one sentence."""
    have = listed([c.path.name for c in channels], most=4)
    if count == 1:
        return f"the model takes one channel, found {have}."
    called = [n or f"{i:04d}" for i, n in enumerate([*names, *[""] * count][:count])]
    known = {channel.name for channel in channels}
    lost = [name for name in called if name not in known]
    missing = f" ({listed(lost)} missing)" if len(lost) < count else ""
    return (
        f"the model takes {count} channels ({listed(called)}), found {have}{missing}; "
        "name the files of one case NAME_0000, NAME_0001 ..., or give them in that "
        "order."
    )
