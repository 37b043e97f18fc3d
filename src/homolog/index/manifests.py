"""Cases as tables list them: manifests in CSV, TSV or JSON.

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
object with ``cases`` and, if wanted, ``label_names``; or a data list of MONAI, with
``training``, ``validation`` and ``test`` (``testing``).

Tables are taken as people and their programs write them: parted by commas, semicolons
or tabs, in UTF-8, UTF-16 or a code page of Windows, with its backslashes. An empty
cell, ``NaN``, ``NA``, ``n/a`` or ``null`` says nothing: there is no label, class or
subject. Records whose ``status`` is ``missing`` are left out.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.index.datasets import (
    JOIN,
    SEPARATE,
    Candidate,
    Found,
    Rejected,
    apart,
    kind_of_channel,
)
from homolog.json_files import parsed
from homolog.label_names import findings_cell, merged_findings, parse_names
from homolog.scans.boxes import JSON_SUFFIX, ScanBox, read_box_json, read_regions
from homolog.scans.channels import frames_of
from homolog.scans.files import read_header
from homolog.scans.paths import (
    is_known_suffix,
    scan_stem,
    there,
)
from homolog.scans.problems import problem_of
from homolog.scans.volume import Channel, modality_of_name
from homolog.words import cell_text, counted

MANIFEST_SUFFIXES = (".csv", ".tsv", ".json")


def is_manifest(path: Path) -> bool:
    """Whether a path names a file that lists scans."""
    return path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file()


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
    "z": ("z",), "d": ("d", "depth"), "status": ("status",),
}  # fmt: skip
_SPLITS = {
    "train": "train", "training": "train", "tr": "train", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip
# What tables write into a cell of which nothing is known, "none" aside: of a class that
# is an answer.
_SILENT = {"nan", "na", "n/a", "null", "<na>", "#n/a", "nat"}
# Folders beside a table in which its files are looked for, as data sets name them.
_IMAGES = ("images", "imagesTr", "imagesTs")
_LABELS = ("labels", "labelsTr", "labelsTs", "masks", "images")
_ABSENT = {"missing", "absent", "excluded"}  # values of a column "status"
_ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")
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
    found = Found()
    try:
        rows, names = _read_rows(path, found)
    except (csv.Error, RecursionError) as error:
        raise UnusableInput(f"{path}: cannot be read as a table ({error}).") from None
    columns = _find_columns(path, rows)
    as_class = _label_is_class(path, rows, columns)
    if as_class:
        text = (
            f"{path.name}: column {columns['label']!r} holds no files and is the class."
        )
        found.notes.append(text)
        columns["class"] = columns.pop("label")
    merged: dict[Path, Candidate] = {}
    absent = 0
    for number, row in enumerate(rows, start=1):
        if _text(row, columns, "status").lower() in _ABSENT:
            absent += 1
            continue
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
    if absent:
        word = counted(absent, "record")
        found.notes.append(f"{path.name}: {word} of status missing left out.")
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


def _read_rows(path: Path, found: Found) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Records, and label value -> name; a doubtful encoding is told in the notes."""
    text = _text_of(path, found)
    if path.suffix.lower() != ".json":
        start = text.splitlines()[0] if text.strip() else ""
        sign = max("\t,;", key=start.count)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=sign)
        rows = [{k: _plain(v) for k, v in row.items()} for row in table]
        return [
            row for row in rows if any(v not in (None, "") for v in row.values())
        ], {}
    try:
        raw = parsed(text)
    except ValueError as error:
        raise UnusableInput(f"{path}: not readable as JSON ({error}).") from None
    names = {}
    if isinstance(raw, Mapping):
        names = parse_names(raw.get("label_names", raw.get("labels")))
        raw = raw["cases"] if "cases" in raw else _data_list(raw)
    if not isinstance(raw, list) or not all(isinstance(r, Mapping) for r in raw):
        raise UnusableInput(
            f'{path}: expected a list of records, or an object with "cases" (or with '
            '"training", as MONAI has it).'
        )
    return [dict(r) for r in raw], names


def _text_of(path: Path, found: Found) -> str:
    """The text of a table, whatever encoding its program has written."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise UnusableInput(f"{path}: not readable as UTF-16 text.") from None
    if b"\0" in data[:4096]:
        raise UnusableInput(f"{path}: a manifest must be text, this file is not.")
    for encoding in _ENCODINGS:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding != "utf-8-sig":
            found.notes.append(f"{path.name}: not UTF-8 text; read as {encoding}.")
        return text
    raise AssertionError  # Latin-1 knows every byte


# Parts of a data list of MONAI -> split; training is parted by us where nothing else is
# kept for validation.
_PARTS = {
    "training": "train", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip


def _data_list(raw: Mapping[str, Any]) -> list[Any] | None:
    """The records of a data list of MONAI; None where it is none."""
    parts = {name: raw[name] for name in _PARTS if isinstance(raw.get(name), list)}
    if "training" not in parts:
        return None
    own = "validation" in parts
    records: list[Any] = []
    for name, entries in parts.items():
        split = _PARTS[name] if own or _PARTS[name] == "test" else None
        for entry in entries:
            record = {"image": entry} if isinstance(entry, str) else entry
            if isinstance(record, Mapping) and split and "split" not in record:
                record = {**record, "split": split}
            records.append(record)
    return records


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
        or str(Path(_posix(images[0])).with_name(scan_stem(found))),
        root=path.parent,
        label=_locate(path.parent, label, _LABELS) if label else None,
        modality=_modality(_text(row, columns, "modality")) if one else "",
        subject=_text(row, columns, "subject"),
        split=_SPLITS[split] if split else None,
        target=_findings(row, columns, "class"),
        types=_findings(row, columns, "types"),
        boxes=_boxes(row, columns, found, path.parent),
        label_names=own or names,
        channels=channels,
    )


def _findings(
    row: Mapping[str, Any], columns: Mapping[str, str], meaning: str
) -> str | None:
    value = row.get(columns.get(meaning, ""))
    if not isinstance(value, list) and not _text(row, columns, meaning):
        return None
    return findings_cell(value)


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
    told = told or [kind_of_channel(one.name) for one in found]
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
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in _SILENT else text


def _posix(name: str) -> str:
    return name.replace("\\", "/")


def _locate(folder: Path, name: str, beside: Sequence[str] = _IMAGES) -> Path:
    """Beside the manifest, or in a folder of a usual name beside it.

    A name written on Windows has backslashes.
    """
    path = folder / name
    names = [name, _posix(name)] if "\\" in name else [name]
    tried = (folder / start / one for start in ("", *beside) for one in names)
    return next((one for one in tried if there(one)), path)


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
    if any(corners) and not all(corners) and all(k in columns for k in "xywh"):
        raise UnusableInput(f"x, y, w, h must be numbers, got {corners}.")
    if all(corners):
        try:
            x, y, w, h = (float(c.replace(",", ".")) for c in corners)
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
        z, d = (float(end.replace(",", ".")) for end in ends)
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
