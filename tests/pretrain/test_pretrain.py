"""Pretraining as a job: settings checked early, an encoder with its card at the end."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from each import each
from homolog.backbones import BACKBONES
from homolog.backbones.base import Backbone
from homolog.config import ConfigError, from_dict
from homolog.errors import UnusableInput
from homolog.events import (
    Event,
    Failed,
    Finished,
    Note,
    Preview,
    Request,
    Saved,
    Step,
    Stopped,
    drain,
)
from homolog.features.embed import load_embedder
from homolog.methods import METHODS
from homolog.methods.base import Embedder
from homolog.model_files.card import read_card
from homolog.model_files.encoder import load_encoder
from homolog.model_files.folder import generations
from homolog.pretrain.job import SlicePreview, deviations, job
from homolog.pretrain.settings import (
    PretrainConfig,
    build_method,
    chosen_cases,
    fitted_size,
    padding_note,
    resolve,
)
from homolog.runs import launch
from homolog.runs.run import Run
from homolog.runs.worker import execute
from homolog.store import store as store_module
from homolog.store.store import Store
from homolog.training.config import TrainingConfig
from homolog.training.run_settings import in_steps
from homolog.views.view import ViewSpec


def test_a_warm_up_of_epochs_is_one_of_steps() -> None:
    """Paper: Alice 4.2, training."""
    plan = from_dict(
        TrainingConfig, {"batch_size": 8, "accumulate": 8, "warmup_epochs": 100.0}
    )
    assert in_steps(plan, 1800).warmup_steps == 2813
    recipe = METHODS.get("alice").RECIPES["paper"]["training"]
    assert recipe["warmup_epochs"] == 100
    assert "warmup_steps" not in recipe
    plain = from_dict(TrainingConfig, {"warmup_steps": 7})
    assert in_steps(plain, 1800) == plain


TINY: dict[str, Any] = {
    "method": {"size": [16, 16, 16], "token_stride": 4},
    "backbone": {"channels": [4, 8, 8]},
    "training": {"steps": 4, "batch_size": 2, "log_every": 1},
}

HYBRID: dict[str, Any] = {
    "widths": [8, 8, 16, 16], "stage_blocks": [1, 1, 1, 1], "block": "basic",
    "norm": "group", "dim": 16, "layers": 1, "heads": 2, "inner": 16,
}  # fmt: skip


def tiny(method: str, store: Store, **options: Any) -> dict[str, Any]:
    settings = {key: dict(value) for key, value in TINY.items()}
    known = {field.name for field in dataclasses.fields(METHODS.get(method).Config)}
    settings["method"] = {k: v for k, v in settings["method"].items() if k in known}
    wanted = METHODS.get(method).backbones
    options.setdefault("backbone", wanted[0] if wanted else "resunet")
    if options["backbone"] == "hybrid":
        settings["backbone"] = dict(HYBRID)
        settings["method"] |= {"slice_size": [1, 32, 32], "small_size": [1, 16, 16]}
    for key, value in options.pop("settings", {}).items():
        settings[key] |= value
    return resolve(method, [store.path], settings=settings, device="cpu", **options)


def listen(running: Any, stop_at: int = 10**9) -> tuple[dict[str, Any], list[Event]]:
    """Result and events; asks to stop after a step."""
    told, request = [], None
    try:
        while True:
            event = running.send(request)
            told.append(event)
            if isinstance(event, Step) and event.index >= stop_at:
                request = Request.STOP
    except StopIteration as end:
        return end.value, told


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_is_pretrained_and_loads_again(
    tmp_path: Path, phantom_store: Store, method: str
) -> None:
    config = tiny(method, phantom_store)
    assert json.loads(json.dumps(config)) == config
    result, told = listen(job(config, tmp_path))
    assert result["steps"] == 4
    assert isinstance(told[-1], Saved)
    loaded = load_encoder(tmp_path)
    assert loaded.report.share == 1.0
    assert loaded.encoder_id == result["encoder_id"]
    card = loaded.card
    assert (card["kind"], card["method"], card["complete"]) == ("encoder", method, True)
    assert card["backbone"]["name"] == config["backbone"]["name"]
    assert card["preprocessing"]["window_hu"] == [-1000.0, 1000.0]
    assert card["store_hash"] == phantom_store.hash
    assert len(card["trained_on"]) == card["cases"] == result["cases"]
    embedder = load_embedder(loaded)
    image = torch.randn(1, 1, 16, 16, 16)
    for name, features in embedder(image).items():
        stride = card["embedding"]["strides"][name]
        assert features.shape[2:] == tuple(16 // s for s in stride)
        norms = features.norm(dim=1)
        norms = norms[norms > 0]  # a rectified map may be 0 in all channels at a place
        assert len(norms)
        torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", METHODS.names())
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path,
    phantom_store: Store,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Every step is told, however fast it was, so that the stop comes after the second.
    monkeypatch.setattr("homolog.training.loop._SECONDS_BETWEEN_EVENTS", 0.0)
    settings = {"training": {"steps": 6, "log_every": 1}}
    config = tiny(method, phantom_store, settings=settings)
    drain(job(config, tmp_path / "whole"))
    parts = tmp_path / "parts"
    result, told = listen(job(config, parts), stop_at=2)
    assert result["stopped"]
    assert isinstance(told[-1], Stopped)
    assert read_card(parts / "model")["complete"] is False
    assert load_encoder(parts).report.share == 1.0  # what was learnt can be used
    drain(job(config, parts))
    ends = [
        (generations(f)[0] / "state.safetensors").read_bytes()
        for f in (tmp_path / "whole", parts)
    ]
    assert ends[0] == ends[1]
    whole, again = (load_encoder(f).encoder_id for f in (tmp_path / "whole", parts))
    assert whole == again


def test_offline_clustering_counts_the_samples_and_resumes_exactly(
    tmp_path: Path, phantom_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homolog.training.loop._SECONDS_BETWEEN_EVENTS", 0.0)
    own = {"variant": "offline", "prototypes": 2, "every": 2, "bins": [2, 1, 1]}
    settings = {"training": {"steps": 7, "log_every": 1}, "method": own}
    config = tiny("swav", phantom_store, settings=settings)
    seen = [c for c in phantom_store.cards if c.split != "test"]
    assert config["method_config"]["samples"] == 2 * len(seen)
    told: list[Event] = []
    for folder, stop_at in ((tmp_path / "whole", 99), (tmp_path / "parts", 3)):
        result, told = listen(job(config, folder), stop_at=stop_at)
    assert result["stopped"]
    assert any("samples are remembered" in e.text for e in told if isinstance(e, Note))
    drain(job(config, tmp_path / "parts"))
    ends = [
        (generations(f)[0] / "state.safetensors").read_bytes()
        for f in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert ends[0] == ends[1]
    rows = (tmp_path / "whole" / "metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("clusters")
    losses = [float(row.split(",")[place]) for row in rows[1:]]
    assert losses[:2] == [0.0, 0.0]
    assert min(losses[4:]) > 0
    with pytest.raises(ConfigError, match=r"999 clusters.*please fewer clusters"):
        tiny("swav", phantom_store, settings={"method": {**own, "prototypes": 999}})


@pytest.mark.parametrize("stop_at", [2, 5])
def test_joint_stopped_in_any_stage_resumes_exactly(
    stop_at: int,
    tmp_path: Path,
    phantom_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("homolog.training.loop._SECONDS_BETWEEN_EVENTS", 0.0)
    settings = {"training": {"steps": 7, "log_every": 1}}
    config = tiny("joint", phantom_store, settings=settings)
    for folder, stop in ((tmp_path / "whole", 99), (tmp_path / "parts", stop_at)):
        result, _ = listen(job(config, folder), stop_at=stop)
    assert result["stopped"]
    drain(job(config, tmp_path / "parts"))
    ends = [
        (generations(f)[0] / "state.safetensors").read_bytes()
        for f in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert ends[0] == ends[1]
    tables = [(tmp_path / p / "metrics.csv").read_bytes() for p in ("whole", "parts")]
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].decode().splitlines()))
    terms = ("slices", "masked", "volumes")
    stages = [[name for name in terms if row[name]] for row in rows]
    assert stages == [["slices"]] * 3 + [["masked"]] * 2 + [["volumes"]] * 2


def test_a_worker_killed_in_the_middle_of_s2dc_ends_with_the_same_bytes(
    tmp_path: Path, phantom_store: Store, warm_workers: None
) -> None:
    settings = {"training": {"steps": 40, "checkpoint_every": 2}}
    config = tiny("s2dc", phantom_store, settings=settings)
    drain(job(config, tmp_path / "whole"))
    run = Run.create(tmp_path / "run", "pretrain", config)
    pid = launch.start(run)
    until = time.monotonic() + 100
    while not generations(run.folder):
        assert time.monotonic() < until, run.log.read_text()
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    while run.is_alive():
        time.sleep(0.02)
    assert run.state() == "crashed"
    drain(job(config, run.folder))
    ends = [
        (generations(f)[0] / "state.safetensors").read_bytes()
        for f in (tmp_path / "whole", run.folder)
    ]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("backbone", ["resunet", "swin", "vit"])
def test_previews_show_a_slice_and_change_nothing(
    tmp_path: Path,
    phantom_store: Store,
    backbone: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Paper: S2DC Fig. 7."""
    monkeypatch.setattr("homolog.training.validation._SHARE", 1e9)
    own: dict[str, dict[str, Any]] = {
        "resunet": {"channels": [4, 8, 8]},
        "swin": {"feature_size": 12},
        "vit": {"hidden": 24, "layers": 2, "heads": 2},
    }
    stride = {"resunet": 4, "swin": 16, "vit": 8}[backbone]
    size = 16 if backbone == "resunet" else 32
    settings = {
        "method": {"size": [size] * 3, "token_stride": stride},
        "backbone": own[backbone],
        "training": {"steps": 4, "batch_size": 2, "log_every": 1, "dry_run_steps": 0},
    }
    ends = []
    for count in (0, 2):
        settings["training"]["previews"] = count
        config = resolve(
            "s2dc", [phantom_store.path], recipe="cpu", backbone=backbone,
            settings=settings, device="cpu",
        )  # fmt: skip
        folder = tmp_path / str(count)
        _, told = listen(job(config, folder))
        ends.append((generations(folder)[0] / "state.safetensors").read_bytes())
    assert ends[0] == ends[1]
    shown = [Path(e.path) for e in told if isinstance(e, Preview)]
    assert [p.name for p in shown] == ["step_00000002.png", "step_00000004.png"]
    assert not [e for e in told if isinstance(e, Note) and e.level == "warning"]
    for path in shown:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert 300 <= max(height, (width - 8) // 2) <= 322


def test_a_preview_waits_until_there_is_time_for_a_large_one(
    phantom_store: Store,
) -> None:
    settings = {"method": {"size": [16, 16, 16], "token_stride": 4}}
    config = from_dict(PretrainConfig, tiny("mae", phantom_store, settings=settings))
    cases = chosen_cases([phantom_store], ())
    method = build_method(config).eval()
    preview = SlicePreview(method, cases, torch.device("cpu"), "fp32")
    assert preview.case.card.split == "val"
    with torch.no_grad():
        small = preview(1, 1e-9, 1e-9)
        assert small is not None
        assert preview(2, 1e-9, 1e9) is None
        large = preview(3, 1e9, 1e9)
    assert large is not None
    picture, title = large
    assert title == f"{preview.case.card.id}: a slice and its features after 3 steps"
    grey, colours = picture[:, :320], picture[:, -320:]
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (colours[..., 0] != colours[..., 1]).mean() > 0.1
    assert preview.window == (8, 16, 16)  # a third of the depth, where legal


def test_a_killed_request_is_never_resolved_anew(
    tmp_path: Path, phantom_store: Store, warm_workers: None
) -> None:
    length = {"steps": 40, "checkpoint_every": 2}
    request = {
        "unresolved": True, "method": "mae", "stores": [str(phantom_store.path)],
        "recipe": "cpu", "backbone": None, "device": "cpu", "encoder": "",
        "settings": {
            **TINY, "training": {**TINY["training"], **length},
        },
        "without_splits": ["test"], "seed": 0,
    }  # fmt: skip
    run = Run.create(tmp_path / "run", "pretrain", request)
    pid = launch.start(run)
    until = time.monotonic() + 100
    while not generations(run.folder):
        assert time.monotonic() < until, run.log.read_text()
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    while run.is_alive():
        time.sleep(0.02)
    complete = run.spec["config"]
    assert run.spec["request"] == request
    expected = tiny("mae", phantom_store, recipe="cpu", settings={"training": length})
    assert complete == expected
    assert run.spec["store_hash"] == [phantom_store.hash]
    # What a recipe says later no longer matters.
    for event in execute(run):
        last = event
    assert isinstance(last, Finished), last
    assert run.spec["config"] == complete
    drain(job(complete, tmp_path / "whole"))
    ends = [
        (generations(f)[0] / "state.safetensors").read_bytes()
        for f in (tmp_path / "whole", run.folder)
    ]
    assert ends[0] == ends[1]


def test_a_request_that_cannot_be_meant_ends_as_unusable(
    tmp_path: Path, phantom_store: Store
) -> None:
    requests: list[tuple[str, dict[str, Any]]] = [
        ("pretrain", {"method": "mae", "stores": [str(tmp_path)]}),
        ("pretrain", {"method": "mae", "settings": {"training": {"steps": 0}},
                      "stores": [str(phantom_store.path)]}),
        ("pretrain", {"stores": []}),
        ("finetune", {"task": "segment", "store": str(tmp_path)}),
        ("finetune", {"task": "segment", "store": str(phantom_store.path),
                      "encoder": str(tmp_path / "none")}),
        ("demo", {}),
    ]  # fmt: skip
    for number, (kind, request) in enumerate(requests):
        run = Run.create(tmp_path / str(number), kind, {**request, "unresolved": True})
        last = list(execute(run))[-1]
        assert isinstance(last, Failed)
        assert run.spec["outcome"]["error_kind"] == "unusable"


def test_the_same_seed_gives_the_same_start_whatever_torch_drew_before(
    phantom_store: Store, tmp_path: Path
) -> None:
    ids = []
    for index, seed in enumerate((1, 1, 2)):
        torch.manual_seed(index)
        settings = {"training": {"steps": 1, "learning_rate": 0.0}}
        config = tiny("mae", phantom_store, seed=seed, settings=settings)
        ids.append(drain(job(config, tmp_path / str(index)))["encoder_id"])
    assert ids[0] == ids[1] != ids[2]


def test_a_large_store_is_learnt_from_as_a_small_one(
    phantom_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(phantom_store.path, tmp_path / "store"))
    ids = []
    for name, least in (("plain", 10**9), ("table", 1)):
        monkeypatch.setattr(store_module, "LARGE", least)
        store = Store.open(folder)
        assert (store.table is not None) == (name == "table")
        result = drain(job(tiny("mae", store), tmp_path / name))
        ids.append((result["encoder_id"], result["cases"]))
    assert ids[0] == ids[1]


def test_cases_of_the_test_split_are_never_seen(phantom_store: Store) -> None:
    left = {c.card.id for c in chosen_cases([phantom_store], ("test",))}
    test = {card.id for card in phantom_store.split("test")}
    assert left
    assert not left & test
    everything = chosen_cases([phantom_store], ())
    assert len(everything) == len(phantom_store)
    with pytest.raises(UnusableInput, match="no case to learn from"):
        chosen_cases([phantom_store], ("train", "val", "test"))


def test_a_store_that_changed_is_refused_on_resume(
    tmp_path: Path, phantom_store: Store
) -> None:
    config = {**tiny("mae", phantom_store), "store_hashes": ["0000"]}
    with pytest.raises(UnusableInput, match="changed since this run began"):
        drain(job(config, tmp_path))


def test_a_run_of_a_former_version_resumes_with_the_settings_it_resolved(
    tmp_path: Path, phantom_store: Store
) -> None:
    former = {
        "method": "mae", "stores": [str(phantom_store.path)], "device": "cpu",
        "settings": TINY, "seed": 4,
    }  # fmt: skip
    complete = tiny("mae", phantom_store, seed=4)
    tmp_path.joinpath("resolved.json").write_text(json.dumps(complete))
    result = drain(job(former, tmp_path))
    assert (result["steps"], result["seed"]) == (4, 4)
    again = drain(job(complete, tmp_path / "again"))
    assert result["encoder_id"] == again["encoder_id"]


def test_pretraining_can_start_from_an_encoder(
    tmp_path: Path, phantom_store: Store
) -> None:
    first = drain(job(tiny("mae", phantom_store), tmp_path / "first"))
    settings = {"training": {"steps": 1, "learning_rate": 0.0}}
    config = tiny(
        "mae", phantom_store, encoder=str(tmp_path / "first"), settings=settings
    )
    second = drain(job(config, tmp_path / "second"))
    assert second["encoder_id"] == first["encoder_id"]
    told = read_card(tmp_path / "second" / "model")["started_from"]
    assert told == str(tmp_path / "first")


# --- settings


@each(
    "options, text",
    [
        ({"recipe": "huge"}, "no recipe 'huge'; recipes: cpu, gpu, paper"),
        ({"backbone": "vgg"}, "unknown backbone 'vgg'"),
        ({"settings": {"method": {"sise": 3}}}, "no setting 'sise'"),
        ({"settings": {"training": {"batch_size": 0}}}, "batch_size must be in 1"),
        ({"settings": {"backbone": {"channels": "x"}}}, "channels"),
        ({"settings": {"method": {"size": [16, 16, 15]}}}, "nearest legal size"),
        ({"settings": {"method": {"token_stride": 32}}}, "no map of stride 32"),
        ({"device": "cuda:77"}, "usable GPUs"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(
    phantom_store: Store, options: dict[str, Any], text: str
) -> None:
    request = {"method": "s2dc", "stores": [phantom_store.path], "device": "cpu"}
    settings = {key: {**TINY[key], **value} for key, value in
                {"method": {}, "backbone": {}, "training": {},
                 **options.pop("settings", {})}.items()}  # fmt: skip
    with pytest.raises((ConfigError, UnusableInput), match=text):
        resolve(**{**request, "settings": settings, **options})


def test_unknown_methods_parts_and_stores_are_refused(
    phantom_store: Store, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'simclr'; known: .*s2dc"):
        resolve("simclr", [phantom_store.path])
    with pytest.raises(ConfigError, match="settings start with method"):
        resolve("mae", [phantom_store.path], settings={"optimizer": {}})
    with pytest.raises(UnusableInput, match="not a finished store"):
        resolve("mae", [tmp_path])
    with pytest.raises(UnusableInput, match="at least one store"):
        resolve("mae", [])


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_recipe_file_is_read_and_overridden(
    tmp_path: Path, phantom_store: Store, suffix: str
) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".toml":
        path.write_text(
            '[backbone]\nname = "resunet"\nchannels = [4, 8, 8]\n'
            "[method]\nsize = [16, 16, 16]\ntoken_stride = 4\n"
            "[training]\nsteps = 9\nlearning_rate = 0.5\n"
        )
    else:
        content = {**TINY, "backbone": {"name": "resunet", "channels": [4, 8, 8]}}
        content["training"] = {"steps": 9, "learning_rate": 0.5}
        path.write_text(json.dumps(content))
    config = resolve(
        "mae", [phantom_store.path], recipe=str(path),
        settings={"training": {"steps": 3}},
    )  # fmt: skip
    assert config["training"]["steps"] == 3
    assert config["training"]["learning_rate"] == 0.5
    assert config["method_config"]["size"] == [16, 16, 16]
    assert config["backbone"]["channels"] == [4, 8, 8]
    path.write_text("[methods]\n" if suffix == ".toml" else '{"methods": {}}')
    with pytest.raises(ConfigError, match="got 'methods'"):
        resolve("mae", [phantom_store.path], recipe=str(path))
    path.write_text("]")
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve("mae", [phantom_store.path], recipe=str(path))


def test_a_2d_network_is_given_slices_turned_within_their_plane(
    phantom_store: Store,
) -> None:
    def resolved(**settings: Any) -> dict[str, Any]:
        return resolve(
            "swav", [phantom_store.path], recipe="cpu", backbone="resnet2d",
            device="cpu", settings=settings,
        )  # fmt: skip

    config = resolved()
    own = config["method_config"]
    assert own["small_size"] == [1, 64, 64]
    assert own["size"][0] == 1
    assert own["rotate_deg"][1:] == [0.0, 0.0] != own["rotate_deg"][:2]
    assert any("2D and sees slices" in note for note in config["notes"])
    asked = resolved(method={"size": [1, 32, 32], "small_size": [1, 16, 16]})
    assert asked["method_config"]["size"] == [1, 32, 32]
    assert not any("slices" in note for note in asked["notes"])
    with pytest.raises(ConfigError, match="one slice"):
        resolved(method={"size": [8, 32, 32]})


def test_a_3d_network_is_given_volumes_where_the_recipe_has_slices(
    phantom_store: Store,
) -> None:
    config = resolve(
        "hundred_million", [phantom_store.path], recipe="cpu", backbone="resunet",
        device="cpu",
    )  # fmt: skip
    assert config["method_config"]["small_size"] == [16, 16, 16]
    assert config["method_config"]["size"][0] > 1
    assert any("3D and sees volumes" in note for note in config["notes"])


def test_a_card_says_labels_entered_only_where_they_did(
    tmp_path: Path, phantom_store: Store
) -> None:
    told = {}
    for weight in (0.0, 1.0):
        settings = {
            "method": {"small_size": [8, 8, 8], "weight_masks": weight},
            "training": {"steps": 1},
        }
        config = tiny("hundred_million", phantom_store, settings=settings)
        assert bool(config["method_config"]["mask_rows"]) == (weight > 0)
        result, _ = listen(job(config, tmp_path / str(weight)))
        told[weight] = read_card(tmp_path / str(weight) / "model")["uses_labels"]
        assert ("masks" in result["losses"]) == (weight > 0)
    assert told == {0.0: False, 1.0: True}


def test_another_backbone_starts_from_its_own_defaults(phantom_store: Store) -> None:
    config = resolve(
        "s2dc", [phantom_store.path], recipe="gpu", backbone="resunet", device="cpu",
        settings={"method": {"size": [32, 32, 32], "token_stride": 8}},
    )  # fmt: skip
    assert config["backbone"] == {"name": "resunet", "in_channels": 1}


@pytest.mark.parametrize("recipe", ["cpu", "blind", "segment"])
def test_another_backbone_is_small_in_every_recipe_for_two_cores(
    phantom_store: Store, recipe: str
) -> None:
    config = resolve(
        "anatomical_embedding", [phantom_store.path], recipe=recipe, device="cpu",
        backbone="resnet2d",
    )  # fmt: skip
    small = dict(BACKBONES.get("resnet2d").SMALL)
    assert config["backbone"] == {"name": "resnet2d", "in_channels": 1, **small}


def test_a_recipes_crop_shrinks_to_small_scans_and_says_so(
    phantom_store: Store,
) -> None:
    cases = chosen_cases([phantom_store], ())
    assert fitted_size((96, 96, 96), cases, (16, 16, 16)) == (32, 48, 48)
    assert fitted_size((16, 96, 16), cases, (16, 16, 16)) == (16, 48, 16)
    config = resolve("mae", [phantom_store.path], recipe="cpu", device="cpu")
    size = config["method_config"]["size"]
    assert size[0] <= 32
    assert any("crops have that size" in note for note in config["notes"])
    asked = resolve(
        "mae", [phantom_store.path], recipe="cpu", device="cpu",
        settings={"method": {"size": [64, 64, 64]}},
    )  # fmt: skip
    assert asked["method_config"]["size"] == [64, 64, 64]
    assert asked["notes"] == []


def test_much_padding_is_explained(phantom_store: Store, tmp_path: Path) -> None:
    cases = chosen_cases([phantom_store], ())
    text = padding_note({"view": ViewSpec(size=(96, 96, 96))}, cases)
    assert "32 x 40 x 40" in text
    assert "method.size" in text
    assert padding_note({"view": ViewSpec(size=(32, 32, 32))}, cases) == ""
    config = tiny("mae", phantom_store, settings={"method": {"size": [64, 64, 64]}})
    first = next(e for e in job(config, tmp_path) if isinstance(e, Note))
    assert "resunet" in first.text


def test_deviations_come_from_the_docstring() -> None:
    assert "temperature in Eq. 4" in deviations(METHODS.get("s2dc"))
    assert deviations(int) == ""


class Headed(METHODS.get("mae")):  # type: ignore[misc]
    """Its dense features pass through a head of their own."""

    def __init__(self, backbone: Backbone, config: Any) -> None:
        super().__init__(backbone, config)
        self.dense = nn.Conv3d(backbone.channels[1], 5, 1)

    def embedder(self) -> Embedder:
        return Embedder(self.encoder(), {"dense": 1}, {"dense": self.dense})


def test_heads_travel_with_the_encoder(
    tmp_path: Path, phantom_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS._extra, "headed", Headed)
    drain(job(tiny("headed", phantom_store), tmp_path))
    loaded = load_encoder(tmp_path)
    assert loaded.card["embedding"]["heads"] == ["dense"]
    features = load_embedder(loaded)(torch.randn(1, 1, 16, 16, 16))
    assert features["dense"].shape == (1, 5, 4, 4, 4)
    saved = load_file(tmp_path / "model" / "embedder.safetensors")
    again = load_embedder(loaded).own_state()
    assert all(torch.equal(t, again[n]) for n, t in saved.items())
    (tmp_path / "model" / "embedder.safetensors").unlink()
    with pytest.raises(UnusableInput, match=r"embedder\.safetensors"):
        load_embedder(loaded)
