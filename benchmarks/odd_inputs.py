"""Inputs of every kind that users of other tools reported, each against its truth.

Makes files with nibabel, SimpleITK, tifffile, zarr and Pillow, or takes them from
nibabel's packaged test data; reads each with homolog, and compares values and the place
of a marked voxel in mm with what the writer's own library says (or the refusal with the
one that is expected). Prints a table; exit status 1 where a row is wrong.

    python benchmarks/odd_inputs.py [--only WORD]
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

from homolog.errors import UnusableInput
from homolog.scans.files import read_labels, read_scan
from homolog.scans.inspect import inspect_scan, labels_by_place
from homolog.scans.nifti import ras_from_lps
from homolog.scans.volume import LabelMap, Volume

RNG = np.random.default_rng(7)
SHAPE = (11, 12, 13)  # x, y, z
AFFINE = np.array(
    [[-0.8, 0.0, 0.0, 30.0], [0.0, 0.9, 0.0, -20.0], [0, 0, 2.5, 7.0], [0, 0, 0, 1]]
)
MARK = (2, 7, 9)  # x, y, z


@dataclass
class Truth:
    """What a file is.

    Attributes:
        values: (x, y, z), as its writer's library reads it; None: not compared.
        ras_mm: Of voxel MARK; None: it has no known place.
        refused: Code of the refusal that is expected instead.
        remark: Code of a remark that must be made.
        near: Largest difference of values that is allowed.
    """

    values: np.ndarray | None = None
    ras_mm: np.ndarray | None = None
    refused: str = ""
    remark: str = ""
    near: float = 0.0


Built = tuple[Path, Truth]
ROWS: list[tuple[str, Callable[[Path], Iterator[tuple[str, Path, Truth]]]]] = []


def row(kind: str) -> Callable[[Any], Any]:
    def take(make: Any) -> Any:
        ROWS.append((kind, make))
        return make

    return take


def values(kind: Any = np.int16) -> np.ndarray:
    return RNG.integers(0, 120, SHAPE).astype(kind)


def labels() -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    found[2:6, 4:9, 3:11], found[3:5, 5:7, 6:9] = 1, 2
    return found


def at(affine: np.ndarray, voxel: Any = MARK) -> np.ndarray:
    return affine[:3, :3] @ np.asarray(voxel) + affine[:3, 3]


def of_nibabel(path: Path) -> Truth:
    """What nibabel reads; of a copy in memory, as it may keep files open."""
    image = nib.load(path)
    data = np.array(image.get_fdata(dtype=np.float64))
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    return Truth(data, at(image.affine), near=1e-3)


@row("nifti")
def nifti_files(folder: Path) -> Iterator[tuple[str, Path, Truth]]:
    for kind in (np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64):
        path = folder / f"{np.dtype(kind).name}.nii.gz"
        nib.save(nib.Nifti1Image(values(kind), AFFINE), path)
        yield f"NIfTI {np.dtype(kind).name}", path, of_nibabel(path)
    path = folder / "two.nii"
    nib.save(nib.Nifti2Image(values(), AFFINE), path)
    yield "NIfTI-2", path, of_nibabel(path)
    path = folder / "pair.img"
    nib.save(nib.Nifti1Pair(values(), AFFINE), path)
    yield "NIfTI pair", folder / "pair.hdr", of_nibabel(path)
    image = nib.Nifti1Image(values(), AFFINE)
    image.header.set_slope_inter(0.25, -100)
    nib.save(image, folder / "scaled.nii.gz")
    yield (
        "NIfTI with scl_slope",
        folder / "scaled.nii.gz",
        of_nibabel(folder / "scaled.nii.gz"),
    )
    header = nib.Nifti1Header(endianness=">")
    path = folder / "big.nii"
    nib.save(nib.Nifti1Image(values(">i2"), AFFINE, header), path)
    yield "NIfTI big endian", path, of_nibabel(path)
    turn = np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, -1], [0, 0, 3, 2], [0, 0, 0, 1]])
    path = folder / "oblique.nii.gz"
    nib.save(nib.Nifti1Image(values(), turn), path)
    yield "NIfTI oblique", path, of_nibabel(path)
    yield from damaged_nifti(folder)


def damaged_nifti(folder: Path) -> Iterator[tuple[str, Path, Truth]]:
    stored = values()
    data = nib.Nifti1Image(stored, AFFINE).to_bytes()
    path = folder / "voxoff0.nii"
    path.write_bytes(data[:108] + struct.pack("<f", 0.0) + data[112:])
    # nibabel reads header bytes as voxels here
    yield "NIfTI vox_offset 0", path, Truth(stored, at(AFFINE), near=1e-3)
    path = folder / "voxoff100.nii"
    path.write_bytes(data[:108] + struct.pack("<f", 100.0) + data[112:])
    yield "NIfTI vox_offset 100", path, Truth(refused="unreadable")
    path = folder / "cut.nii.gz"
    path.write_bytes(gzip.compress(data)[:-200])
    yield "NIfTI cut off", path, Truth(refused="truncated")
    bordered = values(np.float32)
    bordered[:2] = np.nan
    path = folder / "nan.nii.gz"
    nib.save(nib.Nifti1Image(bordered, AFFINE), path)
    yield "NIfTI with NaN border", path, Truth(refused="nonfinite")
    huge = values(np.float64)
    huge[0, 0, 0] = 1e300
    path = folder / "huge.nii.gz"
    nib.save(nib.Nifti1Image(huge, AFFINE), path)
    yield "NIfTI with 1e300", path, of_nibabel(path)
    path = folder / "4d.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([values()] * 3, -1), AFFINE), path)
    yield "NIfTI 4D", path, Truth(refused="4d")


@row("freesurfer")
def freesurfer_files(folder: Path) -> Iterator[tuple[str, Path, Truth]]:
    for kind in (np.uint8, np.int16, np.int32, np.float32):
        for end in ("mgz", "mgh"):
            path = folder / f"{np.dtype(kind).name}.{end}"
            nib.save(nib.MGHImage(values(kind), AFFINE.astype(np.float32)), path)
            yield f"FreeSurfer {end} {np.dtype(kind).name}", path, of_nibabel(path)


@row("itk")
def itk_files(folder: Path) -> Iterator[tuple[str, Path, Truth]]:
    for end in ("nrrd", "nhdr", "mha", "mhd"):
        for packed in (False, True):
            image = sitk.GetImageFromArray(values().transpose(2, 1, 0))
            image.SetSpacing((0.8, 0.9, 2.5))
            image.SetOrigin((-30.0, 20.0, 7.0))
            image.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
            path = folder / f"{'packed' if packed else 'raw'}.{end}"
            sitk.WriteImage(image, str(path), useCompression=packed)
            data = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
            lps = np.array(image.TransformIndexToPhysicalPoint(MARK))
            yield f"{path.name}", path, Truth(data, lps * (-1, -1, 1), near=0)


@row("labels")
def label_files(folder: Path) -> Iterator[tuple[str, Path, Truth]]:
    scan = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values(), AFFINE), scan)
    truth = Truth(labels(), at(AFFINE))
    noise = RNG.normal(0, 1e-5, SHAPE).clip(-9e-5, 9e-5)
    for name, data in (
        ("x 1.0000153", labels() * np.float32(1.0000153)),
        ("x 0.9999999975", labels() * 0.9999999975), ("noise 1e-5", labels() + noise),
        ("float64", labels().astype(float)),
    ):  # fmt: skip
        path = folder / f"label {name}.nii.gz"
        nib.save(nib.Nifti1Image(data, AFFINE), path)
        yield f"label map {name}", path, truth
    path = folder / "label halves.nii.gz"
    nib.save(nib.Nifti1Image(labels() * 0.5, AFFINE), path)
    yield "label map of halves", path, Truth(refused="label_values")
    image = nib.Nifti1Image(labels(), AFFINE)
    image.header.set_slope_inter(1.0000153, 0.0)
    path = folder / "label scl_slope.nii.gz"
    nib.save(image, path)
    yield "label map with scl_slope", path, truth
    turns = itertools.islice(itertools.permutations(range(3)), 1, 6)
    for axes in turns:
        flips = RNG.choice([-1.0, 1.0], 3)
        turned = nib.Nifti1Image(labels(), AFFINE).as_reoriented(
            np.stack([axes, flips], 1)
        )
        path = folder / f"label turned {''.join(map(str, axes))}.nii.gz"
        nib.save(turned, path)
        yield f"label map, axes {axes} {flips.astype(int)}", path, truth


@row("tiff and pictures")
def pictures(folder: Path) -> Iterator[tuple[str, Path, Truth]]:
    data = values(np.uint16)
    stack = data.transpose(2, 1, 0)
    sizes = {"PhysicalSizeX": 800, "PhysicalSizeY": 900, "PhysicalSizeZ": 2500}
    path = folder / "ome.ome.tif"
    tifffile.imwrite(path, stack, ome=True, metadata={"axes": "ZYX", **sizes})
    placed = np.array(MARK) * (-0.8, -0.9, 2.5)
    yield "OME-TIFF", path, Truth(data, placed)
    path = folder / "imagej.tif"
    tifffile.imwrite(
        path, stack, imagej=True, resolution=(1 / 0.8, 1 / 0.9),
        metadata={"axes": "ZYX", "spacing": 2.5, "unit": "mm"},
    )  # fmt: skip
    yield "ImageJ TIFF", path, Truth(data, placed, near=0)
    path = folder / "plain.tif"
    tifffile.imwrite(path, stack, photometric="minisblack")
    yield "TIFF without a size", path, Truth(data, remark="spacing_unknown")
    grey = np.tile(np.arange(0, 240, 8, dtype=np.uint8), (20, 1))
    plane = grey.T[..., None]
    for kind, name in (("JPEG", "a.png"), ("PNG", "a.jpg"), ("TIFF", "a.png.bmp")):
        path = folder / name
        Image.fromarray(grey).save(path, format=kind)
        truth = Truth(plane, remark="misnamed", near=9)
        yield f"{kind} called {path.suffix}", path, truth
    path = folder / "alpha.png"
    Image.fromarray(np.stack([grey, np.full_like(grey, 255)], -1), "LA").save(path)
    yield "PNG of grey and alpha", path, Truth(plane, remark="grey_as_colour")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / "turned.jpg"
    Image.fromarray(np.ascontiguousarray(np.rot90(grey, 1))).save(
        path, exif=exif, quality=100
    )
    yield "JPEG turned by EXIF", path, Truth(plane, remark="turned", near=9)
    colour = np.stack([grey, grey[:, ::-1], grey], -1)
    Image.fromarray(colour).save(folder / "colour.png")
    yield "PNG in true colour", folder / "colour.png", Truth(refused="colour")


@row("zarr")
def zarrs(folder: Path) -> Iterator[tuple[str, Path, Truth]]:
    import zarr

    data = values(np.uint16)
    for version in (2, 3):
        path = folder / f"v{version}.ome.zarr"
        group = zarr.open_group(str(path), mode="w", zarr_format=version)
        stack = data.transpose(2, 1, 0)
        array = group.create_array("0", shape=stack.shape, dtype=stack.dtype)
        array[:] = stack
        axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
        scale = {"type": "scale", "scale": [2500.0, 900.0, 800.0]}
        level = {"path": "0", "coordinateTransformations": [scale]}
        told = {"multiscales": [{"axes": axes, "datasets": [level]}]}
        group.attrs.update(told if version == 2 else {"ome": told})
        placed = np.array(MARK) * (-0.8, -0.9, 2.5)
        yield f"OME-Zarr in zarr {version}", path, Truth(data, placed)
    path = folder / "plain.zarr"
    zarr.save_array(str(path), data.transpose(2, 1, 0))
    yield "zarr array", path, Truth(data, remark="spacing_unknown")


# Of nibabel's packaged files: what must become of those that are no single volume.
_PACKAGED = {
    "example4d.nii.gz": "4d", "example_nifti2.nii.gz": "4d", "functional.nii": "4d",
    "resampled_anat_moved.nii": "nonfinite", "standard.nii.gz": "",
    "anatomical.nii": "", "reoriented_anat_moved.nii": "", "test.mgz": "4d",
    "minc1_1_scale.mnc": "unsupported", "small.mnc": "unsupported",
    "tiny.mnc": "unsupported", "example4d+orig.HEAD": "unsupported",
    "phantom_EPI_asc_CLEAR_2_1.PAR": "unsupported",
}  # fmt: skip


@row("nibabel's own")
def packaged(_: Path) -> Iterator[tuple[str, Path, Truth]]:
    folder = Path(nib.__file__).parent / "tests" / "data"
    for name, refused in _PACKAGED.items():
        path = folder / name
        if path.is_file():
            truth = Truth(refused=refused) if refused else of_nibabel(path)
            yield f"nibabel's {name}", path, truth


def found_of(path: Path, kind: str) -> Volume | LabelMap:
    if kind != "labels":
        return read_scan(path)
    return labels_by_place(read_labels(path), read_scan(path.parent / "scan.nii.gz"))


def judged(path: Path, truth: Truth, kind: str) -> str:
    """What is wrong with how a file is read; empty where nothing is."""
    seen = inspect_scan(path)
    codes = {p.code for p in seen.problems}
    if truth.refused:
        try:
            found_of(path, kind)
        except UnusableInput as error:
            problem = getattr(error, "problem", None)
            codes |= {problem.code} if problem else set()
        return "" if truth.refused in codes else f"refusal {truth.refused} expected"
    if not seen.usable:
        return f"refused: {seen.reason.text}"
    if truth.remark and truth.remark not in codes:
        return f"remark {truth.remark} missing"
    found = found_of(path, kind)
    data = found.data if found.data.ndim == 3 else found.data[0]
    data = np.asarray(data).transpose(2, 1, 0).astype(np.float64)
    if truth.values is not None:
        if data.shape != truth.values.shape:
            return f"shape {data.shape}, not {truth.values.shape}"
        gap = np.abs(data - truth.values.astype(np.float64))
        scale = np.maximum(np.abs(truth.values.astype(np.float64)), 1.0)
        if (gap > truth.near * scale).any():
            return f"values differ by up to {gap.max():.3g}"
    if truth.ras_mm is not None:
        off = np.abs(at(ras_from_lps(found.affine)) - truth.ras_mm).max()
        if off > 1e-3:
            return f"the marked voxel lies {off:.3g} mm off"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    only = parser.parse_args().only
    right = count = 0
    print(f"{'input':44} {'expected':34} result")
    with tempfile.TemporaryDirectory() as top, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for kind, make in ROWS:
            folder = Path(top) / kind.split()[0]
            folder.mkdir()
            for name, path, truth in make(folder) if only in kind else ():
                wrong = judged(path, truth, kind)
                wanted = f"refused: {truth.refused}" if truth.refused else "values"
                wanted += ", place" if truth.ras_mm is not None else ""
                wanted += f", remark {truth.remark}" if truth.remark else ""
                print(f"{name:44} {wanted:34} {wrong or 'right'}")
                right, count = right + (not wrong), count + 1
    print(f"{right} of {count} right")
    return 0 if right == count else 1


if __name__ == "__main__":
    sys.exit(main())
