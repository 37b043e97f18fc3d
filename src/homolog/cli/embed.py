"""``homolog embed``: scans -> dense feature maps."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homolog.cli._dense import Dense, dense_options, existing, run
from homolog.cli._run import common, show
from homolog.words import lengths_text

if TYPE_CHECKING:
    from homolog.features.embed import DenseEncoder
    from homolog.scans.volume import FeatureMap, Volume


@click.command("embed", short_help="Dense feature maps of scans, with affine.")
@click.argument(
    "scans",
    nargs=-1,
    required=True,
    metavar="SCAN...",
    type=click.Path(path_type=Path),
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the features; those that lie there are not computed again.",
)
@click.option(
    "--pca",
    is_flag=True,
    help="Also write NAME_pca.nii.gz: the three main directions of all scans' features "
    "as red, green and blue on each scan's own grid.",
)
@dense_options()
@common
def command(
    scans: tuple[Path, ...],
    out: Path,
    pca: bool,
    dense: Dense,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Dense feature maps of scans, memory-mapped, with their place in the world.

    Each SCAN gives NAME.HASHES.features.npy, an array (z, y, x, feature) of float16
    unit vectors, and NAME.HASHES.features.json with affine, stride and encoder. Of
    several scans, one that cannot be read does not stop the others.
    """
    for path in scans:
        existing(path)
    encoder = dense.open(device)
    result = run(_embed(scans, out, encoder, pca))
    lines = [
        f"{entry['scan']}: {lengths_text(entry['shape'], 'cells')} of "
        f"{lengths_text(entry['spacing_mm'])}, "
        f"{entry['size']} features" + (", was there already" if entry["reused"] else "")
        for entry in result["features"]
    ]
    if result["failed"]:
        lines.append(f"{len(result['failed'])} could not be:")
        lines += [f"  {f['scan']}: {f['reason']}" for f in result["failed"]]
    show(result, as_json, lines)
    return 1 if result["failed"] else 0


def _embed(
    scans: tuple[Path, ...], out: Path, encoder: DenseEncoder, pca: bool
) -> Generator[Any, Any, dict[str, Any]]:
    from homolog.jobs.embedding import embed_scans

    result = yield from embed_scans(scans, out, encoder)
    if result.pop("stopped"):
        raise KeyboardInterrupt
    if pca:
        made = [Path(entry["scan"]) for entry in result["features"]]
        yield from _write_colours(made, result["features"], out, encoder)
    return result


def _write_colours(
    scans: list[Path],
    entries: list[dict[str, Any]],
    out: Path,
    encoder: DenseEncoder,
) -> Generator[Any, Any, None]:
    """One RGB volume per scan; the directions are those of all scans together."""
    from homolog.events import Saved
    from homolog.features.colours import fit_colours
    from homolog.features.embed import body_cells
    from homolog.features.files import open_features
    from homolog.scans.files import read_scan
    from homolog.scans.write import write_volume

    maps: list[FeatureMap] = [open_features(Path(e["card"])) for e in entries]
    bodies = [
        body_cells(encoder.prepare(read_scan(path)), encoder.strides[0])
        for path in scans
    ]
    colours = fit_colours([m.data for m in maps], bodies)
    for path, entry, features in zip(scans, entries, maps, strict=True):
        volume = colour_volume(read_scan(path), features, colours.paint(features.data))
        place = out / f"{volume.name}.nii.gz"
        write_volume(volume, place)
        entry["pca"] = str(place)
        entry["explained"] = [round(float(v), 4) for v in colours.explained]
        yield Saved(str(place), "colours")


def colour_volume(scan: Volume, features: FeatureMap, cells: Any) -> Volume:
    """Colours (3, d, h, w) in 0..1 on a scan's own grid, as (3, D, H, W) uint8."""
    import numpy as np

    from homolog.features.search import on_grid
    from homolog.scans.volume import Volume

    rgb = np.stack(
        [on_grid(c, features.affine, scan.shape, scan.affine) for c in cells]
    )
    data = np.rint(rgb * 255).astype(np.uint8)
    return Volume(data, scan.affine, f"{scan.name}_pca", "OTHER", scan.meta)
