"""What an encoder, or a model made of it, has learnt: pictures and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from homolog.config import as_in, option
from homolog.events import Job
from homolog.features.config import EmbedConfig
from homolog.jobs.base import DEVICES, FeaturesConfig, optional_path
from homolog.reporting.config import ReportConfig

STOPPED = "Stopped; the feature maps made so far are kept."
REPORTED = (
    "organs", "patients", "encoders", "notes", "html", "json", "csv", "robustness",
    "warnings",
)  # fmt: skip


@dataclass(frozen=True)
class Config(ReportConfig):
    """A page on what an encoder has learnt, looked at on labelled scans.

    \b
    homolog report runs/pre store
    homolog report runs/tuned store --against runs/scratch --out report
    homolog report runs/pre store --no-robustness --most 5

    Voxels of labelled organs by t-SNE and PCA, their silhouettes and similarities
    within and between patients, a linear probe and nearest neighbours, all against the
    same network with random weights; the course of the training, and how soon it was as
    good as it became. Of a fine-tuned model also how far its answers move when test
    scans are bent in brightness, turned and scaled. Several are set side by side.
    """  # noqa: D301 - click reads the backspace

    encoder: str = option(
        ...,
        "A pretraining run, a fine-tuned one, a model folder, a weight file or a "
        "model's name.",
        flag="encoder",
        metavar="RUN",
        reads="model",
    )
    store: str = option(
        ..., "A store with labels.", flag="store", metavar="STORE", reads=True
    )
    against: tuple[str, ...] = option(
        (),
        "A further encoder or model beside it. May be repeated.",
        metavar="RUN",
        reads="model",
    )
    out: str | None = option(
        None,
        "Gets report.html, report.json, report.csv and robustness.csv.",
        metavar="DIR",
        writes=True,
        empty="report-RUN here",
    )
    backbone: str | None = as_in(FeaturesConfig, "backbone")
    features: str | None = as_in(FeaturesConfig, "features")
    window: tuple[int, int, int] | None = as_in(EmbedConfig, "window")
    overlap: float = as_in(EmbedConfig, "overlap", default=0.25)
    batch_size: int = as_in(EmbedConfig, "batch_size")
    precision: str = as_in(EmbedConfig, "precision")
    device: str = option("auto", DEVICES, metavar="DEVICE")


def home(config: Config) -> Path:
    """Where the terminal puts it if it is not said."""
    return Path(f"report-{Path(config.encoder).resolve().stem}")


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Look at encoders and models.

    Returns:
        As ``Report.to_dict``, and ``html``, ``json``, ``csv``, ``robustness`` (None
        where nothing was disturbed).
    """
    from homolog.reporting.page import write_files
    from homolog.reporting.report import report_on
    from homolog.store.store import Store

    def part(kind: type) -> Any:
        names = {f.name for f in fields(kind)} & {f.name for f in fields(config)}
        return kind(**{name: getattr(config, name) for name in names})

    report = yield from report_on(
        Store.open(config.store),
        [Path(p) for p in dict.fromkeys((config.encoder, *config.against))],
        part(ReportConfig),
        part(EmbedConfig),
        device=config.device,
        backbone=config.backbone,
        folder=optional_path(config.features),
    )
    if report.stopped:
        return {"stopped": True}
    files: dict[str, str | None] = {"robustness": None}
    files |= write_files(report, Path(config.out) if config.out else folder)
    return {**report.to_dict(), **files, "stopped": False}


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    from homolog.reporting.page import lines as told

    return [*told(result), f"report: {result['html']}"]
