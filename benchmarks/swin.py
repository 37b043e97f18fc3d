"""Our Swin encoder against MONAI's SwinTransformer, with one set of weights.

Training step (forward, backward) and inference, interleaved, the minimum of several
rounds; and how far apart the features are.

    python benchmarks/swin.py [--feature-size 24] [--side 64] [--rounds 5]
        [--threads 2] [--device cpu] [--out benchmarks/results/swin.json]

On a machine that others use at the time, ``--threads 1 --processor-time`` counts this
process's own seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from homolog.backbones import build

BARS = {"inference": 1.3, "training": 1.0, "fp32": 1e-5, "fp64": 1e-10}


def networks(feature_size: int, device: str) -> dict[str, nn.Module]:
    """MONAI's encoder and ours, with MONAI's weights (every key, strictly)."""
    torch.manual_seed(0)
    theirs = SwinTransformer(
        in_chans=1,
        embed_dim=feature_size,
        window_size=(7, 7, 7),
        patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24),
        spatial_dims=3,
    )
    ours = build("swin", {"feature_size": feature_size})
    ours.load_state_dict(theirs.state_dict())
    return {"monai": theirs.to(device), "ours": ours.to(device)}


def farthest(nets: dict[str, nn.Module], image: Tensor) -> float:
    """Largest difference of any feature."""
    with torch.no_grad():
        pairs = zip(nets["monai"](image), nets["ours"](image), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)


def infer(net: nn.Module, image: Tensor, bf16: bool) -> None:
    with torch.no_grad(), torch.autocast(image.device.type, torch.bfloat16, bf16):
        net(image)


def train(net: nn.Module, image: Tensor, bf16: bool) -> None:
    net.zero_grad(set_to_none=True)
    with torch.autocast(image.device.type, torch.bfloat16, bf16):
        maps: Sequence[Tensor] = net(image)
    # a fixed ramp: a plain sum of layer-normalised maps has no gradient
    terms = [(m.float() * ramp(m)).mean() for m in maps]
    torch.stack(terms).sum().backward()


def ramp(features: Tensor) -> Tensor:
    line = torch.linspace(-1, 1, features.shape[1], device=features.device)
    return line.view(-1, 1, 1, 1)


def seconds(call: Callable[[], None], device: str, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def interleaved(
    nets: dict[str, nn.Module],
    image: Tensor,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, float]]:
    """Case -> seconds of each network and their ratio (above 1: ours is faster)."""
    cases = {
        f"{name}_{kind}": (function, kind == "bf16")
        for name, function in (("inference", infer), ("training", train))
        for kind in ("fp32", "bf16")
    }
    best: dict[str, dict[str, float]] = {case: {} for case in cases}
    for turn in range(rounds + 1):  # the first one warms up
        for case, (function, bf16) in cases.items():
            for who, net in nets.items():
                took = seconds(
                    lambda f=function, n=net, b=bf16: f(n, image, b),
                    image.device.type,
                    clock,
                )
                if turn:
                    best[case][who] = min(took, best[case].get(who, took))
    for case in best.values():
        case["ratio"] = case["monai"] / case["ours"]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--feature-size", type=int, default=24)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    nets = networks(options.feature_size, options.device)
    image = torch.randn(1, 1, *(options.side,) * 3, device=options.device)
    clock = time.process_time if options.processor_time else time.perf_counter
    times = interleaved(nets, image, options.rounds, clock)
    small = torch.randn(1, 1, 32, 48, 32, device=options.device)
    apart32 = farthest(nets, small)
    wide = {who: net.double() for who, net in nets.items()}
    apart64 = farthest(wide, small.double())
    report = {
        "times_s": {
            case: {k: round(v, 4) for k, v in found.items()}
            for case, found in times.items()
        },
        "farthest_fp32": apart32,
        "farthest_fp64": apart64,
        "bars": BARS,
        "met": {
            "inference": times["inference_fp32"]["ratio"] >= BARS["inference"],
            "training": times["training_fp32"]["ratio"] >= BARS["training"],
            "fp32": apart32 <= BARS["fp32"],
            "fp64": apart64 <= BARS["fp64"],
        },
        "feature_size": options.feature_size, "side": options.side,
        "rounds": options.rounds, "threads": options.threads,
        "clock": "processor" if options.processor_time else "wall",
        "device": options.device, "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
