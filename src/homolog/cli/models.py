"""``homolog models``: look at encoders, take in other people's, hand ours out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from homolog.cli._run import json_option, show
from homolog.exporting.kinds import DEFAULT, KINDS

_SOURCE = click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
_BACKBONE = click.option(
    "--backbone",
    default=None,
    metavar="B",
    help="Network of a foreign file: swin, vit, resunet.",
)
_SET = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Setting of that network, e.g. feature_size=48. May be repeated.",
)


@click.group("models", short_help="List, check, import and export encoders.")
def command() -> None:
    """Look after trained networks.

    \b
    homolog models list runs
    homolog models check runs/pre
    homolog models import swin.pt --backbone swin --set feature_size=48 --out swin
    homolog models export runs/pre --out encoder.safetensors
    homolog models export runs/seg --as bundle --out seg_bundle
    homolog models join runs/a runs/b --out both
    """  # noqa: D301 - click reads the backspace


@command.command("list")
@click.argument("folder", default=".", metavar="[DIR]", type=click.Path(path_type=Path))
@json_option
def list_models(folder: Path, as_json: bool) -> None:
    """List the models in DIR and below."""
    from homolog.errors import UnusableInput
    from homolog.events import stopped_words
    from homolog.model_files.card import read_card

    if not folder.is_dir():
        raise FileNotFoundError(2, "No such folder", str(folder))
    rows: list[dict[str, Any]] = []
    lines = []
    for path in sorted(folder.rglob("model.json")):
        place = path.parent
        if any(part.startswith(".") for part in place.relative_to(folder).parts):
            continue  # half-written
        try:
            card = read_card(place)
        except UnusableInput as error:
            rows.append({"model": str(place), "damaged": str(error)})
            lines.append(f"{place}  damaged: {error}")
            continue
        row = {
            "model": str(place),
            "kind": card.get("kind"),
            "method": card.get("method"),
            "backbone": (card.get("backbone") or {}).get("name"),
            "steps": card.get("steps"),
            "total_steps": card.get("total_steps"),
            "stopped": bool(stopped_words(card)),
            "cases": card.get("cases"),
            "decoder": card.get("decoder"),
        }
        rows.append(row)
        if row["backbone"] is None:
            lines.append(f"{place}  {row['kind']}  without an encoder")
            continue
        made_by = f"{row['method']} on" if row["method"] else "on"
        more = ", with its decoder" if row["decoder"] else ""
        lines.append(
            f"{place}  {row['kind']}  {made_by} {row['backbone']}{more}  "
            f"{stopped_words(card) or str(row['steps']) + ' steps'}"
        )
    show({"models": rows}, as_json, lines or [f"no models in {folder}"])


@command.command("check")
@_SOURCE
@_BACKBONE
@_SET
@json_option
def check_model(
    source: Path, backbone: str | None, assignments: tuple[str, ...], as_json: bool
) -> None:
    """Verify SOURCE (run, model folder, weight file) and tell what it holds."""
    from homolog.model_files import care

    result = care.check_model(source, _hint(backbone, assignments))
    lines = result.pop("lines")
    show(result, as_json, lines)


@command.command("import")
@_SOURCE
@_BACKBONE
@_SET
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Model folder; new.",
)
@click.option(
    "--allow-dropped",
    is_flag=True,
    help="Go on where the encoder of the file is larger than the network named.",
)
@json_option
def import_model(
    source: Path,
    backbone: str | None,
    assignments: tuple[str, ...],
    out: Path,
    allow_dropped: bool,
    as_json: bool,
) -> None:
    """Turn a foreign weight file into a model folder that every command takes.

    Nothing in the file is run; names are matched below any prefix, and at least 90%
    of the encoder must be found. What would be dropped of the file's encoder stops the
    import; decoders and heads are left aside.
    """
    from homolog.model_files import care

    result = care.import_model(
        source, out, _hint(backbone, assignments), allow_dropped=allow_dropped
    )
    lines = result.pop("lines")
    show(result, as_json, [*lines, f"saved {out}"])


@command.command("export")
@_SOURCE
@click.option(
    "--as",
    "kind",
    default=DEFAULT,
    show_default=True,
    type=click.Choice(list(KINDS)),
    help="What to write: "
    + "; ".join(f"{name}: {one.title}" for name, one in KINDS.items())
    + ".",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="New: a .safetensors file (its card beside it as .json), else a folder.",
)
@click.option(
    "--check",
    default=None,
    type=click.Path(path_type=Path),
    metavar="SCAN",
    help="Label this scan by what was written, too, and tell the share of equal "
    "labels (bundle, onnx, torchscript).",
)
@json_option
def export_model(
    source: Path, kind: str, out: Path, check: Path | None, as_json: bool
) -> None:
    """Write SOURCE in a form that other programs read.

    safetensors holds the encoder under the network's own names (for swin and vit those
    of MONAI), and a decoder that was trained with it beside it. The card (data,
    licence, labels, preparation of scans) goes with every kind.
    """
    from homolog.exporting.kinds import export_model as export
    from homolog.words import listed

    result = export(source, out, kind, check)
    names = [str(out)]
    if "card" in result:
        names.append(Path(result["card"]).name)
    if "decoder" in result:
        names.append(f"its decoder {Path(result['decoder']).name}")
    lines = result.pop("lines")
    show(result, as_json, [f"saved {listed(names)}", *lines])


def _hint(backbone: str | None, assignments: tuple[str, ...]) -> dict[str, Any] | None:
    from homolog.config import parse_assignments
    from homolog.model_files import care

    return care.hint(backbone, parse_assignments(assignments))


@command.command("join")
@click.argument(
    "sources", nargs=-1, required=True, metavar="RUN RUN...",
    type=click.Path(path_type=Path),
)  # fmt: skip
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Model folder; new.",
)
@json_option
def join(sources: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Make one model of several fine-tuned ones; its answers are their mean.

    They must do the same task with the same labels and windows, as the folds of a
    cross-validation do. Every command takes the result as it takes any model.
    """
    from homolog.use.join import join_models

    result = join_models(sources, out)
    count = len(result["members"])
    show(result, as_json, [f"{out}: the mean of {count} models ({result['kind']})"])
