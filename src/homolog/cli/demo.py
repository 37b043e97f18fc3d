"""``homolog demo``: the whole path on built-in patients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from homolog.cli._run import common, show


@click.command("demo", short_help="The whole path on built-in data, with a report.")
@click.option(
    "--out",
    default=None,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of everything it makes; a stopped demo is continued.  "
    "[default: homolog-demo, or the next free number]",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the demo, e.g. patients=8 or pretrain_minutes=5.",
)
@common
def command(
    out: Path | None,
    assignments: tuple[str, ...],
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Make patients, learn without labels, label a little, compare, write a report.

    No network and no data are needed; on two cores it takes under five minutes. The
    patients are procedural (CT-like), with known labels and corresponding points. The
    encoder it leaves can be used by: homolog similarity, match, finetune.
    """
    from homolog.cli._run import conclude, follow, stop_on_interrupt
    from homolog.config import from_dict, parse_assignments, to_dict
    from homolog.demo.demo import DemoConfig, table_lines
    from homolog.events import Finished
    from homolog.runs.worker import execute

    settings = {**parse_assignments(assignments), "seed": seed, "device": device}
    config = to_dict(from_dict(DemoConfig, settings, where="demo"))
    run = begin(out, config)
    with stop_on_interrupt() as flag:
        last = follow(execute(run, flag))
    if not isinstance(last, Finished):
        return conclude(run, last, as_json)
    result: dict[str, Any] = {"out": str(run.folder), **last.result}
    lines = [
        *table_lines(result),
        f"{result['tests']} test patients, {result['labelled']} labelled ones learnt "
        f"from, {result['seconds']['total']:.0f} s",
        f"report: {result['report']}",
    ]
    show(result, as_json, lines)
    return 0


def begin(out: Path | None, config: dict[str, Any]) -> Any:
    """A new run, or the stopped one in that folder."""
    from homolog.errors import UnusableInput
    from homolog.runs.run import Run

    if out is None:
        names = ["homolog-demo", *(f"homolog-demo-{i}" for i in range(2, 1000))]
        out = next(Path(n) for n in names if not Path(n).exists())
    if not (out / "run.json").exists():
        return Run.create(out, "demo", config)
    run = Run.open(out)
    state = run.state()
    if run.spec["kind"] != "demo" or state in ("running", "paused", "finished"):
        raise UnusableInput(
            f"{out} holds a {run.spec['kind']} run that is {state}; "
            "choose another --out."
        )
    return run
