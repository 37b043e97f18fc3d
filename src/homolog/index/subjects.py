"""Whose scans they are, where no manifest and no DICOM tag states it.

Scans of one person must never be parted by a split. When in doubt two are taken for one
person: that costs a little data, the opposite would make results too good.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from homolog.scans.dicom import split_series
from homolog.scans.files import scan_stem
from homolog.scans.names import shorter_names

_BIDS = re.compile(r"^(sub-[A-Za-z0-9]+)(?:_|$)")


def guess_subjects(images: Iterable[Path], root: Path) -> dict[Path, str]:
    """Subject of each scan of one folder tree; scans that stand alone are left out.

    In this order: a BIDS name (``sub-01``) in the path; the folder, when it and
    folders beside it hold scans of the same names (``P01/T1``, ``P02/T1``); a scan
    beside it whose name it continues with a word (``ct``, ``ct_small``).
    """
    images = list(images)
    subjects: dict[Path, str] = {}
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        bids = next(filter(None, map(_bids, image.relative_to(root).parts)), None)
        if bids:
            subjects[image] = bids
        else:
            by_folder[split_series(image)[0].parent].append(image)
    persons = _person_folders(by_folder, root)
    for folder, members in by_folder.items():
        if folder in persons:
            subjects.update(dict.fromkeys(members, folder.name))
        else:
            subjects.update(_continued(members))
    return subjects


def _bids(part: str) -> str | None:
    found = _BIDS.match(part)
    return found.group(1) if found else None


def _person_folders(by_folder: Mapping[Path, list[Path]], root: Path) -> set[Path]:
    """Folders whose scans' names come back in a folder beside them."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    for folder in by_folder:
        if folder != root and root in folder.parents:
            beside[folder.parent].append(folder)
    persons = set()
    for folders in beside.values():
        names = {f: {scan_stem(i).lower() for i in by_folder[f]} for f in folders}
        count: dict[str, int] = defaultdict(int)
        for stems in names.values():
            for stem in stems:
                count[stem] += 1
        for folder, stems in names.items():
            again = sum(count[stem] > 1 for stem in stems)
            if again * 2 >= len(stems) and len(stems) <= 32:
                persons.add(folder)
    return persons


def _continued(members: list[Path]) -> dict[Path, str]:
    stems = {scan_stem(m): m for m in members}
    subjects = {}
    for stem, member in stems.items():
        start = stem
        for shorter in shorter_names(stem):
            more = stem[len(shorter) :].strip("_-. ")
            if shorter in stems and not re.search(r"\d", more):
                start = shorter
        if start != stem:
            subjects[member] = start
            subjects[stems[start]] = start
    return subjects
