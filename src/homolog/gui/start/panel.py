"""The first screen: the open scan, three doors, and what comes next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.autosave.saver import RestoreBar
from homolog.gui.files.choosing import ScanOpener
from homolog.gui.files.dropping import KINDS, DropsScans
from homolog.gui.files.offer_bar import OfferBar
from homolog.gui.files.reader import phantom_patient
from homolog.gui.files.sources import few
from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import LayerData, ScanRef, layer_scan
from homolog.gui.shared.threads import in_background
from homolog.gui.start.steps import (
    NEXT,
    SIGNS,
    Known,
    Step,
    alike_words,
    front_scan,
    label_words,
    look,
    scan_words,
    segment_words,
    steps,
)

_STATES = {"done": "done", "next": "next", "later": "not done yet"}
_ASKS = "asks for a scan"
_SETTLE_MS, _SIGN_PX = 150, 24


class Door(QPushButton):
    """A large button: what one can do, and a sentence on how.

    Args:
        title: On the door.
        lines: Room of the sentence.
        go: What it does.
    """

    def __init__(self, title: str, lines: int, go: Callable[[], Any]) -> None:
        super().__init__()
        self.setAccessibleName(title)
        self._name = title
        self.title = QLabel()
        self.words = widgets.Sentence(lines)
        column = QVBoxLayout(self)
        column.setContentsMargins(10, 8, 10, 8)
        column.setSpacing(2)
        for label in (self.title, self.words):
            label.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
            label.setStyleSheet("background: transparent;")
            column.addWidget(label)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.clicked.connect(lambda: go())

    def say(self, words: str, first: str = "") -> None:
        """Tell what lies behind it, for the eye and for screen readers.

        Args:
            words: The sentence.
            first: What it does before that; empty for nothing.
        """
        self.title.setText(f"<b>{self._name}</b>{first and ': '}{first}")
        self.words.setText(words)
        self.setToolTip(words)
        self.setAccessibleDescription(f"{first} {words}".strip())

    def sizeHint(self) -> QSize:  # noqa: D102 - Qt's name
        layout = self.layout()
        return super().sizeHint() if layout is None else layout.sizeHint()

    def minimumSizeHint(self) -> QSize:  # noqa: D102 - Qt's name
        return QSize(80, self.sizeHint().height())


class StepRow(QWidget):
    """One line of the list: a sign, what to do, and how as its tip."""

    def __init__(self) -> None:
        super().__init__()
        self.sign, self.words = QLabel(), QLabel()
        self.words.setWordWrap(True)
        row = QHBoxLayout(self)
        row.setContentsMargins(4, 0, 0, 0)
        self.sign.setMinimumWidth(_SIGN_PX)
        row.addWidget(self.sign)
        row.addWidget(self.words, 1)

    def show_step(self, step: Step) -> None:
        """Show a step; the next one is bold."""
        self.sign.setText(SIGNS[step.state])
        is_next = step.state == NEXT
        self.words.setText(step.text)
        font = self.words.font()
        font.setBold(is_next)
        self.words.setFont(font)
        name = f"{step.text}: {_STATES[step.state]}"
        widgets.named(self, name, step.hint)
        widgets.named(self.words, name, step.hint)


def _phantom() -> list[LayerData]:
    """The phantom with its organs hidden: they are what one wants to find."""
    scan, (data, attributes, kind) = phantom_patient()
    return [scan, (data, {**attributes, "visible": False}, kind)]


class StartPanel(DropsScans, widgets.Tall):
    """What a newcomer sees first."""

    title: ClassVar[str] = "Start"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.known = Known()
        self._through = ""  # the tab that a door without a scan leads to
        self.opener = ScanOpener(hub, self)
        self.opener.working.connect(self._say_working)
        self.opener.opened.connect(self._opened)
        self.opener.failed.connect(lambda _, text: self._say_trouble(text))
        self.opener.crowded.connect(
            lambda path: hub.go.emit("Data", {"list": [str(path)]})
        )
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.setInterval(_SETTLE_MS)
        self._later.timeout.connect(self.refresh)
        self._make()
        self._arrange()
        self.setAcceptDrops(True)
        events = hub.viewer.layers.events
        self._heard = (
            events.inserted, events.removed, hub.viewer.layers.selection.events.active
        )  # fmt: skip
        for event in self._heard:
            event.connect(self._layers_changed)
        hub.changed.connect(self._news)
        self.refresh()

    def visit(self, what: dict[str, Any]) -> None:
        """Nothing is handed over."""

    def shown(self) -> None:
        """The tab came to the front: look at the disk anew."""
        self.offer.refresh()
        self.restore.give_way()
        self.read()
        self.refresh()

    def tear_down(self) -> None:
        """Let go of the viewer."""
        for event in self._heard:
            event.disconnect(self._layers_changed)

    def read(self) -> None:
        """Look for models and features, on a thread."""
        in_background(
            look, self.hub.runs, self.hub.models, self.hub.features, owner=self,
            done=self._got,
            failed=lambda error: self.hub.say(f"Models: {error}", "warning"),
        )  # fmt: skip

    @property
    def front(self) -> tuple[Any, ScanRef] | None:
        """The scan that the doors lead to."""
        layers = self.hub.viewer.layers
        return front_scan(list(layers), layers.selection.active)

    def refresh(self) -> None:
        """Show what is open, what the doors do, and what comes next."""
        front = self.front
        ref = None if front is None else front[1]
        self.scan.setText(scan_words(ref))
        doors = (
            (self.alike, alike_words(self.known, ref)),
            (self.label, label_words()),
            (self.segment, segment_words(self.known, ref)),
        )
        for door, words in doors:
            door.say(words, "" if ref is not None else _ASKS)
        found = steps(self.hub.viewer.layers, self.known)
        for row, step in zip(self.rows, found, strict=True):
            row.show_step(step)

    def _make(self) -> None:
        self.restore, self.offer = RestoreBar(self.hub), OfferBar()
        self.scan = widgets.named(
            widgets.Sentence(2, [scan_words(None)]),
            "The open scan",
            "What the doors below lead to",
        )
        self.open = widgets.button(
            "Open a scan...", "Choose files: NIfTI, NRRD, MetaImage, DICOM, pictures",
            self.ask_files,
        )  # fmt: skip
        self.folder = widgets.button(
            "DICOM folder...", "Open a DICOM folder; of several series, one is chosen",
            lambda: widgets.ask_folder(
                self, "Open a DICOM folder", lambda path: self.take([path])
            ),
        )  # fmt: skip
        self.phantom = widgets.button(
            "Phantom", "A made-up CT with labelled organs, to try everything on",
            lambda: self.opener.make(_phantom, "a phantom"),
        )  # fmt: skip
        self.status = widgets.sentence("What is being done", lines=1)
        self.trouble = widgets.sentence("What could not be opened", lines=2)
        self.alike = Door("See what is alike", 4, lambda: self._go("Explore"))
        self.label = Door("Label a few voxels", 4, lambda: self._go("Label"))
        self.segment = Door("Segment with a model", 3, lambda: self._go("Segment"))
        self.rows = [StepRow() for _ in steps([], Known())]

    def _arrange(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(6, 4, 6, 4)
        for widget in (self.restore, self.scan):
            column.addWidget(widget)
        column.addWidget(self.open)
        column.addLayout(widgets.beside(self.folder, self.phantom))
        column.addWidget(self.status)
        for widget in (self.alike, self.label, self.segment, self.trouble):
            column.addWidget(widget)
        title = QLabel("<b>Your first steps</b>")
        column.addWidget(widgets.named(title, "Your first steps", "What comes next"))
        for row in self.rows:
            column.addWidget(row)
        column.addWidget(self.offer)  # last: it comes and goes
        column.addStretch(1)

    def _go(self, tab: str) -> None:
        """Through a door, with the scan in front selected; without one, it is asked."""
        front = self.front
        if front is None:
            widgets.ask_files(
                self, "Open a scan", KINDS, lambda paths: self._take_through(tab, paths)
            )
            return
        self.hub.viewer.layers.selection.active = front[0]
        self.hub.go.emit(tab, {"begin": True})

    def _take_through(self, tab: str, paths: list[Path]) -> None:
        """Open what was chosen, then go where the door leads."""
        self._through = tab if few(paths) else ""
        self.take(paths)

    def _opened(self, _: object, layer: Any) -> None:
        """The first scan that a door asked for is there."""
        tab, self._through = self._through, ""
        if tab and layer_scan(layer) is not None:
            self.hub.viewer.layers.selection.active = layer
            self.hub.go.emit(tab, {"begin": True})

    def _got(self, known: Known) -> None:
        self.known = known
        self.refresh()

    def _news(self, what: str) -> None:
        if self.isVisible() and what in ("runs", "models", "features"):
            self.read()

    def _layers_changed(self, _: Any = None) -> None:
        if self.isVisible():  # else it looks when it comes to the front
            self._later.start()

    def _say_working(self, text: str) -> None:
        if not text:
            self._through = ""  # what was asked for is read, or was not taken
        widgets.tell(self.status, text)

    def _say_trouble(self, text: str) -> None:
        widgets.tell(self.trouble, f"✖ {text}")
