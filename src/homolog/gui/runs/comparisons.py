"""What the window knows of a comparison, and how it starts one; no Qt, no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homolog.comparing.plan import make_plan
from homolog.comparing.report import learning_curves
from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import Failed, Note, Progress, Started
from homolog.gui.shared.choices import ModelChoice, StoreChoice, quoted
from homolog.gui.shared.runs import state_words
from homolog.json_files import read_object
from homolog.runs.jobs import command_words
from homolog.runs.run import Run
from homolog.words import counted, duration, metric_title
from homolog.writing import is_locked

SUMMARY = "comparison.json"
_PIXELS = (440, 240)  # of the curves, in a narrow dock
HEAD = ("Begins with", "Labelled", "Score", "Difference", "Ahead")
_TAIL_BYTES = 1 << 16
_SHAPE = {
    "arms": list, "table": list, "metric": str, "done": int, "cells": int,
    "failed": list, "seeds": list, "test_patients": int, "task": str,
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A comparison as it is now.

    Attributes:
        folder: Of its table.
        state: As of a run; of one from the terminal ``running`` or ``finished``.
        done: Cells, of ``total``.
        item: What is being worked on.
        remaining_s: Seconds left; 0 unknown.
        metric: What the score is.
        rows: Texts of the table, by ``HEAD``.
        tips: All figures of each row.
        curves: The learning curves, an SVG drawing; empty before the first cell.
        notes: What else is to be known, sentences.
        is_run: Whether it can be stopped and resumed here.
    """

    folder: Path
    state: str
    done: int = 0
    total: int = 0
    item: str = ""
    remaining_s: float = 0.0
    metric: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    tips: tuple[str, ...] = ()
    curves: str = ""
    notes: tuple[str, ...] = ()
    is_run: bool = False

    @property
    def headline(self) -> str:
        """Name, state and what is left, in a line."""
        words = f"{self.folder.name}: {state_words(self.state)[2:]}"
        if self.total:
            words += f", {self.done} of {counted(self.total, 'cell')}"
        if self.state == "running" and self.remaining_s > 0:
            words += f", {duration(self.remaining_s)} left"
        return words

    @property
    def report(self) -> Path | None:
        """The page with everything, once there is one."""
        page = self.folder / "report.html"
        return page if page.is_file() else None


def read_comparison(folder: Path) -> Comparison:
    """A comparison from its folder: a run of the window, or one of the terminal.

    Raises:
        UnusableInput: The folder holds none, or its file is damaged.
    """
    is_run = (folder / "run.json").is_file()
    state, news, notes = _news(folder) if is_run else ("finished", None, [])
    summary: dict[str, Any] = {}
    if (folder / SUMMARY).is_file():
        summary = read_object(folder / SUMMARY, _SHAPE)
    elif not is_run:
        raise UnusableInput(
            f"{folder} holds no comparison ({SUMMARY} is written when its first cell "
            "is done)."
        )
    if not is_run and is_locked(folder / "comparing.lock"):
        state = "running"
    try:
        return Comparison(
            folder=folder, state=state, is_run=is_run,
            done=news.index if news else int(summary.get("done", 0)),
            total=news.total if news else int(summary.get("cells", 0)),
            item=news.item if news and state == "running" else "",
            remaining_s=news.remaining_s if news else 0.0,
            rows=tuple(_row(entry) for entry in summary.get("table", ())),
            tips=tuple(_tip(e, summary) for e in summary.get("table", ())),
            metric=str(summary.get("metric", "")),
            curves=learning_curves(summary, *_PIXELS) if summary else "",
            notes=(*notes, *_trouble(summary)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnusableInput(f"{folder / SUMMARY} is damaged ({error!r}).") from error


def _news(folder: Path) -> tuple[str, Progress | None, list[str]]:
    """State, last progress, and what went wrong of a run."""
    run = Run.open(folder)
    last: Progress | None = None
    notes: list[str] = []
    for _, event in run.journal.read(max(0, run.journal.size - _TAIL_BYTES)):
        if isinstance(event, Progress):
            last = event
        elif isinstance(event, Started):
            notes = []  # of an earlier session
        elif isinstance(event, Failed):
            notes.append(event.message)
        elif isinstance(event, Note) and event.level == "warning":
            notes.append(event.text)
    return str(run.state()), last, notes[-3:]


def _trouble(summary: Mapping[str, Any]) -> list[str]:
    return [
        f"No result: {t['cell']}: {t['sentence']}" for t in summary.get("failed", ())
    ]


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    gain, wins = entry["difference"], entry["wins"]
    return (
        str(entry["arm"]),
        str(entry["patients"]),
        "" if entry["mean"] is None else f"{entry['mean']:.3f}",
        "" if gain is None else f"{gain:+.3f}{_between(entry)}",
        "" if wins is None else f"{wins} of {entry['tests']}",
    )


def _between(entry: Mapping[str, Any]) -> str:
    low, high = entry["difference_low"], entry["difference_high"]
    return "" if low is None or high is None else f"\n{low:+.3f} to {high:+.3f}"


def _tip(entry: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """All figures of a row, in lines."""
    lines = [
        f"{entry['arm']}, {entry['patients']} labelled patients "
        f"({entry['cases']:g} scans), {counted(entry['seeds'], 'seed')}",
    ]
    if entry["low"] is not None:
        metric = metric_title(str(summary["metric"]))
        lines.append(
            f"{metric} {entry['mean']:.3f}, over test patients "
            f"{entry['low']:.3f} to {entry['high']:.3f} (95 %)"
        )
    if entry["difference"] is not None:
        line = f"{entry['difference']:+.3f} against {entry['against']}"
        lines.append(line + _between(entry).replace("\n", ", "))
    if entry["both_low"] is not None:
        lines.append(
            f"over patients and seeds {entry['both_low']:+.3f} to "
            f"{entry['both_high']:+.3f}"
        )
    if entry["p_holm"] is not None:
        how = "patients drawn anew" if summary.get("of_sets") else "Wilcoxon"
        lines.append(f"p {entry['p_holm']:.3g} ({how}, corrected by Holm)")
    lines += [f"{n}: {v:.3f}" for n, v in entry["classes"].items() if v is not None]
    return "\n".join(lines)


# Tasks that can be compared, until the engine has told its own names of them.
TASKS = {
    "segment": "Segmentation", "classify": "Classification", "detect": "Detection",
    "translate": "Image to image",
}  # fmt: skip
# What a scan must have to teach a task, and to be tested on.
_WANTS = {
    "segment": "a label map to learn or to test on",
    "classify": "a class to learn or to test on",
    "detect": "boxes (or a label map to make some of) to learn or to test on",
    "translate": (
        "several channels, of which the last is made from the others; a low dose is "
        "compared on the command line, with --set dose=20"
    ),
}


def teaching(store: StoreChoice, task: str) -> int:
    """How many scans of a store teach a task."""
    if task == "classify":
        return store.classed
    if task == "detect":
        return store.boxed or store.labelled
    if task == "translate":
        return store.cases if len(store.channels) > 1 else 0
    return store.labelled


@dataclass(frozen=True)
class CompareWish:
    """What a new comparison is asked for.

    Attributes:
        store: With scans that teach the task.
        methods: Pretrained by it, in order; ``scratch`` and ``carried`` too.
        encoders: Ready ones.
        patients: ``"1,2,5,all"``.
        seeds: How many.
        steps: Of each fine-tuning; 0: the recipe's.
        pretrain_steps: Of each pretraining; 0: the recipe's.
        test_patients: Drawn by the seed; 0: the store's test split.
        device: Where it computes.
        task: What is learnt.
    """

    store: StoreChoice | None
    methods: tuple[str, ...] = ()
    encoders: tuple[ModelChoice, ...] = field(default_factory=tuple)
    patients: str = "1,2,5,all"
    seeds: int = 3
    steps: int = 0
    pretrain_steps: int = 0
    test_patients: int = 0
    device: str = "auto"
    task: str = "segment"

    @property
    def stem(self) -> str:
        """What the run is called, without a number."""
        name = "store" if self.store is None else self.store.name
        return re.sub(r"[^A-Za-z0-9_]+", "-", f"compare-{name}").strip("-")[:80]

    def config(self) -> dict[str, Any]:
        """Of the run."""
        given = {
            "store": str(self.store.path.resolve()) if self.store else "",
            "task": None if self.task == "segment" else self.task,
            "methods": ",".join((*self.methods, *arm_names(self.encoders))),
            "patients": self.patients.replace(" ", ""),
            "seeds": self.seeds,
            "steps": self.steps or None,
            "pretrain_steps": self.pretrain_steps or None,
            "test_patients": self.test_patients or None,
            "device": self.device,
        }
        return {key: value for key, value in given.items() if value is not None}

    def command(self, folder: Path) -> str:
        """The command line that does the same."""
        words = command_words("compare", {**self.config(), "out": str(folder)})
        return quoted(words)

    def problem(self) -> str:
        """Why it cannot be started; empty when it can."""
        if self.store is None:
            return "Choose a store."
        if self.store.problem:
            return f"The store {self.store.name} cannot be used: {self.store.problem}"
        if not teaching(self.store, self.task):
            return f"No scan of {self.store.name} has {_WANTS[self.task]}."
        if "carried" in self.methods and self.task in ("classify", "translate"):
            return "Labels are carried as label maps, which teach no such task."
        if len(self.methods) + len(self.encoders) < 2:
            return "Tick at least two ways to begin, such as scratch and a method."
        odd = [e.name for e in self.encoders if set(str(e.path)) & {",", "="}]
        if odd:
            return f"The folder of {odd[0]} has a comma or = in its name: rename it."
        try:
            config = self.config()
            make_plan(
                {}, methods=config["methods"], patients=config["patients"],
                task=self.task,
            )  # fmt: skip
        except ConfigError as error:
            text = str(error)
            return text[:1].upper() + text[1:]
        return ""


def arm_names(encoders: Sequence[ModelChoice]) -> list[str]:
    """``NAME=RUN`` of ready encoders; names that a table can hold, each once."""
    found: dict[str, str] = {}
    for encoder in encoders:
        name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", encoder.name).strip("-.")[:30] or "own"
        unique, number = name, 1
        while unique in found:
            number += 1
            unique = f"{name}-{number}"
        found[unique] = str(encoder.path.resolve())
    return [f"{name}={path}" for name, path in found.items()]
