"""How good labels are, as a job: Dice, NSD and HD95 against a reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homolog.config import ConfigError
from homolog.distributed import choose_device
from homolog.errors import UnusableInput
from homolog.events import Job, Note, stopped_words
from homolog.jobs.base import ending, taken
from homolog.jobs.predicting import mirrored_axes
from homolog.store.store import Store
from homolog.use.evaluate import evaluate_pairs, evaluate_store
from homolog.use.predict import open_trained

_DEFAULTS: Mapping[str, Any] = {"pairs": ..., "names": None, "tolerance_mm": 1.0}


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Score label files against label files, each pair on its own grid.

    Args:
        config: ``pairs`` of ``prediction`` and ``reference``; ``names`` (label value of
            the predictions -> name; as ``evaluate_pairs`` if None); ``tolerance_mm`` of
            the NSD.
        folder: Not used.

    Returns:
        ``rows`` (case, label, name, dice, nsd, hd95_mm; None where undefined),
        ``labels`` (name -> metric -> mean over cases), ``mean``, ``std``, ``worst``,
        ``cases`` and ``stopped``.

    Raises:
        UnusableInput: Grids that differ, or files that are no label maps.
    """
    asked = taken(config, "score", _DEFAULTS)
    pairs: dict[str, tuple[Path, Path]] = {}
    for number, pair in enumerate(asked["pairs"], start=1):
        if {"prediction", "reference"} - set(pair):
            raise ConfigError(f"pair {number} needs a prediction and a reference.")
        guess, right = Path(pair["prediction"]), Path(pair["reference"])
        name = str(pair.get("name") or right.name.split(".")[0])
        if name in pairs:
            name = f"{name} ({number})"
        pairs[name] = (guess, right)
    if not pairs:
        raise UnusableInput("no pair of label maps was given.")
    names = {int(v): str(n) for v, n in (asked["names"] or {}).items() if int(v) > 0}
    return (
        yield from ending(
            evaluate_pairs(
                pairs, names=names or None, tolerance_mm=float(asked["tolerance_mm"])
            )
        )
    )


def score_model(
    source: Path, model: Path, split: str, tolerance_mm: float, flips: str, device: str
) -> Job[dict[str, Any]]:
    """A fine-tuned model on the labelled cases of a store; as ``evaluate_store``."""
    store = Store.open(source)
    task, trained = open_trained(model, choose_device(device))
    axes = mirrored_axes(flips)
    if early := stopped_words(trained.card):
        yield Note(f"the training of this model was {early}.", "warning")
    return (
        yield from evaluate_store(
            task, trained, store, split, flips=axes, tolerance_mm=tolerance_mm
        )
    )
