"""What a killed process leaves half written goes; what a living one writes stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from each import each
from homolog import writing
from homolog.features.files import new_array
from homolog.writing import (
    beside,
    sweep_leftovers,
    write_json,
    write_once,
    write_safely,
    write_text,
    writing_folder,
)

DAY_S = 24 * 3600.0


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def aged(path: Path, days: float) -> Path:
    path.touch()
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))
    return path


def test_own_names_go_with_their_process(tmp_path: Path) -> None:
    host = writing._host()
    gone = tmp_path / f".image.b2nd.{host}-{dead_pid()}-0.part"
    gone.mkdir()
    (gone / "inside").touch()
    hidden = tmp_path / f".{host}-{dead_pid()}-3.part.scan.nii.gz"
    hidden.touch()
    mine, last = beside(tmp_path / "a.json"), beside(tmp_path / "a", suffix_last=True)
    mine.touch()
    last.touch()
    far = tmp_path / f".a.json.00000000-{dead_pid()}-1.part"  # of another machine
    far.touch()
    assert sweep_leftovers(tmp_path) == 2
    assert set(tmp_path.iterdir()) == {mine, last, far}
    aged(far, 8)
    assert sweep_leftovers(tmp_path) == 1


@each("name", [
        ".run.json.{pid}.new", "a.features.npy.{pid}.part", ".depth.{pid}.b2nd",
        ".a.features.json.pca.npy.{pid}.new",
    ])  # fmt: skip
def test_names_of_earlier_versions_go_when_they_rested(
    tmp_path: Path, name: str
) -> None:
    fresh = tmp_path / name.format(pid=dead_pid())
    fresh.touch()
    living = aged(tmp_path / name.format(pid=os.getpid()), 1)
    assert sweep_leftovers(tmp_path) == 0
    aged(fresh, 0.1)
    assert sweep_leftovers(tmp_path) == 1
    assert living.exists()


@each(
    "name",
    [".a1b2c3d4.part.scan.nii.gz", ".card.json.new", ".best.old", ".align-ab12cd3_"],
)
def test_names_without_a_process_go_after_a_week(tmp_path: Path, name: str) -> None:
    path = aged(tmp_path / name, 6)
    assert sweep_leftovers(tmp_path) == 0
    aged(path, 8)
    assert sweep_leftovers(tmp_path) == 1


@each("name", [
        "scan.nii.gz", "thesis.part", "a.new", ".gitignore", ".bashrc.old", ".env.new",
        "x-1.part.y", ".notes.123.new", "part.npy.5.part", ".2024-1-1.part.txt",
    ])  # fmt: skip
def test_other_peoples_files_are_never_touched(tmp_path: Path, name: str) -> None:
    aged(tmp_path / name, 1000)
    assert sweep_leftovers(tmp_path) == 0


def test_every_writer_sweeps_what_its_killed_forerunner_left(tmp_path: Path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from homolog.writing import write_safely
        from homolog.features.files import new_array
        folder = Path({str(tmp_path)!r})
        new_array(folder / "features" / "a.features.npy", (2, 2, 2), 4)
        def write(path):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write_safely(folder / "out" / "labels.nii.gz", write, lambda p: True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    (half,) = (tmp_path / "out").iterdir()
    assert half.name.endswith(".part.labels.nii.gz")
    write_safely(
        tmp_path / "out" / "labels.nii.gz", lambda p: p.write_bytes(b"whole") and None,
        lambda p: True,
    )  # fmt: skip
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["labels.nii.gz"]
    new_array(tmp_path / "features" / "b.features.npy", (2, 2, 2), 4)
    assert len(list((tmp_path / "features").iterdir())) == 1


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.csv", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_folder_goes_with_the_next_writer_of_its_parent(
    tmp_path: Path,
) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from homolog.writing import writing_folder
        with writing_folder(Path({str(tmp_path)!r}) / "case") as fresh:
            (fresh / "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    (half,) = tmp_path.iterdir()
    assert half.name.startswith(".case.")
    with writing_folder(tmp_path / "other") as fresh:
        (fresh / "whole").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_of_several_writers_at_once_the_first_holds(tmp_path: Path) -> None:
    write_once(tmp_path / "key", "first")
    write_once(tmp_path / "key", "second")
    assert (tmp_path / "key").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_text_is_the_same_bytes_on_every_system(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "é,b\r\nc\n")
    assert (tmp_path / "a.csv").read_bytes() == b"\xc3\xa9,b\r\nc\n"
    write_json(tmp_path / "a.json", {"b": [1]}, indent=None, end="")
    assert (tmp_path / "a.json").read_bytes() == b'{"b": [1]}'


def test_best_weights_moved_aside_come_back_with_the_next_session(
    tmp_path: Path,
) -> None:
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "state.json").write_text("{}")
    writing.restore_retired(tmp_path)
    assert (tmp_path / "best" / "state.json").is_file()
    (tmp_path / ".best.old").mkdir()
    writing.restore_retired(tmp_path)
    assert (tmp_path / ".best.old").is_dir()
