"""SegResNet: MONAI's keys and numbers in both of its layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet, SegResNetDS
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import nn

from each import each
from homolog.backbones import build
from homolog.backbones.base import adapt_state
from homolog.config import ConfigError
from homolog.model_files.encoder import fill

SMALL = {"filters": 8, "blocks": (1, 2, 1), "full_map": True}


def random(net: nn.Module) -> nn.Module:
    """Weights that differ everywhere; running statistics, too."""
    torch.manual_seed(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if "var" in name else
                        torch.randn(value.shape) / 3)  # fmt: skip
    return net.double().eval()


@each("norm", ["instance", "batch", "group"])
@each("resolution", [None, (5, 1, 1)])
def test_features_equal_segresnetds(norm: str, resolution: Any) -> None:
    told = ("group", {"num_groups": 8}) if norm == "group" else norm
    theirs = random(
        SegResNetDS(
            init_filters=8, norm=told, blocks_down=(1, 2, 1), resolution=resolution
        )
    )
    scales = theirs.anisotropic_scales or ()
    steps = tuple(tuple(int(n) for n in scale) for scale in scales)
    ours = build("segresnet", SMALL | {"norm": norm, "steps": steps}).double().eval()
    ours.load_state_dict(adapt_state(theirs.state_dict(), ours))  # strict
    image = torch.randn(2, 1, 16, 32, 24, dtype=torch.float64)
    with torch.no_grad():
        found, wanted = ours(image), theirs.encoder(image)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-10
    # the size that nnU-Net's rule gives for such voxels
    if resolution:
        given = type(ours).fitted({"blocks": [1, 2, 1]}, resolution, (64, 256, 256))
        assert given["steps"] == [list(s) for s in steps]


def test_features_equal_the_plain_segresnet() -> None:
    theirs = random(SegResNet(init_filters=8, blocks_down=(1, 2, 1), blocks_up=(1, 1)))
    settings = SMALL | {"layout": "plain", "norm": "group"}
    ours = build("segresnet", settings).double().eval()
    ours.load_state_dict(adapt_state(theirs.state_dict(), ours))  # strict
    image = torch.randn(2, 1, 16, 32, 24, dtype=torch.float64)
    with torch.no_grad():
        found, (_, wanted) = ours(image), theirs.encode(image)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-10
    assert not ours.training
    usual = build("segresnet", settings | {"full_map": False}).double().eval()
    usual.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert all(map(torch.equal, usual(image), found[1:]))


@each(
    "prefix, theirs, settings",
    [
        ("backbone.", SegResEncoder(init_filters=8, norm="instance"), {}),
        ("", SegResNetDS(init_filters=8, norm="instance", dsdepth=3), {}),
        (
            "net.module.backbone.",
            SegResNet(init_filters=8),
            {"layout": "plain", "norm": "group"},
        ),
    ],
)
def test_a_whole_file_fills_every_tensor_and_leaves_none(
    prefix: str, theirs: nn.Module, settings: dict[str, Any]
) -> None:
    ours = build("segresnet", {"filters": 8, "blocks": (1, 2, 2, 4)} | settings)
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    report = fill(ours, state, "w.pth")
    assert (report.share, report.missing, report.dropped) == (1.0, (), "")
    assert report.unexpected == ()


def test_a_file_of_the_published_depth_has_these_names() -> None:
    blocks = (1, 2, 2, 4, 4)
    theirs = SegResEncoder(init_filters=2, blocks_down=blocks, norm="instance")
    ours = build("segresnet", {"filters": 2, "blocks": blocks})
    own = {name: value.shape for name, value in ours.state_dict().items()}
    found = adapt_state(theirs.state_dict(), ours)
    assert {name: value.shape for name, value in found.items()} == own


def test_its_own_decoder_comes_with_the_map_of_full_resolution() -> None:
    assert build("segresnet", SMALL).decoder == "segresnet"
    for settings in ({"full_map": False}, {"norm": "batch"}, {"layout": "plain"}):
        assert build("segresnet", SMALL | settings).decoder == "residual"


@each(
    "settings, message",
    [
        ({"blocks": ()}, "at least one level"),
        ({"norm": "group", "groups": 3}, "groups must divide filters = 8"),
        ({"steps": ((2, 2, 2),)}, "one stride for each of the 3 levels"),
        ({"steps": ((2, 2, 3),) * 3}, "must be 1 or 2"),
        ({"steps": ((1, 2, 2),) * 3, "layout": "plain"}, "layout ds only"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build("segresnet", SMALL | settings)
