"""Monitors in plain words, with the limits of the watch that writes the warnings."""

from __future__ import annotations

import math

import pytest

from each import each
from homolog.gui.shared import runs as words
from homolog.gui.shared.runs import plateau_hint, read_one, readings, verdict


def test_the_limits_are_those_of_the_training() -> None:
    pytest.importorskip("torch")
    from homolog.training import loop

    assert (words.STD_FLOOR, words.STD_ONCE, words.STD_SHARE) == (
        loop._STD_FLOOR, loop._STD_ONCE, loop._STD_SHARE,
    )  # fmt: skip
    assert (words.RANK_FLOOR, words.RANK_ONCE) == (
        loop._RANK_FLOOR, loop._RANK_ONCE,
    )  # fmt: skip


@each(
    "name, values, light",
    [
        ("tokens_std", [0.8, 0.9], "good"),
        ("tokens_std", [0.2], "good"),  # early, and not getting worse
        ("tokens_std", [0.28] * 6 + [0.21] * 5, "look"),
        ("tokens_std", [0.15] * 6 + [0.2] * 5, "good"),
        ("tokens_std", [0.9, 0.1], "bad"),
        ("tokens_std", [0.04], "bad"),
        ("tokens_rank", [30.0, 28.0], "good"),
        ("tokens_rank", [2.0, 1.2], "good"),  # small batches have small ranks
        ("tokens_rank", [30.0, 1.2], "bad"),
        ("tokens_rank", [30.0, 5.0], "look"),
        ("gradient_norm", [1.0] * 9 + [30.0], "look"),
        ("gradient_norm", [1.0, 1.2], "good"),
        ("bad_steps", [2.0], "look"),
        ("data_wait", [0.6], "look"),
        ("data_wait", [0.01], "good"),
        ("matched_share", [0.5], "none"),
    ],
)
def test_a_monitor_is_judged(name: str, values: list[float], light: str) -> None:
    reading = read_one(name, values)
    assert reading is not None
    assert reading.light == light
    assert len(reading.sign) > 0
    assert reading.meaning.endswith(".")


def test_numbers_that_are_not_for_people_are_left_out() -> None:
    assert read_one("raw_p2p", [3.0]) is None
    assert read_one("learning_rate", [3.0]) is None
    assert read_one("tokens_std", [math.nan]) is None


def test_the_worst_comes_first_and_gives_the_verdict() -> None:
    found = readings({"tokens_rank": [30, 29], "tokens_std": [0.9, 0.01]})
    assert [r.light for r in found] == ["bad", "good"]
    assert verdict(found)[0] == "bad"
    assert "collapsing" in verdict(found)[1]
    assert verdict([]) == ("none", "Nothing to judge yet.")


def test_a_validation_that_stands_still_is_told() -> None:
    assert plateau_hint([0.1, 0.5, 0.4, 0.3, 0.4, 0.45, 0.44]).startswith(
        "Validation has not improved for 5 rounds"
    )
    assert plateau_hint([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == ""
    assert plateau_hint([]) == ""
