"""Building a store from the window: what to ask the worker, what to tell meanwhile."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from homolog.config import ConfigError
from homolog.data.given_names import read_names
from homolog.errors import UnusableInput
from homolog.gui.data.control import count
from homolog.gui.files.opening import human_bytes


def build_config(
    sources: Sequence[Path],
    stores: Path,
    name: str,
    *,
    labels: str = "",
    spacing: str = "auto",
    own_spacing: str = "",
    names: str = "",
) -> dict[str, Any]:
    """The config of a ``prepare`` job.

    Args:
        sources: Scans and folders.
        stores: Folder of the stores.
        name: Of the new store.
        labels: Folder of label maps, may be empty.
        spacing: ``auto``, ``native`` or ``own``.
        own_spacing: ``1.5`` or ``3, 1, 1`` (z, y, x) in mm, for ``own``.
        names: What label values are called, ``1=liver, 2=spleen``; may be empty.

    Raises:
        UnusableInput: Something is missing or cannot be meant; the sentence says what.
    """
    if not sources:
        raise UnusableInput("Open or add scans first; there is nothing to build from.")
    name = name.strip()
    if not name or not re.fullmatch(r"[\w][\w .+-]*", name):
        raise UnusableInput(
            "Give the store a name of letters, digits, spaces, - and _ only."
        )
    out = stores / name
    # What a stopped build left has cases and no list of them yet: it goes on.
    unfinished = (out / "cases").is_dir() and not (out / "store.json").exists()
    if out.exists() and not unfinished:
        raise UnusableInput(f"A store {name!r} is there already; choose another name.")
    folders: list[str] = []
    if labels.strip():
        folder = Path(labels.strip()).expanduser().absolute()
        if not folder.exists():
            raise UnusableInput(f"There is no label folder {folder}.")
        folders.append(str(folder))
    wanted: Any = spacing
    if spacing == "own":
        wanted = parse_spacing(own_spacing)
    if trouble := names_problem(names):
        raise UnusableInput(trouble)
    return {
        "sources": [str(p.absolute()) for p in sources], "out": str(out.absolute()),
        "labels": folders, "spacing": wanted, "modality": None, "window_hu": None,
        "names": names, "seed": 0,
    }  # fmt: skip


def parse_spacing(text: str) -> list[float]:
    """One number or three (z, y, x), in mm.

    Raises:
        UnusableInput: Neither.
    """
    try:
        numbers = [float(t) for t in re.split(r"[,;x\s]+", text.strip()) if t]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(0.01 <= n <= 100 for n in numbers):
        raise UnusableInput(
            "Give the voxel size in mm as one number (1.5) or as three, z, y, x "
            "(3, 1, 1), each from 0.01 to 100."
        )
    return numbers


def names_problem(text: str) -> str:
    """Why label names cannot be meant; empty when they can."""
    try:
        read_names(text)
    except ConfigError as error:
        sentence = str(error)
        return sentence[0].upper() + sentence[1:]
    return ""


def free_name(stores: Path, base: str = "scans") -> str:
    """A store name that is not taken."""
    base = re.sub(r"[^\w.+-]+", "_", base).strip("._") or "scans"
    names = [base, *(f"{base}_{n}" for n in range(2, 1000))]
    return next((n for n in names if not (stores / n).exists()), base)


class Pace:
    """Rate and remaining time of counted work, by the clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._phase = clock, ""
        self._start, self._first = 0.0, 0

    def line(self, phase: str, index: int, total: int, remaining_s: float) -> str:
        """``Preparing 3 of 12, 2.1 scans/s, about 10 s left``."""
        now = self._clock()
        if phase != self._phase:
            self._phase, self._start, self._first = phase, now, index
        verb = {"look": "Looking for scans", "inspect": "Checking scan"}.get(
            phase, "Preparing scan"
        )
        if total <= 0:
            return f"{verb} ..."
        line = f"{verb} {min(index + 1, total)} of {total}"
        done, spent = index - self._first, now - self._start
        if done > 0 and spent > 0:
            rate = done / spent
            line += f", {rate:.1f}/s" if rate >= 1 else f", {1 / rate:.1f} s each"
            left = remaining_s or (total - index) / rate
            line += f", about {duration(left)} left"
        return line


def duration(seconds: float) -> str:
    """``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def result_line(result: Mapping[str, Any]) -> str:
    """What was built, in a sentence or three."""
    rejected = len(result.get("rejected", ()))
    line = (
        f"{count(result['cases'], 'scan')} prepared, {result['labelled']} with labels"
    )
    if rejected:
        line += f", {rejected} left out"
    size = result.get("bytes")
    line += f" ({human_bytes(size)})." if size else "."
    return " ".join([line, *result.get("explanation", ())])


def rejected_text(result: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """One line per scan that was left out, then the job's remarks."""
    lines = [f"{r['path']}: {r['reason']}" for r in result.get("rejected", ())]
    return "\n".join([*lines, *notes])


def fold_words(result: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """What can be unfolded: ``Show 9 left out and 3 remarks``; "" for nothing."""
    out, said = len(result.get("rejected", ())), len(notes)
    parts = [f"{out} left out"] if out else []
    parts += [count(said, "remark")] if said else []
    return f"Show {' and '.join(parts)}" if parts else ""
