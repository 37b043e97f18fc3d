"""What the landmark panel decides: pairs, trust, files, fits. No Qt, no napari."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from explore_files import feature_map, tilted, unit_features

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.gui.autosave import saved_work
from homolog.gui.beside.second_view import cross_lines, within
from homolog.gui.landmarks.cohort import Row, best_first, find_in, patch, summary
from homolog.gui.landmarks.control import (
    BY_HAND,
    COLOURS,
    COMPUTE,
    IN_3D,
    ONE_SCAN,
    READY,
    SYMBOLS,
    LandmarksControl,
    LandmarkTable,
    free_name,
    kept,
    number_text,
    place_text,
    put_back,
    read_marks,
    split_name,
    write_marks,
)
from homolog.gui.landmarks.searching import (
    Sides,
    follow,
    search_points,
    similarity_between,
)
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.layers import ScanRef
from homolog.gui.shared.scans import NO_MODEL, NO_SCAN, Ready, Scan
from homolog.landmarks.config import LandmarksConfig
from homolog.scans.points import (
    NAN,
    Landmark,
    read_landmark_markups,
    read_markups,
    write_points,
)
from homolog.scans.volume import Points

SHAPE, CELLS = (12, 16, 20), (6, 8, 10)
BLOBS = [(2, 3, 4), (1, 6, 7), (4, 2, 2), (3, 5, 8)]
THERE = [(4, 6, 2), (2, 2, 8), (1, 4, 4), (3, 1, 5)]


def model() -> ModelChoice:
    return ModelChoice(Path("/models/run"), "run", "encoder", "resunet")


def scan(key: str, origin=(0.0, 0.0, 0.0), degrees: float = 0.0) -> Scan:
    true = Affine.of((2, 2, 2), origin, tilted(degrees) if degrees else None)
    grid = Affine.of((2, 2, 2), origin)
    ref = ScanRef(key, Path(f"/{key}.nii.gz"), "CT", SHAPE, (2.0, 2.0, 2.0))
    return Scan(key, ref, true @ grid.inverse(), grid)


def ready(made: Scan, blobs) -> Ready:
    data = unit_features(CELLS)  # the rest of the body is alike
    for number, blob in enumerate(blobs):
        data[blob] = np.eye(16)[number]
    cells = (made.to_true @ made.grid).coarsen((2, 2, 2))
    return Ready.of(feature_map(data, cells), made.to_true)


def layer_of(made: Scan):
    """A layer without napari: warm body everywhere but the outermost voxels."""
    data = np.full(SHAPE, -1000, np.int16)
    data[1:-1, 1:-1, 1:-1] = 40
    data[6, 8, 10] = 300
    return SimpleNamespace(
        data=data, scale=(2.0,) * 3, translate=made.grid.origin_mm, name=made.key,
        metadata={"homolog": {"modality": "CT"}}, contrast_limits=(-150.0, 250.0),
    )  # fmt: skip


@pytest.fixture
def pair() -> LandmarksControl:
    """Two patients far apart, the second tilted, with the same four blobs."""
    control = LandmarksControl()
    control.book.choose_encoder(model())
    a, b = scan("a"), scan("b", (300.0, -80.0, 40.0), 20.0)
    control.book.set_scans([a, b])
    control.settle()
    control.book.found("a", ready(a, BLOBS))
    control.book.found("b", ready(b, THERE))
    return control


def sides(control: LandmarksControl):
    made = Sides()
    return [
        replace(made.of(s, s.ready, layer_of(s)), body=None)
        for s in (control.scan_a, control.scan_b)
    ]


def mark(number: int, **changes) -> Landmark:
    found = Landmark(number, f"m{number}", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 0.9, 0.1,
                     2.0, True)  # fmt: skip
    return replace(found, **changes)


def test_hints_instead_of_silence(pair) -> None:
    control = LandmarksControl()
    assert control.hint().text == NO_MODEL
    control.book.choose_encoder(model())
    assert control.hint().text == NO_SCAN
    a = scan("a")
    control.book.set_scans([a])
    control.settle()
    assert (control.hint().text, control.hint().action) == (ONE_SCAN, "file")
    control.book.set_scans([a, scan("b", (300.0, 0.0, 0.0))])
    control.settle()
    assert "Looking" in control.hint().text
    for one in control.book.scans.values():
        one.state = "none"
    assert (control.hint().text, control.hint().action) == (COMPUTE, "compute")
    assert control.to_compute() == ["a", "b"]
    a.state = "computing"
    assert "go on working" in control.hint().text
    assert not control.is_ready
    assert pair.is_ready
    assert pair.hint().text == READY
    assert pair.hint(3).text == IN_3D


def test_pairs_are_chosen_swapped_and_kept(pair) -> None:
    assert (pair.a, pair.b) == ("a", "b")
    pair.table.add((1.0, 2.0, 3.0))
    assert pair.swap()
    assert (pair.a, pair.b, len(pair.table)) == ("b", "a", 0)
    pair.swap()
    assert len(pair.table) == 1
    pair.own_b = {"b"}
    assert not pair.swap()
    assert [s.key for s in pair.a_choices()] == ["a"]
    pair.book.set_scans([pair.scan_a])
    assert pair.settle()
    assert pair.b == ""
    # Opened again under another key: the landmarks belong to the files.
    again = scan("b", (300.0, -80.0, 40.0), 20.0)
    again.key = "b2"
    pair.own_b = set()
    pair.book.set_scans([pair.scan_a, again])
    pair.settle()
    assert (pair.b, len(pair.table)) == ("b2", 1)


def test_blobs_are_found_in_the_tilted_patient_and_lead_back(pair) -> None:
    a, b = sides(pair)
    for blob in BLOBS:
        shown = pair.scan_a.ready.shown.apply(blob)
        place = pair.place_in_a(shown)
        assert np.allclose(place, pair.scan_a.ready.features.affine.apply(blob))
        pair.table.add(place)
    found = search_points(a, b, list(pair.table))
    for one, there in zip(found, THERE, strict=True):
        true = pair.scan_b.ready.features.affine.apply(there)
        assert np.linalg.norm(np.array(one.b_mm) - true) < 2.5
        assert one.similarity == pytest.approx(1, abs=3e-3)
        assert one.accepted
        assert one.cycle_mm < 3
        assert pair.table.found(one.id, one)
    table = pair.table
    assert {table.trust(m) for m in table} == {"sure"}
    shown = pair.shown_in_b(table.get(1))
    assert pair.scan_b.holds(shown)
    assert pair.near_in_b(shown + 1.0, 3.0).id == 1
    assert pair.near_in_b(shown + 900.0, 3.0) is None
    marks = pair.marks("b")
    assert [m.text for m in marks] == ["1", "2", "3", "4"]
    assert [m.text for m in pair.marks("a")] == ["1", "2", "3", "4"]
    mm, similarity = follow(a, b, np.array(table.get(2).a_mm))
    assert np.allclose(mm, table.get(2).b_mm)
    assert similarity == pytest.approx(1, abs=3e-3)
    assert follow(a, b, np.array([900.0, 0, 0])) is None
    low = similarity_between(a, b, table.get(1).a_mm, table.get(2).b_mm)
    assert low < 0.5
    assert math.isnan(similarity_between(a, b, (900.0, 0.0, 0.0), table.get(1).b_mm))
    assert pair.place_in_a(np.array([900.0, 0, 0])) is None


def test_what_a_person_set_outlives_every_search() -> None:
    table = LandmarkTable()
    one, two = table.add((1.0, 2.0, 3.0)), table.add((4.0, 5.0, 6.0), "  carina ")
    assert (one.name, two.name, table.chosen) == ("point 1", "carina", 2)
    assert table.trust(one) == "searching"
    table.set_by_hand(1, (9.0, 9.0, 9.0), 0.4)
    assert not table.found(1, mark(1))
    assert table.get(1).b_mm == (9.0, 9.0, 9.0)
    assert table.get(1).manual
    assert table.trust(table.get(1)) == "manual"
    assert [m.id for m in table.to_search()] == [2]
    assert table.found(2, mark(7, name="other", a_mm=(0.0, 0.0, 0.0)))
    assert (table.get(2).name, table.get(2).a_mm) == ("carina", (4.0, 5.0, 6.0))
    table.accept(2, False)
    assert table.get(2).reason == BY_HAND
    table.found(2, mark(2, similarity=0.99))
    assert not table.get(2).accepted  # the verdict stays, the figures are new
    assert table.get(2).similarity == 0.99
    table.rename(2, "  ")
    assert table.get(2).name == "carina"
    table.delete(2)
    assert table.chosen == 1
    assert not table.found(2, mark(2))  # deleted while it was searched
    assert table.add((0.0, 0.0, 0.0)).id == 3  # a number is never given twice
    table.lost(3, "the disk is gone")
    assert table.get(3).reason == "the disk is gone"


def test_next_uncertain_goes_round_the_unsure_then_the_refused() -> None:
    table = LandmarkTable()
    refused = replace(mark(5), accepted=False, reason="similarity 0.2 is below 0.5")
    table.restore([mark(1), mark(2, margin=0.015), mark(3, margin=0.001)])
    table.restore([mark(4, cycle_mm=9.0), refused, mark(6, manual=True, margin=NAN)])
    table.restore([mark(7, accepted=False, reason=BY_HAND)])
    seen = []
    for _ in range(5):
        table.chosen = table.next_uncertain()
        seen.append(table.chosen)
    assert seen == [3, 2, 4, 5, 3]
    table.accept(3, True)
    assert 3 not in table.uncertain()
    shapes = [SYMBOLS[table.trust(table.get(n))] for n in (1, 2, 5, 6)]
    assert shapes == ["disc", "diamond", "cross", "square"]
    assert len({COLOURS[table.trust(table.get(n))] for n in (1, 2, 5, 6)}) == 4
    assert LandmarkTable().next_uncertain() is None


def test_a_fit_flags_outliers_and_tells_its_errors(pair) -> None:
    rng = np.random.default_rng(0)
    table = pair.table
    a = rng.uniform(-100, 100, (8, 3))
    for number, place in enumerate(a, start=1):
        there = place + (300, -80, 40) + (90 if number == 5 else 0)
        table.restore([mark(number, a_mm=tuple(place), b_mm=tuple(there))])
    told = pair.fit("rigid")
    assert "RMS 0.0 mm" in told
    assert "leave-one-out" in told
    assert "Outliers: 5" in told
    assert table.trust(table.get(5)) == "unsure"
    assert 5 in table.uncertain()
    for number in range(3, 9):
        table.delete(number)
    assert pair.fit("affine").startswith("No affine fit")
    assert not table.outliers


def test_files_come_back_and_none_is_replaced(tmp_path: Path) -> None:
    marks = [mark(1, name="carina"), mark(2, b_mm=None, accepted=False, reason="air")]
    for axes in ("LPS", "RAS"):
        for ending in (".csv", ".json"):
            (file,) = write_marks(marks, tmp_path / f"m{axes}{ending}", axes)
            back = read_marks(file, None)
            assert [m.name for m in back] == ["carina", "m2"]
            assert np.allclose(back[0].b_mm, marks[0].b_mm)
            assert back[1].b_mm is None
            assert axes in file.read_text()
        in_a, in_b = write_marks(marks, tmp_path / f"s{axes}.mrk.json", axes)
        assert np.allclose(read_markups(in_a).mm, [m.a_mm for m in marks])
        assert np.allclose(read_landmark_markups(in_b)[0].b_mm, marks[0].b_mm)
        assert json.loads(in_b.read_text())["markups"][0]["coordinateSystem"] == axes
    before = (tmp_path / "mLPS.csv").read_bytes()
    (again,) = write_marks(marks[:1], tmp_path / "mLPS.csv", "LPS")
    assert again.name == "mLPS_v2.csv"
    assert (tmp_path / "mLPS.csv").read_bytes() == before
    assert split_name(Path("x.mrk.json")) == ("x", ".mrk.json")
    assert split_name(Path("plain")) == ("plain", ".csv")
    assert free_name(tmp_path, "sRAS", ["_A.mrk.json"])[0].name == "sRAS_v2_A.mrk.json"
    with pytest.raises(UnusableInput, match="no landmarks"):
        write_marks([], tmp_path / "none.csv", "LPS")


def test_plain_points_are_places_in_a_to_be_searched(tmp_path: Path) -> None:
    write_points(Points(np.array([[1.0, 2, 3]]), ("apex",)), tmp_path / "p.csv")
    (found,) = read_marks(tmp_path / "p.csv", None)
    assert (found.name, found.a_mm, found.b_mm) == ("apex", (1.0, 2.0, 3.0), None)
    table = LandmarkTable()
    table.add((0.0, 0.0, 0.0))
    (added,) = table.restore([found])
    assert added.id == 2
    (tmp_path / "bad.csv").write_text("name,size\nx,3\n")
    with pytest.raises(UnusableInput):
        read_marks(tmp_path / "bad.csv", None)


def test_patches_show_the_same_millimetres() -> None:
    data = np.zeros((5, 40, 60), np.int16)
    data[2, 20, 30] = 100
    data[2, 20, 34] = 100
    grid = Affine.of((4, 2, 1), (10, 20, 30))
    shown = grid.apply((2, 20, 30))
    picture = patch(data, grid, shown, (0.0, 100.0), side_px=33, mm_per_px=1.0)
    assert picture.shape == (33, 33)
    assert picture[16, 16] == 255
    assert picture[16, 20] == 255  # 4 voxels of 1 mm
    assert picture[16, 12] == 0
    corner = patch(data, grid, grid.apply((2, 0, 0)), (0.0, 100.0), side_px=33)
    assert corner[0, 0] == 24  # outside the scan
    assert corner[20, 20] == 0
    side = patch(data, grid, shown, (0.0, 100.0), axis=2, side_px=9, mm_per_px=2.0)
    assert side[4, 4] == 255
    coarse = patch(data[::1], grid, shown, (0.0, 100.0), side_px=9, mm_per_px=4.0)
    assert coarse[4, 4] == 255


def test_the_cross_can_be_seen_in_every_plane_and_leaves_the_place_free() -> None:
    middle = np.array([10.0, 20.0, 30.0])
    lines = cross_lines(middle, 4.0, (2.0, 2.0, 2.0))
    for hidden in range(3):
        for place in (middle[hidden] - 0.99, middle[hidden] + 0.99):
            near = lines[np.abs(lines[:, 0, hidden] - place) <= 1.0]
            flat = near[near[:, 1, hidden] == 0]
            assert len(flat) >= 4
    assert (np.linalg.norm(lines[:, 0] - middle, axis=1) >= 4.0).all()
    cut = within(cross_lines(np.zeros(3), 4.0, (2.0, 2.0, 2.0)), scan("a"))
    ends = np.concatenate([cut[:, 0], cut.sum(axis=1)])
    assert ends.min() >= 0
    assert ends.max() == 14.0  # as far as the cross reaches, inside the scan


def test_a_landmark_in_another_scan_of_the_cohort(pair) -> None:
    a, b = pair.scan_a, pair.scan_b
    place = pair.place_in_a(a.ready.shown.apply(BLOBS[0]))
    one = pair.table.add(place)
    made = Sides()
    found, picture = find_in(
        made, (a, a.ready, layer_of(a)), (b, b.ready, layer_of(b)), one
    )
    assert found.accepted
    assert picture.shape == (64, 64)
    assert len(np.unique(picture)) > 1
    assert Row("b", "b", mark=found).told() == "accepted"
    assert "Compute missing" in Row("b", "b", "waiting").told()


def test_rows_stand_the_most_similar_first_and_are_judged_again() -> None:
    rows = [
        Row("a", "a", "waiting"),
        Row("b", "b", "found", mark(1, similarity=0.6)),
        Row("c", "c", "failed", words="no memory"),
        Row("d", "d", "found", mark(1, similarity=0.9, accepted=False, reason="x")),
        Row("e", "e", "found", mark(1, b_mm=None, similarity=NAN, accepted=False)),
    ]
    assert [row.key for row in best_first(rows)] == ["d", "b", "a", "c", "e"]
    assert summary(rows) == "1 of 5 scans accepted, 1 without features, 1 failed"
    assert [row.trust for row in rows[2:4]] == ["refused", "refused"]
    for row in rows:
        row.judge(LandmarksConfig(least_similarity=0.7))
    assert [bool(r.mark and r.mark.accepted) for r in rows] == [
        False, False, False, True, False
    ]  # fmt: skip
    assert "below 0.7" in rows[1].told()


def test_other_limits_judge_all_pairs_but_not_what_a_person_decided(pair) -> None:
    far = {"cycle_mm": 12.0, "accepted": False, "reason": "leads back 12 mm"}
    pair.table.restore(
        [mark(1), mark(2, **far), mark(3, **far), mark(4, manual=True, **far)]
    )
    pair.table.accept(3, False)
    other = pair.tables.setdefault(("/x", "/y"), LandmarkTable())
    other.restore([mark(1, **far)])

    def accepted() -> list[bool]:
        return [m.accepted for m in pair.table]

    pair.set_limits(LandmarksConfig(largest_cycle_mm=15.0))
    assert accepted() == [True, True, False, False]
    assert other.get(1).accepted
    assert pair.table.get(2).reason == ""
    assert pair.table.trust(pair.table.get(2)) == "unsure"
    pair.set_limits(LandmarksConfig(least_similarity=0.95))
    assert accepted() == [False, False, False, False]
    assert pair.table.get(3).reason == BY_HAND
    pair.set_limits(LandmarksConfig())
    assert accepted() == [True, False, False, False]


def test_figures_in_words() -> None:
    assert number_text(NAN) == "–"
    assert number_text(0.126, 2) == "0.13"
    assert place_text(None) == "–"
    assert place_text((3.0, -2.25, 1.0)) == "1.0, -2.2, 3.0"  # x, y, z


def test_landmarks_outlive_a_crash(pair, tmp_path: Path) -> None:
    pair.table.restore([mark(1, name="carina"), mark(3, b_mm=None, margin=NAN)])
    pair.table.set_by_hand(3, (7.0, 8.0, 9.0))
    content = {"labels": [], "scans": ["/a.nii.gz"], "landmarks": kept(pair)}
    work = saved_work.SavedWork()
    work.write(tmp_path, content, [])
    assert saved_work.left_behind(tmp_path) == []  # its window lives
    folder = work.folder
    (folder / saved_work.LOCK).rename(folder / "lock-of-a-dead-one")
    (left,) = saved_work.left_behind(tmp_path)
    assert left.sentence().startswith("Landmarks of")
    control = LandmarksControl()
    assert put_back(control, left.landmarks) == 2
    control.book, control.a, control.b = pair.book, "a", "b"
    assert [m.name for m in control.table] == ["carina", "m3"]
    assert control.table.get(3).manual
    assert control.table.get(3).b_mm == (7.0, 8.0, 9.0)
    assert control.table.get(1).a_mm == (1.0, 2.0, 3.0)
    assert math.isnan(control.table.get(3).margin)
    assert control.table.add((0.0, 0.0, 0.0)).id == 4
    saved_work.settle(left, [], [])
    assert saved_work.left_behind(tmp_path) == []
