"""Learn from unlabelled scans, then see where another patient looks like a place.

    python examples/pretrain_and_look.py OUT

Eight phantom patients (CT-like, procedural), a store, a short S2DC pretraining, and the
similarity map of one place in the liver of patient 0, searched in patient 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.search import best_match, cosine_maps, query_at
from homolog.model_files.encoder import load_encoder
from homolog.phantom.phantom import write_cohort
from homolog.pretrain.job import job as pretrain
from homolog.pretrain.settings import resolve
from homolog.scans.files import read_scan
from homolog.scans.points import read_points
from homolog.store.build import prepare_store


def main(out: Path, steps: int = 20) -> float:
    """Returns how far (mm) the best match lies from the true place in patient 1."""
    scans = out / "scans"
    write_cohort(scans, 8, shape=(40, 48, 48), spacing_mm=(8.0, 8.0, 8.0))
    drain(prepare_store([scans], out / "store"))

    settings = {
        "method": {"size": (32, 32, 32)},
        "backbone": {"channels": (16, 32, 64, 128)},  # small: seconds on two cores
        "training": {"steps": steps},
    }
    config = resolve("s2dc", [out / "store"], recipe="cpu", settings=settings)
    learnt = drain(pretrain(config, out / "pre"))
    print(f"{learnt['steps']} steps; the encoder is {learnt['model']}")

    loaded = load_encoder(out / "pre")
    encoder = DenseEncoder.of(loaded, EmbedConfig(), torch.device("cpu"))
    images = [scans / "imagesTr" / f"phantom_00{i}_0000.nii.gz" for i in (0, 1)]
    here, there = (drain(embed_scan(read_scan(path), encoder)) for path in images)
    points = [read_points(scans / "landmarks" / f"phantom_00{i}.csv") for i in (0, 1)]
    place, truth = (p.mm[p.names.index("liver_centre")] for p in points)

    similarity = cosine_maps(there, query_at(here, place[None]))[0]
    best = best_match(similarity, there.affine)
    away = float(sum((a - b) ** 2 for a, b in zip(best.mm, truth, strict=True)) ** 0.5)
    print(f"similarity {best.similarity:.2f}, {away:.0f} mm from the liver's centre")
    return away


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "pretrain_and_look"))
