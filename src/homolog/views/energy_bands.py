"""Energy bands: an image as sums of what its scales show, each made stronger or weaker.

Scanners and their software differ in how much they sharpen; the energy of each band of
frequencies tells. Setting the energies to those of other images is a change of scanner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from homolog.geometry.affine import Array, Triple
from homolog.views.random import normal_noise

# Bands without energy would be amplified from rounding errors.
_GAIN = (0.1, 10.0)
_LEAST_SHARE = 0.05
_NO_ENERGY = 1e-12
_TRUNCATE = 4.0
# Another stream than those of noise and curve.
_STREAM = 0x0B5297A4D1


@dataclass(frozen=True)
class BandReference:
    """Energies that images are given, as found in a set of reference images.

    Attributes:
        sigmas: Widths of the Gaussians, fine to coarse, voxels of the view (one number
            each: the same along all axes).
        mean: Mean energy of each band, fine to coarse, the low-pass band last; as many
            as ``sigmas`` and one more.
        std: Standard deviation of each over the reference images.
        whole: The bands are those of the scan's whole slice, in whose voxels the sigmas
            then are; it is changed before views of one slice are cut from it.
        modalities: Where each has references of its own: ``mean`` and ``std`` hold as
            many energies for each, one after another.
    """

    sigmas: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole: bool = False
    modalities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bands = len(self.sigmas) + 1
        wanted = bands * max(1, len(self.modalities))
        if len(self.mean) != wanted or len(self.std) != wanted or bands < 2:
            each = f" for each of {', '.join(self.modalities)}" * bool(self.modalities)
            raise ValueError(
                f"{len(self.sigmas)} Gaussians make {bands} bands{each}, got "
                f"{len(self.mean)} means and {len(self.std)} standard deviations."
            )

    def of(self, modality: str) -> BandReference:
        """The references for scans of one modality; all together if it has none."""
        bands = len(self.sigmas) + 1
        rows = [
            range(i * bands, (i + 1) * bands)
            for i, name in enumerate(self.modalities or ("",))
        ]
        if modality in self.modalities:
            rows = [rows[self.modalities.index(modality)]]
        mean, std = (
            tuple(sum(values[row[b]] for row in rows) / len(rows) for b in range(bands))
            for values in (self.mean, self.std)
        )
        return BandReference(self.sigmas, mean, std, self.whole)


def split_bands(image: Tensor, sigmas: Sequence[float | Triple]) -> Tensor:
    """Differences of a cascade of Gaussians, and what the last of them leaves.

    Args:
        image: (..., D, H, W).
        sigmas: Of each Gaussian, fine to coarse, in voxels, one number or (z, y, x).

    Returns:
        (S + 1, ..., D, H, W), fine to coarse; their sum is the image. The borders are
        mirrored; axes of one voxel stay as they are.

    Source: Philipsen et al., IEEE TMI 2015; Hundred Million, section III-C.

    Paper: Hundred Million Eq. 8.
    """
    bands, smooth = [], image
    for sigma in sigmas:
        z, y, x = sigma if isinstance(sigma, tuple) else (sigma, sigma, sigma)
        blurred = smooth
        for axis, width in ((-3, z), (-2, y), (-1, x)):
            if image.shape[axis] > 1 and width > 0:
                kernel = _mirrored_gaussian(image.shape[axis], width)
                kernel = kernel.to(image.device, image.dtype, non_blocking=True)
                blurred = torch.movedim(
                    torch.movedim(blurred, axis, -1) @ kernel.mT, -1, axis
                )
        bands.append(smooth - blurred)
        smooth = blurred
    return torch.stack([*bands, smooth])


def band_energies(bands: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard deviation of each band over space.

    Args:
        bands: (S + 1, ..., D, H, W).
        mask: (..., D, H, W) bool, voxels that count; all where None.

    Returns:
        (S + 1, ...).
    """
    if mask is None:
        return bands.flatten(-3).std(-1, correction=0)
    real = mask.to(bands.dtype).expand(bands.shape[1:])
    count = real.flatten(-3).sum(-1).clamp_min(1)
    mean = (bands * real).flatten(-3).sum(-1) / count
    apart = (bands - mean[..., None, None, None]) * real
    return (apart.square().flatten(-3).sum(-1) / count).sqrt()


def with_energies(
    image: Tensor,
    sigmas: Sequence[float | Triple],
    wanted: Tensor,
    mask: Tensor | None = None,
    *,
    literal: bool = False,
) -> Tensor:
    """An image whose bands are scaled to the energies wanted, in one pass.

    Bands leak into each other, so the energies are reached only by repeating it.

    Args:
        image: (N, C, D, H, W).
        sigmas: See ``split_bands``.
        wanted: (N, S + 1) energies, in units of the image.
        mask: (N, 1, D, H, W) bool, voxels whose energy counts.
        literal: The low-pass band is scaled with its mean, as printed; else about it.

    Returns:
        (N, C, D, H, W); a band without energy is left as it is.

    Source: Hundred Million, Eq. 8.
    Differs from the paper: gains are kept within 0.1 and 10; see ``literal``.

    Paper: Hundred Million Eq. 8.
    """
    bands = split_bands(image, sigmas)
    energies = band_energies(bands, mask)
    given = wanted.mT[:, :, None].to(energies)
    gain = given / energies.clamp_min(1e-12)
    gain = torch.where(energies > 1e-6, gain.clamp(*_GAIN), torch.ones_like(gain))
    gain = gain[..., None, None, None]
    if literal:
        return (bands * gain).sum(0)
    low = bands[-1]
    if mask is None:
        centre = low.mean((-3, -2, -1), keepdim=True)
    else:
        count = mask.sum((-3, -2, -1), keepdim=True).clamp_min(1)
        centre = (low * mask).sum((-3, -2, -1), keepdim=True) / count
    return (bands[:-1] * gain[:-1]).sum(0) + (low - centre) * gain[-1] + centre


def drawn_energies(reference: BandReference, keys: Tensor) -> Tensor:
    """Energies (N, S + 1) near those of the reference, one row per key (N,).

    Each is drawn by itself from a normal distribution, cut off one standard deviation
    from the mean, and is at least a twentieth of the mean.

    Source: Hundred Million, section III-C; methods reference H 3.3.

    Paper: Hundred Million III-C, references.
    """
    mean, std = (
        torch.tensor(numbers).to(keys.device, non_blocking=True)
        for numbers in (reference.mean, reference.std)
    )
    normal = normal_noise(keys ^ _STREAM, len(mean))
    uniform = 0.5 * (1 + torch.erf(normal / math.sqrt(2)))
    low = 0.5 * (1 + math.erf(-1 / math.sqrt(2)))
    share = low + uniform * (1 - 2 * low)
    cut = math.sqrt(2) * torch.erfinv(2 * share - 1)
    return torch.maximum(mean + std * cut.clamp(-1, 1), _LEAST_SHARE * mean)


# Paper: Hundred Million Eq. 8, the entire image.
class Spectrum:
    """The bands of whole slices by their cosine transform, in which each is a factor.

    A Gaussian whose borders are mirrored is diagonal there: the same bands as those of
    ``split_bands``, and their energies by Parseval, from one transform for all of them.

    Args:
        slices: (..., H, W).
        sigmas: Of each Gaussian, fine to coarse, in pixels.
    """

    def __init__(self, slices: Array, sigmas: Sequence[float]) -> None:
        self.slices = slices
        self._found = dctn(slices, axes=(-2, -1), norm="ortho")
        kept, smooth = [], np.ones(slices.shape[-2:])
        for sigma in sigmas:
            rows, columns = (
                _mirrored_response(n, sigma) if n > 1 else np.ones(1)
                for n in slices.shape[-2:]
            )
            blurred = smooth * rows[:, None] * columns
            kept.append(smooth - blurred)
            smooth = blurred
        self._factors = np.stack([*kept, smooth])

    def energies(self) -> Array:
        """(S + 1, ...): standard deviation of each band over its slice."""
        power = self._found**2
        power[..., 0, 0] = 0.0
        count = power.shape[-2] * power.shape[-1]
        sums = np.einsum("shw,...hw->s...", self._factors**2, power)
        found: Array = np.sqrt(np.maximum(sums, 0.0) / count)
        return found

    def with_energies(self, wanted: Array) -> Array:
        """The slices (..., H, W) with bands of the energies wanted (S + 1,).

        As the function of this name, and then put back into the range of values that
        each slice had.
        """
        energies = self.energies()
        gain = wanted.reshape(-1, *(1,) * (energies.ndim - 1)) / np.maximum(
            energies, _NO_ENERGY
        )
        gain = np.where(energies > 1e-6, np.clip(gain, *_GAIN), 1.0)
        factor = np.einsum("s...,shw->...hw", gain, self._factors)
        factor[..., 0, 0] = 1.0  # the mean stays
        changed: Array = idctn(self._found * factor, axes=(-2, -1), norm="ortho")
        ends = [
            (part.min((-2, -1), keepdims=True), part.max((-2, -1), keepdims=True))
            for part in (self.slices, changed)
        ]
        (low, high), (own_low, own_high) = ends
        share = (changed - own_low) / np.maximum(own_high - own_low, 1e-6)
        found: Array = share * (high - low) + low
        return found


def _mirrored_response(count: int, sigma: float) -> Array:
    """(count,) what ``_mirrored_gaussian`` makes of each cosine."""
    reach = math.ceil(_TRUNCATE * sigma)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    angles = np.pi * np.arange(count)[:, None] * offsets / count
    response: Array = np.cos(angles) @ weights
    return response


def _mirrored_gaussian(count: int, sigma: float) -> Tensor:
    """(count, count) float64 matrix of a Gaussian with mirrored borders; rows sum to 1.

    The voxel at the border is repeated by the mirror (scipy's ``reflect``).
    """
    reach = math.ceil(_TRUNCATE * sigma)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights /= weights.sum()
    places = torch.arange(count)[:, None] + offsets
    places = places % (2 * count)
    places = torch.where(places >= count, 2 * count - 1 - places, places)
    matrix = torch.zeros(count, count, dtype=torch.float64)
    return matrix.scatter_add_(1, places, weights.expand(count, -1).contiguous())
