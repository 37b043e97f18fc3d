"""Probing for labels of voxels: who is taught, who is judged, and how well it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress, Request
from homolog.probe.cases import BACKGROUND_SHARE, Patient, Roles, Sample, draw_voxels
from homolog.probe.config import ProbeConfig
from homolog.probe.learners import (
    Linear,
    Taught,
    centroid,
    even_share,
    fit_linear,
    neighbour_shares,
)
from homolog.probe.logme import logme
from homolog.probe.scores import Table, VoxelScores, mean_known
from homolog.probe.sources import Source

# Voxels of labels that teach, together: more make fits slow, not better. Of each label
# and case these are left at least.
_MOST, _LEAST = 12_000, 10
# One patient who teaches is divided into blocks of this size.
_BLOCK_MM = 30.0


@dataclass(frozen=True, eq=False)
class VoxelProbe:
    """The voxels that teach and those that are judged; the same for every source.

    Attributes:
        roles: Whose they are.
        labels: Values told apart, background first.
        taught: One sample per case that teaches.
        judged: One per case that is judged.
        config: How.
    """

    roles: Roles
    labels: tuple[int, ...]
    taught: tuple[Sample, ...]
    judged: tuple[Sample, ...]
    config: ProbeConfig

    @classmethod
    def draw(
        cls, roles: Roles, labels: tuple[int, ...], config: ProbeConfig
    ) -> Job[VoxelProbe | None]:
        """Draw the voxels; None when stopped.

        A case that cannot be read is left out, with a warning.

        Raises:
            UnusableInput: Nobody is left to teach on or to judge.
        """
        sides: list[list[Sample]] = []
        kept: list[tuple[Patient, ...]] = []
        teachers = sum(len(p.cases) for p in roles.taught)
        many = min(config.voxels, max(_LEAST, _MOST // (len(labels) * teachers)))
        plan = (
            (roles.taught, many * BACKGROUND_SHARE, "to teach on"),
            (roles.judged, many, "to judge"),
        )
        for patients, background, what in plan:
            samples: list[Sample] = []
            cases = [c for p in patients for c in p.cases]
            for number, case in enumerate(cases):
                news = Progress(f"voxels {what}", number, len(cases), case.card.id)
                if (yield news) is Request.STOP:
                    return None
                try:
                    _ = case.store.image(case.card.id)[:]  # all of it can be read
                    drawn = draw_voxels(case, labels, many, background, config.seed)
                except JobError as error:
                    yield Note(f"left out: {error}", "warning")
                else:
                    samples.append(drawn)
            good = {id(s.case) for s in samples}
            sound = [
                replace(p, cases=tuple(c for c in p.cases if id(c) in good))
                for p in patients
            ]
            kept.append(tuple(p for p in sound if p.cases))
            sides.append(samples)
            if not samples:
                raise UnusableInput(f"no case that can be read is left {what}.")
        roles = replace(roles, taught=kept[0], judged=kept[1])
        return cls(roles, labels, tuple(sides[0]), tuple(sides[1]), config)

    def run(self, source: Source) -> Job[list[VoxelScores] | None]:
        """Every set of a source; None when stopped."""
        samples = (*self.taught, *self.judged)
        for number, sample in enumerate(samples):
            news = Progress(source.name, number, len(samples), sample.case.card.id)
            if (yield news) is Request.STOP:
                return None
            if not (yield from source.prepare(sample.case)):
                return None
        parts = [source.vectors(s.case, s.voxels) for s in samples]
        found: list[VoxelScores] = []
        probes: list[Linear] = []
        for number, (name, places) in enumerate(source.sets.items()):
            news = Progress(f"{source.name}: probing", number, len(source.sets), name)
            if (yield news) is Request.STOP:
                return None
            vectors = [np.concatenate([p[i] for i in places], axis=1) for p in parts]
            scores, probe = self._probed(source.name, name, vectors)
            found.append(scores)
            probes.append(probe)
        if not self.config.dense:
            return found
        lengths = [part.shape[1] for part in parts[0]]
        done = yield from self._labelled(source, found, probes, lengths)
        return found if done else None

    def _probed(
        self, source: str, name: str, vectors: list[NDArray[np.float32]]
    ) -> tuple[VoxelScores, Linear]:
        first = len(self.taught)
        taught = Taught(
            np.concatenate(vectors[:first]),
            np.concatenate([s.classes for s in self.taught]),
            self._groups(),
            np.concatenate([s.weight for s in self.taught]),
        )
        linear = fit_linear(taught, len(self.labels))
        config = self.config
        voters = even_share(taught, _MOST // len(self.labels), config.seed)
        guesses: dict[str, Callable[[NDArray[np.float32]], NDArray[np.int64]]] = {
            "linear": lambda v: linear.logits(v).argmax(axis=1),
            "knn": lambda v: neighbour_shares(
                voters, v, config.neighbours, len(self.labels)
            ).argmax(axis=1),
            "centroid": lambda v: centroid(taught, v),
        }
        judged = np.concatenate(vectors[first:])
        ends = np.cumsum([len(s.classes) for s in self.judged])[:-1]
        tables = {}
        for measure, guess in guesses.items():
            said = np.split(guess(judged), ends)
            rows = [self._found(s, g) for s, g in zip(self.judged, said, strict=True)]
            tables[measure] = self._by_patient(rows)
        length = taught.vectors.shape[1]
        names = tuple(p.name for p in self.roles.judged)
        return (
            VoxelScores(
                source,
                name,
                length,
                linear.strength,
                names,
                tables,
                logme=logme(taught.vectors, taught.classes),
            ),
            linear,
        )

    def _groups(self) -> NDArray[np.int64]:
        """(N,) patient of each voxel that teaches; of one patient alone, its block."""
        if len(self.roles.taught) > 1:
            of = {id(c): n for n, p in enumerate(self.roles.taught) for c in p.cases}
            return np.concatenate(
                [np.full(len(s.classes), of[id(s.case)]) for s in self.taught]
            )
        blocks = []
        for sample in self.taught:
            spacing = np.array(sample.case.card.spacing_mm)
            place = (sample.voxels * spacing // _BLOCK_MM).astype(np.int64)
            blocks.append(place @ np.array([1, 5, 7]))
        return np.concatenate(blocks)

    def _found(self, sample: Sample, guess: NDArray[np.int64]) -> Table:
        """(K,) share of each label that was found."""
        right = guess == sample.classes
        count = np.bincount(sample.classes, minlength=len(self.labels))
        hits = np.bincount(sample.classes, right, len(self.labels))
        return np.where(count > 0, hits / np.maximum(count, 1), np.nan)

    def _by_patient(self, rows: Sequence[Table]) -> Table:
        """(cases of K) -> (patients, K)."""
        cases = iter(rows)
        grouped = [np.stack([next(cases) for _ in p.cases]) for p in self.roles.judged]
        return np.stack([mean_known(rows, axis=0) for rows in grouped])

    def _labelled(
        self,
        source: Source,
        found: list[VoxelScores],
        probes: list[Linear],
        lengths: Sequence[int],
    ) -> Job[bool]:
        """Add the Dice of every set's linear probe; False when stopped."""
        rows: list[list[Table]] = [[] for _ in found]
        for number, sample in enumerate(self.judged):
            name = sample.case.card.id
            news = Progress(
                f"{source.name}: labelling every voxel", number, len(self.judged), name
            )
            if (yield news) is Request.STOP:
                return False
            figures = self._dice(source, sample, probes, lengths)
            for row, dice in zip(rows, figures, strict=True):
                row.append(dice)
        for scores, row in zip(found, rows, strict=True):
            scores.tables["dice"] = self._by_patient(row)
        return True

    def _dice(
        self,
        source: Source,
        sample: Sample,
        probes: list[Linear],
        lengths: Sequence[int],
    ) -> list[Table]:
        """(K,) of each set on one case; NaN where neither map has the label."""
        case, count = sample.case, len(self.labels)
        stored = case.store.label(case.card.id)
        assert stored is not None
        weights, columns = _stacked(source, probes, lengths, count)
        known = np.full(max(*self.labels, *case.card.label_values, 0) + 2, count)
        known[list(self.labels)] = np.arange(count)
        # truth in rows; the last one is what nobody taught, -1 included
        pairs = [np.zeros((count + 1, count), np.int64) for _ in probes]
        for rows, scores in source.scores(case, weights):
            truth = known[np.asarray(stored[rows])].ravel()
            for places, probe, pair in zip(columns, probes, pairs, strict=True):
                total = sum(
                    scores[part][..., first : first + count] for part, first in places
                )
                total = total + (probe.bias + probe.prior)
                guess = np.asarray(total).reshape(-1, count).argmax(axis=1)
                both = np.bincount(truth * count + guess, minlength=pair.size)
                pair += both.reshape(pair.shape)
        return [_dice_of(pair) for pair in pairs]


def _stacked(
    source: Source, probes: Sequence[Linear], lengths: Sequence[int], count: int
) -> tuple[list[NDArray[np.float32]], list[list[tuple[int, int]]]]:
    """Weights of all sets side by side for each part, and where each set's stand."""
    weights: list[list[NDArray[np.float32]]] = [[] for _ in source.parts]
    columns = []
    for places, probe in zip(source.sets.values(), probes, strict=True):
        first, own = 0, []
        for part in places:
            own.append((part, count * len(weights[part])))
            weights[part].append(probe.weight[first : first + lengths[part]])
            first += lengths[part]
        columns.append(own)
    return [np.concatenate(w, axis=1) for w in weights], columns


def _dice_of(pair: NDArray[np.int64]) -> Table:
    """(K,) from how often truth (rows) and guess (columns) meet."""
    known = pair[:-1]
    both, total = np.diag(known), known.sum(axis=0) + known.sum(axis=1)
    return np.where(total > 0, 2 * both / np.maximum(total, 1), np.nan)
