"""Affine and elastic augmentation against MONAI's Rand3DElasticd, at equal fields.

Image and label map of 96^3, one thread, interleaved, the minimum of several rounds.
Ours is the whole path of a view but the reading: numbers drawn, affine and control
points planned and checked for folds, grid made, image and label map read. Both fields
are measured first and must agree in standard deviation and in correlation length (the
distance at which the autocorrelation falls to one half) to 10%.

    python benchmarks/elastic.py [--rounds 7] [--out benchmarks/results/elastic.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homolog.geometry.affine import Affine
from homolog.geometry.sampling import displacement_at
from homolog.views.generate import Block, GroupDraw, generate
from homolog.views.plan import Scan, draw_field, plan_views
from homolog.views.random import generator
from homolog.views.view import View, ViewSpec

SIZE = (96, 96, 96)
SIGMA_VOXELS, MAGNITUDE = 5.0, 100.0  # the lower end of the ranges MONAI documents
POINTS = (12, 12, 12)  # control points 1.73 sigma apart: as smooth as that Gaussian
ANGLE_DEG, SCALE = 20.0, 0.1
BARS = {"ratio": 6.0, "difference": 0.10}


def monai_transform() -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    from monai.transforms import Rand3DElasticd

    angle = float(np.radians(ANGLE_DEG))
    transform = Rand3DElasticd(
        keys=["image", "label"],
        sigma_range=(SIGMA_VOXELS, SIGMA_VOXELS),
        magnitude_range=(MAGNITUDE, MAGNITUDE),
        prob=1.0,
        rotate_range=(angle, angle, angle),
        scale_range=(SCALE, SCALE, SCALE),
        mode=["bilinear", "nearest"],
        padding_mode="zeros",
    )
    return transform.set_random_state(0)


def monai_field(transform: object) -> np.ndarray:
    """One of its displacement fields (3, D, H, W) in voxels, as its call makes it."""
    from monai.networks.layers import GaussianFilter

    elastic = transform.rand_3d_elastic  # type: ignore[attr-defined]
    elastic.randomize(SIZE)
    smooth = GaussianFilter(3, elastic.sigma, 3.0)
    offset = torch.as_tensor(elastic.rand_offset).unsqueeze(0)
    return (smooth(offset)[0] * elastic.magnitude).numpy()


def our_field(std: float, seed: int) -> np.ndarray:
    field = draw_field(generator(seed), std, POINTS, SIZE, np.eye(3))
    return displacement_at(torch.from_numpy(field), SIZE).numpy()


def statistics(fields: list[np.ndarray]) -> dict[str, float]:
    """Standard deviation and half-correlation distance, in voxels."""
    stack = np.stack(fields)
    variance = float((stack**2).mean())
    curve = [1.0]
    for lag in range(1, 40):
        products = [
            np.take(stack, range(lag, 96), axis) * np.take(stack, range(96 - lag), axis)
            for axis in (2, 3, 4)
        ]
        curve.append(float(np.mean([p.mean() for p in products])) / variance)
        if curve[-1] < 0.5:
            break
    above, below = curve[-2], curve[-1]
    length = len(curve) - 2 + (above - 0.5) / (above - below)
    return {"std": variance**0.5, "half_correlation": length}


def our_view(image: Tensor, label: Tensor, std: float) -> Callable[[int], View]:
    spec = ViewSpec(
        SIZE,
        rotate_deg=(ANGLE_DEG,) * 3,
        anisotropy=SCALE,
        elastic_mm=std,
        elastic_points=POINTS,
        labels=True,
    )
    scan = Scan(Affine.identity(), SIZE)
    block = Block(
        image[None, None],
        torch.eye(4, dtype=torch.float64)[None, None],
        label=label[None].to(torch.int16),
    )
    outside, case = torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)
    middle = np.full(3, 47.5)

    def make(sample: int) -> View:
        plan = plan_views({"v": spec}, scan, lambda _: middle, seed=0, sample=sample)[
            "v"
        ]
        field = torch.from_numpy(plan.displacement_mm)[None]  # type: ignore[arg-type]
        draw = GroupDraw(torch.from_numpy(plan.affine)[None], field, plan.intensity)
        return generate(spec, draw, block, outside, case)

    return make


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, object]:
    torch.set_num_threads(1)
    transform = monai_transform()
    theirs = statistics([monai_field(transform) for _ in range(6)])
    ours = statistics([our_field(theirs["std"], seed) for seed in range(6)])
    differences = {key: abs(ours[key] / theirs[key] - 1) for key in theirs}

    image = torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(0))
    label = torch.arange(96**3).reshape(1, *SIZE) // 9999 % 5
    sample = {"image": image, "label": label.float()}
    make = our_view(image, label, theirs["std"])
    make(0), transform(dict(sample))  # warm up
    monai_s, our_s = [], []
    for round_ in range(rounds):
        monai_s.append(seconds(lambda: transform(dict(sample))))
        our_s.append(seconds(lambda: make(round_)))  # noqa: B023 - called at once
    values = make(1).label
    assert values is not None
    return {
        "monai_s": min(monai_s),
        "ours_s": min(our_s),
        "ratio": min(monai_s) / min(our_s),
        "monai_field": theirs,
        "our_field": ours,
        "differences": differences,
        "new_label_values": sorted(set(values.unique().tolist()) - {-1, 0, 1, 2, 3, 4}),
        "passed": min(monai_s) / min(our_s) >= BARS["ratio"]
        and max(differences.values()) <= BARS["difference"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import monai

    result = {
        "benchmark": "elastic",
        "bars": BARS,
        **measure(options.rounds),
        "rounds": options.rounds,
        "machine": {
            "platform": platform.platform(),
            "torch": torch.__version__,
            "monai": monai.__version__,
            "threads": 1,
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
