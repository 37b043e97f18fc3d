"""``homolog models``: look at encoders, take in other people's, hand ours out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from homolog.cli._options import show

_JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Last line of standard output is one JSON object.",
)
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
    """  # noqa: D301 - click reads the backspace


@command.command("list")
@click.argument("folder", default=".", metavar="[DIR]", type=click.Path(path_type=Path))
@_JSON
def list_models(folder: Path, as_json: bool) -> None:
    """List the models in DIR and below."""
    from homolog.errors import UnusableInput
    from homolog.model_files import read_card

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
            "backbone": card.get("backbone", {}).get("name"),
            "steps": card.get("steps"),
            "cases": card.get("cases"),
        }
        rows.append(row)
        lines.append(
            f"{place}  {row['kind']}  {row['method'] or ''} on {row['backbone']}  "
            f"{row['steps']} steps"
        )
    show({"models": rows}, as_json, lines or [f"no models in {folder}"])


@command.command("check")
@_SOURCE
@_BACKBONE
@_SET
@_JSON
def check_model(
    source: Path, backbone: str | None, assignments: tuple[str, ...], as_json: bool
) -> None:
    """Verify SOURCE (run, model folder, weight file) and tell what it holds."""
    from homolog.model_files import find_model, load_encoder, load_model

    hint = _hint(backbone, assignments)
    if not source.is_file():
        load_model(find_model(source))  # checksums of every weight file it names
    loaded = load_encoder(source, hint)
    card = loaded.card
    numbers = sum(p.numel() for p in loaded.backbone.parameters())
    lines = [
        f"{card.get('kind')} {card['backbone']['name']}, {numbers / 1e6:.2f} M "
        f"weights, id {loaded.encoder_id}",
        *loaded.report.lines(),
    ]
    for key in ("title", "steps", "complete", "preprocessing", "licence", "deviations"):
        if key in card:
            lines.append(f"{key}: {card[key]}")
    result = {
        "source": str(source),
        "encoder_id": loaded.encoder_id,
        "weights": numbers,
        "report": loaded.report.to_dict(),
        "card": card,
    }
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
@_JSON
def import_model(
    source: Path,
    backbone: str | None,
    assignments: tuple[str, ...],
    out: Path,
    as_json: bool,
) -> None:
    """Turn a foreign weight file into a model folder that every command takes.

    Nothing in the file is run; names are matched below any prefix, and at least 90%
    of the encoder must be found.
    """
    from homolog.errors import UnusableInput
    from homolog.model_files import load_encoder, save_model

    if out.exists():
        raise UnusableInput(f"{out} exists; choose another --out.")
    loaded = load_encoder(source, _hint(backbone, assignments))
    card = {
        **{k: v for k, v in loaded.card.items() if k not in ("weights", "sha256")},
        "kind": "encoder",
        "source": source.name,
        "report": loaded.report.to_dict(),
        "licence": "unknown: that of the file it was imported from",
    }
    save_model(out, loaded.backbone.state_dict(), card)
    show(
        {"model": str(out), "encoder_id": loaded.encoder_id},
        as_json,
        [*loaded.report.lines(), f"saved {out}"],
    )


@command.command("export")
@_SOURCE
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .safetensors file; its card is written beside it as .json.",
)
@_JSON
def export_model(source: Path, out: Path, as_json: bool) -> None:
    """Write the encoder of SOURCE as one file for other programs.

    Keys are the network's own (for swin and vit those of MONAI), without prefix.
    """
    from homolog.errors import UnusableInput
    from homolog.model_files import load_encoder
    from homolog.model_files.tensor_files import write_json, write_tensors

    if out.suffix != ".safetensors":
        raise UnusableInput(f"--out must end in .safetensors, got {out}.")
    loaded = load_encoder(source)
    scratch = out.with_name(f".{out.name}.new")
    try:
        write_tensors(scratch, loaded.backbone.state_dict())
        scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)
    card = {**loaded.card, "encoder_id": loaded.encoder_id}
    write_json(out.with_suffix(".json"), card)
    show(
        {"file": str(out), "card": str(out.with_suffix(".json"))},
        as_json,
        [f"saved {out} and {out.with_suffix('.json').name}"],
    )


def _hint(backbone: str | None, assignments: tuple[str, ...]) -> dict[str, Any] | None:
    from homolog.config import ConfigError, parse_assignments

    if backbone is None:
        if assignments:
            raise ConfigError("--set needs --backbone.")
        return None
    return {"name": backbone, "config": parse_assignments(assignments)}
