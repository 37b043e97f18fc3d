"""Autosave in a real window: paint, be killed, start again, restore."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

import SimpleITK as sitk
from explore_files import write_scan
from named import nameless
from qtpy.QtWidgets import QApplication

from homolog.geometry.affine import Affine
from homolog.gui.autosave.saved_work import left_behind
from homolog.gui.shared import preferences
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import wait_for_threads
from homolog.gui.shared.widgets import Answer
from homolog.gui.window import dock_panel

pytestmark = pytest.mark.filterwarnings("error::FutureWarning")
# A window that paints, pins, is saved and gets killed.
KILLED = """
import os, sys, time
from pathlib import Path
import napari, numpy as np
from napari.utils import DirectLabelColormap
from qtpy.QtWidgets import QApplication
from homolog.gui.shared import hub, preferences
home, scan = Path(sys.argv[1]), sys.argv[2]
preferences.home = lambda: home
hub.Hub.want_schema = lambda self: None
from homolog.gui.window import dock_panel
viewer = napari.Viewer(show=False)
panel = dock_panel(viewer)
viewer.open(scan, plugin="napari-homolog")
image = viewer.layers[0]
drawn = viewer.add_labels(
    np.zeros(image.data.shape, np.int32), name="my tumour", scale=image.scale,
    translate=image.translate, units=image.units, opacity=0.4,
    features={"index": [0, 3], "label": ["background", "tumour"]},
    colormap=DirectLabelColormap(color_dict={None: "red", 0: "transparent", 3: "blue"}),
)
drawn.brush_size = 3
drawn.paint((4, 5, 6), 3)
panel.show_tab("Explore")
explorer = panel.panels["Explore"].explorer
explorer.sync()
key = next(iter(explorer.control.scans))
query = np.array([0.6, 0.8], np.float32)
explorer.control.pins.add(key, "ct", (5.0, 6.0, 7.0), query, "/enc", "hilum")
explorer.control.pins.add("gone", "other", (1.0, 2.0, 3.0), query, "/enc", "lost")
done = []
panel.autosave.saved.connect(done.append)
panel.autosave.tick()
until = time.monotonic() + 60
while not done and time.monotonic() < until:
    QApplication.processEvents()
    time.sleep(0.005)
np.save(home / "drawn.npy", drawn.data)
os._exit(9 if done else 1)
"""


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        QApplication.processEvents()
        time.sleep(0.005)


@pytest.fixture
def window(make_napari_viewer_proxy, home: Path, monkeypatch):
    """Makes (viewer, panel); what is said goes to ``panel.said``."""
    monkeypatch.setattr(Hub, "want_schema", lambda self: None)

    def make():
        viewer = make_napari_viewer_proxy()
        panel = dock_panel(viewer)
        panel.said = []
        panel.hub.say = lambda text, level="info": panel.said.append(text)
        panel.show_tab("Data")
        panel.show_tab("Start")
        return viewer, panel

    yield make
    wait_for_threads()
    QApplication.processEvents()


def save(panel) -> int:
    """One tick, waited for; how many label layers were looked at."""
    done: list[int] = []
    panel.autosave.saved.connect(done.append)
    panel.autosave.tick()
    until(lambda: done)
    panel.autosave.saved.disconnect(done.append)
    return done[0]


def files(home: Path) -> dict[str, int]:
    """Everything under sessions, with its time of writing."""
    found = (home / "sessions").rglob("*")
    return {p.name: p.stat().st_mtime_ns for p in found if p.is_file()}


def open_scan(viewer, tmp_path: Path):
    back = np.diag((3.0, -1.5, 1.5, 1.0))  # rows of the file run against the layer's
    back[:3, 3] = (-20.0, 30.0, 5.0)
    scan = write_scan(tmp_path, "ct", Affine(back))
    viewer.open(str(scan), plugin="napari-homolog")
    return scan, viewer.layers[0]


def draw_on(viewer, image, **more):
    return viewer.add_labels(
        np.zeros(image.data.shape, np.int32), scale=image.scale,
        translate=image.translate, units=image.units, **more,
    )  # fmt: skip


def test_paint_is_saved_once_and_the_close_is_noted(
    window, home: Path, tmp_path: Path, monkeypatch
) -> None:
    viewer, panel = window()
    scan, image = open_scan(viewer, tmp_path)
    drawn = draw_on(viewer, image, name="mine")
    untouched = draw_on(viewer, image, name="predicted")
    assert save(panel) == 0
    assert files(home) == {}
    drawn.paint((4, 5, 6), 3)
    assert save(panel) == 1
    folder = panel.autosave.work.folder
    (file,) = folder.glob("*.nii.gz")
    saved, source = sitk.ReadImage(file), sitk.ReadImage(scan)
    for place in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(saved, place)() == pytest.approx(getattr(source, place)())
    values = sitk.GetArrayFromImage(saved)
    np.testing.assert_array_equal(values[:, ::-1], drawn.data)  # the scan runs back
    told = json.loads((folder / "session.json").read_text())
    assert [x["name"] for x in told["labels"]] == ["mine"]
    assert told["labels"][0]["source"] == str(scan)
    assert told["scans"] == [str(scan)]
    before = files(home)
    viewer.dims.set_point(0, 0.0)  # another slice: looked at, nothing written
    save(panel)
    assert files(home) == before
    drawn.undo()
    assert save(panel) == 1
    assert sitk.GetArrayFromImage(sitk.ReadImage(file)).max() == 0
    # A change that only session.json tells.
    drawn.name = "renamed"
    save(panel)
    told = json.loads((folder / "session.json").read_text())
    assert [x["name"] for x in told["labels"]] == ["renamed"]
    untouched.data = untouched.data + 1
    viewer.layers.remove(drawn)
    save(panel)
    assert not file.exists()
    assert [p.name[:2] for p in folder.glob("*.nii.gz")] == ["02"]
    assert panel.said == []
    # Closing; where the window stays after all, the next tick notes it.
    panel.hub.closing.emit()
    assert json.loads((folder / "session.json").read_text())["closed"]
    monkeypatch.setattr(panel.autosave, "_is_open", lambda: False)
    panel.autosave.tick()
    assert json.loads((folder / "session.json").read_text())["closed"]
    monkeypatch.setattr(panel.autosave, "_is_open", lambda: True)
    save(panel)
    assert json.loads((folder / "session.json").read_text())["closed"] is None
    panel.tear_down()
    assert json.loads((folder / "session.json").read_text())["closed"]
    assert left_behind(home / "sessions") == []


def test_never_and_trouble(window, home: Path, tmp_path: Path, monkeypatch) -> None:
    minutes = [0]
    told = {"autosave_minutes": minutes}
    monkeypatch.setattr(
        preferences, "get", lambda _, name, default: told.get(name, [default])[0]
    )
    viewer, panel = window()
    _, image = open_scan(viewer, tmp_path)
    draw_on(viewer, image).paint((4, 5, 6), 3)
    panel.autosave.tick()
    wait_for_threads()
    assert files(home) == {}
    minutes[0] = 2
    (home / "sessions").write_text("in the way")
    for _ in range(2):
        panel.autosave.tick()
        until(lambda: not panel.autosave._busy)
    assert len(panel.said) == 1
    assert "cannot be saved by themselves" in panel.said[0]
    (home / "sessions").unlink()
    assert save(panel) == 1
    assert len(list((home / "sessions").rglob("*.nii.gz"))) == 1


def test_killed_offered_and_restored(window, home: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path, "ct", Affine.of((3.0, 1.5, 1.5), (-20.0, 30.0, 5.0)))
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(home), str(scan)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 9, run.stderr[-3000:]
    (old,) = (home / "sessions").iterdir()
    viewer, panel = window()
    bar = panel.panels["Start"].restore
    until(lambda: bar.isVisibleTo(panel.panels["Start"]))
    assert bar.words.text().startswith("Labels and pins of ")
    assert nameless(bar) == []
    bar.not_now.click()
    assert not bar.isVisibleTo(panel.panels["Start"])
    until(lambda: json.loads((old / "session.json").read_text()).get("put_off"))
    # The next start.
    viewer, panel = window()
    bar = panel.panels["Start"].restore
    until(lambda: bar.isVisibleTo(panel.panels["Start"]))
    bar.ask = lambda *_: Answer("cancel")
    bar.delete.click()
    assert old.is_dir()
    bar.restore.click()
    until(lambda: len(viewer.layers) >= 2)
    layer = viewer.layers["my tumour"]
    assert [x.name for x in viewer.layers][:2] == ["ct", "my tumour"]
    np.testing.assert_array_equal(layer.data, np.load(home / "drawn.npy"))
    assert layer.metadata["label_names"] == {3: "tumour"}
    assert layer.opacity == pytest.approx(0.4)
    np.testing.assert_allclose(layer.get_color(3), (0, 0, 1, 1))
    np.testing.assert_allclose(layer.scale, viewer.layers["ct"].scale)
    np.testing.assert_allclose(layer.translate, viewer.layers["ct"].translate)
    (pin,) = panel.panels["Explore"].explorer.control.pins
    assert (pin.name, pin.mm) == ("hilum", (5.0, 6.0, 7.0))
    assert any("Pins wait for their scan (other)" in s for s in panel.said)
    # It is saved anew before the old one is offered no more, but for the pin left.
    until(lambda: panel.autosave.work.folder is not None)
    until(lambda: json.loads((old / "session.json").read_text())["labels"] == [])
    until(lambda: [x.labels for x in left_behind(home / "sessions")] == [()])
    (left,) = left_behind(home / "sessions")
    assert [p["name"] for p in left.pins] == ["lost"]
    assert list(panel.autosave.work.folder.glob("*.nii.gz"))
