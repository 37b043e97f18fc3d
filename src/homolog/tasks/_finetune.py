"""Fine-tune an encoder on labelled cases: one job for every learned task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from homolog.backbones._base import Backbone, build
from homolog.checkpoint import load_best
from homolog.config import ConfigError, from_dict, merge, option, to_dict
from homolog.data.store import Store
from homolog.distributed import choose_device, world
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Saved
from homolog.feed import CaseRef, Feed
from homolog.model_files import find_model, load_encoder, read_card, save_model
from homolog.nn.optim import parameter_groups
from homolog.tasks import TASKS
from homolog.tasks._base import LearnedTask, TaskModule, Trained
from homolog.tasks._cases import Cases, choose_cases, spread_cases
from homolog.training import TrainingConfig, TrainingResult, train
from homolog.training.precision import resolve_precision

SCRATCH = "scratch"


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning, as it is written to ``run.json``."""

    task: str = option("segment", "what is learnt")
    store: str = option("", "store with labelled cases")
    encoder: str = option(SCRATCH, "pretraining run, weight file, or scratch")
    recipe: str = option("cpu", "settings to start from")
    fraction: float = option(
        1.0, "share of the labelled training subjects used", minimum=0.0, maximum=1.0
    )
    fold: str | None = option(None, "i/k: hold out the i-th of k parts")
    seed: int = option(0, "seed of everything random", minimum=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:i")
    backbone: dict[str, Any] = field(default_factory=dict)
    task_config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def learned_task(name: str) -> type[LearnedTask]:
    """The class of a task that can be fine-tuned.

    Raises:
        ConfigError: Unknown, or a task that learns nothing.
    """
    if name not in TASKS.names():
        known = ", ".join(n for n in TASKS.names() if TASKS.get(n).learns)
        raise ConfigError(f"unknown task {name!r}; known: {known}.")
    cls = TASKS.get(name)
    if not issubclass(cls, LearnedTask):
        raise ConfigError(f"{name} uses an encoder as it is and is not fine-tuned.")
    return cls


def resolve(config: Mapping[str, Any]) -> FinetuneConfig:
    """Merge recipe and overrides, and check all names and values.

    Args:
        config: Fields of FinetuneConfig. ``backbone`` needs a ``name`` only for another
            network than the recipe's; ``task_config`` and ``training`` override single
            settings.

    Returns:
        The same with ``backbone``, ``task_config`` and ``training`` complete, so that
        resolving it again changes nothing.

    Raises:
        ConfigError: A name or value that cannot be meant.
    """
    wanted = from_dict(FinetuneConfig, config, where="finetune")
    cls = learned_task(wanted.task)
    if wanted.recipe not in cls.RECIPES:
        known = ", ".join(cls.RECIPES)
        raise ConfigError(
            f"{wanted.task} has no recipe {wanted.recipe!r}; recipes: {known}."
        )
    recipe = dict(cls.RECIPES[wanted.recipe])
    special = recipe.pop("with", {})
    default = dict(recipe.get("backbone", {}))
    name = _backbone_name(wanted) or str(default.get("name", ""))
    if name != default.get("name"):
        default = {}  # settings of another network
    backbone = merge(default, wanted.backbone, {"name": name})
    recipe = merge(recipe, special.get(name, {}))
    training = merge(recipe.get("training", {}), wanted.training)
    own = merge(recipe.get("task", {}), wanted.task_config)
    return dataclasses.replace(
        wanted,
        backbone=backbone,
        task_config=to_dict(from_dict(cls.Config, own, where=wanted.task)),
        training=to_dict(from_dict(TrainingConfig, training, where="training")),
    )


def _backbone_name(wanted: FinetuneConfig) -> str | None:
    """The network asked for, or the one the encoder's own card names.

    Raises:
        ConfigError: They differ.
    """
    asked: str | None = wanted.backbone.get("name")
    if wanted.encoder == SCRATCH:
        return asked
    path = Path(wanted.encoder)
    try:
        card = read_card(find_model(path))
    except UnusableInput:
        if path.is_file():
            return asked  # another project's weights: they do not say
        raise
    own = str(card["backbone"]["name"])
    if asked not in (None, own):
        raise ConfigError(f"the encoder {path} is a {own}, not a {asked}.")
    return own


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Fine-tune, validate, and save the best network as a model folder.

    Resumes by itself where ``folder`` holds a checkpoint.

    Args:
        config: As taken by ``resolve``.
        folder: The run; gets ``checkpoints/``, ``best/``, ``metrics.csv`` and, at the
            end, ``model/``.

    Returns:
        Summary, JSON types: ``model``, ``best``, ``best_step``, ``steps`` and more.
    """
    settings = resolve(config)
    device = choose_device(settings.device)
    task = _task(settings)
    store = Store.open(settings.store)
    cases = choose_cases(
        store, task, fraction=settings.fraction, fold=settings.fold, seed=settings.seed
    )
    backbone, origin, notes = starting_encoder(settings, store, cases)
    for sentence in notes:
        yield Note(sentence)
    training = from_dict(TrainingConfig, settings.training, where="training")
    spec = task.describe(cases.all, backbone, device)
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
    )
    held_out = spread_cases(cases.val, task.config.validate_cases)
    validation = _Validation(task, module, spec, held_out, device, training.precision)
    yield Note(_opening(cases, held_out, spec))
    result = yield from train(
        module,
        feed,
        training,
        folder=folder,
        device=device,
        seed=settings.seed,
        validate=validation if held_out else None,
        best_metric=task.best_metric if held_out else None,
        parameter_groups=parameter_groups(
            module, training.weight_decay, factor=_encoder_factor(task, module)
        ),
    )
    summary = _summary(settings, cases, result)
    if result.stopped or not here.is_first:
        return {**summary, "stopped": result.stopped}
    best = load_best(folder)
    if best is not None:
        module.load_state_dict(best[0])
    card = model_card(settings, task, spec, store, cases, backbone, origin, result)
    path = save_model(
        folder / "model", module_state=module.deployed().state_dict(), card=card,
        name="model",
    )  # fmt: skip
    yield Saved(str(path), "model")
    return {**summary, "stopped": False, "model": str(folder / "model")}


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
    origin = {
        "source": str(settings.encoder),
        "encoder_id": loaded.encoder_id,
        "method": loaded.card.get("method"),
        "report": loaded.report.to_dict(),
    }
    return loaded.backbone.train(), origin, notes


def model_card(
    settings: FinetuneConfig,
    task: LearnedTask,
    spec: Mapping[str, Any],
    store: Store,
    cases: Cases,
    backbone: Backbone,
    origin: Mapping[str, Any],
    result: TrainingResult,
) -> dict[str, Any]:
    """``model.json``: all that prediction, evaluation and a reader need to know."""
    return {
        "kind": settings.task,
        "backbone": {
            "name": settings.backbone["name"],
            "config": to_dict(backbone.config),
        },
        "encoder": dict(origin),
        "preprocessing": to_dict(store.preprocessing),
        "task_config": to_dict(task.config),
        "task_spec": dict(spec),
        "label_names": dict(spec.get("label_names", {})),
        "window": spec.get("window"),
        "training": settings.training,
        "steps": result.steps,
        "best_step": result.best_step,
        "validation": dict(result.best),
        "store_hash": store.hash,
        "recipe": settings.recipe,
        "seed": settings.seed,
        "fraction": settings.fraction,
        "fold": settings.fold,
        "cases": {
            "train": [c.card.id for c in cases.train],
            "val": [c.card.id for c in cases.val],
        },
        "trained_on": sorted(c.card.source_hash for c in (*cases.train, *cases.val)),
    }


class _Validation:
    """Steps done -> metrics on the held-out cases, by the deployed network."""

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

    def __call__(self, done: int) -> dict[str, float]:
        network = self.module.deployed()
        precision = resolve_precision(self.precision, self.device, network)
        model = Trained(network, self.spec, {}, self.device, precision)
        return self.task.validate(model, self.cases)


def _task(settings: FinetuneConfig) -> LearnedTask:
    cls = learned_task(settings.task)
    return cls(from_dict(cls.Config, settings.task_config, where=settings.task))


def _encoder_factor(task: LearnedTask, module: TaskModule) -> dict[str, float]:
    """Learning-rate factor of the encoder's parameters, by their prefix."""
    encoder = module.encoder()
    prefix = next(name for name, part in module.named_modules() if part is encoder)
    return {f"{prefix}.": task.config.encoder_factor}


def _opening(
    cases: Cases, held_out: tuple[CaseRef, ...], spec: Mapping[str, Any]
) -> str:
    window = " x ".join(str(n) for n in spec.get("window") or ())
    text = f"{len(cases.train)} cases to learn from, {len(cases.val)} held out"
    if len(held_out) < len(cases.val):
        text += f" ({len(held_out)} of them looked at)"
    if not cases.val:
        text += "; without held-out cases the last weights are kept"
    return f"{text}; window {window} voxels." if window else f"{text}."


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
        "best_step": result.best_step,
        "best": dict(result.best),
        "losses": dict(result.losses),
        "bad_steps": result.bad_steps,
        "seconds_per_step": result.seconds_per_step,
        "peak_memory_bytes": result.peak_memory_bytes,
        "precision": result.precision,
        "batch_size": result.batch_size,
    }


def check_store(path: str) -> None:
    """Refuse a store that is none before a run is begun."""
    if not path:
        raise UnusableInput("a store with labelled cases is needed.")
    Store.open(path)
