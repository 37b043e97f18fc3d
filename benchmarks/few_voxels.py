"""Dice from a few painted voxels: encoders, their untrained twins, intensity alone.

A label map stands in for the user: two strokes of each organ, in two slices, straight
lines that keep away from the organ's border; short strokes, one per slice, of what is
none of them (muscle, fat, bowel ...).

    python benchmarks/few_voxels.py SCAN LABELS --encoder sam=RUN s2dc=RUN \\
        --organ liver=5 bone=30,31,32,33 --out results.json

With ``--never`` some organs are never painted, and every row is repeated for each
``--unknown``: how much of them is called unknown, how much is given a painted organ,
and what painted organs lose; the same for ``--then`` SCAN LABELS, another person.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from homolog.tasks.few_voxels.learn import learn, painted_values, warm_up
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
    never: Sequence[int] = (),
) -> LabelMap:
    """Painted label map: classes 1, 2, ... and, last, what is none of them."""
    rng = np.random.default_rng(seed)
    painted = np.zeros(truth.shape, np.uint8)
    rest = body & ~np.isin(truth.data, never)
    for value, members in enumerate(organs.values(), 1):
        mask = np.isin(truth.data, members)
        rest &= ~mask
        for voxel in strokes(mask, voxels, 2, rng):
            painted[voxel] = value
    for voxel in strokes(rest, others, others // _STROKE, rng) if others else ():
        painted[voxel] = len(organs) + 1
    return LabelMap(painted, truth.affine, {}, "painted")


def dice(one: Mask, other: Mask) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


@dataclass(frozen=True)
class Subject:
    """A scan with its truth."""

    scan: FewScan
    truth: LabelMap


def trials(
    subject: Subject, other: Subject | None, unknown: float, arguments: Any
) -> dict[str, Any]:
    """Every seed's figures, and the seconds from the last stroke (without waiting)."""
    scan, truth = subject.scan, subject.truth
    organs, never = organs_of(arguments.organ), organs_of(arguments.never)
    hidden = [v for members in never.values() for v in members]
    last = len(organs) + 1
    names = {**dict(enumerate(organs, 1)), last: "rest"}
    body = scan.body.block((0, 0, 0), scan.volume.shape)
    slices, volumes, rows, then = [], [], [], []
    for seed in range(arguments.seeds):
        paint = paint_of(
            truth, organs, body, arguments.voxels, arguments.others, seed, hidden
        )
        values = painted_values([paint])
        ground = last if last in values else None
        classes = few_classes(values, names, background=ground)
        config = FewConfig(head=arguments.head, unknown=unknown)
        began = time.perf_counter()
        head = learn([scan], [paint], classes, config).head
        predict_slice(head, scan, 0, truth.shape[0] // 2, paint)
        slices.append(time.perf_counter() - began)
        found = drain(predict_volume(head, scan, paint)).labels
        volumes.append(time.perf_counter() - began)
        rows.append(figures(found.data, truth, organs, hidden, head.unknown))
        if other is not None:
            there = drain(predict_volume(head, other.scan)).labels
            then.append(figures(there.data, other.truth, organs, hidden, head.unknown))
    told = {"slice_s": float(np.median(slices)), "volume_s": float(np.median(volumes))}
    return {**mean_of(rows), **told, **({"then": mean_of(then)} if then else {})}


def figures(
    found: NDArray[np.integer],
    truth: LabelMap,
    organs: Mapping[str, Sequence[int]],
    hidden: Sequence[int],
    unknown: int,
) -> dict[str, Any]:
    """Dice of the organs; what is unknown of painted organs, of others, of the rest."""
    told = {
        name: dice(found == value, np.isin(truth.data, members))
        for value, (name, members) in enumerate(organs.items(), 1)
    }
    painted = np.isin(truth.data, [v for m in organs.values() for v in m])
    given = np.isin(found, range(1, len(organs) + 1))
    never = np.isin(truth.data, hidden)
    right = np.zeros(truth.shape, bool)
    for value, members in enumerate(organs.values(), 1):
        right |= (found == value) & np.isin(truth.data, members)
    return {
        "dice": told,
        "mean": float(np.mean(list(told.values()))),
        "precision": float(right.sum() / max(1, given.sum())),
        "found": float(right.sum() / max(1, painted.sum())),
        "painted_unknown": share(found == unknown, painted),
        "never_unknown": share(found == unknown, never),
        "never_given": share(given, never),
        "rest_unknown": share(found == unknown, truth.data == 0),
    }


def share(what: Mask, of: Mask) -> float | None:
    return float(what[of].mean()) if of.any() else None


def mean_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds; each seed's mean Dice beside."""
    mean: dict[str, Any] = {"by_seed": [row["mean"] for row in rows]}
    for name, value in rows[0].items():
        if name == "dice":
            mean[name] = {o: float(np.mean([r[name][o] for r in rows])) for o in value}
        elif value is not None:
            mean[name] = float(np.mean([row[name] for row in rows]))
    return mean


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
    parser.add_argument("--trained-only", action="store_true")
    parser.add_argument("--never", nargs="+", default=[], metavar="NAME=V,V")
    parser.add_argument("--unknown", nargs="+", type=float, default=[0.0])
    parser.add_argument("--then", nargs=2, type=Path, metavar=("SCAN", "LABELS"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pairs = [(arguments.scan, arguments.labels)]
    pairs += [arguments.then] if arguments.then else []
    read = [(read_scan(scan), read_labels(labels)) for scan, labels in pairs]
    warm_up()
    rows: dict[str, Any] = {}

    def row(name: str, scans: Sequence[FewScan], seconds: float) -> None:
        both = [Subject(s, truth) for s, (_, truth) in zip(scans, read, strict=True)]
        for unknown in arguments.unknown:
            key = f"{name}, unknown {unknown:g}" if arguments.never else name
            own = trials(both[0], both[1] if both[1:] else None, unknown, arguments)
            rows[key] = {**own, "features_s": seconds}
            print(key, json.dumps(rows[key]), flush=True)

    row("intensity and place", [few_scan(volume) for volume, _ in read], 0.0)
    for pair in arguments.encoder:
        name, run = pair.split("=", 1)
        loaded = load_encoder(run)
        networks = [(f"random {name}", untrained(loaded)), (name, loaded)]
        for title, model in networks[arguments.trained_only :]:
            dense = DenseEncoder.of(model, EmbedConfig(), choose_device("cpu"))
            made = [features_by(dense, volume) for volume, _ in read]
            scans = [
                few_scan(volume, features, dense.preprocessing)
                for (volume, _), (features, _) in zip(read, made, strict=True)
            ]
            row(title, scans, made[0][1])
    told = {"scan": arguments.scan.name, "organs": organs_of(arguments.organ),
            "never": organs_of(arguments.never), "voxels": arguments.voxels,
            "then": arguments.then[0].name if arguments.then else None,
            "others": arguments.others, "seeds": arguments.seeds,
            "head": arguments.head, "rows": rows}  # fmt: skip
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
