"""Cross-validation: a fine-tuning for each fold, their scores pooled, and one model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homolog.config import ConfigError
from homolog.distributed import choose_device, world
from homolog.errors import UnusableInput
from homolog.events import (
    Job,
    Note,
    Progress,
    Request,
    Saved,
    Started,
    Stopped,
    without_stopped,
)
from homolog.feed.reading import CaseRef
from homolog.finetune.job import job as finetune_job
from homolog.finetune.settings import (
    FinetuneConfig,
    check_cases,
    parse_fold,
    resolve,
)
from homolog.finetune.settings import (
    resolve_request as resolve_finetune,
)
from homolog.json_files import read_object
from homolog.use.evaluate import write_tables
from homolog.use.join import join_models
from homolog.use.predict import open_trained
from homolog.words import counted
from homolog.writing import write_json

_SCORES = "scores.json"


def resolve_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request for all folds completed, every fold's cases checked; JSON types.

    Args:
        request: As of a fine-tuning, with ``folds``: how many.

    Raises:
        ConfigError: A setting that cannot be meant, a single fold among them.
        UnusableInput: A store, encoder or device that cannot be used.
    """
    given = dict(request)
    count = _count(given.pop("folds", None))
    if given.get("fold") is not None:
        raise ConfigError("give all folds or one of them (--folds or --fold).")
    if dict(given.get("task_config") or {}).get("carry"):
        raise ConfigError(
            "carry=true holds for one fine-tuning: leave --folds out, or start each "
            "fold by itself (--fold 1/5 and so on)."
        )
    settings: dict[str, Any] = {}
    for number in reversed(range(1, count + 1)):
        settings = resolve_finetune({**given, "fold": f"{number}/{count}"})
    return {**settings, "fold": None, "folds": count}


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Fine-tune once for each fold, score the held-out cases, and join the models.

    Each fold is a run of its own, ``fold_1`` and so on; one that is done is not
    repeated. The cases of all folds are scored once, each by the model that has not
    learnt from it.

    Args:
        config: Of ``resolve_request``.
        folder: Gets the runs, ``metrics.csv``, ``metrics.json``, and ``model/``: the
            mean of all folds' models.

    Returns:
        Summary, JSON types: ``model`` (None where the task's models cannot be joined),
        ``folds`` (``fold``, ``cases`` and ``mean`` of each), ``mean`` over all cases,
        ``between`` (metric -> standard deviation between folds), and the rest of the
        task's ``summarise``.

    Raises:
        UnusableInput: Several processes train together.
    """
    if world().size > 1:
        raise UnusableInput(
            "all folds in one run are trained by one process; with several start each "
            "fold by itself: --fold 1/5 and so on."
        )
    given = {k: v for k, v in config.items() if k != "folds"}
    count = _count(config.get("folds"))
    told: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        settings = resolve({**given, "fold": f"{number}/{count}"})
        place = folder / f"fold_{number}"
        yield Started(f"[{number}/{count}] fold {number}")
        if not (place / _SCORES).is_file():
            done = yield from _one(settings, place)
            if not done:
                yield Stopped(number)
                return {"stopped": True, "fold": number}
        told.append(read_object(place / _SCORES, {"fold": str, "rows": list}))
    result = yield from _pooled(given, told, folder)
    return {**result, "stopped": False}


def _one(settings: FinetuneConfig, place: Path) -> Job[bool]:
    """Train one fold and score what it held out; False when stopped."""
    from homolog.config import to_dict

    summary = yield from without_stopped(finetune_job(to_dict(settings), place))
    if summary["stopped"]:
        return False
    task, model = open_trained(place, choose_device(settings.device))
    held: Sequence[CaseRef] = check_cases(settings).val
    rows: list[dict[str, Any]] = []
    scores: Sequence[dict[str, Any]] = ()
    for number, case in enumerate(held):
        news = Progress("held-out cases", number, len(held), case.card.id)
        if (yield news) is Request.STOP:
            return False
        scores = yield from task.score(model, case)
        rows += [{"case": case.card.id, **score} for score in scores]
    news = Progress("held-out cases", len(held), len(held))
    if (yield news) is Request.STOP and held and not scores:
        return False  # asked within the last case
    kept = {
        "fold": str(settings.fold), "rows": rows, "cases": len(held),
        "mean": task.summarise(rows)["mean"], "columns": list(task.columns(model.spec)),
        "chose": summary["cases"]["val"] if settings.task_config.get(
            "validate_cases") is not None else 0,
    }  # fmt: skip
    write_json(place / _SCORES, kept)
    return True


def _pooled(
    given: Mapping[str, Any], told: Sequence[Mapping[str, Any]], folder: Path
) -> Job[dict[str, Any]]:
    """Tables over all folds, and the model of all of them."""
    places = [folder / f"fold_{parse_fold(str(t['fold']))[0]}" for t in told]
    task, _ = open_trained(places[0], choose_device(str(given.get("device", "auto"))))
    rows = [{"fold": str(t["fold"]), **row} for t in told for row in t["rows"]]
    summary = task.summarise(rows)
    result: dict[str, Any] = {
        **summary,
        "folds": [{k: t[k] for k in ("fold", "cases", "mean")} for t in told],
        "between": _between([t["mean"] for t in told]),
        "model": None,
    }
    if any(t["chose"] for t in told):
        yield Note(
            "the held-out cases of each fold also chose its weights: the figures "
            "flatter a little. --validate none keeps them apart."
        )
    if task.joins:
        joined = folder / "model"
        if not joined.exists():
            join_models(places, joined)
        result["model"] = str(joined)
        yield Saved(str(joined), "model")
    columns = ["fold", *told[0]["columns"]]
    write_tables({**result, "rows": rows, "columns": columns}, folder)
    for line in lines({**result, "lines": task.report(summary)}):
        yield Note(line)
    return result


def _between(means: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Standard deviation of each metric's mean between folds."""
    found: dict[str, float | None] = {}
    for metric in means[0]:
        values = [m.get(metric) for m in means]
        known = [float(v) for v in values if v is not None]
        middle = sum(known) / len(known) if known else math.nan
        spread = sum((v - middle) ** 2 for v in known)
        found[metric] = math.sqrt(spread / (len(known) - 1)) if len(known) > 1 else None
    return found


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read: every fold, then all of them together."""
    metric = next(iter(result["mean"]), None)
    told = []
    for fold in result["folds"]:
        value = None if metric is None else fold["mean"].get(metric)
        score = "" if value is None else f", {metric} {value:.3f}"
        told.append(f"fold {fold['fold']}: {counted(fold['cases'], 'case')}{score}")
    told.append("all folds together, each case by the model that never saw it:")
    return [*told, *result["lines"]]


def _count(value: Any) -> int:
    """How many folds.

    Raises:
        ConfigError: Not a whole number from 2 on.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 2:
        raise ConfigError(f"folds is a whole number, 2 or more, got {value!r}.")
    return value
