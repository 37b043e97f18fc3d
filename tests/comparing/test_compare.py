"""A comparison: the same patients for all, nothing repeated, killed and gone on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from homolog.comparing import running
from homolog.comparing.cells import Cells, divide, other_networks
from homolog.comparing.compare import compare, table_lines
from homolog.comparing.plan import Plan, make_plan
from homolog.comparing.results import Results
from homolog.config import ConfigError, from_dict
from homolog.errors import JobError, UnusableInput
from homolog.events import drain
from homolog.finetune.settings import learned_task
from homolog.model_files.card import read_card
from homolog.model_files.folder import find_model
from homolog.pretrain.settings import PretrainConfig, cases_of
from homolog.runs.run import Run, find_runs
from homolog.runs.worker import execute
from homolog.store.splits import patients_of
from homolog.store.store import Store
from warm import WarmPopen

SETTINGS = (
    "training.steps=2",
    "training.batch_size=1",
    "training.checkpoint_every=1",
    "task.window=16,16,16",
    "scratch.backbone.channels=8,16,16",
)
BEFORE = (
    "training.steps=1",
    "training.batch_size=2",
    "method.size=16,16,16",
    "backbone.channels=8,16,16",
)


def planned(encoder: Path, methods: str = "", **given: Any) -> Plan:
    usual = {"patients": "1,2", "seeds": 1, "marks": 2, "test_patients": 2}
    return make_plan(
        {},
        methods=methods or f"scratch,ours={encoder}",
        assignments=SETTINGS,
        pretrain_assignments=BEFORE,
        **{**usual, **given},
    )


def started_here(run: Run, *, threads: int = 0, **_: object) -> int:
    """In place of a process of its own, which takes seconds to load.

    With as many threads as that would have: others round otherwise.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for _event in execute(run):
            pass
    finally:
        torch.set_num_threads(before)
    return 0


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.launch, "start", started_here)
        yield


def compared(plan: Plan, store: Store, out: Path) -> dict[str, Any]:
    return drain(compare(plan, store, out, device="cpu", parallel=1, threads=1))


@pytest.fixture(scope="module")
def done(
    here: None,
    phantom_store: Store,
    encoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """A whole comparison: its folder and its summary."""
    out = tmp_path_factory.mktemp("compared")
    summary = compared(planned(encoder), phantom_store, out)
    shutil.copy(out / "table.csv", first_table(out))  # other tests go on with it
    return out, summary


def first_table(out: Path) -> Path:
    """The table of the comparison ``done`` as it was first."""
    return out.with_name(f"{out.name}_table.csv")


def test_all_arms_learn_from_the_same_patients_fewer_within_more(
    done: tuple[Path, dict[str, Any]], phantom_store: Store
) -> None:
    out, summary = done
    assert (summary["done"], summary["cells"], summary["failed"]) == (4, 4, [])
    learnt: dict[str, dict[str, set[str]]] = {}
    for run in find_runs(out / "cells"):
        config = run.spec["config"]
        arm, _, rest = run.folder.name.partition("-n")
        learnt.setdefault(rest[0], {})[arm] = set(config["cases"])
        assert config["task_config"]["validate_cases"] is None
        card = json.loads((run.folder / "model" / "model.json").read_text())
        assert card["cases"] == {"train": config["cases"], "val": []}
        assert card["weights_of"]["kept"] == "last"
    assert learnt["1"]["scratch"] == learnt["1"]["ours"]
    assert learnt["2"]["scratch"] == learnt["2"]["ours"]
    assert learnt["1"]["ours"] < learnt["2"]["ours"]
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    tested = {row["case"] for row in rows}
    assert len(rows) == 4 * len(tested)
    assert not tested & learnt["2"]["ours"]
    assert len({row["patient"] for row in rows}) == summary["test_patients"] == 2


def test_the_table_is_that_of_the_runs_own_scores(
    done: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = done
    by_arm = {(e["arm"], e["patients"]): e for e in summary["table"]}
    for run in find_runs(out / "scores"):
        arm, _, rest = run.folder.name.partition("-n")
        told = json.loads((run.folder / "metrics.json").read_text())
        entry = by_arm[arm, int(rest[0])]
        assert entry["mean"] == pytest.approx(told["mean"]["dice"], abs=1e-6)
        assert not told["seen"]
    gain = by_arm["ours", 1]["mean"] - by_arm["scratch", 1]["mean"]
    assert by_arm["ours", 1]["difference"] == pytest.approx(gain, abs=2e-6)
    assert by_arm["scratch", 1]["difference"] is None
    for curve in summary["curves"]:
        assert curve["steps"] == [1, 2]
    text = table_lines(summary)
    assert sum(line.startswith("ours") for line in text) == 2
    table = (out / "table.csv").read_text().splitlines()
    assert len(table) == 1 + 4
    assert table[0].startswith("arm,patients,cases,tests,seeds,mean")


def test_a_patient_without_a_score_costs_no_other_theirs(
    done: tuple[Path, dict[str, Any]], phantom_store: Store, encoder: Path
) -> None:
    out, summary = done
    cells = Cells(planned(encoder), phantom_store, out, device="cpu", threads=1)
    results = Results(cells, out)
    for cell in cells.all:
        results.add(cell)
    whole = {(e["arm"], e["patients"]): e for e in results.entries()}
    assert all(e["tests"] == 2 for e in whole.values())
    cell = next(c for c in cells.all if c.arm.name == "ours" and c.patients == 1)
    lost, kept = sorted(cell.parts.test)
    del results.scores[cell.name][lost]
    fewer = {(e["arm"], e["patients"]): e for e in results.entries()}
    ours = fewer["ours", 1]
    assert ours["tests"] == 1
    assert ours["mean"] == pytest.approx(results.scores[cell.name][kept], abs=1e-6)
    control = results.scores[cell.name.replace("ours", "scratch")][kept]
    assert ours["difference"] == pytest.approx(ours["mean"] - control, abs=2e-6)
    assert fewer["scratch", 1]["mean"] == whole["scratch", 1]["mean"]
    assert summary["done"] == 4


def test_a_class_is_averaged_over_patients_not_over_scans(
    done: tuple[Path, dict[str, Any]],
    phantom_store: Store,
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, _ = done
    cells = Cells(planned(encoder), phantom_store, out, device="cpu", threads=1)
    results = Results(cells, out)
    for cell in cells.all:
        results.add(cell)
    cell = next(c for c in cells.all if c.arm.name == "ours" and c.patients == 1)
    one, other = sorted(cell.parts.test)
    often = {one: "x", f"{one} again": "x", f"{one} once more": "x", other: "y"}
    monkeypatch.setattr(results, "_patients", {**results._patients, **often})
    first = {case: {"organ": 0.3} for case in often if often[case] == "x"}
    results.classes[cell.name] = {**first, other: {"organ": 0.9, "rare": 0.5}}
    told = {(e["arm"], e["patients"]): e for e in results.entries()}
    assert told["ours", 1]["classes"] == {"organ": 0.6, "rare": 0.5}


def test_the_same_words_repeat_nothing(
    done: tuple[Path, dict[str, Any]],
    phantom_store: Store,
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, _ = done
    table, rows = (out / "table.csv").read_bytes(), (out / "rows.jsonl").read_bytes()

    def refuse(run: Run, **_: object) -> int:
        raise AssertionError(f"{run.folder} was begun again")

    monkeypatch.setattr(running.launch, "start", refuse)
    (out / "rows.jsonl").write_bytes(rows[:-20])  # its last line torn by a kill
    compared(planned(encoder), phantom_store, out)
    assert (out / "table.csv").read_bytes() == table
    whole = [line for line in rows.splitlines() if line]
    again = (out / "rows.jsonl").read_bytes().splitlines()
    assert set(whole) <= set(again)
    fewer = compared(planned(encoder, patients="1"), phantom_store, out)
    assert fewer["done"] == 2  # a smaller plan takes what it needs of the larger one


def test_a_worker_that_is_late_is_no_failure(
    here: None,
    phantom_store: Store,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late: set[Path] = set()

    def start(run: Run, **_: object) -> int:
        if run.folder not in late:
            late.add(run.folder)
            raise JobError("the worker did not begin within 60 s.")
        return started_here(run)

    monkeypatch.setattr(running.launch, "start", start)
    plan = planned(encoder, methods="scratch", patients="1")
    summary = compared(plan, phantom_store, tmp_path)
    assert (summary["done"], summary["failed"], len(late)) == (1, [], 2)

    def never(run: Run, **_: object) -> int:
        raise JobError("no process can be made.")

    monkeypatch.setattr(running.launch, "start", never)
    summary = compared(plan, phantom_store, tmp_path / "again")
    assert [t["sentence"] for t in summary["failed"]] == ["no process can be made."]


def test_a_failed_cell_is_a_finding_and_the_rest_goes_on(
    done: tuple[Path, dict[str, Any]],
    phantom_store: Store,
    encoder: Path,
    tmp_path: Path,
) -> None:
    out, _ = done
    broken = tmp_path / "broken"
    shutil.copytree(encoder, broken)
    weights = next(broken.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    plan = planned(encoder, methods=f"bad={broken},scratch", patients="1")
    summary = compared(plan, phantom_store, out)
    assert [e["arm"] for e in summary["table"]] == ["scratch"]
    (trouble,) = summary["failed"]
    assert trouble["kind"] == "finetune"
    assert "bad, 1 patient, seed 0" in trouble["cell"]
    assert weights.name in trouble["sentence"]


def test_what_changed_gets_a_folder_of_its_own(
    phantom_store: Store, encoder: Path, tmp_path: Path
) -> None:
    def folders(plan: Plan, threads: int = 1) -> dict[str, Path]:
        cells = Cells(plan, phantom_store, tmp_path, device="cpu", threads=threads)
        return {cell.name: cells.evaluation(cell).folder for cell in cells.all}

    first = folders(planned(encoder))
    assert folders(planned(encoder), threads=2) == first
    more = folders(planned(encoder, patients="1,2,all"))
    assert {k: v for k, v in more.items() if k in first} == first
    settings = [*SETTINGS, "ours.training.learning_rate=0.5"]
    other = folders(
        make_plan(
            {}, methods=f"scratch,ours={encoder}", patients="1,2", seeds=1, marks=2,
            test_patients=2, assignments=settings, pretrain_assignments=BEFORE,
        )
    )  # fmt: skip
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {"ours-n1-s0", "ours-n2-s0"}


def test_a_method_sees_no_test_patient_and_only_the_labels_it_may(
    phantom_store: Store, encoder: Path, tmp_path: Path
) -> None:
    plan = planned(encoder, methods="s2dc,mixcl")
    cells = Cells(plan, phantom_store, tmp_path, device="cpu", threads=1)
    runs: dict[str, set[Path]] = {"s2dc": set(), "mixcl": set()}
    for cell in cells.all:
        work = cells.pretraining(cell)
        assert work is not None
        runs[cell.arm.name].add(work.folder)
        config = from_dict(PretrainConfig, work.config)
        seen = {c.card.id: c.card for c in cases_of(config, [phantom_store])}
        assert set(seen) == {c.id for c in phantom_store.cards} - set(cell.parts.hidden)
        labelled = {name for name, card in seen.items() if card.is_labelled}
        assert labelled == (set(cell.cases) if cell.arm.name == "mixcl" else set())
        assert all(bool(card.label_values) == card.has_label for card in seen.values())
    assert len(runs["s2dc"]) == 1  # one encoder for all numbers of patients
    assert len(runs["mixcl"]) == 2


def test_folds_test_everyone_once(phantom_store: Store, encoder: Path) -> None:
    cls = learned_task("segment")
    plan = planned(encoder, folds=3, test_patients=0)
    parts = divide(phantom_store, cls(cls.Config()), plan)
    tested = [name for part in parts for name in part.test]
    assert sorted(tested) == sorted(card.id for card in phantom_store.cards)
    names = patients_of(phantom_store.cards)
    for part in parts:
        learnt = {names[card.id] for card in part.pool}
        assert not learnt & {names[name] for name in part.test}
        assert set(part.labelled(1, 0)) < set(part.labelled(2, 0))
        assert part.labelled("all", 0) == part.labelled("all", 1)


def test_labels_are_carried_to_all_but_those_tested_and_learnt_first(
    here: None, phantom_store: Store, tmp_path: Path
) -> None:
    plan = make_plan(
        {
            "propagate": {"cells": 500, "smooth_mm": 0.0},
            "arms": {
                "scratch": {},
                "carried": {"carry": "grey", "carry_to": 2,
                            "carried": {"training": {"steps": 3}}},
                "again": {"carry": "grey", "carry_to": 2},
            },
        },
        assignments=SETTINGS, patients="1", seeds=1, marks=2, test_patients=2,
    )  # fmt: skip
    summary = compared(plan, phantom_store, tmp_path)
    assert (summary["done"], summary["failed"]) == (3, [])
    once = list((tmp_path / "carried").glob("grey-*"))
    assert len(once) == 1, "arms that carry alike share it"
    made = Store.open(once[0] / "store")
    cells = Cells(plan, phantom_store, tmp_path, device="cpu", threads=1)
    cell = next(cell for cell in cells.all if cell.arm.name == "carried")
    assert {card.id for card in made.cards} == {*cell.cases, *cells.targets(cell)}
    assert not {card.id for card in made.cards} & set(cell.parts.hidden)
    assert len(cells.targets(cell)) == 2
    first, last = cells.carried(cell), cells.finetuning(cell)
    assert first.config["store"] == str(made.path)
    assert sorted(first.config["cases"]) == [card.id for card in made.cards]
    assert (first.config["training"]["steps"], last.config["training"]["steps"]) == (
        3,
        2,
    )
    assert last.config["encoder"] == str(first.folder)
    assert last.config["cases"] == list(cell.cases)
    assert last.config["carried"] == str(made.path)
    assert sorted(read_card(find_model(last.folder))["cases"]["carried"]) == (
        cells.targets(cell)
    )
    kept = made.card(cell.cases[0])
    assert kept.label_counts == phantom_store.card(kept.id).label_counts
    assert set(summary["seconds"][cell.name]) == set(cells.stages(cell))
    assert summary["same_steps"]


def test_where_all_are_labelled_nothing_is_carried(
    phantom_store: Store, tmp_path: Path
) -> None:
    plan = make_plan(
        {"arms": {"scratch": {}, "carried": {"carry": "grey"}}},
        assignments=SETTINGS, patients="all", seeds=1, test_patients=2,
    )  # fmt: skip
    cells = Cells(plan, phantom_store, tmp_path, device="cpu", threads=1)
    cell = cells.all[1]
    assert cells.stages(cell) == ["finetune", "evaluate"]
    assert cells.finetuning(cell).config["encoder"] in (None, "", "scratch")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"test_patients": 8}, "some must be learnt from"),
        ({"patients": "1,7"}, "7 labelled patients are asked for"),
    ],
)
def test_more_patients_than_there_are_is_told(
    phantom_store: Store,
    encoder: Path,
    tmp_path: Path,
    given: dict[str, Any],
    sentence: str,
) -> None:
    with pytest.raises(UnusableInput, match=sentence):
        Cells(
            planned(encoder, **given), phantom_store, tmp_path, device="cpu", threads=1
        )


def test_an_encoder_that_learnt_labels_of_test_patients_is_refused(
    phantom_store: Store, encoder: Path, tmp_path: Path
) -> None:
    known = tmp_path / "model"
    shutil.copytree(encoder, known)
    card = json.loads((known / "model.json").read_text())
    card["trained_on"] = [c.source_hash for c in phantom_store.cards]
    (known / "model.json").write_text(json.dumps(card))
    cells = Cells(planned(known), phantom_store, tmp_path, device="cpu", threads=1)
    (remark,) = cells.remarks()
    assert "has seen 2 test scans" in remark
    (known / "model.json").write_text(json.dumps({**card, "uses_labels": True}))
    with pytest.raises(UnusableInput, match="with labels of test patients"):
        cells.remarks()


def test_another_network_than_the_controls_is_told(
    phantom_store: Store, encoder: Path, tmp_path: Path
) -> None:
    same = Cells(planned(encoder), phantom_store, tmp_path, device="cpu", threads=1)
    assert other_networks(same) == []
    plan = make_plan(
        {}, methods=f"scratch,ours={encoder}", patients="1", seeds=1, test_patients=2,
        assignments=["scratch.backbone.channels=8,16,32"],
    )  # fmt: skip
    other = Cells(plan, phantom_store, tmp_path, device="cpu", threads=1)
    (told,) = other_networks(other)
    assert "'ours' trains another network" in told


def _until(what: Any, seconds: float = 500.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_killed_in_the_midst_and_gone_on_it_is_the_same_table(
    done: tuple[Path, dict[str, Any]],
    here: None,
    phantom_store: Store,
    encoder: Path,
    tmp_path: Path,
) -> None:
    whole, _ = done
    words = [
        sys.executable, "-m", "homolog.cli", "compare", str(phantom_store.path),
        "--methods", f"scratch,ours={encoder}", "--patients", "1,2", "--seeds", "1",
        "--marks", "2", "--test-patients", "2", "--device", "cpu", "--parallel", "1",
        "--threads", "1", "--out", str(tmp_path / "out"),
        *(w for text in SETTINGS for w in ("--set", text)),
        *(w for text in BEFORE for w in ("--pretrain-set", text)),
    ]  # fmt: skip
    cells = tmp_path / "out" / "cells"
    with WarmPopen(words, stderr=subprocess.DEVNULL) as process:
        try:
            _until(lambda: list(cells.glob("*/checkpoints/step_*")))
            run = next(find_runs(cells))
        finally:
            os.kill(process.pid, signal.SIGKILL)
    if run.is_alive():
        os.kill(run.pid(), signal.SIGKILL)
    _until(lambda: not run.is_alive())
    compared(planned(encoder), phantom_store, tmp_path / "out")
    table = (tmp_path / "out" / "table.csv").read_bytes()
    assert table == first_table(whole).read_bytes()
    assert len(list(find_runs(cells))) == 4


def test_labels_are_carried_by_an_arm_of_its_own(
    phantom_store: Store, tmp_path: Path
) -> None:
    plan = make_plan({}, methods="scratch", assignments=("carry=true",), patients="1",
                     test_patients=2)  # fmt: skip
    cells = Cells(plan, phantom_store, tmp_path, device="cpu", threads=1)
    with pytest.raises(ConfigError, match="leaves the test patients out"):
        cells.check()
