"""A folder of phantom patients in nnU-Net's layout, with their landmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from homolog.data.phantom import Phantom, make_phantom
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
    shape: Index = (64, 80, 80),
    spacing_mm: Triple = (4.0, 4.0, 4.0),
    noise: float = 18.0,
) -> list[str]:
    """Write ``count`` patients; returns their case names. See ``write_patients``."""
    return list(
        write_patients(
            folder, count, seed=seed, labelled=labelled,
            shape=shape, spacing_mm=spacing_mm, noise=noise,
        )
    )  # fmt: skip


def write_patients(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    labelled: int | None = None,
    shape: Index = (64, 80, 80),
    spacing_mm: Triple = (4.0, 4.0, 4.0),
    noise: float = 18.0,
) -> Iterator[str]:
    """Write patients one by one, yielding the name of each that is complete.

    ``folder`` gets ``dataset.json``, ``imagesTr/phantom_000_0000.nii.gz``,
    ``labelsTr/phantom_000.nii.gz`` and (of all) ``landmarks/phantom_000.csv``.

    Args:
        folder: Made if absent.
        count: How many patients.
        seed: Patient i is ``patient_seed(seed, i)``, whatever ``count`` is.
        labelled: How many get a label file (the first ones); all if None. The others
            lie in ``imagesTs``, as nnU-Net wants it.
        shape: Voxels (z, y, x).
        spacing_mm: Voxel size (z, y, x).
        noise: Standard deviation of the noise, HU.
    """
    labelled = count if labelled is None else min(labelled, count)
    folder = Path(folder)
    for name in ("imagesTr", "labelsTr", "landmarks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if labelled < count:
        (folder / "imagesTs").mkdir(exist_ok=True)
    for i in range(count):
        name = f"phantom_{i:03d}"
        patient = make_phantom(
            patient_seed(seed, i), shape, spacing_mm, noise=noise, name=name
        )
        _write_patient(folder, name, patient, has_label=i < labelled)
        yield name
    _write_description(folder, labelled)


def patient_seed(seed: int, index: int) -> int:
    """Seed of the phantom of one patient of a cohort."""
    return seed * 100_003 + index


def _write_patient(
    folder: Path, name: str, patient: Phantom, *, has_label: bool
) -> None:
    images = folder / ("imagesTr" if has_label else "imagesTs")
    write_volume(patient.volume, images / f"{name}_0000.nii.gz")
    if has_label:
        write_labels(patient.labels, folder / "labelsTr" / f"{name}.nii.gz")
    write_points(patient.landmarks, folder / "landmarks" / f"{name}.csv")


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
