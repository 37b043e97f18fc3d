"""The kinds of detectors: key points, and torchvision's Faster R-CNN where it is."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from monai.data.box_utils import box_iou
from torch import Tensor

from each import each
from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.errors import UnusableInput
from homolog.tasks.detect import faster_rcnn
from homolog.tasks.detect.detector import DetectModule, Detector, JoinedDetectors
from homolog.tasks.detect.faster_rcnn import FasterRcnnNetwork, targets_of
from homolog.tasks.detect.one_stage import log_sides, middles_of
from homolog.tasks.detect.points import (
    HIGH,
    LOW,
    MIDDLE,
    Heat,
    PointNetwork,
    boxes_of_heat,
    heat_focal,
    peaks,
    point_losses,
    radius_share,
    spots,
)
from homolog.tasks.detect.targets import Levels, Seen, affordable_levels
from homolog.tasks.detect.task import DETECTORS, Detect, DetectConfig
from homolog.views.view import ViewSpec

SPACE, PLANE = (0, 1, 2), (1, 2)


def usual(count: int) -> Tensor:
    return torch.tensor(float(max(1, count)))


def seen_of(*boxes: tuple[list[float], list[float]], classes: int = 1) -> Seen:
    """Boxes of class 0, 1, ... in their order."""
    low, high = (np.array([b[k] for b in boxes]).reshape(-1, 3) for k in (0, 1))
    return Seen(
        torch.arange(len(boxes)) % classes,
        torch.tensor(low, dtype=torch.float32),
        torch.tensor(high, dtype=torch.float32),
        torch.ones(classes, dtype=torch.bool),
    )


def backbone(planar: bool) -> Backbone:
    torch.manual_seed(0)
    flat = {"steps": ((1, 2, 2),) * 3} if planar else {}
    return build("resunet", {"channels": (8, 16, 16), **flat})


def levels_of(net: Backbone) -> Levels:
    return Levels((1, 2), 0, 1, (net.strides[1],))


# Key points.


@each("axes", [2, 3])
def test_corners_within_the_radius_make_boxes_that_overlap_enough(axes: int) -> None:
    """Source: CornerNet, section 3.2: an overlap of 0.3."""
    share = radius_share(axes)
    true = torch.tensor([[0.0] * axes + [10.0] * axes])
    worst = 1.0
    for signs in np.ndindex(*([3] * 2 * axes)):
        moved = true + 10 * share * (torch.tensor(signs, dtype=torch.float32) - 1)
        worst = min(worst, float(box_iou(true, moved)))
    assert worst == pytest.approx(0.3, abs=1e-4)


def test_spots_are_one_at_key_points_and_less_around_them() -> None:
    """Paper: Hundred Million IV-C."""
    seen = seen_of(([4, 8, 12], [20, 24, 28]))
    wanted = spots(seen, (8, 8, 8), (4, 4, 4), SPACE)
    for kind, cell in ((MIDDLE, (3, 4, 5)), (LOW, (1, 2, 3)), (HIGH, (5, 6, 7))):
        heat = wanted.points[0, kind]
        assert heat[cell] == 1
        assert int((heat == 1).sum()) == 1
        assert heat[cell[0] - 1, cell[1], cell[2]] == pytest.approx(
            math.exp(-0.5 / max(0.5, 4 * radius_share(3) / 3) ** 2)
        )
    learnt = wanted.boxes[0][wanted.weights[0] > 0]
    assert (learnt == torch.tensor([4.0, 8, 12, 20, 24, 28])).all()
    assert wanted.offsets[0][:, 1, 2, 3].tolist() == [-0.5] * 3  # low, from the middle
    assert int((~wanted.offsets.isnan()).sum()) == 6


def test_what_lies_outside_is_neither_asked_for_nor_denied() -> None:
    seen = seen_of(([-20, 8, 8], [12, 24, 24]))
    wanted = spots(seen, (8, 8, 8), (4, 4, 4), SPACE)
    assert wanted.points[0, MIDDLE].sum() == wanted.points[0, LOW].sum() == 0
    assert wanted.points[0, HIGH, 3, 6, 6] == 1  # this corner is seen
    assert not wanted.counts[0, MIDDLE, 1, 3, 3]
    assert wanted.counts[0, MIDDLE, 4, 3, 3]
    assert wanted.counts[0, HIGH].all()
    edge = spots(seen_of(([0, 0, 0], [32, 32, 32])), (8, 8, 8), (4, 4, 4), SPACE)
    assert edge.points[0, HIGH, 7, 7, 7] == edge.points[0, LOW, 0, 0, 0] == 1


def test_the_loss_of_heat_maps_is_that_of_corner_net() -> None:
    """Source: CornerNet, equation 1, counted by hand."""
    logits = torch.tensor([0.0, 0.0, 2.0])
    wanted = torch.tensor([1.0, 0.5, 0.0])
    sure = 1 / (1 + math.exp(-2))
    by_hand = [0.25 * math.log(2), 0.5**4 * 0.25 * math.log(2),
               -(sure**2) * math.log(1 - sure)]  # fmt: skip
    assert heat_focal(logits, wanted).tolist() == pytest.approx(by_hand)


def told_of(seen: Seen, grid: tuple[int, int, int], axes: tuple[int, ...]) -> Heat:
    """The right answer, but for faces that are 5 % too far away."""
    stride = (1, 4, 4) if len(axes) == 2 else (4, 4, 4)
    wanted = spots(seen, grid, stride, axes)
    classes = len(seen.known)
    at = middles_of(grid, stride, torch.device("cpu")).expand(classes, *grid, 3)
    sides = log_sides(
        wanted.boxes.reshape(-1, 2 * len(axes)), at.reshape(-1, 3), stride, axes
    )
    sides = sides.reshape(*wanted.boxes.shape).movedim(-1, 1)[None] + math.log(1.05)
    points = torch.where(wanted.points == 1, 9.0, -9.0)[None]
    return Heat(points, sides, wanted.offsets.nan_to_num()[None], stride)


@each("planar", [True, False])
def test_boxes_come_back_from_their_key_points(planar: bool) -> None:
    axes, grid = (PLANE, (1, 16, 16)) if planar else (SPACE, (8, 8, 8))
    size = (1, 64, 64) if planar else (32, 32, 32)
    first = ([0, 9, 10], [1, 24, 30]) if planar else ([4, 9, 10], [21, 24, 30])
    second = ([0, 30, 20], [1, 60, 52]) if planar else ([10, 12, 16], [24, 30, 31])
    seen = seen_of(first, second, classes=2)
    heat = told_of(seen, grid, axes)
    found = boxes_of_heat(heat, axes, size, 0.1)
    assert found.label.tolist() == [0, 1]
    assert torch.allclose(found.boxes[:, :3], seen.low)
    assert torch.allclose(found.boxes[:, 3:], seen.high)
    blind = Heat(heat.points.clone(), heat.sides, heat.offsets, heat.stride)
    blind.points[:, :, 1:] = -9.0  # no corner is found: the middle's word counts
    boxes = boxes_of_heat(blind, axes, size, 0.1).boxes
    assert not torch.allclose(boxes[:, 3:], seen.high)
    assert torch.allclose(boxes[:, 3:], seen.high, atol=1.0)
    losses = point_losses(heat, [spots(seen, grid, heat.stride, axes)], axes, usual)
    assert losses["points"] < 1e-3
    assert losses["offsets"] == 0
    assert losses["sides"] == pytest.approx(0.5 * math.log(1.05) ** 2 / 0.2, rel=0.01)


def test_of_neighbours_only_the_surest_is_a_peak() -> None:
    heat = torch.zeros(1, 1, 4, 4)
    heat[0, 0, 1, 1], heat[0, 0, 1, 2], heat[0, 0, 3, 3] = 0.9, 0.8, 0.3
    assert peaks(heat).nonzero().tolist() == [[0, 0, 1, 1], [0, 0, 3, 3]]


@each("planar", [True, False])
def test_every_weight_of_a_point_detector_learns(planar: bool) -> None:
    net = backbone(planar)
    network = PointNetwork(net, levels_of(net), 1, width=8, depth=1, planar=planar)
    size = (1, 32, 32) if planar else (16, 16, 16)
    low, high = [0.0, 4, 4], [size[0], 12.0, 12]
    seen = [seen_of((low, high)), seen_of()]
    losses = network.losses(torch.randn(2, 1, *size), seen, usual)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in network.parameters())
    network.zero_grad()
    none = network.losses(torch.randn(1, 1, *size), [seen_of()], usual)
    assert none["boxes"] == none["sides"] == none["offsets"] == 0
    assert none["points"] > 0


def pictures(count: int, rng: torch.Generator) -> tuple[Tensor, list[Seen]]:
    """Noise with a bright square; the last picture has none."""
    images, boxes = torch.randn(count, 1, 1, 48, 48, generator=rng) * 0.3, []
    for number in range(count - 1):
        y, x, side = torch.randint(4, 16, (3,), generator=rng).tolist()
        side += 10
        images[number, 0, 0, y : y + side, x : x + side] += 2.0
        boxes.append(seen_of(([0, y, x], [1, y + side, x + side])))
    return images, [*boxes, seen_of()]


def learnt(network: Detector, steps: int, rate: float) -> tuple[Tensor, Tensor]:
    """Overlap of the surest box with the true one, and its scores; of six pictures."""
    rng = torch.Generator().manual_seed(0)
    module = DetectModule(network, ViewSpec(size=(1, 48, 48)))
    optimiser = torch.optim.AdamW(module.parameters(), rate)
    for _ in range(steps):
        images, seen = pictures(4, rng)
        losses = network.losses(images, seen, module._usual)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    network.eval()
    images, seen = pictures(7, rng)
    overlaps, scores = [], []
    with torch.no_grad():
        for image, one in zip(images, seen, strict=True):
            (found,) = network.found(network(image[None]), (1, 48, 48), 0.05)
            best = found.scores.argsort(descending=True)[:1]
            scores.append(found.scores[best].sum())
            if len(one.label):
                true = torch.cat([one.low, one.high], 1)
                overlaps.append(
                    box_iou(true, found.boxes[best])[0].sum()
                    if len(best)
                    else torch.tensor(0.0)
                )
    return torch.stack(overlaps), torch.stack(scores)


def test_key_points_of_squares_are_learnt() -> None:
    net = backbone(planar=True)
    network = PointNetwork(net, levels_of(net), 1, width=16, depth=1, planar=True)
    overlaps, scores = learnt(network, 60, 3e-3)
    assert overlaps.median() > 0.6
    assert scores[:-1].min() > scores[-1]  # the last shows none


def test_joined_point_detectors_say_the_mean() -> None:
    net = backbone(planar=True)
    first = PointNetwork(net, levels_of(net), 1, width=8, depth=1, planar=True).eval()
    second = PointNetwork(net, levels_of(net), 1, width=8, depth=1, planar=True).eval()
    joined = JoinedDetectors([first, second])
    image = torch.randn(1, 1, 1, 32, 32)
    with torch.no_grad():
        mean, a, b = joined(image), first(image), second(image)
    assert torch.allclose(
        mean.points.sigmoid(), (a.points.sigmoid() + b.points.sigmoid()) / 2, atol=1e-5
    )
    assert torch.allclose(mean.sides, (a.sides + b.sides) / 2)
    assert joined.axes == PLANE
    with pytest.raises(NotImplementedError):
        joined.losses(image, [seen_of()], usual)


# Faster R-CNN.


def test_without_torchvision_one_sentence_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def odd(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nmore of it")

    monkeypatch.setattr(faster_rcnn.importlib, "import_module", odd)
    with pytest.raises(UnusableInput) as caught:
        faster_rcnn.torchvision_module("ops")
    told = str(caught.value)
    assert "(operator torchvision::nms does not exist)" in told
    assert "detector=one_stage" in told
    assert "\n" not in told


def test_volumes_are_refused() -> None:
    net = backbone(planar=False)
    with pytest.raises(UnusableInput, match="single images"):
        FasterRcnnNetwork(net, levels_of(net), 1, planar=False)


def test_boxes_that_a_crop_cuts_are_clipped_or_left_out() -> None:
    seen = seen_of(
        ([0, -5, 4], [1, 15, 24]), ([0, -18, 4], [1, 2, 24]), ([0, 10, 12], [1, 20, 25])
    )
    told = targets_of(seen, (32, 32))
    assert told["boxes"].tolist() == [[4, 0, 24, 15], [12, 10, 25, 20]]
    assert told["labels"].tolist() == [1, 1]


def test_torchvisions_faster_rcnn_learns_on_our_encoder() -> None:
    """Paper: Joint Table 5, detection."""
    try:
        importlib.import_module("torchvision.models.detection")
    except (ImportError, RuntimeError, OSError):
        pytest.skip("no torchvision that fits this torch")
    net = backbone(planar=True)
    network = FasterRcnnNetwork(net, levels_of(net), 1, width=16, planar=True)
    overlaps, scores = learnt(network, 60, 2e-3)
    assert overlaps.median() > 0.5
    assert scores[:-1].median() > scores[-1]
    names = list(network.state_dict())
    assert len({n for n in names if n.startswith("encoder.")}) < len(names)
    joined = JoinedDetectors([network, network]).eval()
    image = pictures(2, torch.Generator().manual_seed(1))[0][:1]
    with torch.no_grad():
        assert len(joined.found(joined(image), (1, 48, 48), 0.0)) == 2
    partly = Seen(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0, 3),
        torch.tensor([False]),
    )  # fmt: skip
    with pytest.raises(UnusableInput, match="different classes"):
        network.losses(image, [partly], usual)


# What is chosen.


def test_each_kind_is_made_by_its_name() -> None:
    spec = {"planar": False, "classes": ["a"]}
    net = backbone(planar=False)
    spec["levels"] = levels_of(net).to_dict()  # type: ignore[assignment]
    for name, kind in DETECTORS.items():
        if name != "faster_rcnn":
            made = Detect(DetectConfig(detector=name, width=8)).network(net, spec)
            assert type(made) is kind


def test_fine_cells_are_left_out_where_there_would_be_too_many() -> None:
    strides = [(2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16)]
    small, large = 5.8, 48.0
    fine = affordable_levels(strides, small, large, window=(32, 32, 32), most=16**3)
    assert fine.strides[0] == (2, 2, 2)
    many = affordable_levels(strides, small, large, window=(64, 64, 64), most=16**3)
    assert many.strides == ((4, 4, 4), (8, 8, 8), (16, 16, 16))
