"""LARC: gradient descent whose rate follows each tensor's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class LARC(torch.optim.Optimizer):
    """Gradient descent with momentum, the gradient of each tensor scaled by its norms.

    With weights w, gradient g and weight decay d, a step is

        r = trust |w| / (|g| + d |w| + eps)
        b = momentum b + r (g + d w)
        w = w - lr b

    so that a tensor moves by about ``trust * lr`` of its norm, however large or small
    its gradient is: what lets large batches take large rates. Where w or g is all zero
    nothing is known of their sizes: r is 1 and nothing decays.

    Nothing waits for the device. Where ``found_inf`` is set to 1 (a scalar tensor, as
    torch's fused optimisers take it) a step changes nothing.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        momentum: Decay of the mean of gradients, 0..1.
        weight_decay: Folded into the gradient before it is scaled.
        trust: Trust coefficient; 0: no scaling, plain gradient descent.
        clip: r / lr, at most 1, takes the place of r: rates are only made smaller.
        eps: Keeps the denominator from 0.

    Source: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks",
    arXiv 1708.03888, Eq. 6; as used by Caron et al., NeurIPS 2020 (SwAV): trust 0.001,
    no clipping, norms and biases scaled too; methods reference 1.3.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        clip: bool = False,
        eps: float = 1e-8,
    ) -> None:
        if min(lr, weight_decay, trust, eps) < 0 or not 0 <= momentum < 1:
            raise ValueError(
                "LARC needs lr, weight_decay, trust and eps >= 0 and 0 <= momentum < "
                f"1, got {lr}, {weight_decay}, {trust}, {eps} and {momentum}."
            )
        chosen = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**chosen, "trust": trust, "clip": clip, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in _with_gradient(group["params"]):
                self._move(weight, group)
        return loss

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean: Tensor = state["momentum"]
        moved = group["momentum"] * mean + _scaled(weight, weight.grad, group)
        change = group["lr"] * moved
        if self.found_inf is not None:
            bad = self.found_inf > 0
            moved = torch.where(bad, mean, moved)
            change = torch.where(bad, 0.0, change)
        mean.copy_(moved)
        weight.sub_(change)


def _scaled(weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """The r (g + d w) of a tensor, or its bare gradient where a norm is 0."""
    decay: float = group["weight_decay"]
    trust: float = group["trust"]
    decayed = gradient + decay * weight
    if trust == 0:
        return decayed
    own = torch.linalg.vector_norm(weight)
    other = torch.linalg.vector_norm(gradient)
    ratio = trust * own / (other + decay * own + group["eps"])
    if group["clip"]:
        ratio = (ratio / max(group["lr"], group["eps"])).clamp_max(1.0)
    return torch.where((own > 0) & (other > 0), ratio * decayed, gradient)


def _with_gradient(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p for p in parameters if p.grad is not None]
