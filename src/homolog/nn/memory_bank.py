"""Clusters of features over a training: k-means, memory banks and queues."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from homolog import distributed
from homolog.losses.assignment import balanced_codes, swapped_prediction
from homolog.losses.similarity import full_precision, unit

# A first-in first-out store of feature vectors, the same on every process.


class FeatureQueue(nn.Module):
    """The last vectors a key encoder made; negatives of a contrastive loss.

    All state lies in buffers: it is saved, resumed and moved with the module. Rows that
    were never filled are marked by ``occupied``, not by zeros.

    Attributes:
        rows: (L, E) unit vectors.
        occupied: (L,) bool.
        pointer: () int64, where the next row goes.

    Args:
        length: Rows kept (L), over all processes together.
        dim: Size of a vector (E).

    Source: He et al., CVPR 2020 (MoCo); methods reference 1.4, 1.5.
    Differs from the paper: rows are normalised on entry, empty rows are marked
    instead of random, and the length need not be a multiple of the batch.
    """

    rows: Tensor
    occupied: Tensor
    pointer: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        if length < 1 or dim < 1:
            raise ValueError(f"a queue needs length and dim >= 1, got {length}, {dim}.")
        self.register_buffer("rows", torch.zeros(length, dim))
        self.register_buffer("occupied", torch.zeros(length, dtype=torch.bool))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @property
    def length(self) -> int:
        """Rows kept."""
        return len(self.rows)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Add this process's keys and, in rank order, those of all others.

        A key that is not finite (a step that diverged) leaves the older row in place.

        Args:
            keys: (B, E), any length but the same on every process.
        """
        keys = distributed.gather_rows(keys.detach().to(self.rows.dtype))
        keys = functional.normalize(keys, dim=1, eps=1e-6)
        skipped = max(0, len(keys) - self.length)
        count = len(keys) - skipped
        places = torch.arange(count, device=keys.device) + self.pointer + skipped
        places = places % self.length
        sound = keys[skipped:].isfinite().all(dim=1)
        self.rows[places] = torch.where(
            sound[:, None], keys[skipped:], self.rows[places]
        )
        self.occupied[places] = self.occupied[places] | sound
        self.pointer.copy_((self.pointer + len(keys)) % self.length)

    def ordered(self) -> Tensor:
        """(n, E) occupied rows, oldest first; waits for the device."""
        order = torch.arange(self.length, device=self.rows.device) + self.pointer
        order = order % self.length
        return self.rows[order][self.occupied[order]]


# Online clustering: unit prototypes, codes that share samples evenly, queues.


# Of the running mean of codes behind ``usage``.
_MEMORY = 0.99
# Of a length in float32.
_ROUNDING = 1e-6


# Paper: Hundred Million Eq. 1, 2.
class Clustering(nn.Module):
    """What SwAV learns by: prototypes, and per assigned view a queue of features.

    Scores of queued features are made anew with the current prototypes and share the
    Sinkhorn with the batch, so that K prototypes can be told apart with few samples in
    a batch. A queue counts once it is full. ``after_step`` lets the step's features in.

    Args:
        dim: Length of a feature (E).
        prototypes: How many (K).
        assigned: Views that get codes; the others only predict.
        queue_length: Features kept per assigned view, over all processes; 0: none.
        temperature: Of the prediction.
        epsilon: Of the Sinkhorn; small is sharp.
        rounds: Of the Sinkhorn.
        hard: Codes are made one-hot.

    Attributes:
        weight: (K, E), the prototypes, unit length.
        mean_code: (K,) running mean of the codes of all processes.

    Source: Caron et al., NeurIPS 2020 (SwAV); methods reference 1.3, 1.4.
    Differs from the paper: see FeatureQueue; the queue is filled after the optimiser's
    step, not within it.
    """

    mean_code: Tensor

    def __init__(
        self,
        dim: int,
        prototypes: int,
        *,
        assigned: Sequence[int] = (0, 1),
        queue_length: int = 0,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        rounds: int = 3,
        hard: bool = False,
    ) -> None:
        super().__init__()
        if prototypes < 2:
            raise ValueError(
                f"clustering needs 2 prototypes or more, got {prototypes}."
            )
        self.weight = nn.Parameter(unit(torch.randn(prototypes, dim)))
        self.assigned = tuple(assigned)
        self.queues = nn.ModuleList(
            FeatureQueue(queue_length, dim) for _ in self.assigned if queue_length
        )
        self.temperature, self.epsilon, self.rounds = temperature, epsilon, rounds
        self.hard = hard
        uniform = torch.full((prototypes,), 1 / prototypes)
        self.register_buffer("mean_code", uniform)
        self._fresh: list[Tensor] = []
        self._fresh_code: Tensor | None = None
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            _forget_fresh
        )

    def forward(
        self, features: Sequence[Tensor], *, frozen: bool = False, queued: bool = True
    ) -> Tensor:
        """The swapped prediction of some views of the same samples.

        Args:
            features: Per view (B, E), unit length.
            frozen: No gradient for the prototypes, so that nothing moves them.
            queued: Whether full queues count.
        """
        if self.training:  # to look at it changes nothing
            self._to_unit_length()
        scores = [self.scores(view, frozen=frozen) for view in features]
        codes = {
            view: self._codes(number, scores[view].detach(), queued)
            for number, view in enumerate(self.assigned)
        }
        if self.training:
            self._fresh = [features[view].detach() for view in self.assigned]
            mean = torch.stack([code.mean(0) for code in codes.values()]).mean(0)
            self._fresh_code = distributed.mean_over_ranks(mean)
        return swapped_prediction(scores, codes, self.temperature)

    @torch.no_grad()
    def _to_unit_length(self) -> None:
        """Prototypes of length 1; those that are stay, for rounding would move them."""
        off = (self.weight.norm(dim=1, keepdim=True) - 1).abs() > _ROUNDING
        self.weight.copy_(torch.where(off, unit(self.weight), self.weight))

    @full_precision
    def scores(self, features: Tensor, *, frozen: bool = False) -> Tensor:
        """Cosines (B, K) of unit features (B, E) and prototypes, float32."""
        weight = self.weight.detach() if frozen else self.weight
        return features @ (weight if self.training else unit(weight)).mT

    @torch.no_grad()
    def _codes(self, number: int, scores: Tensor, queued: bool) -> Tensor:
        """(B, K) codes of an assigned view's samples, queued ones first in line."""
        count, real = len(scores), None
        if len(self.queues) and queued:
            queue = self.queues[number]
            assert isinstance(queue, FeatureQueue)
            world = distributed.world()
            # the queue is the same on every process: each brings its own share of it
            own = slice(world.rank, None, world.size)
            full = queue.occupied.all()
            scores = torch.cat([self.scores(queue.rows[own]), scores])
            waiting = full.expand(len(scores) - count)
            real = torch.cat([waiting, torch.ones_like(scores[-count:, 0]).bool()])
        codes = balanced_codes(scores, self.epsilon, self.rounds, real)[-count:]
        if self.hard:
            codes = nn.functional.one_hot(codes.argmax(1), codes.shape[1]).to(codes)
        return codes

    def after_step(self) -> None:
        """Let the step's features into the queues, and its codes into the mean."""
        for queue, features in zip(self.queues, self._fresh, strict=False):
            assert isinstance(queue, FeatureQueue)
            queue.enqueue(features)
        if self._fresh_code is not None:
            self.mean_code.lerp_(self._fresh_code, 1 - _MEMORY)
        self._fresh, self._fresh_code = [], None

    def usage(self) -> Tensor:
        """Entropy of the mean code in units of ln K: 1 where all are used alike."""
        share = self.mean_code.clamp_min(1e-12)
        return -(share * share.log()).sum() / math.log(len(share))


def shared_information(counts: Tensor) -> Tensor:
    """Mutual information of rows and columns in units of the rows' entropy, 0..1.

    Args:
        counts: (M, K), how often row m met column k.
    """
    joint = counts / counts.sum().clamp_min(1e-12)
    rows, columns = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)

    def summed(p: Tensor, q: Tensor) -> Tensor:
        return torch.where(p > 0, p * (p / q.clamp_min(1e-12)).log(), 0.0).sum()

    entropy = -torch.where(rows > 0, rows * rows.clamp_min(1e-12).log(), 0.0).sum()
    return summed(joint, rows * columns) / entropy.clamp_min(1e-12)


def _forget_fresh(module: nn.Module, _: object) -> None:
    """Features of a step that was not finished belong to no loaded state."""
    assert isinstance(module, Clustering)
    module._fresh, module._fresh_code = [], None


# k-means of directions: unit vectors, unit centroids, the largest dot product wins.


_SCORES_AT_ONCE = 1 << 22  # features times centroids; bounds the memory
_SMALLEST_NORM = 1e-6


@torch.no_grad()
@full_precision
def spherical_kmeans(
    features: Tensor, start: Tensor, rounds: int = 10
) -> tuple[Tensor, Tensor]:
    """Lloyd's rounds on the sphere, and one assignment more.

    A round assigns every feature to the centroid of the largest dot product and makes
    each centroid the mean of its features, at unit length. A centroid without features,
    or whose features cancel out, stays where it is.

    Under torch.distributed every process passes features of its own, any number of
    them, and the same start; all get the same centroids.

    Args:
        features: (N, E), unit length.
        start: (K, E), where the centroids begin.
        rounds: Of assignment and mean.

    Returns:
        Centroids (K, E), unit length, and the number of its centroid per feature (N,)
        int64.

    Raises:
        ValueError: Sizes of vectors differ, there is no centroid, or rounds < 1.

    Source: Dhillon and Modha, Machine Learning 42, 2001; Caron et al., NeurIPS 2020
    (SwAV), DeepCluster-v2; methods reference J 3.17.
    """
    if features.shape[1:] != start.shape[1:] or len(start) < 1 or rounds < 1:
        raise ValueError(
            "k-means needs features (N, E), a start (K, E) with K >= 1 and rounds >= "
            f"1, got {tuple(features.shape)}, {tuple(start.shape)} and {rounds}."
        )
    parts = torch.split(features, max(1, _SCORES_AT_ONCE // len(start)))
    centroids = unit(start)
    for _ in range(rounds):
        sums, counts = torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
        for part in parts:
            # a product, not index_add: the order of its sum does not change on a GPU
            members = part.new_zeros(len(part), len(centroids))
            members.scatter_(1, _nearest(part, centroids)[:, None], 1.0)
            sums += members.mT @ part
            counts += members.sum(0)
        sums = distributed.sum_over_ranks(sums)
        counts = distributed.sum_over_ranks(counts)
        moved = (counts > 0) & (sums.norm(dim=1) > _SMALLEST_NORM)
        centroids = torch.where(moved[:, None], unit(sums), centroids)
    return centroids, torch.cat([_nearest(part, centroids) for part in parts])


def _nearest(features: Tensor, centroids: Tensor) -> Tensor:
    """(n, E), (K, E) -> (n,), the first of equals."""
    return (features @ centroids.mT).argmax(1)


UNKNOWN = -100


# Paper: Joint DeepCluster-v2.
class OfflineClustering(nn.Module):
    """What DeepCluster-v2 learns by: clusters of all samples as targets of their crops.

    The bank keeps the last features of each sample's assigned views, the same on every
    process. Every so many steps each head clusters it by k-means: the centroids become
    its prototypes, which no gradient moves, and each sample's cluster becomes the
    target of all of its crops until the next time. Nothing balances the clusters.

    Until as many samples were seen as the largest head has prototypes, and the next
    clustering came, there are no targets and the loss is 0.

    Args:
        dim: Length of a feature (E).
        prototypes: How many (K), per head.
        samples: How many different ones there are (N); they are numbered from 0.
        assigned: Views that go into the bank; head j clusters view j modulo their
            number.
        every: Steps between clusterings, about an epoch.
        temperature: Of the prediction.
        rounds: Of the k-means.

    Attributes:
        bank: (V, N, E), unit length; 0 where not seen.
        seen: (N,) bool.
        assignments: (heads, N) int64; -100 where no cluster is known.
        steps: () int64, steps committed.
        seed: () int64, of the starts of the k-means; drawn as weights are.

    Raises:
        ValueError: More prototypes than samples, fewer than two, or every < 1.

    Source: Caron et al., NeurIPS 2020 (SwAV), DeepCluster-v2; methods reference J 3.17.
    Differs from the paper: the first epoch trains nothing but fills the bank as it goes
    (no pass of its own); the bank is shared by all processes, so that a sample may come
    up on any of them.
    """

    bank: Tensor
    seen: Tensor
    assignments: Tensor
    steps: Tensor
    seed: Tensor

    def __init__(
        self,
        dim: int,
        prototypes: Sequence[int],
        samples: int,
        *,
        assigned: Sequence[int] = (0, 1),
        every: int = 100,
        temperature: float = 0.1,
        rounds: int = 10,
    ) -> None:
        super().__init__()
        if not prototypes or min(prototypes) < 2 or not assigned or every < 1:
            raise ValueError(
                "offline clustering needs heads of 2 prototypes or more, an assigned "
                f"view and every >= 1, got {list(prototypes)}, {list(assigned)} and "
                f"{every}."
            )
        if max(prototypes) > samples:
            raise ValueError(
                f"{max(prototypes)} clusters cannot be found in {samples} samples; "
                "please fewer clusters."
            )
        self.prototypes, self.assigned = tuple(prototypes), tuple(assigned)
        self.every, self.temperature, self.rounds = every, temperature, rounds
        for head, count in enumerate(self.prototypes):
            self.register_buffer(f"weight_{head}", unit(torch.randn(count, dim)))
        self.register_buffer("bank", torch.zeros(len(self.assigned), samples, dim))
        self.register_buffer("seen", torch.zeros(samples, dtype=torch.bool))
        unknown = torch.full((len(self.prototypes), samples), UNKNOWN)
        self.register_buffer("assignments", unknown)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("seed", torch.randint(1 << 62, ()))
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._wait = 0  # steps that cannot be due, so that few wait for the device
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            _forget_fresh_offline
        )

    @property
    def weights(self) -> list[Tensor]:
        """Per head (K, E), unit length."""
        return [self.get_buffer(f"weight_{h}") for h in range(len(self.prototypes))]

    def forward(self, features: Sequence[Tensor], samples: Tensor) -> Tensor:
        """How far crops are from predicting the clusters of their samples.

        Args:
            features: Per view (B, E), unit length; the same samples in each.
            samples: (B,) int64, their numbers.

        Returns:
            Scalar: mean over heads of the cross-entropy of all crops whose cluster is
            known, over all processes; 0, with a graph, where none is. ln K where
            predictions are uniform.
        """
        targets = self.assignments[:, samples]
        # a process may know fewer targets than another: each crop counts alike
        known = distributed.mean_over_ranks((targets[0] >= 0).sum().float())
        known = known.clamp_min(1 / distributed.world().size)
        terms = []
        for weight, target in zip(self.weights, targets, strict=True):
            logits = self._logits(torch.cat([*features]), weight)
            terms.append(
                functional.cross_entropy(
                    logits,
                    target.repeat(len(features)),
                    ignore_index=UNKNOWN,
                    reduction="sum",
                )
            )
        if self.training:
            rows = torch.stack([features[view].detach() for view in self.assigned], 1)
            self._fresh.append((samples.detach(), rows))
        return torch.stack(terms).mean() / (known * len(features))

    @full_precision
    def _logits(self, features: Tensor, weight: Tensor) -> Tensor:
        return features @ weight.mT / self.temperature

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the step's features into the bank; cluster it when it is time."""
        if not self._fresh:
            return
        samples, rows = (torch.cat(part) for part in zip(*self._fresh, strict=True))
        self._fresh = []
        self._write(distributed.gather_rows(samples), distributed.gather_rows(rows))
        self.steps += 1
        self._wait -= 1
        if self._wait > 0:
            return
        done = int(self.steps)
        if done % self.every:
            self._wait = self.every - done % self.every
            return
        self.recluster(self._generator(done))
        # a bad step is undone afterwards: look again, whether this one was
        self._wait = 1

    def _write(self, samples: Tensor, rows: Tensor) -> None:
        """Rows (B, V, E) into the bank; of a sample that came twice, the last one.

        A row that is not finite (a step that diverged) leaves the older one in place.
        """
        rows = unit(rows.to(self.bank.dtype))
        sound = rows.isfinite().flatten(1).all(1)
        order = torch.arange(len(rows), device=rows.device)
        last = torch.where((samples[:, None] == samples) & sound, order, -1).amax(1)
        fresh, found = rows[last.clamp_min(0)].transpose(0, 1), last >= 0
        old = self.bank[:, samples]
        self.bank[:, samples] = torch.where(found[:, None], fresh, old)
        self.seen[samples] = self.seen[samples] | found

    @torch.no_grad()
    def recluster(self, generator: torch.Generator) -> None:
        """Prototypes and targets anew from what was seen; nothing where that is little.

        Args:
            generator: On the CPU, of one state on every process; draws the samples
                where the centroids begin.
        """
        seen = self.seen.nonzero()[:, 0]
        if len(seen) < max(self.prototypes):
            return
        here = distributed.world()
        own = seen[here.rank :: here.size]
        for head, weight in enumerate(self.weights):
            bank = self.bank[head % len(self.assigned)]
            drawn = torch.randperm(len(seen), generator=generator)[: len(weight)]
            start = bank[seen[drawn.to(seen.device)]]
            centroids, nearest = spherical_kmeans(bank[own], start, self.rounds)
            weight.copy_(centroids)
            found = torch.zeros_like(self.assignments[head])
            found[own] = nearest
            found = distributed.sum_over_ranks(found)
            self.assignments[head] = torch.where(self.seen, found, UNKNOWN)

    def _generator(self, step: int) -> torch.Generator:
        """A function of seed and step, so that a resumed run draws the same."""
        digest = hashlib.sha256(f"{int(self.seed)}/{step}".encode()).digest()
        number = int.from_bytes(digest[:8], "little") >> 1
        return torch.Generator().manual_seed(number)

    @torch.no_grad()
    def usage(self) -> Tensor:
        """Entropy of the clusters' sizes in units of ln K, mean over heads.

        1 where all are alike large; not a number before the first clustering.
        """
        found = []
        for count, targets in zip(self.prototypes, self.assignments, strict=True):
            known = (targets >= 0).float()
            sizes = known.new_zeros(count).scatter_add_(0, targets.clamp_min(0), known)
            share = sizes / known.sum()
            entropy = -(share * share.clamp_min(1e-12).log()).sum()
            found.append(entropy / math.log(count))
        return torch.stack(found).mean()

    def coverage(self) -> Tensor:
        """Share of the samples that were seen, 0..1."""
        return self.seen.float().mean()


def _forget_fresh_offline(module: nn.Module, _: object) -> None:
    """Features of a step that was not finished belong to no loaded state."""
    assert isinstance(module, OfflineClustering)
    module._fresh, module._wait = [], 0
