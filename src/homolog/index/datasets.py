"""Cases as tables and datasets list them: manifests, and ``dataset.json``.

Columns of a manifest (any order, upper or lower case; only the first is needed)::

    image    path, relative to the manifest           (also: file, path, filename, scan)
             several, ``t1.nii.gz|t2.nii.gz``, are the channels of one case
    channels what the channels are called, ``T1|T2``  (also: channel_names)
    label    path of the label map                    (also: mask, segmentation)
    modality CT, MR, PET, XR, US                      (also: MRI, XRAY ...)
    class    class of the whole scan                  (also: target, finding, diagnosis)
    types    further findings, learnt beside the class            (also: subtypes)
    subject  person or animal                         (also: patient, patient_id)
    split    train, val or test
    boxes    JSON list of {"label", "min": [z, y, x], "max": [z, y, x]} in voxels, or
             of {"label", "voxel_xyz": [x, y, z, x, y, z]}; or the path of a file of
             boxes (.boxes.json, or 3D Slicer's .mrk.json)
    x,y,w,h  one box of a 2D picture per row, in pixels; z,d too: of a volume, in voxels
    id       name of the case

A scan may have several classes, ``effusion|nodule``, or none, ``no finding``; an empty
cell means that it is not known. The same holds of ``types``. JSON may have a list.

A ``label`` column that holds no paths is taken for the class. Several rows of one image
are one case with all their boxes and classes. JSON is a list of such records, or an
object with ``cases`` and, if wanted, ``label_names``.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from homolog.errors import UnusableInput
from homolog.json_files import object_or_none, parsed, read_object, short
from homolog.label_names import findings_cell, merged_findings, parse_names
from homolog.scans.boxes import JSON_SUFFIX, ScanBox, read_box_json, read_regions
from homolog.scans.channels import NUMBERED, frames, frames_of
from homolog.scans.files import is_known_suffix, read_header, scan_stem, there
from homolog.scans.names import DATASET
from homolog.scans.problems import problem_of
from homolog.scans.volume import Channel, modality_of_name
from homolog.words import cell_text, counted, listed

# What is made of several images of a case on one grid.
JOIN, SEPARATE = "join", "separate"


@dataclass(frozen=True, eq=False)
class CaseSource:
    """One scan to prepare, with all that is known about it.

    Attributes:
        id: Unique among the index, stable, usable as a folder name.
        image: Scan file, DICOM folder, or one series of a folder.
        label: Label map on the same grid.
        modality: One of MODALITIES.
        subject: Person or animal; splits never part one.
        split: ``train, val, test`` where the source states it.
        target: Class of the whole scan; several as ``a|b`` (``homolog.scans.names``).
        types: Further findings, in the same way.
        boxes: Findings; each with ``label`` and ``min``, ``max`` in voxels z, y, x.
        label_names: Label value -> name; in the files' values until ``join_cases``.
        label_values: Values that the label map holds, None where that is not known.
        label_map: Value in the label file -> value in the store, -1 where it teaches
            nothing; values not named here stay.
        channels: Its images, where they are several or one of a file of several;
            ``image`` is the first one's file.
    """

    id: str
    image: Path
    label: Path | None = None
    modality: str = "OTHER"
    subject: str = ""
    split: str | None = None
    target: str | None = None
    types: str | None = None
    boxes: tuple[dict[str, Any], ...] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)
    label_values: frozenset[int] | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    channels: tuple[Channel, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """One scan that was put aside.

    Attributes:
        path: The file or folder.
        reason: One sentence.
        code: A key of problems.CODES.
    """

    path: str
    reason: str
    code: str


@dataclass(frozen=True, eq=False)
class ScanIndex:
    """The cases of all sources.

    Attributes:
        cases: Sound scans, in order of their sources.
        rejected: Unsound ones.
        notes: Sentences the user should know, such as labels left unattached.
        patients: How many patients the scans are of, and how that is known.
        stopped: Whether the job was stopped before its end.
    """

    cases: tuple[CaseSource, ...]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()
    patients: str = ""
    stopped: bool = False


@dataclass(frozen=True, eq=False)
class Candidate:
    """A case before its scan was looked at.

    Attributes:
        image: The scan.
        name: Wanted id; made unique and clean later.
        root: Folder the name is relative to; distinguishes equal names.
        label: Its label map.
        modality: As the source states, "" when nothing.
        subject: As the source states, "" when nothing.
        folder_subject: What its place among other files suggests.
        split: As in CaseSource.
        target: As in CaseSource.
        types: As in CaseSource.
        boxes: As in CaseSource.
        label_names: As in CaseSource.
        short: End of a name that is a whole path: the id to be tried first.
        channels: As in CaseSource.
    """

    image: Path
    name: str
    root: Path
    label: Path | None = None
    modality: str = ""
    subject: str = ""
    folder_subject: str = ""
    split: str | None = None
    target: str | None = None
    types: str | None = None
    boxes: tuple[dict[str, Any], ...] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)
    short: str = ""
    channels: tuple[Channel, ...] = ()

    @property
    def place(self) -> tuple[Path, int | None]:
        """Its first image: the file, and the number in it."""
        frame = self.channels[0].frame if len(self.channels) == 1 else None
        return self.image, frame


@dataclass
class Found:
    """What one source holds, before the scans are looked at."""

    candidates: list[Candidate] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# ``dataset.json`` of the Medical Segmentation Decathlon and of nnU-Net.
# Name of a case, its images by channel, its label map, its split.
_Named: TypeAlias = tuple[str, list[Path], Path | None, str | None]


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a dataset.json of one of the two kinds."""
    if not (folder / DATASET).is_file():
        return False
    raw = object_or_none(folder / DATASET) or {}
    listed = any(
        isinstance(raw.get(k), list | Mapping) for k in ("training", "dataset")
    )
    return listed or (folder / "imagesTr").is_dir()


def read_dataset(folder: Path, channels: str = JOIN) -> Found:
    """Cases of a dataset as its description names them.

    The channels of a case, in files of their own or along the fourth axis of one, are
    learnt together; or each is a scan of its own, with the same label and subject.
    Files that the description does not name are reported, not taken.

    An entry that cannot be understood is put aside, the others go on.

    Args:
        folder: With a dataset.json.
        channels: ``join`` or ``separate``.

    Raises:
        UnusableInput: dataset.json is no JSON object.
    """
    raw = read_object(folder / DATASET)
    found = Found()
    names = parse_names(raw.get("labels"))
    called = _channels(raw)
    seen: set[Path] = set()
    for one in _cases(folder, raw):
        if isinstance(one, Rejected):
            found.rejected.append(one)
            continue
        case, images, label, split = one
        missing = [p for p in [*images, *([label] if label else [])] if not there(p)]
        if missing or not images:
            path = missing[0] if missing else folder / case
            text = "named in dataset.json, but not there."
            found.rejected.append(Rejected(str(path), text, "missing"))
            continue
        seen.update(images)
        parts = _images(images, called)
        part = len(parts) > 1 or NUMBERED.search(scan_stem(images[0]))
        if channels == JOIN and part and len(parts) < len(called):
            text = (
                f"case {case} has {len(parts)} of the {len(called)} channels that "
                f"dataset.json names ({listed(called.values())})."
            )
            found.rejected.append(Rejected(str(images[0]), text, "missing"))
            continue
        whole = Candidate(
            image=images[0], name=case, root=folder, label=label, split=split,
            label_names=names, channels=parts,
        )  # fmt: skip
        joined = len(parts) == 1 or channels == JOIN
        found.candidates += [_of_one(whole)] if joined else apart(whole)
    _tell(folder, raw, found, seen)
    return found


def _of_one(whole: Candidate) -> Candidate:
    """The same; one image alone needs no channels, its file says what it is."""
    (first, *more) = whole.channels
    if more:
        return whole
    return replace(whole, channels=(), modality=first.modality)


def apart(whole: Candidate) -> list[Candidate]:
    """Each channel of a case as a scan of its own, of the same person."""
    return [
        replace(
            whole,
            image=one.path,
            name=f"{whole.name}_{number:04d}",
            modality=one.modality,
            folder_subject=whole.folder_subject or whole.name,
            channels=() if one.frame is None else (one,),
        )
        for number, one in enumerate(whole.channels)
    ]


def _images(images: Sequence[Path], called: Mapping[int, str]) -> tuple[Channel, ...]:
    """The channels of a case: its files, or the images of its one file of several."""
    names = [called.get(n, "") for n in range(max([len(images) - 1, *called]) + 1)]
    if len(images) == 1 and len(called) > 1 and frames_of(images[0]) == len(called):
        parts = frames(images[0], names)
    else:
        parts = tuple(Channel(p, n) for p, n in zip(images, names, strict=False))
    return tuple(replace(c, modality=_kind_of_channel(c.name)) for c in parts)


def _kind_of_channel(name: str) -> str:
    """The modality a channel's name tells; "" where it tells none."""
    kind = modality_of_name(name)
    return "" if kind == "OTHER" else kind


def _cases(folder: Path, raw: Mapping[str, Any]) -> Iterator[_Named | Rejected]:
    if isinstance(raw.get("dataset"), Mapping):
        for case, entry in raw["dataset"].items():
            yield _understood(_mapped, folder, entry, str(case))
    elif isinstance(raw.get("training"), list):
        for entry in raw["training"]:
            yield _understood(_listed, folder, entry, "training")
    else:
        yield from _in_folders(folder, "imagesTr", "labelsTr", None)
    tests = raw.get("test")
    if isinstance(tests, list) and tests:
        for entry in tests:
            one = _understood(_listed, folder, entry, "test")
            # often not shipped
            if isinstance(one, Rejected) or all(there(i) for i in one[1]):
                yield one
    else:
        yield from _in_folders(folder, "imagesTs", "labelsTs", "test")


def _understood(
    read: Callable[[Path, Any, str], _Named], folder: Path, entry: Any, where: str
) -> _Named | Rejected:
    """What an entry of dataset.json names; or why it names nothing."""
    try:
        return read(folder, entry, where)
    except Exception:  # noqa: BLE001 - the other entries go on
        text = f"{where}: an entry of dataset.json must name an image, got "
        place = str(folder / DATASET)
        return Rejected(place, f"{text}{short(entry)}.", "manifest")


def _mapped(folder: Path, entry: Any, case: str) -> _Named:
    images = entry.get("images", [])
    if not isinstance(images, list):
        raise TypeError
    label = folder / str(entry["label"]) if entry.get("label") else None
    return case, [folder / str(i) for i in images], label, None


def _listed(folder: Path, entry: Any, _: str) -> _Named:
    if isinstance(entry, Mapping):
        image, label = entry.get("image"), entry.get("label")
    else:
        image, label = entry, None
    if not isinstance(image, str) or not image or not isinstance(label, str | None):
        raise TypeError
    path = folder / image
    images = [path]
    stem = scan_stem(path)
    if not there(path):  # nnU-Net v1 lists names without their channel number
        pattern = f"{stem}_[0-9][0-9][0-9][0-9]{path.name[len(stem) :]}"
        images = sorted(path.parent.glob(pattern)) or images
    label_path = folder / str(label) if label else None
    return NUMBERED.sub("", stem), images, label_path, None


def _in_folders(
    folder: Path, image_folder: str, label_folder: str, split: str | None
) -> Iterator[_Named]:
    cases: dict[str, list[Path]] = defaultdict(list)
    for path in _scans(folder / image_folder):
        cases[NUMBERED.sub("", scan_stem(path))].append(path)
    labels = {scan_stem(p): p for p in _scans(folder / label_folder)}
    for case, images in cases.items():
        label = labels.get(case)
        yield case, images, label, split if label else None


def _scans(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in files if is_known_suffix(p))


def _channels(raw: Mapping[str, Any]) -> dict[int, str]:
    """Number of a channel -> its name, as dataset.json says."""
    named = raw.get("channel_names", raw.get("modality"))
    if not isinstance(named, Mapping):
        return {}
    return {int(k): str(name) for k, name in named.items() if str(k).isdigit()}


def channels_notes(candidates: Sequence[Candidate]) -> list[str]:
    """Sentences on what was made of cases of several channels."""
    notes = []
    joined = [c for c in candidates if len(c.channels) > 1]
    if joined:
        first = joined[0]
        many = counted(len(joined), "case")
        names = [one.name or str(i) for i, one in enumerate(first.channels)]
        notes.append(
            f"{many} {'has' if len(joined) == 1 else 'have'} several channels, learnt "
            f"together (first: {first.name} with {listed(names)}); to take each as a "
            "scan of its own, as pretraining on scans of many kinds wants it: "
            "--channels separate."
        )
    return notes


def _tell(folder: Path, raw: Mapping[str, Any], found: Found, seen: set[Path]) -> None:
    count = len({c.label or c.image for c in found.candidates if c.label})
    said = raw.get("numTraining")
    if isinstance(said, int) and said != count:
        text = f"{folder.name}: dataset.json says {said} training cases, {count} found."
        found.notes.append(text)
    parts = {c.folder_subject for c in found.candidates if c.label} - {""}
    if parts:
        found.notes.append(
            f"{folder.name}: {len(parts)} cases have several channels (first: "
            f"{min(parts)}): each became a scan of its own, with the labels and in the "
            "split of its case (--channels join learns them together)."
        )
    used = seen | {c.label for c in found.candidates if c.label}
    resolved = {p.resolve() for p in used}
    others = [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file()
        and is_known_suffix(p)
        and not p.name.startswith(".")
        and p.resolve() not in resolved
    ]
    if others:
        first = others[0].relative_to(folder)
        found.notes.append(
            f"{folder.name}: {len(others)} scans that dataset.json does not name were "
            f"left (first: {first}); give their folder as a source too if wanted."
        )


MANIFEST_SUFFIXES = (".csv", ".tsv", ".json")

_COLUMNS = {
    "image": ("image", "file", "path", "filename", "scan", "image_path"),
    "label": ("label", "mask", "segmentation", "label_path"),
    "modality": ("modality",),
    "class": ("class", "target", "finding", "diagnosis", "findings", "classes"),
    "types": ("types", "subtypes"),
    "subject": ("subject", "patient", "patient_id", "subject_id", "participant_id"),
    "split": ("split", "subset", "fold_name"),
    "boxes": ("boxes", "box"),
    "id": ("id", "case", "case_id"),
    "channels": ("channels", "channel_names"),
    "x": ("x",), "y": ("y",), "w": ("w", "width"), "h": ("h", "height"),
    "z": ("z",), "d": ("d", "depth"),
}  # fmt: skip
_SPLITS = {
    "train": "train", "training": "train", "tr": "train", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip
_LARGEST = 1e9  # voxels; no box reaches so far
_MODALITIES = {"CT", "MR", "PET", "XR", "US", "OTHER"}


def read_manifest(path: Path, channels: str = JOIN) -> Found:
    """Cases of a manifest; lines that cannot be used are put aside with their reason.

    Args:
        path: The manifest.
        channels: What becomes of several images in one row: ``join`` or ``separate``.

    Raises:
        UnusableInput: The file as a whole cannot be read as a manifest.
    """
    try:
        rows, names = _read_rows(path)
    except (csv.Error, RecursionError) as error:
        raise UnusableInput(f"{path}: cannot be read as a table ({error}).") from None
    columns = _find_columns(path, rows)
    found = Found()
    as_class = _label_is_class(path, rows, columns)
    if as_class:
        text = (
            f"{path.name}: column {columns['label']!r} holds no files and is the class."
        )
        found.notes.append(text)
        columns["class"] = columns.pop("label")
    merged: dict[Path, Candidate] = {}
    for number, row in enumerate(rows, start=1):
        try:
            candidate = _candidate(path, row, columns, names)
        except Exception as error:  # noqa: BLE001 - the other records go on
            where, text = f"{path} (record {number})", problem_of(error).text
            found.rejected.append(Rejected(where, text, "manifest"))
            continue
        files = [candidate.image, candidate.label]
        files += [one.path for one in candidate.channels]
        missing = [p for p in files if p and not there(p)]
        if missing:
            text = f"named in {path.name}, but not there."
            found.rejected.append(Rejected(str(missing[0]), text, "missing"))
            continue
        before = merged.get(candidate.image)
        if before is not None:
            candidate = replace(
                before,
                boxes=(*before.boxes, *candidate.boxes),
                target=merged_findings(before.target, candidate.target),
                types=merged_findings(before.types, candidate.types),
            )
        merged[candidate.image] = candidate
    whole = _shortened(list(merged.values()))
    for candidate in whole:
        several = len(candidate.channels) > 1 and channels == SEPARATE
        found.candidates += apart(candidate) if several else [candidate]
    return found


def _shortened(candidates: list[Candidate]) -> list[Candidate]:
    """With short names for those called by whole paths: as much of the end as differs.

    ``/a/P1/t1``, ``/a/P2/t2`` -> ``t1``, ``t2``; ``/a/P1/t1``, ``/b/P2/t1`` ->
    ``P1/t1``, ``P2/t1``.
    """
    whole = [Path(c.name) for c in candidates if Path(c.name).is_absolute()]
    if not whole:
        return candidates
    deepest = max(len(path.parts) for path in whole)
    for count in range(1, deepest):
        ends = {"/".join(path.parts[1:][-count:]).lower() for path in whole}
        if len(ends) == len(whole):
            break
    return [
        replace(c, short=str(Path(*path.parts[1:][-count:])))
        if (path := Path(c.name)).is_absolute() and len(path.parts) > 1
        else c
        for c in candidates
    ]


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnusableInput(f"{path}: a manifest must be UTF-8 text.") from None
    if path.suffix.lower() != ".json":
        start = text.splitlines()[0] if text.strip() else ""
        sign = max("\t,;", key=start.count)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=sign)
        return [{k: _plain(v) for k, v in row.items()} for row in table], {}
    try:
        raw = parsed(text)
    except ValueError as error:
        raise UnusableInput(f"{path}: not readable as JSON ({error}).") from None
    names = {}
    if isinstance(raw, Mapping):
        names = parse_names(raw.get("label_names"))
        raw = raw.get("cases")
    if not isinstance(raw, list) or not all(isinstance(r, Mapping) for r in raw):
        raise UnusableInput(
            f'{path}: expected a list of records, or an object with "cases".'
        )
    return [dict(r) for r in raw], names


def _plain(value: Any) -> Any:
    """A cell of a table that may be one of ours."""
    return cell_text(value) if isinstance(value, str) else value


def _find_columns(path: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    if not rows:
        raise UnusableInput(f"{path}: the manifest has no records.")
    there = {
        str(k).strip().lower(): str(k) for row in rows for k in row if k is not None
    }
    columns = {}
    for meaning, words in _COLUMNS.items():
        match = next((there[w] for w in words if w in there), None)
        if match is not None:
            columns[meaning] = match
    if "image" not in columns:
        known = ", ".join(there.values()) or "none"
        raise UnusableInput(
            f"{path}: a manifest needs a column 'image', found: {known}."
        )
    return columns


def _label_is_class(
    path: Path, rows: list[dict[str, Any]], columns: Mapping[str, str]
) -> bool:
    if "label" not in columns or "class" in columns:
        return False
    values = [_text(row, columns, "label") for row in rows]
    return not any(
        v and (is_known_suffix(Path(v)) or there(path.parent / v)) for v in values
    )


def _candidate(
    path: Path,
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    names: dict[int, str],
) -> Candidate:
    images = _named_images(path.parent, row, columns)
    if not images:
        raise UnusableInput("no image is named.")
    split = _text(row, columns, "split").lower()
    if split and split not in _SPLITS:
        raise UnusableInput(f"split must be train, val or test, got {split!r}.")
    label = _text(row, columns, "label")
    found = _locate(path.parent, images[0])
    own = parse_names(row.get("label_names"))
    channels = _row_channels(path.parent, images, row, columns)
    one = not channels
    return Candidate(
        image=found,
        name=_text(row, columns, "id")
        or str(Path(images[0]).with_name(scan_stem(found))),
        root=path.parent,
        label=_locate(path.parent, label) if label else None,
        modality=_modality(_text(row, columns, "modality")) if one else "",
        subject=_text(row, columns, "subject"),
        split=_SPLITS[split] if split else None,
        target=findings_cell(row.get(columns.get("class", ""))),
        types=findings_cell(row.get(columns.get("types", ""))),
        boxes=_boxes(row, columns, found, path.parent),
        label_names=own or names,
        channels=channels,
    )


def _row_channels(
    folder: Path,
    images: Sequence[str],
    row: Mapping[str, Any],
    columns: Mapping[str, str],
) -> tuple[Channel, ...]:
    """The channels of a row that names several; empty where it names one image."""
    names = _parts(row, columns, "channels")
    files = [_locate(folder, image) for image in images]
    if len(files) == 1:
        if len(names) < 2:
            return ()
        if there(files[0]) and frames_of(files[0]) != len(names):
            raise UnusableInput(
                f"{files[0].name} holds {counted(frames_of(files[0]), 'image')}, but "
                f"{len(names)} channels are named."
            )
        found = tuple(Channel(files[0], n, frame=i) for i, n in enumerate(names))
    elif names and len(names) != len(files):
        raise UnusableInput(
            f"{len(files)} images and {len(names)} names of channels in one row."
        )
    else:
        called = names or [""] * len(files)
        found = tuple(Channel(p, n) for p, n in zip(files, called, strict=True))
    kinds = _parts(row, columns, "modality")
    kinds = kinds * len(found) if len(kinds) == 1 else kinds
    if kinds and len(kinds) != len(found):
        raise UnusableInput(f"{len(found)} channels and {len(kinds)} modalities.")
    told = [_modality(kind) for kind in kinds]
    told = told or [_kind_of_channel(one.name) for one in found]
    return tuple(replace(c, modality=m) for c, m in zip(found, told, strict=True))


def _named_images(
    folder: Path, row: Mapping[str, Any], columns: Mapping[str, str]
) -> list[str]:
    """The files of a row; one whose own name has a ``|`` is one."""
    images = _parts(row, columns, "image")
    whole = _text(row, columns, "image")
    alone = len(images) > 1 and not isinstance(row.get(columns["image"]), list)
    return [whole] if alone and there(_locate(folder, whole)) else images


def _parts(
    row: Mapping[str, Any], columns: Mapping[str, str], meaning: str
) -> list[str]:
    """A cell's values: a list of JSON, or parted by ``|``."""
    value = row.get(columns.get(meaning, ""))
    if isinstance(value, list):
        return [str(part).strip() for part in value]
    text = _text(row, columns, meaning)
    return [part.strip() for part in text.split("|") if part.strip()]


def _text(row: Mapping[str, Any], columns: Mapping[str, str], meaning: str) -> str:
    value = row.get(columns.get(meaning, ""), "")
    return "" if value is None else str(value).strip()


def _locate(folder: Path, name: str) -> Path:
    """Beside the manifest, or in a folder ``images`` beside it."""
    path = folder / name
    inside = folder / "images" / name
    return inside if not there(path) and there(inside) else path


def _modality(word: str) -> str:
    upper = word.upper()
    if upper in _MODALITIES:
        return upper
    return modality_of_name(word) if word else ""


def _boxes(
    row: Mapping[str, Any], columns: Mapping[str, str], image: Path, folder: Path
) -> tuple[dict[str, Any], ...]:
    raw: Any = row.get(columns.get("boxes", ""))
    if isinstance(raw, str) and raw.strip().lower().endswith(".json"):
        raw = _boxes_in_file(folder / raw.strip(), image)
    if isinstance(raw, str):
        try:
            raw = parsed(raw) if raw.strip() else None
        except ValueError:
            raise UnusableInput(
                f"boxes must be a JSON list, got {raw[:60]!r}."
            ) from None
    boxes = [_checked_box(b) for b in raw] if isinstance(raw, list) else []
    corners = [_text(row, columns, k) for k in "xywh"]
    if all(corners):
        try:
            x, y, w, h = (float(c) for c in corners)
            if not all(math.isfinite(v) for v in (x, y, w, h)):
                raise ValueError
        except ValueError:
            raise UnusableInput(f"x, y, w, h must be numbers, got {corners}.") from None
        label = _text(row, columns, "class")
        z, d = _depth(row, columns)
        boxes.append({"label": label, "min": [z, y, x], "max": [z + d, y + h, x + w]})
    return tuple(boxes)


def _depth(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[float, float]:
    """First slice and number of slices of a box; of a picture its only one."""
    ends = [_text(row, columns, k) for k in "zd"]
    if not all(ends):
        return 0.0, 1.0
    try:
        z, d = (float(end) for end in ends)
        if not math.isfinite(z + d):
            raise ValueError
    except ValueError:
        raise UnusableInput(f"z, d must be numbers, got {ends}.") from None
    return z, d


def _boxes_in_file(path: Path, image: Path) -> list[dict[str, Any]]:
    """Boxes of a file of boxes, in voxels of the image they belong to."""
    if path.name.lower().endswith(JSON_SUFFIX):
        found: Sequence[ScanBox] = read_box_json(path).boxes
    else:
        affine = read_header(image).affine
        found = [region.on_grid(affine) for region in read_regions(path)]
    return [
        {"label": box.label, "min": list(box.low), "max": list(box.high)}
        for box in found
    ]


def _checked_box(box: Any) -> dict[str, Any]:
    if isinstance(box, Mapping):
        low, high = box.get("min"), box.get("max")
        ends = box.get("voxel_xyz")
        if low is None and isinstance(ends, list) and len(ends) == 6:
            low, high = ends[2::-1], ends[:2:-1]
        if (
            isinstance(low, list)
            and isinstance(high, list)
            and len(low) == len(high) == 3
            and all(isinstance(v, int | float) for v in (*low, *high))
            and all(abs(v) < _LARGEST for v in (*low, *high))
            and all(a < b for a, b in zip(low, high, strict=True))
        ):
            kept = {k: v for k, v in box.items() if k != "voxel_xyz"}
            return {**kept, "min": low, "max": high}
    raise UnusableInput(
        'a box must have "min" and "max" as [z, y, x] in voxels, min below max, '
        f"got {box!r}."
    )
