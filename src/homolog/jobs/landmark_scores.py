"""Landmark errors on copies and on pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, option
from homolog.events import Job
from homolog.jobs.base import FeaturesConfig, optional_path

COMMAND = "evaluate landmarks"


@dataclass(frozen=True)
class Config(FeaturesConfig):
    """Landmark errors in mm on deformed copies of scans, or what a pair tells.

    \b
    homolog evaluate landmarks a.nii.gz b.nii.gz --encoder RUN --out scores
    homolog evaluate landmarks --pair a.nii.gz,b.nii.gz --encoder RUN --out scores

    Copies are smoothly bent, turned a little, scaled and noisy, by a known map. Errors
    are over all points, refused matches included; those of accepted ones stand beside.
    """  # noqa: D301 - click reads the backspace

    scans: tuple[str, ...] = option(
        (), "Scans to copy.", flag="scans", metavar="[SCAN...]", reads=True
    )
    copies: int = option(
        2, "Deformed copies of each SCAN.", flag="--deformed", minimum=1
    )
    typical_mm: float = option(
        10.0,
        "Typical (root mean square) displacement of a copy.",
        unit="mm",
        minimum=0.0,
    )
    points: int = option(
        50,
        "Points per copy or pair, drawn in the body (with --labels: in the labels).",
        minimum=1,
    )
    pair: tuple[str, str] | None = option(
        None,
        "Two scans of different patients instead.",
        metavar="A,B",
        reads=True,
    )
    truth: tuple[str, str] | None = option(
        None,
        "Named points of both scans of the pair.",
        metavar="A.csv,B.csv",
    )
    labels: tuple[str, str] | None = option(
        None,
        "Label maps of both scans: is the organ hit?",
        metavar="A,B",
    )
    out: str = option(
        ...,
        "Gets landmarks.csv (one row per point) and landmarks.json (the summary).",
        metavar="DIR",
        writes=True,
    )
    seed: int = option(0, "Seed of everything random.", minimum=0)

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if bool(self.scans) == (self.pair is not None):
            raise ConfigError("give either scans or --pair A,B.")
        if self.pair is None and (self.truth or self.labels):
            raise ConfigError("--truth and --labels belong to --pair A,B.")


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Landmark errors of an encoder.

    Returns:
        ``scans`` (figures of each), ``overall``, ``csv``, ``json`` and ``stopped``.
    """
    from homolog.landmarks.scores import (
        DeformedConfig,
        score_deformed,
        score_pair,
        write_scores,
    )

    encoder, kept = config.open_encoder(), optional_path(config.features)
    both = _paths(config.pair)
    if both is not None:
        result = yield from score_pair(
            both, encoder, count=config.points, seed=config.seed,
            truth=_paths(config.truth), labels=_paths(config.labels), folder=kept,
        )  # fmt: skip
    else:
        wanted = DeformedConfig(
            config.copies, config.typical_mm, config.points, config.seed
        )
        scans = [Path(scan) for scan in config.scans]
        result = yield from score_deformed(scans, encoder, wanted, folder=kept)
    if result["stopped"]:
        return {"stopped": True}
    summary = {k: v for k, v in result.items() if k not in ("rows", "stopped")}
    files = write_scores(result["rows"], summary, Path(config.out))
    return {**summary, **files, "stopped": False}


def _paths(pair: tuple[str, str] | None) -> tuple[Path, Path] | None:
    return None if pair is None else (Path(pair[0]), Path(pair[1]))


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    told = [_line(part["scan"], part) for part in result["scans"]]
    told.append(_line("overall", result["overall"]))
    return [*told, f"written to {result['csv']}"]


def _line(name: str, part: Mapping[str, Any]) -> str:
    text = f"{name}: {part['points']} points, {part['accepted']} accepted"
    if part["median_mm"] is not None:
        text += (
            f", error median {part['median_mm']:.1f} mm, 90 % {part['p90_mm']:.1f} mm, "
            f"within 10 mm {100 * part['within_10_mm']:.0f} %"
        )
    if part["hit_rate"] is not None:
        text += f", same organ {100 * part['hit_rate']:.0f} %"
    if part["cycle_p50_mm"] is not None:
        text += f", cycle error median {part['cycle_p50_mm']:.1f} mm"
    return text
