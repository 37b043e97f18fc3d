"""What the learning panels decide; no Qt and no torch here."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from homolog.cli._jobs import command_of
from homolog.cli.train import finetune as finetune_command
from homolog.cli.train import pretrain as pretrain_command
from homolog.cli.train import sort_settings
from homolog.config import merge, parse_assignments
from homolog.gui.learn.control import (
    FinetuneWish,
    Length,
    PretrainWish,
    labels_counted,
    task_for,
    teaching_problem,
    what_is_learnt,
)
from homolog.gui.learn.panel import (
    about_text,
    network_base,
    recipe_for,
    recipe_steps,
    recipe_values,
)
from homolog.gui.shared import choices
from homolog.gui.shared.choices import (
    ClassCount,
    ModelChoice,
    StoreChoice,
    class_lines,
    end_text,
    estimate_lines,
    list_stores,
    name_problem,
    next_name,
    no_gpu_hint,
    predict_command,
    read_store,
    scan_classes,
)

STORE = StoreChoice(Path("/data/my store"), 8, 6, 7, 5, "1.5 mm", "8 CT", ())
OTHER = StoreChoice(Path("/data/other"), 3, 3, 3, 3)
ENCODER = ModelChoice(Path("/runs/pre 1"), "pre 1", "encoder", "swin")
DESCRIBED: dict[str, Any] = {
    "recipes": {
        "cpu": {
            "backbone": {"name": "resunet", "blocks": 1},
            "training": {"steps": 400, "learning_rate": 1e-3},
            "with": {"swin": {"training": {"learning_rate": 5e-4}}},
            "pretrained": {"task": {"head_first": 0.1}, "training": {"warmup": 0.05}},
        },
        "gpu": {"backbone": {"name": "swin"}, "training": {"steps": 20000}},
    }
}


def _parsed(command: click.Command, line: str) -> dict[str, Any]:
    """The options of a command line as click reads them."""
    words = shlex.split(line)
    assert words[0] == "homolog"
    return command.make_context(words[1], words[2:]).params


def test_the_pretraining_command_asks_for_what_the_window_asks_for() -> None:
    wish = PretrainWish(
        method="s2dc",
        stores=(STORE,),
        recipe="cpu",
        settings={
            "method": {"size": [32, 48, 48], "keep": "student", "shift_only": True},
            "backbone": {"steps": None},
            "training": {"learning_rate": 3e-4, "precision": "fp32"},
        },
        length=Length("minutes", 12),
        encoder=ENCODER,
        device="cuda:1",
        seed=3,
        without_test=False,
        sharing=("modality", 0.5),
    )
    config = wish.config()
    told = _parsed(pretrain_command, wish.command(Path("/home/a user/runs/x")))
    assert told["method"] == config["method"]
    assert [str(s) for s in told["stores"]] == config["stores"]
    assert told["out"] == Path("/home/a user/runs/x")
    assert (told["recipe"], told["backbone"]) == ("cpu", "swin")
    assert told["encoder"] == config["encoder"] == "/runs/pre 1"
    assert told["without_splits"] == "none"
    assert (told["share_by"], told["share_power"]) == ("modality", 0.5)
    assert (config["share_by"], config["share_power"]) == ("modality", 0.5)
    assert (told["seed"], told["device"]) == (3, "cuda:1")
    assert (told["minutes"], told["steps"]) == (12.0, None)
    settings = merge(
        parse_assignments(told["assignments"]), {"training": {"minutes": 12.0}}
    )
    assert settings == config["settings"]
    assert config["without_splits"] == []


def test_the_finetuning_command_asks_for_what_the_window_asks_for() -> None:
    wish = FinetuneWish(
        task="segment",
        stores=(STORE, OTHER),
        recipe="gpu",
        backbone={"name": "vit", "width": 96},
        task_config={"head_first": 0.2, "window": [64, 64, 64]},
        training={"batch_size": 3},
        fraction=0.25,
        length=Length("long"),
        recipe_steps=1500,
    )
    config = wish.config()
    told = _parsed(finetune_command, wish.command(Path("/runs/seg")))
    own, training, network = sort_settings(told["assignments"])
    assert told["encoder"] == config["encoder"] == "scratch"
    assert [str(store) for store in told["stores"]] == [
        config["store"], *config["more_stores"],
    ]  # fmt: skip
    assert config["store"] == "/data/my store"
    assert config["more_stores"] == ["/data/other"]
    assert wish.stem == "segment-my-store-and-more"
    alone = FinetuneWish("segment", (STORE,), patients=3)
    assert alone.config()["more_stores"] == []
    assert alone.config()["patients"] == 3
    single = _parsed(finetune_command, alone.command(Path("/runs/seg")))
    assert (single["patients"], told["patients"]) == (3, 0)
    assert single["stores"] == (Path("/data/my store"),)
    assert told["fraction"] == 0.25
    assert told["steps"] == 7500 == config["training"]["steps"]
    assert own == config["task_config"]
    assert training == {"batch_size": 3}
    assert {"name": told["backbone"], **network} == config["backbone"]


def test_the_predict_command_asks_for_what_the_batch_asks_for() -> None:
    config = {
        "model": "/m o", "scans": ["/a b.nii", "/c.nii"], "out": "/out", "flips": "x",
        "overlap": 0.25, "device": "cuda:0",
    }  # fmt: skip
    told = _parsed(command_of("predict"), predict_command(config))
    assert [str(s) for s in told["scans"]] == config["scans"]
    assert (str(told["model"]), str(told["out"])) == ("/m o", "/out")
    assert (told["flips"], told["overlap"]) == ("x", 0.25)
    assert (told["device"], told["modality"]) == ("cuda:0", None)


def test_lengths_override_the_training() -> None:
    assert Length("standard").training(400) == {}
    assert Length("quick").training(400) == {"minutes": 5.0}
    assert Length("long").training(400) == {"steps": 2000, "minutes": 0.0}
    assert Length("steps", 20).training(400) == {"steps": 20, "minutes": 0.0}


def test_nothing_is_started_that_cannot_be_meant(phantom_store: Any) -> None:
    good = read_store(phantom_store.path)
    bare = StoreChoice(Path("bare"), cases=3, learnable=3)
    held = StoreChoice(Path("held"), cases=3, labelled=3, teachable=0)
    broken = StoreChoice(Path("broken"), problem="no store.json.")
    assert "Choose at least one store" in PretrainWish("mae").problem()
    assert "no store.json" in PretrainWish("mae", (good, broken)).problem()
    assert "final test" in PretrainWish("mae", (held,)).problem()
    assert PretrainWish("mae", (bare,)).problem() == ""
    assert "swin" in PretrainWish("mae", (bare,), backbone="vit",
                                  encoder=ENCODER).problem()  # fmt: skip
    assert "Choose a store" in FinetuneWish("segment").problem()
    assert "No scan of bare has labels" in FinetuneWish("segment", (bare,)).problem()
    assert "none is left to learn from" in FinetuneWish("segment", (held,)).problem()
    assert FinetuneWish("segment", (good,)).problem() == ""
    assert "phantoms has none" in FinetuneWish("classify", (good,)).problem()
    two = (("ill", 4), ("well", 2))
    films = StoreChoice(
        Path("films"), cases=6, scan_classes=two, classed=6, class_teachable=3
    )
    assert FinetuneWish("classify", (films,)).problem() == ""
    assert "No scan of films has labels" in FinetuneWish("segment", (films,)).problem()
    kept = StoreChoice(Path("kept"), cases=6, scan_classes=two)
    assert "none is left" in FinetuneWish("classify", (kept,)).problem()
    assert films.title == "films: 6 scans, 6 with a class"
    assert "more than 0" in FinetuneWish("segment", (good,), fraction=0.0).problem()
    good = dataclasses.replace(good, label_patients=2)
    assert FinetuneWish("segment", (good,), patients=2).problem() == ""
    many = FinetuneWish("segment", (good,), patients=3)
    assert "scans of 2 patients to learn from, not of 3" in many.problem()


def test_runs_are_numbered_and_named_for_any_file_system(tmp_path: Path) -> None:
    wish = PretrainWish("s2dc", (STORE,))
    assert wish.stem == "s2dc-my-store"
    assert PretrainWish("s2dc", (STORE, STORE)).stem == "s2dc-my-store-and-more"
    assert next_name(wish.stem, tmp_path) == "s2dc-my-store-01"
    (tmp_path / "s2dc-my-store-01").mkdir()
    assert next_name(wish.stem, tmp_path) == "s2dc-my-store-02"
    assert "exists already" in name_problem("s2dc-my-store-01", tmp_path)
    assert "letters" in name_problem("../up", tmp_path)
    assert name_problem("fine_1", tmp_path) == ""


def test_recipes_follow_the_device_and_the_network() -> None:
    assert recipe_for("auto", "auto", "cuda:0") == "gpu"
    assert recipe_for("auto", "cpu", "cuda:0") == "cpu"
    assert recipe_for("paper", "cpu", "cpu") == "paper"
    assert recipe_steps(DESCRIBED, "gpu") == 20000
    special = recipe_values(DESCRIBED, "cpu", "swin")["training"]
    assert special == {"steps": 400, "learning_rate": 5e-4}
    came = recipe_values(DESCRIBED, "cpu", "swin", pretrained=True)
    assert came["training"] == {**special, "warmup": 0.05}
    assert came["task"] == {"head_first": 0.1}
    assert "task" not in recipe_values(DESCRIBED, "cpu", "swin")
    assert network_base(DESCRIBED, "cpu", "resunet", {"width": 8}) == {"blocks": 1}
    assert network_base(DESCRIBED, "cpu", "swin", {"width": 8}) == {"width": 8}
    assert network_base(DESCRIBED, "gpu", "resunet", {"width": 8}) == {}
    assert about_text("One\nline.\n\nMore.", "") == "One line."
    paper = "Pan et al., A long, long title, arXiv 2507.02581"
    assert about_text("A.", paper) == "A. (Pan et al., arXiv 2507.02581)"


def test_stores_are_listed_with_what_can_be_learnt_from_them(
    phantom_store: Any, tmp_path: Path
) -> None:
    (tmp_path / "stores" / "half").mkdir(parents=True)
    (tmp_path / "stores" / "half" / "store.json").write_text("{")
    found = list_stores(tmp_path / "stores", [phantom_store.path, phantom_store.path])
    assert [s.name for s in found] == ["half", "phantoms"]
    assert found[0].problem
    assert "cannot be used" in found[0].title
    store = found[1]
    assert (store.cases, store.labelled) == (8, 8)
    assert 0 < store.teachable <= store.learnable < 8
    assert store.title == "phantoms: 8 scans, 8 labelled, 8 mm, 8 CT"
    liver = store.classes[0]
    counts = [c.label_counts.get(1, 0) for c in phantom_store.cards]
    assert liver.name == "liver"
    assert liver.volume_ml == pytest.approx(sum(counts) * 0.512)
    assert class_lines(store.classes, 2)[-1] == f"and {len(store.classes) - 2} more"


def test_a_dry_run_is_told_in_sentences() -> None:
    plan = {
        "seconds_per_step": 0.52, "steps": 400, "total_s": 5000.0, "batch_size": 2,
        "memory_bytes": 1.2e9, "device": "cpu", "precision": "fp32",
        "resolved": {"training": {"batch_size": 4}},
        "notes": ["crops are smaller (--set method.size=...).", "a table\n of lines"],
    }  # fmt: skip
    now = datetime.datetime(2026, 3, 4, 23, 30)
    assert estimate_lines(plan, now) == [
        "About 1 h 23 min for 400 steps (520 ms each); started now, it ends tomorrow "
        "about 00:53.",
        "Needs about 1.2 GB of memory, 2 crops at a time, on the CPU, in fp32.",
        "Memory is short: 2 instead of 4 crops fit at a time.",
        "Crops are smaller.",
        "A table",
    ]
    assert end_text(60, now) == "about 23:31"
    assert "about 9 h" in no_gpu_hint(9 * 3600, "pretrain")


def test_choices_survive_the_session_and_a_damaged_file(tmp_path: Path) -> None:
    choices.write(tmp_path / "home", "Pretrain", {"entry": "mae"})
    choices.write(tmp_path / "home", "Segment", {"flips": "x"})
    assert choices.read(tmp_path / "home", "Pretrain") == {"entry": "mae"}
    choices.forget(tmp_path / "home", "Pretrain")
    assert choices.read(tmp_path / "home", "Pretrain") == {}
    (tmp_path / "home" / "window.json").write_text("{")
    assert choices.read(tmp_path / "home", "Segment") == {}


def test_findings_of_a_store_are_counted_one_by_one() -> None:
    targets = ["b|a", "a", "No Finding", "no finding"]
    assert scan_classes(targets) == (("a", 2), ("b", 1), ("no finding", 2))
    assert scan_classes(["ill", "no finding", "ill"]) == (("ill", 2), ("no finding", 1))


def test_boxes_teach_detection_and_label_maps_do_where_there_are_none() -> None:
    boxed = StoreChoice(
        Path("/d/lesions"), cases=9, box_classes=(("cyst", 4, 6), ("node", 1, 1)),
        boxed=5, box_teachable=4, box_held_out=1, box_patients=3,
    )  # fmt: skip
    assert boxed.title == "lesions: 9 scans, 5 with boxes"
    assert teaching_problem("detect", [boxed]) == ""
    assert "No scan of lesions has labels" in teaching_problem("segment", [boxed])
    title, lines = what_is_learnt("detect", [boxed])
    assert title == "2 classes of boxes, 7 boxes"
    assert lines.splitlines()[0] == "cyst: 4 scans, 6 boxes"
    told = labels_counted("detect", [boxed], 1.0, 16)
    assert told.startswith("4 labelled scans of 3 patients to learn from and 1 more")
    organs = (ClassCount(1, "liver", 5, 9.0),)
    drawn = StoreChoice(
        Path("/d/organs"), cases=5, classes=organs, labelled=5, box_teachable=4
    )
    assert what_is_learnt("detect", [drawn])[0] == "1 class of boxes around labels"
    bare = StoreChoice(Path("/d/bare"), cases=3)
    assert "has boxes or labels" in teaching_problem("detect", [bare])
    held = dataclasses.replace(boxed, box_teachable=0)
    assert "none is left to learn from" in teaching_problem("detect", [held])


def test_stores_bring_the_task_that_they_teach() -> None:
    classes = (("benign", 9), ("malignant", 7))
    pictures = StoreChoice(
        Path("/data/us"), 16, 0, 0, 0, scan_classes=classes, class_teachable=12
    )
    assert task_for([pictures], "segment") == "classify"
    drawn = dataclasses.replace(
        pictures, boxed=16, box_teachable=12, box_classes=(("benign", 9, 9),)
    )
    assert task_for([drawn], "classify") == "detect"  # who drew boxes wants boxes
    assert task_for([STORE], "segment") == "segment"
    assert task_for([StoreChoice(Path("/data/bare"), 4)], "segment") == "segment"
