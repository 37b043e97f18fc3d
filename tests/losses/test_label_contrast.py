"""The label term: the proof tests M-T5 to M-T7."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from each import each
from homolog.losses.contrast import Labelled, label_contrast, relation

TAU = 0.1


def voxels(features: torch.Tensor, labels: list[int], space: int = 0) -> Labelled:
    label = torch.tensor(labels)
    return Labelled(
        features, label, torch.full_like(label, space),
        torch.ones_like(label, dtype=torch.bool),
    )  # fmt: skip


def random_voxels(labels: list[int], seed: int, space: int = 0) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(labels), 5, generator=generator, dtype=torch.float64)
    return voxels(features, labels, space)


@each("same, different", [(3, 5), (1, 1), (4, 2)])
def test_m_t5_orthogonal_classes_give_the_closed_form(
    same: int, different: int
) -> None:
    """Paper: MixCL Eq. 6."""
    one_hot = torch.eye(2, dtype=torch.float64)
    first = voxels(one_hot[[0]], [1])
    labels = [1] * same + [2] * different
    other = voxels(one_hot[[v - 1 for v in labels]] * 3.0, labels)
    # only the first crop's anchor: in the second, anchors of class 1 see no negative
    loss = label_contrast(first, other, TAU)
    expected = math.log(1 + different / same * math.exp(-1 / TAU)) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_m_t5_without_negatives_or_positives_it_is_zero() -> None:
    alike = random_voxels([1, 1, 1], 0), random_voxels([1, 1], 1)
    assert float(label_contrast(*alike, TAU)) == pytest.approx(0.0, abs=1e-12)
    for ratio in (False, True):
        first, other = random_voxels([1, 1], 0), random_voxels([2, 2, 3], 1)
        features = first.features.requires_grad_()
        loss = label_contrast(first, other, TAU, global_ratio=ratio)
        loss.backward()
        assert loss.item() == 0.0
        assert features.grad is not None
        assert torch.equal(features.grad, torch.zeros_like(features))


def test_m_t6_background_and_names_of_labels_do_not_matter() -> None:
    """Paper: MixCL relation."""
    first, other = random_voxels([1, 1, 2, 3, 0, 0], 0), random_voxels([1, 2, 2, 0], 1)
    loss = label_contrast(first, other, TAU)
    changed = first.features.clone()
    changed[4:] = 9.0
    moved = dataclasses.replace(first, features=changed)
    assert torch.equal(label_contrast(moved, other, TAU), loss)
    fewer = random_voxels([1, 1, 2, 3], 0)
    fewer = dataclasses.replace(fewer, features=first.features[:4])
    torch.testing.assert_close(label_contrast(fewer, other, TAU), loss)
    names = {0: 0, 1: 77, 2: 5, 3: 1}
    renamed = [
        dataclasses.replace(v, label=torch.tensor([names[int(i)] for i in v.label]))
        for v in (first, other)
    ]
    assert torch.equal(label_contrast(*renamed, TAU), loss)
    told = label_contrast(first, other, TAU, background_negative=True)
    assert not torch.isclose(told, loss)


def test_pairs_of_background_unlabelled_and_other_spaces_do_not_count() -> None:
    one = random_voxels([1, 0, -1, 2], 0)
    other = random_voxels([1, 0, -1, 2], 1)
    positive, negative = relation(one, other)
    assert positive.nonzero().tolist() == [[0, 0], [3, 3]]
    assert negative.nonzero().tolist() == [[0, 3], [3, 0]]
    _, told = relation(one, other, background_negative=True)
    assert (told & ~negative).nonzero().tolist() == [[0, 1], [1, 0], [1, 3], [3, 1]]
    elsewhere = dataclasses.replace(other, space=torch.ones_like(other.space))
    assert not any(r.any() for r in relation(one, elsewhere, background_negative=True))
    blank = dataclasses.replace(other, drawn=torch.zeros_like(other.drawn))
    assert not any(r.any() for r in relation(one, blank))


def test_m_t7_both_forms_agree_for_one_anchor_and_sides_may_be_exchanged() -> None:
    """Paper: MixCL Eq. 6."""
    labels = [1, 1, 2, 3]
    one, other = random_voxels([1], 0), random_voxels(labels, 1)
    ratio = label_contrast(one, other, TAU, global_ratio=True)
    # per anchor: the mean with the other side, whose anchors have no negatives (0)
    torch.testing.assert_close(label_contrast(one, other, TAU) * 2, ratio)
    a, b = random_voxels([1, 2, 2, 3, 4], 2), random_voxels([1, 1, 2, 5], 3)
    for within in (False, True):
        torch.testing.assert_close(
            label_contrast(a, b, TAU, within=within),
            label_contrast(b, a, TAU, within=within),
        )


def test_own_crop_adds_pairs_but_never_a_voxel_with_itself() -> None:
    a, b = random_voxels([1, 2], 0), random_voxels([3, 4], 1)
    assert float(label_contrast(a, b, TAU, within=True)) == 0.0
    a = random_voxels([1, 1, 2], 0)
    assert float(label_contrast(a, b, TAU, within=True)) > 0.0
