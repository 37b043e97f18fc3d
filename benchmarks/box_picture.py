"""The picture of the shipped encoder: places of one chest found in another person's.

The person whose places are sought was learnt from, the one they are found in was not:
another scanner, no contrast agent, coarser voxels. Below, the same network with random
weights. Needs the data kit; both scans' licences allow the picture.

    python benchmarks/box_picture.py --data KIT [--out resources/body_ct.png]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray

from homolog.demo.scores import untrained
from homolog.drawing.pictures import (
    Picture,
    Plane,
    as_bytes,
    beside,
    grey,
    with_ring,
    words_on_black,
)
from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.search import Search, query_at
from homolog.model_files.encoder import load_encoder
from homolog.scans.files import read_scan
from homolog.scans.volume import Volume

# CMB-CRC, The Cancer Imaging Archive, CC BY 4.0.
LEARNT = "ct_body/cmb_crc_01068.nii.gz"
# Chest Imaging Platform, Testing/Data/Input, BSD-like licence.
UNSEEN = "odd_files/chest_ct_64.nrrd"
# Voxels z, y, x of the first, put by hand.
PLACES = {
    "descending aorta": (51, 94, 124),
    "trachea's fork": (65, 75, 109),
    "left ventricle": (23, 55, 130),
    "vertebra": (51, 109, 107),
    "liver": (10, 73, 73),
    "aortic arch": (78, 62, 123),
}
WIDTH_PX = 210
FOUND, LOST = (0.2, 1.0, 0.4), (1.0, 0.6, 0.2)
_SOFT_HU = (-200.0, 300.0)


def found(
    scans: tuple[Volume, Volume], points: NDArray[np.float64], *, random: bool
) -> NDArray[np.float64]:
    """Where the encoder, trained or not, finds points (N, 3) of A in B; mm z, y, x."""
    loaded = load_encoder("body-ct")
    loaded = untrained(loaded, seed=0) if random else loaded
    encoder = DenseEncoder.of(loaded, EmbedConfig(), torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        one, other = (
            drain(embed_scan(scan, encoder, folder=Path(folder), scan_hash=f"{i}" * 64))
            for i, scan in enumerate(scans)
        )
        matches = Search(other).find(query_at(one, points))
    return np.array([match.mm for match in matches])


def tile(scan: Volume, mm: NDArray[np.float64], colour: tuple) -> Picture:
    """The axial slice at a place, ringed, all tiles equally wide."""
    shape = scan.data.shape[1:]
    factor = WIDTH_PX / (shape[2] * scan.affine.spacing_mm[2])
    plane = Plane.through(mm, scan.affine, 0, factor)
    plane = Plane(0, min(max(plane.index, 0), shape[0] - 1), factor)
    cut = plane.cut(np.asarray(scan.data[0], np.float32))
    picture = grey(cut, plane.zoom(scan.affine.spacing_mm), _SOFT_HU)
    place = plane.place(mm, scan.affine, shape)
    return with_ring(picture, place, colour, radius=7.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("resources/body_ct.png"))
    given = parser.parse_args()
    scans = read_scan(given.data / LEARNT), read_scan(given.data / UNSEEN)
    own = scans[0].affine.apply(np.array(list(PLACES.values()), float))
    rows = [
        ("Asked: six places in one patient", scans[0], own, FOUND),
        (
            "Found by body-ct in a person it never saw",
            scans[1], found(scans, own, random=False), FOUND,
        ),
        (
            "Found by the same network with random weights",
            scans[1], found(scans, own, random=True), LOST,
        ),
    ]  # fmt: skip
    gap, parts = 8, []
    width = WIDTH_PX * len(PLACES) + gap * (len(PLACES) - 1)
    names = [words_on_black(name, WIDTH_PX) for name in PLACES]
    for title, scan, places, colour in rows:
        parts.append(words_on_black(title, width, colour))
        parts.append(beside(names, gap))
        parts.append(beside([tile(scan, mm, colour) for mm in places], gap))
    picture = np.concatenate([p[:, :width] for p in parts])
    iio.imwrite(given.out, as_bytes(picture))
    print(given.out, picture.shape)


if __name__ == "__main__":
    main()
