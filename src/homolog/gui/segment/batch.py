"""A batch of scans to segment, and what became of each; no Qt, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from homolog.events import Event, Note, Progress, Saved, Started
from homolog.gui.segment.results import (
    short_text,
)
from homolog.gui.shared.choices import ModelChoice, misfit
from homolog.scans.dicom import is_series_path
from homolog.scans.files import scan_stem
from homolog.words import duration

# Modality and voxel size (z, y, x) in mm.
Facts: TypeAlias = tuple[str, tuple[float, float, float]]

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
_SIGNS = {WAITING: "", RUNNING: "▶ ", DONE: "✓ ", FAILED: "⚠ "}
_FLAG_HINT = re.compile(r"; if [^;]*, say --[^;]*\.")


@dataclass
class BatchItem:
    """One scan of a batch.

    Attributes:
        scan: File, DICOM folder or series.
        state: ``waiting``, ``running``, ``done`` or ``failed``.
        words: What is told beside its name.
        result: Label map written; None before.
        volumes_ml: Of each class, by name.
        told: What a classifier told of it; empty before.
        note: How it differs from the scans the model learnt from; empty when alike.
    """

    scan: Path
    state: str = WAITING
    words: str = ""
    result: Path | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def name(self) -> str:
        """For the list; DICOM folders, often all of one name, with their parent."""
        path = self.scan.parent if is_series_path(self.scan) else self.scan
        return f"{path.parent.name}/{path.name}" if path.is_dir() else path.name

    @property
    def line(self) -> str:
        """``✓ CT_03.nii.gz: saved as CT_03.nii.gz``."""
        if self.state == WAITING and not self.words and self.note:
            return f"⚠ {self.name}: {self.note}"
        told = f": {self.words}" if self.words else ""
        return f"{_SIGNS[self.state]}{self.name}{told}"


class Batch:
    """Scans in the order they were added, each with what became of it."""

    def __init__(self) -> None:
        self.items: list[BatchItem] = []
        self.done_word = "segmented"
        self._now: list[BatchItem] = []

    def add(self, scans: Iterable[Path]) -> int:
        """Add scans that are not yet in the list; how many were new."""
        known = {item.scan for item in self.items}
        fresh = [p for p in dict.fromkeys(scans) if p not in known]
        self.items += [BatchItem(path) for path in fresh]
        return len(fresh)

    def advise(
        self,
        model: ModelChoice | None,
        facts: Mapping[Path, Facts],
        modality: str | None = None,
    ) -> None:
        """Note which scans are unlike those the model learnt from.

        Args:
            model: The chosen one.
            facts: What the scans' headers tell.
            modality: What the user takes all scans for, whatever their files say.
        """
        for item in self.items:
            item.note = ""
            if model is not None and item.scan in facts:
                told, spacing = facts[item.scan]
                kind = modality or told
                odd = misfit(model, "This scan", kind, spacing, asks=False)
                item.note = " ".join(odd)

    def remove(self, numbers: Iterable[int]) -> None:
        """Take scans out of the list."""
        gone = set(numbers)
        self.items = [item for i, item in enumerate(self.items) if i not in gone]

    @property
    def open(self) -> list[BatchItem]:
        """Scans not yet done; failed ones are tried again."""
        return [item for item in self.items if item.state != DONE]

    def next_round(self) -> list[Path]:
        """Waiting scans for one worker; no two whose results would share a name."""
        taken: set[str] = set()
        self._now = []
        for item in self.items:
            name = scan_stem(item.scan).lower()
            if item.state == WAITING and name not in taken:
                taken.add(name)
                self._now.append(item)
        return [item.scan for item in self._now]

    def restart(self) -> None:
        """Failed and unfinished scans wait again."""
        for item in self.open:
            item.state, item.words = WAITING, ""

    def begin_anew(self) -> None:
        """All scans wait: another model answers."""
        for item in self.items:
            item.state, item.words, item.result = WAITING, "", None
            item.told, item.volumes_ml = {}, {}

    def tell(self, event: Event) -> BatchItem | None:
        """Take one piece of news of the worker; the scan it is about.

        After a Saved, the caller moves the file and calls ``saved``.
        """
        current = self.current
        if isinstance(event, Progress) and event.phase == "scans":
            if event.index >= len(self._now):
                return None
            for before in self._now[: event.index]:
                if before.state == RUNNING:
                    before.words = "done"  # a classifier's answers come together
            item = self._now[event.index]
            if item.state == WAITING:
                item.state, item.words = RUNNING, "reading..."
            return item
        if current is None:
            return None
        if isinstance(event, Progress | Started) and event.total:
            done = event.index if isinstance(event, Progress) else 0
            left = getattr(event, "remaining_s", 0.0)
            more = f", {duration(left)} left" if left > 0 else ""
            current.words = f"{100 * done // event.total} %{more}"
        elif isinstance(event, Note) and event.text.startswith(f"{current.scan}: "):
            current.state = FAILED
            current.words = reason_text(event.text.removeprefix(f"{current.scan}: "))
        elif isinstance(event, Saved) and event.what == "labels":
            current.state, current.words = DONE, "saving..."
        return current

    @property
    def current(self) -> BatchItem | None:
        """The scan being worked on."""
        return next((i for i in reversed(self._now) if i.state == RUNNING), None)

    def saved(self, item: BatchItem, path: Path) -> None:
        """A result lies at its final place."""
        item.state, item.result = DONE, path
        item.words = f"saved as {path.name}"

    def finish(self, result: Mapping[str, Any]) -> None:
        """The worker's result: volumes, and reasons of those that failed."""
        by_scan = {str(item.scan): item for item in self._now}
        for entry in result.get("predicted", ()):
            item = by_scan.get(str(entry["scan"]))
            if item is None:
                continue
            item.volumes_ml = dict(entry.get("volumes_ml") or {})
            if "chances" in entry:
                item.told, item.state = dict(entry), DONE
                item.words = short_text(entry)
        for entry in result.get("failed", ()):
            item = by_scan.get(str(entry["scan"]))
            if item is not None:
                item.state, item.words = FAILED, reason_text(str(entry["reason"]))
        self.break_off("")

    def break_off(self, reason: str) -> None:
        """The worker is gone: what it had not finished waits, or failed with a reason.

        Args:
            reason: Of a crash; empty when it was stopped.
        """
        for item in self._now:
            if item.state == RUNNING:
                item.state = FAILED if reason else WAITING
                item.words = reason_text(reason) if reason else "stopped"
            elif item.state == WAITING and reason:
                item.state, item.words = FAILED, reason_text(reason)
        self._now = []

    @property
    def summary(self) -> str:
        """``3 of 4 segmented, 1 could not be``."""
        done = sum(item.state == DONE for item in self.items)
        bad = sum(item.state == FAILED for item in self.items)
        text = f"{done} of {len(self.items)} {self.done_word}"
        return text + (f", {bad} could not be" if bad else "")


def reason_text(text: str) -> str:
    """A reason for people at a window: no flags of the command line."""
    text = _FLAG_HINT.sub(".", text.strip())
    return text[:1].upper() + text[1:]
