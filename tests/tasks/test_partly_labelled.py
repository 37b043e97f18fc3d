"""Several stores with labels of their own, learnt as one model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from homolog.config import ConfigError
from homolog.events import Note, drain
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.finetune.job import job
from homolog.geometry.affine import Affine
from homolog.index.datasets import CaseSource
from homolog.label_names import store_titles
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store.build import write_store
from homolog.store.store import Store
from homolog.tasks.segment.network import (
    LabelSpace,
    annotated,
    classes_of,
    in_model,
    space_of,
)
from homolog.use.evaluate import evaluate_store
from homolog.use.predict import open_trained

AFFINE = Affine.of((1.0, 1.0, 1.0))
SHAPE = (24, 24, 24)
# HU of what is to be seen: ball, block, plate
ORGANS = {"ball": 500, "block": 150, "plate": -400}


def scene(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A scan (D, H, W) of three organs, and where each is."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE)
    z, y, x = rng.integers(-1, 2, 3)
    centre = np.array([7 + z, 7 + y, 7 + x])[:, None, None, None]
    where = {"ball": ((grid - centre) ** 2).sum(0) < 16}
    where["block"] = np.zeros(SHAPE, bool)
    where["block"][13 + z : 20 + z, 4 + y : 10 + y, 13 + x : 20 + x] = True
    where["plate"] = np.zeros(SHAPE, bool)
    where["plate"][4 + z : 20 + z, 17 + y : 20 + y, 4 + x : 18 + x] = True
    data = rng.normal(-1000, 20, SHAPE)
    for name, mask in where.items():
        data[mask] = ORGANS[name] + rng.normal(0, 20, int(mask.sum()))
    return np.clip(data, -1024, 3000).astype(np.int16), where


def make_store(
    folder: Path, names: dict[int, str], seeds: range, *, named: bool = True
) -> Store:
    """A store that annotates some organs, under numbers of its own."""
    folder.mkdir()
    sources = []
    for seed in seeds:
        data, where = scene(seed)
        labels = np.zeros(SHAPE, np.uint8)
        for value, name in names.items():
            labels[where[name.lower()]] = value
        image, label = folder / f"case{seed}.nii", folder / f"case{seed}_label.nii"
        write_volume(Volume(data[None], AFFINE, "scan", "CT"), image)
        write_labels(LabelMap(labels, AFFINE, {}), label)
        split = "val" if seed == seeds[-1] else "train"
        sources.append(
            CaseSource(
                id=f"{folder.name}_{seed}",
                image=image,
                label=label,
                modality="CT",
                subject=f"{folder.name}{seed}",
                split=split,
                target=None,
                boxes=(),
                label_names=names if named else {},
            )
        )
    drain(write_store(sources, folder / "store"))
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    root = tmp_path_factory.mktemp("partly")
    return (
        make_store(root / "one", {1: "Ball", 2: "block"}, range(4)),
        make_store(root / "two", {1: "plate", 5: "ball"}, range(10, 14)),
    )


def refs(*stores: Store) -> list[CaseRef]:
    return [CaseRef(store, card) for store in stores for card in store.cards]


def test_labels_of_one_name_are_one_class(stores: tuple[Store, Store]) -> None:
    classes = classes_of(refs(*stores))
    assert classes.names == {1: "Ball", 2: "block", 3: "plate"}
    assert [s.values for s in classes.spaces] == [{1: 1, 2: 2}, {1: 3, 5: 1}]
    alone = classes_of(refs(stores[1]))
    assert alone.names == {1: "plate", 5: "ball"}
    assert alone.spaces == ()


def test_labels_without_a_name_stay_apart(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    a, b = (
        make_store(tmp_path / name, {1: organ}, seeds, named=False)
        for name, organ, seeds in (("a", "ball", range(2)), ("b", "plate", range(2, 4)))
    )
    assert a.label_names == b.label_names == {1: "label 1"}
    classes = classes_of(refs(a, stores[1], b))
    assert classes.names == {
        1: "label 1 of a/store", 2: "plate", 5: "ball", 6: "label 1 of b/store",
    }  # fmt: skip
    assert classes_of(refs(a)).names == {1: "label 1"}
    # nor does a model that knows a "label 1" of one store take another's for it
    spec = {
        "label_names": {"1": "label 1 of seen", "2": "plate"},
        "label_spaces": [LabelSpace("seen", "?", {1: 1}).to_dict()],
    }
    found = space_of(a, spec)
    assert found is not None
    assert found.values == {}


def test_stores_are_told_apart_by_the_folders_they_lie_in() -> None:
    paths = [Path(p) for p in ("/x/one/store", "/y/one/store", "/z/two/store", "/z/b")]
    assert store_titles(paths) == ["x/one/store", "y/one/store", "two/store", "b"]


def test_label_maps_are_read_in_the_model_s_values() -> None:
    space = LabelSpace("two", "x", {1: 3, 5: 1})
    labels = np.array([0, 1, 5, 2, -1, 9], np.int16)
    assert in_model(labels, space).tolist() == [0, 3, 1, 0, -1, 0]
    assert in_model(labels, None) is labels
    assert annotated(space, [1, 2, 3]) == [1, 3]
    assert annotated(None, [1, 2, 3]) == [1, 2, 3]


def test_a_store_it_never_saw_is_understood_by_names(
    stores: tuple[Store, Store],
) -> None:
    spec = {
        "label_names": {"1": "Ball", "2": "block", "3": "plate"},
        "label_spaces": [LabelSpace("one", "?", {1: 1}).to_dict()],
    }
    found = space_of(stores[1], spec)
    assert found is not None
    assert found.values == {1: 3, 5: 1}
    assert space_of(stores[1], {"label_names": {}}) is None


def request(stores: tuple[Store, ...], steps: int) -> dict:
    return {
        "task": "segment", "store": str(stores[0].path),
        "more_stores": [str(s.path) for s in stores[1:]], "encoder": "scratch",
        "recipe": "cpu", "threads": 1,
        "backbone": {"name": "resunet", "channels": [12, 24]},
        "task_config": {"window": [16, 16, 16], "rotate_deg": 0.0, "scale": 0.0,
                        "intensity": 0.0},
        "training": {"steps": steps, "validate_every": steps, "batch_size": 4,
                     "learning_rate": 1e-2, "warmup_steps": 5},
    }  # fmt: skip


def test_one_model_learns_what_each_store_annotates(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    """Paper: S2DC segmentation."""
    notes = []
    work = job(request(stores, 150), tmp_path / "run")
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            summary = end.value
            break
        if isinstance(event, Note):
            notes.append(event.text)
    assert any("2 data sets, 3 classes" in text for text in notes)
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert card["label_names"] == {"1": "Ball", "2": "block", "3": "plate"}
    assert [s["store"] for s in card["task_spec"]["label_spaces"]] == [
        "one/store",
        "two/store",
    ]
    assert "block (one/store)" in card["task_spec"]["labels_note"]
    assert len(card["store_hashes"]) == 2
    assert summary["cases"] == {"train": 6, "val": 2}
    task, model = open_trained(tmp_path / "run", torch.device("cpu"))
    # each store is judged by what it annotates
    for store, names in zip(
        stores, ({"Ball", "block"}, {"Ball", "plate"}), strict=True
    ):
        result = drain(evaluate_store(task, model, store, "val"))
        assert {row["name"] for row in result["rows"]} == names
        assert result["mean"]["dice"] > 0.6
    # and every organ is found in any scan, though no scan had all three marked
    data, where = scene(50)
    found = drain(task.run(Volume(data[None], AFFINE, "new", "CT"), model=model))
    assert found.names == {1: "Ball", 2: "block", 3: "plate"}
    for value, name in found.names.items():
        mask = where[name.lower()]
        both = 2 * ((found.data == value) & mask).sum()
        assert both / ((found.data == value).sum() + mask.sum()) > 0.6, name


def test_classes_of_other_stores_get_no_gradient_from_background(
    stores: tuple[Store, Store],
) -> None:
    """Of a crop of the second store, background may be the block of the first."""
    from homolog.backbones import build
    from homolog.tasks.segment.task import Segment, SegmentConfig

    task = Segment(replace(SegmentConfig(), window=(16, 16, 16), balance=0.0))
    cases = refs(*stores)
    spec = task.describe(cases, build("resunet", {"channels": [8, 16]}), "cpu")  # type: ignore[arg-type]
    backbone = build("resunet", {"channels": [8, 16]})
    module = task.module(task.network(backbone, spec), spec)
    table = module.classes  # type: ignore[attr-defined]
    assert table[:, 1:].tolist()[0][:3] == [0, 1, 2]
    assert table[1, [2, 6]].tolist() == [3, 1]
    assert module.annotated.tolist() == [  # type: ignore[attr-defined]
        [True, True, True, False], [True, True, False, True],
    ]  # fmt: skip
    feed = Feed(cases, module.views(), batch_size=8, seed=0, threads=0)
    views = feed.views(feed.batch(0), "cpu")
    assert set(views["crop"].label_space.tolist()) == {0, 1}  # type: ignore[union-attr]
    losses = module.losses(views, 0.0)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_store_named_twice_is_refused(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        drain(job(request((stores[0], stores[0]), 5), tmp_path / "run"))
