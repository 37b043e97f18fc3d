"""The runs of a folder as a table, and what may be done with each; no Qt, no torch."""

from __future__ import annotations

import contextlib
import csv
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.errors import JobError
from homolog.events import Failed, Step, Stopped, Validated
from homolog.gui.shared.runs import Rounds, log_tail, saved_step, state_words
from homolog.runs import launch
from homolog.runs.run import Run, find_runs
from homolog.words import duration

LIVE = ("running", "paused")
_SCORE = re.compile(" at | around ")
COLUMNS = ("Run", "State", "Loss, best")
_SPARK_POINTS = 60
_LONGEST_LINE = 1 << 14
# A lock that is held, but whose worker was not heard of for this long.
_SILENT_S = 60.0
# "Stop now": so long a worker may save before it is ended.
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Row:
    """One run of the table.

    Attributes:
        folder: Of the run.
        name: Below the runs folder, e.g. ``study1/pretrain``.
        kind: ``pretrain``, ``finetune``, ``demo``...
        what: Method or task.
        state: homolog.runs.run.State, or ``damaged``.
        step: Done, of ``total``.
        remaining_s: Seconds left; 0 unknown.
        losses: (n,) sum of the losses, at most 60 of them, oldest first.
        best: Of its smoothed validations, in words, or empty.
        has_model: Whether a model lies in it.
        reason: Why it is damaged, failed or silent; one sentence.
    """

    folder: Path
    name: str
    kind: str = ""
    what: str = ""
    state: str = "damaged"
    step: int = 0
    total: int = 0
    remaining_s: float = 0.0
    losses: tuple[float, ...] = ()
    best: str = ""
    has_model: bool = False
    reason: str = ""
    created: float = 0.0

    @property
    def actions(self) -> frozenset[str]:
        """What may be done with it."""
        found = actions(self.state, self.has_model)
        # a comparison's runs have processes of their own, which would not wait
        return found - {"pause"} if self.kind == "compare" else found

    @property
    def cells(self) -> tuple[str, str, str]:
        """Texts of the columns, two lines each; the curve is drawn beside the last."""
        steps = f"{self.step}/{self.total}" if self.total else ""
        if self.state in LIVE and self.remaining_s > 0:
            steps += f", {duration(self.remaining_s)} left"
        loss = f"{self.losses[-1]:.3g}" if self.losses else ""
        return (
            f"{self.name}\n{self.kind} {self.what}",
            f"{state_words(self.state)}\n{steps}",
            f"{loss}\n{_SCORE.split(self.best)[0]}",
        )

    @property
    def tooltip(self) -> str:
        """All about it, for a hover and for screen readers."""
        lines = [
            f"{self.name}: {self.kind} {self.what}".strip(),
            f"{state_words(self.state)[2:]}, step {self.step} of {self.total}",
            str(self.folder),
        ]
        if self.losses:
            lines.insert(
                2, f"loss {self.losses[0]:.3g} at first, now {self.losses[-1]:.3g}"
            )
        if self.best:
            lines.insert(2, f"best {self.best}")
        if self.reason:
            lines.insert(2, self.reason)
        return "\n".join(lines)


def actions(state: str, has_model: bool) -> frozenset[str]:
    """Verbs for a state: follow, pause, go_on, stop, resume, use, report, log ..."""
    found = {"open", "log"}
    if state != "damaged":
        found.add("follow")
    if state == "running":
        found |= {"pause", "stop", "stop_now"}
    elif state == "paused":
        found |= {"go_on", "stop", "stop_now"}
    elif state in ("new", "stopped", "failed", "crashed"):
        found |= {"resume", "delete"}
    else:
        found.add("delete")
    if has_model:
        found |= {"use", "report"}
    return frozenset(found)


class RunList:
    """The table, read anew as often as it is looked at; unchanged runs cost little.

    Args:
        folder: The runs folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, tuple[Any, Row]] = {}
        self._rounds: dict[Path, tuple[int, Rounds]] = {}

    def read(self) -> list[Row]:
        """Every run below the folder, live ones first, then the newest."""
        rows = []
        root = self.folder.resolve()
        for run in find_runs(self.folder):
            rows.append(self._row(run, root))
        self._known = {
            row.folder: self._known[row.folder]
            for row in rows
            if row.folder in self._known
        }
        return sorted(rows, key=lambda row: (row.state not in LIVE, -row.created))

    def _row(self, run: Run, root: Path) -> Row:
        name = run.folder.name
        with contextlib.suppress(ValueError):
            name = run.folder.relative_to(root).as_posix()
        try:
            stamp = _stamp(run)
            known = self._known.get(run.folder)
            if known is not None and known[0] == stamp and not stamp[0]:
                return known[1]
            row = read_row(run, name, self._best_of(run))
        except Exception as error:  # noqa: BLE001 - one run never hides the others
            return Row(run.folder, name, reason=str(error) or type(error).__name__)
        self._known[run.folder] = (stamp, row)
        return row

    def _best_of(self, run: Run) -> str:
        """Best validation so far; only what was added to the journal is read."""
        place, rounds = self._rounds.get(run.folder, (0, Rounds()))
        size = run.journal.size
        if size < place:  # begun anew
            place, rounds = 0, Rounds()
        for _, event in run.journal.read(place, _is_validated):
            if isinstance(event, Validated):
                rounds.add(event)
        # A line that is still being written is met again next time.
        self._rounds[run.folder] = (max(0, size - _LONGEST_LINE), rounds)
        return rounds.words()


def read_row(run: Run, name: str, best: str = "") -> Row:
    """One run's line.

    Args:
        run: Any.
        name: What the table calls it.
        best: Its best validation, in words.

    Raises:
        UnusableInput: Its ``run.json`` is damaged.
    """
    spec, state, step = run.spec, str(run.state()), run.last_step()
    config = spec["config"]
    reason = ""
    if state in LIVE and (run.silence_s() or 0.0) > _SILENT_S:
        reason = f"its process was last heard of {duration(run.silence_s() or 0)} ago."
    elif state == "failed" and isinstance(last := run.journal.last(), Failed):
        reason = last.message
    return Row(
        folder=run.folder,
        name=name,
        kind=str(spec["kind"]),
        what=str(
            config.get("method") or config.get("methods") or config.get("task") or ""
        ),
        state=state,
        step=step.index if step else 0,
        total=step.total if step else 0,
        remaining_s=step.remaining_s if step else 0.0,
        losses=losses_of(run, step),
        best=best,
        has_model=(run.folder / "model" / "model.json").is_file(),
        reason=reason,
        created=float(spec.get("created", 0.0)),
    )


def losses_of(run: Run, step: Step | None = None) -> tuple[float, ...]:
    """Sum of the losses over the run, from ``metrics.csv``; at most 60 values.

    Columns are told apart by the last step: losses come first there.
    """
    step = step or run.last_step()
    if step is None:
        return ()
    names = list(step.losses)
    lines = _sampled_lines(run.folder / "metrics.csv")
    found = []
    with contextlib.suppress(csv.Error):
        for row in csv.DictReader(lines):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                found.append(sum(float(row[name]) for name in names))
    return tuple(v for v in found if v == v)


def go_on(folder: Path) -> None:
    """Let a paused run go on.

    Raises:
        JobError: Nobody works on it.
    """
    launch.unpause(Run.open(folder))


def pause(folder: Path) -> None:
    """Let a run wait between two steps.

    Raises:
        JobError: Nobody works on it.
    """
    launch.pause(Run.open(folder))


def ask_to_stop(folder: Path) -> None:
    """Stop and keep: the step is finished, state and model are saved."""
    run = Run.open(folder)
    if run.is_alive():
        run.ask("stop")


def stop_now(folder: Path) -> str:
    """End a run within seconds; its last saved state stays. Returns its state then.

    Blocks for some seconds: on a background thread only.
    """
    run = Run.open(folder)
    if not run.is_alive():
        return str(run.state())
    state = launch.stop(run, _PATIENCE_S, kill=True)
    lock = run.lock()
    if state == "crashed" and lock.acquire():
        # It was ended on purpose: the journal says so, lists do not cry wolf.
        try:
            run.journal.append(Stopped(saved_step(folder) or 0))
        finally:
            lock.release()
    return str(run.state())


def check_deletable(folder: Path, root: Path) -> None:
    """Raise unless the folder may go to the trash.

    Raises:
        JobError: It is being worked on, or lies outside the runs folder.
    """
    run = Run(folder.resolve())
    if run.is_alive():
        raise JobError(f"{folder.name} is being trained; stop it first.")
    if not run.folder.is_relative_to(root.resolve()):
        raise JobError(f"{folder} is not in the runs folder {root}.")


def read_log(folder: Path) -> str:
    """The end of a run's log, or a sentence that there is none."""
    text = log_tail(folder / "log.txt", 64 << 10).strip()
    return text or "The log is empty: no library complained."


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder that need not exist yet."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _stamp(run: Run) -> tuple[Any, ...]:
    """Changes whenever a row may have; the first entry says that somebody works."""
    times: list[Any] = [run.is_alive()]
    for name in ("run.json", "events.jsonl", "metrics.csv", "model"):
        try:
            status = (run.folder / name).stat()
            times.append((status.st_mtime_ns, status.st_size))
        except OSError:
            times.append(None)
    return tuple(times)


def _is_validated(line: bytes) -> bool:
    return line.startswith(b'{"event": "validated"')


def _sampled_lines(path: Path) -> list[str]:
    """Header and at most 60 whole lines of a table."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    head, body = lines[:1], lines[1:]
    if len(body) > _SPARK_POINTS:
        last = len(body) - 1
        body = [
            body[round(i * last / (_SPARK_POINTS - 1))] for i in range(_SPARK_POINTS)
        ]
    return head + body
