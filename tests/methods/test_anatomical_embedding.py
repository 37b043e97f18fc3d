"""SAM: the proof tests L-T1 to L-T6 and L-T8."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.config import from_dict
from homolog.geometry.correspondence import (
    nearest_tokens,
    token_grid,
    token_positions_mm,
)
from homolog.losses.contrast import (
    enlarged,
    gather_cells,
    hard_negatives,
    pick,
    place_contrast,
)
from homolog.methods.anatomical_embedding import (
    AnatomicalEmbedding,
    AnatomicalEmbeddingConfig,
)
from homolog.nn.masking import keys_of, random_mask, to_voxels
from homolog.views.view import Same, View, Views, ViewSpec

Pair = Callable[..., Views]
SIZE = (32, 32, 32)
SMALL = {
    "size": SIZE, "coarse_stride": 8, "width": 16, "dim": 16, "anchors": 32,
    "hardest": 128, "negatives": 32, "coarse_hardest": 32, "coarse_negatives": 16,
    "global_negatives": 16, "intensity_probability": 0.0,
}  # fmt: skip


def method_of(backbone: Backbone, **settings: object) -> AnatomicalEmbedding:
    config = from_dict(AnatomicalEmbeddingConfig, {**SMALL, **settings})
    torch.manual_seed(0)
    return AnatomicalEmbedding(backbone, config)


def affine(at: tuple[float, float, float] = (0, 0, 0), spacing: float = 1.0) -> Tensor:
    matrix = torch.diag(torch.tensor([spacing] * 3 + [1.0], dtype=torch.float64))
    matrix[:3, 3] = torch.tensor(at, dtype=torch.float64)
    return matrix


@pytest.fixture
def pair(render_view: Callable[..., View]) -> Pair:
    """(first, second, cases): two groups of one view per sample, (B, 4, 4) each."""

    def make(first: Tensor, second: Tensor, cases: list[int] | None = None) -> Views:
        spec = ViewSpec(size=SIZE)
        cases = cases or list(range(len(first)))
        return Views(
            {
                "first": render_view(spec, first, cases),
                "second": render_view(spec, second, cases),
            }
        )

    return make


def sides_of(method: AnatomicalEmbedding, views: Views, name: str):
    embedder = method.embedder()
    with torch.no_grad():
        return tuple(
            method._side(view, embedder(view.flat())[name], name)
            for view in views.values()
        )


def both(views: Views) -> tuple[View, View]:
    return views["first"], views["second"]


def test_l_t1_embeddings_have_unit_norm_and_cosines_within_one(
    small_backbone: Callable[..., Backbone],
    pair: Pair,
) -> None:
    method = method_of(small_backbone())
    views = pair(affine()[None], affine()[None])
    found = method.embedder()(views["first"].flat())
    assert set(found) == {"fine", "coarse"}
    assert found["fine"].shape == (1, 16, 16, 16, 16)
    assert found["coarse"].shape == (1, 16, 4, 4, 4)
    for value in found.values():
        torch.testing.assert_close(value.norm(dim=1), torch.ones_like(value[:, 0]))
        cells = value.flatten(2)[0]
        assert (cells.T @ cells).abs().max() <= 1 + 1e-5


def test_l_t2_of_identical_views_every_cell_is_its_own_partner(
    small_backbone: Callable[..., Backbone],
    pair: Pair,
) -> None:
    method = method_of(small_backbone())
    at = affine((40.0, -7.0, 3.5), 1.3)[None]
    views = pair(at, at)
    for name in ("fine", "coarse"):
        index, matched = method._partners(
            both(views), sides_of(method, views, name), name
        )
        assert torch.equal(index[0], torch.arange(index.shape[1]))
        assert matched.all()
    _, offset = nearest_tokens(at, at, SIZE, 2)
    assert offset.abs().max() < 1e-9


def test_l_t3_a_translation_moves_partners_by_whole_cells(
    small_backbone: Callable[..., Backbone],
    pair: Pair,
) -> None:
    method = method_of(small_backbone())
    views = pair(affine()[None], affine((4.0, -2.0, 6.0))[None])  # b begins later
    index, matched = method._partners(
        both(views), sides_of(method, views, "fine"), "fine"
    )
    cells = torch.stack(torch.unravel_index(index[0], (16, 16, 16)), -1)
    own = torch.stack(torch.unravel_index(torch.arange(4096), (16, 16, 16)), -1)
    moved = own - torch.tensor([2, -1, 3])
    inside = ((moved >= 0) & (moved < 16)).all(-1)
    assert torch.equal(cells[inside], moved[inside])
    assert torch.equal(matched[0], inside)


@pytest.mark.parametrize("zoom", [0.8, 1.2])
def test_l_t3_partners_of_zoomed_views_lie_within_half_a_cell(zoom: float) -> None:
    a, b = affine()[None], affine((3.0, 3.0, 3.0), 1 / zoom)[None]
    index, offset = nearest_tokens(a, b, SIZE, 2)
    inside = token_positions_mm(b, SIZE, 2)[0, index[0]]
    at = token_positions_mm(a, SIZE, 2)[0]
    torch.testing.assert_close(inside - at, offset[0])
    low, high = 3.0 - 0.5 / zoom, 3.0 + 31.5 / zoom
    covered = ((at >= low) & (at <= high)).all(-1)
    assert covered.sum() > 1000
    half = 1.0 / zoom  # half a cell of two voxels
    assert offset[0][covered].abs().max() <= half + 1e-9


def test_l_t4_no_negative_is_too_near_or_outside_the_scan(
    small_backbone: Callable[..., Backbone],
    pair: Pair,
) -> None:
    """Paper: SAM fine."""
    method = method_of(small_backbone(), ignore_mm=5.0)
    views = pair(affine()[None], affine((5.0, 3.0, -4.0), 1.1)[None])
    views["second"].valid[:, :, :8] = False
    sides = sides_of(method, views, "fine")
    partner, matched = method._partners(both(views), sides, "fine")
    index, anchors, _, counted = method._anchors(
        sides, partner, matched, torch.tensor([7])
    )
    assert counted.all()
    forbidden = method._too_near(both(views), sides, index, partner, matched, "fine")
    pool = torch.cat([s.cells for s in sides], 1)
    numbers = torch.rand(1, anchors.shape[1], 128, dtype=torch.float64)
    taken, usable = hard_negatives(anchors @ pool.mT, forbidden, numbers, 128, 32)
    mm = torch.cat([s.mm for s in sides], 1)[0]
    valid = torch.cat([s.valid for s in sides], 1)[0]
    own = sides[0].mm[0, index[0]]
    distance = (mm[taken[0]] - own[:, None]).norm(dim=-1)
    assert usable.all()
    assert distance.min() >= 5.0
    assert valid[taken[0]].all()
    # exhaustive: forbidden is exactly near or invalid, plus the own pair
    brute = ((mm[None] - own[:, None]).norm(dim=-1) < 5.0) | ~valid
    extra = forbidden[0] & ~brute
    assert not (brute & ~forbidden[0]).any()
    assert extra.sum() <= len(own)


def test_few_candidates_never_let_a_forbidden_place_in() -> None:
    similarity = -torch.rand(1, 3, 10)  # all negative: zero-masking would pick them
    forbidden = torch.ones(1, 3, 10, dtype=torch.bool)
    forbidden[..., 4] = False
    taken, usable = hard_negatives(similarity, forbidden, torch.rand(1, 3, 8), 8, 5)
    assert usable.sum(-1).eq(1).all()
    assert (taken[usable] == 4).all()


@pytest.mark.parametrize(("count", "tau", "expected"), [(500, 0.5, 4.2293)])
def test_l_t5_orthonormal_negatives_give_the_closed_form(
    count: int, tau: float, expected: float
) -> None:
    """Paper: SAM fine."""
    basis = torch.eye(count + 1, dtype=torch.float64)
    anchor = basis[:1][None]
    loss = place_contrast(anchor, anchor, basis[1:][None, None], tau)
    assert loss == pytest.approx(math.log(1 + count * math.exp(-1 / tau)))
    assert loss == pytest.approx(expected, abs=1e-4)


def test_left_out_negatives_and_anchors_do_not_count() -> None:
    torch.manual_seed(1)
    unit = torch.nn.functional.normalize
    anchors, positives = (unit(torch.randn(2, 4, 8), dim=-1) for _ in range(2))
    negatives = unit(torch.randn(2, 4, 6, 8), dim=-1)
    usable = torch.rand(2, 4, 6) < 0.6
    counted = torch.tensor([[True, True, False, True], [False] * 4])
    loss = place_contrast(
        anchors, positives, negatives, 0.3, counted=counted, usable=usable
    )
    expected = []
    for a in (0, 1, 3):
        own = anchors[0, a] @ positives[0, a]
        others = negatives[0, a][usable[0, a]] @ anchors[0, a]
        logits = torch.cat([own[None], others]) / 0.3
        expected.append(-logits.log_softmax(0)[0])
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_l_t8_the_nearest_partner_equals_brute_force() -> None:
    a = affine((10.0, 20.0, -5.0), 0.9)
    angle = math.radians(17)
    turn = torch.eye(4, dtype=torch.float64)
    turn[1:3, 1:3] = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    b = turn @ torch.diag(torch.tensor([1.4, 0.8, 1.1, 1.0], dtype=torch.float64))
    b[:3, 3] = torch.tensor([8.0, 12.0, 0.0])
    index, offset = nearest_tokens(a[None], b[None], SIZE, (2, 4, 2))
    mm_a, mm_b = (token_positions_mm(m, SIZE, (2, 4, 2)) for m in (a, b))
    distance = torch.cdist(mm_a, mm_b)
    assert torch.equal(index[0], distance.argmin(1))
    torch.testing.assert_close(offset[0].norm(dim=-1), distance.amin(1))


def test_anchors_are_cells_with_a_partner_and_random(
    small_backbone: Callable[..., Backbone],
    pair: Pair,
) -> None:
    method = method_of(small_backbone())
    views = pair(affine()[None], affine((16.0, 0.0, 0.0))[None])
    sides = sides_of(method, views, "fine")
    partner, matched = method._partners(both(views), sides, "fine")
    seen = set()
    for key in range(3):
        index, _anchors, positives, counted = method._anchors(
            sides, partner, matched, torch.tensor([key * 1000])
        )
        assert matched[0, index[0]].all()
        assert counted.all()
        assert len(set(index[0].tolist())) == 32
        torch.testing.assert_close(
            positives, gather_cells(sides[1].cells, partner.gather(1, index))
        )
        seen.add(tuple(index[0].tolist()))
    assert len(seen) == 3


def test_crops_without_a_common_place_learn_from_negatives_only(
    small_backbone: Callable[..., Backbone],
    pair: Pair,
) -> None:
    method = method_of(small_backbone())
    views = pair(affine()[None], affine((500.0, 0.0, 0.0))[None], [0])
    sides = sides_of(method, views, "fine")
    partner, matched = method._partners(both(views), sides, "fine")
    assert not matched.any()
    _, anchors, positives, counted = method._anchors(
        sides, partner, matched, torch.tensor([5])
    )
    assert counted.all()
    assert torch.equal(anchors, positives)
    losses = method.losses(views, 0.1)
    assert all(v.isfinite() and v > 0 for v in losses.values())


def test_global_negatives_come_from_other_scans_only(
    small_backbone: Callable[..., Backbone],
    pair: Pair,
) -> None:
    """Paper: SAM coarse."""
    method = method_of(small_backbone(), global_negatives=64)
    affines = torch.stack([affine()] * 3)
    views = pair(affines, affines, [0, 0, 1])
    sides = sides_of(method, views, "coarse")
    pool = torch.cat([s.cells for s in sides], 1)
    keys = torch.tensor([1, 2, 3])
    case = torch.tensor([0, 0, 1])
    others, is_other = method._others(pool, sides, keys, case)
    assert is_other.all()
    for sample, allowed in ((0, [2]), (1, [2]), (2, [0, 1])):
        known = pool[allowed].flatten(0, 1)
        same = (others[sample][:, None] == known).all(-1)
        assert same.any(1).all()


def test_pick_prefers_allowed_columns_and_says_which_are_not() -> None:
    numbers = torch.tensor([[0.9, 0.1, 0.5, 0.7]])
    index, ok = pick(numbers, torch.tensor([[False, True, True, False]]), 3)
    assert index[0, :2].tolist() == [2, 1]
    assert ok[0].tolist() == [True, True, False]


def share_found(method: AnatomicalEmbedding, views: Views) -> float:
    """Cells whose most similar cell of the other view lies within one cell of right."""
    fine, coarse = (sides_of(method, views, name) for name in ("fine", "coarse"))
    partner, matched = method._partners(both(views), fine, "fine")
    ups = []
    for side in coarse:
        maps = side.cells.mT.reshape(len(side.cells), -1, 4, 4, 4)
        ups.append(enlarged(maps, (16, 16, 16)).flatten(2).mT)
    scores = fine[0].cells @ fine[1].cells.mT + ups[0] @ ups[1].mT
    best = scores.argmax(-1)
    apart = (
        (gather_cells(fine[1].mm, best) - gather_cells(fine[1].mm, partner))
        .abs()
        .amax(-1)
    )
    return (apart[matched] <= 2.0 + 1e-6).double().mean().item()


def test_e_t12_one_batch_can_be_learnt_without_collapse(
    small_backbone: Callable[..., Backbone],
    pair: Pair,
) -> None:
    method = method_of(small_backbone(), temperature=0.2, anchors=64)
    affines = torch.stack([affine((0.0, 0.0, 0.0)), affine((90.0, 20.0, 0.0))])
    moved = affines.clone()
    moved[:, :3, 3] += torch.tensor([3.0, -4.0, 5.0])
    views = pair(affines, moved)
    found_before = share_found(method, views)
    optimiser = torch.optim.AdamW(method.parameters(), 3e-3)
    for step in range(60):  # at 50: fine 2.77, coarse 1.17 and a share of 0.80
        losses = method.losses(views, step / 60)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    assert losses["fine"].item() < 2.9  # 3.5 while all places look alike
    assert losses["coarse"].item() < 2.3
    assert share_found(method, views) > max(0.75, found_before + 0.2)
    monitors = method.monitors()
    assert monitors["fine_rank"] > 4
    assert monitors["coarse_rank"] > 4


def test_identical_embeddings_cost_the_logarithm_of_the_candidates(
    small_backbone: Callable[..., Backbone],
    pair: Pair,
) -> None:
    method = method_of(small_backbone())
    for head in (method.fine_head, method.coarse_head):
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.ones_(head[-1].bias)
    affines = torch.stack([affine(), affine((70.0, 0.0, 0.0))])
    losses = method.losses(pair(affines, affines), 0.0)
    config = method.config
    stride = method.backbone.strides[method.maps["coarse"]]
    cells = 2 * math.prod(token_grid(method.size, stride)) - 2
    coarse = min(config.coarse_negatives, cells) + config.global_negatives
    for name, negatives in (("fine", config.negatives), ("coarse", coarse)):
        expected = math.log(1 + negatives)
        assert losses[name].item() == pytest.approx(expected, abs=0.02)


def test_a_coarse_stride_not_above_the_fine_one_is_refused(
    small_backbone: Callable[..., Backbone],
) -> None:
    with pytest.raises(ValueError, match="larger than fine_stride"):
        method_of(small_backbone(), fine_stride=4, coarse_stride=4)


def test_a_fine_embedding_of_a_decoder_trains_it_and_is_kept(
    make_views: Callable[..., Views], small_backbone: Callable[..., Backbone]
) -> None:
    method = method_of(small_backbone(), fine_from="decoder")
    views = make_views(method.views())
    terms = method.losses(views, 0.1)
    torch.stack(list(terms.values())).sum().backward()
    idle = [n for n, p in method.named_parameters() if p.grad is None]
    assert not idle
    decoder = method.dense_decoder()
    assert decoder is not None
    assert all(bool(p.grad.any()) for p in decoder.parameters() if p.grad is not None)
    embedder = method.embedder()
    assert embedder.stride("fine") == (2, 2, 2)
    image = views["first"].flat()
    with torch.no_grad():
        found = embedder(image)
        assert found["fine"].shape == (len(image), 16, 16, 16, 16)
        other = method_of(small_backbone(), fine_from="decoder").embedder()
        for weight in other.parameters():
            weight.add_(0.1)
        other.backbone.load_state_dict(method.encoder().state_dict())
        other.load_own_state(embedder.own_state())
        again = other.with_maps(dict(reversed(other.maps.items())))(image)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_without_a_decoder_none_is_handed_on(
    small_backbone: Callable[..., Backbone],
) -> None:
    assert method_of(small_backbone()).dense_decoder() is None


@pytest.mark.parametrize("fine_from", ["pyramid", "decoder", "none"])
def test_hidden_blocks_are_filled_by_a_decoder_that_is_handed_on(
    small_backbone: Callable[[], Backbone], pair: Pair, fine_from: str
) -> None:
    method = method_of(small_backbone(), fine_from=fine_from, weight_reconstruction=2.0)
    views = pair(affine()[None], affine((4, 0, 0))[None])
    terms = method.losses(views, 0.0)
    names = ["fine", "coarse"] if fine_from != "none" else ["coarse"]
    assert list(terms) == [*names, "reconstruction"]
    raw = method.monitors()["raw_reconstruction"]
    assert torch.allclose(terms["reconstruction"], 2 * raw)
    sum(terms.values(), torch.zeros(())).backward()
    decoder = method.dense_decoder()
    assert decoder is not None
    assert method.mask_value.grad is not None
    assert all(w.grad is not None for w in decoder.parameters())
    # nothing of what is hidden is seen: other values there change no vector
    first = method._seen((views["first"], views["second"]), 0.0)[0]
    grid = token_grid(SIZE, method.block)
    mask = random_mask(keys_of(views["second"], 0.0), math.prod(grid), 0.6)
    blocks = to_voxels(mask, grid, method.block)
    other = views["second"].image + 100.0 * blocks[:, None]
    changed = dataclasses.replace(views["second"], image=other)
    second = method._seen((views["first"], changed), 0.0)[0]
    for name in names:
        assert torch.equal(first[name][1], second[name][1])
    assert list(method.embedder().eval()(torch.zeros(1, 1, *SIZE))) == names


def test_without_a_fine_embedding_there_is_no_pyramid(
    small_backbone: Callable[[], Backbone],
) -> None:
    method = method_of(small_backbone(), fine_from="none")
    assert method.pyramid is None
    assert method.dense_decoder() is None
    assert not any(n.startswith("fine") for n, _ in method.named_parameters())


def test_the_published_configuration() -> None:
    """Paper: SAM configuration."""
    recipe = AnatomicalEmbedding.RECIPES["paper"]
    config = from_dict(AnatomicalEmbeddingConfig, recipe["method"])
    assert config.coarse_positive_z_mm == 6.0
    overrides = dict(recipe["backbone"])
    small = {"widths": [4, 4, 4, 4], "stage_blocks": [1] * 4}
    method = AnatomicalEmbedding(
        build(overrides.pop("name"), {**overrides, **small}), config
    )
    assert method._stride("coarse") == (4, 16, 16)
    assert method._stride("fine") == (2, 2, 2)
    changes = method.views()["first"].intensity
    assert changes.shift_probability == changes.gamma_probability == 0.0
    assert changes.noise_probability > 0
    assert changes.noise_std == (0.0, 0.001)
    assert changes.blur_voxels == (0.0, 4.0)
    usual = AnatomicalEmbedding(build("resunet", {"channels": [4, 4, 4, 4]}), from_dict(
        AnatomicalEmbeddingConfig, {}
    )).views()["first"].intensity  # fmt: skip
    assert usual.shift_probability > 0
    assert usual.blur_voxels == (0.5, 1.0)


def test_blind_to_modality_means_that_each_crop_has_its_own_contrast() -> None:
    usual, blind = (
        AnatomicalEmbedding(
            build("resunet", {"channels": [4, 4, 4, 4]}),
            from_dict(AnatomicalEmbeddingConfig, settings),
        ).views()
        for settings in ({}, {"synthetic_contrast": 0.7, "bias_field": 0.4})
    )
    for name, spec in blind.items():
        assert spec.intensity.regions_probability == 0.7
        assert spec.intensity.bias_probability == 0.4
        assert not isinstance(spec.place, Same)  # a twin's contrast would be no other
        assert usual[name].intensity.regions_probability == 0.0
    recipe = AnatomicalEmbedding.RECIPES["blind"]["method"]
    assert recipe["synthetic_contrast"] > 0.5
