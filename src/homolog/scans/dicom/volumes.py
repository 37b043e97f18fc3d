"""Several volumes in one stack of slices: echoes, times, types, b-values.

Where different slices lie at one place, what their headers say is looked at in a fixed
order, and they are parted by the first that tells them apart; the parts again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from homolog.scans.dicom.kinds import DicomFile
from homolog.scans.dicom.placing import places_of, same_place_mm, step_problems

# What parts volumes, and what it is called with its value. The first wins.
_TELLING: tuple[tuple[str, str], ...] = (
    ("stack", "stack {}"), ("image_type", "{}"), ("component", "{}"),
    ("echo_time", "echo {} ms"), ("echo_number", "echo {}"), ("b_value", "b {}"),
    ("inversion_time", "inversion {} ms"), ("kvp", "{} kV"), ("kernel", "kernel {}"),
    ("flip_angle", "flip {} degrees"), ("repetition_time", "repetition {} ms"),
    ("temporal", "time {}"), ("trigger_time", "trigger {} ms"),
    ("temporal_offset", "time {}"), ("reference_time", "time {} ms"),
    ("direction", "direction {}"), ("acquisition", "acquisition {}"),
    ("sequence_name", "sequence {}"), ("acquisition_time", "time {}"),
    ("dimensions", "index {}"),
)  # fmt: skip
# These also part stacks that lie beside each other along one line.
_APART = ("stack", "acquisition", "image_type")
# Values of ImageType that are the same in nearly all images.
_USUAL = {"ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "", "ND"}
# A series of more images at one place is parted no further.
_MOST_AT_ONE_PLACE = 4096
_COMPONENTS = {"0": "magnitude", "1": "phase", "2": "real", "3": "imaginary"}


@dataclass
class Part:
    """One volume of a series.

    Attributes:
        name: What tells it from the others, such as ``echo 4.6 ms``.
        files: Its slices.
    """

    name: str
    files: list[DicomFile]


def volumes_in(group: Sequence[DicomFile]) -> list[Part]:
    """The volumes of slices with one direction and grid; one Part where it is one.

    Slices that nothing tells apart stay together.
    """
    files = _once(group)
    _, most = _crowd(files)
    parts = _parted(files)
    if len(parts) > 1 and most > 1:
        told = [_rest(files, group, part) for part in parts]
        return _unlike(told)
    if most == 1 and (beside := _beside(files)):
        return beside
    return [Part("", list(group))]


def _once(group: Sequence[DicomFile]) -> list[DicomFile]:
    """Without further files of the same identity."""
    seen: set[str] = set()
    kept = []
    for file in group:
        uid = file.text("sop_uid")
        if uid and uid in seen:
            continue
        seen.add(uid)
        kept.append(file)
    return kept


def _rest(kept: list[DicomFile], group: Sequence[DicomFile], part: Part) -> Part:
    """The part with its copies, which are told later."""
    if len(kept) == len(group):
        return part
    mine = {f.text("sop_uid") for f in part.files}
    return Part(part.name, [f for f in group if f.text("sop_uid") in mine])


def _crowd(files: Sequence[DicomFile]) -> tuple[int, int]:
    """Slices beyond one at each place, and the most at one place."""
    counts = _at_each_place(files)
    return sum(counts) - len(counts), max(counts)


def _at_each_place(files: Sequence[DicomFile]) -> list[int]:
    places = np.sort(places_of(files))
    ends = np.flatnonzero(np.diff(places) >= same_place_mm(places))
    counts: list[int] = np.diff([-1, *ends.tolist(), len(places) - 1]).tolist()
    return counts


def _parted(files: list[DicomFile]) -> list[Part]:
    """The group by everything that lessens its crowd, one after the other."""
    extra, most = _crowd(files)
    if extra == 0 or most > _MOST_AT_ONE_PLACE:
        return [Part("", files)]
    for name, words in _TELLING:
        groups = _by(files, name)
        if not 1 < len(groups) <= most:
            continue
        left = [_crowd(g)[0] for g in groups.values()]
        if sum(left) >= extra:
            continue
        made = []
        for value, group in groups.items():
            own = _called(name, words, value)
            for one in _parted(group):
                full = ", ".join(t for t in (own, one.name) if t)
                made.append(Part(full, one.files))
        return made
    return _numbered(files, most)


def _by(files: Sequence[DicomFile], name: str) -> dict[str, list[DicomFile]]:
    """Slices by what they say under a name, in order of its values."""
    groups: dict[str, list[DicomFile]] = defaultdict(list)
    for file in files:
        groups[_value(file, name)].append(file)
    return dict(sorted(groups.items(), key=lambda item: _order(item[0])))


def _order(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def _value(file: DicomFile, name: str) -> str:
    """What a slice says, numbers in one spelling."""
    text = file.text(name).strip()
    parts = [part.strip() for part in text.split("\\")]
    if name == "dimensions":
        return "\\".join(parts[:1]) if len(parts) > 1 else ""
    return "\\".join(_spelt(part) for part in parts)


def _spelt(text: str) -> str:
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text


def _called(name: str, words: str, value: str) -> str:
    if name == "component":
        return _COMPONENTS.get(value, value.lower() or "unnamed")
    if name == "image_type":
        return value  # shortened once all are known
    said = value.replace("\\", " ")
    return words.format(said) if said else f"no {words.split()[0]}"


def _unlike(parts: list[Part]) -> list[Part]:
    """Image types shortened to what differs, and every name once."""
    types = [p.name.split(", ")[0].split("\\") for p in parts]
    shared = set.intersection(*map(set, types)) if all(types) else set()
    taken: Counter[str] = Counter()
    made = []
    for part, kinds in zip(parts, types, strict=True):
        name = part.name
        if "\\" in name:
            own = [k for k in kinds if k not in shared and k not in _USUAL]
            own = own or [k for k in kinds if k not in shared] or ["usual"]
            name = ", ".join([" ".join(own), *name.split(", ")[1:]])
        taken[name] += 1
        again = f" ({taken[name]})" if taken[name] > 1 else ""
        made.append(Part(f"{name}{again}", part.files))
    return made


def _numbered(files: list[DicomFile], most: int) -> list[Part]:
    """By the images' numbers, where each place has as many and each a number."""
    counts = set(_at_each_place(files))
    numbers = [f.whole("instance", -1) for f in files]
    if counts != {most} or -1 in numbers or len(set(numbers)) < len(files):
        return [Part("", files)]
    places = places_of(files)
    order = np.lexsort((np.array(numbers), places))
    near = same_place_mm(places)
    rows: list[list[int]] = []
    for i in order:
        if rows and places[i] - places[rows[-1][0]] < near:
            rows[-1].append(i)
        else:
            rows.append([i])
    if any(len(row) != most for row in rows):
        return [Part("", files)]
    ranked = [sorted(row, key=lambda i: numbers[i]) for row in rows]
    return [
        Part(f"number {j + 1}", [files[row[j]] for row in ranked]) for j in range(most)
    ]


def _beside(files: list[DicomFile]) -> list[Part]:
    """Stacks along one line that each are even while all together are not."""
    if not any(p.fatal for p in step_problems(np.sort(places_of(files)))):
        return []
    for name, words in _TELLING:
        if name not in _APART:
            continue
        groups = _by(files, name)
        if not 1 < len(groups) <= len(files) // 3:
            continue
        sorted_ = [np.sort(places_of(g)) for g in groups.values()]
        even = all(len(p) > 2 and not step_problems(p) for p in sorted_)
        if even:
            parts = [Part(_called(name, words, v), g) for v, g in groups.items()]
            return _unlike(parts)
    return []
