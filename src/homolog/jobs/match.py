"""Landmarks of one scan found in others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, option
from homolog.events import Job
from homolog.geometry.places import place_text
from homolog.jobs.base import FeaturesConfig, optional_path
from homolog.landmarks.config import LandmarksConfig


# Paper: Alice Fig. 5, 6.
@dataclass(frozen=True)
class Config(FeaturesConfig):
    """Find points of scan A in scan B by their features alone.

    \b
    homolog match a.nii.gz b.nii.gz --points p.csv --encoder RUN --out m.csv
    homolog match a.nii.gz --store store --points p.csv --encoder RUN --out cohort

    Each match has its place in B (mm and voxel), the similarity, its margin over the
    best place further than 20 mm away, the cycle error (how far from the point the
    match leads when it is searched for in A again), and whether it is accepted or why
    it is not. With --store, --out gets table.csv and contact_sheet.png.
    """  # noqa: D301 - click reads the backspace

    scan: str = option(
        ..., "The scan with the points.", flag="scan", metavar="A", reads=True
    )
    other: str | None = option(
        None, "The scan to search.", flag="other", metavar="[B]", reads=True
    )
    store: str | None = option(
        None,
        "Search all scans of a prepared store instead of B.",
        metavar="STORE",
        reads=True,
    )
    points: str = option(
        ...,
        "Points of A: .csv with name, x_mm, y_mm, z_mm in any order (or voxel_z...), "
        ".json, 3D Slicer's .mrk.json or .fcsv, or a table of napari's points.",
        metavar="FILE",
        reads=True,
    )
    coordinates: str | None = option(
        None,
        "What the numbers of the points are.",
        choices=("LPS", "RAS", "voxel"),
        empty="what the file says, else LPS",
    )
    out: str = option(
        ...,
        "Matches in B as .csv, .json or .mrk.json (all LPS); with --store a folder.",
        metavar="FILE|DIR",
        writes=True,
    )
    settings: LandmarksConfig = option(LandmarksConfig(), "When a match is believed.")
    seed: int = option(0, "Seed of everything random.", minimum=0)

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if (self.other is None) == (self.store is None):
            raise ConfigError("give either a second scan B or --store STORE.")


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Points of a scan in another scan, or in all scans of a store.

    Returns:
        See match_pair and match_store.
    """
    from homolog.landmarks.of_scans import match_pair, match_store, points_of

    scan, out = Path(config.scan), Path(config.out)
    points = points_of(scan, Path(config.points), config.coordinates)
    encoder, kept = config.open_encoder(), optional_path(config.features)
    rest = (points, encoder, config.settings, out, kept, config.seed)
    if config.other is not None:
        result = yield from match_pair(scan, Path(config.other), *rest)
        return {**result, "matches": [_with_old_names(r) for r in result["matches"]]}
    return (yield from match_store(scan, Path(str(config.store)), *rest))


def _with_old_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """The place in B also as ``z_mm``... and ``voxel_z``..., as it was once called."""
    old = {f"{axis}_mm": row[f"b_{axis}_mm"] for axis in "zyx"}
    return {**row, **old, **{f"voxel_{a}": row[f"b_voxel_{a}"] for a in "zyx"}}


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    return _pair_lines(result) if "matches" in result else _store_lines(result)


def _pair_lines(result: Mapping[str, Any]) -> list[str]:
    told = []
    for row in result["matches"]:
        verdict = "accepted" if row["accepted"] else f"refused: {row['reason']}"
        if row["b_z_mm"] is None:
            told.append(f"{row['name']}: {verdict}")
            continue
        place = place_text([row[f"b_{axis}_mm"] for axis in "zyx"])
        told.append(
            f"{row['name']}: {place}, similarity {row['similarity']:.3f}, margin "
            f"{row['margin']:.3f}, cycle error {row['cycle_mm']:.1f} mm, {verdict}"
        )
    agreed = result.get("consensus")
    if agreed:
        told.append(
            f"{agreed['inliers']} of {agreed['of']} agree on a {agreed['kind']} map, "
            f"RMS {agreed['rms_mm']:.1f} mm"
        )
    return [*told, f"written to {result['out']}"]


def _store_lines(result: Mapping[str, Any]) -> list[str]:
    told = [
        f"{case['case']}: {case['accepted']} of {case['points']} accepted"
        for case in result["cases"]
    ]
    told += [f"{case['case']}: failed, {case['reason']}" for case in result["failed"]]
    if "table" not in result:
        return told
    return [*told, f"written to {result['table']} and {result['contact_sheet']}"]
