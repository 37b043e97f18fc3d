"""What may tell of patients is readable by its owner alone."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from homolog.cli import main
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.gui.autosave.saved_work import SavedWork
from homolog.gui.shared import choices
from homolog.runs.run import Run
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.writing import (
    keep_private,
    make_folder,
    wanted_umask,
    write_json,
    write_text,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")


@pytest.fixture(autouse=True)
def usual_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As users have it: files are readable by all."""
    monkeypatch.delenv("HOMOLOG_UMASK", raising=False)
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(folder: Path, allowed: int = 0) -> dict[str, str]:
    """Whatever others (or a group) may look at, but for ``allowed``."""
    found = {p: mode(p) for p in (folder, *folder.rglob("*"))}
    return {str(p): oct(m) for p, m in found.items() if m & 0o077 & ~allowed}


def scan(path: Path) -> Path:
    data = np.random.default_rng(0).integers(0, 900, (1, 4, 5, 6)).astype(np.int16)
    write_volume(Volume(data, Affine.of((1.0, 1.0, 1.0))), path)
    return path


def homolog(*words: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["homolog", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_command_writes_for_its_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scan(tmp_path / "a.nii")
    out = tmp_path / "deep" / "store"
    assert homolog("prepare", source, "--out", out, monkeypatch=monkeypatch) == 0
    assert open_to_others(tmp_path / "deep") == {}


def test_a_group_may_be_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMOLOG_UMASK", "007")
    source = scan(tmp_path / "a.nii")
    out = tmp_path / "store"
    assert homolog("prepare", source, "--out", out, monkeypatch=monkeypatch) == 0
    assert open_to_others(out, allowed=0o070) == {}
    assert (mode(out), mode(out / "store.json")) == (0o770, 0o660)
    assert (mode(source)) == 0o660  # also what names its modes
    for wrong in ("seven", "777", "-1"):
        monkeypatch.setenv("HOMOLOG_UMASK", wrong)
        with pytest.raises(UnusableInput, match="octal number from 000 to 077"):
            wanted_umask()
        assert homolog("methods", monkeypatch=monkeypatch) == 2


def test_a_stricter_umask_stays() -> None:
    os.umask(0o277)
    keep_private()
    assert os.umask(0o022) == 0o277


def test_the_window_writes_for_its_user_alone_beside_a_napari_that_does_not(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    labels = LabelMap(np.ones((4, 5, 6), np.uint8), Affine.identity())
    session = SavedWork()
    session.write(home / "sessions", {"labels": [], "scans": []}, [])
    choices.write(home, "panel", {"a": 1})
    run = Run.create(home / "runs" / "one", "toy", {})
    run.ask("stop")
    lock = run.lock()
    assert lock.acquire()
    lock.release()
    write_labels(labels, home / "labels" / "a.nii.gz")
    write_labels(labels, home / "labels" / "b.mha")
    write_text(home / "table.csv", "a,b\n")
    write_json(home / "a.json", {})
    assert open_to_others(home) == {}
    assert os.umask(0o022) == 0o022  # napari's own


def test_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    make_folder(shared / "a" / "b")
    assert [mode(p) for p in (shared, shared / "a", shared / "a" / "b")] == [
        0o755, 0o700, 0o700,
    ]  # fmt: skip
    for write in (
        lambda p: write_text(p, "new"), lambda p: write_json(p, {}),
        lambda p: write_labels(LabelMap(np.ones((2, 2, 2), int), Affine.identity()), p),
    ):  # fmt: skip
        path = shared / "x.nii"
        path.write_text("old")
        path.chmod(0o644)
        write(path)
        assert mode(path) == 0o644
        path.unlink()
        write(path)
        assert mode(path) == 0o600
