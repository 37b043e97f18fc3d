"""How soon a training was as good as it became."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.comparing.results import curve_of
from homolog.comparing.statistics import steps_to_best
from homolog.runs.run import Run

SHARE = 0.98


@dataclass(frozen=True, eq=False)
class Course:
    """A training's course.

    Attributes:
        metric: Of the validations; empty where there were none.
        steps: Of them.
        values: Of the metric.
        losses: Name -> steps and values; of pretrainings, where nothing is validated.
        reached: Steps after which 98 % of the best was reached; None: unknown.
        total: Steps trained.
        pictures: Of what was learnt, drawn while training, in order.
    """

    metric: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    losses: dict[str, tuple[list[float], list[float]]]
    reached: int | None
    total: int
    pictures: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "metric": self.metric or None, "steps": list(self.steps),
            "values": list(self.values), "reached": self.reached, "total": self.total,
        }  # fmt: skip


def course_of(folder: Path, metrics: Sequence[str] = ("dice", "auc")) -> Course | None:
    """The course of the training in a folder; None where it is no run.

    Args:
        folder: A run, or its ``model`` folder.
        metrics: The first of these that was validated counts.

    Source: Hundred Million, Fig. 6: convergence is the earliest epoch with 98 % of the
        best of the whole training.
    Differs from the paper: counted in steps, at validations; there are no epochs here.

    Paper: Hundred Million Fig. 6.
    """
    homes = (f for f in (folder, folder.parent) if (f / "metrics.csv").is_file())
    home = next(homes, None)
    if home is None:
        return None
    run = Run.open(home) if (home / "run.json").is_file() else None
    curves = {name: curve_of(run, name) for name in metrics} if run else {}
    metric = next((name for name, curve in curves.items() if len(curve) > 1), "")
    curve = curves.get(metric, [])
    steps, values = [s for s, _ in curve], [v for _, v in curve]
    reached = steps_to_best(steps, values, SHARE) if metric else None
    losses = losses_of(home)
    ends = [x[-1] for x, _ in losses.values() if x]
    total = int(max([*steps, *ends], default=0))
    return Course(
        metric, tuple(steps), tuple(values), losses,
        None if reached is None else round(reached), total,
        tuple(sorted((home / "previews").glob("step_*.png"))),
    )  # fmt: skip


def losses_of(run: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Loss terms of a run's ``metrics.csv`` against the step: all left of the rate."""
    path = run / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    last = columns.index("learning_rate") if "learning_rate" in columns else 1
    steps = [float(row["step"]) for row in rows]
    return {
        name: (steps, [float(row[name] or "nan") for row in rows])
        for name in columns[1:last]
    }
