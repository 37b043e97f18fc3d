"""Mutated scans of every format: no reader may crash, hang, swell or let an error out.

Small sound files are written, then damaged in many ways: bits and runs of bytes changed
in header or voxels, files cut, padded and spliced, numbers and names in headers
replaced by hostile ones. Each mutant is inspected and read, as ``homolog info`` and the
window do, in a process of limited memory, with a time limit and warnings as errors.

    python benchmarks/fuzz_readers.py --count 20000 --seed 0

A thousand at a time, each with a seed of its own and kept as it comes: what is there is
not done again (another seed or ``--anew`` begins anew).

Counted for each format and kind of damage: ``refused`` with a sentence, ``same``
(sound, with the values and place it had), ``other`` (sound, with other ones: damage
that nothing in the file tells of), and what must not be: ``error, crash, hang, swollen,
noisy``.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import os
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

RESULT = Path(__file__).parent / "results" / "fuzz_readers.json"
SHAPE = (5, 8, 9)
LIMIT_S, WAIT_S = 30.0, 600.0
LIMIT_BYTES = 4 << 30
SWOLLEN_BYTES = 1 << 30
LIMITS = {"seconds": LIMIT_S, "bytes": LIMIT_BYTES, "kept": SWOLLEN_BYTES}
BATCH = 1000
BAD = ("error", "crash", "hang", "swollen", "noisy")


# ---- sound files ---------------------------------------------------------------------


def scan_values(shape: tuple[int, ...] = SHAPE, kind: str = "<i2") -> np.ndarray:
    rng = np.random.default_rng(len(shape))
    return rng.integers(1, 200, shape).astype(kind)


def nifti(order: str = "<", magic: bytes = b"n+1\0", offset: float = 352.0) -> bytes:
    header = bytearray(352)
    struct.pack_into(order + "i", header, 0, 348)
    struct.pack_into(order + "8h", header, 40, 3, *SHAPE[::-1], 1, 1, 1, 1)
    struct.pack_into(order + "hh", header, 70, 4, 16)
    struct.pack_into(order + "8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into(order + "3f", header, 108, offset, 1.0, 0.0)
    header[123] = 2
    analyze = magic == bytes(4)
    struct.pack_into(order + "hh", header, 252, 0, 0 if analyze else 1)
    if not analyze:
        struct.pack_into(order + "12f", header, 280, *np.eye(3, 4).ravel())
    header[344:348] = magic
    return bytes(header)


def nifti2() -> bytes:
    header = bytearray(544)
    header[0:4] = (540).to_bytes(4, "little")
    header[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into("<hh", header, 12, 4, 16)
    struct.pack_into("<8q", header, 16, 3, *SHAPE[::-1], 1, 1, 1, 1)
    struct.pack_into("<8d", header, 104, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<q", header, 168, 544)
    struct.pack_into("<i", header, 348, 1)
    struct.pack_into("<12d", header, 400, *np.eye(3, 4).ravel())
    struct.pack_into("<i", header, 500, 2)
    return bytes(header)


def nrrd_text(encoding: str = "raw", data: str = "") -> bytes:
    w, h, d = SHAPE[::-1]
    lines = [
        "NRRD0005", "# made to be broken", "type: short", "dimension: 3",
        "space: left-posterior-superior", f"sizes: {w} {h} {d}",
        "space directions: (0.7,0,0) (0,1.3,0) (0,0,2.5)",
        "kinds: domain domain domain", "endian: little", f"encoding: {encoding}",
        "space origin: (1,-2,3)", "who:=nobody",
    ]  # fmt: skip
    lines += [f"data file: {data}", ""] if data else ["", ""]
    return "\n".join(lines).encode()


def meta_text(data: str = "LOCAL", extra: str = "") -> bytes:
    w, h, d = SHAPE[::-1]
    return (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\n"
        f"BinaryDataByteOrderMSB = False\n{extra}"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 -2 3\n"
        "CenterOfRotation = 0 0 0\nElementSpacing = 0.7 1.3 2.5\n"
        f"DimSize = {w} {h} {d}\n"
        f"ElementType = MET_SHORT\nElementDataFile = {data}\n"
    ).encode()


def dicom_slice(number: int, how: str = "plain") -> bytes:
    """One CT slice in explicit VR, little endian."""

    def element(group: int, tag: int, vr: bytes, value: bytes) -> bytes:
        value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
        start = struct.pack("<HH", group, tag) + vr
        if vr in (b"OW", b"OB", b"SQ"):
            return start + b"\0\0" + struct.pack("<I", len(value)) + value
        return start + struct.pack("<H", len(value)) + value

    syntax = b"1.2.840.10008.1.2.1" + (b".99" if how == "deflated" else b"")
    kind, own = b"1.2.840.10008.5.1.4.1.1.2", b"1.2.3.%d" % number
    meta = element(2, 2, b"UI", kind) + element(2, 3, b"UI", own)
    meta += element(2, 0x10, b"UI", syntax)
    meta = element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta
    _, h, w = SHAPE
    short = "<H"
    body = b"".join(
        [
            element(8, 8, b"CS", b"ORIGINAL\\PRIMARY\\AXIAL"),
            element(8, 0x16, b"UI", kind),
            element(8, 0x18, b"UI", own),
            element(8, 0x60, b"CS", b"CT"),
            element(0x10, 0x20, b"LO", b"P7"),
            element(0x18, 0x50, b"DS", b"2"),
            element(0x20, 0xD, b"UI", b"1.2.3"),
            element(0x20, 0xE, b"UI", b"1.2.3.4"),
            element(0x20, 0x13, b"IS", b"%d" % number),
            element(0x20, 0x32, b"DS", b"0\\0\\%d" % (2 * number)),
            element(0x20, 0x37, b"DS", b"1\\0\\0\\0\\1\\0"),
            element(0x28, 2, b"US", struct.pack(short, 1)),
            element(0x28, 4, b"CS", b"MONOCHROME2"),
            element(0x28, 0x10, b"US", struct.pack(short, h)),
            element(0x28, 0x11, b"US", struct.pack(short, w)),
            element(0x28, 0x30, b"DS", b"1.5\\1.5"),
            element(0x28, 0x100, b"US", struct.pack(short, 16)),
            element(0x28, 0x101, b"US", struct.pack(short, 16)),
            element(0x28, 0x102, b"US", struct.pack(short, 15)),
            element(0x28, 0x103, b"US", struct.pack(short, 1)),
            element(0x28, 0x1052, b"DS", b"-1024"),
            element(0x28, 0x1053, b"DS", b"1"),
            element(0x7FE0, 0x10, b"OW", scan_values()[number].tobytes()),
        ]
    )
    if how == "deflated":
        engine = zlib.compressobj(wbits=-15)
        body = engine.compress(body) + engine.flush()
    return bytes(128) + b"DICM" + meta + body


@dataclass(frozen=True)
class Seed:
    """One sound scan.

    Attributes:
        format: What it counts as.
        files: Name -> content; the first is the one that is damaged most.
        target: Name of what is read; "" for the folder.
        voxels: Byte of the first file where its voxels begin; -1 when they lie in the
            second.
    """

    format: str
    files: dict[str, bytes]
    target: str
    voxels: int


CT_TAGS = {
    "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL", "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
    "0008|0018": "1.2.3.9", "0008|0060": "CT", "0010|0020": "P7", "0018|0050": "2",
    "0020|000d": "1.2.3", "0020|000e": "1.2.3.4", "0020|0013": "1",
    "0020|0032": "0\\0\\0", "0020|0037": "1\\0\\0\\0\\1\\0",
}  # fmt: skip


def seeds() -> list[Seed]:
    raw = scan_values().tobytes()
    big = scan_values(kind=">i2").tobytes()
    one, two = nifti(), nifti2()
    pair = nifti(magic=b"ni1\0", offset=0.0)
    slabs = {f"s{i}.raw": scan_values()[i].tobytes() for i in range(SHAPE[0])}
    text = b" ".join(b"%d" % v for v in scan_values().ravel())
    packed = zlib.compress(raw)
    size = f"CompressedData = True\nCompressedDataSize = {len(packed)}\n"

    def attached(name: str, header: bytes, data: bytes) -> Seed:
        return Seed(name.partition(" ")[0], {f"a.{name.split()[1]}": header + data},
                    f"a.{name.split()[1]}", len(header))  # fmt: skip

    def detached(kind: str, name: str, header: bytes, files: dict[str, bytes]) -> Seed:
        return Seed(kind, {name: header, **files}, name, -1)

    listing = "LIST\n" + "\n".join(slabs)
    found = [
        attached("nifti nii", one, raw),
        attached("nifti nii", nifti(">"), big),
        attached("nifti2 nii", two, raw),
        Seed("nifti-gz", {"a.nii.gz": gzip.compress(one + raw)}, "a.nii.gz", 10),
        Seed("nifti2-gz", {"a.nii.gz": gzip.compress(two + raw)}, "a.nii.gz", 10),
        detached("nifti-pair", "a.hdr", pair[:348], {"a.img": raw}),
        detached("analyze", "a.hdr", nifti(magic=bytes(4), offset=0.0)[:348],
                 {"a.img": raw}),
        attached("nrrd nrrd", nrrd_text(), raw),
        attached("nrrd-gz nrrd", nrrd_text("gzip"), gzip.compress(raw)),
        attached("nrrd-bz2 nrrd", nrrd_text("bzip2"), bz2.compress(raw)),
        attached("nrrd-text nrrd", nrrd_text("ascii"), text),
        attached("nrrd-text nrrd", nrrd_text("hex"), raw.hex().encode()),
        detached("nhdr", "a.nhdr", nrrd_text(data="b.raw"), {"b.raw": raw}),
        detached("nhdr-gz", "a.nhdr", nrrd_text("gzip", data="b.raw.gz"),
                 {"b.raw.gz": gzip.compress(raw)}),
        detached("nhdr", "a.nhdr", nrrd_text(data=listing), slabs),
        detached("nhdr", "a.nhdr", nrrd_text(data="s%d.raw 0 4 1"), slabs),
        attached("mha mha", meta_text(), raw),
        attached("mha-zlib mha", meta_text(extra=size), packed),
        detached("mhd", "a.mhd", meta_text("a.raw"), {"a.raw": raw}),
        detached("mhd", "a.mhd", meta_text("s%d.raw 0 4 1"), slabs),
        detached("mhd", "a.mhd", meta_text(listing), slabs),
        detached("mhd-zlib", "a.mhd", meta_text("a.zraw", size), {"a.zraw": packed}),
        Seed("dicom", {f"{i}.dcm": dicom_slice(i) for i in range(5)}, "", 620),
        Seed("dicom", {"one.dcm": dicom_slice(3)}, "one.dcm", 620),
        Seed("dicom-deflated", {"one.dcm": dicom_slice(3, "deflated")}, "one.dcm", 330),
    ]  # fmt: skip
    return found + _itk_seeds()


def _itk_seeds() -> list[Seed]:
    """Formats that SimpleITK writes."""
    import SimpleITK as sitk

    found = []
    picture = scan_values((40, 50), "u1")
    with tempfile.TemporaryDirectory() as folder:

        def made(
            kind: str, suffix: str, data: np.ndarray, compressor: str = ""
        ) -> None:
            path = Path(folder) / f"a{suffix}"
            writer = sitk.ImageFileWriter()
            writer.SetFileName(str(path))
            if compressor:
                writer.SetUseCompression(True)
                writer.SetCompressor(compressor)
            image = sitk.GetImageFromArray(data)
            for tag, text in CT_TAGS.items() if suffix == ".dcm" else ():
                image.SetMetaData(tag, text)
            writer.KeepOriginalImageUIDOn()
            writer.Execute(image)
            content = path.read_bytes()
            found.append(Seed(kind, {path.name: content}, path.name, len(content) // 2))

        made("png", ".png", picture)
        made("png", ".png", scan_values((40, 50), "<u2"))
        made("tiff", ".tif", picture)
        for compressor in ("LZW", "Deflate", "PackBits"):
            made(f"tiff-{compressor.lower()}", ".tif", picture, compressor)
        made("tiff", ".tif", scan_values((40, 50), "<u2"))
        made("jpeg", ".jpg", picture)
        made("bmp", ".bmp", picture)
        for compressor in ("JPEG", "JPEG2000"):
            data = scan_values((1, 40, 50))
            made(f"dicom-{compressor.lower()}", ".dcm", data, compressor)
    return found


# ---- damage --------------------------------------------------------------------------

Damage = Callable[[random.Random, bytes, int], bytes]

NUMBERS = (
    "0", "-1", "1", "2", "5", "17", "2000", "65536", "2147483647", "4294967296",
    "99999999999", "9223372036854775807", "18446744073709551616", "1e400", "nan", "inf",
    "-0", "1.5", "0x10", "", "%s", "%d", "x",
)  # fmt: skip
NAMES = (
    "/etc/passwd", "../../../../../../etc/passwd", "/dev/zero", "/dev/stdin",
    "s%s.raw 0 4 1", "s%n.raw 0 4 1", "/etc/pass%swd 1 4 1", "s%d.raw",
    "s%d%d.raw 0 4 1", "s%999999999d.raw 0 4 1", "s%d.raw 0 4 0",
    "s%d.raw 0 999999999 1", "LIST", "LIST 77", "LIST -1", "LIST 3\n/etc/passwd",
    "LOCAL", ".", "a" * 5000, "loop",
)  # fmt: skip
WORDS = (
    "double", "block", "unsigned char", "MET_DOUBLE", "MET_STRING", "MET_LONG_LONG",
    "gzip", "bzip2", "hex", "ascii", "big", "True", "False", "list domain domain",
    "vector domain domain", "none none none", "(1,0,0) (0,1,0)", "(0,0,0) none (1,1,1)",
    "right-anterior-superior", "scanner-xyz-time",
)  # fmt: skip


def _flip(rng: random.Random, data: bytes, low: int, high: int, most: int) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, most)):
        if low < high:
            out[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    return bytes(out)


def flip_header(rng: random.Random, data: bytes, voxels: int) -> bytes:
    return _flip(rng, data, 0, voxels, 4)


def flip_voxels(rng: random.Random, data: bytes, voxels: int) -> bytes:
    return _flip(rng, data, voxels, len(data), 1)


def random_run(rng: random.Random, data: bytes, voxels: int) -> bytes:
    at, length = rng.randrange(len(data)), rng.randint(1, 24)
    return data[:at] + rng.randbytes(length) + data[at + length :]


def extreme_run(rng: random.Random, data: bytes, voxels: int) -> bytes:
    at = rng.randrange(max(1, voxels))
    width = rng.choice((1, 2, 4, 8))
    fill = rng.choice((b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
    return data[:at] + (fill * width)[:width] + data[at + width :]


def cut(rng: random.Random, data: bytes, voxels: int) -> bytes:
    return data[: rng.randrange(len(data))]


def drop(rng: random.Random, data: bytes, voxels: int) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randint(1, 64) :]


def repeat(rng: random.Random, data: bytes, voxels: int) -> bytes:
    at, length = rng.randrange(len(data)), rng.randint(1, 200)
    return data[: at + length] + data[at:]


def pad(rng: random.Random, data: bytes, voxels: int) -> bytes:
    return data + rng.choice((bytes(300), rng.randbytes(300), data))


def hostile_number(rng: random.Random, data: bytes, voxels: int) -> bytes:
    """A number of a text header; in other formats the extremes of its bytes."""
    found = list(re.finditer(rb"(?<=[ =:(,\\])-?\d[\d.]*", data[:voxels]))
    if not found:
        return extreme_run(rng, data, voxels)
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(NUMBERS).encode() + data[one.end() :]


def hostile_value(rng: random.Random, data: bytes, voxels: int) -> bytes:
    """The whole value of a field, or a field added."""
    found = list(re.finditer(rb"(?m)(?<=[:=] )[^\n]+$", data[:voxels]))
    if not found:
        return extreme_run(rng, data, voxels)
    one = rng.choice(found)
    value = rng.choice((*NUMBERS, *WORDS, *NAMES, "0 " * 5000)).encode()
    return data[: one.start()] + value + data[one.end() :]


def hostile_name(rng: random.Random, data: bytes, voxels: int) -> bytes:
    """The name of the data file."""
    found = re.search(rb"(?s)(?:ElementDataFile = |data file: ).*", data[:voxels])
    name = rng.choice(NAMES).encode()
    if found is None:
        return (
            data[:voxels].replace(b"encoding:", b"data file: " + name + b"\nencoding:")
            + data[voxels:]
        )
    key = found[0].split(b" = " if b" = " in found[0][:20] else b": ")[0]
    sign = b" = " if key.startswith(b"E") else b": "
    return data[: found.start()] + key + sign + name + b"\n" + data[found.end() :]


DAMAGE: tuple[Damage, ...] = (
    flip_header, flip_voxels, random_run, extreme_run, cut, drop, repeat, pad,
    hostile_number, hostile_value, hostile_name,
)  # fmt: skip
TEXT_ONLY = (hostile_value, hostile_name)


@dataclass(frozen=True)
class Mutant:
    """A damaged scan on disk."""

    seed: Seed
    kind: str
    folder: Path

    @property
    def target(self) -> Path:
        """What is read."""
        return self.folder / self.seed.target if self.seed.target else self.folder


# Formats whose voxels are packed, with and without a checksum.
PACKED = (
    "nifti-gz", "nifti2-gz", "nrrd-gz", "nrrd-bz2", "nhdr-gz", "mha-zlib", "mhd-zlib",
    "dicom-deflated", "png", "tiff", "tiff-deflate", "tiff-lzw", "tiff-packbits",
)  # fmt: skip


def flipped(count: int, seed: int, root: Path) -> Iterator[Mutant]:
    """Packed scans with one bit of their voxels flipped, ``count`` of each format."""
    rng = random.Random(seed)
    for one in seeds():
        if one.format not in PACKED:
            continue
        names = list(one.files)
        name, start = (names[1], 0) if one.voxels < 0 else (names[0], one.voxels)
        for number in range(count):
            folder = root / f"{one.format}{number}"
            folder.mkdir()
            write(one, folder)
            (folder / name).write_bytes(flip_voxels(rng, one.files[name], start))
            yield Mutant(one, "flip_voxels", folder)


def mutants(count: int, seed: int, root: Path) -> Iterator[Mutant]:
    """Damaged scans, every format and kind in turn; each in a folder of its own."""
    rng = random.Random(seed)
    corpus = seeds()
    by_format: dict[str, list[Seed]] = defaultdict(list)
    for one in corpus:
        by_format[one.format].append(one)
    pairs = [
        (members, damage)
        for damage in DAMAGE
        for name, members in by_format.items()
        if damage not in TEXT_ONLY or name.startswith(("nrrd", "nhdr", "mh"))
    ]
    rng.shuffle(pairs)
    for number in range(count):
        members, damage = pairs[number % len(pairs)]
        chosen = rng.choice(members)
        folder = root / f"m{number}"
        folder.mkdir()
        (folder / "loop").symlink_to("loop")
        write(chosen, folder)
        first, *others = chosen.files
        voxels = chosen.voxels
        name = first
        if voxels < 0:
            voxels = len(chosen.files[first])
            in_data = damage is flip_voxels or (
                damage in (random_run, cut, drop, repeat) and rng.random() < 0.5
            )
            if in_data:
                name, voxels = rng.choice(others), 0
        elif others:
            name = rng.choice(list(chosen.files))
        content = damage(rng, chosen.files[name], voxels)
        (folder / name).write_bytes(content)
        yield Mutant(chosen, damage.__name__, folder)


def write(seed: Seed, folder: Path) -> None:
    for name, content in seed.files.items():
        (folder / name).write_bytes(content)


# ---- reading, in a process of its own ------------------------------------------------


def read_one(path: Path) -> dict[str, Any]:
    """What becomes of one file: ``sound`` with its content, or ``refused``."""
    from homolog.errors import UnusableInput
    from homolog.scans.files import read_scan
    from homolog.scans.inspect import inspect_scan

    inspection = inspect_scan(path)
    if not inspection.usable:
        reason = inspection.reason
        assert reason is not None
        assert reason.text
        try:
            read_scan(path)
        except (UnusableInput, OSError):
            pass  # what only all values show (constant, NaN) is no matter of reading
        return {"what": "refused", "code": reason.code, "text": reason.text}
    read_scan(path)
    return {"what": "sound", "content": inspection.content}


def serve(read: Callable[[Path], dict[str, Any]] | None = None) -> None:
    """Read the files named on standard input; the worker of ``Readers``."""
    import resource
    import warnings

    import homolog.scans.inspect

    del homolog
    read = read or read_one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    warnings.simplefilter("error")
    # Linux lets a process begin with the peak of the one that started it.
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for line in sys.stdin:
        try:
            told = read(Path(line.rstrip("\n")))
        except BaseException as error:  # noqa: BLE001 - this is what is looked for
            told = {"what": "error", "text": f"{type(error).__name__}: {error}"[:300]}
        peaks = [
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        own = max((peak for peak in peaks if peak > began), default=0)
        answers.write(json.dumps({**told, "bytes": own * 1024}) + "\n")
        answers.flush()


def _worked_s(process: psutil.Process) -> float:
    """Processor seconds so far; 0 where it is gone."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user)


class Readers:
    """The reading process, restarted when a mutant ends it.

    Args:
        script: That reads when it is told ``--serve``.
    """

    def __init__(self, script: str = __file__) -> None:
        self._script = script
        self._process: subprocess.Popen[bytes] | None = None
        self._noise = tempfile.TemporaryFile()

    def read(self, path: Path) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        if not self._answers(process):
            self.close()
            return {"what": "hang"}
        line = process.stdout.readline()
        if not line:
            status = process.wait()
            self.close()
            return {"what": "crash", "text": f"exit status {status}"}
        told: dict[str, Any] = json.loads(line)
        self._noise.seek(0)
        words = self._noise.read()
        self._noise.seek(0)
        self._noise.truncate()
        if told.pop("bytes") > SWOLLEN_BYTES:
            self.close()
            return {"what": "swollen"}
        if words and told["what"] != "error":
            return {"what": "noisy", "text": words.decode(errors="replace")[:300]}
        return told

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for an answer, as long as the process has not computed too long.

        On a machine that others use it may wait for its turn instead; one that waits
        for ever, without computing, is given up too.
        """
        known = psutil.Process(process.pid)
        began, before_s = time.monotonic(), _worked_s(known)
        while time.monotonic() - began < WAIT_S:
            if select.select([process.stdout], [], [], 1.0)[0]:
                return True
            if _worked_s(known) - before_s > LIMIT_S:
                return False
        return False

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._noise.seek(0)
        self._noise.truncate()

    def end(self) -> None:
        """Close everything."""
        self.close()
        self._noise.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, self._script, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
        )
        return self._process


def fuzz(count: int, seed: int, flips: int = 0) -> dict[str, Any]:
    """Counts for each format and kind of damage, and every mutant that was bad."""
    formats: dict[str, Counter[str]] = defaultdict(Counter)
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    bits: dict[str, Counter[str]] = defaultdict(Counter)
    codes: Counter[str] = Counter()
    bad: list[dict[str, Any]] = []
    ended = 0
    readers = Readers()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        judged = _Judge(root, readers)
        try:
            for number, mutant in enumerate(mutants(count, seed, root)):
                what, told = judged(mutant)
                formats[mutant.seed.format][what] += 1
                kinds[mutant.kind][what] += 1
                if what == "refused":
                    codes[told["code"]] += 1
                    ended += "ends its decoder" in told["text"]
                if what in BAD:
                    about = {"format": mutant.seed.format, "kind": mutant.kind}
                    bad.append({"number": number, **about, **told})
            for mutant in flipped(flips, seed, root):
                what, told = judged(mutant)
                bits[mutant.seed.format][what] += 1
                if what in BAD:
                    bad.append({"format": mutant.seed.format, "kind": "bit", **told})
        finally:
            readers.end()
    return {
        "count": count,
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
        "limits": LIMITS,
        "total": dict(sum(kinds.values(), Counter())),
        "bad": bad,
        "formats": {k: dict(v) for k, v in sorted(formats.items())},
        "kinds": {k: dict(v) for k, v in sorted(kinds.items())},
        "one_bit_of_packed_voxels_flipped": {k: dict(v) for k, v in bits.items()},
        "refused_as_the_decoder_ended": ended,
        "codes": dict(codes.most_common()),
    }


class _Judge:
    """What became of a mutant, compared with the sound scan it was made of."""

    def __init__(self, root: Path, readers: Readers) -> None:
        self._root = root
        self._readers = readers
        self._truth: dict[str, str] = {}

    def __call__(self, mutant: Mutant) -> tuple[str, dict[str, Any]]:
        key = repr(mutant.seed)
        if key not in self._truth:
            self._truth[key] = _content(mutant.seed, self._root, self._readers)
        told = self._readers.read(mutant.target)
        shutil.rmtree(mutant.folder)
        what = told["what"]
        if what == "sound":
            what = "same" if told["content"] == self._truth[key] else "other"
        return what, told


def _content(seed: Seed, root: Path, readers: Readers) -> str:
    """The content of the sound scan; it must be sound."""
    folder = root / "whole"
    folder.mkdir()
    write(seed, folder)
    told = readers.read(folder / seed.target if seed.target else folder)
    shutil.rmtree(folder)
    if told["what"] not in ("sound", "refused"):
        raise AssertionError(f"{seed.format} {seed.target}: {told}")
    if told["what"] == "refused":
        raise AssertionError(f"{seed.format} {seed.target} was refused: {told['text']}")
    return str(told["content"])


def together(first: Any, second: Any) -> Any:
    """Counts added up, lists joined; what is the same in both stays."""
    if isinstance(first, dict):
        keys = dict.fromkeys((*first, *second))
        return {k: together(first[k], second[k]) if k in first and k in second
                else first.get(k, second.get(k)) for k in keys}  # fmt: skip
    if isinstance(first, list):
        return [*first, *second]
    return first if isinstance(first, str) else first + second


def in_batches(
    fuzz: Callable[[int, int], dict[str, Any]],
    count: int,
    seed: int,
    out: Path,
    *,
    anew: bool,
) -> None:
    """So many mutants, ``BATCH`` at a time; the table is written after each.

    Ends the process: with 1 where something was bad.
    """
    same = {"seed": seed, "limits": LIMITS}
    result: dict[str, Any] = {}
    if out.exists() and not anew:
        known = json.loads(out.read_text(encoding="utf-8"))
        result = known if {k: known.get(k) for k in same} == same else {}
    while result.get("count", 0) < count:
        done = result.get("count", 0)
        made = fuzz(min(BATCH, count - done), seed * 1000 + done // BATCH)
        # plain facts stand in both
        made = {k: v for k, v in made.items() if k not in same}
        kept = {k: v for k, v in result.items() if k not in same}
        result = {**same, **(together(kept, made) if kept else made)}
        result["seconds"] = round(result["seconds"], 1)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(result["count"], json.dumps(result["total"]), flush=True)
        for one in made["bad"]:
            print(one, flush=True)
    sys.exit(bool(result["bad"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flips", type=int, default=5, help="a batch, of each packed")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    in_batches(
        lambda count, seed: fuzz(count, seed, given.flips),
        given.count, given.seed, given.out, anew=given.anew,
    )  # fmt: skip


if __name__ == "__main__":
    main()
