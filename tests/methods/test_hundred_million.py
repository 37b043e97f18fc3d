"""Hundred Million: H-T6 to H-T8, turns of modalities, what it reads off the stores."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from homolog.backbones import build
from homolog.config import from_dict, to_dict
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.methods.hundred_million import HundredMillion, HundredMillionConfig
from homolog.nn.memory_bank import Clustering, shared_information
from homolog.views.view import Views
from memory_store import MemoryStore

SMALL = {
    "size": [1, 32, 32], "small_size": [1, 16, 16], "dim": 8, "hidden": 16,
    "queue_length": 0, "prototypes": 6, "freeze": 0.0,
}  # fmt: skip


def corpus(modalities: str = "XCXXC", targets: dict[int, str] | None = None):
    """One slice per letter, X brighter than C; some with a class."""
    store = MemoryStore()
    rng = np.random.default_rng(0)
    for letter in modalities:
        image = rng.normal(400 if letter == "X" else 0, 100, (1, 1, 48, 48))
        store.add(np.rint(image).astype(np.int16), Affine.of((1.0,) * 3))
    cases = []
    for number, (letter, card) in enumerate(zip(modalities, store.cards, strict=True)):
        known = dataclasses.replace(
            card, modality={"X": "XR", "C": "CT"}[letter],
            target=(targets or {}).get(number),
        )  # fmt: skip
        cases.append(CaseRef(store, known))  # type: ignore[arg-type]
    return cases


def method_of(cases: list[CaseRef], **settings: object) -> HundredMillion:
    asked = to_dict(from_dict(HundredMillionConfig, {**SMALL, **settings}))
    config = from_dict(HundredMillionConfig, HundredMillion.settled(asked, cases))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = {"widths": [8, 16], "stage_blocks": [1, 1], "norm": "group"}
        return HundredMillion(build("resnet2d", net), config)


def numbers(names: Any, values: list[str | None]) -> list[int] | None:
    return [list(names).index(v) if v in names else -1 for v in values] or None


def vectors_of(method: HundredMillion, images: Tensor) -> Tensor:
    """(B, V, C, D, H, W) -> (B, V, E), means of the deepest map."""
    deepest = method.backbone.maps(images.flatten(0, 1))[-1]
    return deepest.mean((2, 3, 4)).unflatten(0, images.shape[:2])


def views_of(method: HundredMillion, cases: list[CaseRef], batch: int = 6) -> Views:
    feed = Feed(
        cases, method.views(), batch_size=batch, seed=0, threads=0,
        turns=numbers(method.turns(), [c.card.modality for c in cases])
        if method.turns() else None,
        targets=method.targets(cases),
    )  # fmt: skip
    return feed.views(feed.batch(0), "cpu")


def test_modalities_take_turns_and_classes_come_with_the_views() -> None:
    """Paper: Hundred Million Eq. 4."""
    cases = corpus(targets={0: "ill", 1: "well", 4: "ill"})
    assert method_of(corpus("XXXXC")).config.modalities == ("XR",)  # one CT: no turn
    method = method_of(cases, modalities=["CT", "XR"])
    assert method.turns() == ("CT", "XR")
    assert method.classes is not None
    assert method.classes.names == ("ill", "well")
    views = views_of(method, cases)
    case = views["large"].case.tolist()
    assert [cases[k].card.modality for k in case] == ["CT", "XR"] * 3
    expected = [{"ill": 0, "well": 1}.get(cases[k].card.target or "", -1) for k in case]
    assert views["large"].target.tolist() == expected
    assert -1 in expected


def test_energies_of_bands_are_measured_in_the_stores() -> None:
    config = method_of(corpus()).config
    assert len(config.bands_mean) == len(config.bands_sigmas) + 1
    # white noise: ever less energy in ever coarser bands, the same in every scan
    energies = config.bands_mean[1:]
    assert list(energies) == sorted(energies, reverse=True)
    assert all(
        0 < s < 0.2 * m
        for m, s in zip(config.bands_mean, config.bands_std, strict=True)
    )
    kept = method_of(corpus(), bands_mean=[1.0] * 5, bands_std=[0.1] * 5).config
    assert kept.bands_mean == (1.0,) * 5
    assert method_of(corpus(), bands_probability=0.0).config.bands_mean == ()


def test_h_t7_one_modality_is_plain_clustering() -> None:
    cases = corpus("XXXX")
    method = method_of(cases)
    assert method.turns() == ()
    views = views_of(method, cases)
    loss = method.losses(views, 0.5)
    assert list(loss) == ["clusters"]
    plain = Clustering(8, 6)
    plain.load_state_dict(method.clusterings[0].state_dict())
    with torch.no_grad():
        features = [
            f
            for name in views
            for f in method.projected(vectors_of(method, views[name].image)).unbind(1)
        ]
        torch.testing.assert_close(loss["clusters"].detach(), plain(features))


def test_h_t7_a_modality_knows_nothing_of_the_other() -> None:
    """Paper: Hundred Million Eq. 4."""
    cases = corpus("XC" * 4)
    method = method_of(cases)
    views = views_of(method, cases)
    first, second = method.clusterings

    def codes(which: int, views: Views) -> Tensor:
        features = method.projected(vectors_of(method, views["large"].image))[:, 0]
        return method.clusterings[
            which
        ]._codes(  # type: ignore[operator, no-any-return]
            0, features[which::2] @ method.clusterings[which].weight.mT, True
        )

    before = codes(0, views).detach()
    image = views["large"].image.clone()
    image[1::2] = torch.randn_like(image[1::2])  # the other modality's samples
    other = Views({**views, "large": dataclasses.replace(views["large"], image=image)})
    torch.testing.assert_close(codes(0, other).detach(), before)
    assert not torch.allclose(codes(1, other), codes(1, views))
    vectors = [
        method.projected(vectors_of(method, views[n].image)).detach() for n in views
    ]
    own = [v for vector in vectors for v in vector[0::2].unbind(1)]
    first(own).backward()
    assert first.weight.grad is not None
    assert second.weight.grad is None


def test_h_t7_names_of_modalities_say_nothing() -> None:
    cases = corpus("XC" * 4)
    method = method_of(cases)
    views = views_of(method, cases)
    loss = method.losses(views, 0.5)["clusters"]
    method.clusterings = torch.nn.ModuleList(reversed(method.clusterings))
    order = torch.tensor([1, 0, 3, 2, 5, 4])
    turned = Views(
        {n: dataclasses.replace(v, image=v.image[order]) for n, v in views.items()}
    )
    torch.testing.assert_close(method.losses(turned, 0.5)["clusters"], loss)


def test_h_t8_labels_add_a_term_of_their_own_and_only_that() -> None:
    """Paper: Hundred Million Eq. 5 to 7."""
    cases = corpus("XXXXXX", {0: "ill", 1: "well", 2: "ill"})
    method = method_of(cases, weight_clusters=2.0)
    views = views_of(method, cases)
    losses = method.losses(views, 0.5)
    without = method_of(corpus("XXXXXX"), weight_clusters=2.0)
    without.load_state_dict(method.state_dict(), strict=False)
    plain = without.losses(views_of(without, corpus("XXXXXX")), 0.5)
    assert list(plain) == ["clusters"]
    torch.testing.assert_close(plain["clusters"], losses["clusters"])
    # without the clusters it is supervised training on the labelled samples
    # with the averages as the first step found them
    method.eval()
    only = method_of(cases, weight_clusters=0.0).eval()
    only.load_state_dict(method.state_dict())
    torch.stack(list(only.losses(views, 0.5).values())).sum().backward()
    target = views["large"].target
    assert target is not None
    pooled = vectors_of(method, views["large"].image)[target >= 0]
    assert method.classes is not None
    even = torch.nn.functional.layer_norm(pooled, pooled.shape[-1:])
    scores = method.classes.linear(method.classes.standard(even))
    expected = torch.stack(
        [
            torch.nn.functional.cross_entropy(scores[:, k], target[target >= 0])
            for k in range(2)
        ]
    ).mean()
    torch.testing.assert_close(losses["classes"], expected)
    expected.backward()
    own = only.backbone.parameters()
    for a, b in zip(method.backbone.parameters(), own, strict=True):
        assert a.grad is not None
        torch.testing.assert_close(b.grad, a.grad, atol=1e-6, rtol=1e-4)


def test_h_t8_a_batch_without_labels_costs_nothing() -> None:
    cases = corpus("XXXXXX", {0: "ill", 1: "well"})
    method = method_of(cases)
    views = views_of(method, cases)
    none = torch.full((6,), -1)
    views = Views({n: dataclasses.replace(v, target=none) for n, v in views.items()})
    assert float(method.losses(views, 0.5)["classes"].detach()) == 0.0


def test_strict_divides_by_the_whole_batch() -> None:
    """Paper: Hundred Million Eq. 5 to 7."""
    cases = corpus("XXXXXX", {0: "ill", 1: "well"})
    method, strict = method_of(cases), method_of(cases, strict=True)
    views = views_of(method, cases)
    a, b = (m.losses(views, 0.5)["classes"] for m in (method, strict))
    torch.testing.assert_close(b * 6, a * 2)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    cases = corpus("XC" * 4)
    method = method_of(cases)
    with pytest.raises(ValueError, match="5 samples cannot be shared by 2"):
        method.losses(views_of(method, cases, batch=5), 0.5)


def test_information_is_0_of_nothing_and_1_of_all() -> None:
    even = torch.ones(2, 6)
    assert float(shared_information(even)) == pytest.approx(0.0, abs=1e-6)
    told = torch.zeros(2, 6)
    told[0, :3], told[1, 3:] = 1.0, 1.0
    assert float(shared_information(told)) == pytest.approx(1.0, abs=1e-5)
    half = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    expected = (2 / 3 * math.log(2)) / math.log(2)
    assert float(shared_information(half)) == pytest.approx(expected, rel=1e-4)


def test_clusters_in_common_are_counted_by_modality() -> None:
    cases = corpus("XC" * 4)
    method = method_of(cases, clustering="together")
    assert len(method.clusterings) == 1
    method.losses(views_of(method, cases), 0.5)
    method.after_step(0.5)
    assert method.seen.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert 0 <= float(method.monitors()["information"]) <= 1.0 + 1e-6
    assert "information" not in method_of(cases).monitors()
