"""Contrastive loss, forward and backward, against MONAI's ContrastiveLoss.

Interleaved, the minimum of several rounds; memory is the growth of the process's peak
resident size in a fresh process per measurement.

    python benchmarks/contrast.py [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

PAIRS, FEATURES, TEMPERATURE = 1000, 128, 0.5
MANY_PAIRS = 16_000


def views(pairs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(pairs, FEATURES, generator=generator) for _ in range(2))
    return a.requires_grad_(), b.requires_grad_()


def loss_of(who: str) -> Callable[[Tensor, Tensor], Tensor]:
    if who == "monai":
        from monai.losses import ContrastiveLoss

        return ContrastiveLoss(temperature=TEMPERATURE)
    from homolog.losses.contrast import nt_xent

    return lambda a, b: nt_xent(a, b, TEMPERATURE)


def seconds(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Time of one forward and backward pass, and the value."""
    a, b = views(PAIRS)
    start = time.perf_counter()
    value = loss(a, b)
    value.backward()
    return time.perf_counter() - start, value.item()


def peak_growth_mb(who: str, pairs: int) -> float:
    """Growth of the peak resident size over one pass, in a process of its own."""
    command = [sys.executable, __file__, "--measure", who, str(pairs)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout.strip().splitlines()[-1])


def peak_mb() -> float:
    """Peak resident size of this process (getrusage would count the parent's too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024


def measure(who: str, pairs: int) -> None:
    loss = loss_of(who)
    a, b = views(16)
    loss(a, b).backward()  # libraries loaded, threads started
    a, b = views(pairs)
    before = peak_mb()
    loss(a, b).backward()
    print(peak_mb() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("WHO", "PAIRS"))
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], int(options.measure[1]))
        return
    losses = {who: loss_of(who) for who in ("monai", "homolog")}
    best = dict.fromkeys(losses, float("inf"))
    values = {}
    for _ in range(options.rounds + 1):
        for who, loss in losses.items():
            took, values[who] = seconds(loss)
            best[who] = min(best[who], took)
    memory = {who: peak_growth_mb(who, PAIRS) for who in losses}
    row = {
        "vectors": 2 * PAIRS,
        "features": FEATURES,
        "monai_ms": round(best["monai"] * 1e3, 2),
        "homolog_ms": round(best["homolog"] * 1e3, 2),
        "times_faster": round(best["monai"] / best["homolog"], 1),
        "monai_peak_mb": round(memory["monai"], 1),
        "homolog_peak_mb": round(memory["homolog"], 1),
        "times_less_memory": round(memory["monai"] / max(memory["homolog"], 0.1), 1),
        "value_gap": abs(values["monai"] - values["homolog"]),
        f"homolog_peak_mb_of_{2 * MANY_PAIRS}_vectors": round(
            peak_growth_mb("homolog", MANY_PAIRS), 1
        ),
        "bar": ">= 30x faster, <= 1/50 memory, value within 1e-4, 32000 < 1 GB",
    }
    if options.json:
        print(json.dumps(row))
        return
    for name, value in row.items():
        print(f"{name:36} {value}")


if __name__ == "__main__":
    main()
