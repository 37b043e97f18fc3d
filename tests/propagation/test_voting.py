from __future__ import annotations

import itertools

import torch

from homolog.propagation.voting import around


def test_places_around_are_those_so_much_further_and_borders_are_held() -> None:
    shape, reach = (2, 3, 5, 4), (0, 2, 1)
    values = torch.arange(120.0).reshape(shape)
    look = around(values, reach)
    for move in itertools.product(*(range(-r, r + 1) for r in reach)):
        wanted = values
        for axis, step in enumerate(move, start=1):
            index = (torch.arange(shape[axis]) + step).clamp(0, shape[axis] - 1)
            wanted = wanted.index_select(axis, index)
        assert torch.equal(look(move), wanted)
