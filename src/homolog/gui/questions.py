"""The only modal dialogs: questions before something that cannot be taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from qtpy.QtWidgets import QCheckBox, QMessageBox, QPushButton, QWidget


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        title: Of the dialog.
        text: One sentence.
        more: What is safe, what is lost.
        answers: (key, text on the button), the last one changes nothing.
        default: Key that Enter chooses; Escape chooses the last answer.
        remember: Text of a tick box, or empty for none.
    """

    title: str
    text: str
    more: str
    answers: Sequence[tuple[str, str]]
    default: str
    remember: str = ""


@dataclass(frozen=True)
class Answer:
    """What was chosen, and whether to choose it by itself from now on."""

    key: str
    always: bool = False


Ask: TypeAlias = Callable[[QWidget | None, Question], Answer]


def ask(parent: QWidget | None, question: Question) -> Answer:
    """Show the dialog; tests and scripts put another function in its place."""
    box = QMessageBox(parent)
    box.setIcon(QMessageBox.Icon.Question)
    box.setWindowTitle(question.title)
    box.setText(question.text)
    box.setInformativeText(question.more)
    box.setAccessibleName(question.title)
    buttons: dict[str, QPushButton] = {}
    for key, words in question.answers:
        last = key == question.answers[-1][0]
        role = QMessageBox.ButtonRole.RejectRole if last else _PLAIN
        buttons[key] = box.addButton(words, role)
        buttons[key].setAccessibleName(words)
    box.setDefaultButton(buttons[question.default])
    box.setEscapeButton(buttons[question.answers[-1][0]])
    tick = QCheckBox(question.remember)
    if question.remember:
        box.setCheckBox(tick)
    box.exec()
    clicked = box.clickedButton()
    key = next(
        (k for k, button in buttons.items() if button is clicked),
        question.answers[-1][0],
    )
    return Answer(key, bool(tick.isChecked()))


_PLAIN = QMessageBox.ButtonRole.AcceptRole
