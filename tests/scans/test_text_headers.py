"""Headers of NRRD and MetaImage: judged before a decoder, read as SimpleITK reads."""

from __future__ import annotations

import bz2
import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from each import each
from homolog.scans import decoder
from homolog.scans.files import read_scan
from homolog.scans.inspect import inspect_scan
from homolog.scans.text_formats import data_files
from homolog.store.cases import scan_digest
from scan_faults import values

DATA = values((4, 3, 2))
RAW = DATA.tobytes()


def nrrd(
    *extra: str, data: bytes = RAW, at: str = "", end: str = "\n\n", **fields: str
) -> bytes:
    known = {"type": "short", "dimension": "3", "sizes": "2 3 4", "spacings": "1 2 3",
             "encoding": "raw", "endian": "little"}  # fmt: skip
    known |= {k.replace("_", " "): v for k, v in fields.items()}
    lines = ["NRRD0004", *(f"{k}: {v}" for k, v in known.items() if v), *extra]
    if at:
        return "\n".join([*lines, f"data file: {at}", ""]).encode()
    return ("\n".join(lines) + end).encode() + data


def meta(*extra: str, data: bytes = RAW, at: str = "LOCAL", **fields: str) -> bytes:
    known = {"NDims": "3", "DimSize": "2 3 4", "ElementSpacing": "1 2 3",
             "ElementType": "MET_SHORT"}  # fmt: skip
    lines = [f"{k} = {v}" for k, v in (known | fields).items() if v]
    header = "\n".join([*lines, *extra, f"ElementDataFile = {at}", ""]).encode()
    return header + data if at == "LOCAL" else header


HOSTILE = {
    "a pattern of names for printf.mhd": (meta(at="/etc/pass%swd 1 4 1"), "unreadable"),
    "two numbers in a pattern.mhd": (meta(at="s%d%d.raw 1 4 1"), "unreadable"),
    "a pattern without its numbers.mhd": (meta(at="s%d.raw 0 3"), "unreadable"),
    "a pattern that never ends.mhd": (meta(at="s%d.raw 0 3 0"), "unreadable"),
    "a billion files.mhd": (meta(at="s%d.raw 0 999999999 1"), "unreadable"),
    "a pattern of wide numbers.nhdr": (nrrd(at="s%999d.raw 0 3 1"), "unreadable"),
    "too few files listed.nhdr": (nrrd(at="LIST\ns0.raw\ns1.raw"), "unreadable"),
    "files of 77 axes.mhd": (meta(at="LIST 77\ns0.raw"), "unreadable"),
    "2000 axes.mha": (meta(NDims="2000"), "unreadable"),
    "no axes.mha": (meta(NDims="0"), "unreadable"),
    "axes in words.mha": (meta(NDims="three"), "unreadable"),
    "99 axes.nrrd": (nrrd(dimension="99"), "unreadable"),
    "sizes in words.mha": (meta(DimSize="two three four"), "unreadable"),
    "sizes in words.nrrd": (nrrd(sizes="x y z"), "unreadable"),
    "fewer sizes than axes.nrrd": (nrrd(sizes="2 3"), "unreadable"),
    "a negative size.mha": (meta(DimSize="2 -3 4"), "empty"),
    "a size of zero.nrrd": (nrrd(sizes="2 0 4"), "empty"),
    "sizes beyond any memory.mha": (meta(DimSize="2000000000 " * 3), "unreadable"),
    "sizes beyond the file.nrrd": (nrrd(sizes="2000000 3 4"), "truncated"),
    "more than deflate can pack.nrrd": (
        nrrd(data=gzip.compress(RAW), encoding="gzip", sizes="2000000 3 4"),
        "truncated",
    ),
    "channels in words.mha": (meta("ElementNumberOfChannels = many"), "unreadable"),
    "an axis without numbers.mha": (meta("TransformMatrix = 1 0 0"), "affine"),
    "a spacing of nearly nothing.mha": (meta(ElementSpacing="1 1e-310 1"), "spacing"),
    "an origin that is no number.mha": (meta("Offset = nan 0 0"), "affine"),
    "vectors of two sizes.nrrd": (
        nrrd(
            "space: left-posterior-superior", "space directions: (1,0) (0,1,0) (0,0,1)",
            spacings="",
        ),
        "affine",
    ),
    "a type without numbers.mha": (meta(ElementType="MET_STRING"), "unreadable"),
    "a type of blocks.nrrd": (nrrd(type="block"), "unreadable"),
    "an unknown encoding.nrrd": (nrrd(encoding="zip"), "unreadable"),
    "no byte order.nrrd": (nrrd(endian=""), "unreadable"),
    "sizes said twice.nrrd": (nrrd("sizes: 4 3 2"), "unreadable"),
    "bytes to skip in words.nrrd": (nrrd("byte skip: all"), "unreadable"),
    "lines to skip beyond the end.nrrd": (nrrd("line skip: 999"), "unreadable"),
    "a line without an end.mha": (meta("Comment = " + "x" * 9000), "unreadable"),
    "a file elsewhere.mhd": (meta(at="/etc/passwd"), "unreadable"),
    "a file elsewhere.nhdr": (nrrd(at="/etc/passwd"), "unreadable"),
    "a file above.nhdr": (nrrd(at="sub/../../outside.raw"), "unreadable"),
    "a link to elsewhere.mhd": (meta(at="link.raw"), "unreadable"),
    "a link to itself.mhd": (meta(at="loop.raw"), "missing"),
    "one listed file elsewhere.mhd": (
        meta(at="LIST\ns0.raw\ns1.raw\ns2.raw\n../outside.raw"), "unreadable",
    ),
    "a folder for a file.mhd": (meta(at="sub"), "missing"),
    "a pipe for a file.mhd": (meta(at="pipe.raw"), "missing"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_with_data(tmp_path)


def folder_with_data(tmp_path: Path) -> Path:
    """A folder with data files and traps, in a folder with another file."""
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.raw").write_bytes(RAW)
    for number, piece in enumerate(DATA):
        (folder / f"s{number}.raw").write_bytes(piece.tobytes())
        (folder / f"t{number:03d}.raw").write_bytes(b"head" + piece.tobytes())
    (folder / "sub" / "d\u00e4ta file.raw").write_bytes(RAW)
    (folder / "sub" / "d.raw.gz").write_bytes(gzip.compress(RAW))
    (folder / "end.raw").write_bytes(b"some words before" + RAW)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
@each("name", HOSTILE)
def test_hostile_headers_are_findings_before_any_decoder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with_data(tmp_path)

    def never(path: Path) -> None:
        raise AssertionError(f"{path} reached the decoder")

    content, code = HOSTILE[name]
    (folder / "link.raw").symlink_to(folder.parent / "outside.raw")
    (folder / "loop.raw").symlink_to("loop.raw")
    os.mkfifo(folder / "pipe.raw")
    if "lines" not in name:  # which are only counted by it
        monkeypatch.setattr(decoder, "information", never)
    (folder / name).write_bytes(content)
    found = inspect_scan(folder / name)
    assert found.reason is not None
    assert found.reason.code == code, found.reason.text
    assert "\n" not in found.reason.text


GREAT = DATA.astype(">i2").tobytes()
WORDS = b" ".join(b"%d" % v for v in DATA.ravel())
SOUND = {
    "plain.nrrd": nrrd(),
    "great.nrrd": nrrd(data=GREAT, endian="big"),
    "gz.nrrd": nrrd(data=gzip.compress(RAW), encoding="gz"),
    "gz_members.nrrd": nrrd(
        data=gzip.compress(RAW[:7]) + gzip.compress(RAW[7:]), encoding="gzip"
    ),
    "gz_skip.nrrd": nrrd(
        "byte skip: 3", data=gzip.compress(b"abc" + RAW), encoding="gzip"
    ),
    "line_gz.nrrd": nrrd(
        "line skip: 1", data=b"one\n" + gzip.compress(RAW), encoding="gzip"
    ),
    "skip.nrrd": nrrd("line skip: 2", "byte skip: 3", data=b"one\ntwo\nabc" + RAW),
    "last.nrrd": nrrd("byte skip: -1", data=b"abc" + RAW),
    "text.nrrd": nrrd(data=WORDS, encoding="ascii"),
    "hex.nrrd": nrrd(data=RAW.hex().encode(), encoding="hex"),
    "pairs.nrrd": nrrd("sizes:=9 9 9", "type:=none", "# sizes: 1 1 1"),
    "crlf.nrrd": nrrd().replace(b"\n", b"\r\n", 9),
    "one_list.nrrd": nrrd(
        "kinds: domain domain domain time", dimension="4", sizes="2 3 4 1",
        spacings="1 2 3 1",
    ),
    "ras.nrrd": nrrd(
        "space: right-anterior-superior", "space directions: (-1,0,0) (0,2,0) (0,0,3)",
        "space origin: (1,2,3)", spacings="",
    ),
    "detached.nhdr": nrrd(at="sub/d\u00e4ta file.raw"),
    "detached_gz.nhdr": nrrd(at="./sub/d.raw.gz", encoding="gzip"),
    "listed.nhdr": nrrd(at="LIST\ns0.raw\ns1.raw\ns2.raw\ns3.raw"),
    "counted.nhdr": nrrd(at="s%d.raw 0 3 1"),
    "counted_skip.nhdr": nrrd("byte skip: 4", at="t%03d.raw 0 3 1 2"),
    "plain.mha": meta(),
    "great.mha": meta("ElementByteOrderMSB = True", data=GREAT),
    "zlib.mha": meta(
        "CompressedData = True", f"CompressedDataSize = {len(zlib.compress(RAW))}",
        data=zlib.compress(RAW),
    ),
    "last.mha": meta("HeaderSize = -1"),
    "turned.mha": meta(
        "TransformMatrix = 0 1 0 -1 0 0 0 0 1", "Offset = 4 5 6", "Comment = a: b = c"
    ),
    "size.mha": meta("ElementSize = 1 2 3", ElementSpacing=""),
    "detached.mhd": meta(at="sub/d\u00e4ta file.raw"),
    "last.mhd": meta("HeaderSize = -1", at="end.raw"),
    "listed.mhd": meta(at="LIST 2D\ns0.raw\ns1.raw\ns2.raw\ns3.raw"),
    "counted.mhd": meta(at="s%d.raw 0 3 1"),
    "counted_skip.mhd": meta("HeaderSize = 4", at="t%03d.raw 0 3 1"),
}  # fmt: skip


@each("name", SOUND)
def test_sound_headers_are_read_as_simpleitk_reads_them(
    name: str, tmp_path: Path
) -> None:
    path = folder_with_data(tmp_path) / name
    path.write_bytes(SOUND[name])
    volume = read_scan(path)
    assert inspect_scan(path).usable
    picture = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.data[0], DATA)
    assert volume.data.dtype == DATA.dtype
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(picture).reshape(DATA.shape), DATA
    )
    if picture.GetDimension() == 3:
        place = picture.TransformIndexToPhysicalPoint((1, 2, 3))
        np.testing.assert_allclose(volume.affine.apply((3, 2, 1)), place[::-1])


def test_encodings_simpleitk_does_not_know(folder: Path) -> None:
    path = folder / "a.nrrd"
    path.write_bytes(nrrd(data=bz2.compress(RAW), encoding="bzip2"))
    np.testing.assert_array_equal(read_scan(path).data[0], DATA)
    path.write_bytes(nrrd(data=bz2.compress(RAW)[:-5], encoding="bzip2"))
    assert inspect_scan(path).reason.code == "truncated"
    path = folder / "a.mha"
    path.write_bytes(meta("BinaryData = False", data=WORDS))
    np.testing.assert_array_equal(read_scan(path).data[0], DATA)
    path.write_bytes(meta("BinaryData = False", data=WORDS[:-9] + b" x 1 2 3 4"))
    assert inspect_scan(path).reason.code == "corrupt"


def test_every_bit_of_compressed_voxels_is_under_a_checksum(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, head, packed in (
        ("a.nrrd", nrrd(data=b"", encoding="gzip"), gzip.compress(RAW)),
        ("b.nrrd", nrrd(data=b"", encoding="bzip2"), bz2.compress(RAW)),
        ("c.mha", meta("CompressedData = True", data=b""), zlib.compress(RAW)),
    ):
        path = folder / name
        path.write_bytes(head + packed)
        whole = inspect_scan(path).content
        for _ in range(60):
            damaged = bytearray(packed)
            damaged[rng.integers(len(packed))] ^= 1 << int(rng.integers(8))
            path.write_bytes(head + bytes(damaged))
            found = inspect_scan(path)
            # What a gzip header says of time and system holds no voxel.
            assert not found.usable or found.content == whole


def test_a_stream_that_unpacks_without_end_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homolog.scans.text_formats._MOST_AFTER", 1 << 20)
    monkeypatch.setattr("homolog.scans.text_formats._PIECE", 1 << 16)
    bomb = gzip.compress(RAW + bytes(1 << 24))
    path = folder / "a.nrrd"
    path.write_bytes(nrrd(data=bomb, encoding="gzip"))
    found = inspect_scan(path).reason
    assert found is not None
    assert found.code == "corrupt"
    assert "far behind" in found.text


def test_no_memory_is_taken_that_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homolog.scans.problems._SMALL", 8)
    monkeypatch.setattr("homolog.scans.problems.free_bytes", lambda: 40)
    for name in ("plain.nrrd", "plain.mha"):
        (folder / name).write_bytes(SOUND[name])
        with pytest.raises(Exception, match=r"need 48 bytes of memory"):
            read_scan(folder / name)


def test_voxels_in_files_of_other_names_make_a_case_another(folder: Path) -> None:
    for name in ("detached.mhd", "detached_gz.nhdr", "listed.nhdr", "counted.mhd"):
        path = folder / name
        path.write_bytes(SOUND[name])
        before = scan_digest(path)
        part = data_files(path)[-1]
        content = part.read_bytes()
        part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert scan_digest(path) != before
        part.write_bytes(content)
        assert scan_digest(path) == before
