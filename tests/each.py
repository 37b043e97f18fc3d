"""Many inputs of one proof as one test: all are tried, all that fail are told."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest


def each(names: str, values: Iterable[Any]) -> Callable[..., Callable[..., None]]:
    """Like ``pytest.mark.parametrize``, but one test with a loop in it.

    For inputs that prove one thing together (the 48 axis orders, the spellings of a
    mistake): where one fails the others are tried all the same, and the message names
    every input that failed. A value has its own folder where the test takes
    ``tmp_path``, and its own ``monkeypatch``. What differs by more than its input
    (a method, a backbone) is a case of its own and stays with ``parametrize``.

    Args:
        names: Of the arguments, with commas between.
        values: One value each, or a tuple where there are several names.
    """
    wanted = [name.strip() for name in names.split(",")]
    rows = [
        dict(zip(wanted, value if len(wanted) > 1 else (value,), strict=True))
        for value in values
    ]
    assert rows, f"no values of {names}"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)
        missing = set(wanted) - signature.parameters.keys()
        assert not missing, f"{test.__name__} takes no {sorted(missing)}"

        @functools.wraps(test)
        def loop(**fixtures: Any) -> None:
            failed = []
            for number, row in enumerate(rows):
                try:
                    _one(test, number, row, dict(fixtures))
                except Exception as error:  # noqa: BLE001 - told below  # noqa: BLE001 - told below
                    failed.append((row, error))
            if failed:
                told = "\n".join(f"{_words(row)}: {_first(e)}" for row, e in failed)
                raise AssertionError(
                    f"{len(failed)} of {len(rows)} fail:\n{told}"
                ) from failed[0][1]

        loop.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p for n, p in signature.parameters.items() if n not in wanted]
        )
        return loop

    return decorate


def _one(
    test: Callable[..., None], number: int, row: dict[str, Any], fixtures: dict
) -> None:
    if "tmp_path" in fixtures:
        folder: Path = fixtures["tmp_path"] / f"each{number}"
        folder.mkdir()
        fixtures["tmp_path"] = folder
    if "monkeypatch" not in fixtures:
        test(**fixtures, **row)
        return
    with pytest.MonkeyPatch.context() as own:
        test(**{**fixtures, "monkeypatch": own}, **row)


def _words(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}"[:200] for name, value in row.items())


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:500]}"
