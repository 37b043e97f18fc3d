"""A folder of phantom patients in nnU-Net's layout, with their landmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from homolog.data.phantom import make_phantom
from homolog.data.phantom_atlas import LABEL_NAMES
from homolog.data.points_io import write_points, write_text
from homolog.data.scan_io import write_labels, write_volume
from homolog.geometry.affine import Index, Triple


def write_cohort(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    labelled: int | None = None,
    test: int = 0,
    shape: Index = (64, 80, 80),
    spacing_mm: Triple = (4.0, 4.0, 4.0),
    noise: float = 18.0,
) -> list[str]:
    """Write ``count`` patients; returns their case names. See ``write_patients``."""
    return list(
        write_patients(
            folder, count, seed=seed, labelled=labelled, test=test,
            shape=shape, spacing_mm=spacing_mm, noise=noise,
        )
    )  # fmt: skip


def write_patients(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    labelled: int | None = None,
    test: int = 0,
    shape: Index = (64, 80, 80),
    spacing_mm: Triple = (4.0, 4.0, 4.0),
    noise: float = 18.0,
) -> Iterator[str]:
    """Write patients one by one, yielding the name of each that is complete.

    ``folder`` gets ``dataset.json``, ``imagesTr/phantom_000_0000.nii.gz``,
    ``labelsTr/phantom_000.nii.gz``, for test patients ``imagesTs`` and ``labelsTs``,
    and of all patients ``landmarks/phantom_000.csv``.

    Args:
        folder: Made if absent.
        count: How many patients, test ones included.
        seed: Patient i is ``patient_seed(seed, i)``, whatever ``count`` is.
        labelled: How many of the others get a label file (the first ones); all if None.
        test: How many are set aside for testing (the last ones), with labels.
        shape: Voxels (z, y, x).
        spacing_mm: Voxel size (z, y, x).
        noise: Standard deviation of the noise, HU.
    """
    folder = Path(folder)
    training = count - test
    labelled = training if labelled is None else min(labelled, training)
    for name in ("imagesTr", "labelsTr", "landmarks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("imagesTs", "labelsTs") if test else ():
        (folder / name).mkdir(exist_ok=True)
    _write_description(folder, labelled)
    for i in range(count):
        name = f"phantom_{i:03d}"
        patient = make_phantom(
            patient_seed(seed, i), shape, spacing_mm, noise=noise, name=name
        )
        part = "Tr" if i < training else "Ts"
        write_volume(patient.volume, folder / f"images{part}" / f"{name}_0000.nii.gz")
        if i < labelled or i >= training:
            write_labels(patient.labels, folder / f"labels{part}" / f"{name}.nii.gz")
        write_points(patient.landmarks, folder / "landmarks" / f"{name}.csv")
        yield name


def patient_seed(seed: int, index: int) -> int:
    """Seed of the phantom of one patient of a cohort."""
    return seed * 100_003 + index


def _write_description(folder: Path, labelled: int) -> None:
    labels = {"background": 0, **{n: v for v, n in LABEL_NAMES.items()}}
    description = {
        "name": "phantom",
        "description": "procedural anatomy with known correspondences",
        "channel_names": {"0": "CT"},
        "labels": labels,
        "numTraining": labelled,
        "file_ending": ".nii.gz",
    }
    write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n")
