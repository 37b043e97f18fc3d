"""``homolog demo`` by command."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from homolog.cli import cli
from homolog.config import ConfigError
from homolog.errors import UnusableInput

TINY = (
    "patients=4", "tests=2", "labelled=1", "shape=16,24,24", "spacing_mm=14,14,14",
    "pretrain.method.size=16,16,16", "pretrain.method.token_stride=4",
    "pretrain.backbone.channels=8,16", "finetune.backbone.channels=8,16",
    "finetune.task_config.window=16,16,16",
    *(
        f"{part}.training.{setting}"
        for part in ("pretrain", "finetune")
        for setting in ("minutes=0", "steps=1", "batch_size=1", "dry_run_steps=0")
    ),
)  # fmt: skip


def run(*arguments: str):
    words = [w for setting in TINY for w in ("--set", setting)]
    outcome = CliRunner().invoke(
        cli, ["demo", *arguments, *words, "--device", "cpu", "--json"],
        standalone_mode=False,
    )  # fmt: skip
    if outcome.exception is not None:
        raise outcome.exception
    return outcome


def test_demo_ends_with_a_table_a_report_and_json(tmp_path):
    outcome = run("--out", str(tmp_path / "demo"))
    lines = outcome.stdout.splitlines()
    result = json.loads(lines[-1])
    assert lines[0].split() == ["not", "pretrained", "pretrained"]
    assert lines[1].startswith("segmentation: Dice, mean")
    assert lines[-2].startswith("report: ")
    assert (tmp_path / "demo" / "report.html").is_file()
    assert result["out"] == str(tmp_path / "demo")
    names = ("pretrain", "scratch", "scratch_2", "finetuned", "finetuned_2")
    assert result["steps"] == dict.fromkeys(names, 1)
    with pytest.raises(UnusableInput, match="demo run that is finished"):
        run("--out", str(tmp_path / "demo"))


def test_an_unknown_setting_is_told(tmp_path):
    with pytest.raises(ConfigError, match="no setting 'patient'"):
        CliRunner().invoke(
            cli,
            ["demo", "--out", str(tmp_path / "d"), "--set", "patient=3"],
            standalone_mode=False,
            catch_exceptions=False,
        )
    assert not (tmp_path / "d").exists()
