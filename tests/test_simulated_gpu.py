"""What a step or a prediction would ask of a GPU; none is needed."""

from __future__ import annotations

import pytest
import torch

import simulated_gpu
from fake_cuda import CUDA, fake_cuda
from simulated_gpu import (
    PREDICT_CASES,
    blocking,
    keys,
    predictor,
    recorded,
    told_of,
    told_of_prediction,
)

RISE = 1.2
# Known: how many slices of a volume there are decides what is computed.
WAITS = {"classify/resnet2d": "slice_vectors nonzero"}


@pytest.mark.parametrize("key", keys())
def test_a_step_mixes_nothing_never_waits_and_sends_few_kernels(key: str) -> None:
    told, kernels = told_of(key)
    assert not told.mixed, "a real GPU refuses this."
    waits = [w for w in told.waits if not w.endswith(WAITS.get(key, "nowhere"))]
    assert waits == [], "the host waits for the GPU in every step."
    assert blocking(told) == {}, "send it non_blocking, or keep it on the device."
    known = recorded().get(key)
    again = "python tests/simulated_gpu.py --record (and say why in the commit)"
    assert known is not None, f"{key} is new: {again}"
    assert len(kernels) == len(known), f"other phases than recorded: {again}"
    for now, before in zip(kernels, known, strict=True):
        assert now <= RISE * before, (
            f"{now} kernels in a step, {before} before: few large ones keep a GPU "
            f"busy. Places: python tests/simulated_gpu.py {key} --places 20. If it is "
            f"worth it: {again}"
        )


# What a scan's answer waits for, however many windows it has: labels or values and
# whether all were numbers; what a classifier tells of classes, slices, their shares.
SCAN_WAITS = {"segment": 2, "translate": 2, "detect": 1, "classify": 6}


@pytest.mark.parametrize("key", PREDICT_CASES)
def test_a_prediction_waits_for_the_whole_scan_and_for_no_window(key: str) -> None:
    (small, large), kernels = told_of_prediction(key)
    assert not large.mixed, "a real GPU refuses this."
    waits = [sum(told.waits.values()) for told in (small, large)]
    assert waits[0] == waits[1] <= SCAN_WAITS[key.split("/")[1]], dict(large.waits)
    assert blocking(large) == {}, "send it non_blocking, pinned where it is large."
    again = f"python tests/simulated_gpu.py {key} --record (and say why in the commit)"
    known = recorded().get(key)
    assert known is not None, f"{key} is new: {again}"
    for now, before in zip(kernels, known, strict=True):
        assert now <= RISE * before, (
            f"{now} kernels for a scan, {before} before: {again}"
        )


@pytest.mark.parametrize(
    "key", ["predict/segment/resunet", "predict/translate/resunet"]
)
def test_a_gpu_and_the_cpu_make_the_same_of_a_scan(key: str) -> None:
    here = predictor(key, torch.device("cpu"))(1)
    with fake_cuda():
        there = predictor(key, CUDA)(1)
    if hasattr(here, "labels"):
        # bfloat16 against float32: other roundings at the border of two classes
        assert (here.labels == there.labels).float().mean() > 0.98
        assert len(here.labels.unique()) > 1
    else:
        torch.testing.assert_close(there.values, here.values, atol=0.05, rtol=0.05)


def test_what_was_recorded_is_still_there() -> None:
    assert sorted(recorded()) == sorted([*keys(), *PREDICT_CASES])


def _said(step: object) -> simulated_gpu.Report:
    with fake_cuda() as told:
        values = torch.arange(6.0, device=CUDA)
        told.clear()
        step(values)  # type: ignore[operator]
    return told


@pytest.mark.parametrize(
    "step",
    [
        lambda v: v.sum().item(),
        lambda v: float(v[0]),
        lambda v: bool((v > 2).any()),
        lambda v: v.tolist(),
        lambda v: v.nonzero(),
        lambda v: v[v > 2],
        lambda v: v.cpu(),
        lambda v: torch.unique(v),
        lambda v: torch.linalg.svdvals(v[None]),
        lambda v: v.repeat_interleave(v.long()),
    ],
)
def test_the_pretended_gpu_sees_waits(step: object) -> None:
    told = _said(step)
    assert sum(told.waits.values()) >= 1
    assert not told.mixed


@pytest.mark.parametrize(
    "step",
    [
        lambda v: v + torch.ones(6),
        lambda v: torch.cat([v, torch.ones(1)]),
        lambda v: torch.from_numpy(v.numpy()),
        lambda v: v.long()[None] @ v.long()[:, None],
    ],
)
def test_the_pretended_gpu_sees_what_does_not_go_together(step: object) -> None:
    assert _said(step).mixed


@pytest.mark.parametrize(
    "step",
    [
        lambda v: torch.tensor([1.0, 2.0], device=v.device),
        lambda v: v.new_tensor([1.0]),
        lambda v: torch.ones(4).to(v.device),
        lambda v: v[:, None][:, [0]],
        lambda v: v.copy_(torch.ones(6)),
        lambda v: torch.zeros(1 << 15).to(v.device, non_blocking=True),
    ],
)
def test_the_pretended_gpu_sees_uploads_that_wait(step: object) -> None:
    assert blocking(_said(step))


def test_small_or_pinned_uploads_wait_for_nothing() -> None:
    def step(values: torch.Tensor) -> None:
        torch.ones(4).to(values.device, non_blocking=True)
        large = torch.zeros(1 << 15).pin_memory()
        large.to(values.device, non_blocking=True)

    told = _said(step)
    assert blocking(told) == {}
    assert told.copies == 2


def test_lists_are_sent_in_few_kernels() -> None:
    def step(values: torch.Tensor) -> None:
        many = [values + n for n in range(200)]
        told.clear()
        torch._foreach_mul_(many, 2.0)
        assert told.kernels == 2
        torch._foreach_copy_(many, [v.clone() for v in many])
        assert told.kernels == 2 + 200 + 4
        torch.cat(many)
        assert told.kernels == 206 + 2
        values.reshape(2, 3).T.unsqueeze(0)
        assert told.kernels == 208

    with fake_cuda() as told:
        step(torch.arange(6.0, device=CUDA))
