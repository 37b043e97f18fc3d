"""Projectors and the dense decoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from each import each
from homolog.nn.heads import DenseDecoder, Projector, pooled, tokens_of


@each("layers", [1, 2, 3])
def test_a_projector_has_the_layers_asked_for_and_unit_length(layers: int) -> None:
    head = Projector(6, 4, hidden=10, layers=layers)
    assert sum(isinstance(m, nn.Linear) for m in head.modules()) == layers
    projected = head(torch.randn(2, 9, 6))
    assert projected.shape == (2, 9, 4)
    torch.testing.assert_close(projected.norm(dim=-1), torch.ones(2, 9))


def test_unit_length_is_made_in_float32_inside_autocast() -> None:
    head = Projector(6, 4, hidden=10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = head(torch.randn(3, 6))
    assert projected.dtype == torch.float32
    torch.testing.assert_close(projected.norm(dim=-1), torch.ones(3))


def test_a_projection_does_not_depend_on_its_batch() -> None:
    head = Projector(6, 4, hidden=10).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(head(x)[:1], head(x[:1]))


def test_tokens_run_x_fastest() -> None:
    maps = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    assert tokens_of(maps)[0, :, 0].tolist() == list(range(24))
    assert pooled(maps).item() == 11.5


def test_the_dense_decoder_answers_on_the_first_maps_grid() -> None:
    decoder = DenseDecoder([8, 16], hidden=12, out_features=7)
    maps = (torch.randn(2, 8, 4, 4, 4), torch.randn(2, 16, 2, 2, 2))
    assert decoder(maps).shape == (2, 7, 4, 4, 4)
    flat = (torch.randn(2, 8, 1, 4, 4), torch.randn(2, 16, 1, 2, 2))
    assert decoder(flat).shape == (2, 7, 1, 4, 4)


def test_a_projector_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 layer, got 0"):
        Projector(3, 3, hidden=3, layers=0)
