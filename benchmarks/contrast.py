"""Contrast of pairs among all others against MONAI's ContrastiveLoss.

Both compute SimCLR's loss of N pairs, forward and backward; ours by the loss of labels
(MixCL), each pair a label of its own. Each runs in a process of its own, in turn, for
the memory; processor time, so that other work on the machine does not count. MONAI's
needs 12 GB.

    python benchmarks/contrast.py [--rounds 2] [--out benchmarks/results/contrast.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PAIRS, FEATURES, TEMPERATURE = 1000, 128, 0.5
BARS = {"ratio": 30.0, "memory_ratio": 50.0, "difference": 1e-4}


def measured(who: str) -> dict[str, float]:
    """Value, processor seconds and peak memory beyond the inputs, of this process."""
    import resource

    import torch

    torch.set_num_threads(1)
    made = torch.Generator().manual_seed(0)
    one, other = (
        torch.randn(PAIRS, FEATURES, generator=made, requires_grad=True)
        for _ in range(2)
    )
    if who == "monai":
        from monai.losses import ContrastiveLoss

        loss = ContrastiveLoss(TEMPERATURE)
    else:
        from homolog.losses.contrast import Labelled, label_contrast

        def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            own = torch.arange(1, len(a) + 1)
            every, space = torch.ones_like(own, dtype=torch.bool), own.new_zeros(len(a))
            sides = (Labelled(x, own, space, every) for x in (a, b))
            return label_contrast(*sides, TEMPERATURE, within=True)

    # what is imported and allocated once does not count
    loss(*(x[:8].detach().requires_grad_() for x in (one, other))).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    value = loss(one, other)
    value.backward()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "value": float(value.detach()),
        "seconds": seconds,
        "extra_mb": (peak - before) / 1024,
    }


def in_a_process(who: str) -> dict[str, float]:
    told = subprocess.run(
        [sys.executable, __file__, "--who", who],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(told.stdout)
    return found


def compared(rounds: int) -> dict[str, Any]:
    """The least seconds and memory of each, interleaved."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "monai": []}
    for _ in range(rounds):
        for who, rows in found.items():
            rows.append(in_a_process(who))
    best = {
        who: {key: min(row[key] for row in rows) for key in rows[0]}
        for who, rows in found.items()
    }
    ours, monai = best["ours"], best["monai"]
    result = {
        "pairs": PAIRS, "features": FEATURES, **best,
        "ratio": monai["seconds"] / ours["seconds"],
        "memory_ratio": monai["extra_mb"] / max(ours["extra_mb"], 1.0),
        "difference": abs(ours["value"] - monai["value"]),
    }  # fmt: skip
    met = {
        "ratio": result["ratio"] >= BARS["ratio"],
        "memory_ratio": result["memory_ratio"] >= BARS["memory_ratio"],
        "difference": result["difference"] <= BARS["difference"],
    }
    return {**result, "bars": BARS, "met": met, "rounds": rounds, "clock": "processor"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--who", choices=("ours", "monai"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.who:
        print(json.dumps(measured(options.who)))
        return
    report = compared(options.rounds)
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
