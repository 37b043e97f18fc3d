"""``homolog models``: look at encoders, take in other people's, hand ours out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homolog.cli._run import json_option, show
from homolog.exporting.kinds import DEFAULT, KINDS

if TYPE_CHECKING:
    from homolog.model_files.library import KnownModel

_SOURCE = click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
_BACKBONE = click.option(
    "--backbone",
    default=None,
    metavar="B",
    help="Network of a foreign file, where its names do not tell it.",
)
_SET = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Setting of that network, e.g. heads=6; wins over what is read off the file. "
    "May be repeated.",
)
_BELOW = click.option(
    "--below",
    default=None,
    metavar="PREFIX",
    help="What the names begin with, where a file holds several networks.",
)


class _Importing(click.Command):
    """Its help ends with what can be imported."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every layout that is known."""
        from homolog.model_files.layouts import LAYOUTS

        able = [one for one in LAYOUTS if not one.why_not]
        with formatter.section("Files that are recognised, and the network they make"):
            formatter.write_dl(
                [(one.backbone, f"{one.title}: {', '.join(one.published)}")
                 for one in able]
            )  # fmt: skip
        with formatter.section("Recognised, but of no network here"):
            formatter.write_dl(
                [(one.title, f"{', '.join(one.published)}: {one.why_not}")
                 for one in LAYOUTS if one.why_not]
            )  # fmt: skip


@click.group("models", short_help="List, show, check, import, export encoders.")
def command() -> None:
    """Look after trained networks.

    Those that come with Homolog, and those of your library, are known by name: every
    command that takes a run or a model folder takes their names, and so does the
    window. The library is the folder named by HOMOLOG_MODELS, or else models in the
    home folder of the window (homolog in your own).

    \b
    homolog models list                        what there is, by name
    homolog models list runs                   and in a folder
    homolog models show NAME                   what it learnt from, licence, scores
    homolog models add runs/pre --name liver   copy a run's model into the library
    homolog models delete liver
    homolog models check runs/pre
    homolog models import VoComni_B.pt --name vocomni
    homolog models export runs/pre --out encoder.safetensors
    homolog models export runs/seg --as bundle --out seg_bundle
    homolog models join runs/a runs/b --out both
    """  # noqa: D301 - click reads the backspace


@command.command("list")
@click.argument("folder", default=None, required=False, metavar="[DIR]",
                type=click.Path(path_type=Path))  # fmt: skip
@json_option
def list_models(folder: Path | None, as_json: bool) -> None:
    """List the models that are known by name, and those in DIR and below."""
    from homolog.model_files import library

    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(2, "No such folder", str(folder))
    groups = [
        ("built in", library.shipped_models()),
        (f"library {library.library_folder()}",
         list(library.models_below(library.library_folder(), library.LIBRARY))),
        (str(folder), list(_below(folder)) if folder is not None else []),
    ]  # fmt: skip
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for title, models in groups:
        own = [_row(model) for model in models]
        rows += [row for row, _ in own]
        if own:
            lines += [f"{title}:", *(f"  {text}" for _, text in own)]
    if folder is not None and not groups[2][1]:
        lines.append(f"no models in {folder}")
    if not lines:
        lines.append(
            f"no models in the library {library.library_folder()}; put one there: "
            "homolog models add RUN --name NAME"
        )
    show({"models": rows, "library": str(library.library_folder())}, as_json, lines)


def _below(folder: Path) -> Iterator[KnownModel]:
    """Every model of a folder, known by its path."""
    from homolog.model_files.card import CARD
    from homolog.model_files.library import ELSEWHERE, KnownModel

    for path in sorted(folder.rglob(CARD)):
        place = path.parent
        # names that begin so are half-written
        if not any(part.startswith(".") for part in place.relative_to(folder).parts):
            path = place.parent if place.name == "model" else place
            yield KnownModel(str(path), place, path, ELSEWHERE)


def _row(model: KnownModel) -> tuple[dict[str, Any], str]:
    """What a list shows of a model; a damaged one is shown as such."""
    from homolog.errors import UnusableInput
    from homolog.events import stopped_words
    from homolog.model_files.card import read_card
    from homolog.model_files.facts import data_words, licence_words, trained_on
    from homolog.words import human_bytes
    from homolog.writing import folder_bytes

    row: dict[str, Any] = {
        "name": model.name, "model": str(model.folder), "where": model.where
    }  # fmt: skip
    try:
        card = read_card(model.folder)
        for name in card["sha256"]:
            if not (model.folder / name).is_file():
                raise UnusableInput(f"{model.folder / name} is missing.")
        row |= {
            "kind": card.get("kind"),
            "method": card.get("method"),
            "backbone": (card.get("backbone") or {}).get("name"),
            "steps": card.get("steps"),
            "total_steps": card.get("total_steps"),
            "stopped": bool(stopped_words(card)),
            "cases": card.get("cases"),
            "decoder": card.get("decoder"),
            "bytes": folder_bytes(model.folder),
            "trained_on": trained_on(card),
            "data": data_words(card),
            "licence": licence_words(card),
        }
    except UnusableInput as error:
        row["damaged"] = str(error)
        return row, f"{model.name}  damaged: {error}"
    steps = f"{row['steps']} steps" if row["steps"] is not None else ""
    unknown = row["trained_on"].startswith("unknown")
    parts = [
        _network_words(row),
        stopped_words(card) or steps,
        human_bytes(row["bytes"]),
        ""
        if unknown and not row["data"]
        else f"learnt from {row['data'] or row['trained_on']}",
        f"licence {row['licence']}",
    ]
    return row, f"{model.name}  {'; '.join(part for part in parts if part)}"


def _network_words(row: Mapping[str, Any]) -> str:
    if row["backbone"] is None:
        return f"{row['kind']} without an encoder"
    method = f"{row['method']} on " if row["method"] else ""
    more = ", with its decoder" if row["decoder"] else ""
    return f"{row['kind']}, {method}{row['backbone']}{more}"


@command.command("show")
@click.argument("name", metavar="NAME|RUN")
@json_option
def show_model(name: str, as_json: bool) -> None:
    """Tell all about a model: what it learnt from, its licence, how good it is."""
    from homolog.model_files.card import read_card
    from homolog.model_files.facts import facts_of, title_of
    from homolog.model_files.folder import find_model
    from homolog.model_files.keeping import runs_using
    from homolog.model_files.library import located
    from homolog.writing import folder_bytes

    path = located(name)
    folder = find_model(path)
    card = read_card(folder)
    facts = list(facts_of(card, folder_bytes(folder), path))
    runs = [str(run) for run in runs_using(path, _places_of_runs())]
    lines = [f"{name}: {title_of(card)}", *(f"  {k}: {text}" for k, text in facts)]
    lines += [f"  Used by: {run}" for run in runs]
    result = {"name": name, "model": str(folder), "facts": facts, "runs": runs}
    show({**result, "card": card}, as_json, lines)


def _places_of_runs() -> list[Path]:
    """Where runs are looked for: beside the library, and here."""
    from homolog.model_files.library import library_folder

    return [library_folder().parent / "runs", Path()]


@command.command("add")
@click.argument("source", metavar="RUN")
@click.option("--name", required=True, metavar="NAME", help="New in the library.")
@json_option
def add_model(source: str, name: str, as_json: bool) -> None:
    """Copy the model of RUN, or a model folder, into the library under a NAME."""
    from homolog.model_files import keeping

    made = keeping.add_model(source, name)
    lines = [f"saved {made.folder}; every command takes it as {name}"]
    show({"name": name, "model": str(made.folder)}, as_json, lines)


@command.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete_model(name: str, yes: bool, as_json: bool) -> int:
    """Delete the model NAME of the library, after a question; for good.

    Those that come with Homolog stay, and so does what lies elsewhere.
    """
    from homolog.errors import UnusableInput
    from homolog.model_files import keeping
    from homolog.words import counted, human_bytes, listed
    from homolog.writing import folder_bytes

    model = keeping.deletable(name)
    runs = keeping.runs_using(model.path, _places_of_runs())
    size = human_bytes(folder_bytes(model.path))
    if runs:
        click.echo(
            f"{counted(len(runs), 'run')} began with it (they keep their own weights): "
            f"{listed(runs, most=5)}",
            err=True,
        )
    if not yes:
        if not sys.stdin.isatty():
            raise UnusableInput(
                f"to delete {model.path} ({size}) for good, add --yes; nothing was "
                "deleted."
            )
        if not click.confirm(f"Delete {model.path} ({size}) for good?", err=True):
            show({"deleted": None}, as_json, ["nothing was deleted"])
            return 0
    keeping.delete_model(model)
    result = {"deleted": str(model.path), "runs": [str(run) for run in runs]}
    show(result, as_json, [f"deleted {model.path}"])
    return 0


@command.command("check")
@_SOURCE
@_BACKBONE
@_SET
@_BELOW
@json_option
def check_model(
    source: Path,
    backbone: str | None,
    assignments: tuple[str, ...],
    below: str | None,
    as_json: bool,
) -> None:
    """Verify SOURCE (run, model folder, weight file) and tell what it holds.

    Of a weight file of another project: its layout, network and settings, how its
    scans were prepared, and what an import would leave aside.
    """
    told = _hint(source, backbone, assignments, below)
    from homolog.model_files import care

    result = care.check_model(source, told)
    lines = result.pop("lines")
    show(result, as_json, lines)


@command.command("import", cls=_Importing)
@_SOURCE
@_BACKBONE
@_SET
@_BELOW
@click.option(
    "--name",
    default=None,
    metavar="NAME",
    help="Into the library, under this name.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Or into this model folder; new.",
)
@click.option(
    "--allow-dropped",
    is_flag=True,
    help="Go on where part of the file's encoder would be dropped, or is missing.",
)
@json_option
def import_model(
    source: Path,
    backbone: str | None,
    assignments: tuple[str, ...],
    below: str | None,
    name: str | None,
    out: Path | None,
    allow_dropped: bool,
    as_json: bool,
) -> None:
    """Turn a foreign weight file into a model folder that every command takes.

    SOURCE is a weight file (.pt, .pth, .ckpt, .bin, .safetensors) or a folder with one.
    Nothing in it is run. Its network and settings are read off the names and shapes of
    its tensors, the preparation of its scans off the plan or settings that come with
    it, or as its project publishes it. A decoder that has a place here comes along.
    What would be dropped of the file's encoder, or is missing, stops the import.
    """
    from homolog.model_files import keeping, library

    if (name is None) == (out is None):
        raise click.UsageError("give either --name or --out.")
    told = _hint(source, backbone, assignments, below)
    if name is not None:
        keeping.check_name(name)
    from homolog.model_files import care

    place = out or library.library_folder() / str(name)
    result = care.import_model(source, place, told, allow_dropped=allow_dropped)
    lines = result.pop("lines")
    known = f"; every command takes it as {name}" if name else ""
    show(result, as_json, [*lines, f"saved {place}{known}"])


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
    from homolog.exporting.export import export_model as export
    from homolog.words import listed

    result = export(source, out, kind, check)
    names = [str(out)]
    if "card" in result:
        names.append(Path(result["card"]).name)
    if "decoder" in result:
        names.append(f"its decoder {Path(result['decoder']).name}")
    lines = result.pop("lines")
    show(result, as_json, [f"saved {listed(names)}", *lines])


def _hint(
    source: Path, backbone: str | None, assignments: tuple[str, ...], below: str | None
) -> dict[str, Any] | None:
    """What is said of a file; one that holds no weights is refused before torch loads.

    Importing torch and MONAI takes seconds.
    """
    from homolog.config import parse_assignments
    from homolog.model_files.foreign import check_kind

    if source.is_file() or source.is_symlink():
        check_kind(source)
    from homolog.model_files import care

    return care.hint(backbone, parse_assignments(assignments), below)


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
