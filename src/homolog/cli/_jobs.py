"""Commands of jobs: flags from their Config, and a run in the foreground."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Generator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import click

from homolog.cli._library import meant
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
from homolog.geometry.places import named_numbers
from homolog.runs.jobs import config_of, folder_kinds, job_of, module_of

# A Config as flags: every field an option or an argument of a click command.


F = TypeVar("F", bound=Callable[..., Any])


def with_fields(config: type, leave: Sequence[str] = ()) -> Callable[[F], F]:
    """Decorate a click command with one parameter for each field of a Config.

    A field whose type is a Config gives the parameters of its fields. What is not said
    on the command line is None: the Config knows its defaults.

    Args:
        config: A frozen dataclass of ``homolog.config.option`` fields.
        leave: Names of fields that get no parameter.
    """

    def decorate(function: F) -> F:
        for parameter in reversed(list(_parameters(config, leave))):
            function = parameter(function)
        return function

    return decorate


def gathered(
    config: type, given: dict[str, Any], leave: Sequence[str] = ()
) -> dict[str, Any]:
    """What was said for the fields of a Config, taken out of a command's arguments."""
    found: dict[str, Any] = {}
    for field, hint in fields_of(config):
        if field.name in leave:
            continue
        if dataclasses.is_dataclass(hint):
            found[field.name] = gathered(typing.cast("type", hint), given)
        elif given.get(field.name) is not None:
            value = given.pop(field.name)
            found[field.name] = list(value) if isinstance(value, tuple) else value
        else:
            given.pop(field.name, None)
    return found


def fields_of(config: type) -> list[tuple[Any, Any]]:
    """Fields and their types as the help lists them.

    What must be given comes first, then a class's own fields before inherited ones;
    where to compute and the seed come last.
    """
    hints = typing.get_type_hints(config)
    names = [n for cls in config.__mro__ for n in inspect.get_annotations(cls)]
    fields = dataclasses.fields(typing.cast("Any", config))

    def rank(field: Any) -> tuple[bool, bool, int]:
        last = field.name in ("device", "seed")
        return (field.default is not ..., last, names.index(field.name))

    return [(f, hints[f.name]) for f in sorted(fields, key=rank)]


def _parameters(config: type, leave: Sequence[str]) -> typing.Iterator[Any]:
    for field, hint in fields_of(config):
        if field.name in leave:
            continue
        if dataclasses.is_dataclass(hint):
            yield from _parameters(typing.cast("type", hint), leave)
            continue
        argument = not flag_of(field).startswith("-")
        yield _argument(field, hint) if argument else _option(field, hint)


def _argument(field: Any, hint: Any) -> Any:
    many = typing.get_origin(hint) is tuple
    return click.argument(
        field.name,
        nargs=-1 if many else 1,
        metavar=field.metadata["metavar"] or None,
        **_needed(field),
    )


def _needed(field: Any) -> dict[str, Any]:
    """A default of its own, even None, would count as given."""
    return {"required": True} if field.default is ... else {"default": None}


def _option(field: Any, hint: Any) -> Any:
    meta, plain, spelled = field.metadata, _without_none(hint), flag_of(field)
    shared: dict[str, Any] = {**_needed(field), "help": help_of(field, spelled)}
    if plain is bool:
        return click.option(spelled, field.name, is_flag=True, **shared)
    items = typing.get_args(plain)
    if typing.get_origin(plain) is dict:
        reader = _named(spelled, meta["metavar"] or "KEY=VALUE")
        shared |= {"multiple": True, "callback": reader}
    elif typing.get_origin(plain) is tuple and items == (str, ...):
        shared |= {"multiple": True, "callback": lambda _, __, value: value or None}
    else:
        shared["type"] = _click_type(plain, meta, spelled)
    metavar = meta["metavar"] or ("MM" if meta["unit"] == "mm" else "")
    return click.option(spelled, field.name, metavar=metavar or None, **shared)


# How a Config's help tells what no value means.
_EMPTY = re.compile(r"; empty:? (?:takes )?(?P<what>.*?)\.?$")


def help_of(field: Any, flag: str) -> str:
    """The help of a field as a sentence, with its default and bounds."""
    meta, default = field.metadata, field.default
    text, empty = str(meta["help"]).strip(), str(meta["empty"])
    if default in (None, (), "") and (found := _EMPTY.search(text)):
        text, empty = text[: found.start()], found["what"]
    if text.partition(":")[0] not in (meta["choices"] or ()):
        text = text[:1].upper() + text[1:]
    text += "" if text.endswith((".", "?")) else "."
    low, high = meta["min"], meta["max"]
    notes = [_default_words(default, empty, flag)]
    notes += [] if low is None or high is None else [f"{low:g} to {high:g}"]
    notes = [note for note in notes if note]
    return f"{text}  [{'; '.join(notes)}]" if notes else text


def _default_words(default: Any, empty: str, flag: str) -> str:
    if default is ... or default is False:
        return ""
    if default is True:
        return f"default: {flag.split('/')[0].removeprefix('--')}"
    if default in (None, (), ""):
        return "" if empty == "automatic" else f"default: {empty}"
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return f"default: {shown}"


def _without_none(hint: Any) -> Any:
    """``X | None`` -> ``X``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(hint) if a is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint


def _click_type(hint: Any, meta: Mapping[str, Any], flag: str) -> Any:
    if meta["choices"] is not None:
        return _OneOf(meta["choices"])
    if hint in (int, float):
        return hint  # the Config knows the bounds
    reader = _READERS.get(hint)
    return _Read(reader, flag) if reader else str


class _OneOf(click.Choice):
    """One of the values of a setting, numbers as well."""

    def __init__(self, values: Sequence[Any]) -> None:
        super().__init__([str(value) for value in values], case_sensitive=False)
        self._by_word = {str(value): value for value in values}

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value that a word stands for."""
        return self._by_word[super().convert(str(value), param, ctx)]


class _Read(click.ParamType):
    """A text that a function reads; what it refuses is a ConfigError."""

    name = "text"

    def __init__(self, reader: Callable[[str, str], Any], flag: str) -> None:
        self._reader, self._flag = reader, flag

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Read the text; other values are kept."""
        return self._reader(value, self._flag) if isinstance(value, str) else value


def _named(flag: str, form: str) -> Callable[[Any, Any, Sequence[str]], Any]:
    """Reads ``("1=liver", ...)`` as a mapping."""

    def read(_: Any, __: Any, texts: Sequence[str]) -> dict[str, str] | None:
        found = {}
        for text in texts:
            key, equals, value = text.partition("=")
            if not (key and equals and value):
                raise ConfigError(f"{flag} must be {form}, got {text!r}.")
            found[key] = value
        return found or None

    return read


def triple(text: str, what: str) -> tuple[float, float, float]:
    """``"z,y,x"`` or ``"x 1, y 2, z 3"`` -> three numbers (z, y, x)."""
    named = named_numbers(text)
    if named is not None:
        return named
    parts = text.replace(" ", "").split(",")
    try:
        z, y, x = (float(p) for p in parts)
        if not all(map(isfinite, (z, y, x))):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{what} must be three numbers z,y,x, or each with its axis as in "
            f"'x=1, y=2, z=3', got {text!r}."
        ) from None
    return z, y, x


def _word_or_triple(text: str, what: str) -> Any:
    """A word such as ``auto``, or three numbers."""
    return text if re.fullmatch(r"[a-z]+", text) else triple(text, what)


def _interval(text: str, what: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not low < high:
        raise ConfigError(
            f"{what} must be two numbers LO,HI with LO below HI, got {text!r}."
        )
    return low, high


def _window(text: str, what: str) -> tuple[int, ...]:
    numbers = _whole_numbers(text, what)
    if len(numbers) != 3:
        raise ConfigError(f"{what} must be three numbers z,y,x, got {text!r}.")
    return numbers


def _whole_numbers(text: str, what: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{what} must be whole numbers with commas, got {text!r}."
        ) from None


def _numbers(text: str, what: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{what} must be numbers with commas, got {text!r}.") from (
            None
        )


def two_paths(text: str, what: str) -> tuple[str, str]:
    """``"A,B"`` -> two paths."""
    parts = text.split(",")
    if len(parts) != 2 or not all(parts):
        raise ConfigError(f"{what} must be two paths with a comma, got {text!r}.")
    return parts[0], parts[1]


_READERS: dict[Any, Callable[[str, str], Any]] = {
    tuple[float, float, float]: triple,
    str | tuple[float, ...]: _word_or_triple,
    tuple[float, float]: _interval,
    tuple[int, int, int]: _window,
    tuple[int, ...]: _whole_numbers,
    tuple[float, ...]: _numbers,
    tuple[str, str]: two_paths,
}

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

    allow_extra_args = click.Command.allow_extra_args
    allow_interspersed_args = click.Command.allow_interspersed_args
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
        config_of(module, config)
    except ConfigError as error:
        here = click.get_current_context(silent=True)
        raise click.UsageError(_in_flags(str(error), module.Config), here) from None
    for field, _ in fields_of(module.Config):
        said, reads = config.get(field.name), field.metadata.get("reads")
        if reads == "model" and said is not None:
            config[field.name] = meant(said)
        elif reads:
            check_existing(said)
    checked = config_of(module, config)  # names have become paths
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
