"""What makes the same step faster or smaller on a device: kernels, layouts, compiling.

Nothing here is on where a CPU trains, unless asked for, so that its numbers stay what
they are. Geometry and losses are exact whatever is chosen: affines are float64, and
float32 products of both are kept from TF32 (``losses.similarity.exact_products``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from homolog.backbones.base import Backbone
from homolog.errors import UnusableInput
from homolog.losses.similarity import tf32
from homolog.nn.decoders import Decoder
from homolog.training.config import TrainingConfig

_LAST = {5: torch.channels_last_3d, 4: torch.channels_last}
_CONVOLUTIONS = (nn.Conv3d, nn.ConvTranspose3d, nn.Conv2d, nn.ConvTranspose2d)
_MOST_COMPILED = 256
_COMPILERS = ("c++", "g++", "clang++", "cl")


def prepare(module: nn.Module, config: TrainingConfig, device: torch.device) -> None:
    """Bring a trainable into the form that its settings ask for, in place.

    Names, shapes and values of its state stay, and a model saved from it knows nothing
    of this. A second call changes nothing more.

    Args:
        module: A method or a task's module, on its device.
        config: Its ``channels_last``, ``recompute`` and ``compile`` count.
        device: Where it trains.

    Raises:
        UnusableInput: ``compile`` is on where nothing can be compiled.
    """
    if config.channels_last == "on":
        _put_channels_last(module)
    if config.recompute:
        for block in _blocks_of(module, Backbone):
            _recompute(block)
    if config.compile == "on":
        check_compiler(device)
        # all blocks of a kind count as one place, of each size of crop, with and
        # without a gradient
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_COMPILED)
        for block in _blocks_of(module, Backbone, Decoder):
            if block._compiled_call_impl is None:
                block.compile(dynamic=False)


def _put_channels_last(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, _CONVOLUTIONS):
            layout = _LAST[part.weight.ndim]
            part.weight.data = part.weight.data.contiguous(memory_format=layout)


def _blocks_of(module: nn.Module, *kinds: type[nn.Module]) -> Iterator[nn.Module]:
    """The blocks of all networks of some kinds in a module."""
    for network in module.modules():
        if isinstance(network, kinds):
            yield from _blocks(network)


def check_compiler(device: torch.device) -> None:
    """Say so before the first step where ``torch.compile`` has nothing to compile with.

    Raises:
        UnusableInput: Triton is missing on a GPU, or a C++ compiler on a CPU.
    """
    if device.type == "cuda":
        found = importlib.util.find_spec("triton") is not None
        lacks = "Triton, which is not there"
    else:
        names = (os.environ.get("CXX", ""), *_COMPILERS)
        found = any(name and shutil.which(name) for name in names)
        lacks = "a C++ compiler, and there is none"
    if not found:
        raise UnusableInput(
            f"training.compile is on, but compiling for this device needs {lacks}: set "
            "it to off."
        )


@contextlib.contextmanager
def chosen_kernels(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """While a step is made: which kernels a GPU takes for it; nothing on a CPU.

    Args:
        config: Its ``tf32`` and ``cudnn_benchmark`` count.
        device: Where it trains.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    was = cudnn.benchmark
    # crops have few sizes, which come again in every step
    cudnn.benchmark = config.cudnn_benchmark != "off"
    wanted = None if config.tf32 == "auto" else config.tf32 == "on"
    try:
        with tf32(wanted):
            yield
    finally:
        cudnn.benchmark = was


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The smallest parts of a network with several layers that it calls one by one."""
    for part in network.children():
        if isinstance(part, Backbone):
            continue  # a network of its own
        if isinstance(part, nn.ModuleList | nn.Sequential):
            yield from _blocks(part)
        elif _layers(part) > 1:
            yield part


def _layers(part: nn.Module) -> int:
    return sum(
        any(True for _ in layer.parameters(recurse=False)) for layer in part.modules()
    )


# Activations that are made anew for the gradient instead of being kept.


def _recompute(block: Any) -> None:
    if not isinstance(block.forward, partial):
        block.forward = partial(_anew, block, block.forward)


def _anew(block: nn.Module, forward: Callable[..., Any], *given: Any) -> Any:
    """A block's result, of which only what went in is kept."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(*given)

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _averages_at_rest(block)

    return checkpoint(forward, *given, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _averages_at_rest(block: nn.Module) -> Iterator[None]:
    """Batch norms count what they see once, not again for the gradient.

    They go on tracking, of which nothing is taken over: without, they would keep fewer
    tensors than in the forward pass, which torch refuses.
    """
    norms = [
        (part, part.momentum, part.num_batches_tracked)
        for part in block.modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats
    ]
    for norm, _, count in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count
