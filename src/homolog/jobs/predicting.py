"""Label scan files with a model, as a job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homolog.config import ConfigError
from homolog.distributed import choose_device
from homolog.events import Job, Note, stopped_words
from homolog.jobs.base import ending, paths, taken
from homolog.tasks.base import PredictOptions
from homolog.use.predict import find_scans, open_predictor, predict_scans

_AXES = {"z": 0, "y": 1, "x": 2}
_DEFAULTS: Mapping[str, Any] = {
    "model": ..., "scans": ..., "out": ..., "flips": "", "overlap": None,
    "windows": None,
    "modality": None, "precision": None, "device": "auto",
}  # fmt: skip


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Label scans, each on its own grid; one that cannot be does not stop the others.

    Args:
        config: ``model`` (run or model folder), ``scans``, ``out`` (folder of the
            results); ``flips`` (axes out of zyx whose mirrorings are averaged),
            ``overlap``, ``windows`` (``scan`` or ``trained``), ``modality``,
            ``precision``, ``device``.
        folder: Not used.

    Returns:
        ``predicted`` (scan, labels, voxels and volumes_ml per label name; of a
        classifier scan, class, chances ...), ``failed`` (scan, reason) and ``stopped``.
    """
    asked = taken(config, "predict", _DEFAULTS)
    labelling = label_scans(
        Path(asked["model"]),
        paths(asked["scans"], "scan"),
        Path(asked["out"]),
        flips=asked["flips"],
        overlap=asked["overlap"],
        windows=asked["windows"],
        modality=asked["modality"],
        precision=asked["precision"],
        device=asked["device"],
    )
    result = yield from ending(labelling)
    for entry in result["predicted"]:
        if "result" in entry:
            entry["labels"] = entry.pop("result")
    return result


def label_scans(
    model: Path,
    scans: list[Path],
    out: Path,
    *,
    flips: str,
    overlap: float | None,
    windows: str | None = None,
    modality: str | None,
    precision: str | None,
    device: str,
) -> Job[dict[str, Any]]:
    """As ``predict_scans``, from paths and texts.

    Raises:
        UnusableInput: No such scan or model, or a model that cannot predict.
        ConfigError: Axes that cannot be meant.
    """
    found = find_scans(scans)
    if windows not in (None, "scan", "trained"):
        raise ConfigError(f"windows must be scan or trained, got {windows!r}.")
    options = PredictOptions(
        mirrored_axes(flips), overlap, windows, modality.upper() if modality else None
    )
    task, trained = open_predictor(model, choose_device(device), precision=precision)
    if early := stopped_words(trained.card):
        yield Note(f"the training of this model was {early}.", "warning")
    return (yield from predict_scans(task, trained, found, out, options))


def mirrored_axes(text: str) -> tuple[int, ...]:
    """``"zx"`` -> (0, 2)."""
    letters = text.replace(",", "").lower()
    if set(letters) - set(_AXES) or len(set(letters)) != len(letters):
        raise ConfigError(f"--flips must name axes out of z, y, x once, got {text!r}.")
    return tuple(sorted(_AXES[letter] for letter in letters))
