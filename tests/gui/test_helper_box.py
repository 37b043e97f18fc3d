"""A box whose work a helper process does: busy from the click to the last word."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event as Gate
from typing import Any

import pytest
from learn_fakes import FakeHelper, unnamed, until
from qtpy.QtWidgets import QVBoxLayout

from homolog.errors import UnusableInput
from homolog.events import Progress
from homolog.gui.shared import widgets
from homolog.gui.shared.threads import wait_for_threads


class Box(widgets.HelperBox):
    """Counts what it is told."""

    def __init__(self) -> None:
        super().__init__("counting", "Stop counting")
        self.seen: list[bool] = []
        column = QVBoxLayout(self)
        column.addLayout(self.working())
        column.addWidget(self.words)

    def enable(self) -> None:
        self.seen.append(self.busy)

    def counted(self, result: dict[str, Any]) -> None:
        self.end(f"{result['count']} counted.")


@pytest.fixture
def box(qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    FakeHelper.made.clear()
    monkeypatch.setattr(widgets, "Helper", FakeHelper)
    made = Box()
    qtbot.addWidget(made)
    made.show()
    yield made
    wait_for_threads()


def test_work_is_shown_from_its_beginning_to_its_end(box: Box) -> None:
    assert not box.busy
    assert not box.bar.isVisible()
    box.launch("count", lambda: {"to": 3}, box.counted, "Looking ...")
    assert box.busy
    assert box.words.text() == "Looking ..."
    assert box.cancel.isEnabled()
    assert unnamed(box) == []
    until(lambda: FakeHelper.made)
    (helper,) = FakeHelper.made
    assert (helper.kind, helper.config) == ("count", {"to": 3})
    helper.news.emit(Progress("counting", 2, 3))
    assert (box.bar.value(), box.bar.maximum()) == (2, 3)
    helper.done.emit({"count": 3})
    assert box.words.text() == "3 counted."
    assert not box.bar.isVisible()
    assert not box.cancel.isVisible()
    assert box.seen == [True, False]


def test_what_cannot_be_gathered_is_told(box: Box) -> None:
    def gather() -> dict[str, Any]:
        raise UnusableInput("There is nothing to count.")

    box.launch("count", gather, box.counted)
    until(lambda: not box.busy)
    assert box.words.text() == "⚠ There is nothing to count."
    assert not FakeHelper.made
    box.launch("count", {}, box.counted)
    FakeHelper.made[0].failed.emit("the worker is gone.")
    assert box.words.text() == "⚠ the worker is gone."
    assert not box.busy


def test_who_cancels_before_the_worker_starts_starts_none(box: Box) -> None:
    gate = Gate()

    def gather() -> dict[str, Any]:
        gate.wait(20)
        return {}

    box.launch("count", gather, box.counted)
    box.cancel.click()
    assert box.words.text() == "Stopping ..."
    assert not box.cancel.isEnabled()
    gate.set()
    until(lambda: not box.busy)
    assert box.words.text() == "Stopped."
    assert not FakeHelper.made
    box.launch("count", {}, box.counted)  # the next one is not stopped
    assert box.cancel.isEnabled()
    box.cancel.click()
    assert box.words.text() == "Stopped."
    box.stop()  # nothing is under way: nothing is told
    assert box.words.text() == "Stopped."
