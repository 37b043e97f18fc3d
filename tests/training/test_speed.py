"""What makes a step faster or smaller leaves its numbers alone."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fake_cuda import CUDA, fake_cuda
from homolog.backbones import BACKBONES, build
from homolog.config import from_dict, to_dict
from homolog.errors import UnusableInput
from homolog.losses.similarity import exact_products, tf32
from homolog.methods.base import _by_gram, effective_rank
from homolog.training import speed
from homolog.training.config import TrainingConfig
from homolog.training.course import Course
from homolog.training.speed import check_compiler, chosen_kernels, prepare
from homolog.training.stepping import Stepper
from toy_training import ToyFeed, toy

CPU = torch.device("cpu")
SMALLEST: dict[str, dict[str, Any]] = {
    "resunet": {"channels": [4, 8, 8]},
    "vit": {"image_size": [32] * 3, "hidden": 24, "inner": 24, "layers": 2, "heads": 2},
    "primus": {"image_size": [32] * 3, "hidden": 24, "layers": 2, "heads": 2},
    "densenet": {"initial": 4, "growth": 4},
    "resenc": {"channels": [4, 8, 8], "blocks": [1, 1, 1]},
    "segresnet": {"filters": 8, "blocks": [1, 1, 1]},
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, dict(BACKBONES.get(name).SMALL) | SMALLEST.get(name, {})).train()


def picture(made: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sides = [32] * made.spatial_dims
    return torch.randn(2, 1, *sides, generator=generator)


def learnt(made: Any) -> dict[str, Tensor]:
    """Gradients and buffers after a step with dropout."""
    torch.manual_seed(2)
    torch.stack([m.square().mean() for m in made(picture(made))]).sum().backward()
    found = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    return found | dict(made.named_buffers())


@pytest.mark.parametrize("name", BACKBONES.names())
def test_recomputed_blocks_give_the_same_bits(name: str) -> None:
    plain, again = network(name), network(name)
    prepare(again, TrainingConfig(recompute=True), CPU)
    prepare(again, TrainingConfig(recompute=True), CPU)  # once is enough
    a, b = learnt(plain), learnt(again)
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []
    assert again.state_dict().keys() == plain.state_dict().keys()
    copied = copy.deepcopy(again)  # as a teacher is made
    for parameter in (*again.parameters(), *copied.parameters()):
        parameter.grad = None
    assert learnt(copied).keys() == a.keys()
    assert all(parameter.grad is None for parameter in again.parameters())


def test_recomputed_batch_norms_count_a_batch_once() -> None:
    small = dict(BACKBONES.get("resnet2d").SMALL) | {"norm": "batch"}
    made = [build("resnet2d", small).train() for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    prepare(made[1], TrainingConfig(recompute=True), CPU)
    a, b = (learnt(one) for one in made)
    assert [n for n in a if not torch.equal(a[n], b[n])] == []
    counts = [v for n, v in b.items() if n.endswith("num_batches_tracked")]
    assert counts
    assert all(int(count) == 1 for count in counts)


def test_recomputing_keeps_less() -> None:
    made = network("resunet")
    held: list[int] = []

    def hold(value: Tensor) -> Tensor:
        held.append(value.nbytes)
        return value

    def bytes_kept() -> int:
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda value: value):
            made(picture(made))
        return sum(held)

    before = bytes_kept()
    prepare(made, TrainingConfig(recompute=True), CPU)
    assert bytes_kept() < before / 2


def test_channels_last_changes_the_layout_and_no_value() -> None:
    plain, last = network("resunet"), network("resunet")
    prepare(last, TrainingConfig(channels_last="on"), CPU)
    weights = [p for p in last.parameters() if p.ndim == 5]
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in weights)
    state = last.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, state[name])
    for a, b in zip(plain(picture(plain)), last(picture(last)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own
def test_blocks_are_compiled_and_names_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, made = network("resunet"), network("resunet")
    real = torch.compile
    seen: list[dict[str, Any]] = []

    def traced(*given: Any, **options: Any) -> Any:
        seen.append(options)
        return real(*given, **options, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr(speed, "check_compiler", lambda _: None)
    whole = nn.ModuleDict({"encoder": made, "head": nn.Linear(2, 2)})
    for _ in range(2):
        prepare(whole, TrainingConfig(compile="on"), CPU)
    assert len(seen) == 3  # one block a stage
    assert made.state_dict().keys() == plain.state_dict().keys()
    for a, b in zip(plain(picture(plain)), made(picture(made)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_missing_compiler_is_told_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed.shutil, "which", lambda _: None)
    with pytest.raises(UnusableInput, match=r"needs a C\+\+ compiler"):
        check_compiler(CPU)
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnusableInput, match="needs Triton"):
        prepare(toy(), TrainingConfig(compile="on"), torch.device("cuda"))


def test_auto_prepares_nothing() -> None:
    made = network("resunet")
    forwards = [part.forward for part in made.modules()]
    strides = [p.stride() for p in made.parameters()]
    prepare(made, TrainingConfig(), torch.device("cuda"))
    assert [part.forward for part in made.modules()] == forwards
    assert [p.stride() for p in made.parameters()] == strides


def switches() -> tuple[bool, bool, bool]:
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (True, True, False)),
        ({"cudnn_benchmark": "off"}, (False, True, False)),
        ({"tf32": "on"}, (True, True, True)),
        ({"tf32": "off"}, (True, False, False)),
    ],
)
def test_kernels_are_chosen_for_a_step_alone(
    settings: dict[str, str], expected: tuple[bool, ...]
) -> None:
    before = switches()
    assert before == (False, True, False)  # as torch is set
    config = TrainingConfig(**settings)  # type: ignore[arg-type]
    with chosen_kernels(config, CUDA):
        assert switches() == expected
        with exact_products("cuda"):
            assert switches() == (expected[0], False, False)
        assert switches() == expected
    assert switches() == before
    with chosen_kernels(config, CPU):
        assert switches() == before


class Looking(ToyFeed):
    """Notes the switches while views are made."""

    seen: list[tuple[bool, bool, bool]]

    def views(self, batch: Tensor, device: torch.device) -> Any:
        self.seen = [*getattr(self, "seen", []), switches()]
        return super().views(batch, device)


def test_geometry_is_exact_while_the_network_takes_tf32() -> None:
    feed, made = Looking(), toy()
    during = []
    made.body.register_forward_hook(lambda *_: during.append(switches()))
    with fake_cuda(), tf32(None):
        stepper = Stepper(
            made.to(CUDA), TrainingConfig(steps=4, tf32="on"), None,
            device=CUDA, seed=0, precision="fp32",
        )  # fmt: skip
        stepper.step(0, Course(4), feed, feed.stream(0, 1), 1)
    assert feed.seen == [(True, False, False)]
    assert during == [(True, True, True)]


def test_settings_that_came_later_are_not_told_unless_they_differ() -> None:
    later = {
        "tf32", "cudnn_benchmark", "channels_last", "compile", "recompute", "fit",
        "feed_processes",
    }  # fmt: skip
    assert not later & to_dict(TrainingConfig()).keys()
    told = to_dict(TrainingConfig(recompute=True, compile="on"))
    assert told["recompute"] is True
    assert told["compile"] == "on"
    assert from_dict(TrainingConfig, told) == dataclasses.replace(
        TrainingConfig(), recompute=True, compile="on"
    )


@pytest.mark.parametrize("shape", [(300, 16), (12, 40)])
def test_the_rank_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator)
    values[:, : shape[1] // 2] *= 0.01
    values -= values.mean(0)
    singular = torch.linalg.svdvals(values.double())
    share = singular / singular.sum()
    wanted = -(share * share.clamp_min(1e-12).log()).sum()
    found = effective_rank(values)
    assert found.dtype == torch.float32
    gram = _by_gram(values).flip(0)  # as on a GPU
    torch.testing.assert_close(gram, singular, rtol=1e-5, atol=1e-5)
    assert float(found) == pytest.approx(float(wanted.exp()), rel=1e-5)
    one = torch.ones(8, 1) @ torch.arange(5.0)[None] * torch.arange(-3.5, 4)[:, None]
    assert float(effective_rank(one)) == pytest.approx(1.0, abs=1e-3)
