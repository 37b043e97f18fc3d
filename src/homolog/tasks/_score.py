"""One row of metrics per label of a case, and their summary over cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from homolog.geometry.affine import Triple
from homolog.metrics.overlap import dice_per_label
from homolog.metrics.surface import surface_per_label

METRICS = ("dice", "nsd", "hd95_mm")
_HIGHER_IS_BETTER = {"dice": True, "nsd": True, "hd95_mm": False}


def score_labels(
    predicted: NDArray[Any],
    truth: NDArray[Any],
    names: Mapping[int, str],
    *,
    spacing_mm: Triple,
    tolerance_mm: float = 1.0,
) -> list[dict[str, Any]]:
    """Dice, NSD and HD95 of every label.

    A label that both maps lack is left empty (None) and enters no mean. One that only
    one of them has scores Dice 0, NSD 0 and the diagonal of the scan as HD95. Voxels
    that are unlabelled (negative) in ``truth`` count in neither.

    Args:
        predicted: (D, H, W) label values.
        truth: (D, H, W) label values.
        names: Label value -> name; these labels are scored.
        spacing_mm: Voxel size (z, y, x).
        tolerance_mm: Of the NSD.

    Returns:
        Rows with ``label``, ``name`` and the METRICS.
    """
    dice = dice_per_label(predicted, truth, list(names))
    surface = surface_per_label(
        predicted, truth, list(names), spacing_mm=spacing_mm, tolerance_mm=tolerance_mm
    )
    return [
        {
            "label": label,
            "name": name,
            "dice": _or_none(dice[label]),
            "nsd": _or_none(surface[label].nsd),
            "hd95_mm": _or_none(surface[label].hd95_mm),
        }
        for label, name in names.items()
    ]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over cases, per label and in all, and the worst case of each metric.

    A case's value is the mean over its labels; ``mean`` is the mean of those, so that a
    case with few labels weighs as much as another.

    Args:
        rows: As from score_labels, with ``case``.

    Returns:
        ``cases``; ``mean`` and ``std`` (metric -> number); ``worst`` (metric -> case
        and value); ``labels`` (name -> metric -> mean).
    """
    cases = list(dict.fromkeys(row["case"] for row in rows))
    labels = list(dict.fromkeys(row["name"] for row in rows))
    summary: dict[str, Any] = {
        "cases": len(cases), "mean": {}, "std": {}, "worst": {}, "labels": {},
    }  # fmt: skip
    for metric in METRICS:
        per_case = {c: _mean(_values(rows, metric, "case", c)) for c in cases}
        known = {c: v for c, v in per_case.items() if v is not None}
        mean = _mean(list(known.values()))
        summary["mean"][metric] = mean
        if mean is None:
            continue
        spread = sum((v - mean) ** 2 for v in known.values()) / len(known)
        summary["std"][metric] = math.sqrt(spread)
        choose = min if _HIGHER_IS_BETTER[metric] else max
        worst = choose(known, key=lambda c: known[c])
        summary["worst"][metric] = {"case": worst, "value": known[worst]}
    for label in labels:
        summary["labels"][label] = {
            metric: _mean(_values(rows, metric, "name", label)) for metric in METRICS
        }
    return summary


def _values(
    rows: Sequence[Mapping[str, Any]], metric: str, key: str, value: Any
) -> list[float]:
    return [r[metric] for r in rows if r[key] == value and r[metric] is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """The summary for people."""
    lines = [f"{result['cases']} cases"]
    head = f"{'':<24}{'Dice':>8}{'NSD':>8}{'HD95 mm':>9}"
    lines.append(head)
    for name, means in result["labels"].items():
        lines.append(f"{name[:23]:<24}{_cells(means)}")
    lines.append(f"{'mean':<24}{_cells(result['mean'])}")
    worst = {m: w["value"] for m, w in result["worst"].items()}
    lines.append(f"{'worst case':<24}{_cells(worst)}")
    if "dice" in result["worst"]:
        lines.append(f"worst Dice: {result['worst']['dice']['case']}")
    return lines


def _cells(values: Mapping[str, float | None]) -> str:
    dice, nsd, distance = (values.get(m) for m in METRICS)
    text = "".join(f"{'-' if v is None else f'{v:.3f}':>8}" for v in (dice, nsd))
    return text + f"{'-' if distance is None else f'{distance:.2f}':>9}"
