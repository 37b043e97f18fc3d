"""What a GPU makes of the engine, in a few minutes: right, how fast, what it waits for.

For a GPU that is lent for minutes only. Rows are made in order of importance, each on
its own: an error, or memory that runs out, is that row's result. The JSON is written
after every row. No row begins that is not likely to end in time, none may take longer
than its share, and what was not made is listed. An error that leaves the GPU unusable
starts the script anew where it was.

- ``machine``: card, versions; what it multiplies, convolves and copies in a second.
- ``correct/METHOD``: two steps in float32, same batch, same weights, same random
  numbers, on the CPU and on the GPU: terms and gradient norm must agree to 1e-3.
- ``train/METHOD``: the recipe ``gpu`` as a user gets it: steps per second, memory,
  how much of the time is lost to the feed, kernels, and where the host waits.
- ``segment/NETWORK``: the same of fine-tuning.
- ``slide/SCAN``: a scan labelled, against MONAI's SlidingWindowInferer; ``whole_body``
  is the one that ``whole_body.py`` predicts.
- ``batch/METHOD``: samples per second over batch: is the card used?
- ``layout/METHOD``: step time with channels_last, without cudnn.benchmark, with TF32,
  recomputed blocks and torch.compile: what ``auto`` of these settings should take.
- ``compile/NETWORK``: gain of torch.compile, forward and backward.

    python benchmarks/gpu.py [--minutes 4.5] [--out FILE] [--only train/s2dc ...]
    python benchmarks/gpu.py --tiny --device cpu     # that it runs at all
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import itertools
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpu_profile import host_waits, kernels
from gpu_sheet import Row, Sheet
from homolog.backbones import build
from homolog.config import from_dict
from homolog.events import drain
from homolog.feed.batches import Feed
from homolog.finetune.settings import check_cases, task_of
from homolog.finetune.settings import resolve as resolve_finetune
from homolog.finetune.start import starting_point
from homolog.methods import METHODS
from homolog.nn.optim import parameter_groups
from homolog.pretrain.job import feed_of
from homolog.pretrain.settings import (
    PretrainConfig,
    build_method,
    cases_of,
    find_partners,
    resolve,
)
from homolog.sliding.sliding import slide
from homolog.sliding.windows import SlidingConfig
from homolog.store.pairs import write_depths
from homolog.store.store import Store
from homolog.training.config import TrainingConfig
from homolog.training.course import Course
from homolog.training.stepping import (
    Stepper,
    is_out_of_memory,
    release,
    resolve_precision,
)

HEADLINE = "s2dc"
BAR = 1e-3
# The most telling first; methods that are not named follow by name.
METHOD_ORDER = (
    "s2dc", "mae", "anatomical_embedding", "alice", "mixcl", "swav", "joint",
    "hundred_million",
)  # fmt: skip
SEGMENTERS = ("resunet", "swin", "vit", "nnformer")
CLASSES = 14
# Of the tiny run.
FEW: Mapping[str, Mapping[str, Any]] = {
    "resunet": {"channels": [4, 8, 8]},
    "swin": {
        "feature_size": 8, "depths": [1, 1, 1, 1], "heads": [1, 2, 4, 8],
        "window": [4, 4, 4],
    },
    "vit": {
        "image_size": [32, 32, 32], "patch": [8, 8, 8], "hidden": 24, "inner": 24,
        "layers": 4, "heads": 2,
    },
    "nnformer": {
        "feature_size": 8, "depths": [1, 1, 1, 1], "heads": [1, 2, 4, 8],
        "windows": [4, 4, 4, 4],
    },
    "hybrid": {
        "widths": [8, 8, 16, 16], "stage_blocks": [1, 1, 1, 1], "block": "basic",
        "norm": "group", "dim": 16, "layers": 1, "heads": 2, "inner": 16,
    },
}  # fmt: skip
GB = 1e9
HERE = Path(__file__).resolve().parent


# ---------------------------------------------------------------------- what is there


@dataclass
class Bench:
    """What all rows need.

    Attributes:
        device: Where to measure.
        tiny: Small networks, crops and windows of time: only that it runs.
        tiny_store: Of small phantoms.
        big_store: Where the large phantoms will be.
        painting: The process that makes them; None where they are there.
        threads: Of the feed; None as the recipe has them.
    """

    device: torch.device
    tiny: bool
    tiny_store: Path
    big_store: Path
    painting: subprocess.Popen[bytes] | None = None
    threads: int | None = None
    seconds: float = field(default=3.0)  # a measurement lasts

    def store(self) -> Path:
        """The store to measure on; waits until it is painted."""
        if self.tiny:
            return self.tiny_store
        until = time.monotonic() + 60.0
        while not self.big_store.exists():  # a restart waits for the first one's
            if self.painting is not None and self.painting.poll():
                code = self.painting.returncode
                raise RuntimeError(f"no large phantoms: code {code}.")
            if time.monotonic() > until:
                raise RuntimeError("no large phantoms after a minute.")
            time.sleep(0.1)
        return self.big_store

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, float]:
        if not self.is_gpu:
            return {}
        return {
            "peak_gb": torch.cuda.max_memory_allocated() / GB,
            "reserved_gb": torch.cuda.max_memory_reserved() / GB,
        }

    def timed(
        self, call: Callable[[], Any], seconds: float, most: int = 200, turn: int = 4
    ) -> float:
        """Seconds a call takes, several in a row; one before them does not count.

        The GPU is waited for after each ``turn`` of calls only.
        """
        call()
        self.wait()
        began, count = time.perf_counter(), 0
        while True:
            call()
            count += 1
            if count % turn == 0 or count >= most or seconds < 0.1:
                self.wait()
                spent = time.perf_counter() - began
                if spent >= seconds or count >= most:
                    return spent / count


def machine(bench: Bench, row: dict[str, Any]) -> None:
    """Card, versions, and three ceilings."""
    import monai

    row |= {
        "torch": torch.__version__, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "numpy": np.__version__,
        "python": platform.python_version(), "monai": monai.__version__,
        "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0], "device": str(bench.device),
    }  # fmt: skip
    if bench.is_gpu:
        told = torch.cuda.get_device_properties(bench.device)
        row |= {
            "card": told.name, "memory_gb": told.total_memory / GB,
            "capability": f"{told.major}.{told.minor}",
            "processors": told.multi_processor_count, "driver": driver(),
        }  # fmt: skip
    side = 8192 if bench.is_gpu else 128
    a = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    seconds = bench.timed(lambda: a @ a, 0.3, 50)
    row["matmul_bf16_tflops"] = 2 * side**3 / seconds / 1e12
    count = (1 << 30) if bench.is_gpu else 1 << 16
    there = torch.empty(count, device=bench.device)
    here = torch.randn(1024, device=bench.device).repeat(count // 1024)
    seconds = bench.timed(lambda: there.copy_(here), 0.2, 20)
    row["copy_gb_s"] = 2 * there.nbytes / seconds / GB
    if bench.is_gpu:
        host = torch.empty(1 << 28, dtype=torch.uint8).pin_memory()
        up = torch.empty_like(host, device=bench.device)
        spent = bench.timed(lambda: up.copy_(host, non_blocking=True), 0.2, 20)
        row["upload_gb_s"] = host.nbytes / spent / GB
    spectra(bench, row)
    convolutions(bench, row)


def spectra(bench: Bench, row: dict[str, Any]) -> None:
    """Seconds of the monitors' singular values, and of two ways around them."""
    values = torch.randn(2048, 512 if bench.is_gpu else 8, device=bench.device)
    ways = {
        "svdvals": lambda: torch.linalg.svdvals(values),
        "eigvalsh": lambda: torch.linalg.eigvalsh(values.T @ values),
        "eigvalsh_float64": lambda: torch.linalg.eigvalsh(
            values.double().T @ values.double()
        ),
    }
    row["spectrum_s"] = {
        name: bench.timed(way, 0.1, 5, turn=1) for name, way in ways.items()
    }


def convolutions(bench: Bench, row: dict[str, Any]) -> None:
    """TFLOP/s of a 3^3 convolution of 64 channels, forward and backward, by layout."""
    side, width = (96, 64) if bench.is_gpu else (8, 4)
    layer = nn.Conv3d(width, width, 3, padding=1).to(bench.device)
    image = torch.randn(2, width, side, side, side, device=bench.device)
    operations = 3 * 2 * 27 * width**2 * image.numel() / width
    was = torch.backends.cudnn.benchmark
    found: dict[str, float] = {}
    for layout, benchmark in itertools.product(
        (torch.contiguous_format, torch.channels_last_3d), (False, True)
    ):
        torch.backends.cudnn.benchmark = benchmark
        own = layer.to(memory_format=layout)
        given = image.clone(memory_format=layout).requires_grad_()

        def step(own: nn.Module = own, given: Tensor = given) -> None:
            with torch.autocast(bench.device.type, torch.bfloat16):
                own(given).sum().backward()

        name = str(layout).removeprefix("torch.") + " benchmark" * benchmark
        found[name] = operations / bench.timed(step, 0.2, 20) / 1e12
    torch.backends.cudnn.benchmark = was
    row["conv3d_bf16_tflops"] = found


def driver() -> str:
    """Version of the driver, as its tool says."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.strip()


# ------------------------------------------------------------------- the same numbers


class HostRandom(TorchFunctionMode):
    """Random numbers are drawn on the CPU and sent on: the same on every device."""

    MADE = frozenset({"rand", "randn", "randint", "randperm", "normal"})
    LIKE = frozenset({"rand_like", "randn_like", "randint_like"})
    DRAWN = frozenset({"bernoulli", "multinomial", "poisson"})
    IN_PLACE = frozenset(
        {"uniform_", "normal_", "bernoulli_", "exponential_", "random_"}
    )

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in self.MADE:
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        if name in self.LIKE or name in self.DRAWN:
            device = kwargs.pop("device", None) or args[0].device
            return func(args[0].detach().cpu(), *args[1:], **kwargs).to(device)
        if name in self.IN_PLACE:
            host = torch.empty(args[0].shape, dtype=args[0].dtype)
            func(host, *args[1:], **kwargs)
            with torch.no_grad():
                return args[0].copy_(host)
        if name == "dropout":
            return _dropped(*args, **kwargs)
        return func(*args, **kwargs)


def _dropped(
    value: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0:
        return value
    kept = (torch.rand(value.shape) >= p).to(value.device)
    return value * kept / (1 - p)


def small_method(bench: Bench, name: str) -> PretrainConfig:
    """A method's cpu recipe with crops that a CPU takes in a second."""
    cls = METHODS.get(name)
    fields = cls.Config.__dataclass_fields__
    side = 16 if bench.tiny else 32
    own: dict[str, Any] = {"size": [side] * 3} if "size" in fields else {}
    if "slice_size" in fields:  # of slices and volumes
        own = {"size": [16, 32, 32], "slice_size": [1, 64, 64]}
        own["small_size"] = [1, 32, 32]
    elif "small_size" in fields:
        own = {}  # as the recipe: whether slices or volumes
    if not bench.tiny:
        return request(bench, name, bench.tiny_store, "cpu", own, "cpu")
    if "token_stride" in fields:
        own["token_stride"] = 4
    if "small_size" in fields and "slice_size" not in fields:
        own |= {"size": [16, 16, 16], "small_size": [8, 8, 8]}
    kind = (cls.backbones or ("resunet",))[0]
    return request(
        bench, name, bench.tiny_store, "cpu", own, "cpu", {"name": kind, **FEW[kind]}
    )


def request(
    bench: Bench,
    name: str,
    store: Path,
    recipe: str,
    own: Mapping[str, Any],
    device: str,
    network: Mapping[str, Any] | None = None,
) -> PretrainConfig:
    """A pretraining as a user asks for it."""
    settings = {"method": dict(own), "backbone": dict(network or {})}
    if "pairs" in METHODS.get(name).Config.__dataclass_fields__:
        settings["method"]["pairs"] = "random"  # no table of matching places here
    told = resolve(name, [store], recipe=recipe, settings=settings, device=device)
    return from_dict(PretrainConfig, told)


@dataclass
class Ready:
    """A training that is ready to step."""

    stepper: Stepper
    feed: Any
    accumulate: int
    phases: int


def ready(
    bench: Bench,
    settings: PretrainConfig,
    device: torch.device,
    precision: str,
    batch: int = 0,
) -> Ready:
    """Method, feed and stepper, as the pretraining job makes them."""
    stores = [Store.open(path) for path in settings.stores]
    cases = cases_of(settings, stores)
    method = build_method(settings)
    partners = find_partners(method, stores, cases, settings.seed)
    if any(spec.depths for spec in method.views().values()):
        drain(write_depths([(case.store, case.card) for case in cases]))
    feed = feed_of(settings, method, cases, partners, device)
    if batch:
        feed = feed.with_batch_size(batch)
    if bench.threads is not None:
        feed.threads = bench.threads
    plan = settings.training
    groups = parameter_groups(method, plan.weight_decay, factor=method.rate_factors())
    method.to(device).train()
    stepper = Stepper(
        method, plan, groups, device=device, seed=0,
        precision=resolve_precision(precision, device, method),
    )  # fmt: skip
    return Ready(stepper, feed, plan.accumulate, max(1, len(method.phases())))


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """float32 in float32."""
    was = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = was


def correct(bench: Bench, name: str, row: dict[str, Any]) -> None:
    """Two steps on the CPU and on the device; the first must agree to 1e-3."""
    settings = small_method(bench, name)
    batch = 2  # a CPU has to follow
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 4))  # phantoms are painted beside
    try:
        _correct(bench, settings, batch, row)
    finally:
        torch.set_num_threads(threads)


def _correct(
    bench: Bench, settings: PretrainConfig, batch: int, row: dict[str, Any]
) -> None:
    told: dict[str, list[dict[str, float]]] = {}
    sides = {"cpu": torch.device("cpu"), "gpu": bench.device}
    for side, device in sides.items():
        began = time.perf_counter()
        told[side] = two_steps(bench, settings, device, "fp32", batch)
        row[f"{side}_s"] = time.perf_counter() - began
    first = differences(told["cpu"][0], told["gpu"][0])
    second = differences(told["cpu"][1], told["gpu"][1])
    row |= {
        "worst": max(first.values()), "gradient": first["gradient_norm"],
        "agrees": all(v <= BAR for v in first.values()), "bar": BAR,
        "after_a_step": max(second.values()), "differences": first,
        "terms": told["cpu"][0], "gpu_terms": told["gpu"][0],
    }  # fmt: skip
    narrow = two_steps(bench, settings, bench.device, "bf16", batch)
    row["bf16_differences"] = differences(told["cpu"][0], narrow[0])
    row["bf16"] = max(row["bf16_differences"].values())


def two_steps(
    bench: Bench,
    settings: PretrainConfig,
    device: torch.device,
    precision: str,
    batch: int,
) -> list[dict[str, float]]:
    """Terms and gradient norm of two steps."""
    made = ready(bench, settings, device, precision, batch)
    batches = itertools.cycle(canned(made, 1))
    found = []
    with exact(), HostRandom():
        for index in range(2):
            made.stepper.step(index, Course(4), made.feed, batches, 1)
            terms = {k: float(v) for k, v in made.stepper.terms.items()}
            terms["gradient_norm"] = float(made.stepper.gradient_norm)
            terms["bad_steps"] = float(made.stepper.bad_steps)
            found.append(terms)
    return found


def differences(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """Relative, of terms to at least a hundredth of their sum."""
    floor = 0.01 * sum(abs(v) for k, v in a.items() if k not in ("gradient_norm",))
    found = {}
    for key, value in a.items():
        least = 1e-12 if key == "gradient_norm" else floor
        gap = abs(value - b.get(key, math.nan)) / max(abs(value), least, 1e-12)
        found[key] = gap if math.isfinite(gap) else math.inf
    return found


# --------------------------------------------------------------------------- training


def canned(made: Ready, steps: int) -> list[Any]:
    """Batches made once, of every phase in turn."""
    return [
        made.feed.batch(i, (i % made.phases + 0.5) / made.phases)
        for i in range(steps * made.phases * made.accumulate)
    ]


def gpu_method(bench: Bench, name: str) -> PretrainConfig:
    """A method's gpu recipe; of the tiny run its cpu recipe made small."""
    if bench.tiny:
        return small_method(bench, name)
    return request(bench, name, bench.store(), "gpu", {}, str(bench.device))


def train(bench: Bench, name: str, row: dict[str, Any]) -> None:
    """One method at its gpu recipe."""
    settings = gpu_method(bench, name)
    plan = settings.training
    row |= {
        "backbone": settings.backbone["name"], "batch": plan.batch_size,
        "accumulate": plan.accumulate, "size": settings.method_config.get("size"),
    }  # fmt: skip
    batch = min(plan.batch_size, 2) if bench.tiny else plan.batch_size

    def make(size: int) -> Ready:
        return ready(bench, settings, bench.device, plan.precision, size)

    measure_fitting(bench, make, batch, row)


def segment(bench: Bench, network: str, row: dict[str, Any]) -> None:
    """Fine-tuning of a segmentation network at its gpu recipe."""
    asked: dict[str, Any] = {
        "task": "segment", "store": str(bench.store()), "encoder": "scratch",
        "recipe": "cpu" if bench.tiny else "gpu", "device": str(bench.device),
        "backbone": {"name": network},
    }  # fmt: skip
    if bench.tiny:
        asked["backbone"] |= FEW[network]
        asked["task_config"] = {"window": [32, 32, 32]}
    settings = resolve_finetune(asked)
    cases = check_cases(settings)
    start = starting_point(settings, cases)
    task = task_of(settings)
    spec = task.describe(cases.all, start.backbone, bench.device)
    plan = from_dict(TrainingConfig, settings.training)
    row |= {
        "batch": plan.batch_size, "window": list(spec["window"]),
        "classes": len(spec["label_values"]),
    }  # fmt: skip

    def make(size: int) -> Ready:
        again = starting_point(settings, cases)
        module, _ = again.module(task, spec, settings.seed)
        feed = Feed(
            cases.train, module.views(), batch_size=size, seed=0,
            balance=task.balance, targets=task.targets(cases.train, spec),
            threads=threads_of(bench), device=bench.device,
        )  # fmt: skip
        module.to(bench.device).train()
        stepper = Stepper(
            module, plan, parameter_groups(module, plan.weight_decay),
            device=bench.device, seed=0,
            precision=resolve_precision(plan.precision, bench.device, module),
        )  # fmt: skip
        return Ready(stepper, feed, plan.accumulate, 1)

    measure_fitting(bench, make, plan.batch_size, row)


def threads_of(bench: Bench) -> int:
    from homolog.feed.batches import feed_threads

    return feed_threads(bench.device) if bench.threads is None else bench.threads


def measure_fitting(
    bench: Bench, make: Callable[[int], Ready], batch: int, row: dict[str, Any]
) -> None:
    """Measure; where memory runs out, with half the batch, and say so."""
    while True:
        try:
            bench.forget_peak()
            row["measured_batch"] = batch
            measure(bench, make(batch), batch, row)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch == 1:
                raise
            row.setdefault("out_of_memory_at", []).append(batch)
            release(error, bench.device)
            batch //= 2
        else:
            return


def measure(bench: Bench, made: Ready, batch: int, row: dict[str, Any]) -> None:
    """Steps of ready batches, then of the feed's own; kernels; where the host waits."""
    began = time.perf_counter()
    kept = canned(made, 2)
    spent = time.perf_counter() - began
    row["precision"] = made.stepper.precision
    row["feed_ms_per_sample"] = 1e3 * spent / len(kept) / batch
    row["batch_mb"] = kept[0].nbytes / 1e6
    ready_made = itertools.cycle(kept)
    numbers = itertools.count()

    def step(batches: Iterator[Any] = ready_made) -> None:
        made.stepper.step(
            next(numbers), Course(10_000), made.feed, batches, made.accumulate
        )

    began = time.perf_counter()
    step()
    bench.wait()
    row["first_step_s"] = time.perf_counter() - began
    for _ in range(made.phases if row["first_step_s"] < 5 else 0):
        step()
    turn = made.phases if made.phases > 1 else 2
    pure_s = bench.timed(step, bench.seconds, turn=turn)
    row |= {"pure_step_s": pure_s, "pure_samples_s": samples(made, batch) / pure_s}
    row |= bench.peak()
    fed(bench, made, step, pure_s, row, batch)
    row["bad_steps"] = int(made.stepper.bad_steps)
    looks: list[Callable[[], None]] = [
        lambda: row.update(monitors_s=monitors_s(bench, made))
    ]
    if bench.is_gpu:
        looks.append(lambda: row.update(host_waits=host_waits(step)))
        looks.append(lambda: row.update(kernels(step, pure_s)))
    for look in looks:  # one that fails stops no other
        try:
            look()
        except Exception as error:  # noqa: BLE001
            row.setdefault("not_seen", []).append(repr(error)[:300])


def monitors_s(bench: Bench, made: Ready) -> float:
    with torch.no_grad():
        return bench.timed(made.stepper.trainable.monitors, 0.1, 5, turn=1)


def samples(made: Ready, batch: int) -> int:
    return batch * made.accumulate


def fed(
    bench: Bench,
    made: Ready,
    step: Callable[[Iterator[Any]], None],
    pure_s: float,
    row: dict[str, Any],
    batch: int,
) -> None:
    """Steps with the feed reading ahead, as a training has them."""
    stream = made.feed.stream(
        0, 1_000_000, lambda b: (b % made.phases + 0.5) / made.phases
    )
    try:
        step(stream)
        bench.wait()
        made.stepper.waited_s = 0.0
        began, count = time.perf_counter(), 0
        least = 2 * made.phases
        while True:
            step(stream)
            count += 1
            if count % made.phases == 0:
                bench.wait()
                spent = time.perf_counter() - began
                if spent >= bench.seconds and count >= least:
                    break
    finally:
        stream.close()
    row |= {
        "step_s": spent / count, "steps_s": count / spent,
        "samples_s": count * samples(made, batch) / spent,
        "host_in_feed": made.stepper.waited_s / spent,
        "lost_to_feed": max(0.0, 1.0 - pure_s * count / spent),
        "threads": made.feed.threads,
    }  # fmt: skip


# -------------------------------------------------------------------------- inference


# Shape, classes, side of the window, windows at once of MONAI's, precision.
SCANS = {
    "bf16": ((300, 512, 512), CLASSES, 96, 4, "bf16"),
    "fp32": ((160, 256, 256), CLASSES, 96, 4, "fp32"),
    # predicted by ``whole_body.py``
    "whole_body": ((600, 512, 512), 105, 128, 3, "bf16"),
}


def sliding(bench: Bench, name: str, row: dict[str, Any]) -> None:
    """A scan labelled by our sliding window and by MONAI's, the same network.

    Ours chooses itself how many windows it takes at once.
    """
    from monai.inferers import SlidingWindowInferer

    shape, classes, side, batch, precision = SCANS[name]
    if bench.tiny:
        shape, side, batch = (40, 40, 40), 32, 2
    window = (side,) * 3
    network = segmenter(bench, classes)
    noise = torch.Generator().manual_seed(0)
    image = torch.randn((1, *shape), generator=noise)
    row |= {"shape": list(shape), "window": list(window), "classes": classes}
    config = SlidingConfig(window=window, overlap=0.5, batch=None, precision=precision)
    half = precision == "bf16"
    inferer = SlidingWindowInferer(window, batch, overlap=0.5, mode="gaussian")

    def ours(image: Tensor) -> Tensor:
        done = drain(
            slide(network, image, classes=classes, config=config, device=bench.device)
        )
        row.update(windows=done.windows, blended=done.blended, passes=done.passes)
        row.update(at_once=done.batch, sums_on=done.sums_on)
        return done.labels

    @torch.no_grad()
    def theirs(image: Tensor) -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
            logits = inferer(image[None].to(bench.device), network)
        return logits[0].argmax(0).to(torch.uint8).cpu()

    labels = {}
    few = image[:, : window[0], : window[1], : window[2] * 3 // 2]
    for who, run in {"ours": ours, "monai": theirs}.items():
        run(few)
        bench.forget_peak()
        began = time.perf_counter()
        try:
            labels[who] = run(image)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            row[f"{who}_error"] = "out of memory"
            release(error, bench.device)
            continue
        bench.wait()
        row[f"{who}_s"] = time.perf_counter() - began
        row |= {f"{who}_{k}": v for k, v in bench.peak().items()}
    if len(labels) == 2:
        row["times_faster"] = row["monai_s"] / row["ours_s"]
        odd = labels["ours"].long() != labels["monai"].long()
        row["labels_that_differ"] = float(odd.double().mean())


def segmenter(bench: Bench, classes: int) -> nn.Module:
    """The segmentation network of the gpu recipe with random weights."""
    from homolog.nn.decoders import suited_decoder
    from homolog.tasks.segment.network import SegmentNetwork

    torch.manual_seed(0)
    backbone = build("resunet", FEW["resunet"] if bench.tiny else {})
    network = SegmentNetwork(backbone, suited_decoder(backbone, classes, 1))
    return network.to(bench.device).eval().requires_grad_(False)


# --------------------------------------------------------------------- is it all used?


def over_batches(bench: Bench, name: str, row: dict[str, Any]) -> None:
    """Samples per second of ready batches, by size of batch."""
    settings = gpu_method(bench, name)
    found: dict[str, Any] = {}
    row["by_batch"] = found
    for batch in (1, 2) if bench.tiny else (2, 4, 8, 16, 32):
        bench.forget_peak()
        try:
            made = ready(
                bench, settings, bench.device, settings.training.precision, batch
            )
            seconds = pure_seconds(bench, made)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release(error, bench.device)
            found[str(batch)] = {"error": "out of memory"}
            break
        each = {"samples_s": batch * made.accumulate / seconds, "step_s": seconds}
        found[str(batch)] = {**each, **bench.peak()}
        row[f"samples_s_{batch}"] = each["samples_s"]
        del made


def pure_seconds(bench: Bench, made: Ready) -> float:
    """Seconds of a step without the feed."""
    batches = itertools.cycle(canned(made, 1))
    numbers = itertools.count()
    course = Course(10_000)

    def step() -> None:
        made.stepper.step(next(numbers), course, made.feed, batches, made.accumulate)

    for _ in range(made.phases):
        step()
    return bench.timed(step, bench.seconds / 2)


def layouts(bench: Bench, name: str, row: dict[str, Any]) -> None:
    """Step time with other layouts and kernels; ``as_is_s`` is what ``auto`` takes."""
    settings = gpu_method(bench, name)
    ways: dict[str, dict[str, Any]] = {
        "as_is_s": {},
        "no_benchmark_s": {"cudnn_benchmark": "off"},
        "channels_last_s": {"channels_last": "on"},
        "tf32_products_s": {"tf32": "on"},
        "recompute_s": {"recompute": True},
        "compiled_s": {"compile": "on"},
    }
    if not bench.is_gpu:  # that the rest runs is all to be seen
        ways = {k: ways[k] for k in ("as_is_s", "channels_last_s", "recompute_s")}
    for label, changes in ways.items():
        plan = dataclasses.replace(settings.training, **changes)
        own = dataclasses.replace(settings, training=plan)
        bench.forget_peak()
        batch = 2 if bench.tiny else 0
        try:
            made = ready(bench, own, bench.device, plan.precision, batch)
            row[label] = pure_seconds(bench, made)
        except Exception as error:  # noqa: BLE001 - one that fails stops no other
            row.setdefault("not_made", {})[label] = repr(error)[:300]
            continue
        row |= {f"{label[:-2]}_{k}": v for k, v in bench.peak().items()}
        del made
    row["gain"] = row["as_is_s"] / min(row[label] for label in ways if label in row)


class Maps(nn.Module):
    """All maps of an encoder as one number, so that backward runs through all."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([m.float().mean() for m in self.backbone.maps(image)]).sum()


def compiled(bench: Bench, network: str, row: dict[str, Any]) -> None:
    """Forward and backward of an encoder, plain and compiled, bf16."""
    side, batch = (96, 2) if not bench.tiny else (32, 1)
    whole = (
        Maps(build(network, FEW[network] if bench.tiny else {}))
        .to(bench.device)
        .train()
    )
    image = torch.randn(batch, 1, side, side, side, device=bench.device)

    def pass_of(module: nn.Module) -> Callable[[], None]:
        def run() -> None:
            whole.zero_grad(set_to_none=True)
            with torch.autocast(bench.device.type, torch.bfloat16):
                value = module(image)
            value.backward()

        return run

    row["plain_s"] = bench.timed(pass_of(whole), bench.seconds / 2)
    if bench.tiny:
        return
    began = time.perf_counter()
    fast = torch.compile(whole)
    pass_of(fast)()
    bench.wait()
    row["compiling_s"] = time.perf_counter() - began
    row["compiled_s"] = bench.timed(pass_of(fast), bench.seconds / 2)
    row["gain"] = row["plain_s"] / row["compiled_s"]


# ---------------------------------------------------------------------------- the plan


def rows_of(bench: Bench) -> list[Row]:
    """All rows, the most important first."""
    known = METHODS.names()
    methods = [m for m in METHOD_ORDER if m in known]
    methods += [m for m in known if m not in methods]

    def of(kind: str, call: Any, needs_s: float, limit_s: float) -> Callable[..., Row]:
        def row(name: str) -> Row:
            return Row(
                f"{kind}/{name}",
                needs_s,
                limit_s,
                lambda found: call(bench, name, found),
            )

        return row

    check = of("correct", correct, 5, 20)
    rate = of("train", train, 12, 30)
    tune = of("segment", segment, 12, 25)
    scan = of("slide", sliding, 20, 45)
    return [
        Row("machine", 2, 30, lambda found: machine(bench, found)),
        *map(check, methods),
        *map(rate, methods),
        *map(tune, SEGMENTERS[:2]),
        scan("bf16"),
        scan("whole_body"),
        of("batch", over_batches, 15, 30)(HEADLINE),
        scan("fp32"),
        *map(of("layout", layouts, 15, 30), ("mae", HEADLINE)),
        *map(tune, SEGMENTERS[2:]),
        *map(of("compile", compiled, 40, 75), ("resunet", "swin")),
    ]


def begin_painting(bench: Bench) -> None:
    """Make the large phantoms beside the first rows."""
    if bench.tiny:
        return
    command = [sys.executable, str(HERE / "large_phantoms.py"), str(bench.big_store)]
    few = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    bench.painting = subprocess.Popen(command, env={**os.environ, **few})


def paint_tiny(out: Path) -> None:
    if not out.exists():
        sys.path.insert(0, str(HERE))
        from large_phantoms import make_store

        make_store(out, 4, (40, 48, 48), factor=1, processes=1)


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--skip", nargs="*", default=[])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def wanted(rows: Sequence[Row], options: argparse.Namespace) -> list[Row]:
    """Rows whose name begins as asked."""
    only, skip = tuple(options.only), tuple(options.skip)
    return [
        row
        for row in rows
        if (not only or row.name.startswith(only))
        and not (skip and row.name.startswith(skip))
    ]


def loading_s() -> float:
    """Seconds since this process began: loading torch counts too."""
    age = time.time() - psutil.Process().create_time()
    return age if 0 <= age < 90 else 0.0  # a clock may have been set since


def card_name(device: torch.device) -> str:
    told = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "_", told.lower()).strip("_")


def main(words: Sequence[str] | None = None) -> None:
    """Make what fits into the time; the JSON is there whatever happens."""
    began = time.monotonic() - (loading_s() if words is None else 0.0)
    options = parsed(words)
    until = options.until or began + 60.0 * options.minutes
    device = torch.device(options.device)
    if words is None:
        # whatever hangs, the process ends; rows made so far are on the disk
        faulthandler.dump_traceback_later(
            max(until - time.monotonic(), 1) + 25, exit=True
        )
    out = options.out or HERE / "results" / f"gpu_{card_name(device)}.json"
    work = options.work or Path(tempfile.mkdtemp(prefix="homolog-gpu-"))
    bench = Bench(
        device, options.tiny, work / "tiny", work / "big", threads=options.threads
    )
    if options.tiny:
        bench.seconds = 0.05
    sheet = Sheet(out, until, resumed=options.until is not None)
    if options.until is None:
        begin_painting(bench)
    try:
        paint_tiny(bench.tiny_store)
        alive = sheet.run(wanted(rows_of(bench), options), device)
    finally:
        sheet.write()
    if not alive and sheet.left_s > 20 and sheet.content["restarts"] < 4:
        again = [sys.executable, __file__, *(sys.argv[1:] if words is None else words)]
        print("the GPU no longer answers: beginning anew", flush=True)
        os.execv(
            sys.executable,
            [*again, "--work", str(work), "--until", str(until), "--out", str(out)],
        )
    faulthandler.cancel_dump_traceback_later()
    if bench.painting is not None and bench.painting.poll() is None:
        bench.painting.terminate()
    shutil.rmtree(work, ignore_errors=True)
    made, spent = len(sheet.content["rows"]), time.monotonic() - began
    print(f"{made} rows in {spent:.0f} s -> {out}")


if __name__ == "__main__":
    main()
