"""Foreign files decoded in a process of their own, where a crash is a finding.

One helper process per process, started when first needed, started again after it died
or took too long, and gone with its parent. Free of SimpleITK itself.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from homolog.errors import JobError
from homolog.memory import free_bytes
from homolog.scans.problems import Unsound, check_room

_SCRIPT = Path(__file__).with_name("itk_decoder.py")
_START_S = 120.0
# A header is read within this; values get more, by the size of their file.
_PATIENCE_S = 60.0
_SLOWEST_BYTES_S = 1e6
# Room for the libraries themselves, which RLIMIT_AS counts too.
_LIBRARIES = 6 << 30


def information(path: Path) -> dict[str, Any]:
    """What ``itk_decoder.information`` gives for a file.

    Raises:
        Unsound: ``truncated, corrupt, unreadable``: it cannot be read, or reading it
            ended the decoder.
        JobError: There is no decoder.
    """
    return _helper.ask("information", path)[0]


def pixels(path: Path) -> NDArray[Any]:
    """Values of a file as (D, H, W), or (D, H, W, C).

    Raises:
        Unsound: As information, or ``too_large``.
        JobError: There is no decoder.
    """
    try:
        return _asked("pixels", path)
    except DecoderDied:
        if not _is_dicom(path):
            raise
        return _asked("dicom", path)  # by pydicom: GDCM crashed


def frames(path: Path, numbers: Sequence[int]) -> NDArray[Any]:
    """(N, H, W) stored numbers of some frames of a DICOM file, not rescaled.

    Raises:
        Unsound: As pixels.
        JobError: There is no decoder.
    """
    return _asked("frames", path, numbers)


def _asked(what: str, path: Path, numbers: Sequence[int] = ()) -> NDArray[Any]:
    values = _helper.ask(what, path, numbers)[1]
    if values is None:
        raise JobError(f"{path}: the decoder gave no values.")
    return values


def pixels_of(paths: Sequence[Path]) -> list[NDArray[Any]]:
    """``pixels`` of many files, each decoded while the one before is handed over.

    Raises:
        Unsound: As pixels, of the first file that cannot be read.
        JobError: There is no decoder.
    """
    try:
        return _helper.ask_for_all(paths)
    except DecoderDied:
        if not all(map(_is_dicom, paths)):
            raise
    return [pixels(path) for path in paths]


class DecoderDied(Unsound):
    """A file that ended the decoder, or took too long."""


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


class _Helper:
    """The other process, and one question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(
        self, what: str, path: Path, numbers: Sequence[int] = ()
    ) -> tuple[dict[str, Any], NDArray[Any] | None]:
        """An answer and, for pixels, the values."""
        asked = _question(what, path, numbers)
        with self._lock:
            process = self._running()
            try:
                _send(process, asked)
                told, values = _receive(process, asked)
            except BaseException:  # also when interrupted: its answer would come late
                self.close()
                raise
        _check(told, path)
        return told, values

    def ask_for_all(self, paths: Sequence[Path]) -> list[NDArray[Any]]:
        """The values of all files; the next is requested before one is taken."""
        asked = [_question("pixels", path) for path in paths]
        found: list[NDArray[Any]] = []
        with self._lock:
            process = self._running()
            try:
                for number, (path, question) in enumerate(
                    zip(paths, asked, strict=True)
                ):
                    for ahead in asked[number + bool(number) : number + 2]:
                        _send(process, ahead)
                    told, values = _receive(process, question)
                    _check(told, path)
                    assert values is not None
                    found.append(values)
            except BaseException:  # an answer may still be on its way
                self.close()
                raise
        return found

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._owner == os.getpid():
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and self._owner != os.getpid():
            self._process = process = None  # a fork: the parent's, not ours
        if process is not None and process.poll() is not None:
            self.close()  # it died between two questions: of neither's making
            process = None
        return process or self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        free = free_bytes()
        limit = free + _LIBRARIES if free else 0
        quiet = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        try:
            # -P: nothing is imported from where the script lies, nor from where we are.
            process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT), str(limit)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                creationflags=quiet,
            )
        except OSError as error:
            raise JobError(f"the decoder of scans cannot start: {error}.") from error
        self._process, self._owner = process, os.getpid()
        _widen(process)
        with _patience(process, _START_S):
            line = process.stdout.readline() if process.stdout else b""
        if not line:
            self.close()
            raise JobError(
                f"the decoder of scans ({sys.executable} {_SCRIPT.name}) ended before "
                f"its first file: {_ending(process)}."
            )
        return process


def _question(what: str, path: Path, numbers: Sequence[int] = ()) -> dict[str, Any]:
    seconds = _PATIENCE_S
    if what != "information":
        seconds += path.stat().st_size / _SLOWEST_BYTES_S
    asked = {"what": what, "path": str(path), "seconds": seconds}
    return {**asked, "frames": list(numbers)} if numbers else asked


def _send(process: subprocess.Popen[bytes], asked: dict[str, Any]) -> None:
    """Ask; where the process is gone, that shows when its answer does not come."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()


def _receive(
    process: subprocess.Popen[bytes], asked: dict[str, Any]
) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """The answer to the oldest question."""
    answers, path = process.stdout, Path(asked["path"])
    assert answers is not None
    values = None
    with _patience(process, asked["seconds"]) as waited:
        try:
            line = answers.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise _died(process, waited, asked["seconds"], path)
        told: dict[str, Any] = json.loads(line)
        if "shape" in told:
            dtype = np.dtype(told["dtype"])
            check_room(math.prod(told["shape"]) * dtype.itemsize, path)
            values = np.empty(told["shape"], dtype)
            if not _filled(values, cast("BufferedReader", answers)):
                raise _died(process, waited, asked["seconds"], path)
    return told, values


def _check(told: dict[str, Any], path: Path) -> None:
    if "memory" in told:
        text = "decoding it takes more memory than is free, or than its size allows."
        raise Unsound("too_large", text, path)
    if "error" in told:
        raise _refusal(str(told["error"]), path)


def _filled(values: NDArray[Any], answers: BufferedReader) -> bool:
    """Whether all of an array came."""
    flat = values.reshape(-1).view(np.uint8).data
    at = 0
    while at < len(flat) and (got := answers.readinto(flat[at:])):
        at += got
    return at == len(flat)


def _died(
    process: subprocess.Popen[bytes],
    waited: threading.Event,
    seconds: float,
    path: Path,
) -> DecoderDied:
    if waited.is_set():
        text = f"decoding it was not done after {seconds:.0f} s."
    else:
        text = f"damaged in a way that ends its decoder ({_ending(process)})."
    return DecoderDied("unreadable", text, path)


@contextlib.contextmanager
def _patience(
    process: subprocess.Popen[bytes], seconds: float
) -> Iterator[threading.Event]:
    """Kill the process after so long; the event then is set."""
    waited = threading.Event()

    def enough() -> None:
        waited.set()
        process.kill()

    timer = threading.Timer(seconds, enough)
    timer.daemon = True
    timer.start()
    try:
        yield waited
    finally:
        timer.cancel()


def _ending(process: subprocess.Popen[bytes]) -> str:
    status = process.wait()
    if status < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
    return f"exit status {status}"


def _refusal(reason: str, path: Path) -> Unsound:
    """The right code for SimpleITK's words."""
    short = ("expected", "got only", "fread", "end of file", "not read completely")
    cut = any(word in reason for word in short)
    damaged = "data read error" in reason or "CRC" in reason
    code = "truncated" if cut else "corrupt" if damaged else "unreadable"
    said = "".join(c if c.isprintable() else " " for c in reason[:500])
    return Unsound(code, f"SimpleITK cannot read it: {said}", path)


def _widen(process: subprocess.Popen[bytes]) -> None:
    """A pipe that takes more at once, where the system has such."""
    if sys.platform.startswith("linux") and process.stdout is not None:
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(process.stdout.fileno(), 1031, 1 << 20)  # F_SETPIPE_SZ


_helper = _Helper()
atexit.register(_helper.close)
