"""Broken scans of every kind that is known to happen, and sound ones of every shape.

Each fault is written by a function ``(folder) -> (scan, label or None)`` and carries
the code that must be found. Raw NIfTI headers are written here, by hand, so that the
tests do not lean on the writer they test.
"""

from __future__ import annotations

import gzip
import itertools
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

Built = tuple[Path, Path | None]
Fault = Callable[[Path], Built]

FAULTS: dict[str, tuple[Fault, str]] = {}


def fault(
    code: str, *names: str
) -> Callable[[Callable[..., Built]], Callable[..., Built]]:
    """Register a builder; with names, it is called with each as second argument."""

    def register(builder: Callable[..., Built]) -> Callable[..., Built]:
        title = builder.__name__.replace("_", " ")
        if not names:
            FAULTS[title] = (builder, code)
        for name in names:
            FAULTS[f"{title} {name}"] = (
                lambda folder, name=name: builder(folder, name),
                code,
            )
        return builder

    return register


def values(shape: tuple[int, ...] = (9, 10, 11), dtype: Any = np.int16) -> np.ndarray:
    """A scan-like array: a noisy ball."""
    rng = np.random.default_rng(len(shape))
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    ball = (sum(g**2 for g in grid) < 0.8) * 60.0
    return (ball + rng.uniform(0, 30, shape)).astype(dtype)


def nifti(
    data: np.ndarray,
    *,
    srow: Any = None,
    pixdim: Any = (1, 1, 1),
    dim: Any = None,
    slope: float = 0.0,
    inter: float = 0.0,
    code: int | None = None,
    order: str = "<",
    qcode: int = 0,
    units: int = 2,
) -> bytes:
    """A NIfTI-1 file; ``data`` in z, y, x; ``srow`` is the 3 x 4 RAS transform."""
    codes = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "c8": 32, "f8": 64, "i1": 256,
             "u2": 512, "u4": 768, "i8": 1024, "u8": 1280, "c16": 1792}  # fmt: skip
    letter = data.dtype.str[1:]
    header = bytearray(352)
    struct.pack_into(order + "i", header, 0, 348)
    sizes = tuple(dim or (data.ndim, *data.shape[::-1]))
    struct.pack_into(order + f"{len(sizes)}h", header, 40, *sizes)
    kind = codes[letter] if code is None else code
    struct.pack_into(order + "hh", header, 70, kind, data.dtype.itemsize * 8)
    struct.pack_into(order + "f", header, 76, 1.0)
    struct.pack_into(order + f"{len(pixdim)}f", header, 80, *pixdim)
    struct.pack_into(order + "3f", header, 108, 352.0, slope, inter)
    header[123] = units
    struct.pack_into(order + "hh", header, 252, qcode, 0 if srow is None else 1)
    if srow is not None:
        struct.pack_into(order + "12f", header, 280, *np.asarray(srow, float).ravel())
    header[344:348] = b"n+1\0"
    return bytes(header) + data.astype(data.dtype.newbyteorder(order)).tobytes()


def put(path: Path, content: bytes) -> Path:
    """Write bytes, gzipped when the name says so."""
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def image(
    data: np.ndarray, spacing: Any = (1, 1, 1), direction: Any = None
) -> sitk.Image:
    """A SimpleITK image; spacing x, y, z."""
    made = sitk.GetImageFromArray(data)
    made.SetSpacing([float(s) for s in spacing][: data.ndim])
    if direction is not None:
        made.SetDirection(np.asarray(direction, float).ravel().tolist())
    return made


def cut(path: Path, share: float) -> Path:
    """Keep only the first share of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def dicom_series(
    folder: Path,
    count: int = 8,
    *,
    series: str = "1.2.3.4",
    first: int = 0,
    orientation: str = "1\\0\\0\\0\\1\\0",
    position: Callable[[int], tuple[float, float, float]] | None = None,
    image_type: str = "ORIGINAL\\PRIMARY\\AXIAL",
    prefix: str = "slice",
    extra: dict[str, str] | None = None,
    size: tuple[int, int] = (12, 14),
    low: int = -900,
) -> list[Path]:
    """A series of CT slices 2 mm apart, written by SimpleITK."""
    folder.mkdir(parents=True, exist_ok=True)
    data = values((first + count, *size)) + np.int16(low)
    paths = []
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    where = position or (lambda i: (-10.0, -20.0, 2.0 * i))
    for i in range(first, first + count):
        part = sitk.GetImageFromArray(data[i : i + 1])
        part.SetSpacing((0.5, 0.75, 2.0))
        place = "\\".join(f"{v:g}" for v in where(i))
        tags = {
            "0008|0060": "CT", "0008|0008": image_type, "0010|0020": "P7",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|000d": "1.2.3",
            "0008|0018": f"{series}.{i + 1}", "0020|000e": series,
            "0020|0013": str(i + 1), "0020|0032": place, "0020|0037": orientation,
            "0018|0050": "2", **(extra or {}),
        }  # fmt: skip
        for key, value in tags.items():
            part.SetMetaData(key, value)
        path = folder / f"{prefix}{count - i:03d}.dcm"  # names run against the order
        writer.SetFileName(str(path))
        writer.Execute(part)
        paths.append(path)
    return paths


# ---- not there, not whole ------------------------------------------------------------


@fault("missing")
def file_that_is_not_there(folder: Path) -> Built:
    return folder / "nothing.nii.gz", None


@fault("empty", ".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".jpg")
def file_of_no_bytes(folder: Path, suffix: str) -> Built:
    return put(folder / f"a{suffix}x", b"").rename(folder / f"a{suffix}"), None


@fault("unreadable", ".nii", ".nrrd", ".mha", ".png", ".tif", ".dcm")
def text_with_the_name_of_a_scan(folder: Path, suffix: str) -> Built:
    path = folder / f"a{suffix}"
    path.write_text("These are the notes of a meeting. " * 40)
    return path, None


@fault("corrupt")
def text_with_the_marks_of_gzip(folder: Path) -> Built:
    path = folder / "a.nii.gz"
    path.write_bytes(b"\x1f\x8b" + b"not compressed at all " * 40)
    return path, None


@fault("truncated", "0.5", "0.9", "0.99")
def compressed_nifti_cut(folder: Path, share: str) -> Built:
    path = put(folder / "a.nii.gz", nifti(values(), srow=np.eye(3, 4)))
    return cut(path, float(share)), None


@fault("truncated", "0.5", "0.9", "0.99")
def plain_nifti_cut(folder: Path, share: str) -> Built:
    path = put(folder / "a.nii", nifti(values(), srow=np.eye(3, 4)))
    return cut(path, float(share)), None


@fault("truncated")
def compressed_nifti_whole_but_short_of_voxels(folder: Path) -> Built:
    content = nifti(values(), srow=np.eye(3, 4))
    return put(folder / "a.nii.gz", content[:-400]), None


@fault("truncated")
def nifti_header_cut(folder: Path) -> Built:
    return cut(put(folder / "a.nii", nifti(values())), 0.1), None


@fault("truncated", "0.5", "0.9", "0.99")
def nrrd_cut(folder: Path, share: str) -> Built:
    path = folder / "a.nrrd"
    sitk.WriteImage(image(values()), str(path), useCompression=False)
    return cut(path, float(share)), None


@fault("truncated")
def compressed_nrrd_cut(folder: Path) -> Built:
    path = folder / "a.nrrd"
    sitk.WriteImage(image(values()), str(path), useCompression=True)
    return cut(path, 0.7), None


@fault("truncated", "plain", "compressed")
def mha_cut(folder: Path, how: str) -> Built:
    path = folder / "a.mha"
    sitk.WriteImage(image(values()), str(path), useCompression=how == "compressed")
    return cut(path, 0.8), None


@fault("truncated", ".png", ".jpg", ".tif", ".bmp")
def picture_cut(folder: Path, suffix: str) -> Built:
    path = folder / f"a{suffix}"
    sitk.WriteImage(image(values((40, 50), np.uint8)), str(path))
    return cut(path, 0.8), None


@fault("truncated", "0.3", "0.9")
def dicom_slice_cut(folder: Path, share: str) -> Built:
    paths = dicom_series(folder / "scan")
    cut(paths[3], float(share))
    return folder / "scan", None


@fault("corrupt")
def compressed_nifti_with_a_wrong_bit(folder: Path) -> Built:
    path = put(folder / "a.nii.gz", nifti(values(), srow=np.eye(3, 4)))
    content = bytearray(path.read_bytes())
    content[-6] ^= 0x10  # in the checksum: every voxel still decodes
    path.write_bytes(bytes(content))
    return path, None


@fault("corrupt")
def compressed_mha_with_wrong_bits(folder: Path) -> Built:
    path = folder / "a.mha"
    sitk.WriteImage(image(values()), str(path), useCompression=True)
    content = bytearray(path.read_bytes())
    content[-2] ^= 0xFF
    path.write_bytes(bytes(content))
    return path, None


@fault("corrupt")
def compressed_nrrd_with_wrong_bits(folder: Path) -> Built:
    path = folder / "a.nrrd"
    sitk.WriteImage(image(values()), str(path), useCompression=True)
    content = bytearray(path.read_bytes())
    at = len(content) - 200
    content[at : at + 8] = bytes(b ^ 0xA5 for b in content[at : at + 8])
    path.write_bytes(bytes(content))
    return path, None


@fault("corrupt")
def png_with_a_wrong_bit(folder: Path) -> Built:
    path = folder / "a.png"
    sitk.WriteImage(image(values((40, 50), np.uint8)), str(path))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(bytes(content))
    return path, None


@fault("missing")
def half_of_a_pair(folder: Path) -> Built:
    return put(folder / "a.hdr", nifti(values())[:348].replace(b"n+1", b"ni1")), None


@fault("missing")
def mhd_without_its_data(folder: Path) -> Built:
    sitk.WriteImage(image(values()), str(folder / "a.mhd"))
    (folder / "a.raw").unlink()
    return folder / "a.mhd", None


# ---- values --------------------------------------------------------------------------


@fault("nonfinite", "nan .nii", "inf .nii", "nan .nii.gz", "-inf .nii.gz", "nan .nrrd",
       "inf .mha")  # fmt: skip
def float_scan_with_one(folder: Path, what: str) -> Built:
    number, suffix = what.split()
    data = values(dtype=np.float32)
    data[4, 5, 6] = float(number)
    path = folder / f"a{suffix}"
    if "nii" in suffix:
        return put(path, nifti(data, srow=np.eye(3, 4))), None
    sitk.WriteImage(image(data), str(path))
    return path, None


@fault("constant", ".nii.gz", ".nrrd")
def scan_of_one_value(folder: Path, suffix: str) -> Built:
    data = np.full((5, 6, 7), 42, np.int16)
    path = folder / f"a{suffix}"
    if suffix == ".nrrd":
        sitk.WriteImage(image(data), str(path))
        return path, None
    return put(path, nifti(data, srow=np.eye(3, 4))), None


@fault("complex")
def complex_scan(folder: Path) -> Built:
    return put(
        folder / "a.nii.gz", nifti(values(dtype=np.complex64), srow=np.eye(3, 4))
    ), None


@fault("colour")
def nifti_in_colour(folder: Path) -> Built:
    data = values((9, 10, 33), np.uint8)
    content = nifti(data, dim=(3, 11, 10, 9), code=128, srow=np.eye(3, 4))
    return put(folder / "a.nii", content), None


@fault("colour", ".png", ".tif")
def picture_in_true_colour(folder: Path, suffix: str) -> Built:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
    path = folder / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(data, isVector=True), str(path))
    return path, None


@fault("vector", ".nrrd", ".nii.gz")
def several_numbers_per_voxel(folder: Path, suffix: str) -> Built:
    data = np.stack([values(dtype=np.float32)] * 3, -1)
    path = folder / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(data, isVector=True), str(path))
    return path, None


@fault("4d", ".nii.gz", ".nrrd")
def four_volumes(folder: Path, suffix: str) -> Built:
    data = np.stack([values(dtype=np.float32)] * 4)
    path = folder / f"a{suffix}"
    if suffix == ".nrrd":
        sitk.WriteImage(sitk.GetImageFromArray(data, isVector=False), str(path))
        return path, None
    return put(path, nifti(data, srow=np.eye(3, 4))), None


@fault("4d")
def pictures_over_time(folder: Path) -> Built:
    data = np.stack([values((1, 10, 11))] * 5)
    return put(folder / "a.nii", nifti(data, srow=np.eye(3, 4))), None


@fault("unsupported")
def number_type_of_128_bits(folder: Path) -> Built:
    return put(folder / "a.nii", nifti(values(), code=1536, srow=np.eye(3, 4))), None


def _freesurfer(frames: int = 1) -> bytes:
    header = struct.pack(">7ih", 1, 4, 5, 6, frames, 0, 0, 1)
    header += struct.pack(">15f", 1, 1, 1, *np.diag([-1.0, 1, 1]).ravel(), 0, 0, 0)
    return header.ljust(284, b"\0") + bytes(range(120)) * frames


@fault("4d")
def freesurfer_volumes_over_time(folder: Path) -> Built:
    return put(folder / "a.mgh", _freesurfer(3)), None


@fault("truncated")
def freesurfer_volume_cut_off(folder: Path) -> Built:
    return put(folder / "a.mgh", _freesurfer()[:-7]), None


@fault("truncated")
def packed_freesurfer_volume_cut_off(folder: Path) -> Built:
    return put(folder / "a.mgz", gzip.compress(_freesurfer())[:-9]), None


# ---- geometry ------------------------------------------------------------------------


@fault("empty", "0", "1", "2")
def size_of_zero(folder: Path, axis: str) -> Built:
    sizes = [11, 10, 9]
    sizes[int(axis)] = 0
    content = nifti(values(), dim=(3, *sizes), srow=np.eye(3, 4))
    return put(folder / "a.nii.gz", content), None


@fault("unreadable")
def number_of_axes_out_of_range(folder: Path) -> Built:
    return put(folder / "a.nii", nifti(values(), dim=(9, 11, 10, 9))), None


@fault("spacing", "0", "-2", "nan", "inf")
def nifti_spacing(folder: Path, value: str) -> Built:
    content = nifti(values(), pixdim=(1, float(value), 1))
    return put(folder / "a.nii.gz", content), None


@fault("spacing")
def zero_spacing_beside_a_good_sform(folder: Path) -> Built:
    content = nifti(values(), pixdim=(0, 0, 0), srow=np.eye(3, 4))
    return put(folder / "a.nii", content), None


@fault("spacing")
def sform_of_another_voxel_size(folder: Path) -> Built:
    return put(folder / "a.nii", nifti(values(), srow=2 * np.eye(3, 4))), None


@fault("spacing")
def sform_axis_without_length(folder: Path) -> Built:
    srow = np.eye(3, 4)
    srow[1, 1] = 0
    return put(folder / "a.nii", nifti(values(), srow=srow)), None


@fault("affine")
def sform_with_parallel_axes(folder: Path) -> Built:
    srow = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0.0]])
    return put(folder / "a.nii", nifti(values(), srow=srow)), None


@fault("spacing", "zero", "missing")
def nrrd_spacing(folder: Path, how: str) -> Built:
    lines = ["NRRD0004", "type: short", "dimension: 3", "sizes: 11 10 9"]
    if how == "zero":
        lines.append("spacings: 1 0 1")
    lines += ["encoding: raw", "endian: little", "", ""]
    path = folder / "a.nrrd"
    path.write_bytes("\n".join(lines).encode() + values().tobytes())
    return path, None


@fault("spacing", "zero", "missing", "negative")
def mha_spacing(folder: Path, how: str) -> Built:
    lines = ["ObjectType = Image", "NDims = 3", "DimSize = 11 10 9"]
    said = {"zero": "1 0 1", "negative": "1 -1 1"}.get(how)
    lines += [f"ElementSpacing = {said}"] if said else []
    lines += ["ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]
    path = folder / "a.mha"
    path.write_bytes("\n".join(lines).encode() + values().tobytes())
    return path, None


@fault("sheared", "0.01", "0.3")
def sheared_sform(folder: Path, amount: str) -> Built:
    srow = np.eye(3, 4)
    srow[1, 2] = float(amount)
    size = float(np.linalg.norm(srow[:, 2]))
    return put(
        folder / "a.nii.gz", nifti(values(), srow=srow, pixdim=(1, 1, size))
    ), None


@fault("sheared")
def sheared_nrrd(folder: Path) -> Built:
    lines = [
        "NRRD0004", "type: short", "dimension: 3", "space: left-posterior-superior",
        "sizes: 11 10 9", "space directions: (1,0,0) (0.4,1,0) (0,0,1)",
        "space origin: (0,0,0)", "encoding: raw", "endian: little", "", "",
    ]  # fmt: skip
    path = folder / "a.nrrd"
    path.write_bytes("\n".join(lines).encode() + values().tobytes())
    return path, None


# ---- labels --------------------------------------------------------------------------


def _image_and_label(folder: Path, label: bytes) -> Built:
    scan = put(folder / "a.nii.gz", nifti(values(), srow=np.eye(3, 4)))
    return scan, put(folder / "a_label.nii.gz", label)


def mask(shape: tuple[int, ...] = (9, 10, 11), dtype: Any = np.uint8) -> np.ndarray:
    """A block of ones."""
    made = np.zeros(shape, dtype)
    made[tuple(slice(n // 3, 2 * n // 3) for n in shape)] = 1
    return made


@fault("label_shape")
def label_of_another_size(folder: Path) -> Built:
    return _image_and_label(folder, nifti(mask((9, 10, 12)), srow=np.eye(3, 4)))


@fault("label_affine", "moved", "flipped", "coarser")
def label_elsewhere(folder: Path, how: str) -> Built:
    srow, pixdim = np.eye(3, 4), (1, 1, 1)
    if how == "moved":
        srow[0, 3] = 1.0
    elif how == "flipped":
        srow[0, 0] = -1.0
    else:
        srow, pixdim = 2 * srow, (2, 2, 2)
    return _image_and_label(folder, nifti(mask(), srow=srow, pixdim=pixdim))


@fault("label_values")
def label_of_fractions(folder: Path) -> Built:
    label = mask(dtype=np.float32) * np.float32(0.5)
    return _image_and_label(folder, nifti(label, srow=np.eye(3, 4)))


@fault("label_unreadable")
def label_cut(folder: Path) -> Built:
    scan, label = _image_and_label(folder, nifti(mask(), srow=np.eye(3, 4)))
    assert label is not None
    return scan, cut(label, 0.6)


# ---- DICOM ---------------------------------------------------------------------------


@fault("missing_slice", "1", "2")
def dicom_gap(folder: Path, count: str) -> Built:
    paths = dicom_series(folder / "scan", 12)
    for path in paths[4 : 4 + int(count)]:
        path.unlink()
    return folder / "scan", None


@fault("uneven_slices")
def dicom_steps_uneven(folder: Path) -> Built:
    def place(i: int) -> tuple[float, float, float]:
        return 0.0, 0.0, 2.0 * i + (0.6 if i == 3 else 0.0)

    dicom_series(folder / "scan", position=place)
    return folder / "scan", None


@fault("sheared")
def dicom_with_gantry_tilt(folder: Path) -> Built:
    dicom_series(folder / "scan", position=lambda i: (0.0, 0.5 * i, 2.0 * i))
    return folder / "scan", None


@fault("4d")
def dicom_with_two_echoes(folder: Path) -> Built:
    dicom_series(folder / "scan", 6)
    data = values((6, 12, 14)) * np.int16(3)
    paths = dicom_series(folder / "other", 6)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i, path in enumerate(paths):
        old = sitk.ReadImage(str(path))
        new = sitk.GetImageFromArray(data[i : i + 1])
        new.SetSpacing(old.GetSpacing())
        for key in old.GetMetaDataKeys():
            new.SetMetaData(key, old.GetMetaData(key))
        new.SetMetaData("0008|0018", f"1.2.9.{i + 1}")
        writer.SetFileName(str(folder / "scan" / f"echo{i}.dcm"))
        writer.Execute(new)
    return folder / "scan", None


@fault("localiser")
def dicom_localiser(folder: Path) -> Built:
    dicom_series(folder / "scan", 3, image_type="ORIGINAL\\PRIMARY\\LOCALIZER")
    return folder / "scan", None


@fault("not_an_image")
def dicom_contours(folder: Path) -> Built:
    (folder / "scan").mkdir()
    kind = b"1.2.840.10008.5.1.4.1.1.481.3\0"
    meta = b"\x02\x00\x10\x00UI" + struct.pack("<H", 20) + b"1.2.840.10008.1.2.1\0"
    body = b"\x08\x00\x16\x00UI" + struct.pack("<H", len(kind)) + kind
    body += b"\x08\x00\x60\x00CS" + struct.pack("<H", 8) + b"RTSTRUCT"
    (folder / "scan" / "RS.dcm").write_bytes(bytes(128) + b"DICM" + meta + body)
    return folder / "scan", None


@fault("unreadable")
def folder_without_a_scan(folder: Path) -> Built:
    (folder / "scan").mkdir()
    (folder / "scan" / "notes.txt").write_text("nothing here")
    return folder / "scan", None


# ---- sound ---------------------------------------------------------------------------


def directions() -> Iterator[np.ndarray]:
    """The 48 axis orders, left-handed ones included, then turned ones."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turned = np.zeros((3, 3))
            for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
                turned[world, axis] = sign
            yield turned
    rng = np.random.default_rng(3)
    for _ in range(8):
        yield np.linalg.qr(rng.normal(size=(3, 3)))[0]


def sound_files(folder: Path) -> Iterator[Path]:
    """More than two hundred sound scans."""
    folder.mkdir(parents=True, exist_ok=True)
    spacing = (0.7, 1.3, 5.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, turned in enumerate(directions()):
            for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
                path = folder / f"turned{number}{suffix}"
                sitk.WriteImage(image(values((3, 4, 5)), spacing, turned), str(path))
                yield path
    types = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
    for letter, order in itertools.product(types, "<>"):
        data = values((4, 5, 6)).astype(letter)
        name = f"type_{letter}_{'big' if order == '>' else 'little'}.nii.gz"
        yield put(folder / name, nifti(data, order=order, srow=np.eye(3, 4)))
    yield from _sound_oddities(folder)
    for count, name in ((8, "series"), (1, "one_slice")):
        dicom_series(folder / name, count)
        yield folder / name


def _sound_oddities(folder: Path) -> Iterator[Path]:
    data = values()
    eye = np.eye(3, 4)
    yield put(folder / "no_orientation.nii", nifti(data, pixdim=(1, 2, 3)))
    yield put(folder / "one_frame.nii.gz", nifti(data[None], srow=eye))
    yield put(folder / "one_frame_5d.nii", nifti(data[None, None], srow=eye))
    yield put(folder / "flat.nii.gz", nifti(values((10, 11)), pixdim=(1, 1, 0)))
    yield put(folder / "scaled.nii.gz", nifti(data, srow=eye, slope=0.5, inter=-3))
    nan = float("nan")
    yield put(folder / "no_slope.nii", nifti(data, srow=eye, slope=nan, inter=nan))
    yield put(folder / "micrometres.nii", nifti(data, srow=eye, units=3))
    yield put(folder / "tiny.nii", nifti(values((2, 2, 2)), srow=eye))
    content = gzip.compress(nifti(data, srow=eye))
    (folder / "trailing.nii.gz").write_bytes(content + b"\0" * 512)
    yield folder / "trailing.nii.gz"
    raw = nifti(data, srow=eye)
    members = gzip.compress(raw[:700]) + gzip.compress(raw[700:])
    (folder / "two_members.nii.gz").write_bytes(members)
    yield folder / "two_members.nii.gz"
    put(folder / "pair.img", raw[352:])
    header = bytearray(raw[:348])
    struct.pack_into("<f", header, 108, 0.0)
    header[344:348] = b"ni1\0"
    yield put(folder / "pair.hdr", bytes(header))
    header[344:348] = bytes(4)
    header[252:256] = bytes(4)
    put(folder / "analyze.img", raw[352:])
    yield put(folder / "analyze.hdr", bytes(header))
    sitk.WriteImage(image(data), str(folder / "detached.mhd"))
    yield folder / "detached.mhd"
    sitk.WriteImage(image(data), str(folder / "detached.nhdr"))
    yield folder / "detached.nhdr"
    picture = values((40, 50), np.uint8)
    for suffix in (".png", ".jpg", ".tif", ".bmp"):
        sitk.WriteImage(image(picture), str(folder / f"picture{suffix}"))
        yield folder / f"picture{suffix}"
    sitk.WriteImage(image(values((40, 50), np.uint16)), str(folder / "sixteen.png"))
    yield folder / "sixteen.png"
    grey = sitk.GetImageFromArray(np.stack([picture] * 3, -1), isVector=True)
    for suffix in (".png", ".jpg", ".tif"):
        sitk.WriteImage(grey, str(folder / f"grey_as_colour{suffix}"))
        yield folder / f"grey_as_colour{suffix}"
