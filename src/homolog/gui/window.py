"""The napari window with our panel docked, for ``homolog gui``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homolog.data.scan_header import kind_of
from homolog.gui.files.opening import add_to
from homolog.gui.files.reader import read_path
from homolog.gui.preferences import PLUGIN

WIDGET = "Homolog"


def open_viewer(paths: Sequence[Path], *, show: bool = True) -> Any:
    """A viewer with our panel, and each path opened where it belongs.

    Args:
        paths: Scan files, pictures and folders of DICOM; a run opens in the tab Runs, a
            model in the tab Models.
        show: Whether the window appears at once.

    Returns:
        The napari Viewer; the caller starts the event loop.
    """
    import napari

    viewer = napari.Viewer(title="Homolog", show=show)
    panel = dock_panel(viewer)
    for path in paths:
        open_path(viewer, panel, path)
    if viewer.layers:
        viewer.canvas.overlays.scale_bar.visible = True
    return viewer


def dock_panel(viewer: Any) -> Any:
    """Dock the main panel on the right, as napari's plugin menu does; returns it."""
    _, panel = viewer.window.add_plugin_dock_widget(PLUGIN, WIDGET)
    return panel


def open_path(viewer: Any, panel: Any, path: Path) -> None:
    """Open one path; what cannot be opened is told in the window."""
    if (path / "run.json").is_file():
        panel.visit("Runs", {"run": str(path.absolute())})
        return
    if any((p / "model.json").is_file() for p in (path, path / "model")):
        panel.visit("Models", {"model": str(path.absolute())})
        return
    try:
        if kind_of(path) == "image2d":  # napari gives its plugins no pictures to read
            for layer in read_path(path):
                add_to(viewer, layer)
        else:
            viewer.open(str(path), plugin=PLUGIN)
    except Exception as error:  # noqa: BLE001 - the window opens all the same
        panel.hub.say(f"{path.name} could not be opened: {error}", "error")
