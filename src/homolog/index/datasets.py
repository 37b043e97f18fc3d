"""Cases as datasets list them in a ``dataset.json``, and what a case is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from homolog.json_files import object_or_none, read_object, short
from homolog.label_names import names_with_regions, parse_regions
from homolog.scans.channels import NUMBERED, frames, frames_of
from homolog.scans.names import DATASET
from homolog.scans.paths import (
    is_known_suffix,
    scan_stem,
    there,
)
from homolog.scans.volume import Channel, modality_of_name
from homolog.words import counted, listed

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
        regions: Name of a union of labels -> their names.
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
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


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
        regions: As in CaseSource.
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
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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
    names = names_with_regions(raw.get("labels"))
    regions = {
        name: tuple(names[v] for v in values if v in names)
        for name, values in parse_regions(raw.get("labels")).items()
        if len(values) > 1
    }
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
            label_names=names, channels=parts, regions=regions,
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
    return tuple(replace(c, modality=kind_of_channel(c.name)) for c in parts)


def kind_of_channel(name: str) -> str:
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
