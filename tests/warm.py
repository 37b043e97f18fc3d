"""Processes that begin with torch loaded: forked from one that loaded it once.

A worker's first three to six seconds of processor time are imports. ``WarmPopen`` takes
the place of ``subprocess.Popen`` for commands of this Python (``-m MODULE`` or a file):
the process it makes is a child of the test's process as any other, with its own pid,
session, environment, streams and signals, and runs the module from its first line as
``__main__``; only what ``LOADED`` and ``LOADED_TOO`` name is in memory. That one
that loads everything by itself works too is for other tests to show, which start it.

Linux only; elsewhere, and for commands of another kind, it is ``subprocess.Popen``.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

# What takes long and keeps no state of a run; nothing is computed before the fork.
LOADED = ("torch", "torch._dynamo", "homolog.training.loop")
# What modules of the package, started by their names, load besides: the networks.
LOADED_TOO = ("homolog.backbones.resunet", "homolog.pretrain", "homolog.finetune")
_BECOMES_PARENT = 36  # PR_SET_CHILD_SUBREAPER
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WarmPopen(subprocess.Popen):
    """``subprocess.Popen`` whose process comes from the one that has loaded torch."""

    def _execute_child(self, args: Any, *given: Any) -> None:
        (_, preexec, _, pass_fds, cwd, env, *_, shell) = given[:9]
        plain = not (shell or preexec or pass_fds) and _is_ours(args)
        if not plain or not _same_threads(env):
            super()._execute_child(args, *given)
            return
        streams = given[9:15]
        request = {
            "words": [os.fspath(word) for word in args[1:]],
            "cwd": os.fspath(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
        }
        inward, outward, error = streams[0], streams[3], streams[5]
        wanted = [s if s >= 0 else i for i, s in enumerate((inward, outward, error))]
        self.pid = _Starter.of_this_process().start(request, wanted)
        self._child_created = True
        self._close_pipe_fds(*streams)


def _is_ours(args: Any) -> bool:
    if not sys.platform.startswith("linux") or isinstance(args, str | bytes):
        return False
    python, *words = [os.fspath(word) for word in args]
    named = bool(words) and (words[0] == "-m" or words[0].endswith(".py"))
    return named and python == sys.executable


def _same_threads(env: Any) -> bool:
    """Libraries ask once how many threads they may have, when they are loaded."""
    env = os.environ if env is None else env
    return all(env.get(name, "1") == "1" for name in _THREADS) and (
        env.get(_THREADS[0]) == "1"
    )


class _Starter:
    """The process with torch in it, and the line to it."""

    _own: _Starter | None = None

    @classmethod
    def of_this_process(cls) -> _Starter:
        if cls._own is None or cls._own.pid != os.getpid():
            cls._own = cls()
        return cls._own

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.line, other = socket.socketpair()
        command = [sys.executable, __file__, str(other.fileno())]
        self.process = subprocess.Popen(
            command, pass_fds=[other.fileno()], start_new_session=True
        )
        other.close()
        atexit.register(self.end)

    def start(self, request: dict[str, Any], streams: Sequence[int]) -> int:
        """Fork for a request; the pid, which has become a child of this process."""
        text = json.dumps(request).encode()
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        assert prctl(_BECOMES_PARENT, 1, 0, 0, 0) == 0
        try:
            socket.send_fds(self.line, [len(text).to_bytes(8, "big")], list(streams))
            self.line.sendall(text)
            answer = self.line.recv(64)
        finally:
            prctl(_BECOMES_PARENT, 0, 0, 0, 0)
        assert answer, f"the warm process is gone: {self.process.poll()}"
        return int(answer)

    def end(self) -> None:
        if self.pid == os.getpid():
            self.line.close()
            self.process.wait()


def _load(names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in sys.modules]:
        for name in missing:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()


def _serve(line: socket.socket) -> dict[str, Any]:
    """Fork at every request, until nobody asks; a child gets its request back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        size, streams, _, _ = socket.recv_fds(line, 8, 3)
        if not size:
            os._exit(0)
        text = b""
        while len(text) < int.from_bytes(size, "big"):
            text += line.recv(65536)
        request = json.loads(text)
        if request["words"][0] == "-m":
            _load(LOADED_TOO)
        told, tell = os.pipe()
        between = os.fork()
        if not between:
            passing = os.getpid()
            child = os.fork()  # whose parent goes: the test's process takes it
            if not child:
                while os.getppid() == passing:
                    time.sleep(0.001)
                line.close()
                os.close(told)
                os.close(tell)
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                    os.close(stream)
                return request
            os.write(tell, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        line.sendall(os.read(told, 64))
        for number in (told, tell, *streams):
            os.close(number)


def _become(request: dict[str, Any]) -> None:
    """The process that was asked for, up to its first line."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for name, number, mode in (
        ("stdin", 0, "r"),
        ("stdout", 1, "w"),
        ("stderr", 2, "w"),
    ):
        told = {"errors": "backslashreplace"} if number == 2 else {}
        stream = open(number, mode, closefd=False, **told)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _run(words: list[str]) -> None:
    """As ``python WORDS`` would."""
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # loaded already: so it is
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(words[0])
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _load(LOADED)
    _asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    _become(_asked)
    with contextlib.suppress(BrokenPipeError):
        _run(_asked["words"])
