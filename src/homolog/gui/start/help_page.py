"""The page behind "?": the first five minutes, and what our keys do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFrame, QGridLayout, QLabel, QVBoxLayout

from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.keys import keys_of

# (title, what to do) of the first five minutes, in this order.
LESSONS = (
    (
        "1. Open a scan",
        "Drop a NIfTI, NRRD, MHA file or a DICOM folder on the picture, or take the "
        "phantom of the tab Start. The slider below the picture goes through the "
        "slices, and so does the wheel over it while Ctrl is held.",
    ),
    (
        "2. See what is alike",
        "Press that door of the tab Start. The features of the scan are computed once. "
        "Then move the mouse over an organ: what is alike lights up. Shift+click keeps "
        "a place; open a second patient, and it is found there too.",
    ),
    (
        "3. Label a few voxels",
        "Press the second door. Paint some voxels of the background and some of an "
        "organ: the whole scan is labelled a second later. Correct it by painting, "
        "where it is wrong.",
    ),
    (
        "4. Keep what you made",
        "Select a label layer and press Ctrl+S: labels are saved on the grid of their "
        "scan. The foot of the tab Label keeps them as a model or as a training case. "
        "What you painted is also saved by itself every two minutes.",
    ),
    (
        "5. Train your own model",
        "Data makes a store of your scans. Fine-tune learns from the labelled ones, "
        "Pretrain from those without labels. Trainings go on when the window closes; "
        "Runs shows them, and Segment uses what they learnt.",
    ),
)
# (tab, keys of it); other rooms' keys are listed once their tab was opened.
KEYS = (
    (
        "Explore",
        (
            ("Shift+click", "pin the place under the mouse"),
            ("Shift+F", "find similar here and pin it"),
            ("Shift+G", "go to the best match of the pinned place"),
            ("Shift+N", "go to the next match"),
            ("Shift+H", "show or hide the similarity maps"),
            ("Escape", "forget what was asked; pinned places stay"),
        ),
    ),
    (
        "Landmarks",
        (
            ("Shift+M", "find the place under the mouse in scan B"),
            ("Shift+N", "go to the next uncertain landmark"),
            ("Shift+G", "go to the chosen landmark in both views"),
            ("Escape", "stop picking; choose no landmark"),
        ),
    ),
    (
        "Label",
        (
            ("Shift+Q, W, E ...", "paint with class 1, 2, 3 ..."),
            ("Shift+T", "learn from the paint and predict"),
            ("Shift+N", "go where paint helps most"),
        ),
    ),
    ("Segment", (("Shift+R", "segment the selected layer"),)),
    (
        "Everywhere",
        (
            ("Tab, Shift+Tab", "to the next or the last control"),
            ("Space", "press the button that has the focus"),
            ("Up, Down", "from tab to tab, in the bar at the side"),
        ),
    ),
)


class HelpPage(widgets.Tall):
    """Lessons above, keys below.

    Attributes:
        keys: The list of keys, as it was when the page was shown last.
    """

    title: ClassVar[str] = "Help"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        column = QVBoxLayout(self)
        column.addWidget(
            _text("The first five minutes", "First five minutes", bold=True)
        )
        for title, words in LESSONS:
            column.addSpacing(4)
            column.addWidget(_text(title, title, bold=True))
            column.addWidget(_text(words, f"{title}, how"))
        column.addWidget(_rule())
        column.addWidget(_text("Keys", "Keys", bold=True))
        self.keys: list[tuple[str, str]] = []
        self._table = QGridLayout()
        self._table.setColumnStretch(1, 1)
        self._table.setHorizontalSpacing(10)
        column.addLayout(self._table)
        column.addWidget(_rule())
        about = "For research use only: nothing here is a medical device."
        column.addWidget(_text(about, "About"))
        column.addStretch(1)
        self.setAccessibleName("Help")

    def visit(self, what: dict[str, Any]) -> None:
        """There is only one page."""

    def shown(self) -> None:
        """List the keys: those of this page, and what was added beside them."""
        lines = key_lines(keys_of(self.hub).lines())
        if lines == self.keys:
            return
        self.keys = lines
        while (item := self._table.takeAt(0)) is not None:
            if (old := item.widget()) is not None:
                old.deleteLater()
        for row, (key, words) in enumerate(lines):
            if not words:  # the name of a tab
                self._table.addWidget(_text(key, key, bold=True), row, 0, 1, 2)
                continue
            cap = _text(key, f"Key {key}", wraps=False)
            self._table.addWidget(cap, row, 0, Qt.AlignmentFlag.AlignTop)
            self._table.addWidget(_text(words, f"What {key} does"), row, 1)


def key_lines(added: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(key, what it does) in the order shown; the name of a tab has no words.

    Args:
        added: Keys that tabs have bound, as ``Keys.lines`` tells them.
    """
    left = [line for line in added if not line[1].startswith("paint with class ")]
    found = []
    for tab, keys in KEYS:
        found.append((tab, ""))
        for key, words in keys:
            # One that another plugin holds says so behind its words.
            now = [x for x in left if x[0] == key and x[1].startswith(words)]
            found.append(now[0] if now else (key, words))
            left = [x for x in left if x not in now]
    return [*found, *([("More", ""), *left] if left else [])]


def _text(words: str, name: str, *, bold: bool = False, wraps: bool = True) -> QLabel:
    """Plain words: a label of rich text tells its height too late."""
    label = QLabel(words)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(wraps)
    if bold:
        font = label.font()
        font.setBold(True)
        label.setFont(font)
    made: QLabel = widgets.named(label, name, name)
    return made


def _rule() -> QFrame:
    line = QFrame()
    line.setFixedHeight(1)
    line.setStyleSheet("background: rgba(128, 128, 128, 90);")
    return line
