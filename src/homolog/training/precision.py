"""Which numbers a device computes in: bf16 autocast where it is native and pays."""

from __future__ import annotations

import torch
from torch import nn

PRECISIONS = ("fp32", "bf16", "fp16")


def resolve_precision(wanted: str, device: torch.device, module: nn.Module) -> str:
    """``auto`` -> ``bf16`` or ``fp32``; the others pass.

    The answer depends on the device and the network only, never on a measurement, so
    that two runs of one configuration on one machine give the same numbers.

    On a GPU bf16 is taken where the hardware has it. On a CPU with bf16 instructions it
    is taken for convolutional networks, not where attention prevails (measured in
    processor time with AVX512-BF16, forward and backward: a 3D convolutional encoder
    1.6 times as fast, Swin equal).
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if cpu_has_bf16() and _convolutional_share(module) > 0.5:
        return "bf16"
    return "fp32"


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively (AVX512-BF16 or AMX)."""
    asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, ask, lambda: False)()) for ask in asks)


def _convolutional_share(module: nn.Module) -> float:
    """Share of the trained weights that belong to convolutions, 0..1."""
    convolutional = total = 0
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.requires_grad and parameter.ndim > 1:
                total += parameter.numel()
                if isinstance(part, nn.modules.conv._ConvNd):
                    convolutional += parameter.numel()
    return convolutional / total if total else 0.0
