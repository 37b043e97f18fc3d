from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from learn_fakes import FakeHelper
from toy_runs import home, workers  # noqa: F401 - fixtures of this folder

from homolog.gui.shared import engine


@pytest.fixture(autouse=True)
def _needs_a_screen() -> None:
    """Skip where Qt would abort the process; CI turns the skip into a failure."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        reason = "no DISPLAY; run under: xvfb-run -a -s '-screen 0 1600x1000x24'"
        if os.environ.get("HOMOLOG_REQUIRE_DISPLAY"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _no_helper_of_an_earlier_test() -> None:
    """The files of a test process share the list, in an order nobody chose."""
    FakeHelper.made.clear()


@pytest.fixture(autouse=True)
def _what_is_imported_is_no_garbage() -> None:
    """napari's fixture collects three times a test: spare it what was there before.

    A sixth of the processor time of these tests was spent on looking through napari,
    Qt and torch again and again.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("napari.qt")  # a window would import it, after this
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _what_napari_does_at_every_window_is_done_once() -> Iterator[None]:
    """Plugins are looked for among all that is installed once, settings never written.

    The manager of plugins is one for all windows and leaves out what it knows already.
    """
    try:
        from napari.settings import get_settings
        from npe2 import PluginManifest
    except ImportError:
        yield
        return
    discover, found = PluginManifest.discover, []

    def discover_once(paths=()):
        if paths:
            return discover(paths)
        if not found:
            found.extend(discover())
        return iter(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PluginManifest, "discover", discover_once)
        patch.setattr(get_settings(), "_save_on_change", False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _the_engine_is_asked_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """What ``homolog.machine`` answers, in a process of its own, is the same each time.

    Five seconds of processor time for what the engine knows, two for its devices, at
    every window that shows a form. All processes of one pytest share the answers.
    """
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    ask = engine.ask

    def ask_once(*words: str) -> dict[str, Any]:
        kept = place / f"engine_{'_'.join(words)}.json"
        if not kept.exists():
            scratch = kept.with_suffix(f".{os.getpid()}_{threading.get_ident()}")
            scratch.write_text(json.dumps(ask(*words)))
            scratch.replace(kept)
        answer: dict[str, Any] = json.loads(kept.read_text())
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "ask", ask_once)
        yield


@pytest.fixture
def qtbot(qtbot):
    """pytest-qt's, which holds widgets until they are closed, as a window holds its.

    PySide6 takes a widget away with its last name, shown or not, at the end of a test.
    """
    held, add = [], qtbot.addWidget

    def add_and_hold(widget, **how):
        held.append(widget)
        add(widget, **how)

    qtbot.addWidget = add_and_hold
    return qtbot


@pytest.fixture
def make_napari_viewer(make_napari_viewer):
    """napari's, whose windows go before it looks for any that were left.

    Under PySide6 a shown window is let go in the next round of the event loop; napari
    counts before that, and what is still there ends later tests.
    """
    from qtpy import PYSIDE6
    from qtpy.QtCore import QEvent
    from qtpy.QtWidgets import QApplication

    made: weakref.WeakSet = weakref.WeakSet()

    def make(*args, **kwargs):
        viewer = make_napari_viewer(*args, **kwargs)
        made.add(viewer)
        return viewer

    yield make if PYSIDE6 else make_napari_viewer
    while made:
        _close(made.pop())
    for _ in range(3 if PYSIDE6 else 0):
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        QApplication.processEvents()
        gc.collect()


def _close(viewer) -> None:
    window = getattr(viewer.window, "_qt_window", None)
    if window is not None:
        window._save_current_window_settings = lambda: None
        viewer.close()
