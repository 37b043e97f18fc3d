"""Where a scan looks like it does at a point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.config import option
from homolog.events import Job
from homolog.geometry.places import AXES_NAMED, place_text, voxel_text
from homolog.jobs.base import FeaturesConfig, optional_path

if TYPE_CHECKING:
    from homolog.scans.volume import Volume


# Paper: S2DC Fig. 1.
@dataclass(frozen=True)
class Config(FeaturesConfig):
    """Cosine similarity of one point's feature with every voxel of a scan.

    The map lies on the searched scan's own grid, with its geometry, values -1 to 1. The
    best match is printed with its margin: how much less similar the best place further
    than 20 mm away is.
    """

    scan: str = option(
        ..., "The scan with the point.", flag="scan", metavar="SCAN", reads=True
    )
    point: tuple[float, float, float] = option(
        ...,
        "World millimetres (LPS: up, back, left are positive), or with --voxel an "
        "index into the file's own array, slowest axis first; or in any order with the "
        "axes named, as places are printed: 'x=1, y=2, z=3'.",
        metavar="Z,Y,X",
    )
    voxel: bool = option(False, "--point is a voxel index.")
    other: str | None = option(
        None,
        "Search this scan.",
        flag="--in",
        metavar="OTHER",
        reads=True,
        empty="SCAN itself",
    )
    out: str = option(
        ...,
        "Similarity map on the searched scan's own grid (.nii.gz, .nii, .nrrd, .mha).",
        metavar="FILE",
        writes=True,
    )


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Write the similarity of every voxel with one point.

    Returns:
        ``scan``, ``searched``, ``out``; ``point`` (``mm`` and ``voxel`` in the scan)
        and ``match`` (the same in the searched one, ``similarity``, ``margin``);
        ``axes``, ``encoder_id`` and ``stopped``.

    Raises:
        UnusableInput: The point lies outside the scan.
    """
    from homolog.features.files import kept_features
    from homolog.features.of_scans import features_of
    from homolog.features.search import similarity_volume
    from homolog.scans.files import read_scan
    from homolog.scans.write import write_volume

    scan, searched = Path(config.scan), Path(config.other or config.scan)
    source = read_scan(scan)
    target = source if searched == scan else read_scan(searched)
    mm = _point_in_scan(source, scan, config.point, voxel=config.voxel)
    encoder = config.open_encoder()
    with kept_features(optional_path(config.features)) as place:
        there = here = yield from features_of(source, scan, encoder, place)
        if here is not None and searched != scan:
            there = yield from features_of(target, searched, encoder, place)
        if here is None or there is None:
            return {"scan": str(scan), "searched": str(searched), "stopped": True}
        heat = similarity_volume(here, there, mm, target)
    match = heat.meta["match"]
    write_volume(heat, Path(config.out))
    voxel = target.affine.inverse().apply(match.mm)
    return {
        "axes": AXES_NAMED,
        "scan": str(scan),
        "searched": str(searched),
        "point": {
            "mm": [float(v) for v in mm],
            "voxel": [float(v) for v in source.affine.inverse().apply(mm)],
        },
        "match": {
            "mm": list(match.mm),
            "voxel": [float(v) for v in voxel],
            "similarity": match.similarity,
            "margin": match.margin,
        },
        "encoder_id": encoder.encoder_id,
        "out": config.out,
        "stopped": False,
    }


def _point_in_scan(
    scan: Volume, path: Path, point: tuple[float, float, float], *, voxel: bool
) -> Any:
    """World mm (3,) of a point given in mm or as a voxel index."""
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


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    match = result["match"]
    return [
        f"best match at {place_text(match['mm'])}, voxel "
        f"{voxel_text(match['voxel'])}: similarity {match['similarity']:.3f}, "
        f"margin {match['margin']:.3f}",
        f"similarity map: {result['out']}",
    ]
