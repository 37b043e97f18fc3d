"""Groups that show the same, partners of one data set, depths and label spaces."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from each import each
from homolog.events import drain
from homolog.feed.batches import Feed
from homolog.feed.partners import SameDataset
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.store.pairs import write_depths
from homolog.store.store import Store
from homolog.views.view import Elsewhere, Intensity, Same, ViewSpec, check_specs
from memory_store import MemoryStore, random_cases

SIZE = (8, 8, 8)
CUT = ViewSpec(SIZE, rotate_deg=(20, 20, 20), elastic_mm=1.0, labels=True)
NOISY = Intensity(noise_probability=1.0, noise_std=(0.5, 0.5), gamma_probability=1.0)


def feed(specs: dict[str, ViewSpec], cases: list[CaseRef], **more: object) -> Feed:
    return Feed(cases, specs, batch_size=3, seed=0, threads=0, **more)  # type: ignore[arg-type]


def cases(count: int = 5) -> list[CaseRef]:
    return random_cases([(16, 18, 20)] * count, Affine.of((1.5, 1.0, 1.0)))


@pytest.mark.parametrize("place", [CUT.place, Elsewhere()])
def test_the_same_is_shown_voxel_by_voxel(place: object) -> None:
    """Paper: MixCL views."""
    specs = {
        "crop": dataclasses.replace(CUT, place=place, count=2),
        "plain": ViewSpec(SIZE, place=Same("crop"), count=2),
        "noisy": ViewSpec(SIZE, place=Same("crop"), intensity=NOISY, count=2),
    }
    made = feed(specs, cases())
    views = made.views(made.batch(0), "cpu")
    crop, plain, noisy = (views[name] for name in specs)
    assert torch.equal(plain.image, crop.image)
    assert torch.equal(noisy.affine, crop.affine)
    assert torch.equal(noisy.valid, crop.valid)
    assert not torch.equal(noisy.image, crop.image)
    assert crop.label is not None
    assert noisy.label is None
    # and it is what the group would show alone
    alone = feed({"crop": specs["crop"]}, cases())
    assert torch.equal(alone.views(alone.batch(0), "cpu")["crop"].image, crop.image)


@each(
    "specs, words",
    [
        ({"a": ViewSpec(SIZE, place=Same("b")), "b": CUT}, "must come earlier"),
        ({"b": CUT, "a": ViewSpec((8, 8, 4), place=Same("b"))}, "size"),
        ({"b": CUT, "a": ViewSpec(SIZE, place=Same("b"), count=2)}, "count"),
        (
            {
                "b": dataclasses.replace(CUT, intensity=NOISY),
                "a": ViewSpec(SIZE, place=Same("b")),
            },
            "intensity changes",
        ),
    ],
)
def test_what_cannot_show_the_same_is_refused(
    specs: dict[str, ViewSpec], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        check_specs(specs)


def test_shape_and_bending_happen_as_often_as_asked() -> None:
    spec = dataclasses.replace(CUT, shape_probability=0.5, elastic_probability=0.5)
    made = feed({"crop": spec}, cases())
    turned, bent = [], []
    for step in range(40):
        draw = made.batch(step).draws["crop"]
        linear = draw.affine[:, 0, :3, :3]
        plain = torch.diag(torch.tensor([1.5, 1.0, 1.0]).double())
        turned += [not torch.allclose(m, plain) for m in linear]
        assert draw.displacement_mm is not None
        bent += [bool(field.any()) for field in draw.displacement_mm]
    assert 0.35 < np.mean(turned) < 0.65
    assert 0.35 < np.mean(bent) < 0.65
    assert 0.1 < np.mean(np.array(turned) & np.array(bent)) < 0.4  # independent


def test_partners_come_from_the_same_data_set() -> None:
    """Paper: MixCL views."""
    first, second = cases(4), cases(3)
    other = MemoryStore()
    other.path = Path("other")
    mixed = first + [CaseRef(other, c.card) for c in second]  # type: ignore[arg-type]
    pairing = SameDataset(mixed, 0.5)
    rng = np.random.default_rng(0)
    for case in range(len(mixed)):
        drawn = [pairing.draw(case, rng)[1] for _ in range(400)]
        expected = range(4) if case < 4 else range(4, 7)
        assert set(drawn) == set(expected)
        counts = np.bincount(drawn, minlength=7)
        assert 150 < counts[case] < 250
        rest = [counts[i] for i in expected if i != case]
        assert max(rest) < 1.6 * min(rest)
    assert SameDataset(mixed[:1], 0.0).draw(0, rng) == (None, 0, None)


def test_the_partner_s_crop_is_cut_from_its_scan_and_labels_know_their_space() -> None:
    specs = {"crop": CUT, "other": ViewSpec(SIZE, place=Elsewhere(partner=True))}
    some = cases(6)
    other = MemoryStore()
    other.path = Path("other")
    other.images = some[0].store.images  # type: ignore[attr-defined]
    other.labels = some[0].store.labels  # type: ignore[attr-defined]
    mixed = some[:3] + [CaseRef(other, c.card) for c in some[3:]]  # type: ignore[arg-type]
    made = feed(specs, mixed, partners=SameDataset(mixed, 0.0))
    for step in range(4):
        views = made.views(made.batch(step), "cpu")
        crop, theirs = views["crop"], views["other"]
        assert crop.label_space is not None
        assert theirs.label_space is not None
        assert (crop.case != theirs.case).all()
        assert torch.equal(crop.label_space, (crop.case >= 3).long())
        assert torch.equal(crop.label_space, theirs.label_space)


def test_depths_come_with_the_crop(phantom_store: Store, tmp_path: Path) -> None:
    without = shutil.ignore_patterns("depth.*")  # another test may have made them
    shutil.copytree(phantom_store.path, tmp_path / "store", ignore=without)
    store = Store.open(tmp_path / "store")
    spec = ViewSpec((16, 16, 16), labels=True, depths=True)
    refs = [CaseRef(store, card) for card in store.cards]
    before = feed({"crop": spec}, refs).batch(0)
    assert not any(b.depth is not None and b.depth.any() for b in before.blocks)
    drain(write_depths([(store, card) for card in store.cards]))
    made = feed({"crop": spec}, refs)
    view = made.views(made.batch(0), "cpu")["crop"]
    assert view.label is not None
    assert view.depth is not None
    assert (view.depth[view.label <= 0] == 0).all()
    assert view.depth[view.label > 0].max() >= 1
