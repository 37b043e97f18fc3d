"""What an index is made of: cases to prepare, and what was put aside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, eq=False)
class CaseSource:
    """One scan to prepare, with all that is known about it.

    Attributes:
        id: Unique among the index, stable, usable as a folder name.
        image: Scan file, DICOM folder, or one series of a folder.
        label: Label map on the same grid.
        modality: One of MODALITIES.
        subject: Person or animal; splits never part one.
        split: ``train, val, test`` where the source says so.
        target: Class of the whole scan; several as ``a|b`` (``homolog.data.findings``).
        types: Further findings, in the same way.
        boxes: Findings; each with ``label`` and ``min``, ``max`` in voxels z, y, x.
        label_names: Label value -> name; in the files' values until ``join_cases``.
        label_values: Values that the label map holds, None where that is not known.
        label_map: Value in the label file -> value in the store, -1 where it teaches
            nothing; values not named here stay.
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
        stopped: Whether the job was stopped before its end.
    """

    cases: tuple[CaseSource, ...]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()
    stopped: bool = False


@dataclass(frozen=True, eq=False)
class Candidate:
    """A case before its scan was looked at.

    Attributes:
        image: The scan.
        name: Wanted id; made unique and clean later.
        root: Folder the name is relative to; tells equal names apart.
        label: Its label map.
        modality: What the source says, "" when nothing.
        subject: What the source says, "" when nothing.
        folder_subject: What its place among other files suggests.
        split: As in CaseSource.
        target: As in CaseSource.
        types: As in CaseSource.
        boxes: As in CaseSource.
        label_names: As in CaseSource.
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


@dataclass
class Found:
    """What one source holds, before the scans are looked at."""

    candidates: list[Candidate] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
