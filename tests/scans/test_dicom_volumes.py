"""Slices to scans: enhanced files, several volumes of a series, gaps, tilt, no place.

Files are written by pydicom or by hand; places are compared with what was written, and
where SimpleITK reads the kind, with SimpleITK.
"""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from pydicom.encaps import encapsulate, generate_frames

from dicom_writer import enhanced, picture, series, tags_of, write
from each import each
from homolog.cli import cli
from homolog.events import drain
from homolog.index.index import index_sources
from homolog.index.tree import list_series
from homolog.scans import decoder
from homolog.scans.dicom.gathering import forget
from homolog.scans.dicom.header import read_dicom_file
from homolog.scans.files import read_header, read_scan
from homolog.scans.inspect import inspect_scan
from homolog.scans.paths import series_path, split_series
from homolog.scans.problems import Unsound

POSITION, ORIENTATION, NUMBER = 0x00200032, 0x00200037, 0x00200013
TESTS = Path(pydicom.data.__file__).parent / "test_files"


def place(path: Path, voxel: tuple[int, int, int]) -> list[float]:
    """Where a voxel (z, y, x) lies, as x, y, z."""
    return read_header(path).affine.apply(voxel)[::-1].tolist()


# ---- enhanced files ------------------------------------------------------------------


@each("undefined_length", [True, False])
def test_an_enhanced_file_lies_where_its_frames_say(
    undefined_length: bool, tmp_path: Path
) -> None:
    pixels = np.arange(6 * 5 * 4).reshape(6, 5, 4)
    order = [3, 0, 5, 1, 4, 2]  # frames need not be in order of place
    turn = (0, 1, 0, 0, 0, -1)  # sagittal
    frames = [{"position": (3.0 * k - 9, 20, 30), "slope": 2} for k in order]
    path = enhanced(
        tmp_path / "a.dcm", frames, pixels, orientation=turn,
        undefined_length=undefined_length,
    )  # fmt: skip
    found = inspect_scan(path)
    assert found.problems == ()
    volume = read_scan(path)
    # rows x columns of a sagittal picture point to -x: places run against the frames
    ranks = np.argsort([np.dot((3.0 * k, 0, 0), (-1, 0, 0)) for k in order])
    np.testing.assert_array_equal(volume.data[0], 2 * pixels[ranks])
    frame = int(ranks[1])
    assert place(path, (1, 2, 3)) == pytest.approx(
        [3.0 * order[frame] - 9, 20 + 3 * 0.5, 30 - 2 * 0.75], abs=1e-6
    )
    assert volume.affine.spacing_mm == pytest.approx((3.0, 0.75, 0.5))


def test_volumes_of_an_enhanced_file_are_scans_with_names(tmp_path: Path) -> None:
    told = [
        {"position": (0, 0, 3.0 * z), "echo": echo, "kind": kind}
        for z in range(7)
        for kind in ("M_FFE", "PHASE_MAP")
        for echo in (4.6, 9.2)
    ]
    pixels = np.stack([np.full((6, 5), i) for i in range(len(told))])
    pixels[:, 0, 0] = -7  # never one value alone
    path = enhanced(tmp_path / "a.dcm", told, pixels)
    found = list_series(tmp_path)
    assert [s.shape for s in found] == [(7, 6, 5)] * 4
    names = {s.description.removeprefix("made up, ") for s in found}
    assert names == {
        "M_FFE, echo 4.6 ms", "M_FFE, echo 9.2 ms",
        "PHASE_MAP, echo 4.6 ms", "PHASE_MAP, echo 9.2 ms",
    }  # fmt: skip
    for one in found:
        kind, echo = one.description.split(", ")[1:]
        want = [
            i for i, t in enumerate(told)
            if t["kind"] == kind and f"echo {t['echo']} ms" == echo
        ]  # fmt: skip
        values = read_scan(one.path).data[0]
        np.testing.assert_array_equal(values, pixels[want])
    assert len(drain(index_sources([tmp_path])).cases) == 4
    assert len(drain(index_sources([path])).cases) == 4
    run = CliRunner().invoke(cli, ["info", str(path)])
    assert run.output.count("of its series: M_FFE, echo") == 2


def test_frames_of_several_files_are_one_scan(tmp_path: Path) -> None:
    pixels = np.stack([picture(i) for i in range(6)])
    for part in range(2):
        frames = [{"position": (0, 0, 3.0 * z)} for z in range(3 * part, 3 * part + 3)]
        enhanced(tmp_path / f"{part}.dcm", frames, pixels[3 * part : 3 * part + 3])
        data = pydicom.dcmread(tmp_path / f"{part}.dcm")
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.{part}"
        data.save_as(tmp_path / f"{part}.dcm")
    volume = read_scan(tmp_path)
    np.testing.assert_array_equal(volume.data[0], pixels)
    assert volume.affine.spacing_mm[0] == pytest.approx(3.0)


# ---- several volumes in a folder of slices -------------------------------------------

DIMENSIONS: dict[str, tuple[int, str, tuple[str, str], tuple[str, str]]] = {
    "echo": (0x00180081, "DS", ("4.6", "9.2"), ("echo 4.6 ms", "echo 9.2 ms")),
    "type": (
        0x00080008, "CS", ("ORIGINAL\\PRIMARY\\M", "ORIGINAL\\PRIMARY\\P"), ("M", "P"),
    ),
    "b-value": (0x00189087, "FD", (0.0, 800.0), ("b 0", "b 800")),
    "time": (0x00200100, "IS", ("1", "2"), ("time 1", "time 2")),
    "trigger": (0x00181060, "DS", ("0", "45.5"), ("trigger 0 ms", "trigger 45.5 ms")),
    "acquisition": (0x00200012, "IS", ("3", "4"), ("acquisition 3", "acquisition 4")),
    "stack": (0x00209056, "SH", ("1", "2"), ("stack 1", "stack 2")),
    "kernel": (0x00181210, "SH", ("B30", "B70"), ("kernel B30", "kernel B70")),
    "number": (0x00181000, "LO", ("x", "y"), ("number 1", "number 2")),
}  # fmt: skip


@each("name", DIMENSIONS)
def test_what_tells_volumes_apart_makes_scans_of_them(
    name: str, tmp_path: Path
) -> None:
    tag, kind, told, names = DIMENSIONS[name]
    for k, value in enumerate(told):
        numbers = [{NUMBER: ("IS", 8 * k + i + 1)} for i in range(8)]
        more = {tag: (kind, value)}
        paths = series(tmp_path / str(k), 8, "MR", uid="1.5", each=numbers, more=more)
        for path in paths:
            data = pydicom.dcmread(path)
            data.SOPInstanceUID = f"1.5.{k}.{int(path.stem[-3:])}"
            data.PixelData = np.full((12, 14), 100 * k, np.int16).tobytes()
            data.save_as(tmp_path / f"{k}{path.name}")
        shutil.rmtree(tmp_path / str(k))
    forget()
    found = sorted(list_series(tmp_path), key=lambda s: s.description)
    assert [s.description for s in found] == sorted(names)
    assert [s.shape for s in found] == [(8, 12, 14)] * 2
    for one in found:
        values = read_scan(one.path).data
        assert np.unique(values).tolist() == [100 * names.index(one.description)]
        assert [r for r in one.remarks if "of its series" in r]


def test_one_image_beside_a_volume_is_left_out_and_told(tmp_path: Path) -> None:
    series(tmp_path, 9, "MR", uid="1.5")
    extra = write(
        tmp_path / "mean.dcm",
        tags_of(
            "MR", z=4.0, pixels=picture(77),
            more={
                0x0020000E: ("UI", "1.5"),
                0x00080008: ("CS", "DERIVED\\SECONDARY\\MEAN"),
            },
        ),
    )  # fmt: skip
    result = drain(index_sources([tmp_path]))
    assert len(result.cases) == 1
    assert [r.code for r in result.rejected] == ["localiser"]
    assert "1 image beside a volume of 9" in result.rejected[0].reason
    assert extra.name in result.rejected[0].reason


# ---- places --------------------------------------------------------------------------


def test_the_distance_of_slices_is_that_of_their_positions(tmp_path: Path) -> None:
    for told in ("-3", "9.5", "0"):
        series(tmp_path / told, 6, more={0x00180088: ("DS", told)})
        found = inspect_scan(tmp_path / told)
        assert found.problems == ()
        assert found.header is not None
        assert found.header.affine.spacing_mm == (2.0, 0.75, 0.5)
        if told == "0":
            continue  # SimpleITK believes it, and fails
        reader = sitk.ImageSeriesReader()
        names = reader.GetGDCMSeriesFileNames(str(tmp_path / told))
        reader.SetFileNames(names)
        image = reader.Execute()
        mark = image.TransformIndexToPhysicalPoint((3, 2, 4))
        assert place(tmp_path / told, (4, 2, 3)) == pytest.approx(mark, abs=1e-6)


def places(folder: Path, heights: list[float], sideways: float = 0.0) -> Path:
    """A CT series with a slice at each height; y moved by so much a millimetre."""
    each_ = [
        {POSITION: ("DS", f"-10\\{-20 + sideways * h:.6g}\\{h:.6g}")} for h in heights
    ]
    for path in series(folder, len(heights), each=each_):
        data = pydicom.dcmread(path)
        z = float(data.ImagePositionPatient[2])
        rows = float(data.ImagePositionPatient[1]) + 0.75 * np.arange(12)
        plane = 10 * z + 100 * rows[:, None] + np.zeros((12, 14))
        data.PixelData = np.rint(plane).astype(np.int16).tobytes()
        data.save_as(path)
    return folder


REASONS: dict[str, tuple[list[float], str, str]] = {
    "4 and 7 mm": (
        [4.0 * i for i in range(28)] + [108 + 7.0 * i for i in range(1, 14)],
        "uneven_slices", "4 mm (27 steps), 7 mm (13 steps)",
    ),
    "3 and 6 mm": (
        [3.0 * i for i in range(12)] + [33 + 6.0 * i for i in range(1, 8)],
        "uneven_slices", "3 mm (11 steps), 6 mm (7 steps)",
    ),
    "one lost": ([2.0 * i for i in range(20) if i != 7], "missing_slice", "about 1 of"),
    "two lost": (
        [2.0 * i for i in range(20) if i not in (7, 13)], "missing_slice", "about 2 of",
    ),
}  # fmt: skip


@each("name", REASONS)
def test_another_distance_is_no_lost_slice(name: str, tmp_path: Path) -> None:
    heights, code, words = REASONS[name]
    found = inspect_scan(places(tmp_path, heights))
    assert found.reason is not None
    assert found.reason.code == code
    assert words in found.reason.text


def test_places_a_little_off_are_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    jitter = [3.0 * i + float(rng.uniform(-0.012, 0.012)) for i in range(12)]
    assert inspect_scan(places(tmp_path / "a", jitter)).problems == ()
    rough = [3.0 * i + 0.05 * (i % 2) for i in range(12)]
    found = inspect_scan(places(tmp_path / "b", rough))
    assert [(p.code, p.fatal) for p in found.problems] == [("steps_vary", False)]


@each("heights,sideways", [
    ([2.0 * i for i in range(9)], 0.25),
    ([4.0 * i for i in range(6)] + [20 + 7.0 * i for i in range(1, 6)], 0.0),
    ([4.0 * i for i in range(6)] + [20 + 7.0 * i for i in range(1, 6)], -0.2),
])  # fmt: skip
def test_straightened_slices_hold_what_lies_there(
    heights: list[float], sideways: float, tmp_path: Path
) -> None:
    folder = places(tmp_path / "scan", heights, sideways)
    reason = inspect_scan(folder).reason
    assert reason is not None
    assert "--straighten" in reason.text
    assert ("lean by" in reason.text) == (sideways > 0)
    result = drain(index_sources([tmp_path], straighten=True))
    assert [c.image for c in result.cases] == [
        series_path(folder, "1.2.3.4", straight=True)
    ]
    path = result.cases[0].image
    assert split_series(path) == (folder, "1.2.3.4")
    found = inspect_scan(path)
    assert [p.code for p in found.problems] == ["straightened"]
    volume = read_scan(path)
    assert volume.affine.shear < 1e-9
    assert volume.data.shape[1:] == found.header.shape  # type: ignore[union-attr]
    z, y, _ = np.moveaxis(
        volume.affine.apply(np.indices(volume.shape).reshape(3, -1).T), 1, 0
    )
    truth = (10 * z + 100 * y).reshape(volume.shape)
    inside = volume.data[0] > volume.data.min() + 400  # beyond the slices: filled
    assert inside.mean() > 0.3
    depth = volume.shape[0]
    np.testing.assert_allclose(
        volume.data[0, :, 4:8, 3:9][inside[:, 4:8, 3:9]],
        truth[:, 4:8, 3:9][inside[:, 4:8, 3:9]],
        atol=2.0 + 0.5 * depth * 0,
    )
    run = CliRunner().invoke(cli, ["info", "--straighten", str(tmp_path)])
    assert "resampled once to a straight, even grid" in run.output


# ---- no place ------------------------------------------------------------------------


def test_slices_without_a_place_are_one_scan_by_number(tmp_path: Path) -> None:
    lost = {POSITION: None, ORIENTATION: None}
    numbers = [{NUMBER: ("IS", n)} for n in (5, 2, 9, 1, 7, 4, 3, 8, 6, 12, 11, 10)]
    paths = series(tmp_path / "scan", 12, "MR", each=numbers, more=lost)
    found = inspect_scan(tmp_path / "scan")
    assert found.usable
    assert [p.code for p in found.problems] == ["no_place"]
    assert "12 slices" in found.problems[0].text
    assert not found.placed
    values = read_scan(tmp_path / "scan").data[0]
    by_number = sorted(paths, key=lambda p: int(pydicom.dcmread(p).InstanceNumber))
    whole = [pydicom.dcmread(p).pixel_array for p in by_number]
    np.testing.assert_array_equal(values, np.stack(whole))
    assert len(drain(index_sources([tmp_path])).cases) == 1
    series(tmp_path / "none", 4, "MR", more=lost, uid="1.7")
    result = drain(index_sources([tmp_path / "none"]))
    assert [r.code for r in result.rejected] == ["no_place"]


# ---- discs and zips ------------------------------------------------------------------


def test_a_disc_is_read_by_its_index(tmp_path: Path) -> None:
    from pydicom.fileset import FileSet

    disc = FileSet()
    for uid in ("1.41", "1.42"):
        study = {0x0020000D: ("UI", f"{uid}.9"), 0x00200010: ("SH", uid)}
        study |= {0x00080020: ("DA", "20200101"), 0x00080030: ("TM", "101010")}
        study |= {0x00100010: ("PN", "A"), 0x00200011: ("IS", "1")}
        numbers = [{NUMBER: ("IS", i + 1)} for i in range(5)]
        for path in series(tmp_path / "loose", 5, uid=uid, each=numbers, more=study):
            disc.add(path)
    disc.write(tmp_path / "disc")
    disc._stage["t"].cleanup()
    index = tmp_path / "disc" / "DICOMDIR"
    assert sorted(s.shape[0] for s in list_series(index)) == [5, 5]
    assert len(drain(index_sources([index])).cases) == 2
    for one in list_series(index):
        assert read_scan(one.path).shape == (5, 12, 14)
    run = CliRunner().invoke(cli, ["info", str(index)])
    assert run.output.count("5 x 12 x 14") == 2


def test_a_zipped_series_is_read(tmp_path: Path) -> None:
    series(tmp_path / "loose", 5, uid="1.41")
    series(tmp_path / "loose", 4, uid="1.42")
    want = {s.shape[0]: read_scan(s.path).data for s in list_series(tmp_path / "loose")}
    (tmp_path / "in").mkdir()
    packed = tmp_path / "in" / "study.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path in (tmp_path / "loose").iterdir():
            file.write(path, f"../../{path.name}")  # a name that leads out of it
        file.writestr("readme.txt", "notes")
    cases = drain(index_sources([tmp_path / "in"])).cases
    assert len(cases) == 2
    for one in list_series(packed):
        np.testing.assert_array_equal(read_scan(one.path).data, want[one.shape[0]])
    assert {p.name for p in tmp_path.iterdir()} == {"loose", "in"}
    plain = tmp_path / "in" / "other.zip"
    with zipfile.ZipFile(plain, "w") as file:
        file.writestr("readme.txt", "notes")
    plain.with_name("cut.zip").write_bytes(packed.read_bytes()[:400])
    assert len(drain(index_sources([tmp_path / "in"])).cases) == 2


def test_a_zip_that_would_fill_the_disk_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "bomb.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.dcm", bytes(128) + b"DICM" + bytes(70 << 20))
    found = inspect_scan(packed)
    assert found.reason is not None
    assert found.reason.code == "too_large"
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})
    )
    assert "1.0 MB are free" in inspect_scan(packed).problems[0].text


# ---- odd headers and codecs ----------------------------------------------------------


def test_private_sequences_of_unknown_type_are_no_damage(tmp_path: Path) -> None:
    inner = b"\x09\x00\x10\x00\x04\x00\x00\x00abcd"  # implicit, as UN demands
    item = b"\xfe\xff\x00\xe0" + len(inner).to_bytes(4, "little") + inner
    end = b"\xfe\xff\xdd\xe0" + bytes(4)
    path = write(tmp_path / "a.dcm", tags_of())
    content = path.read_bytes()
    head = b"\x09\x00\x01\x10UN\x00\x00\xff\xff\xff\xff"
    at = content.index(b"\x10\x00\x20\x00LO")
    path.write_bytes(content[:at] + head + item + end + content[at:])
    assert pydicom.dcmread(path)[0x0009, 0x1001].value is not None
    assert read_dicom_file(path).damage is None
    assert inspect_scan(path).usable


def test_names_in_other_scripts_are_read(tmp_path: Path) -> None:
    for charset, text in (("ISO_IR 192", "Kopf ß 頭"), ("ISO_IR 100", "Schädel")):
        coded = text.encode("utf-8" if "192" in charset else "latin-1")
        more = {0x00080005: ("CS", charset), 0x0008103E: ("LO", coded)}
        path = write(tmp_path / "a.dcm", tags_of(more=more))
        assert read_dicom_file(path).text("description") == text


def test_pixels_that_gdcm_cannot_decode_are_decoded(tmp_path: Path) -> None:
    data = pydicom.dcmread(TESTS / "MR_small_jp2klossless.dcm")
    want = pydicom.dcmread(TESTS / "MR_small.dcm").pixel_array
    (stream,) = generate_frames(data.PixelData, number_of_frames=1)
    mark = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    comment = b"\xff\x64" + (len(mark) + 4).to_bytes(2, "big") + b"\x00\x00" + mark
    at = stream.index(b"\xff\x52")  # before the coding style
    data.PixelData = encapsulate([stream[:at] + comment + stream[at:]])
    path = tmp_path / "a.dcm"
    data.save_as(path)
    np.testing.assert_array_equal(read_scan(path).data[0, 0], want)
    np.testing.assert_array_equal(decoder.pixels(path)[0], want)


KINDS: dict[str, Any] = {
    "CT_small.dcm": (1, 128, 128), "MR_small.dcm": (1, 64, 64),
    "MR_small_RLE.dcm": (1, 64, 64), "MR_small_bigendian.dcm": (1, 64, 64),
    "MR_small_expb.dcm": (1, 64, 64), "MR_small_implicit.dcm": (1, 64, 64),
    "MR_small_jp2klossless.dcm": (1, 64, 64),
    "MR_small_jpeg_ls_lossless.dcm": (1, 64, 64), "693_J2KI.dcm": (1, 512, 512),
    "J2K_pixelrep_mismatch.dcm": (1, 512, 512),
    "MR_truncated.dcm": "truncated", "ExplVR_BigEnd.dcm": "colour",
    "JPEG2000.dcm": "capture", "SC_rgb_rle_16bit_2frame.dcm": "capture",
    "reportsi.dcm": "not_an_image", "rtplan.dcm": "not_an_image",
    "rtdose.dcm": "not_an_image", "waveform_ecg.dcm": "not_an_image",
    "UN_sequence.dcm": "not_an_image", "rtstruct.dcm": "not_an_image",
    "examples_ybr_color.dcm": "4d",
}  # fmt: skip


@each("name", KINDS)
def test_pydicoms_own_files_become_what_they_are(name: str) -> None:
    want = KINDS[name]
    found = inspect_scan(TESTS / name, deep=False)
    if isinstance(want, str):
        assert found.reason is not None
        assert found.reason.code == want
        return
    assert found.usable
    volume = read_scan(TESTS / name)
    data = pydicom.dcmread(TESTS / name)
    slope = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    np.testing.assert_array_equal(
        volume.data[0, 0], data.pixel_array * slope[0] + slope[1]
    )
    mark = np.array(data.ImagePositionPatient, float)
    assert place(TESTS / name, (0, 0, 0)) == pytest.approx(mark.tolist())


def test_a_cut_slice_of_another_series_costs_no_scan(tmp_path: Path) -> None:
    series(tmp_path, 6)
    (cut,) = series(tmp_path, 1, uid="9.9")
    cut.write_bytes(cut.read_bytes()[:-50])
    result = drain(index_sources([tmp_path]))
    assert [c.image for c in result.cases] == [series_path(tmp_path, "1.2.3.4")]
    assert [r.code for r in result.rejected] == ["truncated"]


def test_swapped_brightness_is_the_same_by_both_decoders(tmp_path: Path) -> None:
    more = {0x00280004: ("CS", "MONOCHROME1")}
    pixels = np.abs(picture(1)).astype(np.uint16)
    path = write(tmp_path / "a.dcm", tags_of("CT", pixels=pixels, more=more))
    helper = decoder._asked("dicom", path)
    np.testing.assert_array_equal(decoder.pixels(path), helper)
    np.testing.assert_array_equal(decoder.frames(path, [0])[0], 65535 - pixels)


def test_packed_voxels_of_another_size_than_said_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    image = sitk.GetImageFromArray(np.arange(2000, dtype=np.uint8).reshape(1, 40, 50))
    tags = {
        "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0060": "CT",
        "0020|0032": "0\\0\\0", "0020|0037": "1\\0\\0\\0\\1\\0",
    }  # fmt: skip
    for tag, text in tags.items():
        image.SetMetaData(tag, text)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(image)
    assert read_scan(path).shape == (1, 40, 50)
    data = path.read_bytes()
    columns = struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 50)
    assert columns in data
    path.write_bytes(data.replace(columns, columns[:-2] + struct.pack("<H", 18)))
    with pytest.raises(Unsound, match=r"its header says 1 x 40 x 18|1x40x18"):
        read_scan(path)
