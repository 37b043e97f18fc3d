"""SwAV: what its crops show, E-T12, and what it says of K."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from homolog.backbones._base import build
from homolog.config import from_dict
from homolog.feed import CaseRef, Feed
from homolog.methods.swav import SwAV, SwAVConfig

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
    both = views.overlap("large", "large")[:, 0, 1]
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
    assert (
        losses[0] > 0.7 * method.trivial["swapped"] == pytest.approx(0.7 * math.log(8))
    )
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


def test_without_small_crops_the_two_large_ones_are_enough(phantom_store: Any) -> None:
    method = method_of(small_count=0)
    feed = feed_of(method, phantom_store, 2)
    views = feed.views(feed.batch(0), "cpu")
    assert list(views) == ["large"]
    assert method.losses(views, 0.0)["swapped"].isfinite()
