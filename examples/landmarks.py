"""Carry landmarks of one patient to another, each with its doubt.

    python examples/landmarks.py ENCODER OUT

ENCODER is a pretraining run, such as the one examples/pretrain_and_look.py leaves in
``pretrain_and_look/pre``, or a weight file. A match is accepted when it leads back to
its point, stands out from the second-best place, and fits the rest of the body; after
ten steps of training expect many refusals. ``OUT/b.mrk.json`` opens in 3D Slicer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.search import Search
from homolog.landmarks.config import LandmarksConfig
from homolog.landmarks.match import match_landmarks
from homolog.model_files.encoder import load_encoder
from homolog.phantom.phantom import make_phantom
from homolog.scans.points import Landmark, write_landmark_markups
from homolog.scans.write import write_volume


def main(source: Path, out: Path) -> list[Landmark]:
    """Returns one landmark a point, accepted or refused with its reason."""
    out.mkdir(parents=True, exist_ok=True)
    shape, spacing = (40, 48, 48), (8.0, 8.0, 8.0)
    a, b = (make_phantom(seed, shape, spacing) for seed in (0, 1))
    encoder = DenseEncoder.of(load_encoder(source), EmbedConfig(), torch.device("cpu"))
    here, there = (Search(drain(embed_scan(p.volume, encoder))) for p in (a, b))

    config = LandmarksConfig(largest_cycle_mm=24.0)  # three of these coarse voxels
    grid_b = (b.volume.affine, b.volume.shape)
    found, _ = match_landmarks(here, there, a.landmarks, config, scan_b=grid_b)

    truth = dict(zip(b.landmarks.names, b.landmarks.mm, strict=True))
    for mark in found:
        verdict = "accepted" if mark.accepted else f"refused: {mark.reason}"
        if mark.b_mm is not None and mark.name in truth:
            away = np.linalg.norm(np.subtract(mark.b_mm, truth[mark.name]))
            verdict = f"{away:4.0f} mm off, {verdict}"
        print(f"{mark.name:24} {verdict}")
    write_volume(b.volume, out / "b.nii.gz")
    write_landmark_markups(found, out / "b.mrk.json")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
