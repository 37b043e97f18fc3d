"""What a classifier said of a scan, as the window shows it; no Qt, no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from homolog.safe_text import UnixRows, cells

_SLICES_SHOWN = 6
_POSITIVE = 0.5
# Slices below are not worth a line.
_WORTH_A_LINE = 0.1
_WORDS = {"presence": "Shows a finding", "attention": "Weight in the answer"}


@dataclass(frozen=True)
class ChanceRow:
    """One class of a scan.

    Attributes:
        name: Of the class or type.
        chance: Probability, 0..1.
        told: Whether the scan is said to show it.
        kind: ``class`` or ``type``.
    """

    name: str
    chance: float
    told: bool
    kind: str = "class"

    @property
    def text(self) -> str:
        """``92 %``; never more certain than the model can be."""
        if 0 < self.chance < 0.01:
            return "< 1 %"
        if 0.99 < self.chance < 1:
            return "> 99 %"
        return f"{self.chance:.0%}".replace("%", " %")


def chance_rows(told: Mapping[str, Any]) -> list[ChanceRow]:
    """Classes, likeliest first, then types.

    Args:
        told: What the ``predict`` job tells of a scan.
    """
    limits = told.get("thresholds") or {}
    rows = [
        ChanceRow(name, p, p >= limits[name] if limits else name == told["class"])
        for name, p in told["chances"].items()
    ]
    types = told.get("types") or {}
    rows = sorted(rows, key=lambda row: -row.chance)
    beside = [ChanceRow(name, p, p >= _POSITIVE, "type") for name, p in types.items()]
    return rows + sorted(beside, key=lambda row: -row.chance)


def short_text(told: Mapping[str, Any]) -> str:
    """``effusion 92 %, nodule 61 %`` for a list's line."""
    rows = [row for row in chance_rows(told) if row.kind == "class"]
    shown = [f"{row.name} {row.text}" for row in rows if row.told]
    if shown:
        return ", ".join(shown)
    return f"{told['class']} (at most {rows[0].name} {rows[0].text})"


def slice_measure(told: Mapping[str, Any]) -> str | None:
    """``presence`` or ``attention``: what orders the slices; None without slices."""
    slices: Sequence[Mapping[str, float]] = told.get("slices") or ()
    return next((key for key in _WORDS if slices and key in slices[0]), None)


def slice_heading(measure: str) -> str:
    """Column of the slices' table."""
    return _WORDS[measure]


def best_slices(told: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Number and value of the slices that speak most for the answer, most first.

    Those that look positive or might; of attention, those above their even share.
    """
    measure = slice_measure(told)
    if measure is None:
        return []
    even = 1.0 / len(told["slices"])
    least = _WORTH_A_LINE if measure == "presence" else even
    found = [(int(row["slice"]), float(row[measure])) for row in told["slices"]]
    found = [row for row in found if row[1] >= least]
    return sorted(found, key=lambda row: -row[1])[:_SLICES_SHOWN]


def slices_sentence(told: Mapping[str, Any]) -> str:
    """Which slices look positive; empty where that was not learnt."""
    if slice_measure(told) != "presence":
        return ""
    numbers = [
        int(r["slice"]) for r in told["slices"] if r["presence"] >= _POSITIVE
    ]  # fmt: skip
    if not numbers:
        return "No slice looks as if it showed a finding."
    return f"Slices that look as if they showed a finding: {ranges_text(numbers)}."


def ranges_text(numbers: Sequence[int]) -> str:
    """``3-5, 9``."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def table_text(scan: str, told: Mapping[str, Any]) -> str:
    """Tab-separated, for a spreadsheet."""
    text = io.StringIO()
    table = csv.writer(UnixRows(text), delimiter="\t", lineterminator="\r\n")
    table.writerow(["scan", "kind", "name", "probability", "told"])
    for row in chance_rows(told):
        mark = "yes" if row.told else "no"
        place = [scan, row.kind, row.name, f"{row.chance:.4f}", mark]
        table.writerow(cells(place))
    return text.getvalue()
