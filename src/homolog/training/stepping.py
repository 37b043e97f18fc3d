"""One optimiser step: views, losses, finite check, backward, clip, update.

A step that is not finite leaves no trace: weights, queues and teachers stay as they
were. Below ``Stepper``: the optimiser and its state as named tensors (never a pickle),
and the precision a device computes in. bf16 has the range of fp32; fp16, of GPUs that
lack bf16, has not: small gradients vanish unless the loss is scaled up (``LossScale``).
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from homolog.distributed import max_over_ranks, world
from homolog.errors import JobError
from homolog.losses.similarity import exact_products
from homolog.nn.optim import LARC, Pace, parameter_groups
from homolog.small_maps import guard_small_maps
from homolog.training.config import BatchSource, TrainingConfig
from homolog.training.course import Course
from homolog.training.speed import chosen_kernels, prepare
from homolog.views.view import Views

_PREFIX = "optimiser/"

PRECISIONS = ("fp32", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Compute capability: tensor cores for fp16 came with Volta, for bf16 with Ampere.
_BF16_SINCE, _FP16_SINCE = (8, 0), (7, 0)
# Allocators of torch, CUDA, cuBLAS, cuDNN, NCCL, numpy, blosc2 and the C++ library.
_NO_MEMORY = (
    "out of memory", "defaultcpuallocator", "can't allocate memory",
    "cannot allocate memory", "unable to allocate", "not enough memory", "alloc_failed",
    "bad_alloc", "cudaerrormemoryallocation", "memory allocation fail",
)  # fmt: skip


class Stepper:
    """Module, optimiser and guard; knows how a step is made, not when.

    Attributes:
        optimiser: Over the trainable's parameters.
        terms: Loss terms of the last step, detached, on the device.
        gradient_norm: Of the last step before clipping, on the device.
        learning_rate: Of the last step.
        bad_steps: () int64 on the device: steps skipped in all.
        bad_run: () int64 on the device: steps skipped in a row up to now.
        longest_bad_run: () int64 on the device.
        scale: Of the loss, in fp16.
        waited_s: Seconds spent waiting for batches since it was last set to 0.
    """

    def __init__(
        self,
        trainable: nn.Module,
        config: TrainingConfig,
        groups: Sequence[Mapping[str, Any]] | None,
        *,
        device: torch.device,
        seed: int,
        precision: str,
    ) -> None:
        # Heads and pyramids too: any convolution may meet a map of two slices.
        self.trainable: Any = guard_small_maps(trainable)
        if world().size > 1 and device.type == "cuda":  # of all samples, as alone
            norms: Any = nn.SyncBatchNorm
            self.trainable = norms.convert_sync_batchnorm(trainable)
        prepare(trainable, config, device)
        self.config, self.device, self.seed = config, device, seed
        self.precision = precision
        self.optimiser = build_optimiser(trainable, config, groups)
        self._groups = groups
        self._weights = [p for g in self.optimiser.param_groups for p in g["params"]]
        self._guard = StateGuard(trainable)
        self._losses = self._wrapped(trainable)
        # On a GPU nothing may wait for the device: a bad step is undone there.
        self._undo_on_device = device.type == "cuda"
        zero = torch.zeros((), dtype=torch.int64, device=device)
        self.bad_steps, self.bad_run, self.longest_bad_run = (
            zero.clone(),
            zero.clone(),
            zero.clone(),
        )
        self.scale = LossScale(device)
        self.terms: dict[str, Tensor] = {}
        self.gradient_norm = torch.zeros((), device=device)
        self.learning_rate = 0.0
        self.waited_s = 0.0

    @property
    def joins(self) -> float:
        """Share of the training done when the last of what waits begins to learn.

        0 where nothing waits. What never learns is not waited for.
        """
        starts = {group["pace"].start for group in self.optimiser.param_groups}
        return max((start for start in starts if start < 1.0), default=0.0)

    def recompute(self, wanted: bool) -> None:
        """From now on, where wanted, blocks are computed again for the gradient."""
        if wanted:
            prepare(self.trainable, TrainingConfig(recompute=True), self.device)

    def reset(self) -> None:
        """Forget all optimiser memory and counts, as new."""
        self.optimiser = build_optimiser(self.trainable, self.config, self._groups)
        for count in (self.bad_steps, self.bad_run, self.longest_bad_run):
            count.zero_()
        self.scale = LossScale(self.device)
        self.waited_s = 0.0

    def undo(self) -> None:
        """After an error inside ``step``: leave the state as before it."""
        self.optimiser.zero_grad(set_to_none=True)
        self._guard.restore()
        forget_pending(self.trainable)

    def step(
        self,
        index: int,
        course: Course,
        feed: BatchSource,
        batches: Iterator[Any],
        accumulate: int,
    ) -> None:
        """Make step ``index`` (0-based) of a course from the next batches.

        Dropout and whatever else draws from torch's own generator is seeded by
        (seed, index, rank), so a resumed run repeats it.
        """
        with chosen_kernels(self.config, self.device):
            self._step(index, course, feed, batches, accumulate)

    def _step(
        self,
        index: int,
        course: Course,
        feed: BatchSource,
        batches: Iterator[Any],
        accumulate: int,
    ) -> None:
        torch.manual_seed(step_seed(self.seed, index, world().rank))
        self.learning_rate = set_learning_rate(
            self.optimiser, course.position(index), course.planned, self.config
        )
        self._guard.remember()
        self.terms = {}
        for part in range(accumulate):
            started = time.perf_counter()
            batch = next(batches)
            self.waited_s += time.perf_counter() - started
            with exact_products(self.device.type):
                views = feed.views(batch, self.device)
            with self._without_reduction(part < accumulate - 1):
                self._backward(views, course.progress(index), accumulate)
        if self.precision == "fp16":
            self.scale.down(self._weights)
        limit = self.config.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self._weights, limit)
        self.gradient_norm = norm.detach()
        bad = self._is_bad(norm)
        self._apply(bad, course.progress(index + 1))
        if self.precision == "fp16":
            self.scale.learn(bad)
        self.optimiser.zero_grad(set_to_none=True)

    def _backward(self, views: Views, progress: float, accumulate: int) -> None:
        with autocast(self.device, self.precision):
            terms: dict[str, Tensor] = self._losses(views, progress)
        loss = torch.stack([t.float() for t in terms.values()]).sum() / accumulate
        if not loss.requires_grad:
            raise JobError(
                f"no loss term depends on the weights (terms: {', '.join(terms)})."
            )
        if self.precision == "fp16":
            loss = self.scale.up(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, term in terms.items():
            part = term.detach().float() / accumulate
            self.terms[name] = self.terms[name] + part if name in self.terms else part

    def _is_bad(self, norm: Tensor) -> Tensor:
        """() bool on the device, the same on every process."""
        finite = torch.stack([*self.terms.values(), norm.detach()]).isfinite().all()
        return max_over_ranks((~finite).int()).bool()

    def _apply(self, bad: Tensor, progress: float) -> None:
        """Update the weights, or leave no trace where the step was bad."""
        self.bad_steps += bad
        self.bad_run.copy_((self.bad_run + 1) * bad)
        self.longest_bad_run.copy_(torch.maximum(self.longest_bad_run, self.bad_run))
        if self._undo_on_device:
            self.optimiser.found_inf = bad.float()  # type: ignore[attr-defined]
            self.optimiser.step()
            self.trainable.after_step(progress)
            self._guard.restore_where(bad)
        elif bool(bad):
            self._guard.restore()
            forget_pending(self.trainable)
        else:
            self.optimiser.step()
            self.trainable.after_step(progress)

    def _wrapped(self, trainable: nn.Module) -> nn.Module:
        losses = _Losses(trainable)
        if world().size == 1:
            return losses
        # A step may leave a head unused (no matches in the views), hence the search.
        return DistributedDataParallel(
            losses,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=True,
        )

    def _without_reduction(self, skip: bool) -> contextlib.AbstractContextManager[Any]:
        if skip and isinstance(self._losses, DistributedDataParallel):
            return self._losses.no_sync()
        return contextlib.nullcontext()


class StateGuard:
    """Remembers what a step may change besides the optimiser's weights.

    These are the buffers (running statistics, queues) and the frozen parameters
    (teachers). Weights need no copy: the optimiser skips its step.

    Args:
        module: The trainable, on its device.
    """

    def __init__(self, module: nn.Module) -> None:
        watched = [p.detach() for p in module.parameters() if not p.requires_grad]
        watched += [b.detach() for b in module.buffers()]
        self._groups = [
            _Kept([tensor for tensor in watched if tensor.dtype == kind])
            for kind in {tensor.dtype: None for tensor in watched}
        ]

    def remember(self) -> None:
        """Call before the forward pass."""
        for group in self._groups:
            torch._foreach_copy_(group.parts, group.live)

    def restore(self) -> None:
        """Put everything back as it was at ``remember``."""
        for group in self._groups:
            torch._foreach_copy_(group.live, group.parts)

    def restore_where(self, bad: Tensor) -> None:
        """As restore where ``bad`` (a bool scalar on the device) holds; never waits."""
        for group in self._groups:
            now = torch.empty_like(group.whole)
            parts = group.views(now)
            torch._foreach_copy_(parts, group.live)
            torch.where(bad, group.whole, now, out=now)
            torch._foreach_copy_(group.live, parts)


class _Kept:
    """A copy of tensors of one type in one piece: a GPU chooses in one kernel.

    Attributes:
        live: The tensors.
        whole: Their copy, one after another.
        parts: Views of it, each of the sizes and strides of its tensor.
    """

    def __init__(self, live: list[Tensor]) -> None:
        self.live = live
        self._counts = [tensor.numel() for tensor in live]
        self._strides = [torch.empty_like(tensor).stride() for tensor in live]
        self.whole = live[0].new_empty(sum(self._counts))
        self.parts = self.views(self.whole)

    def views(self, whole: Tensor) -> list[Tensor]:
        """The parts of such a piece."""
        pieces = torch.split(whole, self._counts)
        return [
            piece.as_strided(tensor.shape, strides)
            for piece, tensor, strides in zip(
                pieces, self.live, self._strides, strict=True
            )
        ]


class LossScale:
    """Keeps fp16 gradients in range: the loss is multiplied, the gradients divided.

    A step that is not finite is skipped (by the caller) and halves the factor; two
    thousand good ones in a row double it. Everything stays on the device: nothing
    waits, and the two numbers are saved with a checkpoint.

    Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2;
    numbers as torch.amp.GradScaler.

    Args:
        device: Of the weights.

    Attributes:
        factor: () float32, a power of two.
        good: () int64, finite steps since it last changed.
    """

    FIRST, LEAST, MOST, PATIENCE = 2.0**16, 1.0, 2.0**24, 2000

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.full((), self.FIRST, device=device)
        self.good = torch.zeros((), dtype=torch.int64, device=device)

    def up(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        return loss * self.factor

    def down(self, weights: Sequence[Tensor]) -> None:
        """Give the gradients their true size, in place."""
        gradients = [w.grad for w in weights if w.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, self.factor.reciprocal())

    def learn(self, bad: Tensor) -> None:
        """Adapt to a step that was ``bad`` (() bool on the device) or not."""
        good = self.good + 1
        grown = torch.where(good >= self.PATIENCE, self.factor * 2, self.factor)
        self.factor.copy_(
            torch.where(bad, self.factor / 2, grown).clamp(self.LEAST, self.MOST)
        )
        self.good.copy_(torch.where(bad | (good >= self.PATIENCE), 0, good))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {"loss_scale/factor": self.factor, "loss_scale/good": self.good}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of tensors; as new where there are none."""
        for name, own in self.tensors().items():
            if name in tensors:
                own.copy_(tensors[name])


class _Losses(nn.Module):
    """Makes ``losses`` a forward pass, which is what DDP knows how to follow."""

    def __init__(self, trainable: nn.Module) -> None:
        super().__init__()
        self.trainable = trainable

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        trainable: Any = self.trainable
        terms: dict[str, Tensor] = trainable.losses(views, progress)
        return terms


# The optimiser, its schedule and its state.


def build_optimiser(
    module: nn.Module,
    config: TrainingConfig,
    groups: Sequence[Mapping[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """The chosen optimiser over the module's trainable parameters; AdamW is fused.

    Args:
        module: The trainable, on its device.
        config: Which one, learning rate, weight decay.
        groups: As made by ``nn.optim.parameter_groups`` (``lr_factor`` or ``lr``, and
            ``pace``, per group); all trainable parameters alike when None.
    """
    if groups is None:
        groups = parameter_groups(module, config.weight_decay)
    own: list[dict[str, Any]] = []
    for group in groups:  # torch writes into the dicts it is given
        rate = group.get("lr", config.learning_rate * group.get("lr_factor", 1.0))
        pace = group.get("pace", Pace())
        params = list(group["params"])
        own.append(
            {**group, "params": params, "lr": rate, "peak_lr": rate, "pace": pace}
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

    ``step`` is a fraction where the number of steps was decided anew, see Course. Each
    group follows its own pace. What does not learn yet gets no gradient: where nothing
    below it learns either, its backward pass is not even computed, and without a
    gradient neither momentum nor weight decay moves it.
    """
    rise, floor = warmup_steps(total, config), config.min_learning_rate_factor
    highest = 0.0
    for group in optimiser.param_groups:
        pace: Pace = group["pace"]
        plain = replace(pace, factor=1.0)
        factor = plain.rate(step, total, rise, floor, config.schedule)
        group["lr"] = group["peak_lr"] * factor
        highest = max(highest, factor)
        if pace.start > 0:
            for parameter in group["params"]:
                parameter.requires_grad_(pace.learns(step / total))
    return config.learning_rate * highest


def warmup_steps(total: int, config: TrainingConfig) -> float:
    """Steps of a rise.

    Counted in steps it is at most a fifth of the run, so that short runs learn too.
    """
    if config.warmup > 0:
        return config.warmup * total
    return min(config.warmup_steps, total // 5)


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


# Which numbers a device computes in: half-width where it is native and pays.


def resolve_precision(wanted: str, device: torch.device, module: nn.Module) -> str:
    """``auto`` -> ``bf16``, ``fp16`` or ``fp32``; the others pass.

    The answer depends on the device and the network only, never on a measurement, so
    that two runs of one configuration on one machine give the same numbers.

    On a GPU bf16 is taken where the hardware has it (not where torch emulates it), fp16
    from Volta on. On a CPU with bf16 instructions it
    is taken for convolutional networks, not where attention prevails (measured in
    processor time with AVX512-BF16, forward and backward: a 3D convolutional encoder
    1.6 times as fast, Swin equal).
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return gpu_precision(device)
    if cpu_has_bf16() and _convolutional_share(module) > 0.5:
        return "bf16"
    return "fp32"


def gpu_precision(device: torch.device) -> str:
    """The narrowest numbers that this GPU, not the current one, multiplies natively."""
    if torch.version.hip:
        return "bf16"
    capability = torch.cuda.get_device_capability(device)
    if capability >= _BF16_SINCE:
        return "bf16"
    return "fp16" if capability >= _FP16_SINCE else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network computes in ``precision``."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(
        device.type, dtype or torch.bfloat16, enabled=dtype is not None
    )


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively (AVX512-BF16 or AMX)."""
    asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, ask, lambda: False)()) for ask in asks)


def _convolutional_share(module: nn.Module) -> float:
    """Share of the trained weights that belong to convolutions, 0..1."""
    convolutional = total = 0
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.requires_grad and parameter.ndim > 1:
                total += parameter.numel()
                if isinstance(part, nn.modules.conv._ConvNd):
                    convolutional += parameter.numel()
    return convolutional / total if total else 0.0


def forget_pending(module: nn.Module) -> None:
    """Drop what a module holds between ``losses`` and ``after_step``.

    A module that does (keys on their way into a queue) drops it when a state is loaded;
    so it is given its own.
    """
    module.load_state_dict(module.state_dict())


def step_seed(seed: int, step: int, rank: int) -> int:
    """63 bits that differ for every (seed, step, rank)."""
    text = f"{seed}/{step}/{rank}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on a GPU, in one of its libraries, or on the host.

    Torch says so in many ways, of which ``OutOfMemoryError`` is one; the reason may
    also lie behind an error that names the case that could not be read.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(seen, RuntimeError | OSError):
            text = str(seen).lower()
            if any(word in text for word in _NO_MEMORY):
                return True
        seen = seen.__cause__
    return False


def release(error: BaseException, device: torch.device) -> None:
    """Free what an error keeps alive: the tensors of the frames it came through."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    gc.collect()  # a graph is full of circles
    if device.type == "cuda":
        torch.cuda.empty_cache()
