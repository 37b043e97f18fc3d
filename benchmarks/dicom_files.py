"""What becomes of DICOM files: pydicom's own test files, and how long a folder takes.

``python benchmarks/dicom_files.py`` reads every test file that comes with pydicom and
prints a table: values compared with pydicom's, the place of the first voxel with the
header's, or the reason why it is no scan. ``--folder N`` writes N slices, and tells how
long they take to list and to read.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_rescale

from homolog.index.tree import list_series
from homolog.scans.files import read_scan
from homolog.scans.inspect import inspect_scan

SERIES = 500  # slices of one, in a folder of many


def files() -> list[Path]:
    """The test files of pydicom's package, those in its disc folders too."""
    folder = Path(pydicom.data.__file__).parent / "test_files"
    return sorted(p for p in folder.rglob("*") if p.is_file() and _is_dicom(p))


def _is_dicom(path: Path) -> bool:
    named = path.suffix == ".dcm" or path.name == "DICOMDIR"
    return named or path.read_bytes()[128:132] == b"DICM"


def judged(path: Path) -> str:
    """One line on what became of a file."""
    found = inspect_scan(path, deep=False)
    if found.reason is not None:
        return f"left out   {found.reason.code}: {found.reason.text}"
    try:
        volume = read_scan(path)
    except Exception as error:  # noqa: BLE001 - told
        return f"FAILED     {error}"
    data: Any = pydicom.dcmread(path, force=True)
    if path.name == "DICOMDIR":
        return f"read       {volume.shape}"
    stored = data.pixel_array
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        stored = (1 << data.BitsStored) - 1 - stored  # as every viewer shows it
    theirs = apply_rescale(stored, data)
    ours = volume.data[0].reshape(theirs.shape)
    same = np.allclose(ours, theirs, rtol=1e-6, atol=0)
    position = data.get("ImagePositionPatient")
    away = 0.0
    if position is not None:
        corner = volume.affine.apply((0, 0, 0))[::-1]
        away = float(np.abs(corner - np.array(position, float)).max())
    verdict = "equal" if same else "DIFFERS"
    return f"read       {volume.shape}, values {verdict}, first voxel {away:.1g} mm off"


def table() -> int:
    """Print the table; how many files are wrong."""
    wrong = 0
    for path in files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            line = judged(path)
        wrong += "DIFFERS" in line or line.startswith("FAILED")
        print(f"{path.name:<44} {line}", flush=True)
    print(f"{len(files())} files, {wrong} wrong")
    return wrong


def write_folder(folder: Path, count: int) -> None:
    """Write slices of a real header (256 elements), 128 x 128, in series of 500."""
    data = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    rng = np.random.default_rng(0)
    for i in range(count):
        number, series = i % SERIES, i // SERIES + 1
        data.SeriesInstanceUID = f"1.2.3.{series}"
        data.SOPInstanceUID = f"1.2.3.{series}.{i}"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.InstanceNumber = number + 1
        data.ImagePositionPatient = [-100, -120, 1.5 * number]
        pixels = rng.integers(-1000, 1000, (128, 128)).astype("<i2")
        data.PixelData = pixels.tobytes()
        data.save_as(folder / f"IM{i * 7919 % count:05d}")


def timed(count: int) -> None:
    """Print seconds of wall and of processor, and the memory taken."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder, count)
        for what in ("list", "list again", "read all"):
            wall, cpu = time.perf_counter(), time.process_time()
            found = list_series(folder)
            if what == "read all":
                for one in found:
                    read_scan(one.path)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"{what:<12} {len(found)} series  {wall:7.2f} s  {cpu:6.2f} s of cpu")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MB")


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=int, metavar="N", help="time N slices instead")
    count = parser.parse_args().folder
    if count:
        timed(count)
    else:
        sys.exit(1 if table() else 0)


if __name__ == "__main__":
    main()
