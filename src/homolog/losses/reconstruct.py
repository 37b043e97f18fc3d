"""Reconstruction of hidden patches."""

from __future__ import annotations

from torch import Tensor

from homolog.geometry.affine import Index
from homolog.losses.similarity import full_precision


def to_patches(image: Tensor, patch: Index) -> Tensor:
    """Cut an image into patches, tokens in z, y, x order (x fastest).

    Args:
        image: (B, C, D, H, W), every side a multiple of the patch's.
        patch: Voxels (z, y, x) per patch.

    Returns:
        (B, N, P), N = d h w patches of P = C * voxels values, channel slowest.

    Raises:
        ValueError: A side is no multiple.
    """
    b, c, *sides = image.shape
    if any(n % p for n, p in zip(sides, patch, strict=True)):
        raise ValueError(f"an image of {tuple(sides)} cannot be cut into {patch}.")
    d, h, w = (n // p for n, p in zip(sides, patch, strict=True))
    p, q, r = patch
    blocks = image.reshape(b, c, d, p, h, q, w, r)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, d * h * w, c * p * q * r)


def from_patches(patches: Tensor, patch: Index, size: Index) -> Tensor:
    """Inverse of ``to_patches``: (B, N, P) -> (B, C, D, H, W)."""
    d, h, w = (n // k for n, k in zip(size, patch, strict=True))
    p, q, r = patch
    channels = patches.shape[2] // (p * q * r)
    blocks = patches.reshape(len(patches), d, h, w, channels, p, q, r)
    return blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(patches), channels, *size)


@full_precision
def hidden_patch_error(
    prediction: Tensor,
    target: Tensor,
    hidden: Tensor,
    *,
    normalise: bool = True,
    smallest_std: float = 0.01,
) -> Tensor:
    """Mean squared error of the hidden patches only.

    Args:
        prediction: (B, N, P).
        target: (B, N, P), the true voxels.
        hidden: (B, N), 1 or True where a patch was hidden and counts.
        normalise: Bring every target patch to mean 0 and std 1 first.
        smallest_std: Floor of that std in intensity units. Air and padding would
            otherwise blow their noise up to the weight of anatomy.

    Returns:
        Scalar; 0 when nothing is hidden. Predicting 0 of normalised patches gives 1.

    Source: He et al., CVPR 2022 (MAE), section 3 and Table 1d.
    Differs from the paper: the floor of the std.
    """
    if normalise:
        mean = target.mean(dim=2, keepdim=True)
        variance = target.var(dim=2, keepdim=True, unbiased=False)
        target = (target - mean) / (variance + smallest_std**2).sqrt()
    error = (prediction - target).square().mean(dim=2)
    weight = hidden.to(error.dtype)
    return (error * weight).sum() / weight.sum().clamp_min(1.0)


@full_precision
def hidden_feature_error(
    prediction: Tensor, target: Tensor, hidden: Tensor, *, literal: bool = False
) -> Tensor:
    """How far predicted features of hidden slices lie from the true ones.

    Args:
        prediction: (B, n, F).
        target: (B, n, F).
        hidden: (B, n), 1 or True where a slice was hidden and counts.
        literal: The sum of distances, as printed, instead of the mean of their squares.

    Returns:
        Scalar; 0 when nothing is hidden.

    Source: Joint, Eq. 15.
    Differs from the paper: squared, and the mean; ``literal`` is the printed sum.
    """
    squared = (prediction - target).square().sum(dim=2)
    weight = hidden.to(squared.dtype)
    if literal:
        # the root has no gradient where it is 0
        distance = squared.clamp_min(1e-12).sqrt() * (squared > 0)
        return (distance * weight).sum()
    return (squared * weight).sum() / weight.sum().clamp_min(1.0)
