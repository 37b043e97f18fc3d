"""Dual softmax, Sharpe ratio, structure weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from each import each
from homolog.losses.assignment import (
    dual_log_softmax,
    log_transport,
    patch_to_patch,
    patch_to_structure,
    sharpe_ratio,
    structure_weights,
    to_dustbins,
    unmatched_pairs,
)
from homolog.losses.similarity import cosine_matrix


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def permutation_matches(order: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(order, len(order)).bool()[None]


@each("n", [2, 27, 216])
@each("value", [-1.0, 0.0, 0.7])
def test_s_t6_dual_softmax_of_equal_similarities(n: int, value: float) -> None:
    """Paper: S2DC Eq. 5."""
    similarity = torch.full((1, n, n), value, dtype=torch.float64)
    logs = dual_log_softmax(similarity, 0.1)
    torch.testing.assert_close(logs.exp(), torch.full_like(logs, 1 / n**2))
    loss = patch_to_patch(logs, torch.eye(n, dtype=torch.bool)[None])
    assert loss.item() == pytest.approx(2 * math.log(n), abs=1e-12)


@each("n", [27, 144, 216, 512])
@each("temperature", [1.0, 0.1])
def test_s_t6_orthonormal_tokens_give_the_closed_form(
    n: int, temperature: float
) -> None:
    """Paper: S2DC Eq. 4."""
    tokens = torch.eye(n, dtype=torch.float64)[None]
    logs = dual_log_softmax(cosine_matrix(tokens, tokens), temperature)
    loss = patch_to_patch(logs, torch.eye(n, dtype=torch.bool)[None])
    expected = 2 * math.log(1 + (n - 1) * math.exp(-1 / temperature))
    assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_s_t6_floors_without_temperature_are_those_of_the_reference_table() -> None:
    for n, floor in ((27, 3.02), (144, 6.03), (216, 6.81), (512, 8.50)):
        similarity = 2 * torch.eye(n, dtype=torch.float64)[None] - 1
        logs = dual_log_softmax(similarity, 1.0)
        loss = patch_to_patch(logs, torch.eye(n, dtype=torch.bool)[None])
        assert loss.item() == pytest.approx(floor, abs=0.006)


def test_s_t6_permuting_the_tokens_of_both_views_changes_no_loss() -> None:
    tokens_a, tokens_b = random_tensor(1, 30, 8), random_tensor(1, 30, 8, seed=1)
    matches = random_tensor(1, 30, 30, seed=2) > 1.5
    order_a = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    order_b = torch.randperm(30, generator=torch.Generator().manual_seed(4))

    def both(a: Tensor, b: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        cosine = cosine_matrix(a, b)
        logs = dual_log_softmax(cosine, 0.1)
        weights = structure_weights(cosine, pairs)
        return patch_to_patch(logs, pairs), patch_to_structure(logs, weights)

    before = both(tokens_a, tokens_b, matches)
    shuffled = matches[:, order_a][:, :, order_b]
    after = both(tokens_a[:, order_a], tokens_b[:, order_b], shuffled)
    torch.testing.assert_close(before, after)


def test_s_t6_rows_and_columns_of_the_assignment_sum_to_at_most_one() -> None:
    assignment = dual_log_softmax(random_tensor(3, 20, 25), 0.1).exp()
    assert assignment.sum(1).max() <= 1 + 1e-12
    assert assignment.sum(2).max() <= 1 + 1e-12


def test_padding_tokens_are_neither_matched_nor_candidates() -> None:
    similarity = random_tensor(1, 6, 6)
    valid = torch.tensor([[True, True, True, True, False, False]])
    masked = dual_log_softmax(similarity, 0.1, valid_a=valid, valid_b=valid)
    cut = dual_log_softmax(similarity[:, :4, :4], 0.1)
    torch.testing.assert_close(masked[:, :4, :4], cut)

    ratio = sharpe_ratio(similarity, valid)
    torch.testing.assert_close(ratio[:, :4], sharpe_ratio(similarity[:, :4, :4]))


@pytest.mark.parametrize("unbiased", [False, True])
def test_s_t7_sharpe_ratio_does_not_change_under_affine_maps(unbiased: bool) -> None:
    rows = random_tensor(2, 10, 50) * 0.1
    ratio = sharpe_ratio(rows, unbiased=unbiased)
    moved = sharpe_ratio(rows * 3.5 - 0.7, unbiased=unbiased)
    torch.testing.assert_close(ratio, moved)


@each("n", [2, 5, 64, 216])
def test_s_t7_sharpe_ratio_stays_within_its_bounds(n: int) -> None:
    """Paper: S2DC Eq. 6."""
    ratio = sharpe_ratio(random_tensor(4, 200, n))
    assert ratio.min() >= 1 / math.sqrt(n - 1) - 1e-9
    assert ratio.max() <= math.sqrt(n - 1) + 1e-9
    one_low = -torch.eye(n, dtype=torch.float64)[None]
    lowest = sharpe_ratio(one_low)
    torch.testing.assert_close(lowest, torch.full_like(lowest, 1 / math.sqrt(n - 1)))


@each("n", [2, 27, 216])
def test_s_t7_a_one_hot_row_has_the_largest_ratio_exactly(n: int) -> None:
    """Paper: S2DC Eq. 6."""
    ratio = sharpe_ratio(torch.eye(n, dtype=torch.float64)[None])
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.sqrt(n - 1)))


def test_a_constant_row_has_ratio_zero_and_a_finite_gradient() -> None:
    rows = torch.full((1, 4, 9), 0.3, requires_grad=True)
    ratio = sharpe_ratio(rows)
    ratio.sum().backward()
    assert ratio.abs().max() < 0.2
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_s_t8_equal_ratios_on_a_permutation_give_the_patch_loss_itself() -> None:
    """Paper: S2DC Eq. 7, 8."""
    n = 40
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    circulant = torch.stack([random_tensor(n).roll(i) for i in range(n)])[None]
    ratios = sharpe_ratio(circulant), sharpe_ratio(circulant.mT)
    assert max(float(r.std()) for r in ratios) < 1e-12
    matches = permutation_matches(order)
    logs = dual_log_softmax(circulant, 0.5)

    p2p = patch_to_patch(logs, matches)
    p2s = patch_to_structure(logs, structure_weights(circulant, matches))
    assert p2s.item() == pytest.approx(p2p.item(), abs=1e-6)
    printed = structure_weights(circulant, matches, paper_norm=True)
    literal = patch_to_structure(logs, printed)
    assert literal.item() == pytest.approx(p2p.item() / n**2, rel=1e-9)


def test_s_t8_holds_for_some_matched_tokens_too() -> None:
    n = 30
    circulant = torch.stack([random_tensor(n).roll(i) for i in range(n)])[None]
    matches = torch.eye(n, dtype=torch.bool)[None].clone()
    matches[:, 17:] = False
    logs = dual_log_softmax(circulant, 0.5)
    p2s = patch_to_structure(logs, structure_weights(circulant, matches))
    assert p2s.item() == pytest.approx(patch_to_patch(logs, matches).item(), abs=1e-9)


def test_s_t9_a_higher_peak_raises_its_weight_and_lowers_the_others() -> None:
    """Paper: S2DC Eq. 7, 8."""
    n = 25
    cosine = 0.1 * random_tensor(1, n, n) + 0.5 * torch.eye(n, dtype=torch.float64)
    matches = torch.eye(n, dtype=torch.bool)[None]
    raised = cosine.clone()
    raised[0, 7, 7] += 0.3
    before = structure_weights(cosine, matches).diagonal(dim1=1, dim2=2)[0]
    after = structure_weights(raised, matches).diagonal(dim1=1, dim2=2)[0]
    assert after[7] > before[7]
    others = torch.arange(n) != 7
    assert (after[others] < before[others]).all()
    assert before.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert after.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_s_t12_detached_weights_send_no_gradient() -> None:
    tokens = random_tensor(2, 12, 6).requires_grad_()
    fixed = random_tensor(2, 12, 6, seed=5)
    matches = torch.eye(12, dtype=torch.bool).expand(2, 12, 12)
    cosine = cosine_matrix(tokens, fixed)
    weights = structure_weights(cosine.detach(), matches)
    logs = dual_log_softmax(cosine, 0.1)
    (whole,) = torch.autograd.grad(
        patch_to_structure(logs, weights), tokens, retain_graph=True
    )
    elements = torch.zeros_like(tokens)
    for sample in range(2):
        for n in range(12):
            (one,) = torch.autograd.grad(-logs[sample, n, n], tokens, retain_graph=True)
            elements += weights[sample, n, n] * one / 2
    torch.testing.assert_close(whole, elements)

    attached = structure_weights(cosine, matches)
    (moved,) = torch.autograd.grad(patch_to_structure(logs, attached), tokens)
    assert not torch.allclose(moved, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_without_a_pair_are_skipped_and_all_stays_finite(
    dtype: torch.dtype,
) -> None:
    tokens = random_tensor(2, 9, 4).to(dtype).requires_grad_()
    cosine = cosine_matrix(tokens, tokens.detach().roll(1, 1))
    matches = torch.zeros(2, 9, 9, dtype=torch.bool)
    matches[0] = torch.eye(9, dtype=torch.bool)
    logs = dual_log_softmax(cosine, 0.1)
    both = patch_to_patch(logs, matches)
    torch.testing.assert_close(both, patch_to_patch(logs[:1], matches[:1]))

    none = torch.zeros_like(matches)
    nothing = torch.zeros(2, 9, dtype=torch.bool)
    logs = dual_log_softmax(cosine, 0.1, valid_a=nothing, valid_b=nothing)
    weights = structure_weights(cosine, none, valid_a=nothing, valid_b=nothing)
    empty = patch_to_patch(logs, none) + patch_to_structure(logs, weights)
    empty.backward()
    assert empty.item() == 0.0
    assert tokens.grad is not None
    assert (tokens.grad == 0).all()


def test_pairs_that_must_not_match_are_pushed_apart_within_bounds() -> None:
    wrong = ~torch.eye(5, dtype=torch.bool)[None]
    certain = torch.zeros(1, 5, 5, dtype=torch.float64)  # assignment 1 everywhere
    assert unmatched_pairs(certain, wrong).item() == pytest.approx(
        -math.log(1e-6), rel=1e-6
    )
    half = torch.full((1, 5, 5), math.log(0.5), dtype=torch.float64)
    assert unmatched_pairs(half, wrong).item() == pytest.approx(math.log(2))


def test_the_dustbin_loss_teaches_the_dustbin_score_both_ways() -> None:
    valid = torch.ones(1, 6, dtype=torch.bool)
    scores = 5 * torch.eye(6, dtype=torch.float64)[None]
    gradients = []
    for matches in (torch.eye(6, dtype=torch.bool)[None], torch.zeros(1, 6, 6) > 0):
        dustbin = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        plan = log_transport(scores, dustbin, rounds=50)
        loss = patch_to_patch(plan[:, :-1, :-1], matches)
        loss = loss + to_dustbins(plan, matches, valid, valid)
        loss.backward()
        assert dustbin.grad is not None
        gradients.append(dustbin.grad.item())
    assert gradients[0] > 0 > gradients[1]


def test_losses_are_exact_inside_autocast() -> None:
    tokens = random_tensor(1, 50, 16).float()
    expected = dual_log_softmax(cosine_matrix(tokens, tokens), 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = dual_log_softmax(cosine_matrix(tokens, tokens), 0.1)
    assert inside.dtype == torch.float32
    assert torch.equal(expected, inside)
