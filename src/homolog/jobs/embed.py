"""Dense feature maps of scans, with affine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import option
from homolog.events import Job
from homolog.jobs.base import DenseConfig, paths
from homolog.words import lengths_text

FAILURES = "failed"


@dataclass(frozen=True)
class Config(DenseConfig):
    """Dense feature maps of scans, memory-mapped, with their place in the world.

    Each SCAN gives NAME.HASHES.features.npy, an array (z, y, x, feature) of float16
    unit vectors, and NAME.HASHES.features.json with affine, stride and encoder. Of
    several scans, one that cannot be read does not stop the others.
    """

    scans: tuple[str, ...] = option(
        ..., "Scans.", flag="scans", metavar="SCAN...", reads=True
    )
    folder: str = option(
        ...,
        "Folder of the features; those that lie there are not computed again.",
        flag="--out",
        metavar="DIR",
        writes=True,
    )
    pca: bool = option(
        False,
        "Also write NAME_pca.nii.gz: the three main directions of all scans' features "
        "as red, green and blue on each scan's own grid.",
    )


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Features of scans; those that lie in ``config.folder`` are not made again.

    Returns:
        ``features``: one entry per scan (see ``entry_of``); ``failed`` (scan, reason),
        and ``stopped``.
    """
    from homolog.features.of_scans import embed_scans, write_colour_volumes

    encoder = config.open_encoder()
    out = Path(config.folder)
    result = yield from embed_scans(paths(config.scans, "scan"), out, encoder)
    if config.pca and not result["stopped"]:
        yield from write_colour_volumes(result["features"], out, encoder)
    return result


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    told = [
        f"{entry['scan']}: {lengths_text(entry['shape'], 'cells')} of "
        f"{lengths_text(entry['spacing_mm'])}, {entry['size']} features"
        + (", was there already" if entry["reused"] else "")
        for entry in result["features"]
    ]
    if result["failed"]:
        told.append(f"{len(result['failed'])} could not be:")
        told += [f"  {f['scan']}: {f['reason']}" for f in result["failed"]]
    return told
