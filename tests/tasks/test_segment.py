"""The segment task: its window, its loss, its labels back on every scan's own grid."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from each import each
from homolog.backbones import build
from homolog.config import to_dict
from homolog.errors import UnusableInput
from homolog.events import Note, drain
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.finetune.settings import choose_cases
from homolog.geometry.affine import Affine
from homolog.scans.volume import Volume, reorder_axes
from homolog.sliding.sliding import slide
from homolog.store.learnt_spacing import Learnt, LearntSpacing
from homolog.store.preprocess import Preprocessing
from homolog.tasks.base import PredictOptions, Trained
from homolog.tasks.segment.network import (
    SegmentModule,
    SegmentNetwork,
    choose_window,
    label_stored,
)
from homolog.tasks.segment.task import Segment, SegmentConfig
from homolog.use.evaluate import _other_sizes
from homolog.views.view import View, Views, ViewSpec

CPU = torch.device("cpu")
BACKBONES = {
    "resunet": {"channels": (8, 16)},
    "swin": {"feature_size": 4, "heads": (1, 2, 4, 8)},
    "vit": {"hidden": 24, "inner": 32, "layers": 4, "heads": 2, "patch": (8, 8, 8)},
}


class ByIntensity(nn.Module):
    """Labels 0..3 by the normalised value alone, seen through a window."""

    def forward(self, image):
        steps = torch.tensor([-0.6, -0.1, 0.4, 0.9]).view(1, 4, 1, 1, 1)
        return -((image - steps) ** 2)


def by_intensity(**spec):
    full = {
        "window": [16, 16, 16], "divisor": [4, 4, 4], "smallest": [4, 4, 4],
        "overlap": 0.5, "channels": 1,
        "modalities": ["CT"], "label_values": [0, 2, 5, 9],
        "label_names": {"2": "two", "5": "five", "9": "nine"}, "flip": [0, 0, 0],
        **spec,
    }  # fmt: skip
    card = {"preprocessing": to_dict(Preprocessing())}
    return Trained(ByIntensity().eval(), full, card, CPU)


def block_scan(affine, shape=(20, 22, 26), modality="CT"):
    """Four slabs of known HU in a corner of nothing symmetric."""
    data = np.full((1, *shape), -1000, np.int16)
    data[0, 2:8, 3:12, 4:9] = -100
    data[0, 8:15, 10:20, 6:20] = 400
    data[0, 3:6, 14:20, 15:24] = 1000
    return Volume(data, affine, "scan", modality)


def tilted(degrees=12.0):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return Affine.of((2.0, 1.5, 1.0), (-30.0, 12.0, 7.0), turn)


@pytest.mark.parametrize("spacing", [None, (1.7, 1.7, 1.7)])
def test_labels_of_all_48_axis_orders_lie_on_the_same_anatomy(spacing):
    scan = block_scan(tilted())
    model = by_intensity()
    model.card["preprocessing"]["spacing_mm"] = spacing
    task = Segment(SegmentConfig())
    reference = drain(task.run(scan, model=model))
    assert set(np.unique(reference.data)) == {0, 2, 5, 9}
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turned = Volume(
                reorder_axes(scan.data, axes, flips).copy(),
                scan.affine.reorient(axes, flips, scan.shape),
                "turned",
                "CT",
            )
            labels = drain(task.run(turned, model=model))
            assert labels.affine == turned.affine
            assert labels.shape == turned.shape
            expected = reorder_axes(reference.data, axes, flips)
            assert np.array_equal(labels.data, expected)


def test_labels_on_the_own_voxels_are_exact_without_resampling():
    scan = block_scan(Affine.of((1.0, 1.0, 1.0)))
    labels = drain(Segment(SegmentConfig()).run(scan, model=by_intensity()))
    expected = np.zeros(scan.shape, int)
    for hu, label in ((-100, 2), (400, 5), (1000, 9)):
        expected[scan.data[0] == hu] = label
    assert np.array_equal(labels.data, expected)
    assert labels.data.dtype == np.uint8
    assert labels.names == {2: "two", 5: "five", 9: "nine"}


def test_scan_smaller_than_the_window_is_labelled():
    scan = block_scan(Affine.of((1.0, 1.0, 1.0)), shape=(15, 20, 24))
    small = Volume(scan.data[:, 8:11, 10:13, 6:9], scan.affine, "small", "CT")
    labels = drain(Segment(SegmentConfig()).run(small, model=by_intensity()))
    assert (labels.data == 5).all()


def test_another_modality_is_refused_unless_told_otherwise():
    scan = block_scan(Affine.identity(), modality="MR")
    task, model = Segment(SegmentConfig()), by_intensity()
    model.card["preprocessing"]["modality"] = "CT"  # as a store of CTs alone says
    with pytest.raises(UnusableInput, match="learnt from CT, but 'scan' is MR"):
        drain(task.run(scan, model=model))
    labels = drain(task.run(scan, model, PredictOptions(modality="CT")))
    assert set(np.unique(labels.data)) == {0, 2, 5, 9}
    unknown = Volume(scan.data, scan.affine, "scan", "OTHER")
    assert drain(task.run(unknown, model=model)) is not None


def test_another_number_of_channels_is_refused():
    scan = block_scan(Affine.identity())
    two = Volume(np.concatenate([scan.data, scan.data]), scan.affine, "two", "CT")
    with pytest.raises(UnusableInput, match="takes 1 channels, 'two' has 2"):
        drain(Segment(SegmentConfig()).run(two, model=by_intensity()))


def test_network_sees_in_prediction_what_it_saw_in_training(phantom_store):
    """One whole scan through the feed, and through prediction, at the same window."""
    case = choose_cases(phantom_store, Segment(SegmentConfig())).train[0]
    shape = case.card.shape
    spec = ViewSpec(size=shape, labels=True)
    feed = Feed([case], {"crop": spec}, batch_size=1, seed=0, threads=0)
    trained_on = feed.views(feed.batch(0), CPU)["crop"].image[0, 0]
    seen = []

    def spy(windows):
        seen.append(windows.clone())
        return torch.zeros(len(windows), 2, *windows.shape[2:])

    model = Trained(
        spy, by_intensity(window=list(shape), label_values=[0, 1]).spec, {}, CPU
    )
    image = np.asarray(phantom_store.image(case.card.id)[:])
    drain(label_stored(model, image, case.card))
    assert torch.allclose(seen[0][0], trained_on, atol=1e-5)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_gets_a_decoder_that_learns(name, phantom_store):
    config = SegmentConfig(window=(32, 32, 32), intensity=0.0)
    task = Segment(config)
    cases = choose_cases(phantom_store, task)
    torch.manual_seed(0)
    backbone = build(name, BACKBONES[name])
    spec = task.describe(cases.all, backbone, CPU)
    module = task.module(task.network(backbone, spec), spec)
    feed = Feed(cases.train[:1], module.views(), batch_size=1, seed=0, threads=0)
    views = feed.views(feed.batch(0), CPU)
    optimiser = torch.optim.AdamW(module.parameters(), 2e-3)
    totals = []
    for _ in range(4):
        terms = module.losses(views, 0.5)
        total = sum(terms.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert set(terms) == {"dice", "cross_entropy"}
    assert totals[-1] < totals[0]
    silent = [
        n for n, p in module.encoder().named_parameters()
        if p.grad is None or not p.grad.any()
    ]  # fmt: skip
    assert len(silent) <= 0.1 * len(list(module.encoder().parameters())), silent


@pytest.mark.parametrize("name", list(BACKBONES))
def test_tiny_scan_is_labelled_by_every_backbone(name, phantom_store):
    task = Segment(SegmentConfig(window=(64, 64, 64)))
    cases = choose_cases(phantom_store, task)
    backbone = build(name, BACKBONES[name])
    spec = task.describe(cases.all, backbone, CPU)
    network = task.network(backbone, spec).eval()
    card = {"preprocessing": to_dict(Preprocessing())}
    scan = block_scan(Affine.identity(), shape=(15, 20, 24))
    tiny = Volume(scan.data[:, 6:9, 8:12, 5:9], scan.affine, "tiny", "CT")
    labels = drain(task.run(tiny, model=Trained(network, spec, card, CPU)))
    assert labels.shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("name", "windows", "side"), [("resunet", 1, 32), ("swin", 8, 32), ("vit", 8, 16)]
)
def test_one_window_takes_a_scan_that_is_little_larger(
    name, windows, side, phantom_store
):
    """Where the network takes any size; validation and prediction alike."""
    case = choose_cases(phantom_store, Segment(SegmentConfig())).train[0]
    task = Segment(SegmentConfig(window=(side,) * 3))
    backbone = build(name, BACKBONES[name])
    spec = task.describe([case], backbone, CPU)
    network = task.network(backbone, spec).eval()
    card = {"preprocessing": to_dict(Preprocessing(modality="CT"))}
    model = Trained(network, spec, card, CPU)
    shape = [n * side // 32 for n in (35, 41, 38)]
    data = np.zeros((1, *shape), np.int16)
    data[0, 5:15, 5:15, 5:15] = 200
    told = drain(label_stored(model, data, case.card))
    assert told.windows == windows
    if windows == 1:  # else it went as trained already
        told = drain(label_stored(model, data, case.card, windows="trained"))
        assert told.windows == 8
    scan = Volume(data, Affine.identity(), "scan", "CT")
    labels = drain(task.run(scan, model=model))
    assert labels.meta["told"]["windows"] == windows
    if windows == 1:
        assert labels.meta["told"]["window"] == [36, 44, 40]


def test_mirrorings_the_model_never_saw_are_told(phantom_store):
    scan = block_scan(Affine.identity())
    stream = Segment(SegmentConfig()).run(
        scan, by_intensity(flip=[0.5, 0.0, 0.0]), PredictOptions(flips=(0, 2))
    )
    notes = [e.text for e in stream if isinstance(e, Note)]
    assert any("never saw scans mirrored along x" in text for text in notes)


def _crop_views(label):
    image = torch.randn(1, 1, 1, *label.shape)
    return Views(
        {
            "crop": View(
                image,
                torch.eye(4, dtype=torch.float64).expand(1, 1, 4, 4),
                torch.ones(1, 1, *label.shape, dtype=torch.bool),
                torch.zeros(1, dtype=torch.int64),
                label[None, None],
            )
        }
    )


def _module(values, **settings):
    torch.manual_seed(0)
    backbone = build("resunet", {"channels": (4, 8)})
    task = Segment(SegmentConfig())
    network = task.network(backbone, {"channels": 1, "label_values": values})
    return SegmentModule(network, ViewSpec(size=(8, 8, 8)), values, **settings)


def test_label_values_with_gaps_become_classes_and_unlabelled_stays_out():
    module = _module([0, 2, 7])
    label = torch.zeros(8, 8, 8, dtype=torch.int64)
    label[2:4], label[4:6], label[6:] = 2, 7, -1
    seen = {}

    def spy(logits, target, annotated, **_):
        seen["target"] = target
        return logits.sum() * 0, logits.sum() * 0

    from homolog.tasks.segment import network as _segmenter

    original, _segmenter.dice_cross_entropy = _segmenter.dice_cross_entropy, spy
    try:
        module.losses(_crop_views(label), 0.0)
    finally:
        _segmenter.dice_cross_entropy = original
    target = seen["target"][0]
    assert (target[:2] == 0).all()
    assert (target[2:4] == 1).all()
    assert (target[4:6] == 2).all()
    assert (target[6:] == -1).all()


def test_weight_average_follows_slowly_and_is_deployed():
    module = _module([0, 1], average=0.9)
    weight = module.network.head.weight
    with torch.no_grad():
        weight.fill_(1.0)
        module.after_step(0.0)  # copies
        weight.fill_(2.0)
        module.after_step(0.5)
    deployed = module.deployed().head.weight
    assert torch.allclose(deployed, torch.full_like(deployed, 1.1))
    assert not any(p.requires_grad for p in module.deployed().parameters())


@each(
    "shape, divisor, window",
    [
        ((35, 50, 35), (16, 16, 16), (32, 48, 32)),
        ((42, 58, 42), (16, 16, 16), (48, 64, 48)),
        ((300, 512, 512), (16, 16, 16), (80, 80, 80)),
        ((20, 320, 320), (4, 16, 16), (20, 96, 96)),
        ((1, 300, 300), (16, 16, 16), (32, 96, 96)),
        ((40, 40, 40), (48, 48, 48), (96, 96, 96)),
    ],
)
def test_window_follows_the_median_scan_as_far_as_affordable(shape, divisor, window):
    least = tuple(2 * n for n in divisor)
    assert choose_window([shape], divisor, least, side=96, voxels=80**3) == window


def test_segment_network_offers_the_split_that_sliding_blends():
    module = _module(list(range(30)))
    image = torch.randn(1, 16, 16, 24)
    from homolog.sliding.windows import SlidingConfig

    config = SlidingConfig(window=(8, 8, 8), divisor=(4, 4, 4))
    module.eval()
    split = drain(slide(module.network, image, classes=30, config=config, device=CPU))
    whole = drain(
        slide(lambda w: module.network(w), image, classes=30, config=config, device=CPU)
    )
    assert split.blended == "features"
    assert whole.blended == "logits"
    same = (split.labels == whole.labels).double().mean().item()
    assert same > 0.9999


@pytest.mark.parametrize(
    ("shape", "spacing", "window"),
    [
        ((18, 175, 175), (5.0, 1.5, 1.5), (16, 176, 176)),
        ((36, 168, 168), (7.7, 1.9, 1.9), (28, 128, 128)),
        ((18, 175, 175), (1.5, 1.5, 1.5), (16, 96, 96)),
    ],
)
def test_a_window_of_thick_slices_is_as_long_as_wide_in_mm(shape, spacing, window):
    found = choose_window(
        [shape], (4, 16, 16), (8, 32, 32), side=96, voxels=80**3, spacing_mm=spacing
    )
    assert found == window


def test_window_the_backbone_cannot_take_names_a_legal_one(phantom_store):
    task = Segment(SegmentConfig(window=(30, 32, 32)))
    cases = choose_cases(phantom_store, task)
    backbone = build("resunet", {"channels": (4, 8)})
    with pytest.raises(ValueError, match="nearest legal size"):
        task.describe(cases.all, backbone, CPU)


def test_validation_reports_mean_worst_and_labels(phantom_store):
    task = Segment(SegmentConfig(window=(32, 40, 40)))
    cases = choose_cases(phantom_store, task)
    backbone = build("resunet", {"channels": (4, 8)})
    spec = task.describe(cases.all, backbone, CPU)
    network = task.network(backbone, spec).eval()
    assert isinstance(network, SegmentNetwork)
    metrics = task.validate(Trained(network, spec, {}, CPU), cases.train[:2])
    assert metrics["worst"] <= metrics["dice"] <= 1.0


def test_a_store_of_another_voxel_size_than_learnt_is_not_scored(phantom_store):
    cases = choose_cases(phantom_store, Segment(SegmentConfig())).all
    model = by_intensity()

    def told(low, high):
        bounds = LearntSpacing((low,) * 3, (high,) * 3)
        return list(_other_sizes(replace(model, learnt=Learnt(bounds)), cases))

    assert told(8.0, 8.0) == told(4.0, 9.0) == []
    with pytest.raises(UnusableInput, match="8 of 8 cases have voxels of another size"):
        told(1.0, 2.0)
    card = cases[0].card
    odd = replace(card, affine=card.affine @ Affine.scale((3.0, 1.0, 1.0)))
    cases = (CaseRef(phantom_store, odd), *cases[1:])
    (note,) = told(8.0, 8.0)
    assert "1 of 8 cases have voxels of another size" in note.text
    (note,) = _other_sizes(replace(model, learnt=Learnt(None, "unknown")), cases)
    assert note.text == "unknown"
