"""The panel of the plugin: nine tabs in one dock, each made when it is first shown."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QSize, Qt, QTimer
from qtpy.QtWidgets import (
    QDockWidget,
    QFrame,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QScrollArea,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.autosave.saver import autosave_of
from homolog.gui.close_guard import CloseGuard, end_helpers
from homolog.gui.dock_parts import EngineBanner, KeyList, TabRows
from homolog.gui.hub import Hub
from homolog.gui.keys import keys_of
from homolog.gui.wheel import WheelGuard

if TYPE_CHECKING:
    import napari

PANELS: list[tuple[str, str]] = [
    ("Data", "homolog.gui.data.panel:DataPanel"),
    ("Pretrain", "homolog.gui.learn.pretrain_panel:PretrainPanel"),
    ("Explore", "homolog.gui.explore.panel:ExplorePanel"),
    ("Landmarks", "homolog.gui.landmarks.panel:LandmarksPanel"),
    ("Label", "homolog.gui.label.panel:LabelPanel"),
    ("Fine-tune", "homolog.gui.learn.finetune_panel:FinetunePanel"),
    ("Segment", "homolog.gui.segment.panel:SegmentPanel"),
    ("Runs", "homolog.gui.runs.panel:RunsPanel"),
    ("Models", "homolog.gui.models.panel:ModelsPanel"),
]
_TIPS = {
    "Data": "Open scans, check them and build a store to learn from",
    "Pretrain": "Learn features from scans without labels",
    "Explore": "See what was learnt: similar places within and across scans",
    "Landmarks": "Find a place of one scan in another, side by side",
    "Label": "Paint a few voxels, and see the whole scan labelled a second later",
    "Fine-tune": "Learn to segment from a few labelled scans",
    "Segment": "Label new scans with a trained model",
    "Runs": "Every training: follow, pause, stop, resume, use",
    "Models": "Every trained model: look, import, export, use",
}
SIZE_PX = (320, 700)
_SETTLE_MS = 2500  # the window is drawn first
# napari's themes hardly show what has the focus; the blue is its own.
_FOCUS = """
QPushButton:focus, QComboBox:focus, QLineEdit:focus, QAbstractItemView:focus,
QPlainTextEdit:focus, QAbstractSpinBox:focus { border: 2px solid rgb(0, 122, 204); }
QCheckBox:focus, QRadioButton:focus { background: rgba(0, 122, 204, 110); }
"""


class MainPanel(QWidget):
    """The dock's content. Closing it stops no training.

    Args:
        napari_viewer: The viewer it is docked in.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.hub = Hub(napari_viewer, self)
        self.panels: dict[str, QWidget] = {}
        self._docked = self._torn_down = self._sized = False
        # The first child: it goes before the widgets it watches.
        self.wheel = WheelGuard(self)
        self._build()
        self.guard = CloseGuard(self.hub, self)
        self.autosave = autosave_of(self.hub)
        self.autosave.landmark_panel = self._landmark_panel
        self.autosave.start(self._explore_panel, lambda: self.window().isVisible())
        self.hub.go.connect(self.visit)
        self.setAcceptDrops(True)
        self.setAccessibleName("Homolog")
        self.setMinimumWidth(SIZE_PX[0])
        self.setStyleSheet(_FOCUS)

    def sizeHint(self) -> QSize:  # noqa: D102 - Qt's name
        return QSize(*SIZE_PX)

    def visit(self, title: str, what: object = None) -> None:
        """Show a tab and hand it what it should look at."""
        self.show_tab(title)
        panel = self.panels.get(title)
        if panel is None or not isinstance(what, dict):
            return
        try:
            panel.visit(what)
        except Exception as error:  # noqa: BLE001 - a slot never raises
            self.hub.say(f"The tab {title} could not open that: {error}", "error")

    def show_tab(self, title: str) -> None:
        """Bring a tab to the front; its panel is made now if it is not there yet."""
        if title not in self._areas:
            return
        panel = self._panel(title)
        self.wheel.adopt()
        self.tabs.choose(title)
        self._stack.setCurrentWidget(self._areas[title])
        keys_of(self.hub).refresh()
        if panel is not None and hasattr(panel, "shown"):
            try:
                panel.shown()
            except Exception as error:  # noqa: BLE001 - a slot never raises
                self.hub.say(f"The tab {title} has a problem: {error}", "error")

    def current(self) -> str:
        """Title of the tab in front."""
        return self.tabs.chosen

    def tear_down(self) -> None:
        """Let go of everything outside this widget; runs go on."""
        if self._torn_down:
            return
        self._torn_down = True
        keys_of(self.hub).clear()
        self.guard.leave()
        self.autosave.end()
        end_helpers(self)
        for panel in self.panels.values():
            if hasattr(panel, "tear_down"):
                panel.tear_down()

    def event(self, event: QEvent) -> bool:
        """Taken out of its dock means closed: tear down and go."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parentWidget() is not None:
                self._docked = True
            elif self._docked:
                self.tear_down()
                self.deleteLater()
        return bool(super().event(event))

    def showEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().showEvent(event)
        self.guard.watch()
        if not self._sized:
            self._sized = True
            QTimer.singleShot(0, self._take_size)
        if not self._torn_down:
            keys_of(self.hub).set_active(True)
            # Asked now, the engine's answer is there before a form needs it.
            QTimer.singleShot(_SETTLE_MS, self._ask_engine)
        if not self.tabs.chosen:
            self.show_tab(PANELS[0][0])

    def _ask_engine(self) -> None:
        if self.isVisible() and not self._torn_down:
            self.hub.want_schema()

    def hideEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().hideEvent(event)
        if not self._torn_down:
            keys_of(self.hub).set_active(False)

    def dragEnterEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        if _dropped_run(event) is not None:
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:
        """A run folder dropped anywhere on the panel opens in Runs."""
        run = _dropped_run(event)
        if run is not None:
            event.acceptProposedAction()
            self.visit("Runs", {"run": str(run)})

    def _take_size(self) -> None:
        """Begin as wide as is needed, so that the scan keeps most of the window."""
        place, dock = self.parentWidget(), None
        while place is not None and not isinstance(place, QMainWindow):
            dock = place if isinstance(place, QDockWidget) else dock
            place = place.parentWidget()
        if place is not None and dock is not None and not dock.isFloating():
            wide = max(SIZE_PX[0], self.minimumSizeHint().width()) + 20
            place.resizeDocks([dock], [wide], Qt.Orientation.Horizontal)

    def _panel(self, title: str) -> QWidget | None:
        """The tab's panel; None when it cannot be made, then the tab says why."""
        if title in self.panels:
            return self.panels[title]
        area = self._areas[title]
        try:
            module, _, name = dict(PANELS)[title].partition(":")
            panel: QWidget = getattr(importlib.import_module(module), name)(self.hub)
        except Exception as error:  # noqa: BLE001 - told in the tab itself
            area.setWidget(_reason(title, error))
            return None
        self.panels[title] = panel
        area.setWidget(panel)
        return panel

    def _explore_panel(self, make: bool) -> QWidget | None:
        return self._panel("Explore") if make else self.panels.get("Explore")

    def _landmark_panel(self, make: bool) -> QWidget | None:
        return self._panel("Landmarks") if make else self.panels.get("Landmarks")

    def _build(self) -> None:
        self.tabs = TabRows([(title, _TIPS[title]) for title, _ in PANELS])
        self.tabs.picked.connect(self.show_tab)
        self.help = QToolButton()
        self.help.setText("?")
        self.help.setAccessibleName("Keys and help")
        self.help.setToolTip("Keys of this panel")
        self.help.clicked.connect(self._show_keys)
        self.tabs.add_corner(self.help)
        self._keys = KeyList(self)
        self._stack = QStackedWidget()
        self._areas: dict[str, QScrollArea] = {}
        for title, _ in PANELS:
            area = QScrollArea()
            area.setWidgetResizable(True)
            area.setFrameShape(QFrame.Shape.NoFrame)
            area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAsNeeded)
            # One that came and went would wrap every sentence anew.
            area.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOn)
            area.setAccessibleName(f"Tab {title}")
            area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            self._areas[title] = area
            self._stack.addWidget(area)
        top = QHBoxLayout()
        top.setContentsMargins(0, 0, 0, 0)
        top.addWidget(self.tabs)
        column = QVBoxLayout(self)
        column.setContentsMargins(2, 6, 2, 2)
        column.addLayout(top)
        missing = self.hub.engine_missing()
        self.banner = EngineBanner(missing)
        self.banner.setVisible(bool(missing))
        column.addWidget(self.banner)
        column.addWidget(self._keys)
        column.addWidget(self._stack, 1)

    def _show_keys(self) -> None:
        self._keys.toggle(keys_of(self.hub).lines())


def _dropped_run(event: Any) -> Path | None:
    """The first run folder among what is dragged."""
    for url in event.mimeData().urls():
        path = Path(url.toLocalFile())
        if (path / "run.json").is_file():
            return path
    return None


def _reason(title: str, error: Exception) -> QLabel:
    label = QLabel(
        f"The tab {title} cannot be shown in this Python: "
        f"{str(error) or type(error).__name__}."
    )
    label.setWordWrap(True)
    label.setAlignment(Qt.AlignmentFlag.AlignTop)
    label.setMargin(8)
    label.setAccessibleName(f"Why the tab {title} is missing")
    label.setToolTip("The other tabs work")
    return label
