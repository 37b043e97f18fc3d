"""The procedural anatomy: repeatable, plausible, and exactly corresponding."""

from __future__ import annotations

import json

import numpy as np
import pytest

from homolog.errors import UnusableInput
from homolog.phantom.anatomy import LABEL_NAMES, landmarks
from homolog.phantom.phantom import make_phantom
from homolog.scans.points import read_points, write_points
from homolog.scans.volume import Points

SMALL = {"shape": (32, 40, 40), "spacing_mm": (8.0, 8.0, 8.0)}


@pytest.fixture(scope="module")
def patients():
    return [make_phantom(seed, **SMALL) for seed in (1, 2)]


def test_same_seed_gives_the_same_patient(patients):
    again = make_phantom(1, **SMALL)
    assert np.array_equal(again.volume.data, patients[0].volume.data)
    assert np.array_equal(again.labels.data, patients[0].labels.data)
    assert again.volume.affine == patients[0].volume.affine


def test_other_seed_gives_another_patient(patients):
    a, b = patients
    assert a.volume.affine != b.volume.affine
    assert np.mean(a.labels.data != b.labels.data) > 0.02


def test_every_organ_is_there(patients):
    for patient in patients:
        assert set(np.unique(patient.labels.data)) == {0, *LABEL_NAMES}


def test_tissues_have_their_attenuation(patients):
    for patient in patients:
        hu, label = patient.volume.data[0], patient.labels.data
        mean = {name: hu[label == v].mean() for v, name in LABEL_NAMES.items()}
        assert -900 < mean["lung_left"] < -600
        assert 30 < mean["liver"] < 140
        assert mean["vertebrae"] > 150
        assert hu[0, 0, 0] < -900


def test_liver_lies_right_spleen_left_and_spine_behind(patients):
    for patient in patients:
        where = {
            name: patient.labels.affine.apply(np.argwhere(patient.labels.data == v))
            for v, name in LABEL_NAMES.items()
        }
        centre = {name: mm.mean(axis=0) for name, mm in where.items()}
        assert centre["liver"][2] < centre["vertebrae"][2] < centre["spleen"][2]
        assert centre["vertebrae"][1] > centre["aorta"][1] > centre["liver"][1]
        assert centre["heart"][0] > centre["liver"][0]


def test_place_inverts_the_map_to_the_atlas(patients):
    atlas = np.array(list(landmarks().values()))
    for patient in patients:
        back = patient.warp.to_atlas(patient.place(atlas))
        assert np.abs(back - atlas).max() < 1e-6


def test_deformation_never_folds():
    # The Jacobian's determinant, by central differences over the whole trunk.
    for seed in range(6):
        warp = make_phantom(seed, (4, 4, 4)).warp
        grid = np.stack(
            np.meshgrid(*[np.linspace(-h, h, 9) for h in (130, 100, 145)]), -1
        ).reshape(-1, 3)
        centre = warp.affine.inverse().apply(grid)
        columns = [
            (warp.to_atlas(centre + step) - warp.to_atlas(centre - step)) / 0.02
            for step in 0.01 * np.eye(3)
        ]
        assert np.linalg.det(np.stack(columns, -1)).min() > 0.05


def test_corresponding_points_carry_the_same_label(patients):
    a, b = patients
    inner = np.argwhere(a.labels.data > 0)[::37]
    mm = a.corresponding(a.labels.affine.apply(inner), b)
    index = np.rint(b.labels.affine.inverse().apply(mm)).astype(int)
    seen = ((index >= 0) & (index < np.array(b.labels.shape))).all(axis=1)
    assert seen.mean() > 0.7
    same = a.labels.data[tuple(inner[seen].T)] == b.labels.data[tuple(index[seen].T)]
    assert same.mean() > 0.75  # half-voxel rounding at 8 mm costs the borders


def test_landmarks_lie_inside_the_scan(patients):
    for patient in patients:
        index = patient.volume.affine.inverse().apply(patient.landmarks.mm)
        assert (index >= 0).all()
        assert (index <= np.array(patient.volume.shape) - 1).all()
        assert len(patient.landmarks.names) >= 25


def test_place_does_not_depend_on_the_grid():
    coarse = make_phantom(5, (8, 10, 10), (32.0, 32.0, 32.0))
    fine = make_phantom(5, (16, 10, 10), (16.0, 32.0, 32.0))
    atlas = np.array([[0.0, 0.0, 0.0], [40.0, -20.0, -60.0]])
    np.testing.assert_allclose(coarse.place(atlas), fine.place(atlas), atol=1e-9)


def test_cohort_is_an_nnunet_folder_with_landmarks(tmp_path):
    from homolog.phantom.phantom import write_cohort
    from homolog.scans.files import read_labels, read_scan

    names = write_cohort(
        tmp_path,
        4,
        seed=4,
        labelled=2,
        test=1,
        shape=(8, 10, 10),
        spacing_mm=(32.0, 32.0, 32.0),
    )
    assert names == [f"phantom_00{i}" for i in range(4)]
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["numTraining"] == 2
    assert description["labels"]["liver"] == 1
    parts = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "landmarks")
    assert [len(list((tmp_path / p).iterdir())) for p in parts] == [3, 2, 1, 1, 4]
    scan = read_scan(tmp_path / "imagesTr" / "phantom_001_0000.nii.gz")
    label = read_labels(tmp_path / "labelsTr" / "phantom_001.nii.gz")
    assert scan.shape == label.shape == (8, 10, 10)
    points = read_points(tmp_path / "landmarks" / "phantom_001.csv")
    index = scan.affine.inverse().apply(points.mm)
    assert (index > -0.01).all()
    assert (index < np.array(scan.shape) - 0.99).all()


def test_points_survive_their_file(tmp_path):
    points = Points(np.array([[1.5, -2.25, 3.0], [0.0, 1e3, -7.125]]), ("a", "b"))
    write_points(points, tmp_path / "p.csv")
    again = read_points(tmp_path / "p.csv")
    assert again.names == points.names
    np.testing.assert_allclose(again.mm, points.mm, atol=1e-6)


def test_points_without_a_column_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text("name,z,y,x\na,1,2,3\n")
    with pytest.raises(UnusableInput, match="z_mm is missing"):
        read_points(tmp_path / "p.csv")
