"""What the panels of one window share: viewer, folders, news, the engine's schema."""

from __future__ import annotations

import shutil
import time
import weakref
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal

from homolog.gui.shared import engine, preferences
from homolog.gui.shared.threads import in_background
from homolog.words import visible
from homolog.writing import scratch_folder

# The same sentence again within this time is counted, not shown.
_REPEAT_S = 20.0


class Hub(QObject):
    """One per window; panels get it as their only argument and talk through it.

    Signals:
        changed: Something on disk changed: ``"stores"``, ``"runs"``, ``"models"`` or
            ``"features"``. Lists are read anew.
        go: Ask the dock to show a tab: its name, and a dict the panel's ``visit`` gets.
        schema_ready: The engine's description has arrived (dict).
        schema_failed: It has not (sentence).
        closing: The window closes; save what must be kept.
        view_opened: Another view of scans in this window: its viewer model.
        view_closed: It is gone again.

    Attributes:
        viewer: The napari viewer.
        schema: Answer of ``homolog.machine schema``; None until it came.
        scratch: Folder that lives as long as the window.
    """

    changed = Signal(str)
    go = Signal(str, object)
    schema_ready = Signal(object)
    schema_failed = Signal(str)
    closing = Signal()
    view_opened = Signal(object)
    view_closed = Signal(object)

    def __init__(self, viewer: Any, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.schema: dict[str, Any] | None = None
        self.scratch = scratch_folder()
        self._asked = False
        self._said: dict[str, tuple[float, int]] = {}
        _hubs[id(self)] = self
        # Not through Qt's ``destroyed``: its slot would delete files while the garbage
        # collector, on a thread of the pool, may clear that very slot (seen: SIGSEGV).
        weakref.finalize(self, shutil.rmtree, self.scratch, ignore_errors=True)

    @property
    def stores(self) -> Path:
        """Folder of the stores."""
        return preferences.home() / "stores"

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return preferences.home() / "runs"

    @property
    def models(self) -> Path:
        """The library of models, which the terminal shares."""
        return preferences.models()

    @property
    def features(self) -> Path:
        """Folder of dense features, found again by content of scan and weights."""
        return preferences.home() / "features"

    def engine_missing(self) -> list[str]:
        """Libraries of the training engine that are not installed."""
        return engine.missing()

    def want_schema(self) -> None:
        """Ask the engine what it offers, once; ``schema_ready`` follows."""
        if self.schema is not None:
            self.schema_ready.emit(self.schema)
            return
        if self._asked or self.engine_missing():
            return
        self._asked = True
        in_background(
            engine.ask, "schema", owner=self, done=self._got, failed=self._not_got
        )

    def say(self, text: str, level: str = "info") -> None:
        """One toast per cause: the same sentence within 20 s is not shown again.

        Args:
            text: One sentence: what, why, what to do.
            level: ``info``, ``warning`` or ``error``.
        """
        from napari.utils import notifications

        text = visible(text)  # napari prints it on a terminal, too
        now = time.monotonic()
        last, count = self._said.get(text, (-_REPEAT_S, 0))
        self._said[text] = (now, count + 1)
        if now - last < _REPEAT_S:
            return
        show = {
            "info": notifications.show_info,
            "warning": notifications.show_warning,
            "error": notifications.show_error,
        }[level]
        show(text if count == 0 else f"{text} ({count + 1} times)")

    def _got(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self.schema_ready.emit(schema)

    def _not_got(self, error: Exception) -> None:
        self._asked = False
        self.schema_failed.emit(str(error))


_hubs: weakref.WeakValueDictionary[int, Hub] = weakref.WeakValueDictionary()


def any_hub() -> Hub | None:
    """The newest living hub, for commands that napari calls without arguments."""
    return next(reversed(list(_hubs.values())), None)
