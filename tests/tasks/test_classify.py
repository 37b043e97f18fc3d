"""The classify task: from pictures and a manifest to a table of classes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classify_runs import NET, learnt, prepared, run
from homolog.backbones import build
from homolog.errors import UnusableInput
from homolog.events import Progress, Request, drain
from homolog.feed.batches import Feed, view_of
from homolog.feed.reading import CaseRef
from homolog.store.store import Store
from homolog.tasks.classify.answer import stored
from homolog.tasks.classify.network import ClassifyModule, ClassifyNetwork
from homolog.tasks.classify.space import ClassifyConfig
from homolog.tasks.classify.task import Classify
from homolog.use.predict import open_predictor, predict_scans
from homolog.views.view import ViewSpec, Whole
from memory_store import random_cases

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty noisy pictures: a bright disc (ball) or ring, and a manifest."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    y, x = np.indices((48, 40))
    rows = []
    for number in range(40):
        kind = "ball" if number % 2 else "ring"
        place = rng.uniform(16, 24, 2)
        radius = np.hypot(y - place[0], x - place[1])
        shape = radius < 9 if kind == "ball" else (radius < 13) & (radius > 9)
        image = 60 + 120 * shape + rng.normal(0, 12, shape.shape)
        name = f"p{number:02}.png"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / name)
        rows.append([name, "XR", kind])
    with (folder / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "modality", "class"], *rows])
    return folder


@pytest.fixture(scope="module")
def store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepared(pictures / "scans.csv", tmp_path_factory.mktemp("store") / "p")


@pytest.fixture(scope="module")
def model(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learnt(store, tmp_path_factory.mktemp("run") / "classes", 60)


def test_it_learns_and_the_evaluation_says_so(store: Store, model: Path) -> None:
    result = run("evaluate", store.path, "--model", model)
    assert result["cases"] == len(store.split("test")) > 4
    assert result["mean"]["auc"] > 0.9
    assert result["mean"]["accuracy"] > 0.7
    assert (
        sum(sum(row.values()) for row in result["confusion"].values())
        == result["cases"]
    )
    with Path(result["csv"]).open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "true", "predicted", "p_ball", "p_ring"]
    assert all(
        float(r["p_ball"]) + float(r["p_ring"]) == pytest.approx(1) for r in rows
    )


def test_predict_writes_one_table(pictures: Path, model: Path, tmp_path: Path) -> None:
    scans = [pictures / f"p{k:02}.png" for k in (1, 2)]
    result = run("predict", *scans, "--model", model, "--out", tmp_path / "out")
    assert [Path(r["scan"]) for r in result["predicted"]] == scans
    with (tmp_path / "out" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, told in zip(rows, result["predicted"], strict=True):
        assert row["class"] == told["class"]
        assert float(row["p_ball"]) == pytest.approx(told["chances"]["ball"], abs=1e-4)


def test_a_file_is_told_as_its_case_in_the_store(
    pictures: Path, store: Store, model: Path, tmp_path: Path
) -> None:
    rows = run("evaluate", store.path, "--model", model, "--split=all")["rows"]
    files = [pictures / f"p{k:02}.png" for k in range(4)]
    found = run("predict", *files, "--model", model, "--out", tmp_path / "o")
    by_case = {row["case"]: row["p_ball"] for row in rows}
    for told in found["predicted"]:
        name = Path(told["scan"]).stem
        case = next(value for case, value in by_case.items() if name in case)
        assert told["chances"]["ball"] == pytest.approx(case, abs=1e-5)


def test_the_single_view_is_the_feeds() -> None:
    from homolog.geometry.affine import Affine

    cases = random_cases([(20, 30, 25)], Affine.of((2.0, 1.0, 1.5)))
    spec = ViewSpec(size=(8, 16, 16), place=Whole())
    feed = Feed(cases, {"scan": spec}, batch_size=1, seed=0, threads=0)
    expected = feed.views(feed.batch(0), CPU)["scan"]
    found = view_of(spec, stored(cases[0]), CPU)
    torch.testing.assert_close(found.image, expected.image)
    assert torch.equal(found.affine, expected.affine)


def test_describe_refuses_what_cannot_be_classified(store: Store) -> None:
    task = Classify(ClassifyConfig())
    flat = build("resnet2d", NET)
    cases = [CaseRef(store, card) for card in store.cards]
    assert {c.card.modality for c in cases} == {"XR"}
    balls = [c for c in cases if c.card.target == "ball"]
    with pytest.raises(UnusableInput, match="two classes, all 20 are 'ball'"):
        task.describe(balls, flat, CPU)
    spec = task.describe(cases, flat, CPU)
    assert spec["classes"] == ["ball", "ring"]
    assert spec["window"] == [1, 48, 40]
    assert task.targets(cases[:2], spec) == [
        [spec["classes"].index(c.card.target)] for c in cases[:2]
    ]


def test_a_3d_network_classifies_volumes(phantom_store: Store) -> None:
    """Paper: Alice B, COVID."""
    from dataclasses import replace

    cases = [
        CaseRef(phantom_store, replace(card, target="ab"[number % 2]))
        for number, card in enumerate(phantom_store.cards)
    ]
    task = Classify(ClassifyConfig())
    deep = build("resunet", {"channels": [8, 16]})
    spec = task.describe(cases, deep, CPU)
    network = task.network(deep, spec)
    row = drain(
        task.score(
            _trained(network, spec), cases[0]
        )
    )[0]  # fmt: skip
    assert row["p_a"] + row["p_b"] == pytest.approx(1.0)


def test_a_hybrid_gives_single_images_its_2d_network(store: Store) -> None:
    small = {"dim": 16, "layers": 1, "heads": 2, "inner": 16}
    hybrid = build("hybrid", {**NET, **small})
    task = Classify(ClassifyConfig())
    cases = [CaseRef(store, card) for card in store.cards]
    spec = task.describe(cases, hybrid, CPU)
    assert spec["window"][0] == 1
    assert task.network(hybrid, spec).encoder is hybrid.planar()


def _trained(network: ClassifyNetwork, spec: dict):
    from homolog.tasks.base import Trained

    return Trained(network, spec, {}, CPU)


def test_rare_classes_weigh_more() -> None:
    network = ClassifyNetwork(build("resnet2d", NET), 2)
    task = Classify(ClassifyConfig())
    module = task.module(
        network, {"window": [1, 32, 32], "classes": ["a", "b"], "counts": [30, 10]}
    )
    assert isinstance(module, ClassifyModule)
    assert module.weights.tolist() == pytest.approx([2 / 3, 2.0])


def test_what_little_tells_patients_apart_is_learnt_in_few_steps() -> None:
    """With layer norm alone 40 steps of this rate learn nothing."""
    truth = torch.arange(16) % 2
    rows = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)).repeat(16, 1)
    rows[:, 3] += 0.05 * (truth * 2.0 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = ClassifyNetwork(build("resnet2d", NET), 2).head
    optimiser = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(head(rows), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.5


def test_classes_may_be_named_like_columns() -> None:
    rows = [
        {"case": case, "true": true, "predicted": "case", "p_case": p, "p_true": 1 - p}
        for case, true, p in (("a", "true", 0.7), ("b", "case", 0.9))
    ]
    found = Classify(ClassifyConfig()).summarise(rows)
    assert found["mean"]["auc"] == 1.0
    assert found["confusion"]["true"] == {"case": 1, "true": 0}


def test_a_stopped_prediction_keeps_what_was_told(
    pictures: Path, model: Path, tmp_path: Path
) -> None:
    task, trained = open_predictor(model, CPU)
    scans = [pictures / f"p{k:02}.png" for k in range(3)]
    job = predict_scans(task, trained, scans, tmp_path)
    event, result = next(job), None
    while result is None:
        last = isinstance(event, Progress) and event.index == 2
        try:
            event = job.send(Request.STOP if last else None)
        except StopIteration as end:
            result = end.value
    assert result["stopped"]
    assert len(result["predicted"]) == 2
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 3


def test_the_largest_values_are_read_beside_the_means() -> None:
    """Paper: Hundred Million IV-E."""
    spec = {"window": [1, 32, 32], "classes": ["a", "b"], "counts": [1, 1]}
    torch.manual_seed(0)
    encoder = build("resnet2d", NET)
    task = Classify(ClassifyConfig(pooling="mean_and_max", dropout=0.0))
    network = task.network(encoder, spec).eval()
    image = torch.randn(2, 1, 1, 32, 32)
    with torch.no_grad():
        deepest = encoder.maps(image)[-1].flatten(2)
        vector = torch.cat([deepest.mean(2), deepest.amax(2)], 1)
        torch.testing.assert_close(network(image), network.head(vector))
    plain = Classify(ClassifyConfig()).network(encoder, spec)
    assert plain.head[-1].in_features * 2 == network.head[-1].in_features == 2 * 16
