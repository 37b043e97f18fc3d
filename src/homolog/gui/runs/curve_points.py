"""Which points of a curve are drawn: few, but with every peak; no Qt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 2000

Points = tuple[NDArray[np.float64], NDArray[np.float64]]

# Okabe-Ito: told apart by colour-blind eyes; the legend also has another dash each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
EARLIER = "#8C8C8C"


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: In the legend.
        x: (N,) steps, rising.
        y: (N,) values; NaN makes a gap.
        role: ``train``, ``part`` (a term of the loss), ``validation`` or ``earlier``.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    role: str = "train"


@dataclass
class Series:
    """Values by step that grow; a resumed session overwrites what it repeats."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: float, value: float) -> None:
        """Append; later steps of a killed session are dropped first."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)

    def points(self, most: int = MOST_POINTS) -> Points:
        """(n,) steps and (n,) values, at most ``most`` of them."""
        return decimated(np.asarray(self.steps), np.asarray(self.values), most)


def decimated(
    x: NDArray[np.float64], y: NDArray[np.float64], most: int = MOST_POINTS
) -> Points:
    """The lowest and the highest point of each of ``most / 2`` stretches, in order.

    Args:
        x: (N,) rising.
        y: (N,).
        most: Even; N at most this comes back as it is.

    Returns:
        x and y of the kept points.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most // 2 + 1).astype(int)
    low = np.where(np.isfinite(y), y, np.inf)
    high = np.where(np.isfinite(y), y, -np.inf)
    kept = np.empty(2 * (len(edges) - 1), dtype=int)
    for i, (begin, end) in enumerate(itertools.pairwise(edges)):
        pair = (
            begin + int(low[begin:end].argmin()),
            begin + int(high[begin:end].argmax()),
        )
        kept[2 * i], kept[2 * i + 1] = min(pair), max(pair)
    kept[0], kept[-1] = 0, len(x) - 1
    kept = np.unique(kept)
    return x[kept], y[kept]


def smoothed(y: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Running mean that forgets; 0 leaves the values, 0.9 averages about ten.

    The start is unbiased (as in Adam), so that a curve does not begin at zero; NaN
    are passed over.
    """
    if strength <= 0:
        return np.asarray(y, float)
    found = np.empty(len(y))
    mean, weight = 0.0, 0.0
    for i, value in enumerate(np.asarray(y, float)):
        if np.isfinite(value):
            mean = strength * mean + (1 - strength) * value
            weight = strength * weight + (1 - strength)
        found[i] = mean / weight if weight else np.nan
    return found


def log_safe(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a logarithmic axis can show: values of zero and below become gaps."""
    y = np.asarray(y, float)
    return np.where(y > 0, y, np.nan)


def nearest(curve: Curve, x: float) -> tuple[float, float] | None:
    """The point of a curve closest in step; None where it has none."""
    if not len(curve.x):
        return None
    place = int(np.abs(curve.x - x).argmin())
    return float(curve.x[place]), float(curve.y[place])


def hover_words(curves: list[Curve], x: float) -> str:
    """``"step 40: loss 1.23, dice 0.81"``."""
    parts, step = [], None
    for curve in curves:
        found = nearest(curve, x)
        if found is None:
            continue
        if step is None:
            step = found[0]
        parts.append(f"{curve.name} {found[1]:.4g}")
    return f"step {step:.0f}: {', '.join(parts)}" if step is not None else ""


def colour_of(curve: Curve, place: int) -> str:
    """Colour of a curve by its place in the chart."""
    return EARLIER if curve.role == "earlier" else COLOURS[place % len(COLOURS)]


def bounds(curves: Sequence[Curve]) -> tuple[float, float, float, float] | None:
    """Smallest and largest step and value that can be drawn; None where nothing can."""
    x = np.concatenate([c.x for c in curves]) if curves else np.empty(0)
    y = np.concatenate([c.y for c in curves]) if curves else np.empty(0)
    keep = np.isfinite(y)
    if not keep.any():
        return None
    x, y = x[keep], y[keep]
    return float(x.min()), float(x.max()), float(y.min()), float(y.max())
