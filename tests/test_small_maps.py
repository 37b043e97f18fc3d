"""Layers on maps of one or two slices: the findings, and their cures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from each import each
from homolog.small_maps import SafeConv3d, guard_small_maps


def poison(*shapes: tuple[int, ...]) -> None:
    """Leave NaN in freed memory: a kernel that reads what nobody wrote shows."""
    junk = [
        torch.full(shape, float("nan"), dtype=dtype)
        for shape in shapes
        for dtype in (torch.bfloat16, torch.float32)
        for _ in range(3)
    ]
    del junk


def weight_gradient(conv: nn.Module, image: Tensor, *, autocast: bool) -> Tensor:
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = conv(image)
    poison(tuple(conv.weight.shape), tuple(image.shape))
    result.backward(torch.ones_like(result))
    return conv.weight.grad.clone()


@each("kernel, depth", [(3, 2), (5, 2), (5, 3), (5, 4), (3, 1), (3, 3), (1, 2)])
def test_bfloat16_weight_gradients_are_right_at_every_depth(
    kernel: int, depth: int
) -> None:
    """On a CPU with bfloat16 instructions plain Conv3d gives NaN for depth 2."""
    torch.manual_seed(0)
    conv = nn.Conv3d(32, 16, kernel, padding=kernel // 2)
    guard_small_maps(conv)
    for _ in range(3):  # free memory differs from time to time
        image = torch.randn(2, 32, depth, 6, 4)
        exact = weight_gradient(conv, image.double().float(), autocast=False)
        rough = weight_gradient(conv, image, autocast=True)
        assert (exact - rough).norm() < 0.02 * exact.norm()


def test_the_guard_changes_no_number_and_no_key() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1, stride=(1, 2, 2)), nn.ReLU())
    keys = list(plain.state_dict())
    image = torch.randn(1, 4, 2, 6, 6)
    before = plain(image)
    with torch.autocast("cpu", torch.bfloat16):
        rough_before = plain(image)
    guard_small_maps(guard_small_maps(plain))
    assert type(plain[0]) is SafeConv3d
    assert list(plain.state_dict()) == keys
    assert torch.equal(plain(image), before)
    with torch.autocast("cpu", torch.bfloat16):
        rough = plain(image)
    torch.testing.assert_close(rough, rough_before, rtol=0.02, atol=0.02)


def test_a_bfloat16_module_is_guarded_without_autocast() -> None:
    conv = guard_small_maps(nn.Conv3d(16, 16, 3, padding=1))
    image = torch.randn(1, 16, 2, 4, 4)
    exact = weight_gradient(conv, image, autocast=False)
    narrow = guard_small_maps(nn.Conv3d(16, 16, 3, padding=1)).bfloat16()
    rough = weight_gradient(narrow, image.bfloat16(), autocast=False)
    assert (exact - rough.float()).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(
    ("kind", "one", "two"),
    [
        (nn.InstanceNorm3d, (1, 1, 1), (1, 2, 1)),
        (nn.InstanceNorm2d, (1, 1), (1, 2)),
    ],
)
def test_instance_norm_of_one_cell_is_its_shift(
    kind: type, one: tuple[int, ...], two: tuple[int, ...]
) -> None:
    norm = guard_small_maps(kind(4, affine=True))
    with torch.no_grad():
        norm.bias.copy_(torch.arange(4.0))
    image = torch.randn(2, 4, *one, requires_grad=True)
    result = norm(image)
    assert torch.equal(result.flatten(1), torch.arange(4.0).expand(2, 4))
    result.sum().backward()
    assert torch.equal(image.grad, torch.zeros_like(image))
    cells = torch.randn(2, 4, *two)
    plain = kind(4, affine=True)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(cells), plain(cells))
