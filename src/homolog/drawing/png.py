"""Pictures as PNG bytes, with nothing but zlib."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_bytes(rgb: NDArray[np.uint8]) -> bytes:
    """Encode a picture (height, width, 3) uint8.

    Rows are stored as differences to the row above (filter 2), which zlib likes better.

    Source: PNG specification, W3C 2003.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(
            f"a picture must be (h, w, 3) uint8, got {rgb.shape} {rgb.dtype}."
        )
    height, width, _ = rgb.shape
    rows = rgb.reshape(height, -1)
    above = np.zeros_like(rows)
    above[1:] = rows[:-1]
    filtered = np.empty((height, width * 3 + 1), np.uint8)
    filtered[:, 0] = 2
    filtered[:, 1:] = rows - above  # wraps around, as the filter wants it
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        _SIGNATURE
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def data_address(rgb: NDArray[np.uint8]) -> str:
    """The picture as a ``data:`` address, to stand inside an HTML page."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(rgb)).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
