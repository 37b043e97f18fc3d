"""What every backbone owes; a new file in backbones/ is tested without an edit."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from homolog.backbones import BACKBONES, build
from homolog.backbones.base import Backbone, BackboneConfig, adapt_state
from homolog.config import ConfigError, to_dict

Small = Callable[..., Backbone]


def image_for(backbone: Backbone, size: tuple[int, ...] | None = None) -> Tensor:
    """Noise (2, C, ...) of a legal size of about 32 voxels a side."""
    if size is None:
        size = legal(backbone, (32, 32, 32))
    generator = torch.Generator().manual_seed(1)
    shape = size if backbone.spatial_dims == 3 else size[-2:]
    return torch.randn(2, backbone.config.in_channels, *shape, generator=generator)


def legal(backbone: Backbone, size: tuple[int, ...]) -> tuple[int, ...]:
    """The next larger legal size; one slice for a 2D backbone."""
    divisor = backbone.size_divisor
    up = tuple(-(-n // m) * m for n, m in zip(size, divisor, strict=True))
    return up if backbone.spatial_dims == 3 else (1, *up[-2:])


@pytest.mark.parametrize("size", [(32, 32, 32), (48, 32, 16), (16, 48, 80)])
def test_maps_have_the_channels_and_strides_told(
    backbone: Backbone, size: tuple[int, ...]
) -> None:
    size = legal(backbone, size)
    with torch.no_grad():
        maps = backbone(image_for(backbone, size))
    assert len(maps) == len(backbone.channels) == len(backbone.strides), (
        "give channels and strides one entry for each map that forward returns."
    )
    for found, channels, stride in zip(
        maps, backbone.channels, backbone.strides, strict=True
    ):
        cells = tuple(math.ceil(n / s) for n, s in zip(size, stride, strict=True))
        cells = cells if backbone.spatial_dims == 3 else cells[-2:]
        assert tuple(found.shape) == (2, channels, *cells), (
            f"the map of stride {stride} has the shape {tuple(found.shape)}: set "
            "channels and strides to what forward makes, ceil(size / stride) cells."
        )
    assert sorted(backbone.strides) == list(backbone.strides), (
        "return the maps from fine to coarse."
    )


def test_a_gradient_reaches_every_parameter(backbone: Backbone) -> None:
    optimiser = torch.optim.SGD(backbone.parameters(), 1e-3)
    for _ in range(2):  # a layer that begins at zero hides those before it once
        optimiser.step()
        optimiser.zero_grad()
        maps = backbone(image_for(backbone))
        # noise weights: a plain sum of a normalised map is constant
        sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    still = [
        name
        for name, p in backbone.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert still == [], (
        f"no gradient reaches {still}: forward must use every weight, or it must not "
        "be made."
    )


def test_the_state_survives_a_round_trip_without_prefix(backbone: Backbone) -> None:
    name = type(backbone).__module__.rsplit(".", 1)[1]
    twin = build(name, to_dict(backbone.config))
    before = twin(image_for(twin))[-1]
    twin.load_state_dict(backbone.state_dict())
    twin.eval(), backbone.eval()
    for a, b in zip(twin(image_for(twin)), backbone(image_for(twin)), strict=True):
        assert torch.equal(a, b), (
            "a network rebuilt from its config and state_dict makes other maps: keep "
            "what forward reads in parameters and buffers."
        )
    assert not torch.equal(before, twin(image_for(twin))[-1])
    first = next(iter(backbone.state_dict())).split(".")[0]
    assert hasattr(backbone, first)


def test_the_same_input_gives_the_same_bits(backbone: Backbone) -> None:
    backbone.eval()
    twin = copy.deepcopy(backbone)
    image = image_for(backbone)
    for a, b in zip(backbone(image), twin(image.clone()), strict=True):
        assert torch.equal(a, b), "in eval mode forward must draw nothing at random."


def test_bfloat16_autocast_stays_finite_forward_and_backward(
    backbone: Backbone,
) -> None:
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        maps = backbone(image_for(backbone))
    sum((m.float() * torch.randn(m.shape)).sum() for m in maps).backward()
    assert all(m.isfinite().all() for m in maps), (
        "maps are not finite in bfloat16: compute roots, sums and quotients in float32."
    )
    wrong = [
        name for name, p in backbone.named_parameters()
        if p.grad is not None and not p.grad.isfinite().all()
    ]  # fmt: skip
    assert not wrong, (
        f"gradients of {wrong} are not finite in bfloat16: forward divides by small "
        "values; or, where it happens now and then, a CPU kernel of torch (depthwise "
        "Conv3d) met a map that is not contiguous: call .contiguous() before it."
    )


def test_bfloat16_features_are_near_float32(backbone: Backbone) -> None:
    backbone.eval()
    with torch.no_grad():
        exact = backbone(image_for(backbone))
        with torch.autocast("cpu", torch.bfloat16):
            rough = backbone(image_for(backbone))
    for a, b in zip(exact, rough, strict=True):
        assert (a - b.float()).norm() < 0.05 * a.norm(), (
            "bfloat16 maps are more than 5 % off: compute norms and softmax in float32."
        )


def test_an_illegal_size_is_refused_with_the_nearest_legal_one(
    backbone: Backbone,
) -> None:
    if all(m == 1 for m in backbone.size_divisor):
        pytest.skip("takes any size")
    z, y, x = (4 * m for m in backbone.size_divisor)
    z = z if backbone.spatial_dims == 3 else 1
    with pytest.raises(ValueError, match="nearest legal size is") as caught:
        backbone.check_size((z, y, x + 1))
    assert str((z, y, x)) in str(caught.value)


def test_features_move_with_the_image(backbone: Backbone) -> None:
    """No map is transposed: what is brightened at one end changes cells there."""
    backbone.eval()
    if backbone.spatial_dims != 3:
        pytest.skip("volumes only")
    image = image_for(backbone, legal(backbone, (32, 48, 80)))[:1]
    bright = image.clone()
    d, h, w = (n // 4 for n in image.shape[-3:])
    bright[..., -d:, :h, -w:] += 3
    with torch.no_grad():
        change = (backbone(bright)[0] - backbone(image)[0]).abs().sum(1)[0]
    peak = torch.nonzero(change > 0.5 * change.max()).float().mean(0)
    z, y, x = (p / (n - 1) for p, n in zip(peak, change.shape, strict=True))
    assert (z > 0.5, y < 0.5, x > 0.5) == (True, True, True), (
        "a map is transposed or flipped: keep the axes of the image, z, y, x."
    )


@pytest.mark.parametrize("name", BACKBONES.names())
def test_every_backbone_names_itself_and_its_paper(name: str) -> None:
    cls = BACKBONES.get(name)
    assert cls.title, f"{name} needs a title: its name in lists and forms."
    assert issubclass(cls.Config, BackboneConfig), (
        f"{name}: Config must extend BackboneConfig."
    )
    plain = [f.name for f in dataclasses.fields(cls.Config) if not f.metadata["help"]]
    assert not plain, (
        f"{name}: the settings {plain} have no help; declare them with "
        "homolog.config.option(default, help)."
    )
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    for line, what in (
        ("Source:", "the paper or code that it follows"),
        ("Differs from ", "what differs from it and why; or 'the paper: in nothing'"),
    ):
        said = [part.partition(line)[2] for part in text.splitlines() if line in part]
        assert any(word.strip(" .:") for word in said), (
            f"{name}: the docstring of {cls.__name__} needs a line '{line.strip()}' "
            f"with {what}."
        )


@pytest.mark.parametrize("name", BACKBONES.names())
def test_every_backbone_can_be_trained_on_two_cores(name: str) -> None:
    small = build(name, BACKBONES.get(name).SMALL)
    weights = sum(p.numel() for p in small.parameters())
    assert weights < 20e6, (
        f"{name} has {weights / 1e6:.0f} million weights with SMALL: give SMALL the "
        "settings of a network that two CPU cores can train."
    )


@pytest.mark.parametrize("name", BACKBONES.names())
def test_an_unknown_setting_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="has no setting 'colour'"):
        build(name, {"colour": "red"})


def test_an_unknown_backbone_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"known: .*swin"):
        build("swine")


@pytest.mark.parametrize("name", BACKBONES.names())
def test_one_channel_weights_answer_alike_on_repeated_channels(
    small: Small, name: str
) -> None:
    one, three = small(name), small(name, in_channels=3)
    three.load_state_dict(adapt_state(one.state_dict(), three))
    one.eval(), three.eval()
    image = image_for(one)
    repeated = image.repeat_interleave(3, dim=1)
    for a, b in zip(one(image), three(repeated), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES.names())
def test_three_channel_weights_answer_alike_on_one_channel(
    small: Small, name: str
) -> None:
    one, three = small(name), small(name, in_channels=3)
    one.load_state_dict(adapt_state(three.state_dict(), one))
    one.eval(), three.eval()
    image = image_for(one)
    for a, b in zip(one(image), three(image.repeat_interleave(3, dim=1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
