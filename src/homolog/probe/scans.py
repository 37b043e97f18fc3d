"""Probing for classes of whole scans: features pooled over the body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from homolog.events import Job, Progress, Request
from homolog.feed.reading import CaseRef
from homolog.label_names import findings_of, has_several, says_none
from homolog.probe.cases import Roles
from homolog.probe.config import ProbeConfig
from homolog.probe.learners import Taught, centroid, fit_linear, neighbour_shares
from homolog.probe.logme import logme
from homolog.probe.scores import ScanScores, Table
from homolog.probe.sources import Source

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ScanProbe:
    """The scans that teach and those that are judged; the same for every source.

    Attributes:
        roles: Whose they are.
        labels: Classes told apart, by name.
        several: Whether a scan may have several of them, or none.
        config: How.
    """

    roles: Roles
    labels: tuple[str, ...]
    several: bool
    config: ProbeConfig

    @classmethod
    def of(cls, roles: Roles, config: ProbeConfig) -> ScanProbe:
        """With the classes that teachers have."""
        told = [c.card.target or "" for p in roles.taught for c in p.cases]
        judged = [c.card.target or "" for p in roles.judged for c in p.cases]
        several = any(has_several(t) or says_none(t) for t in (*told, *judged))
        names = {n for t in told for n in (findings_of(t) if several else (t,))}
        return cls(roles, tuple(sorted(names)), several, config)

    def run(self, source: Source) -> Job[list[ScanScores] | None]:
        """Every set of a source; None when stopped."""
        taught = [c for p in self.roles.taught for c in p.cases]
        judged = [c for p in self.roles.judged for c in p.cases]
        pooled: list[list[Floats]] = []
        for number, case in enumerate((*taught, *judged)):
            total = len(taught) + len(judged)
            news = Progress(source.name, number, total, case.card.id)
            if (yield news) is Request.STOP or not (yield from source.prepare(case)):
                return None
            pooled.append(source.pooled(case))
        found = []
        for name, places in source.sets.items():
            vectors = np.stack(
                [np.concatenate([parts[i] for i in places]) for parts in pooled]
            )
            found.append(self._probed(source.name, name, vectors, taught, judged))
        return found

    def _probed(
        self, source: str, name: str, vectors: Floats,
        taught: Sequence[CaseRef], judged: Sequence[CaseRef],
    ) -> ScanScores:  # fmt: skip
        truth = self._truth((*taught, *judged))
        first, known = len(taught), truth[len(taught) :]
        groups = _groups([p.cases for p in self.roles.taught])
        tables = {m: np.zeros(known.shape) for m in ("linear", "knn", "centroid")}
        strength, evidence = 0.0, []
        columns = range(truth.shape[1]) if self.several else (None,)
        for k in columns:
            classes = truth[:first, k] if k is not None else truth[:first].argmax(1)
            seen = Taught(vectors[:first], classes, groups, np.ones(first))
            linear = fit_linear(seen, 2 if k is not None else truth.shape[1])
            strength = linear.strength
            evidence.append(logme(seen.vectors, seen.classes))
            own = self._chances(seen, linear.logits(vectors[first:]), vectors[first:])
            for measure, table in own.items():
                if k is None:
                    tables[measure] = table
                else:
                    tables[measure][:, k] = table[:, 1]
        tables["auc"] = tables["linear"]
        known_evidence = [e for e in evidence if e is not None]
        return ScanScores(
            source, name, vectors.shape[1], strength, tuple(c.card.id for c in judged),
            tables, known, self.several, _groups([p.cases for p in self.roles.judged]),
            logme=float(np.mean(known_evidence)) if known_evidence else None,
        )  # fmt: skip

    def _chances(
        self, seen: Taught, logits: Floats, vectors: Floats
    ) -> dict[str, Table]:
        from scipy.special import softmax

        count = logits.shape[1]
        # more than the rarest class has, and it could never win
        rarest = int(np.unique(seen.classes, return_counts=True)[1].min())
        voters = min(self.config.neighbours, rarest)
        return {
            "linear": softmax(logits.astype(np.float64), axis=1),
            "knn": neighbour_shares(seen, vectors, voters, count),
            "centroid": np.eye(count)[centroid(seen, vectors)],
        }

    def _truth(self, cases: Sequence[CaseRef]) -> NDArray[np.int64]:
        """(scans, classes), 1 where a scan has the class."""
        rows = np.zeros((len(cases), len(self.labels)), np.int64)
        for row, case in zip(rows, cases, strict=True):
            text = case.card.target or ""
            own = findings_of(text) if self.several else (text,)
            row[[self.labels.index(n) for n in own if n in self.labels]] = 1
        return rows


def _groups(patients: Sequence[Sequence[CaseRef]]) -> NDArray[np.int64]:
    """(scans,) which patient each is of."""
    return np.repeat(np.arange(len(patients)), [len(cases) for cases in patients])
