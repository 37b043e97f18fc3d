"""The Label tab in a real window: paint, predict, correct, undo, restore, hand on."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

from explore_files import ENCODER, unit_features, write_encoder, write_features
from learn_fakes import FakeHelper
from named import nameless
from napari.utils.key_bindings import coerce_keybinding
from qtpy.QtWidgets import QApplication

from homolog.geometry.affine import Affine
from homolog.gui.files.reader import read_layers
from homolog.gui.label import carry_box
from homolog.gui.label.labelling import NEXT
from homolog.gui.label.learning import BACKGROUND
from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.model_row import FeatureWork
from homolog.gui.shared.threads import wait_for_threads
from homolog.gui.window import dock_panel
from homolog.scans.files import read_labels, read_scan
from homolog.scans.names import names_beside
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume

pytestmark = [
    pytest.mark.filterwarnings("error::FutureWarning"),
    pytest.mark.usefixtures("workers"),
]
SHAPE = (16, 20, 24)
BACK = np.diag((2.0, -2.0, 2.0, 1.0))  # rows of the file run against the layer's


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        QApplication.processEvents()
        time.sleep(0.005)


def settle(seconds: float = 0.1) -> None:
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end)


def patient(folder: Path, name: str, shift: float = 0.0) -> tuple[Path, Affine]:
    """Muscle with a bright organ in its front half."""
    data = np.full((1, *SHAPE), 40, np.int16)
    data[0, :, :, 12:] = 300
    data[0] += np.random.default_rng(0).integers(-5, 5, SHAPE).astype(np.int16)
    back = BACK.copy()
    back[0, 3] = shift
    path = folder / f"{name}.nii.gz"
    write_volume(Volume(data, Affine(back), name, "CT"), path)
    return path, Affine(back)


@pytest.fixture
def window(make_napari_viewer_proxy, home: Path, monkeypatch):
    """Makes (viewer, main panel, label panel) with scans open."""
    monkeypatch.setattr(Hub, "want_schema", lambda self: None)

    def make(paths):
        viewer = make_napari_viewer_proxy(show=True)
        panel = dock_panel(viewer)
        for path in paths:
            for data, attributes, _ in read_layers(str(path)):
                viewer.add_image(data, **attributes)
        panel.show_tab("Label")
        assert "Label" in panel.panels, panel._areas["Label"].widget().text()
        settle()
        return viewer, panel, panel.panels["Label"]

    yield make
    wait_for_threads()
    settle(0.05)


def row_of(tab, name: str):
    (key,) = [k for k, s in tab.labelling.book.scans.items() if s.ref.name == name]
    return key, tab._rows[key]


def begin(tab, name: str = "ct"):
    """Press Create; the desk of the scan."""
    key, row = row_of(tab, name)
    row.paint.click()
    settle()
    return tab.labelling.desks[key]


def stroke(layer, places, value: int) -> None:
    for place in places:
        layer.paint(place, value)


LEFT = [(4, 5, 4), (9, 12, 5), (12, 9, 3)]
RIGHT = [(4, 5, 18), (9, 12, 19), (12, 9, 20)]


def paint_both(desk) -> None:
    desk.painted.brush_size = 1
    stroke(desk.painted, LEFT, BACKGROUND)
    stroke(desk.painted, RIGHT, 1)


def predicted(tab) -> None:
    trainer = tab.labelling.trainer
    until(lambda: trainer.timing.volume_s is not None and not trainer.busy)


def test_paint_predict_correct_undo_and_next(window, tmp_path) -> None:
    path, _ = patient(tmp_path, "ct")
    viewer, _, tab = window([path])
    assert nameless(tab) == []
    desk = begin(tab)
    painted = desk.painted
    assert nameless(tab) == []
    assert tab.minimumSizeHint().width() <= 320
    assert painted.n_edit_dimensions == 3
    assert painted.brush_size == round(3 / 2)
    assert painted.mode == "paint"
    assert viewer.layers.selection.active == painted
    np.testing.assert_allclose(painted.scale, desk.layer.scale)
    np.testing.assert_allclose(painted.translate, desk.layer.translate)
    painted.brush_size = 1
    stroke(painted, RIGHT, 1)
    until(lambda: "second class" in tab.labelling.trainer.problem)
    assert "paint a second class" in tab.result.state.text()
    order = []
    tab.labelling.trainer.changed.connect(
        lambda: order.append(tab.labelling.trainer.timing.slice_s is not None)
    )
    stroke(painted, LEFT, BACKGROUND)
    predicted(tab)
    shown = desk.predicted.data
    assert (shown[:, :, 13:] == 1).mean() > 0.95
    assert (shown[:, :, :11] == 0).mean() > 0.95
    assert order.index(True) < len(order) - 1  # the slice, then more
    timing = tab.labelling.trainer.timing
    assert 0 < timing.slice_s <= timing.volume_s
    assert "after the last stroke" in tab.result.state.text()
    table = tab.classes.table
    assert [table.item(r, 2).text() for r in range(2)] == ["3", "3"]
    until(lambda: tab.result.score.text())
    # a painted voxel that the head would tell otherwise stays as it was painted
    first = shown.copy()
    stroke(painted, [(8, 8, 22)], BACKGROUND)
    predicted_before = tab.places.history.levels
    until(lambda: tab.places.history.levels > predicted_before)
    assert desk.predicted.data[8, 8, 22] == 0
    assert painted.data[8, 8, 22] == BACKGROUND
    second = desk.predicted.data.copy()
    tab.result.before.click()
    until(lambda: (desk.predicted.data == first).all())
    tab.result.before.click()
    until(lambda: (desk.predicted.data == second).all())
    tab.result.undo.click()
    until(lambda: (desk.predicted.data == first).all())
    until(lambda: not tab.result.undo.isEnabled())
    tab.result.next.click()
    until(lambda: NEXT in [layer.name for layer in viewer.layers])
    assert "background or structure 1?" in tab.result.told.text() or (
        "structure 1 or background?" in tab.result.told.text()
    )
    assert viewer.layers.selection.active == painted
    # as high as its sentences, or the scroll area would cut them
    needed = tab.layout().totalHeightForWidth
    until(lambda: tab.minimumHeight() == needed(tab.width()) > 300, 5)
    # napari's own undo is a stroke too
    painted.undo()
    until(lambda: tab.places.history.levels)
    assert desk.predicted.data[8, 8, 22] == 1
    assert not viewer.layers[NEXT].visible  # it was painted


def test_a_new_stroke_ends_the_running_round(window, tmp_path, monkeypatch) -> None:
    from homolog.gui.label import training

    path, _ = patient(tmp_path, "ct")
    _, _, tab = window([path])
    desk, trainer = begin(tab), tab.labelling.trainer
    running, ended = [], []
    plain = training.volumes_of

    def slow(fitted, first, outdated):
        running.append(1)
        while len(running) == 1 and not outdated():
            time.sleep(0.005)
        found = plain(fitted, first, outdated)
        ended.append(found)
        return found

    monkeypatch.setattr(training, "volumes_of", slow)
    paint_both(desk)
    until(lambda: running)
    stroke(desk.painted, [(2, 2, 2)], BACKGROUND)
    assert trainer.state == "waiting"
    predicted(tab)
    assert ended[0] is None
    assert ended[1] is not None
    assert tab.places.history.levels == 0


def test_classes_keys_names_and_background(window, tmp_path) -> None:
    path, _ = patient(tmp_path, "ct")
    viewer, _, tab = window([path])
    desk, classes = begin(tab), tab.labelling.classes
    tab.classes.add.click()
    assert classes.current == 2 == desk.painted.selected_label
    assert tab.classes.table.rowCount() == 3
    tab.classes.table.item(1, 0).setText("spleen")
    assert classes.names == {1: "structure 1", 2: "spleen", BACKGROUND: "background"}
    assert desk.painted.metadata["label_names"][2] == "spleen"
    tab.classes.table.item(0, 0).setText("spleen")
    assert "must differ" in tab.result.told.text()
    viewer.keymap[coerce_keybinding("Shift-Q")](viewer)
    assert classes.current == 1 == desk.painted.selected_label
    desk.painted.selected_label = 2  # napari's own box
    assert tab.classes.table.currentRow() == 1
    tab.classes.ground.click()
    assert classes.background == 2
    tab.classes.ground.click()
    assert classes.background is None
    tab.classes.remove.click()
    assert 2 not in classes.names


def test_two_scans_one_model_and_an_encoders_features(window, home, tmp_path) -> None:
    write_encoder(home / "runs" / "run")
    paths = []
    for number in range(2):
        path, affine = patient(tmp_path, f"ct{number}", 100.0 * number)
        cells = unit_features((8, 10, 12))
        cells[..., 6:, :] = np.eye(16)[3]
        write_features(home / "features", path, affine, SHAPE, cells)
        paths.append(path)
    _, _, tab = window(paths)
    until(lambda: tab.models.model.count() == 2)
    tab.models.model.setCurrentIndex(1)
    tab.models.model.activated.emit(1)
    first = begin(tab, "ct0")
    second = begin(tab, "ct1")
    until(lambda: len(tab.labelling.scene.sides()) == 2)
    paint_both(first)
    predicted(tab)
    assert tab.labelling.trainer.last.learnt.head.encoder_id == ENCODER
    for desk in (first, second):
        assert (desk.predicted.data[:, :, 14:] == 1).mean() > 0.95
        assert (desk.predicted.data[:, :, :10] == 0).mean() > 0.95
    levels = tab.places.history.levels
    _, row = row_of(tab, "ct1")
    row.tick.click()
    until(lambda: tab.places.history.levels > levels)
    assert [s.key for s in tab.labelling.trainer.last.sides] == [row_of(tab, "ct0")[0]]
    levels = tab.places.history.levels
    tab.settings.learner.setCurrentIndex(1)
    tab.settings.learner.activated.emit(1)
    until(lambda: tab.places.history.levels > levels)
    assert tab.labelling.trainer.last.learnt.head.kind == "knn"
    assert tab.labelling.trainer.last.learnt.config.body_only
    levels = tab.places.history.levels
    tab.settings.body.click()
    until(lambda: tab.places.history.levels > levels)
    assert not tab.labelling.trainer.last.learnt.config.body_only
    assert (first.predicted.data[:, :, 14:] == 1).mean() > 0.95


def test_features_of_the_packages_encoder_come_by_themselves(
    window, home, tmp_path, monkeypatch
) -> None:
    shipped = tmp_path / "shipped"
    card = write_encoder(shipped / "body-ct") / "model" / "model.json"
    told = json.loads(card.read_text())
    card.write_text(json.dumps({**told, "modalities": {"CT": 8}}))
    monkeypatch.setattr("homolog.model_files.library.ENCODERS", shipped)
    data = np.full((1, *SHAPE), -1000, np.int16)  # air: told to be CT by its values
    data[0, :, 4:-4, 4:-4] = 40
    path = tmp_path / "ct.nii.gz"
    write_volume(Volume(data, Affine(BACK), "ct", "CT"), path)
    _, _, tab = window([path])
    asked: list[list[str]] = []
    monkeypatch.setattr(FeatureWork, "compute", lambda self, keys: asked.append(keys))
    until(lambda: tab.labelling.encoder is not None)
    assert tab.labelling.encoder.name == "body-ct"
    key, _ = row_of(tab, "ct")
    until(lambda: tab.labelling.book.scans[key].state == "none")
    assert "Paint a few voxels" in tab.hint.text()
    begin(tab)
    assert asked == [[key]]
    tab.models.model.setCurrentIndex(0)  # intensities alone: nothing is computed
    tab.models.model.activated.emit(0)
    assert tab.labelling.encoder is None
    begin(tab)
    assert len(asked) == 1


def test_paint_is_saved_by_itself_and_comes_back(window, home, tmp_path) -> None:
    path, _ = patient(tmp_path, "ct")
    viewer, panel, tab = window([path])
    desk = begin(tab)
    paint_both(desk)
    predicted(tab)
    done = []
    panel.autosave.saved.connect(done.append)
    panel.autosave.tick()
    until(lambda: done)
    (file,) = (home / "sessions").rglob("*.nii.gz")
    # the scan's rows run back; the prediction was not saved
    np.testing.assert_array_equal(read_labels(file).data[:, ::-1], desk.painted.data)
    # a restored layer has other numbers and no note of ours, but its name and names
    data, names = desk.painted.data.astype(np.int32), desk.painted.metadata
    place = {"scale": desk.painted.scale, "translate": desk.painted.translate}
    names = {"label_names": {**names["label_names"], 1: "liver"}}
    viewer.layers.remove(desk.painted)
    settle()
    assert desk.painted is None
    viewer.add_labels(data, name="ct painted", metadata=names, **place)
    until(lambda: desk.painted is not None)
    tab.labelling.trainer.now()
    until(lambda: desk.voxels)
    assert tab.labelling.classes.background == BACKGROUND
    # what was painted after the last save is kept at the close, and offered again
    stroke(desk.painted, [(2, 3, 4)], BACKGROUND)
    panel.hub.closing.emit()
    (told,) = (home / "sessions").rglob("session.json")
    assert json.loads(told.read_text())["closed"] is None
    (entry,) = json.loads(told.read_text())["labels"]
    saved = read_labels(told.parent / entry["file"]).data
    np.testing.assert_array_equal(saved[:, ::-1], desk.painted.data)


def test_save_and_fine_tune_start_the_jobs(window, home, tmp_path, monkeypatch) -> None:
    path, _ = patient(tmp_path, "ct")
    _, panel, tab = window([path])
    made = []

    class Fake(FakeHelper):
        def __init__(self, kind, config, parent):
            super().__init__(kind, config, parent)
            made.append(self)

    monkeypatch.setattr(widgets, "Helper", Fake)
    paint_both(begin(tab))
    predicted(tab)
    tab.classes.table.item(0, 0).setText("liver")
    until(lambda: tab.hand.save.isEnabled())
    tab.hand.name.setText("mine")
    tab.hand.save.click()
    until(lambda: made)
    config = made[0].config
    assert config["scans"] == [str(path)]
    assert config["background"] == BACKGROUND
    assert config["unknown"] == 0.1
    assert config["names"]["1"] == "liver"
    values = np.unique(read_labels(Path(config["labels"][0])).data)
    assert values.tolist() == [0, 1, BACKGROUND]
    assert config["out"] == str(home / "models" / "mine")
    visited = []
    panel.hub.go.connect(lambda title, what: visited.append((title, what)))
    made[0].done.emit({"model": config["out"], "stopped": False})
    tab.hand.use.click()
    assert visited[-1] == ("Segment", {"model": config["out"]})
    predicted(tab)
    until(lambda: tab.hand.tune.isEnabled())
    tab.hand.tune.click()
    until(lambda: len(made) == 2)
    (folder,) = made[1].config["labels"]
    labels = read_labels(Path(folder) / "ct.nii.gz").data
    assert (labels[:, :, 13:] == 1).mean() > 0.95
    assert (labels[:, :, :11] == 0).mean() > 0.95
    # what is unknown in a prediction teaches nothing
    assert names_beside(Path(folder) / "ct.nii.gz")[254] == "ignore"
    store = made[1].config["out"]
    made[1].done.emit({"store": store, "labelled": 1, "rejected": []})
    assert visited[-1] == ("Fine-tune", {"store": store})


# --- carrying labels to another scan


def test_labels_of_one_scan_are_carried_to_another(
    tmp_path: Path, window, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FakeHelper] = []

    class Fake(FakeHelper):
        def __init__(self, kind, config, parent):
            super().__init__(kind, config, parent)
            made.append(self)

    monkeypatch.setattr(widgets, "Helper", Fake)
    shifts = {"first": 0.0, "second": 30.0}
    paths = [patient(tmp_path, name, shift)[0] for name, shift in shifts.items()]
    viewer, _, tab = window(paths)
    box = tab.carry
    assert not box.isVisibleTo(tab)  # no labels yet
    tab.labelling.make_layer(row_of(tab, "first")[0])
    paint = viewer.layers["first painted"]
    paint.data[2:5, 3:6, 4:9] = 1
    until(lambda: box.isVisibleTo(tab))
    box.fold.expand(animate=False)
    box.source.setCurrentText("first painted")  # not its prediction
    assert box.wanted is not None
    assert box.wanted.labels.name == "first painted"
    assert [box.target.itemText(i) for i in range(box.target.count())] == ["second"]
    assert not nameless(box)
    box.start.click()
    until(lambda: made)
    kind, config = made[0].kind, made[0].config
    assert (kind, config["encoder"]) == ("propagate", None)
    assert (config["sources"], config["scans"]) == ([str(paths[0])], [str(paths[1])])
    assert np.count_nonzero(read_labels(config["labels"][0]).data) == 3 * 3 * 5
    assert not box.start.isEnabled()
    made[0].done.emit(carried_to(paths[1], Path(config["out"]), config["labels"][0]))
    until(lambda: "second carried" in viewer.layers)
    found, doubt = viewer.layers["second carried"], viewer.layers["second uncertainty"]
    assert np.array_equal(found.data, paint.data)  # on the shown grid
    scan = viewer.layers["second"]
    assert np.allclose(found.affine.affine_matrix, scan.affine.affine_matrix)
    assert not doubt.visible
    assert doubt.data.shape == found.data.shape
    assert "second (75% sure)" in box.words.text()
    key, _ = row_of(tab, "second")
    tab.labelling.use_layer(key, found)  # what was carried is corrected like paint
    assert tab.labelling.desks[key].painted.name == found.name


def carried_to(scan: Path, out: Path, labels: str) -> dict:
    """What the job tells, its files written."""
    (out / "uncertainty").mkdir(parents=True)
    data, affine = read_labels(labels).data, read_scan(scan).affine
    place, doubt = out / scan.name, out / "uncertainty" / scan.name
    write_labels(LabelMap(data, affine, {1: "liver"}), place)
    write_volume(Volume(np.full((1, *data.shape), 0.25, np.float32), affine), doubt)
    row = {
        "scan": str(scan), "result": str(place), "uncertainty": str(doubt),
        "confidence": 0.75,
    }  # fmt: skip
    return {"cases": [row], "failed": [], "stopped": False}


def test_scans_of_one_grid_are_told_apart_by_the_names_of_their_labels() -> None:
    from napari.layers import Image, Labels

    grid = {"scale": (1, 2, 2)}
    scans = {k: Image(np.zeros((3, 4, 5)), name=k, **grid) for k in ("ED", "ES")}
    layers = [
        Labels(np.zeros((3, 4, 5), int), name=name, **grid)
        for name in ("ES painted", "heart")
    ]
    entries = carry_box.label_entries(scans, layers)
    assert [(text, key) for text, (key, _) in entries] == [
        ("ES painted", "ES"), ("heart (ED)", "ED"), ("heart (ES)", "ES")
    ]  # fmt: skip
