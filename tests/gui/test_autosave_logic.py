"""Saved work of a window: folders, label files, pins; no Qt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from homolog.geometry.affine import Affine
from homolog.gui.autosave import saved_work, saver
from homolog.gui.autosave.saved_work import (
    Left,
    SavedWork,
    add_pins,
    left_behind,
    pins_of,
    read_saved,
    scans_to_open,
    tidy,
)
from homolog.gui.files.opening import read_layer
from homolog.gui.shared.scans import ExploreControl
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume

LABEL = {
    "file": "01_a.nii.gz", "name": "a", "source": "", "own_file": "",
    "ndim": 3, "label_names": {"1": "liver"}, "colours": {}, "opacity": 0.7,
    "visible": True,
}  # fmt: skip


def fake_layer(data, **more) -> SimpleNamespace:
    """What is asked of a napari Labels layer that napari itself draws."""
    scale = np.array(more.pop("scale", (1.0,) * data.ndim))
    translate = np.array(more.pop("translate", (0.0,) * data.ndim))
    eye = np.eye(data.ndim)
    fields = {
        "name": "drawn", "data": data, "scale": scale, "translate": translate,
        "rotate": eye, "shear": np.zeros(3), "units": ("mm",) * data.ndim,
        "affine": SimpleNamespace(affine_matrix=np.eye(data.ndim + 1)),
        "metadata": {}, "opacity": 0.7, "visible": True, "colormap": object(),
        "data_to_world": lambda p: np.asarray(p) * scale + translate,
    }  # fmt: skip
    made = Labels()
    made.__dict__.update(fields | more)
    return made


class Labels(SimpleNamespace):
    """Named as napari's class: that is how a layer's kind is told."""


class Image(SimpleNamespace):
    """Likewise."""


def crash(root: Path, labels: int = 1, **more) -> Path:
    """A session whose process is gone, made by such a process."""
    code = (
        "import os, sys, json; from pathlib import Path\n"
        "from homolog.gui.autosave.saved_work import SavedWork\n"
        "root, content = Path(sys.argv[1]), json.loads(sys.argv[2])\n"
        "session = SavedWork(); folder = session.begin(root)\n"
        "for entry in content['labels']: (folder / entry['file']).write_bytes(b'x')\n"
        "session.write(root, content, [])\n"
        "print(folder, flush=True); os._exit(9)"
    )
    content = {"labels": [LABEL] * labels, "scans": [], **more}
    run = subprocess.run(
        [sys.executable, "-c", code, str(root), json.dumps(content)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 9, run.stderr
    return Path(run.stdout.strip())


def change(folder: Path, **fields) -> None:
    file = folder / "session.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_only_dead_and_unclosed_sessions_are_offered(tmp_path: Path) -> None:
    assert left_behind(tmp_path) == []
    living = SavedWork()
    folder = living.begin(tmp_path)
    (folder / LABEL["file"]).write_bytes(b"x")
    living.write(tmp_path, {"labels": [LABEL], "scans": ["/a.nii"]}, [])
    other = SavedWork()
    assert other.begin(tmp_path) != folder
    told = json.loads((folder / "session.json").read_text())
    assert (told["format"], told["pid"], told["closed"]) == (1, os.getpid(), None)
    assert left_behind(tmp_path) == []  # its process lives
    dead = crash(tmp_path)
    assert [left.folder for left in left_behind(tmp_path)] == [dead]
    living.close()
    assert json.loads((folder / "session.json").read_text())["closed"]
    living.reopen()
    living.write(tmp_path, {"labels": [], "scans": []}, [])
    assert json.loads((folder / "session.json").read_text())["closed"] is None
    assert not (folder / LABEL["file"]).exists()  # its layer was deleted
    crash(tmp_path, labels=0)  # nothing in it: nothing to offer
    assert len(left_behind(tmp_path)) == 1
    (dead / "session.json").write_text("{torn")
    assert left_behind(tmp_path) == []


def test_tidy_removes_only_what_is_done_with(tmp_path: Path) -> None:
    foreign = tmp_path / "20200101-000000"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("not ours")
    closed, fresh, old, put_off = (crash(tmp_path) for _ in range(4))
    change(closed, closed="2026-11-20T10:00:00")
    long_ago = (datetime.now() - timedelta(days=15)).isoformat()
    change(old, time=long_ago)
    change(put_off, time=long_ago)
    for left in left_behind(tmp_path):
        if left.folder in (put_off, fresh):
            saved_work.put_off(left)
    tidy(tmp_path)
    # Old work that nobody was ever asked about stays.
    assert set(tmp_path.iterdir()) == {foreign, fresh, old}
    alive = SavedWork()
    alive.write(tmp_path, {"labels": [], "scans": []}, [])
    alive.close()
    tidy(tmp_path)
    assert alive.folder is not None
    assert alive.folder.is_dir()


def test_what_was_not_restored_is_offered_again(tmp_path: Path) -> None:
    folder = crash(tmp_path)
    (left,) = left_behind(tmp_path)
    lock = saved_work.claim(left)
    assert lock is not None
    assert saved_work.claim(left) is None
    assert left_behind(tmp_path) == []
    pin = {"name": "aorta", "scan": "b"}
    saved_work.settle(left, [], [pin])
    lock.release()
    (again,) = left_behind(tmp_path)
    assert (again.labels, again.pins) == ((), (pin,))
    assert again.sentence().startswith("Pins of ")
    saved_work.settle(again, [], [])
    assert left_behind(tmp_path) == []
    tidy(tmp_path)
    assert not folder.exists()


def test_the_sentence_tells_what_and_when() -> None:
    time = datetime(2026, 11, 20, 14, 32)
    left = Left(Path(), time, (LABEL,), ({"name": "p"},), ())
    now = datetime(2026, 11, 20, 18, 0)
    assert left.sentence(now) == (
        "Labels and pins of 14:32 were saved before napari ended."
    )
    later = Left(Path(), time, (LABEL,), (), ()).sentence(now + timedelta(days=1))
    assert later.startswith("Labels of 20 Nov 2026, 14:32 were")


def tilted_scan(folder: Path) -> Path:
    a = np.deg2rad(12)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, -1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn * (3.0, 0.8, 0.9)
    matrix[:3, 3] = (-40.0, 12.5, 70.0)
    data = np.random.default_rng(0).normal(0, 90, (1, 6, 9, 11)).astype(np.int16)
    path = folder / "tilted.nii.gz"
    write_volume(Volume(data, Affine(matrix)), path)
    return path


def test_a_drawn_layer_has_its_scans_geometry(tmp_path: Path) -> None:
    scan = tilted_scan(tmp_path)
    data, attributes, _ = read_layer(scan)
    place = {k: attributes[k] for k in ("scale", "translate")}
    image = Image(
        **{**fake_layer(data, **place).__dict__, "metadata": attributes["metadata"]}
    )
    drawn = np.zeros(data.shape, np.uint8)
    drawn[1:3, 2:5, 4] = 2
    layer = fake_layer(drawn, name="My tumour!", **place)
    copying = saver.Copying(layer)
    while not copying.step(0.0):
        pass
    copy = copying.taken()
    file = saver.file_name(3, layer.name)
    assert file == "03_My_tumour.nii.gz"
    entry = saver.entry_of(layer, file, [image, layer])
    assert entry["source"] == str(scan)
    others = [saver.Labels(image)]
    first = saver.save(copy, others, tmp_path, file, None)
    stamp = (tmp_path / file).stat().st_mtime_ns
    assert saver.save(copy, others, tmp_path, file, first) == first
    assert (tmp_path / file).stat().st_mtime_ns == stamp
    saved, source = sitk.ReadImage(tmp_path / file), sitk.ReadImage(scan)
    assert saved.GetSize() == source.GetSize()
    np.testing.assert_allclose(saved.GetDirection(), source.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(saved.GetOrigin(), source.GetOrigin(), atol=1e-4)
    left = Left(tmp_path, datetime.now(), (entry,), (), (str(scan),))
    (made,), lost, why = read_saved(left)
    assert (lost, why) == ([], [])
    np.testing.assert_array_equal(made[0], drawn)
    assert made[1]["name"] == "My tumour!"
    np.testing.assert_allclose(made[1]["translate"], place["translate"], atol=1e-3)
    # A change is written over the old file, with nothing left beside it.
    drawn[0, 0, 0] = 7
    again = saver.Copying(layer)
    while not again.step(1.0):
        pass
    assert saver.save(again.taken(), others, tmp_path, file, first) != first
    assert sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / file)).max() == 7
    assert {p.name for p in tmp_path.iterdir()} == {file, scan.name}


def test_a_drawing_on_a_picture_stays_flat(tmp_path: Path) -> None:
    layer = fake_layer(300 * np.eye(6, dtype=np.uint16), scale=(2.0, 0.5))
    copying = saver.Copying(layer)
    while not copying.step(1.0):
        pass
    entry = saver.entry_of(layer, "01_a.nii.gz", [layer])
    saver.save(copying.taken(), [], tmp_path, "01_a.nii.gz", None)
    (made,), _, _ = read_saved(Left(tmp_path, datetime.now(), (entry,), (), ()))
    np.testing.assert_array_equal(made[0], layer.data)
    assert made[1]["scale"] == pytest.approx((2.0, 0.5))
    assert len(made[1]["units"]) == len(made[1]["axis_labels"]) == 2


def test_layers_that_cannot_be_saved_or_read(tmp_path: Path) -> None:
    film = fake_layer(np.zeros((2, 3, 4, 5), np.uint8))
    assert "2 or 3 dimensions" in saver.why_not_saved(film)
    assert saver.why_not_saved(fake_layer(np.zeros((4, 5), int))) == ""
    layer = fake_layer(np.zeros((3, 4, 5), np.uint8))
    copying = saver.Copying(layer)
    layer.data = np.zeros((2, 4, 5), np.uint8)
    with pytest.raises(ValueError, match="changed its shape"):
        copying.step(1.0)
    (tmp_path / LABEL["file"]).write_bytes(b"torn")
    gone = tmp_path / "gone.nii"
    left = Left(tmp_path, datetime.now(), (LABEL,), (), (str(gone), str(gone)))
    layers, lost, why = read_saved(left)
    assert (layers, lost) == ([], [LABEL])
    assert LABEL["file"] in why[0]
    assert scans_to_open(left, []) == ([], [gone])


def test_pins_return_to_their_scan_and_wait_for_others(tmp_path: Path) -> None:
    def scan(name: str) -> SimpleNamespace:
        ref = SimpleNamespace(name=name, path=tmp_path / name)
        return SimpleNamespace(ref=ref)

    before = SimpleNamespace(control=ExploreControl(scans={"7": scan("a")}))
    query = np.array([0.6, 0.8], np.float32)
    before.control.pins.add("7", "a", (1.0, 2.0, 3.5), query, "/enc", "aorta")
    before.control.pins.add("8", "b", (4.0, 5.0, 6.0), query, "/enc").visible = False
    pins = json.loads(json.dumps(pins_of(before)))
    after = SimpleNamespace(control=ExploreControl(scans={"1": scan("a")}))
    assert add_pins(after, pins) == [pins[1]]
    (pin,) = after.control.pins
    assert (pin.scan_key, pin.name, pin.mm) == ("1", "aorta", (1.0, 2.0, 3.5))
    np.testing.assert_array_equal(pin.query, query)
    after.control.scans["2"] = scan("b")
    assert add_pins(after, pins[1:]) == []
    assert [p.visible for p in after.control.pins] == [True, False]
