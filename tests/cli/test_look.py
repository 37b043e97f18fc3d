"""embed, similarity and match through the command line, on turned scans too."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner

from homolog.cli import cli
from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.features.files import open_features, trim
from homolog.scans.files import read_scan
from homolog.scans.points import read_points, write_points
from homolog.scans.volume import Points, Volume, reorder_axes
from homolog.scans.write import write_volume

POINT = (14.0, 20.0, 12.0)  # voxel z, y, x


@pytest.fixture(scope="module")
def scan(phantom_folder: Path) -> Path:
    return phantom_folder / "imagesTr" / "phantom_000_0000.nii.gz"


@pytest.fixture(scope="module")
def turned(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scan stored with other axes in other directions."""
    volume = read_scan(scan)
    axes, flips = (2, 0, 1), (True, False, True)
    data = np.ascontiguousarray(reorder_axes(volume.data, axes, flips))
    affine = volume.affine.reorient(axes, flips, volume.shape)
    path = tmp_path_factory.mktemp("turned") / "turned.nii.gz"
    write_volume(Volume(data, affine, "turned", "CT"), path)
    return path


def run(*arguments: object) -> dict:
    outcome = CliRunner().invoke(
        cli, [str(a) for a in arguments] + ["--json", "--device", "cpu"],
        standalone_mode=False,
    )  # fmt: skip
    if outcome.exception is not None:
        raise outcome.exception
    return json.loads(outcome.stdout.splitlines()[-1])


def text(values: object) -> str:
    return ",".join(f"{float(v):.6f}" for v in values)  # type: ignore[attr-defined]


def test_embed_writes_unit_features_where_they_belong(scan, encoder, tmp_path):
    result = run("embed", scan, "--encoder", encoder, "--out", tmp_path, "--pca")
    (entry,) = result["features"]
    features = open_features(Path(entry["card"]))
    assert features.data.shape == (24, 16, 20, 20)
    lengths = np.linalg.norm(np.asarray(features.data, np.float32), axis=0)
    np.testing.assert_allclose(lengths, 1.0, atol=5e-3)
    volume = read_scan(scan)
    expected = volume.affine.coarsen((2, 2, 2))
    np.testing.assert_allclose(features.affine.matrix, expected.matrix, atol=1e-9)
    colours = stored_channels(Path(entry["pca"]))
    assert colours[0] == (3, *volume.shape)
    assert not entry["reused"]
    assert not list(tmp_path.glob("*.part"))


def stored_channels(path: Path) -> tuple[tuple[int, ...], str]:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    data = sitk.GetArrayFromImage(image)
    return (data.shape[-1], *data.shape[:-1]), image.GetPixelIDTypeAsString()


def test_the_same_is_never_embedded_twice(scan, encoder, tmp_path):
    first = run("embed", scan, "--encoder", encoder, "--out", tmp_path)
    array = Path(first["features"][0]["features"])
    stamp = array.stat().st_mtime_ns
    again = run("embed", scan, "--encoder", encoder, "--out", tmp_path)
    assert again["features"][0]["reused"]
    assert array.stat().st_mtime_ns == stamp
    other = run(
        "embed", scan, "--encoder", encoder, "--out", tmp_path, "--strides", "4"
    )
    assert not other["features"][0]["reused"]
    assert other["features"][0]["shape"] == [8, 10, 10]


def test_a_damaged_feature_card_is_told(scan, encoder, tmp_path):
    result = run("embed", scan, "--encoder", encoder, "--out", tmp_path)
    card = Path(result["features"][0]["card"])
    card.write_text(card.read_text()[:100])
    with pytest.raises(UnusableInput, match="not the card of a feature map"):
        open_features(card)


def test_similarity_peaks_at_the_point_itself(scan, encoder, tmp_path):
    out = tmp_path / "heat.nii.gz"
    result = run(
        "similarity", scan, "--point", text(POINT), "--voxel", "--encoder", encoder,
        "--out", out, "--features", tmp_path,
    )  # fmt: skip
    volume, heat = read_scan(scan), read_scan(out)
    assert heat.shape == volume.shape
    np.testing.assert_allclose(heat.affine.matrix, volume.affine.matrix, atol=1e-5)
    values = heat.data[0]
    assert -1 <= values.min() < values.max() <= 1
    # A cell is two voxels wide.
    assert np.abs(np.array(result["match"]["voxel"]) - POINT).max() <= 1.5
    assert result["match"]["similarity"] > 0.98
    assert values[14, 20, 12] > np.percentile(values, 99)


def test_mm_and_voxel_name_the_same_point(scan, encoder, tmp_path):
    mm = read_scan(scan).affine.apply(np.array(POINT))
    common = ("--encoder", encoder, "--features", tmp_path)
    a = run(
        "similarity", scan, "--point", text(POINT), "--voxel",
        "--out", tmp_path / "a.nii.gz", *common,
    )  # fmt: skip
    b = run(
        "similarity", scan, "--point", text(mm), "--out", tmp_path / "b.nii.gz", *common
    )
    np.testing.assert_allclose(a["point"]["mm"], b["point"]["mm"], atol=1e-5)
    np.testing.assert_allclose(a["match"]["mm"], b["match"]["mm"], atol=1e-3)


def test_similarity_lies_on_the_anatomy_of_a_turned_scan(
    scan, turned, encoder, tmp_path
):
    straight, other = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    common = ("--voxel", "--encoder", encoder, "--features", tmp_path)
    run("similarity", scan, "--point", text(POINT), "--out", straight, *common)
    result = run(
        "similarity", scan, "--point", text(POINT), "--in", turned,
        "--out", other, *common,
    )  # fmt: skip
    heat = read_scan(other)
    volume = read_scan(turned)
    assert heat.shape == volume.shape
    np.testing.assert_allclose(heat.affine.matrix, volume.affine.matrix, atol=1e-5)
    expected = reorder_axes(read_scan(straight).data, (2, 0, 1), (True, False, True))
    np.testing.assert_allclose(heat.data, expected, atol=2e-3)
    # The match, told in mm, is the point; told in voxels, it is one of the turned scan.
    mm = read_scan(scan).affine.apply(np.array(POINT))
    assert np.abs(np.array(result["match"]["mm"]) - mm).max() <= 12.0
    index = volume.affine.inverse().apply(np.array(result["match"]["mm"]))
    np.testing.assert_allclose(result["match"]["voxel"], index, atol=1e-4)


def test_a_point_in_the_turned_scans_own_voxels_is_found(turned, encoder, tmp_path):
    volume = read_scan(turned)
    voxel = [n // 2 for n in volume.shape]
    result = run(
        "similarity", turned, "--point", text(voxel), "--voxel", "--encoder", encoder,
        "--out", tmp_path / "h.nrrd", "--features", tmp_path,
    )  # fmt: skip
    np.testing.assert_allclose(
        result["point"]["mm"], volume.affine.apply(np.array(voxel)), atol=1e-5
    )
    assert np.abs(np.array(result["match"]["voxel"]) - voxel).max() <= 1.5


@pytest.mark.parametrize("point", ["-1,20,12", "14,40,12", "14,20,1000"])
def test_points_outside_are_refused_before_anything_is_computed(
    scan, encoder, tmp_path, point
):
    out = tmp_path / "heat.nii.gz"
    with pytest.raises(UnusableInput, match="lies outside"):
        run(
            "similarity", scan, "--point", point, "--voxel", "--encoder", encoder,
            "--out", out, "--features", tmp_path / "features",
        )  # fmt: skip
    assert not out.exists()
    assert not (tmp_path / "features").exists()


def test_a_printed_place_is_x_y_z_and_can_be_given_back(scan, encoder, tmp_path):
    index = (5, 9, 16)  # x, y, z as ITK counts
    true = sitk.ReadImage(str(scan)).TransformIndexToPhysicalPoint(index)
    given = "x={}, y={}, z={}".format(*true)
    common = ("--encoder", encoder, "--features", tmp_path, "--out")
    told = printed("similarity", scan, "--point", given, *common, tmp_path / "a.nrrd")
    found = re.search(
        r"best match at (x (\S+), y (\S+), z (\S+) mm \(LPS\)), voxel (.+):", told
    )
    assert found, told
    place, *numbers, voxel = found.groups()
    assert np.abs(np.array(numbers, float) - true).max() < 8.1  # half a cell
    z, y, x = (n for n in true[::-1])
    by_voxel = ("--voxel", "--point", voxel)
    for number, point in enumerate((("--point", place), by_voxel)):
        again = run("similarity", scan, *point, *common, tmp_path / f"{number}.nrrd")
        assert again["axes"] == "z, y, x of LPS"
        assert np.abs(np.array(again["point"]["mm"]) - (z, y, x)).max() < 8.2
    with pytest.raises(UnusableInput, match=r"x \S+, y \S+, z 5000.0 mm \(LPS\)"):
        run(
            "similarity", scan, "--point", f"y={y}, z=5000, x={x}", *common,
            tmp_path / "n.nrrd",
        )  # fmt: skip


@pytest.mark.parametrize("point", ["1,2", "nan,1,2", "x=1,y=2", "1,2,inf", "x,y,z"])
def test_a_point_that_is_no_place_is_told(scan, encoder, tmp_path, point):
    with pytest.raises(ConfigError, match="three numbers z,y,x, or each with its axis"):
        run(
            "similarity", scan, "--point", point, "--encoder", encoder,
            "--out", tmp_path / "h.nrrd",
        )  # fmt: skip


def printed(*arguments: object) -> str:
    outcome = CliRunner().invoke(cli, [str(a) for a in arguments] + ["--device", "cpu"])
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_missing_scan_is_told(encoder, tmp_path):
    with pytest.raises(FileNotFoundError):
        run("embed", tmp_path / "no.nii.gz", "--encoder", encoder, "--out", tmp_path)


def test_points_are_found_in_the_turned_scan(scan, turned, encoder, tmp_path):
    volume = read_scan(scan)
    places = volume.affine.apply(np.array([POINT, (8.0, 22.0, 26.0)]))
    write_points(Points(places, ("liver", "other")), tmp_path / "p.csv")
    result = run(
        "match", scan, turned, "--points", tmp_path / "p.csv", "--encoder", encoder,
        "--out", tmp_path / "m.csv", "--features", tmp_path,
    )  # fmt: skip
    found = read_points(tmp_path / "m.csv")
    assert found.names == ("liver", "other")
    assert np.abs(found.mm - places).max() <= 12.0  # cells of 16 mm
    with (tmp_path / "m.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"similarity", "margin", "cycle_mm", "b_voxel_z"} <= set(rows[0])
    assert float(rows[0]["cycle_mm"]) <= 24.0
    index = read_scan(turned).affine.inverse().apply(found.mm)
    told = [[float(r[f"b_voxel_{a}"]) for a in "zyx"] for r in rows]
    np.testing.assert_allclose(told, index, atol=1e-3)
    assert len(result["matches"]) == 2


def test_the_cache_forgets_the_longest_unused(scan, encoder, tmp_path):
    import os

    for strides in ("2", "4"):
        run(
            "embed", scan, "--encoder", encoder, "--out", tmp_path, "--strides", strides
        )
    arrays = sorted(tmp_path.glob("*.npy"), key=lambda p: p.stat().st_size)
    os.utime(arrays[1], (1, 1))
    trim(tmp_path, arrays[0].stat().st_size)
    assert sorted(tmp_path.glob("*.npy")) == [arrays[0]]
    assert len(list(tmp_path.glob("*.json"))) == 1
