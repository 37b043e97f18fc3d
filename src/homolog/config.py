"""Frozen dataclasses as configurations: read, checked, written, hashed.

One dataclass makes the command-line flags, the GUI form and the recipe file, so its
fields carry what those need: a help text, a unit, a range, choices.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be meant: unknown key, wrong type, out of range."""


def option(
    default: Any,
    help: str,  # noqa: A002 - the word every form and flag uses
    *,
    title: str = "",
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
    advanced: bool = False,
    empty: str = "automatic",
    reads: bool | str = False,
    writes: bool = False,
    flag: str = "",
    metavar: str = "",
    later: bool = False,
) -> Any:
    """A dataclass field with what a flag, a form and a check need to know.

    Args:
        default: Value when nothing is said; ``...`` where it must be given.
        help: One line, in the user's words.
        title: What forms call it, where its name alone would not be understood.
        unit: Unit of the number, e.g. ``"mm"`` or ``"deg"``.
        minimum: Smallest value allowed, inclusive; holds for each entry of a tuple.
        maximum: Largest value allowed, inclusive.
        choices: The only values allowed.
        advanced: Hide in forms until asked for.
        empty: What no value means, in a word, where None is allowed.
        reads: It is a path (or several) of something that must exist; ``"model"``: or
            the name of a model (see ``model_files.library``).
        writes: It is a path the job writes to, besides the folder of its run.
        flag: Its spelling on the command line where the name will not do, such as
            ``"--body-only/--anywhere"``; a name without dashes is an argument.
        metavar: Stands for the value in the help, e.g. ``"FILE"``.
        later: It came after files had been written without it: with its default it is
            left out of what is written and hashed, so that their ids stay.
    """
    metadata = {
        "help": help,
        "title": title,
        "unit": unit,
        "min": minimum,
        "max": maximum,
        "choices": tuple(choices) if choices is not None else None,
        "advanced": advanced,
        "empty": empty,
        "reads": reads,
        "writes": writes,
        "flag": flag,
        "metavar": metavar,
        "later": later,
    }
    return dataclasses.field(default=default, metadata=metadata)


def as_in(config: type, name: str, **changes: Any) -> Any:
    """A setting of another configuration, declared there, once more.

    Args:
        config: Dataclass that declares it by ``option``.
        name: Its name there.
        **changes: What is different here: arguments of ``option``.
    """
    (declared,) = (f for f in dataclasses.fields(config) if f.name == name)
    known = {"minimum": declared.metadata["min"], "maximum": declared.metadata["max"]}
    rest = {k: v for k, v in declared.metadata.items() if k not in ("min", "max")}
    return option(**{"default": declared.default, **known, **rest, **changes})


def flag_of(field: dataclasses.Field[Any]) -> str:
    """How a setting is spelled on the command line; an argument has no dashes."""
    spelled = str(field.metadata.get("flag", "")) or f"--{field.name}".replace("_", "-")
    if field.default is True and spelled.startswith("--") and "/" not in spelled:
        return f"{spelled}/--no-{spelled.removeprefix('--')}"
    return spelled


def to_dict(config: Any, *, whole: bool = False) -> dict[str, Any]:
    """The configuration as plain JSON types; tuples become lists.

    Args:
        config: A dataclass.
        whole: Tell settings that came ``later`` where they have their default, too.
    """
    told = json.loads(json.dumps(_plain(config, whole)))
    return typing.cast("dict[str, Any]", told)


def _plain(value: Any, whole: bool = False) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _plain(getattr(value, f.name), whole)
            for f in dataclasses.fields(value)
            if whole
            or not (f.metadata.get("later") and getattr(value, f.name) == f.default)
        }
    if isinstance(value, Mapping):
        return {str(k): _plain(v, whole) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, whole) for v in value]
    return value


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build a configuration from plain types and check every value.

    Args:
        cls: A frozen dataclass whose fields all have defaults (``...`` where a value
            must be given).
        data: Keys are field names; missing ones keep their default.
        where: Names the source (a file, a flag) in error messages.

    Raises:
        ConfigError: Unknown or missing key, wrong type or value out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(typing.cast("Any", cls))}
    unknown = sorted(set(data) - set(fields))
    prefix = f"{where}: " if where else ""
    if unknown:
        raise ConfigError(
            f"{prefix}{cls.__name__} has no setting {unknown[0]!r}; "
            f"known settings: {', '.join(sorted(fields))}."
        )
    missing = [n for n, f in fields.items() if f.default is ... and n not in data]
    if missing:
        raise ConfigError(f"{where or cls.__name__} needs {missing[0]!r}.")
    hints = typing.get_type_hints(cls)
    values = {
        name: _convert(value, hints[name], f"{prefix}{name}", fields[name].metadata)
        for name, value in data.items()
    }
    built = cls(**values)
    check(built, where=where)
    return built


def check(config: Any, *, where: str = "") -> None:
    """Raise ConfigError when a field is outside its stated range or choices."""
    prefix = f"{where}: " if where else ""
    for f in dataclasses.fields(config):
        value, meta = getattr(config, f.name), f.metadata
        if dataclasses.is_dataclass(value):
            check(value, where=f"{prefix}{f.name}")
            continue
        if value is None or not meta:
            continue
        choices = meta.get("choices")
        if choices is not None and value not in choices:
            allowed = ", ".join(repr(c) for c in choices)
            raise ConfigError(
                f"{prefix}{f.name} must be one of {allowed}, got {value!r}."
            )
        entries = value if isinstance(value, tuple) else (value,)
        for entry in entries:
            if isinstance(entry, bool) or not isinstance(entry, int | float):
                continue
            low, high = meta.get("min"), meta.get("max")
            below = low is not None and entry < low
            above = high is not None and entry > high
            if below or above or entry != entry:
                first = "-inf" if low is None else low
                bounds = f"{first}..{'inf' if high is None else high}"
                unit = f" {meta['unit']}" if meta.get("unit") else ""
                raise ConfigError(
                    f"{prefix}{f.name} must be in {bounds}{unit}, got {value!r}."
                )


def _convert(value: Any, hint: Any, where: str, meta: Mapping[str, Any]) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, typing.get_args(hint), where, meta)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return from_dict(hint, value, where=where)
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = typing.get_args(hint)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(value) == len(kinds):
            pairs = zip(value, kinds, strict=True)
            return tuple(_convert(v, kind, where, meta) for v, kind in pairs)
    elif origin is dict and isinstance(value, Mapping):
        return dict(value)
    elif hint in (int, float):
        number = _number(value, hint, where)
        if number is not None:
            return number
    elif hint is Any or (isinstance(hint, type) and isinstance(value, hint)):
        return value
    raise ConfigError(f"{where} must be {_describe(hint)}, got {value!r}.")


def _first_that_fits(
    value: Any, hints: Sequence[Any], where: str, meta: Mapping[str, Any]
) -> Any:
    if value is None and type(None) in hints:
        return None
    problems = []
    for candidate in (hint for hint in hints if hint is not type(None)):
        try:
            return _convert(value, candidate, where, meta)
        except ConfigError as error:
            problems.append(error)
    raise problems[0]


def _number(value: Any, hint: type, where: str) -> int | float | None:
    """A whole number or a number; None where the value is no such thing."""
    if isinstance(value, bool):
        if hint is int:
            raise ConfigError(f"{where} must be a number, got {value!r}.")
        return None
    if hint is float and isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isinf(number):
            said = repr(value)[:40]
            raise ConfigError(f"{where} must be a finite number, got {said}.")
        return number
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if hint is int and whole else None


def _describe(hint: Any) -> str:
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
    }.get(hint, str(hint).replace("typing.", ""))


def parse_assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """``["epochs=3", "crop.size=64,64,64"]`` -> nested dict with parsed values.

    Values are read as JSON where that works (numbers, true, null, lists), as a list
    where they hold commas, and as text otherwise.
    """
    result: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"expected key=value, got {pair!r}.")
        *parents, leaf = key.strip().split(".")
        level = result
        for parent in parents:
            level = level.setdefault(parent, {})
        level[leaf] = _parse_value(text.strip())
    return result


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    if "," in text:
        return [
            _parse_value(part.strip()) for part in text.strip("()[]").split(",") if part
        ]
    return text


def merge(base: Mapping[str, Any], *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge: later mappings win, nested mappings are merged key by key."""
    result = dict(base)
    for override in overrides:
        for key, value in override.items():
            old = result.get(key)
            if isinstance(old, Mapping) and isinstance(value, Mapping):
                result[key] = merge(old, value)
            else:
                result[key] = value
    return result


def config_hash(*parts: Any) -> str:
    """Sixteen hex digits that change with any value of any part."""
    text = json.dumps([_plain(p) for p in parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
