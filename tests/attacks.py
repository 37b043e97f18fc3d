"""Hostile files, and what each must end in; docs/safety.md lists them for people.

A file that somebody sends may lie about its sizes, name places outside its folder, or
hold what a program, a browser or a spreadsheet would run. Each row makes one such file
and hands it to what reads it. It must be refused in one sentence, or be read without
harm; nothing of it may run, and nothing may be written outside the folder of the row.
"""

from __future__ import annotations

import csv
import io
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from dicom_writer import element, file_of, tags_of, write
from homolog.scans.files import read_scan
from scan_faults import nifti, put, values

Meet = Callable[[Path], Any]
FORMULA = '=cmd|"/c calc"!A1'
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"
EYE = np.eye(3, 4)


@dataclass(frozen=True)
class Attack:
    """One hostile file.

    Attributes:
        group: Weights, archives, ...
        what: The attack, for people.
        ends: What happens, for people.
        meet: Makes the file in an empty folder and reads it.
        says: Pattern of the sentence that refuses it; empty: it is read, and ``meet``
            looks whether it did no harm.
    """

    group: str
    what: str
    ends: str
    meet: Meet
    says: str = ""


ATTACKS: list[Attack] = []


def attack(group: str, what: str, ends: str, says: str = "") -> Callable[[Meet], Meet]:
    def register(meet: Meet) -> Meet:
        ATTACKS.append(Attack(group, what, ends, meet, says))
        return meet

    return register


# ---- weights -------------------------------------------------------------------------

REFUSED = "refused by the name of what it wants"


def weights(content: bytes, name: str = "w.pt") -> Meet:
    def meet(folder: Path) -> Any:
        from homolog.model_files.foreign import read_foreign

        (folder / name).write_bytes(content.replace(b"MARK", bytes(folder / "ran")))
        return read_foreign(folder / name)

    return meet


def program(code: bytes) -> Meet:
    """The pickle of an archive as torch writes them."""

    def meet(folder: Path) -> Any:
        from homolog.model_files.foreign import read_foreign

        with zipfile.ZipFile(folder / "w.pt", "w") as packed:
            told = code.replace(b"MARK", bytes(folder / "ran"))
            packed.writestr("w/data.pkl", told)
            packed.writestr("w/byteorder", "little")
            packed.writestr("w/version", "3\n")
        return read_foreign(folder / "w.pt")

    return meet


PROGRAMS = {
    "global and reduce": b"cos\nsystem\n(S'touch MARK'\ntR.",
    "an instance (INST)": b"(S'touch MARK'\nios\nsystem\n.",
    "an object (OBJ)": b"(cos\nsystem\nS'touch MARK'\no.",
    "a global from the stack": (
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch MARK\x85R."
    ),
    "an extension code": b"\x80\x02\x82\x01)R.",
    "a state that is set (BUILD)": (
        b"ctypes\nSimpleNamespace\n)\x81}X\x01\x00\x00\x00xcos\nsystem\nsb."
    ),
    "a persistent name": b"cos\nsystem\n(Ptouch MARK\ntR.",
}
for _what, _code in PROGRAMS.items():
    attack("weights", f"a pickle that runs a command by {_what}", REFUSED,
           "refused: it wants")(program(_code))  # fmt: skip


def laughs() -> bytes:
    """Lists of lists, each ten times the one before, by ten bytes a level."""
    code = io.BytesIO(b"")
    code.write(b"\x80\x02]q\x00")
    for level in range(30):
        code.write(b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9)
        code.write(b"eq" + bytes([level + 1]))
    code.write(b"}(X\x01\x00\x00\x00ah\x1eu.")
    return code.getvalue()


attack("weights", "a pickle that holds itself ten times ten times ... over",
       "refused: no tensors", "found no tensor|damaged or something else"
       )(weights(laughs()))  # fmt: skip
attack("weights", "a pickle that asks for 2 GB of text", "refused as damaged",
       "damaged or something else"
       )(program(b"\x80\x02X\xff\xff\xff\x7fabc."))  # fmt: skip
attack("weights", "a pickle nested 100,000 lists deep", "refused",
       "damaged or something else|found no tensor"
       )(program(b"\x80\x02" + b"](" * 100_000 + b"e" * 100_000 + b"."))  # fmt: skip
attack("weights", "a function that is called through a harmless one", REFUSED,
       "refused: it wants"
       )(program(b"cfunctools\npartial\n(cos\nsystem\nS'touch MARK'\n"
                  b"tR)R."))  # fmt: skip


def tensors(head: Any, data: bytes = bytes(64), length: int | None = None) -> Meet:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    size = len(text) if length is None else length
    return weights(struct.pack("<Q", size) + text + data, "w.safetensors")


def one(shape: list[int], at: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


DAMAGED = "damaged or something else"
LIES = {
    "a header of 2^63 bytes": tensors({"a": one([4], [0, 16])}, length=1 << 63),
    "a header longer than the file": tensors({"a": one([4], [0, 16])}, length=9999),
    "a header of no bytes": tensors(b"", length=0),
    "a header nested 100,000 deep": tensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a header that is a list": tensors(b'[{"a": 1}]'),
    "data behind the end of the file": tensors({"a": one([1 << 20], [0, 1 << 22])}),
    "two tensors in the same bytes": tensors(
        {"a": one([8], [0, 32]), "b": one([8], [16, 48])}
    ),
    "data that end before they begin": tensors({"a": one([4], [32, 16])}),
    "a hole between two tensors": tensors(
        {"a": one([4], [0, 16]), "b": one([4], [48, 64])}
    ),
    "fewer bytes than its shape": tensors({"a": one([1000, 1000], [0, 64])}),
    "a shape whose product overflows": tensors({"a": one([1 << 40, 1 << 40], [0, 64])}),
    "an empty shape of 2^63": tensors({"a": one([0, (1 << 63) - 1, 4], [0, 0])}, b""),
    "negative sizes": tensors({"a": one([-4, -4], [0, 64])}),
    "an unknown number type": tensors({"a": one([4], [0, 16], "F1024")}),
    "sizes that are no numbers": tensors({"a": {"dtype": "F32", "shape": "x"}}),
    "an offset of 5000 digits": tensors(
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, %s]}}'
        % (b"9" * 5000)
    ),
}
for _what, _meet in LIES.items():
    attack("weights", f"safetensors: {_what}", "refused as damaged",
           f"{DAMAGED}|found no tensor")(_meet)  # fmt: skip


def archive(change: Callable[[zipfile.ZipFile], None]) -> Meet:
    def meet(folder: Path) -> Any:
        from homolog.model_files.foreign import read_foreign

        torch.save({"a": torch.ones(1)}, folder / "w.pt")
        with zipfile.ZipFile(folder / "w.pt", "a", zipfile.ZIP_DEFLATED) as packed:
            change(packed)
        return read_foreign(folder / "w.pt")

    return meet


for _name in ("../ran", "/tmp/ran", "w\\..\\..\\ran", "C:/ran"):
    attack("weights", f"a torch archive with the entry {_name}", "refused",
           "not a plain torch file|found no tensor|damaged"
           )(archive(lambda z, n=_name: z.writestr(n, b"x")))  # fmt: skip
attack("weights", "a torch archive that unpacks to 50 MB of zeros", "refused",
       "would unpack"
       )(archive(lambda z: z.writestr("w/data/9", bytes(50_000_000))))  # fmt: skip
attack("weights", "a torch archive with a program (TorchScript)", "refused",
       "TorchScript program"
       )(archive(lambda z: z.writestr("w/constants.pkl", b"")))  # fmt: skip


@attack("weights", "a tensor of 8 bytes that shows itself 10^12 times", "refused",
        "would unpack to")  # fmt: skip
def _shown(folder: Path) -> Any:
    from homolog.model_files.foreign import read_foreign

    many = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    torch.save({"w": many}, folder / "w.pt")
    return read_foreign(folder / "w.pt")


def model_folder(change: Callable[[dict[str, Any], Path], None]) -> Meet:
    """A model of two tensors whose card is changed."""

    def meet(folder: Path) -> Any:
        from homolog.model_files.encoder import load_encoder
        from homolog.model_files.folder import save_model

        card = {"kind": "encoder", "backbone": {"name": "resunet", "config": {}}}
        save_model(folder / "model", {"a": torch.ones(2)}, card)
        path = folder / "model" / "model.json"
        told = json.loads(path.read_text())
        change(told, folder)
        path.write_text(json.dumps(told))
        return load_encoder(folder / "model")

    return meet


def outside(card: dict[str, Any], folder: Path) -> None:
    save_file({"a": torch.ones(2)}, folder / "w.safetensors")
    card |= {"weights": "../w.safetensors", "sha256": {"../w.safetensors": "0"}}


attack("weights", "a model card that names weights in another folder", "refused",
       "names of files beside it")(model_folder(outside))  # fmt: skip
attack("weights", "a model card with a network larger than the memory", "refused",
       "memory|network cannot be built"
       )(model_folder(lambda c, _: c["backbone"].update(
           config={"channels": [10**9, 10**9]})))  # fmt: skip
attack("weights", "a model card with sizes of 400 digits", "refused",
       "memory|network cannot be built|must be"
       )(model_folder(lambda c, _: c["backbone"].update(
           config={"channels": [10**400]})))  # fmt: skip
attack("weights", "a model card of an unknown network", "refused, the known are listed",
       "unknown backbone"
       )(model_folder(lambda c, _: c["backbone"].update(name="../x")))  # fmt: skip


# ---- archives ------------------------------------------------------------------------


def zipped(fill: Callable[[zipfile.ZipFile, bytes], None]) -> Meet:
    """A zip of DICOM files is inspected; no file may appear beside it."""

    def meet(folder: Path) -> Any:
        scan = write(folder / "inside" / "a.dcm", tags_of())
        with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            fill(packed, scan.read_bytes())
        scan.unlink()
        (folder / "inside").rmdir()
        read_scan(folder / "a.zip")
        assert [p.name for p in folder.iterdir()] == ["a.zip"]
        assert not (folder.parent / "ran.dcm").exists()

    return meet


@attack("archives", "a zip with ../ in its names (zip slip)",
        "read; its files are unpacked under numbers into a private folder")  # fmt: skip
def _slip(folder: Path) -> Any:
    return zipped(lambda z, scan: z.writestr("../../ran.dcm", scan))(folder)


@attack("archives", "a zip with whole paths", "read, as above")
def _whole(folder: Path) -> Any:
    place = str(folder.parent / "ran.dcm")
    return zipped(lambda z, scan: z.writestr(place, scan))(folder)


@attack("archives", "a zip with a link to another place",
        "read; the link is no DICOM file and stays packed")  # fmt: skip
def _link(folder: Path) -> Any:
    def fill(packed: zipfile.ZipFile, scan: bytes) -> None:
        info = zipfile.ZipInfo("out.dcm")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, "/etc/passwd")
        packed.writestr("a.dcm", scan)

    return zipped(fill)(folder)


@attack("archives", "a zip bomb of DICOM files", "refused before it is unpacked",
        "grows .* times|unpacking it needs")  # fmt: skip
def _bomb(folder: Path) -> Any:
    return zipped(lambda z, scan: z.writestr("a.dcm", scan + bytes(80 << 20)))(folder)


@attack("archives", "a packed NIfTI that goes on for 80 MB of zeros behind its voxels",
        "refused once 64 MB of them were unpacked, piece by piece",
        "far behind the voxels")  # fmt: skip
def _gzip_bomb(folder: Path) -> Any:
    head = nifti(values((4, 4, 4)), srow=EYE)
    engine = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = engine.compress(head)
    content += b"".join(engine.compress(bytes(1 << 20)) for _ in range(80))
    path = folder / "a.nii.gz"
    path.write_bytes(content + engine.flush())
    return read_scan(path)


@attack("archives", "a DICOMDIR that names files outside its disc",
        "refused: no file that it names is there",
        "no file that this DICOMDIR")  # fmt: skip
def _disc(folder: Path) -> Any:
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

    write(folder / "secret.dcm", tags_of())
    (folder / "disc").mkdir()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index = folder / "disc" / "DICOMDIR"
    whole = FileDataset(str(index), {}, file_meta=meta, preamble=bytes(128))
    record = Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.ReferencedFileID = ["..", "SECRET.DCM"]
    whole.DirectoryRecordSequence = [record]
    whole.save_as(index)
    return read_scan(index)


# ---- scans ---------------------------------------------------------------------------


def scanned(name: str, content: bytes) -> Meet:
    def meet(folder: Path) -> Any:
        return read_scan(put(folder / name, content))

    return meet


def text_header(sizes: str, rest: str) -> bytes:
    lines = (
        "NRRD0004", "type: short", "dimension: 3", f"sizes: {sizes}",
        "spacings: 1 1 1", "encoding: raw", "endian: little", rest,
    )  # fmt: skip
    return "\n".join(lines).encode()


attack("scans", "a header that names a file elsewhere (/etc/passwd)",
       "refused; nothing of that file is shown", "does not lie beside or below"
       )(scanned("a.nhdr", text_header("2 2 2", "data file: /etc/passwd\n"))
         )  # fmt: skip
attack("scans", "a header that names a file above it (../x.raw)", "refused",
       "does not lie beside or below|cannot be reached"
       )(scanned("a.nhdr", text_header("2 2 2", "data file: ../x.raw\n")))  # fmt: skip
attack("scans", "a header of 10^18 voxels before a few bytes", "refused",
       "memory|ends|overflow|larger|needs"
       )(scanned("a.nrrd", text_header("1000000 1000000 1000000", "\nx")))  # fmt: skip
attack("scans", "a NIfTI of 32767 x 32767 x 32767 voxels in 400 bytes", "refused",
       "ends|memory|needs"
       )(scanned("a.nii", nifti(values((2, 2, 2)), dim=(3, 32767, 32767, 32767),
                                srow=EYE)))  # fmt: skip


@attack("scans", "DICOM of 65535 x 65535 pixels and 10^6 frames in 1 kB", "refused",
        "ends|memory|promised|multi|frames|large|hold|short")  # fmt: skip
def _huge_dicom(folder: Path) -> Any:
    more = {
        0x00280010: ("US", 65535), 0x00280011: ("US", 65535),
        0x00280008: ("IS", 1_000_000),
    }  # fmt: skip
    return read_scan(write(folder / "a.dcm", tags_of(more=more)))


@attack("scans", "DICOM with private tags of any length and content",
        "read; private tags are passed over")  # fmt: skip
def _private(folder: Path) -> Any:
    more = {
        0x00090010: ("LO", "HOSTILE"), 0x00091001: ("UN", b"\x00\xff" * 5000),
        0x00091002: ("LO", MARKUP), 0x7FE10010: ("OB", b"\0" * 999),
    }  # fmt: skip
    volume = read_scan(write(folder / "a.dcm", tags_of(more=more)))
    assert "HOSTILE" not in repr(volume.meta)


@attack("scans", "DICOM with a private tag that says it has 4 GB", "refused as cut",
        "ends|behind|bytes")  # fmt: skip
def _private_length(folder: Path) -> Any:
    tags = {t: v for t, v in tags_of().items() if t > 0x00100020}
    lie = struct.pack("<HH2s2sI", 0x0009, 0x1001, b"UN", b"\0\0", 0xFFFFFFF0)
    rest = b"".join(element(t, *tags[t]) for t in sorted(tags))
    (folder / "a.dcm").write_bytes(file_of(lie + rest))
    return read_scan(folder / "a.dcm")


@attack("scans", "DICOM sequences nested 3000 deep", "refused",
        "nested|ends|behind|read")  # fmt: skip
def _nested_dicom(folder: Path) -> Any:
    level = struct.pack("<HH2s2sI", 0x0008, 0x1140, b"SQ", b"\0\0", 0xFFFFFFFF)
    level += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    tags = {t: v for t, v in tags_of().items() if t > 0x00100020}
    rest = b"".join(element(t, *tags[t]) for t in sorted(tags))
    (folder / "a.dcm").write_bytes(file_of(level * 3000 + rest))
    return read_scan(folder / "a.dcm")


@attack("scans", "a name that moves the cursor and clears the terminal",
        "spelt out where it is printed")  # fmt: skip
def _escapes(folder: Path) -> Any:
    from click.testing import CliRunner

    from homolog.cli import cli

    name = "a\x1b[2J\x1b]0;x\x07\u202e.nii"
    put(folder / name, nifti(values((2, 2, 2)), srow=EYE))
    told = CliRunner().invoke(cli, ["info", str(folder / name)]).output
    assert "\\x1b[2J" in told
    assert "\x1b" not in told
    assert "\u202e" not in told


# ---- manifests and data sets ---------------------------------------------------------


def listed(rows: list[dict[str, Any]]) -> Meet:
    """A manifest is indexed beside a sound scan; returns cases and what was refused."""

    def meet(folder: Path) -> Any:
        from homolog.events import drain
        from homolog.index.index import index_sources

        put(folder / "a.nii", nifti(values((5, 6, 7)), srow=EYE))
        (folder / "m.json").write_text(json.dumps(rows))
        found = drain(index_sources([folder / "m.json"]))
        return found

    return meet


@attack("manifests", "images that are /etc/passwd, /dev/zero or a folder above",
        "put aside with their reason; nothing of them is shown")  # fmt: skip
def _elsewhere(folder: Path) -> Any:
    rows = [{"image": p} for p in ("/etc/passwd", "/dev/zero", "../..", "a.nii")]
    found = listed(rows)(folder)
    assert [c.image.name for c in found.cases] == ["a.nii"]
    assert "root:" not in repr(found)


@attack("manifests", "case names ../../ran, con, nul. and 300 letters",
        "become plain names that every system can keep")  # fmt: skip
def _case_names(folder: Path) -> Any:
    names = ("../../ran", "con", "nul.", "a" * 300)
    for i, _ in enumerate(names):
        put(folder / f"{i}.nii", nifti(values((5, 6, 7 + i)), srow=EYE))
    rows = [{"image": f"{i}.nii", "id": name} for i, name in enumerate(names)]
    cases = listed(rows)(folder).cases
    assert len(cases) == len(names)
    for case in cases:
        assert "/" not in case.id
        assert case.id.strip(".") == case.id
        assert case.id.split(".")[0].lower() not in ("con", "nul")
        assert len(case.id) < 200


@attack("manifests", "a list nested 3000 deep", "refused", "nested too deeply")
def _deep_manifest(folder: Path) -> Any:
    from homolog.index.manifests import read_manifest

    (folder / "m.json").write_text("[" * 3000 + "]" * 3000)
    return read_manifest(folder / "m.json")


@attack("manifests", "links that go round in a circle", "looked at once")
def _circle(folder: Path) -> Any:
    (folder / "x").mkdir()
    (folder / "x" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "loop.nii").symlink_to("loop.nii")
    found = listed([{"image": "loop.nii"}, {"image": "a.nii"}])(folder)
    assert [c.image.name for c in found.cases] == ["a.nii"]


# ---- recipes and plans ---------------------------------------------------------------


def recipe(name: str, text: str) -> Meet:
    def meet(folder: Path) -> Any:
        from homolog.methods import METHODS
        from homolog.training.run_settings import read_recipe, run_settings

        (folder / name).write_text(text)
        tables = read_recipe(folder / name, ("method", "backbone", "training"))
        return run_settings(
            METHODS.get("mae").RECIPES["cpu"], tables, table="method",
            recipe_name="cpu", config=METHODS.get("mae").Config, where="mae",
            backbone=None, small=True,
        )  # fmt: skip

    return meet


SETTINGS = {
    "a TOML list nested 3000 deep": ("r.toml", "x = " + "[" * 3000 + "]" * 3000,
                                     "nested too deeply"),
    "a JSON object nested 3000 deep": ("r.json", '{"a":' * 3000 + "1" + "}" * 3000,
                                       "nested too deeply"),
    "a rate that is NaN": ("r.toml", "[training]\nlearning_rate = nan", "must be"),
    "a rate that is infinite": ("r.toml", "[training]\nlearning_rate = inf",
                                "must be a finite number"),
    "a rate of 400 digits": ("r.json", '{"training": {"learning_rate": 1' + "0" * 400
                             + "}}", "must be a finite number"),
    "a number of 5000 digits": ("r.json", '{"training": {"steps": ' + "9" * 5000 + "}}",
                                "cannot be read"),
    "steps below 0": ("r.toml", "[training]\nsteps = -1", "must be in"),
    "a table of another name": ("r.toml", "[__class__]\nx = 1", "has tables"),
    "a list where a table is due": ("r.json", '{"training": [1]}', "must hold tables"),
}  # fmt: skip
for _what, (_name, _text, _says) in SETTINGS.items():
    attack("recipes", _what, "refused", _says)(recipe(_name, _text))


@attack("recipes", "a run of somebody else's that writes into another folder",
        "refused; --outside lets it", "outside its own folder")  # fmt: skip
def _run_outside(folder: Path) -> Any:
    from homolog.runs.run import Run
    from homolog.runs.worker import execute

    Run.create(
        folder / "run", "prepare", {"out": str(folder / "ran"), "sources": ["x"]}
    )
    return list(execute(Run.open(folder / "run")))


# ---- lists ---------------------------------------------------------------------------


def boxes(text: str) -> Meet:
    def meet(folder: Path) -> Any:
        from homolog.scans.boxes import read_box_json, read_regions

        (folder / "a.json").write_text(text)
        reader = read_regions if "markups" in text else read_box_json
        return reader(folder / "a.json")

    return meet


BOX = (
    '{"format": "homolog.boxes", "scan": "a", "shape": [9, 9, 9], "affine": null, '
    '"boxes": [%s]}'
)
ROI = '{"markups": [{"type": "ROI", "size": %s, "center": [1, 2, 3]%s}]}'
LISTS = {
    "boxes that are numbers": BOX % "1, 2",
    "a box with an edge of 400 digits": BOX
    % ('{"label": "x", "min": [1, 1, 1' + "0" * 400 + '], "max": [2, 2, 2]}'),
    "a box that begins at 1e308": BOX
    % '{"label": "x", "min": [1e308, 1, 1], "max": [2, 2, 2]}',
    "a region of infinite size": ROI % ("[1e999, 1, 1]", ""),
    "a region whose points are words": ROI % ("[1, 1, 1]", ', "controlPoints": ["x"]'),
    "a region of nested numbers": ROI % ("[[1], [1], [1]]", ""),
    "a region of one number": ROI % ("7", ""),
}
for _what, _text in LISTS.items():
    attack("lists", _what, "refused", "list of boxes|no boxes")(boxes(_text))


@attack("lists", "a table of points with a cell of 200,000 letters", "refused",
        "cannot be read as a table")  # fmt: skip
def _long_cell(folder: Path) -> Any:
    from homolog.scans.points import read_points

    (folder / "a.csv").write_text(f"name,z_mm,y_mm,x_mm\n{'a' * 200_000},1,2,3\n")
    return read_points(folder / "a.csv")


@attack("lists", "a table of labels with a number of 5000 digits", "names nothing")
def _long_number(folder: Path) -> Any:
    from homolog.scans.formats.label_tables import read_label_table

    (folder / "a.txt").write_text(f'{"9" * 5000} 1 1 1 1 1 1 "liver"\n')
    assert read_label_table(folder / "a.txt") == {}


# ---- what goes out -------------------------------------------------------------------


@attack("reports", "scans, classes and stores called <script>...",
        "shown as text on every page and in every drawing")  # fmt: skip
def _markup(folder: Path) -> Any:
    from homolog.drawing import html

    page = html.Page(MARKUP, MARKUP)
    page.tiles([(MARKUP, MARKUP, MARKUP)])
    page.section(MARKUP, MARKUP)
    page.note(MARKUP)
    page.table([MARKUP], [[MARKUP]])
    page.figure(np.zeros((4, 4, 3), np.uint8), MARKUP, [(MARKUP, (0.0, 0.0, 0.0))])
    line = {MARKUP: ([0.0, 1.0], [0.0, 1.0])}
    page.charts(
        html.curve_chart(line, x_title=MARKUP, y_title=MARKUP),
        html.bar_chart({MARKUP: {MARKUP: 0.5}}, title=MARKUP),
        html.interval_chart({MARKUP: [(0.1, 0.2, 0.3)]}, ticks=[MARKUP],
                            x_title=MARKUP, y_title=MARKUP),
        html.scatter_chart(line, title=MARKUP, colours={MARKUP: "#123456"}),
        html.box_chart({MARKUP: {MARKUP: [1.0, 2.0]}}, y_title=MARKUP),
        html.matrix_chart([[1.0]], [MARKUP], title=MARKUP),
        html.figure([(MARKUP, "<svg></svg>")], {MARKUP: "#123456"}, width=9, height=9),
    )  # fmt: skip
    page.write(folder / "page.html")
    text = (folder / "page.html").read_text()
    assert "&lt;script&gt;" in text
    assert "<script>alert" not in text
    assert "<img src=x" not in text


@attack("tables", "names that a spreadsheet would compute (=cmd|...)",
        "get an apostrophe in front, and lose it when they are read back")  # fmt: skip
def _formula(folder: Path) -> Any:
    from homolog.words import cell_text
    from homolog.writing import write_table

    starts = ("=", "+", "-", "@", "\t=", "\r=", "\n=")
    rows = [{"name": f"{start}SUM(A1)", "ml": 3.0} for start in starts]
    write_table(folder / "t.csv", ("name", "ml"), rows)
    with (folder / "t.csv").open(newline="") as file:
        back = [row["name"] for row in csv.DictReader(file)]
    assert all(name.startswith("'") for name in back)
    assert [cell_text(name) for name in back] == [row["name"] for row in rows]


@attack("tables", "landmarks called =HYPERLINK(...) in an exported table", "as above")
def _formula_points(folder: Path) -> Any:
    from homolog.scans.points import read_points, write_points
    from homolog.scans.volume import Points

    points = Points(np.zeros((1, 3)), ('=HYPERLINK("x")',))
    write_points(points, folder / "p.csv")
    assert "\n\"'=HYPERLINK" in (folder / "p.csv").read_text()
    assert read_points(folder / "p.csv").names == points.names


def table() -> list[str]:
    """The rows of docs/safety.md."""
    marks = {"\\": "\\\\", "|": "\\|", "<": "&lt;", "*": "\\*"}
    rows = []
    for one in ATTACKS:
        cells = [one.group, one.what, one.ends]
        for mark, spelt in marks.items():
            cells = [text.replace(mark, spelt) for text in cells]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    print("\n".join(table()))
