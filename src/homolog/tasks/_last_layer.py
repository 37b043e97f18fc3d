"""A foreign network cut before its last 1 x 1 x 1 convolution, without touching it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homolog.tasks._blending import LinearHead


class SplitNetwork:
    """A network whose last layer is one 1 x 1 x 1 convolution, as features and head.

    Args:
        network: (B, C, D, H, W) -> (B, K, D, H, W).
        head: That last layer, a part of ``network``.
    """

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        self.network = network
        self.head = head

    def features(self, image: Tensor) -> Tensor:
        """What the last layer is given, (B, F, D, H, W); it is not run itself."""
        handle = self.head.register_forward_pre_hook(_stop)
        try:
            self.network(image)
        except _ReachedError as reached:
            return reached.features
        finally:
            handle.remove()
        raise RuntimeError("the network no longer runs through its last layer.")

    def __call__(self, image: Tensor) -> Tensor:
        """Logits (B, K, D, H, W)."""
        logits: Tensor = self.network(image)
        return logits


def split_last_layer(network: nn.Module, example: Tensor) -> SplitNetwork | None:
    """Find the 1 x 1 x 1 convolution whose output is the network's output.

    It is believed only if the network, run on ``example``, calls it once, and if its
    parameters applied to what it was given make the very values the network returns, so
    that nothing happens after it.

    Args:
        network: In evaluation mode.
        example: (1, C, D, H, W) of values unlike one another.

    Returns:
        None where there is no such layer.
    """
    calls: dict[nn.Module, list[Tensor]] = {}

    def remember(layer: nn.Module, given: tuple[Any, ...]) -> None:
        calls.setdefault(layer, []).append(given[0].clone())

    layers = [
        m for m in network.modules()
        if not list(m.children()) and LinearHead.of(m) is not None
    ]  # fmt: skip
    handles = [layer.register_forward_pre_hook(remember) for layer in layers]
    try:
        with torch.no_grad():
            result = network(example)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(result, Tensor):
        return None
    for layer in reversed(layers):
        given = calls.get(layer, [])
        if len(given) != 1 or given[0].shape[2:] != result.shape[2:]:
            continue
        with torch.no_grad():
            again = layer(given[0])
        if again.shape == result.shape and torch.equal(again, result):
            return SplitNetwork(network, layer)
    return None


class _ReachedError(Exception):
    """The last layer was reached; carries what it was given."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def _stop(_: nn.Module, given: tuple[Any, ...]) -> None:
    raise _ReachedError(given[0])
