"""Frames of the body from matching places."""

from __future__ import annotations

import numpy as np

from homolog.feed.partners import frames_of


def test_shifts_and_stretches_are_found_in_spite_of_wrong_matches() -> None:
    rng = np.random.default_rng(0)
    shift = rng.normal(0, 200, (5, 3))
    stretch = np.array([1.0, 0.9, 1.1, 1.05, 0.95])[:, None] * np.ones(3)
    parts = []
    for case in range(4):  # the fifth is linked with none
        body = rng.uniform(-150, 150, (60, 3))
        partner = rng.integers(0, 4, 60)
        own = (body - shift[case]) / stretch[case]
        other = (body - shift[partner]) / stretch[partner]
        other += rng.normal(0, 2, other.shape)
        other[:6] += rng.uniform(-200, 200, (6, 3))  # wrong ones
        parts.append(np.column_stack([own, partner, other]))
    parts.append(np.zeros((0, 7)))
    frames = frames_of(parts)
    assert frames.number[:4].tolist() == [frames.number[0]] * 4
    assert frames.number[4] != frames.number[0]
    np.testing.assert_array_equal(frames.to_body[4], np.eye(4))
    body = rng.uniform(-150, 150, (50, 3))
    found = []
    for case in range(4):
        world = (body - shift[case]) / stretch[case]
        placed = np.column_stack([world, np.ones(50)]) @ frames.to_body[case].T
        found.append(placed[:, :3])
    spread = np.ptp(np.stack(found), axis=0)
    assert spread.max() < 8  # mm
    apart = np.linalg.norm(found[0][:25] - found[0][25:], axis=1)
    wanted = np.linalg.norm(body[:25] - body[25:], axis=1)
    np.testing.assert_allclose(apart, wanted, rtol=0.12)


def test_without_matches_every_scan_lies_as_it_is() -> None:
    frames = frames_of([np.zeros((0, 7))] * 3)
    assert sorted(frames.number.tolist()) == [0, 1, 2]
    np.testing.assert_array_equal(frames.to_body, np.tile(np.eye(4), (3, 1, 1)))
