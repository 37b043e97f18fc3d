"""Sliding window with many classes, against MONAI's sliding_window_inference.

Networks are random and light, so that stitching is what is measured:

- ``split``: a 3^3 convolution, ReLU and a 1^3 convolution to 105 classes that offers
  ``features`` and ``head``, as our decoders do;
- ``foreign``: the same without telling; its last layer is found;
- ``closed``: a 3^3 convolution to all classes, which cannot be cut: class blocks.

Labels are compared with MONAI's where its memory allows; a difference is counted as one
only where MONAI's own two best logits differ by more than rounding (float32 sums in
another order). Time is the minimum of several interleaved rounds, memory the growth of
the process's peak resident size in a fresh process each.

    python benchmarks/sliding_window.py [--out benchmarks/results/sliding_window.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from homolog.events import drain
from homolog.sliding.sliding import slide
from homolog.sliding.windows import SlidingConfig

CLASSES, WIDTH, WINDOW, OVERLAP = 105, 8, 96, 0.5
# Relative to the largest logit; float32 has about 1.2e-7.
ROUNDING = 2e-6


class Split(nn.Module):
    """Few features, many classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv3d(1, WIDTH, 3, padding=1)
        self.head = nn.Conv3d(WIDTH, classes, 1)

    def features(self, image: Tensor) -> Tensor:
        return torch.relu(self.body(image))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


def network_of(kind: str, classes: int) -> nn.Module:
    split = Split(classes).eval()
    if kind == "split":
        return split
    if kind == "foreign":
        return nn.Sequential(split.body, nn.ReLU(), split.head).eval()
    torch.manual_seed(0)
    return nn.Conv3d(1, classes, 3, padding=1).eval()


def noise(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((1, size, size, size), generator=generator)


def ours(network: nn.Module, image: Tensor, classes: int, window: int) -> Any:
    config = SlidingConfig(window=(window,) * 3, overlap=OVERLAP, batch=1)
    job = slide(
        network, image, classes=classes, config=config, device=torch.device("cpu")
    )
    return drain(job)


def monai_logits(network: nn.Module, image: Tensor, window: int) -> Tensor:
    from monai.inferers import sliding_window_inference

    with torch.no_grad():
        return sliding_window_inference(
            image[None], (window,) * 3, 1, network, overlap=OVERLAP, mode="gaussian"
        )[0]


def peak_mb() -> float:
    """Peak resident size of this process (getrusage would count the parent's too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024


def measure(who: str, kind: str, size: int, classes: int, window: int) -> None:
    """One call in this process: seconds, extra megabytes, how it was done."""
    network, image = network_of(kind, classes), noise(size)
    run = monai_logits if who == "monai" else ours
    small = noise(16)
    (ours(network, small, classes, 16) if who == "ours" else run(network, small, 16))
    before, start = peak_mb(), time.perf_counter()
    cpu = time.process_time()
    if who == "monai":
        monai_logits(network, image, window).argmax(0)
        told: dict[str, Any] = {}
    else:
        result = ours(network, image, classes, window)
        told = {"blended": result.blended, "passes": result.passes,
                "windows": result.windows}  # fmt: skip
    row = {
        "who": who, "kind": kind, "size": size, "classes": classes, "window": window,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "extra_mb": peak_mb() - before, **told,
    }  # fmt: skip
    print(json.dumps(row))


def measured(*words: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", *map(str, words)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return row


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The quickest round, with the largest memory of all rounds."""
    quickest = min(rows, key=lambda r: r["seconds"])
    return {**quickest, "extra_mb": max(r["extra_mb"] for r in rows)}


def compare_labels(kind: str, size: int, classes: int, window: int) -> dict[str, Any]:
    """Voxels where the labels differ, and of those the ones beyond rounding."""
    network, image = network_of(kind, classes), noise(size)
    labels = ours(network, image, classes, window).labels.long()
    logits = monai_logits(network, image, window)
    theirs = logits.argmax(0)
    differ = (labels != theirs).nonzero(as_tuple=True)
    chosen = logits[(labels[differ], *differ)]
    best = logits[(theirs[differ], *differ)]
    limit = ROUNDING * float(logits.abs().max())
    return {
        "kind": kind, "size": size, "classes": classes, "voxels": labels.numel(),
        "different": int((labels != theirs).sum()),
        "beyond_rounding": int((best - chosen > limit).sum()),
    }  # fmt: skip


def air(size: int, window: int) -> dict[str, Any]:
    """A body that leaves 40 % of the scan to air."""
    network, image = network_of("split", CLASSES), noise(size)
    image[:, : int(0.4 * size)] = -1.0
    config = SlidingConfig(window=(window,) * 3, overlap=OVERLAP, batch=1)
    device = torch.device("cpu")
    result = drain(slide(network, image, classes=CLASSES, config=config, device=device))
    everything = drain(
        slide(
            network, image, classes=CLASSES, device=device,
            config=SlidingConfig(
                window=(window,) * 3, overlap=OVERLAP, batch=1, skip_constant=False
            ),
        )
    )  # fmt: skip
    run = result.windows - result.constant + 1
    return {
        "size": size, "window": window, "windows": result.windows, "run": run,
        "share_run": run / result.windows,
        "labels_identical": bool(torch.equal(result.labels, everything.labels)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--peer-size", type=int, default=128)
    kinds = ("split", "foreign", "closed")
    parser.add_argument("--kinds", nargs="*", choices=kinds, default=kinds)
    parser.add_argument("--measure", nargs=5)
    options = parser.parse_args()
    if options.measure:
        who, kind, *numbers = options.measure
        size, classes, window = map(int, numbers)
        measure(who, kind, size, classes, window)
        return
    peer, small = options.peer_size, options.peer_size // 2
    pairs: dict[str, list[dict[str, Any]]] = {"ours": [], "monai": []}
    for _ in range(options.rounds):
        for who, rows in pairs.items():
            rows.append(measured(who, "split", peer, CLASSES, small))
    large = {}
    for kind in options.kinds:
        rounds = 1 if kind == "closed" else options.rounds
        rows = [measured("ours", kind, options.size, CLASSES, WINDOW)
                for _ in range(rounds)]  # fmt: skip
        large[kind] = best_of(rows)
    ours_row, monai_row = best_of(pairs["ours"]), best_of(pairs["monai"])
    result = {
        "machine": {"processor": platform.processor() or platform.machine(),
                    "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
                    "torch": torch.__version__},
        "against_monai": {
            "ours": ours_row, "monai": monai_row,
            "times_faster": monai_row["seconds"] / ours_row["seconds"],
            "memory_ratio": monai_row["extra_mb"] / max(ours_row["extra_mb"], 1.0),
        },
        "large": large,
        "labels": [compare_labels(kind, peer, CLASSES, small)
                   for kind in kinds],
        "air": air(peer, small // 4),
        "bars": {"seconds": 15.0, "extra_mb": 1500.0},
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
