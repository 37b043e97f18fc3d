"""Dice, NSD and HD95; landmark errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, option
from homolog.events import Job, Note, stopped_words
from homolog.jobs.base import DEVICES


@dataclass(frozen=True)
class Config:
    """Dice, surface Dice (NSD) and HD95 in mm, per case and label.

    \b
    homolog evaluate --model runs/seg store
    homolog evaluate predictions --labels labelsTs
    homolog evaluate landmarks --help

    A label that neither map has is left out; one that only one has counts as Dice 0,
    NSD 0 and the scan's diagonal. A case's value is the mean over its labels.

    Of a classifier: AUC, average precision, accuracy and calibration error, for each
    class where a scan may have several; likewise of types and slices it tells of.
    """  # noqa: D301 - click reads the backspace

    source: str = option(
        ...,
        "A store, or a folder of predictions.",
        flag="source",
        metavar="STORE|PRED_DIR",
    )
    model: str | None = option(
        None, "A finetune run; scores it on STORE.", metavar="RUN", reads="model"
    )
    labels: str | None = option(
        None,
        "True labels; scores the files of PRED_DIR against those of the same names.",
        metavar="DIR",
    )
    split: str = option(
        "test", "Cases of STORE.", choices=("train", "val", "test", "all")
    )
    case: tuple[str, ...] = option(
        (),
        "A case of STORE by name; of these alone. May be repeated.",
        metavar="NAME",
        empty="all of the split",
    )
    tolerance_mm: float = option(
        1.0,
        "Distance in mm that the NSD forgives.",
        unit="mm",
        minimum=0.0,
        flag="--tolerance",
    )
    flips: str = option(
        "",
        "Average over mirrorings along these axes, e.g. x or zyx.",
        metavar="AXES",
    )
    out: str | None = option(
        None,
        "Gets metrics.csv and metrics.json.",
        metavar="DIR",
        writes=True,
        empty="RUN/evaluation/SPLIT, or PRED_DIR/evaluation",
    )
    device: str = option("auto", DEVICES, metavar="DEVICE")

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if (self.model is None) == (self.labels is None):
            raise ConfigError("give either --model RUN or --labels DIR.")


def home(config: Config) -> Path:
    """Where the terminal writes the tables if it is not said."""
    if config.model is None:
        return Path(config.source) / "evaluation"
    model = Path(config.model)
    folder = model if model.is_dir() else model.parent
    return folder / "evaluation" / config.split


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Score a model on a store, or label files against others of the same names.

    Returns:
        As ``evaluate_store`` and ``evaluate_folder``, with ``csv`` and ``json``: the
        tables, in ``config.out`` or else in ``folder``.
    """
    from homolog.use.evaluate import evaluate_folder, write_tables

    if config.labels is not None:
        source, labels = Path(config.source), Path(config.labels)
        result = yield from evaluate_folder(
            source, labels, tolerance_mm=config.tolerance_mm
        )
    else:
        result = yield from _model_scores(config)
    if result["stopped"]:
        return {"stopped": True}
    table, summary = write_tables(result, Path(config.out) if config.out else folder)
    shown = {key: value for key, value in result.items() if key != "columns"}
    text = [*result["lines"], f"written to {table}"]
    return {**shown, "csv": str(table), "json": str(summary), "lines": text}


def _model_scores(config: Config) -> Job[dict[str, Any]]:
    """A fine-tuned model on the labelled cases of a store."""
    from homolog.distributed import choose_device
    from homolog.store.store import Store
    from homolog.use.evaluate import evaluate_store
    from homolog.use.predict import mirrored_axes, open_trained

    store = Store.open(config.source)
    task, trained = open_trained(Path(str(config.model)), choose_device(config.device))
    flips = mirrored_axes(config.flips)
    if early := stopped_words(trained.card):
        yield Note(f"the training of this model was {early}.", "warning")
    return (
        yield from evaluate_store(
            task, trained, store, config.split,
            only=config.case, flips=flips, tolerance_mm=config.tolerance_mm,
        )
    )  # fmt: skip
