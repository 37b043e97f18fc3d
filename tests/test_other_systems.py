"""What Windows and Macs do otherwise, imitated here; docs/safety.md lists it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from each import each
from homolog import machine, writing
from homolog.distributed import choose_device
from homolog.errors import UnusableInput
from homolog.features.files import CARD_SUFFIX, array_path, trim
from homolog.index.datasets import Candidate
from homolog.index.index import _Ids
from homolog.model_files.keeping import check_name
from homolog.runs import launch
from homolog.runs.run import Run
from homolog.use.predict import result_paths
from homolog.writing import (
    as_one_file,
    free_name,
    is_reserved,
    sweep_leftovers,
    write_text,
    writing_folder,
)


class Held:
    """``os.replace`` of a system on which a file is held open for a while."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.real = os.replace

    def __call__(self, source: Any, place: Any) -> None:
        if self.left:
            self.left -= 1
            raise PermissionError(errno.EACCES, "Access is denied", str(source))
        self.real(source, place)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches of our own code for Windows; paths stay those of this system."""

    class Named:
        name = "nt"

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

    monkeypatch.setattr(writing, "os", Named())
    monkeypatch.setattr(writing, "_sync", lambda path: None)
    monkeypatch.setattr(writing, "_AGAIN_S", 0.0)


def test_a_file_that_is_held_for_a_moment_is_replaced(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "replace", Held(3))
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_what_stays_held_is_told_by_name_and_nothing_is_lost(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_PATIENCE_S", 0.0)
    with writing_folder(tmp_path / "model") as scratch:
        (scratch / "a").write_text("old")
    monkeypatch.setattr(os, "replace", Held(99))
    with (
        pytest.raises(PermissionError, match="holds it open") as error,
        writing_folder(tmp_path / "model") as scratch,
    ):
        (scratch / "a").write_text("new")
    assert error.value.filename == str(tmp_path / ".model.old")
    monkeypatch.undo()
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_elsewhere_a_refusal_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(9)
    monkeypatch.setattr(os, "replace", held)
    with pytest.raises(PermissionError, match="Access is denied"):
        write_text(tmp_path / "a.txt", "new")
    assert held.left == 8


def test_leftovers_of_a_dead_process_go_without_a_signal(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    monkeypatch.setattr("psutil.pid_exists", lambda pid: pid == os.getpid())
    monkeypatch.setattr(writing.os, "kill", None, raising=False)  # it would end it
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f".a.{writing._host()}-{pid}-0.part").touch()
    assert sweep_leftovers(tmp_path) == 1


def test_a_run_is_stopped_without_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", "prepare", {})
    sent: list[int] = []
    monkeypatch.setattr(launch, "_send", lambda run, number: sent.append(number))
    monkeypatch.setattr(launch, "_gone", lambda run, timeout_s: False)
    monkeypatch.setattr(Run, "is_alive", lambda self: True)
    launch.stop(run, 0.0)
    assert len(sent) == 1  # SIGTERM, which asks
    monkeypatch.setattr(launch.os, "name", "nt")
    launch.stop(run, 0.0)
    assert len(sent) == 1
    assert run.wish() == "stop"
    launch.stop(run, 0.0, kill=True)
    assert len(sent) == 2


def test_names_that_windows_reserves() -> None:
    reserved = (
        "con",
        "NUL",
        "nul.nii.gz",
        "Lpt1",
        "com9.x",
        "aux ",
        "a.",
        "a ",
        "prn.",
    )
    assert all(map(is_reserved, reserved))
    free = (
        "conn",
        "a.con",
        "com",
        "com10",
        "lpt",
        "scan",
        "nul_v2",
        ".nul",
        "auxiliary",
    )
    assert not any(map(is_reserved, free))
    assert free_name("con", lambda name: name == "con_v2") == "con_v3"
    assert free_name("scan", lambda name: False) == "scan"


@each("name", ["con", "nul.x", "Aux", "a" * 119 + ".b", "..", 'x:y?*"<>|z', "a/con"])
def test_ids_of_cases_are_folder_names_everywhere(name: str, tmp_path: Path) -> None:
    ids = _Ids({})
    made = {
        ids.of(Candidate(image=tmp_path / f"{i}.nii", name=said, root=tmp_path))
        for i, said in enumerate((name, name.upper(), name))
    }
    assert len({one.lower() for one in made}) == 3
    for one in made:
        assert not is_reserved(one)
        assert set(one) <= set(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
        )
        assert len(one) < 200


@each("name", ["con", "NUL", "lpt1.x", "model."])
def test_no_model_is_called_like_a_device(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="Windows calls its"):
        check_name(name, tmp_path)


def test_results_that_differ_in_capitals_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [tmp_path / "x" / "A.nii", tmp_path / "y" / "a.nii"]
    monkeypatch.setattr(writing.sys, "platform", "linux")
    assert len(set(result_paths(scans, tmp_path / "out").values())) == 2
    for system in ("win32", "darwin"):
        monkeypatch.setattr(writing.sys, "platform", system)
        assert as_one_file(tmp_path / "A") == as_one_file(tmp_path / "a")
        with pytest.raises(UnusableInput, match="would both be written"):
            result_paths(scans, tmp_path / "out")


def test_the_gpu_of_a_mac_is_refused_in_one_sentence() -> None:
    for name in ("mps", "mps:0"):
        with pytest.raises(UnusableInput, match=r"GPU of a Mac.*Say cpu"):
            choose_device(name)


def test_a_console_that_lacks_letters_spells_them(tmp_path: Path) -> None:
    name = tmp_path / "ツ≥.nii"
    name.write_bytes(b"no scan")
    done = subprocess.run(
        [sys.executable, "-m", "homolog.cli", "info", str(name)],
        env={**os.environ, "PYTHONIOENCODING": "cp1252:strict"},
        capture_output=True,
        check=False,
    )
    told = (done.stdout + done.stderr).decode("cp1252")
    assert r"\u30c4" in told
    assert "UnicodeEncodeError" not in told


def test_the_doctor_tells_of_short_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: "Windows")
    for long, told in ((True, 0), (False, 1)):
        monkeypatch.setattr(machine, "_takes_long_paths", lambda long=long: long)
        advice: list[str] = []
        machine._python({}, [], advice)
        assert len(advice) == told
        assert all("260" in text for text in advice)


def test_what_went_wrong_is_logged_whatever_the_code_page(tmp_path: Path) -> None:
    code = (
        "import sys; from homolog.runs import worker; from homolog.runs.run import Run;"
        "run = Run.create(sys.argv[1], 'prepare', {});"
        "worker._failure(run, ValueError('size ' + chr(0x2265)))"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run"],
        env={**os.environ, **ascii_only},
        check=True,
    )
    assert "size \u2265" in (tmp_path / "run" / "log.txt").read_text("utf-8")


def test_features_that_somebody_reads_stay_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = [tmp_path / f"{name}{CARD_SUFFIX}" for name in ("mapped", "free")]
    for card in cards:
        card.write_text("{}")
        array_path(card).write_bytes(bytes(100))
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == array_path(cards[0]):
            raise PermissionError(errno.EACCES, "in use", str(path))
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    trim(tmp_path, 0)
    assert cards[0].exists()
    assert array_path(cards[0]).exists()
    assert not cards[1].exists()
    assert not array_path(cards[1]).exists()
