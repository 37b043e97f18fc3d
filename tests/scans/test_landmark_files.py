"""Points and landmarks on disk: tables and 3D Slicer's lists."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from each import each
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.scans.points import (
    NAN,
    Landmark,
    read_landmark_markups,
    read_landmark_points,
    read_landmarks,
    read_markups,
    read_points,
    write_landmark_markups,
    write_landmarks,
    write_markups,
)
from homolog.scans.volume import Points

number = st.floats(-3000, 3000, allow_nan=False).map(lambda v: v + 0.0)
place = st.tuples(number, number, number)
maybe = st.one_of(st.just(NAN), st.floats(-1, 1).map(lambda v: v + 0.0))
word = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12
)
landmark = st.builds(
    Landmark, st.integers(0, 10**6), word, place, st.one_of(st.none(), place),
    maybe, maybe, maybe, st.booleans(), word, st.booleans(),
)  # fmt: skip

MARKS = [
    Landmark(1, "carina", (10.1, -20.0, 30.7), (1 / 3, 2.0, -3.5), 0.91, 0.07, 2.5,
             True),
    Landmark(4, "apex, left", (0.0, 1e-7, 5.0), (7.0, 8.0, 9.0), 0.3, 0.01, 40.0, False,
             "similarity 0.30 is below 0.5"),
    Landmark(5, "lost", (3.0, 2.0, 1.0), None, NAN, NAN, NAN, False,
             "the point lies outside scan A", True),
]  # fmt: skip


def same(a, b):
    """Equal, NaN equal to NaN."""
    return repr(a).replace("-0.0,", "0.0,") == repr(b).replace("-0.0,", "0.0,")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@given(st.lists(landmark, max_size=4), st.sampled_from(("LPS", "RAS")))
@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_a_table_comes_back_exactly(folder, ending, marks, coordinates):
    path = folder / f"table{ending}"
    write_landmarks(marks, path, coordinates=coordinates)
    back = read_landmarks(path)
    assert len(back) == len(marks)
    for a, b in zip(marks, back, strict=True):
        np.testing.assert_array_equal(a.a_mm, b.a_mm)
        assert (a.b_mm is None) == (b.b_mm is None)
        if a.b_mm is not None:
            np.testing.assert_array_equal(a.b_mm, b.b_mm)
        for name in ("similarity", "margin", "cycle_mm"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        for name in ("id", "name", "accepted", "reason", "manual"):
            assert getattr(a, name) == getattr(b, name)


def test_a_table_states_its_coordinates_and_voxels(tmp_path):
    affine = Affine.of((2.0, 3.0, 4.0), (1.0, -5.0, 6.0))
    path = tmp_path / "m.csv"
    write_landmarks(MARKS, path, coordinates="RAS", affine_b=affine)
    with path.open() as handle:
        rows = list(csv.DictReader(handle))
    assert {r["coordinates"] for r in rows} == {"RAS"}
    assert float(rows[0]["b_y_mm"]) == -2.0
    voxel = [float(rows[0][f"b_voxel_{a}"]) for a in "zyx"]
    np.testing.assert_allclose(affine.apply(voxel), MARKS[0].b_mm, atol=1e-12)
    assert rows[2]["b_z_mm"] == rows[2]["b_voxel_z"] == rows[2]["similarity"] == ""
    with pytest.raises(UnusableInput, match="states RAS coordinates"):
        read_landmarks(path, coordinates="LPS")
    with pytest.raises(UnusableInput, match=r"\.csv or \.json"):
        write_landmarks(MARKS, tmp_path / "m.txt")
    (tmp_path / "m.json").write_text("[1, 2]")
    with pytest.raises(UnusableInput, match="list 'landmarks'"):
        read_landmarks(tmp_path / "m.json")


def test_found_points_of_a_table_are_points(tmp_path):
    for kind in ("LPS", "RAS"):
        write_landmarks(MARKS, tmp_path / "m.csv", coordinates=kind)
        found = read_points(tmp_path / "m.csv")
        assert found.names == ("carina", "apex, left")
        np.testing.assert_array_equal(found.mm, [m.b_mm for m in MARKS[:2]])


def test_points_without_a_number_are_refused_by_both_readers(tmp_path):
    for text in ("nan,1,2", ",1,2", "a,1,2"):
        path = table(tmp_path / "p.csv", f"z_mm,y_mm,x_mm\n0,0,0\n{text}\n")
        for read in (read_points, read_landmark_points):
            with pytest.raises(UnusableInput, match="point 2 needs three numbers"):
                read(path)


def test_blanks_around_column_names_do_not_hide_them(tmp_path):
    path = table(tmp_path / "p.csv", "name, z_mm, y_mm, x_mm\na,1,2,3\n")
    for read in (read_points, read_landmark_points):
        np.testing.assert_array_equal(read(path).mm, [[1, 2, 3]])


@given(st.lists(place, max_size=5), st.sampled_from(("LPS", "RAS")))
def test_slicers_points_come_back(folder, places, coordinates):
    points = Points(
        np.array(places).reshape(-1, 3), tuple(f"F-{i}" for i in range(len(places)))
    )
    path = folder / "p.mrk.json"
    write_markups(points, path, coordinates=coordinates)
    back = read_markups(path)
    np.testing.assert_allclose(back.mm, points.mm, atol=1e-6)
    assert back.names == points.names
    np.testing.assert_allclose(read_landmark_points(path).mm, points.mm, atol=1e-6)
    stored = json.loads(path.read_text())["markups"][0]
    assert stored["coordinateSystem"] == coordinates
    for entry, (z, y, x) in zip(stored["controlPoints"], places, strict=True):
        sign = -1.0 if coordinates == "RAS" else 1.0
        np.testing.assert_array_equal(entry["position"], [sign * x, sign * y, z])


@pytest.mark.parametrize("coordinates", ["LPS", "RAS"])
def test_slicers_matches_come_back(tmp_path, coordinates):
    path = tmp_path / "m.mrk.json"
    write_landmark_markups(MARKS, path, coordinates=coordinates)
    back = read_landmark_markups(path)
    assert [same(a, b) for a, b in zip(MARKS, back, strict=True)] == [True] * 3
    assert len(read_markups(path).mm) == 2  # the undefined one is passed over
    entries = json.loads(path.read_text())["markups"][0]["controlPoints"]
    assert [e["selected"] for e in entries] == [True, False, False]
    assert (
        "similarity 0.9100, margin 0.0700, cycle error 2.50 mm"
        in entries[0]["description"]
    )


def test_matches_written_before_places_were_x_y_z_are_still_read(tmp_path):
    path = tmp_path / "m.mrk.json"
    write_landmark_markups(MARKS, path)
    text = path.read_text()
    for mark in MARKS:
        z, y, x = (repr(float(v)) for v in mark.a_mm)
        now = f"A at x {x}, y {y}, z {z} mm (LPS)"
        assert now in text
        text = text.replace(now, f"A at z, y, x = {z}, {y}, {x} mm LPS")
    path.write_text(text)
    back = read_landmark_markups(path)
    assert [same(a, b) for a, b in zip(MARKS, back, strict=True)] == [True] * 3


@each(
    "system, expected",
    [("LPS", (3, 2, 1)), (1, (3, 2, 1)), ("RAS", (3, -2, -1)), (0, (3, -2, -1))],
)
def test_all_ways_slicer_names_its_coordinates(tmp_path, system, expected):
    path = tmp_path / "s.mrk.json"
    points = [{"label": "F-1", "position": [1, 2, 3]},
              {"position": [0, 0, 0], "positionStatus": "undefined"}]  # fmt: skip
    markup = {"type": "Fiducial", "coordinateSystem": system, "controlPoints": points}
    path.write_text(json.dumps({"markups": [markup]}))
    found = read_markups(path)
    np.testing.assert_array_equal(found.mm, [expected])
    assert found.names == ("F-1",)


@each(
    "content",
    ["", "{}", '{"markups": 3}', '{"markups": [{"coordinateSystem": "IJK"}]}',
     '{"markups": [{"controlPoints": [{"position": [1, 2]}]}]}',
     '{"markups": [{"controlPoints": [{"position": [1, 2, "x"]}]}]}',
     '{"markups": [{"controlPoints": [{"position": [1, 2, NaN]}]}]}',
     '{"markups": [{"controlPoints": [{}]}]}'])  # fmt: skip
def test_what_is_no_list_of_slicer_is_told(tmp_path, content):
    path = tmp_path / "bad.mrk.json"
    path.write_text(content)
    with pytest.raises(UnusableInput, match=r"bad\.mrk\.json is not a list of points"):
        read_landmark_points(path)


def table(path, text):
    path.write_text(text)
    return path


def test_tables_in_any_order_and_any_coordinates(tmp_path):
    mm = table(tmp_path / "a.csv", "x_mm,name,z_mm,y_mm\n3,tip,1,2\n6,,4,5\n")
    found = read_landmark_points(mm)
    np.testing.assert_array_equal(found.mm, [[1, 2, 3], [4, 5, 6]])
    assert found.names == ("tip", "point_2")
    np.testing.assert_array_equal(
        read_landmark_points(mm, coordinates="RAS").mm, [[1, -2, -3], [4, -5, -6]]
    )
    affine = Affine.of((2.0, 3.0, 4.0), (10.0, 20.0, 30.0))
    for columns in ("z,y,x", "voxel_z,voxel_y,voxel_x"):
        voxel = table(tmp_path / "v.csv", f"{columns}\n1,2,3\n")
        for kind in (None, "voxel"):
            found = read_landmark_points(voxel, coordinates=kind, affine=affine)
            np.testing.assert_array_equal(found.mm, [[12, 26, 42]])
        with pytest.raises(UnusableInput, match="need the scan"):
            read_landmark_points(voxel)
    rows = {
        "coordinates": "RAS",
        "points": [{"name": "q", "z_mm": 1, "y_mm": 2, "x_mm": 3}],
    }
    path = table(tmp_path / "p.json", json.dumps(rows))
    np.testing.assert_array_equal(read_landmark_points(path).mm, [[1, -2, -3]])
    with pytest.raises(UnusableInput, match="states RAS"):
        read_landmark_points(path, coordinates="LPS")


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_table_of_matches_gives_its_points_of_a(tmp_path, ending):
    path = tmp_path / f"m.{ending}"
    write_landmarks(MARKS, path, coordinates="RAS")
    found = read_landmark_points(path)
    np.testing.assert_array_equal(found.mm, [m.a_mm for m in MARKS])
    assert found.names == tuple(m.name for m in MARKS)


@each(
    "name, text, words",
    [
        ("p.csv", "name,z_mm,y_mm\na,1,2\n", "must have the columns"),
        ("p.csv", "z_mm,y_mm,x_mm\n1,2,\n", "point 1 needs three numbers"),
        ("p.csv", "z_mm,y_mm,x_mm\n1,2,nan\n", "point 1 needs three numbers"),
        ("p.json", "{", "is not JSON"),
        ("p.json", '{"points": [3]}', "list of points"),
        ("p.txt", "", r"\.csv, \.tsv, \.json, \.fcsv and \.mrk\.json"),
    ],
)
def test_what_is_no_list_of_points_is_told(tmp_path, name, text, words):
    with pytest.raises(UnusableInput, match=words):
        read_landmark_points(table(tmp_path / name, text))
    with pytest.raises(UnusableInput, match="there is no"):
        read_landmark_points(tmp_path / "none.csv")
