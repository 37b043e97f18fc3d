"""Layers as scans: a marked voxel keeps its millimetre place there and back."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from each import each
from homolog.geometry.affine import Affine
from homolog.gui.shared.layers import (
    SourceGrid,
    derived_attributes,
    grid_attributes,
    layer_scan,
    layer_volume,
    sample,
    scan_file,
    shown_to_true,
    true_affine,
    volume_layer,
)
from homolog.scans.files import read_scan
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume

MARK = (1, 4, 2)
ORDERS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


class Image(SimpleNamespace):
    """What is looked at of napari's class of this name."""


def turn(degrees: float, axis: tuple[float, ...] = (1.0, 2.0, 0.5)) -> np.ndarray:
    x, y, z = np.array(axis) / np.linalg.norm(axis)
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
    affine = Affine.of((2.0, 1.5, 1.0), (-10.0, 20.0, 5.0), turn(degrees) @ direction)
    data = np.random.default_rng(0).integers(0, 900, (1, 5, 6, 7)).astype(np.int16)
    data[(0, *MARK)] = 1000
    return Volume(data, affine, "marked", "MR")


def layer_of(volume: Volume) -> Any:
    data, attributes, _ = volume_layer(volume)
    return Image(data=data, **attributes)


@each("degrees", [0.0, 20.0])
@each("axes, signs", ORDERS)
def test_a_marked_voxel_keeps_its_place(
    axes: tuple[int, ...], signs: tuple[int, ...], degrees: float, tmp_path: Path
) -> None:
    volume = scan(axes, signs, degrees)
    place = volume.affine.apply(MARK)
    layer = layer_of(volume)
    index = np.argwhere(layer.data == 1000)[0]
    shown = index * layer.scale + layer.translate
    assert np.allclose(shown_to_true(layer).apply(shown), place)
    assert np.allclose(true_affine(layer).apply(index), place)
    assert (shown_to_true(layer) == Affine.identity()) is (degrees == 0)
    path = scan_file(layer, tmp_path)
    back = read_scan(path)
    assert np.array_equal(back.data, volume.data)
    assert np.allclose(back.affine.matrix, volume.affine.matrix, atol=1e-5)
    again = layer_of(back)
    assert np.array_equal(again.data, layer.data)
    assert np.allclose(again.translate, layer.translate, atol=1e-4)


def test_a_tilted_scan_is_turned_about_its_centre() -> None:
    layer = layer_of(scan(degrees=8))
    centre = (np.array(layer.data.shape) - 1) / 2 * layer.scale + layer.translate
    assert np.allclose(shown_to_true(layer).apply(centre), centre)
    assert layer.metadata["homolog"]["note"].startswith("tilted ")


def test_an_untouched_layer_is_its_file(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    write_volume(scan((2, 0, 1), (1, -1, 1)), path)
    layer = layer_of(read_scan(path))
    found = layer_scan(layer)
    assert found is not None
    assert found.path == path == scan_file(layer, tmp_path / "scratch")
    assert found.shape == layer.data.shape
    assert np.allclose(found.spacing_mm, layer.scale)


@each("change", ["values", "moved", "file", "cropped"])
def test_a_changed_layer_is_written(change: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    volume = scan((2, 0, 1), (1, -1, 1), 15)
    write_volume(volume, path)
    layer = layer_of(read_scan(path))
    place = volume.affine.apply(MARK)
    if change == "values":
        layer.data = layer.data * 2
    elif change == "moved":
        layer.translate = np.add(layer.translate, (0.0, 0.0, 3.0))
        place = place + shown_to_true(layer).matrix[:3, 2] * 3.0
    elif change == "cropped":
        layer.data = layer.data[1:, :-1]
        layer.translate = np.add(layer.translate, (layer.scale[0], 0.0, 0.0))
    else:
        path.write_bytes(b"something else")
    assert layer_scan(layer).path is None
    written = scan_file(layer, tmp_path / "scratch")
    back = read_scan(written)
    mark = np.argwhere(back.data[0] == back.data.max())[0]
    assert np.allclose(back.affine.apply(mark), place, atol=1e-4)


def test_a_heat_map_is_no_scan_and_lies_on_it() -> None:
    layer = layer_of(scan(degrees=20))
    heat = Image(data=layer.data, **derived_attributes(layer, "heat"))
    assert heat.name == "heat"
    assert layer_scan(heat) is None
    assert np.allclose(true_affine(heat).matrix, true_affine(layer).matrix)
    assert np.allclose(layer_volume(heat).affine.matrix, scan(degrees=20).affine.matrix)


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_a_cell_grid_lies_where_its_scan_does(degrees: float) -> None:
    volume = scan((1, 2, 0), (1, -1, -1), degrees)
    layer = layer_of(volume)
    cells = true_affine(layer).coarsen((2, 2, 2))
    attributes = grid_attributes(layer, cells)
    assert np.allclose(attributes["scale"], np.multiply(layer.scale, 2))
    first = np.add(layer.translate, np.multiply(layer.scale, 0.5))
    assert np.allclose(attributes["translate"], first)
    coarse = Image(data=np.zeros((2, 3, 3)), **attributes)
    assert np.allclose(true_affine(coarse).matrix, cells.matrix)
    with pytest.raises(ValueError, match="does not run along"):
        grid_attributes(layer, cells @ Affine(np.eye(4)[[1, 0, 2, 3]]))


def test_layers_of_others_lie_where_they_are_shown(tmp_path: Path) -> None:
    other = Image(
        data=np.arange(24.0).reshape(2, 3, 4),
        name="cells.tif",
        scale=(2000.0, 500.0, 500.0),
        translate=(0.0, 1000.0, 0.0),
        units=("micrometer",) * 3,
        metadata={},
    )
    found = layer_scan(other)
    assert found is not None
    assert found.path is None
    assert np.allclose(found.spacing_mm, (2.0, 0.5, 0.5))
    back = read_scan(scan_file(other, tmp_path))
    assert np.array_equal(back.data[0], other.data)
    assert np.allclose(back.affine.origin_mm, (0.0, 1.0, 0.0), atol=1e-5)
    assert derived_attributes(other, "x")["units"] == other.units


def test_pictures_have_one_slice_and_colour_is_no_scan() -> None:
    flat = Image(
        data=np.zeros((4, 5)), name="x", scale=(1, 2), translate=(0, 0), metadata={}
    )
    assert layer_scan(flat).shape == (1, 4, 5)
    assert derived_attributes(flat, "y")["axis_labels"] == ("y", "x")
    flat.rgb = True
    assert layer_scan(flat) is None
    assert layer_scan(SimpleNamespace(data=flat.data, name="labels")) is None


def test_broken_metadata_are_as_none() -> None:
    layer = layer_of(scan())
    layer.metadata = {"homolog": {"affine": "?", "shape": (1, 2)}}
    assert layer_scan(layer) is not None
    assert np.allclose(true_affine(layer).origin_mm, layer.translate)


def test_samples_are_spread_and_small() -> None:
    data = np.arange(1000).reshape(10, 10, 10)[::-1].transpose(2, 0, 1)
    values = sample(data, 100)
    assert values.size == 100
    assert values[0] == data[0, 0, 0]
    assert values[-1] == data[-1, -1, -1]
    assert SourceGrid.of(Affine.identity(), (1, 1, 1)).tilt_degrees == 0.0
