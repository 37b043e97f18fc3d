"""How far a model's answers move when test images are disturbed.

Source: Hundred Million, Fig. 7: relative deviation of the chance of a lesion under
    gamma transforms with exponents in [1.8, 2.6], and rotation or scaling, 50 random
    ones of each of 50 radiographs.
Differs from the paper: angles and factors of rotation and scaling are not given there
    (here up to 15 degrees and 15 %); of a segmentation the Dice takes the place of the
    chance; a volume is turned within its slices.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from homolog.errors import UnusableInput
from homolog.events import Job, Progress, Request, without
from homolog.feed.reading import CaseRef
from homolog.label_names import findings_of
from homolog.store.store import Store
from homolog.tasks.base import LearnedTask, Trained
from homolog.tasks.classify.answer import chance_columns

GAMMA = (1.8, 2.6)
ROTATE_DEG, SCALE = 15.0, 0.15
KINDS = ("gamma", "rotation and scaling", "all of these")
# A scan's values between these percentiles are what a gamma transform bends.
_LOW, _HIGH = 0.5, 99.5
# An answer below this says nothing relative to itself.
_LEAST = 0.05


@dataclass(frozen=True)
class Change:
    """One disturbance.

    Attributes:
        gamma: Exponent of the values, 1: none.
        rotate_deg: Turn within the slices (about z).
        scale: Factor of sizes within the slices.
    """

    gamma: float = 1.0
    rotate_deg: float = 0.0
    scale: float = 1.0

    @classmethod
    def drawn(cls, kind: str, rng: np.random.Generator) -> Change:
        """One of a kind of KINDS."""
        gamma, angle, scale = (
            float(rng.uniform(*GAMMA)),
            float(rng.uniform(-ROTATE_DEG, ROTATE_DEG)),
            float(rng.uniform(1 - SCALE, 1 + SCALE)),
        )
        if kind == "gamma":
            return cls(gamma)
        if kind == "rotation and scaling":
            return cls(1.0, angle, scale)
        return cls(gamma, angle, scale)

    def of_image(
        self, image: NDArray[Any], spacing_mm: Sequence[float]
    ) -> NDArray[np.int16]:
        """(C, D, H, W) as stored -> the same disturbed; outside, the lowest value."""
        changed = np.stack([self._bent(channel) for channel in image])
        if self.is_still:
            return _rounded(changed)
        moved = [
            self._moved(channel, spacing_mm, 1, float(channel.min()))
            for channel in changed
        ]
        return _rounded(np.stack(moved))

    def of_label(
        self, label: NDArray[np.int16], spacing_mm: Sequence[float]
    ) -> NDArray[np.int16]:
        """(D, H, W) moved as the image; outside is background."""
        if self.is_still:
            return np.asarray(label)
        return np.asarray(self._moved(label, spacing_mm, 0, 0.0), np.int16)

    @property
    def is_still(self) -> bool:
        """Whether everything stays in its place."""
        return self.rotate_deg == 0.0 and self.scale == 1.0

    def _bent(self, values: NDArray[Any]) -> NDArray[np.float32]:
        values = np.asarray(values, np.float32)
        if self.gamma == 1.0:
            return values
        low, high = np.percentile(values, (_LOW, _HIGH))
        if not high > low:
            return values
        level = (values - low) / np.float32(high - low)
        inside = np.clip(level, 0.0, 1.0)
        bent = inside ** np.float32(self.gamma) + (level - inside)
        return np.asarray(bent * np.float32(high - low) + np.float32(low))

    def _moved(
        self,
        values: NDArray[Any],
        spacing_mm: Sequence[float],
        order: int,
        outside: float,
    ) -> NDArray[Any]:
        """(D, H, W) turned and scaled about the middle, in mm."""
        angle = np.deg2rad(self.rotate_deg)
        turn = np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        matrix = np.eye(3)
        mm = np.diag(np.asarray(spacing_mm, float)[1:])
        matrix[1:, 1:] = np.linalg.inv(mm) @ (turn / self.scale) @ mm
        middle = (np.array(values.shape) - 1) / 2
        moved: NDArray[Any] = ndimage.affine_transform(
            values, matrix, middle - matrix @ middle, order=order, mode="constant",
            cval=outside,
        )  # fmt: skip
        return moved


def _rounded(values: NDArray[np.float32]) -> NDArray[np.int16]:
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(values), limits.min, limits.max).astype(np.int16)


def disturbed(case: CaseRef, change: Change) -> CaseRef:
    """The case as a store would give it had the scan been so; nothing is written.

    Paper: Hundred Million Fig. 7.
    """
    store: Any = copy.copy(case.store)
    image, label = case.store.image(case.card.id), case.store.label(case.card.id)
    spacing = case.card.spacing_mm
    seen = change.of_image(np.asarray(image[:]), spacing)
    truth = None if label is None else change.of_label(np.asarray(label[:]), spacing)
    store.image = lambda _: seen
    store.label = lambda _: truth
    return CaseRef(store, case.card)


@dataclass(frozen=True, eq=False)
class Deviations:
    """What became of a model's answers.

    Attributes:
        of: What an answer is: ``Dice``, or ``chance of the true class``.
        rows: One for each kind of disturbance, case and draw: ``kind``, ``case``,
            ``gamma``, ``rotate_deg``, ``scale``, ``before``, ``after``, ``deviation``.
        left_out: Cases whose answer was too low to deviate from.
    """

    of: str
    rows: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...]

    def by_kind(self) -> dict[str, list[float]]:
        """Relative deviations of each kind."""
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for row in self.rows:
            found[row["kind"]].append(row["deviation"])
        return found

    def summary(self) -> dict[str, dict[str, float]]:
        """Median, quartiles and mean size of the deviations of each kind."""
        told = {}
        for kind, values in self.by_kind().items():
            if values:
                low, middle, high = np.percentile(values, (25, 50, 75))
                told[kind] = {
                    "median": round(float(middle), 4),
                    "first_quartile": round(float(low), 4),
                    "third_quartile": round(float(high), 4),
                    "mean_size": round(float(np.mean(np.abs(values))), 4),
                    "count": len(values),
                }
        return told


def deviations(
    task: LearnedTask,
    model: Trained,
    cases: Sequence[CaseRef],
    draws: int,
    seed: int,
    name: str,
) -> Job[Deviations | None]:
    """Disturb cases and compare a model's answers; None when stopped.

    Every model gets the same disturbances.

    Args:
        task: Segmentation or classification.
        model: Of the task.
        cases: With labels.
        draws: Disturbances of each kind and case.
        seed: Of the disturbances.
        name: Of the model, for people.

    Raises:
        UnusableInput: A task whose answers are neither, or no case with an answer to
            deviate from.

    Paper: Hundred Million Fig. 7.
    """
    rows: list[dict[str, Any]] = []
    left_out = []
    for number, case in enumerate(cases):
        news = Progress(f"{name}: disturbed scans", number, len(cases), case.card.id)
        if (yield news) is Request.STOP:
            return None
        before = yield from _answer(task, model, case)
        if before is None or before < _LEAST:
            left_out.append(case.card.id)
            continue
        for kind, change in _changes(case, draws, seed):
            after = yield from _answer(task, model, disturbed(case, change))
            if after is None:
                continue
            rows.append(
                {
                    "kind": kind, "case": case.card.id, "gamma": round(change.gamma, 4),
                    "rotate_deg": round(change.rotate_deg, 3),
                    "scale": round(change.scale, 4), "before": round(before, 5),
                    "after": round(after, 5),
                    "deviation": round((after - before) / before, 5),
                }
            )  # fmt: skip
    if not rows:
        raise UnusableInput(
            f"{name} finds next to nothing in {len(cases)} undisturbed cases "
            f"(below {_LEAST:g}): there is nothing to deviate from."
        )
    return Deviations(_meaning(model), tuple(rows), tuple(left_out))


def usable_cases(task: LearnedTask, store: Store, split: str, most: int) -> list[
    CaseRef
]:  # fmt: skip
    """Labelled cases of a split, spread evenly where there are more than ``most``.

    Raises:
        UnusableInput: There is none.
    """
    cases = [
        CaseRef(store, card)
        for card in store.cards
        if task.usable(card) and split in ("all", card.split)
    ]
    if not cases:
        raise UnusableInput(f"{store.path} has no labelled case in split {split!r}.")
    if most and len(cases) > most:
        places = np.linspace(0, len(cases) - 1, most).round().astype(int)
        cases = [cases[i] for i in places]
    return cases


def _changes(case: CaseRef, draws: int, seed: int) -> list[tuple[str, Change]]:
    """The disturbances of a case: of each kind so many."""
    rng = np.random.default_rng([seed, zlib.crc32(case.card.id.encode())])
    return [(kind, Change.drawn(kind, rng)) for kind in KINDS for _ in range(draws)]


def _meaning(model: Trained) -> str:
    return "chance of the true class" if "classes" in model.spec else "Dice"


def _answer(task: LearnedTask, model: Trained, case: CaseRef) -> Job[float | None]:
    """Mean Dice over labels, or the mean chance of what is true of a scan."""
    scored = without(task.score(model, case), Progress)  # windows are small news
    rows: Sequence[Mapping[str, Any]] = yield from scored
    if "classes" in model.spec:
        chances = [row[column] for row in rows for column in _true_columns(row)]
    elif all("dice" in row for row in rows):
        chances = [row["dice"] for row in rows]
    else:
        raise UnusableInput(
            f"robustness is told of segmentations and classes, not of {task.title}."
        )
    known = [float(value) for value in chances if value is not None]
    return sum(known) / len(known) if known else None


def _true_columns(row: Mapping[str, Any]) -> Sequence[str]:
    """Columns with the chances of what is true of a scan."""
    return [c for c in chance_columns(findings_of(str(row["true"]))) if c in row]
