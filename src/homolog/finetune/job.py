"""Fine-tune an encoder on labelled cases: one job for every learned task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.backbones import BACKBONES, build
from homolog.backbones.base import Backbone
from homolog.config import ConfigError, from_dict, to_dict
from homolog.distributed import choose_device, world
from homolog.drawing.pictures import (
    CT_WINDOW_HU,
    as_bytes,
    beside,
    colours_of,
    grey,
    with_labels,
)
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Saved, Stopped, without_stopped
from homolog.feed.batches import Feed, feed_threads
from homolog.feed.reading import CaseRef
from homolog.finetune.settings import (
    SCRATCH,
    Cases,
    FinetuneConfig,
    check_cases,
    held_out_cases,
    resolve,
    spread_first,
    task_of,
)
from homolog.json_files import read_object
from homolog.model_files.card import learnt_of
from homolog.model_files.encoder import load_encoder
from homolog.model_files.folder import load_best, save_model
from homolog.nn.optim import parameter_groups
from homolog.store.card import Card
from homolog.store.learnt_spacing import KEY, LearntSpacing, other_size_note, sizes_note
from homolog.store.preprocess import differing_settings
from homolog.store.store import Store
from homolog.tasks.base import LearnedTask, TaskModule, Trained
from homolog.training.config import TrainingConfig, TrainingResult
from homolog.training.loop import train
from homolog.training.stepping import resolve_precision
from homolog.training.validation import evaluating, score_of
from homolog.words import counted, times
from homolog.writing import write_json

# A slice of a validation case: true outlines on the left, predicted ones beside.


_SIDE_PIXELS = 320
_WHITE = (1.0, 1.0, 1.0)
_TINT = 0.15


@dataclass(frozen=True, eq=False)
class _Slice:
    """What is kept of a case until it is drawn: one slice, (H, W) each."""

    card: Card
    values: NDArray[np.float32]
    predicted: NDArray[Any]
    truth: NDArray[Any]


class LabelPreview:
    """Remembers a slice of the first case a validation looks at, and draws it.

    Args:
        names: Label value -> name; decides the colours.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.colours = colours_of(names)
        self._case: str | None = None
        self._slice: _Slice | None = None

    def look(
        self,
        case: CaseRef,
        image: NDArray[np.int16],
        predicted: NDArray[Any],
        truth: NDArray[Any],
    ) -> None:
        """Called by a task's validation for each case.

        Args:
            case: Of the store.
            image: (C, D, H, W) as stored.
            predicted: (D, H, W) label values.
            truth: (D, H, W) label values.
        """
        self._case = self._case or case.card.id
        if case.card.id != self._case:
            return
        labelled = np.flatnonzero((truth > 0).any(axis=(1, 2)))
        index = int(labelled[len(labelled) // 2]) if len(labelled) else len(truth) // 2
        values = np.asarray(image[0, index], np.float32)
        self._slice = _Slice(
            case.card,
            values * case.card.scale + case.card.offset,
            predicted[index].copy(),
            truth[index].copy(),
        )

    def draw(
        self, done: int, left_s: float, most_s: float
    ) -> tuple[NDArray[np.uint8], str] | None:
        """The picture after ``done`` steps; None before a validation."""
        if self._slice is None:
            return None
        card = self._slice.card
        _, y_mm, x_mm = card.spacing_mm
        height, width = self._slice.values.shape
        factor = _SIDE_PIXELS / max(height * y_mm, width * x_mm)
        zoom = y_mm * factor, x_mm * factor
        window = CT_WINDOW_HU if card.modality == "CT" else (card.low, card.high)
        scan = grey(self._slice.values, zoom, window)
        white = dict.fromkeys(self.colours, _WHITE)
        truth = with_labels(scan, self._slice.truth, zoom, self.colours, _TINT)
        found = with_labels(scan, self._slice.truth, zoom, white, 0.0)
        found = with_labels(found, self._slice.predicted, zoom, self.colours, _TINT)
        title = (
            f"{card.id} after {done} steps: true labels on the left, predicted ones "
            "on the right (true outline in white)"
        )
        return as_bytes(beside([truth, found])), title


# A resumed fine-tuning goes on with the classes it began with.


_FILE = "task.json"
# What the outputs of the network stand for, as ``LearnedTask.describe`` tells.
_MEANING = (
    "label_values",
    "label_names",
    "label_spaces",
    "classes",
    "types",
    "several",
)


def same_task(folder: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a run described when it began; ``spec`` itself for a new one.

    Args:
        folder: The run.
        spec: What the stores say now.

    Raises:
        UnusableInput: The stores now say otherwise what is to be learnt.
    """
    now: dict[str, Any] = json.loads(json.dumps(dict(spec)))
    path = folder / _FILE
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


# A stopped run's last weights are validated where that took no longer than this before.
_PATIENCE_S = 10.0


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Fine-tune, validate, and save the best network as a model folder.

    Resumes by itself where ``folder`` holds a checkpoint. A stopped fine-tuning saves
    its model too, marked as stopped, so that what was learnt can be used.

    Args:
        config: As taken by ``resolve``.
        folder: The run; gets ``task.json``, ``checkpoints/``, ``best/``,
            ``metrics.csv`` and, at the end, ``model/``.

    Returns:
        Summary, JSON types: ``model``, ``best``, ``best_step``, ``steps`` and more.
    """
    began = time.monotonic()
    settings = resolve(config)
    torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    task = task_of(settings)
    cases = check_cases(settings)
    store = cases.all[0].store
    backbone, origin, notes = starting_encoder(settings, store, cases)
    for sentence in notes:
        yield Note(sentence)
    training = from_dict(TrainingConfig, settings.training, where="training")
    spec = same_task(folder, task.describe(cases.all, backbone, device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        module = task.module(task.network(backbone, spec), spec)
    here = world()
    feed = Feed(
        cases.train,
        module.views(),
        batch_size=training.batch_size,
        seed=settings.seed,
        balance=task.balance,
        rank=here.rank,
        world_size=here.size,
        targets=task.targets(cases.train, spec),
        threads=feed_threads(device),
        device=device,
    )
    held_out = held_out_cases(cases, task.config.validate_cases)
    if training.minutes > 0:  # time may be too short for all of them
        held_out = spread_first(held_out)
    validation = _Validation(task, module, spec, held_out, device, training.precision)
    yield Note(_opening(cases, held_out, spec, at_most=training.minutes > 0))
    for told in (
        spec.get("labels_note"), _recipes_note(cases), _encoder_note(origin),
        task.remark(spec, len(held_out)),
        sizes_note(c.card for c in (*cases.train, *cases.val)),
    ):  # fmt: skip
        if told:
            yield Note(told)
    learning = train(
        module,
        feed,
        training,
        folder=folder,
        device=device,
        seed=settings.seed,
        validate=validation if held_out else None,
        best_metric=task.best_metric if held_out else None,
        draw=validation.preview.draw if held_out else None,
        parameter_groups=parameter_groups(
            module, training.weight_decay, factor=_encoder_factor(task, module)
        ),
        began=began,
    )
    result = yield from without_stopped(learning)
    chosen_by = held_out[: result.validated_cases]
    labelled = label_count(cases, len(chosen_by), origin)
    summary = {**_summary(settings, cases, result), "labelled": labelled}
    if here.is_first and result.steps:
        kept = _keep_weights(module, folder, result, validation, task.best_metric)
        if chosen_by:
            with evaluating(module):
                spec = {**spec, **task.settle(validation.model(), chosen_by)}
        encoder = module.encoder()  # of the backbone, what the task stands on
        card = model_card(
            settings, task, spec, store, cases, chosen_by, encoder, origin, result
        )
        card |= {**kept, "labelled": labelled}
        path = save_model(
            folder / "model", module.deployed().state_dict(), card, "model"
        )
        summary |= {"model": str(path), "weights_of": kept["weights_of"]}
        yield Saved(str(path), "model")
    if result.stopped:
        yield Stopped(result.steps)
    return summary


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
        told = {"kept": "last", "step": result.steps, "validated": bool(last)}
        return {"weights_of": told, "best_step": result.steps if last else 0,
                "validation": last}  # fmt: skip
    module.load_state_dict(best[0])
    told = {"kept": "best", "step": best[1]["step"], "validated": True}
    return {"weights_of": told, "best_step": best[1]["step"],
            "validation": best[1]["metrics"]}  # fmt: skip


def starting_encoder(
    settings: FinetuneConfig, store: Store, cases: Cases
) -> tuple[Backbone, dict[str, Any], list[str]]:
    """The encoder to start from, where it came from, and what to tell about it.

    Raises:
        UnusableInput: The file holds another network than asked for.
    """
    channels = cases.all[0].card.channels
    asked = dict(settings.backbone)
    name = asked.pop("name", None)
    if settings.encoder == SCRATCH:
        if name is None:
            raise ConfigError("training from scratch needs a backbone.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            backbone = build(name, {**asked, "in_channels": channels})
        return backbone, {"source": SCRATCH}, []
    hint = {"name": name, "config": asked} if name else None
    loaded = load_encoder(settings.encoder, hint, in_channels=channels)
    notes = ["\n".join(loaded.report.lines())]
    recipe = loaded.card.get("preprocessing")
    if recipe is not None and recipe != to_dict(store.preprocessing):
        odd = [k for k, v in to_dict(store.preprocessing).items() if recipe.get(k) != v]
        notes.append(
            "the encoder was pretrained on scans prepared otherwise "
            f"({', '.join(odd)}); its features may fit less well."
        )
    learnt = learnt_of(loaded.card, loaded.folder)
    if recipe is None or recipe.get("spacing_mm") is None:
        sizes = other_size_note(learnt, [c.card for c in cases.all])
        notes += [sizes] if sizes else []
    origin = {
        "source": str(settings.encoder),
        "encoder_id": loaded.encoder_id,
        "method": loaded.card.get("method"),
        "report": loaded.report.to_dict(),
    }
    if loaded.card.get("uses_labels"):
        seen = set(loaded.card.get("trained_on", ()))
        known = sorted(c.card.id for c in cases.all if c.card.source_hash in seen)
        origin["labels_of"] = known
    return loaded.backbone.train(), origin, notes


def model_card(
    settings: FinetuneConfig,
    task: LearnedTask,
    spec: Mapping[str, Any],
    store: Store,
    cases: Cases,
    chosen_by: Sequence[CaseRef],
    encoder: Backbone,
    origin: Mapping[str, Any],
    result: TrainingResult,
) -> dict[str, Any]:
    """``model.json``: all that prediction, evaluation and a reader need to know."""
    return {
        "kind": settings.task,
        "backbone": {
            "name": BACKBONES.name_of(type(encoder)),
            "config": to_dict(encoder.config),
        },
        "encoder": dict(origin),
        "preprocessing": _common_recipe(stores_of(cases)),
        KEY: _learnt_spacing(cases),
        "preprocessings": [to_dict(s.preprocessing) for s in stores_of(cases)],
        "task_config": to_dict(task.config),
        "task_spec": dict(spec),
        "label_names": dict(spec.get("label_names", {})),
        "window": spec.get("window"),
        "training": settings.training,
        "steps": result.steps,
        "total_steps": result.total_steps,
        "complete": not result.stopped,
        "stopped": result.stopped,
        "best_step": result.best_step,
        "validation": dict(result.best),
        "store_hash": store.hash,
        "store_hashes": [s.hash for s in stores_of(cases)],
        "recipe": settings.recipe,
        "seed": settings.seed,
        "fraction": settings.fraction,
        "fold": settings.fold,
        "cases": {
            "train": [c.card.id for c in cases.train],
            "val": [c.card.id for c in chosen_by],
        },
        "trained_on": sorted(c.card.source_hash for c in (*cases.train, *chosen_by)),
    }


def stores_of(cases: Cases) -> list[Store]:
    """The stores of the cases, in their order."""
    return list({c.store.path: c.store for c in cases.all}.values())


def _common_recipe(stores: Sequence[Store]) -> dict[str, Any]:
    """How new scans are prepared: as the first store, but by their own modality."""
    recipe = to_dict(stores[0].preprocessing)
    if len({store.preprocessing.modality for store in stores}) > 1:
        recipe["modality"] = None  # each scan's own
    return recipe


def _learnt_spacing(cases: Cases) -> dict[str, Any] | None:
    """The voxel size learnt at, see ``learnt_of``; None: pictures have none."""
    learnt = LearntSpacing.of_cases(c.card for c in (*cases.train, *cases.val))
    return None if learnt is None else learnt.to_dict()


def _recipes_note(cases: Cases) -> str:
    """What to tell where stores were prepared differently; else empty."""
    odd = differing_settings([s.preprocessing for s in stores_of(cases)])
    if not odd:
        return ""
    return (
        f"the stores were prepared with different settings ({', '.join(odd)}); "
        f"the model will prepare new scans as {cases.all[0].store.path} does."
    )


def _encoder_note(origin: Mapping[str, Any]) -> str:
    """Labels count where they were used before, too."""
    count = len(origin.get("labels_of", ()))
    if not count:
        return ""
    return (
        f"the encoder was pretrained with labels: {count} labelled cases of these "
        "stores were among its scans, beside those counted here."
    )


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
        self.preview = LabelPreview({int(v): name for v, name in names.items()})

    def __call__(
        self,
        done: int,
        go_on: Callable[[int], bool] = lambda seen: True,
        share: float = 1.0,
    ) -> dict[str, float]:
        # a task of another distribution may know of whole scans only
        part = {} if share >= 1.0 else {"share": share}
        cases = self._as_long_as(go_on)
        return self.task.validate(self.model(), cases, self.preview.look, **part)

    def guess_s(self, sample_s: float) -> float:
        """Seconds a case takes, about: see ``LearnedTask.effort``."""
        efforts = [self.task.effort(case.card, self.spec) for case in self.cases]
        return sample_s * sum(efforts) / max(1, len(efforts))

    def model(self) -> Trained:
        """The deployed network as it is now."""
        network = self.module.deployed()
        precision = resolve_precision(self.precision, self.device, network)
        return Trained(network, self.spec, {}, self.device, precision)

    def _as_long_as(self, go_on: Callable[[int], bool]) -> Iterator[CaseRef]:
        for number, case in enumerate(self.cases):
            if number and not go_on(number):
                return
            yield case


def _encoder_factor(task: LearnedTask, module: TaskModule) -> dict[str, float]:
    """Learning-rate factor of the encoder's parameters, by their prefix."""
    encoder = module.encoder()
    prefix = next(name for name, part in module.named_modules() if part is encoder)
    return {f"{prefix}.": task.config.encoder_factor}


def _opening(
    cases: Cases,
    held_out: tuple[CaseRef, ...],
    spec: Mapping[str, Any],
    *,
    at_most: bool,
) -> str:
    window = times(spec.get("window") or ())
    told = f"; window {window} voxels" if window else ""
    return f"{labels_words(cases, len(held_out), at_most=at_most)}{told}."


def labels_words(cases: Cases, chosen: int, *, at_most: bool) -> str:
    """What is learnt from, and what chooses.

    Args:
        cases: Of the fine-tuning.
        chosen: Held-out cases that choose the weights.
        at_most: Time may end it before all of them are looked at.
    """
    learnt, held = len(cases.train), len(cases.val)
    text = f"{counted(learnt, 'labelled case')} to learn from"
    if chosen:
        few = "up to " * at_most
        text += f" and {few}{chosen} more to choose the weights by"
        if chosen < held:
            text += f" (of {held} held out)"
        return f"{text}: {few}{learnt + chosen} labelled cases in all"
    text += "; without held-out cases the last weights are kept"
    return f"{text} ({held} labelled ones are left alone)" if held else text


def label_count(
    cases: Cases, chosen: int, origin: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Labelled cases by what they were used for.

    Args:
        cases: Of the fine-tuning.
        chosen: Held-out cases that chose the weights.
        origin: Of the encoder.

    Returns:
        ``learnt_from``, ``chosen_by``, ``in_all``; and ``encoder``, cases of these
        stores whose labels the encoder was pretrained with, where there are.
    """
    learnt = len(cases.train)
    found = {"learnt_from": learnt, "chosen_by": chosen, "in_all": learnt + chosen}
    if origin and origin.get("labels_of"):
        found["encoder"] = len(origin["labels_of"])
    return found


def _summary(
    settings: FinetuneConfig, cases: Cases, result: TrainingResult
) -> dict[str, Any]:
    return {
        "task": settings.task,
        "backbone": settings.backbone.get("name"),
        "encoder": settings.encoder,
        "fraction": settings.fraction,
        "fold": settings.fold,
        "seed": settings.seed,
        "cases": {"train": len(cases.train), "val": len(cases.val)},
        "steps": result.steps,
        "total_steps": result.total_steps,
        "few_steps": result.few_steps,
        "stopped": result.stopped,
        "best_step": result.best_step,
        "best": dict(result.best),
        "losses": dict(result.losses),
        "bad_steps": result.bad_steps,
        "seconds_per_step": result.seconds_per_step,
        "peak_memory_bytes": result.peak_memory_bytes,
        "precision": result.precision,
        "batch_size": result.batch_size,
    }
