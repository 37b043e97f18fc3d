"""Subjects as keyed hashes: a store, run or model never names a patient."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from homolog.errors import UnusableInput
from homolog.store.splits import is_pseudonym
from homolog.writing import make_folder, write_once

_KEY_BYTES = 32


class OfSubject(Protocol):
    """A dataclass that says whose a case is: a CaseSource, or a Card of a store."""

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


def hidden_subjects(cases: Sequence[C]) -> list[C]:
    """Cases without what identifies a patient: subjects become keyed hashes.

    Cases of one subject stay of one subject, here and in other stores of this user. A
    case that stands for itself keeps its own name as subject: it reveals nothing.

    Raises:
        UnusableInput: The key is damaged or cannot be kept.
    """
    names = {case.subject for case in cases if case.subject != case.id} - {""}
    if not names:
        return list(cases)
    key = subject_key()
    return [
        replace(case, subject=pseudonym(case.subject, key))
        if case.subject in names and not is_pseudonym(case.subject)
        else case
        for case in cases
    ]


def pseudonym(subject: str, key: bytes) -> str:
    """A subject's keyed hash: without the key nobody finds the name by trying names."""
    digest = hmac.new(key, subject.encode("utf-8", "surrogateescape"), hashlib.sha256)
    return f"hashed-{digest.hexdigest()[:16]}"


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
