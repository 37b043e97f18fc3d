"""Landmarks between different patients, of whom no truth is known: what can be told.

Per pair of CTs, points drawn in the body of A are looked for in B. Told are how many
are accepted, how far they lead back (cycle error), whether the place found is the same
tissue as the point's (lung, fat, soft tissue or bone by its HU: chance is told beside),
and how far apart the chest points of ``ct_points.py`` come out where both
scans show them. Pictures of ten accepted and ten refused matches are drawn, for eyes.

    python benchmarks/cross_patient.py A.nii.gz,B.nii.gz ... --encoder RUN --out DIR
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct_points import as_points, ct_points
from homolog.drawing.pictures import png_bytes
from homolog.events import drain
from homolog.features.of_scans import encoder_of
from homolog.landmarks.config import LandmarksConfig
from homolog.landmarks.of_scans import Searched, matched, searched, tiles_of
from homolog.landmarks.scores import body_points
from homolog.metrics.classification import landmark_errors
from homolog.scans.volume import Points, Volume

# Upper limits of lung, fat and soft tissue, HU; bone lies above.
_LIMITS_HU = (-400.0, -30.0, 180.0)


def tissues(scan: Volume, mm: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 lung or gas, 1 fat, 2 soft tissue, 3 bone at places, smoothed over 3 voxels."""
    smooth = ndimage.uniform_filter(scan.data[0].astype(np.float32), 3)
    at = scan.affine.inverse().apply(mm)
    value = ndimage.map_coordinates(smooth, at.T, order=1, mode="nearest")
    return np.digitize(value, _LIMITS_HU)


def figures(
    a: Searched, b: Searched, count: int, seed: int
) -> tuple[dict[str, Any], list[Any]]:
    """One pair: what is told of it, and its (mark, tile of A, tile of B)."""
    mm = body_points(a, None, count, seed)
    names = tuple(f"{seed}.{i}" for i in range(len(mm)))
    marks, _ = matched(a, b, Points(mm, names), LandmarksConfig())
    found = [m for m in marks if m.b_mm is not None]
    own = tissues(a.volume, np.array([m.a_mm for m in found]))
    there = tissues(b.volume, np.array([m.b_mm for m in found]))
    chance = tissues(b.volume, body_points(b, None, 500, seed))
    share = np.bincount(chance, minlength=4) / len(chance)
    same = own == there
    kept = np.array([m.accepted for m in found])
    cycle = [m.cycle_mm for m in marks]
    row: dict[str, Any] = {
        "pair": f"{a.volume.name} -> {b.volume.name}",
        "points": len(marks),
        "accepted": int(kept.sum()),
        "cycle_mm": {p: float(np.nanpercentile(cycle, p)) for p in (25, 50, 75, 90)},
        "accepted_cycle_mm": float(
            np.median([m.cycle_mm for m in found if m.accepted] or [np.nan])
        ),
        "same_tissue": int(same.sum()),
        "accepted_same_tissue": int(same[kept].sum()),
        "same_tissue_by_chance": float(share[own].mean()),
    }
    row["chest_points_mm"] = chest(a, b)
    sheet = tiles_of(a.volume, Points(mm, names)), tiles_of(b.volume, marks)
    return row, list(zip(marks, *sheet, strict=True))


def chest(a: Searched, b: Searched) -> dict[str, Any]:
    """Chest points both scans show: distance to where B's own threshold puts them."""
    there = ct_points(replace(b.volume, modality="CT"))
    points = as_points(ct_points(replace(a.volume, modality="CT")))
    shared = [i for i, n in enumerate(points.names) if there[n] is not None]
    if not shared:
        return {}
    names = tuple(points.names[i] for i in shared)
    marks, _ = matched(a, b, Points(points.mm[shared], names), LandmarksConfig())
    told = {}
    for mark in marks:
        error = None
        if mark.b_mm is not None:
            true = np.array([there[mark.name]], dtype=np.float64)
            error = float(landmark_errors(np.array([mark.b_mm]), true)[0])
        told[mark.name] = {"error_mm": error, "accepted": mark.accepted}
    return told


def draw(tiles: list[Any], path: Path, seed: int) -> list[str]:
    """Ten matches, A beside B, two to a row; their words in the same order."""
    order = np.random.default_rng(seed).permutation(len(tiles))[:10]
    pick = [tiles[i] for i in order]
    pairs = [np.concatenate([a.picture, b.picture], 1) for _, a, b in pick]
    rows = [np.concatenate(pairs[i : i + 2], 1) for i in range(0, len(pairs) - 1, 2)]
    if rows:
        sheet = (np.concatenate(rows) * 255).astype(np.uint8)
        path.write_bytes(png_bytes(sheet))
    return [
        f"{m.name} similarity {m.similarity:.2f} margin {m.margin:.3f} "
        f"cycle {m.cycle_mm:.1f} mm {m.reason}"
        for m, _, _ in pick
    ]


def main() -> None:
    """Match every pair and write what is told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+", metavar="A,B")
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--points", type=int, default=20)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    encoder = encoder_of(asked.encoder, {"overlap": 0.25}, "cpu")

    @cache
    def get(path: str) -> Searched:
        found = drain(searched(Path(path), encoder, asked.out / "features"))
        assert found is not None
        return found

    rows, tiles = [], []
    for seed, pair in enumerate(asked.pairs):
        a, b = pair.split(",")
        row, drawn = figures(get(a), get(b), asked.points, seed)
        rows.append(row)
        tiles += drawn
        print(json.dumps(row), flush=True)
    words = {}
    for name, wanted in (("accepted", True), ("refused", False)):
        chosen = [t for t in tiles if t[0].accepted is wanted and t[0].b_mm is not None]
        words[name] = draw(chosen, asked.out / f"{name}.png", 0)
        print(name, *words[name], sep="\n  ")
    told = json.dumps(rows, indent=1).replace("NaN", "null")
    (asked.out / "cross_patient.json").write_text(told + "\n")


if __name__ == "__main__":
    main()
