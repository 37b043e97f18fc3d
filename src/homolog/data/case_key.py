"""What a prepared case depends on, as one hash: another hash means prepare again."""

from __future__ import annotations

import hashlib
from functools import cache
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from homolog.config import config_hash, to_dict
from homolog.data.preprocess import Preprocessing
from homolog.data.scan_header import is_series_path
from homolog.data.text_headers import data_files

if TYPE_CHECKING:
    from homolog.data.case_source import CaseSource

# Code whose change makes every prepared case stale, as patterns in this folder.
_CODE = (
    "array_file.py",
    "byte_stream.py",
    "card.py",
    "case_writer.py",
    "dicom_*.py",
    "foreground.py",
    "itk_decoder.py",
    "label_values.py",
    "nifti_*.py",
    "pictures.py",
    "preprocess.py",
    "quantise.py",
    "resample.py",
    "scan_header.py",
    "scan_io.py",
    "text_headers.py",
    "text_voxels.py",
    "values.py",
)

# Headers whose voxels lie in a file beside them.
_PAIRED = {".hdr", ".img"}
# Headers that name the files of their voxels.
_NAMING = {".mhd", ".nhdr", ".mha", ".nrrd"}


def case_key(source: CaseSource, preprocessing: Preprocessing) -> str:
    """Hash of what a prepared case depends on: file contents, code and recipe.

    Args:
        source: The case.
        preprocessing: With the modality of this very case.
    """
    files = [source.image] + ([source.label] if source.label else [])
    parts = [[file_digest(p) for p in files], code_digest(), to_dict(preprocessing)]
    if source.label_map:
        parts.append({str(v): n for v, n in source.label_map.items()})
    return config_hash(*parts)


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of a scan, in all files it consists of."""
    digest = hashlib.sha256(path.name.encode() if is_series_path(path) else b"")
    for part in _parts(path):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    """A folder's files, a header with its data file, or the file itself."""
    if is_series_path(path):
        path = path.parent
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file())
    if path.suffix.lower() in _NAMING:
        return list(dict.fromkeys([path, *data_files(path)]))
    if path.suffix.lower() in _PAIRED:
        family = path.parent.glob(f"{escape(path.stem)}.*")
        return sorted({path, *(p for p in family if p.is_file())})
    return [path]


@cache
def code_digest() -> str:
    """Hash of the source text that decides what a prepared case holds."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for pattern in _CODE:
        for path in sorted(folder.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()
