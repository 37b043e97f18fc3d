"""A page on one labelled scan: right numbers, right side, nothing of the machine."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from homolog.cli import cli
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.reporting.case import Case, case_page
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume

SHAPE = (6, 8, 10)
# Voxels of 3 x 2 x 1 mm, stored from head to feet and from left to right.
PLACE = Affine.of((3.0, 2.0, 1.0), (40.0, 0.0, 9.0), np.diag([-1.0, 1.0, -1.0]))
NAMES = {1: "liver", 2: "left kidney", 5: "spleen"}
COLOURS = {1: (1.0, 0.0, 0.0), 2: (0.0, 0.0, 1.0), 5: (0.0, 1.0, 0.0)}


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path]:
    values = np.full((1, *SHAPE), -1000.0, np.float32)
    values[0, 0:2, 2:6, 1:4], values[0, 3, 2:4, 7:9] = 60.0, 30.0
    values[0, 0, 2, 1] = 80.0
    labels = np.zeros(SHAPE, np.uint8)
    labels[0:2, 2:6, 1:4], labels[3, 2:4, 7:9] = 1, 2
    scan, told = tmp_path / "CT_1.nii.gz", tmp_path / "CT_1.seg.nrrd"
    write_volume(Volume(values.astype(np.int16), PLACE, "", "CT"), scan)
    write_labels(LabelMap(labels, PLACE, NAMES), told, COLOURS)
    return scan, told


def test_numbers_of_the_classes_by_hand(case: tuple[Path, Path]) -> None:
    liver, kidney, spleen = Case.read(*case).rows()
    assert (liver.name, liver.voxels, liver.slices) == ("liver", 24, (4, 5))
    assert liver.volume_ml == pytest.approx(24 * 6 / 1000)  # 3 * 2 * 1 mm
    inside = [60.0] * 23 + [80.0]
    assert liver.mean == pytest.approx(np.mean(inside))
    assert liver.sd == pytest.approx(np.std(inside))
    assert (kidney.voxels, kidney.slices) == (4, (2, 2))  # from the feet
    assert (spleen.voxels, spleen.slices, spleen.volume_ml) == (0, None, 0.0)


def test_the_page_tells_all_and_no_path(
    case: tuple[Path, Path], tmp_path: Path
) -> None:
    read = Case.read(*case)
    page = case_page(
        read, "CT_1", warnings=["seen at 5 mm only."], today=datetime.date(2031, 2, 3)
    )
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in (
        "0.144 ml", "absent", "Seen at 5 mm only.", "2031-02-03", "rgb(255,0,0)",
        "CT, 10 x 8 x 6 voxels, 1 x 2 x 3 mm (x, y, z)", "no diagnosis",
    ):  # fmt: skip
        assert words in text, words
    assert str(tmp_path) not in text
    # the right of the patient is on the left: the liver's red before the kidney's blue
    red, blue = (
        np.argwhere(read.labels.data == value)[:, 2].mean() for value in (1, 2)
    )
    assert read.scan.affine.direction[2, 2] > 0  # x runs to the left of the patient
    assert (red < blue) == (PLACE.apply((0, 2, 1))[2] < PLACE.apply((3, 2, 8))[2])


def test_the_command_and_what_it_refuses(
    case: tuple[Path, Path], tmp_path: Path
) -> None:
    scan, labels = case
    words = ["case-report", str(scan), str(labels), "--out", str(tmp_path / "a.html")]
    done = CliRunner().invoke(cli, [*words, "--window", "-100,300", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert [c["name"] for c in result["classes"]] == list(NAMES.values())
    again = CliRunner().invoke(cli, words)
    assert isinstance(again.exception, UnusableInput)
    assert "is there already" in str(again.exception)
    other = tmp_path / "other.nii.gz"
    write_volume(Volume(np.zeros((1, 4, 4, 4), np.int16), PLACE, "", "CT"), other)
    with pytest.raises(UnusableInput, match=r"of another scan\?"):
        Case.read(other, labels)
