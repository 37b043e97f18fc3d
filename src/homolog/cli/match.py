"""``homolog match``: landmarks of one scan found in another, or in a whole store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from homolog.cli._dense import Dense, dense_options, existing, features_option, run
from homolog.cli._run import common, show
from homolog.geometry.places import place_text


@click.command("match", short_help="Landmarks of one scan found in others.")
@click.argument("scan", metavar="A", type=click.Path(path_type=Path))
@click.argument("other", metavar="[B]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--store",
    default=None,
    type=click.Path(path_type=Path),
    metavar="STORE",
    help="Search all scans of a prepared store instead of B.",
)
@click.option(
    "--points",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Points of A: .csv with name, x_mm, y_mm, z_mm in any order (or voxel_z...), "
    ".json, or 3D Slicer's .mrk.json.",
)
@click.option(
    "--coordinates",
    type=click.Choice(["lps", "ras", "voxel"], case_sensitive=False),
    default=None,
    help="What the numbers of the points are.  [default: what the file says, else lps]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Matches in B as .csv, .json or .mrk.json (all LPS); with --store a folder.",
)
@click.option(
    "--consensus",
    type=click.Choice(["none", "rigid", "similarity", "affine"]),
    default=None,
    help="Refuse what does not fit the map most matches agree on.  [default: none]",
)
@click.option(
    "--consensus-mm",
    "largest_consensus_mm",
    type=click.FloatRange(0),
    default=None,
    help="How far a match may lie from where that map puts it.  [default: 25]",
)
@click.option(
    "--least-similarity",
    type=click.FloatRange(-1, 1),
    default=None,
    help="Refuse matches less similar than this.  [default: 0.5]",
)
@click.option(
    "--least-margin",
    type=click.FloatRange(0, 2),
    default=None,
    help="Refuse matches that stand out less from the second best.  [default: 0.02]",
)
@click.option(
    "--cycle-mm",
    "largest_cycle_mm",
    type=click.FloatRange(0),
    default=None,
    help="Refuse matches that lead back farther from the point.  [default: 10]",
)
@click.option(
    "--apart-mm",
    type=click.FloatRange(0),
    default=None,
    help="Places nearer than this to the best are no second best.  [default: 20]",
)
@click.option(
    "--anywhere",
    is_flag=True,
    help="Do not refuse points outside the body, and search air too.",
)
@click.option(
    "--exhaustive", is_flag=True, help="Compare with every place; slow, misses nothing."
)
@features_option
@dense_options()
@common
def command(
    scan: Path,
    other: Path | None,
    store: Path | None,
    points: Path,
    coordinates: str | None,
    out: Path,
    anywhere: bool,
    exhaustive: bool,
    features: Path | None,
    dense: Dense,
    seed: int,
    device: str,
    as_json: bool,
    **limits: Any,
) -> int:
    """Find points of scan A in scan B by their features alone.

    \b
    homolog match a.nii.gz b.nii.gz --points p.csv --encoder RUN --out m.csv
    homolog match a.nii.gz --store store --points p.csv --encoder RUN --out cohort

    Each match has its place in B (mm and voxel), the similarity, its margin over the
    best place further than 20 mm away, the cycle error (how far from the point the
    match leads when it is searched for in A again), and whether it is accepted or why
    it is not. With --store, --out gets table.csv and contact_sheet.png.
    """  # noqa: D301 - click reads the backspace
    if (other is None) == (store is None):
        raise click.UsageError("give either a second scan B or --store STORE.")
    from homolog.config import from_dict
    from homolog.jobs.matching import match_pair, match_store, points_of
    from homolog.landmarks.match import LandmarksConfig

    chosen = {name: value for name, value in limits.items() if value is not None}
    chosen |= {"body_only": not anywhere, "exhaustive": exhaustive}
    rules = from_dict(LandmarksConfig, chosen, where="match")
    kind = {"voxel": "voxel", None: None}.get(coordinates, str(coordinates).upper())
    wanted = points_of(existing(scan), existing(points), kind)
    encoder = dense.open(device)
    if other is not None:
        existing(other)
        job = match_pair(scan, other, wanted, encoder, rules, out, features, seed)
    else:
        assert store is not None
        job = match_store(scan, store, wanted, encoder, rules, out, features, seed)
    result = run(job)
    if result.pop("stopped"):
        raise KeyboardInterrupt
    lines = _pair_lines(result) if other is not None else _store_lines(result)
    show(_with_old_names(result), as_json, lines)
    return 0


def _pair_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for row in result["matches"]:
        verdict = "accepted" if row["accepted"] else f"refused: {row['reason']}"
        if row["b_z_mm"] is None:
            lines.append(f"{row['name']}: {verdict}")
            continue
        place = place_text([row[f"b_{axis}_mm"] for axis in "zyx"])
        lines.append(
            f"{row['name']}: {place}, similarity {row['similarity']:.3f}, margin "
            f"{row['margin']:.3f}, cycle error {row['cycle_mm']:.1f} mm, {verdict}"
        )
    agreed = result["consensus"]
    if agreed:
        lines.append(
            f"{agreed['inliers']} of {agreed['of']} agree on a {agreed['kind']} map, "
            f"RMS {agreed['rms_mm']:.1f} mm"
        )
    return [*lines, f"written to {result['out']}"]


def _store_lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{case['case']}: {case['accepted']} of {case['points']} accepted"
        for case in result["cases"]
    ]
    lines += [f"{case['case']}: failed, {case['reason']}" for case in result["failed"]]
    return [*lines, f"written to {result['table']} and {result['contact_sheet']}"]


def _with_old_names(result: dict[str, Any]) -> dict[str, Any]:
    """Rows also tell the place in B as ``z_mm``... and ``voxel_z``..., as before."""
    for row in result.get("matches", ()):
        for axis in "zyx":
            row[f"{axis}_mm"] = row[f"b_{axis}_mm"]
            row[f"voxel_{axis}"] = row[f"b_voxel_{axis}"]
    return result
