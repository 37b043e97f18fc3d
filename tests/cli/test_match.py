"""match through the command line: pairs, coordinates, a whole store."""

from __future__ import annotations

import csv
import json
import re
import shutil
import struct
from pathlib import Path

import click
import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner

from homolog.cli import cli
from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.runs.jobs import job_of
from homolog.scans.files import read_scan
from homolog.scans.points import (
    read_landmark_markups,
    read_landmarks,
    write_markups,
    write_points,
)
from homolog.scans.volume import Points

VOXELS = np.array([[14.0, 20.0, 12.0], [12.0, 22.0, 26.0], [16.0, 20.0, 20.0]])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where features are kept."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def scans(phantom_folder: Path) -> list[Path]:
    return [phantom_folder / "imagesTr" / f"phantom_00{i}_0000.nii.gz" for i in (0, 1)]


@pytest.fixture(scope="module")
def points(scans: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("points") / "p.csv"
    mm = read_scan(scans[0]).affine.apply(VOXELS)
    write_points(Points(mm, ("a", "b", "c")), path)
    return path


def run(*arguments: object) -> dict:
    outcome = CliRunner().invoke(
        cli, [str(a) for a in arguments] + ["--json", "--device", "cpu"],
        standalone_mode=False,
    )  # fmt: skip
    if outcome.exception is not None:
        raise outcome.exception
    return json.loads(outcome.stdout.splitlines()[-1])


def test_a_scan_matches_itself(scans, points, encoder, place, tmp_path):
    out = tmp_path / "m.csv"
    result = run(
        "match", scans[0], scans[0], "--points", points, "--encoder", encoder,
        "--out", out, "--features", place, "--consensus", "rigid",
        "--least-margin", 0, "--cycle-mm", 20,
    )  # fmt: skip
    marks = read_landmarks(out)
    assert [m.name for m in marks] == ["a", "b", "c"]
    assert all(m.accepted for m in marks)
    a, b = (np.array([getattr(m, n) for m in marks]) for n in ("a_mm", "b_mm"))
    assert np.abs(a - b).max() < 8.1  # half a cell
    assert result["accepted"] == 3
    assert result["consensus"]["inliers"] == 3
    row = result["matches"][0]
    assert row["z_mm"] == row["b_z_mm"] == marks[0].b_mm[0]
    assert row["voxel_z"] == row["b_voxel_z"]


def test_a_match_is_printed_as_x_y_z(scans, points, encoder, place, tmp_path):
    out = tmp_path / "m.mrk.json"
    told = CliRunner().invoke(
        cli,
        ["match", str(scans[0]), str(scans[0]), "--points", str(points), "--encoder",
         str(encoder), "--out", str(out), "--features", str(place), "--device", "cpu"],
    ).output  # fmt: skip
    marks = read_landmark_markups(out)
    stored = json.loads(out.read_text())["markups"][0]
    assert stored["coordinateSystem"] == "LPS"
    image = sitk.ReadImage(str(scans[0]))
    for mark, entry, (z, y, x) in zip(
        marks, stored["controlPoints"], VOXELS.astype(int).tolist(), strict=True
    ):
        line = next(t for t in told.splitlines() if t.startswith(f"{mark.name}: "))
        found = re.search(r"x (\S+), y (\S+), z (\S+) mm \(LPS\)", line)
        assert found, line
        numbers = [float(v) for v in found.groups()]
        np.testing.assert_allclose(numbers, entry["position"], atol=0.06)
        np.testing.assert_allclose(numbers, mark.b_mm[::-1], atol=0.06)
        # Slicer's LPS is ITK's: the true position of the voxel, half a cell apart.
        true = image.TransformIndexToPhysicalPoint((x, y, z))
        assert np.abs(np.array(entry["position"]) - true).max() < 8.1
        place_in_a = "x {}, y {}, z {} mm (LPS)".format(
            *(repr(float(v)) for v in mark.a_mm[::-1])
        )
        assert place_in_a in entry["description"]
        assert np.abs(np.array(mark.a_mm[::-1]) - true).max() < 1e-3


def test_all_ways_to_give_points_are_the_same(scans, points, encoder, place, tmp_path):
    affine = read_scan(scans[0]).affine
    mm = affine.apply(VOXELS)
    names = ("a", "b", "c")
    (tmp_path / "ras.csv").write_text(
        "name,x_mm,y_mm,z_mm\n"
        + "".join(
            f"{n},{-x!r},{-y!r},{z!r}\n"
            for n, (z, y, x) in zip(names, mm.tolist(), strict=True)
        )
    )
    (tmp_path / "voxel.csv").write_text(
        "name,z,y,x\n"
        + "".join(
            f"{n},{z},{y},{x}\n" for n, (z, y, x) in zip(names, VOXELS, strict=True)
        )
    )
    write_markups(Points(mm, names), tmp_path / "s.mrk.json", coordinates="RAS")
    common = ("--encoder", encoder, "--features", place)
    found = []
    kinds = {"ras.csv": "ras", "voxel.csv": "voxel", "s.mrk.json": None}
    ways = {points: "lps", **{tmp_path / name: kind for name, kind in kinds.items()}}
    for path, kind in ways.items():
        extra = () if kind is None else ("--coordinates", kind)
        out = tmp_path / f"{path.name}.json"
        run("match", *scans, "--points", path, "--out", out, *common, *extra)
        found.append([m.b_mm for m in read_landmarks(out)])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-3)
    slicer = tmp_path / "m.mrk.json"
    run("match", *scans, "--points", points, "--out", slicer, *common)
    np.testing.assert_allclose(
        [m.b_mm for m in read_landmark_markups(slicer)], found[0], atol=1e-6
    )


def test_limits_refuse_and_a_point_outside_is_listed(scans, encoder, place, tmp_path):
    mm = read_scan(scans[0]).affine.apply(
        np.array([VOXELS[0], [-9.0, 0, 0], [1.0, 1.0, 1.0]])
    )
    write_points(Points(mm, ("in", "off", "air")), tmp_path / "p.csv")
    result = run(
        "match", *scans, "--points", tmp_path / "p.csv", "--encoder", encoder,
        "--out", tmp_path / "m.csv", "--features", place, "--least-similarity", "1",
    )  # fmt: skip
    reasons = [row["reason"] for row in result["matches"]]
    assert "below 1" in reasons[0]
    assert "outside scan A" in reasons[1]
    assert "outside the body of A" in reasons[2]
    assert result["accepted"] == 0


def test_what_cannot_be_meant_is_refused(scans, points, encoder, tmp_path):
    common = ("--points", points, "--encoder", encoder)
    with pytest.raises(click.UsageError, match="either a second scan"):
        run("match", scans[0], *common, "--out", tmp_path / "m.csv")
    with pytest.raises(UnusableInput, match=r"\.csv, \.json or \.mrk\.json"):
        run("match", *scans, *common, "--out", tmp_path / "m.xlsx")
    (tmp_path / "none.csv").write_text("z_mm,y_mm,x_mm\n")
    with pytest.raises(UnusableInput, match="holds no points"):
        run("match", *scans, "--points", tmp_path / "none.csv", "--encoder", encoder,
            "--out", tmp_path / "m.csv")  # fmt: skip


def test_a_store_is_searched_and_a_broken_case_is_listed(
    phantom_store, scans, points, encoder, place, tmp_path
):
    store = tmp_path / "store"
    shutil.copytree(phantom_store.path, store)
    contents = json.loads((store / "store.json").read_text())
    keep, broken = list(contents["cases"])[:2], list(contents["cases"])[2]
    contents["cases"] = {n: contents["cases"][n] for n in (*keep, broken)}
    (store / "store.json").write_text(json.dumps(contents))
    card = store / "cases" / broken / "card.json"
    facts = json.loads(card.read_text())
    del facts["sha256"]
    card.write_text(json.dumps({**facts, "source": str(tmp_path / "gone.nii.gz")}))
    config = {
        "encoder": str(encoder), "scan": str(scans[0]), "points": str(points),
        "store": str(store), "out": str(tmp_path / "cohort"), "features": str(place),
        "device": "cpu", "settings": {"least_similarity": 0.1},
    }  # fmt: skip
    result = drain(job_of("match")(config, tmp_path))
    assert [c["case"] for c in result["cases"]] == keep
    assert [c["case"] for c in result["failed"]] == [broken]
    assert "gone.nii.gz" in result["failed"][0]["reason"]
    with Path(result["table"]).open() as handle:
        rows = list(csv.DictReader(handle))
    named = [(r["case"], r["name"]) for r in rows]
    assert named == [(k, n) for k in keep for n in "abc"]
    # The first case is the query scan itself.
    gaps = [
        abs(float(r[f"a_{x}_mm"]) - float(r[f"b_{x}_mm"]))
        for r in rows[:3]
        for x in "zyx"
    ]
    assert max(gaps) < 8.1
    picture = Path(result["contact_sheet"]).read_bytes()
    width, height = struct.unpack(">II", picture[16:24])
    assert width > 3 * 160
    assert height > 3 * 160
