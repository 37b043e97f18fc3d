"""A store of phantom patients as large as scans, in seconds: all cores paint at once.

Anatomy is painted at twice the voxel size, where it costs an eighth, and every voxel
is repeated; noise comes on top, so that the store compresses like one of scans. Every
third patient is an MR scan. No torch is imported.

    python benchmarks/large_phantoms.py STORE [--count 6] [--shape 160 224 224]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.index.datasets import CaseSource
from homolog.phantom.anatomy import LABEL_NAMES
from homolog.phantom.phantom import Scanner, make_mr_phantom, make_phantom
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store.build import write_store

# Of the trunk that is shown.
SIZE_MM = (240.0, 336.0, 336.0)
NOISE = 18.0


def doubled(values: NDArray[np.generic], factor: int) -> NDArray[np.generic]:
    for axis in (-3, -2, -1):
        values = values.repeat(factor, axis)
    return values


def painted(folder: Path, number: int, shape: tuple[int, ...], factor: int) -> str:
    """Write one patient's scan and labels, uncompressed; returns the case's name."""
    name, coarse = f"patient_{number}", tuple(n // factor for n in shape)
    spacing = tuple(mm / n for mm, n in zip(SIZE_MM, coarse, strict=True))
    noise = 0.0 if factor > 1 else NOISE
    if number % 3 == 2:
        scanner = Scanner(noise=noise)
        patient = make_mr_phantom(number, coarse, spacing, scanner=scanner)
    else:
        patient = make_phantom(number, coarse, spacing, noise=noise)
    matrix = patient.volume.affine.matrix.copy()
    matrix[:3, :3] /= factor
    affine = Affine(matrix)
    data = doubled(patient.volume.data, factor)
    if factor > 1:
        noise = np.random.default_rng(number).standard_normal(data.shape, np.float32)
        data = (data + NOISE * noise).clip(-1024, 4095).astype(np.int16)
    volume = Volume(data, affine, name, patient.volume.modality)
    label = doubled(patient.labels.data, factor)
    write_volume(volume, folder / f"{name}_0000.nii")
    write_labels(
        LabelMap(label, affine, dict(LABEL_NAMES), name), folder / f"{name}.nii"
    )
    return name


def make_store(
    out: Path, count: int, shape: tuple[int, ...], *, factor: int = 2, processes: int
) -> None:
    """Paint patients and prepare them as a store; ``out`` appears when it is whole."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs = [(folder, number, shape, factor) for number in range(count)]
        if processes > 1:
            with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
                names = list(pool.map(painted, *zip(*jobs, strict=True)))
        else:
            names = [painted(*job) for job in jobs]
        cases = [
            CaseSource(
                id=name,
                image=folder / f"{name}_0000.nii",
                label=folder / f"{name}.nii",
                modality="MR" if number % 3 == 2 else "CT",
                subject=name,
                split="train" if number else "val",
                label_names=dict(LABEL_NAMES),
            )
            for number, name in enumerate(names)
        ]
        fresh = out.with_name(out.name + "_unfinished")
        drain(write_store(cases, fresh))
        fresh.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 224, 224))
    parser.add_argument("--factor", type=int, default=2)
    options = parser.parse_args()
    processes = min(options.count, os.cpu_count() or 1)
    shape = tuple(options.shape)
    make_store(
        options.store, options.count, shape, factor=options.factor, processes=processes
    )


if __name__ == "__main__":
    main()
