"""How well a set of features told labels apart, with intervals over patients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

# What each measure is called.
TITLES = {
    "linear": "linear probe", "knn": "kNN", "centroid": "centroids",
    "dice": "Dice of the linear probe", "auc": "AUC of the linear probe",
}  # fmt: skip
_DRAWS = 300
_LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """A mean over patients and its 95 % interval.

    Attributes:
        value: None where it cannot be told.
        low: End of the interval; None of a single patient.
        high: The other end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """JSON types."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @property
    def text(self) -> str:
        """``0.61 (0.55 to 0.67)``."""
        if self.value is None:
            return "–"
        if self.low is None or self.high is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def signed(self) -> str:
        """``+0.04 (+0.02 to +0.06)``, of a difference."""
        if self.value is None:
            return "–"
        if self.low is None or self.high is None:
            return f"{self.value:+.2f}"
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


@dataclass(frozen=True, eq=False)
class Scores(ABC):
    """Of one set of features of one source.

    Attributes:
        source: Whose features.
        features: Name of the set.
        length: How many numbers a feature has.
        strength: C of the linear probe.
        patients: Names of the judged ones (of scans: one each).
        tables: Measure -> numbers of each patient.
        logme: Evidence of the taught labels, see ``logme``.
    """

    source: str
    features: str
    length: int
    strength: float
    patients: tuple[str, ...]
    tables: dict[str, Table] = field(default_factory=dict)
    logme: float | None = field(default=None, kw_only=True)
    main: ClassVar[str] = "linear"

    @property
    def measures(self) -> tuple[str, ...]:
        """Those that were taken."""
        return tuple(self.tables)

    @abstractmethod
    def figure(self, measure: str, others: Sequence[Scores] = ()) -> Figure:
        """A measure; less the mean of others' where there are, patient by patient."""

    @abstractmethod
    def by_label(self, measure: str) -> list[float | None]:
        """A measure of each label (class)."""

    @abstractmethod
    def cells(self) -> Iterator[tuple[str, str, int, float]]:
        """(measure, patient, place of the label, value), for a table."""

    def report(self, randoms: Sequence[Scores]) -> dict[str, Any]:
        """JSON types: every measure, and against networks with random weights."""
        told: dict[str, Any] = {
            "features": self.features, "length": self.length, "strength": self.strength,
        }  # fmt: skip
        for measure in self.measures:
            entry: dict[str, Any] = self.figure(measure).to_dict()
            entry["labels"] = self.by_label(measure)
            if randoms:
                values = [r.figure(measure).value for r in randoms]
                known = [v for v in values if v is not None]
                entry["random"] = {
                    "value": float(np.mean(known)) if known else None,
                    "each": values,
                    "labels": _means([r.by_label(measure) for r in randoms]),
                }
                entry["gain"] = self.figure(measure, randoms).to_dict()
            told[measure] = entry
        others = [r.logme for r in randoms if r.logme is not None]
        told["logme"] = {
            "value": self.logme,
            "random": float(np.mean(others)) if others else None,
        }
        return told


class VoxelScores(Scores):
    """Tables (patients, labels), NaN where a patient lacks a label.

    Of all measures but ``dice`` the share of a label's voxels that was found, so that
    the mean over labels is the balanced accuracy.
    """

    def by_patient(self, measure: str) -> Table:
        """Mean over labels, (patients,); of Dice without the background."""
        table = self.tables[measure]
        return mean_known(table[:, 1:] if measure == "dice" else table, axis=1)

    def figure(self, measure: str, others: Sequence[Scores] = ()) -> Figure:
        """With Student's interval over patients; shares end at 0 and 1."""
        values = self.by_patient(measure)
        if others:
            rows = [o.by_patient(measure) for o in others if isinstance(o, VoxelScores)]
            return student(values - np.mean(rows, axis=0))
        found = student(values)
        if found.low is None or found.high is None:
            return found
        return Figure(found.value, max(found.low, 0.0), min(found.high, 1.0))

    def by_label(self, measure: str) -> list[float | None]:
        """Mean over patients."""
        return [_known(v) for v in mean_known(self.tables[measure], axis=0)]

    def cells(self) -> Iterator[tuple[str, str, int, float]]:
        """Every patient and label."""
        for measure, table in self.tables.items():
            for patient, row in zip(self.patients, table, strict=True):
                for place, value in enumerate(row.tolist()):
                    if value == value and not (measure == "dice" and place == 0):
                        yield measure, patient, place, value


@dataclass(frozen=True, eq=False)
class ScanScores(Scores):
    """Tables (scans, classes) of probabilities.

    ``auc`` and ``linear`` read the same ones: the first by their order, the second by
    what is said.

    Attributes:
        truth: (scans, classes), 1 where a scan has the class.
        several: Whether a scan may have several classes, or none.
        groups: (scans,) which patient each is of.
    """

    truth: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    several: bool = False
    groups: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _drawn: dict[str, Table] = field(default_factory=dict)

    def figure(self, measure: str, others: Sequence[Scores] = ()) -> Figure:
        """With a bootstrap interval over patients; the same draws for all sources."""
        rivals = [o.drawn(measure) for o in others if isinstance(o, ScanScores)]
        values = self.drawn(measure)
        if rivals:
            values = values - np.mean(rivals, axis=0)
        known = values[1:][~np.isnan(values[1:])]
        if np.isnan(values[0]):
            return Figure(None)
        if not len(known):
            return Figure(float(values[0]))
        tail = 50 * (1 - _LEVEL)
        low, high = np.percentile(known, (tail, 100 - tail))
        return Figure(float(values[0]), float(low), float(high))

    def drawn(self, measure: str) -> Table:
        """A measure of all scans, then with patients drawn anew, again and again."""
        if measure not in self._drawn:
            names = np.unique(self.groups)
            of = [np.flatnonzero(self.groups == name) for name in names]
            rng = np.random.default_rng(0)
            found = [self.value(measure, np.arange(len(self.truth)))]
            for _ in range(_DRAWS if len(names) > 1 else 0):
                picked = rng.integers(len(names), size=len(names))
                found.append(
                    self.value(measure, np.concatenate([of[i] for i in picked]))
                )
            self._drawn[measure] = np.array(found, np.float64)
        return self._drawn[measure]

    def by_label(self, measure: str) -> list[float | None]:
        """AUC, or balanced accuracy (of one class per scan: the share found)."""
        scans = np.arange(len(self.truth))
        return [self._of(measure, k, scans) for k in range(self.truth.shape[1])]

    def value(self, measure: str, scans: NDArray[np.int64]) -> float | None:
        """Mean over classes on some of the scans."""
        values = [self._of(measure, k, scans) for k in range(self.truth.shape[1])]
        known = [v for v in values if v is not None]
        return float(np.mean(known)) if known else None

    def cells(self) -> Iterator[tuple[str, str, int, float]]:
        """The probability of every class."""
        for measure, table in self.tables.items():
            if measure != "auc":
                for patient, row in zip(self.patients, table, strict=True):
                    for place, value in enumerate(row.tolist()):
                        yield measure, patient, place, value

    def _of(self, measure: str, k: int, scans: NDArray[np.int64]) -> float | None:
        table, hit = self.tables[measure][scans], self.truth[scans, k] == 1
        if measure == "auc":
            return _auc(hit, table[:, k])
        said = table[:, k] >= 0.5 if self.several else table.argmax(axis=1) == k
        if not hit.any():
            return None
        if not self.several:
            return float(said[hit].mean())
        if hit.all():
            return None
        return float((said[hit].mean() + (~said[~hit]).mean()) / 2)


def _auc(hit: NDArray[np.bool_], chance: Table) -> float | None:
    """Share of pairs in the right order; many draws ask for a fast one."""
    from scipy.stats import rankdata

    positives = int(hit.sum())
    if not 0 < positives < len(hit):
        return None
    total = rankdata(chance)[hit].sum() - positives * (positives + 1) / 2
    return float(total / (positives * (len(hit) - positives)))


def student(values: Table) -> Figure:
    """Mean and Student's 95 % interval of patients' values; NaN are left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Figure(None)
    mean = float(known.mean())
    if len(known) < 2:
        return Figure(mean)
    from scipy.stats import t

    half = float(t.ppf((1 + _LEVEL) / 2, len(known) - 1))
    half *= float(known.std(ddof=1)) / len(known) ** 0.5
    return Figure(mean, mean - half, mean + half)


def mean_known(table: Table, axis: int) -> Table:
    """Mean of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(table)
    count = known.sum(axis=axis)
    total = np.where(known, table, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _known(value: float) -> float | None:
    return None if value != value else float(value)


def _means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Column by column, of what is known."""
    columns = [
        [v for v in column if v is not None] for column in zip(*rows, strict=True)
    ]
    return [float(np.mean(c)) if c else None for c in columns]
