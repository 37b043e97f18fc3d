"""Rows of measurements that never stop each other, on the disk after each.

Of ``benchmarks/gpu.py``: an error is its row's result, a row that takes too long is
ended, and a GPU that no longer answers is noticed.
"""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from homolog.json_files import read_object
from homolog.training.stepping import is_out_of_memory, release
from homolog.writing import write_json


class RowTooLongError(BaseException):
    """A row used up its share; not an Exception, so that nothing swallows it."""


Make = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Row:
    """One row: ``make`` fills a dict, so that what was found before an error stays.

    Attributes:
        name: In the sheet.
        needs_s: It does not begin with less time left.
        limit_s: It is ended after so long.
        make: Fills the row.
    """

    name: str
    needs_s: float
    limit_s: float
    make: Make


class Sheet:
    """The rows made so far, on the disk after each."""

    def __init__(self, path: Path, until: float, resumed: bool) -> None:
        self.path, self.until = path, until
        self.began = time.monotonic()
        self.content: dict[str, Any] = {"rows": {}, "not_run": [], "restarts": 0}
        if resumed and path.exists():
            self.content = read_object(path)
            self.content["restarts"] += 1
            self.content["not_run"] = []

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, rounded(self.content))

    def run(self, rows: Sequence[Row], device: torch.device) -> bool:
        """Make rows in order; False where the GPU is lost and must be begun anew."""
        for row in rows:
            if row.name in self.content["rows"]:
                continue
            if self.left_s < row.needs_s:
                self.content["not_run"].append(row.name)
                print(f"{row.name}: not run, {self.left_s:.0f} s left", flush=True)
                self.write()
                continue
            self._make(row, device)
            self.write()
            if not is_alive(device):
                return False
        return True

    def _make(self, row: Row, device: torch.device) -> None:
        found: dict[str, Any] = {}
        self.content["rows"][row.name] = found
        began = time.monotonic()
        try:
            with alarm(min(row.limit_s, max(self.left_s + 5.0, 5.0))):
                row.make(found)
        except RowTooLongError:
            found["error"] = f"ended after {time.monotonic() - began:.0f} s"
        except Exception as error:  # noqa: BLE001 - an error is this row's result
            found["error"] = f"{type(error).__name__}: {str(error)[:600]}"
            found["where"] = own_frames(error)
            tidy(device, error)
        found["row_s"] = time.monotonic() - began
        tidy(device)
        print(f"{row.name}: {line_of(found)}", flush=True)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise RowTooLongError in the main thread after so many seconds."""

    def ring(*_: Any) -> None:
        raise RowTooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def is_alive(device: torch.device) -> bool:
    """Whether the GPU still answers: an illegal access leaves it dead for a process."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        return is_out_of_memory(error)
    return True


def tidy(device: torch.device, error: BaseException | None = None) -> None:
    """Let go of everything a row held."""
    with contextlib.suppress(RuntimeError):
        if error is not None:
            release(error, device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.empty_cache()


def own_frames(error: BaseException) -> list[str]:
    """The last places of our code that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "homolog" in f.filename or "benchmarks" in f.filename]
    places = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in own[-4:]]
    last = frames[-1] if frames else None
    if last is not None:
        places.append(f"{last.filename.rsplit('/', 2)[-1]}:{last.lineno} {last.name}")
    return places


def rounded(value: Any) -> Any:
    """JSON types with five digits; what is not a number becomes its name."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value


def line_of(found: Mapping[str, Any]) -> str:
    """A row on one line: numbers and words, tables left out."""
    parts = [
        f"{k} {v}"
        for k, v in rounded(dict(found)).items()
        if not isinstance(v, dict | list)
    ]
    return ", ".join(parts)[:700]
