"""The fine-tuning job on a small phantom cohort, and what it leaves behind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from each import each
from homolog.backbones import BACKBONES
from homolog.cli.train import validated_cases
from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import (
    Note,
    Preview,
    Request,
    Saved,
    Started,
    Step,
    Stopped,
    Validated,
    drain,
)
from homolog.finetune.job import job
from homolog.finetune.settings import (
    choose_cases,
    learned_task,
    parse_fold,
    resolve,
    resolve_request,
    spread_cases,
    spread_first,
)
from homolog.model_files.folder import generations, load_model, load_state, save_model
from homolog.store.store import Store
from homolog.tasks.segment.task import Segment, SegmentConfig, box_around
from homolog.use.predict import open_trained

TINY = {"name": "resunet", "channels": [8, 16]}


def config_of(store, **changes):
    base = {
        "task": "segment",
        "store": str(store.path),
        "encoder": "scratch",
        "backbone": TINY,
        "task_config": {"window": [32, 40, 40], "intensity": 0.0},
        "training": {"steps": 4, "batch_size": 1, "dry_run_steps": 0,
                     "precision": "fp32", "validate_every": 2},
        "device": "cpu",
    }  # fmt: skip
    return {**base, **changes}


def events_of(stream):
    found = []
    while True:
        try:
            found.append(next(stream))
        except StopIteration as stop:
            return found, stop.value


@pytest.fixture(scope="module")
def finished(phantom_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune") / "run"
    events, result = events_of(job(config_of(phantom_store), folder))
    return folder, events, result


def test_job_trains_validates_and_saves_a_model(finished, phantom_store):
    folder, events, result = finished
    assert [e.index for e in events if isinstance(e, Validated)] == [2, 4]
    assert any(isinstance(e, Saved) and e.what == "model" for e in events)
    assert result["steps"] == 4
    assert result["stopped"] is False
    assert result["model"] == str(folder / "model")
    assert 0.0 <= result["best"]["dice"] <= 1.0
    assert json.dumps(result)


def test_card_tells_how_to_build_and_feed_the_network(finished, phantom_store):
    card = load_model(finished[0]).card
    assert card["kind"] == "segment"
    assert card["backbone"]["name"] == "resunet"
    assert card["backbone"]["config"]["channels"] == [8, 16]
    assert card["window"] == [32, 40, 40]
    assert card["store_hash"] == phantom_store.hash
    assert card["label_names"] == {
        str(v): n for v, n in phantom_store.label_names.items()
    }
    held = {c.id for c in phantom_store.split("test")}
    assert not held & {*card["cases"]["train"], *card["cases"]["val"]}


def test_saved_weights_are_those_that_validated_best(finished, phantom_store):
    folder, events, result = finished
    task, model = open_trained(folder, torch.device("cpu"))
    cases = choose_cases(phantom_store, task)
    again = task.validate(model, cases.val)
    assert again["dice"] == pytest.approx(result["best"]["dice"], abs=1e-6)
    best = max(e.metrics["dice"] for e in events if isinstance(e, Validated))
    assert result["best"]["dice"] == pytest.approx(best)


def test_same_seed_gives_the_same_weights_and_another_does_not(
    phantom_store, finished, tmp_path
):
    drain(job(config_of(phantom_store), tmp_path / "again"))
    drain(job(config_of(phantom_store, seed=1), tmp_path / "other"))
    first, again, other = (
        load_model(f).state
        for f in (finished[0], tmp_path / "again", tmp_path / "other")
    )
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


def test_stopped_and_resumed_equals_uninterrupted(phantom_store, finished, tmp_path):
    folder = tmp_path / "run"
    config = config_of(phantom_store)
    stream = job(config, folder)
    event = next(stream)
    while not isinstance(event, Validated):
        event = next(stream)
    stream.send(Request.STOP)
    _, result = events_of(stream)
    assert result["stopped"] is True
    assert result["steps"] < 4
    early = load_model(folder).card
    assert (early["stopped"], early["complete"]) == (True, False)
    assert (early["steps"], early["total_steps"]) == (result["steps"], 4)
    assert early["weights_of"] == result["weights_of"]
    assert early["weights_of"]["validated"] is True
    task_of_it, model = open_trained(folder, torch.device("cpu"))
    held = choose_cases(phantom_store, task_of_it).val
    told = task_of_it.validate(model, held)
    assert told["dice"] == pytest.approx(early["validation"]["dice"], abs=1e-6)
    task = folder / "task.json"
    began = task.read_text()
    told = json.loads(began)
    told["label_names"]["1"] = "something else"  # as if the store was named anew
    task.write_text(json.dumps(told))
    with pytest.raises(UnusableInput, match=r"label_names was .*something else.*now"):
        drain(job(config, folder))
    task.write_text(began)
    assert drain(job(config, folder))["steps"] == 4
    whole, resumed = load_model(finished[0]).state, load_model(folder).state
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_every_validation_shows_a_slice_and_changes_nothing(
    finished, phantom_store, tmp_path
):
    folder, events, _ = finished
    shown = [e for e in events if isinstance(e, Preview)]
    assert [Path(e.path).name for e in shown] == [
        "step_00000002.png", "step_00000004.png",
    ]  # fmt: skip
    assert all(Path(e.path).parent == folder / "previews" for e in shown)
    assert "true labels on the left" in shown[0].title
    config = config_of(phantom_store)
    config["training"] = {**config["training"], "previews": 0}
    events, _ = events_of(job(config, tmp_path))
    assert not any(isinstance(e, Preview) for e in events)
    ends = [
        (generations(f)[0] / "state.safetensors").read_bytes()
        for f in (folder, tmp_path)
    ]
    assert ends[0] == ends[1]


def test_a_request_is_completed_by_the_device(phantom_store):
    request = {"store": str(phantom_store.path), "recipe": "auto", "backbone": None,
               "device": "cpu"}  # fmt: skip
    settings = resolve_request(request)
    assert settings["recipe"] == "cpu"
    assert resolve_request(settings) == settings
    with pytest.raises(ConfigError, match="choose a store"):
        resolve_request({})


def test_weight_average_is_what_is_saved(phantom_store, tmp_path):
    config = config_of(phantom_store)
    config["task_config"] = {**config["task_config"], "average": 0.9}
    drain(job(config, tmp_path / "run"))
    state = load_model(tmp_path / "run").state
    from homolog.model_files.folder import load_best

    best, _ = load_best(tmp_path / "run")
    assert all(torch.equal(state[n], best[f"average.module.{n}"]) for n in state)
    assert not all(torch.equal(state[n], best[f"network.{n}"]) for n in state)


def test_encoder_stays_frozen_for_its_share_of_the_training(phantom_store, tmp_path):
    config = config_of(phantom_store)
    config["task_config"] = {**config["task_config"], "head_first": 1.0}
    drain(job(config, tmp_path / "run"))
    trained = load_model(tmp_path / "run").state
    config["training"] = {**config["training"], "steps": 1, "learning_rate": 0.0}
    drain(job(config, tmp_path / "start"))
    start = load_model(tmp_path / "start").state
    encoder = [n for n in start if n.startswith("encoder.")]
    decoder = [n for n in start if n.startswith("decoder.")]
    assert all(torch.equal(start[n], trained[n]) for n in encoder)
    assert not all(torch.equal(start[n], trained[n]) for n in decoder)


def test_encoder_learns_as_fast_as_told(phantom_store, tmp_path):
    config = config_of(phantom_store)
    config["training"] = {**config["training"], "steps": 1, "learning_rate": 0.01}
    moved = {}
    start = None
    for factor in (0.0, 0.1, 1.0):
        config["task_config"] = {**config["task_config"], "encoder_factor": factor}
        drain(job(config, tmp_path / f"run_{factor}"))
        state = load_model(tmp_path / f"run_{factor}").state
        name = "encoder.stages.0.0.conv1.conv.weight"
        start = state[name] if start is None else start
        moved[factor] = (state[name] - start).abs().mean().item()
    assert moved[0.0] == 0.0
    assert moved[0.1] == pytest.approx(moved[1.0] / 10, rel=0.1)


def test_pretrained_encoder_is_loaded_and_named_in_the_card(phantom_store, tmp_path):
    from homolog.backbones import build
    from homolog.config import to_dict

    torch.manual_seed(5)
    encoder = build("resunet", {"channels": (8, 16)})
    save_model(
        tmp_path / "pre" / "model",
        encoder.state_dict(),
        {
            "kind": "encoder",
            "method": "s2dc",
            "backbone": {"name": "resunet", "config": to_dict(encoder.config)},
            "preprocessing": to_dict(phantom_store.preprocessing),
        },
    )
    config = config_of(phantom_store, encoder=str(tmp_path / "pre"), backbone={})
    config["training"] = {**config["training"], "steps": 1, "learning_rate": 0.0}
    drain(job(config, tmp_path / "run"))
    model = load_model(tmp_path / "run")
    assert model.card["encoder"]["method"] == "s2dc"
    for name, weight in encoder.state_dict().items():
        assert torch.equal(model.state[f"encoder.{name}"], weight)


def test_another_backbone_than_the_encoders_is_refused(finished, phantom_store):
    config = config_of(
        phantom_store, encoder=str(finished[0]), backbone={"name": "swin"}
    )
    with pytest.raises(ConfigError, match="is a resunet, not a swin"):
        resolve(config)


def test_encoder_that_is_not_there_is_refused(phantom_store, tmp_path):
    with pytest.raises(UnusableInput, match="nothing"):
        resolve(config_of(phantom_store, encoder=str(tmp_path / "nothing")))


def test_resolving_twice_changes_nothing(phantom_store):
    from homolog.config import to_dict

    once = to_dict(resolve(config_of(phantom_store)))
    assert to_dict(resolve(once)) == once


def test_recipe_knows_what_a_transformer_needs(phantom_store):
    plain = resolve({"store": "s"})
    swin = resolve({"store": "s", "backbone": {"name": "swin"}})
    assert plain.backbone == {"name": "resunet"}
    assert swin.backbone == {"name": "swin", **BACKBONES.get("swin").SMALL}
    assert swin.training["warmup_steps"] > plain.training["warmup_steps"]
    own = {"learning_rate": 0.123}
    told = resolve({"store": "s", "backbone": {"name": "swin"}, "training": own})
    assert told.training["learning_rate"] == 0.123


@each(
    "changes, words",
    [
        ({"task": "knit"}, "known: classify, detect, segment, translate"),
        ({"task": "few_voxels"}, "not fine-tuned"),
        ({"recipe": "moon"}, "recipes: cpu, gpu"),
        ({"training": {"stepz": 3}}, "no setting 'stepz'"),
        ({"task_config": {"windo": 3}}, "no setting 'windo'"),
        ({"fraction": 1.5}, "fraction must be in"),
    ],
)
def test_what_cannot_be_meant_is_named(phantom_store, changes, words):
    with pytest.raises(ConfigError, match=words):
        resolve(config_of(phantom_store, **changes))


def test_learned_tasks_are_found_by_name():
    assert learned_task("segment") is Segment


def test_fractions_are_nested_and_leave_the_validation_alone(phantom_store):
    """Paper: S2DC Table 8; Hundred Million Table II."""
    task = Segment(SegmentConfig())
    chosen = [
        choose_cases(phantom_store, task, fraction=f, seed=3) for f in (0.2, 0.5, 1.0)
    ]
    ids = [{c.card.id for c in cases.train} for cases in chosen]
    assert ids[0] < ids[1] < ids[2]
    assert all(cases.val == chosen[0].val != () for cases in chosen)


def test_folds_divide_all_but_the_test_cases(phantom_store):
    """Paper: Alice cross-validation; MixCL Table 1."""
    task = Segment(SegmentConfig())
    held = []
    for i in (1, 2, 3):
        cases = choose_cases(phantom_store, task, fold=f"{i}/3", seed=0)
        out = [c.card.id for c in cases.val]
        assert not {c.card.id for c in cases.train} & set(out)
        held += out
    test = {c.id for c in phantom_store.split("test")}
    assert sorted(held) == sorted({c.id for c in phantom_store.cards} - test)


@each("text", ["0/5", "6/5", "1/1", "a/b", "3", "-1/5"])
def test_folds_that_cannot_be_meant_are_refused(text):
    with pytest.raises(ConfigError, match="fold must be i/k"):
        parse_fold(text)


def test_validation_cases_are_spread_over_all(phantom_store):
    cases = choose_cases(phantom_store, Segment(SegmentConfig())).all
    assert spread_cases(cases, 0) == cases
    assert [c.card.id for c in spread_cases(cases, 3)] == [
        cases[i].card.id for i in (0, len(cases) // 3, 2 * len(cases) // 3)
    ]


def test_store_without_labels_says_how_to_get_them(phantom_folder, tmp_path):
    from homolog.index.datasets import CaseSource
    from homolog.store.build import write_store

    image = next((phantom_folder / "imagesTr").iterdir())
    source = CaseSource(id="alone", image=image, modality="CT", subject="alone")
    drain(write_store([source], tmp_path / "store"))
    store = Store.open(tmp_path / "store")
    with pytest.raises(UnusableInput, match="no labelled training case"):
        drain(job(config_of(store), tmp_path / "run"))


def test_without_validation_cases_the_last_weights_are_kept(phantom_folder, tmp_path):
    from homolog.index.datasets import CaseSource
    from homolog.store.build import write_store

    label = sorted((phantom_folder / "labelsTr").iterdir())[0]
    image = phantom_folder / "imagesTr" / label.name.replace(".nii", "_0000.nii")
    source = CaseSource(
        id="one", image=image, label=label, modality="CT", subject="one"
    )
    drain(write_store([source], tmp_path / "store"))
    store = Store.open(tmp_path / "store")
    events, result = events_of(job(config_of(store), tmp_path / "run"))
    assert result["best"] == {}
    assert any(isinstance(e, Note) and "last weights" in e.text for e in events)
    assert load_model(tmp_path / "run").card["cases"] == {"train": ["one"], "val": []}


def test_a_stop_before_the_first_validation_keeps_the_last_weights(
    phantom_store, tmp_path, monkeypatch
):
    monkeypatch.setattr("homolog.training.loop._SECONDS_BETWEEN_EVENTS", 0.0)
    config = config_of(phantom_store)
    config["training"] = {**config["training"], "validate_every": 0, "log_every": 1}
    stream = job(config, tmp_path / "run")
    event = next(stream)
    while not (isinstance(event, Step) and event.index == 2):
        event = next(stream)
    events, result = events_of_sent(stream, Request.STOP)
    assert isinstance(events[-1], Stopped)
    assert events[-2] == Saved(str(tmp_path / "run" / "model"), "model")
    assert result["weights_of"] == {"kept": "last", "step": 2, "validated": False}
    card = load_model(tmp_path / "run").card
    assert (card["validation"], card["stopped"]) == ({}, True)
    last = load_state(tmp_path / "run").tensors
    for name, tensor in load_model(tmp_path / "run").state.items():
        assert torch.equal(tensor, last[f"module/network.{name}"])


def test_a_stop_before_the_first_step_keeps_nothing(phantom_store, tmp_path):
    config = config_of(phantom_store)
    stream = job(config, tmp_path / "run")
    while not isinstance(next(stream), Started):
        pass
    events, result = events_of_sent(stream, Request.STOP)
    assert events[-1] == Stopped(0)
    assert (result["stopped"], "model" in result) == (True, False)
    assert not (tmp_path / "run" / "model").exists()


def events_of_sent(stream, request):
    first = stream.send(request)
    events, result = events_of(stream)
    return [first, *events], result


def test_labels_that_choose_the_weights_are_counted(finished, phantom_store):
    folder, events, result = finished
    card = load_model(folder).card
    learnt, chosen = (len(card["cases"][k]) for k in ("train", "val"))
    assert chosen == len(choose_cases(phantom_store, Segment(SegmentConfig())).val) > 0
    told = {"learnt_from": learnt, "chosen_by": chosen, "in_all": learnt + chosen,
            "patients": learnt}  # fmt: skip
    assert result["labelled"] == card["labelled"] == told
    first = next(e.text for e in events if isinstance(e, Note))
    assert f"{learnt} labelled cases to learn from and {chosen} more to choose" in first
    assert f"{learnt + chosen} labelled cases in all" in first


@pytest.mark.parametrize("most", [None, 1])
def test_fewer_or_no_labels_may_choose_the_weights(phantom_store, tmp_path, most):
    config = config_of(phantom_store)
    config["task_config"] = {**config["task_config"], "validate_cases": most}
    events, result = events_of(job(config, tmp_path / "run"))
    card = load_model(tmp_path / "run").card
    assert result["labelled"]["chosen_by"] == len(card["cases"]["val"]) == (most or 0)
    assert len(card["trained_on"]) == result["labelled"]["in_all"]
    validated = [e for e in events if isinstance(e, Validated)]
    assert len(validated) == (2 if most else 0)
    if most is None:
        assert result["weights_of"] == {"kept": "last", "step": 4, "validated": False}
        assert any("left alone" in e.text for e in events if isinstance(e, Note))


def test_labels_an_encoder_was_pretrained_with_are_told(phantom_store, tmp_path):
    from homolog.backbones import build
    from homolog.config import to_dict

    encoder = build("resunet", {"channels": (8, 16)})
    seen = [card.source_hash for card in phantom_store.cards][:5]
    card = {
        "kind": "encoder", "method": "mixcl", "uses_labels": True, "trained_on": seen,
        "backbone": {"name": "resunet", "config": to_dict(encoder.config)},
    }  # fmt: skip
    save_model(tmp_path / "pre" / "model", encoder.state_dict(), card)
    config = config_of(phantom_store, encoder=str(tmp_path / "pre"), backbone={})
    config["training"] = {**config["training"], "steps": 1}
    events, result = events_of(job(config, tmp_path / "run"))
    assert result["labelled"]["encoder"] == 5
    told = [e.text for e in events if isinstance(e, Note)]
    again = load_model(tmp_path / "run").card["cases"]["train"]
    more = {card.id for card in phantom_store.cards[:5]} - set(again)
    assert 0 < len(more) < 5
    words = f"pretrained with labels: {len(more)} labelled case"
    assert any(words in text for text in told)


@each("text, cases", [("none", None), ("all", 0), ("7", 7), (" None ", None)])
def test_validate_is_none_all_or_a_number(text, cases):
    assert validated_cases(text) == cases


@each("text", ["0", "-1", "few", "1.5", ""])
def test_validate_that_cannot_be_meant_is_refused(text):
    with pytest.raises(ConfigError, match="none, all or a number"):
        validated_cases(text)


def test_the_first_few_of_the_held_out_cases_are_spread():
    cases = list(range(16))
    order = spread_first(cases)
    assert sorted(order) == cases
    assert sorted(order[:4]) == [0, 4, 8, 12]
    for count in range(6):
        assert sorted(spread_first(range(count))) == list(range(count))


def test_a_part_of_a_scan_lies_around_its_labels():
    label = np.zeros((40, 60, 30), np.int16)
    label[30:38, 20:24, 2:5] = 1
    box = box_around(label, 0.125, (16, 16, 16))
    assert label[box].shape == (20, 30, 16)
    assert label[box].sum() == label.sum()
    assert box_around(label, 1.0, (16, 16, 16)) == tuple(
        slice(0, n) for n in label.shape
    )
    middle = box_around(np.zeros((40, 60, 30), np.int16), 0.001, (8, 8, 48))
    assert middle == (slice(16, 24), slice(26, 34), slice(0, 30))


def test_validation_of_a_part_is_a_dice_all_the_same(finished, phantom_store):
    task, model = open_trained(finished[0], torch.device("cpu"))
    cases = choose_cases(phantom_store, task).val[:1]
    part = task.validate(model, iter(cases), share=0.5)
    assert 0.0 <= part["dice"] <= 1.0
