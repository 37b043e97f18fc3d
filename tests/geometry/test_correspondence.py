"""Proof tests S-T1 to S-T3 and S-T5 of the token correspondence, and of overlap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from each import each
from homolog.geometry.affine import Affine
from homolog.geometry.correspondence import (
    overlap,
    relative,
    token_centres,
    token_matches,
    token_positions_mm,
)

SIZE, STRIDE = (24, 24, 24), 8
TOKENS = 27
# far from home, oblique, anisotropic and left handed: where rounding would show
ODD = Affine.of(
    (3.3, 0.71, 1.9),
    (1234.5, -2345.6, 987.6),
    np.array([[0.6, 0.0, 0.8], [0.0, -1.0, 0.0], [-0.8, 0.0, 0.6]]),
).matrix


def _t(matrix: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(matrix))[None]


def _about_middle(linear: np.ndarray, size: tuple[int, ...] = SIZE) -> np.ndarray:
    middle = (np.array(size) - 1) / 2
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = middle - linear @ middle
    return matrix


def _turns() -> list[np.ndarray]:
    """All 48 flips and quarter turns."""
    found = []
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[axes, range(3)] = signs
            found.append(matrix)
    return found


@each("home", [np.eye(4), ODD])
@each("one_to_one", [False, True])
def test_identity_matches_every_token_with_itself(
    home: np.ndarray, one_to_one: bool
) -> None:
    matches = token_matches(_t(home), _t(home), SIZE, STRIDE, one_to_one)
    assert torch.equal(matches[0], torch.eye(TOKENS, dtype=torch.bool))


@pytest.mark.parametrize("home", [np.eye(4), ODD])
def test_flips_and_quarter_turns_are_the_known_permutation(home: np.ndarray) -> None:
    """Paper: S2DC Eq. 2, 3."""
    cells = np.arange(TOKENS).reshape(3, 3, 3)
    for linear in _turns():
        moved = home @ _about_middle(linear)
        matches = token_matches(_t(home), _t(moved), SIZE, STRIDE)[0]
        # v'(x) = v(linear x about the middle), worked on the array itself
        axes = [int(np.flatnonzero(linear[:, i])[0]) for i in range(3)]
        turned = cells.transpose(axes)
        for new, old in enumerate(axes):
            if linear[old, new] < 0:
                turned = np.flip(turned, new)
        expected = np.zeros((TOKENS, TOKENS), dtype=bool)
        expected[turned.ravel(), np.arange(TOKENS)] = True
        assert np.array_equal(matches.numpy(), expected)


def test_a_half_turn_twice_is_the_identity() -> None:
    half = _about_middle(np.diag([1.0, -1.0, -1.0]))
    once = token_matches(_t(ODD), _t(ODD @ half), SIZE, STRIDE)[0].double()
    assert torch.equal(once @ once, torch.eye(TOKENS).double())


@each("axis", [0, 1, 2])
@each("sign", [1, -1])
def test_a_shift_by_one_token_loses_one_layer(axis: int, sign: int) -> None:
    offset = [0.0, 0.0, 0.0]
    offset[axis] = sign * float(STRIDE)
    moved = ODD @ Affine.shift(offset).matrix
    matches = token_matches(_t(ODD), _t(moved), SIZE, STRIDE)[0].numpy()
    assert matches.sum() == 2 * 3**2
    cell = np.stack(np.unravel_index(np.arange(TOKENS), (3, 3, 3)), -1)
    rows, columns = np.nonzero(matches)
    step = np.zeros(3)
    step[axis] = sign
    assert np.array_equal(cell[rows], cell[columns] + step)


def test_a_shift_beyond_the_view_matches_nothing() -> None:
    moved = ODD @ Affine.shift((24.0, 0.0, 0.0)).matrix
    assert not token_matches(_t(ODD), _t(moved), SIZE, STRIDE).any()


def test_a_tie_at_a_box_border_is_not_decided_by_rounding() -> None:
    """Half a token: every centre lies on a border, which belongs to one side."""
    for k in range(50):
        home = ODD @ Affine.shift((k * 0.1, k * 7.7, -k * 3.3)).matrix
        moved = home @ Affine.shift((STRIDE / 2, 0.0, 0.0)).matrix
        assert not token_matches(_t(home), _t(moved), SIZE, STRIDE).any()


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.floats(-0.4, 0.4)] * 9), st.tuples(*[st.floats(-12, 12)] * 3))
def test_matches_are_symmetric_and_one_to_one(linear: tuple, offset: tuple) -> None:
    """Paper: S2DC Eq. 2, 3."""
    step = _about_middle(np.eye(3) + np.reshape(linear, (3, 3)))
    step[:3, 3] += offset
    if np.linalg.det(step[:3, :3]) < 0.05:
        return
    a, b = _t(ODD), _t(ODD @ step)
    forth = token_matches(a, b, SIZE, STRIDE)
    back = token_matches(b, a, SIZE, STRIDE, one_to_one=True)
    assert torch.equal(forth, back.mT)
    assert forth.sum(1).max() <= 1
    assert forth.sum(2).max() <= 1


def test_matched_centres_lie_in_each_others_boxes() -> None:
    """The literal Eq. 2-3 by a loop over all pairs."""
    step = _about_middle(np.array([[1.1, 0.1, 0], [-0.2, 0.95, 0.1], [0, 0.05, 0.9]]))
    matches = token_matches(_t(ODD), _t(ODD @ step), SIZE, STRIDE)[0]
    centres = token_centres(SIZE, STRIDE).numpy()
    forth = Affine(np.linalg.inv(step)).apply(centres)
    back = Affine(step).apply(centres)
    for n, m in itertools.product(range(TOKENS), repeat=2):
        there, here = forth[n] - centres[m], back[m] - centres[n]
        literal = all((-4 <= d < 4) for d in (*there, *here))
        assert bool(matches[n, m]) == literal
    assert matches.sum() > 10


def test_token_positions_are_means_of_their_voxels() -> None:
    positions = token_positions_mm(_t(ODD), (8, 4, 6), (4, 2, 3))[0]
    coarse = Affine(ODD).coarsen((4, 2, 3))
    cells = np.stack(np.unravel_index(np.arange(8), (2, 2, 2)), -1)
    np.testing.assert_allclose(positions.numpy(), coarse.apply(cells), atol=1e-9)


def test_a_size_without_whole_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole tokens"):
        token_matches(_t(ODD), _t(ODD), (24, 24, 20), 8)


def test_overlap_of_aligned_boxes_is_exact() -> None:
    moved = ODD @ Affine.shift((6.0, -3.0, 0.0)).matrix @ np.diag([-1, 0.5, 1, 1])
    # a: z -0.5..23.5; b: voxel 0..23 -> z 6..-17 of a, y -3 + 0.5 * (-0.5..23.5)
    shared = overlap(_t(ODD), SIZE, _t(moved), SIZE)
    expected = (6.5 + 0.5) / 24 * (min(23.5, -3 + 0.5 * 23.5) + 0.5) / 24
    assert float(shared) == pytest.approx(expected, abs=1e-12)
    assert float(overlap(_t(ODD), SIZE, _t(ODD), SIZE)) == 1.0
    quarter = _about_middle(np.array([[0, 1.0, 0], [-1.0, 0, 0], [0, 0, 1.0]]))
    assert float(overlap(_t(ODD), SIZE, _t(ODD @ quarter), SIZE)) == pytest.approx(1.0)


def test_overlap_of_turned_boxes_is_close() -> None:
    """Two squares at 45 degrees share 2 (sqrt 2 - 1) of their area."""
    c = np.sqrt(0.5)
    turned = _about_middle(np.array([[1, 0, 0], [0, c, -c], [0, c, c]]))
    shared = overlap(_t(ODD), SIZE, _t(ODD @ turned), SIZE)
    assert float(shared) == pytest.approx(2 * (np.sqrt(2) - 1), abs=0.02)


def test_overlap_broadcasts_over_pairs() -> None:
    many = torch.stack(
        [_t(ODD @ Affine.shift((float(k), 0, 0)).matrix)[0] for k in (0, 12, 30)]
    )
    shared = overlap(many[:, None], SIZE, many[None], SIZE)
    expected = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 1.0]])
    torch.testing.assert_close(shared, expected.double())


def test_relative_is_the_composition() -> None:
    step = _about_middle(np.array([[1.2, 0.1, 0], [-0.2, 0.95, 0.1], [0, 0.05, 0.9]]))
    found = relative(_t(ODD @ step), _t(ODD))[0].numpy()
    np.testing.assert_allclose(found, step, atol=1e-9)
