"""Landmark errors on deformed copies of a scan, against what the field would use.

Places of a scan are looked for in smoothly deformed, turned, scaled and slightly noisy
copies, whose true map is known. Compared in one process: encoders, the same networks
with random weights, normalised cross-correlation of grey values, and SimpleITK's affine
and B-spline registration.

    python benchmarks/landmarks.py SCAN... --encoder RUN --out results.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from homolog.demo.scores import untrained
from homolog.distributed import choose_device
from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.search import Search, best_match, query_at
from homolog.landmarks.scores import deformed_copy
from homolog.metrics.classification import landmark_errors
from homolog.model_files.encoder import load_encoder
from homolog.phantom.deform import Deformation
from homolog.scans.files import read_scan
from homolog.scans.volume import Volume

Cloud = NDArray[np.float64]
Finder = Callable[[Volume, Volume, Cloud], Cloud]
_PATCH_MM = 22.0


def by_features(encoder: DenseEncoder) -> Finder:
    """The place whose feature is most alike, nothing refused."""

    def find(scan: Volume, copy: Volume, points: Cloud) -> Cloud:
        maps = [drain(embed_scan(v, encoder)) for v in (scan, copy)]
        began = time.perf_counter()
        found = Search(maps[1]).find(query_at(maps[0], points))
        find.query_seconds = time.perf_counter() - began  # type: ignore[attr-defined]
        return np.array([m.mm for m in found])

    return find


def by_correlation(scan: Volume, copy: Volume, points: Cloud) -> Cloud:
    """Peak of the normalised cross-correlation of a patch of grey values."""
    fixed, moving = (v.data[0].astype(np.float32) for v in (scan, copy))
    spacing = np.array(scan.affine.spacing_mm)
    half = np.maximum(np.round(_PATCH_MM / 2 / spacing).astype(int), 1)
    side = 2 * half + 1
    ones = np.ones(side, np.float32)
    count = float(ones.size)
    sums = fftconvolve(moving, ones, mode="same")
    squares = fftconvolve(moving.astype(np.float64) ** 2, ones, mode="same")
    spread = np.sqrt(np.maximum(squares - sums.astype(np.float64) ** 2 / count, 1.0))
    padded = np.pad(fixed, [(h, h) for h in half], mode="edge")
    found = []
    for index in np.round(scan.affine.inverse().apply(points)).astype(int):
        z, y, x = index
        patch = padded[z : z + side[0], y : y + side[1], x : x + side[2]]
        patch = patch - patch.mean()
        norm = float(np.linalg.norm(patch)) or 1.0
        cross = fftconvolve(moving, patch[::-1, ::-1, ::-1], mode="same")
        score = (cross / (spread * norm)).astype(np.float32)
        found.append(best_match(score, copy.affine).mm)
    return np.array(found)


def _itk(volume: Volume) -> sitk.Image:
    """float32 image; world mm are x, y, z there."""
    image = sitk.GetImageFromArray(volume.data[0].astype(np.float32))
    affine = volume.affine
    image.SetSpacing([float(s) for s in affine.spacing_mm[::-1]])
    image.SetOrigin([float(v) for v in affine.matrix[:3, 3][::-1]])
    image.SetDirection(affine.direction[::-1, ::-1].ravel().tolist())
    return image


def _register(fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform,
              *, spline: bool) -> sitk.Transform:  # fmt: skip
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1 if spline else 0.05, 7)
    method.SetInterpolator(sitk.sitkLinear)
    if spline:
        method.SetOptimizerAsLBFGSB(numberOfIterations=40)
        method.SetShrinkFactorsPerLevel([4, 2])
        method.SetSmoothingSigmasPerLevel([2, 1])
    else:
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def by_registration(*, spline: bool) -> Finder:
    """Affine, or then also a B-spline of 8^3 cells, on mutual information."""

    def find(scan: Volume, copy: Volume, points: Cloud) -> Cloud:
        fixed, moving = _itk(scan), _itk(copy)
        start = sitk.CenteredTransformInitializer(
            fixed, moving, sitk.AffineTransform(3),
            sitk.CenteredTransformInitializerFilter.GEOMETRY,
        )  # fmt: skip
        affine = _register(fixed, moving, start, spline=False)
        whole = affine
        if spline:
            moved = sitk.Resample(moving, fixed, affine, sitk.sitkLinear, -1000.0)
            mesh = sitk.BSplineTransformInitializer(fixed, [8, 8, 8])
            bent = _register(fixed, moved, mesh, spline=True)
            whole = sitk.CompositeTransform([affine, bent])
        moved = [whole.TransformPoint([float(v) for v in p[::-1]]) for p in points]
        return np.array(moved)[:, ::-1]

    return find


def body_points(scan: Volume, deformation: Deformation, count: int, seed: int) -> Cloud:
    """Tissue (above -500 HU) at least 15 mm inside scan and copy, evenly drawn."""
    rng = np.random.default_rng(seed)
    voxels = np.argwhere(scan.data[0] > -500)
    voxels = voxels[rng.permutation(len(voxels))[: 50 * count]]
    points = scan.affine.apply(voxels.astype(np.float64))
    edge = 15.0 / np.array(scan.affine.spacing_mm)
    inside = np.ones(len(points), bool)
    for places in (points, deformation.to_copy(points)):
        index = scan.affine.inverse().apply(places)
        inside &= ((index >= edge) & (index <= np.array(scan.shape) - 1 - edge)).all(1)
    return points[inside][:count]


def methods_of(encoders: list[Path], device: str) -> dict[str, Finder]:
    """Name -> finder; each encoder also with random weights."""
    found: dict[str, Finder] = {}
    where = choose_device(device)
    for path in encoders:
        loaded = load_encoder(path)
        name = str(loaded.card.get("method", "encoder"))
        name = f"{name} ({path.name})" if len(encoders) > 1 else name
        found[name] = by_features(DenseEncoder.of(loaded, EmbedConfig(), where))
        blank = untrained(load_encoder(path), seed=0)
        found[f"{name}, random weights"] = by_features(
            DenseEncoder.of(blank, EmbedConfig(), where)
        )
    found["grey values (NCC)"] = by_correlation
    found["affine (SimpleITK)"] = by_registration(spline=False)
    found["affine + B-spline (SimpleITK)"] = by_registration(spline=True)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--encoder", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--typical-mm", type=float, default=10.0)
    parser.add_argument("--only", default="", help="methods whose name holds this")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    errors: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for scan_path in arguments.scans:
        scan = read_scan(scan_path)
        for seed in range(arguments.copies):
            copy, deformation = deformed_copy(scan, seed, arguments.typical_mm)
            points = body_points(scan, deformation, arguments.points, seed)
            truth = deformation.to_copy(points)
            moved = landmark_errors(points, truth)
            errors.setdefault("no registration", []).extend(moved.tolist())
            for name, find in methods_of(arguments.encoder, arguments.device).items():
                if arguments.only and arguments.only not in name:
                    continue
                began = time.perf_counter()
                apart = landmark_errors(find(scan, copy, points), truth)
                took = time.perf_counter() - began
                errors.setdefault(name, []).extend(apart.tolist())
                seconds[name] = seconds.get(name, 0.0) + took
                rows.append({"scan": scan_path.name, "copy": seed, "method": name,
                             "median_mm": float(np.median(apart)),
                             "p90_mm": float(np.percentile(apart, 90)),
                             "seconds": took})  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    table = [
        {
            "method": name,
            "points": len(values),
            "median_mm": float(np.median(values)),
            "p90_mm": float(np.percentile(values, 90)),
            "mean_mm": float(np.mean(values)),
            "seconds_per_point": seconds.get(name, 0.0) / len(values),
        }
        for name, values in errors.items()
    ]
    arguments.out.write_text(json.dumps({"rows": rows, "table": table}, indent=1))
    for row in table:
        print(
            f"{row['method']:<50} {row['median_mm']:7.2f} {row['p90_mm']:7.2f} "
            f"{row['mean_mm']:7.2f} mm  {row['seconds_per_point']:.3f} s/point"
        )


if __name__ == "__main__":
    main()
