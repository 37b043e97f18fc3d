"""How alike two vectors, patches or images are: cosines, errors, correlation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from homolog.distributed import sum_over_ranks_with_gradient
from homolog.geometry.affine import Index

# Losses are computed in float32 or better, whatever autocast the network runs in.


P = ParamSpec("P")
R = TypeVar("R")

_NARROW = (torch.float16, torch.bfloat16)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function outside autocast, its half-precision tensors widened to float32.

    float32 and float64 tensors stay as they are. Softmax, Sinkhorn and similarity
    products in bfloat16 lose the small entries, in float16 they overflow. On a GPU
    products are not rounded to TF32 either, which some images of PyTorch switch on.

    Source: methods reference 1.1.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        everything = [*args, *kwargs.values()]
        device = next((a.device.type for a in everything if isinstance(a, Tensor)), "")
        wide_args = [_widen(a) for a in args]
        wide_kwargs = {k: _widen(v) for k, v in kwargs.items()}
        call = cast("Callable[..., R]", function)
        if not device:
            return call(*wide_args, **wide_kwargs)
        with torch.autocast(device, enabled=False), exact_products(device):
            return call(*wide_args, **wide_kwargs)

    return wrapped


@contextlib.contextmanager
def exact_products(device: str) -> Iterator[None]:
    """float32 products and convolutions in float32 on a GPU.

    Args:
        device: Type of the device; another than ``cuda`` changes nothing.
    """
    with tf32(False) if device == "cuda" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def tf32(wanted: bool | None) -> Iterator[None]:
    """Whether a GPU rounds float32 products and convolutions to TF32; None: as set."""
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    was = [_tf32_of(switch) for switch in switches]
    changed = [
        (switch, name, kept)
        for switch, (name, kept) in zip(switches, was, strict=True)
        if wanted is not None and (kept in (True, "tf32")) != wanted
    ]
    for switch, name, _ in changed:
        new = wanted if name == "allow_tf32" else "tf32" if wanted else "ieee"
        setattr(switch, name, new)
    try:
        yield
    finally:
        for switch, name, kept in changed:
            setattr(switch, name, kept)


def _tf32_of(switch: Any) -> tuple[str, Any]:
    """Name and value of a switch; torch refuses to mix its two names."""
    try:
        return "allow_tf32", switch.allow_tf32
    except RuntimeError:  # set by its newer name
        return "fp32_precision", switch.fp32_precision


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _NARROW:
        return value.float()
    return value


_SMALLEST_NORM = 1e-6


@full_precision
def unit(features: Tensor, dim: int = -1) -> Tensor:
    """Scale vectors to unit length; those shorter than 1e-6 are divided by 1e-6.

    Args:
        features: Any shape; float16 and bfloat16 become float32.
        dim: Axis of the vectors.

    Source: methods reference 1.1, x / max(||x||, 1e-6).
    """
    return functional.normalize(features, dim=dim, eps=_SMALLEST_NORM)


@full_precision
def cosine_matrix(a: Tensor, b: Tensor) -> Tensor:
    """(..., N, E) and (..., M, E) -> (..., N, M) cosines in -1..1."""
    return unit(a) @ unit(b).mT


@full_precision
def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of 2 - 2 cos(a, b); no gradient flows into ``b``.

    Args:
        a: (..., E), from the branch that learns.
        b: (..., E), from the target branch.

    Returns:
        Scalar in 0..4: 0 for equal directions, 2 for orthogonal, 4 for opposite ones.

    Source: Grill et al., NeurIPS 2020 (BYOL), Eq. 2; Alice, l_s of Eq. 2 and 5.
    """
    return (2.0 - 2.0 * (unit(a) * unit(b).detach()).sum(-1)).mean()


# Features of two views that say the same, each something else: Barlow Twins.


# Below this sum of squares per row a feature counts as constant.
_LEAST = 1e-10


@full_precision
def cross_correlation(a: Tensor, b: Tensor, *, center: bool = True) -> Tensor:
    """Correlation of every feature of one view with every feature of the other.

    All rows of all processes count as one batch.

    Args:
        a: (M, D), e.g. voxels of one view.
        b: (M, D), the same voxels in the other view.
        center: Subtract each feature's mean first. Without, as the formula is printed,
            features of one sign all look correlated.

    Returns:
        (D, D), entries within [-1, 1]; 0 for a constant feature.

    Source: MixCL, Eq. 5, its second factor and root read as of the other view;
    Zbontar et al., ICML 2021 (Barlow Twins), Eq. 2.
    Differs from the paper: centred by default, as in Barlow Twins.

    Paper: MixCL Eq. 5.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"both views must have shape (M, D), got {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    count = sum_over_ranks_with_gradient(a.new_full((), float(len(a))))
    if center:
        a = a - sum_over_ranks_with_gradient(a.sum(0)) / count
        b = b - sum_over_ranks_with_gradient(b.sum(0)) / count
    product = sum_over_ranks_with_gradient(a.mT @ b)
    least = _LEAST * count
    roots = [
        sum_over_ranks_with_gradient(x.square().sum(0)).clamp_min(least).sqrt()
        for x in (a, b)
    ]
    return product / roots[0][:, None] / roots[1][None, :]


@full_precision
def redundancy(
    correlation: Tensor, weight: float, *, mean: bool = False
) -> tuple[Tensor, Tensor]:
    """How far a correlation matrix is from the identity.

    Args:
        correlation: (D, D).
        weight: Of the entries beside the diagonal (lambda).
        mean: Divide both by D, so that the number of features does not matter.

    Returns:
        sum_i (1 - C_ii)^2, and weight * sum_{i != j} C_ij^2.

    Source: MixCL, Eq. 4, the second term read as C_ij (as printed, C_ii, it would pull
    the diagonal to zero, against the first).

    Paper: MixCL Eq. 4.
    """
    diagonal = correlation.diagonal()
    alike = (1.0 - diagonal).square().sum()
    beside = correlation.square().sum() - diagonal.square().sum()
    share = 1.0 / len(correlation) if mean else 1.0
    return alike * share, weight * beside * share


# Reconstruction of hidden patches.


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
        hidden: (B, N), 1 or True where a patch was hidden and counts; or (B, N, P),
            voxel by voxel.
        normalise: Bring every target patch to mean 0 and std 1 first.
        smallest_std: Floor of that std in intensity units. Air and padding would
            otherwise blow their noise up to the weight of anatomy.

    Returns:
        Scalar; 0 when nothing is hidden. Predicting 0 of normalised patches gives 1.

    Source: He et al., CVPR 2022 (MAE), section 3 and Table 1d.
    Differs from the paper: the floor of the std.

    Paper: Alice Eq. 1.
    """
    if normalise:
        mean = target.mean(dim=2, keepdim=True)
        variance = target.var(dim=2, keepdim=True, unbiased=False)
        target = (target - mean) / (variance + smallest_std**2).sqrt()
    error = (prediction - target).square()
    if hidden.ndim == 2:
        error = error.mean(dim=2)
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

    Paper: Joint Eq. 15.
    """
    squared = (prediction - target).square().sum(dim=2)
    weight = hidden.to(squared.dtype)
    if literal:
        # the root has no gradient where it is 0
        distance = squared.clamp_min(1e-12).sqrt() * (squared > 0)
        return (distance * weight).sum()
    return (squared * weight).sum() / weight.sum().clamp_min(1.0)
