"""A job is one file: its Config is flags, defaults, help and checks of both faces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import homolog.jobs
from homolog.cli import cli
from homolog.cli._jobs import command_of, fields_of, gathered
from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import Finished
from homolog.runs.jobs import (
    JOBS,
    check_inside,
    command_words,
    config_of,
    folder_kinds,
    kinds,
    module_of,
    python_text,
)
from homolog.runs.run import Run
from homolog.runs.worker import execute

NEW_JOB = '''
"""Count the letters of files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from homolog.config import option
from homolog.events import Progress


@dataclass(frozen=True)
class Config:
    """Write how often each LETTER stands in FILE..."""

    files: tuple[str, ...] = option(
        ..., "Texts.", flag="files", metavar="FILE...", reads=True
    )
    out: str = option(..., "Where the count goes.", metavar="TEXT", writes=True)
    letter: str = option("e", "letter that is counted; empty: every one")
    most: int = option(9, "Counted at most.", minimum=1, maximum=99)
    loud: bool = option(True, "Say it aloud.")
    named: dict[str, str] | None = option(None, "Names.", metavar="KEY=VALUE")


def job(config, folder):
    yield Progress("letters", 1, 1)
    texts = [Path(f).read_text() for f in config.files]
    count = min(config.most, sum(t.count(config.letter) for t in texts))
    Path(config.out).write_text(str(count))
    return {"count": count, "named": config.named, "loud": config.loud}


def lines(result):
    return [f"{result['count']} letters"]
'''


@pytest.fixture
def dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was dropped into the folder of the jobs, and nothing else."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "count_letters.py").write_text(NEW_JOB)
    monkeypatch.setattr(homolog.jobs, "__path__", [*homolog.jobs.__path__, str(folder)])
    (tmp_path / "a.txt").write_text("seven geese")
    return tmp_path


def run(*words: object) -> Any:
    return CliRunner().invoke(cli, [*map(str, words)])


def test_a_new_file_is_a_command_with_help_and_checks(dropped: Path) -> None:
    listed = run("--help").output
    assert "count-letters  Count the letters of files." in listed
    told = " ".join(run("count-letters", "--help").output.split())
    assert "Write how often each LETTER stands" in told
    for words in (
        "--out TEXT Where the count goes. [required]",
        "--most INTEGER Counted at most. [default: 9; 1 to 99]",
        "--loud / --no-loud Say it aloud. [default: loud]",
        "--letter TEXT Letter that is counted; empty: every one. [default: e]",
    ):
        assert words in told
    out = dropped / "n.txt"
    done = run(
        "count-letters", dropped / "a.txt", "--out", out, "--no-loud", "--named",
        "a=b", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "5 letters" in done.output
    result = json.loads(done.output.splitlines()[-1])
    assert (result["count"], result["loud"]) == (5, False)
    assert result["named"] == {"a": "b"}
    assert out.read_text() == "5"
    wrong = run("count-letters", dropped / "a.txt", "--out", out, "--most", 100)
    assert wrong.exit_code == 2
    assert "Error: --most must be in 1..99, got 100." in wrong.output
    for needed, words in (
        ((dropped / "a.txt",), "Missing option '--out'"),
        (("--out", out), "Missing argument 'FILE...'"),
    ):
        short = run("count-letters", *needed)
        assert (short.exit_code, words in short.output) == (2, True)
    gone = run("count-letters", dropped / "no.txt", "--out", out)
    assert isinstance(gone.exception, FileNotFoundError)


def test_a_new_file_is_a_kind_of_run_of_the_worker(dropped: Path) -> None:
    assert "count_letters" in kinds()
    config = {"files": [str(dropped / "a.txt")], "out": str(dropped / "elsewhere")}
    made = Run.create(dropped / "run", "count_letters", config)
    with pytest.raises(UnusableInput, match="outside its own folder"):
        check_inside("count_letters", config, made.folder)
    *_, last = execute(made, outside=True)
    assert isinstance(last, Finished)
    assert last.result["count"] == 5


EARLIER: dict[str, dict[str, Any]] = {
    "prepare": {
        "sources": ["a"], "out": "s", "labels": [], "spacing": [1, 1, 2.5],
        "modality": None, "window_hu": [-200, 300], "names": "", "seed": 0,
        "replace": False, "keep_identifiers": False,
    },
    "embed": {
        "encoder": "r", "scans": ["a"], "folder": "f", "strides": None, "window": None,
        "overlap": 0.5, "precision": "auto", "batch_size": 1, "backbone": None,
        "device": "auto",
    },
    "align": {
        "encoder": "r", "store": "s", "points": 48, "partners": 8, "seed": 0,
        "device": "auto", "overlap": 0.25,
    },
    "colours": {"cards": ["a"], "scans": ["b"]},
    "predict": {
        "model": "m", "scans": ["a"], "out": "o", "flips": "", "overlap": None,
        "windows": None, "modality": "CT", "precision": None, "device": "auto",
    },
    "few_voxels": {
        "scans": ["a"], "labels": ["b"], "encoder": None, "out": None, "predict": None,
        "features": None, "names": {"1": "liver"}, "colours": {"1": "#ffffff"},
        "background": 2, "score": True, "backbone": None, "device": "auto",
        "strides": [], "window": [16, 16, 16], "overlap": 0.5, "precision": "auto",
        "head": "knn", "strength": 0.3, "neighbours": 5, "position": True,
        "smoothing_mm": [1.0], "body_only": True, "per_class": 4000, "seed": 0,
    },
    "score": {
        "pairs": [{"prediction": "a", "reference": "b"}], "names": {"1": "x"},
        "tolerance_mm": 1,
    },
    "plan": {"kind": "finetune", "config": {"unresolved": True, "store": "s"}},
    "models": {
        "action": "import", "source": "a", "out": "b", "backbone": "swin",
        "settings": {"feature_size": 48}, "allow_dropped": False,
    },
    "match": {
        "encoder": "r", "scan": "a", "points": "p", "out": "o", "other": "b",
        "store": None, "coordinates": "LPS", "settings": {"least_margin": 0.1},
        "features": None, "strides": None, "window": None, "overlap": 0.5,
        "backbone": None, "device": "auto", "seed": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", EARLIER)
def test_runs_of_earlier_versions_are_understood(kind: str) -> None:
    """All keys that ``run.json`` of commit 7a16592 could hold."""
    given = json.loads(json.dumps(EARLIER[kind]))
    config = config_of(module_of(kind), given)
    for key, value in given.items():
        own = getattr(config, key)
        if value is not None and not isinstance(value, dict):
            assert (list(own) if isinstance(own, tuple) else own) == value


@pytest.mark.parametrize("kind", ["prepare", "embed", "align", "predict", "match"])
def test_a_job_in_words_is_the_job(kind: str) -> None:
    """What the window shows to type starts what the window starts."""
    module = module_of(kind)
    config = config_of(module, EARLIER[kind])
    words = command_words(kind, EARLIER[kind])
    assert words[:2] == ["homolog", kind]
    command = command_of(kind)
    context = command.make_context(kind, words[2:])
    again = gathered(module.Config, dict(context.params))
    assert config_of(module, again) == config
    assert "--device" not in words


@pytest.mark.parametrize("kind", ["prepare", "predict", "match", "case_report"])
def test_a_job_in_python_is_the_job(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that the window shows does what the window starts."""
    page = {"scan": "a b.nii", "labels": "c.nii", "out": "d.html", "window": [0, 5.5]}
    asked = EARLIER.get(kind, page)
    module, given = module_of(kind), []

    def job(config: Any, folder: Path) -> Any:
        given.append(config)
        return {}
        yield

    monkeypatch.setattr(module, "job", job)
    exec(compile(python_text(kind, asked), "program.py", "exec"), {})
    assert given == [config_of(module, asked)]


COMMANDS = sorted(
    kind for kind in folder_kinds() if getattr(module_of(kind), "COMMAND", kind)
)


@pytest.mark.parametrize("kind", COMMANDS)
def test_what_is_not_said_is_the_configs_default(kind: str) -> None:
    """The command line has no defaults of its own, and a flag for every setting."""
    module = module_of(kind)
    command = command_of(kind)
    context = click.Context(command, resilient_parsing=True)
    command.parse_args(context, [])
    given = {
        key: None if value in ((), False) else value
        for key, value in context.params.items()
    }
    assert gathered(module.Config, given) == {
        name: {} for name, hint in named(module.Config) if hasattr(hint, "__mro__")
        and hasattr(hint, "__dataclass_fields__")
    }  # fmt: skip
    assert set(given) <= {"seed", "device", "as_json"}


def named(config: type) -> list[tuple[str, Any]]:
    return [(field.name, hint) for field, hint in fields_of(config)]


def test_the_terminal_starts_the_job_that_the_window_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def job(config: dict[str, Any], folder: Path) -> Any:
        seen.update(config)
        yield from ()
        return {"predicted": [], "failed": [], "out": config["out"]}

    monkeypatch.setitem(JOBS, "predict", f"{__name__}:_listening")
    monkeypatch.setitem(globals(), "_listening", job)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    done = run(
        "predict", "a.nii.gz", "b.nii.gz", "--model", "m", "--out", "o", "--flips", "x",
        "--overlap", "0.25", "--modality", "ct",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert seen == {
        "scans": ["a.nii.gz", "b.nii.gz"], "model": "m", "out": "o", "flips": "x",
        "overlap": 0.25, "modality": "CT",
    }  # fmt: skip


def test_settings_that_are_unknown_or_missing_are_named() -> None:
    module = module_of("predict")
    with pytest.raises(ConfigError, match="predict needs 'model'"):
        config_of(module, {"scans": ["a"], "out": "o"})
    with pytest.raises(ConfigError, match="has no setting 'models'"):
        config_of(module, {"models": "m"})
