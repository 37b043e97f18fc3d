"""Whose scans they are, where no manifest and no DICOM tag states it.

Scans of one person must never be parted by a split. When in doubt two are taken for one
person: that costs a little data, the opposite would make results too good.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from homolog.errors import UnusableInput
from homolog.scans.dicom import split_series
from homolog.scans.files import scan_stem
from homolog.scans.names import shorter_names
from homolog.writing import make_folder, write_once


class OfSubject(Protocol):
    """A dataclass that states whose a case is: a CaseSource, or a Card of a store."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str:
        """Name of the case."""
        ...

    @property
    def subject(self) -> str:
        """Person or animal."""
        ...


C = TypeVar("C", bound=OfSubject)

_PSEUDONYM = re.compile(r"hashed-[0-9a-f]{16}")
_KEY_BYTES = 32

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


def hidden_subjects(cases: Sequence[C]) -> list[C]:
    """Cases without what identifies a patient: subjects become keyed hashes.

    Cases of one subject stay of one subject, here and in other stores of this user. A
    case that stands for itself keeps its own name as subject: it adds nothing.

    Raises:
        UnusableInput: The key is damaged or cannot be kept.
    """
    told = {case.subject for case in cases if case.subject != case.id} - {""}
    if not told:
        return list(cases)
    key = subject_key()
    return [
        replace(case, subject=pseudonym(case.subject, key))
        if case.subject in told and not is_pseudonym(case.subject)
        else case
        for case in cases
    ]


def pseudonym(subject: str, key: bytes) -> str:
    """A subject's keyed hash: without the key nobody finds the name by trying names."""
    digest = hmac.new(key, subject.encode("utf-8", "surrogateescape"), hashlib.sha256)
    return f"hashed-{digest.hexdigest()[:16]}"


def is_pseudonym(subject: str) -> bool:
    """Whether a subject was made by ``pseudonym``."""
    return _PSEUDONYM.fullmatch(subject) is not None


def key_file() -> Path:
    """The user's key of subjects; it never lies in a store, run or model.

    ``$HOMOLOG_CONFIG/subjects.key``, else in ``homolog`` under ``$XDG_CONFIG_HOME``,
    ``%APPDATA%`` or ``~/.config``.
    """
    own = os.environ.get("HOMOLOG_CONFIG")
    if own:
        return Path(own) / "subjects.key"
    base = os.environ.get("XDG_CONFIG_HOME") or os.environ.get("APPDATA")
    return Path(base or Path.home() / ".config") / "homolog" / "subjects.key"


def subject_key() -> bytes:
    """The user's key, made (readable by the user alone) when first needed.

    Raises:
        UnusableInput: It is damaged, or its folder cannot be written.
    """
    path = key_file()
    try:
        if not path.exists():
            make_folder(path.parent)
            write_once(path, secrets.token_hex(_KEY_BYTES))
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as error:
        raise UnusableInput(
            f"the key that hides patients' names cannot be kept in {path} "
            f"({error.strerror}); name a folder in HOMOLOG_CONFIG, or prepare with "
            "--keep-identifiers."
        ) from None
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise UnusableInput(
            f"the key that hides patients' names, {path}, is damaged; put it back from "
            "a copy, or delete it: stores then give their patients new names."
        )
    return key
