"""Opening scans: layers lie in true millimetres, whatever the file's axis order."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("napari")

from each import each
from homolog.geometry.affine import Affine
from homolog.gui.files import opening, reader, scan_layer, sources
from homolog.gui.files.reader import NOTHING, get_reader, read_layers
from homolog.gui.shared import notices
from homolog.gui.shared.layers import contrast_limits, volume_layer
from homolog.index.tree import holds_dicom, list_series
from homolog.scans import decoder
from homolog.scans.files import read_labels, read_scan
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume

ORDERS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(notices, "notify", lambda text, level="": said.append(text))
    monkeypatch.setattr(reader, "notify", lambda text, level="": said.append(text))
    reader._just_read.clear()
    notices.forget()
    return said


def _scan(
    axes: tuple[int, ...] = (0, 1, 2), signs: tuple[int, ...] = (1, 1, 1)
) -> Volume:
    direction = np.zeros((3, 3))
    for array_axis, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        direction[world, array_axis] = sign
    affine = Affine.of((2.0, 1.5, 1.0), (-10.0, 20.0, 5.0), direction)
    data = np.random.default_rng(1).integers(0, 900, (1, 5, 6, 7)).astype(np.int16)
    data[0, 1, 4, 2] = 1000
    return Volume(data, affine, "marked")


def _labels(volume: Volume) -> LabelMap:
    return LabelMap((volume.data[0] == 1000).astype(np.uint8), volume.affine)


def _write_dicom(
    folder: Path, count: int = 4, series: str = "1.2.3", size: int = 6
) -> None:
    """Slices as a scanner writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(count):
        image = sitk.Image(size, size, sitk.sitkInt16) + number * 10
        image.SetSpacing((1.5, 1.5))
        tags = {
            "0008|0060": "CT", "0008|103e": "Doe thorax", "0020|000e": series,
            "0020|000d": "1.2", "0008|0018": f"{series}.{number}",
            "0020|0013": str(number), "0020|0032": f"0\\0\\{2.0 * number}",
            "0020|0037": "1\\0\\0\\0\\1\\0", "0028|0030": "1.5\\1.5",
        }  # fmt: skip
        for tag, text in tags.items():
            image.SetMetaData(tag, text)
        writer.SetFileName(str(folder / f"{series}_{number}.dcm"))
        writer.Execute(image)


@each("axes, signs", ORDERS)
def test_a_marked_voxel_keeps_its_place_in_the_layer(
    axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    volume = _scan(axes, signs)
    data, attributes, kind = volume_layer(volume)
    assert kind == "image"
    index = np.argwhere(data == 1000)[0]
    place = index * attributes["scale"] + attributes["translate"]
    assert np.allclose(place, volume.affine.apply((1, 4, 2)))
    assert (np.asarray(attributes["scale"]) > 0).all()


def test_ct_opens_in_the_soft_tissue_window(tmp_path: Path) -> None:
    scan = Volume(np.full((1, 2, 2, 2), -1000), Affine.identity(), modality="CT")
    assert contrast_limits(scan) == (-160.0, 240.0)
    body = np.full((1, 8, 8, 8), -1000, np.int16)
    body[:, 2:6, 2:6, 2:6] = 50  # no name says CT; the values do
    write_volume(Volume(body, Affine.identity()), tmp_path / "patient7.nii")
    _, attributes, _ = opening.read_layer(tmp_path / "patient7.nii")
    assert attributes["contrast_limits"] == (-160.0, 240.0)
    assert attributes["metadata"]["homolog"]["modality"] == "CT"


def test_files_of_others_are_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "notes.txt").write_text("x")
    assert get_reader(str(tmp_path / "picture.svg")) is None
    assert get_reader(str(tmp_path / "picture.png")) is None
    assert get_reader(str(tmp_path / "notes.txt")) is None
    assert get_reader(str(tmp_path)) is None
    assert get_reader([]) is None


@each("name, kind", [
        ("scan_seg.nii.gz", "labels"), ("labelsTr/case_1.nii.gz", "labels"),
        ("case_1.nii.gz", "labels"), ("scan_mask.nrrd", "labels"),
    ])  # fmt: skip
def test_label_maps_are_recognised(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write_labels(_labels(_scan()), path)
    (layer,) = read_layers(str(path))
    assert layer[2] == kind


def test_a_scan_whose_name_says_mask_stays_a_scan(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1, (1, 6, 6, 6)).astype(np.float32)
    write_volume(Volume(values, Affine.identity()), tmp_path / "with_mask.nii")
    (layer,) = read_layers(str(tmp_path / "with_mask.nii"))
    assert layer[2] == "image"


def test_label_names_come_from_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    path = tmp_path / "labelsTr" / "a.nii.gz"
    write_labels(_labels(_scan()), path)
    text = json.dumps({"labels": {"background": 0, "liver": 1}})
    (tmp_path / "dataset.json").write_text(text)
    _, attributes, _ = read_layers(str(path))[0]
    assert attributes["metadata"]["label_names"] == {1: "liver"}
    assert attributes["features"] == {"index": [0, 1], "label": ["background", "liver"]}


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path, told: list[str]) -> None:
    good, bad = tmp_path / "good.nii", tmp_path / "bad.nii"
    write_volume(_scan(), good)
    bad.write_bytes(good.read_bytes()[:400])
    layers = read_layers([str(bad), str(good)])
    assert len(layers) == 1
    assert len(told) == 1
    assert told[0].startswith("bad.nii cannot be opened: ")
    assert read_layers(str(bad)) == NOTHING


def test_a_file_that_ends_its_decoder_leaves_the_window_alive(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "fake.py"
    script.write_text(
        "import os\nprint('{}', flush=True)\ninput()\nos.kill(os.getpid(), 11)\n"
    )
    helper = decoder._Helper()
    monkeypatch.setattr(decoder, "_helper", helper)
    good, bad = tmp_path / "good.nii", tmp_path / "bad.mha"
    write_volume(_scan(), good)
    write_volume(_scan(), bad)
    monkeypatch.setattr(decoder, "_SCRIPT", script)
    layers = read_layers([str(bad), str(good)])
    helper.close()
    assert [layer[1]["name"] for layer in layers] == ["good"]
    assert told == [
        "bad.mha cannot be opened: damaged in a way that ends its decoder (SIGSEGV)."
    ]


def test_a_tilt_is_told_once(tmp_path: Path, told: list[str]) -> None:
    angle = np.radians(8)
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    scan = _scan()
    tilted = Volume(scan.data, Affine.of((2, 1, 1), direction=turn), "t")
    write_volume(tilted, tmp_path / "t.nii")
    for _ in range(2):
        (layer,) = read_layers(str(tmp_path / "t.nii"))
    note = layer[1]["metadata"]["homolog"]["note"]
    assert note == "tilted 8 degrees: shown straight, saved tilted"
    assert told == [f"t: {note}."]


def test_a_large_file_is_told_before_it_is_read(tmp_path: Path) -> None:
    write_volume(_scan(), tmp_path / "big.nii")
    needed = 5 * 6 * 7 * 2
    assert scan_layer.size_warning(tmp_path / "big.nii", free=needed * 5) == ""
    said = scan_layer.size_warning(tmp_path / "big.nii", free=needed * 3)
    assert said.startswith("big.nii needs 420 bytes of the 1.3 kB")


def test_a_dicom_folder_opens_its_largest_series(
    tmp_path: Path, told: list[str]
) -> None:
    _write_dicom(tmp_path / "study" / "a", 3)
    _write_dicom(tmp_path / "study" / "b", 5, "1.2.4")
    assert holds_dicom(tmp_path)
    found = list_series(tmp_path / "study")
    assert [s.shape for s in found] == [(5, 6, 6), (3, 6, 6)]
    assert found[0].spacing_mm == (2.0, 1.5, 1.5)
    assert get_reader(str(tmp_path / "study")) is not None
    ((data, attributes, kind),) = read_layers(str(tmp_path / "study"))
    assert (kind, data.shape, attributes["name"]) == ("image", (5, 6, 6), "study b")
    assert told == ["study: 2 series here; the largest is opened."]
    assert "Doe" not in str(attributes)


def test_gaps_and_copies_are_told(tmp_path: Path, told: list[str]) -> None:
    _write_dicom(tmp_path / "gap", 6)
    (tmp_path / "gap" / "1.2.3_3.dcm").unlink()
    assert read_layers(str(tmp_path / "gap")) == NOTHING
    assert "slices missing" in told[0]
    _write_dicom(tmp_path / "twice", 4)
    shutil.copy(tmp_path / "twice" / "1.2.3_1.dcm", tmp_path / "twice" / "copy.dcm")
    (layer,) = read_layers(str(tmp_path / "twice"))
    assert layer[0].shape == (4, 6, 6)
    assert "1 copies of slices left out" in told[-1]


def test_slices_dropped_together_open_one_scan(tmp_path: Path, told: list[str]) -> None:
    _write_dicom(tmp_path / "s", 4)
    files = sorted((tmp_path / "s").iterdir())
    layers: list[Any] = []
    for file in files:  # napari hands them over one by one
        layers += [layer for layer in read_layers(str(file)) if len(layer) > 1]
    assert [layer[0].shape for layer in layers] == [(4, 6, 6)]
    assert told == ["1.2.3_0.dcm is one of 4 slices; all of them are opened."]


def test_a_pair_of_files_opens_once(tmp_path: Path, told: list[str]) -> None:
    header, data = tmp_path / "pair.hdr", tmp_path / "pair.img"
    sitk.WriteImage(sitk.Image(6, 5, 4, sitk.sitkInt16), str(data))
    assert header.is_file()
    assert get_reader(str(header)) is not None
    layers: list[Any] = []
    for file in (header, data):
        layers += [layer for layer in read_layers(str(file)) if len(layer) > 1]
    assert [layer[1]["name"] for layer in layers] == ["pair"]
    assert len(sources.sources_of([data, header])) == 1
    (tmp_path / "disk.img").write_bytes(b"boot")
    (tmp_path / "envi.hdr").write_text("ENVI\n")
    assert get_reader(str(tmp_path / "disk.img")) is None
    assert get_reader(str(tmp_path / "envi.hdr")) is None


def test_a_header_that_says_ct_of_no_ct_is_not_windowed(tmp_path: Path) -> None:
    values = np.linspace(0, 5000, 64).reshape(1, 4, 4, 4)
    scan = Volume(values, Affine.identity(), modality="CT", meta={"kind": "dicom"})
    assert contrast_limits(scan)[1] > 4000


def test_files_open_in_a_window(
    make_napari_viewer, tmp_path: Path, told: list[str]
) -> None:
    volume = _scan((2, 0, 1), (1, -1, 1))
    write_volume(volume, tmp_path / "scan.nii.gz")
    write_labels(_labels(volume), tmp_path / "scan_seg.nii.gz")
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    _write_dicom(tmp_path / "dicom", 4)
    viewer = make_napari_viewer(show=True)  # not the proxy: napari's button is private
    paths = [
        tmp_path / n for n in ("scan.nii.gz", "bad.nii", "scan_seg.nii.gz", "dicom")
    ]
    viewer.open([str(p) for p in paths], plugin="napari-homolog")
    image, labels, dicom = viewer.layers
    assert type(labels).__name__ == "Labels"
    index = np.argwhere(image.data == 1000)[0]
    assert np.allclose(image.data_to_world(index), volume.affine.apply((1, 4, 2)))
    assert np.argwhere(labels.data == 1)[0].tolist() == index.tolist()
    assert [str(u) for u in image.units] == ["millimeter"] * 3
    assert dicom.data.shape == (4, 6, 6)
    assert viewer.screenshot(canvas_only=True, flash=False).max() > 0
    # napari's own "new labels" button, saved on the grid of the scan below.
    viewer.layers.remove(dicom)
    viewer.layers.remove(labels)
    viewer.layers.selection.active = image
    viewer._new_labels()
    drawn = viewer.layers[-1]
    drawn.data[tuple(index)] = 2
    target = tmp_path / "drawn.nii.gz"
    (saved,) = drawn.save(str(target), plugin="napari-homolog")
    assert saved == str(target)
    (again,) = drawn.save(str(target))  # nobody else writes NIfTI
    assert Path(again).name == "drawn_v2.nii.gz"
    back = read_labels(target)
    assert np.argwhere(back.data == 2).tolist() == [[1, 4, 2]]
    assert back.affine == read_scan(tmp_path / "scan.nii.gz").affine


def test_folders_with_and_without_dicom_once_they_are_ours(
    make_napari_viewer_proxy, tmp_path: Path, told: list[str]
) -> None:
    _write_dicom(tmp_path / "dicom", 4)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        sitk.WriteImage(
            sitk.Image(6, 5, sitk.sitkUInt8), str(tmp_path / "photos" / name)
        )
    settings = reader._settings()
    before = dict(settings.extension2reader)
    viewer = make_napari_viewer_proxy()
    try:
        reader.associate()
        viewer.open(str(tmp_path / "dicom"), plugin=None)
        viewer.open(str(tmp_path / "photos"), plugin=None)
    finally:
        settings.extension2reader = before
    assert [layer.data.shape for layer in viewer.layers] == [(4, 6, 6), (2, 5, 6)]
    assert "homolog" in viewer.layers[0].metadata
    assert "homolog" not in viewer.layers[1].metadata


def test_sample_data_opens(make_napari_viewer_proxy) -> None:
    viewer = make_napari_viewer_proxy()
    for key in ("phantom", "phantom_mr", "two_phantoms"):
        viewer.open_sample("napari-homolog", key)
    kinds = [type(layer).__name__ for layer in viewer.layers]
    assert kinds == ["Image", "Labels", "Image", "Image", "Image"]
    assert viewer.layers[1].metadata["label_names"][1] == "liver"
    modality = viewer.layers[2].metadata["homolog"]["modality"]
    assert modality == "MR"
