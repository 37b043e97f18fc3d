"""Options every command takes, and the last line of ``--json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, TypeVar

import click

from homolog.config import ConfigError
from homolog.geometry.places import named_numbers
from homolog.safe_text import visible

F = TypeVar("F", bound=Callable[..., Any])


def common(function: F) -> F:
    """Add ``--json``, ``--device`` and ``--seed`` (as as_json, device, seed)."""
    for decorate in (
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
                     help="Seed of everything random."),
        click.option("--device", default="auto", show_default=True, metavar="DEVICE",
                     help="auto, cpu, cuda or cuda:i."),
        click.option("--json", "as_json", is_flag=True,
                     help="Last line of standard output is one JSON object."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def show(result: dict[str, Any], as_json: bool, lines: Sequence[str] = ()) -> None:
    """Print lines for people, then (with --json) one JSON object as the last line."""
    for line in lines:
        click.echo(visible(line))
    if as_json:
        click.echo(json.dumps(result))


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
