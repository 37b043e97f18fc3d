"""ResNet: MONAI's keys and numbers."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.resnet import ResNet as MonaiResNet

from homolog.backbones import build
from homolog.backbones.base import adapt_state
from homolog.config import ConfigError

WIDTHS = [8, 16, 24, 32]


def monai(shortcut: str) -> MonaiResNet:
    torch.manual_seed(3)
    return MonaiResNet(
        "basic", [2, 1, 1, 1], WIDTHS, 3, 1, conv1_t_stride=2, shortcut_type=shortcut,
        num_classes=3, bias_downsample=False,
    )  # fmt: skip


@pytest.mark.parametrize(("shortcut", "name"), [("A", "padding"), ("B", "projection")])
def test_a_monai_state_loads_whole_and_gives_equal_features(
    shortcut: str, name: str
) -> None:
    theirs = monai(shortcut).eval()
    ours = build(
        "resnet",
        {"widths": WIDTHS, "stage_blocks": [2, 1, 1, 1], "norm": "batch",
         "shortcut": name},
    ).eval()  # fmt: skip
    state = adapt_state(
        {f"module.{k}": v for k, v in theirs.state_dict().items()}, ours
    )
    ours.load_state_dict(state)  # strict: every key matches
    image = torch.randn(2, 1, 64, 48, 64)
    with torch.no_grad():
        found = theirs.maxpool(theirs.act(theirs.bn1(theirs.conv1(image))))
        for number in (1, 2, 3, 4):
            found = getattr(theirs, f"layer{number}")(found)
        maps = ours(image)
    torch.testing.assert_close(maps[-1], found, atol=1e-5, rtol=1e-5)
    assert [tuple(m.shape[2:]) for m in maps[:2]] == [(32, 24, 32), (16, 12, 16)]


def test_gradients_pass_a_padding_shortcut() -> None:
    net = build(
        "resnet",
        {"widths": [4, 8], "stage_blocks": [1, 1], "shortcut": "padding"},
    )
    image = torch.randn(1, 1, 32, 32, 32)
    block = net.get_submodule("layer2.0")
    for conv in (block.conv1, block.conv2):
        torch.nn.init.zeros_(conv.weight)  # only the shortcut is left
    net(image)[-1].square().sum().backward()
    assert net.conv1.weight.grad is not None
    assert net.conv1.weight.grad.abs().sum() > 0


def test_stages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="same stages"):
        build("resnet", {"widths": [8, 16], "stage_blocks": [1]})


def test_maps_may_stay_fine_across_slices() -> None:
    """Paper: SAM configuration."""
    small = {"widths": [4, 6, 8, 8], "stage_blocks": [1, 1, 1, 1], "stem_kernel": 3}
    net = build("resnet", {**small, "z_stride": 4})
    assert net.strides == ((2,) * 3, (4,) * 3, (4, 8, 8), (4, 16, 16), (4, 32, 32))
    assert net.size_divisor == (4, 16, 16)
    maps = net(torch.randn(1, 1, 8, 32, 32))
    for found, stride in zip(maps, net.strides, strict=True):
        wanted = tuple(-(-n // s) for n, s in zip((8, 32, 32), stride, strict=True))
        assert tuple(found.shape[2:]) == wanted
    plain = build("resnet", small)
    assert plain.strides[-1] == (32,) * 3
    assert plain.size_divisor == (16,) * 3
    padded = build("resnet", {**small, "z_stride": 4, "shortcut": "padding"})
    assert padded(torch.randn(1, 1, 8, 32, 32))[3].shape[2:] == (2, 2, 2)
