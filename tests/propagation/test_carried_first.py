"""A fine-tuning from carried labels first: whole, stopped anywhere, refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from homolog.config import ConfigError, to_dict
from homolog.errors import UnusableInput
from homolog.events import Note, Progress, Request, Saved, Step, Stopped, drain
from homolog.finetune import job as finetune
from homolog.finetune.settings import (
    carried_to,
    check_cases,
    resolve,
    resolve_request,
    task_of,
)
from homolog.finetune.start import starting_point
from homolog.model_files.card import read_card
from homolog.model_files.folder import load_model
from homolog.propagation import carried_first
from homolog.propagation.config import PropagateConfig
from homolog.propagation.into_store import propagate_into
from homolog.store.store import Store
from homolog.tasks.segment.task import SegmentConfig
from homolog.use.folds import resolve_request as resolve_folds

STEPS = 3
CPU = torch.device("cpu")
CARRYING = PropagateConfig(method="grey", cells=500, trust=0.0)
WEIGHTS = "model.safetensors"


def config_of(store: Store, **own: Any) -> dict[str, Any]:
    return resolve_request(
        {
            "task": "segment", "store": str(store.path), "recipe": "cpu",
            "backbone": {"name": "resunet", "channels": [8, 16]}, "device": "cpu",
            "patients": 1,
            "task_config": {"window": [16, 16, 16], "carry": True, "carry_to": 1,
                            "validate_cases": None, **own},
            "training": {"steps": STEPS, "batch_size": 1, "dry_run_steps": 0,
                         "precision": "fp32"},
        }
    )  # fmt: skip


def heard(config: Mapping[str, Any], folder: Path, stop_at: int = -1) -> Iterator[Any]:
    """Events; from the ``stop_at``-th on each is answered with a wish to stop."""
    job = carried_first.job(config, folder)
    event, number = next(job), 0
    while True:
        yield event
        number += 1
        try:
            event = job.send(Request.STOP if 0 <= stop_at < number else None)
        except StopIteration as end:
            yield end.value
            return


@pytest.fixture(scope="module")
def whole(phantom_store: Store, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("carried") / "run"
    config = config_of(phantom_store)
    *events, result = heard(config, folder)
    return config, folder, events, result


def test_the_run_begins_with_what_was_learnt_from_carried_labels(
    whole, phantom_store: Store
) -> None:
    config, folder, _, result = whole
    assert result["steps"] == STEPS
    assert not result["stopped"]
    settings = resolve(config)
    targets = carried_to(settings, check_cases(settings))
    assert len(targets) == 1
    carried = Store.open(folder / "carried" / "store")
    (source,) = {card.id for card in carried.cards} - set(targets)
    first = read_card(folder / "carried" / "first" / "model")
    assert sorted(first["cases"]["train"]) == sorted([source, *targets])
    card = load_model(folder).card
    assert card["cases"]["train"] == [source]
    assert card["cases"]["carried"] == list(targets)
    hashes = {c.id: c.source_hash for c in phantom_store.cards}
    assert card["trained_on"] == sorted(hashes[name] for name in (source, *targets))
    assert card["true_labels_of"] == [hashes[source]]
    assert card["encoder"]["source"] == str(folder / "carried" / "first")
    assert card["encoder"]["decoder"]
    # carried labels are not counted as anybody's
    assert card["encoder"]["labels_of"] == [source]
    held = {c.id for c in phantom_store.cards if c.split in ("val", "test")}
    assert not held & {source, *targets}


def test_one_training_is_told_the_other_is_progress(whole) -> None:
    _, folder, events, _ = whole
    assert [e.index for e in events if isinstance(e, Step)] == [STEPS]
    phases = {e.phase for e in events if isinstance(e, Progress)}
    assert {"carrying labels", "learning from carried labels"} <= phases
    models = [e.path for e in events if isinstance(e, Saved) and e.what == "model"]
    assert models == [str(folder / "model")]
    assert any("carried to 1 scan" in e.text for e in events if isinstance(e, Note))


def test_the_first_training_is_one_from_scratch(whole) -> None:
    _, folder, _, _ = whole
    first = read_card(folder / "carried" / "first" / "model")
    last = read_card(folder / "model")
    assert first["encoder"]["source"] == "scratch"
    assert (first["task_config"]["average"], last["task_config"]["average"]) == (
        0,
        0.98,
    )
    assert (first["training"]["warmup"], last["training"]["warmup"]) == (0, 0.05)


def test_stopped_anywhere_it_ends_with_the_same_weights(
    whole, phantom_store: Store, tmp_path: Path
) -> None:
    config, folder, events, _ = whole
    want = (folder / "model" / WEIGHTS).read_bytes()
    learning = [
        i for i, e in enumerate(events)
        if isinstance(e, Progress) and e.phase == "learning from carried labels"
    ]  # fmt: skip
    carrying = [
        i for i, e in enumerate(events)
        if isinstance(e, Progress) and e.phase == "carrying labels"
    ]  # fmt: skip
    for number, place in enumerate((carrying[len(carrying) // 2], learning[0])):
        run = tmp_path / str(number)
        *told, result = heard(config, run, stop_at=place)
        assert result["stopped"]
        assert result["steps"] == 0
        assert isinstance(told[-1], Stopped)
        assert not (run / "model").exists()
        *_, result = heard(config, run)
        assert not result["stopped"]
        assert (run / "model" / WEIGHTS).read_bytes() == want


def test_half_of_what_is_seen_then_has_true_labels(
    whole, phantom_store: Store, tmp_path: Path
) -> None:
    _, _, events, _ = whole
    notes = [e.text for e in events if isinstance(e, Note)]
    assert any("as often as 1 scan with labels that were carried" in n for n in notes)
    store = tmp_path / "many"
    names = [c.id for c in phantom_store.cards if c.split == "train"][:4]
    drain(propagate_into(phantom_store, names[:1], names[1:], store, None, CARRYING))
    settings = resolve({**config_of(phantom_store, carry=False), "carried": str(store)})
    cases = check_cases(settings)
    start = starting_point(settings, cases)
    run = finetune._Run.begin(settings, cases, start, CPU, tmp_path)
    learnt = [c.card.id for c in run.cases.learnt]
    assert len(run.cases.train) == 1
    assert len(learnt) == 1 + len(run.cases.carried) >= 3
    feed = run.feed()
    seen = Counter(feed.case_of(k) == 0 for k in range(200))
    assert seen[True] == 100


def test_carried_labels_of_hidden_patients_teach_nothing(
    phantom_store: Store, tmp_path: Path
) -> None:
    names = [c.id for c in phantom_store.cards]
    first = next(c.id for c in phantom_store.cards if c.split == "train")
    hidden = {c.id for c in phantom_store.cards if c.split in ("val", "test")}
    assert hidden
    others = [name for name in names if name != first]
    store = tmp_path / "all"
    drain(propagate_into(phantom_store, [first], others, store, None, CARRYING))
    base = config_of(phantom_store, carry=False)
    cases = check_cases(resolve({**base, "carried": str(store)}))
    carried = {case.card.id for case in cases.carried}
    assert carried
    assert not carried & (hidden | {case.card.id for case in cases.train})
    with pytest.raises(UnusableInput, match="holds no carried labels"):
        check_cases(resolve({**base, "carried": str(phantom_store.path)}))
    everybody = {**base, "patients": 0, "carried": str(store)}
    with pytest.raises(UnusableInput, match="no scan with carried labels"):
        check_cases(resolve(everybody))
    with pytest.raises(ConfigError, match="give one of them"):
        resolve_request({**config_of(phantom_store), "carried": str(store)})
    leaking = tmp_path / "leaking"
    whose = sorted(hidden)[0]
    drain(propagate_into(phantom_store, [whose], others, leaking, None, CARRYING))
    with pytest.raises(UnusableInput, match=f"carried from {whose}, who is to"):
        check_cases(resolve({**base, "carried": str(leaking)}))
    told = resolve({**base, "carried": str(store)})
    assert carried_first._hint(told, cases) == ""
    described = task_of(told).describe(
        cases.described, starting_point(told, cases).backbone, CPU
    )
    assert described["labels_note"] == ""
    with pytest.raises(ConfigError, match="of one store"):
        check_cases(
            resolve({**base, "carried": str(store), "more_stores": [str(store)]})
        )


def test_minutes_are_for_both_trainings(phantom_store: Store, tmp_path: Path) -> None:
    settings = resolve(config_of(phantom_store))
    timed = resolve(
        {**to_dict(settings), "training": {**settings.training, "minutes": 6.0}}
    )
    then = carried_first._then(timed, tmp_path)
    assert then.training["minutes"] == 3.0
    assert then.task_config["carry"] is False


def test_what_cannot_be_is_refused_before_a_run_begins(
    phantom_store: Store, three_patients: Store
) -> None:
    config = config_of(phantom_store)
    with pytest.raises(ConfigError, match="within one store"):
        resolve_request({**config, "more_stores": [str(three_patients.path)]})
    everybody = {**config, "patients": 0}
    with pytest.raises(UnusableInput, match="no training scan beside"):
        resolve_request(everybody)
    with pytest.raises(ConfigError, match="leave --folds out"):
        resolve_folds({**config, "patients": 0, "folds": 2})
    with pytest.raises(ConfigError, match="carried_first"):
        next(finetune.job(config, Path("never")))


def test_few_patients_among_many_scans_are_told_of_it(
    phantom_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carried_first, "FEW_SCANS", 2)
    settings = resolve(config_of(phantom_store, carry=False))
    cases = check_cases(settings)
    assert "Labels of 1 patient are few" in carried_first._hint(settings, cases)
    named = resolve({**to_dict(settings), "patients": 0, "cases": ["phantom_000"]})
    assert carried_first._hint(named, cases) == ""
    monkeypatch.setattr(carried_first, "FEW_PATIENTS", 0)
    assert carried_first._hint(settings, cases) == ""


def test_settings_that_do_not_ask_for_it_are_written_as_before() -> None:
    assert not {"carry", "carry_to"} & set(to_dict(SegmentConfig()))
