"""Saving layers: the source's grid and affine, read back by others too."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("napari")

from napari.layers import Image, Labels, Layer

from each import each
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.gui.files import writer
from homolog.gui.shared import notices
from homolog.gui.shared.layers import derived_attributes, label_layer, volume_layer
from homolog.scans.files import (
    read_header,
    read_labels,
    read_scan,
)
from homolog.scans.names import names_beside
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume

MARK = (1, 4, 2)
ORDERS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
TILT = 20.0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(writer, "notify", lambda text, level="": said.append(text))
    notices.forget()
    return said


def turn(degrees: float) -> np.ndarray:
    x, y, z = np.array((1.0, 2.0, 0.5)) / np.linalg.norm((1.0, 2.0, 0.5))
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    a = np.radians(degrees)
    return np.eye(3) + np.sin(a) * k + (1 - np.cos(a)) * k @ k


def scan(
    axes: tuple[int, ...] = (0, 1, 2),
    signs: tuple[int, ...] = (1, 1, 1),
    degrees: float = 0.0,
) -> Volume:
    direction = np.zeros((3, 3))
    for array_axis, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        direction[world, array_axis] = sign
    affine = Affine.of((2.0, 1.5, 1.25), (-10.0, 20.0, 5.0), turn(degrees) @ direction)
    data = np.zeros((1, 5, 6, 7), np.int16)
    data[(0, *MARK)] = 1000
    return Volume(data, affine, "marked", "MR")


def image_layer(volume: Volume) -> Image:
    return Layer.create(*volume_layer(volume))


def itk_place(path: Path, index: tuple[int, ...]) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    place = image.TransformIndexToPhysicalPoint([int(v) for v in index[::-1]])
    return np.array(place[::-1])


@each("degrees", [0.0, TILT])
@each("axes, signs", ORDERS)
def test_labels_are_saved_on_the_grid_of_their_scan(
    axes: tuple[int, ...], signs: tuple[int, ...], degrees: float, tmp_path: Path
) -> None:
    source = tmp_path / "scan.nii"
    write_volume(scan(axes, signs, degrees), source)
    volume = read_scan(source)
    image = image_layer(volume)
    drawn = Labels(
        (image.data == 1000).astype(np.int32) * 3, **derived_attributes(image, "drawn")
    )
    (path,) = writer.save_layer(drawn, tmp_path / "drawn.nii.gz")
    assert read_header(path).affine == read_header(source).affine  # bit for bit
    saved = read_labels(path)
    assert np.argwhere(saved.data == 3).tolist() == [list(MARK)]
    assert np.allclose(saved.affine.matrix, volume.affine.matrix, atol=1e-5)
    assert np.allclose(itk_place(path, MARK), volume.affine.apply(MARK), atol=1e-4)


@each("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_an_image_comes_back_as_it_was(suffix: str, tmp_path: Path) -> None:
    volume = scan((2, 0, 1), (1, -1, 1), TILT)
    (path,) = writer.save_layer(image_layer(volume), tmp_path / f"x{suffix}")
    back = read_scan(path)
    assert np.array_equal(back.data, volume.data)
    assert np.allclose(back.affine.matrix, volume.affine.matrix, atol=1e-5)
    assert np.allclose(itk_place(path, MARK), volume.affine.apply(MARK), atol=1e-4)
    reloaded = image_layer(back)
    assert np.allclose(reloaded.translate, image_layer(volume).translate, atol=1e-4)


@pytest.mark.parametrize("degrees", [0.0, TILT])
def test_labels_of_napari_take_the_scan_they_were_drawn_on(
    degrees: float, tmp_path: Path
) -> None:
    volume = scan((1, 2, 0), (-1, 1, 1), degrees)
    image = image_layer(volume)
    drawn = Labels(
        (image.data == 1000).astype(np.uint8), scale=image.scale,
        translate=image.translate, name="Labels",
    )  # fmt: skip
    (path,) = writer.save_layer(drawn, tmp_path / "drawn.nrrd", [image, drawn])
    saved = read_labels(path)
    assert np.allclose(saved.affine.matrix, volume.affine.matrix, atol=1e-5)
    assert np.argwhere(saved.data == 1).tolist() == [list(MARK)]
    assert "homolog" not in drawn.metadata


def test_layers_of_nobody_are_saved_where_they_are_shown(tmp_path: Path) -> None:
    alone = Labels(np.ones((2, 3, 4), int), scale=(3, 2, 1), translate=(5, 6, 7))
    (path,) = writer.save_layer(alone, tmp_path / "alone.nii.gz")
    affine = read_header(path).affine
    assert np.allclose(affine.spacing_mm, (3, 2, 1))
    assert np.allclose(affine.origin_mm, (5, 6, 7))
    values = np.zeros((2, 3, 4), np.float32)
    turned = Image(values, rotate=30, scale=(3, 2, 1), name="turned")
    (path,) = writer.save_layer(turned, tmp_path / "turned.nii.gz")
    expected = np.array(turned.data_to_world((1, 2, 3)))
    assert np.allclose(read_header(path).affine.apply((1, 2, 3)), expected, atol=1e-4)


def test_nothing_is_replaced_and_names_lie_beside(
    tmp_path: Path, told: list[str]
) -> None:
    volume = scan()
    labels = read_labels_of(volume, tmp_path)
    data, attributes, _ = labels
    target = str(tmp_path / "organs.nii.gz")
    first = writer.write_labels_layer(target, data, attributes)
    assert [Path(f).name for f in first] == ["organs.nii.gz", "organs.labels.json"]
    before = Path(first[0]).read_bytes()
    second = writer.write_labels_layer(target, data, attributes)
    assert Path(second[0]).name == "organs_v2.nii.gz"
    assert Path(first[0]).read_bytes() == before
    assert told == ["organs.nii.gz was there already; saved as organs_v2.nii.gz."]
    assert json.loads(Path(second[1]).read_text()) == {"1": "liver", "2": "spleen"}
    assert names_beside(Path(second[0])) == {1: "liver", 2: "spleen"}


def read_labels_of(volume: Volume, folder: Path) -> Any:
    from homolog.scans.volume import LabelMap

    data = (volume.data[0] > 0).astype(np.uint8)
    return label_layer(
        LabelMap(data, volume.affine, {1: "liver", 2: "spleen"}, "organs")
    )


def test_several_layers_become_a_file_each(tmp_path: Path, told: list[str]) -> None:
    volume = scan((2, 1, 0), (1, 1, -1))
    layers = [volume_layer(volume), read_labels_of(volume, tmp_path)]
    files = writer.write_layers(str(tmp_path / "case.nii.gz"), layers)
    names = ["case_marked.nii.gz", "case_organs.nii.gz", "case_organs.labels.json"]
    assert [Path(f).name for f in files] == names
    inside = writer.write_layers(str(tmp_path / "folder"), layers)
    assert Path(inside[0]) == tmp_path / "folder" / "marked.nii.gz"
    assert not told


def test_names_may_stand_in_the_features() -> None:
    labels = Labels(
        np.ones((1, 2, 2), int), features={"index": [0, 1], "label": ["", "cyst"]}
    )
    assert writer.label_names(labels) == {1: "cyst"}


@each(
    "layer, name, said",
    [
        (Image(np.zeros((4, 4, 3), np.uint8), rgb=True), "x.nii", "only grey images"),
        (Image(np.zeros((2, 2, 2, 2))), "x.nii", "2 or 3 dimensions"),
        (Image(np.zeros((2, 2, 2))), "x.txt", "must end in"),
    ],
)
def test_what_cannot_be_saved_is_said(
    layer: Image, name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UnusableInput, match=said):
        writer.save_layer(layer, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_picture_of_two_dimensions_is_saved(tmp_path: Path) -> None:
    flat = Image(np.arange(6.0).reshape(2, 3), scale=(2, 1))
    (path,) = writer.save_layer(flat, tmp_path / "flat.mha")
    assert np.array_equal(read_scan(path).data[0, 0], flat.data)
