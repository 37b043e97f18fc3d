"""``homolog few-voxels``: a segmentation model from a few painted voxels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from homolog.cli._dense import Dense, dense_options, existing, features_option, run
from homolog.cli._run import common, show
from homolog.config import ConfigError
from homolog.geometry.places import place_text, voxel_text


@click.command("few-voxels", short_help="A model from a few painted voxels.")
@click.argument("scan", metavar="SCAN", type=click.Path(path_type=Path))
@click.option(
    "--labels",
    required=True,
    type=click.Path(path_type=Path),
    metavar="PAINTED",
    help="Painted voxels on SCAN's own grid: 0 is unpainted, each class a number.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="SCAN2,PAINTED2",
    help="Another scan with its painted voxels. May be repeated.",
)
@click.option(
    "--head",
    type=click.Choice(["logistic", "knn"]),
    default="logistic",
    show_default=True,
    help="Logistic regression, or the vote of the nearest painted voxels.",
)
@click.option("--no-position", is_flag=True, help="Do not use the place in the body.")
@click.option(
    "--outside-body", is_flag=True, help="Label what lies outside the body too."
)
@click.option(
    "--background",
    type=click.IntRange(1),
    default=None,
    metavar="VALUE",
    help="The painted number that means none of the others; predicted as 0.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="VALUE=NAME",
    help="Name of a class. May be repeated.  [default: from STEM.labels.json or "
    "label_names.json beside PAINTED]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="Model folder; homolog predict takes it.",
)
@click.option(
    "--predict",
    default=None,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write SCAN's labels too (.nii.gz, .nii, .nrrd, .mha).",
)
@click.option(
    "--score/--no-score",
    default=True,
    show_default=True,
    help="Leave strokes out in turn and say how well they are told.",
)
@features_option
@dense_options("  [default: none, intensity and place alone]")
@common
def command(
    scan: Path,
    labels: Path,
    also: tuple[str, ...],
    head: str,
    no_position: bool,
    outside_body: bool,
    background: int | None,
    names: tuple[str, ...],
    out: Path,
    predict: Path | None,
    score: bool,
    features: Path | None,
    dense: Dense,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Learn a segmentation of SCAN from a few voxels painted in it.

    Features of an encoder, intensity and place are told apart by logistic regression.
    The model needs nothing else: homolog predict OTHER --model MODEL --out DIR. It also
    says how well left-out strokes are told, what is wrong with the paint, and where
    one more stroke would help most.
    """
    from homolog.jobs.few_voxels import job

    pairs = [(scan, labels), *(_pair(text) for text in also)]
    for pair in pairs:
        for path in pair:
            existing(path)
    config: dict[str, Any] = {
        "scans": [str(a) for a, _ in pairs],
        "labels": [str(b) for _, b in pairs],
        "encoder": None if dense.encoder is None else str(existing(dense.encoder)),
        "out": str(out),
        "predict": None if predict is None else str(predict),
        "features": None if features is None else str(features),
        "names": _names(names),
        "background": background,
        "score": score,
        "backbone": dense.backbone,
        "strides": dense.strides,
        "window": dense.window,
        "overlap": dense.overlap,
        "device": device,
        "head": head,
        "position": not no_position,
        "body_only": not outside_body,
        "seed": seed,
    }
    result = run(job(config, out))
    if result["stopped"]:
        raise KeyboardInterrupt
    show(result, as_json, _lines(result))
    return 0


def _pair(text: str) -> tuple[Path, Path]:
    parts = text.split(",")
    if len(parts) != 2 or not all(parts):
        raise ConfigError(
            f"--also must be SCAN2,PAINTED2: two files with a comma, got {text!r}."
        )
    return Path(parts[0]), Path(parts[1])


def _names(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        value, equals, name = text.partition("=")
        if not (equals and name and value.isdigit()):
            raise ConfigError(f"--name must be VALUE=NAME, e.g. 1=liver, got {text!r}.")
        found[value] = name
    return found


def _lines(result: Mapping[str, Any]) -> list[str]:
    """What people read; warnings were shown as they came."""
    seconds = result["seconds"]
    total = sum(c["voxels"] for c in result["classes"])
    lines = [
        f"{total} painted voxels of {len(result['classes'])} classes, fitted in "
        f"{seconds['fit']:.2f} s, predicted in {seconds['predict']:.1f} s"
    ]
    score = result["score"]
    if score is not None and score["accuracy"] is None:
        lines.append(f"no left-out score: {score['reason']}")
    elif score is not None:
        lines.append(
            f"left-out strokes: {score['accuracy']:.1%} of {score['voxels']} voxels "
            "told rightly"
        )
        width = max(len(name) for name in score["recall"])
        lines += [
            f"  {name:<{width}}  found {share:.1%}, Dice {score['dice'][name]:.3f}"
            for name, share in score["recall"].items()
        ]
        if score["unscored"]:
            lines.append(f"  painted in one place only: {', '.join(score['unscored'])}")
    click_at = result["next"]
    if click_at is not None:
        place, voxel = place_text(click_at["mm"]), voxel_text(click_at["voxel"])
        first, second = click_at["likely"]
        lines.append(
            f"paint next at {place}, voxel {voxel}: {first} or {second}? "
            f"(uncertainty {click_at['uncertainty']:.2f})"
        )
    if result["prediction"]:
        lines.append(f"labels: {result['prediction']}")
    lines.append(f"model: {result['model']}")
    return lines
