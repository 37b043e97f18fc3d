"""k-means of directions: unit vectors, unit centroids, the largest dot product wins."""

from __future__ import annotations

import torch
from torch import Tensor

from homolog import distributed
from homolog.losses.precision import full_precision
from homolog.losses.similarity import unit

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
