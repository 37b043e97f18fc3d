"""Kinds of runs as commands: the jobs of ``homolog.jobs``, worked on in this process.

The window starts the same jobs by the same names and configurations in a worker.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import click

from homolog.cli._flags import fields_of, gathered, with_fields
from homolog.cli._run import (
    DONE,
    FAILED,
    STOPPED,
    device_option,
    follow,
    json_option,
    seed_option,
    show,
)
from homolog.config import ConfigError, flag_of
from homolog.errors import JobError
from homolog.events import Finished, Job, Note
from homolog.runs.jobs import config_of, folder_kinds, job_of, module_of

Given = dict[str, Any]


def job_commands() -> dict[str, str]:
    """Name of the command -> kind of the run, of the jobs that have a command."""
    named = {kind: module_of(kind) for kind in folder_kinds()}
    words = {
        kind: getattr(module, "COMMAND", kind.replace("_", "-"))
        for kind, module in named.items()
    }
    return {word: kind for kind, word in words.items() if word}


def job_command(name: str, commands: Mapping[str, str]) -> click.Command:
    """The command of a job.

    Args:
        name: One word; commands of two words that begin with it are reached by it.
        commands: See ``job_commands``.
    """
    inner = {
        words.partition(" ")[2]: job_command(words, commands)
        for words in commands
        if words.startswith(f"{name} ")
    }
    return command_of(commands[name], inner=inner)


def command_of(
    kind: str,
    *,
    leave: tuple[str, ...] = (),
    extra: tuple[Callable[[Any], Any], ...] = (),
    complete: Callable[[Given, Given], None] | None = None,
    inner: Mapping[str, click.Command] | None = None,
) -> click.Command:
    """The command that starts a kind of run.

    Args:
        kind: Name of the module in ``homolog.jobs``.
        leave: Fields of its Config that get no flag of their own.
        extra: Parameters that stand for these; they come first.
        complete: Gets the configuration so far and the values of ``extra``.
        inner: Commands that begin with this one's name, by their second word.
    """
    module = module_of(kind)

    def run(as_json: bool, **given: Any) -> int:
        config = gathered(module.Config, given, leave)
        if complete is not None:
            complete(config, given)
        return _started(kind, module, config, as_json)

    names = [field.name for field, _ in fields_of(module.Config)]
    ignored = [d for n, d in _IGNORED.items() if n not in names]
    decorate = [*extra, with_fields(module.Config, leave), *ignored, json_option]
    function: Any = run
    for each in reversed(decorate):
        function = each(function)
    command = click.command(
        getattr(module, "COMMAND", kind.replace("_", "-")),
        cls=_WithInner if inner else click.Command,
        short_help=inspect.cleandoc(module.__doc__ or "").partition("\n")[0],
        help=inspect.cleandoc(module.Config.__doc__ or ""),
    )(function)
    if isinstance(command, click.Group):
        command.commands, command.no_args_is_help = dict(inner or {}), False
    return command


# Every command takes them; those that have no use for one do not show it.
_IGNORED = {"seed": seed_option(hidden=True), "device": device_option(hidden=True)}


class _WithInner(click.Group):
    """A command of its own, which another command's name hands over to that one."""

    parse_args = click.Command.parse_args
    invoke = click.Command.invoke
    collect_usage_pieces = click.Command.collect_usage_pieces

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **rest: Any,
    ) -> click.Context:
        """The context of the inner command where it is named first."""
        if args and args[0] in self.commands:
            name = f"{info_name} {args[0]}"
            return self.commands[args[0]].make_context(name, args[1:], parent, **rest)
        return super().make_context(info_name, args, parent, **rest)


def _started(kind: str, module: ModuleType, config: Given, as_json: bool) -> int:
    """Work on a job and show its end; returns the exit status."""
    try:
        checked = config_of(module, config)
    except ConfigError as error:
        here = click.get_current_context(silent=True)
        raise click.UsageError(_in_flags(str(error), module.Config), here) from None
    for field, _ in fields_of(module.Config):
        if field.metadata.get("reads"):
            check_existing(config.get(field.name))
    home = getattr(module, "home", None)
    job = job_of(kind)(config, Path() if home is None else home(checked))
    try:
        result = run(job)
    except KeyboardInterrupt:
        job.close()  # what is half done goes
        click.echo(getattr(module, "STOPPED", "Stopped."), err=True)
        return STOPPED
    if result.get("stopped"):
        return STOPPED
    lines = result.pop("lines", None)
    if lines is None:
        lines = getattr(module, "lines", _plain_lines)(result)
    reported = getattr(module, "REPORTED", tuple(result))
    show({key: result[key] for key in reported}, as_json, lines)
    return FAILED if result.get(getattr(module, "FAILURES", "")) else DONE


def _in_flags(sentence: str, config: type) -> str:
    """``predict: overlap must be ...`` -> ``--overlap must be ...``."""
    *_, last = sentence.split(": ", sentence.partition(" must ")[0].count(": "))
    for field, hint in fields_of(config):
        if dataclasses.is_dataclass(hint):
            last = _in_flags(last, cast("type", hint))
        elif last.startswith(f"{field.name} must "):
            return f"{flag_of(field).split('/')[0]} {last.partition(' ')[2]}"
    return last


def run(job: Job[dict[str, Any]]) -> dict[str, Any]:
    """Follow a job on the terminal; its result, which gains the job's ``warnings``."""

    def with_result() -> Generator[Any, Any, None]:
        warnings: list[str] = []
        result = yield from _warned(job, warnings)
        told = result.get("warnings") or []
        new = [text for text in warnings if text not in told]
        yield Finished({**result, "warnings": [*told, *new]})

    last = follow(with_result())
    if not isinstance(last, Finished):
        raise JobError("the job did not come to its end.")
    return last.result


def _warned(job: Job[dict[str, Any]], warnings: list[str]) -> Job[dict[str, Any]]:
    """The job; its warnings are kept too."""
    request = None
    while True:
        try:
            event = job.send(request)
        except StopIteration as end:
            result: dict[str, Any] = end.value
            return result
        if isinstance(event, Note) and event.level == "warning":
            warnings.append(event.text)
        request = yield event


def _plain_lines(result: Mapping[str, Any]) -> list[str]:
    """``key: value`` of everything a job returned."""
    return [f"{key}: {value}" for key, value in result.items() if value not in (None,)]


def check_existing(said: Any) -> None:
    """Raise FileNotFoundError where a path, or one of several, leads nowhere."""
    for text in said if isinstance(said, list | tuple) else [said]:
        if text is not None and not Path(text).exists():
            raise FileNotFoundError(2, "there is no such file or folder", str(text))
