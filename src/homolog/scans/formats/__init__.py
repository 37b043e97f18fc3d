"""Formats of single programs: what a file of theirs is, and what it holds.

A format is a file here with ``read`` and ``values``. It is loaded when a file of it is
met: who reads a NIfTI needs none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from numpy.typing import NDArray

from homolog.scans.problems import Problem

if TYPE_CHECKING:
    from homolog.scans.formats.stated import Stated

# Kind as in ``ScanHeader`` -> its file here.
_FILES = {"mgh": "mgh", "zarr": "zarrs", "image2d": "pictures", "tiff": "pictures"}
_ZARR_MARKS = (".zgroup", ".zarray", "zarr.json")


class Format(Protocol):
    """What a file here offers."""

    def read(self, path: Path) -> Stated:
        """What a scan is, without its values."""

    def values(self, path: Path, channels: int) -> tuple[NDArray[Any], list[Problem]]:
        """(D, H, W) values, and remarks made on the way.

        Args:
            path: The scan.
            channels: Numbers per voxel.
        """


class Pieced(Format, Protocol):
    """A format that can be read piece by piece."""

    def pieces(self, path: Path) -> Iterator[NDArray[Any]]:
        """The values in flat pieces."""


def format_of(kind: str) -> Format:
    """The format of a kind of scan."""
    return cast("Format", importlib.import_module(f"{__name__}.{_FILES[kind]}"))


def zarr_format() -> Pieced:
    """The format of zarr folders."""
    return cast("Pieced", format_of("zarr"))


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr group or array."""
    try:
        return any((folder / mark).is_file() for mark in _ZARR_MARKS)
    except OSError:
        return False
