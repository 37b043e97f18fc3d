"""A momentum copy of a network: slow, without gradient, never in training mode."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import nn


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
        student_buffers = dict(student.named_buffers())
        for name, buffer in self.module.named_buffers():
            buffer.copy_(student_buffers[name])
