"""Files that are complete or not there: written beside their place, flushed, moved."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from homolog.data.leftovers import beside
from homolog.private_files import create, make_private


def write_json(contents: Any, path: Path) -> None:
    """Write JSON beside its place, then move it there."""
    half = beside(path)
    try:
        create(half)
        with half.open("w", encoding="utf-8") as file:
            json.dump(contents, file, indent=1)
            flush(file)
        make_private(half, path)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def flush(file: Any) -> None:
    """Bring an open file's bytes to the disk."""
    file.flush()
    os.fsync(file.fileno())
