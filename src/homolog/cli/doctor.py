"""``homolog doctor``: is this machine fit, and are these stores sound?"""

from __future__ import annotations

from pathlib import Path

import click

from homolog.cli._run import show


@click.command("doctor", short_help="Check this machine, or stores for damage.")
@click.argument(
    "stores", nargs=-1, metavar="[STORE...]", type=click.Path(path_type=Path)
)
@click.option(
    "--repair", is_flag=True,
    help="Make damaged cases of STORE anew from their scans, where these are there.",
)  # fmt: skip
@click.option(
    "--json", "as_json", is_flag=True,
    help="Last line of standard output is one JSON object.",
)  # fmt: skip
def command(stores: tuple[Path, ...], repair: bool, as_json: bool) -> int:
    """Check versions, device, precision, threads, disk, memory and display.

    Each check is made, not assumed: a training step is run on every device, and a file
    is written. Exit status 1 when something needed does not work.

    With STORE, every file of the store is read and compared with its checksum instead;
    what is damaged is named. Exit status 1 when damage is left.
    """
    from homolog.jobs.machine import examine, examine_stores

    if repair and not stores:
        raise click.UsageError("--repair needs a STORE to repair.")
    if not stores:
        told = examine()
        lines = told.pop("lines")
        show(told, as_json, lines)
        return 1 if told["problems"] else 0
    from homolog.cli._run import follow, with_result
    from homolog.events import Finished

    last = follow(with_result(examine_stores(stores, repair=repair)))
    assert isinstance(last, Finished)
    told = dict(last.result)
    lines = told.pop("lines")
    show(told, as_json, lines)
    return 1 if told["problems"] else 0
