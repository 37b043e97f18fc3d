"""Tensors and JSON on disk: complete or absent, verified when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from homolog.private_files import make_folder


@contextlib.contextmanager
def fresh_folder(place: Path) -> Iterator[Path]:
    """A scratch folder that becomes ``place`` when the block ends well.

    On an error it vanishes and ``place`` stays as it was. Everything in it is synced to
    the disk before the rename.
    """
    make_folder(place.parent)
    scratch = place.parent / f".{place.name}.new"
    retired = place.parent / f".{place.name}.old"
    if retired.exists() and not place.exists():  # killed between two renames
        retired.rename(place)
    for leftover in (scratch, retired):
        shutil.rmtree(leftover, ignore_errors=True)
    make_folder(scratch)
    try:
        yield scratch
        for file in scratch.iterdir():
            _sync(file)
        _sync(scratch)
        if place.exists():
            place.rename(retired)
        scratch.rename(place)
        _sync(place.parent)
    except BaseException:
        if retired.exists() and not place.exists():
            retired.rename(place)
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file; returns the SHA-256 of its bytes."""
    # clones: safetensors refuses views that share memory
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path
    )
    return file_digest(path)


def read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: Its bytes are not those that were written.
    """
    if file_digest(path) != sha256:
        raise ValueError(f"{path.name} does not match its checksum")
    loaded: dict[str, Tensor] = load_file(path)
    return loaded


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, temporary name first."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    _sync(scratch)
    scratch.replace(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot sync a folder
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: Exception) -> str:
    """What an error says, in few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip() or type(error).__name__
