import pytest
import torch
from monai.losses import DiceCELoss

from homolog.losses.segmentation import dice_cross_entropy


def _random(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, 6, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 5, 6, 7), generator=generator)
    return logits.requires_grad_(), target


def test_value_and_gradient_equal_monai_when_all_is_labelled():
    logits, target = _random()
    dice, cross_entropy = dice_cross_entropy(logits, target)
    (gradient,) = torch.autograd.grad(dice + cross_entropy, logits)
    monai = DiceCELoss(include_background=False, softmax=True, to_onehot_y=True)
    theirs = monai(logits, target[:, None])
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    assert (dice + cross_entropy).item() == pytest.approx(theirs.item(), abs=1e-9)
    assert torch.allclose(gradient, their_gradient, atol=1e-12)


def test_crops_taken_together_equal_monai_over_the_batch():
    logits, target = _random()
    target[0, target[0] == 3] = 0  # a class that one crop does not show
    dice, _ = dice_cross_entropy(logits, target, together=True)
    monai = DiceCELoss(
        include_background=False, softmax=True, to_onehot_y=True, batch=True,
        lambda_ce=0.0,
    )  # fmt: skip
    assert dice.item() == pytest.approx(monai(logits, target[:, None]).item(), abs=1e-9)
    assert dice.item() != pytest.approx(dice_cross_entropy(logits, target)[0].item())


def test_crops_taken_together_leave_out_what_is_not_annotated():
    logits, target = _random()
    annotated = _annotated([1, 1, 0, 1], [1, 1, 1, 1])
    target[0, target[0] == 2] = 0
    dice, _ = dice_cross_entropy(logits, target, annotated, together=True)
    (gradient,) = torch.autograd.grad(dice, logits)
    assert torch.isfinite(gradient).all()
    alone, _ = dice_cross_entropy(logits[:1], target[:1], annotated[:1], together=True)
    single, _ = dice_cross_entropy(logits[:1], target[:1], annotated[:1])
    assert alone.item() == pytest.approx(single.item(), abs=1e-12)
    nothing = torch.full_like(target, -1)
    assert dice_cross_entropy(logits, nothing, together=True)[0].item() == 0.0


def test_unlabelled_voxels_get_no_gradient_and_change_nothing():
    logits, target = _random()
    target[:, 2:] = -1
    dice, cross_entropy = dice_cross_entropy(logits, target)
    (gradient,) = torch.autograd.grad(dice + cross_entropy, logits)
    assert not gradient[:, :, 2:].any()
    assert gradient[:, :, :2].any()
    alone = dice_cross_entropy(logits[:, :, :2], target[:, :2])
    assert dice.item() == pytest.approx(alone[0].item(), abs=1e-6)
    assert cross_entropy.item() == pytest.approx(alone[1].item(), abs=1e-6)


def test_crop_without_any_label_has_zero_loss():
    logits, target = _random()
    dice, cross_entropy = dice_cross_entropy(logits, torch.full_like(target, -1))
    (gradient,) = torch.autograd.grad(dice + cross_entropy, logits)
    assert dice.item() == 0.0
    assert cross_entropy.item() == 0.0
    assert not gradient.any()


def test_half_precision_logits_are_computed_in_single():
    logits, target = _random()
    low = logits.detach().bfloat16()
    dice, cross_entropy = dice_cross_entropy(low, target)
    assert dice.dtype == cross_entropy.dtype == torch.float32


def _annotated(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_with_all_classes_annotated_nothing_changes():
    logits, target = _random()
    everything = torch.ones(2, 4, dtype=torch.bool)
    plain = dice_cross_entropy(logits, target)
    told = dice_cross_entropy(logits, target, everything)
    assert [t.item() for t in told] == pytest.approx([p.item() for p in plain])


def test_classes_that_are_not_annotated_count_as_background():
    logits, target = _random()
    target[target == 2] = 0  # nobody marked class 2
    annotated = _annotated([1, 1, 0, 1], [1, 1, 0, 1])
    dice, cross_entropy = dice_cross_entropy(logits, target, annotated)
    # by hand: classes 0 and 2 as one
    merged = torch.stack(
        [torch.logsumexp(logits[:, [0, 2]], 1), logits[:, 1], logits[:, 3]], 1
    )
    renumbered = torch.where(target == 3, 2, target)
    expected = dice_cross_entropy(merged, renumbered)
    assert dice.item() == pytest.approx(expected[0].item(), abs=1e-9)
    assert cross_entropy.item() == pytest.approx(expected[1].item(), abs=1e-9)


def test_saying_an_unannotated_organ_on_background_costs_nothing():
    logits, target = _random()
    target[:] = 0
    annotated = _annotated([1, 1, 0, 0], [1, 1, 0, 0])
    raised = logits.detach().clone()
    raised[:, 2] += 30.0  # sure of class 2 everywhere
    assert dice_cross_entropy(raised, target, annotated)[1].item() < 1e-6
    assert dice_cross_entropy(raised, target)[1].item() > 10
    (gradient,) = torch.autograd.grad(
        sum(dice_cross_entropy(logits, target, annotated)), logits
    )
    assert torch.isfinite(gradient).all()


def test_each_crop_counts_its_own_classes_only():
    logits, target = _random()
    annotated = _annotated([1, 1, 0, 0], [1, 0, 1, 1])
    target[0][target[0] > 1] = 0
    target[1][target[1] == 1] = 0
    both = dice_cross_entropy(logits, target, annotated)
    alone = [
        dice_cross_entropy(logits[i : i + 1], target[i : i + 1], annotated[i : i + 1])
        for i in range(2)
    ]
    for k in range(2):
        mean = (alone[0][k] + alone[1][k]) / 2
        assert both[k].item() == pytest.approx(mean.item(), abs=1e-9)


def test_together_is_the_dice_of_the_crops_laid_side_by_side():
    logits, target = _random()
    target[0, :2] = -1
    both, _ = dice_cross_entropy(logits, target, together=True)
    beside = torch.cat(list(logits), 1)[None], torch.cat(list(target))[None]
    alone, _ = dice_cross_entropy(*beside)
    assert both.item() == pytest.approx(alone.item(), abs=1e-9)
    apart, _ = dice_cross_entropy(logits, target)
    assert abs(both.item() - apart.item()) > 1e-4


def test_together_a_class_counts_only_where_it_is_annotated():
    logits, target = _random()
    target[1] = target[1].clamp_max(2)  # the second crop knows nothing of class 3
    rows = _annotated([True] * 4, [True, True, True, False])
    both, _ = dice_cross_entropy(logits, target, rows, together=True)
    scores = []
    for number in (1, 2, 3):
        crops = [0, 1] if number < 3 else [0]
        share = [torch.softmax(logits[0], 0), torch.softmax(logits[1], 0)]
        share[1] = torch.cat([share[1][:1] + share[1][3:], share[1][1:3]])
        p = torch.stack([share[c][number] for c in crops])
        t = torch.stack([(target[c] == number).double() for c in crops])
        scores.append(1 - (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5))
    assert both.item() == pytest.approx(torch.stack(scores).mean().item(), abs=1e-6)
