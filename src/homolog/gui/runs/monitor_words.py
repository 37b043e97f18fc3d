"""What a training's monitors mean, in plain words with a traffic light; no Qt.

The limits are those of ``homolog.training.health.CollapseWatch``, which writes the
warnings; they are repeated here since that room loads torch. A test compares them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STD_FLOOR, STD_ONCE, STD_SHARE = 0.05, 0.3, 0.2
RANK_FLOOR, RANK_ONCE = 1.5, 3.0
# Above these, learning still goes on, but a look is worth while.
STD_LOW = 0.3
NORM_FACTOR = 20.0
WAIT_SHARE = 0.3
_FEW = 5

GOOD, LOOK, BAD, NONE = "good", "look", "bad", "none"
SIGNS = {GOOD: "● good", LOOK: "▲ look", BAD: "■ trouble", NONE: "○"}


@dataclass(frozen=True)
class Reading:
    """One monitor, judged.

    Attributes:
        light: ``good``, ``look``, ``bad`` or ``none`` (a number without a verdict).
        title: What it is, for people.
        value: The number, with its unit.
        meaning: One sentence: what it says, and what to do.
    """

    light: str
    title: str
    value: str
    meaning: str

    @property
    def sign(self) -> str:
        """The light as a shape and a word."""
        return SIGNS[self.light]


def readings(history: Mapping[str, Sequence[float]]) -> list[Reading]:
    """Every monitor worth telling, those with trouble first.

    Args:
        history: Name -> values so far, oldest first.
    """
    found = [
        reading
        for name, values in history.items()
        if (reading := read_one(name, values)) is not None
    ]
    order = [BAD, LOOK, GOOD, NONE]
    return sorted(found, key=lambda reading: order.index(reading.light))


def read_one(name: str, values: Sequence[float]) -> Reading | None:
    """One monitor judged by its last value and what it was; None: not for people."""
    sound = [v for v in values if math.isfinite(v)]
    if not sound:
        return None
    if name.endswith("_std"):
        return _spread(_thing(name, "_std"), sound)
    if name.endswith("_rank"):
        return _rank(_thing(name, "_rank"), sound)
    if name == "gradient_norm":
        return _norm(sound)
    if name == "bad_steps":
        return _bad_steps(sound[-1])
    if name == "data_wait":
        return _waiting(sound[-1])
    if name == "matched_share":
        share = f"{sound[-1]:.0%}"
        return Reading(
            NONE,
            "Places found in both views",
            share,
            "Share of image patches whose partner was found in the second view.",
        )
    return None


def verdict(found: Sequence[Reading]) -> tuple[str, str]:
    """The worst light and one sentence for the whole training."""
    lights = {reading.light for reading in found}
    if BAD in lights:
        worst = next(reading for reading in found if reading.light == BAD)
        return BAD, worst.meaning
    if LOOK in lights:
        worst = next(reading for reading in found if reading.light == LOOK)
        return LOOK, worst.meaning
    if GOOD in lights:
        if any(r.title.startswith(("Spread", "Variety")) for r in found):
            return GOOD, "Training looks healthy: the features stay different."
        return GOOD, "Training looks healthy."
    return NONE, "Nothing to judge yet."


def plateau_hint(values: Sequence[float], higher_is_better: bool = True) -> str:
    """``"validation has not improved for 10 rounds"``, or empty."""
    sound = [v if higher_is_better else -v for v in values if math.isfinite(v)]
    if len(sound) < 6:
        return ""
    since = len(sound) - 1 - max(range(len(sound)), key=lambda i: sound[i])
    if since < 5:
        return ""
    return (
        f"Validation has not improved for {since} rounds: stopping now loses little "
        "(the best weights are kept)."
    )


def _thing(name: str, ending: str) -> str:
    return name.removesuffix(ending).replace("_", " ")


def _spread(thing: str, values: list[float]) -> Reading:
    title, now, highest = f"Spread of {thing} features", values[-1], max(values)
    text = f"{now:.2f} (1 is ideal)"
    if now < STD_FLOOR or (highest > STD_ONCE and now < STD_SHARE * highest):
        return Reading(
            BAD, title, text,
            "The features are collapsing: all places look alike to the network. Stop, "
            "and start with a lower learning rate, a longer warm-up or a larger batch.",
        )  # fmt: skip
    if now < STD_LOW and _falls(values):
        return Reading(
            LOOK, title, text,
            "The features differ ever less; if this number keeps falling, stop and "
            "lower the learning rate.",
        )  # fmt: skip
    if now < STD_LOW:
        return Reading(
            GOOD, title, text,
            "The features differ little yet, but this is not getting worse; usual "
            "early in a training.",
        )  # fmt: skip
    return Reading(GOOD, title, text, "Different places give different features.")


def _falls(values: list[float]) -> bool:
    """Whether the last few values lie clearly below the few before them."""
    if len(values) < 2 * _FEW:
        return False
    now, before = values[-_FEW:], values[-2 * _FEW : -_FEW]
    return sum(now) < 0.9 * sum(before)


def _rank(thing: str, values: list[float]) -> Reading:
    title, now, highest = f"Variety of {thing} features", values[-1], max(values)
    text = f"{now:.1f} independent directions"
    if now < RANK_FLOOR and highest > RANK_ONCE:
        return Reading(
            BAD, title, text,
            "The features have collapsed to one direction: they no longer tell places "
            "apart. Stop, and start with a lower learning rate or a larger batch.",
        )  # fmt: skip
    if highest > RANK_ONCE and now < 0.3 * highest:
        return Reading(
            LOOK, title, text, "The features use fewer directions than before."
        )
    return Reading(GOOD, title, text, "The features use many directions.")


def _norm(values: list[float]) -> Reading:
    title, now = "Size of the learning steps", values[-1]
    usual = sorted(values[-50:])[len(values[-50:]) // 2]
    text = f"gradient norm {now:.3g}"
    if len(values) >= 5 and usual > 0 and now > NORM_FACTOR * usual:
        return Reading(
            LOOK, title, text,
            "The last step was far larger than usual; it is clipped. If it happens "
            "often, lower the learning rate.",
        )  # fmt: skip
    return Reading(GOOD, title, text, "Steps are of the usual size.")


def _bad_steps(count: float) -> Reading | None:
    if count <= 0:
        return None
    return Reading(
        LOOK, "Skipped steps", f"{count:.0f}",
        "The loss was infinite or not a number and the step was skipped. A lower "
        "learning rate or full precision (fp32) often helps.",
    )  # fmt: skip


def _waiting(share: float) -> Reading:
    title, text = "Waiting for data", f"{share:.0%} of the time"
    if share > WAIT_SHARE:
        return Reading(
            LOOK, title, text,
            "Reading and cutting scans is slower than learning from them; a faster "
            "disk or more CPU cores would speed this up.",
        )  # fmt: skip
    return Reading(GOOD, title, text, "The data comes fast enough.")
