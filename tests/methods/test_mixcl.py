"""MixCL: M-T10, M-T12, and that names of labels say nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.config import from_dict
from homolog.feed.batches import Feed
from homolog.feed.partners import SameDataset
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.methods.mixcl import Levels, MixCL, MixCLConfig, tissue_weights
from homolog.views.view import View, Views
from memory_store import MemoryStore

SIZE = (32, 32, 32)
SMALL = {"size": SIZE, "levels": [2, 4], "identity_voxels": 512, "per_class": 16}


def method_of(backbone: Backbone, **settings: object) -> MixCL:
    torch.manual_seed(0)
    return MixCL(backbone, from_dict(MixCLConfig, {**SMALL, **settings}))


def scans(names: dict[int, int] | None = None, count: int = 4) -> list[CaseRef]:
    """Bright shells around bright balls: labels 1 and 2, or as renamed."""
    store = MemoryStore()
    rng = np.random.default_rng(0)
    grid = np.indices((40, 40, 40)).astype(np.float64)
    for _ in range(count):
        centre = rng.uniform(15, 25, 3)[:, None, None, None]
        radius = np.sqrt(((grid - centre) ** 2).sum(0))
        labels = np.where(radius < 7, 1, np.where(radius < 12, 2, 0))
        image = (
            250 * (labels == 1) + 120 * (labels == 2) + rng.normal(0, 60, radius.shape)
        )
        if names is not None:
            labels = np.vectorize({0: 0, **names}.get)(labels)
        store.add(np.rint(image)[None].astype(np.int16), Affine.of((1.0,) * 3), labels)
    return [CaseRef(store, card) for card in store.cards]  # type: ignore[arg-type]


def views_of(method: MixCL, cases: list[CaseRef], step: int = 0) -> Views:
    feed = Feed(
        cases, method.views(), batch_size=2, seed=0, threads=0,
        partners=SameDataset(cases, 0.5),
    )  # fmt: skip
    return feed.views(feed.batch(step), "cpu")


def with_view(views: Views, name: str, **changes: Tensor | None) -> Views:
    groups = {k: views[k] for k in views}
    groups[name] = dataclasses.replace(groups[name], **changes)
    return Views(groups)


@pytest.fixture
def method(small_backbone: Callable[..., Backbone]) -> MixCL:
    return method_of(small_backbone())


def test_m_t10_unchanged_views_agree_and_a_flip_costs(
    small_backbone: Callable[..., Backbone],
) -> None:
    method = method_of(small_backbone(), intensity_probability=0.0)
    views = views_of(method, scans())
    assert torch.equal(views["first"].image, views["second"].image)
    method.losses(views, 0.0)
    assert method.monitors()["correlation"] == pytest.approx(1.0, abs=1e-4)
    aligned = method._raw["raw_identity"]
    flipped = with_view(views, "second", image=views["second"].image.flip(-1))
    method.losses(flipped, 0.0)
    assert method._raw["raw_identity"] > 1.5 * aligned
    assert method._raw["correlation"] < 0.9


def test_m_t12_gradients_reach_what_they_should(method: MixCL) -> None:
    """Paper: MixCL Eq. 3."""
    losses = method.losses(views_of(method, scans()), 0.0)
    decoder = list(method.decoder.parameters())
    encoder = list(method.backbone.parameters())
    heads = list(method.projectors.parameters())

    def strength(term: str, weights: list[Tensor]) -> float:
        found = torch.autograd.grad(
            losses[term], weights, retain_graph=True, allow_unused=True
        )
        return sum(float(g.abs().sum()) for g in found if g is not None)

    for term in ("identity", "label", "reconstruction"):
        assert strength(term, encoder) > 0
    assert strength("identity", heads) > 0
    assert strength("label", heads) > 0
    assert strength("reconstruction", heads) == 0
    assert strength("reconstruction", decoder) > 0
    assert strength("identity", decoder) == strength("label", decoder) == 0


def test_gradients_of_the_terms_are_measured_on_their_way(method: MixCL) -> None:
    views = views_of(method, scans())
    forward, maps = method.backbone.maps, []

    def cut(image: Tensor) -> tuple[Tensor, ...]:  # no map depends on another
        maps.extend(m.detach().requires_grad_() for m in forward(image))
        return tuple(maps)

    method.backbone.maps = cut  # type: ignore[method-assign]
    losses = method.losses(views, 0.0)
    expected = {}
    for name, loss in losses.items():
        parts = torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
        square = sum(float(g.square().sum()) for g in parts if g is not None)
        expected[f"gradient_{name}"] = square**0.5
    method._meter.reset()
    torch.stack(list(losses.values())).sum().backward()
    found = method.monitors()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4), name


def test_renamed_and_reordered_labels_change_nothing(
    small_backbone: Callable[..., Backbone],
) -> None:
    terms = []
    for names in (None, {1: 2, 2: 1}, {1: 117, 2: 4}):
        method = method_of(small_backbone())
        losses = method.losses(views_of(method, scans(names)), 0.0)
        assert losses["label"] > 0
        terms.append(torch.stack(list(losses.values())))
    assert torch.equal(terms[0], terms[1])
    assert torch.equal(terms[0], terms[2])


def test_scans_without_labels_learn_from_the_other_terms(method: MixCL) -> None:
    """Paper: MixCL Table 2."""
    cases = scans()
    store: MemoryStore = cases[0].store  # type: ignore[assignment]
    store.labels.clear()
    losses = method.losses(views_of(method, cases), 0.0)
    assert losses["label"].item() == 0.0
    assert losses["identity"] > 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(
        torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None
    )


def test_voxels_of_other_data_sets_are_no_pairs(method: MixCL) -> None:
    views = views_of(method, scans())
    together = method.losses(views, 0.0)["label"]
    spaces = torch.tensor([0, 1])
    apart = views
    for name in ("crop", "other"):
        apart = with_view(apart, name, label_space=spaces)
    assert not torch.isclose(method.losses(apart, 0.0)["label"], together)
    one = with_view(views, "crop", label_space=torch.tensor([7, 7]))
    assert method.losses(one, 0.0)["label"].item() == 0.0


def test_the_paper_s_preset_sums(small_backbone: Callable[..., Backbone]) -> None:
    """Paper: MixCL Eq. 2; MixCL 3.1, training."""
    views = views_of(method_of(small_backbone()), scans())
    mean, total = (
        method_of(small_backbone(), sums=sums, weight_label=1.0)
        for sums in (False, True)
    )
    mean.losses(views, 0.0)
    total.losses(views, 0.0)
    voxels = views["crop"].valid[0].sum()
    if views["crop"].valid.all() and views["other"].valid.all():
        ratio = total._raw["raw_reconstruction"] / mean._raw["raw_reconstruction"]
        assert ratio.item() == pytest.approx(float(voxels), rel=1e-4)
    assert total._raw["raw_identity"] > 20 * mean._raw["raw_identity"]
    torch.testing.assert_close(total._raw["raw_label"], mean._raw["raw_label"])


def test_a_vit_is_read_at_unetr_s_scales() -> None:
    """Paper: MixCL network; MixCL levels."""
    settings = {"image_size": [16, 16, 16], "patch": [8, 8, 8], "hidden": 12,
                "inner": 24, "layers": 4, "heads": 2}  # fmt: skip
    backbone = build("vit", settings)
    levels = Levels(backbone, [2, 4, 8])
    maps = backbone.maps(torch.randn(1, 1, 16, 16, 16))
    found = levels(maps)
    assert {k: tuple(v.shape[1:]) for k, v in found.items()} == {
        2: (32, 8, 8, 8), 4: (64, 4, 4, 4), 8: (12, 2, 2, 2),
    }  # fmt: skip
    assert levels.channels == {2: 32, 4: 64, 8: 12}
    assert found[8] is maps[-1]
    method = method_of(backbone, size=[16, 16, 16], levels=[2, 4, 8])
    assert method.label_stride == 2
    assert method.encoder() is backbone


def test_half_of_the_weight_lies_on_bright_cells() -> None:
    image = torch.tensor([[0.0, 0, 0, 0, 0, 0, 5, 6, -9]])
    valid = torch.tensor([[True] * 8 + [False]])
    weight = tissue_weights(image, valid)
    assert weight[0, 6:8].sum() == pytest.approx(1.0)
    assert weight[0, :6].sum() == pytest.approx(1.0)
    assert weight[0, 8] == 0


def test_it_learns_labels_and_views(small_backbone: Callable[..., Backbone]) -> None:
    """Paper: MixCL Eq. 1."""
    method = method_of(small_backbone(), weight_label=1.0)
    cases = scans()
    batches = [views_of(method, cases, step) for step in range(4)]
    optimiser = torch.optim.AdamW(method.parameters(), 3e-3)
    history = []
    for step in range(28):  # identity ends at 0.70, label 0.19, reconstruction 0.05
        losses = method.losses(batches[step % 4], step / 28)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        history.append({k: v.item() for k, v in losses.items()})

    def mean(name: str, rows: list[dict[str, float]]) -> float:
        return float(np.mean([row[name] for row in rows]))

    for name in history[0]:
        assert mean(name, history[-4:]) < 0.8 * mean(name, history[:4]), name
    assert method.monitors()["voxels_rank"] > 3


def test_views_without_labels_are_refused(method: MixCL) -> None:
    views = views_of(method, scans())
    view: View = views["crop"]
    with pytest.raises(ValueError, match="labels, depths and label spaces"):
        method.losses(with_view(views, "crop", label=None, depth=view.depth), 0.0)


def test_it_says_which_labels_teach_nothing() -> None:
    backbone = build("resunet", {"channels": [4, 8, 8]})
    plain = method_of(backbone)
    assert plain.remarks({"a": 2, "b": 4}) == []
    (sentence,) = plain.remarks({"liver": 1, "b": 4})
    assert "labels of liver" in sentence
    assert "background_negative=true" in sentence
    told = method_of(backbone, background_negative=True)
    assert told.remarks({"liver": 1}) == []
    assert "no scan has labels" in told.remarks({"a": 0, "b": 0})[0]
