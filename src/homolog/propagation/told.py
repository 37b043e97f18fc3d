"""What is told of carried labels: rows as they come, scores, tables, the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.config import to_dict
from homolog.json_files import object_or_none
from homolog.metrics.overlap import dice_per_label
from homolog.propagation.config import PropagateConfig
from homolog.scans.volume import LabelMap
from homolog.writing import write_json, write_table

SUMMARY, TABLE, SCORES = "propagation.json", "propagation.csv", "dice.csv"
COLUMNS = (
    "case", "confidence", "miss_mm", "doubtful", "dice", "same_patient", "seconds",
    "result", "uncertainty",
)  # fmt: skip
# Of fewer scans nobody knows what is usual.
_SEVERAL = 4
Row = Mapping[str, Any]


def rows_before(out: Path) -> dict[str, dict[str, Any]]:
    """Rows that an earlier time left, by case."""
    before = object_or_none(out / SUMMARY) or {}
    return {row["case"]: row for row in before.get("cases", [])}


def keep_rows(out: Path, before: Mapping[str, Row], rows: Sequence[Row]) -> None:
    """Write down what is done, for the next time to go on from."""
    done = {row["case"]: row for row in rows}
    write_json(out / SUMMARY, {"cases": list({**before, **done}.values())})


def scores_of(
    case: str, labels: LabelMap, truth: NDArray[np.integer]
) -> list[dict[str, Any]]:
    """Dice per label, None where neither has it; both on one grid (D, H, W)."""
    dice = dice_per_label(labels.data, truth, list(labels.names))
    return [
        {"case": case, "label": v, "name": n,
         "dice": None if np.isnan(dice[v]) else dice[v]}
        for v, n in labels.names.items()
    ]  # fmt: skip


def mean_dice_of(scores: Sequence[Row]) -> float | None:
    """Over the labels of a case; None where nothing is known."""
    known = [s["dice"] for s in scores if s["dice"] is not None]
    return float(np.mean(known)) if known else None


def told(
    out: Path, rows: Sequence[Row], failed: Sequence[Mapping[str, str]],
    config: PropagateConfig, sources: Sequence[str], *, stopped: bool,
) -> dict[str, Any]:  # fmt: skip
    """The result, and the same as tables in ``out``."""
    unsure = doubtful_of(rows, config.trust)
    rows = [{**row, "doubtful": row["case"] in unsure} for row in rows]
    rows.sort(key=lambda row: float(row["confidence"]))
    scores = [score for row in rows for score in row["scores"]]
    result = {
        "sources": list(sources),
        "method": config.method,
        "settings": to_dict(config),
        "cases": rows,
        "failed": list(failed),
        "scores": scores,
        "mean_dice": dict(_means(rows)),
        "out": str(out),
        "table": str(out / TABLE),
        "stopped": stopped,
    }
    write_json(out / SUMMARY, result)
    write_table(out / TABLE, COLUMNS, rows)
    if scores:
        write_table(out / SCORES, ("case", "label", "name", "dice"), scores)
    return result


def doubtful_of(rows: Sequence[Row], trust: float) -> frozenset[str]:
    """Cases whose labels are much less sure than most, or come back far off.

    Of 167 scans of three data sets the 18 that the default names had a mean Dice of
    0.36, the others of 0.78 (docs/measured.md).

    Args:
        rows: With ``case``, ``confidence`` and ``miss_mm``.
        trust: Share of the median sureness that is enough; 0: nobody is doubtful.
    """
    if trust <= 0 or len(rows) < _SEVERAL:
        return frozenset()
    sure = float(np.median([float(row["confidence"]) for row in rows]))
    miss = float(np.median([float(row["miss_mm"]) for row in rows]))
    return frozenset(
        str(row["case"])
        for row in rows
        if not float(row["confidence"])
        or float(row["confidence"]) < trust * sure
        or float(row["miss_mm"]) * trust > miss
    )


def _means(rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """Mean Dice per label name over other patients, and ``mean`` of these."""
    kept = [s for row in rows if not row["same_patient"] for s in row["scores"]]
    means = []
    for name in dict.fromkeys(s["name"] for s in kept):
        dice = [s["dice"] for s in kept if s["name"] == name and s["dice"] is not None]
        if dice:
            means.append(float(np.mean(dice)))
            yield name, means[-1]
    if means:
        yield "mean", float(np.mean(means))
