"""What an optimiser is told: parameter groups and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

Factor: TypeAlias = Callable[[str], float]

# Tensors of rank 2 or more that are offsets or tokens, not weights of a product.
_NEVER_DECAYED = (
    "bias",
    "pos_embed",
    "position_embedding",
    "position_embeddings",
    "relative_position_bias_table",
    "cls_token",
    "mask_token",
)


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    learning_rate: float | None = None,
    factor: Factor | Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: decayed and not, per learning-rate factor.

    Not decayed: everything with at most one dimension (norms, biases, scalars) and
    position embeddings, tokens and bias tables. Frozen parameters are left out.

    Args:
        module: The trainable whole.
        weight_decay: For the decayed groups.
        learning_rate: If given, each group gets ``lr`` = this times its factor.
        factor: Parameter name -> factor of the learning rate, or prefixes as taken by
            ``prefix_factor``. 0 leaves parameters out.

    Returns:
        Dicts with ``params``, ``weight_decay``, ``lr_factor`` and maybe ``lr``, in a
        fixed order, for any torch optimiser.

    Raises:
        ValueError: Nothing is left to train.
    """
    if factor is None:
        factor = {}
    if isinstance(factor, Mapping):
        factor = prefix_factor(factor)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        share = factor(name)
        if parameter.requires_grad and share > 0:
            groups.setdefault((share, is_decayed(name, parameter)), []).append(
                parameter
            )
    if not groups:
        raise ValueError(f"{type(module).__name__} has no parameter left to train.")
    result = []
    for share, decayed in sorted(groups, reverse=True):
        group: dict[str, Any] = {
            "params": groups[share, decayed],
            "weight_decay": weight_decay if decayed else 0.0,
            "lr_factor": share,
        }
        if learning_rate is not None:
            group["lr"] = learning_rate * share
        result.append(group)
    return result


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter."""
    leaf = name.rsplit(".", 1)[-1]
    return parameter.ndim > 1 and leaf not in _NEVER_DECAYED


def prefix_factor(factors: Mapping[str, float]) -> Factor:
    """Factors by name prefix, the longest match wins, 1 elsewhere.

    ``{"encoder.": 0.1}`` lets a pretrained encoder learn ten times slower.
    """
    by_length = sorted(factors, key=len, reverse=True)

    def factor(name: str) -> float:
        return next((factors[p] for p in by_length if name.startswith(p)), 1.0)

    return factor


def layerwise_factors(layers: Sequence[str], decay: float) -> dict[str, float]:
    """Learning-rate factors that shrink toward the input.

    Args:
        layers: Name prefixes from input to output.
        decay: Ratio of neighbouring layers, 0..1; the last prefix gets ``decay``, as
            the head after it has 1.

    Source: Clark et al., ICLR 2020 (ELECTRA); Bao et al., ICLR 2022 (BEiT).
    """
    count = len(layers)
    return {name: decay ** (count - i) for i, name in enumerate(layers)}


def cosine_with_warmup(
    step: float, total: int, warmup: int = 0, floor: float = 0.0
) -> float:
    """Factor of the learning rate at a step: linear rise, then half a cosine.

    Args:
        step: 0-based, or between two; step ``warmup`` is the first at full rate.
        total: Steps of the whole training; from there on the factor is ``floor``.
        warmup: Steps of the rise, whose first factor is 1 / (warmup + 1).
        floor: Factor at the end.

    Returns:
        A number in 0..1.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step >= total:
        return floor
    share = (step - warmup) / max(1, total - warmup)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share))
