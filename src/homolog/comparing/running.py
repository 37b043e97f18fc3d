"""Works on the cells: so many runs at a time, each in a process of its own.

Everything that is known lies in the folders of the runs. Whoever kills this process
loses nothing: its workers end with it, with their state saved, and the next one looks
at the folders and goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from homolog.comparing.cells import Cell, Cells, Work
from homolog.config import ConfigError
from homolog.errors import JobError, UnusableInput
from homolog.events import Failed, Job, Note, Progress, Request
from homolog.runs import launch
from homolog.runs.run import Run

_POLL_S = 0.1
_NEWS_S = 5.0
_STOP_S = 30.0  # then they end by themselves, with the pipe of their parent
_MOST_TRIES = 3
_WORDS = {
    "pretrain": "pretraining", "propagate": "carrying labels",
    "carried": "fine-tuning on carried labels", "finetune": "fine-tuning",
    "evaluate": "scoring",
}  # fmt: skip


@dataclass(frozen=True)
class Trouble:
    """Why a cell has no row.

    Attributes:
        cell: Its title.
        kind: What failed: a stage of the cell's runs.
        folder: Of that run.
        sentence: What it said.
    """

    cell: str
    kind: str
    folder: str
    sentence: str


@dataclass
class _Going:
    """A run that is being worked on."""

    run: Run
    work: Work
    cell: Cell
    began: float
    adopted: bool = False


@dataclass
class Runner:
    """Brings all cells to their end, or to a finding.

    Args:
        cells: What there is to do.
        parallel: Runs at a time.
        done: Called with each cell as it is done; its scores lie on the disk then.

    Attributes:
        troubles: Cells without scores.
    """

    cells: Cells
    parallel: int
    done: Callable[[Cell], None]
    troubles: list[Trouble] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._going: dict[Path, _Going] = {}
        self._failed: dict[Path, str] = {}
        self._finished: set[Path] = set()
        self._tries: dict[Path, int] = {}
        self._took: dict[tuple[str, str], list[float]] = {}
        self._open: list[Cell] = list(self.cells.all)

    def work(self) -> Job[bool]:
        """All of it; returns whether it was stopped before the end."""
        told = 0.0
        try:
            while self._open:
                for text in self._look_round():
                    yield Note(text, "warning")
                self._watch()
                if time.monotonic() - told >= _NEWS_S or not self._open:
                    told = time.monotonic()
                    if (yield self._progress()) is Request.STOP:
                        return True
                time.sleep(_POLL_S if self._going else 0.0)
        finally:
            self._stop_all()
        return False

    def _look_round(self) -> list[str]:
        """Begin what can be begun; sentences on cells that failed."""
        texts = []
        for cell in list(self._open):
            try:
                work = self._next(cell)
                if work is None:
                    self.done(cell)  # may find its scores damaged
                    self._open.remove(cell)
                    continue
                if work.folder in self._failed:
                    raise JobError(self._failed[work.folder])
                if work.folder not in self._going and len(self._going) < self.parallel:
                    self._begin(cell, work)
            except (JobError, UnusableInput, ConfigError, OSError) as error:
                self._open.remove(cell)
                texts.append(self._give_up(cell, str(error)))
        return texts

    def _next(self, cell: Cell) -> Work | None:
        """The first run of a cell that is not finished."""
        works = self.cells.works(cell)
        return next((work for work in works if not self._is_finished(work)), None)

    def _is_finished(self, work: Work) -> bool:
        if work.folder in self._finished:
            return True
        if work.folder in self._going or not (work.folder / "run.json").is_file():
            return False
        run = Run.open(work.folder)
        if run.state() != "finished":
            return False
        self._finished.add(work.folder)
        took = seconds_of(run)
        if took:
            self._took.setdefault(_sort(work), []).append(took)
        return True

    def _begin(self, cell: Cell, work: Work) -> None:
        """Start a run, go on with one, or wait for one whose end is near."""
        if not (work.folder / "run.json").is_file():
            shutil.rmtree(work.folder, ignore_errors=True)  # killed as it was made
            Run.create(work.folder, work.kind, work.config)
        run = Run.open(work.folder)
        if not run.is_alive():
            try:
                launch.start(run, with_parent=True, threads=self.cells.threads)
            except JobError:  # on a busy machine it may only be late
                self._tries[work.folder] = self._tries.get(work.folder, 0) + 1
                if not run.is_alive() and self._tries[work.folder] >= _MOST_TRIES:
                    raise
                self._adopt(run, work, cell)
                return
            self._going[work.folder] = _Going(run, work, cell, time.monotonic())
            return
        self._adopt(run, work, cell)

    def _adopt(self, run: Run, work: Work, cell: Cell) -> None:
        """Wait for a run that somebody works on, or soon will; then look again."""
        going = _Going(run, work, cell, time.monotonic(), adopted=True)
        self._going[work.folder] = going

    def _watch(self) -> None:
        """Take note of runs that have ended."""
        for folder, going in list(self._going.items()):
            if going.run.is_alive():
                continue
            del self._going[folder]
            state = going.run.state()
            if state == "finished" or going.adopted:
                continue  # adopted: a worker of a killed comparison; it goes on now
            if state == "crashed":
                self._failed[folder] = launch.crash_sentence(going.run)
                continue
            last = going.run.journal.last()
            said = last.message if isinstance(last, Failed) else f"it was {state}."
            self._failed[folder] = said

    def _give_up(self, cell: Cell, sentence: str) -> str:
        try:
            work = self._next(cell)
        except (JobError, UnusableInput, ConfigError, OSError):
            work = None
        kind, folder = (work.stage, str(work.folder)) if work else ("finetune", "")
        self.troubles.append(Trouble(cell.title, kind, folder, sentence))
        return f"{cell.title}: {_WORDS[kind]} failed: {sentence}"

    def _stop_all(self) -> None:
        """Ask every run to stop, and wait until its state is saved."""
        for going in self._going.values():
            if going.run.is_alive():
                going.run.ask("stop")
        for going in self._going.values():
            launch.stop(going.run, _STOP_S)
        self._going.clear()

    def _progress(self) -> Progress:
        total = len(self.cells.all)
        parts = [_saying(going) for going in self._going.values()]
        try:
            left = self._remaining_s()
        except (JobError, UnusableInput, ConfigError, OSError):
            left = 0.0  # what a cell begins with is gone: its turn will tell
        return Progress("cells", total - len(self._open), total, "; ".join(parts), left)

    def _remaining_s(self) -> float:
        """Seconds the rest takes; 0 before anything can be said.

        By what runs of the same kind took, and by what running ones say of themselves.
        """
        for going in self._going.values():
            step = going.run.last_step()
            if step is not None and step.remaining_s:
                spent = time.monotonic() - going.began
                self._took.setdefault(_sort(going.work), [spent + step.remaining_s])
        known: dict[str, list[float]] = {}
        for (stage, _), values in self._took.items():
            known.setdefault(stage, []).extend(values)
        if "finetune" not in known:
            return 0.0
        total = 0.0
        counted: set[object] = set()
        for cell in self._open:
            for stage, key, arm in self._rest_of(cell):
                if key in counted:
                    continue
                counted.add(key)
                values = self._took.get((stage, arm)) or known.get(stage) or [0.0]
                now = self._going.get(key) if isinstance(key, Path) else None
                spent = time.monotonic() - now.began if now else 0.0
                total += max(0.0, mean(values) - spent)
        return total / self.parallel

    def _rest_of(self, cell: Cell) -> list[tuple[str, object, str]]:
        """Runs a cell still needs: stage, what tells them apart, whose."""
        stages, first = self.cells.stages(cell), None
        for stage, work in zip(stages, self.cells.works(cell), strict=True):
            if work.folder not in self._finished:
                first = (stage, work.folder)
                break
        if first is None:
            return []
        left = stages[stages.index(first[0]) + 1 :]
        whose = cell.arm.method if first[0] == "pretrain" else cell.arm.name
        rest: list[tuple[str, object, str]] = [(*first, whose)]
        return rest + [(stage, (cell.name, stage), cell.arm.name) for stage in left]


def _sort(work: Work) -> tuple[str, str]:
    """Runs that take as long as each other."""
    if work.kind == "pretrain":
        return work.stage, str(work.config["method"])
    return work.stage, work.folder.name.partition("-n")[0]


def _saying(going: _Going) -> str:
    text = f"{going.cell.title}: {_WORDS[going.work.stage]}"
    step = going.run.last_step()
    return f"{text} {step.index}/{step.total}" if step else text


def seconds_of(run: Run) -> float:
    """Seconds a finished run took; 0 where it was done in several sessions."""
    spec = run.spec
    if spec.get("sessions") != 1:
        return 0.0
    ended = float(spec.get("outcome", {}).get("ended", 0.0))
    return max(0.0, ended - float(spec.get("process", {}).get("began", ended)))


def troubles_of(troubles: Sequence[Trouble]) -> list[dict[str, str]]:
    """Findings as JSON types."""
    return [vars(trouble) for trouble in troubles]
