"""A landmark in all scans of a store, and limits changed, in a real window."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

import landmark_worker
from explore_files import write_encoder
from landmark_scans import (
    BLOBS,
    SHAPE,
    THERE,
    all_ready,
    click,
    open_tab,
    patient,
    place,
    settle,
    show_blobs,
    store_of,
    until,
)
from named import nameless
from qtpy.QtCore import Qt

from homolog.gui.beside.scan_b import IN_B
from homolog.gui.landmarks.control import BY_HAND, COLOURS
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import wait_for_threads
from homolog.landmarks.config import LandmarksConfig
from homolog.runs import launch

pytestmark = [
    pytest.mark.filterwarnings("error::FutureWarning"),
    pytest.mark.usefixtures("workers"),
]


@pytest.fixture
def scans(home: Path, tmp_path: Path, monkeypatch) -> list[Path]:
    """Two patients with features, and a store of them and of two without."""
    monkeypatch.setattr(launch, "WORKER", (sys.executable, landmark_worker.__file__))
    write_encoder(home / "runs" / "run")
    found = [patient(tmp_path, number) for number in range(4)]
    for number, blobs in enumerate((BLOBS, THERE)):
        show_blobs(home / "features", found[number], number, blobs)
    (home / "stores").mkdir()
    store_of(found, home / "stores" / "patients")
    found[3].unlink()  # of this one only the store has the voxels
    return found


@pytest.fixture
def open_panel(make_napari_viewer_proxy, scans, monkeypatch):
    """Makes the landmark panel with two patients open, both ready.

    A function, since pytest would keep a panel, and with it the viewer, too long.
    """
    monkeypatch.setattr(Hub, "want_schema", lambda self: None)

    def make():
        _, tab = open_tab(make_napari_viewer_proxy(show=True), scans[:2])
        all_ready(tab)
        return tab

    yield make
    wait_for_threads()
    settle(0.05)


def choose_store(tab, name: str) -> None:
    """As a user does it in the list."""
    source = tab.cohort.source
    until(lambda: source.findText(name, Qt.MatchFlag.MatchContains) >= 0)
    index = source.findText(name, Qt.MatchFlag.MatchContains)
    source.setCurrentIndex(index)
    source.activated.emit(index)


def states(tab) -> dict[str, str]:
    return {key: row.state for key, row in tab.cohort.found.items()}


def keys_shown(tab) -> list[str]:
    settle(0.2)  # the table is filled a moment later
    table = tab.cohort.table
    return [table.key_at(line) for line in range(table.rowCount())]


def double_click(tab, key: str) -> None:
    line = keys_shown(tab).index(key)
    table = tab.cohort.table
    table.setCurrentCell(line, 0)
    table.itemActivated.emit(table.item(line, 0))


def test_a_store_is_searched_computed_and_opened(open_panel, scans) -> None:
    tab = open_panel()
    pair, control, cohort = tab.pair, tab.pair.control, tab.cohort
    click(tab, BLOBS[0])
    mark = control.table.current
    choose_store(tab, "patients")
    assert "4 scans" in cohort.source.currentText()
    cohort.search.click()
    until(lambda: len(cohort.found) == 3 and not cohort.now.busy)
    # A is in the store, too, but is not searched for its own place.
    assert states(tab) == {
        "scan_1": "found", "scan_2": "waiting", "scan_3": "waiting"
    }  # fmt: skip
    found = cohort.found["scan_1"].mark
    true = place(1).coarsen((2, 2, 2)).apply(THERE[0])
    assert np.linalg.norm(np.array(found.b_mm) - true) < 2.5
    assert np.allclose(found.b_mm, mark.b_mm, atol=0.5)  # as in the open scan
    assert found.accepted
    assert keys_shown(tab) == ["scan_1", "scan_2", "scan_3"]
    first = cohort.table.item(0, 0)
    assert not first.icon().isNull()
    assert first.text() == "●"
    assert first.foreground().color().name() == COLOURS["sure"]
    assert "without features" in tab.said.text()

    # Compute the others; cancelled once, then to the end.
    assert cohort.missing.isVisible()
    cohort.missing.click()
    until(lambda: "%" in cohort.doing.text())
    assert cohort.cancel.isVisible()
    assert not cohort.search.isEnabled()
    cohort.cancel.click()
    assert set(states(tab).values()) == {"found", "waiting"}
    settle(0.6)
    assert not cohort.cancel.isVisible()
    assert states(tab)["scan_2"] == "waiting"
    cohort.missing.click()
    until(lambda: set(states(tab).values()) == {"found"} and not cohort.now.busy)
    settle()
    assert not cohort.missing.isVisible()
    for number in (2, 3):
        row = cohort.found[f"scan_{number}"]
        cell = place(number).coarsen((2, 2, 2)).apply(landmark_worker.BLOB)
        assert np.linalg.norm(np.array(row.mark.b_mm) - cell) < 2.5
        assert row.picture.std() > 0
    similarities = [cohort.found[key].mark.similarity for key in keys_shown(tab)]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] - similarities[1] > 0.05

    # A row opens as B: where the scan is gone, its stored voxels.
    for key, own in (("scan_3", True), ("scan_2", False)):
        double_click(tab, key)
        until(lambda key=key: control.scan_b.ref.name == key)
        path = control.scan_b.ref.path
        assert (path.parent == pair.hub.scratch) == own
        shown = control.table.current
        assert (shown.name, shown.a_mm) == (mark.name, mark.a_mm)
        assert shown.b_mm == cohort.found[key].mark.b_mm
        until(lambda: pair.view is not None and pair.view.is_visible)
        model = pair.view.model
        assert model.layers[0].name == key
        assert len(model.layers[IN_B].data) == 1
        # Nothing of the scan before stretches the sliders of this one.
        low, high, _ = model.dims.range[0]
        assert high - low < 2.0 * SHAPE[0]
        assert np.allclose(model.dims.point, control.shown_in_b(shown), atol=1.1)
        all_ready(tab)  # features are those that the cohort was searched by
        tab.table.table.clearSelection()
        tab.table.table.selectRow(0)  # A goes there, though B is not open in A
        assert len(cohort.found) == 3
    assert "scan_3" not in [scan.ref.name for scan in control.b_choices()]
    # It is open in the main viewer: not opened a second time.
    double_click(tab, "scan_1")
    until(lambda: control.scan_b.ref.name == "scan_1")
    assert control.b not in control.own_b
    assert len(control.table) == 1
    assert nameless(tab) == []
    assert tab.minimumSizeHint().width() <= 320

    # Another A: what was found belongs to the other one.
    pair.swap()
    settle()
    assert not cohort.found


def test_no_store_a_broken_scan_and_back_to_open_scans(open_panel, tmp_path) -> None:
    tab = open_panel()
    cohort = tab.cohort
    click(tab, BLOBS[1])
    cohort.search.click()
    until(lambda: all(row.state == "found" for row in cohort.found.values()))
    assert [row.name for row in cohort.found.values()] == ["scan_1"]

    (tmp_path / "empty").mkdir()
    cohort.choose_store(tmp_path / "empty")
    until(lambda: "not a finished store" in tab.said.text())
    assert cohort.source.currentText() == "all open scans"
    assert len(cohort.found) == 1  # still there

    extra = patient(tmp_path, 5, "bad_memory")
    good = patient(tmp_path, 6, "good")
    cohort.choose_store(store_of([extra, good], tmp_path / "elsewhere"))
    until(lambda: "elsewhere" in cohort.source.currentText())
    cohort.search.click()
    until(lambda: len(cohort.found) == 2 and not cohort.now.busy)
    settle()
    cohort.missing.click()
    until(lambda: states(tab) == {"bad_memory": "failed", "good": "found"})
    assert "not enough memory" in cohort.found["bad_memory"].told()
    assert keys_shown(tab) == ["good", "bad_memory"]
    until(lambda: "1 failed" in tab.said.text())


def test_limits_judge_again_without_a_search(open_panel, monkeypatch) -> None:
    tab = open_panel()
    pair, table = tab.pair, tab.pair.control.table
    for blob in BLOBS:
        click(tab, blob)
    tab.cohort.search.click()
    until(lambda: all(row.state == "found" for row in tab.cohort.found.values()))
    table.set_by_hand(2, table.get(2).b_mm, 0.9)
    tab.table.table.item(2, 0).setCheckState(Qt.CheckState.Unchecked)
    assert table.get(3).reason == BY_HAND
    before = {m.id: (m.b_mm, m.similarity, m.margin, m.cycle_mm) for m in table}

    def never(*_: object) -> None:
        raise AssertionError("a change of limits must not search")

    monkeypatch.setattr(pair.searching, "search", never)
    limits = tab.limits
    assert not limits.reset.isEnabled()
    similarity = table.get(1).similarity
    limits.numbers["least_similarity"].setValue(1.0)
    assert [table.get(i).accepted for i in (1, 2, 3, 4)] == [False, True, False, False]
    assert table.get(1).reason == f"similarity {similarity:.3f} is below 1"
    assert table.get(3).reason == BY_HAND  # a person's verdict stays
    item = tab.table.table.item(0, 0)
    assert item.text() == "✚ 1"
    assert item.checkState() == Qt.CheckState.Unchecked
    assert item.foreground().color().name() == COLOURS["refused"]
    assert "1 of 4 landmarks accepted" in limits.words.text()
    assert "changed" in limits.fold.text()
    settle()
    assert not next(iter(tab.cohort.found.values())).mark.accepted
    assert tab.cohort.table.item(0, 0).text() == "✚"

    limits.numbers["least_similarity"].setValue(0.5)
    limits.numbers["least_margin"].setValue(2.0)
    assert "better than another place" in table.get(4).reason
    limits.reset.click()
    assert [table.get(i).accepted for i in (1, 2, 3, 4)] == [True, True, False, True]
    assert limits.numbers["least_margin"].value() == LandmarksConfig().least_margin
    assert limits.fold.text() == "Limits"
    after = {m.id: (m.b_mm, m.similarity, m.margin, m.cycle_mm) for m in table}
    assert str(after) == str(before)  # as text: NaN is itself
    monkeypatch.undo()

    # What is found from now on is judged by them, too.
    limits.numbers["least_margin"].setValue(2.0)
    click(tab, (6, 5, 5))
    assert not table.current.accepted
    assert "(at least 2)" in table.current.reason


def test_slicer_files_come_back_equal_through_the_panel(open_panel, tmp_path) -> None:
    tab = open_panel()
    pair, table = tab.pair, tab.pair.control.table
    for blob in (*BLOBS, (1, 2, 2)):
        click(tab, blob)
    names = ("carina", "aorta, arch", "vertebra T8", "apex", "cœur")
    for number, name in enumerate(names, 1):
        table.rename(number, name)
    z, y, x = table.get(2).b_mm
    table.set_by_hand(2, (z + 1.5, y, x - 2), 0.7)
    table.accept(3, False)
    pair.placing.table_edited()
    before = list(table)
    for axes in ("LPS", "RAS"):
        tab.files.axes.setCurrentText(axes)
        tab.files.export_to(tmp_path / f"{axes}.mrk.json")
        until(lambda axes=axes: axes in tab.said.text())
        assert "Saved 5 landmarks" in tab.said.text()
    for axes in ("LPS", "RAS"):
        for mark in list(table):
            pair.placing.delete(mark.id)
        assert len(table) == 0
        tab.files.import_from(tmp_path / f"{axes}_B.mrk.json")
        until(lambda: len(table) == 5)
        for one, other in zip(before, table, strict=True):
            assert other.name == one.name
            assert np.allclose(other.a_mm, one.a_mm, atol=1e-3)
            assert np.allclose(other.b_mm, one.b_mm, atol=1e-3)
            assert (other.accepted, other.manual) == (one.accepted, one.manual)
            for figure in ("similarity", "margin", "cycle_mm"):
                two = [getattr(m, figure) for m in (one, other)]
                assert np.allclose(*two, atol=6e-3, equal_nan=True)
    # The list of A alone holds places only: they are searched anew.
    for mark in list(table):
        pair.placing.delete(mark.id)
    tab.files.import_from(tmp_path / f"{axes}_A.mrk.json")
    until(lambda: len(table) == 5 and all(m.b_mm is not None for m in table))
    for one, other in zip(before, table, strict=True):
        assert np.allclose(other.a_mm, one.a_mm, atol=1e-3)
        assert one.manual or np.allclose(other.b_mm, one.b_mm, atol=1e-3)
