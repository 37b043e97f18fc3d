"""Manifests: a CSV, TSV or JSON table that names scans and what is known about them.

Columns (any order, upper or lower case; only the first is needed)::

    image    path, relative to the manifest           (also: file, path, filename, scan)
    label    path of the label map                    (also: mask, segmentation)
    modality CT, MR, PET, XR, US                      (also: MRI, XRAY ...)
    class    class of the whole scan                  (also: target, finding, diagnosis)
    types    further findings, learnt beside the class            (also: subtypes)
    subject  person or animal                         (also: patient, patient_id)
    split    train, val or test
    boxes    JSON list of {"label", "min": [z, y, x], "max": [z, y, x]} in voxels
    x,y,w,h  one box of a 2D picture per row, in pixels
    id       name of the case

A scan may have several classes, ``effusion|nodule``, or none, ``no finding``; an empty
cell says that it is not known. The same holds of ``types``. JSON may have a list.

A ``label`` column that holds no paths is taken for the class. Several rows of one image
are one case with all their boxes and classes. JSON is a list of such records, or an
object with ``cases`` and, if wanted, ``label_names``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from homolog.data.case_source import Candidate, Found, Rejected
from homolog.data.findings import findings_cell, merged_findings
from homolog.data.label_naming import parse_names
from homolog.data.problems import problem_of
from homolog.data.scan_header import is_known_suffix, scan_stem, there
from homolog.data.values import modality_of_name
from homolog.errors import UnusableInput
from homolog.safe_text import cell_text

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
    "x": ("x",), "y": ("y",), "w": ("w", "width"), "h": ("h", "height"),
}  # fmt: skip
_SPLITS = {
    "train": "train", "training": "train", "tr": "train", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip
_LARGEST = 1e9  # voxels; no box reaches so far
_MODALITIES = {"CT", "MR", "PET", "XR", "US", "OTHER"}


def read_manifest(path: Path) -> Found:
    """Cases of a manifest; lines that cannot be used are put aside with their reason.

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
        missing = [p for p in (candidate.image, candidate.label) if p and not there(p)]
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
    found.candidates = list(merged.values())
    return found


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
        raw = json.loads(text)
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
    image = _text(row, columns, "image")
    if not image:
        raise UnusableInput("no image is named.")
    split = _text(row, columns, "split").lower()
    if split and split not in _SPLITS:
        raise UnusableInput(f"split must be train, val or test, got {split!r}.")
    label = _text(row, columns, "label")
    found = _locate(path.parent, image)
    own = parse_names(row.get("label_names"))
    return Candidate(
        image=found,
        name=_text(row, columns, "id") or str(Path(image).with_name(scan_stem(found))),
        root=path.parent,
        label=_locate(path.parent, label) if label else None,
        modality=_modality(_text(row, columns, "modality")),
        subject=_text(row, columns, "subject"),
        split=_SPLITS[split] if split else None,
        target=findings_cell(row.get(columns.get("class", ""))),
        types=findings_cell(row.get(columns.get("types", ""))),
        boxes=_boxes(row, columns),
        label_names=own or names,
    )


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
    row: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[dict[str, Any], ...]:
    raw: Any = row.get(columns.get("boxes", ""))
    if isinstance(raw, str):
        try:
            raw = json.loads(raw) if raw.strip() else None
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
        boxes.append({"label": label, "min": [0.0, y, x], "max": [1.0, y + h, x + w]})
    return tuple(boxes)


def _checked_box(box: Any) -> dict[str, Any]:
    if isinstance(box, Mapping):
        low, high = box.get("min"), box.get("max")
        if (
            isinstance(low, list)
            and isinstance(high, list)
            and len(low) == len(high) == 3
            and all(isinstance(v, int | float) for v in (*low, *high))
            and all(abs(v) < _LARGEST for v in (*low, *high))
            and all(a < b for a, b in zip(low, high, strict=True))
        ):
            return dict(box)
    raise UnusableInput(
        'a box must have "min" and "max" as [z, y, x] in voxels, min below max, '
        f"got {box!r}."
    )
