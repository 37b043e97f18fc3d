"""Commands of the classify tests, and a network that learns in seconds."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from homolog.cli import cli
from homolog.store.store import Store

NET = {"widths": [8, 16], "stage_blocks": [1, 1], "block": "basic", "norm": "group"}


def run(*arguments: object) -> dict:
    """A command on the CPU; its JSON answer."""
    outcome = CliRunner().invoke(
        cli, [*map(str, arguments), "--json", "--device=cpu"], standalone_mode=False
    )
    if outcome.exception is not None:
        raise outcome.exception
    return json.loads(outcome.stdout.strip().splitlines()[-1])


def prepared(manifest: Path, out: Path) -> Store:
    """The store of a manifest."""
    outcome = CliRunner().invoke(
        cli, ["prepare", str(manifest), "--out", str(out)], standalone_mode=False
    )
    assert outcome.exception is None, outcome.output
    return Store.open(out)


def learnt(store: Store, out: Path, steps: int, *settings: str) -> Path:
    """A run of the small network, from random weights."""
    network = [
        f"--set=backbone.{k}={','.join(map(str, v)) if isinstance(v, list) else v}"
        for k, v in NET.items()
    ]
    run(
        "finetune", "classify", store.path, "--encoder=scratch",
        "--backbone=resnet2d", *network, f"--steps={steps}", "--recipe=cpu",
        "--out", out, f"--set=training.validate_every={steps // 2}",
        "--set=training.dry_run_steps=0", "--set=training.learning_rate=3e-3",
        *(f"--set={setting}" for setting in settings),
    )  # fmt: skip
    return out
