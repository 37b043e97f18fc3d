"""``homolog pretrain``: stores and a method -> an encoder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homolog.cli._run import common
from homolog.config import ConfigError, merge, parse_assignments
from homolog.words import visible

if TYPE_CHECKING:
    from homolog.pretrain.settings import MissingPairs


@click.command("pretrain", short_help="Learn an encoder from scans without labels.")
@click.argument("method")
@click.argument(
    "stores",
    nargs=-1,
    required=True,
    metavar="STORE...",
    type=click.Path(path_type=Path),
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Folder of the run; new or empty.",
)
@click.option(
    "--recipe",
    default="auto",
    show_default=True,
    metavar="RECIPE",
    help="cpu, gpu, paper, auto (by the device), or a .toml or .json file.",
)
@click.option(
    "--backbone", default=None, metavar="B", help="Network, if not the recipe's."
)
@click.option(
    "--encoder",
    default="",
    metavar="RUN",
    help="Start from these weights (a run or a file) instead of random ones.",
)
@click.option(
    "--aligner",
    default=None,
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Trained anatomical embedding that finds matching places first, where the "
    "method needs them (alice) and the store has none.",
)
@click.option("--steps", type=click.IntRange(1), default=None, help="Training steps.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Time instead of steps, all included; the number of steps follows as they "
    "get faster or slower.",
)
@click.option(
    "--without",
    "without_splits",
    default="test",
    show_default=True,
    metavar="SPLITS",
    help="Splits never looked at, e.g. test,val; 'none' takes every case.",
)
@click.option(
    "--share-by",
    type=click.Choice(["store", "modality"]),
    default=None,
    help="Between whom the crops are shared out.  [default: store]",
)
@click.option(
    "--share-power",
    type=click.FloatRange(0, 1),
    default=None,
    metavar="P",
    help="How: 1 by number of scans, 0.5 by its square root, 0 evenly.  "
    "[default: the method's]. Where modalities take turns, as hundred_million's do, "
    "both mean nothing.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting: method.KEY, backbone.KEY or training.KEY. May be repeated.",
)
@click.option(
    "--background",
    is_flag=True,
    help="Return at once; follow with: homolog runs follow",
)
@common
def command(
    method: str,
    stores: tuple[Path, ...],
    out: Path,
    recipe: str,
    backbone: str | None,
    encoder: str,
    aligner: Path | None,
    steps: int | None,
    minutes: float | None,
    without_splits: str,
    share_by: str | None,
    share_power: float | None,
    assignments: tuple[str, ...],
    background: bool,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Learn an encoder from the scans of STORE..., without labels.

    METHOD is one of homolog methods. Ctrl-C stops between two steps with state
    and encoder saved; homolog runs resume RUN goes on exactly.

    \b
    homolog pretrain s2dc store --out runs/pre
    homolog pretrain s2dc store --out runs/pre --minutes 10 --background
    homolog pretrain alice store --aligner runs/sam --out runs/alice
    homolog pretrain mae store --backbone vit --set method.size=64,64,64 --out runs/mae
    torchrun --nproc-per-node 4 -m homolog.cli pretrain s2dc store --out runs/big
    """  # noqa: D301 - click reads the backspace
    from homolog.cli._run import run_in_folder
    from homolog.pretrain.settings import MissingPairs, resolve

    if steps is not None and minutes is not None:
        raise ConfigError("give --steps or --minutes, not both.")
    length: dict[str, float] = {}
    if steps is not None:
        length = {"steps": steps, "minutes": 0.0}
    elif minutes is not None:
        length = {"minutes": minutes}
    asked = {"share_by": share_by, "share_power": share_power}
    sharing = {key: value for key, value in asked.items() if value is not None}

    def complete() -> dict[str, Any]:
        return resolve(
            method,
            stores,
            recipe=recipe,
            backbone=backbone,
            settings=merge(parse_assignments(assignments), {"training": length}),
            seed=seed,
            device=device,
            encoder=str(Path(encoder).resolve()) if encoder else "",
            without_splits=_names(without_splits),
            **sharing,
        )

    config = None
    while config is None:
        try:
            config = complete()
        except MissingPairs as missing:
            # one table is made per turn: each store of several may lack its own
            _align(missing, aligner or _asked_aligner(missing), device, seed)
    return run_in_folder("pretrain", config, out, as_json, background)


def _asked_aligner(missing: MissingPairs) -> Path:
    """Offer to make the table; without a terminal, or if declined, the error stays."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise missing
    click.echo(visible(str(missing)), err=True)
    answer = click.prompt(
        "Run of a trained anatomical embedding to align with (empty: stop)",
        default="", show_default=False, err=True,
    )  # fmt: skip
    if not answer.strip():
        raise missing
    return Path(answer.strip()).expanduser()


def _align(missing: MissingPairs, aligner: Path, device: str, seed: int) -> None:
    """Make the table of one store."""
    from homolog.cli._dense import existing, run
    from homolog.jobs.aligning import job

    told = {
        "encoder": str(existing(aligner)), "store": str(missing.store),
        "device": device, "seed": seed,
    }  # fmt: skip
    result = run(job(told, missing.store))
    click.echo(f"{result['rows']} matching places in {result['pairs']}", err=True)


def _names(text: str) -> list[str]:
    """``"test,val"`` -> names; ``none`` -> no name."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [n for n in names if n not in ("train", "val", "test", "none")]
    if unknown:
        raise ConfigError(
            f"--without takes train, val, test, none; got {unknown[0]!r}."
        )
    return [n for n in names if n != "none"]
