"""Precision, memory and exact sums on a GPU; none is needed."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from test_contract import construct
from torch import Tensor
from torch.nn import functional

from each import each
from fake_cuda import CUDA, fake_cuda
from homolog.backbones import _window_attention, build
from homolog.errors import JobError
from homolog.events import Note
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.losses.contrast import squared_distances
from homolog.losses.similarity import full_precision
from homolog.training import stepping as precision
from homolog.training.config import TrainingConfig
from homolog.training.course import Course
from homolog.training.stepping import LossScale, Stepper, is_out_of_memory, release
from toy_training import ToyFeed, ToyTrainable, run_all, toy

CPU = torch.device("cpu")


def test_batches_are_pinned_for_a_gpu_alone(
    phantom_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose driver fails, ``--device cpu`` never asks it."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    monkeypatch.setattr(Tensor, "pin_memory", broken)
    cases = [CaseRef(phantom_store, card) for card in phantom_store.cards]
    specs = construct("mae").views()
    for device in (None, CPU):
        Feed(cases, specs, batch_size=1, seed=0, device=device).batch(0)
    again = Feed(cases, specs, batch_size=2, seed=0, device=CUDA).with_batch_size(1)
    with pytest.raises(RuntimeError, match="driver"):
        again.batch(0)


@each(
    "capability, expected",
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")],
)
def test_precision_is_that_of_the_chosen_gpu(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def of(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", of)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # emulated
    chosen = torch.device("cuda", 1)
    assert precision.resolve_precision("auto", chosen, toy()) == expected
    assert asked == [chosen]


class Overflowing(ToyTrainable):
    """Gradients that fp16 cannot hold at the first scale of the loss."""

    def losses(self, views: Any, progress: float) -> dict[str, Tensor]:
        return {k: 40.0 * v for k, v in super().losses(views, progress).items()}


def test_fp16_scales_the_loss_skips_what_overflows_and_says_so(tmp_path: Path) -> None:
    model = Overflowing()
    model.load_state_dict(toy().state_dict())
    result, events = run_all(
        model, ToyFeed(), tmp_path, steps=12, precision="fp16", log_every=1
    )
    assert result.precision == "fp16"
    assert 0 < result.bad_steps < 12
    notes = [e.text for e in events if isinstance(e, Note)]
    assert any("scaled by" in n and "no harm in fp16" in n for n in notes)
    assert all(p.isfinite().all() for p in model.parameters())


def test_fp16_learns_what_fp32_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "FIRST", 256.0)
    ends = []
    for numbers in ("fp32", "fp16"):
        model = toy(dropout=0.0)
        stepper = Stepper(
            model, TrainingConfig(steps=8, learning_rate=1e-2), None,
            device=CPU, seed=0, precision=numbers,
        )  # fmt: skip
        feed = ToyFeed()
        batches = feed.stream(0, 8)
        for index in range(8):
            stepper.step(index, Course(8), feed, batches, 1)
        assert int(stepper.bad_steps) == 0
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in toy().parameters()])
    exact, narrow = (end - start for end in ends)
    assert float(functional.cosine_similarity(exact, narrow, dim=0)) > 0.98
    assert not torch.equal(exact, narrow)


def test_the_scale_falls_at_once_and_rises_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LossScale, "PATIENCE", 3)
    scale, good, bad = LossScale(CPU), torch.tensor(False), torch.tensor(True)
    factors = []
    for step in (bad, bad, good, good, good, good, bad, good):
        scale.learn(step)
        factors.append(float(scale.factor) / LossScale.FIRST)
    assert factors == [0.5, 0.25, 0.25, 0.25, 0.5, 0.5, 0.25, 0.25]
    assert int(scale.good) == 1
    weight = torch.nn.Parameter(torch.ones(2))
    scale.up((3 * weight).sum()).backward()
    scale.down([weight])
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0, 3.0]


def test_fp16_killed_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    settings = {"steps": 12, "precision": "fp16", "log_every": 1, "checkpoint_every": 6}
    for name, sessions in (("whole", 1), ("cut", 2)):
        for session in range(sessions):
            model = Overflowing()
            model.load_state_dict(toy().state_dict())
            run_all(model, ToyFeed(), tmp_path / name, **settings)
            if session + 1 < sessions:  # as it was after step 6
                shutil.rmtree(tmp_path / name / "checkpoints" / "step_00000012")
    last = "checkpoints/step_00000012/state.safetensors"
    whole, cut = (tmp_path / n / last for n in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("backbone", ["swin", "nnformer"])
def test_window_attention_fits_the_fused_kernel_of_cuda(
    backbone: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules of its check in torch (sdp_utils.cpp): last strides of 1, heads and
    rows of the bias in steps of eight, one type. Else every score is kept."""
    seen: list[tuple[Tensor, ...]] = []

    def attention(
        q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor, scale: float
    ) -> Tensor:
        seen.append((q, k, v, attn_mask))
        return torch.zeros_like(v)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(_window_attention, "attend", _window_attention._on_gpu)
    build(backbone)(torch.rand(1, 1, side, side, side))
    assert seen
    for q, k, v, mask in seen:
        assert q.shape[-1] % 8 == 0
        for part in (q, k, v, mask):
            assert part.stride(-1) == 1
            assert part.dtype == q.dtype
        assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
        assert mask.shape[-2:] == (q.shape[-2], k.shape[-2])


@pytest.mark.parametrize("channels", [4, 8])
def test_attention_as_the_fused_kernel_takes_it_gives_the_same(channels: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 5, 2, 27, channels).requires_grad_().unbind(0)
    bias = torch.randn(27 * 27, 2).t().reshape(2, 27, 27).requires_grad_()
    plain = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias.unsqueeze(0), scale=0.3
    )
    ours = _window_attention._on_gpu(q, k, v, bias, 0.3)
    torch.testing.assert_close(ours, plain)
    goal = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad((ours * goal).sum(), (q, k, v, bias)),
        torch.autograd.grad((plain * goal).sum(), (q, k, v, bias)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_distances_are_exact_under_autocast() -> None:
    torch.manual_seed(0)
    places = 1000 + 300 * torch.rand(1, 200, 3, dtype=torch.float64)
    exact = torch.cdist(places, places).square().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = squared_distances(places, places)
    torch.testing.assert_close(found, exact, atol=1e-2, rtol=1e-5)
    assert (found.diagonal(dim1=1, dim2=2) == 0).all()


def test_full_precision_switches_tf32_off() -> None:
    seen = []

    @full_precision
    def product(a: Tensor) -> Tensor:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return a

    was = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with fake_cuda():
            product(torch.ones(2, device="cuda"))
        product(torch.ones(2))
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = was
    assert seen == [False, True]


def test_full_precision_takes_the_newer_name_of_tf32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch refuses to tell by the older name what was set by the newer one."""

    class Switch:
        fp32_precision = "tf32"

        @property
        def allow_tf32(self) -> bool:
            raise RuntimeError("mix of the legacy and new APIs")

    switch, seen = Switch(), list[str]()
    monkeypatch.setattr(torch.backends.cuda, "matmul", switch)

    @full_precision
    def product(a: Tensor) -> Tensor:
        seen.append(switch.fp32_precision)
        return a

    with fake_cuda():
        product(torch.ones(2, device="cuda"))
    assert seen == ["ieee"]
    assert switch.fp32_precision == "tf32"


@each(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        MemoryError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError(
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
        ),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't "
            "allocate memory: you tried to allocate 4 bytes."
        ),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_every_form_of_lacking_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)
    named = JobError("case 'a' could not be read.")
    named.__cause__ = error
    assert is_out_of_memory(named)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_what_ran_out_of_memory_is_let_go() -> None:
    held: list[weakref.ref[Tensor]] = []

    def step() -> None:
        graph = (torch.ones(8, requires_grad=True) * 2).exp()
        held.append(weakref.ref(graph))
        raise torch.OutOfMemoryError("CUDA out of memory")

    try:
        step()
    except RuntimeError as error:
        gc.collect()
        assert held[0]() is not None
        release(error, CPU)
        assert held[0]() is None
