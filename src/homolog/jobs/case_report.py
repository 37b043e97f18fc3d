"""A page on one labelled scan: names, volumes, slices, model, warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, option
from homolog.errors import UnusableInput
from homolog.events import Job, Saved

REPORTED = ("html", "classes")


@dataclass(frozen=True)
class Config:
    """A page (HTML, prints to PDF) on SCAN and its LABELS.

    Each class with its volume in ml, mean and standard deviation of the scan's values;
    slices with the classes over them; the model that made them, and warnings. Nothing
    but names of files is told of where they lie.
    """

    scan: str = option(
        ..., "A file, DICOM folder or series.", flag="scan", metavar="SCAN", reads=True
    )
    labels: str = option(
        ...,
        "A label map on the grid of the scan; names and, of .seg.nrrd, colours are its "
        "own.",
        flag="labels",
        metavar="LABELS",
        reads=True,
    )
    out: str = option(..., "The page; must be new.", metavar="FILE.html", writes=True)
    name: str = option("", "What the scan is called.", empty="as its file")
    model: str | None = option(
        None, "The run or model that made the labels.", metavar="RUN", reads="model"
    )
    warning: tuple[str, ...] = option(
        (), "A sentence that belongs to this result. May be repeated.", metavar="TEXT"
    )
    window: tuple[float, float] | None = option(
        None, "Values shown black and white.", empty="by the scan"
    )


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Write the page.

    Returns:
        ``html`` and ``classes`` (label, name, voxels, volume_ml, slices, mean, sd).

    Raises:
        UnusableInput: Files that cannot be used, labels of another grid, or a page
            that is there already.
        ConfigError: A window that does not rise.
    """
    from homolog.reporting.case import Case, case_page
    from homolog.scans.paths import scan_stem

    out = Path(config.out)
    if out.exists():
        raise UnusableInput(f"{out} is there already; choose another --out.")
    if config.window is not None and not config.window[0] < config.window[1]:
        raise ConfigError(f"--window must rise, got {config.window}.")
    scan = Path(config.scan)
    case = Case.read(scan, Path(config.labels))
    page = case_page(
        case,
        config.name or scan_stem(scan),
        model=Path(config.model) if config.model else None,
        warnings=config.warning,
        window=config.window,
    )
    page.write(out)
    yield Saved(str(out), "report")
    classes = [
        {
            "label": row.value, "name": row.name, "voxels": row.voxels,
            "volume_ml": row.volume_ml, "slices": row.slices,
            "mean": row.mean if row.voxels else None,
            "sd": row.sd if row.voxels else None,
        }
        for row in case.rows()
    ]  # fmt: skip
    return {"html": str(out), "classes": classes}


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    return [f"report: {result['html']}"]
