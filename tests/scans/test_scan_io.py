"""Scans keep their values and their place through every format and orientation."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from each import each
from homolog.errors import JobError, UnusableInput
from homolog.geometry.affine import Affine
from homolog.scans.dicom.format import dicom_scans
from homolog.scans.files import (
    read_header,
    read_labels,
    read_scan,
    scan_hash,
)
from homolog.scans.inspect import inspect_scan
from homolog.scans.paths import is_scan_path, series_path
from homolog.scans.problems import Unsound
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from scan_faults import dicom_series, directions, image, mask, nifti, put, values

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def itk_affine(picture: sitk.Image) -> np.ndarray:
    matrix = np.eye(4)
    turned = np.reshape(picture.GetDirection(), (3, 3)) * picture.GetSpacing()
    matrix[:3, :3] = turned[::-1, ::-1]
    matrix[:3, 3] = picture.GetOrigin()[::-1]
    return matrix


def same_place(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def nifti_affine_as_nibabel(path: Path) -> np.ndarray:
    """Sform, else qform, else None of a plain little-endian file: nibabel's order."""
    raw = path.read_bytes()[:348]
    assert np.frombuffer(raw, "<i2", 1, 254)[0] > 0
    ras = np.frombuffer(raw, "<f4", 12, 280).reshape(3, 4).astype(float)
    lps = np.diag([-1, -1, 1]) @ ras
    matrix = np.eye(4)
    matrix[:3, :3] = lps[::-1, 2::-1]
    matrix[:3, 3] = lps[::-1, 3]
    return matrix


@each("suffix", SUFFIXES)
def test_every_orientation_survives_writing_and_both_readers_agree(
    suffix: str, tmp_path: Path
) -> None:
    data = values((3, 4, 5))[None]
    path = tmp_path / f"a{suffix}"
    for turned in directions():
        affine = Affine.of((5.5, 1.3, 0.7123456789), (-123.456789, 77.1, 33.3), turned)
        write_volume(Volume(data, affine), path)
        back = read_scan(path)
        np.testing.assert_array_equal(back.data, data)
        same_place(back.affine.matrix, affine.matrix)
        picture = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(picture), data[0])
        np.testing.assert_allclose(
            itk_affine(picture), affine.matrix, rtol=0, atol=1e-5
        )
        if suffix == ".nii":
            other = nifti_affine_as_nibabel(path)
            same_place(other, affine.matrix)


def test_reading_agrees_with_simpleitk_in_every_orientation(tmp_path: Path) -> None:
    for number, turned in enumerate(directions()):
        for suffix in SUFFIXES:
            path = tmp_path / f"{number}{suffix}"
            sitk.WriteImage(
                image(values((3, 4, 5)), (0.7, 1.3, 5.5), turned), str(path)
            )
            volume = read_scan(path)
            picture = sitk.ReadImage(str(path))
            np.testing.assert_array_equal(
                volume.data[0], sitk.GetArrayFromImage(picture)
            )
            expected = itk_affine(picture)
            np.testing.assert_allclose(
                volume.affine.matrix, expected, rtol=0, atol=1e-5
            )


def test_a_label_map_of_a_nifti_scan_gets_its_very_header_back(tmp_path: Path) -> None:
    srow = np.array([[-0.7, 0, 0.1, 1e3 / 3], [0, 1.1, 0, -7e2 / 3], [0.1, 0, 3, 0.1]])
    u, _, v = np.linalg.svd(srow[:, :3] / np.linalg.norm(srow[:, :3], axis=0))
    srow[:, :3] = (u @ v) * np.array([0.7, 1.1, 3.3])
    scan = put(
        tmp_path / "a.nii",
        nifti(values(), srow=srow, pixdim=(0.7, 1.1, 3.3), order=">"),
    )
    volume = read_scan(scan)
    labels = LabelMap(mask(), volume.affine, meta=volume.meta)
    write_labels(labels, tmp_path / "b.nii")
    ours, theirs = (tmp_path / "b.nii").read_bytes(), scan.read_bytes()
    before = np.frombuffer(theirs, ">f4", 12, 280)
    np.testing.assert_array_equal(np.frombuffer(ours, "<f4", 12, 280), before)
    assert np.frombuffer(ours, "<i2", 2, 252).tolist() == [0, 1]
    # A map that was moved gets its own transform instead.
    moved = LabelMap(mask(), volume.affine.crop((1, 0, 0)), meta=volume.meta)
    write_labels(moved, tmp_path / "c.nii")
    back = read_header(tmp_path / "c.nii").affine
    np.testing.assert_allclose(back.matrix, moved.affine.matrix, rtol=1e-6, atol=1e-4)


def test_nifti_2_and_big_endian_read_alike(tmp_path: Path) -> None:
    data = values()
    srow = np.array([[-2, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7.0]])
    size = (2, 3, 4)
    first = put(tmp_path / "a.nii", nifti(data, srow=srow, pixdim=size))
    other = put(
        tmp_path / "b.nii.gz", nifti(data, srow=srow, pixdim=(2, 3, 4), order=">")
    )
    second = put(tmp_path / "c.nii", nifti2(data, srow, size))
    a, b, c = read_scan(first), read_scan(other), read_scan(second)
    for volume in (b, c):
        np.testing.assert_array_equal(volume.data, a.data)
        assert volume.affine == a.affine
        assert volume.data.dtype == np.int16
    assert a.affine.spacing_mm == (4.0, 3.0, 2.0)
    assert a.affine.orientation == "SAL"
    assert scan_hash(first) == scan_hash(other) == scan_hash(second)


def nifti2(data: np.ndarray, srow: np.ndarray, pixdim: Any) -> bytes:
    header = bytearray(544)
    header[0:4] = (540).to_bytes(4, "little")
    header[4:12] = b"n+2\0\r\n\x1a\n"
    header[12:16] = np.array([4, 16], "<i2").tobytes()
    header[16:80] = np.array([3, *data.shape[::-1], 1, 1, 1, 1], "<i8").tobytes()
    header[104:168] = np.array([1, *pixdim, 0, 0, 0, 0], "<f8").tobytes()
    header[168:176] = np.array([544], "<i8").tobytes()
    header[348:352] = np.array([1], "<i4").tobytes()
    header[400:496] = np.asarray(srow, "<f8").tobytes()
    header[500:504] = np.array([2], "<i4").tobytes()
    return bytes(header) + data.tobytes()


def test_scaled_values_nan_slopes_and_units(tmp_path: Path) -> None:
    data = values()
    eye = np.eye(3, 4)
    scaled = read_scan(
        put(tmp_path / "a.nii", nifti(data, srow=eye, slope=0.5, inter=-3))
    )
    np.testing.assert_allclose(scaled.data[0], data * 0.5 - 3)
    assert scaled.data.dtype == np.float32
    nan = float("nan")
    plain = read_scan(
        put(tmp_path / "b.nii", nifti(data, srow=eye, slope=nan, inter=nan))
    )
    np.testing.assert_array_equal(plain.data[0], data)
    small = read_header(put(tmp_path / "c.nii", nifti(data, srow=eye, units=3)))
    assert small.affine.spacing_mm == pytest.approx((1e-3, 1e-3, 1e-3))
    assert [p.code for p in small.problems] == ["units"]


def test_qform_alone_places_the_scan_as_simpleitk_does(tmp_path: Path) -> None:
    for number, turned in enumerate(directions()):
        path = tmp_path / f"{number}.nii"
        sitk.WriteImage(image(values((3, 4, 5)), (0.7, 1.3, 5.5), turned), str(path))
        raw = bytearray(path.read_bytes())
        raw[254:256] = bytes(2)  # no sform: the quaternion counts
        path.write_bytes(bytes(raw))
        expected = itk_affine(sitk.ReadImage(str(path)))
        found = read_header(path).affine.matrix
        same_place(found, expected)


def test_a_folder_of_dicom_files_is_read_in_order_of_place(tmp_path: Path) -> None:
    paths = dicom_series(tmp_path / "scan")
    volume = read_scan(tmp_path / "scan")
    ordered = [sitk.GetArrayFromImage(sitk.ReadImage(str(p)))[0] for p in paths]
    np.testing.assert_array_equal(volume.data[0], np.stack(ordered))
    assert volume.affine.spacing_mm == pytest.approx((2.0, 0.75, 0.5))
    assert volume.affine.origin_mm == pytest.approx((0.0, -20.0, -10.0))
    assert volume.affine.orientation == "SPL"
    assert volume.modality == "CT"
    assert volume.meta["subject"] == "P7"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(p) for p in paths])
    np.testing.assert_allclose(itk_affine(reader.Execute()), volume.affine.matrix)


def test_the_hash_of_a_series_does_not_depend_on_file_names(tmp_path: Path) -> None:
    dicom_series(tmp_path / "scan")
    (tmp_path / "renamed").mkdir()
    for number, path in enumerate(sorted((tmp_path / "scan").iterdir())):
        shutil.copy(path, tmp_path / "renamed" / f"{(number * 5) % 8}")
    assert scan_hash(tmp_path / "renamed") == scan_hash(tmp_path / "scan")
    volume = read_scan(tmp_path / "scan")
    write_volume(volume, tmp_path / "same.nii.gz")
    assert scan_hash(tmp_path / "same.nii.gz") == scan_hash(tmp_path / "scan")
    volume.data[0, 0, 0, 0] += 1
    write_volume(volume, tmp_path / "other.nii.gz")
    assert scan_hash(tmp_path / "other.nii.gz") != scan_hash(tmp_path / "scan")


def test_an_oblique_coronal_series_keeps_its_place(tmp_path: Path) -> None:
    turn = np.radians(20.0)
    row = np.array([1.0, 0, 0])
    column = np.array([0, np.sin(turn), -np.cos(turn)])
    normal = np.cross(row, column)

    def place(i: int) -> tuple[float, float, float]:
        x, y, z = np.array([5.0, -7, 11]) + 2.0 * i * normal
        return x, y, z

    text = "\\".join(f"{v:.8f}" for v in (*row, *column))
    dicom_series(tmp_path / "scan", orientation=text, position=place)
    affine = read_header(tmp_path / "scan").affine
    np.testing.assert_allclose(affine.origin_mm, (11, -7, 5), atol=1e-6)
    np.testing.assert_allclose(affine.apply((3, 0, 0)), place(3)[::-1], atol=1e-5)
    expected = np.array([5.0, -7, 11]) + 0.75 * 4 * column + 0.5 * 6 * row
    np.testing.assert_allclose(affine.apply((0, 4, 6)), expected[::-1], atol=1e-5)


def test_slices_with_slopes_of_their_own_are_scaled_each(tmp_path: Path) -> None:
    paths = dicom_series(
        tmp_path / "scan", 4, low=100, extra={"0028|1053": "1", "0028|1052": "0"}
    )
    stored = read_scan(tmp_path / "scan").data[0]
    assert stored.dtype == np.int16
    slopes = (b"1 ", b".5", b"2 ", b".3")
    for path, slope in zip(paths, slopes, strict=True):
        element = b"\x28\x00\x53\x10\x02\x00\x00\x00"
        content = path.read_bytes()
        assert content.count(element) == 1
        path.write_bytes(content.replace(element + b"1 ", element + slope))
    found = read_scan(tmp_path / "scan").data[0]
    assert found.dtype == np.float32
    expected = stored * np.array([1, 0.5, 2, 0.3]).reshape(4, 1, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_each_series_of_a_folder_has_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    dicom_series(folder, 6, series="1.1", prefix="a")
    dicom_series(folder, 9, series="2.2", prefix="b")
    paths, others = dicom_scans(folder)
    assert paths == [series_path(folder, "1.1"), series_path(folder, "2.2")]
    assert others == []
    assert [read_header(p).shape[0] for p in paths] == [6, 9]
    assert all(is_scan_path(p) for p in paths)
    assert read_scan(folder).shape[0] == 9
    with pytest.raises(Unsound, match=r"no series 9\.9 here"):
        read_header(series_path(folder, "9.9"))


def test_a_picture_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    picture = values((20, 30), np.uint8)
    sitk.WriteImage(image(picture, (0.1, 0.1)), str(tmp_path / "a.tif"))
    volume = read_scan(tmp_path / "a.tif")
    assert volume.data.shape == (1, 1, 20, 30)
    assert volume.affine == Affine.identity()
    np.testing.assert_array_equal(volume.data[0, 0], picture)
    header = read_header(tmp_path / "a.tif")
    assert (header.shape[0], header.frames) == (1, 1)
    assert [p.code for p in header.problems] == ["spacing_unknown"]


def test_an_x_ray_in_dicom_has_its_pixel_spacing(tmp_path: Path) -> None:
    (path,) = dicom_series(tmp_path / "scan", 1, extra={"0008|0060": "DX"})
    content = path.read_bytes()  # SimpleITK always writes a place; X-rays have none
    for element in (0x32, 0x37):
        tag = bytes([0x20, 0, element, 0])
        assert content.count(tag) == 1
        content = content.replace(tag, bytes([0x20, 0, element + 1, 0]))
    path.write_bytes(content)
    header = read_header(tmp_path / "scan")
    assert header.shape == (1, 12, 14)
    assert header.modality == "XR"
    assert header.affine.spacing_mm[1:] == pytest.approx((0.75, 0.5))


def test_labels_become_whole_numbers(tmp_path: Path) -> None:
    floats = put(
        tmp_path / "a.nii.gz", nifti(mask(dtype=np.float64) * 7, srow=np.eye(3, 4))
    )
    labels = read_labels(floats, {7: "liver"})
    assert labels.data.dtype.kind == "i"
    assert set(np.unique(labels.data)) == {0, 7}
    assert labels.names == {7: "liver"}
    sitk.WriteImage(image(mask((20, 30)) * 255), str(tmp_path / "m.png"))
    assert set(np.unique(read_labels(tmp_path / "m.png").data)) == {0, 1}
    half = put(tmp_path / "h.nii", nifti(mask(dtype=np.float32) / 2, srow=np.eye(3, 4)))
    with pytest.raises(Unsound, match="whole numbers"):
        read_labels(half)


@each(
    "high, low, expected",
    [(1, 0, "uint8"), (300, 0, "int16"), (5, -1, "int16"), (70000, 0, "int32")],
)
def test_labels_are_written_in_the_smallest_type(
    high: int, low: int, expected: str, tmp_path: Path
) -> None:
    data = np.zeros((2, 3, 4), np.int64)
    data[0, 0, 0], data[1, 1, 1] = high, low
    write_labels(LabelMap(data, Affine.identity()), tmp_path / "a.nii.gz")
    assert read_header(tmp_path / "a.nii.gz").dtype == expected
    np.testing.assert_array_equal(read_labels(tmp_path / "a.nii.gz").data, data)


@each("suffix", SUFFIXES)
def test_every_number_type_survives(suffix: str, tmp_path: Path) -> None:
    for letter in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        data = values((2, 3, 4)).astype(letter)[None]
        write_volume(Volume(data, Affine.identity()), tmp_path / f"a{suffix}")
        back = read_scan(tmp_path / f"a{suffix}").data
        assert back.dtype == np.dtype(letter)
        np.testing.assert_array_equal(back, data)


def test_nan_is_read_as_it_is(tmp_path: Path) -> None:
    data = values(dtype=np.float32)
    data[1, 2, 3] = np.nan
    volume = read_scan(put(tmp_path / "a.nii.gz", nifti(data, srow=np.eye(3, 4))))
    assert np.isnan(volume.data[0, 1, 2, 3])


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: Any) -> None:
    volume = Volume(values((3, 4, 5))[None], Affine.identity())
    path = tmp_path / "a.nii.gz"
    write_volume(volume, path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_volume(Volume(volume.data + 1, volume.affine), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nii.gz"]


@each("suffix", SUFFIXES)
def test_a_file_that_does_not_read_back_is_refused(
    suffix: str, tmp_path: Path, monkeypatch: Any
) -> None:
    import homolog.writing as module

    volume = Volume(values((3, 4, 5))[None], Affine.identity())
    original = module.write_safely

    def losing(path: Path, write: Any, verify: Any) -> None:
        def write_less(aside: Path) -> None:
            write(aside)
            aside.write_bytes(aside.read_bytes()[:-30])  # as a full disk does to ITK

        original(path, write_less, verify)

    monkeypatch.setattr("homolog.scans.write.write_safely", losing)
    with pytest.raises((JobError, Unsound)):
        write_volume(volume, tmp_path / f"a{suffix}")
    assert os.listdir(tmp_path) == []


def test_other_suffixes_and_types_are_refused(tmp_path: Path) -> None:
    volume = Volume(values((3, 4, 5))[None], Affine.identity())
    with pytest.raises(UnusableInput, match=r"can write \.nii"):
        write_volume(volume, tmp_path / "a.dcm")
    odd = Volume(volume.data.astype(np.complex64), Affine.identity())
    with pytest.raises(UnusableInput, match="cannot write complex64"):
        write_volume(odd, tmp_path / "a.nii")


def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    volume = Volume(values((3, 4, 5))[None], Affine.identity())
    write_volume(volume, tmp_path / "a.nii.gz")
    write_volume(volume, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_the_reader_refuses_what_is_no_single_scalar_scan(tmp_path: Path) -> None:
    four = put(tmp_path / "a.nii", nifti(np.stack([values()] * 2), srow=np.eye(3, 4)))
    with pytest.raises(Unsound, match=r"a\.nii: 4D: 2 volumes"):
        read_scan(four)
    cut = put(tmp_path / "b.nii", nifti(values(), srow=np.eye(3, 4))[:-5])
    with pytest.raises(Unsound, match="bytes expected") as caught:
        read_scan(cut)
    assert caught.value.problem.code == "truncated"


def test_a_damaged_header_cannot_make_it_allocate(tmp_path: Path) -> None:
    content = nifti(values(), dim=(3, 32000, 32000, 32000), srow=np.eye(3, 4))
    with pytest.raises(Unsound) as caught:
        read_scan(put(tmp_path / "a.nii.gz", content))
    assert caught.value.problem.code == "truncated"


def test_kit_orientations_are_written_where_they_were(
    data_kit: Path, tmp_path: Path
) -> None:
    paths = sorted((data_kit / "odd_files").glob("orientation_*.nii.gz"))
    assert len(paths) == 8
    for path in paths:
        volume = read_scan(path)
        labels = LabelMap((volume.data[0] > 40).astype(np.uint8), volume.affine,
                          meta=volume.meta)  # fmt: skip
        for suffix in SUFFIXES:
            out = tmp_path / f"{path.name}{suffix}"
            write_labels(labels, out)
            found, given = sitk.ReadImage(str(out)), sitk.ReadImage(str(path))
            same_place(itk_affine(found), itk_affine(given))


@each(
    "name, low, expected",
    [
        ("patient_7", -1024, "CT"),
        ("lung_pet_ct", -1024, "CT"),  # a name of two modalities: the values decide
        ("patient_7", 0, "OTHER"),
        ("patient_7_t1", 0, "MR"),
    ],
)
def test_the_modality_is_that_of_a_prepared_scan(
    tmp_path: Path, name: str, low: int, expected: str
) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 1500, (1, 12, 12, 12)).astype(np.int16)
    data[:, :6] = low  # air, or nothing
    path = tmp_path / "scans" / f"{name}.nii.gz"
    path.parent.mkdir()
    write_volume(Volume(data, Affine.scale([2.0, 1.0, 1.0])), path)
    assert read_scan(path).modality == expected
    assert inspect_scan(path).modality == expected


def test_voxels_never_start_within_their_header(tmp_path: Path) -> None:
    data = values()
    for offset, suffix in ((0.0, ".nii"), (0.0, ".nii.gz")):
        content = bytearray(nifti(data, srow=np.eye(3, 4)))
        content[108:112] = np.array([offset], "<f4").tobytes()
        path = put(tmp_path / f"a{suffix}", bytes(content))
        np.testing.assert_array_equal(read_scan(path).data[0], data)
    for offset in (1.0, 100.0, 348.0, -352.0, 1e30, float("nan"), float("inf")):
        content[108:112] = np.array([offset], "<f4").tobytes()
        path = put(tmp_path / "b.nii", bytes(content))
        with pytest.raises(Unsound, match=r"voxels cannot start|expected"):
            read_scan(path)
    # With an extension in between, 0 says nothing.
    content[108:112] = bytes(4)
    content[348] = 1
    with pytest.raises(Unsound, match="voxels cannot start at byte 0"):
        read_scan(put(tmp_path / "c.nii", bytes(content)))
    two = bytearray(nifti2(data, np.eye(3, 4), (1, 1, 1)))
    two[168:176] = bytes(8)
    np.testing.assert_array_equal(
        read_scan(put(tmp_path / "d.nii", bytes(two))).data[0], data
    )


def test_what_a_gzip_unpacks_to_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homolog.scans.nifti._MOST_AFTER", 1 << 20)
    content = nifti(values(), srow=np.eye(3, 4)) + bytes(1 << 25)
    bomb = put(tmp_path / "a.nii.gz", content)
    with pytest.raises(Unsound, match="far behind the voxels") as told:
        read_scan(bomb)
    assert told.value.problem.code == "corrupt"
    np.testing.assert_array_equal(
        read_scan(put(tmp_path / "b.nii", content)).data[0], values()
    )


def test_a_scan_larger_than_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homolog.scans.problems._SMALL", 8)
    monkeypatch.setattr("homolog.scans.problems.free_bytes", lambda: 1979)
    path = put(tmp_path / "a.nii.gz", nifti(values(), srow=np.eye(3, 4)))
    with pytest.raises(Unsound, match=r"2\.0 kB are free") as told:
        read_scan(path)
    assert told.value.problem.code == "too_large"
    assert inspect_scan(path).usable  # piece by piece
    monkeypatch.setattr("homolog.scans.problems.free_bytes", lambda: 1980)
    assert read_scan(path)
    monkeypatch.setattr("homolog.scans.problems.free_bytes", lambda: 0)  # unknown
    assert read_scan(path)


def test_five_axes_are_several_volumes(tmp_path: Path) -> None:
    data = values((2, 1, 3, 4, 5))
    lines = [
        "NRRD0004", "type: short", "dimension: 5", "sizes: 5 4 3 1 2",
        "spacings: 1 1 1 1 1", "encoding: raw", "endian: little", "", "",
    ]  # fmt: skip
    path = tmp_path / "a.nrrd"
    path.write_bytes("\n".join(lines).encode() + data.tobytes())
    with pytest.raises(Unsound, match="4D: 2 volumes"):
        read_scan(path)


@each("deep", [1, 2])
@each("opaque", [True, False])
def test_grey_with_alpha_is_grey_where_it_is_opaque(
    deep: int, opaque: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(deep)
    grey = rng.integers(0, 256**deep, (20, 30)).astype(f">u{deep}")
    alpha = np.full_like(grey, 256**deep - 1)
    alpha[0, 0] -= not opaque
    rows = np.stack([grey, alpha], -1).astype(grey.dtype)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def part(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    head = struct.pack(">IIBBBBB", 30, 20, 8 * deep, 4, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"tEXt", b"Title\0x")
        + part(b"IDAT", zlib.compress(raw)) + part(b"IEND", b"")
    )  # fmt: skip
    if not opaque:
        with pytest.raises(Unsound, match="partly transparent"):
            read_scan(path)
        return
    volume = read_scan(path)
    assert volume.data.dtype == np.dtype(f"u{deep}")
    np.testing.assert_array_equal(volume.data[0, 0], grey)
    assert "opaque alpha" in volume.meta["remarks"][-1]


def test_a_checksum_that_libtiff_passes_over_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor("Deflate")
    writer.Execute(image(values((40, 50), np.uint8)))
    assert inspect_scan(path).usable
    content = path.read_bytes()
    at = next(i for i in range(8, 99) if content[i : i + 1] == b"x")  # of zlib
    end = at + len(content[at:]) - len(_unused(content[at:]))
    damaged = bytearray(content)
    damaged[end - 1] ^= 1  # in the checksum: every pixel still decodes
    path.write_bytes(bytes(damaged))
    found = inspect_scan(path).reason
    assert found is not None
    assert found.code == "corrupt"


def _unused(stream: bytes) -> bytes:
    engine = zlib.decompressobj()
    engine.decompress(stream)
    return engine.unused_data


def test_both_files_of_a_pair_stand_for_it(tmp_path: Path) -> None:
    raw = nifti(values(), srow=np.eye(3, 4))
    put(tmp_path / "a.img", raw[352:])
    head = bytearray(raw[:348])
    head[108:112] = bytes(4)  # voxels begin at byte 0 of their own file
    head[344:348] = b"ni1\0"
    put(tmp_path / "a.hdr", bytes(head))
    one, other = (read_scan(tmp_path / f"a{suffix}") for suffix in (".hdr", ".img"))
    np.testing.assert_array_equal(one.data, values()[None])
    np.testing.assert_array_equal(other.data, one.data)
    assert other.affine == one.affine
