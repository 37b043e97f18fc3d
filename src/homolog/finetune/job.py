"""Fine-tune an encoder on labelled cases: one job for every learned task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from homolog.config import ConfigError, from_dict, to_dict
from homolog.distributed import world
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Saved, Stopped, without_stopped
from homolog.feed.batches import Feed, feed_threads
from homolog.feed.reading import CaseRef
from homolog.finetune.pictures import CasePicture
from homolog.finetune.settings import (
    Cases,
    FinetuneConfig,
    carries,
    check_cases,
    held_out_cases,
    named_cases,
    patient_count,
    resolve,
    spread_first,
    task_of,
)
from homolog.finetune.start import (
    Start,
    decoder_of,
    encoder_note,
    groups_of,
    sentences,
    starting_point,
)
from homolog.json_files import read_object
from homolog.model_files.decoder import decoder_card
from homolog.model_files.folder import load_best, save_model
from homolog.store.learnt_spacing import sizes_note
from homolog.store.relabelled import own_labels
from homolog.store.store import Store
from homolog.tasks.base import LearnedTask, TaskModule, Trained
from homolog.training.config import TrainingConfig, TrainingResult
from homolog.training.loop import train
from homolog.training.run_settings import (
    backbone_card,
    length_card,
    preparation_card,
    preparation_note,
    store_card,
    take_device,
    trained_on,
)
from homolog.training.stepping import resolve_precision
from homolog.training.validation import evaluating, score_of
from homolog.words import counted, times
from homolog.writing import write_json

if TYPE_CHECKING:
    from homolog.feed.places import Search

# What a run described when it began: a resumed one goes on with the same classes.
_TASK_FILE = "task.json"
# What the outputs of the network stand for, of ``LearnedTask.describe``.
_MEANING = (
    "label_values",
    "label_names",
    "label_spaces",
    "classes",
    "types",
    "several",
)
# A stopped run's last weights are validated where that took no longer than this before.
_PATIENCE_S = 10.0


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Fine-tune, validate, and save the best network as a model folder.

    Resumes by itself where ``folder`` holds a checkpoint. A stopped fine-tuning saves
    its model too, marked as stopped, so that what was learnt can be used.

    Args:
        config: As ``resolve`` takes it.
        folder: The run; gets ``task.json``, ``checkpoints/``, ``best/``,
            ``metrics.csv`` and, at the end, ``model/``.

    Returns:
        Summary, JSON types: ``model``, ``best``, ``best_step``, ``steps`` and more.
    """
    began = time.monotonic()
    settings = resolve(config)
    if carries(settings):
        raise ConfigError(
            "carry=true is what homolog.propagation.carried_first.job does before this."
        )
    device = take_device(settings.device, settings.threads)
    cases = check_cases(settings)
    start = starting_point(settings, cases)
    run = _Run.begin(settings, cases, start, device, folder)
    search = run.search()
    feed = run.feed(search)
    for sentence in (*run.start.notes, *run.notes()):
        yield Note(sentence)
    module, plan = run.module, run.training
    judged = run.validation if run.validation.count else None
    learning = train(
        module, feed, plan, folder=folder, device=device, seed=settings.seed,
        validate=judged,
        best_metric=run.task.best_metric if run.held_out else None,
        draw=judged.preview.draw if judged else None,
        parameter_groups=groups_of(module, run.task.config, plan, run.start.taken),
        began=began, search=search,
    )  # fmt: skip
    result = yield from without_stopped(learning)
    summary = run.summary(result)
    if world().is_first and result.steps:
        path, weights_of = run.save(folder, result)
        summary |= {"model": str(path), "weights_of": weights_of}
        yield Saved(str(path), "model")
    if result.stopped:
        yield Stopped(result.steps)
    return summary


@dataclass(frozen=True, eq=False)
class _Run:
    """A fine-tuning that is ready to learn.

    Attributes:
        settings: Complete.
        cases: Learnt from and held out.
        start: What it starts from.
        device: Where it trains.
        task: With its settings.
        spec: What the task described when the run began.
        training: Length, rate and the like.
        module: What is trained.
        held_out: Cases that choose the weights, those to look at first in front.
        validation: On these, or on those that are only watched.
    """

    settings: FinetuneConfig
    cases: Cases
    start: Start
    device: torch.device
    task: LearnedTask
    spec: Mapping[str, Any]
    training: TrainingConfig
    module: TaskModule
    held_out: tuple[CaseRef, ...]
    validation: _Validation

    @classmethod
    def begin(
        cls,
        settings: FinetuneConfig,
        cases: Cases,
        start: Start,
        device: torch.device,
        folder: Path,
    ) -> _Run:
        """Describe the task, build its network, choose the cases to validate on."""
        task = task_of(settings)
        training = from_dict(TrainingConfig, settings.training, where="training")
        spec = same_task(folder, task.describe(cases.described, start.backbone, device))
        module, start = start.module(task, spec, settings.seed)
        held_out = held_out_cases(cases, task.config.validate_cases)
        if training.minutes > 0:  # time may be too short for all of them
            held_out = spread_first(held_out)
        looked_at = held_out
        if settings.watched:  # for a curve: nothing may choose beside it
            store, held_out = Store.open(settings.store), ()
            looked_at = named_cases(store, task, settings.watched)
        validation = _Validation(
            task, module, spec, looked_at, device, training.precision
        )
        return cls(
            settings, cases, start, device, task, spec, training, module, held_out,
            validation,
        )  # fmt: skip

    def search(self) -> Search | None:
        """What the task looks for in the cases learnt from as it learns."""
        return self.task.search(
            self.module, self.validation.model, self.cases.train, self.spec,
            self.settings.seed,
        )  # fmt: skip

    def feed(self, search: Search | None = None) -> Feed:
        """Batches of the cases learnt from; a search may steer them."""
        here, learnt = world(), self.cases.learnt
        return Feed(
            self.task.placing(learnt),
            self.module.views(),
            batch_size=self.training.batch_size,
            seed=self.settings.seed,
            balance=self.task.balance,
            rank=here.rank,
            world_size=here.size,
            targets=self.task.targets(learnt, self.spec),
            # the few with true labels are not drowned by those with carried ones
            share_power=0.0 if self.cases.carried else 1.0,
            unclipped=self.task.unclipped(self.spec),
            threads=feed_threads(self.device),
            processes=self.training.feed_processes,
            device=self.device,
            places=None if search is None else search.places,
        )

    def notes(self) -> list[str]:
        """What the user should know before the first step, in sentences."""
        chosen, cases = len(self.held_out), self.cases
        words = labels_words(
            cases, chosen, at_most=self.training.minutes > 0,
            averaged=self.task.config.average > 0,
        )  # fmt: skip
        window = times(self.spec.get("window") or ())
        size = f"; window {window} voxels" if window else ""
        notes = (
            f"{words}{size}.",
            self.spec.get("labels_note"),
            preparation_note(stores_of(cases)),
            encoder_note(self.start.origin, [c.card.id for c in cases.train]),
            self.task.remark(self.spec, chosen),
            *sentences(self.module, self.task.config, self.training, self.start.taken),
            sizes_note(c.card for c in (*cases.learnt, *cases.val)),
        )
        return [note for note in notes if note]

    def save(self, folder: Path, result: TrainingResult) -> tuple[Path, Any]:
        """Write the model folder with the best weights; also says which those are."""
        metric = self.task.best_metric
        kept = _keep_weights(self.module, folder, result, self.validation, metric)
        chosen_by = self.held_out[: result.validated_cases]
        spec = dict(self.spec)
        if chosen_by:
            with evaluating(self.module):
                spec |= self.task.settle(self.validation.model(), chosen_by)
        card = {**self._card(spec, chosen_by, result), **kept}
        card["labelled"] = label_count(self.cases, len(chosen_by), self.start.origin)
        state = self.module.deployed().state_dict()
        return save_model(folder / "model", state, card, "model"), kept["weights_of"]

    def _card(
        self,
        spec: Mapping[str, Any],
        chosen_by: Sequence[CaseRef],
        result: TrainingResult,
    ) -> dict[str, Any]:
        """``model.json``: what prediction, evaluation and a reader need to know."""
        settings, cases, stores = self.settings, self.cases, stores_of(self.cases)
        decoder = decoder_of(self.module)
        return {
            "kind": settings.task,
            # of the encoder's backbone, what the task stands on
            "backbone": backbone_card(self.module.encoder()),
            "encoder": dict(self.start.origin),
            "decoder": None if decoder is None else decoder_card(decoder),
            **preparation_card(stores, (*cases.learnt, *cases.val)),
            "preprocessings": [to_dict(s.preprocessing) for s in stores],
            "task_config": to_dict(self.task.config),
            "task_spec": dict(spec),
            "label_names": dict(spec.get("label_names", {})),
            "window": spec.get("window"),
            "training": settings.training,
            **length_card(result),
            "best_step": result.best_step,
            "validation": dict(result.best),
            **store_card(stores),
            "recipe": settings.recipe,
            "seed": settings.seed,
            "fraction": settings.fraction,
            "patients": settings.patients,
            "fold": settings.fold,
            "cases": {
                "train": [c.card.id for c in cases.train],
                "val": [c.card.id for c in chosen_by],
                **_carried_names(cases),
            },
            "trained_on": trained_on((*cases.learnt, *chosen_by)),
            **_true_labels(cases),
        }

    def summary(self, result: TrainingResult) -> dict[str, Any]:
        """What the run reports at its end, JSON types."""
        settings, cases = self.settings, self.cases
        chosen = len(self.held_out[: result.validated_cases])
        return {
            "task": settings.task,
            "backbone": settings.backbone.get("name"),
            "encoder": settings.encoder,
            "fraction": settings.fraction,
            "patients": settings.patients,
            "fold": settings.fold,
            "seed": settings.seed,
            "cases": {"train": len(cases.train), "val": len(cases.val)},
            **result.values("steps", "total_steps", "few_steps", "stopped"),
            **result.values("best_step", "best", "losses", "bad_steps"),
            **result.values("seconds_per_step", "peak_memory_bytes", "precision"),
            "batch_size": result.batch_size,
            "labelled": label_count(cases, chosen, self.start.origin),
        }


def same_task(folder: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a run described when it began; ``spec`` itself for a new one.

    Args:
        folder: The run.
        spec: As the stores describe it now.

    Raises:
        UnusableInput: What is to be learnt differs now.
    """
    now: dict[str, Any] = json.loads(json.dumps(dict(spec)))
    path = folder / _TASK_FILE
    if not path.exists():
        if world().is_first:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, now)
        return now
    began = read_object(path)
    for key in _MEANING:
        if began.get(key) != now.get(key):
            raise UnusableInput(
                f"the labels of the stores changed since this run began ({key} was "
                f"{_short(began.get(key))}, is now {_short(now.get(key))}); start a "
                "new run, or prepare the stores as they were."
            )
    return began


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


def stores_of(cases: Cases) -> list[Store]:
    """The stores of the cases, in their order."""
    return list({c.store.path: c.store for c in cases.described}.values())


def labels_words(
    cases: Cases, chosen: int, *, at_most: bool, averaged: bool = False
) -> str:
    """What is learnt from, and what chooses.

    Args:
        cases: Of the fine-tuning.
        chosen: Held-out cases that choose the weights.
        at_most: Time may end it before all of them are looked at.
        averaged: An average of the weights is kept, not the weights themselves.
    """
    learnt, held = len(cases.train), len(cases.val)
    text = f"{counted(learnt, 'labelled case')}"
    if (patients := patient_count(cases.train)) != learnt:
        text += f" of {counted(patients, 'patient')}"
    text += " to learn from"
    if cases.carried:
        text += (
            f", as often as {counted(len(cases.carried), 'scan')} with labels that "
            "were carried to them"
        )
    if chosen:
        few = "up to " * at_most
        text += f" and {few}{chosen} more to choose the weights by"
        if chosen < held:
            text += f" (of {held} held out)"
        return f"{text}: {few}{learnt + chosen} labelled cases in all"
    kept = "average of the last weights is" if averaged else "last weights are"
    text += f"; without held-out cases the {kept} kept"
    return f"{text} ({held} labelled ones are left alone)" if held else text


def _true_labels(cases: Cases) -> dict[str, list[str]]:
    """Scans with labels of their own, by content hash, where others' were carried."""
    carried = False
    own: list[CaseRef] = []
    for store in stores_of(cases):
        known = own_labels(store)
        carried |= known is not None
        own += [
            case for case in cases.train
            if case.store is store and (known is None or case.card.id in known)
        ]  # fmt: skip
    return {"true_labels_of": trained_on(own)} if carried else {}


def _carried_names(cases: Cases) -> dict[str, list[str]]:
    return {"carried": [c.card.id for c in cases.carried]} if cases.carried else {}


def label_count(
    cases: Cases, chosen: int, origin: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Labelled cases by what they were used for.

    Args:
        cases: Of the fine-tuning.
        chosen: Held-out cases that chose the weights.
        origin: Of the encoder.

    Returns:
        ``learnt_from`` and the ``patients`` these are of, ``chosen_by``, ``in_all``;
        and ``encoder``, cases of these stores whose labels the encoder was pretrained
        with, where there are.
    """
    learnt = len(cases.train)
    counts = {"learnt_from": learnt, "chosen_by": chosen, "in_all": learnt + chosen}
    counts["patients"] = patient_count(cases.train)
    if origin and origin.get("labels_of"):
        counts["encoder"] = len(origin["labels_of"])
    return counts


def _keep_weights(
    module: TaskModule,
    folder: Path,
    result: TrainingResult,
    validation: _Validation,
    metric: str,
) -> dict[str, Any]:
    """Load the weights that validated best, where there are; else keep the last.

    After a stop the last weights were not validated yet. Where the cases take seconds
    they are looked at, but nothing of that enters the state a resume goes on from.

    Returns:
        What the card says of them: ``weights_of``, ``best_step`` and ``validation``.
    """
    best = load_best(folder)
    last: dict[str, float] = {}
    if best is not None and best[1]["step"] < result.steps and result.stopped:
        if result.validation_s <= _PATIENCE_S:
            with evaluating(module):
                last = validation(result.steps)
        if last and score_of(last, metric) > best[1]["score"]:
            best = None
    if best is None:
        weights = {"kept": "last", "step": result.steps, "validated": bool(last)}
        return {"weights_of": weights, "best_step": result.steps if last else 0,
                "validation": last}  # fmt: skip
    module.load_state_dict(best[0])
    weights = {"kept": "best", "step": best[1]["step"], "validated": True}
    return {"weights_of": weights, "best_step": best[1]["step"],
            "validation": best[1]["metrics"]}  # fmt: skip


class _Validation:
    """Steps done -> metrics on the held-out cases, by the deployed network.

    Gradual in the sense of training.validation: it can look at fewer cases, or at a
    part of each.

    Args:
        task: Knows how.
        module: What is trained.
        spec: Of the task.
        cases: Held out, those to look at first in front.
        device: Where it runs.
        precision: As for training.
    """

    def __init__(
        self,
        task: LearnedTask,
        module: TaskModule,
        spec: Mapping[str, Any],
        cases: tuple[CaseRef, ...],
        device: torch.device,
        precision: str,
    ) -> None:
        self.precision = precision
        self.task, self.module, self.spec = task, module, spec
        self.cases, self.device = cases, device
        self.count = len(cases)
        names = spec.get("label_names", {})
        self.preview = CasePicture({int(v): name for v, name in names.items()})

    def __call__(
        self,
        done: int,
        go_on: Callable[[int], bool] = lambda seen: True,
        share: float = 1.0,
    ) -> dict[str, float]:
        # a task of another distribution may know of whole scans only
        part = {} if share >= 1.0 else {"share": share}
        cases = self._as_long_as(go_on)
        return self.task.validate(self.model(), cases, self.preview, **part)

    def guess_s(self, sample_s: float) -> float:
        """Seconds a case takes, about: see ``LearnedTask.effort``."""
        efforts = [self.task.effort(case.card, self.spec) for case in self.cases]
        return sample_s * sum(efforts) / max(1, len(efforts))

    def model(self) -> Trained:
        """The deployed network as it is now."""
        network = self.module.deployed()
        # by what is trained: an average of it is not, and would seem no convolution
        precision = resolve_precision(self.precision, self.device, self.module)
        return Trained(network, self.spec, {}, self.device, precision)

    def _as_long_as(self, go_on: Callable[[int], bool]) -> Iterator[CaseRef]:
        for number, case in enumerate(self.cases):
            if number and not go_on(number):
                return
            yield case
