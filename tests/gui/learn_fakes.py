"""An engine for the tests of the learning panels: its description, its helpers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QApplication, QWidget

from homolog.gui.shared import engine

FIELDS = [
    {"name": "size", "type": "tuple", "item": "int", "length": 3, "default": [48] * 3,
     "help": "crop size z, y, x", "unit": "voxel", "min": 1, "max": 512},
    {"name": "keep", "type": "str", "default": "teacher", "help": "whose is saved",
     "choices": ["teacher", "student"]},
    {"name": "shift_only", "type": "bool", "default": False, "advanced": True,
     "help": "change by an offset only"},
]  # fmt: skip
TRAINING = [
    {"name": "steps", "type": "int", "default": 1000, "min": 1},
    {"name": "minutes", "type": "float", "default": 0.0, "min": 0},
    {"name": "learning_rate", "type": "float", "default": 1e-3, "min": 0,
     "help": "peak learning rate"},
]  # fmt: skip
RECIPES = {
    "cpu": {"method": {"size": [32] * 3}, "backbone": {"name": "small"},
            "training": {"steps": 400}},
    "gpu": {"backbone": {"name": "big"}, "training": {"steps": 20000}},
}  # fmt: skip
TASK_RECIPES = {
    "cpu": {"task": {"size": [32] * 3}, "backbone": {"name": "small"},
            "training": {"steps": 400}, "pretrained": {"task": {"head_first": 0.1}}},
    "gpu": RECIPES["gpu"],
}  # fmt: skip
NETWORK = [{"name": "blocks", "type": "int", "default": 2, "min": 1, "help": "depth"}]
SCHEMA: dict[str, Any] = {
    "format": 1,
    "methods": {
        "mae": {"title": "MAE", "doc": "Hide patches.", "paper": "He et al., 2022",
                "backbones": [], "recipes": RECIPES, "fields": FIELDS},
        "s2dc": {"title": "S2DC", "doc": "Two views.", "paper": "Pan et al.",
                 "backbones": ["small"], "recipes": RECIPES, "fields": FIELDS},
    },
    "tasks": {
        "segment": {"title": "Segmentation", "doc": "Label every voxel.",
                    "learned": True, "recipes": TASK_RECIPES,
                    "fields": [*FIELDS, {"name": "head_first", "type": "float",
                                         "default": 0.0, "min": 0, "max": 1}]},
        "similarity": {"title": "Similarity", "learned": False, "fields": []},
    },
    "backbones": {
        "small": {"title": "Small net", "fields": NETWORK, "small": {"blocks": 1}},
        "big": {"title": "Big net", "fields": NETWORK, "small": {"blocks": 1}},
    },
    "training": TRAINING,
}  # fmt: skip
DEVICES = {
    "devices": [{"name": "cpu", "title": "CPU, 2 cores, 5 GB free"}],
    "best": "cpu",
}


def ask(word: str) -> dict[str, Any]:
    """What ``engine.ask`` answers here."""
    return SCHEMA if word == "schema" else DEVICES


def fake_engine(monkeypatch: Any, missing: tuple[str, ...] = ()) -> None:
    """No process is started, and libraries are missing at will."""
    monkeypatch.setattr(engine, "ask", ask)
    monkeypatch.setattr(engine, "missing", lambda: list(missing))


class FakeHelper(QObject):
    """A helper that does what the test says."""

    news = Signal(object)
    done = Signal(object)
    failed = Signal(str)
    stopped = Signal()
    made: list[FakeHelper] = []  # noqa: RUF012 - newest last, emptied by the tests

    def __init__(self, kind: str, config: Mapping[str, Any], parent: QObject) -> None:
        super().__init__(parent)
        self.kind, self.config, self.waits = kind, dict(config), False
        self.left_out: list[str] = []
        FakeHelper.made.append(self)

    def start(self) -> None:
        """The test goes on by hand."""

    def pause(self) -> None:
        """As a worker that waits."""
        self.waits = True

    def go_on(self) -> None:
        """As one that waits no more."""
        self.waits = False

    def leave_out(self, items: Iterable[str]) -> None:
        """As a worker that reads what it is told."""
        self.left_out += items

    def stop(self) -> None:
        """As a worker that obeys at once."""
        self.stopped.emit()


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Let the window work until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        QApplication.processEvents()
        time.sleep(0.005)


def unnamed(panel: QWidget) -> list[str]:
    """Widgets one can act on that tell no name or no tooltip."""
    from qtpy.QtWidgets import (
        QAbstractButton,
        QAbstractItemView,
        QAbstractSpinBox,
        QComboBox,
        QHeaderView,
        QLineEdit,
        QProgressBar,
        QScrollBar,
    )

    kinds = (QAbstractButton, QAbstractItemView, QAbstractSpinBox, QComboBox,
             QLineEdit, QProgressBar)  # fmt: skip
    found = []
    for widget in panel.findChildren(QWidget):
        inner = widget.parent()
        inside = isinstance(inner, QComboBox | QAbstractSpinBox | QLineEdit) or (
            isinstance(widget, QHeaderView | QScrollBar)
            or widget.metaObject().className() == "QTableCornerButton"
            or (inner is not None and isinstance(inner.parent(), QComboBox))
        )
        if not isinstance(widget, kinds) or inside:
            continue
        if not widget.accessibleName() or not widget.toolTip():
            found.append(f"{type(widget).__name__} {widget.accessibleName()!r}")
    return found
