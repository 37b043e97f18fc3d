"""The npe2 reader: medical image files as napari layers with true millimetres.

napari asks here on a drop or with ``viewer.open(path, plugin="napari-homolog")``. What
cannot be read is told in a sentence and gives no layer, so that the other files dropped
with it still open.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from homolog.data.problems import Unsound
from homolog.data.scan_header import kind_of
from homolog.data.series_list import (
    SeriesInfo,
    holds_dicom,
    list_series,
    series_with,
)
from homolog.gui.files import associations, opening
from homolog.gui.files.layers import LayerData
from homolog.gui.telling import tell, tell_once

Paths: TypeAlias = str | Sequence[str]
Reader: TypeAlias = Callable[[Paths], list[Any]]

# What napari understands as "read, and nothing to show".
NOTHING: list[Any] = [(None,)]
# Files of one scan dropped together arrive one by one within this time.
_SAME_DROP_S = 3.0
_just_read: dict[Path, float] = {}


def get_reader(path: Paths) -> Reader | None:
    """Whether we read this, asked by napari; None, quickly, when any path is no scan.

    Pictures (PNG, JPEG, TIFF) are napari's own business; our Open button reads them.
    """
    listed = [Path(p) for p in _listed(path)]
    if listed and all(_ours(p) for p in listed):
        return read_layers
    if listed and all(p.is_dir() for p in listed) and associations.folders_are_ours():
        return _read_as_napari
    return None


def read_layers(path: Paths) -> list[Any]:
    """One layer per file, placed in patient space (mm, LPS, axes z, y, x).

    Returns:
        Layer data; what napari takes for "nothing" when no file could be read.
    """
    found: list[LayerData] = []
    for one in _listed(path):
        found += read_path(Path(one))
    return list(found) or NOTHING


def _read_as_napari(path: Paths) -> list[Any]:
    """A folder without DICOM, which napari hands us since DICOM folders are ours."""
    from npe2 import io_utils

    return list(io_utils.read(_listed(path), stack=False, plugin_name="napari"))


def read_path(path: Path) -> list[LayerData]:
    """Layers of one file or DICOM folder; what is wrong is told, never raised."""
    try:
        wanted, name = _wanted(path)
        if wanted is None:
            return []
        warning = opening.size_warning(wanted)
        if warning:
            tell(warning, "info")
            _let_it_be_seen()
        layer = opening.read_layer(wanted, name)
    except Exception as error:  # noqa: BLE001 - the files dropped with it still open
        tell(opening.why_not(path, error))
        return []
    for sentence in opening.notes_to_tell(layer):
        tell_once(sentence)
    return [layer]


def _wanted(path: Path) -> tuple[Path | None, str]:
    """What to read for a path, and the layer's name ("" leaves it to the file)."""
    if path.is_dir():
        series = list_series(path)
        if not series:
            raise Unsound("unreadable", "no DICOM images lie in this folder.", path)
        chosen = _choose(series, path)
        return (
            (chosen.path, opening.series_name(chosen, path)) if chosen else (None, "")
        )
    if kind_of(path) != "dicom":
        path = opening.header_file(path)
        if _came_before(path):
            return None, ""
        if path.suffix.lower() == ".hdr":
            _remember([path])
        return path, ""
    if _came_before(path):
        return None, ""
    one = series_with(path)
    if one is None:
        return path, ""
    _remember(one.files)
    tell(
        f"{path.name} is one of {len(one.files)} slices; all of them are opened.",
        "info",
    )
    return one.path, opening.series_name(one, path.parent)


def _came_before(path: Path) -> bool:
    """Whether another file of this drop (a slice, a header) opened this one's scan."""
    now = time.monotonic()
    if now - _just_read.get(path.absolute(), -math.inf) >= _SAME_DROP_S:
        return False
    for file in _just_read:
        _just_read[file] = now
    return True


def _remember(files: Iterable[Path]) -> None:
    _just_read.clear()
    _just_read.update(dict.fromkeys((f.absolute() for f in files), time.monotonic()))


def _choose(series: list[SeriesInfo], root: Path) -> SeriesInfo | None:
    """The series to open: the only one, the user's choice, the largest headless."""
    if len(series) > 1 and _someone_watches():
        from homolog.gui.files.series_chooser import ask

        return ask(series)
    chosen = opening.largest(series)
    if chosen is not None and len(series) > 1:
        text = f"{len(series)} series here; the largest is opened."
        tell(f"{root.name}: {text}", "info")
    return chosen


def _someone_watches() -> bool:
    """Whether a window is open in which a question can be answered."""
    widgets: Any = sys.modules.get("qtpy.QtWidgets")
    app = widgets.QApplication.instance() if widgets is not None else None
    if app is None or app.platformName() in ("offscreen", "minimal"):
        return False
    # Not the active window: during a drop that is the file manager's.
    return any(
        isinstance(w, widgets.QMainWindow) and w.isVisible()
        for w in app.topLevelWidgets()
    )


def _let_it_be_seen() -> None:
    """Draw the sentence before the window is busy reading."""
    widgets = sys.modules.get("qtpy.QtWidgets")
    app = widgets.QApplication.instance() if widgets is not None else None
    if app is not None:
        app.processEvents()


def _ours(path: Path) -> bool:
    if path.is_dir():
        return holds_dicom(path)
    try:
        return kind_of(path) != "image2d" and opening.is_analyze(path)
    except Exception:  # noqa: BLE001 - then napari asks the next reader
        return False


def _listed(path: Paths) -> list[str]:
    return [str(path)] if isinstance(path, str | Path) else [str(p) for p in path]
