"""A-T10: crops of two scans lie on matching places, whole and padded at the border."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homolog.feed.batches import Feed
from homolog.feed.partners import Partners
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.views.view import Matched, Views, ViewSpec
from memory_store import MemoryStore

SIZE = (8, 8, 8)
SPECS = {
    "query": ViewSpec(SIZE, place=Matched()),
    "query_strong": ViewSpec(SIZE, place=Matched(), rotate_deg=(10, 0, 0)),
    "key": ViewSpec(SIZE, place=Matched(partner=True)),
}
HOME = Affine.of((2.0, 1.0, 1.5), (50.0, -100.0, 20.0))


def smooth(affine: Affine, shape: tuple[int, int, int], moved_mm=(0, 0, 0)):
    """A scene of waves as a scan sees it, int16 (1, D, H, W)."""
    index = np.indices(shape).reshape(3, -1).T
    mm = affine.apply(index) - np.array(moved_mm)
    values = 300 * np.sin(mm @ np.array([0.15, 0.11, 0.13])) + 100 * np.cos(
        mm @ np.array([0.05, -0.2, 0.1])
    )
    return np.rint(values).astype(np.int16).reshape(1, *shape)


def feed_of(
    cases: list[CaseRef],
    rows: list[tuple[int, np.ndarray, int, np.ndarray]],
    batch_size: int = 1,
) -> Feed:
    """Cases and (case, mm, partner, its mm)."""
    table = []
    for i in range(len(cases)):
        own = [np.array([*a, float(b), *c]) for k, a, b, c in rows if k == i]
        table.append(np.stack(own) if own else np.zeros((0, 7)))
    return Feed(
        cases, SPECS, batch_size=batch_size, seed=0, partners=Partners(table), threads=0
    )


def first(feed: Feed, case: int) -> Views:
    """Views of a batch of one that begins at a case."""
    for step in range(20):
        batch = feed.batch(step)
        if batch.case[0] == case:
            return feed.views(batch, "cpu")
    raise AssertionError("that case never came")


def test_a_t10a_the_same_scan_twice_gives_identical_crops() -> None:
    store = MemoryStore()
    scan = smooth(HOME, (30, 34, 32))
    cases = [store.add(scan, HOME), store.add(scan, HOME)]
    mm = HOME.apply(np.array([14.3, 17.8, 15.1]))
    views = first(feed_of(cases, [(0, mm, 1, mm)]), 0)
    # cut from boxes of other sizes, so equal up to rounding
    torch.testing.assert_close(views["query"].image, views["key"].image)
    assert views["query"].case.tolist() == [0]
    assert views["key"].case.tolist() == [1]
    middle = views["query"].affine[0, 0].numpy() @ [3.5, 3.5, 3.5, 1]
    np.testing.assert_allclose(middle[:3], mm)


def test_a_t10b_a_shifted_copy_gives_the_same_crop() -> None:
    store = MemoryStore()
    steps = np.array([3, -2, 5])
    moved = HOME.matrix[:3, :3] @ steps
    cases = [
        store.add(smooth(HOME, (30, 34, 32)), HOME),
        store.add(smooth(HOME, (30, 34, 32), moved), HOME),
    ]
    mm = HOME.apply(np.array([13.0, 18.0, 14.0]))
    views = first(feed_of(cases, [(0, mm, 1, mm + moved)]), 0)
    torch.testing.assert_close(
        views["query"].image, views["key"].image, atol=0.01, rtol=0
    )
    apart = views["key"].affine - views["query"].affine
    np.testing.assert_allclose(apart[0, 0, :3, 3].numpy(), moved, atol=1e-9)


def test_a_t10c_one_scene_at_two_spacings_agrees_at_a_common_spacing() -> None:
    """Paper: Alice 4.2, pairs."""
    store = MemoryStore()
    fine = Affine.of((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    coarse = Affine.of((1.7, 1.3, 1.4), (-3.0, 2.0, 1.0))
    cases = [
        store.add(smooth(fine, (50, 50, 50)), fine),
        store.add(smooth(coarse, (34, 38, 36)), coarse),
    ]
    mm = np.array([24.0, 25.5, 26.0])
    common = {
        name: ViewSpec(SIZE, place=Matched(partner=name == "key"), spacing_mm=(2, 2, 2))
        for name in ("query", "key")
    }
    table = Partners([np.array([[*mm, 1.0, *mm]]), np.zeros((0, 7))])
    feed = Feed(cases, common, batch_size=1, seed=0, partners=table, threads=0)
    views = first(feed, 0)
    torch.testing.assert_close(views["query"].affine, views["key"].affine)
    error = (views["query"].image - views["key"].image).abs()
    assert error.max() < 0.12  # of values that span about 4
    assert views["query"].image.std() > 0.5


def test_a_t10d_a_place_near_the_border_gives_a_whole_crop_with_padding() -> None:
    store = MemoryStore()
    scan = smooth(HOME, (30, 34, 32))
    cases = [store.add(scan, HOME), store.add(scan, HOME)]
    inner = HOME.apply(np.array([14.5, 16.5, 16.5]))
    corner = HOME.apply(np.array([0.5, 16.5, 31.5]))
    views = first(feed_of(cases, [(0, inner, 1, corner)]), 0)
    key = views["key"]
    assert key.image.shape == (1, 1, 1, *SIZE)
    assert views["query"].valid.all()
    valid = key.valid[0, 0]
    assert valid.sum() == 5 * 8 * 4  # the rest lies outside the scan
    middle = key.affine[0, 0].numpy() @ [3.5, 3.5, 3.5, 1]
    np.testing.assert_allclose(middle[:3], corner)
    outside = key.image[0, 0, 0][~valid]
    assert outside.unique().numel() == 1
    torch.testing.assert_close(outside[0], torch.tensor((-300.0 - 50) / 200))


def test_partners_are_read_with_their_own_levels_and_labels_stay_home() -> None:
    store = MemoryStore()
    scan = smooth(HOME, (30, 34, 32))
    first_case, second = store.add(scan, HOME), store.add(scan, HOME)
    card = second.card
    brighter = CaseRef(
        second.store, type(card)(**{**vars(card), "offset": card.offset + 40.0})
    )
    mm = HOME.apply(np.array([14.0, 17.0, 16.0]))
    views = first(feed_of([first_case, brighter], [(0, mm, 1, mm)]), 0)
    gap = views["key"].image - views["query"].image
    inside = (views["key"].image < 1.7) & (views["query"].image > -1.7)
    torch.testing.assert_close(gap[inside], torch.full_like(gap[inside], 0.2))


def test_a_case_without_partner_is_paired_with_itself() -> None:
    store = MemoryStore()
    cases = [store.add(smooth(HOME, (30, 34, 32), (k, 0, 0)), HOME) for k in (0, 9)]
    mm = HOME.apply(np.array([14.0, 17.0, 16.0]))
    feed = feed_of(cases, [(0, mm, 1, mm)], batch_size=2)
    views = feed.views(feed.batch(0), "cpu")
    partner = dict(zip(views["query"].case.tolist(), views["key"].case.tolist(),
                       strict=True))  # fmt: skip
    assert partner == {0: 1, 1: 1}
    row = views["query"].case.tolist().index(1)
    torch.testing.assert_close(views["query"].image[row], views["key"].image[row])


def test_without_a_table_both_sides_are_the_samples_own_place() -> None:
    store = MemoryStore()
    cases = [store.add(smooth(HOME, (30, 34, 32)), HOME)]
    feed = Feed(cases, SPECS, batch_size=2, seed=0, threads=0)
    views = feed.views(feed.batch(3), "cpu")
    # cut from boxes of other sizes, so equal up to rounding
    torch.testing.assert_close(views["query"].image, views["key"].image)
    assert not torch.equal(views["query"].image, views["query_strong"].image)


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_with_partners_are_a_function_of_the_step(threads: int) -> None:
    store = MemoryStore()
    cases = [store.add(smooth(HOME, (30, 34, 32), (k, 0, 0)), HOME) for k in range(3)]
    rng = np.random.default_rng(0)
    rows = [
        (a, HOME.apply(rng.uniform(5, 25, 3)), b, HOME.apply(rng.uniform(5, 25, 3)))
        for a in range(3)
        for b in range(3)
        if a != b
    ]
    feed = feed_of(cases, rows, batch_size=3)
    feed.threads = threads
    for step, batch in zip(range(2, 5), feed.stream(2, 5), strict=True):
        again = feed.batch(step)
        assert torch.equal(batch.partner, again.partner)
        a, b = feed.views(batch, "cpu"), feed.views(again, "cpu")
        assert all(torch.equal(a[n].image, b[n].image) for n in SPECS)
