"""Which function does a run's work, by its kind; imported when it is needed.

A kind is a module of ``homolog.jobs`` (see there), or one of the few below that have a
room of their own.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import pprint
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from homolog.config import flag_of, from_dict
from homolog.errors import UnusableInput
from homolog.events import Job, Stopped, without_stopped

FOLDER = "homolog.jobs"

# A job takes (config, folder), resumes by itself where the folder holds a checkpoint,
# and returns a summary of JSON types.
JOBS: dict[str, str] = {
    "pretrain": "homolog.pretrain.job:job",
    "finetune": "homolog.propagation.carried_first:job",
    "folds": "homolog.use.folds:job",
    "demo": "homolog.demo.demo:job",
}

# What a user requests -> the complete configuration, for kinds that distinguish them.
RESOLVERS: dict[str, str] = {
    "pretrain": "homolog.pretrain.settings:resolve_request",
    "finetune": "homolog.finetune.settings:resolve_request",
    "folds": "homolog.use.folds:resolve_request",
}

# A request carries this key, set to true: it is completed where torch may be loaded.
UNRESOLVED = "unresolved"


def kinds() -> list[str]:
    """Every kind of run; nothing is imported for it but the folder of the jobs."""
    return sorted({*JOBS, *folder_kinds()})


def folder_kinds() -> list[str]:
    """The kinds that have a module in the folder of the jobs."""
    found = pkgutil.iter_modules(importlib.import_module(FOLDER).__path__)
    return sorted(
        m.name for m in found if m.name != "base" and not m.name.startswith("_")
    )


def module_of(kind: str) -> ModuleType:
    """The module of a kind that has one in the folder of the jobs.

    Raises:
        UnusableInput: Unknown kind (a run of a newer version?).
    """
    if kind not in folder_kinds():
        raise UnusableInput(
            f"unknown kind of run {kind!r}; known: {', '.join(kinds())}."
        )
    return importlib.import_module(f"{FOLDER}.{kind}")


def job_of(kind: str) -> Callable[[dict[str, Any], Path], Job[dict[str, Any]]]:
    """The job function of a kind; it takes the configuration as plain types.

    Raises:
        UnusableInput: Unknown kind (a run of a newer version?).
    """
    if kind in JOBS:
        function: Callable[[dict[str, Any], Path], Job[dict[str, Any]]]
        function = _load(JOBS[kind])
        return function
    module = module_of(kind)

    def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
        asked = config_of(module, config)
        return (yield from _ending(module.job(asked, folder)))

    return job


def config_of(module: ModuleType, config: Mapping[str, Any]) -> Any:
    """Plain types as the Config of a job's module; None stands for the default.

    Raises:
        ConfigError: A setting that is unknown, missing, or cannot be meant.
    """
    given = {key: value for key, value in config.items() if value is not None}
    return from_dict(module.Config, given, where=module.__name__.rpartition(".")[2])


def command_words(kind: str, config: Mapping[str, Any]) -> list[str]:
    """What to type to start a job of the folder; what is the default is left out."""
    module = module_of(kind)
    command = str(getattr(module, "COMMAND", kind.replace("_", "-")))
    arguments, flags = _spelled(config_of(module, config))
    return ["homolog", *command.split(), *arguments, *flags]


def python_text(kind: str, config: Mapping[str, Any]) -> str:
    """A Python program that does a job of the folder; defaults are left out."""
    asked = config_of(module_of(kind), config)
    usual = {field.name: field.default for field in dataclasses.fields(asked)}
    given = {
        key: value
        for key, value in config.items()
        if value is not None and getattr(asked, key) != usual[key]
    }
    lines = (
        "from pathlib import Path", "", "from homolog.events import drain",
        "from homolog.runs.jobs import job_of", "",
        f"config = {pprint.pformat(given, sort_dicts=False)}",
        f'result = drain(job_of({kind!r})(config, Path(".")))', "print(result)",
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def run_text(folder: Path, kind: str, config: Mapping[str, Any]) -> str:
    """A Python program that starts and follows a run as the window does."""
    asked = pprint.pformat(dict(config), sort_dicts=False)
    lines = (
        "from homolog.runs import launch", "from homolog.runs.run import Run", "",
        f"run = Run.create({str(folder)!r}, {kind!r}, {asked})",
        "launch.start(run)  # a process of its own, which outlives this one",
        "for event in launch.follow(run):", "    print(event)",
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def _spelled(config: Any) -> tuple[list[str], list[str]]:
    """Arguments and flags of the settings that are not the default."""
    arguments: list[str] = []
    flags: list[str] = []
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), flag_of(field)
        if dataclasses.is_dataclass(value):
            flags += _spelled(value)[1]
        elif value is None or value == field.default:
            continue
        elif not flag.startswith("-"):
            arguments += list(value) if isinstance(value, tuple) else [value]
        elif isinstance(value, bool):
            yes, _, no = flag.partition("/")
            flags.append(yes if value else no)
        elif isinstance(value, dict):
            flags += [word for k, v in value.items() for word in (flag, f"{k}={v}")]
        elif isinstance(value, tuple) and hints[field.name] == tuple[str, ...]:
            flags += [word for v in value for word in (flag, v)]
        else:
            several = value if isinstance(value, tuple) else (value,)
            flags += [flag, ",".join(_number(v) for v in several)]
    return arguments, flags


def _number(value: Any) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _ending(job: Job[dict[str, Any]]) -> Job[dict[str, Any]]:
    """A job whose result says ``stopped`` also ends with Stopped, once."""
    result = yield from without_stopped(job)
    if result.get("stopped"):
        yield Stopped(0)
    return result


def outputs_of(kind: str) -> list[str]:
    """Keys of a kind's configuration that name what it writes besides its run."""
    if kind in JOBS or kind not in folder_kinds():
        return []
    fields = dataclasses.fields(module_of(kind).Config)
    return [field.name for field in fields if field.metadata.get("writes")]


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
    for key in outputs_of(kind):
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
