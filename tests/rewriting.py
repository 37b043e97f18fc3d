"""Test files are rewritten once for all test processes, not once in each.

pytest rewrites the assertions of every file that it collects, and each process of
pytest-xdist collects all: on a fresh clone, where nothing is kept of an earlier run,
that was a third of what collecting costs. Here the process that starts the others does
it first, on all cores; they find the result where pytest keeps it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest


def rewrite_for_all(config: pytest.Config) -> None:
    """Keep, rewritten, what pytest will collect; nothing where it collects alone."""
    starts_others = getattr(config.option, "tx", None)
    if not starts_others or sys.dont_write_bytecode or not hasattr(os, "fork"):
        return
    try:
        from _pytest.assertion import rewrite  # no promise of pytest's: else they do it

        state = config.stash[rewrite.assertstate_key]
        keep = (rewrite._read_pyc, rewrite._rewrite_test, rewrite._write_pyc)
        places = {f: _kept_as(f, rewrite) for f in _collected(config)}
    except (AttributeError, ImportError, KeyError):
        return
    read, make, write = keep
    missing = [f for f, place in places.items() if read(f, place) is None]
    if len(missing) < 20:  # soon done by each
        return
    count = os.cpu_count() or 1
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            try:
                for file in missing[number::count]:
                    with contextlib.suppress(SyntaxError):  # told when it is collected
                        source_hash, code = make(file, config)
                        places[file].parent.mkdir(exist_ok=True)
                        write(state, code, source_hash, places[file])
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def _collected(config: pytest.Config) -> list[Path]:
    given = [
        Path(config.invocation_params.dir, a.partition("::")[0]) for a in config.args
    ]
    return sorted({f for place in given for f in place.rglob("test_*.py")})


def _kept_as(file: Path, rewrite: object) -> Path:
    folder: Path = rewrite.get_cache_dir(file)  # type: ignore[attr-defined]
    return folder / (file.stem + rewrite.PYC_TAIL)  # type: ignore[attr-defined]
