"""Find matching places of a store's scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import option
from homolog.events import Job
from homolog.jobs.base import DenseConfig


@dataclass(frozen=True)
class Config(DenseConfig):
    """Find places of every scan in other scans of STORE, for homolog pretrain alice.

    The table lies in the store (some bytes per place); it is made once and read by
    every pretraining on aligned crops. Preparing the store anew asks for a new table.
    """

    store: str = option(
        ..., "A prepared store.", flag="store", metavar="STORE", reads=True, writes=True
    )
    encoder: str | None = option(
        ...,
        "A run of anatomical_embedding; any other encoder works too.",
        metavar="RUN",
        reads="model",
    )
    points: int = option(48, "Places looked for per pair of scans.", minimum=1)
    partners: int = option(
        8, "Other scans each scan is compared with, at most.", minimum=1
    )
    overlap: float = option(
        0.25, "Shared part of neighbouring windows.", minimum=0.0, maximum=0.9
    )
    seed: int = option(0, "Seed of everything random.", minimum=0)


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """The table of matching places of a store; see ``landmarks.align``."""
    from homolog.landmarks.of_scans import align
    from homolog.store.store import Store

    store, encoder = Store.open(config.store), config.open_encoder()
    return (
        yield from align(
            store, encoder, points=config.points, partners=config.partners,
            seed=config.seed,
        )
    )  # fmt: skip


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    if not result["pairs"]:
        return []
    return [
        f"{result['rows']} matches of {result['cases']} scans in {result['pairs']}",
        "  similarity {:.2f} {:.2f} {:.2f} (quartiles)".format(*result["score"]),
        "  way back {:.1f} {:.1f} {:.1f} mm (quartiles)".format(*result["cycle_mm"]),
    ]
