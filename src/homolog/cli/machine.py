"""This machine and this installation: ``doctor``, ``methods`` and ``gui``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from homolog.cli._run import common, follow, json_option, show, with_result
from homolog.errors import JobError
from homolog.events import Finished


@click.command("doctor", short_help="Check this machine, or stores for damage.")
@click.argument(
    "stores", nargs=-1, metavar="[STORE...]", type=click.Path(path_type=Path)
)
@click.option(
    "--repair", is_flag=True,
    help="Make damaged cases of STORE anew from their scans, where these are there.",
)  # fmt: skip
@json_option
def doctor(stores: tuple[Path, ...], repair: bool, as_json: bool) -> int:
    """Check versions, device, precision, threads, disk, memory and display.

    Each check is made, not assumed: a training step is run on every device, and a file
    is written. Exit status 1 when something needed does not work.

    With STORE, every file of the store is read and compared with its checksum instead;
    what is damaged is named. Exit status 1 when damage is left.
    """
    from homolog.machine import examine, examine_stores

    if repair and not stores:
        raise click.UsageError("--repair needs a STORE to repair.")
    if stores:
        last = follow(with_result(examine_stores(stores, repair=repair)))
        assert isinstance(last, Finished)
        told = dict(last.result)
    else:
        told = examine()
    lines = told.pop("lines")
    show(told, as_json, lines)
    return 1 if told["problems"] else 0


@click.command("methods", short_help="List what can be pretrained.")
@json_option
def methods(as_json: bool) -> None:
    """List the methods: title, paper, backbones, recipes, whether labels are used."""
    from homolog.methods import METHODS

    found: dict[str, dict[str, Any]] = {}
    for name in METHODS.names():
        cls = METHODS.get(name)
        found[name] = {
            "title": cls.title,
            "paper": cls.paper,
            "backbones": list(cls.backbones) or ["any"],
            "uses_labels": cls.uses_labels,
            "recipes": sorted(cls.RECIPES),
        }
    width = max(map(len, found), default=0)
    lines = []
    for name, told in found.items():
        labels = "labels" if told["uses_labels"] else "no labels"
        lines.append(
            f"{name:<{width}}  {told['title']}. {labels}; backbones: "
            f"{', '.join(told['backbones'])}; recipes: {', '.join(told['recipes'])}. "
            f"{told['paper']}"
        )
    show({"methods": found}, as_json, lines)


@click.command("gui", short_help="Open napari with our panel.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@common
def gui(paths: tuple[Path, ...], as_json: bool, device: str, seed: int) -> None:
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
