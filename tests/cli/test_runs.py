"""``homolog runs`` and ``homolog models`` from a shell's point of view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from homolog.backbones import build
from homolog.cli import main
from homolog.cli._run import kept_words
from homolog.errors import UnusableInput
from homolog.events import Failed, Finished, Step, Stopped
from homolog.model_files.encoder import load_encoder
from homolog.model_files.folder import save_model
from homolog.runs import launch
from homolog.runs.run import Run
from homolog.scans.write import write_volume
from homolog.store.store import Store

SMALL = {"channels": [4, 8]}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["homolog", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        text = capfd.readouterr()
        return int(stop.value.code or 0), text.out, text.err

    return call


def last_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def a_run(folder: Path, *events: Any) -> Run:
    run = Run.create(folder, "pretrain", {"method": "mae", "seed": 0})
    if events:
        run.begin_session()
    for event in events:
        run.journal.append(event)
    return run


def test_list_tells_every_state_truly(shell: Any, tmp_path: Path) -> None:
    step = Step(3, 10, {"loss": 0.25})
    a_run(tmp_path / "new")
    a_run(tmp_path / "crashed", step)
    a_run(tmp_path / "done", step, Finished({}))
    a_run(tmp_path / "halted", step, Stopped(3))
    a_run(tmp_path / "broken", step, Failed("no luck"))
    (a_run(tmp_path / "torn").folder / "run.json").write_text("{")
    status, text, _ = shell("runs", "list", tmp_path, "--json")
    assert status == 0
    states = {Path(r["run"]).name: r["state"] for r in last_json(text)["runs"]}
    assert states == {
        "new": "new", "crashed": "crashed", "done": "finished",
        "halted": "stopped", "broken": "failed", "torn": "damaged",
    }  # fmt: skip
    assert "3/10" in text
    assert "loss 0.25" in text


def test_an_empty_and_a_missing_folder(shell: Any, tmp_path: Path) -> None:
    status, text, _ = shell("runs", "list", tmp_path)
    assert (status, f"no runs in {tmp_path}" in text) == (0, True)
    assert shell("runs", "list", tmp_path / "nowhere")[0] == 2
    assert shell("models", "list", tmp_path / "nowhere")[0] == 2
    assert shell("runs", "show", tmp_path)[0] == 2


def test_show_explains_a_crash(shell: Any, tmp_path: Path) -> None:
    run = a_run(tmp_path / "r", Step(3, 10, {"loss": 0.25}))
    run.log.write_text("Killed\n")
    status, text, _ = shell("runs", "show", run.folder)
    assert status == 0
    assert "gone without a last word after step 3 of 10" in text
    assert "log.txt ends: Killed" in text


def test_follow_ends_with_the_status_of_the_run(shell: Any, tmp_path: Path) -> None:
    done = a_run(tmp_path / "done", Step(1, 1, {"a": 1.0}), Finished({"x": 1}))
    done.end_session({"state": "finished", "result": {"x": 1}})
    status, text, _ = shell("runs", "follow", done.folder, "--json")
    assert (status, last_json(text)["x"]) == (0, 1)
    failed = a_run(tmp_path / "failed", Failed("no luck"))
    status, _, news = shell("runs", "follow", failed.folder)
    assert (status, "no luck" in news) == (1, True)
    refused = a_run(tmp_path / "refused", Failed("bad store"))
    refused.end_session({"state": "failed", "error_kind": "unusable"})
    assert shell("runs", "follow", refused.folder)[0] == 2
    crashed = a_run(tmp_path / "crashed", Step(1, 9, {"a": 1.0}))
    status, _, news = shell("runs", "follow", crashed.folder)
    assert (status, "without a last word" in news) == (1, True)
    assert shell("runs", "follow", a_run(tmp_path / "new").folder)[0] == 0


def test_stop_and_pause_of_what_does_not_run(shell: Any, tmp_path: Path) -> None:
    run = a_run(tmp_path / "r", Stopped(2))
    status, text, _ = shell("runs", "stop", run.folder)
    assert (status, "nothing to stop" in text) == (0, True)
    status, _, news = shell("runs", "pause", run.folder)
    assert (status, "not running" in news) == (1, True)
    status, _, news = shell("runs", "resume", a_run(tmp_path / "d", Finished()).folder)
    assert (status, "has finished" in news) == (2, True)


def test_a_stop_says_what_exists() -> None:
    told = {"steps": 12, "total_steps": 100, "stopped": True}
    assert "before its first step: there is no model" in kept_words({"steps": 0})
    best = {"model": "r/model", "weights_of": {"kept": "best", "step": 10}}
    assert kept_words({**told, **best}) == (
        "stopped at step 12 of 100; the model so far (best weights, of step 10): "
        "r/model"
    )
    assert kept_words({**told, "model": "r/model"}) == (
        "stopped at step 12 of 100; the model so far: r/model"
    )


def test_models_tell_where_they_were_stopped(shell: Any, model: Path) -> None:
    card = json.loads((model / "model.json").read_text())
    told = {"steps": 12, "total_steps": 100, "complete": False, "stopped": True}
    (model / "model.json").write_text(json.dumps(card | told))
    _, text, _ = shell("models", "list", model.parents[1], "--json")
    assert "stopped at step 12 of 100" in text
    assert last_json(text)["models"][0]["stopped"] is True
    earlier = {"steps": 12, "complete": False}  # as before totals were written
    (model / "model.json").write_text(json.dumps(card | earlier))
    assert "stopped at step 12" in shell("models", "list", model.parents[1])[1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    card = {"kind": "encoder", "backbone": {"name": "resunet", "config": SMALL}}
    state = build("resunet", SMALL).state_dict()
    return save_model(tmp_path / "runs" / "a" / "model", state, card)


def test_models_are_listed_and_checked(shell: Any, model: Path) -> None:
    status, text, _ = shell("models", "list", model.parents[1], "--json")
    assert status == 0
    assert [r["backbone"] for r in last_json(text)["models"]] == ["resunet"]
    status, text, _ = shell("models", "check", model.parent, "--json")
    assert status == 0
    assert last_json(text)["report"]["share"] == 1.0
    file = model / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    status, _, news = shell("models", "check", model.parent)
    assert (status, "checksum" in news) == (2, True)


def test_a_foreign_file_is_imported_and_exported_again(
    shell: Any, model: Path, tmp_path: Path
) -> None:
    original = load_encoder(model)
    foreign = tmp_path / "theirs.pt"
    state = original.backbone.state_dict()
    torch.save({"net": {f"module.{n}": t for n, t in state.items()}}, foreign)
    out = tmp_path / "imported"
    words = ("--backbone", "resunet", "--set", "channels=4,8", "--out", out)
    status, text, _ = shell("models", "import", foreign, *words, "--json")
    assert (status, last_json(text)["encoder_id"]) == (0, original.encoder_id)
    assert "100.0% of the encoder matched" in text
    assert shell("models", "import", foreign, *words)[0] == 2  # it exists
    file = tmp_path / "ours.safetensors"
    assert shell("models", "export", out, "--out", file)[0] == 0
    again = load_encoder(file, {"name": "resunet", "config": SMALL})
    assert again.encoder_id == original.encoder_id
    assert json.loads(file.with_suffix(".json").read_text())["kind"] == "encoder"
    assert shell("models", "export", out, "--out", tmp_path / "x.pt")[0] == 2


def test_an_import_says_what_it_would_drop_and_stops(
    shell: Any, tmp_path: Path
) -> None:
    larger = build("resunet", {"channels": [4, 8, 16]}).state_dict()
    torch.save(larger, tmp_path / "w.pt")
    words = (
        "models", "import", tmp_path / "w.pt", "--backbone", "resunet",
        "--set", "channels=4,8", "--out", tmp_path / "x",
    )  # fmt: skip
    status, text, news = shell(*words)
    assert (status, "saved" in text) == (2, False)
    assert "would lose" in news
    assert not (tmp_path / "x").exists()
    status, text, _ = shell(*words, "--allow-dropped")
    assert status == 0
    assert "dropped: " in text


def test_an_import_that_does_not_fit_shows_the_table(
    shell: Any, model: Path, tmp_path: Path
) -> None:
    torch.save(build("resunet", {"channels": [8, 16]}).state_dict(), tmp_path / "w.pt")
    status, _, news = shell(
        "models", "import", tmp_path / "w.pt", "--backbone", "resunet",
        "--set", "channels=4,8", "--out", tmp_path / "x",
    )  # fmt: skip
    assert status == 2
    assert "mis-shaped" in news
    assert not (tmp_path / "x").exists()
    torch.save({"odd": torch.ones(3)}, tmp_path / "w.pt")
    status, _, news = shell(
        "models", "import", tmp_path / "w.pt", "--out", tmp_path / "x"
    )
    assert (status, "name the backbone" in news) == (2, True)


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A store of one case, and scans of somebody else."""
    from homolog.events import drain
    from homolog.geometry.affine import Affine
    from homolog.index.index import index_sources
    from homolog.scans.volume import Volume
    from homolog.store.build import write_store

    for number, name in enumerate(("mine", "theirs")):
        data = np.random.default_rng(number).integers(0, 500, (1, 8, 9, 10))
        (tmp_path / name).mkdir()
        write_volume(
            Volume(data.astype(np.int16), Affine.of((1.0, 1.0, 1.0))),
            tmp_path / name / f"{name}.nii.gz",
        )
    index = drain(index_sources([tmp_path / "mine"]))
    drain(write_store(index.cases, tmp_path / "store"))
    return tmp_path / "store"


@pytest.mark.parametrize("front", ["foreground", "background", "window"])
def test_a_strangers_run_does_not_write_elsewhere_unasked(
    shell: Any, tmp_path: Path, precious: Path, front: str
) -> None:
    before = {p: p.read_bytes() for p in precious.rglob("*") if p.is_file()}
    config = {"sources": [str(tmp_path / "theirs")], "out": str(precious)}
    run = Run.create(tmp_path / "gift", "prepare", config)
    if front == "window":
        with pytest.raises(UnusableInput, match=r"outside its own folder.*--outside"):
            launch.start(run)
    else:
        words = ["--background"] if front == "background" else []
        status, _, error = shell("runs", "resume", run.folder, *words)
        assert (status, str(precious) in error) == (2, True)
        assert error.strip().endswith("--outside")
    assert {p: p.read_bytes() for p in precious.rglob("*") if p.is_file()} == before
    assert run.state() == "new"


def test_a_run_may_write_elsewhere_when_that_is_said(
    shell: Any, tmp_path: Path, precious: Path
) -> None:
    config = {"sources": [str(tmp_path / "theirs")], "out": str(precious)}
    run = Run.create(tmp_path / "gift", "prepare", config)
    status, _, _ = shell("runs", "resume", run.folder, "--outside")
    assert status == 0
    assert {c.id for c in Store.open(precious).cards} == {"mine", "theirs"}


def test_a_link_out_of_a_runs_folder_is_not_followed(
    shell: Any, tmp_path: Path
) -> None:
    (tmp_path / "papers").mkdir()
    run = Run.create(tmp_path / "gift", "pretrain", {"method": "mae"})
    (run.folder / "checkpoints").symlink_to(tmp_path / "papers")
    status, _, error = shell("runs", "resume", run.folder)
    assert (status, "is a link to" in error) == (2, True)
