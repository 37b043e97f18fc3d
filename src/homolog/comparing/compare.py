"""The whole comparison: check the plan, work on the cells, keep the table true."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from homolog.comparing.cells import Cells, other_networks
from homolog.comparing.plan import Plan
from homolog.comparing.report import write_report
from homolog.comparing.results import Results
from homolog.comparing.running import Runner, troubles_of
from homolog.distributed import choose_device
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Saved, Started
from homolog.memory import free_bytes
from homolog.store.store import Store
from homolog.words import metric_title
from homolog.writing import FileLock, make_folder

# What a run may take on a CPU where nobody says how many there are at a time.
_BYTES_A_RUN = 3 << 30


def compare(
    plan: Plan,
    store: Store,
    out: Path,
    *,
    device: str = "auto",
    parallel: int = 0,
    threads: int = 0,
) -> Job[dict[str, Any]]:
    """Bring every cell of a plan to its end and make the table.

    Interrupted at any moment and called again with the same plan it goes on where it
    was; what is finished is not repeated. A cell that fails is a finding.

    Args:
        plan: What is compared.
        store: With labelled cases.
        out: Gets ``rows.jsonl``, ``table.csv``, ``comparison.json``,
            ``report.html``, ``curves.svg`` and the runs: ``pretrained/``, ``cells/``
            (fine-tunings), ``scores/``.
        device: Where the runs compute.
        parallel: Runs at a time; 0: as many as cores and memory allow, one on a GPU.
        threads: CPU threads of each; 0: one, of a single run all cores.

    Returns:
        ``comparison.json``'s content, ``stopped``, ``out``, ``report``, ``table_csv``.

    Raises:
        UnusableInput: Test patients, numbers or encoders that cannot be used, or
            another comparison works in the folder.
        ConfigError: Settings that cannot be meant.
    """
    parallel, threads = _shares(parallel, threads, device)
    make_folder(out)
    lock = FileLock(out / "comparing.lock")
    if not lock.acquire():
        raise UnusableInput(f"another comparison works in {out}.")
    try:
        cells = Cells(plan, store, out, device=device, threads=threads)
        yield Started("checking the plan")
        cells.check()
        for text in (*cells.remarks(), *other_networks(cells)):
            yield Note(text, "warning")
        for text in opening(cells, parallel, threads):
            yield Note(text)
        results = Results(cells, out)
        runner = Runner(cells, parallel, results.add)
        stopped = yield from _with_table(runner, results)
        summary = results.write(troubles_of(runner.troubles))
        report = write_report(summary, out)
        yield Saved(str(report), "report")
    finally:
        lock.release()
    return {
        **summary, "stopped": stopped, "out": str(out), "report": str(report),
        "table_csv": str(out / "table.csv"),
    }  # fmt: skip


def _with_table(runner: Runner, results: Results) -> Job[bool]:
    """The work; whenever cells were done since, the table is made anew."""
    job, known = runner.work(), 0
    request = None
    try:
        while True:
            try:
                event = job.send(request)
            except StopIteration as end:
                stopped: bool = end.value
                return stopped
            if len(results.scores) > known:
                known = len(results.scores)
                write_report(results.write(troubles_of(runner.troubles)), results.out)
            request = yield event
    finally:
        job.close()


def _shares(parallel: int, threads: int, device: str) -> tuple[int, int]:
    """Runs at a time and threads of each."""
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else (os.cpu_count() or 1)
    )
    if choose_device(device).type == "cuda":
        return parallel or 1, threads or max(1, cores // (parallel or 1))
    threads = threads or max(1, cores // parallel if parallel else 1)
    room = max(1, free_bytes() // _BYTES_A_RUN)
    return parallel or min(room, max(1, cores // threads)), threads


def opening(cells: Cells, parallel: int, threads: int) -> list[str]:
    """What will be done, in sentences."""
    numbers = cells.plan.numbers
    arms = ", ".join(f"{a.name} ({a.what})" for a in cells.plan.arms)
    counts = ", ".join(str(n) for n in dict.fromkeys(c.patients for c in cells.all))
    tests = sum(len(parts.test) for parts in cells.parts)
    folds = f" in {numbers.folds} folds" if numbers.folds else ""
    told = [
        f"{len(cells.all)} cells: {arms}; labelled patients {counts}; "
        f"{numbers.seeds} seeds; tested on {tests} cases{folds}.",
        f"no labelled case beside those chooses weights: the last ones are kept; "
        f"{parallel} at a time, {threads} threads each.",
    ]
    if numbers.marks:
        watched = sum(len(parts.watched) for parts in cells.parts)
        told.append(
            f"{watched} test cases are looked at {numbers.marks} times on the way, for "
            "the curve over steps alone: they choose nothing."
        )
    return told


def table_lines(summary: dict[str, Any]) -> list[str]:
    """The table for people."""
    metric = metric_title(str(summary["metric"]))
    head = (
        f"{'arm':<18}{'patients':>9}{metric:>9}{'95 % interval':>17}"
        f"{'against':>12}{'difference':>12}{'95 % interval':>18}{'p (Holm)':>10}"
        f"{'better':>9}"
    )
    lines = [head]
    for e in summary["table"]:
        own = f"{e['arm'][:17]:<18}{e['patients']!s:>9}{_number(e['mean']):>9}"
        own += f"{_interval(e['low'], e['high']):>17}"
        if e["difference"] is not None:
            own += f"{e['against'][:11]:>12}{e['difference']:>+12.3f}"
            own += f"{_interval(e['difference_low'], e['difference_high'], '+'):>18}"
            own += f"{_number(e['p_holm']):>10}"
            better = "" if e["wins"] is None else f"{e['wins']} of {e['tests']}"
            own += f"{better:>9}"
        lines.append(own)
    done, total = summary["done"], summary["cells"]
    lines.append(
        f"{done} of {total} cells, {summary['test_patients']} test patients; intervals "
        "over test patients; positive differences are better."
    )
    for trouble in summary["failed"]:
        lines.append(f"no result: {trouble['cell']}: {trouble['sentence']}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return "-"
    return f"{low:{sign}.3f} to {high:{sign}.3f}"
