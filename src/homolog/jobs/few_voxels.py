"""A model from a few painted voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.config import ConfigError, option
from homolog.events import Job
from homolog.geometry.places import place_text, voxel_text
from homolog.jobs.base import FeaturesConfig, optional_path, paths
from homolog.tasks.few_voxels.config import FewConfig

if TYPE_CHECKING:
    from homolog.features.embed import DenseEncoder
    from homolog.model_files.encoder import LoadedEncoder

COMMAND = "few-voxels"


@dataclass(frozen=True)
class Config(FewConfig, FeaturesConfig):
    """Learn a segmentation of SCAN from a few voxels painted in it.

    Features of an encoder, intensity and place are told apart by logistic regression.
    The model needs nothing else: homolog predict OTHER --model MODEL --out DIR. It also
    says how well left-out strokes are told, what is wrong with the paint, and where
    one more stroke would help most.
    """

    scans: tuple[str, ...] = option(..., "Painted scans.", reads=True)
    labels: tuple[str, ...] = option(
        ..., "Painted voxels on each scan's own grid; 0 is unpainted.", reads=True
    )
    encoder: str | None = option(
        None,
        "A pretraining run, a model folder, a weight file or a model's name.",
        metavar="RUN",
        reads="model",
        empty="none, intensity and place alone",
    )
    background: int | None = option(
        None,
        "The painted number that means none of the others; predicted as 0.",
        minimum=1,
        metavar="VALUE",
    )
    names: dict[str, str] | None = option(
        None,
        "Name of a class. May be repeated.",
        flag="--name",
        metavar="VALUE=NAME",
        empty="from STEM.labels.json or label_names.json beside PAINTED",
    )
    colours: dict[str, str] | None = option(
        None,
        "Colour of a class. May be repeated.",
        flag="--colour",
        metavar="VALUE=#RRGGBB",
        empty="told apart by the colour-blind",
    )
    out: str | None = option(
        None, "Model folder; homolog predict takes it.", metavar="MODEL", writes=True
    )
    predict: str | None = option(
        None,
        "Write SCAN's labels too (.nii.gz, .nii, .nrrd, .mha).",
        metavar="FILE",
        writes=True,
    )
    score: bool = option(
        True, "Leave strokes out in turn and say how well they are told."
    )


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Fit, score, save and predict; see ``label_few``."""
    from homolog.tasks.few_voxels.task import Meaning, label_few, read_pairs

    few = FewConfig(**{f.name: getattr(config, f.name) for f in fields(FewConfig)})
    pairs = read_pairs(
        paths(config.scans, "scan"), paths(config.labels, "painted label map")
    )
    meaning = Meaning(
        _by_value(config.names), _by_value(config.colours), config.background
    )

    def opened() -> tuple[LoadedEncoder, DenseEncoder]:
        from homolog.distributed import choose_device
        from homolog.features.embed import DenseEncoder
        from homolog.model_files.encoder import load_encoder

        loaded = load_encoder(str(config.encoder), config.backbone)
        device = choose_device(config.device)
        return loaded, DenseEncoder.of(loaded, config.embedding(), device)

    return (
        yield from label_few(
            pairs, few, meaning, opened if config.encoder else None,
            out=optional_path(config.out), predict=optional_path(config.predict),
            features=optional_path(config.features), score=config.score,
        )
    )  # fmt: skip


def _by_value(texts: Mapping[str, str] | None) -> dict[int, str]:
    """Keys that went through JSON are texts."""
    found = {}
    for value, text in (texts or {}).items():
        if not str(value).isdigit():
            raise ConfigError(
                f"expected VALUE=NAME, e.g. 1=liver, got {f'{value}={text}'!r}."
            )
        found[int(value)] = text
    return found


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read; warnings were shown as they came."""
    seconds = result["seconds"]
    total = sum(c["voxels"] for c in result["classes"])
    told = [
        f"{total} painted voxels of {len(result['classes'])} classes, fitted in "
        f"{seconds['fit']:.2f} s, predicted in {seconds['predict']:.1f} s"
    ]
    told += _score_lines(result["score"]) if result["score"] else []
    click_at = result["next"]
    if click_at is not None:
        place, voxel = place_text(click_at["mm"]), voxel_text(click_at["voxel"])
        first, second = click_at["likely"]
        what = f"{first} or {second}?"
        if click_at["unknown"]:
            what = "unknown, too unlike all paint"
        told.append(
            f"paint next at {place}, voxel {voxel}: {what} "
            f"(uncertainty {click_at['uncertainty']:.2f})"
        )
    if result["prediction"]:
        told.append(f"labels: {result['prediction']}")
    return [*told, f"model: {result['model']}"]


def _score_lines(score: Mapping[str, Any]) -> list[str]:
    if score["accuracy"] is None:
        return [f"no left-out score: {score['reason']}"]
    told = [
        f"left-out strokes: {score['accuracy']:.1%} of {score['voxels']} voxels "
        "told rightly"
    ]
    width = max(len(name) for name in score["recall"])
    told += [
        f"  {name:<{width}}  found {share:.1%}, Dice {score['dice'][name]:.3f}"
        for name, share in score["recall"].items()
    ]
    if score["unscored"]:
        told.append(f"  painted in one place only: {', '.join(score['unscored'])}")
    return told
