"""Actions of the window as command lines, quoted for the shell of this machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


def quoted(words: Sequence[str]) -> str:
    """Words as one line for the shell of this machine."""
    if os.name == "nt":
        return subprocess.list2cmdline(words)
    return shlex.join(words)


def predict_command(config: Mapping[str, Any]) -> str:
    """The ``homolog predict`` line of a ``predict`` job's configuration."""
    words = ["homolog", "predict", *config["scans"], "--model", config["model"]]
    words += ["--out", config["out"]]
    words += ["--flips", config["flips"]] if config.get("flips") else []
    if config.get("overlap") is not None:
        words += ["--overlap", f"{config['overlap']:g}"]
    words += ["--modality", config["modality"]] if config.get("modality") else []
    return quoted([*words, *common(0, config.get("device", "auto"))])


def length_words(training: dict[str, Any]) -> list[str]:
    """``--steps`` or ``--minutes``; what it says is taken out of ``training``."""
    minutes, steps = training.get("minutes"), training.get("steps")
    if minutes:
        del training["minutes"]
        return ["--minutes", f"{minutes:g}"]
    if steps is not None:
        training.pop("minutes", None)
        del training["steps"]
        return ["--steps", str(steps)]
    return []


def assignments(values: Mapping[str, Any], prefix: str) -> list[str]:
    """``--set PREFIXkey=value`` for each value, as the command line reads them."""
    words: list[str] = []
    for key, value in values.items():
        plain = isinstance(value, str) and not _reads_as_other(value)
        text = value if plain else json.dumps(value, separators=(",", ":"))
        words += ["--set", f"{prefix}{key}={text}"]
    return words


def _reads_as_other(text: str) -> bool:
    """Whether the command line would take this text for a number or a list."""
    if "," in text:
        return True
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def common(seed: int, device: str) -> list[str]:
    """``--seed`` and ``--device`` where they are not the defaults."""
    words = ["--seed", str(seed)] if seed else []
    return words + (["--device", device] if device != "auto" else [])
