"""``homolog finetune``: labelled cases and an encoder -> a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from homolog.cli._run import common


@click.command("finetune", short_help="Learn a task from labelled cases.")
@click.argument("task")
@click.argument(
    "stores",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="STORE...",
)
@click.option(
    "--encoder",
    required=True,
    metavar="RUN|FILE|scratch",
    help="A pretraining run, a weight file, or 'scratch' for random weights.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Folder of the run; its model/ can predict.",
)
@click.option(
    "--backbone",
    default=None,
    metavar="B",
    help="Network to train from scratch, or that a foreign weight file holds.",
)
@click.option(
    "--recipe",
    default=None,
    metavar="R",
    help="Settings to start from: cpu or gpu.  [default: as the device]",
)
@click.option("--steps", type=click.IntRange(1), default=None, help="Optimiser steps.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Time instead of steps, all included; the number of steps follows as they "
    "get faster or slower.",
)
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the labelled training subjects used.",
)
@click.option(
    "--validate",
    "validate",
    default=None,
    metavar="none|all|K",
    help="Labelled held-out cases that choose the weights; they count as labels too. "
    "none keeps the last weights.  [default: the task's; segment 16, classify all]",
)
@click.option(
    "--fold", default=None, metavar="I/K", help="Hold out the i-th of k parts."
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting: training.KEY, backbone.KEY, or KEY of the task. May be repeated.",
)
@click.option(
    "--background",
    is_flag=True,
    help="Return at once; follow with: homolog runs follow",
)
@common
def command(
    task: str,
    stores: tuple[Path, ...],
    encoder: str,
    out: Path,
    backbone: str | None,
    recipe: str | None,
    steps: int | None,
    minutes: float | None,
    fraction: float,
    validate: str | None,
    fold: str | None,
    assignments: tuple[str, ...],
    background: bool,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Learn TASK (segment, classify) from the labelled cases of STORE...

    classify learns the class of whole scans, which a manifest names (column class);
    a|b are two classes of one scan, "no finding" is none, an empty cell is unknown. A
    2D encoder classifies volumes slice by slice.

    Several stores may annotate different classes: labels of one name are one class,
    and where a store does not annotate a class, nothing is learnt about it there.

    The best weights on the store's validation cases are kept: these cases need labels
    too, beside those of --fraction; --validate says how many, or none. The test split
    is never looked at; see homolog evaluate. Ctrl-C stops between two steps: state and
    model so far are saved, and homolog runs resume RUN goes on exactly.

    \b
    homolog finetune segment store --encoder runs/pre --out runs/seg --minutes 10
    homolog finetune segment store --encoder scratch --backbone swin --out runs/swin
    homolog finetune classify xrays --encoder runs/pre --out runs/cls
    homolog finetune segment store --encoder runs/pre --fraction 0.1 --fold 1/5 \\
        --set training.learning_rate=5e-4 --set freeze=0.2 --out runs/few
    """  # noqa: D301 - click reads the backspace
    from homolog.cli._run import run_in_folder
    from homolog.config import to_dict
    from homolog.distributed import choose_device
    from homolog.finetune.settings import check_cases, resolve

    own, training, network = sort_settings(assignments)
    if steps is not None:
        training |= {"steps": steps, "minutes": 0.0}
    if minutes is not None:
        training["minutes"] = minutes
    if validate is not None:
        own["validate_cases"] = validated_cases(validate)
    if backbone is not None:
        network["name"] = backbone
    if recipe is None:
        recipe = "gpu" if choose_device(device).type == "cuda" else "cpu"
    if encoder != "scratch":
        encoder = str(Path(encoder).resolve())
    config = {
        "task": task,
        "store": str(stores[0].resolve()),
        "more_stores": [str(store.resolve()) for store in stores[1:]],
        "encoder": encoder,
        "recipe": recipe,
        "fraction": fraction,
        "fold": fold,
        "seed": seed,
        "device": device,
        "backbone": network,
        "task_config": own,
        "training": training,
    }
    settings = resolve(config)
    check_cases(settings)
    return run_in_folder(
        kind="finetune",
        config=to_dict(settings),
        out=out,
        as_json=as_json,
        background=background,
    )


def validated_cases(text: str) -> int | None:
    """``none``, ``all`` or a number -> the setting ``validate_cases``."""
    from homolog.config import ConfigError

    word = text.strip().lower()
    if word in ("none", "all"):
        return None if word == "none" else 0
    if not word.isdecimal() or int(word) < 1:
        raise ConfigError(f"--validate takes none, all or a number, got {text!r}.")
    return int(word)


def sort_settings(
    assignments: tuple[str, ...],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """``--set`` values -> settings of the task, the training and the backbone."""
    from homolog.config import ConfigError, parse_assignments

    own = parse_assignments(assignments)
    own |= own.pop("task", {})
    parts = []
    for name in ("training", "backbone"):
        part = own.pop(name, {})
        if not isinstance(part, dict):
            raise ConfigError(f"--set {name}.KEY=VALUE is meant, got {name}={part!r}.")
        parts.append(part)
    return own, parts[0], parts[1]
