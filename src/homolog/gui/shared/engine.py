"""Whether the training engine is installed, and how to ask it; no Qt, no torch here.

The window never imports torch: what the engine knows (methods, tasks, settings,
devices) is asked of a process of its own, ``python -m homolog.machine``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from homolog.errors import JobError

NEEDED = ("torch", "monai", "safetensors", "sklearn")
_PATIENCE_S = 180.0


_there: set[str] = set()  # looked for on every disk of the path, so once


def missing() -> list[str]:
    """Libraries of the engine that this Python lacks; found without importing them."""
    for name in NEEDED:
        if name not in _there and importlib.util.find_spec(name) is not None:
            _there.add(name)
    return [name for name in NEEDED if name not in _there]


def install_command() -> str:
    """What to type to get the engine into this very Python."""
    return f'"{sys.executable}" -m pip install --upgrade napari-homolog'


def ask(*words: str) -> dict[str, Any]:
    """Ask the engine in a process of its own: seconds, so never on the GUI thread.

    Args:
        words: Of ``homolog.machine``: ``schema`` or ``devices``.

    Raises:
        JobError: No answer; the sentence says why.
    """
    return ask_module("homolog.machine", words)


def ask_module(module: str, words: Sequence[str]) -> dict[str, Any]:
    """The last line of a module's standard output, one JSON object.

    Raises:
        JobError: It failed, or said nothing for three minutes.
    """
    command = [sys.executable, "-m", module, *words]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8",
            errors="replace", timeout=_PATIENCE_S, check=False, **_quiet(),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"the engine does not answer: {error}") from error
    lines = run.stdout.strip().splitlines()
    if run.returncode != 0 or not lines:
        last = (run.stderr.strip().splitlines() or ["no word"])[-1]
        raise JobError(f"the engine does not answer: {last}")
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except ValueError as error:
        raise JobError(f"the engine gave no readable answer: {lines[-1]}") from error
    return answer


def _quiet() -> dict[str, Any]:
    """No console window on Windows; polite to the window's own process elsewhere."""
    if os.name == "nt":
        return {"creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0)}
    return {}
