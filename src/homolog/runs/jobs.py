"""Which function does a run's work, by its kind; imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.events import Job

# A job takes (config, folder), resumes by itself where the folder holds a checkpoint,
# and returns a summary of JSON types.
JOBS: dict[str, str] = {
    "pretrain": "homolog.pretrain.job:job",
    "finetune": "homolog.finetune.job:job",
    "demo": "homolog.demo.demo:job",
    "prepare": "homolog.jobs.preparing:job",
    "embed": "homolog.jobs.embedding:job",
    "align": "homolog.jobs.aligning:job",
    "colours": "homolog.jobs.colouring:job",
    "predict": "homolog.jobs.predicting:job",
    "few_voxels": "homolog.jobs.few_voxels:job",
    "score": "homolog.jobs.scoring:job",
    "plan": "homolog.jobs.planning:job",
    "models": "homolog.jobs.model_care:job",
    "match": "homolog.jobs.matching:job",
}

# What a user asks for -> the complete configuration, for kinds that distinguish them.
RESOLVERS: dict[str, str] = {
    "pretrain": "homolog.pretrain.settings:resolve_request",
    "finetune": "homolog.finetune.settings:resolve_request",
}

# What a job writes besides its run's folder: keys of its configuration that hold paths.
# Kinds not named here write into their own folder only.
OUTPUTS: dict[str, tuple[str, ...]] = {
    "prepare": ("out",),
    "embed": ("folder",),
    "align": ("store",),
    "colours": ("cards",),
    "predict": ("out",),
    "few_voxels": ("out", "predict", "features"),
    "models": ("out",),
    "match": ("out", "features"),
}

# A request carries this key, set to true: it is completed where torch may be loaded.
UNRESOLVED = "unresolved"


def job_of(kind: str) -> Callable[[dict[str, Any], Path], Job[dict[str, Any]]]:
    """The job function of a kind.

    Raises:
        UnusableInput: Unknown kind (a run of a newer version?).
    """
    if kind not in JOBS:
        raise UnusableInput(
            f"unknown kind of run {kind!r}; known: {', '.join(sorted(JOBS))}."
        )
    function: Callable[[dict[str, Any], Path], Job[dict[str, Any]]] = _load(JOBS[kind])
    return function


def check_inside(kind: str, config: Mapping[str, Any], folder: Path) -> None:
    """Refuse to work on a run that would write outside its own folder.

    Whoever made the run says where it writes; a folder from someone else must not
    choose a place on this machine.

    Args:
        kind: Of the run.
        config: As its ``run.json`` says.
        folder: Of the run.

    Raises:
        UnusableInput: An output lies elsewhere, or the folder holds a link that leads
            out of it.
    """
    own = folder.resolve()
    for key in OUTPUTS.get(kind, ()):
        said = config.get(key)
        for value in said if isinstance(said, list | tuple) else [said]:
            if isinstance(value, str) and own not in Path(value).resolve().parents:
                raise UnusableInput(
                    f"the run {folder} writes into {value}, outside its own folder; if "
                    f"that is meant: homolog runs resume {folder} --outside"
                )
    for place in (own, *(p for p in own.iterdir() if p.is_dir())):
        for link in place.iterdir():
            if link.is_symlink() and own not in link.resolve().parents:
                raise UnusableInput(
                    f"{link} is a link to {link.resolve()}, outside the run's own "
                    f"folder; if that is meant: homolog runs resume {folder} --outside"
                )


def is_unresolved(config: Mapping[str, Any]) -> bool:
    """Whether a config is a request that its worker completes first."""
    return bool(config.get(UNRESOLVED, False))


def resolved(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The complete configuration of a request; a complete one as it is.

    Raises:
        UnusableInput: A kind whose requests cannot be completed, or an input that
            cannot be used.
        ConfigError: A setting that cannot be meant.
    """
    if not is_unresolved(config):
        return dict(config)
    if kind not in RESOLVERS:
        raise UnusableInput(f"a run of kind {kind!r} needs its complete settings.")
    request = {key: value for key, value in config.items() if key != UNRESOLVED}
    complete: dict[str, Any] = _load(RESOLVERS[kind])(request)
    return complete


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
