"""What a path that somebody opens stands for: a file, a DICOM series, a folder.

Reads headers only, of DICOM whole files. Free of napari and Qt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from homolog.gui.files.boxes import holds_boxes
from homolog.gui.files.scan_layer import size_warning, why_not
from homolog.index.manifests import is_manifest
from homolog.index.tree import SeriesInfo, holds_dicom, list_series, series_with, walk
from homolog.scans.dicom.format import holds_several
from homolog.scans.paths import (
    is_series_path,
    kind_of,
    scan_stem,
    scan_suffix,
)
from homolog.scans.problems import Unsound

# A folder of more files is listed, not opened file by file.
_MOST_OF_A_FOLDER = 12
# More dropped scans than this are listed, not opened.
_MOST_OPENED = 4


@dataclass(frozen=True)
class Source:
    """What a path given to the Open button stands for.

    Attributes:
        path: To be read.
        name: Of the layer; "" leaves it to the file.
        series: The series to choose from, where a folder holds several.
        trouble: Why it cannot be opened, one sentence.
        warning: What to tell before it is read.
        crowd: How many scans a folder holds that is for listing, not for opening.
    """

    path: Path
    name: str = ""
    series: tuple[SeriesInfo, ...] = ()
    trouble: str = ""
    warning: str = ""
    crowd: int = 0


def few(paths: list[Path]) -> bool:
    """Whether to open rather than list: few files, or slices and folders of DICOM.

    Tables of scans are listed, however short.
    """
    if any(is_manifest(p) and not holds_boxes(p) for p in paths):
        return False
    files = [p for p in paths if p.is_file()]
    folders = [p for p in paths if p.is_dir()]
    kinds = {p.suffix.lower() for p in files}
    slices = len(files) > _MOST_OPENED and kinds <= {".dcm", ".dicom", ".ima", ""}
    return slices or (len(files) + len(folders) <= _MOST_OPENED)


def sources_of(paths: Iterable[Path]) -> list[Source]:
    """What to open for paths: files, DICOM folders, folders of scan files.

    Slices of one DICOM series count once. Reads headers only, of DICOM whole files.
    """
    found: list[Source] = []
    taken: set[Path] = set()
    for path in paths:
        try:
            found += _sources(path, taken)
        except Exception as error:  # noqa: BLE001 - the other paths still open
            found.append(Source(path, trouble=why_not(path, error)))
    return found


def series_name(series: SeriesInfo, root: Path) -> str:
    """A layer's name: the folder dropped, and the way from there to the series.

    What was typed at the scanner stays out: it may name a person.
    """
    if is_series_path(series.path):
        told = " ".join(t for t in (root.name, series.modality, series.part) if t)
        return f"{told}, {series.shape[0]} slices"
    way = series.path.relative_to(root).parts
    return " ".join([root.name, *way[:-1], *(scan_stem(Path(w)) for w in way[-1:])])


def _sources(path: Path, taken: set[Path]) -> list[Source]:
    path = header_file(path)
    if path in taken:
        return []
    taken.add(path)
    if path.is_dir():
        return _folder_sources(path)
    if holds_boxes(path):
        return [Source(path)]
    kind = kind_of(path)
    if kind == "dicom" and holds_several(path):
        return _series_sources(path, list_series(path))
    one = series_with(path) if kind == "dicom" else None
    if one is not None:
        taken.update(one.files)
        return [Source(one.path, series_name(one, path.parent))]
    return [Source(path, warning=size_warning(path))]


def _series_sources(path: Path, series: list[SeriesInfo]) -> list[Source]:
    """The only series of a place, or all for the user to choose from."""
    if len(series) == 1:
        return [Source(series[0].path, series_name(series[0], path))]
    return [Source(path, series=tuple(series))] if series else []


def _folder_sources(path: Path) -> list[Source]:
    if holds_dicom(path):
        found = _series_sources(path, list_series(path))
        if found:
            return found
    files = walk(path, datasets=False).files
    if not files:
        raise Unsound("unreadable", "no scans in this folder.", path)
    if len(files) > _MOST_OF_A_FOLDER:
        text = (
            f"{path.name} holds {len(files)} scans; add it to the list of the tab Data."
        )
        return [Source(path, trouble=text, crowd=len(files))]
    return [Source(f, warning=size_warning(f)) for f in files]


def largest(series: list[SeriesInfo]) -> SeriesInfo | None:
    """The series to open when nobody can be asked: the largest sound one."""
    sound = [s for s in series if not s.trouble]
    return max(sound or series, key=lambda s: s.voxels, default=None)


def header_file(path: Path) -> Path:
    """The header of a pair (``.hdr`` for ``.img``); any other file itself."""
    if scan_suffix(path) not in (".img", ".img.gz"):
        return path
    stem = scan_stem(path)
    names = (f"{stem}.hdr", f"{stem}.hdr.gz")
    return next((h for h in map(path.with_name, names) if h.is_file()), path)


def is_analyze(path: Path) -> bool:
    """Whether a file may be what its ending says; only of .hdr and .img in doubt.

    Both endings are used by satellites, disks and panoramas too.
    """
    suffix = scan_suffix(path)
    if suffix == ".img":
        return header_file(path) != path
    if suffix != ".hdr":
        return True
    with path.open("rb") as file:
        start = file.read(4)
    return start in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0")
