"""Results handed on from the Segment tab: to 3D Slicer, DICOM, a report, a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.layers import Image, Labels, Layer
from napari.utils import DirectLabelColormap

from dicom_writer import series
from each import each
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.gui.files import opening, writer
from homolog.gui.segment.control import MadeBy
from homolog.gui.segment.export_box import (
    new_path,
    report_config,
    scan_of,
    write_picture,
)
from homolog.gui.shared.layers import derived_attributes
from homolog.gui.shared.widgets import with_ending
from homolog.reporting.case import Case
from homolog.scans.formats.slicer import label_colours
from homolog.scans.names import names_beside
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume

NAMES = {1: "liver", 4: "left kidney"}
COLOURS = {1: (1.0, 0.0, 0.0), 4: (0.0, 0.25, 1.0)}
LEANING = Affine.of(
    (3.0, 2.0, 1.5), (10.0, 20.0, 30.0), np.diag([-1.0, 1.0, -1.0])[[0, 2, 1]]
)


def drawn_on(scan: Any) -> Labels:
    data = np.zeros(scan.data.shape, np.uint8)
    data[1:3, 2:5, 3:7], data[3, 6, 8] = 1, 4
    layer = Labels(data, **derived_attributes(scan, "result"))
    layer.metadata["label_names"] = NAMES
    shown = {value: (*colour, 1.0) for value, colour in COLOURS.items()}
    layer.colormap = DirectLabelColormap(color_dict={None: (0, 0, 0, 0), **shown})
    return layer


@pytest.fixture
def scan(tmp_path: Path) -> Layer:
    values = np.random.default_rng(0).normal(40, 9, (1, 6, 9, 11)).astype(np.int16)
    path = tmp_path / "CT_1.nii.gz"
    write_volume(Volume(values, LEANING, "", "CT"), path)
    return Layer.create(*opening.read_layer(path))


def test_what_slicer_gets_opens_as_it_was_shown(scan: Layer, tmp_path: Path) -> None:
    labels = drawn_on(scan)
    for name in ("a.seg.nrrd", "a_v2.seg.nrrd"):  # what is there stays
        (path,) = writer.save_layer(labels, tmp_path / "a.seg.nrrd")
        assert path.name == name
    again = Layer.create(*opening.read_layer(path))
    assert np.array_equal(again.data, labels.data)
    assert np.allclose(again.scale, labels.scale)
    assert np.allclose(again.translate, labels.translate, atol=1e-4)
    assert writer.label_names(again) == NAMES
    told = writer.label_colours(again, NAMES)
    assert {v: tuple(np.round(c, 5)) for v, c in told.items()} == COLOURS


def test_a_hidden_class_keeps_its_colour_in_the_file(
    scan: Layer, tmp_path: Path
) -> None:
    labels = drawn_on(scan)
    labels.metadata["homolog_colours"] = {1: (0.0, 1.0, 0.0, 1.0)}
    labels.colormap = DirectLabelColormap(color_dict={None: (0, 0, 0, 0)})
    (path,) = writer.save_layer(labels, tmp_path / "a.seg.nrrd")
    assert label_colours(path)[1] == (0.0, 1.0, 0.0)


@each("kinds", [("CT", True), ("CT", False)])
def test_a_dicom_segmentation_of_the_open_series(
    kinds: tuple[str, bool], tmp_path: Path
) -> None:
    kind, named = kinds
    # an anonymised series may lack even the kind of its images
    more = {} if named else {"more": {0x00080016: ("UI", "")}}
    series(tmp_path / "exam", 6, kind, **more)
    scan = Layer.create(*opening.read_layer(tmp_path / "exam"))
    labels = drawn_on(scan)
    (path,) = writer.save_layer(labels, tmp_path / "a.seg.dcm")
    again = Layer.create(*opening.read_layer(path))
    assert int((again.data > 0).sum()) == int((labels.data > 0).sum())
    assert list(names_beside(path).values()) == list(NAMES.values())


def test_a_dicom_segmentation_needs_a_dicom_series(scan: Layer, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="belongs to a DICOM series"):
        writer.save_layer(drawn_on(scan), tmp_path / "a.seg.dcm")
    with pytest.raises(UnusableInput, match="must end in one of"):
        writer.save_layer(scan, tmp_path / "a.seg.dcm")


def test_a_report_is_asked_for_with_all_that_is_shown(
    scan: Layer, tmp_path: Path
) -> None:
    labels, other = drawn_on(scan), Image(np.zeros((6, 9, 11)), name="elsewhere")
    assert scan_of(labels, [other, labels, scan]) is scan
    assert scan_of(labels, [other, labels]) is None
    made = MadeBy(str(tmp_path), ("This scan is MR, not CT.",))
    made.keep({"metadata": labels.metadata})
    scan.contrast_limits = (0.0, 80.0)
    config = report_config(scan, labels, [scan, labels], tmp_path / "r.html", tmp_path)
    assert config["scan"] == str(tmp_path / "CT_1.nii.gz")
    assert config["window"] == [0.0, 80.0]
    assert config["model"] == str(tmp_path)
    assert config["warning"] == ["This scan is MR, not CT."]
    case = Case.read(Path(config["scan"]), Path(config["labels"]))
    assert [row.name for row in case.rows()] == list(NAMES.values())
    assert {v: tuple(np.round(c, 5)) for v, c in case.colours.items()} == COLOURS
    made = MadeBy(str(tmp_path / "deleted"), ())
    made.keep({"metadata": labels.metadata})
    config = report_config(scan, labels, [scan], tmp_path / "r.html", tmp_path)
    assert config["model"] is None


def test_a_figure_and_a_page_replace_nothing(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5, 4), np.uint8)
    assert write_picture(pixels, tmp_path / "a.b").name == "a.b.png"
    assert write_picture(pixels, tmp_path / "a.b.png").name == "a.b_v2.png"
    assert new_path(tmp_path / "page", ".html").name == "page.html"


KINDS = "NIfTI (*.nii.gz *.nii);;3D Slicer (*.seg.nrrd);;NRRD (*.nrrd)"


@each(
    "typed, kind, asked, wanted",
    [
        ("a.nii.gz", "NIfTI (*.nii.gz *.nii)", False, "a.nii.gz"),
        ("a.nii", "NIfTI (*.nii.gz *.nii)", True, "a.nii"),
        ("a", "NIfTI (*.nii.gz *.nii)", False, "a.nii.gz"),
        ("a.v1", "NIfTI (*.nii.gz *.nii)", False, "a.v1.nii.gz"),
        ("a.seg.nrrd", "NIfTI (*.nii.gz *.nii)", False, "a.seg.nrrd"),
        ("a.nii.gz", "3D Slicer (*.seg.nrrd)", True, "a.seg.nrrd"),
        ("a.nrrd", "3D Slicer (*.seg.nrrd)", True, "a.seg.nrrd"),
        ("a", "All files (*)", True, "a"),
    ],
)
def test_the_kind_chosen_in_a_dialog_gives_the_ending(
    typed: str, kind: str, asked: bool, wanted: str
) -> None:
    assert with_ending(typed, kind, f"{KINDS};;All files (*)", asked=asked) == wanted
