"""``homolog similarity``: where else it looks like at this point."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homolog.cli._dense import (
    Dense,
    dense_options,
    existing,
    features_of,
    features_option,
    run,
)
from homolog.cli._run import common, show, triple
from homolog.geometry.places import AXES_NAMED, place_text, voxel_text

if TYPE_CHECKING:
    from homolog.features.embed import DenseEncoder
    from homolog.scans.volume import Volume


@click.command("similarity", short_help="Where a scan looks like it does at a point.")
@click.argument("scan", metavar="SCAN", type=click.Path(path_type=Path))
@click.option(
    "--point",
    required=True,
    metavar="Z,Y,X",
    help="World millimetres (LPS: up, back, left are positive), or with --voxel an "
    "index into the file's own array, slowest axis first; or in any order with the "
    "axes named, as places are printed: 'x=1, y=2, z=3'.",
)
@click.option("--voxel", is_flag=True, help="--point is a voxel index.")
@click.option(
    "--in",
    "other",
    default=None,
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Search this scan.  [default: SCAN itself]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Similarity map on the searched scan's own grid (.nii.gz, .nii, .nrrd, .mha).",
)
@features_option
@dense_options()
@common
def command(
    scan: Path,
    point: str,
    voxel: bool,
    other: Path | None,
    out: Path,
    features: Path | None,
    dense: Dense,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Cosine similarity of one point's feature with every voxel of a scan.

    The map lies on the searched scan's own grid, with its geometry, values -1 to 1. The
    best match is printed with its margin: how much less similar the best place further
    than 20 mm away is.
    """
    from homolog.scans.files import read_scan

    place = triple(point, "--point")
    source = read_scan(existing(scan))
    target = source if other is None else read_scan(existing(other))
    mm = point_in_scan(source, scan, place, voxel=voxel)
    encoder = dense.open(device)
    paths = (scan, scan if other is None else other)
    result = run(_similarity((source, target), paths, mm, encoder, out, features))
    match = result["match"]
    lines = [
        f"best match at {place_text(match['mm'])}, voxel "
        f"{voxel_text(match['voxel'])}: similarity {match['similarity']:.3f}, "
        f"margin {match['margin']:.3f}",
        f"similarity map: {out}",
    ]
    show(result, as_json, lines)
    return 0


def point_in_scan(
    scan: Volume, path: Path, point: tuple[float, float, float], *, voxel: bool
) -> Any:
    """World mm (3,) of a point given in mm or as a voxel index.

    Raises:
        UnusableInput: It lies outside the scan.
    """
    import numpy as np

    from homolog.errors import UnusableInput

    given = np.array(point)
    index = given if voxel else scan.affine.inverse().apply(given)
    size = np.array(scan.shape)
    if ((index < -0.5 - 1e-6) | (index > size - 0.5 + 1e-6)).any():
        at = "" if voxel else f"{place_text(given)}, "
        raise UnusableInput(
            f"the point {at}voxel {voxel_text(index)}, lies outside {path}, whose "
            f"voxels are {voxel_text((0, 0, 0))} to {voxel_text(size - 1)}."
        )
    return scan.affine.apply(index) if voxel else given


def _similarity(
    scans: tuple[Volume, Volume],
    paths: tuple[Path, Path],
    mm: Any,
    encoder: DenseEncoder,
    out: Path,
    folder: Path | None,
) -> Generator[Any, Any, dict[str, Any]]:
    from homolog.features.files import kept_features
    from homolog.features.search import similarity_volume
    from homolog.scans.write import write_volume

    with kept_features(folder) as place:
        source = yield from features_of(scans[0], paths[0], encoder, place)
        target = source
        if paths[1] != paths[0]:
            target = yield from features_of(scans[1], paths[1], encoder, place)
        heat = similarity_volume(source, target, mm, scans[1])
    match = heat.meta["match"]
    write_volume(heat, out)
    voxel = scans[1].affine.inverse().apply(match.mm)
    return {
        "axes": AXES_NAMED,
        "scan": str(paths[0]),
        "searched": str(paths[1]),
        "point": {
            "mm": [float(v) for v in mm],
            "voxel": [float(v) for v in scans[0].affine.inverse().apply(mm)],
        },
        "match": {
            "mm": list(match.mm),
            "voxel": [float(v) for v in voxel],
            "similarity": match.similarity,
            "margin": match.margin,
        },
        "encoder_id": encoder.encoder_id,
        "out": str(out),
    }
