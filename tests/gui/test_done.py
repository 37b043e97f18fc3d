"""What must hold of the whole window, however its tabs are made.

Real panels in a real napari window whose private parts are out of reach (the proxy),
any FutureWarning of napari an error: units stay millimetres, everything has a name,
a small screen and large letters suffice, a mouse move costs one slice.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

from explore_files import unit_features, write_encoder, write_features, write_scan
from named import nameless
from napari.utils.key_bindings import coerce_keybinding
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QWidget

from homolog.geometry.affine import Affine
from homolog.gui.dock import PANELS
from homolog.gui.files.reader import phantom_patient, read_layers
from homolog.gui.shared.feature_slices import SliceCache
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import wait_for_threads
from homolog.gui.window import dock_panel

pytestmark = [
    pytest.mark.filterwarnings("error::FutureWarning"),
    pytest.mark.usefixtures("workers"),
]
SHAPE, CELLS = (16, 20, 24), (8, 10, 12)


def until(condition, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        QApplication.processEvents()
        time.sleep(0.005)


def settle(seconds: float = 0.3) -> None:
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end)


@pytest.fixture
def window(make_napari_viewer_proxy, home: Path, monkeypatch):
    """Makes (viewer, panel) with the engine not asked: its schema takes seconds."""
    monkeypatch.setattr(Hub, "want_schema", lambda self: None)

    def make():
        viewer = make_napari_viewer_proxy(show=True)
        viewer.window.resize(1280, 720)
        panel = dock_panel(viewer)
        settle()
        return viewer, panel

    yield make
    wait_for_threads()
    QApplication.processEvents()


def mm(viewer) -> bool:
    units = viewer.dims.units
    return units is not None and [str(u) for u in units] == ["millimeter"] * 3


def test_names_small_screens_and_large_letters(window) -> None:
    viewer, panel = window()
    for title, _ in PANELS:
        panel.show_tab(title)
        settle(0.1)
        assert title in panel.panels, f"{title} cannot be shown"
        assert nameless(panel.panels[title]) == [], title
    _, _, width, height = viewer.window.geometry()
    assert (width, height) <= (1280, 720)
    assert panel.width() <= 410  # with the bar of tabs
    font = panel.font()
    font.setPointSizeF(1.5 * font.pointSizeF())
    panel.setFont(font)
    settle()
    for title, _ in PANELS:
        panel.show_tab(title)
        settle(0.1)
        # The tab scrolls up and down, never sideways into the scan's half.
        assert panel.panels[title].minimumSizeHint().width() <= 420, title
    _, _, width, height = viewer.window.geometry()
    assert (width, height) <= (1280, 720)


def test_tab_goes_downwards(window) -> None:
    """The key Tab visits what can be used from top to bottom, in every panel."""
    _, panel = window()
    for title, _ in PANELS:
        panel.show_tab(title)
        settle(0.2)
        tab = panel.panels[title]
        places = [w.mapTo(tab, w.rect().topLeft()).y() for w in _by_tab(tab)]
        assert places or title == "Help", title  # which is only read
        assert all(b >= a - 40 for a, b in itertools.pairwise(places)), [
            title,
            *zip((w.accessibleName() for w in _by_tab(tab)), places, strict=True),
        ]


def _by_tab(panel: QWidget) -> list[QWidget]:
    found, at = [], panel.nextInFocusChain()
    while at is not panel and len(found) < 500:
        usable = at.focusPolicy() & Qt.FocusPolicy.TabFocus and at.isEnabled()
        if panel.isAncestorOf(at) and usable and at.isVisible():
            found.append(at)
        at = at.nextInFocusChain()
    return found


def test_units_stay_millimetres_and_no_engine_is_loaded(window, home, tmp_path) -> None:
    loaded = set(sys.modules)  # other tests of this process may have used the engine
    viewer, panel = window()
    for data, attributes, kind in phantom_patient():
        getattr(viewer, f"add_{kind}")(data, **attributes)
        assert mm(viewer)
    viewer.layers.clear()
    _embedded(viewer, home, tmp_path)
    assert mm(viewer)
    panel.show_tab("Explore")
    explorer = panel.panels["Explore"].explorer
    until(lambda: explorer.control.scans and explorer.control.ready())
    assert mm(viewer)
    (scan,) = explorer.control.scans.values()
    explorer.moved(scan.ready.shown.apply((4, 5, 6)))
    explorer.hover()
    assert mm(viewer)
    pin = explorer.pin_here()
    assert pin is not None
    settle()
    assert mm(viewer)
    panel.panels["Explore"].tools.range.setValue((-0.5, 1.0))
    panel.panels["Explore"].products.make_labels()
    until(lambda: any("place 1" in layer.name for layer in viewer.layers))
    assert mm(viewer)
    viewer.keymap[coerce_keybinding("Escape")](viewer)
    assert explorer.control.query is None
    assert len(explorer.control.pins) == 1
    explorer.delete_pin(pin.number)
    settle(0.1)
    assert mm(viewer)
    assert not {"torch", "monai"} & (set(sys.modules) - loaded)


def test_a_mouse_move_costs_one_slice(window, home, tmp_path, monkeypatch) -> None:
    """Cells are widened once per slice, and only the shown slice is compared."""
    viewer, panel = window()
    _embedded(viewer, home, tmp_path)
    panel.show_tab("Explore")
    explorer = panel.panels["Explore"].explorer
    until(lambda: explorer.control.scans and explorer.control.ready())
    (scan,) = explorer.control.scans.values()
    compared: list[int] = []
    plain = SliceCache.similarity

    def counted(self: SliceCache, *arguments):
        result = plain(self, *arguments)
        compared.append(result.size)
        return result

    monkeypatch.setattr(SliceCache, "similarity", counted)
    place = scan.ready.shown.apply((4, 5, 6))
    place[0] = viewer.dims.point[0]

    def move(step: int) -> list[int]:
        explorer.moved(place + np.array([0, 0.1 * step, 0]))
        explorer.hover()
        return compared

    steps = itertools.count()
    until(lambda: move(next(steps) % 20))  # the map's layer comes when it comes
    compared.clear()
    for step in range(20):
        move(step)
    assert 0 < len(compared) <= 20
    assert max(compared) <= CELLS[1] * CELLS[2]


def _embedded(viewer, home: Path, folder: Path) -> None:
    """A scan with features, as a finished pretraining leaves them."""
    write_encoder(home / "runs" / "run")
    affine = Affine.of((2, 2, 2), (5, 6, 7))
    scan = write_scan(folder, "scan", affine, SHAPE, seed=0)
    write_features(home / "features", scan, affine, SHAPE, unit_features(CELLS, 0))
    for data, attributes, _ in read_layers(str(scan)):
        viewer.add_image(data, **attributes)
