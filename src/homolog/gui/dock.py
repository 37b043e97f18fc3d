"""The panel of the plugin: its tabs in one dock, each made when it is first shown."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QObject, QSize, Qt
from qtpy.QtWidgets import (
    QDockWidget,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMainWindow,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.autosave.saver import autosave_of
from homolog.gui.files.choosing import NewScans
from homolog.gui.files.dropping import CanvasDrops, dropped_run, local_paths
from homolog.gui.files.opening import warm_up
from homolog.gui.reading.bar import ReadingBar
from homolog.gui.shared import engine, preferences, widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.keys import keys_of
from homolog.gui.shared.runs import headline, saved_step
from homolog.gui.shared.threads import Helper, in_background, soon
from homolog.gui.shared.widgets import Question, WheelGuard
from homolog.gui.start.side_bar import SideBar
from homolog.model_files.library import remember_library
from homolog.runs import launch
from homolog.runs.run import Run
from homolog.words import duration

if TYPE_CHECKING:
    import napari


# The question before a window with running trainings closes; no Qt widgets.


def question_about(runs: Sequence[Run]) -> Question:
    """Names the trainings, says how far they are and what is safe."""
    lines = [line_about(run) for run in runs]
    one = len(runs) == 1
    return Question(
        "A training is running" if one else f"{len(runs)} trainings are running",
        "Still running:\n" + "\n".join(lines),
        "In the background it goes on without this window; the tab Runs finds it "
        "again, also after a restart. Stopping saves its state and its model, and it "
        "can be resumed.",
        (
            ("keep", "Keep training in background"),
            ("stop", "Stop and save"),
            ("cancel", "Cancel"),
        ),
        "keep",
        "Always do this",
    )


def line_about(run: Run) -> str:
    """``"Pretraining run-07, step 12/100, about 17 min left; step 10 is saved"``."""
    step, spec = run.last_step(), run.spec
    text = headline(
        str(spec["kind"]), run.folder.name, "running",
        step.index if step else 0, step.total if step else 0,
    )  # fmt: skip
    if step and step.remaining_s > 0:
        text += f", about {duration(step.remaining_s)} left"
    saved = saved_step(run.folder)
    safe = "nothing is saved yet" if saved is None else f"step {saved} is saved"
    return f"{text}; {safe}."


# Closing the window while a training of ours runs: it asks first.
#
# Only trainings that this program started are asked about, and only by its last window;
# closing the dock asks nothing and stops nothing.


KEEP, STOP, CANCEL = "keep", "stop", "cancel"
# napari's question; what runs in napari itself is told after an empty line.
_NAPARI_ASKS, _OF_TASKS = "ConfirmCloseDialog", "\n\n"
_PATIENCE_S = 60.0
_guards: weakref.WeakSet[CloseGuard] = weakref.WeakSet()


class CloseGuard(QObject):
    """Watches the main window that a panel is docked in.

    Args:
        hub: Its ``closing`` is emitted when the window is about to close.
        panel: In the dock.
    """

    def __init__(self, hub: Hub, panel: QWidget) -> None:
        super().__init__(panel)
        self.ask = widgets.ask
        self._hub, self._panel = hub, panel
        self._window: QMainWindow | None = None
        self._allowed = self._stopping = self._answered = False

    def watch(self) -> None:
        """Find the main window, once; a floating dock still has it as its parent."""
        if self._window is not None:
            return
        place = self._panel
        while place is not None and not isinstance(place, QMainWindow):
            place = place.parentWidget()
        if place is not None:
            self._window = place
            place.installEventFilter(self)
            _guards.add(self)

    def leave(self) -> None:
        """Watch no more: the dock was closed, its runs go on."""
        _guards.discard(self)
        if self._window is not None:
            self._window.removeEventFilter(self)
            self._window = None

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Answer the window's Close; let everything else pass."""
        if event is None or watched is not self._window:
            return False
        if event.type() == QEvent.Type.ChildPolished:
            self._spare_second_question(event.child())
        elif event.type() == QEvent.Type.Close:
            if self._may_close():
                self._hub.closing.emit()
                return False
            event.ignore()
            return True
        elif event.type() == QEvent.Type.Hide and not event.spontaneous():
            end_helpers(self._panel)  # napari hides the window it closes
        return False

    def _spare_second_question(self, child: Any) -> None:
        """Say yes to napari's own question where ours is asked as well.

        It comes before ours (Ctrl+Q) or after it (the window's button); the one that
        tells of napari's own tasks stays.
        """
        if type(child).__name__ != _NAPARI_ASKS:
            return
        if any(_OF_TASKS in label.text() for label in child.findChildren(QLabel)):
            return
        if self._answered or self._would_ask():
            child.setAttribute(Qt.WidgetAttribute.WA_DontShowOnScreen)
            soon(child, child.accept)

    def _would_ask(self) -> bool:
        told = str(preferences.get("session", "close_answer", "ask"))
        return told not in (KEEP, STOP) and bool(self._running())

    def _running(self) -> list[Run]:
        return launch.started_here() if self._is_last() else []

    def _may_close(self) -> bool:
        if self._allowed:
            return True
        if self._stopping:
            self._hub.say("Still saving; the window closes by itself when it is done.")
            return False
        runs = self._running()
        if not runs:
            return True
        answer = self._answer(runs)
        if answer == STOP:
            self._stop_and_close(runs)
        return answer == KEEP

    def _answer(self, runs: Sequence[Run]) -> str:
        told = str(preferences.get("session", "close_answer", "ask"))
        if told in (KEEP, STOP):
            return told
        answer = self.ask(self._window, question_about(runs))
        self._answered = answer.key == KEEP
        if answer.always and answer.key in (KEEP, STOP):
            preferences.put("session", "close_answer", answer.key)
        return answer.key

    def _stop_and_close(self, runs: Sequence[Run]) -> None:
        self._stopping = True
        names = ", ".join(run.folder.name for run in runs)
        self._hub.say(f"Saving {names}; the window closes when it is done.")
        in_background(
            stop_all, list(runs), owner=self,
            done=self._close, failed=self._not_stopped,
        )  # fmt: skip

    def _close(self, _: object) -> None:
        self._stopping, self._allowed = False, True
        if self._window is not None:
            self._window.close()

    def _not_stopped(self, error: Exception) -> None:
        self._stopping = False
        self._hub.say(f"A training could not be stopped: {error}", "error")

    def _is_last(self) -> bool:
        return all(guard is self for guard in _guards)


def stop_all(runs: Sequence[Run]) -> None:
    """Stop runs together, state saved; none is alive afterwards. Blocks.

    One that does not obey within a minute is ended; its last checkpoint stays.
    """
    for run in runs:
        if run.is_alive():
            run.ask("stop")
    for run in runs:
        launch.stop(run, _PATIENCE_S, kill=True)


def end_helpers(panel: QWidget) -> None:
    """Jobs that only serve this window end with it."""
    for helper in panel.findChildren(Helper):
        if helper.running:
            helper.stop()


# Without the engine the panel opens all the same.


class EngineBanner(QFrame):
    """Without torch and MONAI the panel opens and says what to type.

    Args:
        missing: Names of the libraries.
    """

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__()
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.setAccessibleName("The training engine is missing")
        text = QLabel(
            "⚠ The training engine is not installed in this Python. Scans can be "
            "opened and looked at; to train or segment, type this in a terminal and "
            "start napari again:"
        )
        text.setWordWrap(True)
        text.setToolTip(f"Missing: {', '.join(missing)}")
        self.command = QLineEdit(engine.install_command())
        self.command.setReadOnly(True)
        self.command.setAccessibleName("Command that installs the engine")
        self.command.setToolTip(self.command.text())
        self.command.setCursorPosition(0)
        text.setBuddy(self.command)
        self.copy = QPushButton("Copy")
        self.copy.setAccessibleName("Copy the command")
        self.copy.setToolTip("Copy the command to the clipboard")
        self.copy.clicked.connect(self._copy)
        line = QHBoxLayout()
        line.addWidget(self.command, 1)
        line.addWidget(self.copy)
        column = QVBoxLayout(self)
        column.setContentsMargins(6, 4, 6, 4)
        column.addWidget(text)
        column.addLayout(line)

    def _copy(self) -> None:
        widgets.copy(self.command.text())
        self.copy.setText("Copied")


PANELS: list[tuple[str, str]] = [
    ("Start", "homolog.gui.start.panel:StartPanel"),
    ("Data", "homolog.gui.data.panel:DataPanel"),
    ("Explore", "homolog.gui.explore.panel:ExplorePanel"),
    ("Landmarks", "homolog.gui.landmarks.panel:LandmarksPanel"),
    ("Label", "homolog.gui.label.panel:LabelPanel"),
    ("Segment", "homolog.gui.segment.panel:SegmentPanel"),
    ("Pretrain", "homolog.gui.learn.tabs:PretrainPanel"),
    ("Fine-tune", "homolog.gui.learn.tabs:FinetunePanel"),
    ("Runs", "homolog.gui.runs.panel:RunsPanel"),
    ("Models", "homolog.gui.models.panel:ModelsPanel"),
    ("Help", "homolog.gui.start.help_page:HelpPage"),
]
_TIPS = {
    "Start": "What can be done here, and what comes next",
    "Data": "Open scans, check them and build a store to learn from",
    "Explore": "See what is alike: similar places within and across scans",
    "Landmarks": "Find a place of one scan in another, side by side",
    "Label": "Paint a few voxels, and see the whole scan labelled a second later",
    "Segment": "Label new scans with a trained model",
    "Pretrain": "Learn features from scans without labels",
    "Fine-tune": "Learn a task from a few labelled scans",
    "Runs": "Every training: follow, pause, stop, resume, use",
    "Models": "Every trained model: look, import, export, use",
    "Help": "The first five minutes, and all keys",
}
# What belongs together in the bar of tabs: to begin, look, label, learn, ask.
_GROUPS = (
    ("Start", "Data"),
    ("Explore", "Landmarks"),
    ("Label", "Segment"),
    ("Pretrain", "Fine-tune", "Runs", "Models"),
    ("Help",),
)
SIZE_PX = (406, 700)
_MOST_SHARE = 0.42  # of the window, whatever the letters
LEAST_PX = 320  # then the bar shows icons alone
_SETTLE_MS = 2500  # the window is drawn first
_WARM_MS = 300
# napari's themes hardly show what has the focus; the blue is its own.
_FOCUS = """
QPushButton:focus, QComboBox:focus, QLineEdit:focus, QAbstractItemView:focus,
QPlainTextEdit:focus, QAbstractSpinBox:focus { border: 2px solid rgb(0, 122, 204); }
QCheckBox:focus, QRadioButton:focus { background: rgba(0, 122, 204, 110); }
"""


class TabArea(QScrollArea):
    """Scrolls to what the key Tab reaches, and to nothing that got the focus by chance.

    A button that is pressed and then disabled hands its focus on, and Qt would scroll
    away from what was pressed.
    """

    def focusNextPrevChild(self, forward: bool) -> bool:  # noqa: D102 - Qt's name
        before = self.focusWidget()
        chosen = before is None or (before.isEnabled() and not before.isHidden())
        moved = bool(QWidget.focusNextPrevChild(self, forward))
        now = self.focusWidget()
        if moved and chosen and now is not None:
            self.ensureWidgetVisible(now)
        return moved


class MainPanel(QWidget):
    """The dock's content. Closing it stops no training.

    Args:
        napari_viewer: The viewer it is docked in.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.hub = Hub(napari_viewer, self)
        self.panels: dict[str, QWidget] = {}
        self._docked = self._torn_down = self._sized = self._warmed = False
        self._scale = 1.0
        # The first child: it goes before the widgets it watches.
        self.wheel = WheelGuard(self)
        self._build()
        self.new_scans = NewScans(self.hub, self)
        self.guard = CloseGuard(self.hub, self)
        self.drops = CanvasDrops(self.hub, self)
        self.autosave = autosave_of(self.hub)
        self.autosave.landmark_panel = self._landmark_panel
        self.autosave.start(self._explore_panel, lambda: self.window().isVisible())
        self.hub.go.connect(self.visit)
        in_background(
            remember_library, self.hub.models, owner=self, failed=lambda _: None
        )  # where settings cannot be written, HOMOLOG_MODELS is left
        self.setAcceptDrops(True)
        self.setAccessibleName("Homolog")
        self.setMinimumWidth(LEAST_PX)
        # Else napari adds room at the layout's end, more to each panel it docks.
        policy = QSizePolicy.Policy
        self.setSizePolicy(policy.Preferred, policy.Expanding)
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
        self.tabs.choose(title)
        self.reading.front(title)
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
        self.drops.end()
        self.autosave.end()
        self.new_scans.end()
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
        self.drops.watch()
        if not self._sized:
            self._sized = True
            soon(self, self._take_size)
        if not self._torn_down:
            keys_of(self.hub).set_active(True)
            # Asked now, the engine's answer is there before a form needs it.
            soon(self, self._ask_engine, _SETTLE_MS)
            soon(self, self._warm_up, _WARM_MS)
        if not self.tabs.chosen:
            self.show_tab(PANELS[0][0])

    def _ask_engine(self) -> None:
        if self.isVisible() and not self._torn_down:
            self.hub.want_schema()

    def _warm_up(self) -> None:
        """Import on a thread what the first scan and the tabs will need."""
        if self._torn_down or self._warmed:
            return
        self._warmed = True
        modules = [place.partition(":")[0] for _, place in PANELS]
        in_background(warm_up, modules, owner=self, failed=lambda _: None)

    def hideEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().hideEvent(event)
        if not self._torn_down:
            keys_of(self.hub).set_active(False)

    def dragEnterEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        if dropped_run(local_paths(event)) is not None:
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:
        """A run folder dropped anywhere on the panel opens in Runs."""
        run = dropped_run(local_paths(event))
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
            wide = max(SIZE_PX[0], self.minimumSizeHint().width())
            wide = min(round(wide * self._scale), round(_MOST_SHARE * place.width()))
            wide = max(wide, SIZE_PX[0])
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
        self.wheel.adopt(area)
        return panel

    def _explore_panel(self, make: bool) -> QWidget | None:
        return self._panel("Explore") if make else self.panels.get("Explore")

    def _landmark_panel(self, make: bool) -> QWidget | None:
        return self._panel("Landmarks") if make else self.panels.get("Landmarks")

    def _build(self) -> None:
        self.tabs = SideBar([[(t, _TIPS[t]) for t in group] for group in _GROUPS])
        self.tabs.picked.connect(self.show_tab)
        self._stack = QStackedWidget()
        self._areas: dict[str, QScrollArea] = {}
        for title, _ in PANELS:
            area = TabArea()
            area.setWidgetResizable(True)
            area.setFrameShape(QFrame.Shape.NoFrame)
            area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAsNeeded)
            # One that came and went would wrap every sentence anew.
            area.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOn)
            area.setAccessibleName(f"Tab {title}")
            area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            self._areas[title] = area
            self._stack.addWidget(area)
        missing = self.hub.engine_missing()
        self.banner = EngineBanner(missing)
        self.banner.setVisible(bool(missing))
        self.strip = QWidget()
        strip = QVBoxLayout(self.strip)
        strip.setContentsMargins(4, 0, 4, 0)
        self.strip.setVisible(False)
        column = QVBoxLayout()
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.banner, self.strip):
            column.addWidget(widget)
        column.addWidget(self._stack, 1)
        row = QHBoxLayout(self)
        row.setContentsMargins(2, 4, 2, 2)
        row.setSpacing(2)
        row.addWidget(self.tabs)
        row.addLayout(column, 1)
        self.reading = ReadingBar(self.hub)
        self.add_to_strip(self.reading)

    def add_to_strip(self, widget: QWidget) -> None:
        """Put a slim widget above all tabs, where it is always at hand."""
        layout = self.strip.layout()
        assert layout is not None
        layout.addWidget(widget)
        self.strip.setVisible(True)

    def resizeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().resizeEvent(event)
        self.tabs.fit(self.width(), self.tabs.height())

    def changeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().changeEvent(event)
        kinds = (QEvent.Type.FontChange, QEvent.Type.StyleChange)
        if event.type() in kinds and hasattr(self, "tabs"):
            soon(self, self._letters_changed)  # children follow

    def _letters_changed(self) -> None:
        """Other letters need another width, as far as the window allows."""
        scale = self.tabs.scale
        if scale != self._scale:
            self._scale = scale
            if self._sized:
                self._take_size()
        self.tabs.fit(self.width(), self.tabs.height())


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
