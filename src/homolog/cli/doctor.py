"""``homolog doctor``: is this machine fit, and what will be used?"""

from __future__ import annotations

import click

from homolog.cli._options import show


@click.command("doctor", short_help="Check this machine and installation.")
@click.option(
    "--json", "as_json", is_flag=True,
    help="Last line of standard output is one JSON object.",
)  # fmt: skip
def command(as_json: bool) -> int:
    """Check versions, device, precision, threads, disk, memory and display.

    Each check is made, not assumed: a training step is run on every device, and a file
    is written. Exit status 1 when something needed does not work.
    """
    from homolog.study.doctor import examine

    told = examine()
    lines = told.pop("lines")
    show(told, as_json, lines)
    return 1 if told["problems"] else 0
