"""``homolog gui``: napari with our panel, in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import click

from homolog.cli._run import common
from homolog.errors import JobError


@click.command(name="gui")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@common
def command(paths: tuple[Path, ...], as_json: bool, device: str, seed: int) -> None:
    """Open napari with our panel; PATHS are scans, DICOM folders, runs or models."""
    missing = [p for p in paths if not p.exists()]
    if missing:
        raise FileNotFoundError(2, "No such file or folder", str(missing[0]))
    if importlib.util.find_spec("napari") is None:
        raise JobError(
            "napari is not installed; install it with: "
            'python -m pip install "napari-homolog[gui]"'
        )
    words = [sys.executable, "-m", "homolog.gui", *map(str, paths)]
    status = subprocess.run(words, check=False).returncode
    if status != 0:
        raise JobError(f"napari ended with status {status}; see its messages above.")
