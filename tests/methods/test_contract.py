"""What every method must keep; a new method is tested by being there."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import pytest
import torch
from local_network import SIZE, LocalBackbone, padded, without_norms_over_space
from torch import Tensor
from two_ranks import on_two_ranks

from homolog.backbones import BACKBONES, build
from homolog.config import from_dict
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.methods import METHODS
from homolog.methods.base import Method
from homolog.model_files.decoder import SavedDecoder, fill_decoder
from homolog.nn.optim import parameter_groups
from homolog.tasks.segment.task import Segment, SegmentConfig
from homolog.training.config import TrainingConfig
from homolog.views.view import View, Views

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


class Feeds(dict[str, Feed]):
    """A feed per method on the phantom cohort, two samples per batch, when needed."""

    def __init__(self, store: Any) -> None:
        super().__init__()
        self.cases = [CaseRef(store, card) for card in store.cards]

    def __missing__(self, name: str) -> Feed:
        self[name] = self.of(construct(name), 2)
        return self[name]

    def of(self, method: Method, batch_size: int) -> Feed:
        return Feed(self.cases, method.views(), batch_size=batch_size, seed=0)


@pytest.fixture(scope="module")
def feeds(phantom_store: Any) -> Feeds:
    return Feeds(phantom_store)


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
    assert not unequal, (
        f"{unequal} differ: what losses and after_step remember from step to step "
        "belongs in buffers (register_buffer), and changes only in after_step of a "
        "training step."
    )


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_give_finite_scalar_losses_and_monitors(
    name: str, feeds: dict[str, Feed]
) -> None:
    method = construct(name)
    terms = method.losses(views_of(feeds[name], 0), 0.0)
    assert terms, f"{name}: losses() must return at least one term."
    assert all(value.ndim == 0 for value in terms.values()), (
        f"{name}: every term of losses() must be a scalar: take a mean."
    )
    losses = run(method, new_optimiser(method), feeds[name], range(2))
    assert all(loss.isfinite() for loss in losses), (
        f"{name}: the loss is not finite: look for a log, root or quotient of 0."
    )
    monitors = method.monitors()
    assert any(key.endswith("_std") for key in monitors), (
        f"{name}: call self.watch(name, features) in losses(), so that a collapse is "
        "seen."
    )
    assert all(v.numel() == 1 and v.isfinite().all() for v in monitors.values()), (
        f"{name}: every monitor must be one finite number."
    )


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
    assert learning, f"{name}: no weight learns: keep the backbone as a submodule."
    without = [n for n, p in learning if p.grad is None or not p.grad.isfinite().all()]
    assert not without, (
        f"{name}: no gradient reaches {without}: use them in losses(), or do not make "
        "them (teachers: requires_grad False)."
    )


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
    """Paper: Alice 3.1, augmentations."""
    method = construct(name)
    first, second = (method.losses(views_of(feeds[name], 3), 0.2) for _ in range(2))
    assert {k: v.item() for k, v in first.items()} == {
        k: v.item() for k, v in second.items()
    }, (
        f"{name}: equal views give unequal losses: draw by "
        "homolog.nn.masking.view_keys, not by the global generator, and change no "
        "state in losses()."
    )


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
    """Paper: MixCL transfer."""
    method = construct(name)
    run(method, new_optimiser(method), feeds[name], range(1))
    method.eval()
    kept = method.encoder()
    other = type(kept)(kept.config)
    other.load_state_dict(kept.state_dict())
    image = next(iter(views_of(feeds[name], 0).values())).flat()
    with torch.no_grad():
        for a, b in zip(kept.maps(image), other.eval().maps(image), strict=True):
            assert torch.equal(a, b), (
                f"{name}: encoder() rebuilt from its config and state makes other maps."
            )
        features = method.embedder()(image)
    for value in features.values():
        lengths = value.norm(dim=1)
        dark = lengths == 0  # a rectified map may be 0 in all channels at a place
        assert dark.float().mean() < 0.01, f"{name}: embedder() gives empty vectors."
        torch.testing.assert_close(lengths[~dark], torch.ones_like(lengths[~dark]))


@pytest.mark.parametrize("name", NAMES)
def test_a_dense_decoder_starts_a_segmentation_network(
    name: str, feeds: dict[str, Feed]
) -> None:
    method = construct(name)
    decoder = method.dense_decoder()
    if decoder is None:
        return
    method.losses(views_of(feeds[name], 0), 0.5)
    terms = method.losses(views_of(feeds[name], 1), 0.5)
    torch.stack(list(terms.values())).sum().backward()
    still = [
        n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert not still, f"{name}: {still} of dense_decoder() do not learn."
    spec = {"channels": 1, "label_values": [0, 1, 2]}
    network = Segment(SegmentConfig()).network(method.encoder(), spec)
    taken = fill_decoder(network.decoder, SavedDecoder(decoder.state_dict()), ())
    assert set(taken.new) == {"head.weight", "head.bias"}, (
        f"{name}: dense_decoder() must be made by suited_decoder(encoder())."
    )
    for key in taken.whole:
        assert torch.equal(network.decoder.state_dict()[key], decoder.state_dict()[key])


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_outside_the_scan_teaches_nothing(name: str, feeds: Feeds) -> None:
    """Voxels far from all that is shown of the scan are changed."""
    cls = METHODS.get(name)
    method = construct(name) if cls.backbones else constructed_locally(name)
    if cls.backbones == ():
        without_norms_over_space(method)
    views, specs = views_of(feeds.of(method, 2), 0), method.views()
    method.losses(padded(views, specs, 0), 0.4)  # fills queues
    method.after_step(0.5)
    moved: set[str] = set()
    for apart in (False, True):
        plain, changed = (
            method.losses(padded(views, specs, noise, apart=apart), 0.5)
            for noise in (0, 3)
        )
        moved |= {
            term for term in plain
            if not torch.allclose(plain[term], changed[term], rtol=1e-4, atol=1e-6)
        }  # fmt: skip
    undeclared = sorted(moved - set(cls.sees_padding))
    assert not undeclared, (
        f"{name}: the terms {undeclared} change with voxels outside the scan: leave "
        "cells out where View.valid is False, or say in sees_padding why not."
    )
    honest = sorted((set(cls.sees_padding) & set(plain)) - moved)
    assert not honest, (
        f"{name}: the terms {honest} do not change with voxels outside the scan: take "
        "them out of sees_padding."
    )


def constructed_locally(name: str) -> Method:
    """The method of its cpu recipe on a network whose cells see only themselves."""
    cls = METHODS.get(name)
    usual = cls.Config()
    sizes = [
        f.name for f in dataclasses.fields(usual)
        if "size" in f.name and isinstance(getattr(usual, f.name), tuple)
    ]  # fmt: skip
    settings = dict(cls.RECIPES["cpu"].get("method", {})) | dict.fromkeys(sizes, SIZE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(LocalBackbone(), from_dict(cls.Config, settings))


def half_of(views: Views, rank: int) -> Views:
    """The samples of one of two processes."""

    def half(view: View) -> View:
        parts = {
            f.name: value.chunk(2)[rank]
            for f in dataclasses.fields(View)
            if (value := getattr(view, f.name)) is not None
        }
        return View(**parts)

    return Views({name: half(view) for name, view in views.items()})


def two_steps(method: Method, batches: list[Views]) -> dict[str, Any]:
    """Terms of the second of two steps, and the gradient of those of whole batches."""
    method.losses(batches[0], 0.5)
    method.after_step(0.55)
    terms = method.losses(batches[1], 0.6)
    shared = [value for term, value in terms.items() if term not in method.per_rank]
    gradients = {}
    if shared:
        torch.stack(shared).sum().backward()
        gradients = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
    return {"terms": {k: v.detach() for k, v in terms.items()}, "gradients": gradients}


def wholly_inside(views: Views) -> Views:
    """As if no view looked outside: means over what is shown then have equal counts."""
    return Views(
        {
            name: dataclasses.replace(view, valid=torch.ones_like(view.valid))
            for name, view in views.items()
        }
    )


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_one(
    name: str, feeds: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = METHODS.get(name)
    methods = [construct(name) for _ in range(3)]
    feed = feeds.of(methods[0], 4)
    batches = [wholly_inside(views_of(feed, step)) for step in range(2)]
    whole = two_steps(methods.pop(), batches)
    first, second = on_two_ranks(
        monkeypatch,
        lambda r: two_steps(methods[r], [half_of(views, r) for views in batches]),
    )
    differing = {
        term for term, value in whole["terms"].items()
        if not torch.allclose(
            (first["terms"][term] + second["terms"][term]) / 2, value,
            rtol=1e-4, atol=1e-6,
        )
    }  # fmt: skip
    undeclared = sorted(differing - set(cls.per_rank))
    assert not undeclared, (
        f"{name}: the terms {undeclared} of two processes are not those of one with "
        "all samples: gather what they compare (homolog.distributed), or say in "
        "per_rank why each process is by itself."
    )
    for parameter, gradient in whole["gradients"].items():
        if gradient is None:
            continue
        mean = (first["gradients"][parameter] + second["gradients"][parameter]) / 2
        off = (mean - gradient).norm() / gradient.norm().clamp_min(1e-4)
        assert off < 1e-2, (
            f"{name}: the gradient of {parameter} over two processes is not that of "
            "one with all samples: gather with a gradient "
            "(homolog.distributed.gather_rows_with_gradient), or say in per_rank why "
            "each process is by itself."
        )
    agreeing = sorted((set(cls.per_rank) & set(whole["terms"])) - differing)
    assert not agreeing, (
        f"{name}: the terms {agreeing} of two processes are those of one: take them "
        "out of per_rank."
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", ["cpu", "gpu", "paper"])
def test_every_recipe_can_be_read(name: str, recipe: str) -> None:
    cls = METHODS.get(name)
    assert recipe in cls.RECIPES, (
        f"{name} has no recipe {recipe!r}: add it to RECIPES; cpu trains in an hour "
        "on two cores, gpu on one GPU, paper is as published."
    )
    _read_recipe(cls, recipe)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_of_its_own_can_be_read_too(name: str) -> None:
    cls = METHODS.get(name)
    for recipe in set(cls.RECIPES) - {"cpu", "gpu", "paper"}:
        _read_recipe(cls, recipe)


def _read_recipe(cls: type[Method], recipe: str) -> None:
    name, parts = cls.__name__, cls.RECIPES[recipe]
    assert set(parts) == {"method", "backbone", "training"}, (
        f"{name}: the recipe {recipe} must have the keys method, backbone and "
        f"training, and has {sorted(parts)}."
    )
    config = from_dict(cls.Config, parts["method"], where=recipe)
    from_dict(TrainingConfig, parts["training"], where=recipe)
    overrides = dict(parts["backbone"])
    backbone = BACKBONES.get(overrides.pop("name"))
    cls(backbone(from_dict(backbone.Config, overrides, where=recipe)), config)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_names_itself_and_its_paper(name: str) -> None:
    cls = METHODS.get(name)
    assert cls.title, f"{name} needs a title: its name in lists and forms."
    assert cls.paper, f"{name} needs paper: the citation in one line."
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    for line, what in (
        ("Source:", "the paper (and equations) that it follows"),
        ("Differs from the paper:", "each departure and why; or 'in nothing'"),
    ):
        said = [part.partition(line)[2] for part in text.splitlines() if line in part]
        assert any(word.strip() for word in said), (
            f"{name}: the docstring of {cls.__name__} needs a line '{line}' with "
            f"{what}."
        )
    assert dataclasses.is_dataclass(cls.Config), (
        f"{name}: Config must be a frozen dataclass of option() fields."
    )
    plain = [f.name for f in dataclasses.fields(cls.Config) if not f.metadata["help"]]
    assert not plain, (
        f"{name}: the settings {plain} have no help; declare them with "
        "homolog.config.option(default, help)."
    )
    for declared in (cls.per_rank, cls.sees_padding):
        assert all(declared.values()), (
            f"{name}: every term in per_rank and sees_padding needs its reason."
        )
