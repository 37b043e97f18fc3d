"""Faults put into losses and geometry one at a time: does a test notice?

Each is one change of one line, of the kind that trains all the same and is seen in no
curve: a sign, an axis, a factor, a bound. It is made in a copy of the sources, the test
files named with it run against the copy until the first failure, and the test that
failed is told. A fault that no test notices is a proof that is missing.

    python benchmarks/seeded_faults.py [--out benchmarks/results/seeded_faults.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded

import monai.networks.nets
import torch

ROOT = Path(__file__).parents[1]
fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Fault:
    """One change of the sources.

    Attributes:
        name: What is wrong then, in a few words.
        file: Below ``src/homolog``.
        old: Text that stands there exactly once.
        new: What is put in its place.
        tests: Files below ``tests`` that should notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


FAULTS = (
    Fault(
        "codes are balanced without the samples' own scaling",
        "losses/assignment.py",
        "        logs = logs - torch.logsumexp(logs, dim=1, keepdim=True)\n",
        "        logs = logs - torch.logsumexp(logs, dim=0, keepdim=True)\n",
        "losses/test_sinkhorn.py",
    ),
    Fault(
        "a view predicts its own code",
        "losses/assignment.py",
        "        if other != view\n",
        "        if other == view\n",
        "losses/test_swapped.py",
    ),
    Fault(
        "the two dustbins change their masses",
        "losses/assignment.py",
        "log_rows[n], log_columns[m] = math.log(m), math.log(n)",
        "log_rows[n], log_columns[m] = math.log(n), math.log(m)",
        "losses/test_transport.py",
    ),
    Fault(
        "the Sharpe ratio divides by the variance",
        "losses/assignment.py",
        "    std = variance.clamp_min(_SMALLEST_STD**2).sqrt()\n",
        "    std = variance.clamp_min(_SMALLEST_STD**2)\n",
        "losses/test_assignment.py",
    ),
    Fault(
        "the temperature multiplies",
        "losses/contrast.py",
        "logits = torch.cat([positive, scores], dim=1) / temperature",
        "logits = torch.cat([positive, scores], dim=1) * temperature",
        "losses/test_contrast.py",
    ),
    Fault(
        "a place is pulled to its hardest negatives",
        "losses/contrast.py",
        "loss = logits.logsumexp(-1) - logits[..., 0]",
        "loss = logits.logsumexp(-1) + logits[..., 0]",
        "methods/test_anatomical_embedding.py",
    ),
    Fault(
        "distances of places leave out the last axis",
        "losses/contrast.py",
        "    for axis in (1, 2):\n        total = total + (own",
        "    for axis in (1,):\n        total = total + (own",
        "methods/test_anatomical_embedding.py",
    ),
    Fault(
        "the diagonal is counted as redundancy",
        "losses/similarity.py",
        "correlation.square().sum() - diagonal.square().sum()",
        "correlation.square().sum()",
        "losses/test_cross_correlation.py",
    ),
    Fault(
        "visible patches are reconstructed too",
        "losses/similarity.py",
        "    weight = hidden.to(error.dtype)\n",
        "    weight = torch.ones_like(error)\n",
        "losses/test_reconstruct.py methods/test_alice.py",
    ),
    Fault(
        "Dice without its factor two",
        "losses/segmentation.py",
        "(2.0 * both + SMOOTH) / (either + SMOOTH)",
        "(both + SMOOTH) / (either + SMOOTH)",
        "losses/test_segmentation.py",
    ),
    Fault(
        "a gradient reaches the target branch",
        "losses/similarity.py",
        "(unit(a) * unit(b).detach()).sum(-1)",
        "(unit(a) * unit(b)).sum(-1)",
        "methods/test_alice.py",
    ),
    Fault(
        "the teacher takes over the student",
        "nn/optim.py",
        "                1.0 - momentum,\n",
        "                momentum,\n",
        "nn/test_teacher.py",
    ),
    Fault(
        "hidden and visible shares are exchanged",
        "nn/masking.py",
        "min(max(round(count * ratio), 1), count - 1)",
        "min(max(round(count * (1 - ratio)), 1), count - 1)",
        "methods/test_alice.py nn/test_masking.py",
    ),
    Fault(
        "a coarse cell lies at the corner of its voxels",
        "geometry/affine.py",
        "Affine.shift((factors - 1.0) / 2.0)",
        "Affine.shift(factors * 0.0)",
        "geometry/test_affine.py",
    ),
    Fault(
        "a flipped axis begins one voxel late",
        "geometry/affine.py",
        "old_from_new[old, 3] = shape[old] - 1",
        "old_from_new[old, 3] = shape[old]",
        "geometry/test_affine.py",
    ),
    Fault(
        "affines are composed in the other order",
        "geometry/affine.py",
        "Affine(self.matrix @ other.matrix)",
        "Affine(other.matrix @ self.matrix)",
        "geometry/test_affine.py",
    ),
    Fault(
        "grids are read from corner to corner",
        "geometry/sampling.py",
        "align_corners=False",
        "align_corners=True",
        "geometry/test_sampling.py",
    ),
    Fault(
        "places are read as z, y, x",
        "geometry/sampling.py",
        "    place = offset.flip(-1).reshape(b, v, 1, 1, 1, 3)\n",
        "    place = offset.reshape(b, v, 1, 1, 1, 3)\n",
        "geometry/test_sampling.py",
    ),
    Fault(
        "a displacement is subtracted",
        "geometry/sampling.py",
        "turn = ((inverse[:, None] * unit[..., None]).flip(-2)).float()",
        "turn = -((inverse[:, None] * unit[..., None]).flip(-2)).float()",
        "geometry/test_sampling.py",
    ),
    Fault(
        "tokens match one way only",
        "geometry/correspondence.py",
        "    return forth & back\n",
        "    return forth\n",
        "geometry/test_correspondence.py",
    ),
    Fault(
        "a resampled grid begins half a step off",
        "store/preprocess.py",
        "        half = (self.shape[axis] - 1) / 2.0 * self.step[axis]\n",
        "        half = self.shape[axis] / 2.0 * self.step[axis]\n",
        "store/test_preprocess.py",
    ),
    Fault(
        "a view is centred on the corner of its middle voxel",
        "views/plan.py",
        "    affine[:3, 3] = middle - linear @ ((size - 1) / 2)\n",
        "    affine[:3, 3] = middle - linear @ (size / 2)\n",
        "views/test_plan.py",
    ),
    Fault(
        "bands are made of the first blur alone",
        "views/energy_bands.py",
        "        bands.append(smooth - blurred)\n        smooth = blurred\n",
        "        bands.append(smooth - blurred)\n        smooth = image\n",
        "views/test_energy_bands.py",
    ),
    Fault(
        "windows are weighted inside out",
        "sliding/blending.py",
        "torch.exp(place**2 / (-2.0 *",
        "torch.exp(place**2 / (2.0 *",
        "sliding/test_sliding.py",
    ),
    Fault(
        "a rigid map may be a mirror image",
        "landmarks/match.py",
        "signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ v))])",
        "signs = np.array([1.0, 1.0, 1.0])",
        "landmarks/test_consensus.py",
    ),
    Fault(
        "the peak between cells lies on the other side",
        "features/search.py",
        "0.5 * (left - right) / bend",
        "0.5 * (right - left) / bend",
        "features/test_similarity.py",
    ),
    Fault(
        "deep voxels count less than the border",
        "nn/masking.py",
        "torch.exp(-depth / mu)",
        "torch.exp(-depth * mu)",
        "nn/test_cell_sampling.py",
    ),
    Fault(
        "attention between slices is not scaled",
        "backbones/hybrid.py",
        "scores = query @ key.mT / math.sqrt(dim // self.heads)",
        "scores = query @ key.mT / math.sqrt(dim)",
        "backbones/test_slice_attention.py",
    ),
)


def faulty_copy(fault: Fault, source: Path) -> None:
    """The sources with the fault in them."""
    # Compiled files go along: all but one of them are current.
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("*.png"))
    path = source / "homolog" / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise SystemExit(
            f"{fault.file}: {fault.old.strip()!r} stands there {text.count(fault.old)} "
            "times, expected once; bring the fault up to date."
        )
    text = text.replace(fault.old, fault.new)
    if "torch." in fault.new and "\nimport torch\n" not in text:
        text = text.replace("\nfrom torch import", "\nimport torch\nfrom torch import")
    path.write_text(text, encoding="utf-8")


class _Failures:
    """A plugin of pytest that keeps the names of tests that failed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.names.append(report.nodeid)


def _test(source: Path, tests: str, told: Connection) -> None:
    """In a process of its own: run the tests against a source tree, tell the failed."""
    sys.path.insert(0, str(source))
    os.environ["PYTHONPATH"] = str(source)
    os.chdir(ROOT)
    failures = _Failures()
    with (source / "pytest.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        import pytest

        files = [str(ROOT / "tests" / name) for name in tests.split()]
        # what was loaded before the fork is some plugin of pytest as well (zarr)
        calm = "ignore::pytest.PytestAssertRewriteWarning"
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", calm]
        status = int(pytest.main([*options, *files], plugins=[failures]))
        import homolog

        mine = Path(homolog.__file__).is_relative_to(source)
    told.send((status if mine else -1, failures.names))


def killer(fault: Fault, work: Path) -> str:
    """The test that fails with the fault in, or an empty text: it survives."""
    source = work / "src"
    faulty_copy(fault, source)
    # What is slow to load and not ours is loaded once, before the process is forked.
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_test, args=(source, fault.tests, theirs))
    process.start()
    theirs.close()
    try:
        status, failed = ours.recv()
    except EOFError:
        status, failed = -1, []
    process.join()
    if status not in (0, 1) or (status == 1 and not failed):
        log = (source / "pytest.log").read_text(encoding="utf-8")
        raise SystemExit(f"{fault.name}: the tests could not run\n{log}")
    return failed[0] if failed else ""


def main() -> None:
    """Print a line a fault, write the table, and fail if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="Part of a fault's name or file.")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, MONAI {monai.__version__}", flush=True)
    table = []
    for fault in FAULTS:
        if options.only not in f"{fault.name} {fault.file}":
            continue
        with tempfile.TemporaryDirectory() as folder:
            test = killer(fault, Path(folder))
        table.append({"fault": fault.name, "file": fault.file, "killed_by": test})
        print(f"{fault.file}: {fault.name}: {test or 'SURVIVES'}", flush=True)
    left = [row for row in table if not row["killed_by"]]
    print(f"{len(table) - len(left)} of {len(table)} faults are noticed")
    if options.out:
        result = {"faults": len(table), "survivors": len(left), "table": table}
        text = json.dumps(result, indent=1) + "\n"
        options.out.write_text(text, encoding="utf-8")
    if left:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
