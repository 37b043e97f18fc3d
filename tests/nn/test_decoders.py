"""Decoders: MONAI's numbers where MONAI has them, every size, every parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from monai.networks.nets import UNETR, SwinUNETR
from torch import Tensor

from each import each
from homolog.backbones import build
from homolog.backbones._window_attention import WindowPlan, plan_windows
from homolog.nn.decoders import Decoder, build_decoder, suited_decoder

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
    names = {
        "encoder1.": "stem.", "encoder2.": "skips.2.", "encoder3.": "skips.1.",
        "encoder4.": "skips.0.", "decoder5.": "ups.0.", "decoder4.": "ups.1.",
        "decoder3.": "ups.2.", "decoder2.": "last.", "out.conv.conv.": "head.",
    }  # fmt: skip
    state = {
        new + key.removeprefix(old): value
        for key, value in theirs.state_dict().items()
        for old, new in names.items()
        if key.startswith(old)
    }
    ours.load_state_dict(state)
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
            "unknown decoder 'unet'; known: auto, nnformer, residual",
        ),
        ((8,), PYRAMID, "auto", "as many channels as strides"),
        ((8, 16), PYRAMID[:2], "swin_unetr", "takes five maps, got 2"),
        ((8, 16), PYRAMID[:2], "unetr", "maps of one stride"),
        ((8, 8), ((16, 16, 16),) * 2, "unetr", "needs 4 maps for this stride, got 2"),
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
