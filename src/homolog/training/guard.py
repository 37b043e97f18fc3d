"""A step that is not finite leaves no trace: weights, queues and teachers stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StateGuard:
    """Remembers what a step may change besides the optimiser's weights.

    These are the buffers (running statistics, queues) and the frozen parameters
    (teachers). Weights need no copy: the optimiser skips its step.

    Args:
        module: The trainable, on its device.
    """

    def __init__(self, module: nn.Module) -> None:
        frozen = [p for p in module.parameters() if not p.requires_grad]
        self._watched: list[Tensor] = [p.detach() for p in frozen]
        self._watched += [b.detach() for b in module.buffers()]
        self._kept = [torch.empty_like(t) for t in self._watched]

    def remember(self) -> None:
        """Call before the forward pass."""
        for kept, now in zip(self._kept, self._watched, strict=True):
            kept.copy_(now)

    def restore(self) -> None:
        """Put everything back as it was at ``remember``."""
        for kept, now in zip(self._kept, self._watched, strict=True):
            now.copy_(kept)

    def restore_where(self, bad: Tensor) -> None:
        """As restore where ``bad`` (a bool scalar on the device) holds; never waits."""
        for kept, now in zip(self._kept, self._watched, strict=True):
            now.copy_(torch.where(bad, kept, now))
