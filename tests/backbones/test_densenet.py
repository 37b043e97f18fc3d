"""DenseNet: the paper's numbers, and H-T10: a slice alone is a slice of a volume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.config import ConfigError
from homolog.nn.decoders import build_decoder


def seeded(**settings: Any) -> Backbone:
    """Weights and running statistics of a network that has seen something."""
    torch.manual_seed(0)
    net = build("densenet", settings)
    net(torch.randn(2, 1, 4, 32, 32))
    return net.eval()


def test_blocks_are_those_of_the_paper() -> None:
    """Paper: Hundred Million IV-E, network."""
    net = build("densenet")
    # 16 initial features, (1, 2, 3, 3, 3) units of 7
    assert net.channels == (23, 37, 58, 79, 100)
    assert net.strides == ((1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32))
    kernels = [m.kernel_size for m in net.modules() if isinstance(m, torch.nn.Conv3d)]
    assert kernels == [(1, 3, 3)] * 4 + [(3, 3, 3)] * 9
    with torch.no_grad():
        sizes = [tuple(m.shape[2:]) for m in net(torch.zeros(1, 1, 40, 224, 192))]
    assert sizes[-1] == (5, 7, 6)
    net.check_size((16, 24, 24))  # the small crop of two CPU cores
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(115_000, rel=0.01)


def two_dimensional(net: Backbone, image: Tensor) -> list[Tensor]:
    """Maps of the in-plane blocks by 2D layers with the same weights, (B, E, h, w)."""
    state = net.state_dict()
    norms = {
        name: module for name, module in net.named_modules() if name.endswith(".1")
    }

    def unit(name: str, found: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.0.weight"]
        assert weight.shape[2] == 1
        found = functional.conv2d(found, weight[:, :, 0], stride=stride, padding=1)
        norm: Any = norms[f"{name}.1"]
        if isinstance(norm, torch.nn.BatchNorm3d):
            found = functional.batch_norm(
                found, norm.running_mean, norm.running_var, norm.weight, norm.bias
            )
        else:
            found = functional.group_norm(found, 1, norm.weight, norm.bias)
        return functional.leaky_relu(found, 0.01)

    found, maps = unit("stem", image, 2), []
    for number in range(net.config.flat_blocks):
        if number:
            found = functional.avg_pool2d(found, 2, ceil_mode=True)
        for k in range(net.config.units[number]):
            found = torch.cat([found, unit(f"blocks.{number}.{k}", found)], 1)
        maps.append(found)
    return maps


def test_h_t10_the_first_blocks_see_every_slice_as_2d_layers_would() -> None:
    net = seeded()
    volume = torch.randn(2, 1, 6, 24, 40)
    with torch.no_grad():
        maps = net(volume)
        for z in range(6):
            for a, b in zip(two_dimensional(net, volume[:, :, z]), maps, strict=False):
                torch.testing.assert_close(b[:, :, z], a)
        # and the third block no longer: it looks across slices
        other = volume.clone()
        other[:, :, 0] += 1.0
        changed = [
            (a - b).abs().amax((0, 1, 3, 4))
            for a, b in zip(net(other), maps, strict=True)
        ]
    assert changed[1][0] > 0
    assert changed[1][1:].max() == 0
    assert changed[2][1] > 0


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_h_t10_a_volume_of_one_slice_is_a_2d_image(norm: str) -> None:
    net = seeded(flat_blocks=5, norm=norm)
    assert {z for z, _, _ in net.strides} == {1}
    image = torch.randn(2, 1, 48, 40)
    with torch.no_grad():
        maps = net(image[:, :, None])
        for a, b in zip(two_dimensional(net, image), maps, strict=True):
            torch.testing.assert_close(b[:, :, 0], a)


def test_every_norm_learns_from_a_single_cell() -> None:
    for norm in ("batch", "group", "instance"):
        net = build("densenet", {"norm": norm})
        maps = net(torch.randn(2, 1, 2, 8, 8))
        assert maps[-1].shape[2:] == (1, 1, 1)
        sum((m * torch.randn_like(m)).sum() for m in maps).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())


def test_its_maps_can_be_decoded_to_every_voxel() -> None:
    net = build("densenet")
    decoder = build_decoder(net.channels, net.strides, 1, 3, net.decoder)
    image = torch.randn(2, 1, 6, 24, 40)
    assert decoder(image, net(image)).shape == (2, 3, 6, 24, 40)


def test_more_flat_blocks_than_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="as many as flat_blocks"):
        build("densenet", {"units": [1, 1], "flat_blocks": 3})
