"""SimpleITK, kept where a crash costs a file and not the process.

As a script this decodes files of unknown origin for another process (see
``decoder``), and then loads nothing but numpy and SimpleITK, and pydicom with its
codecs for what GDCM in SimpleITK cannot decode and for single frames; as a module it
writes our own data. The only place that knows SimpleITK, whose x, y, z order its
callers end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

# Memory for a file: this, and so much for each of its bytes. Deflate packs a thousand
# to one; nothing else that is decoded here packs pictures more.
_SPARE = 1 << 29
_MOST_GROWTH = 1100


def information(path: str) -> dict[str, Any]:
    """Sizes and place (x, y, z, t), number type and channels, from the header alone.

    Raises:
        RuntimeError: SimpleITK does not read it.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    n = reader.GetDimension()
    return {
        "size": list(reader.GetSize()),
        "spacing": list(reader.GetSpacing()),
        "origin": list(reader.GetOrigin()),
        "direction": np.reshape(reader.GetDirection(), (n, n)).tolist(),
        "dtype": _dtype_of(sitk.GetPixelIDValueAsString(reader.GetPixelID())),
        "channels": reader.GetNumberOfComponents(),
    }


def pixels(path: str) -> NDArray[Any]:
    """The values of a file as (D, H, W) or (D, H, W, C).

    Raises:
        RuntimeError: SimpleITK does not read it.
    """
    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(path)))
    except RuntimeError:
        if not _is_dicom(path):
            raise
        try:
            return dicom_pixels(path)
        except Exception as error:  # noqa: BLE001 - the first reason is the known one
            reason = _reason(error)
    raise RuntimeError(f"neither GDCM nor pydicom decodes it: {reason}")


def frames(path: str, numbers: list[int]) -> NDArray[Any]:
    """(N, H, W) stored numbers of some frames of a DICOM file, not rescaled."""
    from pydicom import dcmread
    from pydicom.pixels import iter_pixels

    header = dcmread(path, stop_before_pixels=True, force=True)
    return _bright(np.stack(list(iter_pixels(path, indices=numbers))), header)


def dicom_pixels(path: str) -> NDArray[Any]:
    """(D, H, W) or (D, H, W, C) values of a DICOM file by pydicom, rescaled."""
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    header = dcmread(path, stop_before_pixels=True, force=True)
    values = _bright(np.asarray(pixel_array(path)), header)
    slope = float(header.get("RescaleSlope", None) or 1)
    intercept = float(header.get("RescaleIntercept", None) or 0)
    values = rescaled(values, slope, intercept)
    colours = int(header.get("SamplesPerPixel", 1) or 1) > 1
    return values.reshape(-1, *values.shape[-3 if colours else -2 :])


def _bright(values: NDArray[Any], header: Any) -> NDArray[Any]:
    """Stored numbers of MONOCHROME1 turned over, as ITK turns them."""
    inverted = str(header.get("PhotometricInterpretation", "")) == "MONOCHROME1"
    if not inverted or values.dtype.kind != "u":
        return values
    largest = (1 << int(header.get("BitsStored", 16))) - 1
    return np.asarray(largest - values)


def rescaled(values: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Stored numbers as real ones: whole numbers stay whole, in the least type."""
    if slope == 1 and intercept == 0:
        return values
    if slope != int(slope) or intercept != int(intercept) or values.dtype.kind == "f":
        return np.asarray(values * np.float64(slope) + intercept)
    whole = values.astype(np.int64) * int(slope) + int(intercept)
    low, high = int(whole.min(initial=0)), int(whole.max(initial=0))
    kinds = (np.int16, np.uint16, np.int32, np.int64)
    for kind in kinds:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return whole.astype(kind)
    return whole


def _is_dicom(path: str) -> bool:
    with open(path, "rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or path.lower().endswith((".dcm", ".dicom", ".ima"))


def write(
    path: Path,
    data: NDArray[Any],
    spacing: list[float],
    origin: list[float],
    direction: list[float],
    fields: Mapping[str, str] | None = None,
) -> None:
    """Write (C, D, H, W) values, compressed; the place in x, y, z.

    Args:
        path: The file; its suffix chooses the format.
        data: The values.
        spacing: In mm.
        origin: In mm of LPS.
        direction: Nine numbers, row by row.
        fields: Written into the header of an NRRD, ``key:=value``.

    Raises:
        OSError: SimpleITK could not.
    """
    vector = data.shape[0] > 1
    values = np.moveaxis(data, 0, -1) if vector else data[0]
    image = sitk.GetImageFromArray(np.ascontiguousarray(values), isVector=vector)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    with _quiet():
        try:
            sitk.WriteImage(image, str(path), useCompression=True)
        except RuntimeError as error:
            raise OSError(f"{path}: {_reason(error)}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ITK without words on the terminal."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _dtype_of(words: str) -> str:
    bits = next((w.split("-")[0] for w in words.split() if "-bit" in w), "")
    if "complex" in words:
        return f"complex{2 * int(bits or 32)}"
    family = "float" if "float" in words else "uint" if "unsigned" in words else "int"
    return f"{family}{bits or 64}"


def _serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the other process is gone: a line of JSON, then the values."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    _tell(answers, {"ready": True})
    for line in questions:
        asked = json.loads(line)
        # Ends this process by itself, should nobody be left to end it.
        faulthandler.dump_traceback_later(asked["seconds"] + 5.0, exit=True)
        values: NDArray[Any] | None = None
        try:
            _bound(os.path.getsize(asked["path"]))
            if asked["what"] == "information":
                told = information(asked["path"])
            else:
                values = _values(asked)
                told = {"shape": values.shape, "dtype": values.dtype.str}
        except MemoryError as error:
            told = {"memory": _reason(error)}
        except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer
            reason = _reason(error)
            short = "bad_alloc" in reason or "allocate memory" in reason
            told = {"memory" if short else "error": reason}
        faulthandler.cancel_dump_traceback_later()
        _tell(answers, told)
        if values is not None:
            answers.write(np.ascontiguousarray(values).data.cast("B"))
            answers.flush()


def _values(asked: dict[str, Any]) -> NDArray[Any]:
    if asked["what"] == "frames":
        return frames(asked["path"], asked["frames"])
    if asked["what"] == "dicom":
        return dicom_pixels(asked["path"])
    return pixels(asked["path"])


def _tell(answers: BinaryIO, told: dict[str, Any]) -> None:
    answers.write(json.dumps(told).encode() + b"\n")
    answers.flush()


def _bound(file_bytes: int) -> None:
    """Take no more memory for a file than its size allows; Linux alone knows how.

    Memory for a damaged length is taken before the file proves too short for it, and
    GDCM fills what it takes: seconds and gigabytes for a file of a thousand bytes.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    wanted = pages * resource.getpagesize() + _SPARE + _MOST_GROWTH * file_bytes
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


def _humble(most: int) -> None:
    """Never take more memory than that, and be the first to go when it runs short."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if most:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # libraries print what they find
    os.dup2(nowhere, 2)
    sys.stderr = os.fdopen(nowhere, "w", encoding="utf-8")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process decides
    _humble(int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError):
        _serve(sys.stdin.buffer, answers)
    os._exit(0)


if __name__ == "__main__":
    _main()
