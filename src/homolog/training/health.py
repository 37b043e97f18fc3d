"""Is the training well? The table of its numbers, and the watch for collapse."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_STD_FLOOR = 0.05
_STD_ONCE, _STD_SHARE = 0.3, 0.2
_RANK_FLOOR = 1.5
_RANK_ONCE = 3.0
_PATIENCE = 3


class MetricsTable:
    """``metrics.csv``: one row per logged step, numbers only, no times.

    Rows depend on the run's configuration alone, so a resumed run ends with the same
    bytes as an uninterrupted one.

    A damaged table never stands in the way of a sound checkpoint: it is set aside and
    the rows that can be read are taken over.

    Args:
        path: The file; appended to.
        done: Steps already done; later rows (of a killed session) are dropped.

    Attributes:
        damaged: What was wrong with the table that was there, a sentence; else empty.
    """

    def __init__(self, path: Path, done: int) -> None:
        self._path = path
        self._columns: list[str] = []
        self.damaged = ""
        rows = self._read(repair=True) if path.exists() else []
        self._write([row for row in rows if int(row["step"]) <= done])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row; a new column rewrites the file once."""
        row = {"step": str(step), **{k: repr(float(v)) for k, v in values.items()}}
        new = [name for name in row if name not in self._columns]
        if new:
            rows = self._read() if self._columns else []
            self._columns += new
            self._write(rows)
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    def _read(self, *, repair: bool = False) -> list[dict[str, str]]:
        """Whole rows; a last line cut short by a kill is not one.

        Args:
            repair: Pass over what is no row, keep the file beside, and say so.
        """
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
            lines = text[: text.rfind("\n") + 1].splitlines()
            reader = csv.DictReader(lines)
            self._columns = list(reader.fieldnames or [])
            rows = list(reader)
        except (OSError, csv.Error) as error:
            lines, rows = [""], []
            self._columns = []
            wrong = f"it cannot be read: {error}"
        else:
            wrong = ""
            if lines and (
                self._columns[:1] != ["step"]
                or len(set(self._columns)) < len(self._columns)
            ):
                rows, self._columns = [], []
                wrong = "its first line does not name the columns"
        whole = [row for row in rows if _is_row(row)]
        if len(whole) < len(rows):
            wrong = f"{len(rows) - len(whole)} of {len(rows)} lines are no rows"
        if wrong and repair:
            aside = self._path.with_name(f"{self._path.stem}.damaged.csv")
            self._path.replace(aside)
            self.damaged = (
                f"{self._path} is damaged ({wrong}): the {len(whole)} rows that can be "
                f"read were taken over, the file was kept as {aside.name}."
            )
        return whole

    def _write(self, rows: list[dict[str, str]]) -> None:
        scratch = self._path.with_name(f".{self._path.name}.new")
        with scratch.open("w", newline="") as file:
            if self._columns:
                table = csv.DictWriter(file, self._columns, lineterminator="\n")
                table.writeheader()
                table.writerows(rows)
        scratch.replace(self._path)


def _is_row(row: Mapping[str | None, Any]) -> bool:
    """Whether a line holds a step and numbers, or nothing where a column is younger."""
    step, *others = row.values()
    if None in row or not isinstance(step, str) or not step.isdigit():
        return False
    for cell in others:
        try:
            float(cell or 0)
        except (TypeError, ValueError):
            return False
    return None not in others


class CollapseWatch:
    """Tells, once per episode, when features stop differing.

    Monitors ending in ``_std`` are about 1 when healthy and 0 when all features are
    equal; those ending in ``_rank`` are effective ranks (methods reference 1.6). Low is
    a std below 0.05, or below a fifth of what it was; and a rank that was above 3 and
    is about 1 (a small batch has a small rank by nature). Three rows in a row count.
    """

    def __init__(self) -> None:
        self._strikes: dict[str, int] = {}
        self._highest: dict[str, float] = {}

    def look(self, monitors: Mapping[str, float]) -> str:
        """A warning when something has just been judged collapsed, else empty."""
        warnings = []
        for name, value in monitors.items():
            if not self._is_low(name, value):
                self._strikes[name] = 0
                continue
            self._strikes[name] = self._strikes.get(name, 0) + 1
            if self._strikes[name] == _PATIENCE:
                warnings.append(f"{name} is {value:.3g}")
        if not warnings:
            return ""
        return (
            f"the features are collapsing ({', '.join(warnings)}; about 1 is a "
            "healthy std): all scans look alike to the network. A lower learning rate, "
            "a longer warm-up or a larger batch often helps."
        )

    def _is_low(self, name: str, value: float) -> bool:
        if not math.isfinite(value):
            return False
        highest = max(self._highest.get(name, 0.0), value)
        self._highest[name] = highest
        if name.endswith("_std"):
            fallen = highest > _STD_ONCE and value < _STD_SHARE * highest
            return fallen or value < _STD_FLOOR
        if name.endswith("_rank"):
            return value < _RANK_FLOOR and highest > _RANK_ONCE
        return False
