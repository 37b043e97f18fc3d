"""What napari's menus and palette call: show a tab of the panel, open scans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from homolog.gui.preferences import PLUGIN

if TYPE_CHECKING:
    from homolog.gui.hub import Hub


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
    from homolog.gui.files import associations
    from homolog.gui.telling import tell

    associations.associate()
    tell("Medical files now open with Homolog.", "info")


def _show(title: str, what: dict[str, Any] | None = None) -> None:
    hub = _panel_hub()
    if hub is not None:
        hub.go.emit(title, what or {})


def _panel_hub() -> Hub | None:
    """The hub of the open panel, which is opened if need be."""
    from napari import current_viewer

    from homolog.gui.hub import any_hub

    viewer = current_viewer()
    if viewer is None:
        return any_hub()
    # Shows the panel if it is there already, else makes it.
    viewer.window.add_plugin_dock_widget(PLUGIN, "Homolog")
    return any_hub()
