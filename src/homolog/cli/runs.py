"""``homolog runs``: list, follow, stop, pause and resume trainings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homolog.cli._run import json_option, show

if TYPE_CHECKING:
    from homolog.runs.run import Run


_RUN = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))


@click.group("runs", short_help="List, show, follow, stop, pause, resume runs.")
def command() -> None:
    """Look after trainings, from any terminal.

    \b
    homolog runs list runs            every run below a folder
    homolog runs follow runs/pre      its events, live; Ctrl-C leaves it running
    homolog runs stop runs/pre        stop between two steps, state and model saved
    homolog runs resume runs/pre      go on exactly where it stopped
    torchrun --nproc-per-node 2 -m homolog.cli runs resume runs/pre
                                      the same for one that two processes train
    """  # noqa: D301 - click reads the backspace


@command.command("list")
@click.argument("folder", default=".", metavar="[DIR]", type=click.Path(path_type=Path))
@json_option
def list_runs(folder: Path, as_json: bool) -> None:
    """List the runs in DIR and below: state, kind, steps, losses."""
    from homolog.runs.run import find_runs

    if not folder.is_dir():
        raise FileNotFoundError(2, "No such folder", str(folder))
    rows = [_row(run) for run in find_runs(folder)]
    width = max((len(row["run"]) for row in rows), default=0)
    lines = [_line(row, width) for row in rows]
    show({"runs": rows}, as_json, lines or [f"no runs in {folder}"])


@command.command("show")
@_RUN
@json_option
def show_run(folder: Path, as_json: bool) -> None:
    """Tell all about RUN: state, settings, last losses, what it wrote."""
    from homolog.runs.launch import crash_sentence
    from homolog.runs.run import Run

    run = Run.open(folder)
    row, spec = _row(run), run.spec
    lines = [_line(row, 0)]
    if row["state"] == "crashed":
        lines.append(crash_sentence(run))
    lines += [f"{key}: {_short(value)}" for key, value in spec["config"].items()]
    silent = run.silence_s()
    if silent is not None:
        lines.append(f"last heard of {silent:.0f} s ago, process {run.pid()}")
    show({**row, "spec": spec}, as_json, lines)


@command.command("follow")
@_RUN
@click.option("--all", "whole", is_flag=True, help="From its very beginning.")
@json_option
def follow_run(folder: Path, whole: bool, as_json: bool) -> int:
    """Show the events of RUN as they come; Ctrl-C leaves it running."""
    from homolog.cli._run import conclude, show_events
    from homolog.runs import launch
    from homolog.runs.run import Run

    run = Run.open(folder)
    if run.state() == "new":
        show(_row(run), as_json, [f"{run.folder} has not begun"])
        return 0
    try:
        last = show_events(launch.follow(run, whole=whole))
    except KeyboardInterrupt:
        show(_row(run), as_json, ["it goes on in the background"])
        return 0
    return conclude(run, last, as_json)


@command.command("stop")
@_RUN
@click.option(
    "--timeout", "timeout_s", default=120.0, show_default=True,
    type=click.FloatRange(0), help="Seconds to wait for the step at hand.",
)  # fmt: skip
@click.option("--kill", is_flag=True, help="Kill it when it does not stop in time.")
@json_option
def stop_run(folder: Path, timeout_s: float, kill: bool, as_json: bool) -> int:
    """Stop RUN between two steps; its state and the model so far are saved."""
    from homolog.cli._run import continue_words, kept_words
    from homolog.errors import JobError
    from homolog.runs import launch
    from homolog.runs.run import Run

    run = Run.open(folder)
    was = run.state()
    state = launch.stop(run, timeout_s, kill=kill)
    if was not in ("running", "paused"):
        show(_row(run), as_json, [f"nothing to stop: {run.folder} is {state}"])
    elif state in ("running", "paused"):
        raise JobError(
            f"{run.folder} did not stop within {timeout_s:.0f} s; wait, or add --kill."
        )
    else:
        lines = [f"{state}: {run.folder}"]
        if state == "stopped":
            result = run.spec.get("outcome", {}).get("result", {})
            lines += [kept_words(result)] if "steps" in result else []
            lines.append(continue_words(run))
        show(_row(run), as_json, lines)
    return 0


@command.command("pause")
@_RUN
@json_option
def pause_run(folder: Path, as_json: bool) -> None:
    """Let RUN wait between two steps; it keeps its memory and its device."""
    from homolog.runs import launch
    from homolog.runs.run import Run

    run = Run.open(folder)
    launch.pause(run)
    show(_row(run), as_json, [f"paused; go on with: homolog runs resume {folder}"])


@command.command("resume")
@_RUN
@click.option("--background", is_flag=True, help="Return at once.")
@click.option(
    "--outside", is_flag=True,
    help="Let it write outside RUN, where its run.json says; for runs that you made.",
)  # fmt: skip
@json_option
def resume_run(folder: Path, background: bool, outside: bool, as_json: bool) -> int:
    """Let a paused RUN go on, or continue a stopped, failed or crashed one exactly."""
    from homolog.cli._run import in_background, in_foreground, many_processes, together
    from homolog.errors import UnusableInput
    from homolog.runs import launch
    from homolog.runs.run import Run

    run = Run.open(folder)
    if (processes := many_processes()) > 1:
        if background:
            raise UnusableInput("--background does not go together with torchrun.")

        def begin() -> Run:
            launch.check_resumable(run, processes)
            return run

        return together(begin, str(run.spec["config"].get("device", "auto")), as_json)
    if run.state() == "paused":
        launch.unpause(run)
        show(_row(run), as_json, [f"going on: {run.folder}"])
        return 0
    launch.check_resumable(run)
    go_on = in_background if background else in_foreground
    return go_on(run, as_json, outside=outside)


def _row(run: Run) -> dict[str, Any]:
    """What a list shows of a run; a damaged one is shown as such."""
    try:
        return _sound_row(run)
    except Exception as error:
        reason = str(error) or type(error).__name__
        return {"run": str(run.folder), "state": "damaged", "reason": reason}


def _sound_row(run: Run) -> dict[str, Any]:
    spec = run.spec
    config, step = spec["config"], run.last_step()
    return {
        "run": str(run.folder),
        "state": run.state(),
        "kind": spec["kind"],
        "what": str(config.get("method") or config.get("task") or ""),
        "step": step.index if step else 0,
        "total": step.total if step else 0,
        "losses": step.losses if step else {},
        "remaining_s": step.remaining_s if step else 0.0,
        "pid": run.pid(),
        "result": spec.get("outcome", {}).get("result", {}),
    }


def _line(row: dict[str, Any], width: int) -> str:
    if row["state"] == "damaged":
        return f"{row['run']:<{width}}  damaged   {row['reason']}"
    losses = "  ".join(f"{k} {v:.4g}" for k, v in row["losses"].items())
    steps = f"{row['step']}/{row['total']}" if row["total"] else "-"
    return (
        f"{row['run']:<{width}}  {row['state']:<9} {row['kind']} {row['what']}  "
        f"{steps}  {losses}"
    ).rstrip()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
