"""Rates of what came pretrained, what they are by themselves, and how many patients."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from each import each
from homolog.backbones import BACKBONES, build
from homolog.config import ConfigError, to_dict
from homolog.errors import UnusableInput
from homolog.events import Note, drain
from homolog.feed.reading import CaseRef
from homolog.finetune.job import job
from homolog.finetune.settings import (
    Cases,
    FinetuneConfig,
    check_cases,
    choose_cases,
    of_patients,
    patient_count,
    resolve,
    task_of,
)
from homolog.finetune.start import (
    encoder_names,
    groups_of,
    paces,
    sentences,
    stage_factors,
)
from homolog.model_files.folder import load_best, load_model, load_state, save_model
from homolog.nn.optim import NEVER, Pace
from homolog.store.splits import nested_count, nested_fraction
from homolog.tasks import PRETRAINED, TASKS
from homolog.tasks.base import LearnedConfig, settings_of
from homolog.tasks.classify.task import Classify
from homolog.tasks.segment.task import Segment, SegmentConfig
from homolog.training.config import TrainingConfig

TINY = {"channels": (4, 8, 16)}
TRAINING = TrainingConfig(warmup=0.05)


def module_of(name: str = "resunet", **settings: Any) -> Any:
    backbone = build(name, TINY if name == "resunet" else BACKBONES.get(name).SMALL)
    spec = {"channels": 1, "label_values": [0, 1], "window": [16, 16, 16]}
    task = Segment(SegmentConfig(**settings))
    return task.module(task.network(backbone, spec), spec)


@pytest.fixture
def pretrained(phantom_store, tmp_path: Path) -> Path:
    torch.manual_seed(5)
    encoder = build("resunet", {"channels": (8, 16)})
    card = {
        "kind": "encoder", "method": "s2dc",
        "backbone": {"name": "resunet", "config": to_dict(encoder.config)},
        "preprocessing": to_dict(phantom_store.preprocessing),
    }  # fmt: skip
    save_model(tmp_path / "pre" / "model", encoder.state_dict(), card)
    return tmp_path / "pre"


# Paces of a network's parameters.


@pytest.mark.parametrize("name", BACKBONES.names())
def test_rates_fall_from_stage_to_stage_towards_the_first_layers(name: str) -> None:
    torch.manual_seed(0)
    backbone = build(name, BACKBONES.get(name).SMALL)
    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    modes = [part.training for part in backbone.modules()]
    depths = backbone.depths()
    assert [part.training for part in backbone.modules()] == modes
    assert all(torch.equal(t, before[n]) for n, t in backbone.state_dict().items())
    assert depths.keys() == dict(backbone.named_parameters()).keys()
    assert set(depths.values()) == set(range(len(backbone.strides)))
    first = next(iter(dict(backbone.named_parameters())))
    assert depths[first] == 0
    # by what gradients say: a map needs nothing that lies deeper than itself
    image = torch.randn(2, 1, *backbone._least())
    backbone.eval()
    reached: set[str] = set()
    for level, features in enumerate(backbone(image)):
        backbone.zero_grad(set_to_none=True)
        (features * torch.randn_like(features)).sum().backward(retain_graph=True)
        needs = {n for n, p in backbone.named_parameters() if p.grad is not None}
        assert all(depths[n] <= level for n in needs)
        assert all(depths[n] == level for n in needs - reached)
        reached |= needs
    module = module_of(name, layer_decay=0.5)
    factors = stage_factors(module, 0.5)
    inside = module.encoder().depths()
    last = max(inside.values())
    assert {factors[f"network.encoder.{n}"] for n in inside} == {
        0.5 ** (last - depth) for depth in range(last + 1)
    }
    assert all(factors[f"network.encoder.{n}"] == 0.5 ** (last - d)
               for n, d in inside.items())  # fmt: skip


def test_what_came_joins_later_slower_and_slowest_at_its_first_layers() -> None:
    config = LearnedConfig(encoder_factor=0.4, layer_decay=0.5, head_first=0.1)
    module = module_of()
    decoder = "network.decoder.head.weight"
    came = encoder_names(module) | {decoder}
    pace = paces(module, config, came)
    stages = [f"network.encoder.stages.{i}.0.conv1.conv.weight" for i in range(3)]
    assert [pace(name) for name in stages] == [
        Pace(0.1, 0.1, (0.1,)), Pace(0.2, 0.1, (0.1,)), Pace(0.4, 0.1, (0.1,)),
    ]  # fmt: skip
    assert pace(decoder) == Pace(0.4, 0.1, (0.1,))  # no stage of the encoder
    new = next(n for n, _ in module.named_parameters() if n not in came)
    assert pace(new) == Pace(rises=(0.0, 0.1))
    plain = dataclasses.replace(config, sawtooth=False)
    assert paces(module, plain, came)(stages[2]) == Pace(0.4, 0.1)
    assert paces(module, plain, came)(new) == Pace()
    still = dataclasses.replace(config, encoder_factor=0.0)
    assert paces(module, still, came)(stages[0]) == Pace(start=NEVER)
    assert paces(module, still, came)(new) == Pace(rises=(0.0, 0.1))


def test_where_nothing_is_new_nothing_learns_first() -> None:
    module = module_of()
    everything = {name for name, _ in module.named_parameters()}
    config = LearnedConfig(encoder_factor=0.3, head_first=0.5)
    groups = groups_of(module, config, TRAINING, everything)
    assert {group["pace"] for group in groups} == {Pace(0.3)}
    assert not any("alone" in s for s in sentences(
        module, config, TRAINING, everything))  # fmt: skip


def test_from_scratch_all_learns_alike_and_nothing_is_said() -> None:
    module = module_of()
    groups = groups_of(module, LearnedConfig(), TrainingConfig(), ())
    assert [g["pace"] for g in groups] == [Pace(), Pace()]
    assert sentences(module, LearnedConfig(), TrainingConfig(), ()) == []


def test_each_setting_is_one_sentence() -> None:
    module = module_of()
    config = LearnedConfig(
        encoder_factor=0.3, layer_decay=0.5, head_first=0.1, average=0.98
    )
    told = sentences(module, config, TRAINING, encoder_names(module))
    assert told == [
        "what came pretrained learns at 0.3 times the rate of what is new.",
        "the encoder's rate falls by 0.5 a stage towards its first layers (3 stages), "
        "to 0.075 times that of what is new.",
        "what is new learns alone in the first 10% of the training, then all of it, "
        "all rates rising anew.",
        "rates rise over 5% of the training, and again when the rest joins.",
        "the weights kept are an average of those of the steps, momentum 0.98.",
    ]
    frozen = dataclasses.replace(config, head_first=1.0, average=0.0)
    told = sentences(module, frozen, TrainingConfig(), encoder_names(module))
    assert told == ["only what is new learns; what came pretrained stays as it came."]


# What holds by itself where an encoder is given, and what does not.


@each("task", [n for n in TASKS.names() if TASKS.get(n).learns and n != "few_voxels"])
def test_a_given_encoder_brings_rates_of_its_own(pretrained: Path, task: str) -> None:
    for recipe in ("cpu", "gpu"):
        request = {"task": task, "store": "x", "recipe": recipe}
        plain = resolve({**request, "encoder": "scratch"})
        given = resolve({**request, "encoder": str(pretrained)})
        told = PRETRAINED[recipe]
        assert {k: given.task_config[k] for k in told["task"]} == told["task"]
        assert {k: given.training[k] for k in told["training"]} == told["training"]
        defaults = to_dict(LearnedConfig())
        assert {k: plain.task_config[k] for k in told["task"]} == {
            k: defaults[k] for k in told["task"]
        }
        assert plain.training["warmup"] == 0.0
        assert resolve(to_dict(given)) == given


def test_what_is_asked_for_wins_over_the_rates_of_pretrained_weights(
    pretrained: Path,
) -> None:
    request = {"task": "segment", "store": "x", "encoder": str(pretrained)}
    own = resolve({**request, "task_config": {"encoder_factor": 1.0},
                   "training": {"warmup_steps": 30}})  # fmt: skip
    assert own.task_config["encoder_factor"] == 1.0
    assert own.task_config["head_first"] == PRETRAINED["cpu"]["task"]["head_first"]
    # steps or a share, whichever was asked for
    assert (own.training["warmup_steps"], own.training["warmup"]) == (30, 0.0)


def test_a_run_of_an_earlier_version_goes_on_with_its_own_rates(
    pretrained: Path,
) -> None:
    request = {"task": "segment", "store": "x", "encoder": str(pretrained)}
    wrote = to_dict(resolve(request))
    for name in ("layer_decay", "sawtooth", "head_first"):
        del wrote["task_config"][name]
    wrote["task_config"] |= {"freeze": 0.2, "encoder_factor": 1.0, "average": 0.0}
    del wrote["training"]["warmup"]
    del wrote["patients"]
    config = task_of(resolve(wrote)).config
    assert (config.encoder_factor, config.average) == (1.0, 0.0)
    assert (config.head_first, config.sawtooth, config.layer_decay) == (0.2, False, 1.0)
    assert resolve(wrote).training["warmup"] == 0.0
    module = module_of()
    pace = paces(module, config, encoder_names(module))
    assert pace("network.encoder.stages.0.0.conv1.conv.weight") == Pace(1.0, 0.2)
    assert pace("network.decoder.head.weight") == Pace()


def test_the_former_name_is_still_understood() -> None:
    assert settings_of(SegmentConfig, {"freeze": 0.2}) == SegmentConfig(head_first=0.2)
    assert settings_of(Classify.Config, {"freeze": 0.5}).head_first == 0.5
    with pytest.raises(ConfigError, match="no setting 'freze'"):
        settings_of(SegmentConfig, {"freze": 0.2}, where="segment")


def config_of(store: Any, encoder: Path, **changes: Any) -> dict[str, Any]:
    base = {
        "task": "segment", "store": str(store.path), "encoder": str(encoder),
        "task_config": {"window": [32, 40, 40], "intensity": 0.0,
                        "validate_cases": None},
        "training": {"steps": 10, "batch_size": 1, "dry_run_steps": 0,
                     "precision": "fp32", "learning_rate": 1e-3},
        "device": "cpu",
    }  # fmt: skip
    return {**base, **changes}


def test_the_average_of_the_last_weights_is_kept_without_held_out_cases(
    phantom_store, pretrained: Path, tmp_path: Path
) -> None:
    """One labelled patient, a given encoder: all is said and kept."""
    config = config_of(phantom_store, pretrained, patients=1)
    config["task_config"] |= {"encoder_factor": 0.3, "head_first": 0.1}
    stream, told, folder = job(config, tmp_path / "run"), [], tmp_path / "run"
    while True:
        try:
            event = next(stream)
        except StopIteration as end:
            result = end.value
            break
        told += [event.text] if isinstance(event, Note) else []
    words = "\n".join(told)
    assert "1 labelled case to learn from; without held-out cases the average of" in (
        words
    )
    assert "learns at 0.3 times the rate of what is new." in words
    assert "what is new learns alone in the first 10% of the training" in words
    assert "rates rise over 5% of the training, and again" in words
    card = load_model(folder).card
    assert (card["patients"], card["labelled"]["patients"]) == (1, 1)
    assert (result["patients"], result["labelled"]) == (1, card["labelled"])
    assert card["weights_of"] == {"kept": "last", "step": 10, "validated": False}
    assert load_best(folder) is None
    saved, state = load_state(folder), load_model(folder).state
    assert saved is not None
    last = {n: saved.tensors[f"module/average.module.{n}"] for n in state}
    assert all(torch.equal(last[n], state[n]) for n in state)
    assert not all(
        torch.equal(saved.tensors[f"module/network.{n}"], state[n]) for n in state
    )


def test_the_encoder_is_as_it_came_until_it_joins(
    phantom_store, pretrained: Path, tmp_path: Path
) -> None:
    ends = {}
    for share in (0.5, 1.0):
        config = config_of(phantom_store, pretrained)
        config["task_config"] |= {"head_first": share, "average": 0.0}
        config["training"] |= {"steps": 2}
        drain(job(config, tmp_path / str(share)))
        ends[share] = load_model(tmp_path / str(share)).state
    start = load_model(pretrained).state
    same = {s: all(torch.equal(ends[s][f"encoder.{n}"], t) for n, t in start.items())
            for s in ends}  # fmt: skip
    assert same == {0.5: False, 1.0: True}


# So many labelled patients.


def test_patients_are_exactly_so_many_and_fewer_lie_within_more(phantom_store) -> None:
    task = task_of(resolve({"task": "segment", "store": "x"}))
    cases = choose_cases(phantom_store, task)
    cards = [c.card for c in cases.train]
    have = patient_count(cases.train)
    for seed in (0, 1):
        former: set[str] = set()
        for count in range(1, have + 1):
            chosen = of_patients(cases, count, seed)
            ids = {c.card.id for c in chosen.train}
            assert patient_count(chosen.train) == count
            assert former < ids
            assert chosen.val == cases.val
            assert ids == set(nested_count(cards, count, seed))
            assert ids == set(nested_fraction(cards, count / have, seed))
            former = ids
    orders = {tuple(nested_count(cards, 1, seed)) for seed in range(20)}
    assert len(orders) > 1


def test_more_patients_than_there_are_is_an_error(phantom_store) -> None:
    settings = FinetuneConfig(store=str(phantom_store.path), patients=99)
    with pytest.raises(
        UnusableInput, match=r"has \d+ labelled training patients, but 99 patients were"
    ):
        check_cases(settings)
    with pytest.raises(ConfigError, match="--fraction or --patients"):
        resolve({"store": "x", "patients": 2, "fraction": 0.5})
    with pytest.raises(ConfigError, match="the cases to learn from or a number"):
        resolve({"store": "x", "patients": 2, "cases": ["a"]})


def test_scans_of_one_patient_come_together_and_stores_are_told_apart(
    phantom_store, three_patients
) -> None:
    """Case names of two stores may be equal; equal contents are one patient."""
    card = phantom_store.cards[0]

    def ref(store: Any, name: str, subject: str, content: str) -> CaseRef:
        new = dataclasses.replace(
            card, id=name, subject=subject, source_hash=content, split="train"
        )
        return CaseRef(store, new)

    train = (
        ref(phantom_store, "a1", "anna", "1"), ref(phantom_store, "a2", "anna", "2"),
        ref(phantom_store, "b", "b", "3"), ref(three_patients, "b", "b", "4"),
        ref(three_patients, "c", "c", "3"),
    )  # fmt: skip
    cases = Cases(train, (), train)
    assert patient_count(train) == 3  # anna; b and c of one content; the other b
    for seed in range(8):
        for count in (1, 2, 3):
            chosen = of_patients(cases, count, seed).train
            assert patient_count(chosen) == count
            names = [c.card.id for c in chosen]
            assert ("a1" in names) == ("a2" in names)
