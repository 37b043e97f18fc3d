"""LARC: the closed form of a step, what norms of 0 mean, its state saved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from each import each
from homolog.nn.optim import LARC
from homolog.training.config import TrainingConfig
from homolog.training.stepping import (
    build_optimiser,
    optimiser_tensors,
    restore_optimiser,
)


def tensors(*shape: int, seed: int = 0) -> tuple[nn.Parameter, Tensor]:
    """A weight and a gradient, float64."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return nn.Parameter(made[0]), made[1]


@each("clip", [False, True])
@each("decay", [0.0, 0.1])
def test_two_steps_are_the_closed_form(decay: float, clip: bool) -> None:
    weight, gradient = tensors(4, 3)
    made = LARC([weight], 0.5, weight_decay=decay, trust=0.02, clip=clip)
    w, b = weight.detach().clone(), torch.zeros(4, 3, dtype=torch.float64)
    for scale in (1.0, 100.0):
        g = scale * gradient
        weight.grad = g.clone()
        made.step()
        ratio = 0.02 * w.norm() / (g.norm() + decay * w.norm() + 1e-8)
        if clip:
            ratio = min(ratio / 0.5, torch.tensor(1.0, dtype=torch.float64))
        b = 0.9 * b + ratio * (g + decay * w)
        w = w - 0.5 * b
        torch.testing.assert_close(weight.detach(), w, atol=1e-14, rtol=0)


def test_a_step_is_the_same_share_of_a_tensor_whatever_its_gradient() -> None:
    for size in (1e-4, 1.0, 1e4):
        weight, gradient = tensors(5)
        before = weight.detach().clone()
        weight.grad = size * gradient
        LARC([weight], 2.0, trust=0.01).step()
        moved = (weight.detach() - before).norm() / before.norm()
        assert float(moved) == pytest.approx(0.02, rel=1e-3)


def test_where_a_norm_is_0_the_gradient_is_taken_as_it_is() -> None:
    weight, gradient = tensors(3)
    with torch.no_grad():
        weight.zero_()
    weight.grad = gradient
    still, _ = tensors(3, seed=1)
    before = still.detach().clone()
    still.grad = torch.zeros_like(still)
    without, _ = tensors(3, seed=2)
    made = LARC([weight, still, without], 0.1, weight_decay=0.5)
    made.step()
    torch.testing.assert_close(weight.detach(), -0.1 * gradient)
    assert torch.equal(still.detach(), before)  # nor does it decay
    assert without not in made.state


def test_without_trust_it_is_torchs_gradient_descent() -> None:
    ours, gradient = tensors(4, 3)
    theirs = nn.Parameter(ours.detach().clone())
    settings: dict[str, Any] = {"momentum": 0.8, "weight_decay": 0.1}
    pair = (
        LARC([ours], 0.3, trust=0.0, **settings),
        torch.optim.SGD([theirs], 0.3, **settings),
    )
    for step in range(4):
        for optimiser, weight in zip(pair, (ours, theirs), strict=True):
            weight.grad = (1 + step) * gradient
            optimiser.step()
    torch.testing.assert_close(ours, theirs)


def test_a_step_found_bad_on_the_device_changes_nothing() -> None:
    weight, gradient = tensors(3)
    made = LARC([weight], 0.1)
    weight.grad = gradient.clone()
    made.found_inf = torch.tensor(1.0)
    before = weight.detach().clone()
    weight.grad[0] = torch.nan
    made.step()
    assert torch.equal(weight.detach(), before)
    other = nn.Parameter(before.clone())
    plain = LARC([other], 0.1)
    made.found_inf = torch.tensor(0.0)
    for _ in range(2):
        weight.grad, other.grad = gradient.clone(), gradient.clone()
        made.step()
        plain.step()
    assert torch.equal(weight, other)


def test_its_state_goes_round_as_torchs_and_as_named_tensors() -> None:
    config = TrainingConfig(optimizer="larc", learning_rate=0.2, momentum=0.7)
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))

    def step(module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        module(inputs).square().sum().backward()
        optimiser.step()

    torch.manual_seed(0)
    first = nn.Linear(5, 2)
    optimiser = build_optimiser(first, config)
    assert isinstance(optimiser, LARC)
    assert {g["momentum"] for g in optimiser.param_groups} == {0.7}
    assert {g["trust"] for g in optimiser.param_groups} == {0.001}
    for _ in range(3):
        step(first, optimiser)
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    others = [build_optimiser(module, config) for module in (second, third)]
    others[0].load_state_dict(copy.deepcopy(optimiser.state_dict()))
    saved = optimiser_tensors(optimiser, first)
    assert sorted(saved) == ["optimiser/bias/momentum", "optimiser/weight/momentum"]
    restore_optimiser(others[1], third, saved)
    modules = (first, second, third)
    for _ in range(2):
        for module, one in zip(modules, (optimiser, *others), strict=True):
            step(module, one)
    for module in modules[1:]:
        assert torch.equal(module.weight, first.weight)
        assert torch.equal(module.bias, first.bias)


@each("settings", [{"lr": -1.0}, {"momentum": 1.0}, {"trust": -0.1}])
def test_nonsense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="LARC needs"):
        LARC([tensors(2)[0]], **{"lr": 0.1, **settings})
