"""The real path: a store, drawn views, boxes read, views made."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from homolog.errors import JobError, UnusableInput
from homolog.feed.batches import Batch, CaseOrder, Feed, TurnOrder
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.geometry.correspondence import token_centres, token_matches
from homolog.scans.volume import LabelMap, Volume, closest_canonical, reorder_axes
from homolog.store.store import Store
from homolog.views.view import Elsewhere, Intensity, View, ViewSpec, Whole, Within
from memory_store import MemoryStore, normalised, random_cases

HOME = Affine.of((2.0, 1.0, 1.5), (500.0, -1000.0, 20.0))
ALL_CHANGES = Intensity(
    **{
        f"{name}_probability": 0.5
        for name in (
            "shift",
            "scale",
            "gamma",
            "noise",
            "blur",
            "contrast",
            "low_resolution",
            "curve",
            "regions",
            "bias",
        )
    }
)
RICH = {
    "plain": ViewSpec((12, 12, 12), labels=True),
    "warped": ViewSpec(
        (12, 12, 12), count=2, rotate_deg=(20, 20, 20), scale=(0.8, 1.2),
        translate=(0.2, 0.2, 0.2), flip=(0.5, 0.5, 0.5), elastic_mm=1.0, labels=True,
        intensity=ALL_CHANGES,
    ),
    "near": ViewSpec((6, 6, 6), place=Within("plain"), count=2, intensity=ALL_CHANGES),
    "far": ViewSpec((8, 8, 8), place=Elsewhere(), count=3, rotate_deg=(30, 0, 0)),
    "slice": ViewSpec((1, 16, 16), place=Elsewhere(), labels=True, elastic_mm=1.0),
    "whole": ViewSpec((8, 8, 8), place=Whole(), labels=True),
}  # fmt: skip
SHAPES = [(20, 24, 22), (16, 30, 25), (18, 18, 18), (1, 40, 36)]


def _same(a: Batch, b: Batch) -> bool:
    if a.ids != b.ids or a.step != b.step:
        return False
    pairs = [(x.image, y.image) for x, y in zip(a.blocks, b.blocks, strict=True)]
    pairs += [(a.draws[n].affine, b.draws[n].affine) for n in a.draws]
    drawn = all(
        np.array_equal(a.draws[n].intensity.value, b.draws[n].intensity.value)
        and np.array_equal(a.draws[n].intensity.key, b.draws[n].intensity.key)
        for n in a.draws
    )
    return drawn and all(torch.equal(x, y) for x, y in pairs)


def _same_views(a: View, b: View, atol: float = 0.0) -> None:
    torch.testing.assert_close(a.image, b.image, atol=atol, rtol=0)
    assert torch.equal(a.affine, b.affine)
    assert torch.equal(a.valid, b.valid)
    assert (a.label is None) == (b.label is None)
    if a.label is not None and b.label is not None:
        assert torch.equal(a.label, b.label)


@pytest.fixture
def feed() -> Feed:
    return Feed(random_cases(SHAPES, HOME), RICH, batch_size=3, seed=7, balance=0.5)


def test_every_group_has_the_shape_and_kind_it_was_asked_for(feed: Feed) -> None:
    batch = feed.batch(0)
    views = feed.views(batch, "cpu")
    assert list(views) == list(RICH)
    for name, spec in RICH.items():
        view = views[name]
        assert view.image.shape == (3, spec.count, 1, *spec.size)
        assert view.image.dtype == torch.float32
        assert view.affine.dtype == torch.float64
        assert view.valid.shape == (3, spec.count, *spec.size)
        assert (view.label is not None) == spec.labels
        assert (view.displacement_mm is not None) == (spec.elastic_mm > 0)
        assert torch.equal(view.case, batch.case)
        low = normalised(np.array(-1e6))
        outside = view.image[:, :, 0][~view.valid]
        assert (outside == np.float32(low)).all()
        if view.label is not None:
            assert (view.label[~view.valid] == -1).all()
            assert set(view.label.unique().tolist()) <= {-1, 0, 1, 2, 3}
    assert all(block.image.dtype == torch.int16 for block in batch.blocks)


def test_every_view_knows_where_in_its_scan_it_lies(feed: Feed) -> None:
    views = feed.views(feed.batch(1), "cpu")
    for name, view in views.items():
        assert view.where is not None
        assert view.where.shape == (3, RICH[name].count, 3)
        for row, case in enumerate(view.case.tolist()):
            card = feed.cases[case].card
            middle = torch.tensor([[(n - 1) / 2 for n in view.size]])
            for affine, where in zip(view.affine[row], view.where[row], strict=True):
                mm = Affine(affine.numpy()).apply(middle.double().numpy())
                voxel = card.affine.inverse().apply(mm)[0]
                expected = (voxel + 0.5) / card.shape
                np.testing.assert_allclose(where, expected, atol=1e-6)
    # voxel 0 of a box is half a voxel in, and a whole scan is in its own middle
    whole = views["whole"].where
    np.testing.assert_allclose(whole[:, 0, 1:], 0.5, atol=1e-6)


def test_a_plain_view_is_the_stored_crop_normalised(feed: Feed) -> None:
    for step in range(3):
        batch = feed.batch(step)
        plain = feed.views(batch, "cpu")["plain"]
        for row, position in enumerate(batch.case.tolist()):
            case = feed.cases[position]
            inverse = case.card.affine.inverse()
            start = inverse.apply(plain.affine[row, 0, :3, 3].numpy())
            index = np.rint(start).astype(int)
            np.testing.assert_allclose(start, index, atol=1e-6)
            cells = np.stack(np.meshgrid(*[np.arange(12)] * 3, indexing="ij"))
            places = cells + index[:, None, None, None]
            shape = np.array(case.card.shape)[:, None, None, None]
            inside = ((places >= 0) & (places < shape)).all(0)
            assert np.array_equal(plain.valid[row, 0].numpy(), inside)
            z, y, x = np.clip(places, 0, shape - 1)
            image = normalised(case.store.image(case.card.id)[0][z, y, x])
            found = plain.image[row, 0, 0].numpy()
            np.testing.assert_allclose(found[inside], image[inside], atol=1e-4)
            label = np.asarray(case.store.label(case.card.id))[z, y, x]
            assert plain.label is not None
            assert np.array_equal(
                plain.label[row, 0].numpy(), np.where(inside, label, -1)
            )


def test_matched_tokens_show_the_same_voxels() -> None:
    """S-T4: 200 random affines through the whole path, read at token centres."""
    size, stride = (30, 30, 30), 5
    cells = np.stack(np.meshgrid(*[np.arange(30) // 5] * 3, indexing="ij"))
    tokens = np.ravel_multi_index(tuple(cells), (6, 6, 6))
    case = MemoryStore().add(tokens[None], HOME, tokens)
    warped = ViewSpec(
        size, rotate_deg=(30, 30, 30), scale=(0.8, 1.25), anisotropy=0.1,
        translate=(0.25, 0.25, 0.25), flip=(0.5, 0.5, 0.5), quarter_turns=True,
        spacing_mm=(1.5, 1.5, 1.5), labels=True,
    )  # fmt: skip
    specs = {"v": ViewSpec(size, labels=True), "w": warped}
    feed = Feed([case], specs, batch_size=20, seed=0)
    centres = token_centres(size, stride).long()
    matched = 0
    for step in range(10):
        views = feed.views(feed.batch(step), "cpu")
        label_v, label_w = views["v"].label, views["w"].label
        assert label_v is not None
        assert label_w is not None
        # the plain view is the scan itself: its tokens are those of the label
        assert np.array_equal(label_v[0, 0].numpy(), tokens)
        read = label_w[:, 0, centres[:, 0], centres[:, 1], centres[:, 2]]
        places = (views[name].affine.flatten(0, 1) for name in "vw")
        matches = token_matches(*places, size, stride)
        sample, n, m = torch.nonzero(matches, as_tuple=True)
        assert torch.equal(read[sample, m], n)
        matched += len(n)
    assert matched > 200 * 20


@pytest.mark.parametrize("handed", [1.0, -1.0])
def test_a_marked_voxel_keeps_its_place_through_store_crop_and_view(
    handed: float,
) -> None:
    """All 48 axis orders of an oblique, anisotropic scan, right and left handed."""
    tilt = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, handed]])
    shape, marked = (19, 21, 23), (11, 9, 8)
    spec = ViewSpec(
        (32, 32, 32), spacing_mm=(0.5, 0.5, 0.5), rotate_deg=(30, 30, 30), labels=True,
        flip=(0.5, 0.5, 0.5), quarter_turns=True, elastic_mm=0.0, translate=(0.1,) * 3,
    )  # fmt: skip
    store, places, cases = MemoryStore(), [], []
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            direction = np.zeros((3, 3))
            direction[axes, range(3)] = signs
            own = Affine.of((2.9, 1.2, 0.8), (-700.0, 1100.0, 30.0), tilt @ direction)
            label = np.zeros(shape, dtype=np.int16)
            label[marked] = 1
            image = np.where(label > 0, 700, -500).astype(np.int16)[None]
            canonical = closest_canonical(Volume(image, own))
            label = reorder_axes(
                LabelMap(label, own).data,
                canonical.meta["axes"],
                canonical.meta["flips"],
            )
            cases.append(store.add(canonical.data, canonical.affine, label))
            places.append(own.apply(marked))
    feed = Feed(cases, {"v": spec}, batch_size=48, seed=1, balance=1.0)
    batch = feed.batch(0)
    view = feed.views(batch, "cpu")["v"]
    assert sorted(batch.case.tolist()) == list(range(48))
    assert view.label is not None
    for row, position in enumerate(batch.case.tolist()):
        own = cases[position].card.affine
        found = np.argwhere(view.label[row, 0].numpy() == 1)
        world = Affine(view.affine[row, 0].numpy()).apply(found)
        offset = (world - places[position]) @ np.linalg.inv(own.direction).T
        # nothing but the voxel is marked
        assert (np.abs(offset) <= np.array(own.spacing_mm) / 2 + 1e-3).all()
        assert len(found) >= 10
        light = view.image[row, 0, 0].numpy() - normalised(np.array(-500.0))
        seen = np.argwhere(light > 0)
        weight = light[tuple(seen.T)]
        centre = Affine(view.affine[row, 0].numpy()).apply(seen).T @ weight
        np.testing.assert_allclose(centre / weight.sum(), places[position], atol=0.05)


def test_a_batch_is_a_pure_function_of_its_step() -> None:
    cases = random_cases(SHAPES, HOME)
    feed = Feed(cases, RICH, batch_size=3, seed=7, balance=0.5)
    again = Feed(cases, RICH, batch_size=3, seed=7, balance=0.5)
    later = again.batch(5)
    assert _same(feed.batch(5), later)
    assert not _same(feed.batch(4), later)
    other = Feed(cases, RICH, batch_size=3, seed=8, balance=0.5)
    assert not _same(other.batch(5), later)
    views, repeated = (f.views(later, "cpu") for f in (feed, again))
    for name in views:
        _same_views(views[name], repeated[name])


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_stream_gives_the_same_batches_in_order(threads: int) -> None:
    feed = Feed(random_cases(SHAPES, HOME), RICH, batch_size=2, seed=1, threads=threads)
    streamed = list(feed.stream(3, 10))
    assert [batch.step for batch in streamed] == list(range(3, 10))
    assert all(_same(batch, feed.batch(batch.step)) for batch in streamed)


def test_a_stream_runs_only_a_few_batches_ahead() -> None:
    made: list[int] = []

    class Counting(Feed):
        def batch(self, step: int, progress: float | None = None) -> Batch:
            made.append(step)
            return super().batch(step, progress)

    specs = {"v": ViewSpec((4, 4, 4))}
    feed = Counting(random_cases(SHAPES, HOME), specs, batch_size=1, seed=0, threads=2)
    stream = feed.stream(0, 1000)
    next(stream)
    next(stream)
    stream.close()
    assert len(made) <= 5


def test_ranks_share_out_the_samples_of_one_run() -> None:
    cases = random_cases([(16, 16, 16)] * 5, HOME)
    specs = {"v": RICH["warped"]}
    whole = Feed(cases, specs, batch_size=4, seed=3)
    halves = [
        Feed(cases, specs, batch_size=2, seed=3, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    for step in range(4):
        together = whole.views(whole.batch(step), "cpu")["v"]
        for rank, half in enumerate(halves):
            part = half.views(half.batch(step), "cpu")["v"]
            rows = slice(2 * rank, 2 * rank + 2)
            # blocks are filled up to another size: places round differently
            torch.testing.assert_close(
                part.image, together.image[rows], atol=2e-3, rtol=0
            )
            assert torch.equal(part.affine, together.affine[rows])
            assert torch.equal(part.case, together.case[rows])


def test_every_epoch_shows_every_case_once_in_a_new_order() -> None:
    feed = Feed(
        random_cases([(4, 4, 4)] * 7, HOME),
        {"v": ViewSpec((2, 2, 2))},
        batch_size=3,
        seed=0,
    )
    seen = [feed.case_of(sample) for sample in range(7 * 6)]
    epochs = [tuple(seen[7 * k : 7 * k + 7]) for k in range(6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > 3
    batches = [case for step in range(14) for case in feed.batch(step).case.tolist()]
    assert Counter(batches) == Counter(seen)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_of_a_case_names_it_where_the_batch_is_taken(threads: int) -> None:
    cases = random_cases([(8, 8, 8)] * 4, HOME)
    feed = Feed(
        cases, {"v": ViewSpec((4, 4, 4))}, batch_size=2, seed=0, threads=threads
    )
    broken = feed.cases[feed.case_of(5)].card.id
    del cases[0].store.images[broken]  # type: ignore[attr-defined]
    taken: list[Batch] = []
    with pytest.raises(JobError, match=broken):
        taken.extend(feed.stream(0, 10))
    first = next(s for s in range(20) if feed.cases[feed.case_of(s)].card.id == broken)
    assert [batch.step for batch in taken] == list(range(first // 2))


def test_unusable_input_of_a_case_stays_unusable_input() -> None:
    class Refusing(MemoryStore):
        def image(self, case: str) -> np.ndarray:
            raise UnusableInput("the image is gone.")

    case = Refusing().add(np.zeros((1, 4, 4, 4)), HOME)
    feed = Feed([case], {"v": ViewSpec((2, 2, 2))}, batch_size=1, seed=0)
    with pytest.raises(UnusableInput, match=r"case 'case_000': the image is gone"):
        feed.batch(0)


def test_cases_without_labels_are_unlabelled() -> None:
    store = MemoryStore()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 100, (1, 8, 8, 8))
    cases = [store.add(image, HOME), store.add(image, HOME, np.ones((8, 8, 8)))]
    spec = ViewSpec((4, 4, 4), labels=True)
    feed = Feed(cases, {"v": spec}, batch_size=2, seed=0, balance=1.0)
    batch = feed.batch(0)
    label = feed.views(batch, "cpu")["v"].label
    assert label is not None
    for row, position in enumerate(batch.case.tolist()):
        assert set(label[row].unique().tolist()) == {(-1, 1)[position]}


def test_a_coarse_view_of_a_fine_scan_sees_means_not_single_voxels() -> None:
    """Stripes one voxel wide would alias; their mean must show."""
    stripes = np.tile([-200, 400], (1, 48, 48, 24)).astype(np.int16)
    case = MemoryStore().add(stripes, Affine.identity(), np.ones((48, 48, 48)))
    feed = Feed(
        [case],
        {"v": ViewSpec((8, 8, 8), place=Whole(), labels=True)},
        batch_size=1,
        seed=0,
    )
    view = feed.views(feed.batch(0), "cpu")["v"]
    expected = normalised(np.array(100.0))
    assert view.valid.all()
    assert (view.label == 1).all()
    found = view.image[0, 0, 0, :, :, 1:-1]
    assert abs(found - expected).max() < 0.35 * abs(
        normalised(np.array(400.0)) - expected
    )
    assert abs(found.mean() - expected) < 0.1


def test_the_label_of_a_coarse_view_is_that_of_the_middle_voxel() -> None:
    label = np.broadcast_to(np.arange(24)[:, None, None] % 3, (24, 24, 24))
    case = MemoryStore().add(np.zeros((1, 24, 24, 24)), Affine.identity(), label)
    specs = {"v": ViewSpec((8, 8, 8), place=Whole(), labels=True)}
    feed = Feed([case], specs, batch_size=1, seed=0)
    view = feed.views(feed.batch(0), "cpu")["v"]
    assert view.label is not None
    assert (view.label == 1).all()


def test_a_balanced_place_lies_on_a_label() -> None:
    label = np.zeros((24, 24, 24))
    label[3, 20, 5] = 2
    case = MemoryStore().add(np.zeros((1, 24, 24, 24)), HOME, label)
    feed = Feed(
        [case],
        {"v": ViewSpec((6, 6, 6), labels=True)},
        batch_size=8,
        seed=0,
        balance=1.0,
    )
    view = feed.views(feed.batch(0), "cpu")["v"]
    assert view.label is not None
    assert ((view.label == 2).flatten(1).sum(1) == 1).all()


def test_several_channels_travel_together() -> None:
    rng = np.random.default_rng(0)
    store = MemoryStore()
    case = store.add(rng.integers(-500, 500, (3, 12, 12, 12)), HOME)
    feed = Feed([case], {"v": ViewSpec((12, 12, 12))}, batch_size=1, seed=0)
    view = feed.views(feed.batch(0), "cpu")["v"]
    expected = normalised(store.images["case_000"])
    np.testing.assert_allclose(view.image[0, 0].numpy(), expected, atol=1e-4)
    mixed = [case, store.add(np.zeros((1, 12, 12, 12)), HOME)]
    with pytest.raises(UnusableInput, match="same channels"):
        Feed(mixed, {"v": ViewSpec((4, 4, 4))}, batch_size=1, seed=0)


def test_a_store_on_disk_gives_the_same_batches_to_any_number_of_threads(
    phantom_store: Store,
) -> None:
    cases = [CaseRef(phantom_store, card) for card in phantom_store.cards]
    specs = {"plain": RICH["plain"], "warped": RICH["warped"]}
    feed = Feed(cases, specs, batch_size=3, seed=0, balance=0.7, threads=3)
    for batch in feed.stream(0, 6):
        assert _same(batch, feed.batch(batch.step))
        plain = feed.views(batch, "cpu")["plain"]
        for row, name in enumerate(batch.ids):
            card = phantom_store.card(name)
            inverse = card.affine.inverse()
            start = inverse.apply(plain.affine[row, 0, :3, 3].numpy())
            z, y, x = np.rint(start).astype(int)
            key = (slice(z, z + 12), slice(y, y + 12), slice(x, x + 12))
            value = phantom_store.image(name)[(0, *key)] * card.scale + card.offset
            expected = (np.clip(value, card.low, card.high) - card.centre) / card.spread
            np.testing.assert_allclose(
                plain.image[row, 0, 0].numpy(), expected, atol=1e-3
            )
            label = phantom_store.label(name)
            assert label is not None
            assert plain.label is not None
            assert np.array_equal(plain.label[row, 0].numpy(), label[key])


def test_autocast_and_gradients_do_not_touch_the_views(feed: Feed) -> None:
    batch = feed.batch(1)
    plain = feed.views(batch, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = feed.views(batch, "cpu")
    for name in plain:
        _same_views(plain[name], under[name])
        assert not under[name].image.requires_grad


def test_a_feed_that_cannot_be_meant_is_refused() -> None:
    cases = random_cases([(4, 4, 4)], HOME)
    specs = {"v": ViewSpec((2, 2, 2))}
    with pytest.raises(UnusableInput, match="at least one case"):
        Feed([], specs, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="batch_size"):
        Feed(cases, specs, batch_size=0, seed=0)
    with pytest.raises(ValueError, match="rank"):
        Feed(cases, specs, batch_size=1, seed=0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="at least one group"):
        Feed(cases, {}, batch_size=1, seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_views_are_the_same_on_the_gpu_and_wait_for_nothing(feed: Feed) -> None:
    batch = feed.batch(2)
    here = feed.views(batch, "cpu")
    feed.views(batch, "cuda")  # constants go up once
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = feed.views(batch, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, view in here.items():
        other = there[name]
        torch.testing.assert_close(other.image.cpu(), view.image, atol=2e-3, rtol=0)
        assert (other.valid.cpu() == view.valid).float().mean() > 0.999


def test_stores_share_the_samples_as_asked_and_show_every_case_in_turn() -> None:
    stores = [0] * 16 + [1] * 4
    even, root = CaseOrder(stores, 3, 0.0), CaseOrder(stores, 3, 0.5)
    assert even.quotas.tolist() == [10, 10]
    assert root.quotas.tolist() == [13, 7]  # 20 in the ratio 4 to 2
    seen = [even[k] for k in range(16 * 20)]
    assert sum(case >= 16 for case in seen) == 16 * 10
    for members in (range(16), range(16, 20)):
        own = [case for case in seen if case in members]
        rounds = [own[k : k + len(members)] for k in range(0, len(own), len(members))]
        assert all(sorted(r) == list(members) for r in rounds)  # none left out
        assert len({tuple(r) for r in rounds}) >= 10
    assert [even[k] for k in (200, 3, 77)] == [seen[200], seen[3], seen[77]]
    assert seen != [CaseOrder(stores, 4, 0.0)[k] for k in range(len(seen))]
    plain = CaseOrder(stores, 3)
    assert sorted(plain[k] for k in range(20)) == list(range(20))


def test_parts_take_turns_and_go_through_all_their_cases() -> None:
    order = TurnOrder([0, 1, 0, 2, 1, 0, -1, 2], seed=5)
    members = {0: [0, 2, 5], 1: [1, 4], 2: [3, 7]}
    seen = [order[k] for k in range(3 * 24)]
    for part, cases in members.items():
        own = seen[part::3]
        rounds = [own[k : k + len(cases)] for k in range(0, len(own), len(cases))]
        assert all(sorted(r) == cases for r in rounds)
        assert len({tuple(r) for r in rounds}) > 1
    assert 6 not in seen
    assert [order[k] for k in (70, 4)] == [seen[70], seen[4]]
    with pytest.raises(ValueError, match="every part needs a case"):
        TurnOrder([0, 2], seed=0)
