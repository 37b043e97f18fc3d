"""A plan says the same by file and by flags; what cannot be meant is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from homolog.comparing.plan import ALL, make_plan, read_plan
from homolog.config import ConfigError

FILE = """
patients = [5, 1, "all"]
seeds = 2
marks = 3

[finetune]
window = [16, 16, 16]
training.steps = 30

[pretrain.training]
steps = 40

[arms.scratch]
finetune.training.learning_rate = 0.01
[arms.s2dc]
[arms.long]
method = "s2dc"
pretrain.training.steps = 400
[arms.ours]
encoder = "runs/ours"
against = "s2dc"
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(FILE)
    return path


def test_a_file_holds_the_whole_table(plan_file: Path) -> None:
    plan = make_plan(read_plan(plan_file))
    assert plan.numbers.patients == (1, 5, ALL)
    assert list(plan.seeds) == [0, 1]
    assert [arm.name for arm in plan.arms] == ["scratch", "s2dc", "long", "ours"]
    scratch, s2dc, long, ours = plan.arms
    assert scratch.is_scratch
    assert scratch.finetune == {
        "window": [16, 16, 16], "training": {"steps": 30, "learning_rate": 0.01},
    }  # fmt: skip
    assert s2dc.finetune["training"] == {"steps": 30}
    assert (s2dc.method, long.method) == ("s2dc", "s2dc")
    assert s2dc.pretrain == {"training": {"steps": 40}}
    assert long.pretrain == {"training": {"steps": 400}}
    assert ours.encoder == str(plan_file.parent / "runs" / "ours")
    assert (s2dc.against, ours.against) == ("scratch", "s2dc")


def test_an_arm_may_begin_with_carried_labels() -> None:
    tables = {
        "carried": {"training": {"steps": 7}},
        "arms": {
            "scratch": {},
            "carried": {"carry": "grey", "propagate": {"ignore_above": 0.5}},
            "both": {"method": "mae", "carry": "both", "carry_to": 3},
        },
    }
    carried, both = make_plan(tables).arms[1:]
    assert (carried.method, carried.carry, carried.carry_to) == ("", "grey", 0)
    assert carried.what == "random weights, then labels carried by grey"
    assert carried.propagate == {"ignore_above": 0.5}
    assert carried.carried == both.carried == {"training": {"steps": 7}}
    assert both.what == "pretrained here by mae, then labels carried by both"


def test_carried_needs_no_plan_file() -> None:
    arms = make_plan({}, methods="scratch,carried,again=carried").arms
    assert [(arm.name, arm.carry, arm.method) for arm in arms] == [
        ("scratch", "", ""), ("carried", "grey", ""), ("again", "grey", ""),
    ]  # fmt: skip
    by_method = make_plan({"arms": {"carried": {"method": "mae"}}}).arms[0]
    assert (by_method.carry, by_method.method) == ("", "mae")


def test_flags_win_over_the_file(plan_file: Path) -> None:
    plan = make_plan(
        read_plan(plan_file),
        methods="scratch,long,other=runs/x,again=mae",
        patients="2,all,1",
        assignments=["training.steps=7", "long.freeze=0.5", "scratch.training.steps=9"],
        pretrain_assignments=["again.method.size=16,16,16"],
        seed=4,
        seeds=3,
        folds=None,
    )
    assert plan.numbers.patients == (1, 2, ALL)
    assert list(plan.seeds) == [4, 5, 6]
    assert plan.numbers.marks == 3
    assert [a.name for a in plan.arms] == ["scratch", "long", "other", "again"]
    assert plan.arm("long").finetune["freeze"] == 0.5
    assert plan.arm("long").finetune["training"] == {"steps": 7}
    assert plan.arm("long").pretrain["training"] == {"steps": 400}
    assert plan.arm("scratch").finetune["training"]["steps"] == 9
    assert plan.arm("other").encoder == str(Path("runs/x").resolve())
    assert plan.arm("again").pretrain["method"] == {"size": [16, 16, 16]}
    assert "method" not in plan.arm("long").pretrain


def test_without_scratch_the_first_arm_is_the_control() -> None:
    plan = make_plan({}, methods="mae,s2dc")
    assert [arm.against for arm in plan.arms] == ["mae", "mae"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "choose what is compared"),
        (
            {"methods": "scratch,nothing"},
            "'nothing' is neither scratch nor carried",
        ),
        ({"methods": "scratch,scratch"}, "twice"),
        ({"methods": "scratch,x="}, "NAME=RUN"),
        ({"methods": "scratch,training=runs/x"}, "an arm's name"),
        ({"methods": "scratch,../x=runs/x"}, "an arm's name"),
        ({"methods": "scratch", "patients": "1,many"}, "'many'"),
        ({"methods": "scratch", "patients": "0"}, "above 0"),
        ({"methods": "scratch", "seeds": 0}, "seeds must be in 1"),
        ({"methods": "scratch", "assignments": ["steps"]}, "--set: expected key=value"),
        ({"tables": {"arms": {"a": {"method": "no"}}}}, "unknown method 'no'"),
        (
            {"tables": {"arms": {"a": {"carry": "no"}}}},
            "carry is one of both, features",
        ),
        (
            {"tables": {"arms": {"a": {"carry": "both"}}}},
            "needs a method or an encoder",
        ),
        (
            {"tables": {"arms": {"a": {"carry": "grey", "carry_to": -1}}}},
            "carry_to is a number of cases, got -1",
        ),
        (
            {"tables": {"arms": {"mae": {"propagate": {"cells": 600}}}}},
            "has propagate but no carry",
        ),
        ({"tables": {"arms": {"s2dc": {"against": "x"}}}}, "'x', no arm"),
        (
            {"tables": {"arms": {"a": {"method": "mae", "encoder": "x"}}}},
            "a method and an encoder",
        ),
    ],
)
def test_what_cannot_be_meant_is_told(given: dict, sentence: str) -> None:
    given = dict(given)
    with pytest.raises(ConfigError, match=sentence):
        make_plan(given.pop("tables", {}), **given)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("patience = 3", "no setting 'patience'"),
        ("[arms.s2dc]\nsteps = 3", "no setting 'steps'"),
        ("[arms]\ns2dc = 3", "must be a table"),
        ("patients = [", "cannot be read"),
    ],
)
def test_a_plan_file_is_checked(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as told:
        read_plan(path)
    assert str(path) in str(told.value)
