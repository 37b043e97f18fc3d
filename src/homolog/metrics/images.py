"""How near an image comes to another: PSNR, SSIM, NMSE and mean absolute error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGE_METRICS = ("psnr", "ssim", "nmse", "mae")
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "nmse": False, "mae": False}
# Voxels and standard deviation of SSIM's Gaussian window, of Wang et al.
_WINDOW, _SIGMA = 11, 1.5


def psnr(predicted: NDArray[Any], truth: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB; infinite where both are equal.

    The peak is the range of the true image, its largest value less its smallest.

    Args:
        predicted: Any shape.
        truth: The same shape.
    """
    _, peak = _range(truth)
    error = float(np.mean(np.square(predicted.astype(np.float64) - truth)))
    return math.inf if error == 0 else 10.0 * math.log10(peak**2 / error)


def nmse(predicted: NDArray[Any], truth: NDArray[Any]) -> float:
    """Squared error over the squared values of the true image, counted from its least.

    That is the usual one where the darkest value is 0, and means something for
    Hounsfield units too.

    Args:
        predicted: Any shape.
        truth: The same shape.
    """
    low, _ = _range(truth)
    right = truth.astype(np.float64)
    error = np.square(predicted.astype(np.float64) - right).sum()
    return float(error / np.square(right - low).sum())


def ssim(predicted: NDArray[Any], truth: NDArray[Any]) -> float:
    """Structural similarity, -1..1: the mean over all places of the window.

    A Gaussian window of 11 voxels along each axis (as many as there are, an odd number,
    where a scan has fewer), as MONAI computes it; values count from the least of the
    true image, whose range is the data range.

    Args:
        predicted: (D, H, W).
        truth: (D, H, W).

    Source: Wang et al., IEEE TIP 13, 2004.
    """
    import torch
    from monai.metrics.regression import compute_ssim_and_cs

    low, peak = _range(truth)
    flat = truth.shape[0] == 1
    pair = []
    for image in (predicted, truth):
        values = torch.from_numpy(np.ascontiguousarray(image, np.float64) - low)
        pair.append((values[0] if flat else values)[None, None].float())
    sides = truth.shape[1:] if flat else truth.shape
    window = [min(_WINDOW, n - 1 + n % 2) for n in sides]
    found, _ = compute_ssim_and_cs(
        *pair, len(sides), window, [_SIGMA] * len(sides), data_range=peak
    )
    return float(found.mean())


def image_scores(predicted: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    """All of IMAGE_METRICS; ``mae`` in the unit of the values.

    Args:
        predicted: (D, H, W).
        truth: (D, H, W).

    Source: S2DC, Tables 5 and 6 name PSNR, NMSE and SSIM.
    Differs from the paper: which gives no formula; ours are those of the functions.

    Raises:
        ValueError: The shapes differ, or the true image has one value only.

    Paper: S2DC Table 5.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"both images must have one shape, got {predicted.shape} and {truth.shape}."
        )
    return {
        "psnr": psnr(predicted, truth),
        "ssim": ssim(predicted, truth),
        "nmse": nmse(predicted, truth),
        "mae": float(np.abs(predicted.astype(np.float64) - truth).mean()),
    }


def _range(truth: NDArray[Any]) -> tuple[float, float]:
    """The least value, and how far the largest lies above it."""
    low, high = float(truth.min()), float(truth.max())
    if not high > low:
        raise ValueError(f"an image of one value ({low:g}) has no range.")
    return low, high - low
