"""Primus: published names and numbers, turned positions, and patches left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from each import each
from homolog.backbones import build
from homolog.backbones.base import Backbone, adapt_state
from homolog.config import ConfigError
from homolog.model_files.encoder import fill

SMALL: dict[str, Any] = {
    "image_size": (32, 32, 32), "hidden": 36, "layers": 3, "heads": 3, "taps": (1, 3),
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Primus": {},
    "nnFoundation, small": {"layer_scale": 0.0, "attention_norm": False},
    "registers": {"registers": 2},
    "nnssl": {"y_first": True},
    "no learnt positions": {"positions": False},
}


def published(kind: dict[str, Any], wide: int, blocks: int, patches: int) -> Any:
    """Names and shapes of a Primus's file, as nnU-Net and nnssl save it."""
    inner, extra = int(wide * 8 / 3), kind.get("registers", 0)
    found: dict[str, tuple[int, ...]] = {
        "mask_token": (1, 1, wide),
        "down_projection.proj.weight": (wide, 1, 8, 8, 8),
        "down_projection.proj.bias": (wide,),
        "up_projection.decode.0.0.weight": (wide, 8, 2, 2, 2),
        "decoder.blocks.0.norm1.weight": (wide,),
        "eva.norm.weight": (wide,), "eva.norm.bias": (wide,),
    }  # fmt: skip
    if extra:
        found["register_tokens"] = (1, extra, wide)
    if kind.get("positions", True):
        found["eva.pos_embed"] = (1, patches + extra, wide)
    for number in range(blocks):
        name = f"eva.blocks.{number}"
        norms = {"norm1": wide, "norm2": wide, "mlp.norm": inner}
        if kind.get("attention_norm", True):
            norms["attn.norm"] = wide
        for norm, width in norms.items():
            found[f"{name}.{norm}.weight"] = found[f"{name}.{norm}.bias"] = (width,)
        if kind.get("layer_scale", 0.1):
            found[f"{name}.gamma_1"] = found[f"{name}.gamma_2"] = (wide,)
        for linear, inside, outside in (
            ("attn.q_proj", wide, wide), ("attn.k_proj", wide, wide),
            ("attn.v_proj", wide, wide), ("attn.proj", wide, wide),
            ("mlp.fc1_g", wide, inner), ("mlp.fc1_x", wide, inner),
            ("mlp.fc2", inner, wide),
        ):  # fmt: skip
            found[f"{name}.{linear}.weight"] = (outside, inside)
            if linear != "attn.k_proj":
                found[f"{name}.{linear}.bias"] = (outside,)
    return found


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(shape).double() / 3 for name, shape in shapes.items()}


def turned(tokens: Tensor, places: Tensor) -> Tensor:
    """RoFormer, equation (34), with complex numbers; ``places`` (N, 3), in patches."""
    number = tokens.shape[-1] // 6
    rates = 10000.0 ** (-torch.arange(number).double() / number)
    angles = (places[:, :, None] * rates).flatten(1)
    pairs = torch.view_as_complex(tokens.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)
                              ).flatten(-2)  # fmt: skip


def reference(s: dict[str, Tensor], image: Tensor, heads: int, kind: Any) -> Tensor:
    """Normalised tokens (N, E) of one image, written from the description."""
    grid = [n // 8 for n in image.shape[2:]]
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid))
    x = functional.conv3d(
        image, s["down_projection.proj.weight"], s["down_projection.proj.bias"], 8
    )
    x = x.flatten(2)[0].T
    order = torch.arange(len(x))
    if kind.get("y_first"):  # nnssl rearranges "b c w h d -> b (h w d) c"
        order = order.view(*grid).transpose(0, 1).flatten()
    x, extra = x[order], kind.get("registers", 0)
    if extra:
        x = torch.cat([s["register_tokens"][0], x])
    if "eva.pos_embed" in s:
        x = x + s["eva.pos_embed"][0]

    def linear(name: str, value: Tensor) -> Tensor:
        return functional.linear(value, s[f"{name}.weight"], s.get(f"{name}.bias"))

    def norm(name: str, value: Tensor) -> Tensor:
        if f"{name}.weight" not in s:
            return value
        away = value - value.mean(-1, keepdim=True)
        unit = away / (away.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return unit * s[f"{name}.weight"] + s[f"{name}.bias"]

    for number in range(3):
        b = f"eva.blocks.{number}"
        inside = norm(f"{b}.norm1", x)
        q, k, v = (
            linear(f"{b}.attn.{n}_proj", inside).view(len(x), heads, -1).transpose(0, 1)
            for n in "qkv"
        )  # fmt: skip
        q, k = (
            torch.cat([t[:, :extra], turned(t[:, extra:], places)], 1) for t in (q, k)
        )
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ v).transpose(0, 1).flatten(1)
        made = linear(f"{b}.attn.proj", norm(f"{b}.attn.norm", mixed))
        x = x + s.get(f"{b}.gamma_1", 1) * made
        inside = norm(f"{b}.norm2", x)
        gate = linear(f"{b}.mlp.fc1_g", inside)
        value = gate / (1 + (-gate).exp()) * linear(f"{b}.mlp.fc1_x", inside)
        made = linear(f"{b}.mlp.fc2", norm(f"{b}.mlp.norm", value))
        x = x + s.get(f"{b}.gamma_2", 1) * made
    return norm("eva.norm", x)[extra:][order.argsort()]


@each("name", KINDS)
def test_tokens_equal_the_description_on_a_file_of_published_names(name: str) -> None:
    kind = KINDS[name]
    state = filled(published(kind, 36, 3, 64))
    net = build("primus", SMALL | kind).double().eval()
    net.load_state_dict(adapt_state(state, net))  # strict: every key, either way
    image = torch.randn(1, 1, 32, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        found = net(image)[-1].flatten(2)[0].T
    assert (found - reference(state, image, 3, kind)).abs().max() < 1e-9


def test_a_whole_file_fills_every_tensor_and_leaves_none() -> None:
    for name, kind in KINDS.items():
        shapes = published(kind, 36, 3, 64)
        state = {f"network_weights.{k}": torch.zeros(v) for k, v in shapes.items()}
        report = fill(build("primus", SMALL | kind), state, "w.pth")
        told = (report.share, report.missing, report.unexpected, report.dropped)
        assert told == (1.0, (), (), ""), name


@each("size", [(396, 12, 6), (792, 12, 12), (864, 16, 12), (1056, 24, 16)])
def test_the_published_sizes_are_allowed(size: tuple[int, int, int]) -> None:
    hidden, layers, heads = size
    cls = type(build("primus", SMALL))
    config = cls.Config(hidden=hidden, layers=layers, heads=heads)
    assert hidden // heads % 6 == 0
    assert len(published({}, hidden, layers, 8000)) == 7 + 1 + layers * (8 + 2 + 13)
    assert config.layer_scale == 0.1


def small(**settings: Any) -> Backbone:
    torch.manual_seed(0)
    return build("primus", SMALL | settings).double().eval()


def test_keeping_patches_is_the_whole_forward_on_them() -> None:
    net = small(registers=2)
    image = torch.randn(2, 1, 32, 48, 32, dtype=torch.float64)
    order = torch.stack([torch.randperm(96), torch.randperm(96)])
    whole = net(image)[-1].flatten(2).transpose(1, 2)
    wanted = whole.gather(1, order[..., None].expand(-1, -1, 36))
    torch.testing.assert_close(net.forward_visible(image, order), wanted)
    keep = torch.arange(1, 96)[None].expand(2, -1)
    changed = image.clone()
    changed[..., :8, :8, :8] += 5
    before, after = net.forward_visible(image, keep), net.forward_visible(changed, keep)
    assert torch.equal(before, after)


def test_without_learnt_positions_only_distances_count() -> None:
    """A pattern moved by whole patches, with nothing around it, gives moved tokens."""
    net = small(positions=False)
    image = torch.randn(1, 1, 16, 24, 24, dtype=torch.float64)
    wide = torch.randn(1, 1, 16, 24, 48, dtype=torch.float64)
    here, there = torch.arange(18).view(2, 3, 3), torch.arange(36).view(2, 3, 6)
    wide[..., 24:] = image
    keep = there[..., 3:].flatten()[None]
    alone = net.forward_visible(image, here.flatten()[None])
    torch.testing.assert_close(net.forward_visible(wide, keep), alone)
    mirrored = net.forward_visible(image.flip(-1), here.flip(-1).flatten()[None])
    assert not torch.allclose(mirrored, alone)  # not a bag of patches


@each("y_first", [False, True])
def test_positions_of_another_size_are_interpolated_per_axis(y_first: bool) -> None:
    net = small(y_first=y_first)
    ramp = torch.arange(4.0).double().view(4, 1, 1, 1).expand(4, 4, 4, 36)  # along z
    if y_first:
        ramp = ramp.transpose(0, 1)
    with torch.no_grad():
        net.eva.pos_embed.copy_(ramp.reshape(1, 64, 36))
        net.down_projection.proj.weight.zero_()
        tokens, _, grid = net._embed(torch.zeros(1, 1, 64, 16, 48).double())
        same, _, _ = net._embed(torch.zeros(1, 1, 32, 32, 32).double())
    assert grid == (8, 2, 6)
    along = tokens.view(8, 2, 6, 36)
    assert (along == along[:, :1, :1]).all()
    torch.testing.assert_close(
        along[1:-1, 0, 0, 0].diff().float(), torch.full((5,), 0.5)
    )
    assert same.view(4, 4, 4, 36)[:, 1, 2, 0].tolist() == [0, 1, 2, 3]
    # and so is a file's
    state = {"eva.pos_embed": net.eva.pos_embed.detach()}
    other = small(y_first=y_first, image_size=(64, 16, 48))
    moved = adapt_state(state, other)["eva.pos_embed"]
    other.load_state_dict({"eva.pos_embed": moved}, strict=False)
    with torch.no_grad():
        other.down_projection.proj.weight.zero_()
        again, _, _ = other._embed(torch.zeros(1, 1, 64, 16, 48).double())
    torch.testing.assert_close(again, tokens)


@each(
    "settings, message",
    [
        ({"heads": 4}, "multiple of 6 times heads"),
        ({"image_size": (32, 32, 36)}, "multiple of patch"),
        ({"taps": (2, 1)}, "taps must rise"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build("primus", SMALL | settings)
