"""``homolog few-voxels``: a painted scan first, and ``--also`` for more of them."""

from __future__ import annotations

from typing import Any

import click

from homolog.cli._jobs import command_of
from homolog.config import ConfigError


def _complete(config: dict[str, Any], given: dict[str, Any]) -> None:
    pairs = [(given["scan"], given["painted"]), *map(_pair, given["also"])]
    config["out"] = given["out"]
    config["scans"] = [scan for scan, _ in pairs]
    config["labels"] = [painted for _, painted in pairs]


def _pair(text: str) -> tuple[str, str]:
    parts = text.split(",")
    if len(parts) != 2 or not all(parts):
        raise ConfigError(
            f"--also must be SCAN2,PAINTED2: two files with a comma, got {text!r}."
        )
    return parts[0], parts[1]


command = command_of(
    "few_voxels",
    leave=("scans", "labels", "out"),
    extra=(
        click.argument("scan", metavar="SCAN"),
        click.option(
            "--labels", "painted", required=True, metavar="PAINTED",
            help="Painted voxels on SCAN's own grid: 0 is unpainted, each class a "
            "number.",
        ),
        click.option(
            "--out", required=True, metavar="MODEL",
            help="Model folder; homolog predict takes it.",
        ),
        click.option(
            "--also", multiple=True, metavar="SCAN2,PAINTED2",
            help="Another scan with its painted voxels. May be repeated.",
        ),
    ),
    complete=_complete,
)  # fmt: skip
