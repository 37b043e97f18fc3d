"""Several findings per scan: from a table to probabilities that do not sum to 1."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classify_runs import NET, learnt, prepared, run
from homolog.backbones import build
from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.store.store import Store
from homolog.tasks.base import Trained
from homolog.tasks.classify.space import ClassifyConfig
from homolog.tasks.classify.task import Classify
from homolog.tasks.classify.truth import Space, Truth
from memory_store import random_cases

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures with a bright disc, a dark bar, both or none; two unread ones."""
    folder = tmp_path_factory.mktemp("findings")
    rng = np.random.default_rng(0)
    y, x = np.indices((48, 48))
    rows = []
    for number in range(62):
        disc, bar = number % 2 == 1, number % 4 >= 2
        place = rng.uniform(12, 30, 2)
        image = 110 + rng.normal(0, 8, (48, 48))
        image += 100 * disc * (np.hypot(y - place[0], x - place[1]) < 7)
        image -= 80 * bar * (np.abs(y - 40) < 4)
        names = [n for n, there in (("disc", disc), ("bar", bar)) if there]
        told = "|".join(names) or "No Finding"
        name = f"p{number:02}.png"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / name)
        rows.append([name, "XR", "" if number >= 60 else told])
    with (folder / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "modality", "class"], *rows])
    return folder


@pytest.fixture(scope="module")
def store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepared(pictures / "scans.csv", tmp_path_factory.mktemp("store") / "s")


@pytest.fixture(scope="module")
def model(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "findings"
    return learnt(store, out, 80, "threshold=validation")


def test_every_class_is_told_on_its_own(store: Store, model: Path) -> None:
    result = run("evaluate", store.path, "--model", model)
    known = [c for c in store.split("test") if c.target is not None]
    assert result["cases"] == len(known) > 8
    for name in ("bar", "disc"):
        scores = result["classes"][name]
        assert scores["positives"] + scores["negatives"] == len(known)
        assert scores["auc"] > 0.85
    assert result["mean"]["auc"] == pytest.approx(
        np.mean([result["classes"][n]["auc"] for n in ("bar", "disc")])
    )
    assert "confusion" not in result
    with Path(result["csv"]).open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "true", "predicted", "p_bar", "p_disc"]
    sums = [float(r["p_bar"]) + float(r["p_disc"]) for r in rows]
    assert max(abs(s - 1) for s in sums) > 0.2
    assert {"bar|disc", "no finding"} <= {r["true"] for r in rows}


def test_what_is_told_lies_above_the_thresholds_kept(
    pictures: Path, model: Path, tmp_path: Path
) -> None:
    scans = [pictures / f"p{k:02}.png" for k in range(4)]
    result = run("predict", *scans, "--model", model, "--out", tmp_path / "out")
    for told in result["predicted"]:
        above = [n for n, p in told["chances"].items() if p >= told["thresholds"][n]]
        assert told["class"] == ("|".join(sorted(above)) or "no finding")
        assert all(0 < limit < 1 for limit in told["thresholds"].values())
    with (tmp_path / "out" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["scan", "class", "p_bar", "p_disc"]
    assert [row["class"] for row in rows] == [t["class"] for t in result["predicted"]]


def cases_of(*targets: str | None, types: tuple[str | None, ...] = ()) -> list[CaseRef]:
    found = random_cases([(1, 32, 32)] * len(targets), Affine.of((1.0, 1.0, 1.0)))
    types = types or (None,) * len(targets)
    cards = [
        replace(c.card, target=t, types=s, has_label=False)
        for c, t, s in zip(found, targets, types, strict=True)
    ]
    found[0].store.cards[:] = cards  # type: ignore[index]
    return [CaseRef(found[0].store, card) for card in cards]


def spec_of(cases: list[CaseRef], **settings: object) -> dict:
    task = Classify(ClassifyConfig(**settings))  # type: ignore[arg-type]
    return task.describe(cases, build("resnet2d", NET), CPU)


def test_rare_findings_weigh_more_unknown_ones_nothing() -> None:
    cases = cases_of("a|b", "a", "no finding", "no finding")
    task = Classify(ClassifyConfig(balanced=True))
    spec = spec_of(cases)
    assert (spec["classes"], spec["counts"], spec["known"]) == (
        ["a", "b"], [2, 1], [4, 4],
    )  # fmt: skip
    module = task.module(task.network(build("resnet2d", NET), spec), spec)
    assert module.weights.tolist() == [1.0, 3.0]  # type: ignore[union-attr]
    rows = torch.tensor(task.targets(cases, spec))
    assert Truth.of(rows, Space.of(spec)).classes.tolist() == [
        [1, 1], [1, 0], [0, 0], [0, 0],
    ]  # fmt: skip


def test_a_class_is_unknown_in_a_store_that_never_names_it() -> None:
    first, second = cases_of("a|b", "no finding"), cases_of("a", "no finding")
    second[0].store.path = Path("other")
    spec = spec_of([*first, *second])
    rows = Classify(ClassifyConfig()).targets([*first, *second], spec)
    assert rows == [[1, 1], [0, 0], [1, -1], [0, -1]]
    assert spec["known"] == [4, 2]


def test_types_of_a_scan_without_finding_are_absent_others_unknown() -> None:
    cases = cases_of("bleed", "bleed", "no finding", types=("sub|epi", None, None))
    spec = spec_of(cases)
    assert not spec["several"]
    assert spec["types"] == ["epi", "sub"]
    task = Classify(ClassifyConfig())
    rows = torch.tensor(task.targets(cases, spec))
    truth = Truth.of(rows, Space.of(spec))
    assert truth.types.tolist() == [[1, 1], [-1, -1], [0, 0]]
    assert truth.classes.tolist() == [0, 0, 1]
    network = task.network(build("resnet2d", NET), spec).eval()
    row = drain(task.score(Trained(network, spec, {}, CPU), cases[0]))[0]
    assert set(task.columns(spec)) - {"case"} <= set(row)
    assert row["known"]["types"] == [1, 1]
    summary = task.summarise([{"case": "x", **row}])
    assert summary["types"]["classes"]["epi"]["positives"] == 1
    without = Classify(ClassifyConfig(weight_types=0.0))
    assert "types" not in without.describe(cases, build("resnet2d", NET), CPU)


@pytest.mark.parametrize(
    ("targets", "settings", "told"),
    [
        (("a", "a|b"), {}, "needs scans without 'a' too, all 2 show it"),
        (("no finding",) * 3, {"labels": "several"}, "all 3 are without any"),
        (("a|b", "c"), {"labels": "one"}, "one class per scan, 'case_000' has 'a|b'"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    targets: tuple[str, ...], settings: dict, told: str
) -> None:
    with pytest.raises(UnusableInput, match=told.replace("|", r"\|")):
        spec_of(cases_of(*targets), **settings)


def test_a_class_the_model_never_met_is_refused() -> None:
    cases = cases_of("a|b", "no finding")
    spec = spec_of(cases)
    with pytest.raises(UnusableInput, match="'c' of case 'case_000' is none of the"):
        Classify(ClassifyConfig()).targets(cases_of("a|c"), spec)


def test_one_named_finding_may_still_be_one_of_several() -> None:
    cases = cases_of("effusion", "no finding", "effusion")
    assert spec_of(cases)["classes"] == ["effusion", "no finding"]
    spec = spec_of(cases, labels="several")
    assert (spec["classes"], spec["counts"]) == (["effusion"], [2])
