"""Processes begun with torch loaded are as any others; files are rewritten once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

import rewriting
from each import each
from warm import WarmPopen

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they begin cold")
PROGRAM = """
import os, signal, sys
print("torch" in sys.modules, __name__, sys.argv[1:], os.getsid(0) == os.getpid())
print(os.environ.get("TOLD"), os.getcwd(), os.getppid(), file=sys.stderr)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
if sys.argv[1:] == ["wait"]:
    sys.stdout.flush()
    sys.stdin.read()
sys.exit(7)
"""


def begun(folder: Path, *words: str, **how: object) -> subprocess.Popen[str]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return WarmPopen(
        [sys.executable, str(program), *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **how,
    )  # fmt: skip


@LINUX
def test_it_is_a_child_with_its_own_words_streams_and_end(tmp_path: Path) -> None:
    env = os.environ | {"TOLD": "something", "OMP_NUM_THREADS": "1"}
    with begun(tmp_path, "a", "b", cwd=tmp_path, env=env) as process:
        out, error = process.communicate(timeout=100)
    assert out.splitlines() == ["True __main__ ['a', 'b'] True", "True"]
    assert error.split() == ["something", str(tmp_path), str(os.getpid())]
    assert process.returncode == 7
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@LINUX
def test_it_is_killed_and_ends_with_its_input_as_any_other(tmp_path: Path) -> None:
    with begun(tmp_path, "wait") as first, begun(tmp_path, "wait") as second:
        for process in (first, second):
            assert process.stdout is not None
            process.stdout.readline()
        assert (first.poll(), second.poll()) == (None, None)
        os.kill(first.pid, signal.SIGKILL)
        assert first.wait(100) == -signal.SIGKILL
        assert second.stdin is not None
        second.stdin.close()
        assert second.wait(100) == 7


@each(
    "words, env",
    [
        (["-c", "import sys; print('torch' in sys.modules)"], {}),
        (["program.py"], {"OMP_NUM_THREADS": "2"}),
    ],
)
def test_what_would_not_be_the_same_begins_cold(
    words: list[str], env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with WarmPopen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, cwd=tmp_path, env=os.environ | env,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().startswith("False")


def test_test_files_are_kept_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    from _pytest.assertion import rewrite

    files = [tmp_path / f"test_{number}.py" for number in range(30)]
    for file in files:
        file.write_text("def test():\n    assert 1\n")
    files[3].write_text("no Python")
    config = types.SimpleNamespace(
        option=types.SimpleNamespace(tx=["popen"]), stash=request.config.stash,
        args=[str(tmp_path)], invocation_params=request.config.invocation_params,
        getini=request.config.getini, get_verbosity=request.config.get_verbosity,
        pluginmanager=request.config.pluginmanager, hook=request.config.hook,
    )  # fmt: skip
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(os, "fork", lambda: 0)  # the child's part, here

    class Ended(Exception):
        pass

    def end(status: int) -> None:
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with pytest.raises(Ended):
        rewriting.rewrite_for_all(config)  # type: ignore[arg-type]
    kept = [rewrite._read_pyc(f, rewriting._kept_as(f, rewrite)) for f in files]
    assert [code is not None for code in kept] == [f != files[3] for f in files]
