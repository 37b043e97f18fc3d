"""FreeSurfer, zarr, TIFF with sizes and pictures of cameras, against their writers."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from each import each
from homolog.scans.files import (
    read_header,
    read_scan,
    scan_hash,
)
from homolog.scans.inspect import inspect_scan
from homolog.scans.nifti import ras_from_lps
from homolog.scans.problems import Unsound
from homolog.store.cases import scan_digest

VALUES = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)  # z, y, x


@each("kind", [np.uint8, np.int16, np.int32, np.float32])
@each("name", ["a.mgz", "a.mgh"])
def test_freesurfer_volumes_are_as_nibabel_reads_them(
    tmp_path: Path, name: str, kind: Any
) -> None:
    affine = np.array(
        [[-1.0, 0.02, 0, 9], [0, 0.1, 1.2, -4], [0.0, -2.0, 0.05, 3], [0, 0, 0, 1]]
    )
    affine[:3, :3], _ = np.linalg.qr(affine[:3, :3])
    affine[:3, :3] *= (1.0, 2.0, 1.2)
    data = VALUES.transpose(2, 1, 0).astype(kind)
    path = tmp_path / name
    nib.save(nib.MGHImage(data, affine.astype(np.float32)), path)
    whole = path.read_bytes()
    whole = gzip.decompress(whole) if name.endswith("z") else whole
    theirs = nib.MGHImage.from_bytes(whole)
    found = read_scan(path)
    assert np.array_equal(found.data[0].transpose(2, 1, 0), np.asarray(theirs.dataobj))
    assert found.data.dtype == np.dtype(kind)
    assert np.allclose(ras_from_lps(found.affine), theirs.affine[:3], atol=1e-4)
    assert inspect_scan(path).usable
    assert scan_hash(path) == inspect_scan(path).content


def test_freesurfer_volumes_that_are_damaged_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mgz"
    nib.save(nib.MGHImage(VALUES, np.eye(4, dtype=np.float32)), path)
    whole = path.read_bytes()
    for content, code in (
        (whole[:-6], "truncated"),
        (whole[:-8] + bytes(8), "corrupt"),
        (gzip.compress(gzip.decompress(whole)[:300]), "truncated"),
        (gzip.compress(b"\7" * 900), "unreadable"),
        (b"", "empty"),
    ):
        path.write_bytes(content)
        reason = inspect_scan(path).reason
        assert reason is not None
        assert reason.code == code


def ome_zarr(path: Path, version: int, **told: Any) -> None:
    """VALUES in two levels, 2 x 0.5 x 0.5 mm, as OME-Zarr."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    data = VALUES[None, None]
    for name, level in (("0", data), ("1", data[..., ::2, ::2])):
        array = group.create_array(
            name, shape=level.shape, chunks=(1, 1, 2, 6, 7), dtype=level.dtype
        )
        array[:] = level
    unit = told.get("unit", "micrometer")
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": unit} for a in "zyx"]
    scale = {"type": "scale", "scale": [1, 1, 2000.0, 500.0, 500.0]}
    shift = {"type": "translation", "translation": [0, 0, 1000.0, 0, -3000.0]}
    levels = [
        {"path": "0", "coordinateTransformations": [scale, shift]},
        {"path": "1", "coordinateTransformations": [scale]},
    ]
    scales = {"version": "0.4", "axes": axes, "datasets": levels}
    attributes = {"multiscales": [scales]}
    group.attrs.update(attributes if version == 2 else {"ome": attributes})


@each("version", [2, 3])
def test_the_finest_level_of_an_ome_zarr_is_read(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.ome.zarr"
    ome_zarr(path, version)
    found = read_scan(path)
    assert np.array_equal(found.data[0], VALUES)
    assert found.affine.spacing_mm == (2.0, 0.5, 0.5)
    assert found.affine.origin_mm == (1.0, 0.0, -3.0)
    assert found.meta["sized"]
    assert inspect_scan(path).usable
    assert scan_hash(path) == inspect_scan(path).content
    before = scan_digest(path)
    chunks = (p for p in (path / "0").rglob("*") if p.is_file() and ".z" not in p.name)
    chunk = max((p for p in chunks if p.suffix != ".json"), key=os.path.getsize)
    chunk.write_bytes(chunk.read_bytes()[:10])
    assert scan_digest(path) != before
    reason = inspect_scan(path).reason
    assert reason is not None
    assert reason.code == "corrupt"


def test_other_zarrs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr = pytest.importorskip("zarr")
    ome_zarr(tmp_path / "a.zarr", 2, unit="furlong")
    assert not read_header(tmp_path / "a.zarr").sized
    plain = tmp_path / "plain.zarr"
    zarr.save_array(str(plain), VALUES)
    assert np.array_equal(read_scan(plain).data[0], VALUES)
    assert not read_scan(plain).meta["sized"]
    zarr.save_array(str(tmp_path / "deep.zarr"), np.zeros((2, 2, 2, 2)))
    zarr.open_group(str(tmp_path / "empty.zarr"), mode="w")
    for name in ("deep.zarr", "empty.zarr"):
        assert inspect_scan(tmp_path / name).reason is not None
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(Unsound, match=r"need the package zarr: .*napari-homolog\[zarr"):
        read_scan(plain)


@each("ending", [".tif", ".png", ".bmp", ".jpg"])
def test_a_picture_cut_anywhere_is_refused_in_a_sentence(
    tmp_path: Path, ending: str
) -> None:
    whole, cut = tmp_path / f"whole{ending}", tmp_path / f"cut{ending}"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(whole)
    data = whole.read_bytes()
    assert inspect_scan(whole).usable
    for length in range(len(data) - 1 if ending == ".jpg" else len(data) - 8):
        cut.write_bytes(data[:length])
        assert not inspect_scan(cut).usable, length


def test_the_size_of_voxels_in_a_tiff(tmp_path: Path) -> None:
    ome, imagej = tmp_path / "ome.tif", tmp_path / "imagej.tif"
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    units = {f"{name}Unit": "mm" for name in sizes}
    tifffile.imwrite(
        ome, VALUES.astype(np.uint16), ome=True,
        metadata={"axes": "ZYX", **sizes, **units},
    )  # fmt: skip
    tifffile.imwrite(
        imagej, VALUES.astype(np.uint16), imagej=True, resolution=(4.0, 2.0),
        metadata={"axes": "ZYX", "spacing": 3.0, "unit": "um"},
    )  # fmt: skip
    for path, spacing in ((ome, (2.0, 0.5, 0.5)), (imagej, (0.003, 0.0005, 0.00025))):
        found = read_scan(path)
        assert np.array_equal(found.data[0], VALUES)
        assert found.affine.spacing_mm == pytest.approx(spacing)
        assert found.meta["sized"]
        assert found.meta["kind"] == "tiff"
        assert scan_hash(path) == inspect_scan(path).content


def test_tiffs_without_a_size_or_of_several_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, VALUES[0].astype(np.uint16), resolution=(300, 300))
    assert not read_scan(path).meta["sized"]  # dots per inch of a screen
    assert np.array_equal(read_scan(path).data[0, 0], VALUES[0])
    tifffile.imwrite(
        path, np.stack([VALUES, VALUES + 1]).astype(np.uint16), imagej=True,
        metadata={"axes": "TZYX"},
    )  # fmt: skip
    reason = inspect_scan(path).reason
    assert reason is not None
    assert reason.code == "4d"


@each("turn", range(1, 9))
def test_a_camera_s_picture_stands_upright(tmp_path: Path, turn: int) -> None:
    grey = np.zeros((40, 60), np.uint8)
    grey[4:12, 40:56] = 250  # in the upper right corner
    ways = {
        1: grey, 2: grey[:, ::-1], 3: grey[::-1, ::-1], 4: grey[::-1],
        5: grey.T, 6: np.rot90(grey, 1), 7: grey[::-1, ::-1].T, 8: np.rot90(grey, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / "a.jpg"
    stored = Image.fromarray(np.ascontiguousarray(ways[turn]))
    stored.save(path, quality=100, exif=exif)
    found = read_scan(path)
    assert found.shape == (1, 40, 60) == read_header(path).shape
    assert np.abs(found.data[0, 0].astype(int) - grey).max() < 40
    assert not found.meta["sized"]
    told = {p.code for p in inspect_scan(path).problems}
    assert ("turned" in told) is (turn > 1)


def test_a_picture_is_known_by_its_content(tmp_path: Path) -> None:
    grey = np.tile(np.arange(30, dtype=np.uint8) * 8, (20, 1))
    for kind, name in (("JPEG", "a.png"), ("PNG", "b.jpg"), ("TIFF", "c.bmp")):
        path = tmp_path / name
        Image.fromarray(grey).save(path, format=kind)
        found = read_scan(path)
        assert np.abs(found.data[0, 0].astype(int) - grey).max() < 9
        assert "misnamed" in {p.code for p in inspect_scan(path).problems}
    path = tmp_path / "alpha.png"
    Image.fromarray(np.stack([grey, np.full_like(grey, 255)], -1), "LA").save(path)
    assert np.array_equal(read_scan(path).data[0, 0], grey)
