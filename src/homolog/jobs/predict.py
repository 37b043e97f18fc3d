"""Label scans with a fine-tuned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import option
from homolog.events import Job, Note, stopped_words
from homolog.jobs.base import DEVICES, MODALITIES, STRAIGHTEN, paths
from homolog.runs.run import left_out
from homolog.words import counted

FAILURES = "failed"


@dataclass(frozen=True)
class Config:
    """Label each SCAN (file, DICOM folder, or folder of scans) on its own grid.

    Results have their scan's geometry and file name; a DICOM folder NAME gives
    NAME.nii.gz; volumes.csv has the millilitres of each class of all scans. A scan that
    cannot be predicted does not stop the others. A classifier writes one table,
    classes.csv; slices.csv beside it where it tells slices apart. A detector writes
    NAME.boxes.json and NAME.mrk.json (regions of 3D Slicer) of each scan, and boxes.csv
    of all. A translator writes an image. A model of several channels takes the files of
    a case together: NAME_0000 NAME_0001, names that end in the channels' names, one
    file of four axes, or "A|B", files in the channels' order.
    """

    scans: tuple[str, ...] = option(
        ..., "Scans and folders of scans.", flag="scans", metavar="SCAN..."
    )
    model: str = option(
        ...,
        "A finetune run, or a model folder (few-voxels makes one).",
        metavar="RUN",
        reads="model",
    )
    out: str = option(
        ...,
        "Folder of the results; each is named like its scan.",
        metavar="DIR",
        writes=True,
    )
    flips: str = option(
        "",
        "Average over mirrorings along these axes, e.g. x or zyx; slower by 2 each.",
        metavar="AXES",
    )
    overlap: float | None = option(
        None,
        "Shared part of neighbouring windows.",
        minimum=0.0,
        maximum=0.9,
        empty="the model's",
    )
    windows: str = option(
        "scan",
        "scan: a scan up to half as long again as the training's window is one "
        "window, as far as memory and network allow; several times as fast. trained: "
        "windows of the training's size always.",
        choices=("scan", "trained"),
    )
    modality: str | None = option(
        None,
        "Take every scan for this modality, whatever its file says.",
        choices=MODALITIES,
        empty="what the file says",
    )
    least_score: float | None = option(
        None,
        "Of a detector: boxes with a smaller score are not told.",
        minimum=0.0,
        maximum=1.0,
        empty="the model's threshold",
    )
    precision: str | None = option(
        None,
        "Arithmetic of the network.",
        choices=("auto", "fp32", "bf16", "fp16"),
        empty="fp32 on the CPU, auto on a GPU",
    )
    straighten: bool = option(False, STRAIGHTEN)
    format: str = option(
        "scan",
        "scan: labels in the format of their scan, NIfTI where it cannot be written. "
        "dicom-seg: a DICOM segmentation of each DICOM scan, with names, colours and "
        "codes, for archives and viewers. seg-nrrd: a segmentation of 3D Slicer, with "
        "names and colours.",
        choices=("scan", "dicom-seg", "seg-nrrd"),
    )
    device: str = option("auto", DEVICES, metavar="DEVICE")


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Label scans, each on its own grid; one that cannot be does not stop the others.

    Returns:
        ``predicted`` (scan, labels, voxels and volumes_ml per label name; of a
        classifier scan, class, chances ...; of a detector scan, boxes, files),
        ``failed`` (scan, reason), ``left_out`` (scans that ``Run.leave_out`` named
        before they were done), ``out`` and ``stopped``.

    Raises:
        UnusableInput: No such scan or model, or a model that cannot predict.
        ConfigError: Axes that cannot be meant.
    """
    from homolog.distributed import choose_device
    from homolog.tasks.base import PredictOptions
    from homolog.use.predict import (
        ENDINGS,
        find_scans,
        mirrored_axes,
        open_predictor,
        predict_scans,
    )

    scans = paths(config.scans, "scan")
    found = find_scans(scans, straighten=config.straighten)
    out = Path(config.out)
    options = PredictOptions(
        mirrored_axes(config.flips),
        config.overlap,
        config.windows,
        config.modality or None,
        config.least_score,
    )
    task, trained = open_predictor(
        Path(config.model), choose_device(config.device), precision=config.precision
    )
    if early := stopped_words(trained.card):
        yield Note(f"the training of this model was {early}.", "warning")
    result = yield from predict_scans(
        task, trained, found, out, options, ending=ENDINGS[config.format],
        left_out=lambda: left_out(folder),
    )  # fmt: skip
    for entry in result["predicted"]:
        if "result" in entry:
            entry["labels"] = entry["result"]
    return {**result, "out": config.out}


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    found, out = result["predicted"], Path(result["out"])
    scans = counted(len(found), "scan")
    done = "made into images" if found and "image" in found[0] else "labelled"
    told = [f"{scans} {done} in {out}{_windows(found)}"]
    if found and "class" in found[0]:
        told = [f"{Path(f['scan']).name}: {_class_words(f)}" for f in found]
        told.append(f"written to {out / 'classes.csv'}")
        if found[0].get("slices"):
            told.append(f"slice by slice: {out / 'slices.csv'}")
    if found and "boxes" in found[0]:
        told = [f"{Path(f['scan']).name}: {_box_words(f['boxes'])}" for f in found]
        told.append(f"written to {out / 'boxes.csv'}, and files of each scan beside it")
    if result["failed"]:
        told.append(f"{len(result['failed'])} could not be:")
        told += [f"  {f['scan']}: {f['reason']}" for f in result["failed"]]
    return told


def _windows(found: Sequence[Mapping[str, Any]]) -> str:
    """``, one window each``; empty where no network slid over the scans."""
    counts = sorted({int(f["windows"]) for f in found if "windows" in f})
    if not counts:
        return ""
    if counts == [1]:
        return ", one window each"
    low, high = counts[0], counts[-1]
    return f", {low if low == high else f'{low} to {high}'} windows each"


def _class_words(found: Mapping[str, Any]) -> str:
    """``effusion (92%), nodule (61%)``; of none, what came nearest."""
    limits, chances = found.get("thresholds"), found["chances"]
    if not limits:
        return f"{found['class']} ({chances[found['class']]:.0%})"
    shown = [name for name, p in chances.items() if p >= limits[name]]
    if not shown:
        best = max(chances, key=lambda name: chances[name])
        return f"{found['class']} (at most {best}, {chances[best]:.0%})"
    return ", ".join(f"{name} ({chances[name]:.0%})" for name in shown)


def _box_words(boxes: Sequence[Mapping[str, Any]]) -> str:
    """``2 lesion (91%, 62%), 1 cyst (55%)``."""
    scores: dict[str, list[str]] = {}
    for box in boxes:
        scores.setdefault(box["label"], []).append(f"{box['score']:.0%}")
    told = (f"{len(s)} {n} ({', '.join(s[:5])})" for n, s in sorted(scores.items()))
    return ", ".join(told) or "no box"
