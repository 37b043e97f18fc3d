"""``homolog align``: which places of a store's scans match, kept as a table."""

from __future__ import annotations

from pathlib import Path

import click

from homolog.cli._run import common, show


@click.command("align", short_help="Find matching places of a store's scans.")
@click.argument("store", metavar="STORE", type=click.Path(path_type=Path))
@click.option(
    "--encoder",
    required=True,
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="A run of anatomical_embedding; any other encoder works too.",
)
@click.option(
    "--points",
    type=click.IntRange(1),
    default=48,
    show_default=True,
    help="Places looked for per pair of scans.",
)
@click.option(
    "--partners",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Other scans each scan is compared with, at most.",
)
@common
def command(
    store: Path,
    encoder: Path,
    points: int,
    partners: int,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Find places of every scan in other scans of STORE, for homolog pretrain alice.

    The table lies in the store (some bytes per place); it is made once and read by
    every pretraining on aligned crops. Preparing the store anew asks for a new table.
    """
    from homolog.cli._dense import existing, run
    from homolog.jobs.aligning import job

    config = {
        "encoder": str(existing(encoder)),
        "store": str(existing(store)),
        "points": points,
        "partners": partners,
        "seed": seed,
        "device": device,
    }
    result = run(job(config, store))
    lines = [
        f"{result['rows']} matches of {result['cases']} scans in {result['pairs']}",
        "  similarity {:.2f} {:.2f} {:.2f} (quartiles)".format(*result["score"]),
        "  way back {:.1f} {:.1f} {:.1f} mm (quartiles)".format(*result["cycle_mm"]),
    ]
    show(result, as_json, lines)
    return 0
