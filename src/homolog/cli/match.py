"""``homolog match``: landmarks of one scan found in another."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homolog.cli._dense import dense_options, existing, features_of, open_encoder, run
from homolog.cli._options import common, show

if TYPE_CHECKING:
    from homolog.data.volume import Points
    from homolog.tasks._dense import DenseEncoder


@click.command("match", short_help="Landmarks of one scan found in another.")
@click.argument("scan", metavar="A", type=click.Path(path_type=Path))
@click.argument("other", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--points",
    required=True,
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Points of A: columns name, z_mm, y_mm, x_mm (world mm, LPS).",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Table of the matches in B.",
)
@click.option(
    "--features",
    default=None,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where feature maps are kept and found again.  [default: the user's cache]",
)
@dense_options
@common
def command(
    scan: Path,
    other: Path,
    points: Path,
    out: Path,
    features: Path | None,
    encoder: Path,
    backbone: str | None,
    strides: str | None,
    window: str | None,
    overlap: float,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Find points of scan A in scan B by their features alone.

    Each row of the table holds the place in B (mm and voxel), the similarity, its
    margin over the best place further than 20 mm away, and the cycle error: how far
    from the point the match leads when it is searched for in A again.
    """
    from homolog.data.points_io import read_points

    wanted = read_points(existing(points))
    dense = open_encoder(encoder, strides, window, overlap, device, backbone)
    result = run(_match(existing(scan), existing(other), wanted, dense, out, features))
    lines = [
        f"{row['name']}: {row['z_mm']:.1f}, {row['y_mm']:.1f}, {row['x_mm']:.1f} mm, "
        f"similarity {row['similarity']:.3f}, margin {row['margin']:.3f}, "
        f"cycle error {row['cycle_mm']:.1f} mm"
        for row in result["matches"]
    ]
    show(result, as_json, lines)
    return 0


def _match(
    scan: Path,
    other: Path,
    points: Points,
    encoder: DenseEncoder,
    out: Path,
    folder: Path | None,
) -> Generator[Any, Any, dict[str, Any]]:
    from homolog.cli.similarity import point_in_scan
    from homolog.data.feature_files import kept_features
    from homolog.data.scan_io import read_scan
    from homolog.tasks._matching import cycle_errors, kept_inside, match_points

    volumes = [read_scan(scan), read_scan(other)]
    for mm in points.mm:
        point_in_scan(volumes[0], scan, tuple(mm), voxel=False)
    with kept_features(folder) as place:
        source = yield from features_of(volumes[0], scan, encoder, place)
        target = yield from features_of(volumes[1], other, encoder, place)
        matches = [
            kept_inside(m, volumes[1].affine, volumes[1].shape)
            for m in match_points(source, target, points.mm)
        ]
        cycle = cycle_errors(source, target, points.mm, matches)
    rows = []
    for name, match, error in zip(points.names, matches, cycle, strict=True):
        voxel = volumes[1].affine.inverse().apply(match.mm)
        rows.append(
            {
                "name": name,
                **dict(zip(("z_mm", "y_mm", "x_mm"), match.mm, strict=True)),
                **{f"voxel_{a}": float(v) for a, v in zip("zyx", voxel, strict=True)},
                "similarity": match.similarity,
                "margin": match.margin,
                "cycle_mm": float(error),
            }
        )
    _write_table(rows, out)
    return {"matches": rows, "out": str(out)}


def _write_table(rows: list[dict[str, Any]], out: Path) -> None:
    import csv
    import io

    from homolog.data.points_io import write_text

    text = io.StringIO()
    names = list(rows[0]) if rows else ["name", "z_mm", "y_mm", "x_mm"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: v if isinstance(v, str) else f"{v:.5f}" for k, v in row.items()}
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text.getvalue())
