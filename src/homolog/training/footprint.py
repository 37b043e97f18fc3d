"""How much of a GPU's memory a step would hold, found without a GPU.

A step is made of a copy of the trainable on torch's meta device, where tensors have
sizes and no numbers: every tensor is counted from when it is made until it is let go.
So weights, gradients, optimiser, what is kept for the gradient and what is only passed
through are all in the figure, as is what recomputed blocks save. What CUDA itself takes
is added (``on_card``). Not run against a card yet; on the CPU the count agrees with
torch's own record of its allocator (``tests/training/test_footprint.py``).

Source: bfloat16 and float32 operations as ``autocast_mode.h`` of torch 2.13; what
attention keeps as its memory-efficient kernel (``_scaled_dot_product_efficient``).
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from homolog.distributed import world
from homolog.training.config import BatchSource, TrainingConfig
from homolog.training.speed import prepare
from homolog.training.stepping import StateGuard, autocast

META = torch.device("meta")
# CUDA's caching allocator hands out multiples of this.
_BLOCK = 512
# Beside tensors: context, loaded kernels, workspaces of cuBLAS and cuDNN.
CONTEXT_BYTES = 1 << 30
# Of what is left, the share that tensors may fill: the rest is what the allocator
# reserves but cannot use, and the workspaces of convolutions.
USABLE = 0.85
_OPTIMISER_COPIES = {"adamw": 2}  # of every weight; gradient descent keeps one


@dataclass(frozen=True)
class Footprint:
    """Bytes that one process holds while it trains.

    Attributes:
        weights: Of parameters and buffers, frozen ones included.
        gradients: Of what learns, as large as that.
        optimiser: Its memory.
        guard: A copy of buffers and frozen weights, to undo a bad step.
        peak: The most that is held at once in a step, all of the above included.
    """

    weights: int
    gradients: int
    optimiser: int
    guard: int
    peak: int

    @property
    def activations(self) -> int:
        """What is held beside weights, optimiser and copy; gradients too."""
        return self.peak - self.weights - self.optimiser - self.guard

    @property
    def on_card(self) -> int:
        """Memory that a card needs for it."""
        return int(self.peak / USABLE) + CONTEXT_BYTES


def footprint(
    trainable: nn.Module,
    feed: BatchSource,
    config: TrainingConfig,
    precision: str,
    progress: Sequence[float] = (0.5,),
) -> Footprint:
    """Bytes of a step with the batches of a feed.

    Args:
        trainable: A method or a task's module; it is not touched.
        feed: Its batch 0 is read for each progress.
        config: ``optimizer``, ``recompute`` and ``channels_last`` count.
        precision: ``bf16``, ``fp16`` or ``fp32``.
        progress: Shares of the training done at which a step is looked at, such as
            one within each phase; the largest counts.
    """
    module = on_meta(trainable)
    for part in module.modules():
        _keep_pretending(part)
    if config.recompute:
        prepare(module, TrainingConfig(recompute=True), META)
    learning = [p for p in module.parameters() if p.requires_grad]
    copies = _OPTIMISER_COPIES.get(config.optimizer, 1)
    many = 2 if world().size > 1 else 1  # buckets that are reduced over processes
    kept = {id(t): t for t in (*module.parameters(), *module.buffers())}.values()
    weights, trained = _bytes(kept), _bytes(learning)
    peaks, guard = [], 0
    for share in progress:
        with pretended(), Held() as held:
            remembered = StateGuard(module)
            guard = held.now
            module.zero_grad(set_to_none=True)
            _forward_and_back(module, feed, precision, share)
            peaks.append(held.most)
        del remembered
    fixed = weights + copies * trained + (many - 1) * trained
    return Footprint(
        weights, trained * many, copies * trained, guard, fixed + max(peaks)
    )


def _forward_and_back(
    module: Any, feed: BatchSource, precision: str, share: float
) -> None:
    batch: Any = feed
    made = batch.batch(0, share) if getattr(feed, "phases", ()) else feed.batch(0)
    views = feed.views(made, META)
    with autocast(META, precision):
        terms = module.losses(views, share)
    loss = torch.stack([t.float() for t in terms.values()]).sum()
    del terms
    loss.backward()  # type: ignore[no-untyped-call]


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module in training mode, without numbers."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        made = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META
        )
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = made
    for part in module.modules():
        for value in tree_iter(vars(part)):
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = value.detach().to(META)
    return copy.deepcopy(module, memo).train()


def _bytes(tensors: Any) -> int:
    return sum(_rounded(t.nbytes) for t in tensors)


def _rounded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are made on a device, while it is entered.

    Attributes:
        now: Held at this moment.
        most: Held at once up to now.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage()._cdata
            for t in tree_iter((args, kwargs))
            if isinstance(t, Tensor)
        }
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._add(tensor.untyped_storage(), given)
        return result

    def _add(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        if key in given or key in self._known:
            return
        size = _rounded(storage.nbytes())
        self.now += size
        self.most = max(self.most, self.now)
        # torch keeps a storage's Python object as long as the storage
        self._known[key] = weakref.ref(storage, partial(self._gone, key, size))

    def _gone(self, key: int, size: int, _: Any) -> None:
        self.now -= size
        self._known.pop(key, None)


# A GPU's autocast and attention, for tensors that have no numbers.


_NARROWED = frozenset({
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm",
    "mv", "addmm", "addmv", "addbmm", "baddbmm", "einsum", "prelu",
    "scaled_dot_product_attention",
})  # fmt: skip
_WIDENED = frozenset({
    "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "pow",
    "__pow__", "__rpow__", "softplus", "layer_norm", "group_norm", "norm",
    "cosine_similarity", "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss",
    "huber_loss", "mse_loss", "binary_cross_entropy_with_logits", "dist", "cdist",
    "logsumexp", "prod", "softmax", "log_softmax", "cumprod", "cumsum", "vector_norm",
    "matrix_norm", "sum", "cross_entropy", "interpolate",
})  # fmt: skip
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class _Pretended(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._narrow: dict[int, tuple[Any, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if torch.is_autocast_enabled("cpu"):
            if name in _NARROWED:
                args, kwargs = self._cast((args, kwargs), self._narrowed)
            elif name in _WIDENED:
                args, kwargs = self._cast((args, kwargs), Tensor.float)
        else:
            self._narrow.clear()
        if name == "scaled_dot_product_attention" and _is_pretended(args, kwargs):
            return _attended(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, given: Any, how: Any) -> Any:
        def one(tensor: Tensor) -> Tensor:
            counts = tensor.device == META and tensor.dtype in _FLOATS
            cast: Tensor = how(tensor) if counts else tensor
            return cast

        return tree_map_only(Tensor, one, given)

    def _narrowed(self, tensor: Tensor) -> Tensor:
        """As autocast: a weight is made narrow once."""
        wanted = torch.get_autocast_dtype("cpu")
        if tensor.dtype == wanted:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(wanted)
        found = self._narrow.get(id(tensor))
        if found is None:
            # kept with its result: its number may come again otherwise
            found = self._narrow[id(tensor)] = (tensor, tensor.to(wanted))
        return found[1]


def _is_pretended(*given: Any) -> bool:
    return any(isinstance(t, Tensor) and t.device == META for t in tree_iter(given))


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Tensor:
    made: Tensor = _Attention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
    return made


class _Attention(torch.autograd.Function):
    """Keeps what it was given, its result, and a number per query."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        made = query.new_empty((*query.shape[:-1], value.shape[-1]))
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, made, sums)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, made, _ = ctx.saved_tensors
        sums = torch.empty_like(made[..., 0], dtype=torch.float32)
        found = [torch.empty_like(t) for t in (query, key, value)]
        wants = mask is not None and ctx.needs_input_grad[3]
        if wants:  # of every window, before they are summed
            rows = (*query.shape[:-1], key.shape[-2])
            each = query.new_empty(rows)
            del each
        del sums
        return (*found, torch.empty_like(mask) if wants else None)


def _keep_pretending(part: Any) -> None:
    """Backwards torch leaves the mode, but a block may be computed again there."""
    forward = part.forward

    def within(*given: Any, **named: Any) -> Any:
        inside = _get_current_function_mode() is not None  # type: ignore[no-untyped-call]
        with contextlib.nullcontext() if inside else _Pretended():
            return forward(*given, **named)

    part.forward = within


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """``meta`` is a device that autocast knows, as it knows a GPU."""
    real = torch.autocast.__init__

    def known(own: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        real(own, "cpu" if device_type == "meta" else device_type, *args, **kwargs)

    kind: Any = torch.autocast
    kind.__init__ = known
    try:
        with _Pretended():
            yield
    finally:
        kind.__init__ = real


def shares_of(feed: Any) -> tuple[float, ...]:
    """The middle of each phase of a feed; that of the training where it has none."""
    found, begin = [], 0.0
    for phase in getattr(feed, "phases", ()):
        found.append(begin + 0.5 * phase.share)
        begin += phase.share
    return tuple(found) or (0.5,)
