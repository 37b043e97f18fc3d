"""Landmarks found, believed or refused, and why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from homolog.features.search import Search
from homolog.geometry.affine import Affine
from homolog.landmarks.config import LandmarksConfig
from homolog.landmarks.match import judged, match_landmarks, with_consensus
from homolog.scans.points import Landmark
from homolog.scans.volume import FeatureMap, Points

SHIFT = np.array([8.0, -6.0, 4.0])
STRICT = LandmarksConfig(least_similarity=0.9, largest_cycle_mm=5.0)


def code_map(shape, spacing, shift=(0.0, 0.0, 0.0), size=48, seed=5):
    """Features that tell the place in a body moved by ``shift`` mm."""
    affine = Affine.of((spacing,) * 3)
    rng = np.random.default_rng(seed)
    mm = affine.apply(np.indices(shape).reshape(3, -1).T) - np.array(shift)
    waves = rng.normal(0, 1 / 15, (size // 2, 3)) @ mm.T
    code = np.concatenate([np.cos(waves), np.sin(waves)]) / np.sqrt(size / 2)
    return FeatureMap(code.reshape(-1, *shape).astype(np.float32), affine)


@pytest.fixture(scope="module")
def maps():
    """What two scans show, prepared for searching once for all tests."""
    scans = code_map((24, 24, 24), 3.0), code_map((34, 34, 34), 2.5, SHIFT)
    return tuple(map(Search, scans))


def some_points(count=12, seed=0):
    mm = np.random.default_rng(seed).uniform(14, 52, (count, 3))
    return Points(mm, tuple(f"p{i}" for i in range(count)))


def test_points_are_found_where_they_are(maps):
    points = some_points()
    marks, consensus = match_landmarks(*maps, points, STRICT)
    assert consensus is None
    assert [m.id for m in marks] == list(range(1, 13))
    assert [m.name for m in marks] == list(points.names)
    assert all(m.accepted and m.reason == "" and not m.manual for m in marks)
    np.testing.assert_array_equal([m.a_mm for m in marks], points.mm)
    assert np.abs(np.array([m.b_mm for m in marks]) - points.mm - SHIFT).max() < 0.6
    assert max(m.cycle_mm for m in marks) < 1.0
    plain = match_landmarks(*(m.features for m in maps), points, STRICT)
    assert plain[0] == marks


def test_points_outside_are_refused_without_a_place(maps):
    points = Points(
        np.array([[30.0, 30, 30], [30, 30, 72], [30, 10, 30]]), ("a", "b", "c")
    )
    body = np.ones((24, 24, 24), bool)
    body[:, :6] = False
    marks, _ = match_landmarks(*maps, points, STRICT, body_a=body)
    assert marks[0].accepted
    assert [m.b_mm for m in marks[1:]] == [None, None]
    assert np.isnan([m.similarity for m in marks[1:]]).all()
    assert "outside scan A" in marks[1].reason
    assert "outside the body of A" in marks[2].reason
    free = replace(STRICT, body_only=False)
    assert match_landmarks(*maps, points, free, body_a=body)[0][2].accepted


def test_only_the_body_of_b_is_searched(maps):
    points = Points(np.array([[30.0, 30.0, 30.0], [30.0, 30.0, 50.0]]), ("in", "out"))
    body = np.zeros((34, 34, 34), bool)
    body[:, :, :18] = True  # x up to 43.75 mm; the second one lies at 54
    marks, _ = match_landmarks(*maps, points, STRICT, body_b=body)
    assert marks[0].accepted
    assert not marks[1].accepted
    assert marks[1].b_mm[2] < 43.8
    assert marks[1].reason
    nowhere, _ = match_landmarks(*maps, points, STRICT, body_b=np.zeros_like(body))
    assert {m.reason for m in nowhere} == {"no body was found in scan B"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"least_similarity": 1.0}, " is below 1"),
        ({"least_margin": 1.9}, "better than another place (at least 1.9)"),
        ({"largest_cycle_mm": 0.0}, "beside the point (at most 0)"),
    ],
)
def test_each_limit_refuses_and_says_so(maps, config, words):
    limits = {"least_similarity": -1.0, "largest_cycle_mm": 500.0, **config}
    marks, _ = match_landmarks(*maps, some_points(3), LandmarksConfig(**limits))
    for mark in marks:
        assert not mark.accepted
        assert mark.b_mm is not None
    assert words in marks[0].reason
    easy = {
        **limits,
        **{k: type(v)(-1 if "least" in k else 500) for k, v in config.items()},
    }
    assert all(
        m.accepted
        for m in match_landmarks(*maps, some_points(3), LandmarksConfig(**easy))[0]
    )


def test_a_wrong_match_is_refused_by_the_others(maps):
    config = replace(STRICT, consensus="rigid", largest_consensus_mm=10.0)
    marks, consensus = match_landmarks(*maps, some_points(), config)
    assert all(m.accepted for m in marks)
    assert consensus.inliers.all()
    np.testing.assert_allclose(consensus.matrix[:3, 3], SHIFT, atol=1.0)
    wrong = [replace(m, b_mm=(0.0, 60.0, 0.0)) if m.id in (3, 5) else m for m in marks]
    wrong[4] = replace(wrong[4], manual=True)
    judged, consensus = with_consensus(wrong, config)
    assert [m.id for m in judged if not m.accepted] == [3]  # 5 was set by hand
    assert "from where the other landmarks put it (at most 10)" in judged[2].reason
    assert consensus.inliers.sum() == 10
    few, none = with_consensus(wrong[:2], config)
    assert none is None
    assert few == wrong[:2]


def test_a_match_stays_on_the_grid_of_its_scan(maps):
    flat = (Affine.of((2.5, 2.5, 2.5)), (34, 34, 10))
    marks, _ = match_landmarks(*maps, some_points(4), STRICT, scan_b=flat)
    assert max(m.b_mm[2] for m in marks) <= 9 * 2.5 + 1e-9


def test_no_points_no_landmarks(maps):
    assert match_landmarks(*maps, Points(np.zeros((0, 3)))) == ([], None)
    assert with_consensus([], LandmarksConfig(consensus="affine")) == ([], None)


def test_a_landmark_is_a_value():
    mark = Landmark(1, "a", (0.0, 0.0, 0.0), None, 0.5, 0.1, 2.0, True)
    assert replace(mark, accepted=False) != mark


def test_other_limits_judge_again_by_the_figures_alone():
    found = Landmark(
        3, "apex", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 0.8, 0.05, 9.0, True
    )  # fmt: skip
    assert judged(found, LandmarksConfig()) == found
    strict = judged(found, LandmarksConfig(largest_cycle_mm=8.0))
    assert not strict.accepted
    assert strict.reason == "leads back 9 mm beside the point (at most 8)"
    assert judged(strict, LandmarksConfig()) == found  # and back
    assert "similarity" in judged(strict, LandmarksConfig(least_similarity=0.9)).reason
    assert "better" in judged(found, LandmarksConfig(least_margin=0.1)).reason
    never = LandmarksConfig(largest_cycle_mm=0.0)
    for kept in (
        replace(found, manual=True),
        replace(found, b_mm=None, accepted=False, reason="the point lies outside"),
        replace(found, margin=float("nan")),
    ):
        assert judged(kept, never) == kept
    odd = replace(
        found, accepted=False,
        reason="40 mm from where the other landmarks put it (at most 25)",
    )  # fmt: skip
    assert judged(odd, LandmarksConfig()) == odd  # only all of them can tell
