"""S2DC with a decoder at full resolution: fine tokens, and hidden blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from homolog.backbones import build
from homolog.geometry.correspondence import token_matches, token_partners
from homolog.losses.similarity import to_patches
from homolog.methods.s2dc import S2DC, S2DCConfig
from homolog.nn.decoders import fine_cell
from homolog.nn.masking import hidden_voxel_error, to_voxels
from homolog.nn.optim import parameter_groups
from homolog.views.view import Views

MakeViews = Callable[..., Views]
SIZE = (32, 32, 32)
NETWORK = {"channels": [8, 12, 16, 24]}


def method(**settings: object) -> S2DC:
    small = {"fine_tokens": 64, "head_hidden": 16, "head_dim": 8, "queue_length": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = S2DCConfig(size=SIZE, **{"tokens": "both", **small, **settings})  # type: ignore[arg-type]
        return S2DC(build("resunet", NETWORK), config)


def test_partners_are_the_matches_of_the_matrix(make_views: MakeViews) -> None:
    views = make_views(method().views())
    affines = [views[n].affine.flatten(0, 1) for n in ("student", "teacher")]
    partner = token_partners(*affines, SIZE, 4)
    matrix = token_matches(*affines, SIZE, 4)
    listed = torch.zeros_like(matrix)
    rows, tokens = (partner >= 0).nonzero(as_tuple=True)
    listed[rows, tokens, partner[rows, tokens]] = True
    assert torch.equal(listed, matrix)
    assert matrix.any()


@pytest.mark.parametrize("keep", ["teacher", "student"])
def test_fine_tokens_train_the_decoder_that_is_handed_on(
    make_views: MakeViews, keep: str
) -> None:
    made = method(keep=keep)
    views = make_views(made.views())
    terms = made.losses(views, 0.1)
    assert {"fine_p2p", "fine_p2s"} <= set(terms)
    (terms["fine_p2p"] + terms["fine_p2s"]).backward()
    own = made.student.decoder
    assert own is not None
    assert all(bool(p.grad.any()) for p in own.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in own.parameters())
    kept = made.dense_decoder()
    assert (kept is own) == (keep == "student")
    assert kept is not None
    assert not any(name.startswith("head") for name in kept.state_dict())


def test_drawn_tokens_show_the_same_place_and_change_with_progress(
    make_views: MakeViews,
) -> None:
    made = method()
    views = make_views(made.views())
    pair = views["student"], views["teacher"]
    first, again, later = (made._draw_fine(*pair, p) for p in (0.1, 0.1, 0.2))
    assert first.index_a is not None
    assert first.drawn is not None
    assert first.drawn.all()
    assert torch.equal(first.index_a, again.index_a)  # type: ignore[arg-type]
    assert not torch.equal(first.index_a, later.index_a)  # type: ignore[arg-type]
    affines = [view.affine.flatten(0, 1) for view in pair]
    partner = token_partners(*affines, SIZE, made.student.cell)
    assert torch.equal(partner.gather(1, first.index_a), first.index_b)  # type: ignore[arg-type]


def test_the_decoder_learns_to_tell_neighbouring_places_apart(
    make_views: MakeViews,
) -> None:
    made = method(weight_global=0.0)
    views = make_views(made.views(), batch=1)
    optimiser = torch.optim.AdamW(parameter_groups(made, 0.0), 5e-3)
    first = made.losses(views, 0.0)["fine_p2p"].item()
    for _ in range(16):
        terms = made.losses(views, 0.0)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        made.after_step(0.0)
    assert terms["fine_p2p"].item() < 0.95 * first
    assert made.monitors()["fine_rank"] > 2


def test_a_cell_goes_with_the_steps_of_the_network() -> None:
    flat = build(
        "resunet", {**NETWORK, "steps": [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]}
    )
    assert [fine_cell(flat, s) for s in (1, 2, 4)] == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    vit = build("vit", {"image_size": [32, 32, 32], "patch": [8, 8, 8], "hidden": 24,
                        "inner": 32, "layers": 4, "heads": 2})  # fmt: skip
    assert fine_cell(vit, 2) == (2, 2, 2)


def test_hidden_blocks_are_filled_by_the_decoder_that_is_handed_on(
    make_views: MakeViews,
) -> None:
    made = method(tokens="encoder", weight_reconstruction=2.0, mask_ratio=0.5)
    views = make_views(made.views())
    terms = made.losses(views, 0.1)
    assert terms["reconstruction"].item() == pytest.approx(
        2.0 * made._raw["raw_reconstruction"].item()
    )
    terms["reconstruction"].backward()
    own = made.student.decoder
    assert own is not None
    assert all(p.grad is not None and bool(p.grad.any()) for p in own.parameters())
    assert bool(made.student.mask_value.grad.any())  # type: ignore[union-attr]
    kept = made.dense_decoder()
    assert kept is made.teacher.module.decoder
    assert kept is not own


def test_only_hidden_voxels_of_the_scan_are_to_be_filled(make_views: MakeViews) -> None:
    made = method(tokens="encoder", weight_reconstruction=1.0)
    plain = make_views(made.views())["student"]
    hidden = made._hidden(plain, 0.1)
    assert hidden is not None
    assert hidden.float().mean().item() == pytest.approx(0.6, abs=0.02)
    image = plain.flat()
    blocks = to_voxels(hidden, made.grid, made.stride)

    def error(filled: Tensor) -> float:
        return hidden_voxel_error(
            to_patches(filled, made.stride), plain, hidden, made.stride, normalise=False
        ).item()

    assert error(image) == 0
    assert error(torch.where(blocks, image, image + 7.0)) == 0
    assert error(torch.where(blocks, image + 2.0, image)) == pytest.approx(4.0)
    assert method(tokens="encoder")._hidden(plain, 0.1) is None
