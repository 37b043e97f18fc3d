"""Decoders: MONAI's numbers where MONAI has them, every size, every parameter."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import pytest
import torch
from monai.networks.nets import UNETR, SegResNetDS, SwinUNETR
from torch import Tensor

from each import each
from homolog.backbones import build
from homolog.backbones._window_attention import WindowPlan, plan_windows
from homolog.backbones.base import adapt_state
from homolog.nn.decoders import (
    Decoder,
    build_decoder,
    foreign_decoder,
    suited_decoder,
)

Strides = Sequence[tuple[int, int, int]]

PYRAMID = ((2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16))
THICK = ((1, 2, 2), (2, 4, 4), (4, 8, 8))
SWIN = (*PYRAMID, (32, 32, 32))
FLAT = ((8, 8, 8),) * 4

CASES = {
    "residual": ((8, 16, 16, 24), PYRAMID),
    "residual thick": ((8, 16, 24), THICK),
    "residual one map": ((8,), PYRAMID[:1]),
    "swin_unetr": ((4, 8, 16, 32, 64), SWIN),
    "unetr": ((8,) * 4, FLAT),
    "nnformer": ((8, 16, 24), PYRAMID[:3]),
    "segresnet": ((8, 16, 24), ((1, 1, 1), *PYRAMID[:2])),
    "nnunet": ((8, 16, 24), ((1, 1, 1), *PYRAMID[:2])),
    "nnunet thick": ((8, 16, 24), ((1, 1, 1), (1, 2, 2), (2, 4, 4))),
    "segresnet thick": ((8, 16, 24), ((1, 1, 1), (1, 2, 2), (2, 4, 4))),
}


def maps_of(
    size: Sequence[int], channels: Sequence[int], strides: Strides
) -> list[Tensor]:
    """Noise where a backbone's maps would be, sides rounded up."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(
            2,
            c,
            *(math.ceil(n / s) for n, s in zip(size, stride, strict=True)),
            generator=generator,
        )
        for c, stride in zip(channels, strides, strict=True)
    ]


def decoder(case: str, in_channels: int = 1) -> Decoder:
    channels, strides = CASES[case]
    torch.manual_seed(0)
    return build_decoder(channels, strides, in_channels, 3, case.split()[0])


@each("case", CASES)
@each("size", [(32, 32, 32), (16, 48, 32)])
def test_the_result_has_the_image_size_at_any_size(
    case: str, size: tuple[int, ...]
) -> None:
    net = decoder(case, in_channels=2)
    image = torch.randn(2, 2, *size)
    maps = maps_of(size, *CASES[case])
    with torch.no_grad():
        features = net.features(image, maps)
        assert features.shape == (2, net.width, *size)
        assert torch.equal(net(image, maps), net.head(features))
        assert net(image, maps).shape == (2, 3, *size)


@each("case", CASES)
def test_a_gradient_reaches_every_parameter_and_every_map_used(case: str) -> None:
    net = decoder(case)
    size = (32, 64, 32)
    maps = [m.requires_grad_() for m in maps_of(size, *CASES[case])]
    result = net(torch.randn(2, 1, *size), maps)
    (result * torch.randn_like(result)).sum().backward()
    assert [n for n, p in net.named_parameters() if not p.grad.abs().sum() > 0] == []
    used = [m for m in maps if m.grad is not None and m.grad.abs().sum() > 0]
    # stride 8 has two skips: UNETR's first of three shallower maps is not needed
    assert len(used) == len(maps) - (case == "unetr")


@each("case", CASES)
def test_bfloat16_gradients_are_finite_and_near_float32(case: str) -> None:
    """Maps two cells deep gave non-finite or wrong ones: homolog.small_maps."""
    # the coarsest map is 2 x 2 x 2; a norm over fewer cells is little but its signs
    side = {"swin_unetr": 34, "unetr": 16}.get(case, 32)
    net, size = decoder(case), (side, side, side)
    image, maps = torch.randn(2, 1, *size), maps_of(size, *CASES[case])
    grads = []
    for autocast in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = net(image, maps)
        junk = [torch.full((n,), float("nan")) for n in (4096, 65536, 2**19)]
        del junk
        weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(5))
        (result.float() * weight).sum().backward()
        grads.append({n: p.grad.clone() for n, p in net.named_parameters()})
    # a one-channel convolution before a norm has no gradient but noise: hence the total
    total = sum(g.square().sum() for g in grads[0].values()).sqrt()
    for name, exact in grads[0].items():
        rough = grads[1][name]
        assert rough.isfinite().all(), name
        assert (exact - rough).norm() < 0.3 * exact.norm() + 0.02 * total, name


def test_the_swin_decoder_equals_monai() -> None:
    """Paper: Alice UNETR, Swin UNETR."""
    torch.manual_seed(0)
    theirs = SwinUNETR(1, 3, feature_size=12).double().eval()
    ours = build_decoder((12, 24, 48, 96, 192), SWIN, 1, 3).double()
    state = {
        k.replace("out.conv.conv.", "head."): v
        for k, v in theirs.state_dict().items()
        if not k.startswith("swinViT.")
    }
    ours.load_state_dict(state)  # strict: every key, either way
    image = torch.randn(1, 1, 32, 64, 32, dtype=torch.float64)
    with torch.no_grad():
        maps = theirs.swinViT(image, True)
        assert (theirs(image) - ours(image, maps)).abs().max() < 1e-10


def test_the_unetr_decoder_equals_monai_at_stride_16() -> None:
    """Paper: Alice UNETR, Swin UNETR."""
    torch.manual_seed(0)
    theirs = UNETR(1, 3, (32, 48, 32), 16, 24, 48, 4).double().eval()
    ours = build_decoder((24,) * 4, ((16, 16, 16),) * 4, 1, 3).double()
    vit = build("vit", {"hidden": 24, "inner": 48, "heads": 4})
    found = foreign_decoder(theirs.state_dict(), vit)
    assert found is not None
    assert (found.classes, found.missing, found.left_over) == (3, (), ())
    ours.load_state_dict(found.state)
    image = torch.randn(1, 1, 32, 48, 32, dtype=torch.float64)
    with torch.no_grad():
        last, hidden = theirs.vit(image)
        tokens = [hidden[3], hidden[6], hidden[9], last]
        maps = [t.transpose(1, 2).reshape(1, 24, 2, 3, 2) for t in tokens]
        assert (theirs(image) - ours(image, maps)).abs().max() < 1e-10


@each(
    "case, kind",
    [
        ("residual", "ResidualDecoder"),
        ("residual thick", "ResidualDecoder"),
        ("swin_unetr", "SwinUnetrDecoder"),
        ("unetr", "UnetrDecoder"),
    ],
)
def test_auto_takes_the_decoder_that_suits_the_strides(case: str, kind: str) -> None:
    assert type(build_decoder(*CASES[case], 1, 2)).__name__ == kind


@each(
    "channels, strides, kind, message",
    [
        (
            (8, 16),
            PYRAMID[:2],
            "unet",
            "unknown decoder 'unet'; known: auto, nnformer, nnunet, residual",
        ),
        ((8,), PYRAMID, "auto", "as many channels as strides"),
        ((8, 16), PYRAMID[:2], "swin_unetr", "takes five maps, got 2"),
        ((8, 16), PYRAMID[:2], "unetr", "maps of one stride"),
        ((8, 8), ((16, 16, 16),) * 2, "unetr", "needs 4 maps for this stride, got 2"),
        ((8, 16), PYRAMID[:2], "segresnet", "maps from the image's resolution on"),
        ((8, 16), PYRAMID[:2], "nnunet", "maps from the image's resolution on"),
        (
            (8, 16),
            ((2, 2, 2), (3, 3, 3)),
            "residual",
            "strides must divide one another",
        ),
    ],
)
def test_maps_that_a_kind_cannot_decode_are_refused(
    channels: tuple[int, ...], strides: Strides, kind: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_decoder(channels, strides, 1, 2, kind)


FLAT_STRIDES = ((1, 2, 2), (1, 4, 4), (1, 8, 8), (1, 16, 16), (1, 32, 32))


def test_a_2d_decoder_has_a_skip_per_map_and_learns_everywhere() -> None:
    channels = (8, 8, 16, 24, 32)
    torch.manual_seed(0)
    net = build_decoder(channels, FLAT_STRIDES, 2, 3, spatial_dims=2)
    assert not any(isinstance(m, torch.nn.Conv3d) for m in net.modules())
    image = torch.randn(2, 2, 80, 48)
    maps = [
        m.squeeze(2).requires_grad_()
        for m in maps_of((1, 80, 48), channels, FLAT_STRIDES)
    ]
    result = net(image, maps)
    assert result.shape == (2, 3, 80, 48)
    (result * torch.randn_like(result)).sum().backward()
    assert [n for n, p in net.named_parameters() if not p.grad.abs().sum() > 0] == []
    assert all(m.grad.abs().sum() > 0 for m in maps)


def test_maps_of_one_stride_are_not_decoded_in_2d() -> None:
    with pytest.raises(ValueError, match="only the residual decoder takes 2D maps"):
        build_decoder((24,) * 4, ((1, 8, 8),) * 4, 1, 2, spatial_dims=2)


def test_nnformers_decoder_asks_the_encoders_maps() -> None:
    """Paper: Alice nnFormer."""
    channels, strides = CASES["nnformer"]
    net = decoder("nnformer")
    image, maps = torch.zeros(2, 1, 16, 16, 16), maps_of((16,) * 3, channels, strides)
    skip = net.skips[0]  # of stride 4, asked by what comes up from stride 8
    raised = net.ups[0](maps[2]).movedim(1, -1)
    seen = maps[1].movedim(1, -1)
    told = skip(raised, seen)
    assert not torch.allclose(told, skip(raised, seen.flip(1)))
    # keys of one value: whatever is asked, the answer is that value
    flat = torch.ones_like(seen) * torch.arange(16.0)
    windows = [
        skip.attn(q[None], skip_plan(q), flat.reshape(2, -1, 16)[None])
        for q in (raised.reshape(2, -1, 16), 3 * raised.reshape(2, -1, 16))
    ]
    torch.testing.assert_close(windows[0], windows[1])
    assert net.features(image, maps).shape == (2, net.width, 16, 16, 16)
    plain = build("nnformer", {"feature_size": 8, "heads": [1, 2, 2, 2]})
    own = build(
        "nnformer", {"feature_size": 8, "heads": [1, 2, 2, 2], "decoder": "nnformer"}
    )
    assert suited_decoder(plain, 3).kind == "residual"  # as models of before have
    assert suited_decoder(own, 3).kind == "nnformer"


def skip_plan(cells: Tensor) -> WindowPlan:
    """One window of 4 x 4 x 4 cells."""
    assert cells.shape[1] == 64
    return plan_windows((4, 4, 4), (4, 4, 4), (0, 0, 0))


# Decoders of other people's files.


@functools.cache
def their_swin() -> SwinUNETR:
    torch.manual_seed(0)
    return SwinUNETR(1, 3, feature_size=12).double().eval()


@each("prefix", ["", "module.", "net.module.backbone."])
def test_a_swin_unetr_file_gives_its_whole_decoder(prefix: str) -> None:
    """VoComni saves plain names, SuPreM a wrapped network beside other heads."""
    theirs = their_swin().state_dict()
    state = {prefix + key: value for key, value in theirs.items()}
    state["net.module.organ_embedding"] = torch.zeros(3, 256)
    found = foreign_decoder(state, build("swin", {"feature_size": 12}))
    assert found is not None
    assert (found.kind, found.classes) == ("swin_unetr", 3)
    assert (found.missing, found.left_over) == ((), ())
    assert found.state.keys() == {
        key.replace("out.conv.conv.", "head.")
        for key in theirs
        if not key.startswith("swinViT.")
    }
    assert found.state["head.weight"] is theirs["out.conv.conv.weight"]


def test_of_an_encoder_file_the_blocks_on_its_maps_are_taken() -> None:
    """VoCo saves encoder1 to encoder10 of SwinUNETR, and no decoder."""
    state = {
        key: value
        for key, value in their_swin().state_dict().items()
        if not key.startswith(("decoder", "out."))
    }
    found = foreign_decoder(state, build("swin", {"feature_size": 12}))
    assert found is not None
    assert found.classes == 0
    assert {name.partition(".")[0] for name in found.state} == {
        f"encoder{i}" for i in (1, 2, 3, 4, 10)
    }
    assert {name.partition(".")[0] for name in found.missing} == {
        f"decoder{i}" for i in range(1, 6)
    }


@each("resolution", [None, (5, 1, 1)])
@each("depth", [1, 2])
def test_a_segresnetds_file_answers_as_monai_does(resolution, depth: int) -> None:
    torch.manual_seed(0)
    theirs = SegResNetDS(
        init_filters=8, norm="instance", blocks_down=(1, 2, 1), out_channels=4,
        dsdepth=depth, resolution=resolution,
    ).double().eval()  # fmt: skip
    steps = [[int(n) for n in scale] for scale in theirs.anisotropic_scales or ()]
    settings = {"filters": 8, "blocks": (1, 2, 1), "full_map": True, "steps": steps}
    ours = build("segresnet", settings).double().eval()
    ours.load_state_dict(adapt_state(theirs.state_dict(), ours))
    state = {f"model.{key}": value for key, value in theirs.state_dict().items()}
    found = foreign_decoder(state, ours)
    assert found is not None
    assert (found.kind, found.classes, found.missing) == ("segresnet", 4, ())
    assert len(found.left_over) == 2 * (depth - 1)  # heads of deep supervision
    net = suited_decoder(ours, 4).double().eval()
    net.load_state_dict(found.state)
    image = torch.randn(1, 1, 16, 32, 24, dtype=torch.float64)
    with torch.no_grad():
        assert (theirs(image) - net(image, ours(image))).abs().max() < 1e-10


def test_a_decoder_that_is_not_the_networks_own_is_left() -> None:
    swin = their_swin().state_dict()
    assert foreign_decoder(swin, build("swin", {"feature_size": 24})) is None
    assert foreign_decoder(swin, build("resunet", {"channels": (8, 16)})) is None
    settings = {"filters": 8, "blocks": (1, 2, 1), "full_map": True}
    net = build("segresnet", settings)
    for kind in ({"norm": "batch"}, {"norm": "instance", "blocks_up": (2, 1)}):
        theirs = SegResNetDS(init_filters=8, blocks_down=(1, 2, 1), **kind)
        assert foreign_decoder(theirs.state_dict(), net) is None
    encoder = {k: v for k, v in theirs.state_dict().items() if "up_layers" not in k}
    assert foreign_decoder(encoder, net) is None


def test_a_decoders_stem_follows_the_number_of_image_channels() -> None:
    """One channel becomes three: an image three times over answers as before."""
    state = their_swin().state_dict()
    found = foreign_decoder(
        state, build("swin", {"feature_size": 12, "in_channels": 3})
    )
    assert found is not None
    before, after = (
        s["encoder1.layer.conv1.conv.weight"] for s in (state, found.state)
    )
    assert after.shape[1] == 3
    torch.testing.assert_close(after.sum(1, keepdim=True), before)
