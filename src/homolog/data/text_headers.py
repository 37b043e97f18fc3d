"""NRRD and MetaImage: what their headers say, and whether their data are all there.

SimpleITK fills a missing voxel size with 1 mm, MetaIO prints to the terminal about
missing bytes and lets damaged compressed data pass; so both are looked at first.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from homolog.data.problems import SHEAR_LIMIT, Problem, Unsound, shear_text

_LONGEST = 1 << 20
_META_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4,
    "MET_UINT": 4, "MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TextHeader:
    """Fields of a text header.

    Attributes:
        path: The header's file.
        fields: Key in lower case -> value.
        data_at: Byte in ``path`` where attached data start; None when detached.
    """

    path: Path
    fields: dict[str, str]
    data_at: int | None


def read_nrrd_text(path: Path) -> TextHeader:
    """Fields of a ``.nrrd`` or ``.nhdr`` file."""
    start = _start(path)
    if not start.startswith(b"NRRD"):
        raise Unsound("unreadable", "no NRRD mark at its beginning.", path)
    end = re.search(rb"\r?\n\r?\n", start)
    text = start[: end.start()] if end else start
    fields = {}
    for line in text.decode("latin-1").splitlines()[1:]:
        key, sign, value = line.partition(":")
        if sign and not line.startswith("#"):
            fields[key.strip().lower()] = value.lstrip("= ").strip()
    missing = [k for k in ("type", "dimension", "sizes", "encoding") if k not in fields]
    if missing:
        raise Unsound("unreadable", f"the NRRD header has no {missing[0]!r}.", path)
    detached = "data file" in fields or "datafile" in fields
    if end is None and not detached:
        raise Unsound("truncated", "the file ends within its NRRD header.", path)
    return TextHeader(path, fields, None if detached or end is None else end.end())


def nrrd_problems(header: TextHeader) -> list[Problem]:
    """Faults of size, spacing and axes that SimpleITK would not tell."""
    fields = header.fields
    sizes = [int(v) for v in re.findall(r"-?\d+", fields["sizes"])]
    if not sizes or any(n < 1 for n in sizes):
        return [Problem("empty", f"size {'x'.join(map(str, sizes))} holds no voxels.")]
    rows = re.findall(r"\(([^)]*)\)", fields.get("space directions", ""))
    vectors = [[_number(v) for v in row.split(",")] for row in rows]
    if vectors:
        axes = np.array(vectors, dtype=np.float64).T
        lengths = np.linalg.norm(axes, axis=0)
    elif "spacings" in fields:
        axes = None
        lengths = np.array([
            _number(v) for v in fields["spacings"].split()
        ])  # fmt: skip
        kinds = fields.get("kinds", "").split()
        if len(kinds) == len(lengths):  # an axis of colours or times has no spacing
            lengths = lengths[[k in ("domain", "space", "???", "none") for k in kinds]]
    else:
        return [Problem("spacing", "the header gives no voxel size.")]
    return _geometry_problems(lengths, axes)


def read_meta_text(path: Path) -> TextHeader:
    """Fields of an ``.mha`` or ``.mhd`` file."""
    start = _start(path)
    fields = {}
    at = 0
    while at < len(start):
        stop = start.find(b"\n", at)
        if stop < 0:
            break
        key, sign, value = start[at:stop].decode("latin-1").partition("=")
        if not sign:
            raise Unsound("unreadable", "no MetaImage header at its beginning.", path)
        fields[key.strip().lower()] = value.strip()
        at = stop + 1
        if key.strip().lower() == "elementdatafile":
            break
    if "ndims" not in fields or "dimsize" not in fields:
        raise Unsound("unreadable", "no MetaImage header at its beginning.", path)
    if "elementdatafile" not in fields:
        raise Unsound("truncated", "the file ends within its MetaImage header.", path)
    local = fields["elementdatafile"].upper() == "LOCAL"
    return TextHeader(path, fields, at if local else None)


def meta_problems(header: TextHeader) -> list[Problem]:
    """Faults of size, spacing and axes that SimpleITK would not tell."""
    fields = header.fields
    sizes = [int(v) for v in fields["dimsize"].split()]
    if any(n < 1 for n in sizes):
        return [Problem("empty", f"size {'x'.join(map(str, sizes))} holds no voxels.")]
    said = fields.get("elementspacing", fields.get("elementsize"))
    if said is None:
        return [Problem("spacing", "the header gives no voxel size.")]
    lengths = np.array([_number(v) for v in said.split()])
    turned = next(
        (
            fields[k]
            for k in ("transformmatrix", "rotation", "orientation")
            if k in fields
        ),
        "",
    )
    numbers = [_number(v) for v in turned.split()]
    n = len(sizes)
    axes = np.array(numbers).reshape(n, n).T if len(numbers) == n * n else None
    return _geometry_problems(lengths, axes)


def check_meta_data(header: TextHeader) -> None:
    """Verify that the voxels of a MetaImage are all there and decode.

    Raises:
        Unsound: ``missing, truncated, corrupt``.
    """
    path, at = header.path, header.data_at or 0
    if header.data_at is None:
        name = header.fields["elementdatafile"]
        if name.upper().startswith("LIST") or "%" in name:
            return  # slices in many files: SimpleITK reads them, and raises
        path = header.path.with_name(name)
        if not path.is_file():
            raise Unsound("missing", f"its data file {name} is not there.", header.path)
    expected = _META_BYTES.get(header.fields.get("elementtype", "").upper(), 0)
    expected *= int(header.fields.get("elementnumberofchannels", "1"))
    for n in header.fields["dimsize"].split():
        expected *= int(n)
    data = path.stat().st_size - at
    if header.fields.get("compresseddata", "").lower() in ("true", "1"):
        data = _inflated_bytes(path, at, header.path)
    if expected and data < expected:
        text = f"{expected} bytes of voxels expected, {data} found."
        raise Unsound("truncated", text, header.path)


def _inflated_bytes(path: Path, at: int, name: Path) -> int:
    engine, total = zlib.decompressobj(), 0
    with path.open("rb") as file:
        file.seek(at)
        while piece := file.read(1 << 20):
            try:
                while piece:
                    total += len(engine.decompress(piece, 1 << 24))
                    piece = engine.unconsumed_tail
            except zlib.error as error:
                text = f"the compressed voxels are damaged ({error})."
                raise Unsound("corrupt", text, name) from None
            if engine.eof:
                return total
    raise Unsound("truncated", "the compressed voxels end too early.", name)


def _geometry_problems(lengths: np.ndarray, axes: np.ndarray | None) -> list[Problem]:
    said = " x ".join(f"{v:g}" for v in lengths)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        text = f"voxel size must be positive, the header says {said}."
        return [Problem("spacing", text)]
    if axes is None or axes.shape[0] != axes.shape[1]:
        return []
    norms = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or not (norms > 0).all():
        return [Problem("affine", "the voxel axes in the header are not directions.")]
    unit = axes / norms
    shear = np.abs(unit.T @ unit - np.eye(len(unit))).max()
    if shear > SHEAR_LIMIT:
        return [Problem("sheared", shear_text(float(shear)))]
    return []


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(_LONGEST)
    if not start:
        raise Unsound("empty", "the file has 0 bytes.", path)
    return start


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
