"""Crops on false positives: what is searched, shown again, and kept by a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from homolog.backbones import build
from homolog.events import Note
from homolog.feed.batches import Feed
from homolog.feed.places import Places
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.model_files.folder import generations
from homolog.tasks.base import Trained
from homolog.tasks.detect.detector import DetectModule
from homolog.tasks.detect.one_stage import DetectNetwork, Grid
from homolog.tasks.detect.search import (
    REMEMBERED,
    FalsePositives,
    Searched,
    windows_of_scan,
)
from homolog.tasks.detect.targets import (
    BoxConfig,
    KnownBoxes,
    Levels,
    box_space,
    target_rows,
)
from homolog.tasks.detect.task import Detect, DetectConfig
from homolog.views.view import Anchor, ViewSpec
from memory_store import MemoryStore
from toy_training import run_all

CPU = torch.device("cpu")
SPEC = {
    "window": [16, 16, 16], "smallest": [8, 8, 8], "spacing_mm": None, "overlap": 0.5,
    "iou": 0.4, "merge": "nms", "least_score": 0.05,
}  # fmt: skip
CROP = ViewSpec(size=(16, 16, 16), place=Anchor())


def cases_with(*spots: tuple[list[int], bool]) -> list[CaseRef]:
    """Scans of 32^3 voxels with a bright cube of 4; some say that it is a box."""
    store = MemoryStore()
    store.hash = "memory"  # type: ignore[attr-defined]
    cases = []
    for seed, (low, true) in enumerate(spots):
        image = np.random.default_rng(seed).normal(0, 20, (1, 32, 32, 32))
        image[(0, *(slice(n, n + 4) for n in low))] += 300
        case = store.add(image, Affine.of((2.0, 2.0, 2.0)))
        high = [n + 4 for n in low]
        boxes = ({"label": "lesion", "min": low, "max": high},) if true else ()
        cases.append(CaseRef(store, dataclasses.replace(case.card, boxes=boxes)))
    return cases


class Bright(DetectNetwork):
    """Takes whatever is bright for a lesion."""

    def forward(self, image: Tensor) -> list[Grid]:
        stride = self.levels.strides[0]
        bright = torch.nn.functional.avg_pool3d(image[:, :1], stride, stride) > 0.3
        sides = torch.zeros(len(image), 1, 6, *bright.shape[2:]) - 0.7
        logits = torch.where(bright, 4.0, -9.0)
        return [Grid(logits, logits, sides, stride)]


def network_of(cls: type[DetectNetwork] = DetectNetwork) -> DetectNetwork:
    torch.manual_seed(0)
    net = build("resunet", {"channels": (8, 16, 16)})
    levels = Levels((1, 2), 0, 1, (net.strides[1],))
    return cls(net, levels, 1, width=16, depth=1)


def search_of(
    network: DetectNetwork, cases: list[CaseRef], **settings: Any
) -> tuple[DetectModule, FalsePositives]:
    module = DetectModule(network, CROP, remembered=REMEMBERED)
    boxes = KnownBoxes(BoxConfig())
    searched = Searched(cases, boxes, box_space(cases, boxes), seed=0)
    model = Trained(network.eval(), SPEC, {}, CPU)
    given = {"share": 0.5, "every": 2, "count": len(cases), **settings}
    return module, FalsePositives(module, lambda: model, searched, **given)


def test_what_is_wrongly_found_becomes_a_place_and_what_is_true_does_not() -> None:
    cases = cases_with(([8, 12, 20], True), ([20, 8, 4], False))
    module, search = search_of(network_of(Bright), cases)
    assert not search.is_due(0, 10)
    assert search.is_due(4, 10)
    assert not search.is_due(10, 10)  # nothing comes after
    text = search(4)
    assert text.startswith("searched 2 training scans after 4 steps: 1 false positive")
    ((case, *voxel),) = search.places.rows.tolist()
    assert case == 1  # the first one's is a true box
    assert voxel == pytest.approx([21.5, 9.5, 5.5], abs=1.0)
    assert torch.equal(module.misses[:1], torch.from_numpy(search.places.rows))
    assert module.misses[1:].isnan().all()
    assert "misses" not in module.state_dict()  # a model does not keep them


def test_what_was_found_in_a_scan_is_replaced_when_it_is_searched_again() -> None:
    cases = cases_with(([8, 12, 20], True), ([20, 8, 4], False))
    _, search = search_of(network_of(Bright), cases)
    old = np.array([[1, 1, 1, 1], [0, 2, 2, 2]], np.float32)
    search.places.rows = old
    search(2)
    assert search.places.rows[:, 0].tolist() == [1]
    assert search.places.rows[0, 1:] == pytest.approx([21.5, 9.5, 5.5], abs=1.0)
    _, some = search_of(network_of(Bright), cases, count=1)
    some.places.rows = old
    some(2)  # whichever it looked at, the other scan's places are kept
    assert len(some.places.rows) in (1, 2)
    assert (some.places.rows == old[:, None]).all(-1).any()


def test_a_share_of_the_crops_lies_on_the_places() -> None:
    cases = cases_with(([8, 12, 20], True), ([20, 8, 4], False))
    places = Places(0.4)
    feed = Feed(
        cases, {"crop": CROP}, batch_size=40, seed=0, threads=0, places=places,
        targets=[[1.0], [1.0]],
    )  # fmt: skip
    before = feed.batch(3)
    places.rows = np.array([[1, 16, 15, 14]], np.float32)
    batch = feed.batch(3)
    centre = torch.tensor([7.5, 7.5, 7.5, 1.0], dtype=torch.float64)
    middle = (batch.draws["crop"].affine[:, 0] @ centre)[:, :3]
    # crops lie on whole voxels, of 2 mm
    there = (middle - torch.tensor([32.0, 30.0, 28.0])).abs().amax(1) <= 1.0
    assert 8 <= int(there.sum()) <= 24  # of 40
    assert batch.case[there].unique().tolist() == [1]
    same = (batch.draws["crop"].affine == before.draws["crop"].affine).all(-1).all(-1)
    assert bool((there | same[:, 0]).all())  # the others are where they were
    again = feed.batch(3)
    assert torch.equal(again.draws["crop"].affine, batch.draws["crop"].affine)


def run(folder: Path, **settings: Any) -> Any:
    """Six steps of a detector that finds boxes everywhere, searching every second."""
    cases = cases_with(([8, 12, 20], True), ([20, 8, 4], False), ([4, 4, 4], False))
    network = network_of()
    with torch.no_grad():
        assert network.classify.bias is not None
        network.classify.bias.zero_()
    module, search = search_of(network, cases, count=2)
    boxes = KnownBoxes(BoxConfig())
    feed: Any = Feed(
        cases, module.views(), batch_size=2, seed=0, places=search.places,
        targets=target_rows(cases, boxes, box_space(cases, boxes)),
    )  # fmt: skip
    return run_all(
        module, feed, folder, steps=6, dry_run_steps=0, search=search, log_every=1,
        learning_rate=1e-4, **settings,
    )  # fmt: skip


def test_stopped_and_resumed_shows_the_same_places_as_uninterrupted(
    tmp_path: Path,
) -> None:
    def last(folder: Path) -> bytes:
        return (generations(folder)[0] / "state.safetensors").read_bytes()

    _, events = run(tmp_path / "whole")
    told = [e.text for e in events if isinstance(e, Note) and "searched" in e.text]
    assert [text.split(" steps")[0].split()[-1] for text in told] == ["2", "4"]
    assert "0 false" not in told[0]
    result, _ = run(tmp_path / "parts", stop_after=3)
    assert result.stopped
    run(tmp_path / "parts")
    assert last(tmp_path / "parts") == last(tmp_path / "whole")


def test_scans_that_are_larger_than_two_windows_are_searched_by_default() -> None:
    assert windows_of_scan([(32, 32, 32)] * 3, (16, 16, 16)) == 8
    assert windows_of_scan([(8, 8, 8)], (16, 16, 16)) == 1
    cases = cases_with(([8, 12, 20], True))
    backbone = build("resunet", {"channels": (8, 16, 16)})
    for window, share in (((16, 16, 16), 0.2), ((32, 32, 32), 0.0)):
        task = Detect(DetectConfig(window=window))
        spec = task.describe(cases, backbone, CPU)
        assert spec["false_positives"] == share
        assert ("false positives" in task.remark(spec, 1)) == (share > 0)
        module = task.module(task.network(backbone, spec), spec)
        assert hasattr(module, "misses") == (share > 0)
        found = task.search(module, lambda: None, cases, spec, 0)  # type: ignore[arg-type,return-value]
        assert (found is None) == (share == 0)
    told = Detect(DetectConfig(window=(32, 32, 32), false_positives=0.1))
    assert told.describe(cases, backbone, CPU)["false_positives"] == 0.1
