"""Alice: the proof tests A-T1 to A-T9, A-T11 and A-T12."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.config import from_dict, to_dict
from homolog.losses.assignment import token_codes
from homolog.losses.similarity import (
    cosine_distance,
    from_patches,
    hidden_patch_error,
    to_patches,
)
from homolog.methods.alice import Alice, AliceConfig
from homolog.nn.heads import SemanticAlignment, attention
from homolog.views.view import View, Views

SIZE = (32, 32, 32)
VIT = {
    "image_size": [32, 32, 32], "patch": [8, 8, 8], "hidden": 24, "inner": 48,
    "layers": 2, "heads": 2,
}  # fmt: skip
SMALL = {
    "size": SIZE, "token_stride": 8, "head_hidden": 32, "head_bottleneck": 16,
    "head_dim": 24, "alignment_dim": 20, "decoder_layers": 1,
    "intensity_probability": 0.0,
}  # fmt: skip


def method_of(backbone: Backbone | None = None, **settings: Any) -> Alice:
    torch.manual_seed(0)
    backbone = backbone or build("vit", VIT)
    return Alice(backbone, from_dict(AliceConfig, {**SMALL, **settings}))


@pytest.fixture
def pairs(make_views: Callable[..., Views]) -> Views:
    """Two samples, each of two patients; the key groups show other cases."""
    specs = method_of().views()
    made = make_views(specs, batch=2)
    other = make_views(specs, batch=4, seed=1)
    groups = {}
    for name, view in made.items():
        if name.startswith("key"):
            v = other[name]
            view = View(v.image[2:], v.affine[2:], v.valid[2:], v.case[2:])
        groups[name] = view
    return Views(groups)


def test_a_t1_hidden_voxels_never_reach_the_visible_tokens() -> None:
    """Paper: Alice 3.1, visible tokens."""
    method = method_of().eval()
    image = torch.randn(2, 1, *SIZE)
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[0, :48] = mask[1, 16:] = True
    noise = torch.randn(2, 64, 512) * 50
    patches = to_patches(image, (8, 8, 8))
    changed = from_patches(
        torch.where(mask[..., None], noise, patches), (8, 8, 8), SIZE
    )
    with torch.no_grad():
        a, b = (method.online(x, mask) for x in (image, changed))
    assert torch.equal(a.visible, b.visible)
    assert torch.equal(a.tokens, b.tokens)


def test_a_t2_only_hidden_patches_count_and_affine_intensity_does_not() -> None:
    """Paper: Alice Eq. 1."""
    torch.manual_seed(1)
    target = torch.randn(2, 8, 27)
    hidden = torch.arange(8).expand(2, 8) < 6
    mean, std = target.mean(2, keepdim=True), target.std(2, unbiased=False)
    perfect = (target - mean) / (std[..., None] ** 2 + 1e-4).sqrt()
    assert hidden_patch_error(perfect, target, hidden) < 1e-10
    guess = torch.randn(2, 8, 27)
    error = hidden_patch_error(guess, target, hidden)
    other = guess.clone()
    other[:, 6:] += 7.0
    torch.testing.assert_close(hidden_patch_error(other, target, hidden), error)
    scaled = target.clone()
    scaled[:, 2] = 3.0 * scaled[:, 2] + 11.0
    torch.testing.assert_close(
        hidden_patch_error(guess, scaled, hidden), error, rtol=1e-3, atol=1e-4
    )


def test_a_t3_patches_make_the_image_again() -> None:
    image = torch.randn(2, 3, 8, 12, 20)
    assert torch.equal(
        from_patches(to_patches(image, (4, 3, 5)), (4, 3, 5), (8, 12, 20)), image
    )


def test_a_t4_equal_tokens_give_equal_answers() -> None:
    """Paper: Alice Eq. 3, 4."""
    torch.manual_seed(2)
    casa = SemanticAlignment(24, 16, 12)
    visible, tokens = torch.randn(2, 5, 24), torch.randn(2, 9, 16)
    a, b = casa(visible, tokens), casa(visible, tokens.clone())
    assert torch.equal(a, b)
    assert cosine_distance(a, b).abs() < 1e-6


def test_a_t5_attention_is_a_mean_that_no_order_changes() -> None:
    """Paper: Alice Eq. 3, 4."""
    torch.manual_seed(3)
    casa = SemanticAlignment(24, 16, 12).double()
    visible = torch.randn(2, 5, 24, dtype=torch.float64)
    tokens = torch.randn(2, 9, 16, dtype=torch.float64)
    weights = attention(casa.query(visible), casa.key(tokens))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    same = tokens[:, :1].expand(-1, 9, -1)
    value = casa.answer(casa.value(casa.token_norm(same)).mean(1, keepdim=True))
    torch.testing.assert_close(casa(visible, same), value.expand(-1, 5, -1))
    order = torch.randperm(9)
    torch.testing.assert_close(casa(visible, tokens[:, order]), casa(visible, tokens))
    turn = torch.randperm(5)
    torch.testing.assert_close(
        casa(visible[:, turn], tokens), casa(visible, tokens)[:, turn]
    )


@pytest.mark.parametrize("similarity", ["cosine", "info_nce"])
def test_a_t6_gradients_flow_through_query_and_tokens_of_the_online_side_only(
    pairs: Views, similarity: str
) -> None:
    """Paper: Alice 3.1, heads; Alice Eq. 5."""
    method = method_of(similarity=similarity)
    view = pairs["query"]
    seen = method.online(view.flat(), method.hidden(view, 0.3))
    told = torch.randn_like(seen.tokens, requires_grad=True)
    loss = method._aligned(seen, told)
    grads = torch.autograd.grad(
        loss,
        [told, seen.visible, seen.tokens, method.alignment.query.weight,
         method.alignment.answer.weight],
        allow_unused=True,
    )  # fmt: skip
    assert grads[0] is None
    assert all(g is not None and g.abs().sum() > 0 for g in grads[1:])

    losses = method.losses(pairs, 0.3)
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None for p in method.target.parameters())
    assert all(p.grad is not None for p in method.online.parameters())

    with torch.no_grad():
        online = method.alignment(seen.visible, seen.tokens)
    still = cosine_distance(online, method.alignment(seen.visible, told))
    assert not still.requires_grad


@pytest.mark.parametrize("similarity", ["cosine", "info_nce"])
def test_a_t7_the_patients_can_be_exchanged(pairs: Views, similarity: str) -> None:
    """Paper: Alice Eq. 2."""
    method = method_of(similarity=similarity)
    swapped = Views(
        {
            "query": pairs["key"], "query_target": pairs["key_target"],
            "key": pairs["query"], "key_target": pairs["query_target"],
        }
    )  # fmt: skip
    for name, value in method.losses(pairs, 0.4).items():
        torch.testing.assert_close(value, method.losses(swapped, 0.4)[name])


def test_a_t8_cosine_distance_runs_from_0_to_4_whatever_the_length() -> None:
    """Paper: Alice Table 7."""
    a = torch.randn(5, 7)
    assert cosine_distance(a, 3 * a).item() == pytest.approx(0, abs=1e-5)
    assert cosine_distance(a, -0.1 * a).item() == pytest.approx(4, abs=1e-5)
    b = torch.randn(5, 7)
    torch.testing.assert_close(cosine_distance(2 * a, b), cosine_distance(a, 9 * b))
    a.requires_grad_()
    b.requires_grad_()
    cosine_distance(a, b).backward()
    assert a.grad is not None
    assert b.grad is None


def test_a_t9_the_target_starts_as_the_online_branch_and_follows_it() -> None:
    """Paper: Alice 3.1, target."""
    method = method_of()
    image = torch.randn(2, 1, *SIZE)
    head = method.online.head
    method.online.eval()
    with torch.no_grad():
        tokens = method.online.backbone.maps(image)[-1].flatten(2).mT
        assert torch.equal(method.target(image), head(tokens))
    before = {n: p.clone() for n, p in method.target.named_parameters()}
    with torch.no_grad():
        for p in method.online.parameters():
            p.add_(1.0)
    method.after_step(0.0)  # momentum 0.99 at the start
    for name, p in method.target.named_parameters():
        torch.testing.assert_close(p, before[name] + 0.01, rtol=0, atol=1e-5)
    method.after_step(1.0)  # and 1 at the end
    torch.testing.assert_close(p, before[name] + 0.01, rtol=0, atol=1e-5)


def test_a_t11_masks_hide_three_quarters_and_differ_between_patients(
    pairs: Views,
) -> None:
    """Paper: Alice 3.1, masks."""
    method = method_of()
    query, key = (method.hidden(pairs[n], 0.2) for n in ("query", "key"))
    for mask in (query, key):
        assert (mask.sum(1) == 48).all()
    assert not torch.equal(query, key)
    assert not torch.equal(query, method.hidden(pairs["query"], 0.3))
    seen = method.online(pairs["query"].flat(), query)
    assert seen.visible.shape == (2, 16, 24)
    assert seen.tokens.shape == (2, 64, 24)
    assert seen.patches.shape == (2, 64, 512)


@pytest.mark.parametrize("name", ["resunet", "swin"])
def test_a_t12_a_backbone_that_keeps_tokens_is_itself_under_an_empty_mask(
    name: str,
) -> None:
    settings = {
        "resunet": {"channels": [8, 12, 16]},
        "swin": {"feature_size": 12, "window": [4, 4, 4]},
    }[name]
    torch.manual_seed(0)
    method = method_of(build(name, settings)).eval()
    image = torch.randn(1, 1, *SIZE)
    nothing = torch.zeros(1, 64, dtype=torch.bool)
    with torch.no_grad():
        plain = method.online.backbone.maps(image)[method.online.map_index]
        seen = method.online(image, nothing)
    cells = plain.flatten(2).mT
    # the number of visible tokens is fixed; those shown are the dense ones
    assert torch.equal(seen.visible, cells[:, : seen.visible.shape[1]])


def test_hidden_blocks_of_a_dense_backbone_show_nothing_of_the_scan() -> None:
    """Paper: Alice 3.1, visible tokens."""
    method = method_of(build("resunet", {"channels": [8, 12, 16]})).eval()
    mask = torch.zeros(1, 64, dtype=torch.bool)
    mask[0, :48] = True
    image = torch.randn(1, 1, *SIZE)
    patches = to_patches(image, (8, 8, 8)).clone()
    patches[0, :48] = 9.0
    other = from_patches(patches, (8, 8, 8), SIZE)
    with torch.no_grad():
        a, b = (method.online(x, mask) for x in (image, other))
    assert torch.equal(a.visible, b.visible)


def test_the_narrow_decoder_is_lifted_to_the_encoders_width(pairs: Views) -> None:
    method = method_of(decoder_width=12, predictor=True, similarity="info_nce")
    losses = method.losses(pairs, 0.1)
    torch.stack(list(losses.values())).sum().backward()
    assert method.online.lift.weight.shape == (24, 12)
    assert method.online.lift.weight.grad is not None
    assert all(v.isfinite() for v in losses.values())


def test_info_nce_of_crops_that_are_all_alike_is_chance(pairs: Views) -> None:
    method = method_of(similarity="info_nce")
    same = torch.randn(24).expand(4, 24)
    assert method._apart(same, same).item() == pytest.approx(math.log(4), abs=1e-4)
    told = torch.nn.functional.normalize(torch.randn(4, 24), dim=-1)
    own = method._apart(told, told)
    assert own < method._apart(told, told.roll(1, 0))


def test_pairs_of_one_patient_are_counted(pairs: Views) -> None:
    method = method_of()
    method.losses(pairs, 0.1)
    assert method.monitors()["same_patient_share"] == 0
    same = dict(pairs)
    for name in ("key", "key_target"):
        v = pairs[name]
        same[name] = View(v.image, v.affine, v.valid, pairs["query"].case)
    method.losses(Views(same), 0.1)
    assert method.monitors()["same_patient_share"] == 1


def placed(views: Views, z_mm: list[float], cases: list[int], **known: Any) -> Views:
    """Both sides of every pair at one height."""
    groups = {}
    for name, view in views.items():
        affine = torch.eye(4, dtype=torch.float64).repeat(len(z_mm), 1, 1, 1)
        affine[:, 0, 0, 3] = torch.tensor(z_mm)
        own = torch.tensor(cases) + 10 * name.startswith("key")
        image = view.image[:1].repeat(len(z_mm), 1, 1, 1, 1, 1)
        valid = view.valid[:1].repeat(len(z_mm), 1, 1, 1, 1)
        groups[name] = View(image, affine, valid, own, **known)
    return Views(groups)


def test_negatives_are_crops_of_other_body_parts(pairs: Views) -> None:
    """Paper: Alice 4.4, InfoNCE."""
    method = method_of(negatives="elsewhere")
    # crops 32 mm high
    alone = placed(pairs, [0.0, 31.0, 32.0, 40.0], [0, 0, 1, 1])
    found = method._elsewhere(alone)
    assert found is not None
    together = torch.eye(4, dtype=torch.bool)
    together[0, 1] = together[1, 0] = together[2, 3] = together[3, 2] = True
    assert torch.equal(~found, together)  # of other patients nothing is known
    body = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    linked = placed(
        pairs, [0.0, 31.0, 32.0, 500.0], [0, 1, 2, 3], to_body=body,
        frame=torch.zeros(4, dtype=torch.long),
    )  # fmt: skip
    found = method._elsewhere(linked)
    assert found is not None
    together = torch.eye(4, dtype=torch.bool)
    together[0, 1] = together[1, 0] = together[1, 2] = together[2, 1] = True
    assert torch.equal(~found, together)
    assert method_of()._elsewhere(linked) is None


def test_what_shares_a_place_does_not_push_away() -> None:
    """Paper: Alice 4.4, InfoNCE."""
    method = method_of(negatives="elsewhere", temperature=0.5)
    generator = torch.Generator().manual_seed(0)
    online, target = torch.randn(2, 3, 24, generator=generator).unbind(0)
    apart = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    a, b = (torch.nn.functional.normalize(v, dim=1) for v in (online, target))
    cosine = a @ b.mT / 0.5
    expected = [
        torch.logsumexp(cosine[0, [0, 1]], 0) - cosine[0, 0],
        torch.logsumexp(cosine[1, [1, 0]], 0) - cosine[1, 1],
        2 - 2 * (a[2] * b[2]).sum(),  # nothing to be told from
    ]
    found = method._apart(online, target, apart)
    torch.testing.assert_close(found, torch.stack(expected).mean())
    loss = method._apart(online, target)
    every = torch.nn.functional.cross_entropy(cosine, torch.arange(3))
    torch.testing.assert_close(loss, every)


def test_masks_of_one_patients_two_sides_differ(pairs: Views) -> None:
    """Paper: Alice 3.1, masks."""
    method = method_of()
    same = Views({
        name: pairs[name.replace("key", "query")] for name in pairs
    })  # fmt: skip
    key = method.hidden(same["key"], 0.3)
    other = method._another(same, 0.3, key)
    assert torch.equal(key, method.hidden(same["query"], 0.3))
    assert (other != key).any(1).all()
    assert torch.equal(other.sum(1), key.sum(1))
    # and are what they were for two patients
    mask = method.hidden(pairs["key"], 0.3)
    assert torch.equal(method._another(pairs, 0.3, mask), mask)


@pytest.mark.parametrize(("depth", "alike"), [(60, True), (70, False)])
def test_crops_of_one_organ_are_compared_by_cosines(depth: int, alike: bool) -> None:
    """Paper: Alice Table 7."""
    card = SimpleNamespace(shape=(depth, 40, 50))
    asked = to_dict(from_dict(AliceConfig, {**SMALL, "similarity": "auto"}))
    cases: Any = [SimpleNamespace(card=card)] * 3
    found = Alice.settled(asked, cases)
    assert found["similarity"] == ("cosine" if alike else "info_nce")
    assert found["predictor"] is alike
    chosen = {**asked, "similarity": "cosine"}
    assert Alice.settled(chosen, cases) == chosen
    warned = method_of(similarity="cosine").remarks({})
    assert "as published" in warned[0]
    assert Alice.RECIPES["info_nce"]["method"]["similarity"] == "info_nce"


def test_the_target_sees_whole_crops_but_for_the_ablation(pairs: Views) -> None:
    """Paper: Alice Table 10."""
    view = pairs["query_target"]
    assert torch.equal(method_of()._shown(view, 0.3), view.flat())
    shown = method_of(target_mask_ratio=0.25)._shown(view, 0.3)
    patches = to_patches(shown, (8, 8, 8))
    gone = (patches == 0).all(2)
    assert torch.equal(gone.sum(1), torch.full((len(gone),), 16))
    kept = to_patches(view.flat(), (8, 8, 8))
    assert torch.equal(patches[~gone], kept[~gone])


def test_codes_of_hidden_tokens_are_those_of_the_target_of_the_same_crop(
    pairs: Views,
) -> None:
    """Paper: Alice Table 6."""
    method = method_of(predict="codes", pairs="same", similarity="cosine")
    method.losses(pairs, 0.0)  # a step has a centre
    method.after_step(0.0)
    assert method.centre.abs().max() > 0
    before = method.centre.clone()
    losses = method.losses(pairs, 0.1)
    view = pairs["query"]
    mask = method.hidden(view, 0.1)
    told = method.target(view.flat())
    codes = torch.softmax((told - before) / 0.04, -1)
    guess = method.online(view.flat(), mask).tokens
    by_hand = []
    for b, n in mask.nonzero().tolist():
        by_hand.append(-(codes[b, n] * (guess[b, n] / 0.1).log_softmax(-1)).sum())
    one = method._reconstruction(view, method.online(view.flat(), mask), mask)
    torch.testing.assert_close(one, torch.stack(by_hand).mean())
    losses["reconstruction"].backward()
    assert all(p.grad is None for p in method.target.parameters())
    assert any(p.grad is not None for p in method.online.backbone.parameters())
    mean = torch.stack(method._told).mean(0)
    method.after_step(0.1)
    torch.testing.assert_close(method.centre, 0.9 * before + 0.1 * mean)


def test_uniform_predictions_of_codes_cost_ln_k_and_padding_nothing() -> None:
    """Paper: Alice Table 6."""
    told, centre = torch.randn(2, 5, 7), torch.randn(7)
    counted = torch.arange(5).expand(2, 5) < 3
    flat = token_codes(torch.zeros(2, 5, 7), told, centre, counted)
    torch.testing.assert_close(flat, torch.tensor(math.log(7.0)))
    scores = torch.randn(2, 5, 7)
    one = token_codes(scores, told, centre, counted)
    scores[:, 3:] = 50.0
    torch.testing.assert_close(token_codes(scores, told, centre, counted), one)
    none = token_codes(scores, told, centre, torch.zeros(2, 5, dtype=torch.bool))
    assert none == 0


def test_direct_alignment_compares_the_decoders_tokens_with_the_targets(
    pairs: Views,
) -> None:
    """Paper: Alice Table 6."""
    method = method_of(alignment="direct", similarity="cosine")
    seen = method.online(pairs["query"].flat(), method.hidden(pairs["query"], 0.0))
    told = method.target(pairs["query_target"].flat())
    expected = cosine_distance(seen.tokens, told)
    torch.testing.assert_close(method._aligned(seen, told), expected)
    assert method.alignment is None


def test_weights_of_zero_leave_a_term_out(pairs: Views) -> None:
    """Paper: Alice sum of losses; Alice Table 11."""
    whole = method_of()
    part = method_of(weight_between=0.0, weight_within=0.5)
    part.load_state_dict(whole.state_dict())
    a, b = whole.losses(pairs, 0.2), part.losses(pairs, 0.2)
    assert b["between"] == 0
    torch.testing.assert_close(b["within"], 0.5 * a["within"])
    torch.testing.assert_close(b["reconstruction"], a["reconstruction"])


def test_e_t12_all_terms_fall_on_one_batch_without_collapse(pairs: Views) -> None:
    method = method_of(mask_ratio=0.5, momentum=0.9)
    optimiser = torch.optim.AdamW(
        [p for p in method.parameters() if p.requires_grad], 2e-3
    )
    first: dict[str, float] = {}
    for _step in range(80):
        losses = method.losses(pairs, 0.0)
        first = first or {k: v.item() for k, v in losses.items()}
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        method.after_step(0.0)
    last = {k: v.item() for k, v in losses.items()}
    assert last["reconstruction"] < 0.9 * first["reconstruction"]
    assert last["within"] < 0.7 * first["within"]
    assert last["between"] < 0.7 * first["between"]
    monitors = method.monitors()
    assert monitors["tokens_rank"] > 1.5  # four crops to be told apart
    assert monitors["global_std"] > 0.2
    assert math.isfinite(sum(last.values()))


def test_the_target_is_a_copy() -> None:
    method = method_of()
    online: Tensor = method.online.head.wide
    target = copy.deepcopy(method.target.state_dict())
    with torch.no_grad():
        online.add_(1.0)
    for name, value in method.target.state_dict().items():
        assert torch.equal(value, target[name])
