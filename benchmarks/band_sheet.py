"""What the change of energy bands does to pictures: a sheet to look at.

Each row is a scan's middle slice: as it is, then with energies drawn near those of all
the scans named.

    python benchmarks/band_sheet.py xray.png ct.nii.gz mr.nii.gz --out sheet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homolog.drawing.pictures import png_bytes
from homolog.scans.files import read_scan
from homolog.store.preprocess import Preprocessing, prepare_volume
from homolog.views.energy_bands import BandReference, band_energies, split_bands
from homolog.views.intensity import CHANGES, Draws, change_intensity
from homolog.views.view import Intensity

_SIGMAS = (0.5, 1.0, 2.0, 4.0)
_SIDE = 256


def slice_of(path: Path) -> Tensor:
    """(1, 1, 1, side, side) normalised middle axial slice, cut or padded."""
    prepared = prepare_volume(read_scan(path), Preprocessing())
    image = torch.from_numpy(prepared.normalised()[:, prepared.data.shape[1] // 2])
    low = image.min()
    height, width = (min(n, _SIDE) for n in image.shape[1:])
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    whole = torch.full((1, 1, 1, _SIDE, _SIDE), float(low))
    y, x = (_SIDE - height) // 2, (_SIDE - width) // 2
    part = image[:, top : top + height, left : left + width]
    whole[0, :, 0, y : y + height, x : x + width] = part
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    slices = [slice_of(path) for path in arguments.scans]
    energies = torch.stack(
        [band_energies(split_bands(s, _SIGMAS))[:, 0, 0] for s in slices]
    )
    reference = BandReference(
        _SIGMAS,
        tuple(energies.mean(0).tolist()),
        tuple(energies.std(0, correction=0).tolist()),
    )
    rows = []
    for path, image, own in zip(arguments.scans, slices, energies, strict=True):
        print(path.name, "energies, fine to coarse:", [round(float(e), 4) for e in own])
        many = image.expand(arguments.columns, -1, -1, -1, -1).clone()
        on = np.zeros((len(many), len(CHANGES)), bool)
        on[:, CHANGES.index("bands")] = True
        draws = Draws(on, np.ones(on.shape, "f4"), np.arange(len(many)) * 7919 + 3)
        valid = torch.ones(len(many), 1, _SIDE, _SIDE, dtype=torch.bool)
        changed = change_intensity(
            many,
            valid,
            draws,
            torch.zeros(len(many), 1),
            Intensity(bands_reference=reference),
        )
        both = torch.cat([image, changed])[:, 0, 0]
        low, high = np.percentile(image.numpy(), (0.5, 99.5))
        shown = ((both - float(low)) / float(high - low)).clamp(0, 1) * 255
        rows.append(torch.cat(list(shown), dim=1))
    sheet = torch.cat(rows).to(torch.uint8).numpy()
    arguments.out.write_bytes(png_bytes(np.repeat(sheet[..., None], 3, axis=2)))


if __name__ == "__main__":
    main()
