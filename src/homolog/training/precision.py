"""Which numbers a device computes in: half-width autocast where it is native and pays.

bf16 has the range of fp32. fp16, of GPUs that lack bf16, has not: small gradients
vanish unless the loss is scaled up before the backward pass (``stepping.LossScale``).
"""

from __future__ import annotations

import torch
from torch import nn

PRECISIONS = ("fp32", "bf16", "fp16")

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Compute capability: tensor cores for fp16 came with Volta, for bf16 with Ampere.
_BF16_SINCE, _FP16_SINCE = (8, 0), (7, 0)


def resolve_precision(wanted: str, device: torch.device, module: nn.Module) -> str:
    """``auto`` -> ``bf16``, ``fp16`` or ``fp32``; the others pass.

    The answer depends on the device and the network only, never on a measurement, so
    that two runs of one configuration on one machine give the same numbers.

    On a GPU bf16 is taken where the hardware has it (not where torch emulates it), fp16
    from Volta on. On a CPU with bf16 instructions it
    is taken for convolutional networks, not where attention prevails (measured in
    processor time with AVX512-BF16, forward and backward: a 3D convolutional encoder
    1.6 times as fast, Swin equal).
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return gpu_precision(device)
    if cpu_has_bf16() and _convolutional_share(module) > 0.5:
        return "bf16"
    return "fp32"


def gpu_precision(device: torch.device) -> str:
    """The narrowest numbers that this GPU, not the current one, multiplies natively."""
    if torch.version.hip:
        return "bf16"
    capability = torch.cuda.get_device_capability(device)
    if capability >= _BF16_SINCE:
        return "bf16"
    return "fp16" if capability >= _FP16_SINCE else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network computes in ``precision``."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(
        device.type, dtype or torch.bfloat16, enabled=dtype is not None
    )


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
