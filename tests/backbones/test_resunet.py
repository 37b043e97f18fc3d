"""ResUNet: steps per axis."""

from __future__ import annotations

import pytest
import torch

from each import each
from homolog.backbones import build
from homolog.config import ConfigError


def test_thick_slices_are_halved_later_than_rows_and_columns() -> None:
    net = build(
        "resunet", {"channels": (8, 16, 32), "steps": ((1, 2, 2), (2, 2, 2), (2, 2, 2))}
    )
    assert net.strides == ((1, 2, 2), (2, 4, 4), (4, 8, 8))
    assert net.size_divisor == (4, 8, 8)
    image = torch.randn(1, 1, 8, 32, 16)
    shapes = [tuple(m.shape[1:]) for m in net(image)]
    assert shapes == [(8, 8, 16, 8), (16, 4, 8, 4), (32, 2, 4, 2)]
    # the first stage gathers nothing along the thick axis
    changed = image.clone()
    changed[:, :, 0] += 100
    kernel = net.stages[0][0].conv1.conv.weight
    assert kernel.shape[-3:] == (1, 3, 3)


def test_a_fifth_stage_still_takes_crops_of_48() -> None:
    net = build("resunet", {"channels": (8, 8, 8, 8, 16)})
    net.check_size((48, 64, 48))
    shapes = [tuple(m.shape[-3:]) for m in net(torch.randn(1, 1, 48, 64, 48))]
    assert shapes[-2:] == [(3, 4, 3), (2, 2, 2)]


def test_without_a_gradient_sides_need_be_multiples_of_4_alone() -> None:
    net = build("resunet", {"channels": (8, 8, 8, 8)})
    assert (net.size_divisor, net.free_divisor) == ((16, 16, 16), (4, 4, 4))
    image = torch.randn(1, 1, 36, 52, 20)
    with torch.no_grad():
        shapes = [tuple(m.shape[-3:]) for m in net(image)]
        assert shapes == [(18, 26, 10), (9, 13, 5), (5, 7, 3), (3, 4, 2)]
        with pytest.raises(ValueError, match="nearest legal size"):
            net(image[..., :19])
    with pytest.raises(ValueError, match="nearest legal size"):
        net(image)


@each(
    "wrong, message",
    [
        ({"channels": ()}, "at least one stage"),
        ({"steps": ((2, 2, 2),)}, "one stride for each of the 4 stages"),
        ({"steps": ((1, 1, 1),) * 4}, "not all 1"),
        ({"steps": ((4, 4, 4),) * 4}, "steps must be 1, 2 or 3"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build("resunet", wrong)
