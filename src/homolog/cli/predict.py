"""``homolog predict``: scans -> labels on each scan's own grid."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from homolog.cli._run import common, show
from homolog.words import counted

_MODALITIES = ("CT", "MR", "PET", "XR", "US", "OTHER")


@click.command("predict", short_help="Label scans with a fine-tuned model.")
@click.argument(
    "scans",
    nargs=-1,
    required=True,
    metavar="SCAN...",
    type=click.Path(path_type=Path),
)
@click.option(
    "--model",
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A finetune run, or a model folder (few-voxels makes one).",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the results; each is named like its scan.",
)
@click.option(
    "--flips",
    default="",
    metavar="AXES",
    help="Average over mirrorings along these axes, e.g. x or zyx; slower by 2 each.",
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 0.9),
    default=None,
    help="Shared part of neighbouring windows.  [default: the model's]",
)
@click.option(
    "--windows",
    type=click.Choice(["scan", "trained"]),
    default="scan",
    show_default=True,
    help="scan: a scan up to half as long again as the training's window is one "
    "window, as far as memory and network allow; several times as fast. trained: "
    "windows of the training's size always.",
)
@click.option(
    "--modality",
    default=None,
    type=click.Choice(_MODALITIES, case_sensitive=False),
    help="Take every scan for this modality, whatever its file says.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default=None,
    help="Arithmetic of the network.  [default: fp32 on the CPU, auto on a GPU]",
)
@common
def command(
    scans: tuple[Path, ...],
    model: Path,
    out: Path,
    flips: str,
    overlap: float | None,
    windows: str,
    modality: str | None,
    precision: str | None,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Label each SCAN (file, DICOM folder, or folder of scans) on its own grid.

    Results have their scan's geometry and file name; a DICOM folder NAME gives
    NAME.nii.gz. A scan that cannot be predicted does not stop the others. A classifier
    writes one table, classes.csv; slices.csv beside it where it tells slices apart.
    """
    from homolog.cli._run import follow
    from homolog.errors import JobError
    from homolog.events import Finished
    from homolog.jobs.predicting import label_scans

    job = label_scans(
        model,
        list(scans),
        out,
        flips=flips,
        overlap=overlap,
        windows=windows,
        modality=modality,
        precision=precision,
        device=device,
    )
    last = follow(_with_result(job))
    if not isinstance(last, Finished):
        raise JobError("prediction did not come to its end.")
    result = last.result
    show(result, as_json, _lines(result, out))
    if result["stopped"]:
        return 130
    return 1 if result["failed"] else 0


def _with_result(job: Generator[Any, Any, dict[str, Any]]) -> Generator[Any, Any, None]:
    """The job's events, and its result as the last of them."""
    from homolog.events import Finished

    result = yield from job
    yield Finished(result)


def _lines(result: Mapping[str, Any], out: Path) -> list[str]:
    found = result["predicted"]
    scans = counted(len(found), "scan")
    lines = [f"{scans} labelled in {out}{_windows(found)}"]
    if found and "class" in found[0]:
        lines = [f"{Path(f['scan']).name}: {_told(f)}" for f in found]
        lines.append(f"written to {out / 'classes.csv'}")
        if found[0].get("slices"):
            lines.append(f"slice by slice: {out / 'slices.csv'}")
    if result["failed"]:
        lines.append(f"{len(result['failed'])} could not be:")
        lines += [f"  {f['scan']}: {f['reason']}" for f in result["failed"]]
    return lines


def _windows(found: Sequence[Mapping[str, Any]]) -> str:
    """``, one window each``; empty where no network slid over the scans."""
    counts = sorted({int(f["windows"]) for f in found if "windows" in f})
    if not counts:
        return ""
    if counts == [1]:
        return ", one window each"
    low, high = counts[0], counts[-1]
    return f", {low if low == high else f'{low} to {high}'} windows each"


def _told(found: Mapping[str, Any]) -> str:
    """``effusion (92%), nodule (61%)``; of none, what came nearest."""
    limits, chances = found.get("thresholds"), found["chances"]
    if not limits:
        return f"{found['class']} ({chances[found['class']]:.0%})"
    shown = [name for name, p in chances.items() if p >= limits[name]]
    if not shown:
        best = max(chances, key=lambda name: chances[name])
        return f"{found['class']} (at most {best}, {chances[best]:.0%})"
    return ", ".join(f"{name} ({chances[name]:.0%})" for name in shown)
