"""Optimisers: parameter groups, rates, LARC, and the moving average of a teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

# LARC: gradient descent whose rate follows each tensor's own size.


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
            if weights := _with_gradient(group["params"]):
                self._move(weights, group)
        return loss

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """All weights of a group, in few large kernels."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        means: list[Tensor] = [self.state[weight]["momentum"] for weight in weights]
        moved = list(torch._foreach_mul(means, group["momentum"]))
        torch._foreach_add_(moved, _scaled(weights, group))
        if self.found_inf is not None:
            moved = _unless(self.found_inf > 0, moved, means)
        changes = torch._foreach_mul(moved, group["lr"])
        if self.found_inf is not None:
            torch._foreach_mul_(changes, 1.0 - self.found_inf)  # nothing moves
        torch._foreach_copy_(means, moved)
        torch._foreach_sub_(weights, changes)


def _scaled(weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """The r (g + d w) of each tensor, or its bare gradient where a norm is 0."""
    decay: float = group["weight_decay"]
    trust: float = group["trust"]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    decayed = list(torch._foreach_mul(weights, decay))
    torch._foreach_add_(decayed, gradients)
    if trust == 0:
        return decayed
    own = torch.stack(torch._foreach_norm(weights))
    other = torch.stack(torch._foreach_norm(gradients))
    ratio = trust * own / (other + decay * own + group["eps"])
    if group["clip"]:
        ratio = (ratio / max(group["lr"], group["eps"])).clamp_max(1.0)
    counts = ((own > 0) & (other > 0)).unbind()
    torch._foreach_mul_(decayed, ratio.unbind())
    rows = zip(counts, decayed, gradients, strict=True)
    return [torch.where(some, scaled, bare) for some, scaled, bare in rows]


def _unless(bad: Tensor, moved: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
    """The first, or the second where ``bad`` (a bool scalar); chosen in one kernel."""
    whole, before = (torch.cat([t.flatten() for t in ts]) for ts in (moved, kept))
    chosen = torch.split(torch.where(bad, before, whole), [t.numel() for t in moved])
    return [part.view_as(t) for part, t in zip(chosen, moved, strict=True)]


def _with_gradient(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p for p in parameters if p.grad is not None]


Factor: TypeAlias = Callable[[str], float]
NEVER = math.inf


@dataclass(frozen=True, order=True)
class Pace:
    """When parameters learn, and how fast; times are shares of the training, 0..1.

    Attributes:
        factor: Their peak rate as a share of the training's.
        start: They stay as they are before it; ``NEVER``: always.
        rises: Beginnings of a warm-up, rising; after the last of them the rate falls by
            half a cosine, after the others it stays at its peak,
        falls: or falls too, until the next: every stretch has a course of its own.

    Source: Wald et al., "An OpenMind for 3D medical vision self-supervised learning",
        ICCV 2025 (nnssl: "sawtooth", the decoder is warmed up alone, then all is).
    Differs from the paper: half a cosine, not a polynomial; a warm-up may end before
        the next one begins.
    """

    factor: float = 1.0
    start: float = 0.0
    rises: tuple[float, ...] = (0.0,)
    falls: bool = False

    def learns(self, share: float) -> bool:
        """Whether the parameters learn where ``share`` of the training is done."""
        return share >= self.start

    def rate(
        self,
        step: float,
        total: int,
        warmup: float = 0,
        floor: float = 0.0,
        schedule: str = "cosine",
    ) -> float:
        """Rate at a step as a share of the training's peak; 0 before the start.

        Args:
            step: 0-based, or between two.
            total: Steps of the whole training.
            warmup: Steps of each rise.
            floor: Share of the peak at the end.
            schedule: How it falls, ``cosine`` or ``poly``.
        """
        share = step / total
        begun = [rise for rise in self.rises if share >= rise]
        if not begun or not self.learns(share):
            return 0.0
        begin = begun[-1] * total
        end = float(total)
        if len(begun) < len(self.rises):
            if not self.falls:
                return self.factor * min(1.0, (step - begin + 1) / (warmup + 1))
            end = self.rises[len(begun)] * total
        return self.factor * scheduled(
            step - begin, end - begin, warmup, floor, schedule
        )


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
    pace: Callable[[str], Pace] | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: decayed and not, per pace.

    Not decayed: everything with at most one dimension (norms, biases, scalars) and
    position embeddings, tokens and bias tables. Frozen parameters are left out.

    Args:
        module: The trainable whole.
        weight_decay: For the decayed groups.
        learning_rate: If given, each group gets ``lr`` = this times its factor.
        factor: Parameter name -> factor of the learning rate, or prefixes as taken by
            ``prefix_factor``. 0 leaves parameters out.
        pace: Parameter name -> its pace, instead of a factor alone.

    Returns:
        Dicts with ``params``, ``weight_decay``, ``lr_factor``, ``pace`` and maybe
        ``lr``, in a fixed order, for any torch optimiser.

    Raises:
        ValueError: Nothing is left to train.
    """
    if pace is None:
        shares = factor or {}
        share = prefix_factor(shares) if isinstance(shares, Mapping) else shares

        def pace(name: str) -> Pace:
            return Pace(share(name))

    groups: dict[tuple[Pace, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        own = pace(name)
        if parameter.requires_grad and own.factor > 0:
            key = own, is_decayed(name, parameter)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError(f"{type(module).__name__} has no parameter left to train.")
    result = []
    for own, decayed in sorted(groups, reverse=True):
        group: dict[str, Any] = {
            "params": groups[own, decayed],
            "weight_decay": weight_decay if decayed else 0.0,
            "lr_factor": own.factor,
            "pace": own,
        }
        if learning_rate is not None:
            group["lr"] = learning_rate * own.factor
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


_POWER = 0.9  # of the polynomial, as nnU-Net has it


def scheduled(
    step: float,
    total: float,
    warmup: float = 0,
    floor: float = 0.0,
    schedule: str = "cosine",
) -> float:
    """Factor of the learning rate at a step: linear rise, then a fall.

    Args:
        step: 0-based, or between two; step ``warmup`` is the first at full rate.
        total: Steps of the whole training; from there on the factor is ``floor``.
        warmup: Steps of the rise, whose first factor is 1 / (warmup + 1).
        floor: Factor at the end.
        schedule: ``cosine``: half of one; ``poly``: the power 0.9 of what is left.

    Returns:
        A number in 0..1.

    Source: poly, Isensee et al., Nature Methods 2021 (nnU-Net).

    Paper: Alice Table 8, poly.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step >= total:
        return floor
    share = (step - warmup) / max(1, total - warmup)
    if schedule == "poly":
        left: float = (1.0 - share) ** _POWER
        return floor + (1.0 - floor) * left
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share))


# A momentum copy of a network: slow, without gradient, never in training mode.


class Teacher(nn.Module):
    """Exponential moving average of a student.

    Its parameters have ``requires_grad`` False, so an optimiser leaves them out; it
    stays in evaluation mode (no dropout, no drop-path) whatever ``train()`` is called.

    Args:
        student: Copied at once; later changes reach the copy through ``update`` only.

    Source: He et al., CVPR 2020 (MoCo); methods reference 1.5.
    Differs from the paper: buffers are copied, not averaged.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(student)
        self.module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Keep evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The copy's own forward pass, without gradient."""
        return self.module(*inputs, **options)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Set teacher = momentum * teacher + (1 - momentum) * student, after a step.

        Args:
            student: A network with the names and shapes of the copied one.
            momentum: 0 copies the student, 1 keeps the teacher.

        Raises:
            ValueError: momentum outside 0..1, or parameters that differ in name.
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be in 0..1, got {momentum}.")
        own, theirs = (dict(m.named_parameters()) for m in (self.module, student))
        if own.keys() != theirs.keys():
            odd = sorted(own.keys() ^ theirs.keys())
            raise ValueError(f"student and teacher differ in parameter {odd[0]!r}.")
        if own:
            torch._foreach_lerp_(
                list(own.values()),
                [theirs[name].detach() for name in own],
                1.0 - momentum,
            )
        buffers = dict(student.named_buffers())
        pairs = [(own, buffers[name]) for name, own in self.module.named_buffers()]
        for kind in {own.dtype: None for own, _ in pairs}:  # what one kernel copies
            alike = [pair for pair in pairs if pair[0].dtype == kind]
            torch._foreach_copy_([own for own, _ in alike], [now for _, now in alike])
