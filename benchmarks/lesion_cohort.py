"""Phantom patients, half of them with one dark round lesion in the liver.

Writes scans and a manifest with class, split and the lesion's box, for `homolog
prepare` and then `homolog finetune detect`, or `benchmarks/label_fractions.py ... --
--task classify`.

    python benchmarks/lesion_cohort.py --count 80 --out DIR
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from homolog.phantom.phantom import Phantom, make_phantom, patient_seed
from homolog.scans.write import write_volume


def with_lesion(
    patient: Phantom,
    rng: np.random.Generator,
    radius_mm: tuple[float, float],
    deeper_hu: float,
) -> tuple[Phantom, dict[str, object]]:
    """The same patient with a soft-edged dark ball somewhere in the liver, and its box.

    The box holds the voxels that are changed by half or more.
    """
    names = {name: value for value, name in patient.labels.names.items()}
    liver = patient.labels.data == names["liver"]
    spacing = np.array(patient.volume.affine.spacing_mm)
    depth = ndimage.distance_transform_edt(liver, sampling=spacing)
    radius = rng.uniform(*radius_mm)
    inside = np.argwhere(depth >= min(0.6 * radius, 0.9 * depth.max()))
    centre = inside[rng.integers(len(inside))]
    places = np.stack(np.indices(liver.shape), -1)
    away = np.linalg.norm((places - centre) * spacing, axis=-1)
    share = np.clip((radius - away) / spacing.min() + 0.5, 0, 1) * liver
    data: NDArray[np.int16] = np.rint(patient.volume.data - deeper_hu * share).astype(
        np.int16
    )
    volume = dataclasses.replace(patient.volume, data=data)
    changed = np.argwhere(share >= 0.5)
    low, high = changed.min(0).tolist(), (changed.max(0) + 1).tolist()
    box = {"label": "lesion", "min": low, "max": high}
    return dataclasses.replace(patient, volume=volume), box


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--spacing", type=float, default=6.0, help="mm")
    parser.add_argument(
        "--radius-mm", type=float, nargs=2, default=(14.0, 22.0), metavar=("LO", "HI")
    )
    parser.add_argument("--deeper-hu", type=float, default=70.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    shape = tuple(round(n * 4.0 / arguments.spacing) for n in (64, 80, 80))
    rows = []
    for number in range(arguments.count):
        name = f"patient_{number:03d}"
        patient = make_phantom(
            patient_seed(arguments.seed, number),
            (shape[0], shape[1], shape[2]),
            (arguments.spacing,) * 3,
            name=name,
        )
        ill, boxes = number % 2 == 1, []
        if ill:
            rng = np.random.default_rng([arguments.seed, number])
            low, high = arguments.radius_mm
            patient, box = with_lesion(patient, rng, (low, high), arguments.deeper_hu)
            boxes.append(box)
        write_volume(patient.volume, arguments.out / f"{name}.nii.gz")
        share = number / arguments.count
        split = "train" if share < 0.5 else "val" if share < 0.65 else "test"
        kind = "lesion" if ill else "healthy"
        rows.append([f"{name}.nii.gz", "CT", kind, split, json.dumps(boxes)])
    with (arguments.out / "scans.csv").open("w", newline="") as file:
        names = ["image", "modality", "class", "split", "boxes"]
        csv.writer(file).writerows([names, *rows])


if __name__ == "__main__":
    main()
