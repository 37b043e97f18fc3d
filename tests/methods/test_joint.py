"""Joint: proof tests J-T1 to J-T3, J-T10, J-T11, J-T13, its stages and its feed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from each import each
from homolog.backbones import build
from homolog.config import ConfigError, from_dict
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.losses.assignment import swapped_prediction
from homolog.losses.similarity import hidden_feature_error
from homolog.methods.joint import Joint
from homolog.methods.joint import JointConfig as Config
from homolog.pretrain.job import groups_of
from homolog.training.config import TrainingConfig
from homolog.training.stepping import build_optimiser, set_learning_rate
from homolog.views.view import View, Views

SMALL = {"size": [8, 32, 32], "slice_size": [1, 32, 32], "small_size": [1, 16, 16]}


def make(norm: str = "group", **settings: Any) -> Joint:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        overrides = {**dict(Joint.RECIPES["cpu"]["backbone"]), "norm": norm}
        backbone = build(overrides.pop("name"), overrides)
        return Joint(backbone, from_dict(Config, {**SMALL, **settings}))


def noise(method: Joint, *names: str, batch: int = 3, seed: int = 0) -> Views:
    """Views of noise, of the groups named."""
    generator = torch.Generator().manual_seed(seed)
    groups = {}
    for name in names:
        spec = method.views()[name]
        shape = (batch, spec.count)
        affine = torch.eye(4, dtype=torch.float64).repeat(*shape, 1, 1)
        affine[..., 0, 3] = torch.arange(batch)[:, None]
        groups[name] = View(
            image=torch.randn(*shape, 1, *spec.size, generator=generator),
            affine=affine,
            valid=torch.ones(*shape, *spec.size, dtype=torch.bool),
            case=torch.arange(batch),
            modality=torch.arange(batch) % 2,
        )
    return Views(groups)


def replaced(views: Views, name: str, image: Tensor) -> Views:
    return Views({**views, name: dataclasses.replace(views[name], image=image)})


def test_j_t1_the_loss_predicts_the_code_of_the_other_view() -> None:
    """Paper: Joint Eq. 1."""
    generator = torch.Generator().manual_seed(3)
    scores = [torch.randn(5, 7, generator=generator).double() for _ in range(2)]
    codes = {}
    for view, first in ((0, 1), (1, 4)):
        codes[view] = torch.zeros(5, 7).double()
        codes[view][:, first] = 1
    s, t = (torch.log_softmax(x / 0.1, 1) for x in scores)
    swapped = -(t[:, 1] + s[:, 4]).mean() / 2  # the mean of the two terms of Eq. 3
    torch.testing.assert_close(swapped_prediction(scores, codes, 0.1), swapped)
    straight = -(s[:, 1] + t[:, 4]).mean() / 2
    assert abs(float(swapped - straight)) > 0.1
    for number in range(2):
        leaf = [x.clone().requires_grad_(i == number) for i, x in enumerate(scores)]
        swapped_prediction(leaf, codes, 0.1).backward()
        other = {1 - number: codes[1 - number]}
        again = [x.clone().requires_grad_(i == number) for i, x in enumerate(scores)]
        swapped_prediction(again, other, 0.1).backward()
        # only the other view's code moves a view; one term instead of the mean of two
        grad, alone = leaf[number].grad, again[number].grad
        assert grad is not None
        assert alone is not None
        torch.testing.assert_close(grad, alone / 2)


@pytest.mark.parametrize("name", ["slices", "volumes"])
def test_j_t2_order_of_views_and_of_samples_is_no_matter(name: str) -> None:
    """Paper: Joint Eq. 11."""
    method = make(small_count=0, queue_length=0, queue_volumes=0)
    views = noise(method, name, batch=6)
    image = views[name].image
    first = method.losses(views, 0.3)[name]
    other = method.losses(replaced(views, name, image.flip(1)), 0.3)[name]
    torch.testing.assert_close(first, other, rtol=1e-5, atol=1e-6)
    mixed = image[torch.tensor([3, 1, 5, 0, 4, 2])]
    other = method.losses(replaced(views, name, mixed), 0.3)[name]
    torch.testing.assert_close(first, other, rtol=1e-5, atol=1e-6)


def test_j_t3_uniform_predictions_cost_ln_k() -> None:
    codes = {0: torch.rand(4, 9).softmax(1), 1: torch.rand(4, 9).softmax(1)}
    loss = swapped_prediction([torch.zeros(4, 9)] * 2, codes, 0.1)
    assert float(loss) == pytest.approx(math.log(9), rel=1e-6)


def test_j_t10_a_masked_slice_is_predicted_from_the_others() -> None:
    """Paper: Joint Eq. 13, 14; Joint Eq. 15."""
    method = make()
    net = method.backbone
    seen = torch.randn(2, 10, net.described)
    hidden = torch.zeros(2, 10, dtype=torch.bool)
    hidden[:, 4] = True

    def told(features: Tensor) -> Tensor:
        shown = torch.where(hidden[..., None], method.masked, features)
        return method.decode(net.between(shown))

    changed = seen.clone()
    changed[:, 4] += 3
    assert torch.equal(told(seen), told(changed))
    prediction = told(seen)
    loss = hidden_feature_error(prediction, seen, hidden)
    elsewhere = seen.clone()
    elsewhere[:, 7] += 3  # the target of a slice that was not masked
    assert torch.equal(hidden_feature_error(prediction, elsewhere, hidden), loss)
    assert float(hidden_feature_error(seen, seen, hidden)) == 0
    assert float(hidden_feature_error(seen, seen, hidden, literal=True)) == 0
    distance = (prediction - seen)[hidden].norm(dim=-1)
    torch.testing.assert_close(loss, distance.square().mean())
    torch.testing.assert_close(
        hidden_feature_error(prediction, seen, hidden, literal=True), distance.sum()
    )


def test_j_t10_the_2d_network_rests_while_slices_are_masked() -> None:
    method = make(norm="batch")
    before = {n: b.clone() for n, b in method.backbone.intra.named_buffers()}
    method.losses(noise(method, "masked"), 0.5)["masked"].backward()
    assert all(p.grad is None for p in method.backbone.intra.parameters())
    after = dict(method.backbone.intra.named_buffers())
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert method.backbone.intra.bn1.training  # and goes on afterwards
    learning = (method.masked, method.decode.weight, method.backbone.narrow[0].weight)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)
    assert all(p.grad is None for p in method.projector.parameters())


@each("slices, count", [(8, 1), (16, 2), (4, 1), (26, 3)])
def test_j_t10_a_tenth_of_the_slices_is_masked(
    slices: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paper: Joint Eq. 13, 14."""
    from homolog.methods import joint

    seen = []

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(args[2])
        return hidden_feature_error(*args, **kwargs)

    monkeypatch.setattr(joint, "hidden_feature_error", watched)
    method = make(size=[slices, 32, 32])
    method.losses(noise(method, "masked"), 0.5)
    assert (seen[0].sum(1) == count).all()


def test_j_t11_a_volume_is_a_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paper: Joint Eq. 10."""
    method = make(queue_volumes=0).double()
    views = noise(method, "volumes", batch=4)
    views = replaced(views, "volumes", views["volumes"].image.double())
    between = method.backbone.between
    first = method.losses(views, 0.9)["volumes"]
    lengths = method._watched["volumes"].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    monkeypatch.setattr(method.backbone, "between", lambda x: 7.5 * between(x))
    second = method.losses(views, 0.9)["volumes"]
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_j_t13_an_image_is_a_volume_of_one_slice() -> None:
    """Paper: Joint network."""
    net = make().backbone
    image = torch.randn(2, 1, 1, 32, 32)
    maps = net(image)
    flat = net.intra(image[:, :, 0])
    for deep, plain in zip(maps, flat, strict=False):
        torch.testing.assert_close(deep[:, :, 0], plain)
    assert maps[-1].shape[1] == net.config.dim
    assert all(m.isfinite().all() for m in maps)


def test_the_last_map_knows_the_other_slices_and_the_others_do_not() -> None:
    """Paper: Joint Eq. 9."""
    net = make().backbone.eval()
    image = torch.randn(1, 1, 8, 32, 32)
    other = image.clone()
    other[:, :, 5] += 1
    with torch.no_grad():
        first, second = net(image), net(other)
    kept = [i for i in range(8) if i != 5]
    for a, b in zip(first[:-1], second[:-1], strict=True):
        torch.testing.assert_close(a[:, :, kept], b[:, :, kept])
    assert not torch.allclose(first[-1][:, :, 0], second[-1][:, :, 0], atol=1e-6)


def test_slices_made_in_parts_give_the_same_gradient() -> None:
    nets = []
    for at_once in (0, 3):
        method = make()
        net = build(
            "hybrid", {**vars(method.backbone.config), "slices_at_once": at_once}
        )
        net.load_state_dict(method.backbone.state_dict())
        nets.append(net.train())
    image = torch.randn(2, 1, 4, 32, 32)
    for net in nets:
        net(image)[-1].square().sum().backward()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_stages_follow_each_other_in_the_feed(phantom_store: Any) -> None:
    """Paper: Joint Eq. 5."""
    method = make(share_slices=0.5, share_masked=0.25, share_volumes=0.25)
    cases = [CaseRef(phantom_store, card) for card in phantom_store.cards]
    feed = Feed(
        cases, method.views(), batch_size=8, seed=0, threads=0, phases=method.phases()
    )
    groups = [
        (tuple(feed.views(batch, "cpu")), len(batch.ids)) for batch in feed.stream(0, 8)
    ]
    expected = [(("slices", "small"), 8)] * 4
    expected += [(("masked",), 4)] * 2 + [(("volumes",), 4)] * 2
    assert groups == expected
    # what a step sees does not depend on where the session began
    again = next(iter(feed.stream(6, 8)))
    (views, whole) = (feed.views(b, "cpu") for b in (again, feed.batch(6, 6 / 8)))
    assert torch.equal(views["volumes"].image, whole["volumes"].image)


def test_each_stage_gives_its_own_term_and_begins_with_rest() -> None:
    """Paper: Joint Eq. 12."""
    method = make(share_slices=0.5, share_masked=0.25, share_volumes=0.25, freeze=0.1)
    for names, progress in (
        (("slices", "small"), 0.1), (("masked",), 0.6), (("volumes",), 0.9),
    ):  # fmt: skip
        assert set(method.losses(noise(method, *names), progress)) == {names[0]}
    for progress, moves in ((0.76, False), (0.9, True)):
        method.zero_grad()
        method.losses(noise(method, "volumes"), progress)["volumes"].backward()
        assert method.volumes is not None
        assert method.volumes.online is not None
        assert (method.volumes.online.weight.grad is not None) == moves


def test_without_volumes_only_slices_are_learnt() -> None:
    @dataclasses.dataclass
    class Card:
        shape: tuple[int, int, int]

    @dataclasses.dataclass
    class Case:
        card: Card

    settings = dataclasses.asdict(Config())
    flat: Any = [Case(Card((1, 64, 64)))]
    found = Joint.settled(settings, flat)
    assert (found["share_slices"], found["share_volumes"]) == (1.0, 0.0)
    mixed: Any = [*flat, Case(Card((20, 64, 64)))]
    assert Joint.settled(settings, mixed) == settings
    method = make(
        share_slices=1.0, share_masked=0.0, share_volumes=0.0, size=[1, 32, 32]
    )
    assert list(method.views()) == ["slices", "small"]


def test_the_ablations_leave_a_stage_out() -> None:
    """Paper: Joint Table 7."""
    for left_out in ("masked", "volumes", "slices"):
        method = make(**{f"share_{left_out}": 0.0})
        assert left_out not in [p.groups[0] for p in method.phases()]
        assert left_out not in method.views()
        assert sum(p.share for p in method.phases()) == pytest.approx(1)


def test_wrong_settings_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="hybrid"):
        Joint(build("resunet", {}), Config())
    with pytest.raises(ConfigError, match="two slices or more"):
        make(size=[1, 32, 32])
    with pytest.raises(ConfigError, match="needs a stage"):
        make(share_slices=0.0, share_masked=0.0, share_volumes=0.0)


def test_clusters_of_slices_and_modalities_are_counted() -> None:
    method = make()
    views = noise(method, "slices", "small", batch=8)
    method.losses(views, 0.3)
    method.after_step(0.3)
    assert float(method.seen.sum()) == 8
    assert method.seen[:2].sum(1).tolist() == [4, 4]
    assert 0 <= float(method.monitors()["information"]) <= 1


def test_monitors_tell_of_the_last_step_alone() -> None:
    method = make()
    method.losses(noise(method, "slices", "small"), 0.1)
    method.after_step(0.1)
    assert "slices_std" in method.monitors()
    method.losses(noise(method, "masked"), 0.5)
    method.after_step(0.5)
    assert set(method.monitors()) == {"explained"}


def test_each_stage_has_a_course_of_its_own() -> None:
    """Paper: Joint stages."""
    recipe = Joint.RECIPES["paper"]["training"]
    assert recipe["optimizer"] == "larc"
    plan = from_dict(TrainingConfig, {**recipe, "steps": 300, "warmup_steps": 3})
    method = make(share_slices=0.5, share_masked=0.25, share_volumes=0.25)
    optimiser = build_optimiser(method, plan, groups_of(method, plan))
    rates = [set_learning_rate(optimiser, s, 300, plan) for s in range(300)]
    peak = plan.learning_rate
    assert [s for s, rate in enumerate(rates) if rate == peak] == [3, 153, 228]
    assert all(rates[end - 1] < 0.01 * peak for end in (150, 225, 300))
    once = dataclasses.replace(plan, restarts=False)
    plain = build_optimiser(method, once, groups_of(method, once))
    assert set_learning_rate(plain, 153, 300, once) < 0.6 * peak


def test_e_t12_it_learns_one_batch_by_heart() -> None:
    method = make(queue_length=0, queue_volumes=0, prototypes=8, prototypes_volumes=8)
    groups = ("volumes", "masked", "slices", "small")
    views = noise(method, *groups, batch=8)
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(8, 1, 2, 6, 6, generator=generator)
    for name in groups:  # blobs of its own in every sample, alike in its views
        image = views[name].image
        size = tuple(image.shape[-3:])
        blobs = torch.nn.functional.interpolate(coarse, size, mode="nearest")
        views = replaced(views, name, 2 * blobs[:, None] + 0.2 * image)
    optimiser = torch.optim.AdamW(method.parameters(), 1e-3)
    first: dict[str, float] = {}
    for step in range(60):
        terms = method.losses(views, max(0.1, step / 60))
        first = first or {k: v.item() for k, v in terms.items()}
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        method.after_step(step / 60)
    last = {k: v.item() for k, v in terms.items()}
    assert last["slices"] < 0.7 * math.log(8)
    assert last["volumes"] < 0.8 * math.log(8)
    assert last["masked"] < 0.5 * first["masked"]
    found = {k: float(v) for k, v in method.monitors().items()}
    assert found["slices_std"] > 0.3
    assert found["volumes_std"] > 0.1
