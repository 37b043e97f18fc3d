"""The detect task: what cells learn, how windows join, and the way from end to end."""

from __future__ import annotations

import csv
import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classify_runs import prepared, run
from each import each
from homolog.backbones import build
from homolog.events import drain
from homolog.feed.batches import Feed, StoredScan
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.model_files.folder import load_model
from homolog.scans.boxes import read_box_json, read_regions
from homolog.scans.volume import Volume
from homolog.store.crops import draw_place
from homolog.store.store import Store
from homolog.tasks.base import PredictOptions, Trained
from homolog.tasks.detect.answer import (
    Boxes,
    find_boxes,
    merge,
    summarise_boxes,
    windows_over,
)
from homolog.tasks.detect.detector import DetectModule, JoinedDetectors
from homolog.tasks.detect.one_stage import (
    DetectNetwork,
    Grid,
    assigned,
    cell_middles,
    decoded,
    detection_losses,
    level_of,
)
from homolog.tasks.detect.targets import (
    BoxConfig,
    KnownBoxes,
    Levels,
    Seen,
    Sizes,
    box_space,
    boxes_in_view,
    boxes_of_label,
    chosen_levels,
    chosen_spacing,
    is_usable,
    target_rows,
)
from homolog.tasks.detect.task import Detect, DetectConfig
from homolog.use.join import join_models
from homolog.views.plan import Scan, plan_views
from homolog.views.view import Anchor, ViewSpec
from memory_store import MemoryStore

CPU = torch.device("cpu")
NET = {"channels": (8, 16, 16)}
OBLIQUE = Affine.of(
    (3.0, 1.5, 1.5), (-40.0, 30.0, 10.0),
    [[math.cos(0.3), -math.sin(0.3), 0], [math.sin(0.3), math.cos(0.3), 0], [0, 0, 1]],
)  # fmt: skip
SPACE = (0, 1, 2)


def with_boxes(
    boxes: list[dict[str, object]],
    shape: tuple[int, int, int] = (16, 24, 24),
    affine: Affine = OBLIQUE,
    seed: int = 0,
) -> CaseRef:
    """A noisy scan, bright inside its boxes."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 20, (1, *shape))
    for box in boxes:
        span = tuple(
            slice(int(a), int(b)) for a, b in zip(box["min"], box["max"], strict=True)
        )
        image[(0, *span)] += 300
    store = MemoryStore()
    store.hash = "memory"  # type: ignore[attr-defined]
    case = store.add(image, affine)
    card = dataclasses.replace(case.card, boxes=tuple(boxes))
    return CaseRef(case.store, card)


def box(
    low: list[float], high: list[float], label: str = "lesion"
) -> dict[str, object]:
    return {"label": label, "min": low, "max": high}


def grids_of(
    strides: list[tuple[int, int, int]], size: tuple[int, int, int], classes: int = 1
) -> list[Grid]:
    """Empty answers of the right sizes."""
    made = []
    for stride in strides:
        cells = [n // s for n, s in zip(size, stride, strict=True)]
        flat = torch.zeros(1, classes, *cells)
        made.append(Grid(flat, flat, torch.zeros(1, classes, 6, *cells), stride))
    return made


def seen_of(low: list[float], high: list[float], label: int = 0, classes: int = 1):
    return Seen(
        torch.tensor([label]),
        torch.tensor([low]).float(),
        torch.tensor([high]).float(),
        torch.ones(classes, dtype=torch.bool),
    )


# Boxes of cases.


def test_parts_of_a_label_are_boxes_and_specks_are_not() -> None:
    mask = np.zeros((10, 20, 20), bool)
    mask[2:5, 3:9, 4:6] = True
    mask[7:9, 12:18, 10:20] = True
    mask[0, 0, 0] = True
    parts = boxes_of_label(mask, parts=True, least=8)
    assert parts == [([2, 3, 4], [5, 9, 6]), ([7, 12, 10], [9, 18, 20])]
    assert boxes_of_label(mask, parts=False, least=8) == [([2, 3, 4], [9, 18, 20])]
    assert boxes_of_label(np.zeros((3, 3, 3), bool), parts=True) == []


def test_boxes_come_from_the_manifest_or_from_label_maps() -> None:
    store = MemoryStore()
    label = np.zeros((8, 8, 8))
    label[1:3, 2:5, 2:4], label[5:8, 4:8, 4:8] = 1, 2
    store.label_names = {1: "cyst", 2: "ignore"}
    case = store.add(np.zeros((1, 8, 8, 8)), OBLIQUE, label)
    drawn = KnownBoxes(BoxConfig()).of(case)
    assert drawn == ({"label": "cyst", "min": [1, 2, 2], "max": [3, 5, 4]},)
    told = dataclasses.replace(case.card, boxes=(box([0, 0, 0], [2, 2, 2]),))
    named = CaseRef(case.store, told)
    assert KnownBoxes(BoxConfig()).of(named)[0]["label"] == "lesion"
    assert KnownBoxes(BoxConfig(boxes_from="parts")).of(named) == drawn
    placed = KnownBoxes(BoxConfig()).placing(case).card
    assert placed.boxes == drawn
    assert not placed.has_label


def test_a_scan_without_boxes_counts_only_where_it_is_said_to_have_none() -> None:
    card = with_boxes([]).card
    assert not is_usable(card, BoxConfig())
    for told in ("no finding", "Normal"):
        assert is_usable(dataclasses.replace(card, target=told), BoxConfig())
    ill = dataclasses.replace(card, target="lesion")
    assert not is_usable(ill, BoxConfig())
    assert is_usable(ill, BoxConfig(empty_classes=("lesion",)))


def test_crops_are_centred_in_boxes() -> None:
    case = with_boxes([box([2, 3, 4], [5, 9, 6])])
    rng = np.random.default_rng(0)
    places = np.stack([draw_place(case.store, case.card, rng, 1.0) for _ in range(50)])
    assert (places >= np.array([2, 3, 4]) - 0.5).all()
    assert (places <= np.array([5, 9, 6]) - 0.5).all()
    rng = np.random.default_rng(0)
    anywhere = np.stack(
        [draw_place(case.store, case.card, rng, 0.0) for _ in range(50)]
    )
    assert np.ptp(anywhere[:, 2]) > 10


# What a network looks at.


def test_voxels_are_as_coarse_as_boxes_allow() -> None:
    organs = Sizes(20.0, (240.0, 240.0, 240.0))
    spacing = chosen_spacing(organs, (3.0, 2.0, 2.0), SPACE, 80)
    assert spacing == (4.0, 4.0, 4.0)  # 240 mm in 60 voxels, 20 mm in 5
    small = Sizes(8.0, (20.0, 20.0, 20.0))
    assert chosen_spacing(small, (3.0, 1.0, 1.0), SPACE, 80) == (3.0, 1.0, 1.0)
    tiny = Sizes(8.0, (400.0, 400.0, 400.0))
    assert chosen_spacing(tiny, (1.0, 1.0, 1.0), SPACE, 80) == (2.0, 2.0, 2.0)


def test_levels_reach_from_small_to_large_boxes() -> None:
    strides = [(2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16)]
    levels = chosen_levels(strides, 9.0, 40.0, planar=False)
    assert levels.strides == ((4, 4, 4), (8, 8, 8))
    assert levels.maps == (1, 2, 3)  # coarser maps still tell what is around
    flat = chosen_levels([(16, 16, 16)] * 4, 5.0, 30.0, planar=False)
    assert (flat.maps, flat.finer) == ((3,), 2)
    assert flat.strides == ((4, 4, 4), (8, 8, 8))
    assert Levels.from_dict(levels.to_dict()) == levels


@each("name", ["resunet", "vit", "swin", "resnet2d"])
def test_a_network_says_something_at_every_cell(name: str) -> None:
    small = {
        "resunet": NET, "vit": {"img_size": (16, 16, 16), "depth": 4, "hidden_size": 48,
        "mlp_dim": 48, "num_heads": 4}, "swin": {"feature_size": 12},
        "resnet2d": {"widths": (8, 16, 16, 16), "stage_blocks": (1, 1, 1, 1),
                     "block": "basic"},
    }  # fmt: skip
    known = {f.name for f in dataclasses.fields(type(build(name, {}).config))}
    net = build(name, {k: v for k, v in small[name].items() if k in known})
    planar = net.spatial_dims == 2
    levels = chosen_levels(net.strides, 6.0, 30.0, planar)
    network = DetectNetwork(net, levels, 2, width=16, depth=1, planar=planar)
    size = (1, 64, 64) if planar else (32, 32, 32)
    grids = network(torch.randn(1, 1, *size))
    for grid in grids:
        cells = [math.ceil(n / s) for n, s in zip(size, grid.stride, strict=True)]
        assert grid.classes.shape == (1, 2, *cells)
        assert grid.sides.shape == (1, 2, 4 if planar else 6, *cells)
    sum(g.sides.sum() + g.classes.sum() for g in grids).backward()  # type: ignore[union-attr]


# Where boxes lie in a view.


def test_boxes_keep_their_place_in_a_crop_of_an_oblique_scan() -> None:
    case = with_boxes([box([4, 6, 8], [9, 14, 11])])
    boxes = KnownBoxes(BoxConfig())
    (row,) = target_rows([case], boxes, box_space([case], boxes))
    spec = ViewSpec(size=(8, 16, 16), place=Anchor())
    scan = Scan(case.card.affine, case.card.shape)
    plan = plan_views(
        {"crop": spec}, scan, lambda _: np.array([6.0, 10, 9]), seed=0, sample=0
    )
    affine = torch.from_numpy(plan["crop"].affine[0])
    seen = boxes_in_view(torch.tensor(row), affine, 1)
    first = case.card.affine.inverse().apply(affine[:3, 3].numpy())
    assert seen.low[0].numpy() + first == pytest.approx([4, 6, 8], abs=1e-3)
    assert seen.high[0].numpy() + first == pytest.approx([9, 14, 11], abs=1e-3)


def test_a_mirrored_and_enlarged_view_mirrors_and_enlarges_its_boxes() -> None:
    case = with_boxes([box([4, 6, 8], [9, 14, 11])], affine=Affine.of((2.0, 2.0, 2.0)))
    boxes = KnownBoxes(BoxConfig())
    (row,) = target_rows([case], boxes, box_space([case], boxes))
    affine = torch.eye(4, dtype=torch.float64)
    affine[0, 0], affine[0, 3] = -1.0, 31.5  # half the size, from the far end
    affine[1, 1] = affine[2, 2] = 2.0
    seen = boxes_in_view(torch.tensor(row), affine, 1)
    # z mm of the box: edges 4..9 are -1 + 8 .. -1 + 18; view z edge = 32 - mm
    assert [seen.low[0, 0], seen.high[0, 0]] == pytest.approx([32 - 17, 32 - 7])
    assert seen.low[0, 1:].tolist() == pytest.approx([6, 8])


def test_a_turned_box_is_what_holds_its_ellipsoid() -> None:
    turn = math.radians(90)
    affine = torch.eye(4, dtype=torch.float64)
    affine[1:3, 1:3] = torch.tensor(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    )
    row = [1.0, 0.0, *[0.0, 0, 0], *[1.0, 0, 0, 0, 4, 0, 0, 0, 2]]
    seen = boxes_in_view(torch.tensor(row), affine, 1)
    half = (seen.high - seen.low)[0] / 2
    assert half.tolist() == pytest.approx([1, 2, 4], abs=1e-5)
    affine[1:3, 1:3] = torch.tensor([[1.0, -1], [1, 1]]) / math.sqrt(2)
    seen = boxes_in_view(torch.tensor(row), affine, 1)
    half = (seen.high - seen.low)[0] / 2
    assert half.tolist() == pytest.approx([1, math.sqrt(10), math.sqrt(10)], abs=1e-5)


# What cells learn.


def test_cells_around_the_middle_learn_the_box_at_its_level() -> None:
    """Paper: Hundred Million IV-C."""
    grids = grids_of([(4, 4, 4), (8, 8, 8)], (32, 32, 32))
    small, large = assigned(seen_of([8, 8, 8], [24, 24, 24]), grids, (32,) * 3, SPACE)
    assert large.classes.sum() == 0
    # cells of 4 with middles within 6 of 16: 10 (not nearer than 6), 14, 18
    assert small.classes.nonzero()[:, 1:].unique().tolist() == [3, 4]
    hit = small.classes[0] > 0
    assert (small.boxes[0][hit] == torch.tensor([8.0, 8, 8, 24, 24, 24])).all()
    small, large = assigned(seen_of([0, 0, 0], [32, 32, 32]), grids, (32,) * 3, SPACE)
    assert small.classes.sum() == 0 < large.classes.sum()
    thick = level_of(torch.tensor([8.0, 32, 32]), [(1, 4, 4), (2, 8, 8)], SPACE)
    assert thick == 1


def test_a_box_smaller_than_a_cell_still_has_one() -> None:
    (target,) = assigned(
        seen_of([9, 9, 9], [10, 10, 10]), grids_of([(8, 8, 8)], (32,) * 3), (32,) * 3,
        SPACE,
    )  # fmt: skip
    assert target.classes.nonzero().tolist() == [[0, 1, 1, 1]]


def test_what_lies_mostly_outside_is_neither_asked_for_nor_denied() -> None:
    (target,) = assigned(
        seen_of([-20, 8, 8], [16, 24, 24]), grids_of([(8, 8, 8)], (32,) * 3),
        (32,) * 3, SPACE,
    )  # fmt: skip
    assert target.classes.sum() == 0
    assert not target.counts[0, 0, 1, 1]
    assert target.counts[0, 3, 1, 1]
    assert target.counts.sum() == 64 - 2 * 2 * 2


def test_classes_that_a_data_set_does_not_name_are_not_judged() -> None:
    seen = dataclasses.replace(
        seen_of([8, 8, 8], [24, 24, 24], classes=2), known=torch.tensor([True, False])
    )
    grids = grids_of([(8, 8, 8)], (32,) * 3, 2)
    (target,) = assigned(seen, grids, (32,) * 3, SPACE)
    assert target.counts[0].all()
    assert not target.counts[1].any()


def test_distances_that_are_learnt_make_the_box_again() -> None:
    grids = grids_of([(2, 4, 4)], (16, 32, 32))
    true = torch.tensor([[3.0, 8, 6, 10, 24, 20]])
    targets = assigned(
        seen_of(*true.reshape(2, 3).tolist()), grids, (16, 32, 32), SPACE
    )
    hit = targets[0].classes[0] > 0
    middles = cell_middles(grids[0])[hit]
    reach = torch.tensor([4.0, 8, 8])
    away = torch.cat([middles - true[:, :3], true[:, 3:] - middles], 1)
    sides = (away / reach.repeat(2)).log()
    assert torch.allclose(
        decoded(sides, middles, (2, 4, 4), SPACE), true.expand(len(middles), 6)
    )
    perfect = torch.zeros_like(grids[0].sides)
    perfect[0, 0][:, hit] = sides.T
    sure = torch.where(targets[0].classes > 0, 12.0, -12.0)[None]
    done = [Grid(sure, torch.zeros_like(sure), perfect, (2, 4, 4))]
    losses = detection_losses(done, [targets], SPACE, hit.sum())
    assert losses["boxes"] < 1e-4
    assert losses["sides"] < 1e-4
    assert losses["classes"] < 1e-3


def test_a_crop_without_boxes_teaches_that_there_is_none() -> None:
    case = with_boxes([])
    none = [[1.0]]  # its class is known, and it has no box
    network = small_network()
    module = DetectModule(network, ViewSpec(size=(16, 16, 16)))
    feed = Feed([case], module.views(), batch_size=2, seed=0, targets=none, threads=0)
    losses = module.losses(feed.views(feed.batch(0), CPU), 0.0)
    assert losses["classes"] > 0
    assert module.positives == pytest.approx(27 * 0.9)  # others taught by some cells
    assert losses["boxes"] == losses["sides"] == losses["centre"] == 0
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in network.classify.parameters())


def small_network(planar: bool = False) -> DetectNetwork:
    torch.manual_seed(0)
    net = build("resunet", {**NET, "steps": ((1, 2, 2),) * 3} if planar else NET)
    levels = Levels((1, 2), 0, 1, (net.strides[1],))
    return DetectNetwork(net, levels, 1, width=16, depth=1, planar=planar)


def test_joined_detectors_say_the_mean() -> None:
    first, second = small_network().eval(), small_network().eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        for weight in second.classify.parameters():
            weight.add_(0.3)
        joined = JoinedDetectors([first, second])
        (mean,), (a,), (b,) = joined(image), first(image), second(image)
    chances = (a.classes.sigmoid() + b.classes.sigmoid()) / 2
    assert torch.allclose(mean.classes.sigmoid(), chances, atol=1e-5)
    assert torch.allclose(mean.sides, a.sides)  # theirs agree
    assert joined.axes == first.axes


# Windows.


def test_windows_cover_a_scan_and_leave_borders_to_neighbours() -> None:
    windows = windows_over((100.0, 40.0, 20.0), (40, 40, 40), 0.5)
    starts = [w.start for w in windows]
    assert starts[0] == (0.0, 0.0, -10.0)
    assert starts[-1] == (60.0, 0.0, -10.0)
    for place in np.linspace(0.0, 100.0, 41):  # every place is in the inner part of one
        assert any(
            w.inner[0][0] <= place - w.start[0] <= w.inner[1][0] for w in windows
        )
    assert windows[0].inner[0] == (-math.inf,) * 3
    assert windows[1].inner[0][0] == 5.0


def test_boxes_of_windows_become_one() -> None:
    def said(*rows: tuple[list[float], float]) -> Boxes:
        return Boxes(
            np.array([b for b, _ in rows]).reshape(-1, 6),
            np.zeros(len(rows), np.int64), np.array([s for _, s in rows]),
        )  # fmt: skip

    first, second = [0.0, 0, 0, 10, 10, 10], [2.0, 0, 0, 12, 10, 10]
    everywhere = (np.full(3, -100.0), np.full(3, 100.0))
    elsewhere = (np.full(3, 50.0), np.full(3, 100.0))
    views = [said((first, 0.9)), said((second, 0.3)), said()]
    seen = [everywhere, everywhere, elsewhere]
    one = merge(views, seen, 0.4, "fusion")
    assert one.scores == pytest.approx([0.6])  # the third does not see the place
    assert one.boxes[0] == pytest.approx([0.5, 0, 0, 10.5, 10, 10])
    all_see = merge(views, [everywhere] * 3, 0.4, "fusion")
    assert all_see.scores == pytest.approx([0.4])
    surest = merge(views, seen, 0.4, "nms")
    assert surest.boxes.tolist() == [first]
    apart = merge(views, seen, 0.8, "nms")
    assert len(apart.boxes) == 2
    assert merge([said()], [everywhere], 0.4, "fusion").boxes.shape == (0, 6)


class _Told(DetectNetwork):
    """Says a box wherever the image is bright: what windows do with it is seen."""

    def forward(self, image: torch.Tensor) -> list[Grid]:
        stride = self.levels.strides[0]
        bright = torch.nn.functional.avg_pool3d(image[:, :1], stride, stride) > 0.3
        sides = torch.zeros(len(image), 1, 6, *bright.shape[2:])
        logits = torch.where(bright, 4.0, -9.0)
        return [Grid(logits, logits, sides - 0.7, stride)]


@each("spacing", [None, [6.0, 3.0, 3.0]])
@each("flips", [(), (0, 2)])
def test_a_scan_in_many_windows_has_the_boxes_of_one(
    spacing: list[float] | None, flips: tuple[int, ...]
) -> None:
    side = 4 if spacing is None else 8  # a cell of the network, as it sees the scan
    low = np.array([24, 8, 40])
    case = with_boxes([box([*low], [*(low + side)])], (48, 32, 64))
    network = small_network()
    network.__class__ = _Told
    spec = {
        "window": [16, 16, 16], "smallest": [8, 8, 8], "spacing_mm": spacing,
        "overlap": 0.5, "iou": 0.4, "merge": "fusion", "least_score": 0.05,
    }  # fmt: skip
    model = Trained(network.eval(), spec, {}, CPU)
    card = case.card
    scan = StoredScan(case.store.image(card.id), card.affine, card.levels)
    options = PredictOptions(flips=flips)
    found = drain(find_boxes(model, scan, options))
    assert len(found.scores) == 1
    middle = (found.boxes[0, :3] + found.boxes[0, 3:]) / 2
    assert middle == pytest.approx(low + side / 2, abs=0.1)


@each("axes", [(0, 1, 2), (2, 0, 1)])
def test_boxes_come_back_on_the_scans_own_grid(axes: tuple[int, int, int]) -> None:
    """Whatever way its array runs: where it is bright there is a box."""
    case = with_boxes([box([24, 8, 40], [28, 12, 44])], (48, 32, 64))
    data = case.store.image(case.card.id)[0].astype(np.float32)
    turned = np.ascontiguousarray(data.transpose(axes)[::-1])
    matrix = OBLIQUE.matrix.copy()
    matrix[:3, :3] = OBLIQUE.matrix[:3, :3][:, list(axes)]
    matrix[:3, 3] = Affine(matrix).apply(np.array([turned.shape[0] - 1, 0, 0]))
    matrix[:3, 0] *= -1
    volume = Volume(turned[None], Affine(matrix), "scan", "CT", {})
    network = small_network()
    network.__class__ = _Told
    spec = {
        "window": [16, 16, 16], "smallest": [8, 8, 8], "spacing_mm": None,
        "overlap": 0.5, "iou": 0.4, "merge": "fusion", "least_score": 0.05,
        "planar": False, "channels": 1, "modalities": ["CT"], "classes": ["lesion"],
    }  # fmt: skip
    card = {"preprocessing": {"window_hu": [-100.0, 300.0]}}
    model = Trained(network.eval(), spec, card, CPU)
    found = drain(Detect(DetectConfig()).run(volume, model))
    assert found is not None
    assert found.shape == turned.shape
    (one,) = found.boxes
    middle = (np.array(one.low) + np.array(one.high)) / 2
    bright = np.argwhere(turned > 150).mean(0) + 0.5
    assert middle == pytest.approx(bright, abs=0.6)
    true = OBLIQUE.apply(np.array([26.0, 10, 42]) - 0.5)
    assert one.middle_mm(volume.affine) == pytest.approx(true, abs=2.0)
    unsized = dataclasses.replace(volume, meta={"sized": False})
    assert drain(Detect(DetectConfig()).run(unsized, model)).affine is None


# From pictures to boxes, through the commands.


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty noisy pictures, most with one or two bright squares, and a manifest."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(30):
        image, name = rng.normal(60, 12, (64, 64)), f"p{number:02}.png"
        count = number % 3
        for k in range(count):
            y, x = rng.integers(2, 10, 2) + 32 * np.array([k, k])
            side = int(rng.integers(12, 18))
            image[y : y + side, x : x + side] += 120
            rows.append([name, "XR", "lesion", x, y, side, side])
        if not count:
            rows.append([name, "XR", "normal", "", "", "", ""])
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    with (folder / "scans.csv").open("w", newline="") as file:
        head = ["image", "modality", "class", "x", "y", "w", "h"]
        csv.writer(file).writerows([head, *rows])
    return folder


def twin(folder: Path) -> Path:
    """The same run under another name."""
    return Path(shutil.copytree(folder / "run", folder / "twin"))


def test_from_pictures_with_boxes_to_boxes_in_files(
    pictures: Path, tmp_path: Path
) -> None:
    """Paper: Joint Table 5, detection."""
    store = prepared(pictures / "scans.csv", tmp_path / "store")
    network = [
        "--set=backbone.widths=8,16,16", "--set=backbone.stage_blocks=1,1,1",
        "--set=backbone.block=basic", "--set=backbone.norm=group",
    ]  # fmt: skip
    run(
        "finetune", "detect", store.path, "--encoder=scratch", "--backbone=resnet2d",
        *network, "--steps=80", "--recipe=cpu", "--out", tmp_path / "run",
        "--set=training.validate_every=40", "--set=training.dry_run_steps=0",
        "--set=training.learning_rate=3e-3", "--set=width=16", "--set=depth=1",
        "--set=training.batch_size=4",
    )  # fmt: skip
    result = run("evaluate", store.path, "--model", tmp_path / "run")
    assert result["mean"]["ap50"] > 0.6
    assert result["mean"]["auc"] > 0.8
    scans = [pictures / f"p{k:02}.png" for k in (0, 1, 2)]
    out = tmp_path / "out"
    told = run("predict", *scans, "--model", tmp_path / "run", "--out", out)
    with (out / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["scan"] for row in rows] == [
        Path(found["scan"]).stem for found in told["predicted"] for _ in found["boxes"]
    ]
    assert "p01" in {row["scan"] for row in rows}
    boxes = read_box_json(out / "p01.boxes.json")
    assert boxes.affine is None  # pixels of unknown size
    assert not (out / "p01.mrk.json").exists()
    join_models([tmp_path / "run", twin(tmp_path)], tmp_path / "both")
    pooled = run("evaluate", store.path, "--model", tmp_path / "both")
    assert pooled["mean"]["ap50"] == pytest.approx(result["mean"]["ap50"], abs=0.05)
    more = run(
        "predict", scans[0], "--model", tmp_path / "run", "--out", tmp_path / "more",
        "--least-score=0.01",
    )  # fmt: skip
    counts = [len(found["predicted"][0]["boxes"]) for found in (more, told)]
    assert counts[0] >= counts[1]


def test_a_pretrained_encoder_learns_boxes_around_labels_of_volumes(
    encoder: Path, phantom_store: Store, phantom_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    told = run(
        "finetune", "detect", phantom_store.path, "--encoder", encoder, "--steps=3",
        "--recipe=cpu", "--out", out, "--set=boxes_from=labels", "--set=width=16",
        "--set=training.dry_run_steps=0", "--set=training.batch_size=1",
        "--set=head_first=0.4", "--set=window=16,24,24", "--validate=none",
    )  # fmt: skip
    assert told["steps"] == 3
    card = load_model(out).card
    assert card["encoder"]["report"]["matched"]
    assert card["kind"] == "detect"
    assert "liver" in card["task_spec"]["classes"]
    assert "threshold" not in card["task_spec"]  # nothing was held out to choose it
    scan = next((phantom_folder / "imagesTr").glob("*.nii.gz"))
    result = run(
        "predict", scan, "--model", out, "--out", tmp_path / "boxes", "--least-score=0"
    )
    (found,) = result["predicted"]
    assert found["boxes"]
    regions = read_regions(Path(found["files"][1]))
    table = read_box_json(Path(found["files"][0]))
    assert len(regions) == len(table.boxes) == len(found["boxes"])
    back = regions[0].on_grid(table.affine)
    assert back.low == pytest.approx(table.boxes[0].low, abs=1e-6)


# Rows.


def test_scans_with_a_box_are_told_from_those_without_over_all_classes() -> None:
    def row(case: str, name: str, true: int, scores: list[float]) -> dict[str, object]:
        cube = [0.0, 0, 0, 4, 4, 4]
        known = {
            "truth": [cube] * true,
            "boxes": [cube] * len(scores),
            "scores": scores,
        }
        return {"case": case, "class": name, "true": true, "known": known}

    rows = [
        row("a", "x", 1, [0.9]), row("a", "y", 0, []),
        row("b", "x", 0, [0.2]), row("b", "y", 0, [0.1]),
    ]  # fmt: skip
    found = summarise_boxes(rows)
    assert found["mean"]["auc"] == 1.0
    assert found["mean"]["ap50"] == pytest.approx(
        1.0
    )  # of x alone: y has no box anywhere
    assert (found["cases"], found["images_with_boxes"]) == (2, 1)
    assert Detect(DetectConfig()).report(found)[0] == "2 cases, 1 of them with boxes"
