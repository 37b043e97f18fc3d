"""``homolog info``, ``doctor``, ``methods`` and ``gui``: the commands that look."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homolog.cli._run import common, follow, json_option, show, with_result
from homolog.errors import JobError
from homolog.events import Finished
from homolog.geometry.places import AXES_NAMED
from homolog.jobs.base import STRAIGHTEN
from homolog.words import times, visible

if TYPE_CHECKING:
    from homolog.scans.inspect import Inspection


# ``homolog info``: what a scan is, and what is wrong with it.


_COLUMNS = ("scan", "size z,y,x", "spacing mm z,y,x", "axes x,y,z", "modality", "type")


@click.command("info", short_help="Size, spacing, orientation and problems of scans.")
@click.argument(
    "scans",
    nargs=-1,
    required=True,
    metavar="SCAN...",
    type=click.Path(path_type=Path),
)
@click.option(
    "--deep/--no-deep",
    default=True,
    show_default=True,
    help="Read all values too: checksums, NaN, constant, colour. Else only headers.",
)
@click.option(
    "--keep-identifiers",
    is_flag=True,
    help="With --json, tell DICOM's PatientID as it is; otherwise as a keyed hash.",
)
@click.option("--straighten", is_flag=True, help=STRAIGHTEN)
@common
def info(
    scans: tuple[Path, ...],
    deep: bool,
    keep_identifiers: bool,
    straighten: bool,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Size, spacing, orientation, modality and problems of scans.

    SCAN is a file, a DICOM folder, zip or DICOMDIR (each series of it is shown, and
    what is no scan with its reason), a folder of scans, or a manifest (CSV, TSV or
    JSON, as for homolog prepare). Nothing is written. Scans are read piece by piece,
    never held whole where the format allows.
    """
    from homolog.errors import UnusableInput
    from homolog.index.manifests import is_manifest
    from homolog.scans.inspect import inspect_scan

    found = []
    for scan in scans:
        if is_manifest(scan):
            found += _of_manifest(scan, deep)
        else:
            paths = _expand(scan, straighten)
            found += [inspect_scan(path, deep=deep) for path in paths]
    if not found:
        raise UnusableInput(f"{scans[0]}: no scans in this folder.")
    result = {"scans": [_record(i, keep_identifiers) for i in found]}
    show(result, as_json, _table(found))
    return 0 if any(i.header is not None for i in found) else 2


def _expand(scan: Path, straighten: bool) -> list[Path]:
    """The scans a path stands for."""
    from homolog.errors import UnusableInput
    from homolog.index.tree import walk
    from homolog.scans.dicom.format import (
        dicom_scans,
        holds_several,
        straight_path,
    )
    from homolog.scans.paths import is_series_path

    if is_series_path(scan):
        return [scan]
    if not scan.exists():
        raise UnusableInput(f"{scan}: no such file or folder.")
    if holds_several(scan):
        places, found = [scan], []
    elif not scan.is_dir():
        return [straight_path(scan) if straighten else scan]
    else:
        tree = walk(scan, datasets=False)
        places, found = tree.dicom_folders, list(tree.files)
    for folder in places:
        try:
            series, others = dicom_scans(folder, straighten=straighten)
        except Exception:  # the folder itself is inspected, and tells it
            series, others = [], []
        found += series
        found += [o.path for o in others if "DICOMDIR" not in o.other_object]
        found += [] if series or others else [folder]
    return sorted(found)


def _of_manifest(path: Path, deep: bool) -> list[Inspection]:
    """The scans that a manifest lists, each with its label map, and what it lacks."""
    from homolog.index.index import find_cases
    from homolog.scans.inspect import Inspection, inspect_channels, inspect_scan
    from homolog.scans.problems import Problem, problem_of

    def look(scan: Path) -> Inspection:
        return inspect_scan(scan, deep=deep)

    try:
        told = find_cases(path, (), look)
    except Exception as error:  # this file's finding, the others are looked at
        return [Inspection(path, None, (problem_of(error),))]
    found = []
    for one in told.candidates:
        if one.channels:
            found.append(inspect_channels(one.channels, look)[0])
        else:
            found.append(inspect_scan(one.image, one.label, deep=deep))
    for gone in told.rejected:
        fault = Problem(gone.code, gone.reason)
        found.append(Inspection(Path(gone.path), None, (fault,)))
    return found


def _record(inspection: Inspection, keep_identifiers: bool) -> dict[str, Any]:
    """One scan as JSON types."""
    from homolog.errors import UnusableInput
    from homolog.store.splits import pseudonym, subject_key

    problems = [
        {"code": p.code, "text": p.text, "fatal": p.fatal} for p in inspection.problems
    ]
    record: dict[str, Any] = {
        "path": str(inspection.path),
        "usable": inspection.usable,
        "problems": problems,
    }
    header = inspection.header
    if header is None:
        return record
    record["size"] = list(header.shape)
    if inspection.placed and header.sized:
        record |= {
            "spacing_mm": list(header.affine.spacing_mm),
            "origin_mm": list(header.affine.origin_mm),
            "orientation": header.affine.orientation[::-1],
            "affine": header.affine.to_list(),
            "axes": AXES_NAMED,
        }
    record |= {
        "modality": inspection.modality,
        "dtype": header.dtype,
        "kind": header.kind,
        "frames": header.frames,
        "channels": header.channels,
    }
    if subject := str(header.meta.get("subject", "")):
        if keep_identifiers:
            record["subject"] = subject
        else:
            with contextlib.suppress(UnusableInput):  # no place for a key: not told
                record["subject"] = pseudonym(subject, subject_key())
    stats = inspection.stats
    if stats is not None and stats.low <= stats.high:
        record["range"] = [stats.low, stats.high]
    return record


def _table(found: list[Inspection]) -> list[str]:
    """Aligned columns, each scan's problems below its line."""
    rows = [_COLUMNS, *(_shown(_row(inspection)) for inspection in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [_line(rows[0], widths)]
    for row, inspection in zip(rows[1:], found, strict=True):
        lines.append(_line(row, widths))
        for problem in inspection.problems:
            mark = "unusable:" if problem.fatal else "note:"
            lines.append(f"    {mark} {visible(problem.text, one_line=True)}")
    return lines


def _shown(row: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(visible(text, one_line=True) for text in row)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(
        cell.ljust(w) for cell, w in zip(row, widths, strict=True)
    ).rstrip()


def _row(inspection: Inspection) -> tuple[str, ...]:
    header = inspection.header
    if header is None or 0 in header.shape:
        return (
            str(inspection.path),
            "-",
            "-",
            "-",
            "-",
            header.kind if header else "-",
        )
    size = times(header.shape)
    if header.frames > 1:
        size += f" x {header.frames}"
    spacing = axes = "-"
    if inspection.placed and header.sized:
        spacing = times(header.affine.spacing_mm, 4)
        axes = header.affine.orientation[::-1]
    return (
        str(inspection.path),
        size,
        spacing,
        axes,
        inspection.modality,
        f"{header.kind} {header.dtype}",
    )


@click.command("doctor", short_help="Check this machine, or stores for damage.")
@click.argument(
    "stores", nargs=-1, metavar="[STORE...]", type=click.Path(path_type=Path)
)
@click.option(
    "--repair", is_flag=True,
    help="Make damaged cases of STORE anew from their scans, where these are there.",
)  # fmt: skip
@json_option
def doctor(stores: tuple[Path, ...], repair: bool, as_json: bool) -> int:
    """Check versions, device, precision, threads, disk, memory and display.

    Each check is made, not assumed: a training step is run on every device, and a file
    is written. Exit status 1 when something needed does not work.

    With STORE, every file of the store is read and compared with its checksum instead;
    what is damaged is named. Exit status 1 when damage is left.
    """
    from homolog.machine import examine, examine_stores

    if repair and not stores:
        raise click.UsageError("--repair needs a STORE to repair.")
    if stores:
        last = follow(with_result(examine_stores(stores, repair=repair)))
        assert isinstance(last, Finished)
        told = dict(last.result)
    else:
        told = examine()
    lines = told.pop("lines")
    show(told, as_json, lines)
    return 1 if told["problems"] else 0


def _show_recipe(known: Any, name: str, recipe: str | None, as_json: bool) -> None:
    """The settings of one recipe, with their origins."""
    from homolog.recipes import leaves, origins, told

    if name not in known.names() or not hasattr(known.get(name), "RECIPES"):
        raise click.UsageError(
            f"unknown method {name!r}; homolog methods lists them; or a task that is "
            "fine-tuned."
        )
    cls = known.get(name)
    recipe = recipe or next(iter(cls.SOURCES), next(iter(cls.RECIPES)))
    if recipe not in cls.RECIPES:
        raise click.UsageError(
            f"{name} has no recipe {recipe!r}; recipes: {', '.join(cls.RECIPES)}."
        )
    tables, sources = cls.RECIPES[recipe], cls.SOURCES.get(recipe, {})
    where = origins(sources)
    rows = {
        key: {"value": value, "from": where.get(key)} for key, value in leaves(tables)
    }
    shown = {"name": name, "recipe": recipe, "settings": rows}
    show(shown, as_json, [f"{name}, recipe {recipe}", *told(tables, sources)])


@click.command("methods", short_help="List what can be pretrained.")
@click.argument("method", required=False)
@click.option(
    "--recipe", default=None, metavar="RECIPE",
    help="Of METHOD: which one is shown.  [default: the first as published]",
)  # fmt: skip
@json_option
def methods(method: str | None, recipe: str | None, as_json: bool) -> None:
    """List the methods: title, paper, backbones, recipes, whether labels are used.

    With METHOD (or a task that is fine-tuned, such as segment), show the settings of
    one of its recipes instead; of recipes as published, also whether each is from the
    paper, its public code, or our own choice.
    """
    from homolog.methods import METHODS

    if method is not None:
        from homolog.tasks import TASKS

        known = METHODS if method in METHODS.names() else TASKS
        _show_recipe(known, method, recipe, as_json)
        return
    found: dict[str, dict[str, Any]] = {}
    for name in METHODS.names():
        cls = METHODS.get(name)
        found[name] = {
            "title": cls.title,
            "paper": cls.paper,
            "backbones": list(cls.backbones) or ["any"],
            "uses_labels": cls.uses_labels,
            "recipes": sorted(cls.RECIPES),
        }
    width = max(map(len, found), default=0)
    lines = []
    for name, told in found.items():
        labels = "labels" if told["uses_labels"] else "no labels"
        lines.append(
            f"{name:<{width}}  {told['title']}. {labels}; backbones: "
            f"{', '.join(told['backbones'])}; recipes: {', '.join(told['recipes'])}. "
            f"{told['paper']}"
        )
    show({"methods": found}, as_json, lines)


@click.command("gui", short_help="Open napari with our panel.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@common
def gui(paths: tuple[Path, ...], as_json: bool, device: str, seed: int) -> None:
    """Open napari with our panel; PATHS are scans, DICOM folders, runs or models."""
    missing = [p for p in paths if not p.exists()]
    if missing:
        raise FileNotFoundError(2, "No such file or folder", str(missing[0]))
    if importlib.util.find_spec("napari") is None:
        raise JobError(
            "napari is not installed; install it with: "
            'python -m pip install "napari-homolog[gui]"'
        )
    words = [sys.executable, "-m", "homolog.gui", *map(str, paths)]
    status = subprocess.run(words, check=False).returncode
    if status != 0:
        raise JobError(f"napari ended with status {status}; see its messages above.")
