"""``homolog prepare``: scans wherever they lie -> a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from homolog.cli._run import common, show, triple
from homolog.config import ConfigError
from homolog.words import human_bytes

_MODALITIES = ("CT", "MR", "PET", "XR", "US", "OTHER")
_SPACINGS = ("auto", "native")
# Reasons listed one by one before the rest is counted.
_LISTED = 20


@click.command("prepare", short_help="Turn scans into a store for training.")
@click.argument(
    "sources",
    nargs=-1,
    required=True,
    metavar="SOURCE...",
    type=click.Path(path_type=Path),
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="STORE",
    help="Folder of the store; new, empty, or one to bring up to date.",
)
@click.option(
    "--labels",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of label maps named like their scans. May be repeated.",
)
@click.option(
    "--spacing",
    default="auto",
    show_default=True,
    metavar="Z,Y,X",
    help="Voxel size in mm, 'native' to keep each scan's, or 'auto'.",
)
@click.option(
    "--window-hu",
    default=None,
    metavar="LO,HI",
    help="CT values kept.  [default: -1000,1000]",
)
@click.option(
    "--modality",
    default=None,
    type=click.Choice(_MODALITIES, case_sensitive=False),
    help="Treat every scan as this, whatever its file says.",
)
@click.option(
    "--names",
    default="",
    metavar="VALUE=NAME,...",
    help="What label values are called, such as '1=liver,2=left kidney'; wins over "
    "names in files, and is kept when the store is brought up to date.",
)
@click.option(
    "--keep-identifiers",
    is_flag=True,
    help="Store patients' names (DICOM's PatientID, subjects of a manifest) as they "
    "are. Otherwise as keyed hashes, by which nobody else finds the name.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Take out cases of STORE that SOURCE does not have; else they stay.",
)
@common
def command(
    sources: tuple[Path, ...],
    out: Path,
    labels: tuple[Path, ...],
    spacing: str,
    window_hu: str | None,
    modality: str | None,
    names: str,
    keep_identifiers: bool,
    replace: bool,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Turn scans into a store: checked, on one grid spacing, quick to read in parts.

    SOURCE is a folder of scans, an nnU-Net or Decathlon dataset, a DICOM tree, a
    CSV or JSON manifest, a folder of pictures, or single files. What is unsound is
    left out with its reason. Run it again to go on after an interruption or to take
    in what changed; what is current is not read twice, and cases of the store that
    SOURCE does not have stay in it.

    A manifest has a column image and, where known, label, modality, class (a|b are
    two, "no finding" is none), types, subject, split (train, val, test), boxes.

    Without --names, labels are called as dataset.json, a label_names.json beside the
    label maps, a 3D Slicer segmentation, or a JSON manifest says, or else by their
    number. Labels of one name are one class, whatever their numbers; those called
    ignore teach nothing.

    Names of files and folders are kept (ids of cases, sources of the store): rename
    files named after patients before you share a store.
    """
    from homolog.cli._run import follow, with_result
    from homolog.errors import JobError
    from homolog.events import Finished
    from homolog.jobs.preparing import build_store

    job = build_store(
        list(sources),
        out,
        labels=list(labels),
        spacing=spacing if spacing in _SPACINGS else triple(spacing, "--spacing"),
        modality=modality,
        window_hu=None if window_hu is None else _window(window_hu),
        names=names,
        seed=seed,
        keep_identifiers=keep_identifiers,
        replace=replace,
    )
    try:
        last = follow(with_result(job))
    except KeyboardInterrupt:
        job.close()  # what is half done goes, and the store is free
        click.echo("Stopped; what is prepared stays, run it again to go on.", err=True)
        return 130
    if not isinstance(last, Finished):
        raise JobError("preparing did not come to its end; run it again.")
    result = last.result
    keys = ("cases", "labelled", "rejected", "store", "kept", "removed")
    show({key: result[key] for key in keys}, as_json, _lines(result))
    return 130 if result["stopped"] else 0


def _window(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not low < high:
        raise ConfigError(
            f"--window-hu must be two numbers LO,HI with LO below HI, got {text!r}."
        )
    return low, high


def _lines(result: Mapping[str, Any]) -> list[str]:
    """The summary for people."""
    rejected = result["rejected"]
    size = human_bytes(result["bytes"])
    lines = [
        f"{result['cases']} cases ({result['labelled']} labelled), "
        f"{len(rejected)} rejected, {size} in {result['store']}",
        f"  {result['built']} prepared now, {result['reused']} were current",
        *(f"  {sentence}" for sentence in result["explanation"]),
    ]
    if rejected:
        lines += ["rejected:", *_rejected_lines(rejected)]
    return lines


def _rejected_lines(rejected: Sequence[Mapping[str, str]]) -> list[str]:
    lines = [f"  {r['path']}: {r['reason']}" for r in rejected[:_LISTED]]
    rest = Counter(r["reason"] for r in rejected[_LISTED:])
    lines += [f"  {count} more: {reason}" for reason, count in rest.most_common(10)]
    if rest:
        lines.append("  all of them: rejected.json in the store")
    return lines
