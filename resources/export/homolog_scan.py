"""A scan as a Homolog model sees it, and its labels on the scan's own grid again.

Needs NumPy alone. ``prepare`` does what ``homolog predict`` does to a scan before its
network sees it, ``label`` slides the network over it, ``restore`` brings labels back.
Arrays are (C, D, H, W), D along z; affines map voxel (z, y, x) to world mm (z, y, x) of
LPS, see ``lps`` for those of nibabel and MONAI. ``recipe`` is the content of
homolog.json, which lies beside this file.

Part of Homolog; Apache License 2.0.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Sequence  # noqa: UP035 - Python 3.9 reads this, too

import numpy as np

# Numbers as in homolog.store.preprocess, .learnt_spacing and homolog.sliding.blending.
SAME, AGREE, TOO_COARSE, MOST_GROWTH = 1e-3, 0.05, 8.0, 1.5
BODY_HU, SAMPLE, PADDING, AIR, LEVELS = -500.0, 400_000, 0.15, 0.08, 8192
SCALINGS = ("usual", "unit", "signed", "zscore", "dataset")
SIGMA, SMALLEST_WEIGHT, SLICES_VOXELS = 0.125, 1e-3, 80**3


def read_recipe(path: str | Path | None = None) -> dict[str, Any]:
    """homolog.json; the one beside this file where none is named."""
    path = Path(path) if path else Path(__file__).with_name("homolog.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def lps(affine: Any) -> np.ndarray:
    """An affine of nibabel or MONAI (array x, y, z; RAS) for the array z, y, x.

    The array itself is to be transposed, last axis first.
    """
    told = np.asarray(affine, np.float64)
    found = np.diag([-1.0, -1.0, 1.0, 1.0]) @ told
    found[:3] = found[2::-1]
    found[:, :3] = found[:, 2::-1]
    return found


def ras(affine: Any) -> np.ndarray:
    """Inverse of ``lps``: array x, y, z; RAS."""
    found = np.array(affine, np.float64)
    found[:3] = found[2::-1]
    found[:, :3] = found[:, 2::-1]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ found


# The grid that the network sees.


@dataclass
class Grid:
    """From the scan's own grid to the prepared one.

    Attributes:
        axes: Permutation of the scan's axes.
        flips: Flips after it.
        source: Shape after both.
        shape: Prepared shape.
        step: Prepared voxel size in units of the turned scan's.
        affine: Of the prepared grid.
        spacing_mm: Of the prepared grid.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    source: tuple[int, ...]
    shape: tuple[int, ...] = ()
    step: tuple[float, ...] = (1.0, 1.0, 1.0)
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is interpolated."""
        return self.step == (1.0, 1.0, 1.0)

    def start(self, axis: int) -> float:
        """Index in the turned scan of the first prepared voxel."""
        half = (self.shape[axis] - 1) / 2.0 * self.step[axis]
        return (self.source[axis] - 1) / 2.0 - half

    def positions(self, axis: int) -> np.ndarray:
        """Index in the turned scan of every prepared voxel along an axis."""
        return self.start(axis) + np.arange(self.shape[axis]) * self.step[axis]

    def back(self, axis: int) -> np.ndarray:
        """Prepared index of every voxel of the turned scan along an axis."""
        offsets = np.arange(self.source[axis]) - self.start(axis)
        return offsets / self.step[axis]


def turning(
    affine: np.ndarray, shape: Sequence[int], acquired: bool
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Permutation and flips to the axes the network knows."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if acquired:
        across = max(range(3), key=lambda a: (shape[a] == 1, spacing[a]))
        rest = [a for a in range(3) if a != across]
        thick = spacing[across] >= 1.5 * max(spacing[a] for a in rest)
        if shape[across] == 1 or thick:
            return (across, *rest), (False, False, False)
    cosines = affine[:3, :3] / spacing
    best = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(cosines[w, a]) for w, a in enumerate(axes)),
    )
    return best, tuple(bool(cosines[w, a] < 0) for w, a in enumerate(best))


def plan(affine: Any, shape: Sequence[int], recipe: dict[str, Any]) -> Grid:
    """The prepared grid of a scan.

    Args:
        affine: (4, 4) of the array z, y, x (see ``lps``).
        shape: (D, H, W).
        recipe: Of the model.

    Raises:
        ValueError: Voxels so coarse that nothing learnt can be seen.
    """
    affine = np.asarray(affine, np.float64)
    how = recipe["preprocessing"]
    axes, flips = turning(affine, shape, how.get("axes") == "acquired")
    turn = np.zeros((4, 4))
    turn[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(axes, flips)):
        turn[old, new] = -1.0 if flip else 1.0
        turn[old, 3] += shape[old] - 1 if flip else 0
    turned = affine @ turn
    grid = Grid(axes, flips, tuple(int(shape[a]) for a in axes))
    spacing = tuple(float(v) for v in np.linalg.norm(turned[:3, :3], axis=0))
    target = _target(spacing, grid.source, recipe)
    sizes, steps = list(grid.source), [1.0, 1.0, 1.0]
    for axis in range(3) if target else ():
        ratio = target[axis] / spacing[axis]
        if abs(ratio - 1.0) > SAME and sizes[axis] > 1:
            sizes[axis], steps[axis] = max(1, round(sizes[axis] / ratio)), ratio
    grid.shape, grid.step = tuple(sizes), tuple(steps)
    move = np.diag([*steps, 1.0])
    move[:3, 3] = [grid.start(axis) for axis in range(3)]
    grid.affine = turned if grid.is_identity else turned @ move
    grid.spacing_mm = tuple(np.linalg.norm(grid.affine[:3, :3], axis=0).tolist())
    return grid


def _target(
    spacing: Sequence[float], shape: Sequence[int], recipe: dict[str, Any]
) -> tuple[float, ...] | None:
    """The voxel size a scan is brought to; None: it stays."""
    known = recipe.get("scanned_spacing_mm") or recipe.get("learnt_spacing_mm")
    for axis in range(3) if known else ():
        most = known["largest"][axis]
        if shape[axis] > 1 and most and spacing[axis] / most > TOO_COARSE:
            raise ValueError(
                f"voxels of {spacing[axis]:.3g} mm along {'zyx'[axis]}: the model "
                f"learnt from {most:.3g} mm, what it learnt cannot be seen there."
            )
    fixed = recipe["preprocessing"].get("spacing_mm")
    if fixed:
        return None if min(shape) == 1 else tuple(fixed)
    learnt = recipe.get("learnt_spacing_mm")
    if not learnt:
        return None
    wanted = []
    for axis, own in enumerate(spacing):
        low, high = learnt["smallest"][axis], learnt["largest"][axis]
        if shape[axis] > 1 and low and own * (1 + AGREE) < low:
            own = low
        elif shape[axis] > 1 and high and own > high * (1 + AGREE):
            own = high
        wanted.append(own)
    return None if tuple(wanted) == tuple(spacing) else tuple(wanted)


# Values: another voxel size, int16, and what a network sees.


def resample(data: np.ndarray, grid: Grid) -> np.ndarray:
    """Values on the prepared grid, within the range of the input.

    Cubic convolution (Keys 1981, a = -0.5), widened where voxels grow.
    """
    found = np.asarray(data, np.float32)
    for axis in (1, 2, 0):
        if grid.step[axis] == 1.0:
            continue
        width = max(1.0, grid.step[axis])
        centres = grid.positions(axis)[:, None]
        far = np.abs(np.arange(grid.source[axis])[None, :] - centres) / width
        near = (1.5 * far - 2.5) * far**2 + 1.0
        away = ((-0.5 * far + 2.5) * far - 4.0) * far + 2.0
        weights = np.where(far < 1, near, np.where(far < 2, away, 0.0))
        weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        found = np.moveaxis(np.tensordot(weights, found, (1, axis + 1)), 0, axis + 1)
    return np.clip(found, float(data.min()), float(data.max()))


def sample_of(data: np.ndarray) -> np.ndarray:
    """Evenly spread voxels, at most about 400 000."""
    flat = data.reshape(-1)
    step = math.ceil(flat.size / SAMPLE)
    while step > 1 and math.gcd(step, data.shape[-1] * data.shape[-2]) > 1:
        step += 1
    return np.asarray(flat[::step], np.float32)


def to_int16(data: np.ndarray, grid: Grid) -> tuple[np.ndarray, float, float]:
    """Values of one channel (1, D, H, W) as int16 with a scale and an offset."""
    values = np.ascontiguousarray(data)
    if values.dtype.kind == "f":
        values = np.clip(values, -1e15, 1e15)
    whole = values.dtype.kind in "biu" or bool((values == np.rint(values)).all())
    if not grid.is_identity:
        values = resample(values, grid)
    least, most = float(values.min()), float(values.max())
    usual = [float(p) for p in np.percentile(sample_of(values), (0.05, 99.95))]
    exact = grid.is_identity or usual[1] - usual[0] >= 1024
    if whole and exact and round(most) - round(least) <= 65535:
        fits = least >= -32768 and most <= 32767
        scale, offset = 1.0, 0.0 if fits else float(round(least) + 32768)
    else:
        low, high = usual if usual[1] > usual[0] else (least, most)
        if not high > low:
            return np.zeros(values.shape, np.int16), 1.0, low
        scale, offset = (high - low) / LEVELS, (low + high) / 2
    stored = np.rint((values.astype(np.float64) - offset) / scale)
    return np.clip(stored, -32768, 32767).astype(np.int16), scale, offset


def body(sample: np.ndarray) -> np.ndarray:
    """Which of the values belong to the body, of a scan whose values have no unit."""
    found, counts = np.unique(sample, return_counts=True)
    top = int(counts.argmax())
    padding = float(found[top]) if counts[top] > PADDING * sample.size else None
    rest = sample if padding is None else sample[sample != padding]
    if rest.size == 0:
        return np.ones(sample.shape, bool)
    low, high = np.percentile(rest, (0.1, 99.5))
    if padding is not None and padding > low:
        return sample != np.float32(padding)
    floor = low if padding is None else padding
    return sample > floor + AIR * (high - floor)


def between(low: float, high: float, unit: bool) -> tuple[float, float, float, float]:
    """From 0 to 1, or from -1 to 1, between two values."""
    span = high - low if high > low else 1.0
    return low, high, low if unit else (low + high) / 2, span / (2 - unit)


def over_all(
    sample: np.ndarray, least: float, most: float, how: dict[str, Any]
) -> tuple[float, float, float, float]:
    """Percentiles, or mean and spread, of all voxels."""
    if how["scaling"] == "signed":
        low, high = (float(p) for p in np.percentile(sample, how["percentiles"]))
        return between(*((low, high) if high > low else (least, most)), False)
    spread = float(sample.std(dtype=np.float64))
    if not spread > 1e-6 * max(abs(least), abs(most), 1e-30):
        spread = 1.0
    return least, most, float(sample.mean(dtype=np.float64)), spread


def over_body(
    sample: np.ndarray, how: dict[str, Any]
) -> tuple[float, float, float, float]:
    """Percentiles, mean and spread of the body."""
    inner = sample[body(sample)]
    inner = inner if inner.size >= 16 else sample
    low, high = (float(p) for p in np.percentile(inner, how["percentiles"]))
    if not high > low:
        low, high = float(sample.min()), float(sample.max())
    kept = np.clip(inner, low, high)
    spread = float(kept.std())
    if not spread > 1e-6 * max(abs(low), abs(high), 1e-30):
        spread = high - low if high > low else 1.0
    return low, high, float(kept.mean()), spread


def intensities(
    stored: np.ndarray, scale: float, offset: float, kind: str, how: dict[str, Any]
) -> tuple[float, float, float, float]:
    """Darkest and brightest value kept, centre and spread.

    Raises:
        ValueError: Values are prepared in a way that this file does not know.
    """
    sample = sample_of(stored) * np.float32(scale) + np.float32(offset)
    way = how.get("scaling", "usual")
    if way not in SCALINGS:
        raise ValueError(f"this program is older than the model: scaling {way!r}.")
    if way in ("signed", "zscore"):
        least, most = (
            float(end) * scale + offset for end in (stored.min(), stored.max())
        )
        return over_all(sample, least, most, how)
    if kind == "CT":
        low, high = (float(v) for v in how["window_hu"])
        if way == "dataset":
            mean, spread = (float(v) for v in how["dataset_hu"])
            return low, high, mean, spread
        return between(low, high, way == "unit")
    found = over_body(sample, how)
    return between(*found[:2], True) if way == "unit" else found


@dataclass
class Prepared:
    """A scan as the network sees it.

    Attributes:
        image: (C, *grid.shape) float32.
        outside: What the network sees outside the scan, one value a channel.
        grid: Back to the scan's own.
    """

    image: np.ndarray
    outside: list[float]
    grid: Grid


def prepare(
    data: np.ndarray, affine: Any, recipe: dict[str, Any], modality: str = ""
) -> Prepared:
    """A scan as the network sees it.

    Args:
        data: (C, D, H, W).
        affine: (4, 4) voxel (z, y, x) -> world (z, y, x) in mm, LPS.
        recipe: Of the model.
        modality: CT, MR, PET ...; needed where the model learnt from several.

    Raises:
        ValueError: Another number of channels, values that are no numbers, voxels too
            coarse, or no modality where one is needed.
    """
    if len(data) != recipe["channels"]:
        raise ValueError(
            f"the model takes {recipe['channels']} channels, got {len(data)}."
        )
    how = recipe["preprocessing"]
    if not np.isfinite([float(data.min()), float(data.max())]).all():
        if not how.get("fill_nan"):
            raise ValueError("the scan holds NaN or infinite values.")
        data = np.array(data)
        for channel in data:
            lost = ~np.isfinite(channel)
            channel[lost] = channel[~lost].min()
    kinds = recipe.get("channel_modalities") or [
        modality or recipe.get("modality") or ""
    ] * len(data)
    if not all(kinds):
        known = ", ".join(recipe.get("modalities", ()))
        raise ValueError(f"the model learnt from {known}: say which this scan is.")
    masks = recipe.get("masks") or [False] * len(data)
    grid = plan(affine, data.shape[1:], recipe)
    turned = np.transpose(data, (0, *(a + 1 for a in grid.axes)))
    turned = np.flip(turned, [a + 1 for a, flip in enumerate(grid.flips) if flip])
    image = np.empty((len(data), *grid.shape), np.float32)
    outside = []
    for number, (kind, is_mask) in enumerate(zip(kinds, masks)):
        stored, scale, offset = to_int16(turned[number : number + 1], grid)
        told = intensities(stored, scale, offset, kind, how)
        if is_mask and kind != "CT":
            told = 0.0, 1.0, 0.0, 1.0
        low, high, centre, spread = told
        gain, bias = np.float32(scale / spread), np.float32((offset - centre) / spread)
        ends = [np.float32((end - centre) / spread) for end in (low, high)]
        image[number] = np.clip(stored[0] * gain + bias, *ends)
        fill = max(-32768, min(32767, round((low - offset) / scale)))
        outside.append(float(np.clip(np.float32(fill) * gain + bias, *ends)))
    return Prepared(image, outside, grid)


# Windows over a scan, as MONAI's sliding_window_inference(mode="gaussian") blends them.


def window_of(
    shape: Sequence[int], recipe: dict[str, Any]
) -> tuple[tuple[int, ...], bool]:
    """The window for a scan, and whether it follows the scan's size.

    A network of fixed sides takes one window. Others take a smaller one for a smaller
    scan, and one of the scan's size where that is not much larger.
    """
    window = tuple(recipe["window"])
    if recipe["sides"] == "fixed":
        return window, False
    if recipe["slicewise"]:
        most = max(SLICES_VOXELS // (window[1] * window[2]), 1)
        parts = -(-shape[0] // most)
        window = (-(-shape[0] // parts), *window[1:])
    legal = tuple(
        min(side, -(-max(n, least) // m) * m)
        for n, side, m, least in zip(
            shape, window, recipe["divisor"], recipe["smallest"]
        )
    )
    if not recipe.get("follow") or recipe["slicewise"]:
        return legal, False
    larger = []
    for n, side, m in zip(shape, legal, recipe["follow"]):
        whole = -(-n // m) * m
        larger.append(whole if side < n and whole <= MOST_GROWTH * side else side)
    return tuple(larger), tuple(larger) != legal


def padding(
    shape: Sequence[int], window: Sequence[int], follows: bool
) -> list[tuple[int, int]]:
    """Voxels before and after each axis; no side is shorter than the window's then."""
    sides = []
    for n, side in zip(shape, window):
        lack = max(side - n, 0)
        before = (lack + int(follows)) // 2
        sides.append((before, lack - before))
    return sides


def padded(
    image: np.ndarray, sides: list[tuple[int, int]], outside: Sequence[float]
) -> Any:
    """The image with what lies outside the scan around it."""
    return np.stack(
        [
            np.pad(channel, sides, constant_values=value)
            for channel, value in zip(image, outside)
        ]
    )


def gaussian(window: Sequence[int], slicewise: bool = False) -> np.ndarray:
    """Weight of each voxel of a window."""
    weight = np.ones((1, 1, 1), np.float32)
    for axis, side in enumerate(window):
        if slicewise and axis == 0:
            continue
        place = np.arange(side, dtype=np.float32) - (side - 1) / 2.0
        bell = np.exp(place**2 / (-2.0 * (SIGMA * side) ** 2)).astype(np.float32)
        weight = weight * bell.reshape([-1 if a == axis else 1 for a in range(3)])
    weight = np.maximum(weight, max(float(weight.min()), SMALLEST_WEIGHT))
    return np.broadcast_to(weight, tuple(window))


def label(
    prepared: Prepared,
    network: Callable[[np.ndarray], np.ndarray],
    recipe: dict[str, Any],
) -> np.ndarray:
    """Class of every voxel of a prepared scan, (D, H, W).

    Args:
        prepared: Of ``prepare``.
        network: (1, C, *window) float32 -> (1, K, *window) logits.
        recipe: Of the model.
    """
    shape = prepared.grid.shape
    window, follows = window_of(shape, recipe)
    sides = padding(shape, window, follows)
    image = padded(prepared.image, sides, prepared.outside)
    overlap = [recipe["overlap"]] * 3
    overlap[0] = 0.0 if recipe["slicewise"] else overlap[0]
    weight = gaussian(window, recipe["slicewise"])
    sums = np.zeros((len(recipe["label_values"]), *image.shape[1:]), np.float32)
    starts = []
    for n, side, part in zip(image.shape[1:], window, overlap):
        step = max(int(side * (1.0 - part)), 1)
        count = -(-(n - side) // step) + 1
        starts.append([min(i * step, n - side) for i in range(count)])
    for start in itertools.product(*starts):
        there = (slice(None), *(slice(s, s + n) for s, n in zip(start, window)))
        given = np.ascontiguousarray(image[there][None], np.float32)
        sums[there] += np.asarray(network(given))[0] * weight
    inner = tuple(slice(a, n - b) for (a, b), n in zip(sides, image.shape[1:]))
    return sums[(slice(None), *inner)].argmax(0)


def restore(classes: np.ndarray, grid: Grid, recipe: dict[str, Any]) -> np.ndarray:
    """Classes on the prepared grid -> label values on the scan's own, (D, H, W)."""
    values = np.asarray(recipe["label_values"], np.int32)[np.asarray(classes, np.int64)]
    for axis in range(3) if not grid.is_identity else ():
        at = np.floor(grid.back(axis) + 0.5).astype(np.int64)
        values = np.take(values, np.clip(at, 0, grid.shape[axis] - 1), axis)
    values = np.flip(values, [a for a, flip in enumerate(grid.flips) if flip])
    return np.ascontiguousarray(np.transpose(values, np.argsort(grid.axes)))


def label_type(recipe: dict[str, Any]) -> Any:
    """The smallest integer type that holds the label values."""
    most = max(recipe["label_values"])
    return np.uint8 if most < 256 else np.uint16 if most < 65536 else np.int32
