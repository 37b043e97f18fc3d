"""What a prepared case depends on, as one hash: another hash means prepare again."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from homolog.config import config_hash, to_dict
from homolog.data.preprocess import Preprocessing

if TYPE_CHECKING:
    from homolog.data.index import CaseSource

# Code whose change makes every prepared case stale.
_CODE = (
    "foreground.py",
    "array_file.py",
    "card.py",
    "case_writer.py",
    "dicom_series.py",
    "nifti_data.py",
    "nifti_header.py",
    "pictures.py",
    "preprocess.py",
    "resample.py",
    "scan_io.py",
)


def case_key(source: CaseSource, preprocessing: Preprocessing) -> str:
    """Hash of what a prepared case depends on: file contents, code and recipe.

    Args:
        source: The case.
        preprocessing: With the modality of this very case.
    """
    files = [source.image] + ([source.label] if source.label else [])
    return config_hash(
        [file_digest(path) for path in files], code_digest(), to_dict(preprocessing)
    )


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of a scan, in all files it consists of."""
    digest = hashlib.sha256()
    for part in _parts(path):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    """A folder's files, a header with its data file, or the file itself."""
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    if path.suffix.lower() in {".hdr", ".img", ".mhd", ".nhdr"}:
        stem = path.name[: -len(path.suffix)]
        family = (p for p in path.parent.iterdir() if p.name.startswith(f"{stem}."))
        return sorted({path, *(p for p in family if p.is_file())})
    return [path]


@cache
def code_digest() -> str:
    """Hash of the source text that decides what a prepared case holds."""
    digest = hashlib.sha256()
    for name in _CODE:
        path = Path(__file__).with_name(name)
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()
