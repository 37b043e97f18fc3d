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
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias

from homolog.gui.files import opening, sources
from homolog.gui.files.boxes import box_layer, boxes_of_file, holds_boxes
from homolog.gui.files.scan_layer import notes_to_tell, size_warning, why_not
from homolog.gui.shared import preferences
from homolog.gui.shared.layers import LayerData, label_layer, volume_layer
from homolog.gui.shared.notices import notify, tell_once
from homolog.gui.shared.preferences import PLUGIN
from homolog.index.tree import SeriesInfo, holds_dicom, list_series, series_with
from homolog.scans.dicom.format import holds_several
from homolog.scans.paths import kind_of
from homolog.scans.problems import Unsound

# Making Homolog napari's reader of medical files, with the user's consent.
#
# napari's own reader claims the same endings and cannot read most of them; which reader
# opens what is napari's setting ``extension2reader``. Free of Qt.


# As in napari.yaml, without what other readers may rightly claim (.img of disks).
PATTERNS = (
    "*.nii", "*.nii.gz", "*.nrrd", "*.nhdr", "*.mha", "*.mhd", "*.hdr", "*.dcm",
    "*.dicom", "*.ima", "*.mgz", "*.mgh",
)  # fmt: skip
# How napari writes "any folder". Folders without DICOM go back to napari's own reader.
FOLDERS = "*/"


def should_offer() -> bool:
    """Whether to ask: the user did not decline, and some ending is not ours yet."""
    wanted = bool(preferences.get("viewing", "offer_association", True))
    return wanted and bool(not_ours())


def not_ours() -> list[str]:
    """Endings that napari opens with another reader, or would ask about."""
    table = _settings().extension2reader
    return [p for p in (*PATTERNS, FOLDERS) if table.get(p) != PLUGIN]


def folders_are_ours() -> bool:
    """Whether napari asks us about every folder."""
    return bool(_settings().extension2reader.get(FOLDERS) == PLUGIN)


def associate() -> None:
    """Open our endings and DICOM folders with Homolog; other endings stay."""
    settings = _settings()
    settings.extension2reader = {
        **settings.extension2reader,
        **dict.fromkeys((*PATTERNS, FOLDERS), PLUGIN),
    }


def takes_drops(paths: Sequence[Path]) -> bool:
    """Whether files dropped on the canvas are opened by us, without asking.

    Not where the user chose another reader for one of them, or said not to offer ours.
    """
    if not paths or not all(_ours(path) for path in paths):
        return False
    table = _settings().extension2reader
    chosen = {
        who for path in paths for pattern, who in table.items() if _fits(path, pattern)
    }
    if chosen:
        return chosen == {PLUGIN}
    return bool(preferences.get("viewing", "offer_association", True))


def _fits(path: Path, pattern: str) -> bool:
    name = f"{path.name}/" if path.is_dir() else path.name
    return fnmatch(name.lower(), pattern.lower())


def decline() -> None:
    """Do not ask again; napari's preferences can bring the question back."""
    preferences.put("viewing", "offer_association", False)


def _settings() -> Any:
    from napari.settings import get_settings

    return get_settings().plugins


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
    if listed and all(p.is_dir() for p in listed) and folders_are_ours():
        return _read_as_napari
    return None


def read_layers(path: Paths) -> list[Any]:
    """One layer per file, placed in patient space (mm, LPS, axes z, y, x).

    Returns:
        Layer data; what napari takes for "nothing" when no file could be read.
    """
    opening.wait_for_units()
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
        if holds_boxes(path):
            _see_boxes_from_every_side()
            return [box_layer(boxes_of_file(path))]
        wanted, name = _wanted(path)
        if wanted is None:
            return []
        warning = size_warning(wanted)
        if warning:
            notify(warning, "info")
            _let_it_be_seen()
        layer = opening.read_layer(wanted, name)
    except Exception as error:  # noqa: BLE001 - the files dropped with it still open
        notify(why_not(path, error))
        return []
    for sentence in notes_to_tell(layer):
        tell_once(sentence)
    return [layer]


def _see_boxes_from_every_side() -> None:
    """Let boxes follow the view of the window that opens them."""
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is not None:
        from homolog.gui.files.live_boxes import watch

        watch(viewer)


def _wanted(path: Path) -> tuple[Path | None, str]:
    """What to read for a path, and the layer's name ("" leaves it to the file)."""
    if path.is_dir() or (kind_of(path) == "dicom" and holds_several(path)):
        series = list_series(path)
        if not series:
            raise Unsound("unreadable", "no DICOM images lie in this folder.", path)
        chosen = _choose(series, path)
        return (
            (chosen.path, sources.series_name(chosen, path)) if chosen else (None, "")
        )
    if kind_of(path) != "dicom":
        path = sources.header_file(path)
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
    notify(
        f"{path.name} is one of {len(one.files)} slices; all of them are opened.",
        "info",
    )
    return one.path, sources.series_name(one, path.parent)


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
        from homolog.gui.files.choosing import ask

        return ask(series)
    chosen = sources.largest(series)
    if chosen is not None and len(series) > 1:
        text = f"{len(series)} series here; the largest is opened."
        notify(f"{root.name}: {text}", "info")
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
        if holds_boxes(path):
            return True
        return kind_of(path) != "image2d" and sources.is_analyze(path)
    except Exception:  # noqa: BLE001 - then napari asks the next reader
        return False


def _listed(path: Paths) -> list[str]:
    return [str(path)] if isinstance(path, str | Path) else [str(p) for p in path]


# Sample data of the plugin: phantom patients, made on the spot, no download.


# The two patients of the pair; they differ in size and in the shape of their organs.
_PAIR = (1, 2)


def phantom_patient() -> list[LayerData]:
    """A CT-like phantom body with its labels."""
    from homolog.phantom.phantom import make_phantom

    phantom = make_phantom(_PAIR[0], name="phantom CT")
    labels = replace(phantom.labels, name="phantom organs")
    return [volume_layer(phantom.volume), label_layer(labels)]


def phantom_mr() -> list[LayerData]:
    """An MR-like phantom body."""
    from homolog.phantom.phantom import make_mr_phantom

    phantom = make_mr_phantom(_PAIR[0])
    return [volume_layer(replace(phantom.volume, name="phantom MR"))]


def two_phantom_patients() -> list[LayerData]:
    """Two phantom bodies that differ in shape, to match anatomy between them."""
    from homolog.phantom.phantom import make_phantom

    names = ("phantom patient A", "phantom patient B")
    return [
        volume_layer(make_phantom(seed, name=name).volume)
        for seed, name in zip(_PAIR, names, strict=True)
    ]
