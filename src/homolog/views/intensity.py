"""Random changes of values: batched, on the device, never touching geometry.

What happens to which view is drawn on the CPU and known there, so only the views that
are changed are computed and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homolog.geometry.affine import Array
from homolog.views.contrast import bias_field, drawn_contrast, region_width
from homolog.views.energy_bands import BandReference, drawn_energies, with_energies
from homolog.views.random import normal_noise, uniform_noise
from homolog.views.view import Intensity

# In this order: how tissue looks, then how the scanner saw it.
_EARLY = ("gamma", "contrast", "scale", "shift", "low_resolution", "blur", "noise")
# They came later and are drawn after the key, one by one: what was drawn stays.
_LATE = ("curve", "bands", "regions", "bias", "slices")
CHANGES = (*_EARLY, *_LATE)
# Those of another modality or scanner come first, whatever column they have.
_ORDER = ("regions", "curve", "bias", "bands", "slices", *_EARLY)
_KNOTS = 6
_FIELDS = {"blur": "blur_voxels", "noise": "noise_std", "slices": "slices_voxels"}
_AXIS = 0x1F123BB5  # stream of the axis that thick slices lie along


@dataclass(frozen=True)
class Draws:
    """What to do to each of N views; columns follow CHANGES.

    Attributes:
        on: (N, 12) bool, whether the change happens.
        value: (N, 12) float32, its strength.
        key: (N,) int64, stream of the noise.
    """

    on: NDArray[np.bool_]
    value: NDArray[np.float32]
    key: NDArray[np.int64]

    @classmethod
    def stack(cls, draws: Sequence[Draws]) -> Draws:
        """Of all views, in order."""
        return cls(
            on=np.concatenate([d.on for d in draws]),
            value=np.concatenate([d.value for d in draws]),
            key=np.concatenate([d.key for d in draws]),
        )


def draw_intensity(rng: np.random.Generator, intensity: Intensity) -> Draws:
    """Draw the changes of one view; every number is drawn whether used or not."""
    chance, low, high = _limits(intensity)
    early = len(_EARLY)
    on = np.empty(len(CHANGES), np.bool_)
    value = np.empty(len(CHANGES), np.float32)
    on[:early] = rng.random(early) < chance[:early]
    value[:early] = rng.uniform(low[:early], high[:early])
    key = rng.integers(0, 2**62, size=1)
    for place in range(early, len(CHANGES)):  # one by one, as they came to be
        on[place] = rng.random() < chance[place]
        value[place] = rng.uniform(low[place], high[place])
    return Draws(on[None], value[None], key)


def _limits(intensity: Intensity) -> tuple[Array, Array, Array]:
    """Of each change its chance, least and greatest strength.

    Found once: making arrays of settings takes longer than drawing.
    """
    known: dict[str, Any] = intensity.__dict__
    found: tuple[Array, Array, Array] | None = known.get("_limits")
    if found is None:
        chances = [getattr(intensity, f"{name}_probability") for name in CHANGES]
        ranges = [getattr(intensity, _FIELDS.get(name, name)) for name in CHANGES]
        low, high = np.array(ranges, dtype=np.float64).T.copy()
        found = known["_limits"] = (np.array(chances), low, high)
    return found


def change_intensity(
    image: Tensor,
    valid: Tensor,
    draws: Draws,
    outside: Tensor,
    intensity: Intensity | None = None,
    span: Tensor | None = None,
) -> Tensor:
    """Apply drawn changes.

    Args:
        image: (N, C, D, H, W) float32; may be overwritten.
        valid: (N, D, H, W) bool; only valid voxels count and change.
        draws: Of the N views.
        outside: (N, C) value that invalid voxels keep.
        intensity: What they were drawn from: energies for the change ``bands``, unless
            whole slices were changed before; whether a shift is a share of the range.
        span: (N, C) width of the range of values of each scan; needed for that.

    Returns:
        (N, C, D, H, W) float32.

    Paper: Hundred Million III-C, grey values.
    """
    asked = intensity or Intensity()
    reference = asked.bands_reference
    apply = _APPLY | {"bands": partial(_bands, reference)}
    order = [n for n in _ORDER if n != "bands" or not (reference and reference.whole)]
    if not draws.on.any():
        return image
    mask = valid[:, None]
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        for name in order:
            column = CHANGES.index(name)
            rows = np.flatnonzero(draws.on[:, column])
            if len(rows) == 0:
                continue
            strength = _up(draws.value[rows, column], image)
            if name == "shift" and asked.shift_by_range:
                assert span is not None
                strength = strength[:, None] * span[_up(rows, span)]
            keys = _up(draws.key[rows], image)
            if len(rows) == len(image):
                image = apply[name](image, mask, strength, keys)
            else:
                index = _up(rows, image)
                part = apply[name](image[index], mask[index], strength, keys)
                image = image.index_copy_(0, index, part)
        return torch.where(mask, image, outside[:, :, None, None, None])


def _up(values: NDArray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(
        like.device, non_blocking=True
    )


def _wide(strength: Tensor) -> Tensor:
    """A number per view, or per view and channel, as wide as images."""
    return strength.reshape(len(strength), -1, 1, 1, 1)


def _range(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest valid value per view and channel, (N, C, 1, 1, 1)."""
    space = (-3, -2, -1)
    low = torch.where(mask, image, torch.inf).amin(space, keepdim=True)
    high = torch.where(mask, image, -torch.inf).amax(space, keepdim=True)
    return low, high


def _gamma(image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor) -> Tensor:
    low, high = _range(image, mask)
    span = (high - low).clamp_min(1e-6)
    return ((image - low) / span).clamp(0, 1) ** _wide(strength) * span + low


def _contrast(image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor) -> Tensor:
    low, high = _range(image, mask)
    space = (-3, -2, -1)
    count = mask.sum(space, keepdim=True).clamp_min(1)
    mean = (image * mask).sum(space, keepdim=True) / count
    changed = (image - mean) * _wide(strength) + mean
    return torch.minimum(torch.maximum(changed, low), high)


def _scale(image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor) -> Tensor:
    return image * _wide(strength)


def _shift(image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor) -> Tensor:
    return image + _wide(strength)


def _curve(image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor) -> Tensor:
    """Piecewise linear through random values at even knots of the view's range."""
    low, high = _range(image, mask)
    span = (high - low).clamp_min(1e-6)
    place = ((image - low) / span).clamp(0, 1) * (_KNOTS - 1)
    knots = uniform_noise(keys ^ 0x5DEECE66D, _KNOTS)  # another stream than the noise
    left = place.floor().clamp(max=_KNOTS - 2)
    index = left.long().flatten(1)
    before = knots.gather(1, index).reshape(image.shape)
    after = knots.gather(1, index + 1).reshape(image.shape)
    drawn = before + (after - before) * (place - left)
    share = _wide(strength)
    return ((1 - share) * place / (_KNOTS - 1) + share * drawn) * span + low


def _regions(image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor) -> Tensor:
    """A random table of value and region; the view keeps its range of values."""
    low, high = (torch.where(v.isfinite(), v, 0.0) for v in _range(image, mask))
    inside = torch.where(mask, image, low)  # nothing flows in from outside the scan
    smooth = _blur(inside, mask, region_width(keys), keys)
    drawn = drawn_contrast(inside, smooth, mask, keys)
    return torch.lerp(image, drawn * (high - low) + low, _wide(strength))


def _bias(image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor) -> Tensor:
    """Darker away from a place, by up to exp(-2 strength), above the darkest value."""
    low, _ = _range(image, mask)
    factor = torch.exp(_wide(strength) * (bias_field(keys, image) - 1))
    return (image - low) * factor + low


def _bands(
    reference: BandReference | None,
    image: Tensor,
    mask: Tensor,
    strength: Tensor,
    keys: Tensor,
) -> Tensor:
    """Energies near the reference's, then back to the range of values it had."""
    if reference is None:
        raise ValueError("the change 'bands' needs energies of reference images.")
    wanted = drawn_energies(reference, keys)
    changed = with_energies(image, reference.sigmas, wanted, mask)
    (low, high), (own_low, own_high) = _range(image, mask), _range(changed, mask)
    share = (changed - own_low) / (own_high - own_low).clamp_min(1e-6)
    return torch.lerp(image, share * (high - low) + low, _wide(strength))


def _noise(image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor) -> Tensor:
    noise = normal_noise(keys, image[0].numel()).reshape(image.shape)
    return noise.mul_(_wide(strength)).add_(image)


def _blur(image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor) -> Tensor:
    """Gaussian of a standard deviation in voxels, renormalised at the borders."""

    def matrix(n: int) -> Tensor:
        place = torch.arange(n, dtype=torch.float32, device=image.device)
        apart = (place[:, None] - place) / strength[:, None, None].clamp_min(1e-3)
        weights = torch.exp(-0.5 * apart**2)
        return weights / weights.sum(-1, keepdim=True)

    return _along_axes(image, matrix)


def _low_resolution(
    image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor
) -> Tensor:
    """Averaged over coarse cells, then interpolated linearly between their centres."""
    return _along_axes(image, partial(_cells, 1.0 / strength))


def _slices(image: Tensor, mask: Tensor, strength: Tensor, keys: Tensor) -> Tensor:
    """Averaged over slices of a thickness in voxels, interpolated between them.

    They lie along one axis, the first as often as the others together: scans are mostly
    axial. Source: Billot et al., "SynthSeg", 2023, whose axis is any with equal chance.
    """
    drawn = uniform_noise(keys ^ _AXIS, 1)[:, 0]
    axes = [axis for axis in (-3, -3, -2, -1) if image.shape[axis] > 1]
    along = (drawn * len(axes)).long().clamp(max=len(axes) - 1)
    for axis in sorted(set(axes)):
        hit = torch.stack([along == i for i, a in enumerate(axes) if a == axis]).any(0)
        matrix = _cells(torch.where(hit, strength, 1.0), image.shape[axis])
        image = _along_one(image, matrix, axis)
    return image


def _cells(cell: Tensor, n: int) -> Tensor:
    """(N, n, n): means over cells of so many voxels, linear between their centres."""
    index = torch.arange(n, dtype=torch.float32, device=cell.device)
    cell = cell[:, None, None]
    edge = index[:, None] * cell
    shared = torch.minimum(edge + cell, index + 1) - torch.maximum(edge, index)
    down = shared.clamp_min(0)  # (N, coarse, fine)
    down = down / down.sum(-1, keepdim=True).clamp_min(1e-6)
    last = torch.ceil(n / cell - 1e-4) - 1
    place = (index[:, None] + 0.5) / cell - 0.5
    place = torch.minimum(place.clamp_min(0), last)
    up = (1 - (place - index).abs()).clamp_min(0)  # (N, fine, coarse)
    return up @ down


def _along_axes(image: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
    """Multiply each spatial axis by a matrix (N, n, n) per view; flat axes stay."""
    for axis in (-3, -2, -1):
        if image.shape[axis] > 1:
            image = _along_one(image, matrix(image.shape[axis]), axis)
    return image


def _along_one(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply one spatial axis, -3, -2 or -1, by a matrix (N, n, n) per view."""
    n, c, d, h, w = image.shape
    if axis == -3:
        image = matrix[:, None] @ image.reshape(n, c, d, h * w)
    elif axis == -2:
        image = matrix[:, None, None] @ image
    else:
        image = image.reshape(n, c * d * h, w) @ matrix.mT
    return image.reshape(n, c, d, h, w)


_APPLY: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "gamma": _gamma,
    "contrast": _contrast,
    "scale": _scale,
    "shift": _shift,
    "low_resolution": _low_resolution,
    "blur": _blur,
    "noise": _noise,
    "curve": _curve,
    "regions": _regions,
    "bias": _bias,
    "slices": _slices,
}
