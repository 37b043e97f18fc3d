"""Few-voxel models: what is too far from all paint is unknown."""

import numpy as np
import pytest

from homolog.config import ConfigError, to_dict
from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.scans.volume import FeatureMap, LabelMap, Volume
from homolog.tasks.few_voxels.config import FewConfig
from homolog.tasks.few_voxels.learn import learn
from homolog.tasks.few_voxels.predict import predict_slice, predict_volume
from homolog.tasks.few_voxels.reach import unknown_value
from homolog.tasks.few_voxels.scan import few_classes, few_scan

SHAPE = (12, 40, 40)
HU = {1: 60.0, 2: -80.0, 3: 400.0}  # two that are painted, one that never is
# In place of the head's own: only brightness is looked at.
FAR_ONLY = {"position": False, "body_only": False}


def scan_of(features: bool = False, seed: int = 0):
    """Three bars along z and y: classes 1, 2, 3 from left to right, with noise."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[:, :, :14], truth[:, :, 14:28], truth[:, :, 28:] = 1, 2, 3
    values = np.select([truth == v for v in HU], list(HU.values()))
    values = values + np.random.default_rng(seed).normal(0, 8, SHAPE)
    affine = Affine.scale([3.0, 3.0, 3.0])
    volume = Volume(values[None].astype(np.float32), affine, "bars", "CT")
    made = None
    if features:  # every bar has a direction of its own
        data = np.zeros((3, *SHAPE), np.float16)
        for value in HU:
            data[value - 1][truth == value] = 1
        made = FeatureMap(data, affine, "bars")
    return few_scan(volume, made), LabelMap(truth, affine)


def paint_of(truth: LabelMap, values=(1, 2), places=3) -> LabelMap:
    """Strokes of five voxels in slices apart."""
    paint = np.zeros(SHAPE, np.uint8)
    for value in values:
        x = {1: 6, 2: 20, 3: 33}[value]
        for place in range(places):
            paint[1 + 4 * place, 8 + 10 * place : 13 + 10 * place, x] = value
    return LabelMap(paint, truth.affine)


def found_of(config=None, paint=None, features=False, background=None):
    scan, truth = scan_of(features)
    paint = paint or paint_of(truth)
    values = [v for v in np.unique(paint.data).tolist() if v]
    classes = few_classes(values, background=background)
    learnt = learn([scan], [paint], classes, config or FewConfig(**FAR_ONLY))
    return truth.data, drain(predict_volume(learnt.head, scan)).labels, learnt, scan


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("head", ["logistic", "knn"])
def test_what_was_never_painted_is_unknown_and_the_rest_keeps_its_class(head, features):
    config = FewConfig(head=head, **FAR_ONLY)
    truth, found, learnt, _ = found_of(config, features=features)
    assert (found.data[truth == 3] == learnt.head.unknown).mean() > 0.95
    for value in (1, 2):
        own = found.data[truth == value]
        inner = own.reshape(*SHAPE[:2], 14)[:, :, 4:-4]  # borders are mixed
        assert (inner == value).mean() > 0.6
        assert (inner == learnt.head.unknown).mean() < 0.35
    assert found.names[learnt.head.unknown] == "unknown"


def test_none_is_unknown_where_nobody_asked():
    config = FewConfig(unknown=0.0, **FAR_ONLY)
    _, found, learnt, _ = found_of(config)
    assert learnt.head.reach is None
    assert set(np.unique(found.data)) == {1, 2}
    assert "unknown" not in found.names.values()
    with pytest.raises(ConfigError, match="unknown"):
        found_of(FewConfig(unknown=0.9))


def test_a_larger_share_calls_more_unknown():
    counts = []
    for share in (0.02, 0.1, 0.4):
        _, found, learnt, _ = found_of(FewConfig(unknown=share, **FAR_ONLY))
        counts.append((found.data == learnt.head.unknown).sum())
    assert counts[0] < counts[1] < counts[2]


def test_grey_values_that_contradict_a_class_do_not_get_it():
    # The third bar is nearest to the first by its features and place, but not in HU.
    scan, truth = scan_of()
    paint = paint_of(truth, (1, 2, 3))
    paint.data[(paint.data == 3)] = 0
    paint.data[1, 2:6, 30], paint.data[9, 30:34, 36] = 3, 3
    classes = few_classes([1, 2, 3], background=3)
    learnt = learn([scan], [paint], classes, FewConfig(**FAR_ONLY))
    reach = learnt.head.reach
    normal = scan.intensity.normalise
    at = {v: normal(np.array([[h]], np.float32)) for v, h in HU.items()}
    assert reach.fits(at[1], 0).all()
    assert not reach.fits(at[3], 0).any()
    assert not reach.fits(at[1], 1).any()
    assert reach.fits(at[1], 2).all()  # background may look like anything


def test_one_place_of_each_tells_nothing_of_how_far_is_too_far():
    _, truth = scan_of()
    paint = paint_of(truth, places=1)
    _, found, learnt, _ = found_of(paint=paint)
    assert learnt.head.reach is None
    assert set(np.unique(found.data)) == {1, 2}


def test_a_slice_and_the_whole_call_the_same_unknown():
    _, found, learnt, scan = found_of(FewConfig(body_only=False), features=True)
    for axis, index in ((0, 5), (1, 17), (2, 31)):
        values, _ = predict_slice(learnt.head, scan, axis, index)
        whole = np.take(found.data, index, axis)
        assert (values == whole).mean() > 0.999
        assert (whole == learnt.head.unknown).any() or axis != 2


def test_unknown_has_a_value_that_no_class_has():
    assert unknown_value([1, 2, 255]) == 254
    assert unknown_value([254, 253]) == 252


def test_configurations_written_before_keep_their_hash():
    assert "unknown" not in to_dict(FewConfig())
    assert to_dict(FewConfig(unknown=0.2))["unknown"] == 0.2
