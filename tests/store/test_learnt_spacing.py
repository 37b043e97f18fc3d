"""The voxel size a model learnt at: what is kept, and what is brought to it."""

from dataclasses import replace

import numpy as np
import pytest

from each import each
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.model_files.card import learnt_of
from homolog.scans.volume import Volume
from homolog.store.learnt_spacing import (
    AGREE,
    KEY,
    Learnt,
    LearntSpacing,
    other_size_note,
    sizes_note,
)
from homolog.store.preprocess import Preprocessing, prepare_volume

ONE = LearntSpacing((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
WIDE = LearntSpacing((2.0, 0.5, 0.5), (5.0, 1.0, 1.0))
SOLID = (9, 9, 9)


def scan_of(spacing, shape=(10, 12, 14), modality="MR", **meta):
    values = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    return Volume(values, Affine.of(spacing), "scan", modality, meta)


@each(
    "learnt, own, target",
    [
        (ONE, (1.0, 1.0, 1.0), None),
        (ONE, (1.0, 1.0000002, 0.9999), None),  # as headers round
        (ONE, (1.0 + 0.9 * AGREE, 1.0, 1.0), None),
        (ONE, (3.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        (ONE, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
        (ONE, (3.0, 1.02, 1.0), (1.0, 1.02, 1.0)),  # what agrees stays as it is
        (WIDE, (3.0, 0.7, 0.7), None),
        (WIDE, (8.0, 0.7, 0.2), (5.0, 0.7, 0.5)),
        (ONE.planar(), (8.0, 2.0, 1.0), (8.0, 1.0, 1.0)),
    ],
)
def test_only_sizes_that_were_not_learnt_from_change(learnt, own, target):
    assert learnt.target_mm(own, SOLID) == target
    assert LearntSpacing.from_dict(learnt.to_dict()) == learnt


def test_voxels_far_from_those_learnt_from_are_told_or_refused():
    known = Learnt(ONE)
    assert known.far((1.0, 1.0, 2.4), SOLID) is None
    thick = known.far((3.0, 1.0, 1.0), SOLID)
    assert (thick.axis, thick.factor, thick.hides) == (0, 3.0, False)
    assert "voxels of 3 mm along z, 3 times coarser" in thick.text
    fine = known.far((0.05, 1.0, 1.0), SOLID)
    assert not fine.hides
    assert "is its header right" in fine.text
    assert known.far((10.0, 1.0, 1.0), SOLID).hides
    assert known.far((10.0, 1.0, 1.0), (1, 9, 9)) is None  # a single slice
    assert known.planar().far((10.0, 1.0, 1.0), SOLID) is None
    # what counts is what was scanned, not what it was resampled to
    prepared = Learnt(ONE, scanned=LearntSpacing((1.0, 1.0, 1.0), (8.0, 1.0, 1.0)))
    assert prepared.far((10.0, 1.0, 1.0), SOLID) is None
    recipe = Preprocessing()
    notes = prepare_volume(scan_of((3.0, 1.0, 1.0)), recipe, known).note
    assert "3 times coarser" in notes
    with pytest.raises(UnusableInput, match="10 times coarser than any the model"):
        prepare_volume(scan_of((10.0, 1.0, 1.0)), recipe, known)
    with pytest.raises(UnusableInput, match="10 times coarser"):
        prepare_volume(
            scan_of((10.0, 1.0, 1.0)), Preprocessing(spacing_mm=(1.0, 1.0, 1.0)), known
        )
    prepare_volume(scan_of((10.0, 1.0, 1.0), modality="XR"), recipe, known)


def test_the_range_of_the_scans_themselves_is_kept(phantom_store):
    cards = phantom_store.cards
    assert LearntSpacing.of_originals(cards) == LearntSpacing.of_scans(
        [scan_of(c.original["affine"].spacing_mm, c.original["shape"]) for c in cards]
    )


def test_a_single_slice_changes_in_its_plane_alone():
    assert ONE.target_mm((7.0, 0.5, 0.5), (1, 64, 64)) == (7.0, 1.0, 1.0)


def test_the_bounds_are_those_of_the_cases(phantom_store):
    cards = phantom_store.cards
    learnt = LearntSpacing.of_cases(cards)
    assert learnt.smallest == learnt.largest == pytest.approx((8.0, 8.0, 8.0))
    thick = replace(cards[0], affine=cards[0].affine @ Affine.scale((2.0, 1.0, 1.0)))
    both = LearntSpacing.of_cases([*cards, thick])
    assert both.largest == pytest.approx((16.0, 8.0, 8.0))
    assert "8 x 8 x 8 to 16 mm (x, y, z)" in sizes_note([*cards, thick])
    assert sizes_note(cards) == ""
    told = other_size_note(Learnt(learnt), [*cards, thick])
    assert "1 of 9 cases have another voxel size" in told
    assert other_size_note(Learnt(learnt), cards) == ""


def test_pictures_and_projections_have_pixels_alone(phantom_store):
    card = phantom_store.cards[0]
    pixels = [replace(card, source="a/b.PNG"), replace(card, modality="XR")]
    assert LearntSpacing.of_cases(pixels) is None
    learnt = Learnt(ONE)
    recipe = Preprocessing()
    for scan in (
        scan_of((3.0, 3.0, 3.0), modality="XR"),
        scan_of((3.0, 3.0, 3.0), kind="image2d"),
    ):
        assert prepare_volume(scan, recipe, learnt).grid.is_identity
    assert not prepare_volume(scan_of((3.0,) * 3), recipe, learnt).grid.is_identity


def test_scans_of_the_learnt_size_are_prepared_bit_for_bit_as_before():
    scan = scan_of((1.0, 1.0004, 0.99))
    before = prepare_volume(scan, Preprocessing())
    now = prepare_volume(scan, Preprocessing(), Learnt(ONE))
    assert np.array_equal(before.data, now.data)
    assert now.affine == before.affine


def test_a_size_that_the_recipe_names_goes_before_what_was_learnt():
    scan = scan_of((3.0, 3.0, 3.0))
    prepared = prepare_volume(scan, Preprocessing(spacing_mm=(2.0,) * 3), Learnt(ONE))
    assert prepared.affine.spacing_mm == pytest.approx((2.0, 2.0, 2.0))


def test_too_many_voxels_at_the_learnt_size_are_told(monkeypatch):
    monkeypatch.setattr("homolog.store.preprocess.MAX_VOXELS", 10_000)
    tiny = LearntSpacing((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UnusableInput, match="the size the model learnt at"):
        prepare_volume(scan_of((3.0, 3.0, 3.0)), Preprocessing(), Learnt(tiny))


def test_what_cards_tell(tmp_path):
    def card(**told):
        return {"kind": "encoder", "backbone": {}, "preprocessing": {}, **told}

    assert learnt_of(card(**{KEY: ONE.to_dict()}), None) == Learnt(ONE)
    assert learnt_of(card(**{KEY: None}), None) == Learnt()
    named = card(preprocessing={"spacing_mm": [2.0, 2.0, 2.0]})
    assert learnt_of(named, None) == Learnt()
    old = card(spacing_mm=[[2.0, 1.0, 0.5], [5.0, 0.5, 1.0]])
    assert learnt_of(old, None) == Learnt(WIDE)
    assert learnt_of(card(modalities={"XR": 4}), None) == Learnt()
    assert learnt_of({"kind": "few_voxels", "preprocessing": {}}, None) == Learnt()
    for unknown in (card(), {"kind": "encoder", "source": "weights.pt"}):
        told = learnt_of(unknown, tmp_path)
        assert told.spacing is None
        assert "does not say at which voxel size it learnt" in told.remark
    for odd in (
        {"smallest": [1, 1]},
        "x",
        {"smallest": [1, 1, -1], "largest": [1] * 3},
    ):
        with pytest.raises(UnusableInput, match="damaged"):
            learnt_of(card(**{KEY: odd}), tmp_path)
