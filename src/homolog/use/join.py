"""Several fine-tuned models as one, whose answers are their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.model_files.card import MEMBERS
from homolog.model_files.folder import LoadedModel, load_model, save_model
from homolog.tasks import TASKS
from homolog.tasks.base import LearnedTask
from homolog.words import counted

# What members may differ in: thresholds are averaged.
_OWN = ("thresholds", "threshold")
# What a member's entry in the card tells of it.
_TOLD = ("backbone", "encoder", "fold", "seed", "steps", "best_step", "validation")


def join_models(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write a model folder whose answers are the mean of several models' answers.

    Source: Isensee et al., Nature Methods 2021 (nnU-Net): the logits of the networks of
        all folds are averaged.

    Args:
        sources: Two or more runs or model folders of one task.
        out: A new model folder.

    Returns:
        ``model`` (the folder), ``kind`` and ``members`` (their folders).

    Raises:
        ConfigError: Fewer than two models.
        UnusableInput: One that cannot be read, or two that do not answer alike: other
            tasks, labels, windows, channels or preparations of scans.
        JobError: It could not be written.
    """
    if len(set(sources)) < 2:
        raise ConfigError(f"joining takes two models or more, got {len(set(sources))}.")
    if out.exists():
        raise UnusableInput(f"{out} is there already; choose another --out.")
    models = [load_model(path) for path in dict.fromkeys(sources)]
    for model in models:
        _check(models[0], model)
    state: dict[str, Tensor] = {}
    for number, model in enumerate(models):
        state |= {f"members.{number}.{name}": t for name, t in model.state.items()}
    folder = save_model(out, state, _card(models), "model")
    return {
        "model": str(folder), "kind": models[0].card["kind"],
        "members": [str(model.folder) for model in models],
    }  # fmt: skip


def _check(first: LoadedModel, other: LoadedModel) -> None:
    """Refuse two that cannot be averaged."""
    kind = first.card.get("kind", "")
    task = TASKS.get(kind) if kind in TASKS.names() else None
    if task is None or not issubclass(task, LearnedTask) or not task.joins:
        raise UnusableInput(
            f"{first.folder} holds a model of kind {kind!r}; models that segment, "
            "classify or detect can be joined."
        )
    for model in (first, other):
        if model.card.get(MEMBERS):
            raise UnusableInput(
                f"{model.folder} is made of several models already; join its members."
            )
    odd = [
        k
        for k in ("kind", "preprocessing", "spacing_mm")
        if _differ(k, first.card, other.card)
    ]
    specs = [
        {k: v for k, v in m.card.get("task_spec", {}).items() if k not in _OWN}
        for m in (first, other)
    ]
    odd += sorted(k for k in specs[0].keys() | specs[1].keys() if _differ(k, *specs))
    if odd:
        raise UnusableInput(
            f"{first.folder} and {other.folder} cannot be joined: they differ in "
            f"{', '.join(odd)}."
        )


def _differ(key: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(first.get(key) != other.get(key))


def _card(models: Sequence[LoadedModel]) -> dict[str, Any]:
    """The first one's card, with what all of them saw."""
    cards = [model.card for model in models]
    spec = dict(cards[0]["task_spec"])
    limits = [card["task_spec"].get("thresholds") for card in cards]
    if all(limits):
        spec["thresholds"] = [sum(v) / len(v) for v in zip(*limits, strict=True)]
    each = [card["task_spec"].get("threshold") for card in cards]
    if all(limit is not None for limit in each):
        spec["threshold"] = sum(each) / len(each)
    seen = [dict(card.get("cases") or {}) for card in cards]
    return {
        **cards[0],
        "task_spec": spec,
        "fold": None,
        "trained_on": sorted({h for c in cards for h in c.get("trained_on", ())}),
        "cases": {
            part: sorted({name for each in seen for name in each.get(part, ())})
            for part in ("train", "val")
        },
        "validation": {},
        "title": f"mean of {counted(len(models), 'model')}",
        MEMBERS: [
            {"name": model.folder.parent.name, **{k: c.get(k) for k in _TOLD}}
            for model, c in zip(models, cards, strict=True)
        ],
    }
