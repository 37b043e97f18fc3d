"""What every method must keep; a new method is tested by being there."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from homolog.backbones import BACKBONES, build
from homolog.config import from_dict
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.methods import METHODS
from homolog.methods.base import Method
from homolog.nn.optim import parameter_groups
from homolog.training.config import TrainingConfig
from homolog.views.view import Views

NAMES = METHODS.names()
CPU = torch.device("cpu")
SIDE = 32


def construct(name: str, seed: int = 0) -> Method:
    """The method of its cpu recipe, with crops of at most 32 voxels a side."""
    cls = METHODS.get(name)
    recipe = cls.RECIPES["cpu"]
    settings = dict(recipe.get("method", {}))
    if any(field.name == "size" for field in dataclasses.fields(cls.Config)):
        size = settings.get("size") or cls.Config().size
        settings["size"] = [min(side, SIDE) for side in size]
    overrides = dict(recipe["backbone"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = build(overrides.pop("name"), overrides)
        return cls(backbone, from_dict(cls.Config, settings))


@pytest.fixture(scope="module")
def feeds(phantom_store: Any) -> dict[str, Feed]:
    """A feed per method on the phantom cohort, two samples per batch."""
    cases = [CaseRef(phantom_store, card) for card in phantom_store.cards]
    return {
        name: Feed(cases, construct(name).views(), batch_size=2, seed=0)
        for name in NAMES
    }


def views_of(feed: Feed, step: int) -> Views:
    return feed.views(feed.batch(step), CPU)


def new_optimiser(method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(method, 0.01), 1e-3)


def run(
    method: Method, optimiser: torch.optim.Optimizer, feed: Feed, steps: range
) -> list[Tensor]:
    losses = []
    for step in steps:
        terms = method.losses(views_of(feed, step), step / 10)
        total = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        method.after_step((step + 1) / 10)
        losses.append(total.detach())
    return losses


def frozen_state(method: Method) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    unequal = [name for name in a if not torch.equal(a[name], b[name])]
    assert not unequal


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_give_finite_scalar_losses_and_monitors(
    name: str, feeds: dict[str, Feed]
) -> None:
    method = construct(name)
    terms = method.losses(views_of(feeds[name], 0), 0.0)
    assert terms
    assert all(value.ndim == 0 for value in terms.values())
    losses = run(method, new_optimiser(method), feeds[name], range(2))
    assert all(loss.isfinite() for loss in losses)
    monitors = method.monitors()
    assert any(key.endswith("_std") for key in monitors)
    assert all(v.numel() == 1 and v.isfinite().all() for v in monitors.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_weight_that_learns(
    name: str, feeds: dict[str, Feed]
) -> None:
    method = construct(name)
    run(method, torch.optim.SGD(method.parameters(), 0.0), feeds[name], range(1))
    # not at the beginning, when prototypes may rest
    terms = method.losses(views_of(feeds[name], 1), 0.5)
    for parameter in method.parameters():
        parameter.grad = None
    torch.stack(list(terms.values())).sum().backward()
    learning = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
    assert learning
    without = [n for n, p in learning if p.grad is None or not p.grad.isfinite().all()]
    assert not without


@pytest.mark.parametrize("name", NAMES)
def test_looking_without_training_changes_nothing(
    name: str, feeds: dict[str, Feed]
) -> None:
    method = construct(name)
    run(method, new_optimiser(method), feeds[name], range(1))
    other = copy.deepcopy(method)
    method.eval()
    with torch.no_grad():
        method.losses(views_of(feeds[name], 5), 0.5)
    method.train()
    for each in (method, other):
        run(each, new_optimiser(each), feeds[name], range(1, 2))
    assert_same(method.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_views_give_the_same_losses(name: str, feeds: dict[str, Feed]) -> None:
    method = construct(name)
    first, second = (method.losses(views_of(feeds[name], 3), 0.2) for _ in range(2))
    assert {k: v.item() for k, v in first.items()} == {
        k: v.item() for k, v in second.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_e_t9_a_resumed_training_equals_an_uninterrupted_one(
    name: str, feeds: dict[str, Feed]
) -> None:
    whole = construct(name)
    optimiser = new_optimiser(whole)
    run(whole, optimiser, feeds[name], range(2))
    saved = frozen_state(whole), copy.deepcopy(optimiser.state_dict())
    run(whole, optimiser, feeds[name], range(2, 4))

    resumed = construct(name, seed=1)
    resumed.load_state_dict(saved[0])
    optimiser = new_optimiser(resumed)
    optimiser.load_state_dict(saved[1])
    run(resumed, optimiser, feeds[name], range(2, 4))
    assert_same(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_survives_saving_and_makes_the_same_features(
    name: str, feeds: dict[str, Feed]
) -> None:
    method = construct(name)
    run(method, new_optimiser(method), feeds[name], range(1))
    method.eval()
    kept = method.encoder()
    other = type(kept)(kept.config)
    other.load_state_dict(kept.state_dict())
    image = next(iter(views_of(feeds[name], 0).values())).flat()
    with torch.no_grad():
        for a, b in zip(kept.maps(image), other.eval().maps(image), strict=True):
            assert torch.equal(a, b)
        features = method.embedder()(image)
    for value in features.values():
        lengths = value.norm(dim=1)
        dark = lengths == 0  # a rectified map may be 0 in all channels at a place
        assert dark.float().mean() < 0.01
        torch.testing.assert_close(lengths[~dark], torch.ones_like(lengths[~dark]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", ["cpu", "gpu", "paper"])
def test_every_recipe_can_be_read(name: str, recipe: str) -> None:
    cls = METHODS.get(name)
    parts = cls.RECIPES[recipe]
    assert set(parts) <= {"method", "backbone", "training"}
    config = from_dict(cls.Config, parts["method"], where=recipe)
    from_dict(TrainingConfig, parts["training"], where=recipe)
    overrides = dict(parts["backbone"])
    backbone = BACKBONES.get(overrides.pop("name"))
    cls(backbone(from_dict(backbone.Config, overrides, where=recipe)), config)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_names_itself_and_its_paper(name: str) -> None:
    cls = METHODS.get(name)
    assert cls.title
    assert cls.paper
    assert "Source:" in (cls.__doc__ or "")
    assert dataclasses.is_dataclass(cls.Config)
    assert all(f.metadata.get("help") for f in dataclasses.fields(cls.Config))
