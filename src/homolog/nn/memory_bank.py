"""Offline clustering: a memory of all samples, k-means over it now and then."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from homolog import distributed
from homolog.losses.precision import full_precision
from homolog.losses.similarity import unit
from homolog.nn.spherical_kmeans import spherical_kmeans

UNKNOWN = -100


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
            _forget_fresh
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


def _forget_fresh(module: nn.Module, _: object) -> None:
    """Features of a step that was not finished belong to no loaded state."""
    assert isinstance(module, OfflineClustering)
    module._fresh, module._wait = [], 0
