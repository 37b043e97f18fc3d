"""Labels carried over known maps come out where they belong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from homolog.events import Request, drain
from homolog.geometry.affine import Affine
from homolog.metrics.overlap import dice_per_label
from homolog.propagation.carry import Carried, Labelled, carry, labelled, looked_at
from homolog.propagation.config import PropagateConfig
from homolog.propagation.descriptors import Seen, read_at, upright
from homolog.propagation.matching import Grid, robust_affine
from homolog.scans.volume import FeatureMap, LabelMap, Volume

SHAPE = (20, 40, 40)
AFFINE = Affine.of((5.0, 3.0, 3.0), (-20.0, 7.0, 11.0))
SMALL = PropagateConfig(method="grey", cells=6000)
LABELS = {1: "ball", 2: "rod"}


def fields(count: int, seed: int) -> NDArray[np.float32]:
    """Smooth random fields (count, D, H, W) of mean 0 and spread 1."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, *SHAPE))
    smooth = np.stack([ndimage.gaussian_filter(n, (1.2, 2.5, 2.5)) for n in noise])
    smooth -= smooth.mean((1, 2, 3), keepdims=True)
    smooth /= smooth.std((1, 2, 3), keepdims=True)
    return smooth.astype(np.float32)


def shapes() -> NDArray[np.uint8]:
    """A ball and a rod."""
    z, y, x = np.indices(SHAPE)
    found = np.zeros(SHAPE, np.uint8)
    found[(5 * (z - 9)) ** 2 + (3 * (y - 15)) ** 2 + (3 * (x - 14)) ** 2 < 24**2] = 1
    found[(abs(z - 11) < 6) & ((y - 27) ** 2 + (x - 25) ** 2 < 20)] = 2
    return found


def bent(data: NDArray[np.generic], order: int = 1) -> NDArray[np.generic]:
    """The same moved by (1, 3, -2) voxels and bent by up to 2 more."""
    index = np.indices(SHAPE).astype(np.float64)
    wave = 2 * np.sin(index[2] / 9.0)
    places = [index[0] - 1, index[1] - 3 + wave, index[2] + 2 + 0.5 * wave]
    return ndimage.map_coordinates(data, places, order=order, mode="nearest")


def volume(data: NDArray[np.generic], affine: Affine = AFFINE) -> Volume:
    return Volume(np.asarray(data, np.float32)[None], affine, "scan", "MR")


def feature_map(data: NDArray[np.generic], affine: Affine = AFFINE) -> FeatureMap:
    unit = data / np.linalg.norm(data.astype(np.float32), axis=0)
    return FeatureMap(unit.astype(np.float16), affine)


def source_of(scan: Seen, data: NDArray[np.uint8], affine: Affine = AFFINE) -> Labelled:
    return labelled(scan, LabelMap(data, affine, LABELS), [1, 2], LABELS)


def carried(
    sources: list[Labelled], scan: Seen, grid: Volume, config: PropagateConfig = SMALL
) -> Carried:
    found = drain(carry(sources, scan, grid, config))
    assert found is not None
    return found


def mean_dice(found: Carried, truth: NDArray[np.generic]) -> float:
    return float(
        np.mean(list(dice_per_label(found.labels.data, truth, [1, 2]).values()))
    )


@pytest.fixture(scope="module")
def image() -> NDArray[np.float32]:
    return fields(1, 0)[0] + shapes() * 0.7


def test_a_scan_carries_its_labels_to_itself(image: NDArray[np.float32]) -> None:
    scan = volume(image)
    seen = looked_at(scan, None)
    found = carried([source_of(seen, shapes())], seen, scan)
    assert mean_dice(found, shapes()) > 0.97
    assert found.confidence > 0.7
    assert dict(found.labels.names) == LABELS


def test_features_find_what_grey_values_do_not(image: NDArray[np.float32]) -> None:
    places = fields(12, 1)
    rng = np.random.default_rng(2)
    other = volume(bent(image) * 0.2 + rng.normal(size=SHAPE))  # nearly all noise
    truth = bent(shapes(), order=0)
    first = looked_at(volume(image), feature_map(places))
    moved = np.stack([bent(p) for p in places]) + 0.3 * rng.normal(size=places.shape)
    second = looked_at(other, feature_map(moved))
    plain = replace(SMALL, reach_mm=0.0, grey_share=0.0, smooth_mm=0.0)
    by = {
        method: carried(
            [source_of(first, shapes())], second, other, replace(plain, method=method)
        )
        for method in ("features", "both", "grey")
    }
    assert mean_dice(by["features"], truth) > 0.85
    assert mean_dice(by["both"], truth) > 0.85
    assert mean_dice(by["grey"], truth) < mean_dice(by["features"], truth) - 0.1
    assert by["grey"].miss_mm > by["features"].miss_mm


def test_the_result_lies_on_the_scans_own_grid(image: NDArray[np.float32]) -> None:
    moved, truth = bent(image), bent(shapes(), order=0)
    axes, flips = (2, 0, 1), (True, False, True)
    turned = np.transpose(moved, axes)[::-1, :, ::-1]
    turned_truth = np.transpose(truth, axes)[::-1, :, ::-1]
    affine = AFFINE.reorient(axes, flips, SHAPE)
    seen = looked_at(volume(image), None)
    source = [source_of(seen, shapes())]
    straight, odd = volume(moved), volume(turned, affine)
    first = carried(source, looked_at(straight, None), straight)
    second = carried(source, looked_at(odd, None), odd)
    assert mean_dice(first, truth) > 0.85
    assert second.labels.affine == affine
    assert second.doubt.shape == turned.shape
    back = np.transpose(second.labels.data[::-1, :, ::-1], np.argsort(axes))
    assert np.mean(back == first.labels.data) > 0.999
    assert mean_dice(second, turned_truth) == pytest.approx(
        mean_dice(first, truth), abs=0.01
    )


def test_what_a_scan_does_not_share_stays_background(
    image: NDArray[np.float32],
) -> None:
    """The scan goes on where the labelled one ends."""
    long = np.concatenate([image, fields(1, 9)[0]])
    half = volume(image[:14])
    data = shapes()[:14]
    data[12:] = 1  # labels up to the very end of what was scanned
    seen = looked_at(half, None)
    scan = volume(long)
    found = carried([source_of(seen, data)], looked_at(scan, None), scan)
    assert (found.labels.data[:10] == data[:10]).mean() > 0.95
    assert not found.labels.data[20:].any()


def test_several_sources_vote(image: NDArray[np.float32]) -> None:
    """One of three has wrong labels: the others outvote it, and doubt grows."""
    scan = volume(image)
    seen = looked_at(scan, None)
    right, wrong = source_of(seen, shapes()), source_of(seen, np.roll(shapes(), 9, 2))
    alone = carried([wrong], seen, scan)
    together = carried([right, wrong, right], seen, scan)
    sure = carried([right, right, right], seen, scan)
    assert mean_dice(alone, shapes()) < 0.6
    assert mean_dice(together, shapes()) > 0.95
    assert together.confidence < sure.confidence - 0.1


def test_doubt_is_high_where_labels_are_wrong(image: NDArray[np.float32]) -> None:
    rng = np.random.default_rng(3)
    other = volume(bent(image) + 0.8 * rng.normal(size=SHAPE))
    truth = bent(shapes(), order=0)
    seen = looked_at(volume(image), None)
    found = carried([source_of(seen, shapes())], looked_at(other, None), other)
    wrong = found.labels.data != truth
    near = ndimage.binary_dilation(truth > 0, iterations=3)
    assert wrong.any()
    there, elsewhere = found.doubt[near & wrong], found.doubt[near & ~wrong]
    assert there.mean() > elsewhere.mean() + 0.1
    assert found.doubt.min() >= 0
    assert found.doubt.max() <= 1


def test_one_slice_is_carried_too(image: NDArray[np.float32]) -> None:
    picture = volume(image[9:10])
    seen = looked_at(picture, None)
    found = carried([source_of(seen, shapes()[9:10])], seen, picture)
    assert mean_dice(found, shapes()[9:10]) > 0.9


def test_registration_carries_labels(image: NDArray[np.float32]) -> None:
    other, truth = volume(bent(image)), bent(shapes(), order=0)
    seen = looked_at(volume(image), None)
    how = PropagateConfig(
        method="registration", reach_mm=0.0, grey_share=0.0, smooth_mm=0.0
    )
    found = carried([source_of(seen, shapes())], looked_at(other, None), other, how)
    assert mean_dice(found, truth) > 0.7


def test_it_stops_when_told(image: NDArray[np.float32]) -> None:
    scan = volume(image)
    seen = looked_at(scan, None)
    job = carry([source_of(seen, shapes())], seen, scan, SMALL)
    next(job)
    with pytest.raises(StopIteration) as end:
        job.send(Request.STOP)
    assert end.value.value is None


def test_the_affine_that_most_agree_on_is_found() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(-100, 100, (400, 3))
    linear = np.array([[1.1, 0.05, 0], [0, 0.9, 0.1], [0, 0, 1.0]])
    b = a @ linear.T + (5, -3, 8)
    b[:120] += rng.uniform(-80, 80, (120, 3))
    found = robust_affine(a, b, np.ones(400), 3.0, ridge=0.0)
    np.testing.assert_allclose(found[:3, :3], linear, atol=0.02)
    np.testing.assert_allclose(found[:3, 3], (5, -3, 8), atol=1.0)
    assert np.array_equal(robust_affine(a, b, np.zeros(400), 3.0), np.eye(4))


def test_a_field_is_read_where_it_lies_and_is_nothing_beyond() -> None:
    data = np.arange(24.0).reshape(2, 3, 4)
    turned = AFFINE.reorient((0, 1, 2), (False, True, False), (2, 3, 4))
    values, affine = upright(data[:, ::-1], turned)
    assert np.array_equal(values.numpy(), data)
    grid = Grid(affine, (2, 3, 4))
    read = read_at(values[None], affine, grid.places_mm)[0]
    assert torch.allclose(read, values, atol=1e-3)
    far = torch.tensor([[1e3, 0.0, 0.0]])
    assert float(read_at(values[None] + 1, affine, far)) == 0
