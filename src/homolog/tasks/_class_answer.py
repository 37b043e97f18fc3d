"""What a classifier says of one scan, and the tables it is written to."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homolog.data.findings import findings_text
from homolog.data.points_io import write_text
from homolog.safe_text import UnixRows, cells

_CHANCE = "p_"
_TYPE = "type_"
_SLICE_PLACE = ("slice", "z_mm")


@dataclass(frozen=True)
class ClassChances:
    """What a classifier says of a scan.

    Attributes:
        name: Of the scan.
        chances: Class -> probability; they sum to 1 where a scan has one class.
        thresholds: Class -> least probability at which it is told to be there, where
            a scan may have several; empty where it has one.
        types: Further findings -> probability.
        slices: One row per slice looked at: ``slice`` (number along z of the scan in
            canonical axes, from 0; the viewer's slider), ``z_mm`` (LPS), and what is
            told of it: ``presence`` (probability that it shows a finding),
            ``attention`` (its share in the answer), and the probabilities of the
            classes, the slice seen alone.
    """

    name: str
    chances: Mapping[str, float]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    types: Mapping[str, float] = field(default_factory=dict)
    slices: Sequence[Mapping[str, float]] = ()

    @property
    def predicted(self) -> str:
        """The likeliest class; of several, those above their threshold."""
        if not self.thresholds:
            return max(self.chances, key=lambda name: self.chances[name])
        return findings_text(
            name for name, p in self.chances.items() if p >= self.thresholds[name]
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON types: ``class``, ``chances``, and what else there is."""
        told: dict[str, Any] = {
            "class": self.predicted, "chances": dict(self.chances),
        }  # fmt: skip
        if self.thresholds:
            told["thresholds"] = dict(self.thresholds)
        if self.types:
            told["types"] = dict(self.types)
        if self.slices:
            told["slices"] = [dict(row) for row in self.slices]
        return told


def chance_columns(names: Sequence[str]) -> list[str]:
    """Columns of the probabilities: no class can be named like another column."""
    return [_CHANCE + name for name in names]


def type_columns(names: Sequence[str]) -> list[str]:
    """Columns of the probabilities of types."""
    return [_TYPE + name for name in names]


def class_of_column(column: str) -> str | None:
    """Inverse of ``chance_columns``; None for another column."""
    return column[len(_CHANCE) :] if column.startswith(_CHANCE) else None


def write_classes(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row per scan: what it is told to be, and the probability of each class.

    Args:
        path: Of the table.
        rows: ``scan`` and what ``ClassChances.to_dict`` gives.
    """
    names, types = list(rows[0]["chances"]), list(rows[0].get("types", ()))
    lines = [["scan", "class", *chance_columns(names), *type_columns(types)]]
    for row in rows:
        numbers = [row["chances"][name] for name in names]
        numbers += [row["types"][name] for name in types]
        lines.append([row["scan"], row["class"], *(f"{p:.4f}" for p in numbers)])
    _write(path, lines)


def write_slices(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row per slice looked at of each scan, see ``ClassChances.slices``."""
    names = [n for n in rows[0]["slices"][0] if n not in _SLICE_PLACE]
    lines = [["scan", *_SLICE_PLACE, *names]]
    for row in rows:
        for told in row.get("slices", ()):
            numbers = (f"{told[name]:.4f}" for name in names)
            place = [str(int(told["slice"])), f"{told['z_mm']:.3f}"]
            lines.append([row["scan"], *place, *numbers])
    _write(path, lines)


def _write(path: Path, lines: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(UnixRows(text), lineterminator="\r\n").writerows(map(cells, lines))
    write_text(path, text.getvalue())
