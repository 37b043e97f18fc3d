"""How far a training is, and how long it may take: steps and minutes.

Where minutes were given the number of steps is decided anew as steps get faster or
slower. Every decision is written down before a step follows it; learning rate, share
of the training done and validations depend on the step and on these decisions alone,
never on a clock. So a training that was killed and resumed repeats them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from homolog.config import ConfigError, option
from homolog.words import duration

# The minutes a training was given: what of them is used, and what is left.


# Of the budget: all validations together.
VALIDATION_SHARE = 0.1
# Of the budget: what saving and ending are taken to need before it is known.
_END_SHARE = 0.01
# Decisions are taken so often: a share of what is left, within shares of the whole.
_LOOK_SHARE, _LEAST_SHARE, _MOST_SHARE = 0.2, 0.01, 0.05
# Steps that take so many times as long as the fastest before are slow.
_SLOW = 2.0
# A listener that takes longer has paused the run; its time is not the training's.
_PAUSE_S = 1.0


class Budget:
    """Seconds given, used and left, over all sessions of a run.

    Args:
        total_s: Seconds given; 0: as long as it takes.
        began: ``time.monotonic()`` when this session began.
        state: ``state`` as it was when the resumed state was saved.

    Attributes:
        seconds_per_step: Of late: checkpoints, pictures and waiting included,
            validations not.
        validation_s: Seconds used for validations.
        looked_step: Steps done when the number was decided last.
        fastest_s: The least ``seconds_per_step`` since ``forget_fastest``; 0: none.
    """

    def __init__(
        self, total_s: float, began: float, state: Mapping[str, float] | None = None
    ) -> None:
        kept = state or {}
        self.total_s = total_s
        self._began = began - kept.get("spent_s", 0.0)
        self.validation_s = kept.get("validation_s", 0.0)
        self.seconds_per_step = kept.get("seconds_per_step", 0.0)
        self.looked_step = int(kept.get("looked_step", 0))
        self.fastest_s = kept.get("fastest_s", 0.0)
        self._looked_s = kept.get("looked_s", 0.0)
        self._looked_validation_s = kept.get("looked_validation_s", 0.0)

    @property
    def state(self) -> dict[str, float]:
        """All that a later session must know."""
        return {
            "spent_s": self.spent_s,
            "validation_s": self.validation_s,
            "seconds_per_step": self.seconds_per_step,
            "looked_step": self.looked_step,
            "fastest_s": self.fastest_s,
            "looked_s": self._looked_s,
            "looked_validation_s": self._looked_validation_s,
        }

    @property
    def spent_s(self) -> float:
        """Seconds used, pauses left out."""
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float:
        """Seconds left; negative once they are over."""
        return self.total_s - self.spent_s

    @property
    def validation_left_s(self) -> float:
        """Seconds left for validations."""
        return max(0.0, VALIDATION_SHARE * self.total_s - self.validation_s)

    def waited(self, seconds: float) -> None:
        """A listener took so long between two events."""
        if seconds >= _PAUSE_S:
            self._began += seconds

    def begin_looking(self, seconds_per_step: float) -> None:
        """Training begins: steps are measured from here on.

        Args:
            seconds_per_step: As measured before.
        """
        self.seconds_per_step = self.fastest_s = seconds_per_step
        self._looked_s, self._looked_validation_s = self.spent_s, self.validation_s

    def is_time_to_look(self) -> bool:
        """Whether the number of steps should be decided anew."""
        wait_s = min(
            max(_LOOK_SHARE * self.left_s, _LEAST_SHARE * self.total_s),
            _MOST_SHARE * self.total_s,
        )
        return self.spent_s - self._looked_s >= wait_s

    def look(self, done: int) -> None:
        """Measure the steps since the last look.

        Args:
            done: Steps done.
        """
        training_s = self.spent_s - self._looked_s
        training_s -= self.validation_s - self._looked_validation_s
        if done > self.looked_step:
            self.seconds_per_step = training_s / (done - self.looked_step)
            self.fastest_s = min(self.fastest_s or 1e9, self.seconds_per_step)
        self._looked_s, self._looked_validation_s = self.spent_s, self.validation_s
        self.looked_step = done

    @property
    def is_slow(self) -> bool:
        """Whether steps take much longer than they did."""
        return self.seconds_per_step > _SLOW * self.fastest_s > 0

    def forget_fastest(self) -> None:
        """What comes is not to be compared with what was."""
        self.fastest_s = 0.0

    def free_s(self, saving_s: float) -> float:
        """Seconds left for steps and validations, those of the end set aside.

        Args:
            saving_s: Seconds a checkpoint takes; 0 before one.
        """
        return self.left_s - max(_END_SHARE * self.total_s, 2.0 * saving_s)

    def steps_left(
        self, validations_s: float, saving_s: float, heavier: float = 1.0
    ) -> int:
        """Steps that still fit, by how long the steps of late took.

        Args:
            validations_s: Seconds the validations to come are taken to need.
            saving_s: Seconds a checkpoint takes; 0 before one.
            heavier: How many times as long as those of late the steps to come take.
        """
        free_s = self.free_s(saving_s) - validations_s
        return max(1, int(free_s / max(self.seconds_per_step * heavier, 1e-9)))


# A validation of fewer cases says little: rather fewer validations than fewer cases.
FEWEST = 4


@dataclass(frozen=True)
class Revision:
    """A decision: what holds after ``step`` steps.

    Attributes:
        step: Steps done when it was taken.
        total_steps: Steps of the whole training from now on; more than ``step``.
        validate_every: Steps between validations from now on; 0: one at the end.
        validate_cases: Cases each validation looks at; 0: not decided yet.
        threads: CPU threads from now on; 0: as many as before.
    """

    step: int = option(0, "steps done", minimum=0)
    total_steps: int = option(1, "steps of the whole training", minimum=1)
    validate_every: int = option(0, "steps between validations", minimum=0)
    validate_cases: int = option(0, "cases of a validation", minimum=0)
    threads: int = option(0, "CPU threads", minimum=0)


@dataclass(frozen=True)
class Course:
    """Where each step lies between the beginning and the end of a training.

    A revision leaves what is done as it is and spreads the rest over the new number of
    steps: the share done grows without a jump, only faster or slower.

    Attributes:
        planned: Steps of the first plan; the unit of ``position``.
        revisions: In the order they were taken.
    """

    planned: int
    revisions: tuple[Revision, ...] = ()

    @property
    def total(self) -> int:
        """Steps of the whole training, as decided last."""
        return self.revisions[-1].total_steps if self.revisions else self.planned

    def position(self, step: float) -> float:
        """How far ``step`` steps are, in steps of the first plan: 0..planned.

        Args:
            step: Steps done; a fraction where a step is made of several batches.
        """
        begin, reached, total = 0, 0.0, self.planned
        for revision in self._until(step):
            reached += (self.planned - reached) * _share(revision.step, begin, total)
            begin, total = revision.step, revision.total_steps
        if begin == 0 and total == self.planned:
            return step
        rest = (self.planned - reached) * _share(step, begin, total)
        return min(reached + rest, float(self.planned))

    def progress(self, step: float) -> float:
        """Share of the training done after ``step`` steps, 0..1."""
        return self.position(step) / self.planned

    def _until(self, step: float) -> Iterator[Revision]:
        return (r for r in self.revisions if r.step <= step)


def _share(step: float, begin: int, total: int) -> float:
    return (step - begin) / (total - begin)


def check_revisions(planned: int, revisions: Sequence[Revision]) -> None:
    """Raise ConfigError where decisions do not follow each other."""
    total, last = planned, -1
    for revision in revisions:
        if not (last < revision.step < min(total, revision.total_steps)):
            raise ConfigError(
                f"a revision after step {revision.step} of {total} cannot make "
                f"{revision.total_steps} steps"
            )
        total, last = revision.total_steps, revision.step


def affordable_interval(
    done: int, total: int, every: int, allowed_s: float, validation_s: float
) -> int:
    """Steps between validations, so that those to come take no longer than allowed.

    Args:
        done: Steps done.
        total: Steps of the whole training.
        every: Steps between validations that are wished for; 0: one at the end.
        allowed_s: Seconds for all validations to come.
        validation_s: Seconds of one.

    Returns:
        ``every`` doubled as often as is needed; 0 where only the one at the end, which
        is always made, is left.
    """
    while every and validations_left(done, total, every) * validation_s > allowed_s:
        every *= 2
        if every >= total:
            return 0
    return every


def validations_left(done: int, total: int, every: int) -> int:
    """Validations after step ``done``, the one at the end included."""
    if done >= total:
        return 0
    return 1 + ((total - 1) // every - done // every if every else 0)


@dataclass(frozen=True)
class Fitting:
    """How a training fits into a time.

    Attributes:
        steps: Of the whole training.
        every: Steps between validations; 0: one at the end.
        each_s: Seconds a validation takes, about.
    """

    steps: int
    every: int
    each_s: float


def steps_within(
    left_s: float,
    step_s: float,
    allowed_s: float,
    case_s: float,
    cases: int,
    every: int,
) -> Fitting:
    """Steps that fit beside validations that take no longer than allowed.

    Args:
        left_s: Seconds there are, for both.
        step_s: Seconds a step takes.
        allowed_s: Seconds for all validations.
        case_s: Seconds a held-out case takes; 0 where nobody knows: then all that is
            allowed is set aside.
        cases: Held-out cases there are.
        every: Steps between validations that are wished for; 0: one at the end.
    """
    steps = max(1, int(left_s / step_s))
    every = affordable_interval(0, steps, every, allowed_s, case_s * min(FEWEST, cases))
    count = validations_left(0, steps, every)
    each_s = allowed_s / count
    if case_s:
        each_s = min(each_s, case_s * cases)
    if not cases:
        each_s = 0.0
    return Fitting(max(1, int((left_s - count * each_s) / step_s)), every, each_s)


def few_steps_words(
    minutes: float, steps: int, recipe_steps: int, seconds_per_step: float
) -> str:
    """A warning where minutes are far too few for the recipe; empty where they are not.

    Args:
        minutes: That were given.
        steps: That fit into them.
        recipe_steps: That the recipe would make.
        seconds_per_step: As measured.
    """
    if steps * 4 > recipe_steps:
        return ""
    return (
        f"{minutes_words(minutes)} about {steps} steps here; the recipe has "
        f"{recipe_steps}, which would take about "
        f"{duration(recipe_steps * seconds_per_step)}: expect little."
    )


def minutes_words(minutes: float) -> str:
    """``5 minutes are``, ``1 minute is``."""
    return f"{minutes:g} minute" + (" is" if minutes == 1 else "s are")
