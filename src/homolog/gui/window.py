"""The napari window with our panel docked, for ``homolog gui``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.gui.files.opening import add_to
from homolog.gui.files.reader import read_path
from homolog.gui.shared.layers import notes_of
from homolog.gui.shared.preferences import PLUGIN
from homolog.scans.paths import kind_of

if TYPE_CHECKING:
    from homolog.gui.shared.hub import Hub


# What napari's menus and palette call: show a tab of the panel, open scans.


def show_data() -> None:
    """Tab Data: scans and stores."""
    _show("Data")


def show_pretrain() -> None:
    """Tab Pretrain."""
    _show("Pretrain")


def show_explore() -> None:
    """Tab Explore: similarity of places."""
    _show("Explore")


def show_landmarks() -> None:
    """Tab Landmarks: places of one scan found in another."""
    _show("Landmarks")


def show_finetune() -> None:
    """Tab Fine-tune."""
    _show("Fine-tune")


def show_segment() -> None:
    """Tab Segment."""
    _show("Segment")


def show_runs() -> None:
    """Tab Runs."""
    _show("Runs")


def show_models() -> None:
    """Tab Models."""
    _show("Models")


def open_scans() -> None:
    """Ask for files and open them in the background."""
    _show("Data", {"ask": "files"})


def use_for_medical_files() -> None:
    """Make Homolog napari's reader of medical files."""
    from homolog.gui.files import reader
    from homolog.gui.shared.notices import notify

    reader.associate()
    notify("Medical files now open with Homolog.", "info")


def _show(title: str, what: dict[str, Any] | None = None) -> None:
    hub = _panel_hub()
    if hub is not None:
        hub.go.emit(title, what or {})


def _panel_hub() -> Hub | None:
    """The hub of the open panel, which is opened if need be."""
    from napari import current_viewer

    from homolog.gui.shared.hub import any_hub

    viewer = current_viewer()
    if viewer is None:
        return any_hub()
    # Shows the panel if it is there already, else makes it.
    viewer.window.add_plugin_dock_widget(PLUGIN, "Homolog")
    return any_hub()


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
    # pixels of unknown size have no scale
    if viewer.layers and all(notes_of(x).get("sized", True) for x in viewer.layers):
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
