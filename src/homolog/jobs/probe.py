"""What encoders know of your labels, before any fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, as_in, option
from homolog.events import Job, Note
from homolog.features.config import EmbedConfig
from homolog.jobs.base import DEVICES, FeaturesConfig, optional_path
from homolog.json_files import object_or_none
from homolog.probe.config import ProbeConfig

FAILURES = "failed"
STOPPED = "Stopped; the feature maps made so far are kept."
REPORTED = (
    "verdict", "kind", "labels", "chance", "taught", "judged", "whom", "encoders",
    "no_network", "failed", "csv", "json", "html", "warnings",
)  # fmt: skip


@dataclass(frozen=True)
class Config(ProbeConfig):
    """Whether encoders have learnt anything that tells your labels apart.

    \b
    homolog probe store --encoder runs/pre
    homolog probe store --encoder runs/*  --patients 1 --out probe
    homolog probe store                     which of those known by name is best?

    The features stay frozen: a linear probe (logistic regression), the nearest
    neighbours and the nearest mean learn from a few labelled patients and are judged on
    others, for each map of the network and all of them joined. The same is done with
    random weights, with grey values and with the mere place in the body. Label maps
    also give the Dice of the linear probe on every voxel; where a store has classes of
    whole scans, features are averaged over the body.

    Several encoders are ranked, with what each costs and with LogME, a score that
    trains nothing. Without --encoder, all models that come with Homolog or lie in the
    library (homolog models list) are.
    """  # noqa: D301 - click reads the backspace

    store: str = option(
        ..., "A store with labels.", flag="store", metavar="STORE", reads=True
    )
    encoder: tuple[str, ...] = option(
        (),
        "A pretraining run, a model folder, a weight file or a model's name; further "
        "ones may follow.",
        metavar="RUN",
        reads="model",
        empty="all models known by name",
    )
    known: bool = option(
        False,
        "Also all models that come with Homolog or lie in the library.",
        flag="--all",
    )
    more: tuple[str, ...] = option(
        (), "Further encoders.", flag="more", metavar="[RUN...]", reads="model"
    )
    out: str | None = option(
        None,
        "Gets probe.html, probe.json and probe.csv (every patient and label).",
        metavar="DIR",
        writes=True,
        empty="nothing is written",
    )
    backbone: str | None = as_in(FeaturesConfig, "backbone")
    features: str | None = as_in(FeaturesConfig, "features")
    window: tuple[int, int, int] | None = as_in(EmbedConfig, "window")
    overlap: float = as_in(EmbedConfig, "overlap", default=0.25)
    batch_size: int = as_in(EmbedConfig, "batch_size")
    precision: str = as_in(EmbedConfig, "precision")
    device: str = option("auto", DEVICES, metavar="DEVICE")


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Probe encoders on a store.

    Returns:
        As ``probe_encoders`` without its rows, and ``csv``, ``json``, ``html`` (None
        where nothing is written).
    """
    from homolog.probe.report import write_probe
    from homolog.probe.study import probe_encoders
    from homolog.store.store import Store

    def part(kind: type) -> Any:
        names = {f.name for f in fields(kind)} & {f.name for f in fields(config)}
        return kind(**{name: getattr(config, name) for name in names})

    store = Store.open(config.store)
    encoders = [Path(p) for p in dict.fromkeys((*config.encoder, *config.more))]
    if config.known or not encoders:
        encoders += yield from _known(encoders)
    result = yield from probe_encoders(
        store,
        encoders,
        part(ProbeConfig),
        part(EmbedConfig),
        device=config.device,
        backbone=config.backbone,
        folder=optional_path(config.features),
    )
    if result["stopped"]:
        return {"stopped": True}
    files: dict[str, str | None] = {"csv": None, "json": None, "html": None}
    if config.out is not None:
        files.update(write_probe(result, Path(config.out)))
    return {k: v for k, v in result.items() if k != "rows"} | files


def _known(given: Sequence[Path]) -> Job[list[Path]]:
    """Models known by name that have an encoder, but those that were given anyhow.

    Raises:
        ConfigError: None is known, and none was given.
    """
    from homolog.model_files import library
    from homolog.model_files.facts import licence_words

    there = {path.resolve() for path in given}
    found = []
    for model in library.known_models():
        if model.path.resolve() in there:
            continue
        card = object_or_none(model.folder / library.CARD)
        if card is not None and card.get("kind") and not card.get("backbone"):
            continue  # intensity and place alone; a damaged one is told of later
        if card is not None and library.first_use(model.folder):
            yield Note(f"{model.name}: licence: {licence_words(card)}")
        found.append(model.path)
    if not found and not given:
        raise ConfigError(
            "--encoder must name one encoder or more: the library "
            f"{library.library_folder()} is empty."
        )
    return found


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    from homolog.probe.report import lines as told

    written = [f"written to {result['html']}"] if result["html"] else []
    return [*told(result), *written]
