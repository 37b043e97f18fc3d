"""What the rest of the body says about a match."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from homolog.features.search import Search
from homolog.geometry.affine import Affine
from homolog.landmarks.config import LandmarksConfig
from homolog.landmarks.match import judged, match_landmarks, surroundings_between
from homolog.scans.volume import FeatureMap, Points

STEP_MM = 4.0
SIDE = 24
LIMITS = LandmarksConfig(least_similarity=0.9, largest_stray_mm=25.0)


def codes(shift_mm: float = 0.0) -> FeatureMap:
    """Features that tell the place, of a body moved by ``shift_mm`` along all axes."""
    affine = Affine.of((STEP_MM,) * 3)
    rng = np.random.default_rng(1)
    mm = affine.apply(np.indices((SIDE,) * 3).reshape(3, -1).T) - shift_mm
    waves = rng.normal(0, 1 / 15, (24, 3)) @ mm.T
    code = np.concatenate([np.cos(waves), np.sin(waves)]) / np.sqrt(24)
    return FeatureMap(code.reshape(-1, SIDE, SIDE, SIDE).astype(np.float32), affine)


def block(corner: tuple[int, int, int]) -> tuple[slice, ...]:
    return (slice(None), *(slice(c, c + 6) for c in corner))


def exchanged(features: FeatureMap, one: tuple, other: tuple) -> FeatureMap:
    """Two blocks of 6^3 cells in each other's place."""
    data = features.data.copy()
    data[block(one)] = features.data[block(other)]
    data[block(other)] = features.data[block(one)]
    return replace(features, data=data)


def shuffled(features: FeatureMap) -> FeatureMap:
    """All blocks in random places: matches lead back, but follow no map."""
    corners = np.array(list(np.ndindex(4, 4, 4))) * 6
    data = features.data.copy()
    order = np.random.default_rng(2).permutation(len(corners))
    for place, source in zip(corners, corners[order], strict=True):
        data[block(tuple(place))] = features.data[block(tuple(source))]
    return replace(features, data=data)


def middle(corner: tuple[int, int, int]) -> list[float]:
    return [(c + 2.5) * STEP_MM for c in corner]


def test_a_match_in_line_with_the_rest_is_believed() -> None:
    points = Points(np.array([middle((6, 6, 6)), middle((12, 12, 6))]), ("a", "b"))
    marks, _ = match_landmarks(codes(), codes(6.0), points, LIMITS)
    assert all(m.accepted for m in marks)
    assert max(m.stray_mm for m in marks) < 3.0


def test_a_match_far_from_where_the_rest_puts_it_is_refused() -> None:
    one, other = (0, 6, 6), (18, 6, 6)  # 72 mm apart
    points = Points(np.array([middle(one), middle((12, 12, 12))]), ("moved", "kept"))
    target = exchanged(codes(), one, other)
    moved, kept = match_landmarks(codes(), target, points, LIMITS)[0]
    assert moved.cycle_mm < 5.0  # nothing else speaks against it
    assert not moved.accepted
    assert moved.reason == (
        f"{moved.stray_mm:.0f} mm from where the rest of the body puts it (at most 25)"
    )
    assert moved.stray_mm == pytest.approx(72.0, abs=6.0)
    assert kept.accepted
    blind = replace(LIMITS, largest_stray_mm=0.0)
    assert match_landmarks(codes(), target, points, blind)[0][0].accepted
    # the table of the panel: other limits, nothing searched again
    assert judged(moved, blind).accepted
    assert not judged(judged(moved, blind), LIMITS).accepted


def test_scans_that_agree_on_no_map_have_no_matches() -> None:
    points = Points(np.array([middle((6, 6, 6)), middle((12, 6, 12))]), ("a", "b"))
    marks, _ = match_landmarks(codes(), shuffled(codes()), points, LIMITS)
    assert max(m.cycle_mm for m in marks) < 5.0
    assert not any(m.accepted for m in marks)
    assert all("too little in common" in m.reason for m in marks)
    assert not any(judged(m, LIMITS).accepted for m in marks)


def test_few_places_that_lead_back_tell_nothing() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(size=codes().data.shape).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=0)
    found = surroundings_between(
        Search(codes()), Search(FeatureMap(noise, codes().affine)), least_similarity=0.9
    )
    assert found.agreed is None
    assert not found.known
    assert found.refusal == ""
    assert np.isnan(found.stray_mm(np.zeros((2, 3)), np.ones((2, 3)))).all()


def test_places_are_matched_once_per_pair() -> None:
    source, target = Search(codes()), Search(codes(6.0))
    first = surroundings_between(source, target)
    assert surroundings_between(source, target) is first
    assert surroundings_between(source, Search(codes(6.0))) is not first
    assert first.agreed is not None
    np.testing.assert_allclose(first.agreed.matrix[:3, 3], 6.0, atol=1.0)
