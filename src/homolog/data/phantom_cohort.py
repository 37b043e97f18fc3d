"""A folder of phantom patients in nnU-Net's layout, with their landmarks."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from homolog.data.phantom import Phantom, make_phantom
from homolog.data.phantom_atlas import LABEL_NAMES
from homolog.data.scan_io import write_labels, write_volume
from homolog.data.volume import Points
from homolog.errors import UnusableInput
from homolog.geometry.affine import Index, Triple

POINT_COLUMNS = ("name", "z_mm", "y_mm", "x_mm")


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

    ``folder`` gets ``imagesTr/phantom_000_0000.nii.gz``, ``labelsTr/phantom_000.nii.gz``,
    ``landmarks/phantom_000.csv`` (all patients) and ``dataset.json``.

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
    _write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n")


def write_points(points: Points, path: Path) -> None:
    """Named points as CSV: ``name, z_mm, y_mm, x_mm``, world mm, LPS."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(POINT_COLUMNS)
    names = points.names or tuple(f"point_{i + 1}" for i in range(len(points.mm)))
    for name, row in zip(names, points.mm, strict=True):
        writer.writerow([name, *(f"{v:.6f}" for v in row)])
    _write_text(path, text.getvalue())


def read_points(path: Path) -> Points:
    """Inverse of write_points; other columns are passed over.

    Raises:
        UnusableInput: No such file, a missing column or a value that is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise UnusableInput(f"there is no table of points {path}.")
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        missing = [c for c in POINT_COLUMNS[1:] if c not in (reader.fieldnames or ())]
        if missing:
            raise UnusableInput(
                f"{path} must have the columns {', '.join(POINT_COLUMNS)}; "
                f"{missing[0]} is missing."
            )
        rows = list(reader)
    names, places = [], []
    for number, row in enumerate(rows, start=1):
        try:
            places.append([float(row[c]) for c in POINT_COLUMNS[1:]])
        except (TypeError, ValueError):
            raise UnusableInput(
                f"{path}: point {number} needs three numbers, got "
                f"{[row[c] for c in POINT_COLUMNS[1:]]}."
            ) from None
        names.append(row.get("name") or f"point_{number}")
    return Points(np.array(places, dtype=np.float64).reshape(-1, 3), tuple(names))


def _write_text(path: Path, text: str) -> None:
    half = path.with_name(path.name + ".part")
    with half.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(half, path)
