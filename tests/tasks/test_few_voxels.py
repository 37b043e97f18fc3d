"""A model from a few painted voxels: exact, careful with paint, honest in its score."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import Progress, Request, drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.geometry.affine import Affine
from homolog.model_files.card import read_card
from homolog.model_files.encoder import load_encoder
from homolog.phantom.phantom import make_phantom
from homolog.scans.volume import FeatureMap, LabelMap, Volume
from homolog.store.learnt_spacing import LearntSpacing
from homolog.tasks.few_voxels.config import FewConfig
from homolog.tasks.few_voxels.learn import (
    GUARD_MM,
    learn,
    left_out,
    next_click,
    strokes,
)
from homolog.tasks.few_voxels.predict import (
    Thin,
    predict_slice,
    predict_volume,
    probabilities,
)
from homolog.tasks.few_voxels.scan import few_classes, few_scan, painted
from homolog.tasks.few_voxels.task import save_few
from homolog.use.predict import open_predictor, open_trained

CPU = torch.device("cpu")
SHAPE, SPACING = (24, 30, 28), (8.0, 8.0, 8.0)
NAMES = {1: "liver", 2: "spleen", 3: "lung", 4: "rest"}


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(1, SHAPE, SPACING)


def truth_of(phantom) -> np.ndarray:
    """Liver 1, spleen 2, right lung 3, anything else 4."""
    values = {name: value for value, name in phantom.labels.names.items()}
    result = np.full(phantom.labels.shape, 4, np.uint8)
    for new, words in ((1, "liver"), (2, "spleen"), (3, "lung")):
        for name, value in values.items():
            if name.startswith(words):
                result[phantom.labels.data == value] = new
    return result


def paint_of(phantom, count=12, seed=0) -> LabelMap:
    truth, rng = truth_of(phantom), np.random.default_rng(seed)
    paint = np.zeros(truth.shape, np.uint8)
    for value in np.unique(truth):
        found = np.argwhere(truth == value)
        for place in found[rng.permutation(len(found))[:count]]:
            paint[tuple(place)] = value
    return LabelMap(paint, phantom.volume.affine, NAMES, "paint")


def features_of(volume: Volume, size=10, seed=0, stride=2) -> FeatureMap:
    """Smooth random unit features on the scan's coarsened grid."""
    rng = np.random.default_rng(seed)
    affine = volume.affine.coarsen((stride,) * 3)
    shape = [-(-n // stride) for n in volume.shape]
    mm = affine.apply(np.indices(shape).reshape(3, -1).T)
    values = np.sin(mm @ rng.normal(0, 1 / 60, (3, size)) + rng.uniform(0, 6, size))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    data = values.T.reshape(size, *shape).astype(np.float16)
    return FeatureMap(data, affine, "sines")


CLASSES = few_classes([1, 2, 3, 4], NAMES, background=4)


def learnt_of(phantom, config=None, features=True, paint=None):
    scan = few_scan(phantom.volume, features_of(phantom.volume) if features else None)
    paint = paint or paint_of(phantom)
    return scan, paint, learn([scan], [paint], CLASSES, config or FewConfig())


@pytest.mark.parametrize("head", ["logistic", "knn"])
def test_a_volume_says_what_the_head_says_of_each_voxels_own_features(phantom, head):
    # For the linear head this is the exactness of interpolating scores.
    scan, _, learnt = learnt_of(phantom, FewConfig(head=head))
    everywhere = np.indices(SHAPE).reshape(3, -1).T
    vectors = scan.vectors(everywhere, learnt.head.spec)
    expected = learnt.head.probabilities(vectors).T.reshape(-1, *SHAPE)
    found = probabilities(learnt.head, scan, (0, 0, 0), SHAPE)
    apart = np.abs(found - expected).max(axis=0)
    # where two neighbours are equally near, rounding decides which of them votes
    assert (apart > 1e-4).mean() < (0 if head == "logistic" else 0.005) + 1e-9
    assert found.std() > 0.1  # not all the same
    np.testing.assert_allclose(found.sum(axis=0), 1.0, atol=1e-5)


@pytest.mark.parametrize("smoothing_mm", [(), (8.0,), (0.0, 12.0)])
def test_simple_features_do_not_depend_on_the_block(phantom, smoothing_mm):
    config = FewConfig(smoothing_mm=smoothing_mm)
    scan, _, learnt = learnt_of(phantom, config, features=False)
    simple = scan.simple(learnt.head.spec)
    whole = simple.block((0, 0, 0), SHAPE)
    part = simple.block((3, 0, 5), (9, 30, 6))
    np.testing.assert_array_equal(part, whole[:, 3:9, :, 5:6])
    places = np.array([[0, 0, 0], [5, 7, 9], [23, 29, 27]])
    np.testing.assert_array_equal(simple.at(places), whole[:, *places.T].T)


def test_smoothing_is_the_same_width_in_mm_along_every_axis():
    # A ball of light in a grid of flat voxels smooths to a ball.
    affine = Affine.of((4.0, 1.0, 2.0))
    data = np.full((1, 15, 61, 31), -1000, np.int16)
    data[0, 7, 30, 15] = 1000
    scan = few_scan(Volume(data, affine, "spot", "CT"))
    paint = np.zeros(data.shape[1:], np.uint8)
    paint[0, 0, :5], paint[3, 3, :5] = 1, 2
    config = FewConfig(smoothing_mm=(0.0, 4.0), position=False)
    learnt = learn([scan], [LabelMap(paint, affine)], few_classes([1, 2]), config)
    spot = scan.simple(learnt.head.spec).block((0, 0, 0), (15, 61, 31))[1]
    along = [spot[8, 30, 15], spot[7, 34, 15], spot[7, 30, 17]]  # all 4 mm away
    np.testing.assert_allclose(along, along[0], rtol=0.05)
    assert along[0] > spot[9, 30, 15]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_that_of_the_volume(phantom, axis):
    scan, paint, learnt = learnt_of(phantom)
    volume = drain(predict_volume(learnt.head, scan, paint, keep_probabilities=True))
    for index in (0, SHAPE[axis] // 2, SHAPE[axis] - 1):
        labels, chances = predict_slice(learnt.head, scan, axis, index, paint)
        whole = np.take(volume.probabilities, index, axis + 1)
        np.testing.assert_allclose(chances, whole.astype(np.float32), atol=2e-3)
        same = labels == np.take(volume.labels.data, index, axis)
        assert same.mean() > 0.999  # but for ties
    with pytest.raises(IndexError, match="there are"):
        predict_slice(learnt.head, scan, axis, SHAPE[axis])


def test_the_turned_scan_gets_the_turned_labels(phantom):
    scan, _, learnt = learnt_of(phantom)
    volume = phantom.volume
    axes, flips = (2, 0, 1), (True, False, True)
    turned = Volume(
        np.flip(np.transpose(volume.data, (0, 3, 1, 2)), (1, 3)),
        volume.affine.reorient(axes, flips, volume.shape), "turned", "CT",
    )  # fmt: skip
    other = few_scan(turned, features_of(volume))
    straight = drain(predict_volume(learnt.head, scan)).labels.data
    found = drain(predict_volume(learnt.head, other)).labels.data
    expected = np.flip(np.transpose(straight, axes), (0, 2))
    assert (found == expected).mean() > 0.999


def test_it_learns_organs_and_keeps_the_paint(phantom):
    scan, paint, _ = learnt_of(phantom, features=False)
    wrong = paint.data.copy()
    truth = truth_of(phantom)
    places = np.argwhere(truth == 3)[40:43]
    wrong[tuple(places.T)] = 1  # a user's slip stays what was painted
    learnt = learn([scan], [paint], CLASSES)
    paint = LabelMap(wrong, paint.affine)
    found = drain(predict_volume(learnt.head, scan, paint)).labels
    kept = np.where(wrong == 4, 0, wrong)  # the background is written as 0
    free = drain(predict_volume(learnt.head, scan)).labels.data
    assert (free[wrong > 0] != kept[wrong > 0]).any()
    np.testing.assert_array_equal(found.data[wrong > 0], kept[wrong > 0])
    assert found.affine == phantom.volume.affine
    assert found.names == {1: "liver", 2: "spleen", 3: "lung", 254: "unknown"}
    lung = 2 * ((found.data == 3) & (truth == 3)).sum()
    assert lung / ((found.data == 3).sum() + (truth == 3).sum()) > 0.6


def test_voxels_without_features_stay_0(phantom):
    features = features_of(phantom.volume)
    half = FeatureMap(features.data[:, :6], features.affine, features.encoder_id)
    scan = few_scan(phantom.volume, half)
    paint = paint_of(phantom)
    learnt = learn([scan], [paint], few_classes([1, 2, 3, 4], NAMES))
    assert any("outside the encoder's features" in w for w in learnt.warnings)
    assert (learnt.samples.voxels[:, 0] < 12).all()
    result = drain(predict_volume(learnt.head, scan, keep_probabilities=True))
    assert (result.labels.data[12:] == 0).all()
    assert (result.probabilities[:, 12:] == 0).all()
    assert (result.labels.data[:12] > 0).all()


def test_several_scans_make_one_model(phantom):
    second = make_phantom(2, SHAPE, SPACING)
    scans = [few_scan(p.volume, features_of(p.volume)) for p in (phantom, second)]
    paints = [paint_of(phantom), paint_of(second, seed=3)]
    # The first scan shows classes 1 and 4 only, the second the rest.
    paints[0].data[np.isin(paints[0].data, (2, 3))] = 0
    paints[1].data[np.isin(paints[1].data, (1, 4))] = 0
    learnt = learn(scans, paints, CLASSES)
    assert [c.name for c in learnt.head.classes] == list(NAMES.values())
    assert set(learnt.samples.scan.tolist()) == {0, 1}
    for scan in scans:
        found = drain(predict_volume(learnt.head, scan)).labels.data
        assert {0, 1, 2, 3} <= set(np.unique(found))
    other = few_scan(second.volume, features_of(second.volume, size=6))
    with pytest.raises(UnusableInput, match="features of one encoder"):
        learn([scans[0], other], paints, CLASSES)
    with pytest.raises(UnusableInput, match="the model reads 10 features"):
        drain(predict_volume(learnt.head, other))


def only(paint: LabelMap, **counts: int) -> LabelMap:
    """The first voxels of some classes, by name."""
    data = np.zeros_like(paint.data)
    for name, count in counts.items():
        value = next(v for v, n in NAMES.items() if n == name)
        data[tuple(np.argwhere(paint.data == value)[:count].T)] = value
    return LabelMap(data, paint.affine, name="paint")


def test_warnings_are_plain_sentences(phantom):
    scan, paint = few_scan(phantom.volume), paint_of(phantom, count=60)

    def told(some: LabelMap) -> str:
        return " ".join(learn([scan], [some], CLASSES).warnings)

    assert told(only(paint, liver=30, spleen=30)) == ""
    assert "Only 'liver' is painted" in told(only(paint, liver=30))
    assert "'spleen' has only 4 painted voxels" in told(only(paint, liver=9, spleen=4))
    assert told(only(paint, liver=3, spleen=4)).startswith(
        "Paint at least 5 voxels each of 'liver' and 'spleen'."
    )
    unbalanced = told(only(paint, liver=50, spleen=2))
    assert "'liver' has 50 painted voxels, 'spleen' only 2" in unbalanced
    flat = only(paint, liver=60, rest=60)
    flat.data[:11], flat.data[12:] = 0, 0
    flat.data[11, :2, 0], flat.data[11, 8:14, 8] = 4, 1
    assert "lie in one axial slice" in told(flat)


def test_one_class_becomes_the_whole_body(phantom):
    paint = only(paint_of(phantom), spleen=8)
    scan = few_scan(phantom.volume)
    learnt = learn([scan], [paint], CLASSES)
    result = drain(predict_volume(learnt.head, scan, paint))
    body = scan.body.block((0, 0, 0), SHAPE)
    np.testing.assert_array_equal(result.labels.data, np.where(body, 2, 0))
    assert learnt.score().accuracy is None
    assert "only one class" in learnt.score().reason
    assert next_click(learnt.head, scan, learnt.paints[0], result.uncertainty) is None


def test_outside_the_body_is_nothing_unless_an_organ_is_painted_there(phantom):
    paint = only(paint_of(phantom), liver=12, spleen=12, rest=12)
    scan, _, learnt = learnt_of(phantom, features=False, paint=paint)
    assert learnt.head.body_only
    outside = ~scan.body.block((0, 0, 0), SHAPE)
    np.testing.assert_array_equal(
        outside.ravel(), ~scan.body.at(np.indices(SHAPE).reshape(3, -1).T)
    )
    assert 0.2 < outside.mean() < 0.4
    chances = probabilities(learnt.head, scan, (0, 0, 0), SHAPE)
    assert not chances[:, outside].any()
    assert (chances[:, ~outside].sum(axis=0) > 0.99).all()
    labels = drain(predict_volume(learnt.head, scan)).labels.data
    assert not labels[outside].any()
    below = predict_slice(learnt.head, scan, 1, 11)[0]
    np.testing.assert_array_equal(below, labels[:, 11])
    free = learn([scan], [paint], CLASSES, FewConfig(body_only=False))
    assert drain(predict_volume(free.head, scan)).labels.data[outside].any()
    air = np.argwhere(outside)[:20]
    paint.data[tuple(air.T)] = 1  # somebody's organ lies there: then anything may
    assert not learn([scan], [paint], CLASSES).head.body_only


def test_two_classes_are_told_apart(phantom):
    paint = only(paint_of(phantom, count=40), lung=40, liver=40)
    scan = few_scan(phantom.volume)
    learnt = learn([scan], [paint], CLASSES)
    truth = truth_of(phantom)
    found = drain(predict_volume(learnt.head, scan)).labels.data
    assert (found[truth == 3] == 3).mean() > 0.9
    assert (found[truth == 1] == 1).mean() > 0.9


def test_the_next_click_lies_in_the_body_away_from_the_paint(phantom):
    scan, paint, learnt = learnt_of(phantom)
    result = drain(predict_volume(learnt.head, scan, paint))
    click = next_click(
        learnt.head, scan, learnt.paints[0], result.uncertainty, apart_mm=30.0
    )
    apart = np.linalg.norm(learnt.paints[0].mm - np.array(click.mm), axis=1)
    assert apart.min() >= 30.0
    np.testing.assert_allclose(phantom.volume.affine.apply(click.voxel), click.mm)
    air = phantom.volume.data[0] < -950
    air[truth_of(phantom) == 3] = False
    assert not air[click.voxel]
    assert set(click.likely) <= set(NAMES.values())
    assert 0 < click.uncertainty <= 1
    typical = np.median(result.uncertainty.values[result.uncertainty.values > 0])
    assert click.uncertainty > typical
    far = next_click(
        learnt.head, scan, learnt.paints[0], result.uncertainty, apart_mm=5000.0
    )
    assert far is None
    # Nothing but air is unsure: the body is what counts all the same.
    values = np.where(air, 1.0, 0.1).astype(np.float32)
    odd = dataclasses.replace(result.uncertainty, values=values)
    click = next_click(learnt.head, scan, learnt.paints[0], odd)
    assert not air[click.voxel]
    assert click.uncertainty < 0.5


def test_the_next_click_goes_to_the_middle_of_what_is_unknown(phantom):
    scan, paint, learnt = learnt_of(phantom)
    result = drain(predict_volume(learnt.head, scan, paint))
    sure = np.full_like(result.uncertainty.values, 0.3)
    unknown = np.zeros(sure.shape, bool)
    body = phantom.volume.data[0] > -500
    middle = np.argwhere(body)[body.sum() // 2]
    low, high = np.maximum(middle - 2, 0), middle + 3
    unknown[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    found = dataclasses.replace(
        result.uncertainty, values=np.where(unknown, 1, sure).astype(np.float32),
        unknown=unknown,
    )  # fmt: skip
    click = next_click(learnt.head, scan, learnt.paints[0], found, apart_mm=0.1)
    assert click.unknown
    assert unknown[click.voxel]
    assert click.uncertainty <= 1
    none = dataclasses.replace(found, unknown=None)
    click = next_click(learnt.head, scan, learnt.paints[0], none, apart_mm=0.1)
    assert not click.unknown


def test_what_is_unknown_is_kept_for_the_next_click(phantom):
    thin = Thin(phantom.volume)
    chances = np.zeros((2, *phantom.volume.shape), np.float32)
    chances[0] = 1  # as sure as can be, and yet unlike all paint
    unknown = np.zeros(phantom.volume.shape, bool)
    unknown[:4] = True
    thin.take(0, chances, unknown)
    found = thin.found()
    steps = thin.steps
    np.testing.assert_array_equal(
        found.unknown, unknown[:: steps[0], :: steps[1], :: steps[2]]
    )
    np.testing.assert_array_equal(found.values, found.unknown.astype(np.float32))
    thin.take(0, chances)
    assert Thin(phantom.volume).found().unknown is None


def test_a_stroke_is_never_learnt_from_and_tested_on(phantom):
    data = np.zeros(SHAPE, np.uint8)
    data[5, 5, 5:9] = data[6, 6, 9:11] = 1  # one stroke over two slices
    data[15, 5, 5:8] = 1
    data[5, 6, 5:9] = 2  # beside the first stroke
    data[15, 20, 20:24] = data[18, 24, 4:8] = 2
    affine = Affine.of((2.0, 2.0, 2.0))
    scan = few_scan(Volume(phantom.volume.data, affine, "fine", "CT"))
    learnt = learn([scan], [LabelMap(data, affine)], few_classes([1, 2]))
    groups = strokes(learnt.samples)
    assert len(np.unique(groups)) == 5
    folds = left_out(learnt.samples, groups, [1, 2], seed=0)
    tested = np.zeros(len(groups), int)
    for test, train in folds:
        tested += test
        assert not set(groups[test]) & set(groups[train])
        gaps = np.linalg.norm(
            learnt.samples.mm[test][:, None] - learnt.samples.mm[train][None], axis=-1
        )
        assert gaps.min() > GUARD_MM
    assert (tested == 1).all()


def test_long_strokes_are_left_out_in_blocks():
    data = np.zeros((3, 3, 90), np.uint8)
    data[0, 0], data[2, 2] = 1, 2
    affine = Affine.of((30.0, 30.0, 1.0))
    values = np.where(np.arange(3)[:, None, None] == 0, 400, -400)
    noise = np.random.default_rng(0).normal(0, 30, data.shape)
    volume = Volume((values + noise).astype(np.int16)[None], affine, "long", "CT")
    learnt = learn([few_scan(volume)], [LabelMap(data, affine)], few_classes([1, 2]))
    assert len(np.unique(strokes(learnt.samples))) == 8
    score = learnt.score()
    assert score.accuracy == 1.0
    assert score.dice == {"label 1": 1.0, "label 2": 1.0}
    assert score.voxels == 180


def test_the_score_of_noise_is_chance(phantom):
    rng = np.random.default_rng(5)
    volume = Volume(
        rng.integers(-300, 300, (1, 40, 40, 40)).astype(np.int16),
        Affine.of((6.0, 6.0, 6.0)), "noise", "CT",
    )  # fmt: skip
    data = np.zeros((40, 40, 40), np.uint8)
    for place in rng.integers(0, 40, (300, 3)):
        data[tuple(place)] = rng.integers(1, 3)
    learnt = learn(
        [few_scan(volume)], [LabelMap(data, volume.affine)], few_classes([1, 2])
    )
    told = learnt.head.probabilities(learnt.samples.vectors).argmax(1) + 1
    score = learnt.score()
    assert abs(score.accuracy - 0.5) < 0.12
    assert (told == learnt.samples.values).mean() > score.accuracy


def test_a_class_painted_in_one_place_is_not_scored(phantom):
    paint = only(paint_of(phantom), liver=12, rest=12)
    paint.data[truth_of(phantom) == 2] = 0
    spleen = np.argwhere(truth_of(phantom) == 2)[0]
    paint.data[tuple(spleen)] = 2
    learnt = learn([few_scan(phantom.volume)], [paint], CLASSES)
    score = learnt.score()
    assert score.unscored == ("spleen",)
    assert set(score.recall) == {"liver", "rest"}
    single = only(paint_of(phantom), liver=1, rest=1)
    none = learn([few_scan(phantom.volume)], [single], CLASSES).score()
    assert none.accuracy is None
    assert "one place only" in none.reason


def test_very_many_voxels_are_thinned_the_same_way_every_time(phantom):
    truth = LabelMap(truth_of(phantom), phantom.volume.affine)
    scan = few_scan(phantom.volume)
    config = FewConfig(per_class=50)
    first, again = (learn([scan], [truth], CLASSES, config) for _ in range(2))
    values, counts = np.unique(first.samples.values, return_counts=True)
    assert counts.max() == 50
    assert list(values) == [1, 2, 3, 4]
    for name, array in first.head.arrays.items():
        np.testing.assert_array_equal(array, again.head.arrays[name])
    other = learn([scan], [truth], CLASSES, dataclasses.replace(config, seed=1))
    assert not np.array_equal(first.samples.voxels, other.samples.voxels)


def test_a_stop_is_obeyed_between_slabs(phantom, monkeypatch):
    monkeypatch.setattr("homolog.tasks.few_voxels.predict._SLAB", 5000)
    scan, _, learnt = learnt_of(phantom)
    job = predict_volume(learnt.head, scan)
    first = next(job)
    assert isinstance(first, Progress)
    assert 0 < first.index < first.total == SHAPE[0]
    with pytest.raises(StopIteration) as end:
        job.send(Request.STOP)
    assert end.value.value is None


def test_slabs_do_not_show(phantom, monkeypatch):
    scan, paint, learnt = learnt_of(phantom)
    whole = drain(predict_volume(learnt.head, scan, paint))
    monkeypatch.setattr("homolog.tasks.few_voxels.predict._SLAB", 5 * 30 * 28)
    parts = drain(predict_volume(learnt.head, scan, paint))
    assert (whole.labels.data == parts.labels.data).mean() > 0.9999
    np.testing.assert_allclose(
        parts.uncertainty.values, whole.uncertainty.values, atol=1e-4
    )


def test_unusable_paint_is_told(phantom):
    scan = few_scan(phantom.volume)
    small = LabelMap(np.ones((24, 30, 27), np.uint8), phantom.volume.affine, name="cut")
    with pytest.raises(UnusableInput, match=r"'cut'.*24 x 30 x 28.*24 x 30 x 27"):
        painted(scan, small)
    moved = LabelMap(
        np.ones(SHAPE, np.uint8), phantom.volume.affine.crop((3, 0, 0)), name="moved"
    )
    with pytest.raises(UnusableInput, match="'moved' must lie where"):
        painted(scan, moved)
    empty = LabelMap(np.zeros(SHAPE, np.uint8), phantom.volume.affine)
    with pytest.raises(UnusableInput, match="no painted voxel"):
        learn([scan], [empty], CLASSES)
    negative = LabelMap(np.full(SHAPE, -1, np.int16), phantom.volume.affine)
    with pytest.raises(UnusableInput, match="got -1"):
        painted(scan, negative)
    with pytest.raises(UnusableInput, match="label 4 is painted but is no class"):
        learn([scan], [paint_of(phantom)], few_classes([1, 2, 3]))
    with pytest.raises(UnusableInput, match="background is to be label 9"):
        few_classes([1, 2], background=9)
    with pytest.raises(ConfigError, match="strength"):
        learn([scan], [paint_of(phantom)], CLASSES, FewConfig(strength=0.0))


def test_a_vote_weighs_the_nearest_painted_voxels_by_their_distance(phantom):
    config = FewConfig(head="knn", neighbours=5)
    scan, _, learnt = learnt_of(phantom, config)
    arrays = {k: v.astype(np.float64) for k, v in learnt.head.arrays.items()}
    places = np.random.default_rng(2).integers(0, SHAPE, (400, 3))
    vectors = scan.vectors(places, learnt.head.spec)
    own = (vectors - arrays["mean"]) / arrays["scale"]
    distance = np.linalg.norm(own[:, None] - arrays["support"], axis=-1)
    near = np.sort(distance, axis=1)[:, :6]
    clear = near[:, 5] - near[:, 4] > 1e-4  # of equally near ones either may vote
    weight = np.where(distance <= near[:, 4:5], 1 / (distance + 1e-3), 0.0)
    expected = np.stack(
        [
            np.where(arrays["targets"] == k, weight, 0.0).sum(axis=1)
            for k in range(len(learnt.head.classes))
        ],
        axis=1,
    )
    expected /= expected.sum(axis=1, keepdims=True)
    assert clear.mean() > 0.8
    shares = learnt.head.probabilities(vectors)
    np.testing.assert_allclose(shares[clear], expected[clear], atol=1e-4)
    vectors[7, 0] = np.nan  # costs its own voxel and no other
    rest = np.arange(len(vectors)) != 7
    np.testing.assert_array_equal(
        learnt.head.probabilities(vectors)[rest], shares[rest]
    )


@pytest.mark.parametrize("head", ["logistic", "knn"])
@pytest.mark.parametrize("with_encoder", [True, False])
def test_saved_and_opened_it_says_the_same(
    phantom, encoder, tmp_path, head, with_encoder
):
    loaded = dense = features = None
    if with_encoder:
        loaded = load_encoder(encoder)
        dense = DenseEncoder.of(loaded, EmbedConfig(overlap=0.25), CPU)
        features = drain(embed_scan(phantom.volume, dense))
    recipe = None if dense is None else dense.preprocessing
    scan = few_scan(phantom.volume, features, recipe)
    learnt = learn([scan], [paint_of(phantom)], CLASSES, FewConfig(head=head))
    expected = drain(predict_volume(learnt.head, scan)).labels
    folder = save_few(
        tmp_path / "model", learnt.head, modalities={"CT": 1}, loaded=loaded,
        dense=dense,
    )  # fmt: skip
    files = {p.suffix for p in folder.iterdir()}
    assert files == {".safetensors", ".json"}
    task, model = open_predictor(folder, CPU)
    found = drain(task.run(phantom.volume, model=model))
    np.testing.assert_array_equal(found.data, expected.data)
    assert found.names == {1: "liver", 2: "spleen", 3: "lung", 254: "unknown"}
    card = read_card(folder)
    assert card["kind"] == "few_voxels"
    assert card["task_spec"]["label_names"]["1"] == "liver"
    assert "licence" in card
    with pytest.raises(UnusableInput, match="cannot score a store"):
        open_trained(folder, CPU)
    if with_encoder:  # and it is an encoder as before
        assert load_encoder(folder).encoder_id == loaded.encoder_id


def test_the_painted_scans_size_counts_where_the_encoders_is_unknown(
    phantom, encoder, tmp_path
):
    loaded = load_encoder(encoder)
    dense = DenseEncoder.of(loaded, EmbedConfig(overlap=0.25), CPU)
    features = drain(embed_scan(phantom.volume, dense))
    scan = few_scan(phantom.volume, features, dense.preprocessing)
    learnt = learn([scan], [paint_of(phantom)], CLASSES, FewConfig())
    folder = save_few(
        tmp_path / "model", learnt.head, modalities={"CT": 1}, loaded=loaded,
        dense=dense, painted=LearntSpacing.of_scans([phantom.volume]),
    )  # fmt: skip
    assert read_card(folder)["learnt_spacing_mm"]["largest"] == list(SPACING)
    task, model = open_predictor(folder, CPU)
    own = drain(task.run(phantom.volume, model=model))
    fine = phantom.volume.data
    for axis in (1, 2, 3):
        fine = np.repeat(fine, 2, axis)
    grid = phantom.volume.affine @ Affine.shift((-0.25,) * 3)
    half = Volume(fine, grid @ Affine.scale((0.5, 0.5, 0.5)), "fine", "CT")
    found = drain(task.run(half, model=model))
    assert found.shape == fine.shape[1:]
    for value in (1, 2, 3):
        many = np.count_nonzero(own.data == value)
        assert np.count_nonzero(found.data == value) / 8 == pytest.approx(many, rel=0.3)


def test_another_modality_is_told(phantom, tmp_path):
    _, _, learnt = learnt_of(phantom, features=False)
    folder = save_few(tmp_path / "model", learnt.head, modalities={"CT": 1})
    task, model = open_predictor(folder, CPU)
    strange = dataclasses.replace(phantom.volume, modality="MR")
    events = list(task.run(strange, model=model))
    assert "painted on CT" in events[0].text
    assert not any(hasattr(e, "text") for e in task.run(phantom.volume, model=model))


def test_a_head_that_does_not_fit_its_card_is_refused(phantom, tmp_path):
    _, _, learnt = learnt_of(phantom, features=False)
    arrays = {**learnt.head.arrays, "bias": np.zeros(7, np.float32)}
    head = dataclasses.replace(learnt.head, arrays=arrays)
    folder = save_few(tmp_path / "model", head, modalities={"CT": 1})
    with pytest.raises(UnusableInput, match="should hold"):
        open_predictor(folder, CPU)


def test_what_a_window_fits_and_predicts_with_loads_no_torch():
    code = (
        "import homolog.tasks.few_voxels.learn, homolog.tasks.few_voxels.predict\n"
        "import homolog.tasks.few_voxels.learn, sys\n"
        "assert not {'torch', 'monai', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
