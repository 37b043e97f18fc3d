"""ViT: MONAI's keys and numbers, other sizes, and patches left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR
from monai.networks.nets import ViT as MonaiViT

from each import each
from homolog.backbones import build
from homolog.backbones.base import Backbone, adapt_state
from homolog.config import ConfigError

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
