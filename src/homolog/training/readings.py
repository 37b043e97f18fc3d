"""From tensors on the device to numbers: the one transfer of a logged step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from homolog.distributed import mean_over_ranks
from homolog.training.stepping import Stepper


def read_values(
    stepper: Stepper, module: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Losses (mean over processes) and monitors of the last step.

    Every process must have the same loss terms.
    """
    names = list(stepper.terms)
    terms = mean_over_ranks(torch.stack([stepper.terms[n] for n in names]))
    watched = _monitors(module) if not int(stepper.bad_run) else {}
    values = [stepper.gradient_norm.float(), *(t.float() for t in watched.values())]
    numbers: list[float] = torch.cat(
        [terms, torch.stack([v.reshape(()).to(terms.device) for v in values])]
    ).tolist()
    losses = dict(zip(names, numbers, strict=False))
    rest = numbers[len(names) :]
    monitors = {
        "learning_rate": stepper.learning_rate,
        "gradient_norm": rest[0],
        **dict(zip(watched, rest[1:], strict=True)),
    }
    if bad := int(stepper.bad_steps):
        monitors["bad_steps"] = float(bad)
    return losses, {k: v for k, v in monitors.items() if v - v == 0.0}


def _monitors(module: Any) -> dict[str, Tensor]:
    try:
        with torch.no_grad():
            return dict(module.monitors())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # features that just stopped being finite
        return {}
