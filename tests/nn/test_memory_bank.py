"""Offline clustering: spherical k-means, the bank, J-T12, an exact resume."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from each import each
from homolog.nn import memory_bank as module
from homolog.nn.memory_bank import UNKNOWN, OfflineClustering, spherical_kmeans
from homolog.training.stepping import StateGuard


def directions(count: int, dim: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def clusters_on_the_sphere(each: int = 10, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Four Gaussian clusters around four axes: features (4 * each, 6), truth."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(4).repeat(each)
    rows = torch.eye(6)[truth] + noise * torch.randn(4 * each, 6, generator=generator)
    return nn.functional.normalize(rows, dim=1), truth


def offline(**settings: Any) -> OfflineClustering:
    torch.manual_seed(0)
    options = {"dim": 4, "prototypes": (3,), "samples": 10, "every": 3, **settings}
    return OfflineClustering(**options)


def shown(made: OfflineClustering, step: int, batch: int = 6) -> Tensor:
    """A step on seeded features of seeded samples; its loss."""
    generator = torch.Generator().manual_seed(100 + step)
    samples = torch.randint(len(made.seen), (batch,), generator=generator)
    dim = made.bank.shape[2]
    loss = made([directions(batch, dim, 7 * step + k) for k in range(3)], samples)
    made.after_step()
    return loss


def same_state(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items())


def test_k_means_is_what_a_plain_loop_makes() -> None:
    """Paper: Joint DeepCluster-v2."""
    features, start = directions(200, 5).double(), directions(7, 5, 1).double()
    centroids = start.clone()
    for _ in range(10):
        nearest = (features @ centroids.T).argmax(1)
        for k in range(7):
            if (nearest == k).any():
                mean = features[nearest == k].mean(0)
                centroids[k] = mean / mean.norm()
    found, assignments = spherical_kmeans(features, start)
    torch.testing.assert_close(found, centroids)
    assert torch.equal(assignments, (features @ centroids.T).argmax(1))
    # the cosines to the own centroid grow, round by round
    sums = []
    for rounds in range(1, 10):
        made, of = spherical_kmeans(features, start, rounds)
        sums.append(float((features * made[of]).sum()))
    assert sums == sorted(sums)
    assert sums[-1] > sums[0]


def test_k_means_in_parts_is_k_means(monkeypatch: pytest.MonkeyPatch) -> None:
    features, start = directions(101, 5), directions(4, 5, 1)
    whole = spherical_kmeans(features, start)
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 40)
    parts = spherical_kmeans(features, start)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


def test_a_centroid_without_features_or_a_mean_stays() -> None:
    features = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    start = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -3.0]])
    centroids, assignments = spherical_kmeans(features, start)
    torch.testing.assert_close(centroids, nn.functional.normalize(start, dim=1))
    assert assignments.tolist() == [0, 0]


@pytest.mark.parametrize("start", [torch.ones(2, 4), torch.ones(0, 3)])
def test_nonsense_k_means_are_refused(start: Tensor) -> None:
    with pytest.raises(ValueError, match="k-means needs"):
        spherical_kmeans(torch.ones(5, 3), start)


def test_j_t12_four_clusters_are_found_and_no_gradient_moves_a_prototype() -> None:
    """Paper: Joint DeepCluster-v2."""
    features, truth = clusters_on_the_sphere()
    made = offline(dim=6, prototypes=(4,), samples=50, every=1000)
    other = torch.arange(40)
    made([features, features], other)
    made.after_step()
    # k-means is local: take a start that draws one sample of each cluster
    for seed in range(1000):
        generator = torch.Generator().manual_seed(seed)
        if len(truth[torch.randperm(40, generator=generator)[:4]].unique()) == 4:
            break
    made.recluster(torch.Generator().manual_seed(seed))
    found = made.assignments[0, :40]
    pairs = {(int(a), int(b)) for a, b in zip(found, truth, strict=True)}
    assert len(pairs) == 4
    assert {a for a, _ in pairs} == {b for _, b in pairs} == {0, 1, 2, 3}
    (weight,) = made.weights
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(4))
    for cluster, true in pairs:
        mean = features[truth == true].mean(0)
        torch.testing.assert_close(weight[cluster], mean / mean.norm())
    assert not weight.requires_grad
    assert list(made.parameters()) == []
    # -100 adds nothing: samples 40 to 49 were never seen
    assert (made.assignments[0, 40:] == UNKNOWN).all()
    views = [features[:6].clone().requires_grad_(), features[6:12].clone()]
    some = torch.tensor([0, 1, 2, 45, 46, 47])
    loss = made(views, some)
    loss.backward()
    torch.testing.assert_close(loss, made([v[:3] for v in views], some[:3]))
    assert views[0].grad is not None
    assert (views[0].grad[3:] == 0).all()
    assert (views[0].grad[:3] != 0).any()


def test_the_loss_is_the_cross_entropy_of_every_crop_and_head() -> None:
    made = offline(prototypes=(3, 2), temperature=0.2)
    views = [directions(5, seed=k) for k in range(3)]
    samples = torch.tensor([1, 4, 7, 8, 9])
    with torch.no_grad():
        made.assignments[:, samples] = torch.tensor([[0, 2, 1, 1, 0], [1, 0, 0, 1, 1]])
    expected = torch.stack(
        [
            nn.functional.cross_entropy(
                view @ weight.T / 0.2, made.assignments[head, samples]
            )
            for head, weight in enumerate(made.weights)
            for view in views
        ]
    ).mean()
    torch.testing.assert_close(made(views, samples), expected)


def test_without_a_target_the_loss_is_a_zero_with_a_graph() -> None:
    made = offline()
    view = directions(4).requires_grad_()
    loss = made([view, directions(4, seed=1)], torch.arange(4))
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert view.grad is not None
    assert (view.grad == 0).all()


def test_the_bank_keeps_the_last_sound_features_of_a_sample() -> None:
    made = offline()
    first = directions(3, seed=1)
    made([first, -first, first], torch.tensor([5, 2, 5]))  # two of sample 5
    made([first[:1], first[:1]], torch.tensor([8]))  # a second part of the step
    assert made.coverage() == 0.0
    made.after_step()
    assert made.seen.nonzero()[:, 0].tolist() == [2, 5, 8]
    torch.testing.assert_close(made.bank[:, 5], torch.stack([first[2], -first[2]]))
    torch.testing.assert_close(made.bank[:, 8], first[:1].expand(2, -1))
    broken = directions(2, seed=2)
    broken[0, 1] = math.nan
    made([broken, broken], torch.tensor([2, 9]))
    made.after_step()
    torch.testing.assert_close(made.bank[:, 2], torch.stack([first[1], -first[1]]))
    torch.testing.assert_close(made.bank[0, 9], broken[1])
    assert made.coverage() == pytest.approx(0.4)


def test_it_is_clustered_every_so_many_steps_once_enough_was_seen() -> None:
    made = offline(samples=40, prototypes=(3, 20))
    seen, known = [], []
    for step in range(12):
        shown(made, step, batch=4)
        seen.append(int(made.seen.sum()))
        known.append(int((made.assignments >= 0).all(0).sum()))
    expected, now = [], 0
    for step, count in enumerate(seen):
        if (step + 1) % 3 == 0 and count >= 20:
            now = count
        expected.append(now)
    assert known == expected
    assert 0 in known[2:]
    assert known[-1] > 20


def test_heads_take_turns_at_the_views() -> None:
    made = offline(prototypes=(2, 2, 2), samples=20, every=1)
    near, far = directions(20, seed=3), directions(20, seed=4)
    made([near, far], torch.arange(20))
    made.after_step()
    for head, view in enumerate((near, far, near)):
        nearest = (view @ made.weights[head].T).argmax(1)
        assert torch.equal(made.assignments[head], nearest)


def test_e_t9_a_resumed_clustering_equals_an_uninterrupted_one() -> None:
    whole, first = offline(every=4), offline(every=4)
    for step in range(6):
        shown(whole, step)
        shown(first, step)
    torch.manual_seed(99)
    resumed = OfflineClustering(4, (3,), 10, every=4)
    shown(resumed, 0)  # whatever it did before is forgotten
    resumed([directions(6)] * 2, torch.arange(6))
    resumed.load_state_dict(first.state_dict())
    assert same_state(resumed, first)
    for step in range(6, 13):
        losses = [shown(made, step) for made in (whole, resumed)]
        assert torch.equal(losses[0], losses[1])
        assert same_state(whole, resumed)
    assert int(whole.steps) == 13


def test_a_clustering_that_was_undone_is_made_at_the_next_step() -> None:
    made, plain = offline(), offline()
    for step in range(2):
        shown(made, step)
        shown(plain, step)
    guard = StateGuard(made)
    guard.remember()
    shown(made, 77)
    assert (made.assignments >= 0).any()
    guard.restore_where(torch.tensor(True))
    for step in range(2, 7):
        shown(made, step)
        shown(plain, step)
        assert same_state(made, plain)


def test_looking_changes_nothing() -> None:
    made = offline()
    shown(made, 0)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    made.eval()
    made([directions(4)] * 2, torch.arange(4))
    made.after_step()
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())


def test_usage_is_the_entropy_of_the_clusters() -> None:
    made = offline(prototypes=(2, 4), samples=8)
    assert made.usage().isnan()
    with torch.no_grad():
        made.assignments[0] = torch.tensor([0, 1, 0, 1, UNKNOWN, UNKNOWN, 0, 1])
        made.assignments[1] = torch.tensor([0, 1, 0, 1, UNKNOWN, UNKNOWN, 0, 1])
    assert float(made.usage()) == pytest.approx((1.0 + 0.5) / 2)


@each(
    "settings, told",
    [
        ({"prototypes": (3, 11)}, "11 clusters cannot be found in 10 samples; please"),
        ({"prototypes": (1,)}, "heads of 2 prototypes"),
        ({"prototypes": ()}, "heads of 2 prototypes"),
        ({"every": 0}, "every >= 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        offline(**settings)
