"""The MR look of the phantom: same anatomy, other grey values, the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from homolog.phantom.phantom import (
    make_mr_phantom,
    make_phantom,
    patient_seed,
    random_scanner,
    write_cohort,
)
from homolog.scans.files import read_scan

SMALL = {"shape": (24, 28, 28), "spacing_mm": (10.0, 10.0, 10.0)}


def test_the_mr_phantom_is_its_patient_in_other_values() -> None:
    ct, mr = make_phantom(4, **SMALL), make_mr_phantom(4, **SMALL)
    assert mr.volume.modality == "MR"
    assert mr.volume.affine == ct.volume.affine
    assert np.array_equal(mr.labels.data, ct.labels.data)
    data = mr.volume.data
    assert data.dtype == np.int16
    assert data.min() >= 0
    again = make_mr_phantom(4, **SMALL).volume.data
    assert np.array_equal(data, again)
    # Fat is bright and blood dark, unlike in CT.
    blood = data[0][mr.labels.data == 9].mean()
    liver = data[0][mr.labels.data == 1].mean()
    assert blood < 0.6 * liver


def test_scanners_show_one_body_differently_and_each_the_same_way() -> None:
    plain = make_mr_phantom(4, **SMALL)
    same = make_mr_phantom(4, **SMALL, scanner=random_scanner(0, 1, strength=0.0))
    one, other = (
        make_mr_phantom(4, **SMALL, scanner=random_scanner(0, number))
        for number in (1, 2)
    )
    again = make_mr_phantom(4, **SMALL, scanner=random_scanner(0, 1))
    assert np.array_equal(one.volume.data, again.volume.data)
    assert np.array_equal(one.labels.data, other.labels.data)
    assert np.abs(same.volume.data - plain.volume.data).mean() < 25  # noise alone
    apart = np.abs(one.volume.data.astype(float) - other.volume.data).mean()
    assert apart > 50
    tissues = [one.labels.data == v for v in (1, 2, 5, 7)]
    ratios = [
        one.volume.data[0][t].mean() / other.volume.data[0][t].mean() for t in tissues
    ]
    assert max(ratios) > 1.3 * min(ratios)  # not a factor: the contrast is another


def test_patients_of_a_cohort_take_turns_at_the_scanners(tmp_path: Path) -> None:
    names = write_cohort(tmp_path, 4, test=1, mr_scanners=2, **SMALL)
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "MR"}
    (file,) = tmp_path.glob(f"imagesTs/{names[3]}_0000.nii.gz")
    scan = read_scan(file)
    by_hand = make_mr_phantom(patient_seed(0, 3), **SMALL, scanner=random_scanner(0, 1))
    assert np.array_equal(scan.data, by_hand.volume.data)
