"""SwAV and DeepCluster-v2: what its crops show, E-T12, and what it says of K."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from homolog.backbones import build
from homolog.config import from_dict
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.geometry.correspondence import overlap
from homolog.methods._clusters import SwAVConfig, sample_count, sample_numbers
from homolog.methods.swav import SwAV

SMALL = {"size": [16, 16, 16], "small_size": [8, 8, 8], "dim": 16, "hidden": 32}


def method_of(**settings: object) -> SwAV:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build("resunet", {"channels": [8, 16, 16]})
        return SwAV(backbone, from_dict(SwAVConfig, {**SMALL, **settings}))


def feed_of(method: SwAV, store: Any, batch_size: int) -> Feed:
    cases = [CaseRef(store, card) for card in store.cards]
    return Feed(cases, method.views(), batch_size=batch_size, seed=0, threads=0)


@pytest.mark.parametrize("place", ["sample", "scan"])
def test_crops_of_a_sample_overlap_unless_the_scan_is_the_sample(
    place: str, phantom_store: Any
) -> None:
    method = method_of(place=place, scale=[1.0, 1.0])
    feed = feed_of(method, phantom_store, 8)
    views = feed.views(feed.batch(0), "cpu")
    assert views["large"].image.shape[:2] == (8, 2)
    assert views["small"].image.shape[:2] == (8, 2)
    large = views["large"]
    both = overlap(large.affine[:, 0], large.size, large.affine[:, 1], large.size)
    assert (both > 0.05).all() if place == "sample" else (both < 0.05).any()


def test_e_t12_a_batch_is_learnt_by_heart_and_clusters_are_used(
    phantom_store: Any,
) -> None:
    method = method_of(queue_length=0, prototypes=8, freeze=0.0)
    feed = feed_of(method, phantom_store, 8)
    views = feed.views(feed.batch(0), "cpu")
    optimiser = torch.optim.AdamW(method.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = method.losses(views, 0.5)["swapped"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(0.5)
        losses.append(float(loss.detach()))
    assert losses[0] > 0.7 * math.log(8)
    assert losses[-1] < 0.5 * losses[0]
    told = method.monitors()
    assert told["usage"] > 0.95
    assert told["features_std"] > 0.6
    assert told["features_rank"] > 3


def test_k_follows_the_queue_and_too_many_clusters_are_told() -> None:
    plain = method_of(queue_length=64)
    assert plain.prototypes == 16
    assert plain.remarks({}) == []
    (sentence,) = method_of(queue_length=64, prototypes=100).remarks({})
    assert "100 clusters and a queue of 64" in sentence
    assert method_of(queue_length=0).prototypes == 8


def offline(store: Any, **settings: object) -> SwAV:
    """DeepCluster-v2 with as many samples as the store has."""
    asked = {"variant": "offline", "place": "sample", "bins": [2, 1, 1], **settings}
    complete = {**vars(SwAVConfig()), **asked}
    cases = [CaseRef(store, card) for card in store.cards]
    samples = SwAV.settled(complete, cases)["samples"]
    return method_of(**{**asked, "samples": samples})


def test_a_sample_is_a_scan_or_a_part_of_one(phantom_store: Any) -> None:
    parts = offline(phantom_store, bins=[4, 2, 1])
    assert parts.config.samples == 8 * len(phantom_store.cards)
    whole = offline(phantom_store, place="scan", prototypes=2)
    assert whole.config.samples == len(phantom_store.cards)
    feed = feed_of(parts, phantom_store, 16)
    view = feed.views(feed.batch(0), "cpu")["large"]
    assert torch.equal(sample_numbers(view, (1, 1, 1)), view.case)
    numbers = sample_numbers(view, (4, 2, 1))
    assert torch.equal(numbers // 8, view.case)
    assert len(set((numbers % 8).tolist())) > 2
    where = torch.tensor([[0.0, 0.6, 0.9], [0.3, 0.4, 0.1], [1.2, 1.0, -0.1]])
    placed = dataclasses.replace(
        view, where=where[:, None], case=torch.tensor([0, 0, 5])
    )
    found = sample_numbers(placed, (4, 2, 3))
    assert found.tolist() == [5, 6, 5 * 24 + 21]
    assert int(found.max()) < sample_count(6, (4, 2, 3))
    with pytest.raises(ValueError, match="24 parts of a scan"):
        sample_numbers(dataclasses.replace(view, where=None), (4, 2, 3))


def test_e_t12_offline_a_batch_is_learnt_by_heart_and_clusters_are_used(
    phantom_store: Any,
) -> None:
    method = offline(phantom_store, prototypes=4, heads=2, every=20)
    feed = feed_of(method, phantom_store, 8)
    views = feed.views(feed.batch(0), "cpu")
    optimiser = torch.optim.AdamW(method.parameters(), 3e-3, weight_decay=0.0)
    losses, prototypes = [], []
    for _ in range(60):
        loss = method.losses(views, 0.5)["clusters"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(0.5)
        losses.append(float(loss.detach()))
        prototypes.append(method.clusters.offline.weights[0].clone())  # type: ignore[operator,union-attr]
    assert losses[:20] == [0.0] * 20
    assert not torch.equal(prototypes[18], prototypes[19])  # the first clustering
    assert torch.equal(prototypes[19], prototypes[38])
    # prototypes that lie close to each other keep it above 0
    assert losses[20] > 0.9 * math.log(method.prototypes)
    assert losses[-1] < 0.6 * math.log(method.prototypes)
    told = method.monitors()
    assert told["usage"] > 0.7
    assert 0 < told["seen"] <= 8 / method.config.samples
    assert told["features_std"] > 0.6
    assert told["features_rank"] > 2


def test_offline_says_what_it_waits_for_and_k_follows_the_samples(
    phantom_store: Any,
) -> None:
    method = offline(phantom_store, bins=[8, 4, 4])
    assert method.prototypes == max(8, method.config.samples // 8)
    (sentence,) = method.remarks({})
    assert f"{method.config.samples} samples are remembered" in sentence
    with pytest.raises(ValueError, match="please fewer clusters"):
        offline(phantom_store, prototypes=2999)


def test_without_small_crops_the_two_large_ones_are_enough(phantom_store: Any) -> None:
    method = method_of(small_count=0)
    feed = feed_of(method, phantom_store, 2)
    views = feed.views(feed.batch(0), "cpu")
    assert list(views) == ["large"]
    assert method.losses(views, 0.0)["swapped"].isfinite()
