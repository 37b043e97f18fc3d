"""Online clustering: unit prototypes, codes that share samples evenly, queues."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from homolog import distributed
from homolog.losses.precision import full_precision
from homolog.losses.similarity import unit
from homolog.losses.sinkhorn import balanced_codes
from homolog.losses.swapped import swapped_prediction
from homolog.nn.queue import FeatureQueue

# Of the running mean of codes behind ``usage``.
_MEMORY = 0.99
# Of a length in float32.
_ROUNDING = 1e-6


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
