"""Swin: MONAI's keys and numbers, and what ours does better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer, compute_mask
from torch import nn

from homolog.backbones import _window_attention, build
from homolog.backbones._window_attention import (
    WindowAttention,
    attend,
    cut,
    join,
    plan_windows,
    seam_mask,
)
from homolog.backbones.base import Backbone, adapt_state
from homolog.config import ConfigError

Small = Callable[..., Backbone]


def pair(dtype: torch.dtype, size: int = 12, **settings: Any) -> tuple[nn.Module, ...]:
    """MONAI's network and ours with its weights."""
    torch.manual_seed(0)
    window = settings.get("window", (7, 7, 7))
    theirs = SwinTransformer(
        in_chans=1,
        embed_dim=size,
        window_size=window,
        patch_size=(2, 2, 2),
        depths=settings.get("depths", (2, 2, 2, 2)),
        num_heads=settings.get("heads", (3, 6, 12, 24)),
        use_v2=settings.get("use_v2", False),
        downsample=settings.get("downsample", "merging"),
        spatial_dims=3,
    ).to(dtype)
    ours = build("swin", {"feature_size": size, **settings}).to(dtype)
    ours.load_state_dict(theirs.state_dict())  # strict: every key, either way
    return theirs, ours


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)]
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_v2": True},
        {"downsample": "mergingv2"},
        {"depths": (1, 2, 1, 1), "heads": (2, 2, 4, 4), "window": (4, 3, 5)},
    ],
    ids=["plain", "v2", "mergingv2", "odd"],
)
def test_features_equal_monai_on_one_set_of_weights(
    dtype: torch.dtype, tolerance: float, settings: dict[str, Any]
) -> None:
    theirs, ours = pair(dtype, **settings)
    image = torch.randn(1, 1, 16, 32, 48, dtype=dtype)  # remainders, small windows
    with torch.no_grad():
        wanted = theirs(image, normalize=True)
        inferred = ours(image)
    trained = ours(image)  # through the recomputing attention
    for a, b, c in zip(wanted, inferred, trained, strict=True):
        assert (a - b).abs().max() < tolerance
        assert (a - c).abs().max() < tolerance


def test_gradients_equal_monai_in_float64() -> None:
    theirs, ours = pair(torch.float64, depths=(2, 1, 1, 1))
    image = torch.randn(2, 1, 16, 32, 32, dtype=torch.float64)
    weights = [torch.randn(m.shape).double() for m in ours(image)]
    for net in (theirs, ours):
        sum((m * w).sum() for m, w in zip(net(image), weights, strict=True)).backward()
    for (name, a), (_, b) in zip(
        theirs.named_parameters(), ours.named_parameters(), strict=True
    ):
        assert (a.grad - b.grad).norm() <= 1e-9 * a.grad.norm() + 1e-12, name


def test_unnormalised_maps_equal_monai() -> None:
    theirs, ours = pair(torch.float64, normalize=False)
    image = torch.randn(1, 1, 16, 32, 16, dtype=torch.float64)
    for a, b in zip(theirs(image, normalize=False), ours(image), strict=True):
        assert (a - b).abs().max() < 1e-10


def test_a_whole_swinunetr_file_fills_every_key() -> None:
    from monai.networks.nets import SwinUNETR

    theirs = SwinUNETR(1, 2, feature_size=12, use_v2=True)
    state = {f"module.{k}": v for k, v in theirs.state_dict().items()}
    ours = build("swin", {"feature_size": 12, "use_v2": True})
    found = adapt_state(state, ours)
    assert set(found) == set(ours.state_dict())
    assert all(found[k].shape == v.shape for k, v in ours.state_dict().items())


def test_the_old_names_of_self_supervised_weights_are_known(small: Small) -> None:
    ours = small("swin")
    old = {
        "module."
        + k.replace("mlp.linear1", "mlp.fc1").replace("mlp.linear2", "mlp.fc2"): v
        for k, v in ours.state_dict().items()
    }
    assert set(adapt_state(old, ours)) == set(ours.state_dict())


@pytest.mark.parametrize("size", [(14, 14, 14), (9, 7, 16), (5, 20, 8)])
def test_seam_masks_equal_the_masks_of_monai(size: tuple[int, int, int]) -> None:
    plan = plan_windows(size, (7, 7, 7), (3, 3, 3))
    padded = [g * n for g, n in zip(plan.grid, plan.window, strict=True)]
    wanted = compute_mask(padded, plan.window, plan.shift, torch.device("cpu"))
    for kind, first, stop in plan.groups:
        mask = seam_mask(
            plan.window, plan.shift, kind, torch.device("cpu"), torch.float32
        )
        for window in (plan.order or range(stop))[first:stop]:
            assert torch.equal(wanted[window], mask)


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 2, 2)])
def test_cutting_and_joining_give_the_map_back(shift: tuple[int, int, int]) -> None:
    cells = torch.randn(2, 7, 12, 3, 5)
    plan = plan_windows((7, 12, 3), (3, 5, 4), shift)
    windows = cut(cells, plan)
    assert windows.shape == (3 * 3 * 1, 2, 3 * 5 * 3, 5)
    assert torch.equal(join(windows, plan), cells)


def test_masks_made_in_inference_mode_serve_training_later(small: Small) -> None:
    seam_mask.cache_clear()
    net = small("swin", window=(2, 2, 2))
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        net(image)
    sum(m.square().sum() for m in net(image)).backward()
    assert net.patch_embed.proj.weight.grad.isfinite().all()


def test_attention_is_torchs_own_in_training_too(
    small: Small,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    real = _window_attention.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        _window_attention.functional,
        "scaled_dot_product_attention",
        lambda *a, **k: (calls.append(torch.is_grad_enabled()), real(*a, **k))[1],
    )
    net = small("swin", depths=(1, 1, 1, 1))
    net.train()(torch.randn(1, 1, 32, 32, 32, requires_grad=True))
    assert len(calls) == 4


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_recomputed_attention_has_the_gradients_of_the_formula(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # chunks that do and do not divide the number of windows
    monkeypatch.setattr(_window_attention, "_CHUNK_SCORES", rows * 2 * 27 * 27)
    shape = (5, 2, 27, 4)
    leaves = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    leaves.append(torch.randn(2, 27, 27, dtype=torch.float64))
    weight = torch.randn(shape, dtype=torch.float64)

    def plain(q, k, v, bias):
        return (0.5 * q @ k.transpose(-2, -1) + bias).softmax(-1) @ v

    grads = []
    for function in (plain, lambda *a: attend(*a, 0.5)):
        inputs = [t.clone().requires_grad_() for t in leaves]
        grads.append(torch.autograd.grad((function(*inputs) * weight).sum(), inputs))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_attention_in_bfloat16_keeps_a_bias_that_bfloat16_would_round() -> None:
    """Scores of 100.0 and 100.2 are one number in bfloat16."""
    attention = WindowAttention(8, 2, (2, 2, 2))
    plan = plan_windows((2, 2, 2), (2, 2, 2), (0, 0, 0))
    with torch.no_grad():
        attention.relative_position_bias_table.copy_(
            100 + 0.2 * torch.arange(27.0)[:, None].expand(27, 2)
        )
    cells = torch.randn(1, 1, 8, 8)
    for training in (True, False):
        with torch.set_grad_enabled(training):
            exact = attention(cells, plan)
            with torch.autocast("cpu", torch.bfloat16):
                rough = attention(cells, plan)
        assert (exact - rough.float()).norm() < 0.02 * exact.norm()


def test_checkpointing_changes_memory_not_gradients(small: Small) -> None:
    plain, saving = small("swin"), small("swin", checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 32, 32, 32)
    for net in (plain, saving):
        sum(m.square().mean() for m in net(image)).backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_stochastic_depth_acts_in_training_only(small: Small) -> None:
    net = small("swin", drop_path=0.5)
    image = torch.randn(1, 1, 32, 32, 32)
    net.eval()
    assert torch.equal(net(image)[-1], net(image)[-1])
    net.train()
    assert not torch.equal(net(image)[-1], net(image)[-1])


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"heads\[1\] must divide the 24 channels"):
        build("swin", {"feature_size": 12, "heads": (3, 5, 12, 24)})
