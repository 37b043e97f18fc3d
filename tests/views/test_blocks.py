"""Which boxes of the scan are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homolog.geometry.affine import Affine
from homolog.geometry.sampling import displacement_at
from homolog.views.generate import block_affine, boxes_of, share_blocks
from homolog.views.plan import Scan, plan_views
from homolog.views.view import Anchor, Elsewhere, ViewSpec, Whole, Within

SCAN = Scan(Affine.of((2.0, 1.0, 1.0), (10.0, 20.0, 30.0)), (40, 60, 70))


def _place(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, np.array(SCAN.shape) - 1)


def _boxes(specs: dict[str, ViewSpec], sample: int = 0) -> list:
    plans = plan_views(specs, SCAN, _place, seed=0, sample=sample)
    shares = share_blocks(specs)
    return [boxes_of(share, plans, specs, SCAN) for share in shares]


def test_groups_that_overlap_share_a_box_and_others_do_not() -> None:
    specs = {
        "a": ViewSpec((8,) * 3),
        "b": ViewSpec((8,) * 3, place=Within("a"), labels=True),
        "c": ViewSpec((8,) * 3, place=Elsewhere(), count=3),
        "d": ViewSpec((8,) * 3, place=Within("c"), count=2),
        "e": ViewSpec((8,) * 3, spacing_mm=(9.0,) * 3),
        "f": ViewSpec((8,) * 3, place=Whole()),
    }
    shares = share_blocks(specs)
    assert [s.groups for s in shares] == [("a", "b"), ("c",), ("d",), ("e",), ("f",)]
    assert [s.per_view for s in shares] == [False, True, False, False, False]
    assert [s.labels for s in shares] == [True, False, False, False, False]
    assert [len(boxes) for boxes in _boxes(specs)] == [1, 3, 1, 1, 1]


def test_a_box_at_rest_is_the_view_and_one_voxel() -> None:
    for sample in range(20):
        ((box,),) = _boxes({"a": ViewSpec((16, 20, 24))}, sample)
        assert all(n <= b <= n + 2 for n, b in zip((16, 20, 24), box.size, strict=True))
        assert box.pool == (1, 1, 1)


@pytest.mark.parametrize("place", [Anchor(), Elsewhere(), Whole()])
def test_a_box_lies_in_the_scan_and_holds_at_least_a_voxel(place: object) -> None:
    spec = ViewSpec(
        (16,) * 3,
        place=place,
        translate=(9.0,) * 3,
        rotate_deg=(90,) * 3,
        scale=(0.3, 2),
    )  # type: ignore[arg-type]
    for sample in range(50):
        ((box,),) = _boxes({"a": spec}, sample)
        assert min(box.start) >= 0
        assert min(box.size) >= 1
        stop = np.array(box.start) + box.size
        assert (stop <= SCAN.shape).all()


def test_a_view_of_much_larger_voxels_reads_means() -> None:
    specs = {"a": ViewSpec((6,) * 3, spacing_mm=(11.0, 4.9, 2.9))}
    ((box,),) = _boxes(specs)
    assert box.pool == (5, 3, 1)  # odd, and no larger than the view's own step
    affine = block_affine(box, SCAN)
    np.testing.assert_allclose(affine.spacing_mm, (10.0, 3.0, 1.0))
    first = SCAN.affine.crop(box.start).apply((2, 1, 0))
    np.testing.assert_allclose(affine.origin_mm, first)


def test_a_box_holds_every_place_of_its_views_with_their_displacement() -> None:
    specs = {
        "a": ViewSpec((12, 14, 16), rotate_deg=(30,) * 3, elastic_mm=5.0),
        "b": ViewSpec((6,) * 3, place=Within("a"), count=2, elastic_mm=5.0),
    }
    tight = 0
    for sample in range(20):
        plans = plan_views(specs, SCAN, _place, seed=0, sample=sample)
        ((box,),) = _boxes(specs, sample)
        places = []
        for name, spec in specs.items():
            index = np.stack(
                np.meshgrid(*[np.arange(n) for n in spec.size], indexing="ij")
            )
            for affine, field in zip(
                plans[name].affine, plans[name].displacement_mm, strict=True
            ):
                world = Affine(affine).apply(index.reshape(3, -1).T)
                moved = displacement_at(torch.from_numpy(field), spec.size)
                world += moved.numpy().reshape(3, -1).T
                places.append(SCAN.affine.inverse().apply(world))
        touched = np.clip(np.concatenate(places), 0, np.array(SCAN.shape) - 1)
        stop = np.array(box.start) + box.size - 1
        assert (touched.min(0) >= np.array(box.start) - 1e-4).all()
        assert (touched.max(0) <= stop + 1e-4).all()
        tight += int((np.array(box.size) < np.array(SCAN.shape)).all())
    assert tight > 10
