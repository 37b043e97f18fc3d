"""The minutes a training was given: what of them is used, and what is left."""

from __future__ import annotations

import time
from collections.abc import Mapping

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
        state: As ``state`` told it when the state that is resumed was saved.

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
        told = state or {}
        self.total_s = total_s
        self._began = began - told.get("spent_s", 0.0)
        self.validation_s = told.get("validation_s", 0.0)
        self.seconds_per_step = told.get("seconds_per_step", 0.0)
        self.looked_step = int(told.get("looked_step", 0))
        self.fastest_s = told.get("fastest_s", 0.0)
        self._looked_s = told.get("looked_s", 0.0)
        self._looked_validation_s = told.get("looked_validation_s", 0.0)

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
