"""A whole-body CT of 105 classes on cards of 8 to 141 GB: time and memory, predicted.

No GPU is needed and none was used. The windows, their number at once and what is
blended are chosen by the code that labels scans, told that a card's memory is free;
what a window holds is counted on torch's meta device, where the rest is arithmetic.
Seconds: operations of all windows at 40 % of the card's dense bfloat16 peak, the
blending and the answers at its memory's bandwidth, and the scan's way up and the
labels' way down at 12 GB/s. Reading, resampling and writing of files are not in it.

    python benchmarks/whole_body.py [--network resunet ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cards import CARDS, GIB
from homolog.backbones import build
from homolog.nn.decoders import suited_decoder
from homolog.sliding.blending import Blend
from homolog.sliding.on_gpu import VALUES_AT_ONCE
from homolog.sliding.sliding import _Slide
from homolog.sliding.windows import _SHARE_OF_SCAN, SlidingConfig, pass_bytes
from homolog.tasks.segment.network import SegmentNetwork
from homolog.training.footprint import CONTEXT_BYTES, META, USABLE, on_meta, pretended
from homolog.training.stepping import autocast

SHAPE, CLASSES, WINDOW = (600, 512, 512), 105, (128, 128, 128)
SHARE, LINK = 0.4, 12e9  # of the peak; bytes a second between host and card
OUT = Path(__file__).resolve().parent / "results" / "whole_body.json"


@dataclass(frozen=True)
class Kind:
    """A card of that memory, by its maker's sheet."""

    name: str
    bf16: float  # dense, float32 accumulated, operations a second
    memory: float  # bytes a second


KINDS = {
    8: Kind("RTX 4060", 30e12, 272e9),
    12: Kind("RTX 3060", 25e12, 360e9),
    24: Kind("RTX 4090", 165e12, 1008e9),
    80: Kind("A100", 312e12, 2039e9),
    141: Kind("H200", 989e12, 4800e9),
}


def segmenter(name: str, classes: int) -> nn.Module:
    torch.manual_seed(0)
    backbone = build(name, {})
    network = SegmentNetwork(backbone, suited_decoder(backbone, classes, 1))
    return network.eval().requires_grad_(False)


def operations(network: nn.Module, features: bool) -> float:
    """Of one window."""
    module: Any = on_meta(network).eval()
    image = torch.empty((1, 1, *WINDOW), device=META)
    counter = FlopCounterMode(display=False)
    with pretended(), torch.no_grad(), counter, autocast(META, "bf16"):
        module.features(image) if features else module(image)
    return float(counter.get_total_flops())


def chosen(network: nn.Module, free: int) -> Any:
    """The slide as a card with so much free memory has it."""
    config = SlidingConfig(window=WINDOW, batch=None, precision="bf16")
    image = torch.empty((1, *SHAPE), dtype=torch.int16, device=META)
    card = torch.device("cuda")
    with mock.patch.object(torch.cuda, "mem_get_info", return_value=(free, free)):
        return _Slide(network, image, CLASSES, config, card, None)


def on_card(network: nn.Module, gib: float, kind: Kind) -> dict[str, Any]:
    """Windows at once, the most that is held, seconds."""
    weights = sum(p.nbytes for p in (*network.parameters(), *network.buffers()))
    free = int(gib * GIB) - CONTEXT_BYTES - weights
    slide = chosen(network, free)
    plan, grid, batch = slide.plan, slide.grid, slide.predictor.batch
    channels = slide.head.features if plan.features else plan.block
    passes = 1 if plan.features else -(-CLASSES // plan.block)
    voxels, windows = prod(SHAPE), len(grid.starts)
    scan = 2 * voxels
    up = scan <= _SHARE_OF_SCAN * free
    sums = Blend.bytes_needed(channels, grid, torch.float32)
    answers = voxels * (1 if passes == 1 else 5)
    each = pass_bytes(
        network, 1, WINDOW, slide.predictor.config, features=plan.features
    )
    assert each is not None
    held = {
        "weights": weights, "scan": scan * up, "sums": sums, "labels": answers,
        "windows": batch * each, "answers": 5 * VALUES_AT_ONCE,
    }  # fmt: skip
    peak = sum(held.values())
    flops = operations(network, plan.features) * windows * passes
    head = 2 * channels * CLASSES * voxels * plan.features
    moved = windows * passes * (channels * (2 + 8) + 12) * prod(WINDOW)
    moved += passes * voxels * (4 * channels + 8 * CLASSES)
    seconds = {
        "network": flops / (SHARE * kind.bf16),
        "blend": moved / kind.memory + head / (SHARE * kind.bf16 / 2),
        "link": ((scan if up else 8 * scan) + voxels) / LINK,
    }
    return {
        "card": kind.name, "windows": windows, "batch": batch, "passes": passes,
        "blended": "features" if plan.features else "logits", "scan_up": up,
        "gib": {k: round(v / GIB, 3) for k, v in held.items()},
        "peak_gib": round(peak / GIB, 2),
        "card_gib": round((peak / USABLE + CONTEXT_BYTES) / GIB, 2),
        "fits": peak / USABLE + CONTEXT_BYTES <= gib * GIB,
        "seconds": {k: round(v, 2) for k, v in seconds.items()},
        "total_s": round(sum(seconds.values()), 1),
    }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", nargs="*", default=["resunet", "swin"])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(words)
    rows: dict[str, Any] = {}
    for name in options.network:
        network = segmenter(name, CLASSES)
        rows[name] = {}
        for sold, gib in CARDS.items():
            row = on_card(network, gib, KINDS[sold])
            rows[name][str(sold)] = row
            print(
                f"{name:8} {sold:4} GB {row['windows']} windows, {row['batch']:2} at "
                f"once, {row['blended']}, {row['passes']} passes: {row['card_gib']} "
                f"GiB{'' if row['fits'] else ' (does not fit)'}, {row['total_s']} s "
                f"{row['seconds']}",
                flush=True,
            )
    content = {
        "what": "predicted, no GPU was used", "torch": torch.__version__,
        "shape": SHAPE, "classes": CLASSES, "window": WINDOW, "overlap": 0.5,
        "share_of_peak": SHARE, "link_bytes_s": LINK,
        "cards": {
            str(k): {"card": v.name, "bf16": v.bf16, "bytes_s": v.memory}
            for k, v in KINDS.items()
        },
        # what MONAI's inferer holds of logits, beside the network
        "monai_logits_gib": round(CLASSES * prod(SHAPE) * 4 / GIB, 1),
        "networks": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
