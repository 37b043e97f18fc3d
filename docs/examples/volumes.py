"""How much of each class label maps hold, in ml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import option
from homolog.events import Job, Progress, Request, Saved
from homolog.jobs.base import paths


@dataclass(frozen=True)
class Config:
    """Write one row per label map and class: voxels and millilitres.

    Names of classes come from STEM.labels.json beside a label map, as homolog predict
    writes it; other classes are called by their number.
    """

    labels: tuple[str, ...] = option(
        ..., "Label maps.", flag="labels", metavar="LABELS...", reads=True
    )
    out: str = option(..., "Table, .csv.", metavar="FILE", writes=True)
    least_ml: float = option(0.0, "Leave out what is smaller.", unit="ml", minimum=0)


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Measure label map after label map.

    Returns:
        ``rows`` (file, name, voxels, ml), ``out`` and ``stopped``.
    """
    import numpy as np  # nothing heavy at the top: the list of commands imports us

    from homolog.scans.files import read_labels
    from homolog.scans.names import names_beside
    from homolog.writing import write_text

    files, rows, stopped = paths(config.labels, "label map"), [], False
    for number, path in enumerate(files):
        stopped = (yield Progress("labels", number, len(files), item=path.name)) is (
            Request.STOP
        )
        if stopped:
            break
        labels, names = read_labels(path), names_beside(path)
        voxel_ml = abs(np.linalg.det(labels.affine.matrix[:3, :3])) / 1000.0
        values, counts = np.unique(labels.data[labels.data > 0], return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            name = names.get(value, str(value))
            if count * voxel_ml >= config.least_ml:
                rows.append((path.name, name, count, round(count * voxel_ml, 3)))
    table = ["file,name,voxels,ml", *(",".join(map(str, row)) for row in rows)]
    write_text(Path(config.out), "\n".join(table) + "\n")
    yield Saved(config.out, "volumes")
    keys = ("file", "name", "voxels", "ml")
    found = [dict(zip(keys, row, strict=True)) for row in rows]
    return {"rows": found, "out": config.out, "stopped": stopped}


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read when it has ended."""
    return [f"{r['file']}: {r['name']} {r['ml']:g} ml" for r in result["rows"]]
