"""Attention over slices: J-T4 to J-T9 and J-T13."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from each import each
from homolog.backbones import build
from homolog.backbones.hybrid import (
    HybridConfig,
    SliceAttention,
    SliceTransformer,
    read_between,
    slice_places,
)
from homolog.config import ConfigError
from homolog.methods.joint import Joint

DIM, HEADS = 8, 2


def slices_of(batch: int = 2, count: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, DIM, generator=generator, dtype=torch.float64)


def attention(**settings: object) -> SliceAttention:
    torch.manual_seed(1)
    made = SliceAttention(DIM, HEADS, slices=16, **settings)  # type: ignore[arg-type]
    return made.double()


def plain(made: SliceAttention, slices: Tensor, read: Tensor) -> Tensor:
    """Ordinary attention of all slices to what was read (B, m, F)."""
    query, key, value = (
        layer(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
        for layer, x in ((made.query, slices), (made.key, read), (made.value, read))
    )
    found = functional.scaled_dot_product_attention(query, key, value)
    result: Tensor = made.out(found.transpose(1, 2).flatten(2))
    return result


def test_j_t4_without_offsets_it_is_plain_attention_over_all_slices() -> None:
    """Paper: Joint Eq. 6."""
    made, slices = attention(), slices_of()
    expected = plain(made, slices, slices)
    torch.testing.assert_close(made(slices), expected, atol=1e-6, rtol=0)


@each("count", [6, 7])
@each("reduction", [2, 3])
def test_j_t5_with_a_reduction_keys_are_read_at_the_references(
    reduction: int, count: int
) -> None:
    """Paper: Joint Eq. 7, grid."""
    made, slices = attention(reduction=reduction), slices_of(count=count)
    parts = []
    for j in range(math.ceil(count / reduction)):
        place = min((j + 0.5) * reduction - 0.5, count - 1)
        low = math.floor(place)
        share = place - low
        high = min(low + 1, count - 1)
        parts.append((1 - share) * slices[:, low] + share * slices[:, high])
    read = torch.stack(parts, 1)
    torch.testing.assert_close(made(slices), plain(made, slices, read))
    if reduction == 2:  # halfway between two neighbours
        torch.testing.assert_close(read[:, 0], slices[:, :2].mean(1))


@pytest.mark.parametrize("offset", [-2.0, 0.5, 1.0])
def test_j_t6_offsets_shift_with_the_ends_repeated(offset: float) -> None:
    """Paper: Joint Eq. 7, grid."""
    slices = slices_of()
    places = torch.arange(6, dtype=torch.float64) + offset
    found = read_between(slices, places.expand(2, -1))
    for j, place in enumerate(places.clamp(0, 5).tolist()):
        low = math.floor(place)
        high = min(low + 1, 5)
        share = place - low
        expected = (1 - share) * slices[:, low] + share * slices[:, high]
        torch.testing.assert_close(found[:, j], expected)
    constant = torch.full_like(slices, 3.0)
    everywhere = torch.linspace(-4, 9, 27, dtype=torch.float64).expand(2, -1)
    assert (read_between(constant, everywhere) == 3.0).all()


def test_j_t7_offsets_are_bounded_and_learnt() -> None:
    """Paper: Joint Eq. 7."""
    made, slices = attention(reduction=2, reach=1.5), slices_of(count=8)
    with torch.no_grad():
        made.move.weight.normal_(0, 50)
    places = made.places(slices)
    reference = made.references(8, slices.device)
    assert (places - reference).abs().max() <= 1.5 + 1e-9
    assert (places - reference).abs().max() > 1.0
    assert places.min() >= 0
    assert places.max() <= 7
    with torch.no_grad():
        made.move.weight.normal_(0, 0.3)
    made(slices).square().sum().backward()
    assert made.move.weight.grad is not None
    assert made.move.weight.grad.abs().sum() > 0
    where = torch.tensor([[0.3, 2.6, 5.2]], dtype=torch.float64, requires_grad=True)
    few = slices_of(1, 8).requires_grad_()
    assert torch.autograd.gradcheck(read_between, (few, where))
    made.requires_grad_(False)
    assert torch.autograd.gradcheck(
        lambda p: made.attend(few.detach(), p[:, None]), (where,)
    )


def test_j_t8_the_bias_is_by_relative_position() -> None:
    """Paper: Joint Eq. 8."""
    made = attention()
    places = torch.tensor([[[0.0, 2.5, 5.0]]], dtype=torch.float64)
    assert not made.relative(places, 6).any()
    with torch.no_grad():
        made.bias.copy_(torch.arange(31.0).double() - 15)
    found = made.relative(places, 6)
    expected = torch.arange(6)[:, None] - places[0, 0]
    torch.testing.assert_close(found, expected.expand(1, HEADS, -1, -1).double())


def test_j_t9_slices_are_what_is_attended_to() -> None:
    made, slices = attention(), slices_of()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(made(slices[:, order]), made(slices)[:, order])
    # features in another order, with the weights that read them: nothing changes
    mixed = torch.randperm(DIM, generator=torch.Generator().manual_seed(2))
    other = attention()
    other.load_state_dict(made.state_dict())
    with torch.no_grad():
        for layer in (other.query, other.key, other.value):
            layer.weight.copy_(layer.weight[:, mixed])
    torch.testing.assert_close(other(slices[..., mixed]), made(slices))
    # with places and biases the order of slices matters
    with torch.no_grad():
        made.bias.normal_()
    changed = made(slices[:, order]) - made(slices)[:, order]
    assert changed.abs().max() > 1e-3


def test_heads_look_at_places_of_their_own() -> None:
    """Paper: Joint Eq. 7."""
    torch.manual_seed(0)
    small = {"widths": [8, 16], "stage_blocks": [1, 1], "block": "basic",
             "norm": "group", "dim": 16, "layers": 1, "heads": 4,
             "inner": 16}  # fmt: skip
    slices = torch.randn(2, 12, 16)
    counts = {}
    for groups in (1, 4):
        net = build("hybrid", {**small, "groups": groups})
        attention = net.inter.layers[0].attention
        with torch.no_grad():
            attention.move.weight.normal_(std=3.0)
        places = attention.places(slices)
        assert places.shape[:2] == (2, groups)
        counts[groups] = len(places.unique(dim=1)[0])
    assert counts == {1: 1, 4: 4}
    assert HybridConfig().groups == 1  # what was trained before had one for all
    for name in ("gpu", "paper"):
        chosen = Joint.RECIPES[name]["backbone"]
        assert chosen["groups"] == chosen.get("heads", HybridConfig().heads)
    with pytest.raises(ConfigError, match="must divide"):
        build("hybrid", {**small, "groups": 3})


def test_j_t13_one_slice_passes() -> None:
    torch.manual_seed(0)
    made = SliceTransformer(DIM, 2, HEADS, inner=12, reduction=4, groups=2)
    one = made(torch.randn(3, 1, DIM))
    assert one.shape == (3, 1, DIM)
    assert one.isfinite().all()
    one.sum().backward()
    deep = made.eval()(torch.randn(2, 9, DIM))
    assert deep.shape == (2, 9, DIM)


def test_places_of_slices_differ_and_what_cannot_be_built_is_refused() -> None:
    """Paper: Joint attention layers."""
    places = slice_places(20, 7)
    assert places.shape == (20, 7)
    apart = torch.cdist(places, places) + 10 * torch.eye(20)
    assert apart.min() > 0.1
    with pytest.raises(ValueError, match="must divide"):
        SliceAttention(8, 3)
    with pytest.raises(ValueError, match="at most 4 slices"):
        SliceAttention(8, 2, slices=4)(torch.randn(1, 5, 8))
