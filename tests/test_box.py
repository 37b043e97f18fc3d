"""The encoders of the package: whom they learn from, and how they are packed."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from homolog.backbones import build
from homolog.config import from_dict, to_dict
from homolog.features.embed import load_embedder
from homolog.methods import METHODS
from homolog.model_files.encoder import load_encoder
from homolog.model_files.facts import facts_of
from homolog.model_files.folder import save_model
from homolog.model_files.library import ENCODERS, SHIPPED, models_below
from homolog.pretrain.job import embedding_card

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MOST_BYTES = 6_000_000
CHANNELS = {"channels": [4, 8, 8]}


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    found = {}
    for name in ("box_encoder", "box_scores"):
        path = BENCHMARKS / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        sys.modules[name] = found[name]  # dataclasses look there
        spec.loader.exec_module(found[name])
    yield found
    for name in found:
        del sys.modules[name]


def test_encoders_learn_only_from_what_may_be_passed_on(scripts) -> None:
    for plan in scripts["box_encoder"].PLANS.values():
        assert len({scan.path for scan in plan.scans}) == len(plan.scans)
        for scan in plan.scans:
            assert scan.licence.startswith(("CC BY 3.0", "CC BY 4.0", "Apache-2.0"))
            assert scan.source
        paths = " ".join(scan.path for scan in plan.scans)
        assert not any(name in paths for name in ("btcv", "chaos", "ibsi"))


def test_nobody_is_tested_on_whom_an_encoder_learnt_from(scripts) -> None:
    learnt = {
        scan.subject
        for plan in scripts["box_encoder"].PLANS.values()
        for scan in plan.scans
    }
    tested = {f"STS_{number}" for number in scripts["box_scores"]._STS}
    assert tested
    assert not learnt & tested


def test_recipe_and_settings_of_each_plan_can_be_read(scripts) -> None:
    method = METHODS.get("anatomical_embedding")
    for plan in scripts["box_encoder"].PLANS.values():
        known = to_dict(from_dict(method.Config, method.RECIPES[plan.recipe]["method"]))
        for key in plan.settings:
            part, _, name = key.partition(".")
            assert part != "method" or name in known


@pytest.mark.parametrize("half", [False, True])
def test_a_packed_model_gives_the_features_of_its_run(scripts, tmp_path, half) -> None:
    cls = METHODS.get("anatomical_embedding")
    settings = {"size": [16, 16, 16], "coarse_stride": 8, "width": 8, "dim": 8}
    method = cls(build("resunet", CHANNELS), from_dict(cls.Config, settings))
    embedder = method.embedder().eval()
    card = {
        "kind": "encoder", "method": "anatomical_embedding",
        "method_config": to_dict(method.config), "complete": True,
        "backbone": {"name": "resunet", "config": to_dict(method.backbone.config)},
        "embedding": embedding_card(embedder),
    }  # fmt: skip
    run = tmp_path / "run"
    save_model(
        run / "model", method.encoder().state_dict(), card, "encoder",
        {"embedder": embedder.own_state()},
    )  # fmt: skip
    box = scripts["box_encoder"]
    scores = {
        "landmarks": {
            "body-ct match": {"median_mm": 1.5},
            "body-ct random match": {"median_mm": 9},
        },
        "propagation": {"body-ct features": {"dice": 0.5}, "other": {"dice": 0.1}},
    }  # fmt: skip
    folder = box.pack("body-ct", box.BODY_CT, run, tmp_path / "packed", scores, half)
    packed = json.loads((folder / "model.json").read_text())
    assert [(s["value"], s.get("random")) for s in packed["scores"]] == [
        (1.5, 9), (0.5, None)
    ]  # fmt: skip
    assert sum(entry["scans"] for entry in packed["data"]) == len(box.BODY_CT)
    told = dict(facts_of(packed, 1, folder))
    assert "LIDC-IDRI (CC BY 3.0, 1 scan)" in told["Data"]
    assert "1.5 mm" in " ".join(v for k, v in facts_of(packed, 1, folder))
    assert all(entry["licence"] for entry in packed["data"])
    again = load_embedder(load_encoder(folder))
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        for name, wanted in embedder(image).items():
            found = again(image)[name]
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, wanted, atol=1e-2 * half + 1e-6, rtol=0)


def test_models_of_the_package_are_small_and_say_what_they_are() -> None:
    for model in models_below(ENCODERS, SHIPPED):
        files = [p for p in model.folder.iterdir() if p.is_file()]
        assert sum(p.stat().st_size for p in files) <= MOST_BYTES
        loaded = load_encoder(model.path)
        assert loaded.card["scores"]
        assert loaded.card["never_seen"]
        assert {"source", "licence", "licence_of"} <= set(loaded.card["data"][0])
        load_embedder(loaded)
