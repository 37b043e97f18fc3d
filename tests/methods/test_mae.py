"""Masked autoencoder as a whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.config import from_dict
from homolog.losses.similarity import from_patches, to_patches
from homolog.methods.mae import MAE, MAEConfig
from homolog.nn.heads import TokenDecoder, sine_places
from homolog.nn.masking import random_mask, visible_tokens
from homolog.nn.optim import parameter_groups
from homolog.views.view import Views

MakeViews = Callable[..., Views]
SIZE = (32, 32, 32)
SMALL_VIT = {
    "image_size": SIZE, "patch": [8, 8, 8],
    "hidden": 24, "inner": 48, "layers": 2, "heads": 2,
}  # fmt: skip

SMALL_2D = {
    "widths": [8, 8, 8, 8], "stage_blocks": [1, 1, 1, 1], "block": "basic",
    "norm": "group",
}  # fmt: skip


def small_vit(seed: int = 0) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build("vit", SMALL_VIT)


@pytest.fixture
def make(small_backbone: Callable[..., Backbone]) -> Callable[..., MAE]:
    def construct(kind: str, **settings: Any) -> MAE:
        config = from_dict(
            MAEConfig,
            {"size": SIZE, "decoder_width": 48, "decoder_layers": 1} | settings,
        )
        backbone = small_vit() if kind == "vit" else small_backbone()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return MAE(backbone, config)

    return construct


@pytest.mark.parametrize("kind", ["convolutions", "vit", "slices"])
def test_a_full_decoder_learns_from_hidden_voxels_of_the_scan_alone(
    make_views: MakeViews, kind: str
) -> None:
    backbone = {
        "convolutions": lambda: build("resunet", {"channels": [8, 12, 16, 24]}),
        "vit": lambda: build("vit", {**SMALL_VIT, "layers": 4}),
        "slices": lambda: build("resnet2d", SMALL_2D),
    }[kind]()
    size = (1, 64, 64) if kind == "slices" else SIZE
    method = MAE(backbone, MAEConfig(size=size, decoder="full"))
    view = make_views(method.views())["crop"]
    valid = view.valid.clone()
    valid[..., :3] = False
    view = dataclasses.replace(view, valid=valid)
    mask = method.hidden(view, 0.0)
    image = view.flat()
    made: list[Tensor] = []
    original = method.reconstruct

    def reconstruct(seen: Tensor, hidden: Tensor) -> Tensor:
        made.append(original(seen, hidden))
        made[0].retain_grad()
        return made[0]

    method.reconstruct = reconstruct  # type: ignore[method-assign]
    loss = method.losses(Views({"crop": view}), 0.0)["reconstruction"]
    loss.backward()
    counts = mask[:, :, None] & to_patches(valid.flatten(0, 1)[:, None], method.patch)
    errors = (made[0] - to_patches(image, method.patch)).square()[counts]
    assert loss.item() == pytest.approx(errors.mean().item(), rel=1e-4)
    assert made[0].grad is not None
    assert torch.equal(made[0].grad != 0, counts)
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    spoilt = torch.where(mask[:, :, None], 77.0, to_patches(image, method.patch))
    with torch.no_grad():
        method.eval()
        torch.testing.assert_close(
            original(image, mask),
            original(from_patches(spoilt, method.patch, size), mask),
        )


def test_normalised_targets_follow_from_the_decoder() -> None:
    for given, decoder, wanted in (
        (None, "light", True),
        (None, "full", False),
        (True, "full", True),
    ):
        settings = {"decoder": decoder, "normalise": given}
        assert MAE.settled(settings, [])["normalise"] is wanted


class EchoBackbone(Backbone):
    """Its map, or its tokens, are the patches of the image themselves."""

    def __init__(self, config: Any, drops: bool) -> None:
        super().__init__(config)
        self.drops_tokens = drops  # type: ignore[misc]
        self.channels, self.strides = (8**3,), ((8, 8, 8),)
        self.size_divisor = (8, 8, 8)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        patches = to_patches(image, (8, 8, 8))
        grid = [n // 8 for n in image.shape[2:]]
        return (patches.mT.reshape(len(image), -1, *grid),)

    def forward_visible(self, image: Tensor, keep: Tensor) -> Tensor:
        patches = to_patches(image, (8, 8, 8))
        return patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[2]))


@pytest.mark.parametrize("drops", [True, False])
def test_patches_come_back_in_their_order(drops: bool) -> None:
    from homolog.backbones.base import BackboneConfig

    config = MAEConfig(size=(16, 24, 32), decoder_width=512)
    method = MAE(EchoBackbone(BackboneConfig(), drops), config)
    if drops:  # enter, add no place, no block, leave
        assert isinstance(method.decoder, TokenDecoder)
        method.decoder.enter = method.decoder.output = nn.Identity()
        method.decoder.blocks = nn.Identity()
        method.decoder.places.zero_()
    else:
        method.decoder = nn.Sequential(FirstMap())
    image = torch.randn(2, 1, 16, 24, 32)
    mask = random_mask(torch.arange(2), 24, config.mask_ratio)
    joined = from_patches(method.reconstruct(image, mask), (8, 8, 8), (16, 24, 32))
    rows, columns = (
        visible_tokens(mask, config.mask_ratio),
        to_patches(joined, (8, 8, 8)),
    )
    index = rows[:, :, None].expand(-1, -1, 512)
    seen = to_patches(image, (8, 8, 8)).gather(1, index)
    torch.testing.assert_close(columns.gather(1, index), seen)
    hidden = columns[mask]
    assert (hidden - hidden[:1]).abs().max() < 1e-6  # one value, whatever lay there


class FirstMap(nn.Module):
    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return maps[0]


@pytest.mark.parametrize("kind", ["convolutions", "vit"])
def test_hidden_voxels_cannot_reach_the_prediction(
    make: Callable[..., MAE], make_views: MakeViews, kind: str
) -> None:
    method = make(kind).eval()
    view = make_views(method.views())["crop"]
    mask = method.hidden(view, 0.0)
    image = view.flat()
    blocks = torch.where(mask[:, :, None], 77.0, to_patches(image, (8, 8, 8)))
    spoilt = from_patches(blocks, (8, 8, 8), SIZE)
    assert not torch.equal(image, spoilt)
    with torch.no_grad():
        torch.testing.assert_close(
            method.reconstruct(image, mask), method.reconstruct(spoilt, mask)
        )


@pytest.mark.parametrize("kind", ["convolutions", "vit"])
def test_gradients_reach_everything_that_learns(
    make: Callable[..., MAE], make_views: MakeViews, kind: str
) -> None:
    method = make(kind)
    terms = method.losses(make_views(method.views()), 0.3)
    terms["reconstruction"].backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", ["convolutions", "vit"])
def test_e_t12_one_batch_is_learnt_by_heart_without_collapse(
    make: Callable[..., MAE], make_views: MakeViews, kind: str
) -> None:
    method = make(kind)
    views = make_views(method.views(), batch=1)
    first = method.losses(views, 0.0)["reconstruction"].item()
    optimiser = torch.optim.AdamW(parameter_groups(method, 0.0), 5e-3)
    for _ in range(150):  # one progress, so one mask
        loss = method.losses(views, 0.0)["reconstruction"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert first == pytest.approx(1.0, abs=0.4)  # as of zeros
    assert loss.item() < 0.3
    assert method.monitors()["tokens_rank"] > 3


def test_masks_change_with_the_step_and_repeat_after_a_resume(
    make: Callable[..., MAE], make_views: MakeViews
) -> None:
    method = make("convolutions")
    view = make_views(method.views())["crop"]
    masks = [method.hidden(view, step / 400) for step in range(3)]
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    assert not torch.equal(masks[0][0], masks[0][1])
    assert torch.equal(masks[1], make("convolutions").hidden(view, 1 / 400))
    share = torch.stack(masks).float().mean().item()
    assert share == pytest.approx(method.config.mask_ratio, abs=0.01)


def test_patches_of_padding_do_not_count(
    make: Callable[..., MAE], make_views: MakeViews
) -> None:
    method = make("convolutions")
    views = make_views(method.views())
    nothing = torch.zeros_like(views["crop"].valid)
    padded = Views({"crop": dataclasses.replace(views["crop"], valid=nothing)})
    assert method.losses(padded, 0.0)["reconstruction"].item() == 0.0


def test_slices_and_several_channels_train(
    small_backbone: Callable[..., Backbone], make_views: MakeViews
) -> None:
    backbone = small_backbone(in_plane=True, channels=2)
    method = MAE(backbone, MAEConfig(size=(1, 32, 32), decoder_width=24))
    view = make_views(method.views())["crop"]
    both = dataclasses.replace(view, image=view.image.repeat(1, 1, 2, 1, 1, 1))
    loss = method.losses(Views({"crop": both}), 0.0)["reconstruction"]
    loss.backward()
    assert math.isfinite(loss.item())
    assert method.embedder()(both.flat())["features"].shape == (2, 16, 1, 4, 4)


def test_the_kept_encoder_is_the_backbone_with_plain_keys(
    make: Callable[..., MAE],
) -> None:
    method = make("vit")
    small_vit(seed=5).load_state_dict(method.encoder().state_dict())


def test_places_differ_and_neighbours_are_alike() -> None:
    places = sine_places((3, 4, 5), 48)
    assert places.shape == (60, 48)
    gaps = torch.cdist(places, places) + 99 * torch.eye(60)
    assert gaps.min() > 0.1
    assert gaps[0, 1] < gaps[0, 3]


@pytest.mark.parametrize("kind", ["convolutions", "vit"])
def test_the_error_is_made_in_float32_under_autocast(
    make: Callable[..., MAE], make_views: MakeViews, kind: str
) -> None:
    method = make(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = method.losses(make_views(method.views()), 0.0)["reconstruction"]
    assert error.dtype == torch.float32
    error.backward()
    grads = [p.grad for p in method.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads)
