"""How good a classifier is, from the rows of an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.metrics.classification import (
    classification_scores,
    finding_scores,
    macro_mean,
)
from homolog.tasks._class_answer import (
    chance_columns,
    class_of_column,
    type_columns,
)

_TYPE = type_columns([""])[0]
_TOLD = (
    "auc", "average_precision", "accuracy", "sensitivity", "specificity",
    "calibration_error",
)  # fmt: skip


def summarise_classes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics over all cases.

    Args:
        rows: As ``Classify.score`` makes them, with ``case``; ``known`` holds what is
            known beside one class: marks (1, 0, -1 not known) of ``classes``, whether
            each is ``told``, marks of ``types``, of ``slices`` and their ``presence``.

    Returns:
        ``cases``; ``mean``: of one class per scan ``classification_scores``, of several
        the mean over classes; ``classes``: class -> ``finding_scores``; ``confusion``
        (one class per scan): true -> predicted -> n; ``types`` and ``slices`` where the
        model tells of them.
    """
    if not rows:
        return {"cases": 0, "mean": {}, "classes": {}, "confusion": {}}
    names = [n for n in map(class_of_column, rows[0]) if n is not None]
    chances = np.array([[row[c] for c in chance_columns(names)] for row in rows])
    result: dict[str, Any] = {"cases": len(rows)}
    known = [row.get("known", {}) for row in rows]
    if "classes" in known[0]:
        truth = np.array([marks["classes"] for marks in known])
        told = np.array([marks["told"] for marks in known], bool)
        scores = finding_scores(truth, chances, told)
        result["mean"] = macro_mean(scores)
    else:
        numbers = [names.index(row["true"]) for row in rows]
        truth = np.eye(len(names), dtype=np.int64)[numbers]
        told = np.eye(len(names), dtype=bool)[chances.argmax(1)]
        scores = finding_scores(truth, chances, told)
        result["mean"] = classification_scores(numbers, chances)
        pairs = Counter((row["true"], row["predicted"]) for row in rows)
        result["confusion"] = {a: {b: pairs[a, b] for b in names} for a in names}
    result["classes"] = dict(zip(names, scores, strict=True))
    if "types" in known[0]:
        result["types"] = _types(rows, np.array([marks["types"] for marks in known]))
    if "slices" in known[0]:
        result["slices"] = slice_scores(
            np.concatenate([marks["slices"] for marks in known]),
            np.concatenate([marks["presence"] for marks in known]),
        )
    return result


def _types(
    rows: Sequence[Mapping[str, Any]], truth: NDArray[np.int64]
) -> dict[str, Any]:
    names = [key[len(_TYPE) :] for key in rows[0] if key.startswith(_TYPE)]
    chances = np.array([[row[c] for c in type_columns(names)] for row in rows])
    scores = finding_scores(truth, chances, chances >= 0.5)
    return {
        "mean": macro_mean(scores),
        "classes": dict(zip(names, scores, strict=True)),
    }


def slice_scores(
    truth: NDArray[np.int64], presence: NDArray[np.float64]
) -> dict[str, float | None]:
    """``finding_scores`` of slices: whether each shows a finding, (N,) each."""
    chances = presence[:, None]
    return finding_scores(truth[:, None], chances, chances >= 0.5)[0]


def report_lines(result: Mapping[str, Any]) -> list[str]:
    """Metrics, each class on its own, then who was taken for whom."""
    lines = [f"{result['cases']} cases"]
    several = result["cases"] and "confusion" not in result
    if several:
        lines.append("mean over classes:")
    for name, value in result["mean"].items():
        lines.append(f"{name.replace('_', ' '):<20}{_number(value)}")
    if several:
        lines += [_line(name, s) for name, s in result["classes"].items()]
    for true, row in result.get("confusion", {}).items():
        told = ", ".join(f"{n} as {name}" for name, n in row.items() if n)
        lines.append(f"{true}: {told or 'none'}")
    types = result.get("types", {}).get("classes", {})
    lines += [_line(f"type {name}", scores) for name, scores in types.items()]
    if "slices" in result:
        lines.append(_line("slices with a finding", result["slices"]))
    return lines


def _line(name: str, scores: Mapping[str, Any]) -> str:
    """``effusion (12 of 40): auc 0.91, ...``."""
    known = scores["positives"] + scores["negatives"]
    told = [f"{key.replace('_', ' ')} {_number(scores[key])}" for key in _TOLD]
    return f"{name} ({scores['positives']} of {known}): {', '.join(told)}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
