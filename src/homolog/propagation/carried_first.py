"""A fine-tuning that learns from labels carried to the scans without any, too.

The labels of the few are carried by grey values to others of the same store (nothing is
trained for it), the network learns from these, and then from both, half of what it sees
being scans with true labels: with one patient the true ones alone undo what was learnt.
What that gave with few labelled patients: docs/measured.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, to_dict
from homolog.distributed import choose_device, world
from homolog.errors import JobError
from homolog.events import Job, Note, Progress, Request, Step, Stopped
from homolog.finetune import job as finetune
from homolog.finetune.settings import (
    SCRATCH,
    Cases,
    FinetuneConfig,
    carried_to,
    check_cases,
    others,
    patient_count,
    resolve,
    task_of,
)
from homolog.json_files import read_object
from homolog.propagation.config import PropagateConfig
from homolog.propagation.into_store import propagate_into
from homolog.store.store import Store
from homolog.tasks import PRETRAINED
from homolog.words import counted, listed
from homolog.writing import write_json

# In the folder of the run.
FOLDER, STORE, FIRST = "carried", "store", "first"
_DONE = "done.json"
# So few labelled patients, and so many scans more: what was measured.
FEW_PATIENTS, FEW_SCANS = 8, 5


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Fine-tune, from carried labels first where the settings ask for it.

    Resumes by itself: scans that have carried labels keep them, and both trainings go
    on from their checkpoints.

    Args:
        config: As ``homolog.finetune.settings.resolve`` takes it.
        folder: The run; beside what ``homolog.finetune.job.job`` writes it gets
            ``carried/store`` (the carried labels) and ``carried/first`` (what was
            learnt from them).

    Returns:
        As ``homolog.finetune.job.job``.

    Raises:
        ConfigError: Several processes train together.
        JobError: No labels could be carried.
    """
    settings = resolve(config)
    cases = check_cases(settings)
    targets = carried_to(settings, cases)
    if not targets:
        if hint := _hint(settings, cases):
            yield Note(hint)
        return (yield from finetune.job(config, folder))
    if world().size > 1:
        raise ConfigError(
            "labels are carried by one process, and several train together here: carry "
            "them first (homolog propagate STORE --as-store), fine-tune on that store, "
            "and give that run as --encoder."
        )
    place = folder / FOLDER
    if not (place / _DONE).is_file():
        ended = yield from _learn_from_carried(settings, cases, targets, place)
        if not ended:
            yield Stopped()
            return {"task": settings.task, "stopped": True, "steps": 0}
    told = read_object(place / _DONE)
    yield Note(
        f"It begins with what it learnt from the labels of {listed(told['from'])}, "
        f"carried to {counted(told['scans'], 'scan')} by grey values."
    )
    return (yield from finetune.job(to_dict(_then(settings, place)), folder))


def _hint(settings: FinetuneConfig, cases: Cases) -> str:
    """A sentence where carried labels would pay; empty where nobody knows."""
    if not hasattr(task_of(settings).config, "carry"):
        return ""
    # by a plan, which has its own, or by hand
    chosen = settings.cases or settings.more_stores or settings.carried
    patients = patient_count(cases.train)
    if chosen or patients > FEW_PATIENTS or settings.encoder != SCRATCH:
        return ""
    count = len(others(settings, cases))
    if count < FEW_SCANS:
        return ""
    few, more = counted(patients, "patient"), counted(count, "scan")
    return (
        f"Labels of {few} are few, and {more} more could be learnt from with labels "
        "carried to them first: carry=true."
    )


def _learn_from_carried(
    settings: FinetuneConfig, cases: Cases, targets: tuple[str, ...], place: Path
) -> Job[bool]:
    """Carry the labels and learn from them; False when stopped."""
    store = cases.all[0].store
    sources = sorted(case.card.id for case in cases.train)
    carrying = propagate_into(
        store, sources, targets, place / STORE, None, PropagateConfig(method="grey"),
        choose_device(settings.device),
    )  # fmt: skip
    told = yield from _inside(carrying, "carrying labels")
    if told["stopped"]:
        return False
    taken = [row for row in told["cases"] if not row["doubtful"]]
    if not taken:
        reasons = "; ".join(f"{f['scan']}: {f['reason']}" for f in told["failed"])
        raise JobError(f"no labels could be carried: {reasons}")
    request = _on_carried(settings, Store.open(place / STORE))
    learning = finetune.job(request, place / FIRST)
    learnt = yield from _inside(learning, "learning from carried labels")
    if learnt["stopped"]:
        return False
    write_json(place / _DONE, {"from": sources, "scans": len(taken)})
    return True


def _on_carried(settings: FinetuneConfig, carried: Store) -> dict[str, Any]:
    """The fine-tuning on carried labels, of which none chooses weights."""
    own, training = dict(settings.task_config), dict(settings.training)
    if settings.encoder == SCRATCH:
        # what the recipe says of pretrained weights holds for the second one alone
        kept = PRETRAINED.get(settings.recipe, {})
        own = _without(own, kept.get("task", {}))
        training = _without(training, kept.get("training", {}))
    training |= {"validate_every": 0, "previews": 0}
    return {
        **to_dict(settings),
        "store": str(carried.path),
        "fraction": 1.0, "patients": 0, "fold": None,
        "cases": sorted(card.id for card in carried.cards),
        "watched": [],
        "task_config": {**own, "carry": False, "validate_cases": None},
        "training": training | _half(training),
    }  # fmt: skip


def _then(settings: FinetuneConfig, place: Path) -> FinetuneConfig:
    """The fine-tuning on true and carried labels."""
    training = dict(settings.training)
    return replace(
        settings,
        encoder=str(place / FIRST),
        carried=str(place / STORE),
        backbone={"name": settings.backbone["name"]},
        task_config={**settings.task_config, "carry": False},
        training=training | _half(training),
    )


def _without(told: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that are as ``kept`` says."""
    return {k: v for k, v in told.items() if k not in kept or kept[k] != v}


def _half(training: Mapping[str, Any]) -> dict[str, Any]:
    """A given time is for both trainings."""
    minutes = float(training.get("minutes") or 0.0)
    return {"minutes": minutes / 2} if minutes else {}


def _inside(work: Job[dict[str, Any]], phase: str) -> Job[dict[str, Any]]:
    """A job within the run: its steps are counted, its requests and notes passed on."""
    request: Request | None = None
    scan: Progress | None = None
    while True:
        try:
            event = work.send(request)
        except StopIteration as end:
            result: dict[str, Any] = end.value
            return {"stopped": False, **result}
        request = None
        if isinstance(event, Step):
            request = yield Progress(
                phase, event.index, event.total, remaining_s=event.remaining_s
            )
        elif isinstance(event, Progress):
            # between two scans, within one, and where there are none
            scan = replace(event, phase=phase) if event.phase == "scans" else scan
            request = yield scan or replace(event, phase=f"{phase}: {event.phase}")
        elif isinstance(event, Note):
            request = yield event
