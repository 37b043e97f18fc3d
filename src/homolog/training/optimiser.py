"""The optimiser, its schedule, and its state as named tensors (never a pickle)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from homolog.nn.larc import LARC
from homolog.nn.optim import cosine_with_warmup, parameter_groups
from homolog.training.config import TrainingConfig

_PREFIX = "optimiser/"


def build_optimiser(
    module: nn.Module,
    config: TrainingConfig,
    groups: Sequence[Mapping[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """The chosen optimiser over the module's trainable parameters; AdamW is fused.

    Args:
        module: The trainable, on its device.
        config: Which one, learning rate, weight decay.
        groups: As made by ``nn.optim.parameter_groups`` (``lr_factor`` or ``lr`` per
            group); all trainable parameters alike when None.
    """
    if groups is None:
        groups = parameter_groups(module, config.weight_decay)
    own: list[dict[str, Any]] = []
    for group in groups:  # torch writes into the dicts it is given
        rate = group.get("lr", config.learning_rate * group.get("lr_factor", 1.0))
        own.append(
            {**group, "params": list(group["params"]), "lr": rate, "peak_lr": rate}
        )
    if config.optimizer != "adamw":
        return LARC(
            own,
            config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            trust=config.trust if config.optimizer == "larc" else 0.0,
        )
    return torch.optim.AdamW(
        own,
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_learning_rate(
    optimiser: torch.optim.Optimizer, step: float, total: int, config: TrainingConfig
) -> float:
    """Set every group's rate for a step (0-based); returns that of factor 1.

    ``step`` is a fraction where the number of steps was decided anew, see Course.

    The warm-up is at most a fifth of the run, so that short runs learn too.
    """
    factor = cosine_with_warmup(
        step,
        total,
        min(config.warmup_steps, total // 5),
        config.min_learning_rate_factor,
    )
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return config.learning_rate * factor


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, module: nn.Module
) -> dict[str, Tensor]:
    """The optimiser's memory: ``optimiser/PARAMETER/KEY`` -> tensor."""
    tensors = {}
    for name, parameter in module.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{_PREFIX}{name}/{key}"] = torch.as_tensor(value)
    return tensors


def restore_optimiser(
    optimiser: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of optimiser_tensors; tensors of other names are left alone."""
    parameters = dict(module.named_parameters())
    for full, value in tensors.items():
        if not full.startswith(_PREFIX):
            continue
        name, _, key = full.removeprefix(_PREFIX).rpartition("/")
        parameter = parameters[name]
        # the fused step wants its step count beside the weights, as float32
        optimiser.state[parameter][key] = value.to(parameter.device, copy=True)
