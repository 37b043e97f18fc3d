"""What label values are called, as far as files near a scan say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from homolog.json_files import object_or_none
from homolog.label_names import key_of, parse_names
from homolog.scans.formats import naming_format
from homolog.scans.formats.label_tables import table_beside
from homolog.scans.paths import kind_of, scan_stem, scan_suffix
from homolog.scans.problems import Unsound
from homolog.scans.volume import PICTURE_SUFFIXES, ValueStats
from homolog.writing import write_json

# Words in a name that mark a label map.
# Better word first: where a folder holds "seg" and "brainmask", seg is the label.
_LABEL_WORDS = (
    "seg", "segs", "segm", "segmentation", "segmentations", "dseg", "label", "labels",
    "lbl", "labelmap", "labelmaps", "gt", "groundtruth", "manual", "annotation",
    "annotations", "gtv", "ctv", "ptv", "lesion", "lesions", "roi", "rois", "contour",
    "contours", "mask", "masks",
)  # fmt: skip
_IMAGE_WORDS = (
    "image",
    "images",
    "img",
    "imgs",
    "scan",
    "scans",
    "volume",
    "vol",
    "orig",
)
_FOLDERS = {
    "label", "labels", "labelstr", "labelsts", "labelsval", "lbl", "lbls", "mask",
    "masks", "seg", "segs", "segmentation", "segmentations", "gt", "groundtruth",
    "ground_truth", "annotation", "annotations", "rois", "labelmaps",
}  # fmt: skip
_SEPARATORS = "_-. "


def is_label_folder(name: str) -> bool:
    """Whether a folder of this name holds label maps."""
    return name.lower() in _FOLDERS


def tokens(stem: str) -> list[str]:
    """Words of a name, in lower case."""
    return [t for t in re.split(r"[_\-. ]+", stem.lower()) if t]


def label_rank(stem: str) -> int | None:
    """How clearly a name marks a label map: 0 is clearest; None when it does not.

    The word counts at either end of the name, with digits behind it (``mask2``) or
    letters before it (``brainmask``); a plain mask ranks last.
    """
    words = tokens(stem)
    ends = [words[-1], words[0]] if words else []
    ranks = [r for r in map(_rank, ends) if r is not None]
    return min(ranks) if ranks else None


def _rank(word: str) -> int | None:
    bare = word.rstrip("0123456789")
    if bare in _LABEL_WORDS:
        return 1 if bare.startswith("mask") else 0
    if re.fullmatch(r"[a-z]+(mask|seg)", bare):
        return 2
    return None


def bare_name(stem: str) -> str:
    """The name without its words for image or label, to pair one with the other.

    ``CT_image`` and ``CT_mask`` -> ``ct``; ``volume-12`` and ``segmentation-12`` ->
    ``12``; ``seg`` -> "". A channel number (``_0000``) is dropped as well.
    """
    words = tokens(re.sub(r"_\d{4}$", "", stem))
    kept = []
    for i, word in enumerate(words):
        bare = word.rstrip("0123456789")
        at_end = i in (0, len(words) - 1)
        if at_end and (bare in _IMAGE_WORDS or _rank(word) is not None):
            if word != bare:
                kept.append(word[len(bare) :])
            continue
        kept.append(word)
    return "_".join(kept)


def shorter_names(stem: str) -> list[str]:
    """The name cut before each separator, longest first: ``a_b_c`` -> ``a_b, a``."""
    cuts = [i for i, letter in enumerate(stem) if letter in _SEPARATORS and i]
    found = [stem[:i].rstrip(_SEPARATORS) for i in reversed(cuts)]
    return list(dict.fromkeys(f for f in found if f))


# How Medical Segmentation Decathlon and nnU-Net describe a folder of scans.
DATASET = "dataset.json"
_FILES = ("label_names.json", "labels.json")
_GENERIC = {
    "seg", "segs", "segm", "segmentation", "dseg", "label", "labels", "lbl", "labelmap",
    "gt", "groundtruth", "manual", "annotation", "mask", "roi", "contour",
}  # fmt: skip


def names_file(label: Path) -> Path:
    """Where we write the names of a label file: ``STEM.labels.json`` beside it."""
    return label.with_name(f"{scan_stem(label)}.labels.json")


def write_names(label: Path, names: Mapping[int, str]) -> None:
    """Write the names of a label file beside it, where it has any."""
    if names:
        write_json(names_file(label), {str(v): n for v, n in names.items()}, end="")


def names_beside(label: Path) -> dict[int, str]:
    """Names of a label file's values: its own, or those of a file beside it."""
    told = _names_in_json(label) or table_beside(label, scan_stem(label))
    return with_own_names(label, told)


def with_own_names(label: Path, told: Mapping[int, str]) -> dict[int, str]:
    """Names given for a label file, corrected by those that it holds itself.

    A table for many files may call 1 what this file calls 2: then the file is right.
    Where it has words of its own for what the table names, the table's are taken.
    """
    own = names_in_file(label)
    if not told or not own:
        return dict(told or own)
    known = {key_of(name) for name in told.values()}
    shared = {value: name for value, name in own.items() if key_of(name) in known}
    taken = {key_of(name) for name in shared.values()}
    rest = {
        value: name
        for value, name in told.items()
        if value not in shared and key_of(name) not in taken
    }
    return dict(sorted({**rest, **shared}.items()))


def names_told(label: Path) -> dict[int, str]:
    """Names of a label file: its own, of a file beside it, of the data set's."""
    names = names_beside(label)
    return names or with_own_names(label, names_of_dataset(label))


def names_in_file(label: Path) -> dict[int, str]:
    """Names of the segments of a 3D Slicer segmentation (``.seg.nrrd``), or DICOM's.

    Empty for other files.
    """
    try:
        kind = kind_of(label) if label.is_file() else ""
    except (Unsound, OSError):
        return {}
    found = naming_format(kind)
    return {} if found is None else found.label_names(label)


def _names_in_json(label: Path) -> dict[int, str]:
    """From ``STEM.labels.json``, or ``label_names.json`` for all files or by name."""
    for name in (names_file(label).name, *_FILES):
        file = label.parent / name
        if raw := object_or_none(file):
            own = raw.get(scan_stem(label), raw.get(label.name))
            names = parse_names(own if own is not None else raw)
            if names:
                return names
    return {}


@dataclass(frozen=True)
class ToldLabels:
    """What is known of a label map before it is read as one.

    Attributes:
        names: Value -> name.
        values: Whole values above 0 that it holds; None where that is not known.
    """

    names: dict[int, str]
    values: frozenset[int] | None = None


def names_of_label(
    label: Path | None,
    image: Path,
    told: Mapping[int, str],
    stats: ValueStats | None,
) -> ToldLabels:
    """The names of a scan's label map, and what it holds.

    Args:
        label: The label file; None for a scan without one.
        image: The scan.
        told: What a data set or manifest calls its labels.
        stats: Of the label map's values.
    """
    if label is None:
        return ToldLabels(dict(told))
    names = with_own_names(label, told) if told else names_beside(label)
    names = names or name_of_mask(label, image, stats)
    found = None if stats is None else stats.labels
    if found is None:
        return ToldLabels(names)
    # a black and white picture becomes 0 and 1, see labels_of
    picture = scan_suffix(label) in PICTURE_SUFFIXES and found <= {0, 255}
    whole = {1 if picture else v for v in found if 0 < v < 2**31}
    return ToldLabels(names, frozenset(whole))


def name_of_mask(label: Path, image: Path, stats: ValueStats | None) -> dict[int, str]:
    """Name of a 0/1 mask from its file name: ``ct_aorta`` of ``ct`` -> 1: aorta.

    A name that has nothing in common with the image's is its own number in a row
    (``m07`` of ``p07``, ``scan3`` of ``case_12``) where digits are left in it.
    """
    if stats is None or stats.labels is None or not stats.labels <= {0, 1}:
        return {}
    of_image = tokens(scan_stem(image))
    told = tokens(scan_stem(label))
    if not set(told) & set(of_image):
        numbers = set(re.findall(r"\d+", " ".join(of_image)))
        told = [_unnumbered(t, numbers) for t in told]
        if any(len(t) < 2 or re.search(r"\d", t) for t in told):
            return {}
    known = set(of_image) | _GENERIC
    own = [t for t in told if t not in known]
    return {1: " ".join(own)} if own and not own[0].isdigit() else {}


def _unnumbered(token: str, numbers: set[str]) -> str:
    """``liver07`` -> ``liver`` where 07 is the image's number, too."""
    found = re.fullmatch(r"(\D+)(\d+)", token)
    return found[1] if found and found[2] in numbers else token


def names_of_dataset(label: Path) -> dict[int, str]:
    """From the ``dataset.json`` beside a label file, or in the folder above."""
    for folder in (label.parent, label.parent.parent):
        raw = object_or_none(folder / DATASET)
        if raw is not None:
            return parse_names(raw.get("labels"))
    return {}
