"""Recipes of tasks as published: legal, and every setting is from somewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homolog.backbones import BACKBONES
from homolog.config import from_dict
from homolog.finetune.settings import learned_task, resolve_request
from homolog.geometry.affine import Affine
from homolog.recipes import leaves, origins
from homolog.tasks import TASKS
from homolog.tasks.base import settings_of
from homolog.tasks.segment.task import Segment, SegmentConfig
from homolog.training.config import TrainingConfig
from homolog.views.plan import Scan, plan_views

PUBLISHED = [
    (task, recipe)
    for task in TASKS.names()
    if TASKS.get(task).learns and hasattr(TASKS.get(task), "SOURCES")
    for recipe in TASKS.get(task).SOURCES  # type: ignore[attr-defined]
]


def test_every_task_of_the_papers_has_recipes() -> None:
    found: dict[str, set[str]] = {}
    for task, recipe in PUBLISHED:
        found.setdefault(task, set()).add(recipe)
    assert found["segment"] >= {
        "alice", "alice_swin", "alice_nnformer", "mixcl", "joint", "s2dc"
    }  # fmt: skip
    assert found["classify"] >= {"alice", "hundred_million", "joint", "s2dc"}
    assert found["detect"] >= {"hundred_million", "joint"}
    assert found["translate"] >= {"s2dc"}


@pytest.mark.parametrize(("task", "recipe"), PUBLISHED)
def test_a_recipe_is_legal_and_all_its_settings_have_an_origin(
    task: str, recipe: str
) -> None:
    cls = learned_task(task)
    tables = cls.RECIPES[recipe]
    where = origins(cls.SOURCES[recipe])
    keys = [key for key, _ in leaves(tables)]
    assert sorted(where) == sorted(keys)
    settings_of(cls.Config, tables.get("task", {}), where=task)
    from_dict(TrainingConfig, tables["training"])
    network = dict(tables["backbone"])
    backbone = BACKBONES.get(network.pop("name"))
    config: Any = from_dict(backbone.Config, network)
    assert dataclasses.is_dataclass(config)


def test_alice_s_table_in_epochs_becomes_steps(
    phantom_store: Any, tmp_path: Path
) -> None:
    """Paper: Alice Table 8."""
    asked = {"task": "segment", "store": str(phantom_store.path), "recipe": "alice"}
    found = resolve_request(asked)
    count = sum(c.split != "val" and c.split != "test" for c in phantom_store.cards)
    assert found["training"]["steps"] == -(-1000 * count // 8)
    assert found["training"]["warmup_steps"] == -(-50 * count // 8)
    assert found["training"]["learning_rate"] == 1e-4
    short = resolve_request({**asked, "training": {"steps": 7}})
    assert short["training"]["steps"] == 7
    poly = learned_task("segment").RECIPES["alice_nnformer"]["training"]
    nnformer = learned_task("segment").RECIPES["alice_nnformer"]
    assert nnformer["task"]["deep_supervision"] is True
    assert (poly["optimizer"], poly["momentum"], poly["schedule"]) == (
        "sgd", 0.99, "poly"
    )  # fmt: skip


def test_quarter_turns_happen_as_often_as_asked() -> None:
    """Paper: MixCL 3.1, fine-tuning."""
    recipe = learned_task("segment").RECIPES["mixcl"]
    assert recipe["training"]["steps"] == 2000
    config = from_dict(SegmentConfig, {**recipe["task"], "window": [8, 8, 8]})
    spec = Segment(config)._crop((8, 8, 8), None)
    spec = dataclasses.replace(spec, flip=(0.0, 0.0, 0.0))
    scan = Scan(Affine.of((1.0, 1.0, 1.0)), (30, 30, 30))
    turned = 0
    for sample in range(400):
        plan = plan_views(
            {"crop": spec}, scan, lambda _: np.full(3, 15.0), seed=0, sample=sample
        )
        linear = plan["crop"].affine[0, :3, :3]
        turned += not np.allclose(linear, np.diag(np.diag(linear).clip(0)))
    assert 0.12 < turned / 400 < 0.28
    still = Segment(SegmentConfig())._crop((8, 8, 8), None)
    assert not still.quarter_turns
