"""What the jobs of this room share: the config they take, and how they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import Job, Stopped, without_stopped


def taken(
    config: Mapping[str, Any], kind: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The config with defaults; a default of Ellipsis means that it must be given.

    Raises:
        ConfigError: A setting that this job does not know, or one that is missing.
    """
    unknown = sorted(set(config) - set(defaults))
    if unknown:
        known = ", ".join(sorted(defaults))
        raise ConfigError(f"{kind} has no setting {unknown[0]!r}; known: {known}.")
    found = {**defaults, **config}
    missing = [name for name, value in found.items() if value is ...]
    if missing:
        raise ConfigError(f"{kind} needs {missing[0]!r}.")
    return found


def paths(values: Sequence[str], what: str) -> list[Path]:
    """Texts as paths.

    Raises:
        UnusableInput: There is none.
    """
    found = [Path(value) for value in values]
    if not found:
        raise UnusableInput(f"no {what} was given.")
    return found


def ending(job: Job[dict[str, Any]]) -> Job[dict[str, Any]]:
    """A job whose result says ``stopped`` also ends with Stopped, once."""
    result = yield from without_stopped(job)
    if result.get("stopped"):
        yield Stopped(0)
    return result
