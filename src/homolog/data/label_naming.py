"""What the values of a label map are called, as far as files near it tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homolog.data.label_words import tokens
from homolog.data.scan_header import scan_stem
from homolog.data.values import ValueStats

_FILES = ("label_names.json", "labels.json")
_GENERIC = {
    "seg", "segs", "segm", "segmentation", "dseg", "label", "labels", "lbl", "labelmap",
    "gt", "groundtruth", "manual", "annotation", "mask", "roi", "contour",
}  # fmt: skip


def parse_names(raw: Any) -> dict[int, str]:
    """``{"1": "liver"}`` or ``{"liver": 1}`` -> value: name; regions are skipped."""
    if not isinstance(raw, Mapping):
        return {}
    names = {}
    for key, value in raw.items():
        if isinstance(value, str) and _is_whole(key):
            names[int(key)] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            names[value] = str(key)
    return dict(sorted(names.items()))


def names_file(label: Path) -> Path:
    """Where we write the names of a label file: ``STEM.labels.json`` beside it."""
    return label.with_name(f"{scan_stem(label)}.labels.json")


def names_beside(label: Path) -> dict[int, str]:
    """From ``STEM.labels.json``, or ``label_names.json`` for all files or by name."""
    for name in (names_file(label).name, *_FILES):
        file = label.parent / name
        if not file.is_file():
            continue
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            continue
        if isinstance(raw, Mapping):
            own = raw.get(scan_stem(label), raw.get(label.name))
            names = parse_names(own if own is not None else raw)
            if names:
                return names
    return {}


def name_of_mask(label: Path, image: Path, stats: ValueStats | None) -> dict[int, str]:
    """Name of a 0/1 mask from its file name: ``ct_aorta`` of ``ct`` -> 1: aorta."""
    if stats is None or stats.distinct is None or not stats.distinct <= {0.0, 1.0}:
        return {}
    known = set(tokens(scan_stem(image))) | _GENERIC
    own = [t for t in tokens(scan_stem(label)) if t not in known]
    return {1: " ".join(own)} if own and not own[0].isdigit() else {}


def _is_whole(text: object) -> bool:
    return str(text).lstrip("-").isdigit()


def names_of_dataset(label: Path) -> dict[int, str]:
    """From the ``dataset.json`` beside a label file, or in the folder above."""
    for folder in (label.parent, label.parent.parent):
        try:
            raw = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        except (ValueError, OSError):
            continue
        if isinstance(raw, Mapping):
            return parse_names(raw.get("labels"))
    return {}
