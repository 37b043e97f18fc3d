"""Landmarks of one patient found in another: an encoder's matches against registration.

Truth is a file of named points per case (``{"cases": {case: {name: [x, y, z]}}}``, mm,
LPS). For every pair of a fixed sample, each point that both have is looked for: the
place whose feature is most alike in the whole scan (as ``homolog match`` does, refused
matches included), the smooth map of ``homolog propagate``, and SimpleITK's affine and
affine + B-spline.

    python benchmarks/landmark_pairs.py IMAGES landmarks.json --encoder RUN --out R.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.search import Search, query_at
from homolog.model_files.encoder import load_encoder
from homolog.propagation.carry import looked_at
from homolog.propagation.descriptors import Seen
from homolog.propagation.matching import MatchConfig, map_of
from homolog.propagation.registration import registered
from homolog.scans.files import read_scan, scan_hash
from homolog.scans.volume import FeatureMap

Cloud = NDArray[np.float64]
Scan = tuple[Seen, FeatureMap | None]
ARMS = ("match", "features", "both", "grey", "affine", "affine + B-spline")


def opened(path: Path, encoder: DenseEncoder, kept: Path) -> Scan:
    """A scan and its features."""
    volume = read_scan(path)
    maps = drain(embed_scan(volume, encoder, folder=kept, scan_hash=scan_hash(path)))
    return looked_at(volume, maps), maps


def found(arm: str, a: Scan, b: Scan, points: Cloud) -> Cloud:
    """Points (N, 3) of A where an arm puts them in B, z, y, x mm."""
    if arm == "match":
        assert a[1] is not None
        assert b[1] is not None
        matches = Search(b[1]).find(query_at(a[1], points))
        return np.array([m.mm for m in matches])
    places = torch.from_numpy(points).float()
    # a map takes places of its second scan to its first
    maps: dict[str, Callable[[], Any]] = {
        "features": lambda: map_of(b[0], a[0], None, MatchConfig(1.0, 0.0)),
        "both": lambda: map_of(b[0], a[0], None, MatchConfig(1.0, 1.0)),
        "grey": lambda: map_of(b[0], a[0], None, MatchConfig(0.0, 1.0)),
        "affine": lambda: registered(b[0], a[0], spline=False),
        "affine + B-spline": lambda: registered(b[0], a[0]),
    }
    return np.asarray(maps[arm]()(places).double())


def main() -> None:
    """Score the arms and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("landmarks", type=Path)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    marks = json.loads(given.landmarks.read_text())["cases"]
    loaded = load_encoder(given.encoder)
    encoder = DenseEncoder.of(loaded, EmbedConfig(), torch.device("cpu"))
    pairs = [(a, b) for a in marks for b in marks if a != b]
    order = np.random.default_rng(given.seed).permutation(len(pairs))
    pairs = [pairs[i] for i in order[: given.pairs]]
    scans: dict[str, Scan] = {}
    results: dict[str, Any] = {"pairs": pairs}
    for arm in given.arms.split(","):
        errors: list[float] = []
        spent = 0.0
        for a, b in pairs:
            for case in (a, b):
                if case not in scans:
                    path = given.images / f"{case}.nii.gz"
                    scans[case] = opened(path, encoder, given.features)
            names = [n for n in marks[a] if n in marks[b]]
            points, truth = (
                np.array([marks[c][n][::-1] for n in names]) for c in (a, b)
            )
            began = time.process_time()
            put = found(arm, scans[a], scans[b], points)
            spent += time.process_time() - began
            errors += np.linalg.norm(put - truth, axis=1).tolist()
        results[arm] = {
            "points": len(errors),
            "median_mm": float(np.median(errors)),
            "p90_mm": float(np.percentile(errors, 90)),
            "core_seconds_per_pair": round(spent / len(pairs), 1),
            "within_10_mm": float(np.mean(np.array(errors) <= 10)),
        }
        print(arm, results[arm], flush=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
