"""Drawn cells: the proof tests M-T8 (weights), M-T9 and M-T11."""

from __future__ import annotations

import math

import torch

from homolog.nn.masking import (
    at_cells,
    cells_of,
    depth_weights,
    draw_cells,
    draw_per_class,
)


def keys(count: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + count) * 7919 + 13


def test_m_t8_weights_at_known_depths() -> None:
    """Paper: MixCL Eq. 7."""
    depth = torch.tensor([0.0, 1.0, 4.0, 20.0])
    expected = torch.tensor([0.05, 0.4912, 0.6565, 0.2335])
    torch.testing.assert_close(depth_weights(depth), expected, atol=1e-4, rtol=0)
    fine = torch.linspace(0, 40, 401)
    assert float(fine[depth_weights(fine).argmax()]) == 4.0


def test_m_t9_every_class_gives_what_it_has_and_no_cell_twice() -> None:
    label = torch.tensor([[0] * 10 + [1] * 3 + [2] * 30 + [5] * 7 + [-1] * 4] * 2)
    label[1] = label[1].flip(0)
    weight = torch.rand(label.shape, generator=torch.Generator().manual_seed(0)) + 0.1
    index, drawn = draw_per_class(
        label.masked_fill(label == 0, -1), weight, keys(2), per_class=8, most=54
    )
    for row in range(2):
        chosen = index[row][drawn[row]]
        assert len(set(chosen.tolist())) == len(chosen)
        found = label[row][chosen]
        counts = {v: int((found == v).sum()) for v in (-1, 0, 1, 2, 5)}
        assert counts == {-1: 0, 0: 0, 1: 3, 2: 8, 5: 7}
    few, kept = draw_per_class(
        label.masked_fill(label == 0, -1), weight, keys(2), per_class=8, most=6
    )
    for row in range(2):  # no class is squeezed out
        found = label[row][few[row][kept[row]]].tolist()
        assert sorted(found) == [1, 1, 2, 2, 5, 5]


def test_m_t9_frequencies_follow_the_weights() -> None:
    """Paper: MixCL Eq. 7."""
    weight = torch.tensor([0.05, 0.5, 0.65, 0.2, 0.0, 0.4])
    draws = 4000
    rows = weight.expand(draws, -1)
    label = torch.ones(draws, len(weight), dtype=torch.long)
    index, drawn = draw_per_class(label, rows, keys(draws), per_class=1, most=1)
    assert drawn.all()
    counts = torch.bincount(index.flatten(), minlength=len(weight)).double()
    expected = (weight / weight.sum()).double() * draws
    assert counts[4] == 0
    some = expected > 0
    chi = float(((counts - expected)[some] ** 2 / expected[some]).sum())
    assert chi < 18.5  # 99.9 % of a chi-square of 4 degrees of freedom
    plain, _ = draw_cells(rows, keys(draws), 1)
    again = torch.bincount(plain.flatten(), minlength=len(weight)).double()
    chi = float(((again - expected)[some] ** 2 / expected[some]).sum())
    assert chi < 18.5


def test_names_of_classes_do_not_change_what_is_drawn() -> None:
    label = torch.randint(1, 5, (3, 200), generator=torch.Generator().manual_seed(1))
    weight = torch.rand(3, 200, generator=torch.Generator().manual_seed(2))
    names = torch.tensor([0, 40, 3, 2, 17])
    one = draw_per_class(label, weight, keys(3), per_class=9, most=30)
    other = draw_per_class(names[label], weight, keys(3), per_class=9, most=30)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    later = draw_per_class(label, weight, keys(3, 9), per_class=9, most=30)
    assert not torch.equal(one[0], later[0])


def test_cells_without_weight_are_not_drawn() -> None:
    weight = torch.tensor([[0.0, 1.0, 0.0, 2.0]])
    index, drawn = draw_cells(weight, keys(1), 4)
    assert set(index[drawn].tolist()) == {1, 3}
    none = draw_per_class(torch.full((1, 4), -1), weight, keys(1), per_class=2, most=4)[
        1
    ]
    assert not none.any()


def test_m_t11_cells_carry_the_label_they_are_filed_under() -> None:
    label = torch.randint(
        0, 4, (2, 8, 12, 16), generator=torch.Generator().manual_seed(3)
    )
    stride, grid = (2, 4, 4), (4, 3, 4)
    cells = at_cells(label, stride, grid)
    maps = label[:, 1::2, 2::4, 2::4][:, None].float()
    index, drawn = draw_per_class(
        cells,
        torch.ones_like(cells, dtype=torch.float32),
        keys(2),
        per_class=5,
        most=48,
    )
    vectors = cells_of(maps, index)[..., 0]
    assert torch.equal(vectors[drawn].long(), cells.gather(1, index)[drawn])
    odd = at_cells(label[:, :7], (4, 4, 4), (2, 3, 4))
    assert torch.equal(odd, label[:, [2, 6]][:, :, 2::4, 2::4].flatten(1))
    assert math.prod(grid) == cells.shape[1]
