"""A hand, an eye and a clock for scripts that use the window as a person does.

The hand sends Qt's own mouse, key and drop events to what stands under the pointer and
counts them; the eye grabs the screen; the clock tells how long the GUI thread was busy
between two rests of its event loop, without what software OpenGL took of it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType
from typing import Any

from qtpy.QtCore import (
    QAbstractEventDispatcher,
    QEvent,
    QEventLoop,
    QMimeData,
    QPoint,
    QPointF,
    Qt,
    QTimer,
    QUrl,
)
from qtpy.QtGui import QDragEnterEvent, QDragMoveEvent, QDropEvent, QMouseEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractScrollArea,
    QApplication,
    QComboBox,
    QDialog,
    QFileDialog,
    QLineEdit,
    QMainWindow,
    QScrollArea,
    QToolTip,
    QWidget,
)

_POLL_MS = 40
_LEFT = Qt.MouseButton.LeftButton
_NONE = Qt.KeyboardModifier.NoModifier
# Qt ignores a release that follows the opening of a list at once.
_POPUP_S = 0.5
# napari's filter of all of Qt's events, and its window's handler of its own.
_OF_QT = ("eventFilter", "event")
# What counts as napari's, by the package that a frame's file belongs to.
_NAPARIS = ("napari", "vispy", "npe2", "app_model")
# Of other threads: how long one may keep the interpreter from the sampler, s.
_SWITCH_S = 0.0005


class Unreached(RuntimeError):
    """A person could not have gone on here."""


# The clock.


@dataclass
class Busy:
    """A stretch of work of the GUI thread, in milliseconds of processor time.

    Attributes:
        own: Processor time without drawing.
        drawing: Processor time of OpenGL drawing and composing.
        napari: The part of ``own`` that is napari's; without a sampler 0.
    """

    own: float = 0.0
    drawing: float = 0.0
    napari: float = 0.0

    @property
    def ours(self) -> float:
        """The rest of ``own``: our plugin's, and Qt's."""
        return self.own - self.napari


class Clock:
    """Processor time of the GUI thread from one rest of its event loop to the next.

    A loop that waits takes no processor time, so what it took since it began to wait
    the last time is its work: input, timers, posted events, one after the other. What a
    script does between two acts does not count. Made before napari's viewer.

    Args:
        sampler: Told when a stretch begins and ends; see ``Sampler``.
    """

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.stretches: list[Busy] = []
        self._sampler = sampler
        self._from = time.thread_time()
        self._carried = self._drawn = self._compose = 0.0
        self._drawing = 0
        self._looping = self.counting = False
        self._watch_drawing()
        if sampler is not None:
            sampler.begin(lambda: self.counting and not self.is_drawing())

    def begin(self) -> None:
        """Listen to the event loop, once there is an application."""
        QAbstractEventDispatcher.instance().aboutToBlock.connect(self._rests)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """An event that a script sends; what follows in the loop belongs to it."""
        self._from, self.counting = time.thread_time(), True
        try:
            yield
        finally:
            self.counting = False
            self._carried += time.thread_time() - self._from

    def loop(self, loop: QEventLoop) -> None:
        """Let a loop run until it quits."""
        self._from, self._looping = time.thread_time(), True
        self.counting = True
        loop.exec()
        self._rests()
        self._looping = self.counting = False

    def clear(self) -> None:
        """Forget what was measured."""
        self._carried = self._drawn = 0.0
        self.stretches.clear()
        if self._sampler is not None:
            self._sampler.clear()

    def is_drawing(self) -> bool:
        """Whether OpenGL draws now, or Qt composes what it drew."""
        return bool(self._drawing or self._compose)

    def longest(self) -> Busy:
        """The stretch of the most own work."""
        return max(self.stretches, key=lambda b: b.own, default=Busy())

    def most_ours(self) -> Busy:
        """The stretch of the most work of ours, which may be another one."""
        return max(self.stretches, key=lambda b: b.ours, default=Busy())

    def _rests(self) -> None:
        """The loop waits for events: a stretch is over."""
        if not self._looping:
            return
        now = time.thread_time()
        took = self._carried + now - self._from
        busy = Busy(1e3 * max(took - self._drawn, 0), 1e3 * self._drawn)
        self._from, self._carried, self._drawn = now, 0.0, 0.0
        if self._sampler is not None:
            busy = self._sampler.end(busy)
        self.stretches.append(busy)

    def _watch_drawing(self) -> None:
        """Time vispy's drawing, and Qt's composing of what was drawn."""
        from qtpy import API_NAME
        from vispy.app import use_app

        use_app(API_NAME.lower())  # as napari does; the backend asks for it
        from vispy.app.backends import _qt

        canvas, clock = _qt.CanvasBackendDesktop, self

        def around(name: str) -> None:
            plain = getattr(canvas, name)

            def timed(self: Any, *arguments: Any) -> Any:
                if name == "initializeGL":
                    self.aboutToCompose.connect(clock._composes)
                    self.frameSwapped.connect(clock._composed)
                start = time.thread_time()
                clock._drawing += 1
                try:
                    return plain(self, *arguments)
                finally:
                    clock._drawing -= 1
                    if not clock._drawing:
                        clock._drawn += time.thread_time() - start

            setattr(canvas, name, timed)

        for name in ("initializeGL", "resizeGL", "paintGL"):
            around(name)

    def _composes(self) -> None:
        self._compose = self._compose or time.thread_time()

    def _composed(self) -> None:
        if self._compose:
            self._drawn += time.thread_time() - self._compose
            self._compose = 0.0


class Sampler:
    """Tells our work from napari's: whose code the GUI thread runs, every millisecond.

    A thread looks at the GUI thread's stack and at its processor clock. What the clock
    went on by since the last look is charged to

    - **napari** (with vispy, npe2 and app-model), where our innermost frame has called
      a function of theirs, or none of our frames stands on the stack but one of theirs;
    - **us** otherwise: our code and what it calls (numpy, Qt, pathlib, modules it
      imports, those of napari too), our callbacks that napari calls, and Qt's own work
      (layout, painting, style) that no frame of anybody stands around; napari's filter
      of all events of Qt, and its handlers that hand events on, count as Qt.

    The shares of a stretch are scaled to what the clock measured of it. A look waits
    until the interpreter is free, at most one call into C: it is late, not lost.

    Args:
        least_ms: Own work from which a stretch's stacks are kept for ``lines``.
        every_ms: Between two looks.
    """

    def __init__(self, least_ms: float = math.inf, every_ms: float = 1) -> None:
        import threading

        self._least, self._every = least_ms, every_ms / 1e3
        self._main = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._main)
        self._looks: list[tuple[str, list[tuple[CodeType, int]], float]] = []
        self.told: list[tuple[Busy, dict[str, float]]] = []

    def begin(self, counts: Callable[[], bool]) -> None:
        """Look from now on.

        Args:
            counts: Whether what the GUI thread does at this moment is measured.
        """
        import threading

        threading.Thread(target=self._look, args=(counts,), daemon=True).start()

    def clear(self) -> None:
        """Forget what was seen."""
        self._looks.clear()

    def end(self, busy: Busy) -> Busy:
        """A stretch is over; returns it with napari's part of it."""
        looks, self._looks = self._looks, []
        total = sum(took for *_, took in looks)
        theirs = sum(took for who, _, took in looks if who == "napari")
        if total:
            busy = replace(busy, napari=busy.own * theirs / total)
        if busy.own >= self._least:
            spent: dict[str, float] = {}
            for who, stack, took in looks:
                told = f"{who:6s} {_told(stack)}"
                spent[told] = spent.get(told, 0.0) + 1e3 * took
            self.told.append((busy, spent))
        return busy

    def lines(self, most: int = 12) -> list[str]:
        """The stretches kept: where their time went (ms), the most first."""
        found = []
        for busy, spent in self.told:
            found.append(
                f"  {busy.own:.0f} ms own ({busy.ours:.0f} ours, {busy.napari:.0f} "
                f"napari's), {busy.drawing:.0f} drawing:"
            )
            ordered = sorted(spent.items(), key=lambda kv: -kv[1])[:most]
            found += [f"    {took:5.1f} {stack}" for stack, took in ordered]
        self.told.clear()
        return found

    def _look(self, counts: Callable[[], bool]) -> None:
        before = time.clock_gettime(self._clock)
        while True:
            sys.setswitchinterval(_SWITCH_S)
            time.sleep(self._every)
            # A frame that outlived its call would end here, and Qt's objects with it,
            # on the wrong thread: nobody else runs until it is let go.
            sys.setswitchinterval(1.0)
            stack = _stack(sys._current_frames().get(self._main))
            now = time.clock_gettime(self._clock)
            took, before = now - before, now
            if took > 0 and counts():
                self._looks.append((whose(c for c, _ in stack), stack, took))


def _stack(frame: Any) -> list[tuple[CodeType, int]]:
    """Code and line of a frame and its callers; no reference to a frame."""
    found = []
    while frame is not None:
        found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return found


def whose(codes: Iterable[CodeType]) -> str:
    """Who the time of a stack is charged to; see ``Sampler``.

    Args:
        codes: The innermost first.

    Returns:
        ``"napari"`` or ``"ours"``.
    """
    inner = ""  # the outermost of their functions inside what was looked at so far
    for code in codes:
        owner = _owner(code.co_filename)
        if owner == "ours":
            # A module of theirs that ours imports is our work.
            return "ours" if inner in ("", "<module>") else "napari"
        if owner == "napari" and code.co_name not in _OF_QT:
            inner = code.co_name
    return "napari" if inner else "ours"


def _told(stack: list[tuple[CodeType, int]]) -> str:
    """What we called, from where; for a stack without us its innermost part."""

    def name(code: CodeType, line: int) -> str:
        return f"{Path(code.co_filename).stem}.{code.co_name}:{line}"

    first = next(
        (i for i, (x, _) in enumerate(stack) if _owner(x.co_filename) == "ours"), None
    )
    if first is None:
        return " < ".join(name(*one) for one in stack[:4])
    called = name(*stack[first - 1]) if first else ""
    ours = [name(*x) for x in stack[first:] if _owner(x[0].co_filename) == "ours"][:3]
    return f"{' < '.join(ours)}: {called}"


@functools.cache
def _owner(path: str) -> str:
    """``"ours"``, ``"napari"`` or nobody's, for a file of Python code."""
    if path.startswith(_folders("homolog")):
        return "ours"
    return "napari" if path.startswith(_folders(*_NAPARIS)) else ""


@functools.cache
def _folders(*packages: str) -> tuple[str, ...]:
    found = [importlib.util.find_spec(package) for package in packages]
    places = [p for x in found if x for p in x.submodule_search_locations or ()]
    return tuple(f"{place}{os.sep}" for place in places)


# The hand and the eye.


@dataclass
class Used:
    """What a hand did."""

    clicks: int = 0
    keys: int = 0
    drops: int = 0
    scrolls: int = 0

    def text(self) -> str:
        """``3 clicks, 2 keys, 1 drop``."""
        kinds = (
            ("click", self.clicks), ("key", self.keys), ("drop", self.drops),
            ("scroll", self.scrolls),
        )  # fmt: skip
        told = [f"{n} {word}{'s' if n != 1 else ''}" for word, n in kinds if n]
        return ", ".join(told) or "nothing pressed"


@dataclass
class Hand:
    """Acts on a window; everything is counted, and timed by the clock.

    Attributes:
        window: napari's main window.
        clock: Times what is done.
        used: Since it was last taken.
    """

    window: QMainWindow
    clock: Clock
    used: Used = field(default_factory=Used)

    # Waiting

    def wait(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Let the window work until something holds.

        Raises:
            Unreached: It did not come.
        """
        if found := condition():
            return found
        loop, timer, answers = QEventLoop(), QTimer(), []
        until = time.monotonic() + seconds

        def look() -> None:
            try:
                answers.append(condition())
            except Exception as error:  # noqa: BLE001 - a slot must not raise
                answers.append(error)
            if answers[-1] or time.monotonic() > until:
                loop.quit()

        timer.timeout.connect(look)
        timer.start(_POLL_MS)
        self.clock.loop(loop)
        timer.stop()
        if isinstance(answers[-1], Exception):
            raise answers[-1]
        if not answers[-1]:
            raise Unreached(f"{what} did not come within {seconds:.0f} s")
        return answers[-1]

    def pause(self, seconds: float = 0.4) -> None:
        """Let the window work for a while."""
        loop = QEventLoop()
        QTimer.singleShot(round(1000 * seconds), loop.quit)
        self.clock.loop(loop)

    # Finding

    def find(self, kind: type, name: str, under: QWidget | None = None) -> Any:
        """The one shown widget that is called so, by its text or accessible name.

        Raises:
            Unreached: There is none, or several.
        """
        found = []
        for widget in (under or self.window).findChildren(kind):
            text = widget.text() if hasattr(widget, "text") else ""
            names = {str(text).replace("&", ""), widget.accessibleName()}
            if name in names and widget.isVisible():
                found.append(widget)
        if len(found) != 1:
            raise Unreached(f"{len(found)} of {kind.__name__} {name!r} are shown")
        return found[0]

    # Mouse and keys

    def click(
        self, widget: QWidget, place: QPoint | None = None, *, shift: bool = False,
        double: bool = False,
    ) -> None:  # fmt: skip
        """Press where a widget is; it must be shown, enabled and not covered.

        Raises:
            Unreached: It is not.
        """
        self.see(widget)
        if place is None:
            place = widget.rect().center()
        self._must_reach(widget, place)
        self.used.clicks += 1
        mods = Qt.KeyboardModifier.ShiftModifier if shift else _NONE
        QTest.mouseMove(widget, place)
        with self.clock.acting():
            QTest.mouseClick(widget, _LEFT, mods, place)
            if double:
                QTest.mouseDClick(widget, _LEFT, mods, place)

    def press(self, kind: type, name: str, under: QWidget | None = None) -> None:
        """Click the widget that is called so."""
        self.click(self.find(kind, name, under))

    def tick(self, box: QWidget) -> None:
        """Click a tick box at its tick."""
        self.see(box)
        self.click(box, QPoint(9, box.height() // 2))

    def choose(self, combo: QComboBox, text: str) -> None:
        """Open a list and click the entry that begins so.

        Raises:
            Unreached: There is no such entry.
        """
        row = next(
            (i for i in range(combo.count()) if combo.itemText(i).startswith(text)), -1
        )
        if row < 0:
            entries = [combo.itemText(i) for i in range(combo.count())]
            raise Unreached(f"no {text!r} among {entries}")
        if combo.currentIndex() == row:
            return
        self.click(combo)
        self.pause(_POPUP_S)
        view = combo.view()
        index = combo.model().index(row, combo.modelColumn())
        view.scrollTo(index)
        self.used.clicks += 1
        with self.clock.acting():
            QTest.mouseClick(
                view.viewport(), _LEFT, _NONE, view.visualRect(index).center()
            )
        self.pause(0.1)
        if combo.currentIndex() != row:
            raise Unreached(f"{text!r} was clicked but {combo.currentText()!r} stands")

    def type(self, widget: QWidget, text: str, *, enter: bool = False) -> None:
        """Click into a field, replace what it holds, perhaps press Enter."""
        self.click(widget)
        QTest.keyClick(widget, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
        QTest.keyClicks(widget, text)
        if enter:
            QTest.keyClick(widget, Qt.Key.Key_Return)
        self.used.keys += len(text) + 1 + enter

    def key(self, widget: QWidget, key: Any, mods: Any = _NONE) -> None:
        """Press a key."""
        self.used.keys += 1
        with self.clock.acting():
            QTest.keyClick(widget, key, mods)

    def hover(self, widget: QWidget, place: QPoint) -> None:
        """Move the pointer."""
        QTest.mouseMove(widget, place)
        self._mouse(QEvent.Type.MouseMove, widget, place, Qt.MouseButton.NoButton)

    def stroke(self, widget: QWidget, places: Sequence[QPoint]) -> None:
        """Press, drag along places, let go: one click."""
        self._must_reach(widget, places[0])
        self.used.clicks += 1
        QTest.mouseMove(widget, places[0])
        self._mouse(QEvent.Type.MouseButtonPress, widget, places[0], _LEFT, _LEFT)
        for place in places[1:]:
            self._mouse(QEvent.Type.MouseMove, widget, place, _LEFT)
            self.pause(0.03)
        self._mouse(
            QEvent.Type.MouseButtonRelease, widget, places[-1],
            Qt.MouseButton.NoButton, _LEFT,
        )  # fmt: skip

    def drop(self, widget: QWidget, paths: Sequence[Path]) -> None:
        """Drag files onto what stands in the middle of a widget, and let go.

        Raises:
            Unreached: Nothing there takes them.
        """
        data = QMimeData()
        data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
        seen = widget.visibleRegion().boundingRect().center()
        target = QApplication.widgetAt(widget.mapToGlobal(seen)) or widget
        place = target.mapFromGlobal(widget.mapToGlobal(seen))
        copy, none = Qt.DropAction.CopyAction, _NONE
        self.used.drops += 1
        enter = QDragEnterEvent(place, copy, data, _LEFT, none)
        with self.clock.acting():
            QApplication.sendEvent(target, enter)
        if not enter.isAccepted():
            raise Unreached(f"nothing takes {[p.name for p in paths]} there")
        move = QDragMoveEvent(place, copy, data, _LEFT, none)
        QApplication.sendEvent(target, move)
        event = QDropEvent(QPointF(place), copy, data, _LEFT, none)
        with self.clock.acting():
            QApplication.sendEvent(target, event)

    def menu(self, *titles: str) -> None:
        """Click through the menus of the window's bar; each title begins so."""
        bar = self.window.menuBar()
        menu: Any = bar
        for title in titles:
            entry = next(
                (
                    a
                    for a in menu.actions()
                    if a.text().replace("&", "").startswith(title)
                ),
                None,
            )
            if entry is None:
                told = [a.text() for a in menu.actions()]
                raise Unreached(f"no {title!r} in the menu {told}")
            place = menu.actionGeometry(entry).center()
            self.used.clicks += 1
            with self.clock.acting():
                QTest.mouseClick(menu, _LEFT, _NONE, place)
            self.pause(0.3)
            menu = entry.menu() or menu

    def file_dialog(self, path: Path) -> None:
        """Type a path into the open file dialog and press Open or Save."""
        dialog = self.wait(_dialog, 10, "the file dialog")
        line = next(
            x for x in dialog.findChildren(QLineEdit)
            if x.objectName() == "fileNameEdit"
        )  # fmt: skip
        self.pause(0.3)
        QTest.keyClick(line, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
        QTest.keyClicks(line, str(path))
        self.used.keys += len(str(path))
        self.pause(0.2)
        box = dialog.findChild(QWidget, "buttonBox")
        accept = [b for b in box.buttons() if box.buttonRole(b).name == "AcceptRole"]
        if dialog.isVisible():
            self.click(accept[0])

    # Seeing

    def see(self, widget: QWidget) -> None:
        """Scroll the panel until a widget is seen.

        Raises:
            Unreached: It cannot be used.
        """
        if not widget.isVisible():
            raise Unreached(f"{_name(widget)} is not shown")
        if not widget.isEnabled():
            raise Unreached(f"{_name(widget)} is disabled: {widget.toolTip()}")
        area = widget.parentWidget()
        while area is not None and not isinstance(area, QScrollArea):
            area = area.parentWidget()
        if area is not None and not _is_seen(widget):
            self.used.scrolls += 1
            area.ensureWidgetVisible(widget, 0, 8)
            self.pause(0.15)

    def shot(self, path: Path) -> None:
        """The whole screen, dialogs and menus included, as a PNG."""
        screen = QApplication.primaryScreen()
        screen.grabWindow(0).save(str(path))

    def cut(self) -> list[str]:
        """Sentences and chosen names that are shown and longer than their room."""
        found: list[str] = []
        if not self.is_open():
            return found
        for widget in self.window.findChildren(QWidget):
            if getattr(widget, "is_cut", False) and widget.isVisible():
                text = widget.text() if hasattr(widget, "text") else ""
                found.append(str(text or widget.currentText()).replace("\n", " | "))
        return found

    def is_open(self) -> bool:
        """Whether the window is there."""
        try:
            return bool(self.window.isVisible())
        except RuntimeError:  # deleted
            return False

    def take(self) -> Used:
        """What was done since the last time."""
        used, self.used = self.used, Used()
        return used

    # Helpers

    def _must_reach(self, widget: QWidget, place: QPoint) -> None:
        there = QApplication.widgetAt(widget.mapToGlobal(place))
        if there is None or not (there is widget or widget.isAncestorOf(there)):
            cover = "nothing" if there is None else _name(there)
            if not isinstance(there, QToolTip | type(None)):
                raise Unreached(f"{_name(widget)} is covered by {cover}")

    def _mouse(
        self, kind: Any, widget: QWidget, place: QPoint, buttons: Any,
        button: Any = Qt.MouseButton.NoButton, mods: Any = _NONE,
    ) -> None:  # fmt: skip
        event = QMouseEvent(
            kind, QPointF(place), QPointF(widget.mapToGlobal(place)), button, buttons,
            mods,
        )  # fmt: skip
        with self.clock.acting():
            QApplication.sendEvent(widget, event)


def _dialog() -> QFileDialog | None:
    shown = QApplication.topLevelWidgets()
    return next(
        (w for w in shown if isinstance(w, QFileDialog) and w.isVisible()), None
    )


def question() -> QDialog | None:
    """The modal question that is asked, if any."""
    now = QApplication.activeModalWidget()
    return now if isinstance(now, QDialog) else None


def _is_seen(widget: QWidget) -> bool:
    seen = widget.visibleRegion().boundingRect()
    return bool(seen.contains(widget.rect().center()) or (isinstance(
        widget, QAbstractScrollArea
    ) and not seen.isEmpty()))  # fmt: skip


def _name(widget: QWidget) -> str:
    text = widget.text() if hasattr(widget, "text") else ""
    told = text or widget.accessibleName() or type(widget).__name__
    return f"{told!r} ({type(widget).__name__})"
