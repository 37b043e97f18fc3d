"""Is the training well? The table of its numbers, and the watch for collapse."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

_STD_FLOOR = 0.05
_STD_ONCE, _STD_SHARE = 0.3, 0.2
_RANK_FLOOR = 1.5
_RANK_ONCE = 3.0
_PATIENCE = 3


class MetricsTable:
    """``metrics.csv``: one row per logged step, numbers only, no times.

    Rows depend on the run's configuration alone, so a resumed run ends with the same
    bytes as an uninterrupted one.

    Args:
        path: The file; appended to.
        done: Steps already done; later rows (of a killed session) are dropped.
    """

    def __init__(self, path: Path, done: int) -> None:
        self._path = path
        self._columns: list[str] = []
        rows = self._read() if path.exists() else []
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

    def _read(self) -> list[dict[str, str]]:
        """Whole rows; a last line cut short by a kill is not one."""
        text = self._path.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()
        reader = csv.DictReader(lines)
        self._columns = list(reader.fieldnames or [])
        return [row for row in reader if None not in row.values()]

    def _write(self, rows: list[dict[str, str]]) -> None:
        scratch = self._path.with_name(f".{self._path.name}.new")
        with scratch.open("w", newline="") as file:
            if self._columns:
                table = csv.DictWriter(file, self._columns, lineterminator="\n")
                table.writeheader()
                table.writerows(rows)
        scratch.replace(self._path)


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
