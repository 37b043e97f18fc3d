"""From a scan's file to a layer: whether it is a label map, what to tell, its size.

Free of napari and Qt, and slow where files are: called on a thread by our own Open
button, and directly by the reader that napari calls on a drop.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from homolog.errors import JobError, UnusableInput
from homolog.gui.shared.layers import (
    COLOURS,
    KEY,
    LayerData,
    label_layer,
    volume_layer,
)
from homolog.memory import free_bytes
from homolog.scans.channels import frames_of, read_frames
from homolog.scans.files import read_header, read_scan
from homolog.scans.formats import ScanHeader
from homolog.scans.formats.slicer import label_colours
from homolog.scans.names import (
    is_label_folder,
    label_rank,
    names_beside,
    names_file,
    names_of_dataset,
)
from homolog.scans.paths import is_series_path, scan_stem
from homolog.scans.problems import Unsound
from homolog.scans.volume import ValueStats, Volume, labels_of
from homolog.words import human_bytes

# Larger than this share of the free memory is told before it is read.
_LARGE_SHARE = 0.25
# A file of more images than that is a time series, and refused as one.
_MOST_CHANNELS = 8
# Slices looked at to tell a label map by its values.
_SLICES = 9
# Of a picture's unknown voxel size nobody needs to be told.
_NOT_WORTH_TELLING = ("no voxel size in this kind of file",)


def read_scan_layer(path: Path, name: str = "") -> LayerData:
    """One scan (DICOM folder, series) as a layer, placed in patient space.

    Args:
        path: What ``homolog.scans.files.read_scan`` takes.
        name: Of the layer; from the file if empty.

    Raises:
        UnusableInput: It is no sound scalar scan; the sentence says why.
        OSError: It cannot be read.
        MemoryError: It is too large.
    """
    path = path.absolute()
    several = not path.is_dir() and 1 < frames_of(path) <= _MOST_CHANNELS
    volume = read_frames(path) if several else read_scan(path)
    volume = replace(volume, name=name or layer_name(path, volume))
    if is_label_map(volume, path):
        names = names_beside(path) or names_of_dataset(path)
        names = {v: n for v, n in names.items() if v > 0}
        return _coloured(label_layer(labels_of(volume, names, path)), path)
    return volume_layer(volume)


def _coloured(layer: LayerData, path: Path) -> LayerData:
    """A label map in the colours that its file tells, where it is 3D Slicer's."""
    colours = label_colours(path)
    if not colours:
        return layer
    data, attributes, kind = layer
    shown = {value: (*colour, 1.0) for value, colour in colours.items()}
    attributes["metadata"][COLOURS] = shown
    clear = (0.0, 0.0, 0.0, 0.0)
    return data, {**attributes, "colormap": {None: clear, 0: clear, **shown}}, kind


def layer_name(path: Path, volume: Volume) -> str:
    """The file's name without suffix; of a series its folder and modality.

    What was typed at the scanner stays out: it may name a person.
    """
    if not is_series_path(path):
        return scan_stem(path)
    part = f" {volume.meta['part']}" if volume.meta.get("part") else ""
    return f"{path.parent.name} {volume.modality}{part}, {volume.shape[0]} slices"


def is_label_map(volume: Volume, path: Path) -> bool:
    """Whether a scan is a label map: by name or folder if its values allow, by values.

    Args:
        volume: The scan as read.
        path: Its file.
    """
    if "labels" in volume.meta:  # kept as DICOM
        return True
    data = volume.data[0]
    depth = len(data)
    slices = np.unique(np.linspace(0, depth - 1, min(depth, _SLICES)).astype(int))
    stats = ValueStats()
    for z in slices:
        stats.update(data[z])
    named = label_rank(scan_stem(path)) is not None or names_file(path).is_file()
    if named or is_label_folder(path.parent.name):
        return stats.could_be_labels
    if data.dtype.kind not in "iub" or stats.constant:
        return False
    return volume.meta.get("kind") not in ("image2d", "dicom") and (
        stats.looks_like_labels
    )


def notes_to_tell(layer: LayerData) -> list[str]:
    """Sentences about one layer that the user should know: remarks, a tilt."""
    attributes = layer[1]
    notes = attributes["metadata"][KEY]
    name = attributes["name"]
    name = name if isinstance(name, str) else name[0]
    said = [r for r in notes.get("remarks", ()) if not r.startswith(_NOT_WORTH_TELLING)]
    said = [r for r in said if not r.startswith("oblique")]
    if notes.get("note"):
        said.append(f"{notes['note']}.")
    return [f"{name}: {text}" for text in said]


def why_not(path: Path, error: BaseException) -> str:
    """One sentence for a file that could not be opened."""
    name = path.parent.name if is_series_path(path) else path.name
    if isinstance(error, Unsound):
        return f"{name} cannot be opened: {error.problem.text}"
    if isinstance(error, MemoryError):
        size = human_bytes(decoded_bytes(path))
        return f"{name} cannot be opened: {size} do not fit into the free memory."
    if isinstance(error, UnusableInput | JobError):
        return f"{name} cannot be opened: {error}"
    if isinstance(error, OSError):
        return f"{name} cannot be read: {error.strerror or error}."
    return f"{name} cannot be opened: {type(error).__name__}: {error}"


def size_warning(path: Path, free: int | None = None) -> str:
    """What to tell before a very large file is read; "" for others.

    Args:
        path: As for read_scan_layer.
        free: Free memory in bytes; the system's if None.
    """
    needed = decoded_bytes(path)
    free = free_bytes() if free is None else free
    if not free or needed <= _LARGE_SHARE * free:
        return ""
    return (
        f"{path.name} needs {human_bytes(needed)} of the {human_bytes(free)} of free "
        "memory; opening it takes a while."
    )


def decoded_bytes(path: Path) -> int:
    """Memory that a scan will need as a layer, by its header; 0 when that is unread."""
    try:
        return header_bytes(read_header(path))
    except Exception:  # noqa: BLE001 - reading it tells what is wrong
        return 0


def header_bytes(header: ScanHeader) -> int:
    """Memory of a scan's values."""
    try:
        item = np.dtype(header.dtype).itemsize
    except TypeError:
        return 0
    return int(np.prod(header.shape, dtype=np.int64)) * item * max(header.frames, 1)
