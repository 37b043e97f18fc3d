"""2D ResNet: torchvision's keys, MONAI's numbers."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.resnet import ResNet as MonaiResNet

from homolog.backbones import build
from homolog.backbones.base import adapt_state
from homolog.config import ConfigError

WIDTHS = [8, 16, 24, 32]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_foreign_state_loads_whole_and_gives_equal_features(block: str) -> None:
    torch.manual_seed(3)
    theirs = MonaiResNet(
        block, [2, 1, 1, 1], WIDTHS, spatial_dims=2, n_input_channels=3,
        conv1_t_stride=2, num_classes=3, bias_downsample=False,
    ).eval()  # fmt: skip
    ours = build(
        "resnet2d",
        {"widths": WIDTHS, "stage_blocks": [2, 1, 1, 1], "block": block},
    ).eval()
    ours.load_state_dict(adapt_state(theirs.state_dict(), ours))  # every key matches
    grey = torch.randn(2, 1, 64, 48)
    image = grey.expand(-1, 3, -1, -1)  # an ImageNet network sees grey as three equals
    with torch.no_grad():
        found = theirs.maxpool(theirs.act(theirs.bn1(theirs.conv1(image))))
        for number in (1, 2, 3, 4):
            found = getattr(theirs, f"layer{number}")(found)
        maps = ours(grey)
    torch.testing.assert_close(maps[-1], found, atol=1e-4, rtol=1e-4)
    assert [tuple(m.shape[2:]) for m in maps[:2]] == [(32, 24), (16, 12)]


def test_the_default_is_resnet50_and_twice_as_wide_is_w2() -> None:
    """Paper: Hundred Million networks."""
    with torch.device("meta"):
        plain, wide = (
            build(
                "resnet2d",
                {"in_channels": 3, "widths": [k * w for w in (64, 128, 256, 512)]},
            )
            for k in (1, 2)
        )
    names = dict(plain.named_parameters())
    assert names["layer3.5.conv3.weight"].shape == (1024, 256, 1, 1)
    assert "layer1.0.downsample.1.bias" in names
    # torchvision's resnet50 has 25 557 032 weights, 2 049 000 of them its classifier
    assert sum(p.numel() for p in plain.parameters()) == 25_557_032 - 2_049_000
    assert wide.channels == (128, 512, 1024, 2048, 4096)


def test_a_slice_passes_as_a_volume_and_a_volume_does_not() -> None:
    net = build(
        "resnet2d", {"widths": [8, 16], "stage_blocks": [1, 1], "norm": "group"}
    )
    maps = net.maps(torch.randn(2, 1, 1, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (8, 1, 16, 16), (32, 1, 8, 8), (64, 1, 4, 4),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="one slice"):
        net.maps(torch.randn(2, 1, 4, 32, 32))
    with pytest.raises(ValueError, match="one slice"):
        net.check_size((32, 32, 32))


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ConfigError, match="same stages"):
        build("resnet2d", {"widths": [8, 16], "stage_blocks": [1]})
    with pytest.raises(ConfigError, match="multiples of 8"):
        build("resnet2d", {"widths": [12], "stage_blocks": [1], "norm": "group"})
