"""Files and folders dropped on our panels: one way to take them, wherever they land."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QApplication, QMainWindow, QWidget

from homolog.gui.files import reader
from homolog.gui.files.choosing import ScanOpener
from homolog.gui.files.sources import few
from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub

KINDS = (
    "Scans and pictures (*.nii *.nii.gz *.nrrd *.nhdr *.mha *.mhd *.hdr *.img *.dcm "
    "*.mgz *.mgh *.dicom *.ima *.png *.jpg *.jpeg *.tif *.tiff *.bmp);;"
    "Lists of scans (*.csv *.tsv *.json);;All files (*)"
)


def local_paths(event: Any) -> list[Path]:
    """Files and folders that are dragged or dropped."""
    data = event.mimeData()
    if data is None or not data.hasUrls():
        return []
    return [Path(u.toLocalFile()) for u in data.urls() if u.isLocalFile()]


def dropped_run(paths: Iterable[Path]) -> Path | None:
    """The first run folder among what is dragged."""
    return next((p for p in paths if (p / "run.json").is_file()), None)


class DropsScans:
    """What a panel does with dropped or chosen scans: a part of a QWidget.

    A run is shown in Runs, a few scans open here, many of them and tables go to the
    list of the tab Data. The widget calls ``setAcceptDrops`` and has:

    Attributes:
        hub: Of the window.
        opener: Opens scans.
        trouble: Tells what could not be opened.
    """

    hub: Hub
    opener: Any
    trouble: Any

    def take(self, paths: list[Path]) -> None:
        """What was dropped or chosen: a few scans open, many are listed."""
        widgets.tell(self.trouble, "")
        if few(paths):
            self.opener.open(paths)
        else:
            self.list_them(paths)

    def list_them(self, paths: list[Path]) -> None:
        """Show what is not opened in the list of the tab Data."""
        self.hub.go.emit("Data", {"list": [str(p) for p in paths]})

    def ask_files(self) -> None:
        """Let the user choose scans, pictures or a table of them."""
        widgets.ask_files(self, "Open scans or pictures", KINDS, self.take)

    def dragEnterEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        if local_paths(event):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:
        """Files and folders dropped on the panel."""
        paths = local_paths(event)
        if not paths:
            event.ignore()
            return
        event.acceptProposedAction()
        run = dropped_run(paths)
        if run is not None:
            self.hub.go.emit("Runs", {"run": str(run)})
        else:
            self.take(paths)


# napari asks which reader to use where two claim an ending, as its own and ours do.


class CanvasDrops(QObject):
    """Opens medical files that are dropped on napari's canvas, while our panel is open.

    Everything else is napari's: other files, drops with Shift (a stack) or Alt (choose
    a reader), and endings for which the user chose a reader.

    Args:
        hub: Of the window.
        panel: In the dock; owns this.
    """

    def __init__(self, hub: Hub, panel: QWidget) -> None:
        super().__init__(panel)
        self._hub, self._panel = hub, panel
        self._watched: list[QWidget] = []
        self.opener = ScanOpener(hub, self)
        self.opener.working.connect(self._say)
        self.opener.crowded.connect(
            lambda path: hub.go.emit("Data", {"list": [str(path)]})
        )

    def watch(self) -> None:
        """Find what takes drops in the middle of the main window, once."""
        window = self._panel.window()
        middle = window.centralWidget() if isinstance(window, QMainWindow) else None
        if middle is None or self._watched:
            return
        inside = [middle, *middle.findChildren(QWidget)]
        self._watched = [widget for widget in inside if widget.acceptDrops()]
        for widget in self._watched:
            widget.installEventFilter(self)

    def end(self) -> None:
        """Drops are napari's again."""
        for widget in self._watched:
            with contextlib.suppress(RuntimeError):  # napari has deleted it
                widget.removeEventFilter(self)
        self._watched = []

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Take a drop of ours; let everything else pass."""
        if event is None or event.type() != QEvent.Type.Drop:
            return False
        paths = local_paths(event)
        keys = Qt.KeyboardModifier
        if QApplication.keyboardModifiers() & (
            keys.ShiftModifier | keys.AltModifier
        ) or not reader.takes_drops(paths):
            return False
        event.acceptProposedAction()
        if few(paths):
            self.opener.open(paths)
        else:
            self._hub.go.emit("Data", {"list": [str(path) for path in paths]})
        return True

    def _say(self, words: str) -> None:
        if self._hub.viewer is not None:
            self._hub.viewer.status = words
