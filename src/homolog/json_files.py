"""JSON that is read back is not trusted: its shape is checked where it is read.

A file that was edited, cut short by a full disk or written by another version gives one
sentence with its name, instead of a Python error somewhere later.
"""

from __future__ import annotations

import json
import math
import stat
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from homolog.errors import UnusableInput
from homolog.words import listed

# Name of a field -> its type; a name that ends in "?" may be missing. A type is
# ``str``, ``int``, ``float`` (finite), ``bool``, ``dict``, ``list``, ``Any``, their
# unions, ``list[T]``, ``dict[str, T]``, ``tuple[T, T, T]`` (a list of so many), or
# again a shape.
Shape: TypeAlias = Mapping[str, Any]

MOST_BYTES = 256 << 20
# What Python raises where content that was parsed is of another shape than was thought.
OTHER_SHAPE = (ValueError, TypeError, LookupError, AttributeError, OverflowError)
# And where settings that fit their types make nothing that can be computed with.
SENSELESS = (*OTHER_SHAPE, ArithmeticError, AssertionError, RuntimeError)
_MOST_INT = 1 << 63


def read_object(
    path: Path, shape: Shape | None = None, *, most_bytes: int = MOST_BYTES
) -> dict[str, Any]:
    """The JSON object in a file; the fields of ``shape`` are of its types.

    Args:
        path: UTF-8.
        shape: What must be in it; further fields pass.
        most_bytes: A larger file is not read.

    Raises:
        FileNotFoundError: There is no such file (or NotADirectoryError).
        UnusableInput: It cannot be read or holds something else; names the file.
    """
    try:
        return parsed_object(_bytes_of(path, most_bytes), shape)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise UnusableInput(
            f"{path} cannot be read ({error.strerror or error})."
        ) from error
    except ValueError as error:
        raise UnusableInput(f"{path} is damaged ({error}).") from error


def object_or_none(path: Path, shape: Shape | None = None) -> dict[str, Any] | None:
    """As ``read_object``, for files one can do without: None where it raises."""
    try:
        return parsed_object(_bytes_of(path, MOST_BYTES), shape)
    except (OSError, ValueError):
        return None


def _bytes_of(path: Path, most_bytes: int) -> bytes:
    about = path.stat()
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
        raise ValueError("a pipe, device or socket, not a file")
    if about.st_size > most_bytes:
        raise ValueError(f"larger than {most_bytes >> 20} MiB")
    return path.read_bytes()


def parsed(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: It is no JSON; says from where on.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")  # as some editors write it
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8 text") from None
    if not text.strip():
        raise ValueError("it is empty")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"it is not JSON from line {error.lineno}, column {error.colno} on"
        ) from None


def parsed_toml(text: str) -> dict[str, Any]:
    """What a TOML text holds.

    Raises:
        ValueError: It is no TOML; says from where on.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parsed_object(text: str | bytes, shape: Shape | None = None) -> dict[str, Any]:
    """The JSON object in a text, checked as ``read_object`` does.

    Raises:
        ValueError: It is something else; says what was expected and what came.
    """
    content = parsed(text)
    if not isinstance(content, dict):
        raise ValueError(  # noqa: TRY004 - the file is at fault, not the caller
            f"expected an object {{...}}, got {short(content)}"
        )
    check_shape(content, shape or {})
    return content


def check_shape(content: Mapping[str, Any], shape: Shape, where: str = "") -> None:
    """Raise ValueError where a field is missing or of another type."""
    for name, kind in shape.items():
        bare = name.removesuffix("?")
        place = f"{where}.{bare}" if where else bare
        if bare not in content:
            if bare == name:
                raise ValueError(f"{place} is missing")
            continue
        _check(content[bare], kind, place)


def _check(value: Any, kind: Any, place: str) -> None:
    if isinstance(kind, Mapping):
        if not isinstance(value, dict):
            raise ValueError(  # noqa: TRY004 - as above
                f"{place} must be an object, got {short(value)}"
            )
        check_shape(value, kind, place)
        return
    if not _fits(value, kind):
        raise ValueError(f"{place} must be {in_words(kind)}, got {short(value)}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a parsed value is of a type; numbers are finite and of sane size."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if kind is None or kind is type(None):
        return value is None
    if origin is list:
        return isinstance(value, list) and all(_fits(v, inside[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(v, inside[1]) for v in value.values()
        )
    if origin is tuple:
        return (
            isinstance(value, list)
            and len(value) == len(inside)
            and all(_fits(v, k) for v, k in zip(value, inside, strict=True))
        )
    if kind is int or kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, int):
            return -_MOST_INT <= value < _MOST_INT
        return kind is float and math.isfinite(value)
    return isinstance(kind, type) and isinstance(value, kind)


def in_words(kind: Any) -> str:
    """A type in the words of someone who edits the file."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return listed((in_words(one) for one in inside), "or")
    if origin is list:
        return f"a list, each {in_words(inside[0])}"
    if origin is dict:
        return f"an object, each value {in_words(inside[1])}"
    if origin is tuple:
        return f"a list of {len(inside)}, each {in_words(inside[0])}"
    words = {
        str: "a text", int: "a whole number", float: "a number", bool: "true or false",
        dict: "an object", list: "a list", None: "null", type(None): "null",
    }  # fmt: skip
    return words.get(kind, str(kind))


def short(value: Any) -> str:
    """A value as JSON, cut to a few words."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
