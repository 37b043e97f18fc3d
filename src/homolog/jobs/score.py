"""How good label files are: Dice, NSD and HD95 against reference files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, option
from homolog.errors import UnusableInput
from homolog.events import Job

COMMAND = ""  # of the window; the terminal has ``homolog evaluate``


@dataclass(frozen=True)
class Config:
    """Which label files are compared with which."""

    pairs: tuple[dict[str, Any], ...] = option(
        ..., "Pairs of prediction and reference (paths), with a name each if wanted."
    )
    names: dict[str, Any] | None = option(
        None, "Label value of the predictions -> name."
    )
    tolerance_mm: float = option(
        1.0, "Distance that the NSD forgives.", unit="mm", minimum=0.0
    )


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Score label files against label files, each pair on its own grid.

    Returns:
        ``rows`` (case, label, name, dice, nsd, hd95_mm; None where undefined),
        ``labels`` (name -> metric -> mean over cases), ``mean``, ``std``, ``worst``,
        ``cases`` and ``stopped``.

    Raises:
        UnusableInput: Grids that differ, or files that are no label maps.
    """
    from homolog.use.evaluate import evaluate_pairs

    pairs: dict[str, tuple[Path, Path]] = {}
    for number, pair in enumerate(config.pairs, start=1):
        if {"prediction", "reference"} - set(pair):
            raise ConfigError(f"pair {number} needs a prediction and a reference.")
        guess, right = Path(pair["prediction"]), Path(pair["reference"])
        name = str(pair.get("name") or right.name.split(".")[0])
        if name in pairs:
            name = f"{name} ({number})"
        pairs[name] = (guess, right)
    if not pairs:
        raise UnusableInput("no pair of label maps was given.")
    names = {int(v): str(n) for v, n in (config.names or {}).items() if int(v) > 0}
    return (
        yield from evaluate_pairs(
            pairs, names=names or None, tolerance_mm=config.tolerance_mm
        )
    )
