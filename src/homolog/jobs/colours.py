"""Features as colours: their three main directions, fitted over all scans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import option
from homolog.events import Job
from homolog.jobs.base import paths

COMMAND = ""  # of the window; the terminal has ``homolog embed --pca``


@dataclass(frozen=True)
class Config:
    """Which feature maps get colours, beside their cards."""

    cards: tuple[str, ...] = option(..., "Feature maps (*.features.json).", writes=True)
    scans: tuple[str, ...] = option(
        (), "The scan of each, so that air has no say in the choice of colours."
    )


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Write the colours of feature maps; see ``write_colours``."""
    from homolog.features.of_scans import write_colours

    cards = paths(config.cards, "feature map")
    return (yield from write_colours(cards, [Path(s) for s in config.scans]))
