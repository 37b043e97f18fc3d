"""nnFormer's encoder: stages that fit, attention that reaches its volume only."""

from __future__ import annotations

import pytest
import torch

from homolog.backbones import build
from homolog.config import ConfigError

SMALL = {"feature_size": 12, "depths": [1, 1], "heads": [2, 4], "windows": [4, 4]}


def test_unshifted_attention_stays_inside_its_volume() -> None:
    torch.manual_seed(0)
    net = build("nnformer", {**SMALL, "depths": [1], "heads": [2], "windows": [4]})
    stage = net.get_submodule("stages.0")
    cells = torch.randn(1, 8, 8, 8, 12)
    other = cells.clone()
    other[:, :4, :4, :4] += 1.0
    with torch.no_grad():
        changed = (stage(cells) - stage(other)).abs().amax((0, -1)) > 0
    expected = torch.zeros(8, 8, 8, dtype=torch.bool)
    expected[:4, :4, :4] = True
    assert torch.equal(changed, expected)


def test_the_next_stage_sees_further() -> None:
    torch.manual_seed(0)
    net = build("nnformer", SMALL).eval()
    image = torch.randn(1, 1, 32, 32, 32)
    other = image.clone()
    other[..., :2] += 3.0
    with torch.no_grad():
        fine, coarse = (
            (a - b).abs().amax((0, 1, 2, 3)) > 1e-6
            for a, b in zip(net(image), net(other), strict=True)
        )
    assert fine.nonzero().max() * 2 < coarse.nonzero().max() * 4


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"heads": [2]}, "same stages"),
        ({"heads": [5, 4]}, "must divide the 12 channels"),
    ],
)
def test_stages_that_do_not_fit_are_refused(settings: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build("nnformer", {**SMALL, **settings})
