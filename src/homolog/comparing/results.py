"""Rows of finished cells, and the table made of them.

``rows.jsonl`` has one row for each cell and test case and grows as cells are done; rows
of cells that a changed plan no longer has stay, and are left out of the table.
``table.csv`` and ``comparison.json`` are made anew of what is there: the same cells
give the same bytes of the table, in whatever order and however often interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from homolog import __version__
from homolog.comparing.cells import Cell, Cells
from homolog.comparing.running import seconds_of
from homolog.comparing.statistics import (
    Difference,
    Scores,
    area_over_steps,
    bootstrap_interval,
    difference,
    holm,
    of_draws,
    resampled,
    steps_to,
    steps_to_best,
)
from homolog.config import to_dict
from homolog.errors import JobError
from homolog.events import Validated
from homolog.json_files import read_object
from homolog.runs.run import Run
from homolog.store.splits import patients_of
from homolog.words import utc_now
from homolog.writing import create, flush, write_json, write_table

COLUMNS = (
    "arm", "patients", "cases", "tests", "seeds", "mean", "low", "high", "seed_std",
    "against", "difference", "difference_low", "difference_high", "both_low",
    "both_high", "wins", "losses", "p", "p_holm", "area", "steps_to_98",
    "steps_to_control", "steps",
)  # fmt: skip
_DIGITS = 6


@dataclass
class Results:
    """What is known of the cells that are done.

    Args:
        cells: Of the plan.
        out: Gets ``rows.jsonl``, ``table.csv`` and ``comparison.json``.
    """

    cells: Cells
    out: Path
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    classes: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    set_classes: dict[str, dict[str, float]] = field(default_factory=dict)
    draws: dict[str, Scores] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._path = self.out / "rows.jsonl"
        self._written = _rows_in(self._path)
        self._patients = patients_of(self.cells.store.cards)
        self._name = self.cells.metric.removeprefix("-")
        self._sign = -1.0 if self.cells.metric.startswith("-") else 1.0

    def add(self, cell: Cell) -> None:
        """Take in a cell that is done.

        Raises:
            JobError: Its scores lack a test case.
        """
        work = self.cells.evaluation(cell)
        tuned = self.cells.finetuning(cell)
        rows = read_object(work.folder / "metrics.json", {"rows": list})["rows"]
        by_case: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_case.setdefault(str(row["case"]), []).append(row)
        missing = sorted(set(cell.parts.test) - set(by_case))
        if missing:
            raise JobError(f"{work.folder} has no score of the case {missing[0]!r}.")
        self.scores[cell.name], self.classes[cell.name] = {}, {}
        for case, own in by_case.items():
            value = None if self.cells.task.of_sets else self._score(own)
            if value is not None:
                self.scores[cell.name][case] = value
            self.classes[cell.name][case] = {
                str(r["name"]): float(r[self._name])
                for r in own
                if r.get("name") is not None and r.get(self._name) is not None
            }
        if not self.scores[cell.name]:
            self._whole(cell, rows)
        self.curves[cell.name] = curve_of(Run.open(tuned.folder), self._name)
        self._time(cell)
        self._append(cell, work.key, by_case)

    def _score(self, rows: Sequence[Mapping[str, Any]]) -> float | None:
        """Of a set of rows, as an evaluation has it."""
        value = self.cells.task.summarise(rows)["mean"].get(self._name)
        return None if value is None or not math.isfinite(value) else float(value)

    def _whole(self, cell: Cell, rows: Sequence[Mapping[str, Any]]) -> None:
        """Scores of the set and of drawn patients, where a case alone has none."""
        value = self._score(rows)
        if value is None:
            return
        self.whole[cell.name] = value
        found = self.cells.task.summarise(rows).get("classes") or {}
        self.set_classes[cell.name] = {
            str(name): float(scores[self._name])
            for name, scores in found.items()
            if scores.get(self._name) is not None
        }
        names = [self._patients[str(row["case"])] for row in rows]
        self.draws[cell.name] = resampled(rows, names, self._score, cell.parts.fold)

    def _time(self, cell: Cell) -> None:
        self.seconds[cell.name] = {
            work.stage: round(_trained_s(Run.open(work.folder)), 1)
            for work in self.cells.works(cell)
        }

    def _append(
        self, cell: Cell, key: str, by_case: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> None:
        """Rows that are not in the file yet, at once and on the disk."""
        rows = [
            {
                "cell": key, "arm": cell.arm.name, "patients": cell.patients,
                "cases": len(cell.cases), "seed": cell.seed, "fold": cell.parts.fold,
                "case": case, "patient": self._patients[case],
                self._name: self.scores[cell.name].get(case),
                "classes": self.classes[cell.name][case],
            }
            for case in sorted(by_case)
            if (key, case) not in self._written
        ]  # fmt: skip
        if not rows:
            return
        text = "".join(json.dumps(row) + "\n" for row in rows)
        create(self._path)
        with self._path.open("r+b") as file:
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                text = text if file.read(1) == b"\n" else "\n" + text  # torn by a kill
            file.write(text.encode())
            flush(file)
        self._written |= {(key, str(row["case"])) for row in rows}

    def write(self, troubles: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
        """Make table and summary of what is there; returns the summary."""
        entries = self.entries()
        steps = {e["steps"] for e in entries}
        summary = {
            "store": str(self.cells.store.path),
            "store_hash": self.cells.store.hash,
            "prepared": to_dict(self.cells.store.preprocessing),
            "task": self.cells.plan.numbers.task,
            "metric": self._name,
            "lower_is_better": self._sign < 0,
            "of_sets": self.cells.task.of_sets,
            "settings": to_dict(self.cells.plan.numbers),
            "seeds": list(self.cells.plan.seeds),
            "arms": [self._arm(arm.name) for arm in self.cells.plan.arms],
            "test_patients": len(self._tests()),
            "same_steps": len(steps - {None}) <= 1,
            "done": len(self.scores),
            "cells": len(self.cells.all),
            "failed": [dict(trouble) for trouble in troubles],
            "table": entries,
            "curves": self._mean_curves(),
            "patients": self._patient_scores(),
            "seconds": self.seconds,
            "version": __version__,
            "written": utc_now(),
        }
        write_json(self.out / "comparison.json", summary)
        names = sorted({name for e in entries for name in e["classes"]})
        flat = [
            {**e, **{f"class {n}": e["classes"].get(n) for n in names}} for e in entries
        ]
        columns = (*COLUMNS, *(f"class {name}" for name in names))
        write_table(self.out / "table.csv", columns, flat)
        return summary

    def _arm(self, name: str) -> dict[str, Any]:
        arm = self.cells.plan.arm(name)
        return {
            "name": name, "what": arm.what, "method": arm.method,
            "encoder": arm.encoder, "against": arm.against, "carry": arm.carry,
            "carry_to": arm.carry_to, "finetune": dict(arm.finetune),
            "pretrain": dict(arm.pretrain), "propagate": dict(arm.propagate),
            "carried": dict(arm.carried),
        }  # fmt: skip

    def entries(self) -> list[dict[str, Any]]:
        """One entry for each arm and number of patients that has a cell."""
        entries = []
        for count in dict.fromkeys(cell.patients for cell in self.cells.all):
            for arm in self.cells.plan.arms:
                entry = self._entry(arm.name, arm.against, count)
                if entry is not None:
                    entries.append(entry)
        for entry, p in zip(entries, holm([e["p"] for e in entries]), strict=True):
            entry["p_holm"] = _rounded(p)
            entry["p"] = _rounded(entry["p"])
        return entries

    def _entry(self, arm: str, against: str, count: int | str) -> dict[str, Any] | None:
        own = self._done(arm, count)
        if not own:
            return None
        matrix, seeds, _ = self._matrix(own)
        entry: dict[str, Any] = dict.fromkeys(COLUMNS)
        cases = [len(c.cases) for c in own]
        entry |= {
            "arm": arm, "patients": count, "cases": _rounded(float(np.mean(cases))),
            "tests": matrix.shape[1], "seeds": len(seeds), "against": against,
            "classes": self._class_means(own), "steps": self._steps(own),
        }  # fmt: skip
        if matrix.size:
            means = matrix.mean(axis=1)
            low, high = bootstrap_interval(matrix.mean(axis=0)) or (None, None)
            entry |= {
                "mean": _rounded(matrix.mean()), "low": _rounded(low),
                "high": _rounded(high),
                "seed_std": _rounded(means.std(ddof=1)) if len(means) > 1 else None,
            }  # fmt: skip
        elif any(cell.name in self.whole for cell in own):
            entry |= self._set_means(own)
        if arm != against:
            entry |= self._compared(own, self._done(against, count))
        return entry | self._speed(own, self._done(against, count))

    def _set_means(self, own: list[Cell]) -> dict[str, Any]:
        """Mean and interval of scores of whole sets."""
        sets = self._sets(own)
        means = np.array([value for value, _ in sets.values()])
        draws = np.mean([drawn for _, drawn in sets.values()], axis=0)
        known = draws[np.isfinite(draws)]
        low, high = np.percentile(known, (2.5, 97.5)) if known.size else (None, None)
        return {
            "seeds": len(sets), "mean": _rounded(float(means.mean())),
            "low": _rounded(low), "high": _rounded(high),
            "seed_std": _rounded(means.std(ddof=1)) if len(means) > 1 else None,
        }  # fmt: skip

    def _sets(self, cells: list[Cell]) -> dict[int, tuple[float, Scores]]:
        """Seed -> score of its sets, mean over folds, and of drawn patients."""
        found = {}
        for seed in dict.fromkeys(cell.seed for cell in cells):
            names = [c.name for c in cells if c.seed == seed and c.name in self.whole]
            if len(names) == len(self.cells.parts):
                value = float(np.mean([self.whole[name] for name in names]))
                found[seed] = value, np.mean([self.draws[n] for n in names], axis=0)
        return found

    def _compared_sets(self, own: list[Cell], other: list[Cell]) -> Difference | None:
        ours, theirs = self._sets(own), self._sets(other)
        both = [seed for seed in ours if seed in theirs]
        if not both:
            return None
        mean = float(np.mean([ours[s][0] - theirs[s][0] for s in both]))
        draws = np.mean([ours[s][1] - theirs[s][1] for s in both], axis=0)
        return of_draws(self._sign * mean, self._sign * draws, len(both))

    def _compared(self, own: list[Cell], other: list[Cell]) -> dict[str, Any]:
        """Difference to the control, on seeds that both have."""
        if found := self._compared_sets(own, other):
            return _told(found) | {"wins": None, "losses": None}
        both_score = self._scored(own) & self._scored(other)
        ours, first, _ = self._matrix(own, both_score)
        theirs, second, _ = self._matrix(other, both_score)
        both = [seed for seed in first if seed in second]
        if not both or not ours.size or not theirs.size:
            return {}
        mine = ours[[first.index(s) for s in both]]
        control = theirs[[second.index(s) for s in both]]
        return _told(difference(self._sign * mine, self._sign * control))

    def _speed(self, own: list[Cell], other: list[Cell]) -> dict[str, Any]:
        """Of the mean curve over steps: its area, and when it is nearly as good."""
        steps, heights = self._curve(own)
        if not steps or self._sign < 0:
            return {}
        _, controls = self._curve(other)
        reached = steps_to(steps, heights, controls[-1]) if controls else None
        return {
            "area": _rounded(area_over_steps(steps, heights)),
            "steps_to_98": _rounded(steps_to_best(steps, heights)),
            "steps_to_control": _rounded(reached),
        }

    def _done(self, arm: str, count: int | str) -> list[Cell]:
        return [
            cell for cell in self.cells.all
            if cell.arm.name == arm and cell.patients == count
            and cell.name in self.scores
        ]  # fmt: skip

    def _tests(self) -> list[str]:
        """Test patients of all folds, sorted."""
        names = (name for parts in self.cells.parts for name in parts.test)
        return sorted({self._patients[name] for name in names})

    def _scored(self, cells: Sequence[Cell]) -> set[str]:
        """Test patients that every one of the cells that test them has a score of.

        A patient without one (no label of it, none found) must not cost the others
        theirs.
        """
        lacking = {
            self._patients[case]
            for cell in cells
            for case in cell.parts.test
            if case not in self.scores[cell.name]
        }
        return set(self._tests()) - lacking

    def _matrix(
        self, cells: Sequence[Cell], among: set[str] | None = None
    ) -> tuple[Scores, list[int], list[str]]:
        """(S, P) scores of the seeds that have all folds, these seeds, the patients."""
        kept = self._scored(cells) if among is None else among
        columns = [name for name in self._tests() if name in kept]
        rows: list[list[float]] = []
        seeds: list[int] = []
        for seed in dict.fromkeys(cell.seed for cell in cells):
            own = [cell for cell in cells if cell.seed == seed]
            by_patient = self._by_patient(own)
            if columns and set(columns) <= set(by_patient):
                seeds.append(seed)
                rows.append([by_patient[name] for name in columns])
        empty = np.empty((0, len(columns)))
        return (np.array(rows, np.float64) if rows else empty), seeds, columns

    def _by_patient(self, cells: Sequence[Cell]) -> dict[str, float]:
        """Mean over each patient's cases."""
        values: dict[str, list[float]] = {}
        for cell in cells:
            for case, value in self.scores[cell.name].items():
                values.setdefault(self._patients[case], []).append(value)
        return {name: float(np.mean(v)) for name, v in values.items()}

    def _class_means(self, cells: Sequence[Cell]) -> dict[str, float | None]:
        """Mean of each class over patients, cells and seeds.

        Over each patient's cases first, as the scores: one with many scans weighs as
        much as another.
        """
        means: dict[str, list[float]] = {}
        for cell in cells:
            own: dict[tuple[str, str], list[float]] = {}
            for case, by_class in self.classes[cell.name].items():
                for name, value in by_class.items():
                    own.setdefault((name, self._patients[case]), []).append(value)
            for (name, _), values in own.items():
                means.setdefault(name, []).append(float(np.mean(values)))
            for name, value in self.set_classes.get(cell.name, {}).items():
                means.setdefault(name, []).append(value)
        return {name: _rounded(float(np.mean(means[name]))) for name in sorted(means)}

    def _curve(self, cells: Sequence[Cell]) -> tuple[list[int], list[float]]:
        """Mean over cells, at the marks that all of them have."""
        curves = [dict(self.curves[cell.name]) for cell in cells]
        marks = set.intersection(*(set(c) for c in curves)) if curves else set()
        steps = sorted(marks)
        return steps, [float(np.mean([c[step] for c in curves])) for step in steps]

    def _steps(self, cells: Sequence[Cell]) -> int | None:
        runs = [self.cells.finetuning(cell).config for cell in cells]
        steps = {int(config["training"]["steps"]) for config in runs}
        return steps.pop() if len(steps) == 1 else None

    def _mean_curves(self) -> list[dict[str, Any]]:
        return self._for_each(
            lambda own: dict(zip(("steps", "values"), self._curve(own), strict=True))
        )

    def _patient_scores(self) -> list[dict[str, Any]]:
        def scores(own: list[Cell]) -> dict[str, Any]:
            matrix, seeds, names = self._matrix(own)
            mean = matrix.mean(axis=0) if len(seeds) else []
            return {
                "scores": {n: _rounded(v) for n, v in zip(names, mean, strict=False)}
            }

        return self._for_each(scores)

    def _for_each(
        self, make: Callable[[list[Cell]], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        found = []
        for count in dict.fromkeys(cell.patients for cell in self.cells.all):
            for arm in self.cells.plan.arms:
                if own := self._done(arm.name, count):
                    found.append({"arm": arm.name, "patients": count, **make(own)})
        return found


def curve_of(run: Run, metric: str) -> list[tuple[int, float]]:
    """Steps and scores of a fine-tuning's marks; of one repeated after a kill the last.

    Args:
        run: Of a fine-tuning.
        metric: Name of the score.
    """
    marks: dict[int, float] = {}
    for _, event in run.journal.read(0, _is_mark):
        if isinstance(event, Validated) and metric in event.metrics:
            marks[event.index] = float(event.metrics[metric])
    return sorted(marks.items())


def _is_mark(line: bytes) -> bool:
    return line.startswith(b'{"event": "validated"')


def _trained_s(run: Run) -> float:
    """Seconds of a run: of its steps where it has such, else of its session."""
    told = run.spec.get("outcome", {}).get("result", {})
    if "seconds_per_step" in told and "steps" in told:
        return float(told["seconds_per_step"]) * int(told["steps"])
    return seconds_of(run)


def _rows_in(path: Path) -> set[tuple[str, str]]:
    """Cell and case of each whole row; a half line of a kill is passed over."""
    found: set[tuple[str, str]] = set()
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            found.add((str(row["cell"]), str(row["case"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _told(found: Difference) -> dict[str, Any]:
    low, high = found.patients or (None, None)
    both_low, both_high = found.both or (None, None)
    return {
        "difference": _rounded(found.mean),
        "difference_low": _rounded(low), "difference_high": _rounded(high),
        "both_low": _rounded(both_low), "both_high": _rounded(both_high),
        "wins": found.wins, "losses": found.losses, "p": found.p,
    }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), _DIGITS)
