"""Open a trained model, and predict scans from files with it.

Each result lies on its scan's own grid and has its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from homolog.backbones import build
from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Progress, Request, Saved
from homolog.json_files import SENSELESS
from homolog.memory import bounded
from homolog.model_files.card import CARD, MEMBERS, learnt_of
from homolog.model_files.folder import load_model
from homolog.scans.boxes import BoxList, box_files, write_box_table
from homolog.scans.channels import (
    case_path,
    grouped,
    lacking_text,
    named_together,
    read_channels,
)
from homolog.scans.dicom.export import SUFFIX, write_segmentation
from homolog.scans.dicom.format import straight_path
from homolog.scans.files import read_scan
from homolog.scans.formats import slicer
from homolog.scans.names import write_names
from homolog.scans.paths import is_scan_path, is_series_path, scan_stem, split_series
from homolog.scans.problems import problem_of
from homolog.scans.volume import Channel, LabelMap, Volume
from homolog.scans.write import holds_names, write_labels, write_volume
from homolog.tasks import TASKS
from homolog.tasks.base import (
    FACTS,
    Findings,
    LearnedTask,
    PredictOptions,
    Task,
    Trained,
    settings_of,
)
from homolog.tasks.classify.answer import write_classes, write_slices
from homolog.training.stepping import resolve_precision
from homolog.writing import as_one_file, write_table

# Suffixes labels can be written with; anything else becomes .nii.gz.
WRITTEN = (".nii.gz", ".nii", ".nrrd", ".mha")
# Of all scans that were labelled: millilitres of each class.
VOLUMES = "volumes.csv"
# What labels can be asked for as -> how their files end.
ENDINGS = {"scan": "", "dicom-seg": SUFFIX, "seg-nrrd": slicer.SUFFIX}
_AXES = {"z": 0, "y": 1, "x": 2}


def open_trained(
    source: str | Path, device: torch.device, *, precision: str | None = None
) -> tuple[LearnedTask, Trained]:
    """Load a fine-tuned model, as ``open_predictor`` but nothing else.

    Raises:
        UnusableInput: Also where the model was not fine-tuned on labelled cases.
    """
    task, model = open_predictor(source, device, precision=precision)
    if not isinstance(task, LearnedTask):
        raise UnusableInput(
            f"{source} holds a model of kind {model.card.get('kind')!r}, which labels "
            "scans (homolog predict) but cannot score a store; predict into a folder "
            "and take: homolog evaluate FOLDER --labels DIR"
        )
    return task, model


def open_predictor(
    source: str | Path, device: torch.device, *, precision: str | None = None
) -> tuple[Task, Trained]:
    """Load a model that labels scans.

    Args:
        source: Run folder, or a model folder.
        device: Where it is to run.
        precision: ``fp32``, ``bf16`` or ``auto``; None takes fp32 on the CPU and
            ``auto`` on a GPU.

    Returns:
        The task and its network in evaluation mode.

    Raises:
        UnusableInput: No model there, an encoder only, or weights that do not fit.
    """
    loaded = load_model(source)
    state, card = loaded.state, loaded.card
    kind = card.get("kind", "")
    cls = TASKS.get(kind) if kind in TASKS.names() else None
    own_way = None if cls is None else cls.opened(loaded, device, precision)
    if own_way is not None:
        return own_way
    if cls is None or not issubclass(cls, LearnedTask):
        raise UnusableInput(
            f"{source} holds a model of kind {kind!r}, which cannot predict; make one "
            "with: homolog finetune segment STORE --encoder RUN --out RUN2"
        )
    for part in ("backbone", "task_config", "task_spec"):
        if not card.get(part):
            raise UnusableInput(
                f"{loaded.folder / CARD} is damaged ({part} is missing)."
            )
    try:
        task = cls(settings_of(cls.Config, card["task_config"], where=str(source)))
        with bounded(f"the model {source}"):
            network = _network(task, card)
    except (UnusableInput, ConfigError):
        raise
    except SENSELESS as error:
        raise UnusableInput(
            f"{loaded.folder / CARD} is damaged (the network cannot be built: {error})."
        ) from error
    own = network.state_dict()
    odd = sorted(own.keys() ^ state.keys())
    odd += [n for n in own if n in state and own[n].shape != state[n].shape]
    if odd:
        raise UnusableInput(
            f"the weights in {source} do not fit their model.json: {len(odd)} tensors "
            f"differ, first {odd[0]!r}."
        )
    network.load_state_dict(state)
    network.to(device).eval().requires_grad_(False)
    if precision is None:
        precision = "fp32" if device.type == "cpu" else "auto"
    precision = resolve_precision(precision, device, network)
    learnt = learnt_of(card, loaded.folder)
    if card["task_spec"].get("slicewise"):
        learnt = learnt.planar()
    return task, Trained(network, card["task_spec"], card, device, precision, learnt)


def _network(task: LearnedTask, card: Mapping[str, Any]) -> nn.Module:
    """The network of a card, of random weights; of several models all of theirs."""
    networks = []
    for member in card.get(MEMBERS) or [card]:
        told = member["backbone"]
        backbone = build(told["name"], told.get("config", {}))
        networks.append(task.network(backbone, card["task_spec"]))
    return task.joined(networks) if card.get(MEMBERS) else networks[0]


def mirrored_axes(text: str) -> tuple[int, ...]:
    """``"zx"`` -> (0, 2)."""
    letters = text.replace(",", "").lower()
    if set(letters) - set(_AXES) or len(set(letters)) != len(letters):
        raise ConfigError(f"--flips must name axes out of z, y, x once, got {text!r}.")
    return tuple(sorted(_AXES[letter] for letter in letters))


def find_scans(paths: Iterable[Path], *, straighten: bool = False) -> list[Path]:
    """Files and DICOM folders named directly, or lying in folders named.

        Files of one case that are named together, ``a|b``, stay together.


    Args:
        paths: Named by the user.
        straighten: DICOM scans whose slices lean or are uneven go by the path that
            resamples them.

    Raises:
        UnusableInput: A path that does not exist, or a folder without scans.
    """
    found: list[Path] = []
    for path in paths:
        if together := named_together(path):
            for part in together:
                if not part.exists() and not is_series_path(part):
                    raise UnusableInput(f"there is no {part}.")
            found.append(path)
        elif not path.exists() and not is_series_path(path):
            raise UnusableInput(f"there is no {path}.")
        if path.is_dir() and not is_scan_path(path):
            inside = sorted(
                p for p in path.iterdir() if is_scan_path(p) and not _is_half(p)
            )
            if not inside:
                raise UnusableInput(f"{path} holds no scan.")
            found += inside
        else:
            found.append(path)
    if straighten:
        found = [straight_path(path) for path in found]
    return list(dict.fromkeys(found))


def _is_half(path: Path) -> bool:
    """Whether a file is the voxels of a pair whose header stands beside it."""
    return path.suffix.lower() == ".img" and path.with_suffix(".hdr").exists()


def result_paths(
    scans: Sequence[Path], out: Path, *, ending: str = ""
) -> dict[Path, Path]:
    """Where each scan's result goes: its own file name in ``out``.

    A suffix labels cannot be written with (and a DICOM folder) becomes ``.nii.gz``;
    all become ``ending`` where one is asked for (``ENDINGS``).

    Raises:
        UnusableInput: Two scans would share one file, or a result would overwrite its
            own scan.
    """
    scan_of: dict[str, Path] = {}
    result: dict[Path, Path] = {}
    for scan in scans:
        suffix = next((s for s in WRITTEN if scan.name.lower().endswith(s)), None)
        name = scan.name
        if scan.is_dir():
            name = f"{scan.resolve().name}.nii.gz"
        elif is_series_path(scan):
            folder, key = split_series(scan)
            name = f"{folder.resolve().name}_{key}.nii.gz"
        elif suffix is None:
            name = f"{scan.stem}.nii.gz"
        if ending:
            name = f"{scan_stem(Path(name))}{ending}"
        target = out / name
        if (same := as_one_file(target)) in scan_of:
            raise UnusableInput(
                f"{scan_of[same]} and {scan} would both be written to {target}; "
                "predict them into different folders."
            )
        if target.resolve() == scan.resolve():
            raise UnusableInput(
                f"the result of {scan} would overwrite it; choose another --out."
            )
        scan_of[same] = scan
        result[scan] = target
    return result


def predict_scans(
    task: Task,
    model: Trained,
    scans: Sequence[Path],
    out: Path,
    options: PredictOptions = PredictOptions(),  # noqa: B008 - frozen
    *,
    ending: str = "",
    left_out: Callable[[], Collection[str]] = tuple,
) -> Job[dict[str, Any]]:
    """Predict scan after scan; one that cannot be does not stop the others.

    A model of several channels takes the files of a case together: see ``cases_of``.

    Args:
        task: What the model was trained for; labels are written as files, classes of
            whole scans together as ``classes.csv``, and those of their slices as
            ``slices.csv``.
        model: Trained.
        scans: Files or DICOM folders.
        out: Folder of the results; made if absent.
        options: For the task's ``run``.
        ending: Of all label files, out of ``ENDINGS``; empty for each scan's own.
        left_out: Tells scans that are not wanted any more, asked again and again: they
            are passed over, and one that is at work is given up.

    Returns:
        ``predicted`` (scan, result, per label name voxels and volumes_ml, ``windows``
        that covered it where a network slid over it; or scan and the ``image`` that
        was made of it; or scan, and
        ``Findings.to_dict``; and ``notes`` on this scan), ``failed`` (scan, reason),
        ``warnings`` on all of them, ``left_out`` and ``stopped``. Of a detector
        ``boxes`` (rows of the table ``boxes.csv``) and the ``files`` of each scan.
    """
    cases = cases_of(model, scans)
    targets = result_paths(list(cases), out, ending=ending)
    out.mkdir(parents=True, exist_ok=True)
    warnings = [model.learnt.remark] if model.learnt.remark else []
    for warning in warnings:
        yield Note(warning, "warning")
    told = _Told([], [], left_out)
    with Beside(model.device.type != "cpu") as beside:
        stopped = yield from _all(task, model, cases, targets, options, beside, told)
    if not stopped:
        yield Progress("scans", len(targets), len(targets))
    yield from _keep_tables(told.done, out)
    return {
        "predicted": told.done, "failed": told.failed, "warnings": warnings,
        "left_out": told.given_up, "stopped": stopped,
    }  # fmt: skip


@dataclass(frozen=True)
class _Told:
    """What came of scans, in their order.

    Attributes:
        done: Rows of those predicted.
        failed: Scan and reason of the others.
        left_out: Tells which are not wanted any more.
        given_up: Those of them that were passed over or given up.
    """

    done: list[dict[str, Any]]
    failed: list[dict[str, str]]
    left_out: Callable[[], Collection[str]]
    given_up: list[str] = field(default_factory=list)

    def passes(self, scan: Path) -> bool:
        """Whether a scan is not wanted any more."""
        return str(scan) in self.left_out()


T = TypeVar("T")


class Beside:
    """Two threads for what goes on beside a GPU; none where the CPU is busy itself.

    So the next scan is read and the last one's results are written while the network
    is at work. A scan more, and one's results, are in memory for it.

    Args:
        wanted: Whether to have them; else a call is made where its answer is asked for.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self._pool = ThreadPoolExecutor(2, "homolog-beside") if wanted else None

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:  # what is being written is written
            self._pool.shutdown(wait=True)

    def call(self, act: Callable[[], T]) -> Callable[[], T]:
        """What gives the answer, or raises; it may be made already."""
        return act if self._pool is None else self._pool.submit(act).result


def _all(
    task: Task, model: Trained, cases: Mapping[Path, tuple[Channel, ...]],
    targets: Mapping[Path, Path], options: PredictOptions, beside: Beside, told: _Told,
) -> Job[bool]:  # fmt: skip
    """All scans, rows and reasons into ``told``; True when stopped."""
    scans = list(targets)

    def reading(number: int) -> Callable[[], Volume] | None:
        if number >= len(scans):
            return None
        scan = scans[number]
        return beside.call(partial(read_case, model, scan, cases[scan]))

    upcoming, stopped = reading(0), False
    last: tuple[Path, Callable[[], dict[str, Any]]] | None = None
    for number, (scan, target) in enumerate(targets.items()):
        if told.passes(scan):
            told.given_up.append(str(scan))
            upcoming = reading(number + 1)
            continue
        news = Progress("scans", number, len(targets), item=scan.name)
        if (yield news) is Request.STOP:
            stopped = True
            break
        read, upcoming = upcoming, None
        try:
            assert read is not None
            volume = read()
            upcoming = reading(number + 1)
            answered = _answered(task, model, volume, options)
            found = yield from _while_wanted(answered, partial(told.passes, scan))
        except Exception as error:  # noqa: BLE001 - the other scans are predicted
            upcoming = upcoming or reading(number + 1)
            yield from _settled(last, told)
            last = None
            yield from _refused(scan, error, told)
            continue
        yield from _settled(last, told)
        last = None
        if found is None:
            stopped = True
            break
        last = scan, beside.call(partial(_written, *found, volume, scan, target))
        del volume, found
        if not beside.wanted:
            yield from _settled(last, told)
            last = None
    yield from _settled(last, told)
    return stopped


class _NotWanted(Exception):
    """The scan that is at work was left out."""


def _while_wanted(job: Job[T], left_out: Callable[[], bool]) -> Job[T]:
    """The job, given up between two of its events where it is not wanted any more.

    Raises:
        _NotWanted: It was given up.
    """
    request = None
    while True:
        try:
            event = job.send(request)
        except StopIteration as end:
            value: T = end.value
            return value
        request = yield event
        if request is not Request.STOP and left_out():
            job.close()
            raise _NotWanted


def _settled(
    written: tuple[Path, Callable[[], dict[str, Any]]] | None, told: _Told
) -> Job[None]:
    """A scan's row once its results are written."""
    if written is None:
        return
    scan, row_of = written
    try:
        row = row_of()
    except Exception as error:  # noqa: BLE001 - the other scans are predicted
        yield from _refused(scan, error, told)
        return
    told.done.append(row)
    if "result" in row:
        yield Saved(row["result"], "labels")
    if "image" in row:
        yield Saved(row["image"], "image")
    for file in row.get("files", ()):
        yield Saved(file, "boxes")


def _refused(scan: Path, error: Exception, told: _Told) -> Job[None]:
    if isinstance(error, _NotWanted):
        told.given_up.append(str(scan))
        return
    reason = problem_of(error).text.removeprefix(f"{scan}: ")
    told.failed.append({"scan": str(scan), "reason": reason})
    yield Note(f"{scan}: {reason}", "warning")


def cases_of(model: Trained, scans: Sequence[Path]) -> dict[Path, tuple[Channel, ...]]:
    """The files of each case a model is to predict, by where the case would lie.

    A model of one channel takes file by file. For others ``scan_0000``, ``scan_0001``
    are one case, as are files that end in the channels' names; a NIfTI file of all
    images is one by itself. Files named together, ``a|b``, are the channels of a case
    in their order, whatever they are called.
    """
    count = int(model.spec.get("channels", 1))
    names = [*model.spec.get("channel_names", ()), *("" for _ in range(count))][:count]
    cases: dict[Path, tuple[Channel, ...]] = {}
    alone = []
    for scan in scans:
        files = named_together(scan)
        if not files:
            alone.append(scan)
            continue
        case = case_path(files, names)
        case = files[0] if case in cases else case
        called = [*names, *("" for _ in files)]
        cases[case] = tuple(map(Channel, files, called))
    if count == 1:
        cases |= dict.fromkeys(alone, ())
    elif alone:
        cases |= grouped(alone, names, count)
    place = {p: i for i, s in enumerate(scans) for p in (s, *named_together(s))}

    def first(case: tuple[Path, tuple[Channel, ...]]) -> int:
        files = [channel.path for channel in case[1]] or [case[0]]
        return min(place[file] for file in files)

    return dict(sorted(cases.items(), key=first))


def read_case(model: Trained, scan: Path, channels: Sequence[Channel]) -> Volume:
    """A scan's file, or the files of its channels as the model knows them.

    Raises:
        UnusableInput: Files that cannot be used, lie on other grids, or are not all.
    """
    if not channels:
        return read_scan(scan)
    spec = model.spec
    count, names = int(spec["channels"]), spec.get("channel_names", ())
    if len(channels) != count:
        raise UnusableInput(lacking_text(channels, names, count))
    kinds = spec.get("channel_modalities") or [""] * count
    named = [replace(c, modality=m) for c, m in zip(channels, kinds, strict=True)]
    return read_channels(named, scan_stem(scan))


Answered = LabelMap | Volume | Findings


def _answered(
    task: Task, model: Trained, volume: Volume, options: PredictOptions
) -> Job[tuple[Answered, list[str]] | None]:
    """What a task makes of a scan, and its notes; None when stopped."""
    notes: list[Note] = []
    result = yield from _noted(task.run(volume, model, options), notes)
    return None if result is None else (result, [note.text for note in notes])


def _written(
    result: Answered, notes: list[str], volume: Volume, scan: Path, target: Path
) -> dict[str, Any]:
    """One scan: its labels written, and its row."""
    texts = {"notes": notes}
    is_segmentation = target.name.endswith((SUFFIX, slicer.SUFFIX))
    if is_segmentation and not isinstance(result, LabelMap):
        raise UnusableInput(
            "a segmentation of DICOM or 3D Slicer is for models that label voxels, "
            "which this is not."
        )
    if isinstance(result, BoxList):
        files = [str(path) for path in box_files(result, target)]
        return {"scan": str(scan), "boxes": result.rows(), "files": files, **texts}
    if isinstance(result, Volume):
        write_volume(result, target)
        told = result.meta.get(FACTS, {})
        return {"scan": str(scan), "image": str(target), **told, **texts}
    if not isinstance(result, LabelMap):
        return {"scan": str(scan), **result.to_dict(), **texts}
    _write_result(result, target, volume)
    voxels = _voxels(result)
    return {
        "scan": str(scan),
        "result": str(target),
        "voxels": voxels,
        **_volumes_ml(voxels, result),
        **result.meta.get(FACTS, {}),
        **texts,
    }


def _write_result(result: LabelMap, target: Path, volume: Volume) -> None:
    """Labels as a file of the kind that its name says."""
    if target.name.endswith(SUFFIX):
        write_segmentation(result, target, volume.meta.get("slices", ()))
        return
    write_labels(result, target)
    if not holds_names(target):
        write_names(target, result.names)


def _noted(job: Job[Answered | None], notes: list[Note]) -> Job[Answered | None]:
    """The job; its notes are kept too."""
    request = None
    while True:
        try:
            event = job.send(request)
        except StopIteration as end:
            value: Answered | None = end.value
            return value
        if isinstance(event, Note):
            notes.append(event)
        request = yield event


def _keep_tables(done: Sequence[Mapping[str, Any]], out: Path) -> Job[None]:
    """The tables of all scans, after a stop too; labels are files already."""
    if done and "class" in done[0]:
        table = out / "classes.csv"
        write_classes(table, done)
        yield Saved(str(table), "table")
    if done and done[0].get("slices"):
        table = out / "slices.csv"
        write_slices(table, done)
        yield Saved(str(table), "table")
    volumes = [
        {"scan": row["scan"]}
        | {f"{name}_ml": ml for name, ml in row.get("volumes_ml", {}).items()}
        for row in done
    ]
    if len(columns := list(dict.fromkeys(key for row in volumes for key in row))) > 1:
        table = out / VOLUMES
        write_table(table, columns, volumes)
        yield Saved(str(table), "table")
    if done and "boxes" in done[0]:
        table = out / "boxes.csv"
        write_box_table([row for found in done for row in found["boxes"]], table)
        yield Saved(str(table), "table")


def _voxels(labels: LabelMap) -> dict[str, int]:
    """Voxels per label name."""
    values, counts = np.unique(labels.data, return_counts=True)
    count_of = dict(zip(values.tolist(), counts.tolist(), strict=True))
    voxels = dict.fromkeys(labels.names.values(), 0)
    for value, name in labels.names.items():  # two values may have one name
        voxels[name] += int(count_of.get(value, 0))
    return voxels


def _volumes_ml(voxels: Mapping[str, int], labels: LabelMap) -> dict[str, Any]:
    """``volumes_ml`` per label name; nothing where voxels have no known size."""
    if not labels.meta.get("sized", True):
        return {}
    z, y, x = labels.affine.spacing_mm
    each = {name: count * z * y * x / 1000.0 for name, count in voxels.items()}
    return {"volumes_ml": each}
