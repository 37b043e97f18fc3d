"""Intervals cover, tests agree with scipy's and with hand, on made-up scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from homolog.comparing.statistics import (
    area_over_steps,
    bootstrap_interval,
    crossed_interval,
    difference,
    holm,
    of_draws,
    resampled,
    signed_rank,
    steps_to,
    steps_to_best,
)


def test_a_difference_is_paired_by_patient_after_the_mean_over_seeds() -> None:
    theirs = np.array([[0.2, 0.5, 0.9], [0.3, 0.5, 0.7]])
    gains = np.array([[0.10, 0.00, -0.02], [0.06, 0.00, 0.04]])
    found = difference(theirs + gains, theirs)
    assert found.mean == pytest.approx(gains.mean())
    assert (found.wins, found.losses, found.count) == (2, 0, 3)
    assert found.patients is not None
    low, high = found.patients
    assert low <= found.mean <= high
    swapped = difference(theirs, theirs + gains)
    assert swapped.mean == pytest.approx(-found.mean)
    assert (swapped.wins, swapped.losses) == (0, 2)


def test_a_gain_that_all_share_has_an_interval_without_width() -> None:
    theirs = np.random.default_rng(0).random((3, 8))
    found = difference(theirs + 0.05, theirs)
    assert found.patients == pytest.approx((0.05, 0.05))
    assert found.both == pytest.approx((0.05, 0.05))
    assert found.p is not None
    assert found.p < 0.01


def test_no_difference_at_all_is_p_1() -> None:
    scores = np.random.default_rng(0).random((2, 5))
    found = difference(scores, scores.copy())
    assert (found.mean, found.p, found.wins, found.losses) == (0.0, 1.0, 0, 0)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds, patients"):
        difference(np.zeros((2, 3)), np.zeros((2, 4)))


def test_one_seed_or_patient_gives_no_interval_it_cannot_give() -> None:
    one_seed = difference(np.ones((1, 4)), np.zeros((1, 4)))
    assert one_seed.both is None
    assert one_seed.patients is not None
    one_patient = difference(np.ones((3, 1)), np.zeros((3, 1)))
    assert (one_patient.patients, one_patient.both, one_patient.p) == (None,) * 3


def test_the_bootstrap_interval_is_about_the_normal_one_and_repeats() -> None:
    values = np.random.default_rng(1).normal(0.1, 0.05, 200)
    found = bootstrap_interval(values, seed=3)
    half = 1.96 * values.std() / np.sqrt(200)
    expected = (values.mean() - half, values.mean() + half)
    assert found == pytest.approx(expected, abs=0.1 * half)
    assert found == bootstrap_interval(values, seed=3)


def test_the_interval_over_seeds_and_patients_covers_both() -> None:
    """Paper: Joint five repeats."""
    rng = np.random.default_rng(0)
    covered_both = covered_patients = 0
    rounds = 400
    for _ in range(rounds):
        scores = 0.03 + (
            rng.normal(0, 0.02, (3, 1))
            + rng.normal(0, 0.03, (1, 12))
            + rng.normal(0, 0.02, (3, 12))
        )
        low, high = crossed_interval(scores)
        covered_both += low <= 0.03 <= high
        low, high = bootstrap_interval(scores.mean(axis=0), resamples=200)
        covered_patients += low <= 0.03 <= high
    assert covered_both / rounds >= 0.92
    assert covered_patients / rounds < 0.85  # what leaving seeds out would claim


def test_without_an_effect_of_seeds_the_interval_is_that_of_patients() -> None:
    each = np.random.default_rng(2).normal(0.05, 0.03, 10)
    low, high = crossed_interval(np.stack([each, each, each]))
    error = stats.sem(each)
    reach = stats.t.ppf(0.975, 9) * error
    assert (low, high) == pytest.approx((each.mean() - reach, each.mean() + reach))


def test_the_signed_rank_test_is_exact_where_it_can_be() -> None:
    values = np.array([0.01, 0.02, 0.03, 0.04, 0.05])
    assert signed_rank(values) == pytest.approx(2 / 32)
    assert signed_rank(-values) == pytest.approx(2 / 32)
    mixed = np.array([0.3, -0.1, 0.7, 0.45, -0.2, 0.9, 0.05])
    expected = stats.wilcoxon(mixed, method="exact").pvalue
    assert signed_rank(mixed) == pytest.approx(expected)
    tied = np.array([0.1, 0.1, -0.1])  # ranks 2 2 2: sums +-2 (6 of 8) and +-6
    assert signed_rank(tied) == 1.0
    assert signed_rank(np.array([0.0, 0.1, 0.1])) == pytest.approx(2 / 4)
    many = np.random.default_rng(0).normal(0.1, 0.3, 40)
    expected = stats.wilcoxon(many, method="approx").pvalue
    assert signed_rank(many) == pytest.approx(expected)


def test_sets_are_drawn_by_patient_and_alike_for_two_models() -> None:
    rows = [{"case": f"c{i}", "value": float(i)} for i in range(6)]
    patients = ["a", "a", "b", "b", "c", "c"]  # two cases each, never parted

    def score(drawn: list[dict]) -> float | None:
        assert len(drawn) == 6
        assert len({row["case"] for row in drawn}) == 6
        return float(np.mean([row["value"] for row in drawn]))

    draws = resampled(rows, patients, score, seed=1, resamples=200)
    steps = (draws - 0.5) * 1.5  # whole patients: three of the means 0.5, 2.5, 4.5
    assert steps == pytest.approx(np.round(steps))
    assert draws.mean() == pytest.approx(2.5, abs=0.2)
    better = [{**row, "value": row["value"] + 0.1} for row in rows]
    gains = resampled(better, patients, score, seed=1, resamples=200) - draws
    assert gains == pytest.approx(0.1)
    found = of_draws(0.1, gains, seeds=3)
    assert found.patients == pytest.approx((0.1, 0.1))
    assert found.p == pytest.approx(2 / 201)
    nothing = resampled(rows, patients, lambda drawn: None, resamples=3)
    assert np.isnan(nothing).all()
    assert of_draws(0.1, nothing, seeds=3).patients is None


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [
        pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06),
    ]  # fmt: skip
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_areas_and_steps_of_a_curve() -> None:
    steps, values = [10, 20, 40], [0.0, 0.4, 0.8]
    assert area_over_steps(steps, values) == pytest.approx((2 + 12) / 30)
    assert area_over_steps([10], [0.5]) is None
    assert steps_to(steps, values, 0.2) == pytest.approx(15)
    assert steps_to(steps, values, 0.0) == 10
    assert steps_to(steps, values, 0.9) is None
    assert steps_to_best(steps, values) == pytest.approx(20 + 20 * 0.384 / 0.4)
    assert steps_to_best(steps, [0.0, 0.0, 0.0]) is None
    assert steps_to_best([], []) is None
