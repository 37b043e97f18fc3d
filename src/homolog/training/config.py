"""The settings of a training, and what a trainable and a feed must offer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from homolog.config import option
from homolog.views.view import Views, ViewSpec


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast, how carefully."""

    steps: int = option(1000, "optimiser steps", minimum=1)
    minutes: float = option(
        0.0,
        "time instead of steps, all included: a step is measured, and the number of "
        "steps follows as they get faster or slower; steps stays what is usual",
        unit="min",
        minimum=0.0,
    )
    batch_size: int = option(
        2, "samples per forward pass and process", minimum=1, maximum=65536
    )
    accumulate: int = option(
        1, "forward passes per optimiser step", minimum=1, maximum=65536, advanced=True
    )
    learning_rate: float = option(1e-3, "peak learning rate", minimum=0.0)
    weight_decay: float = option(0.01, "decay of the weights", minimum=0.0)
    optimizer: str = option(
        "adamw",
        "adamw; sgd: gradient descent with momentum; larc: the same with rates that "
        "follow each tensor's norm, for batches of hundreds and more",
        choices=("adamw", "sgd", "larc"),
        advanced=True,
    )
    momentum: float = option(
        0.9, "of sgd and larc", minimum=0.0, maximum=0.999, advanced=True
    )
    trust: float = option(
        0.001, "larc: trust coefficient", minimum=1e-6, maximum=1.0, advanced=True
    )
    beta2: float = option(
        0.999, "AdamW decay of squares", minimum=0.0, maximum=1.0, advanced=True
    )
    warmup_steps: int = option(
        0, "steps of linear warm-up; at most a fifth of the run is used", minimum=0
    )
    warmup: float = option(
        0.0,
        "share of the run over which rates rise, instead of warmup_steps; 0: those",
        minimum=0.0,
        maximum=0.5,
    )
    epochs: float = option(
        0.0,
        "passes over all scans, which make steps; 0: those",
        minimum=0.0,
        advanced=True,
    )
    warmup_epochs: float = option(
        0.0,
        "passes over all scans in which rates rise, which make warmup_steps; 0: those",
        minimum=0.0,
        advanced=True,
    )
    min_learning_rate_factor: float = option(
        0.01,
        "last learning rate as a share of the peak",
        minimum=0.0,
        maximum=1.0,
        advanced=True,
    )
    schedule: str = option(
        "cosine",
        "how the learning rate falls after the warm-up: half a cosine, or poly, the "
        "power 0.9 of the steps that are left (nnU-Net)",
        choices=("cosine", "poly"),
        advanced=True,
    )
    restarts: bool = option(
        False,
        "pretraining in stages: each has a warm-up and a fall of its own",
        advanced=True,
    )
    clip_norm: float = option(
        1.0, "largest global gradient norm; 0 does not clip", minimum=0.0, advanced=True
    )
    precision: str = option(
        "auto",
        "bf16 or fp16 autocast, or fp32; auto: the narrowest the device computes in",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    tf32: str = option(
        "auto",
        "float32 products and convolutions of the network by TF32 on a GPU, of which "
        "ten bits count; auto: convolutions; geometry and losses never",
        choices=("auto", "on", "off"),
        advanced=True,
        later=True,
    )
    cudnn_benchmark: str = option(
        "auto",
        "try cuDNN's convolutions for each size and keep the fastest; auto: on a GPU",
        choices=("auto", "on", "off"),
        advanced=True,
        later=True,
    )
    channels_last: str = option(
        "auto",
        "channels of a voxel lie together; auto: off, until it was measured to pay",
        choices=("auto", "on", "off"),
        advanced=True,
        later=True,
    )
    compile: str = option(
        "auto",
        "torch.compile of the blocks of encoder and decoder: minutes at the start, "
        "steps may be faster; auto: off, until it was measured to pay",
        choices=("auto", "on", "off"),
        advanced=True,
        later=True,
    )
    recompute: bool = option(
        False,
        "the encoder's blocks are computed again for the gradient: less memory, steps "
        "take about a third longer",
        advanced=True,
        later=True,
    )
    fit: str = option(
        "auto",
        "batch by the memory of a GPU. auto: what does not fit is lowered, with more "
        "forward passes per step, and these are made fewer where no term compares "
        "samples; up: also up to eight times the samples per step; off: as it is set",
        choices=("auto", "up", "off"),
        advanced=True,
        later=True,
    )
    feed_processes: int = option(
        0,
        "processes that read crops ahead, for a GPU that waits for threads; each takes "
        "half a GB of memory and seconds to begin; 0: threads",
        minimum=0,
        maximum=256,
        advanced=True,
        later=True,
    )
    checkpoint_every: int = option(
        0, "steps between checkpoints; 0: about every two minutes", minimum=0
    )
    log_every: int = option(10, "steps between rows of metrics.csv", minimum=1)
    validate_every: int = option(
        0,
        "steps between validations; 0: only at the end; with minutes more where they "
        "would take over a tenth of the time",
        minimum=0,
    )
    previews: int = option(
        10,
        "pictures of what was learnt, drawn while training; 0: none",
        minimum=0,
        maximum=1000,
        advanced=True,
    )
    abort_after_bad_steps: int = option(
        20, "give up after so many non-finite steps in a row", minimum=1, advanced=True
    )
    dry_run_steps: int = option(
        3, "steps measured (and undone) before training", minimum=0, advanced=True
    )


class Trainable(Protocol):
    """What the loop trains: a Method, or a task's module. Also a torch Module."""

    def views(self) -> dict[str, ViewSpec]:
        """What it needs to see."""

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """Weighted scalar terms; their sum is minimised."""

    def after_step(self, progress: float) -> None:
        """Called after the optimiser's step."""

    def monitors(self) -> dict[str, Tensor]:
        """Scalars that show whether learning is healthy."""


class BatchSource(Protocol):
    """What the loop feeds on: homolog.feed.Feed. A pure function of the step."""

    batch_size: int

    def batch(self, step: int) -> Any:
        """The batch of one (micro) step, on the CPU."""

    def stream(self, first: int, stop: int) -> Iterator[Any]:
        """The same batches in order, prefetched."""

    def views(self, batch: Any, device: torch.device) -> Views:
        """The batch as views on the device."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        steps: Optimiser steps done, all sessions together.
        total_steps: Steps requested; with minutes, as decided last.
        stopped: Whether it was stopped before the end.
        losses: Last logged terms.
        monitors: Last logged monitors.
        bad_steps: Steps skipped because something was not finite.
        best: Best validation metrics; empty without validation.
        best_step: Steps done when they were measured.
        batch_size: Samples per forward pass at the end (lowered when out of memory).
        accumulate: Forward passes per step at the end.
        precision: ``bf16`` or ``fp32``.
        seconds_per_step: Median of this session.
        peak_memory_bytes: Peak of this session.
        validation_s: Seconds the last validation of this session took; 0 before one.
        validated_cases: Held-out cases that chose the weights; 0 before a validation.
        few_steps: A sentence where minutes were far too few for the recipe.
    """

    steps: int
    total_steps: int
    stopped: bool
    losses: Mapping[str, float] = field(default_factory=dict)
    monitors: Mapping[str, float] = field(default_factory=dict)
    bad_steps: int = 0
    best: Mapping[str, float] = field(default_factory=dict)
    best_step: int = 0
    batch_size: int = 0
    accumulate: int = 1
    precision: str = "fp32"
    seconds_per_step: float = 0.0
    peak_memory_bytes: int = 0
    validation_s: float = 0.0
    validated_cases: int = 0
    few_steps: str = ""

    def values(self, *names: str) -> dict[str, Any]:
        """Some of the attributes by name, as JSON types."""
        found = {name: getattr(self, name) for name in names}
        return {k: dict(v) if isinstance(v, Mapping) else v for k, v in found.items()}
