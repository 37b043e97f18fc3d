"""ViT: MONAI's keys and numbers, other sizes, and patches left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR
from monai.networks.nets import ViT as MonaiViT
from torch.nn import functional

from each import each
from homolog.backbones import build
from homolog.backbones.base import Backbone, adapt_state
from homolog.config import ConfigError, from_dict, to_dict
from homolog.model_files.encoder import fill

Small = Callable[..., Backbone]

SETTINGS: dict[str, Any] = {
    "image_size": (32, 48, 16), "patch": (8, 16, 8), "hidden": 48, "inner": 64,
    "layers": 4, "heads": 4,
}  # fmt: skip


def monai(**overrides: Any) -> MonaiViT:
    torch.manual_seed(0)
    settings = {
        "in_channels": 1, "img_size": (32, 48, 16), "patch_size": (8, 16, 8),
        "hidden_size": 48, "mlp_dim": 64, "num_layers": 4, "num_heads": 4,
    }  # fmt: skip
    return MonaiViT(**{**settings, **overrides}).double()


@pytest.mark.parametrize("bias", [False, True])
def test_tokens_equal_monai_on_one_set_of_weights(bias: bool) -> None:
    theirs = monai(qkv_bias=bias)
    ours = build("vit", SETTINGS | {"qkv_bias": bias}).double()
    ours.load_state_dict(theirs.state_dict())  # strict: every key, either way
    image = torch.randn(2, 1, 32, 48, 16, dtype=torch.float64)
    last, hidden = theirs(image)
    maps = ours(image)
    wanted = [*hidden[:3], last]
    for a, b in zip(wanted, maps, strict=True):
        assert (a - b.flatten(2).transpose(1, 2)).abs().max() < 1e-10


def test_a_unetr_file_with_a_head_fills_every_key() -> None:
    theirs = UNETR(1, 2, (32, 32, 32), hidden_size=48, mlp_dim=64, num_heads=4)
    ours = build(
        "vit", {"image_size": (32, 32, 32), "hidden": 48, "inner": 64, "heads": 4}
    )
    assert set(adapt_state(theirs.state_dict(), ours)) == set(ours.state_dict())
    classifier = monai(classification=True).state_dict()
    classifier["blocks.0.cross_attn.to_q.weight"] = torch.zeros(48, 48)
    ours = build("vit", SETTINGS)
    assert set(adapt_state(classifier, ours)) == set(ours.state_dict())


def test_keeping_all_patches_is_the_whole_forward() -> None:
    net = build("vit", SETTINGS).double()
    image = torch.randn(2, 1, 32, 48, 16, dtype=torch.float64)
    order = torch.stack([torch.randperm(24), torch.randperm(24)])
    whole = net(image)[-1].flatten(2).transpose(1, 2)
    kept = net.forward_visible(image, order)
    wanted = whole.gather(1, order[..., None].expand(-1, -1, 48))
    torch.testing.assert_close(kept, wanted, rtol=1e-10, atol=1e-12)


def test_a_dropped_patch_cannot_be_seen() -> None:
    net = build("vit", SETTINGS)
    image = torch.randn(1, 1, 32, 48, 16)
    keep = torch.arange(1, 24)[None]  # all but the first: z 0..8, y 0..16, x 0..8
    changed = image.clone()
    changed[..., :8, :16, :8] += 5
    before, after = net.forward_visible(image, keep), net.forward_visible(changed, keep)
    assert torch.equal(before, after)
    changed[..., :8, :16, 8:] += 5
    assert not torch.equal(before, net.forward_visible(changed, keep))


def test_positions_of_another_size_are_interpolated_per_axis() -> None:
    net = build("vit", SETTINGS)
    ramp = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 48)  # rises along z only
    with torch.no_grad():
        net.patch_embedding.position_embeddings.copy_(ramp.reshape(1, 24, 48))
        net.patch_embedding.patch_embeddings.weight.zero_()
        net.patch_embedding.patch_embeddings.bias.zero_()
        tokens, grid = net._embed(torch.zeros(1, 1, 64, 16, 48))
    assert grid == (8, 1, 6)
    along = tokens.view(8, 1, 6, 48)
    assert (along == along[:, :, :1]).all()
    torch.testing.assert_close(along[1:-1, 0, 0, 0].diff(), torch.full((5,), 0.5))


def test_a_position_embedding_of_another_cube_is_resized_on_loading(
    small: Small,
) -> None:
    theirs = monai(img_size=(48, 48, 48), patch_size=(16, 16, 16))
    ours = small("vit", hidden=48, inner=64, heads=4, image_size=(32, 64, 32))
    found = adapt_state(theirs.state_dict(), ours)
    ours.load_state_dict(found)
    assert found["patch_embedding.position_embeddings"].shape == (1, 2 * 4 * 2, 48)


def test_the_deepest_map_is_meant_by_its_stride(small: Small) -> None:
    net = small("vit", layers=6)
    assert net.taps == (2, 3, 4, 6)
    assert net.map_of_stride(16) == 3
    with pytest.raises(ValueError, match="no map of stride 8"):
        net.map_of_stride(8)


@each(
    "wrong, message",
    [
        ({"heads": 5}, "heads must divide hidden = 48"),
        ({"image_size": (32, 48, 20)}, "image_size must be a multiple of patch"),
        ({"taps": (4, 2)}, "taps must rise"),
        ({"taps": (1, 2)}, "to layers = 4"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build("vit", SETTINGS | wrong)


# DINOv2's kind.

DINO: dict[str, Any] = {
    "image_size": (32, 32, 32), "patch": (8, 8, 8), "hidden": 48, "inner": 192,
    "layers": 4, "heads": 4, "qkv_bias": True, "class_token": True,
    "layer_scale": 1e-5, "norm_epsilon": 1e-6, "position_offset": 0.1,
}  # fmt: skip


def dino_names(
    chunks: int, registers: int, wide: int = 48, blocks: int = 4
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder in a file of DINOv2 or 3DINO."""
    found: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, wide), "pos_embed": (1, 65, wide),
        "mask_token": (1, wide), "patch_embed.proj.weight": (wide, 1, 8, 8, 8),
        "patch_embed.proj.bias": (wide,), "norm.weight": (wide,), "norm.bias": (wide,),
    }  # fmt: skip
    if registers:
        found["register_tokens"] = (1, registers, wide)
    for number in range(blocks):
        chunk = f"{number // (blocks // chunks)}." if chunks else ""
        name = f"blocks.{chunk}{number}"
        for part, outside, inside in (
            ("attn.qkv", 3 * wide, wide), ("attn.proj", wide, wide),
            ("mlp.fc1", 4 * wide, wide), ("mlp.fc2", wide, 4 * wide),
        ):  # fmt: skip
            found[f"{name}.{part}.weight"] = (outside, inside)
            found[f"{name}.{part}.bias"] = (outside,)
        for part in ("norm1", "norm2"):
            found[f"{name}.{part}.weight"] = found[f"{name}.{part}.bias"] = (wide,)
        found[f"{name}.ls1.gamma"] = found[f"{name}.ls2.gamma"] = (wide,)
    return found


def dino_state(chunks: int, registers: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    names = dino_names(chunks, registers)
    return {name: torch.randn(shape).double() / 3 for name, shape in names.items()}


def dino_reference(
    s: dict[str, torch.Tensor], image: torch.Tensor, blocks: list[str]
) -> list[torch.Tensor]:
    """Patch tokens (N, E) after each block, the last normalised; from the papers."""
    x = functional.conv3d(
        image, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], 8
    )
    grid = x.shape[2:]
    x = torch.cat([s["cls_token"][0], x.flatten(2)[0].T])
    place = s["pos_embed"][0]
    if len(x) != len(place) or len(set(grid)) > 1:
        cube = place[1:].T.reshape(1, -1, 4, 4, 4)
        moved = functional.interpolate(
            cube, scale_factor=[(n + 0.1) / 4 for n in grid], mode="trilinear"
        )
        place = torch.cat([place[:1], moved.flatten(2)[0].T])
    x = x + place
    if "register_tokens" in s:
        x = torch.cat([x[:1], s["register_tokens"][0], x[1:]])
    extra = len(x) - grid.numel()

    def norm(name: str, value: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(
            value, (48,), s[f"{name}.weight"], s[f"{name}.bias"], 1e-6
        )

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return functional.linear(value, s[f"{name}.weight"], s[f"{name}.bias"])

    found = []
    for b in blocks:
        inside = linear(f"{b}.attn.qkv", norm(f"{b}.norm1", x))
        q, k, v = inside.view(len(x), 3, 4, 12).permute(1, 2, 0, 3)
        mixed = (q @ k.transpose(1, 2) / 12**0.5).softmax(-1) @ v
        mixed = linear(f"{b}.attn.proj", mixed.transpose(0, 1).flatten(1))
        x = x + mixed * s[f"{b}.ls1.gamma"]
        inside = functional.gelu(linear(f"{b}.mlp.fc1", norm(f"{b}.norm2", x)))
        x = x + linear(f"{b}.mlp.fc2", inside) * s[f"{b}.ls2.gamma"]
        found.append(x[extra:])
    return [*found[:-1], norm("norm", x)[extra:]]


@each(
    "chunks, registers, size",
    [
        (0, 0, (32, 32, 32)),
        (2, 0, (32, 32, 32)),
        (4, 3, (32, 32, 32)),
        (2, 0, (48, 24, 16)),
    ],
)
def test_tokens_of_dinos_kind_equal_the_description(
    chunks: int, registers: int, size: tuple[int, int, int]
) -> None:
    state = dino_state(chunks, registers)
    net = build("vit", DINO | {"registers": registers}).double().eval()
    net.load_state_dict(adapt_state(state, net))  # strict: every key, either way
    image = torch.randn(1, 1, *size, dtype=torch.float64)
    names = [
        f"blocks.{n // (4 // chunks)}.{n}" if chunks else f"blocks.{n}"
        for n in range(4)
    ]
    with torch.no_grad():
        maps, wanted = net(image), dino_reference(state, image, names)
        patches = torch.arange(net(image)[0][0, 0].numel())[None]
        kept = net.forward_visible(image, patches)
    for a, b in zip(maps, wanted, strict=True):
        assert (a.flatten(2)[0].T - b).abs().max() < 1e-10
    assert (kept[0] - wanted[-1]).abs().max() < 1e-10


def test_a_whole_file_of_3dino_fills_every_tensor_and_leaves_none() -> None:
    state = {f"teacher.backbone.{k}": v.float() for k, v in dino_state(4, 0).items()}
    state["teacher.dino_head.mlp.0.weight"] = torch.zeros(8, 48)
    state["teacher.ibot_head.last_layer.weight_v"] = torch.zeros(8, 8)
    report = fill(build("vit", DINO), state, "teacher_checkpoint.pth")
    assert (report.share, report.missing, report.unexpected) == (1.0, (), ())
    # a smaller network says what it would lose
    told = fill(build("vit", DINO | {"layer_scale": 0.0}), state, "w.pth")
    assert "8 tensors of the encoder" in told.dropped


def test_positions_of_a_dino_file_are_resized_to_another_image() -> None:
    state = dino_state(2, 0)
    ours = build("vit", DINO | {"image_size": (48, 24, 16)}).double().eval()
    ours.load_state_dict(adapt_state(state, ours))
    same = build("vit", DINO).double().eval()
    same.load_state_dict(adapt_state(state, same))
    image = torch.randn(1, 1, 48, 24, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image)[-1], same(image)[-1])


def test_a_plain_network_is_what_it_was() -> None:
    """Files of before open: no new tensor, no new setting in what is written."""
    usual = build("vit", SETTINGS)
    names = "class_token registers layer_scale norm_epsilon position_offset".split()
    assert not set(names) & set(to_dict(usual.config))
    assert set(names) < set(to_dict(build("vit", DINO | {"registers": 1}).config))
    assert set(names) < set(to_dict(usual.config, whole=True))
    assert from_dict(type(usual.config), to_dict(usual.config)) == usual.config
    wanted = monai().state_dict().keys()
    assert usual.state_dict().keys() == wanted
