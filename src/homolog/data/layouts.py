"""Datasets with a ``dataset.json``: Medical Segmentation Decathlon and nnU-Net."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from homolog.data.case_source import Candidate, Found, Rejected
from homolog.data.label_naming import parse_names
from homolog.data.scan_header import is_known_suffix, scan_stem, there
from homolog.data.values import modality_of_name
from homolog.json_files import read_object, short

# Name of a case, its images by channel, its label map, its split.
_Named: TypeAlias = tuple[str, list[Path], Path | None, str | None]

_CHANNEL = re.compile(r"_(\d{4})$")


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a dataset.json of one of the two kinds."""
    file = folder / "dataset.json"
    if not file.is_file():
        return False
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return (folder / "imagesTr").is_dir()
    if not isinstance(raw, Mapping):
        return False
    listed = any(
        isinstance(raw.get(k), list | Mapping) for k in ("training", "dataset")
    )
    return listed or (folder / "imagesTr").is_dir()


def read_dataset(folder: Path) -> Found:
    """Cases of a dataset as its description names them.

    Each channel of a case is a scan of its own, with the same label and subject.
    Files that the description does not name are told, not taken.

    An entry that cannot be understood is put aside, the others go on.

    Raises:
        UnusableInput: dataset.json is no JSON object.
    """
    raw = read_object(folder / "dataset.json")
    found = Found()
    names = parse_names(raw.get("labels"))
    channels = _channels(raw)
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
        for number, image in enumerate(images):
            own = channels.get(number, "")
            found.candidates.append(
                Candidate(
                    image=image,
                    name=case if len(images) == 1 else f"{case}_{number:04d}",
                    root=folder,
                    label=label,
                    modality=own,
                    subject=case if len(images) > 1 else "",
                    split=split,
                    label_names=names,
                )
            )
    _tell(folder, raw, found, seen)
    return found


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
        place = str(folder / "dataset.json")
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
    return _CHANNEL.sub("", stem), images, label_path, None


def _in_folders(
    folder: Path, image_folder: str, label_folder: str, split: str | None
) -> Iterator[_Named]:
    cases: dict[str, list[Path]] = defaultdict(list)
    for path in _scans(folder / image_folder):
        cases[_CHANNEL.sub("", scan_stem(path))].append(path)
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
    named = raw.get("channel_names", raw.get("modality"))
    if not isinstance(named, Mapping):
        return {}
    found = {}
    for key, name in named.items():
        if str(key).isdigit():
            modality = modality_of_name(str(name))
            found[int(key)] = "" if modality == "OTHER" else modality
    return found


def _tell(folder: Path, raw: Mapping[str, Any], found: Found, seen: set[Path]) -> None:
    count = len({c.label or c.image for c in found.candidates if c.label})
    said = raw.get("numTraining")
    if isinstance(said, int) and said != count:
        text = f"{folder.name}: dataset.json says {said} training cases, {count} found."
        found.notes.append(text)
    parts = {c.subject for c in found.candidates if c.subject and c.label}
    if parts:
        found.notes.append(
            f"{folder.name}: {len(parts)} cases have several channels (first: "
            f"{min(parts)}); channels are not learnt together here: each became a scan "
            "of its own, with the labels and in the split of its case."
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
