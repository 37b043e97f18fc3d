"""A run is a folder: what was asked for, what happened, what came out.

``run.json`` (kind, resolved configuration, seed, versions, process, outcome),
``events.jsonl``, ``metrics.csv``, ``log.txt``, ``control`` (stop, pause, resume),
``left_out`` (what of its list is not wanted any more),
``heartbeat``, ``lock``, ``checkpoints/``, ``model/``. Any process may read it, and ask
it to stop; the one that holds the lock works on it. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

from homolog import __version__
from homolog.errors import UnusableInput
from homolog.events import (
    Event,
    Failed,
    Finished,
    Saved,
    Started,
    Step,
    Stopped,
    from_json,
    to_json,
)
from homolog.json_files import object_or_none, read_object
from homolog.writing import (
    FileLock,
    flush,
    is_locked,
    make_folder,
    write_json,
    write_text,
)

# ``events.jsonl``: one event per line, appended whole, readable while it grows.


# Fields whose numbers may be missing (a metric that could not be measured).
_NUMBERS = ("losses", "monitors", "metrics")


class Journal:
    """The events of a run, over all its sessions.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._path.stat().st_size if self._path.exists() else 0

    def append(self, event: Event, *, sync: bool = False) -> None:
        """Write one event as one line.

        Args:
            event: What happened.
            sync: Wait until it is on the disk.
        """
        line = json.dumps(_finite(to_json(event)), allow_nan=False) + "\n"
        if self._ends_torn():  # a killed session's half line ends here
            line = "\n" + line
        with self._path.open("ab") as file:
            file.write(line.encode())
            if sync:
                flush(file)

    def read(
        self, start: int = 0, wanted: Callable[[bytes], bool] | None = None
    ) -> Iterator[tuple[int, Event]]:
        """Whole lines from a byte offset: (offset after it, event).

        A last line without its end is left for later; lines that are no event (torn by
        a kill, written by a newer version) are passed over.

        Args:
            start: Offset of the first byte.
            wanted: Asked with each raw line; those it does not want are not parsed,
                which makes hours of steps quick to pass.
        """
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                if wanted is not None and not wanted(line):
                    continue
                event = _parsed(line)
                if event is not None:
                    yield start, event

    def last(self) -> Event | None:
        """The newest event, read from the end."""
        size, reach = self.size, 1 << 14
        while True:
            begin = max(0, size - reach)
            found = [event for _, event in self.read(begin)]
            if found:
                return found[-1]
            if begin == 0:
                return None
            reach *= 8

    def _ends_torn(self) -> bool:
        if not self.size:
            return False
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"


def _parsed(line: bytes) -> Event | None:
    try:
        data: dict[str, Any] = json.loads(line)
        for name in _NUMBERS:
            if isinstance(data.get(name), dict):
                data[name] = {
                    k: math.nan if v is None else v for k, v in data[name].items()
                }
        return from_json(data)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _finite(value: Any) -> Any:
    """NaN and infinity become null: the file stays JSON for every reader."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


State: TypeAlias = Literal[
    "new", "running", "paused", "stopped", "finished", "failed", "crashed"
]
Wish: TypeAlias = Literal["stop", "pause", "resume"]

_SPEC, _LEFT_OUT = "run.json", "left_out"
_FORMAT = 1
_SHAPE = {
    "kind": str, "config": dict, "format?": int, "created?": float, "sessions?": int,
    "session_offset?": int, "processes?": int, "versions?": dict,
    "process?": {"pid?": int, "host?": str, "began?": float},
    "outcome?": {"state?": str, "error_kind?": str, "result?": dict},
}  # fmt: skip
_LIBRARIES = ("torch", "monai", "numpy", "safetensors", "SimpleITK", "blosc2")
_OWN_FILES = (
    _SPEC, "events.jsonl", "metrics.csv", "log.txt", "control", "heartbeat", "lock",
    "plan.json", "resolved.json",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        folder: Absolute path.
    """

    folder: Path

    @classmethod
    def create(cls, folder: str | Path, kind: str, config: Mapping[str, Any]) -> Run:
        """Begin a run in a new or empty folder.

        A former run there is replaced only if it never saved anything.

        Raises:
            UnusableInput: The folder holds a run worth keeping, or other files.
        """
        run = cls(Path(folder).resolve())
        run._make_room()
        make_folder(run.folder)
        content = {
            "format": _FORMAT,
            "kind": kind,
            **_said(config),
            "created": time.time(),
            "versions": _versions(),
            "sessions": 0,
            "outcome": {},
        }
        run._write_spec(content)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """An existing run.

        Raises:
            UnusableInput: There is none, or its ``run.json`` is damaged.
        """
        run = cls(Path(folder).resolve())
        if not (run.folder / _SPEC).is_file():
            raise UnusableInput(f"expected a run, {folder} has no {_SPEC}.")
        _ = run.spec
        return run

    @property
    def spec(self) -> dict[str, Any]:
        """``run.json``, read anew."""
        path = self.folder / _SPEC
        try:
            content = read_object(path, _SHAPE)
        except FileNotFoundError as error:
            raise UnusableInput(f"expected a run, {self.folder} has no {_SPEC}.") from (
                error
            )
        if content.get("format", _FORMAT) > _FORMAT:
            raise UnusableInput(
                f"{path} has format {content['format']}, this version of homolog reads "
                f"{_FORMAT}; it is of a newer version."
            )
        return content

    @property
    def journal(self) -> Journal:
        """Its events."""
        return Journal(self.folder / "events.jsonl")

    @property
    def log(self) -> Path:
        """What libraries printed, and tracebacks."""
        return self.folder / "log.txt"

    def lock(self) -> FileLock:
        """The right to work on it; not yet taken."""
        return FileLock(self.folder / "lock")

    def is_alive(self) -> bool:
        """Whether a living process works on it, on whatever terms it was started."""
        return is_locked(self.folder / "lock")

    def state(self) -> State:
        """What is true now, also after a crash or a power cut.

        A run whose process died without a last word is ``crashed``; its checkpoints can
        be resumed like those of a stopped one.
        """
        if self.is_alive():
            return "paused" if self.wish() == "pause" else "running"
        last = self.journal.last()
        if isinstance(last, Finished):
            return "finished"
        if isinstance(last, Stopped):
            return "stopped"
        if isinstance(last, Failed):
            return "failed"
        return "crashed" if self.spec.get("sessions") else "new"

    def ask(self, wish: Wish) -> None:
        """Leave a wish for whoever works on it; read between two steps."""
        write_text(self.folder / "control", wish)

    def wish(self) -> str:
        """The wish that was left, or empty."""
        try:
            return (self.folder / "control").read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return ""

    def forget_wish(self) -> None:
        """Nothing is wished any more."""
        (self.folder / "control").unlink(missing_ok=True)

    def leave_out(self, items: Iterable[str]) -> None:
        """Ask a job that goes through a list not to do these any more.

        Args:
            items: As the job tells them; those of earlier calls stay left out.
        """
        kept = left_out(self.folder) | set(items)
        content = {"items": sorted(kept)}
        write_json(self.folder / _LEFT_OUT, content, sync=False)

    def last_step(self) -> Step | None:
        """The newest reported step."""
        found = None
        for _, event in self.journal.read(max(0, self.journal.size - (1 << 16))):
            found = event if isinstance(event, Step) else found
        return found

    def pid(self) -> int:
        """Process of the present or last session; 0 before the first."""
        return int(self.spec.get("process", {}).get("pid", 0))

    def silence_s(self) -> float | None:
        """Seconds since its process was last heard of; None when never."""
        try:
            return max(0.0, time.time() - (self.folder / "heartbeat").stat().st_mtime)
        except OSError:
            return None

    def processes(self) -> int:
        """How many work on it together; 1 before the first session."""
        told = self.spec.get("processes")
        if told is None:  # runs of earlier versions told it as they began to train
            for _, event in self.journal.read(0, _is_started):
                if isinstance(event, Started):
                    told = event.detail.get("processes", told)
        return told if isinstance(told, int) else 1

    def check_checkpoints(self) -> None:
        """Raise where a state that was saved is there no more.

        Raises:
            UnusableInput: The journal tells of a checkpoint, but none is there;
                resuming would begin again at step 0.
        """
        if self.spec["kind"] == "demo":  # its trainings lie in folders below
            return
        last = ""
        for _, event in self.journal.read(0, _is_saved):
            if isinstance(event, Saved) and event.what == "checkpoint":
                last = event.path.replace("\\", "/").rpartition("/")[2]
        folder = self.folder / "checkpoints"
        if last and not any(p.is_dir() for p in folder.glob("step_*")):
            raise UnusableInput(
                f"the run {self.folder} saved its state ({last}), but {folder} is gone "
                "or empty: put it back to resume, or begin anew in another folder; "
                "here it would start again at step 0."
            )

    def begin_session(self, processes: int = 1) -> None:
        """Called by the worker that holds the lock."""
        self.forget_wish()
        self.beat()
        content = self.spec
        content["processes"] = processes
        content["sessions"] = int(content.get("sessions", 0)) + 1
        content["session_offset"] = self.journal.size
        content["outcome"] = {}
        content["process"] = {
            "pid": os.getpid(),
            "host": platform.node(),
            "began": time.time(),
        }
        self._write_spec(content)

    def settle(self, config: Mapping[str, Any]) -> None:
        """Replace a request by the complete configuration it stands for.

        Called by the worker before the first step: whoever resumes takes this one.
        """
        content = self.spec
        content["request"] = content["config"]
        content |= _said(config)
        self._write_spec(content)

    def end_session(self, outcome: Mapping[str, Any]) -> None:
        """Note how the session ended: ``state``, ``result`` or ``error_kind``."""
        content = self.spec
        content["outcome"] = {**outcome, "ended": time.time()}
        self._write_spec(content)
        self.forget_wish()

    def beat(self) -> None:
        """Say that the worker lives."""
        (self.folder / "heartbeat").touch()

    def _make_room(self) -> None:
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise UnusableInput(f"--out must be a folder, {self.folder} is a file.")
        inside = {p.name for p in self.folder.iterdir()}
        if not inside:
            return
        if _SPEC not in inside:
            raise UnusableInput(
                f"the folder {self.folder} is not empty and holds no run; choose "
                "another --out."
            )
        if self.is_alive() or {"checkpoints", "model"} & inside:
            raise UnusableInput(
                f"the run {self.folder} exists ({self.state()}); continue it with "
                f"homolog runs resume {self.folder}, or choose another --out."
            )
        for name in _OWN_FILES:
            (self.folder / name).unlink(missing_ok=True)
        for name in ("best", "previews"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _write_spec(self, content: Mapping[str, Any]) -> None:
        write_json(self.folder / _SPEC, content)


def find_runs(folder: str | Path, depth: int = 3) -> Iterator[Run]:
    """Every run in a folder and below, by path; nothing inside a run is searched."""
    here = Path(folder)
    try:
        if (here / _SPEC).is_file():
            yield Run(here.resolve())
            return
        if depth <= 0 or not here.is_dir():
            return
        names = sorted(here.iterdir())
    except OSError:  # a folder that may not be read hides no other
        return
    for inside in names:
        if not inside.name.startswith("."):
            yield from find_runs(inside, depth - 1)


def left_out(folder: Path) -> frozenset[str]:
    """What ``Run.leave_out`` was told for the run of a folder; quick, never raises."""
    told = object_or_none(Path(folder) / _LEFT_OUT) or {}
    items = told.get("items")
    return frozenset(map(str, items)) if isinstance(items, list) else frozenset()


def ended(event: Event) -> bool:
    """Whether nothing follows this event in its session."""
    return isinstance(event, Finished | Stopped | Failed)


def _is_started(line: bytes) -> bool:
    return line.startswith(b'{"event": "started"')


def _is_saved(line: bytes) -> bool:
    return line.startswith(b'{"event": "saved"')


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``run.json`` tells of a configuration."""
    return {
        "config": dict(config),
        "seed": config.get("seed", 0),
        "store_hash": config.get("store_hash", config.get("store_hashes", "")),
    }


def _versions() -> dict[str, str]:
    found = {"homolog": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
