"""Dice from a few painted voxels: encoders, their untrained twins, intensity alone.

A label map stands in for the user: two strokes of each organ, in two slices, straight
lines that keep away from the organ's border; short strokes, one per slice, of what is
none of them (muscle, fat, bowel ...).

    python benchmarks/few_voxels.py SCAN LABELS --encoder sam=RUN s2dc=RUN \\
        --organ liver=5 bone=30,31,32,33 --out results.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from homolog.demo.scores import untrained
from homolog.distributed import choose_device
from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.model_files.encoder import load_encoder
from homolog.scans.files import read_labels, read_scan
from homolog.scans.volume import FeatureMap, LabelMap, Volume
from homolog.tasks.few_voxels.config import FewConfig
from homolog.tasks.few_voxels.learn import learn, warm_up
from homolog.tasks.few_voxels.predict import predict_slice, predict_volume
from homolog.tasks.few_voxels.scan import FewScan, few_classes, few_scan

Mask = NDArray[np.bool_]
# Voxels of a stroke of what is none of the organs.
_STROKE = 5


def organs_of(words: Sequence[str]) -> dict[str, list[int]]:
    """``liver=5`` and ``bone=30,31`` -> name -> label values."""
    pairs = (word.split("=", 1) for word in words)
    return {name: [int(v) for v in values.split(",")] for name, values in pairs}


def strokes(
    mask: Mask, voxels: int, count: int, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Voxels of ``count`` straight strokes inside a mask, in slices apart."""
    inside = ndimage.binary_erosion(mask, np.ones((1, 3, 3), bool))
    inside = inside if inside.sum() >= voxels else mask
    filled = np.flatnonzero(inside.sum((1, 2)) >= voxels // count)
    slices = np.quantile(filled, (np.arange(count) + 0.5) / count).astype(int)
    found: list[tuple[int, int, int]] = []
    for part, z in enumerate(slices):
        wanted = (part + 1) * voxels // count
        places = np.argwhere(inside[z])
        y, x = places[rng.integers(len(places))]
        angle = rng.uniform(0, np.pi)
        away = (places - (y, x)) @ (np.cos(angle), -np.sin(angle))
        along = (places - (y, x)) @ (np.sin(angle), np.cos(angle))
        # the line first, then what lies nearest to it: small organs are dabbed
        order = np.argsort(np.abs(away) + 0.2 * np.abs(along))
        for place in places[order]:
            voxel = (int(z), int(place[0]), int(place[1]))
            if len(found) < wanted and voxel not in found:
                found.append(voxel)
    return found


def paint_of(
    truth: LabelMap,
    organs: Mapping[str, Sequence[int]],
    body: Mask,
    voxels: int,
    others: int,
    seed: int,
) -> LabelMap:
    """Painted label map: classes 1, 2, ... and, last, what is none of them."""
    rng = np.random.default_rng(seed)
    painted = np.zeros(truth.shape, np.uint8)
    rest = body.copy()
    for value, members in enumerate(organs.values(), 1):
        mask = np.isin(truth.data, members)
        rest &= ~mask
        for voxel in strokes(mask, voxels, 2, rng):
            painted[voxel] = value
    for voxel in strokes(rest, others, others // _STROKE, rng):
        painted[voxel] = len(organs) + 1
    return LabelMap(painted, truth.affine, {}, "painted")


def dice(one: Mask, other: Mask) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def trials(
    scan: FewScan,
    truth: LabelMap,
    organs: Mapping[str, Sequence[int]],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Every seed's Dice, and the seconds from the last stroke (without waiting)."""
    names = dict(enumerate(organs, 1))
    last = len(organs) + 1
    classes = few_classes(range(1, last + 1), {**names, last: "rest"}, background=last)
    body = scan.body.block((0, 0, 0), scan.volume.shape)
    rows, slices, volumes = [], [], []
    for seed in range(arguments.seeds):
        paint = paint_of(truth, organs, body, arguments.voxels, arguments.others, seed)
        began = time.perf_counter()
        head = learn([scan], [paint], classes, FewConfig(head=arguments.head)).head
        predict_slice(head, scan, 0, truth.shape[0] // 2, paint)
        slices.append(time.perf_counter() - began)
        found = drain(predict_volume(head, scan, paint)).labels
        volumes.append(time.perf_counter() - began)
        rows.append(
            {
                name: dice(found.data == value, np.isin(truth.data, organs[name]))
                for value, name in names.items()
            }
        )
    return {
        "dice": {n: float(np.mean([r[n] for r in rows])) for n in organs},
        "mean": float(np.mean([list(r.values()) for r in rows])),
        "by_seed": [float(np.mean(list(r.values()))) for r in rows],
        "slice_s": float(np.median(slices)),
        "volume_s": float(np.median(volumes)),
    }


def features_by(encoder: DenseEncoder, volume: Volume) -> tuple[FeatureMap, float]:
    began = time.perf_counter()
    features = drain(embed_scan(volume, encoder))
    return features, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--organ", nargs="+", required=True, metavar="NAME=V,V")
    parser.add_argument("--encoder", nargs="+", default=[], metavar="NAME=RUN")
    parser.add_argument("--voxels", type=int, default=20, help="per organ")
    parser.add_argument("--others", type=int, default=40, help="of none of them")
    parser.add_argument("--seeds", type=int, default=10, help="different paint")
    parser.add_argument("--head", default="logistic", choices=("logistic", "knn"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    organs = organs_of(arguments.organ)
    volume, truth = read_scan(arguments.scan), read_labels(arguments.labels)
    warm_up()
    rows: dict[str, Any] = {}

    def row(name: str, scan: FewScan, seconds: float) -> None:
        own = trials(scan, truth, organs, arguments)
        rows[name] = {**own, "features_s": seconds}
        print(name, json.dumps(rows[name]), flush=True)

    row("intensity and place", few_scan(volume), 0.0)
    for pair in arguments.encoder:
        name, run = pair.split("=", 1)
        loaded = load_encoder(run)
        for title, model in ((f"random {name}", untrained(loaded)), (name, loaded)):
            dense = DenseEncoder.of(model, EmbedConfig(), choose_device("cpu"))
            features, seconds = features_by(dense, volume)
            row(title, few_scan(volume, features, dense.preprocessing), seconds)
    told = {"scan": arguments.scan.name, "organs": organs, "voxels": arguments.voxels,
            "others": arguments.others, "seeds": arguments.seeds,
            "head": arguments.head, "rows": rows}  # fmt: skip
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
