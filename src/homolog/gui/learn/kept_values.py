"""What was chosen in the panels, kept between sessions in one JSON file of the home."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from homolog.data.leftovers import beside
from homolog.private_files import create, make_folder

_FILE = "window.json"


def read(home: Path, section: str) -> dict[str, Any]:
    """What a panel kept; empty where there is nothing, or nothing readable."""
    found = _all(home).get(section)
    return found if isinstance(found, dict) else {}


def write(home: Path, section: str, values: dict[str, Any]) -> None:
    """Keep a panel's choices; a disk that refuses costs them, nothing more."""
    everything = {**_all(home), section: values}
    scratch = beside(home / _FILE)
    with contextlib.suppress(OSError, TypeError, ValueError):
        make_folder(home)
        create(scratch)
        scratch.write_text(json.dumps(everything, indent=1), encoding="utf-8")
        scratch.replace(home / _FILE)


def forget(home: Path, section: str) -> None:
    """Back to what a new user sees."""
    write(home, section, {})


def _all(home: Path) -> dict[str, Any]:
    try:
        found = json.loads((home / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
