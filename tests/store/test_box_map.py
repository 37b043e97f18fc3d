"""Boxes as a label map: voxel by voxel, however it is cut, and in views."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.store.crops import BOXES, BoxMap, read_box
from homolog.views.view import ViewSpec, check_specs
from memory_store import MemoryStore

SHAPE = (7, 20, 24)
FOUND: tuple[dict[str, Any], ...] = (
    {"label": "Nodule", "min": [1.0, 3.4, 5.0], "max": [3.0, 9.6, 11.0]},
    {"label": "mass", "min": [2.0, 2.0, 2.0], "max": [7.0, 15.0, 20.0]},
    {"label": "scar", "min": [0.0, 0.0, 0.0], "max": [1.0, 2.0, 2.0]},
)
NAMES = ("mass", "nodule")


def by_hand() -> np.ndarray:
    """Where each voxel's centre is; the nodule, smaller, lies on the mass."""
    centres = np.indices(SHAPE).transpose(1, 2, 3, 0) + 0.5
    expected = np.full(SHAPE, BOXES)
    for value, box in ((BOXES + 1, FOUND[1]), (BOXES + 2, FOUND[0])):
        inside = (centres >= box["min"]) & (centres < box["max"])
        expected[inside.all(-1)] = value
    return expected


def test_inside_is_where_the_centre_of_a_voxel_is() -> None:
    drawn = BoxMap(FOUND, NAMES, SHAPE)[tuple(slice(None) for _ in SHAPE)]
    np.testing.assert_array_equal(drawn, by_hand())
    assert set(np.unique(drawn)) == {BOXES, BOXES + 1, BOXES + 2}


@pytest.mark.parametrize(
    ("start", "size"), [((2, 4, 6), (3, 5, 4)), ((-2, -1, 15), (20, 5, 20))]
)
def test_a_part_is_a_part_of_the_whole(start: tuple, size: tuple) -> None:
    whole = by_hand().astype(np.int16)
    expected = read_box(whole, start, size, -1)
    np.testing.assert_array_equal(
        read_box(BoxMap(FOUND, NAMES, SHAPE), start, size, -1), expected
    )


def test_a_box_thinner_than_a_voxel_is_not_lost() -> None:
    thin = {"min": [3.1, 4.6, 5.0], "max": [3.2, 5.4, 6.0]}
    drawn = BoxMap([thin], ["box"], SHAPE)[tuple(slice(None) for _ in SHAPE)]
    assert np.argwhere(drawn == BOXES + 1).tolist() == [[3, 5, 5]]


def cases_of(*kinds: str) -> list[CaseRef]:
    """A case per kind: ``boxes``, ``labels``, ``both`` or ``none``."""
    store = MemoryStore()
    rng = np.random.default_rng(0)
    cases = []
    for kind in kinds:
        label = np.ones(SHAPE) if kind in ("labels", "both") else None
        case = store.add(
            rng.integers(-900, 900, (1, *SHAPE)), Affine.of((3.0, 1.0, 1.5)), label
        )
        boxes = FOUND if kind in ("boxes", "both") else ()
        card = dataclasses.replace(case.card, boxes=boxes)
        cases.append(CaseRef(store, card))  # type: ignore[arg-type]
    return cases


def test_boxes_turn_with_the_view() -> None:
    spec = ViewSpec(
        size=(4, 12, 12), count=2, rotate_deg=(40.0, 20.0, 0.0), scale=(0.8, 1.3),
        labels=True, boxes=NAMES,
    )  # fmt: skip
    (case,) = cases_of("boxes")
    feed = Feed([case], {"view": spec}, batch_size=6, seed=3, threads=0)
    view = feed.views(feed.batch(0), "cpu")["view"]
    assert view.label is not None
    places = torch.stack(
        torch.meshgrid(*(torch.arange(n) for n in spec.size), indexing="ij"), -1
    ).double()
    turned = view.affine[:, :, None, None, None, :3, :3] @ places[..., None]
    world = turned[..., 0] + view.affine[:, :, None, None, None, :3, 3]
    voxel = case.card.affine.inverse().apply(world.numpy().reshape(-1, 3))
    nearest = np.rint(voxel).astype(int)
    inside = ((nearest >= 0) & (nearest < SHAPE)).all(1)
    # rounding may go either way between two voxels, and at the border of the scan
    sure = (np.abs(voxel - nearest) < 0.49).all(1)
    seen = view.label.numpy().reshape(-1)
    expected = by_hand()[tuple(nearest[inside & sure].T)]
    np.testing.assert_array_equal(seen[inside & sure], expected)
    assert (seen[~inside & sure] == -1).all()
    assert {BOXES, BOXES + 1, BOXES + 2} <= set(seen.tolist())


def test_boxes_stand_in_where_there_is_no_label_map() -> None:
    cases = cases_of("boxes", "labels", "both", "none")
    spec = ViewSpec(size=(3, 8, 8), labels=True, boxes=NAMES)
    for boxes, expected in ((NAMES, [True, False, False, False]), ((), [False] * 4)):
        asked = dataclasses.replace(spec, boxes=boxes)
        feed = Feed(cases, {"view": asked}, batch_size=4, seed=0, threads=0)
        view = feed.views(feed.batch(0), "cpu")["view"]
        assert view.label is not None
        is_box = (view.label >= BOXES).flatten(1).any(1)
        assert is_box[view.case.argsort()].tolist() == expected
        known = (view.label >= 0).flatten(1).any(1)[view.case.argsort()].tolist()
        assert known == [bool(boxes), True, True, False]


def test_boxes_that_cannot_be_shown_are_refused() -> None:
    spec = ViewSpec(size=(3, 8, 8))
    with pytest.raises(ValueError, match="boxes without labels"):
        check_specs({"view": dataclasses.replace(spec, boxes=NAMES)})
    labelled = dataclasses.replace(spec, labels=True)
    with pytest.raises(ValueError, match="the same boxes"):
        check_specs({"a": labelled, "b": dataclasses.replace(labelled, boxes=NAMES)})
