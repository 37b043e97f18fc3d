"""The dock in a real napari window: tabs, keys, banner, closing it stops no run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dropping import drop
from named import nameless
from PIL import Image
from toy_runs import make_model, slow_run, wait_for_step

pytest.importorskip("napari")

from napari.utils.key_bindings import coerce_keybinding
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QPushButton, QVBoxLayout, QWidget

from homolog.gui import dock as module
from homolog.gui.dock import PANELS, MainPanel, TabArea
from homolog.gui.shared import engine, keys
from homolog.gui.shared.widgets import Answer
from homolog.gui.start.help_page import KEYS, key_lines
from homolog.gui.window import dock_panel, open_path
from homolog.runs import launch

pytestmark = pytest.mark.usefixtures("workers")
TITLES = [title for title, _ in PANELS]


class Plain(QWidget):
    """A panel that remembers what it was told."""

    def __init__(self, hub: Any) -> None:
        super().__init__()
        self.visited: list[dict[str, Any]] = []
        self.fronts = 0

    def visit(self, what: dict[str, Any]) -> None:
        self.visited.append(what)

    def shown(self) -> None:
        self.fronts += 1


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels of nobody else: Plain ones, and one that cannot be imported."""
    panels = [(title, "test_dock:Plain") for title in TITLES]
    place = TITLES.index("Explore")
    panels[place] = ("Explore", "homolog.gui.no_such_panel:ExplorePanel")
    monkeypatch.setattr(module, "PANELS", panels)


def test_tabs_are_made_lazily_and_a_broken_one_breaks_nothing(
    qtbot, home: Path, plain: None
) -> None:
    panel = MainPanel(None)  # type: ignore[arg-type]
    qtbot.addWidget(panel)
    assert panel.panels == {}
    panel.resize(320, 700)
    panel.show()
    assert set(panel.panels) == {"Start"}
    panel.tabs.buttons["Explore"].click()
    label = panel._areas["Explore"].widget()
    assert "no_such_panel" in label.text()
    panel.hub.go.emit("Runs", {"run": "/x"})
    runs = panel.panels["Runs"]
    assert runs.visited == [{"run": "/x"}]  # type: ignore[attr-defined]
    assert (panel.current(), runs.fronts) == ("Runs", 1)  # type: ignore[attr-defined]
    panel.hub.go.emit("No such tab", {})
    assert panel.current() == "Runs"
    assert nameless(panel) == []
    assert panel.minimumWidth() == 320
    for title in TITLES:
        assert panel.tabs.buttons[title].isVisible()


def test_a_visit_that_fails_is_a_message(
    qtbot, home: Path, plain: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = MainPanel(None)  # type: ignore[arg-type]
    qtbot.addWidget(panel)
    panel.show()
    said: list[str] = []
    monkeypatch.setattr(panel.hub, "say", lambda text, level="info": said.append(text))

    def fail(*_: object) -> None:
        raise RuntimeError("no such store")

    monkeypatch.setattr(Plain, "visit", fail)
    panel.visit("Data", {"paths": []})
    assert said == ["The tab Data could not open that: no such store"]


def names_shown(panel: MainPanel) -> bool:
    style = Qt.ToolButtonStyle.ToolButtonTextUnderIcon
    return all(b.toolButtonStyle() == style for b in panel.tabs.buttons.values())


def test_names_of_tabs_go_where_there_is_no_room(
    qtbot, home: Path, plain: None
) -> None:
    panel = MainPanel(None)  # type: ignore[arg-type]
    qtbot.addWidget(panel)
    panel.resize(*module.SIZE_PX)
    panel.show()
    assert names_shown(panel)
    font = panel.font()
    font.setPointSizeF(font.pointSizeF() * 1.5)
    for size in (module.SIZE_PX, (320, 700), (400, 420), (320, 300)):
        panel.resize(*size)
        panel.setFont(font)
        qtbot.wait(30)
        assert panel.minimumSizeHint().width() <= 320
        foot = 0
        for button in panel.tabs.buttons.values():
            place = button.geometry()
            assert place.top() >= foot, "two tabs overlap"
            foot = place.bottom()
            assert button.sizeHint().height() <= button.height()
        assert foot <= max(panel.height(), 310)
    assert not names_shown(panel)
    panel.resize(600, 900)
    QApplication.processEvents()
    assert names_shown(panel)


def test_the_bar_of_tabs_is_walked_by_key(qtbot, home: Path, plain: None) -> None:
    panel = MainPanel(None)  # type: ignore[arg-type]
    qtbot.addWidget(panel)
    panel.show()
    panel.activateWindow()
    start, data = (panel.tabs.buttons[title] for title in ("Start", "Data"))
    start.setFocus()
    qtbot.keyClick(start, Qt.Key.Key_Down)
    qtbot.keyClick(data, Qt.Key.Key_Space)
    assert panel.current() == "Data"
    reached, at = set(), panel.nextInFocusChain()
    while at is not panel:
        reached.add(at)
        at = at.nextInFocusChain()
    assert set(panel.tabs.buttons.values()) <= reached


def test_without_the_engine_a_banner_says_what_to_type(
    qtbot, home: Path, plain: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "missing", lambda: ["torch", "monai"])
    panel = MainPanel(None)  # type: ignore[arg-type]
    qtbot.addWidget(panel)
    panel.show()
    assert panel.banner.isVisible()
    panel.banner.copy.click()
    clipboard = QApplication.clipboard()
    assert clipboard is not None
    assert clipboard.text() == engine.install_command()
    assert nameless(panel) == []


def test_a_run_folder_dropped_anywhere_opens_in_runs(
    qtbot, home: Path, plain: None
) -> None:
    run = slow_run(home / "runs" / "r")
    panel = MainPanel(None)  # type: ignore[arg-type]
    qtbot.addWidget(panel)
    panel.show()
    assert drop(panel, run.folder)
    assert not drop(panel, home)
    assert panel.panels["Runs"].visited == [{"run": str(run.folder)}]  # type: ignore[attr-defined]


def test_a_real_window_with_all_panels(
    qtbot, home: Path, make_napari_viewer_proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docked as the menu does it: paths, keys, closing the dock, closing the window."""
    viewer = make_napari_viewer_proxy(show=True)
    panel = dock_panel(viewer)
    qtbot.waitUntil(panel.isVisible, timeout=10_000)
    run = slow_run(home / "runs" / "organs")
    make_model(run.folder / "model")
    open_path(viewer, panel, run.folder)
    screen = panel.panels["Runs"].screen
    qtbot.waitUntil(lambda: screen.shown == "new", timeout=10_000)
    open_path(viewer, panel, make_model(home / "models" / "theirs"))
    models = panel.panels["Models"]
    qtbot.waitUntil(lambda: len(models.models) == 2, timeout=10_000)
    assert models.chosen().name == "theirs"
    picture = home / "chest.png"
    Image.fromarray(np.tile(np.arange(48, dtype=np.uint8), (40, 1))).save(picture)
    open_path(viewer, panel, picture)
    assert viewer.layers["chest"].data.shape[-2:] == (40, 48)
    open_path(viewer, panel, home / "none.png")
    assert len(viewer.layers) == 1

    pressed: list[str] = []
    keys.add(panel.hub, "Shift-F", "test", lambda: pressed.append("F"))
    key = coerce_keybinding("Shift-F")
    assert key in viewer.keymap
    viewer.keymap[key](viewer)
    assert pressed == ["F"]
    panel.tabs.buttons["Help"].click()
    assert ("Shift+F", "test") in panel.panels["Help"].keys

    for title, target in PANELS:
        if importlib.util.find_spec(target.partition(":")[0]) is not None:
            panel.show_tab(title)
            assert title in panel.panels, panel._areas[title].widget().text()
            qtbot.wait(50)

    launch.start(run)
    wait_for_step(run, 2)
    asked: list[str] = []

    def cancel(parent: object, question: Any) -> Answer:
        asked.append(question.text)
        return Answer("cancel")

    panel.guard.ask = cancel
    window = panel.window()
    assert not window.close()
    assert window.isVisible()
    assert "organs" in asked[0]

    gone: list[bool] = []
    panel.destroyed.connect(lambda: gone.append(True))
    viewer.window.remove_dock_widget(panel.parentWidget())
    qtbot.waitUntil(lambda: bool(gone), timeout=10_000)
    assert key not in viewer.keymap
    assert run.is_alive()
    assert len(asked) == 1
    launch.stop(run, 10.0)


def test_our_keys_collide_with_none_of_naparis(
    qtbot, home: Path, make_napari_viewer_proxy
) -> None:
    """The keys that all panels really add, against napari's own table."""
    from napari.utils.shortcuts import default_shortcuts

    viewer = make_napari_viewer_proxy()
    panel = MainPanel(viewer)
    qtbot.addWidget(panel)
    panel.show()
    for title in TITLES:
        panel.show_tab(title)
        qtbot.wait(20)
    taken = {binding for bindings in default_shortcuts.values() for binding in bindings}
    for key, words in keys.keys_of(panel.hub).lines():
        if key != "Escape":
            assert coerce_keybinding(key.replace("+", "-")) not in taken, key
        assert "not active" not in words
    told = [line for _, lines in KEYS for line in lines]
    bound = keys.keys_of(panel.hub).lines()
    for key, words in told:
        if key.startswith(("Shift+", "Esc")) and key[-1:].isupper():
            assert (key, words) in bound, "the help tells of no such key"
    listed = key_lines(bound)
    assert all(
        line in listed or line[1].startswith("paint with class ") for line in bound
    )
    panel.tear_down()
    assert keys.keys_of(panel.hub).lines() == []


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """In a fresh process of this Python."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_window_loads_neither_torch_nor_monai() -> None:
    """With every module of the window."""
    done = run_python(
        """
import importlib, pkgutil, sys
import homolog.gui
for found in pkgutil.walk_packages(homolog.gui.__path__, "homolog.gui."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
assert not {"torch", "monai"} & set(sys.modules), "loaded"
"""
    )
    assert done.returncode == 0, done.stderr


def test_it_opens_without_torch_and_monai(tmp_path: Path) -> None:
    """In a process where these cannot be imported."""
    done = run_python(
        f"""
import importlib.machinery, os, pathlib, sys
LACKING = ("torch", "monai", "safetensors", "sklearn")
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.split(".")[0] in LACKING else find(name, path, target)
)
from homolog.gui.shared import preferences
preferences.home = lambda: pathlib.Path({str(tmp_path)!r})
from qtpy.QtWidgets import QApplication
app = QApplication([])
from homolog.gui.dock import MainPanel
panel = MainPanel(None)
panel.show()
for title in ("Runs", "Models"):
    panel.show_tab(title)
assert panel.banner.isVisible()
panel.visit("Runs", {{"run": "nowhere"}})
print("opened", flush=True)
os._exit(0)
"""
    )
    assert "opened" in done.stdout, done.stderr


def test_homolog_gui_opens_runs_and_scans_where_they_belong(
    home: Path, phantom_folder: Path
) -> None:
    """As ``homolog gui RUN SCAN BROKEN`` does, in a process of its own."""
    run = slow_run(home / "runs" / "organs")
    scan = next((phantom_folder / "imagesTr").iterdir())
    broken = home / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    done = run_python(
        f"""
import os, pathlib
from homolog.gui.shared import preferences
from homolog.gui.shared.hub import Hub
preferences.home = lambda: pathlib.Path({str(home)!r})
said = []
Hub.say = lambda self, text, level="info": said.append(text)
from homolog.gui.window import open_viewer
paths = [pathlib.Path(p) for p in {[str(run.folder), str(scan), str(broken)]!r}]
viewer = open_viewer(paths, show=False)
from homolog.gui.shared.hub import any_hub
panel = any_hub().parent()
assert panel.current() == "Runs", panel.current()
assert "organs" in panel.panels["Runs"].screen.title.text()
assert len(viewer.layers) == 1, viewer.layers
assert viewer.canvas.overlays.scale_bar.visible
assert any("broken" in text for text in said), said
print("opened", flush=True)
os._exit(0)
"""
    )
    assert "opened" in done.stdout, done.stderr


def test_napari_adds_no_room_of_its_own_to_a_docked_panel(
    make_napari_viewer_proxy, home: Path
) -> None:
    """It would take the more of the width the more panels were docked before."""
    panel = dock_panel(make_napari_viewer_proxy())
    assert panel.layout().count() == 2


def test_a_pressed_button_that_is_disabled_scrolls_nothing(qtbot) -> None:
    """Its focus goes to another one, which nobody asked to see; Tab scrolls there."""
    area, inside = TabArea(), QWidget()
    column = QVBoxLayout(inside)
    first, last = QPushButton("first"), QPushButton("last")
    column.addWidget(first)
    column.addSpacing(3000)
    column.addWidget(last)
    area.setWidgetResizable(True)
    area.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # as in the dock
    area.setWidget(inside)
    qtbot.addWidget(area)
    area.resize(200, 200)
    area.show()
    area.activateWindow()
    bar = area.verticalScrollBar()
    qtbot.waitUntil(lambda: bar.maximum() > 1000)
    last.setFocus()
    bar.setValue(bar.maximum())
    last.setEnabled(False)
    assert area.focusWidget() is first
    assert bar.value() == bar.maximum()
    last.setEnabled(True)
    qtbot.keyClick(first, Qt.Key.Key_Tab)
    qtbot.keyClick(last, Qt.Key.Key_Tab)
    assert area.focusWidget() is first
    assert bar.value() < 100
