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
