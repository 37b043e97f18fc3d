"""Opening scans: layers lie in true millimetres, whatever the file's axis order."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

from homolog.data.scan_io import write_labels, write_volume
from homolog.data.volume import LabelMap, Volume
from homolog.geometry.affine import Affine
from homolog.gui.layers import contrast_limits, volume_layer
from homolog.gui.reader import get_reader

ORDERS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def _scan(axes: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    direction = np.zeros((3, 3))
    for array_axis, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        direction[world, array_axis] = sign
    affine = Affine.of((2.0, 1.5, 1.0), (-10.0, 20.0, 5.0), direction)
    data = np.zeros((1, 5, 6, 7), dtype=np.int16)
    data[0, 1, 4, 2] = 1000
    return Volume(data, affine, "marked")


@pytest.mark.parametrize(("axes", "signs"), ORDERS)
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


def test_ct_opens_in_the_soft_tissue_window() -> None:
    scan = Volume(np.full((1, 2, 2, 2), -1000), Affine.identity(), modality="CT")
    assert contrast_limits(scan) == (-160.0, 240.0)


def test_files_of_others_are_left_to_others(tmp_path: Path) -> None:
    assert get_reader(str(tmp_path / "picture.svg")) is None


def test_a_scan_and_its_labels_open_in_a_window(
    make_napari_viewer, tmp_path: Path
) -> None:
    volume = _scan((2, 0, 1), (1, -1, 1))
    write_volume(volume, tmp_path / "scan.nii.gz")
    write_labels(
        LabelMap((volume.data[0] > 0).astype(np.uint8), volume.affine),
        tmp_path / "scan_seg.nii.gz",
    )
    viewer = make_napari_viewer(show=True)
    viewer.open(str(tmp_path / "scan.nii.gz"), plugin="napari-homolog")
    viewer.open(str(tmp_path / "scan_seg.nii.gz"), plugin="napari-homolog")
    image, labels = viewer.layers
    assert type(labels).__name__ == "Labels"
    index = np.argwhere(image.data == 1000)[0]
    assert np.allclose(image.data_to_world(index), volume.affine.apply((1, 4, 2)))
    assert np.argwhere(labels.data == 1)[0].tolist() == index.tolist()
    assert [str(u) for u in image.units] == ["millimeter"] * 3
    assert viewer.screenshot(canvas_only=True, flash=False).max() > 0


def test_sample_data_opens(make_napari_viewer) -> None:
    viewer = make_napari_viewer()
    viewer.open_sample("napari-homolog", "phantom")
    assert [type(layer).__name__ for layer in viewer.layers] == ["Image", "Labels"]
