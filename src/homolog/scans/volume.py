"""A scan in memory: voxels on an affine, its modality, and what its values show.

Statistics are fed piece by piece, so that a scan of any size is judged without being
held in memory. numpy only: the GUI process imports this.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index
from homolog.scans.problems import Unsound

# Of pictures: pixels that have no size in a body.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_AIR_HU = (-1100.0, -700.0)
_MOST_DISTINCT = 1024
# Label maps of the whole body have 117 classes.
_MOST_CLASSES = 128
# In ``Volume.meta``: what each channel is, ``[{"name", "modality"}, ...]``.
CHANNELS = "channels"
# Names of channels that mark places.
_MASK = re.compile(r"^(mask|seg|segmentation|roi|attention|label)s?\b", re.IGNORECASE)
# Values judged at once: what stays in a processor's cache.
_AT_ONCE = 1 << 19
# Label values may lie off whole numbers by this: programs store labels as scaled whole
# numbers (nibabel), as products of floats, or after an interpolation.
WHOLE = 1e-3

_WORDS = {
    "CT": ("ct", "cta", "ctpa", "cbct", "hrct", "ldct", "ncct"),
    "MR": (
        "mr", "mri", "t1", "t2", "t1w", "t2w", "t1c", "t1ce", "t1gd", "t1n", "t2s",
        "t2f", "t1post", "t1pre", "flair", "dwi", "adc", "pd", "bold", "swi", "dti",
        "mprage",
    ),
    "PET": ("pet", "suv", "fdg"),
    "XR": ("cxr", "xray", "xr", "radiograph", "mammo"),
    "US": ("ultrasound", "sonography"),
}  # fmt: skip
_DICOM = {
    "CT": "CT", "MR": "MR", "PT": "PET", "CR": "XR", "DX": "XR", "RG": "XR", "MG": "XR",
    "XA": "XR", "RF": "XR", "US": "US",
}  # fmt: skip


class ValueStats:
    """Running judgement of a scan's values in file order.

    Attributes:
        count: Values seen.
        nonfinite: NaN and infinities among them.
        low: Smallest finite value, ``inf`` before the first.
        high: Largest finite value.
        integral: Whether all values are whole numbers.
        distinct: The distinct values, None once there are more than 1024.
        whole: What is seen of whole numbers where values lie off them by rounding;
            None where all are whole, or some are not nearly.

    Args:
        content: Also keep the distinct values and the hash; without, only the range
            and the modality are judged, faster.
    """

    def __init__(self, *, content: bool = True) -> None:
        self.count = 0
        self.nonfinite = 0
        self.low = float("inf")
        self.high = float("-inf")
        self.integral = True
        self.distinct: set[float] | None = set() if content else None
        self.whole: _Rounded | None = None
        self._air = 0
        self._below = 0
        self._lowest = 0
        self._zeros = 0
        self._equal = 0
        self._hash = hashlib.sha256() if content else None

    def update(self, values: NDArray[Any]) -> None:
        """Take the next piece, any shape, any real type."""
        flat = np.ravel(values)
        for start in range(0, flat.size, _AT_ONCE):
            self._update(flat[start : start + _AT_ONCE])

    def _update(self, flat: NDArray[Any]) -> None:
        if self._hash is not None:
            with np.errstate(over="ignore"):
                single = np.ascontiguousarray(flat, dtype=np.float32) + np.float32(0.0)
            self._hash.update(single.data)  # + 0.0 made -0.0 equal to 0.0
        self.count += flat.size
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(flat)
            self.nonfinite += flat.size - int(np.count_nonzero(finite))
            flat = flat[finite]
            if flat.size == 0:
                return
            low, high = float(flat.min()), float(flat.max())
        if flat.dtype.kind == "f" and (self.integral or self.whole is not None):
            self._look_for_whole(flat)
        if low < self.low:
            self._below += self._lowest
            self._lowest = 0
            self.low = low
        self.high = max(self.high, high)
        if low <= _AIR_HU[1]:
            self._count_air(flat)
        if self.distinct is not None:
            self._collect(flat)

    def _look_for_whole(self, flat: NDArray[Any]) -> None:
        """Whether these values are whole numbers, or nearly, as those before."""
        whole = np.rint(flat)
        if self.integral and (flat == whole).all():
            return
        # +inf - inf cannot come here: only finite values do
        near = bool((np.abs(flat - whole) <= WHOLE).all())
        if not near:
            self.whole = None
        elif self.integral and self.distinct is not None:
            self.whole = _Rounded(set(self.distinct), self._zeros, self._equal)
        self.integral = False
        if self.whole is not None:
            self.whole.update(whole)

    def _count_air(self, flat: NDArray[Any]) -> None:
        self._air += int(np.count_nonzero((flat >= _AIR_HU[0]) & (flat <= _AIR_HU[1])))
        below = int(np.count_nonzero(flat < _AIR_HU[0]))
        padded = self.low < _AIR_HU[0]
        padding = int(np.count_nonzero(flat == self.low)) if padded else 0
        self._lowest += padding
        self._below += below - padding

    def _collect(self, flat: NDArray[Any]) -> None:
        """Distinct values, a mark of label maps; given up once there are too many."""
        assert self.distinct is not None
        for start in range(0, flat.size, 1 << 16):
            self.distinct.update(np.unique(flat[start : start + (1 << 16)]).tolist())
            if len(self.distinct) > _MOST_DISTINCT:
                self.distinct = None
                return
        self._zeros += int(np.count_nonzero(flat == 0))
        self._equal += int(np.count_nonzero((flat[1:] == flat[:-1]) & (flat[1:] != 0)))

    @property
    def constant(self) -> bool:
        """Whether every value is the same."""
        return self.count > 0 and self.nonfinite == 0 and self.low == self.high

    @property
    def labels(self) -> frozenset[int] | None:
        """The whole numbers it holds; None where it cannot be a label map.

        Few different ones, within 1e-3, none below the "unlabelled" -1. Values that all
        lie near 0 without being it are no labels.
        """
        if self.nonfinite or self.low < -1 - WHOLE:
            return None
        found = self.distinct if self.integral else None
        if self.whole is not None and self.whole.values != {0.0}:
            found = self.whole.values
        return None if found is None else frozenset(round(v) for v in found)

    @property
    def could_be_labels(self) -> bool:
        """Whether it holds nothing but few whole numbers, see ``labels``."""
        return self.labels is not None

    @property
    def _rounded(self) -> _Rounded:
        """What was counted of whole numbers."""
        return self.whole or _Rounded(self.distinct, self._zeros, self._equal)

    @property
    def patchy(self) -> bool:
        """As could_be_labels, and made of patches of one value.

        Eight-bit scans are whole numbers with few values too, but neighbours in them
        are seldom equal.
        """
        values = self.labels
        if values is None:
            return False
        return len(values) <= 32 or self._rounded.runs(self.count) >= 0.5

    @property
    def looks_like_labels(self) -> bool:
        """As patchy, on a background of zeros; for files of any name."""
        return self.patchy and self._rounded.zeros >= 0.2 * self.count

    @property
    def is_label_map(self) -> bool:
        """Whether nothing but a mask or a label map has such values.

        Stricter than looks_like_labels, which only chooses among files: scans of few
        grey levels on much black must pass.
        """
        if self.distinct is not None and len(self.distinct) == 2:
            return True
        values, told = self.labels, self._rounded
        if values is None:
            return False
        if len(values) == 2 and self.whole is not None:
            return True
        if told.zeros < 0.2 * self.count:
            return False
        for most, runs in ((8, 0.5), (_MOST_CLASSES, 0.8)):
            if len(values) <= most and told.runs(self.count) >= runs:
                return True
        return told.zeros >= 0.98 * self.count and len(values) <= 32  # points

    @property
    def looks_like_ct(self) -> bool:
        """Hounsfield-like: air near -1000, tissue above, nothing below but padding."""
        return (
            -32768 <= self.low <= -700
            and 20 <= self.high <= 40000
            and self._air >= 0.01 * self.count
            and self._below <= 0.002 * self.count
        )

    def content_hash(self, affine: Affine, shape: Index) -> str:
        """Sixteen hex digits of values (as float32) and geometry (to 0.001 mm).

        The same scan in another number type or file format has the same hash.
        """
        if self._hash is None:
            raise ValueError("these statistics were taken without the content.")
        whole = self._hash.copy()
        whole.update(np.asarray(shape, dtype="<i8").tobytes())
        whole.update((np.round(affine.matrix, 3) + 0.0).astype("<f8").tobytes())
        return whole.hexdigest()[:16]


@dataclass
class _Rounded:
    """Whole numbers in file order.

    Attributes:
        values: The distinct ones; None once there are too many.
        zeros: How many are 0.
        equal: How many others are equal to the one before.
    """

    values: set[float] | None
    zeros: int = 0
    equal: int = 0

    def update(self, flat: NDArray[Any]) -> None:
        """Take the next piece, all whole numbers."""
        if self.values is None:
            return
        for start in range(0, flat.size, 1 << 16):
            self.values.update(np.unique(flat[start : start + (1 << 16)]).tolist())
            if len(self.values) > _MOST_DISTINCT:
                self.values = None
                return
        self.zeros += int(np.count_nonzero(flat == 0))
        self.equal += int(np.count_nonzero((flat[1:] == flat[:-1]) & (flat[1:] != 0)))

    def runs(self, count: int) -> float:
        """Share of non-zero values equal to the one before: high in label maps."""
        nonzero = count - self.zeros
        return self.equal / nonzero if nonzero else 0.0


def modality_of_name(*names: str) -> str:
    """Modality in the name of a file or folder; "OTHER" when none or several."""
    for name in names:
        words = set(re.split(r"[^a-z0-9]+", name.lower()))
        found = {m for m, known in _WORDS.items() if words & set(known)}
        if len(found) == 1:
            return found.pop()
        if found:
            return "OTHER"
    return "OTHER"


def modality_of_dicom(tag: str) -> str:
    """Our word for DICOM's (0008,0060)."""
    return _DICOM.get(tag.strip().upper(), "OTHER")


# Whatever part of a body a CT shows, fat or air is darker than this.
HU_REACH_DOWN_TO = -50.0


def guess_modality(stats: ValueStats, named: str) -> str:
    """CT by its values; otherwise by the names.

    A name with CT in it counts only where values go below zero, since a CT rescaled to
    0..255 must not be windowed as Hounsfield units.
    """
    if stats.looks_like_ct:
        return "CT"
    if named == "CT" and not (stats.low <= HU_REACH_DOWN_TO and stats.high <= 40000):
        return "OTHER"
    return named


def judged_modality(values: NDArray[Any], named: str) -> str:
    """``guess_modality`` of a whole array: what prepare and predict must agree on."""
    stats = ValueStats(content=False)
    stats.update(values)
    return guess_modality(stats, named)


MODALITIES = ("CT", "MR", "PET", "XR", "US", "OTHER")


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or an image.

    Attributes:
        data: (C, D, H, W), any real number type; D is 1 for a 2D image.
        affine: Voxel (z, y, x) -> world mm (z, y, x), LPS.
        name: Short name for messages and layers.
        modality: One of MODALITIES.
        meta: Whatever must survive until saving (source path, header, true affine).
    """

    data: NDArray[Any]
    affine: Affine
    name: str = ""
    modality: str = "OTHER"
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.ndim != 4:
            raise ValueError(
                f"a volume must have shape (C, D, H, W), got {self.data.shape} "
                f"for {self.name!r}."
            )

    @property
    def shape(self) -> Index:
        """Spatial size (D, H, W)."""
        d, h, w = self.data.shape[1:]
        return d, h, w


@dataclass(frozen=True)
class Channel:
    """One image of a case.

    Attributes:
        path: Its file.
        name: Such as ``T1``; "" where nobody says.
        modality: One of MODALITIES; "" as the file says.
        frame: Its number in a file of several; None: the file's only image.
    """

    path: Path
    name: str = ""
    modality: str = ""
    frame: int | None = None

    @property
    def is_mask(self) -> bool:
        """Whether it marks places rather than showing anything, by its name."""
        return bool(_MASK.match(self.name))

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "path": str(self.path.absolute()), "name": self.name,
            "modality": self.modality, "frame": self.frame,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Channel:
        """Inverse of ``to_dict``."""
        frame = told.get("frame")
        return cls(
            Path(str(told["path"])), str(told.get("name", "")),
            str(told.get("modality", "")), None if frame is None else int(frame),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Integer labels, 0 is background, -1 (where signed) is unlabelled.

    Attributes:
        data: (D, H, W) integers.
        affine: Voxel -> world mm, LPS.
        names: Label value -> name.
        name: Short name for messages and layers.
        meta: Whatever must survive until saving.
    """

    data: NDArray[Any]
    affine: Affine
    names: Mapping[int, str] = field(default_factory=dict)
    name: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or self.data.dtype.kind not in "iub":
            raise ValueError(
                f"a label map must be (D, H, W) integers, got {self.data.shape} "
                f"{self.data.dtype} for {self.name!r}."
            )

    @property
    def shape(self) -> Index:
        """Spatial size (D, H, W)."""
        d, h, w = self.data.shape
        return d, h, w


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A grid of feature vectors at the encoder's own stride, never blown up.

    Attributes:
        data: (E, d, h, w) float16 or float32, may be memory-mapped.
        affine: Feature cell -> world mm, LPS.
        encoder_id: Hash of the encoder that made it.
        scan_id: Content hash of the scan it was made from.
    """

    data: NDArray[Any]
    affine: Affine
    encoder_id: str = ""
    scan_id: str = ""


@dataclass(frozen=True, eq=False)
class Points:
    """Named positions in world millimetres; never voxel indices.

    Attributes:
        mm: (N, 3) world positions (z, y, x), LPS.
        names: One per point.
    """

    mm: NDArray[np.float64]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mm.ndim != 2 or self.mm.shape[1] != 3:
            raise ValueError(f"points must have shape (N, 3), got {self.mm.shape}.")


def closest_canonical(volume: Volume, *, acquired: bool = False) -> Volume:
    """The same scan with axes permuted and flipped to run closest to z, y, x of LPS.

    No value changes. ``meta`` gains ``axes``, ``flips`` and ``original_affine``,
    ``original_shape``, which ``restore_axes`` inverts.

    Args:
        volume: As stored in its file.
        acquired: The axis across its slices becomes z instead, wherever it points; see
            ``Affine.acquired_axes``.
    """
    axes, flips = (
        volume.affine.acquired_axes(volume.shape)
        if acquired
        else volume.affine.closest_axes()
    )
    meta = {
        **volume.meta,
        "axes": axes,
        "flips": flips,
        "original_affine": volume.affine,
        "original_shape": volume.shape,
    }
    return Volume(
        data=reorder_axes(volume.data, axes, flips),
        affine=volume.affine.reorient(axes, flips, volume.shape),
        name=volume.name,
        modality=volume.modality,
        meta=meta,
    )


def reorder_axes(
    data: NDArray[Any], axes: tuple[int, ...], flips: tuple[bool, ...]
) -> NDArray[Any]:
    """Permute and flip the last three axes of an array; a view, no copy."""
    lead = data.ndim - 3
    order = [*range(lead), *(lead + a for a in axes)]
    turned = np.transpose(data, order)
    flipped: NDArray[Any] = np.flip(
        turned, tuple(lead + i for i, f in enumerate(flips) if f)
    )
    return flipped


def restore_axes(
    data: NDArray[Any], axes: tuple[int, ...], flips: tuple[bool, ...]
) -> NDArray[Any]:
    """Inverse of reorder_axes; a view, no copy."""
    lead = data.ndim - 3
    turned = np.flip(data, tuple(lead + i for i, f in enumerate(flips) if f))
    inverse = np.argsort(axes)
    return np.transpose(turned, [*range(lead), *(lead + int(a) for a in inverse)])


# Numbers of a label map: whole when read, small when written.
def labels_of(volume: Volume, names: Mapping[int, str], path: Path | str) -> LabelMap:
    """A volume read from a label file as labels.

    A picture whose only value besides 0 is 255 is a mask and becomes 0 and 1.

    Raises:
        Unsound: ``label_values`` when values are not whole numbers (within 1e-3), or
            too large to be numbers of labels.
    """
    data = volume.data[0]
    if data.dtype.kind == "f":
        data = _whole_numbers(data, path)
    picture = volume.meta.get("kind") == "image2d"
    if picture and set(np.unique(data).tolist()) <= {0, 255}:
        data = (data > 0).astype(np.uint8)
    return LabelMap(data, volume.affine, dict(names), volume.name, volume.meta)


def _whole_numbers(data: NDArray[Any], path: Path | str) -> NDArray[np.int32]:
    """Floating point values as the whole numbers that they are within ``WHOLE``."""
    text = "label values must be whole numbers"
    if not np.isfinite(data).all():
        raise Unsound("label_values", f"{text}, some are NaN or infinite.", path)
    most = float(np.abs(data).max()) if data.size else 0.0
    if most > np.iinfo(np.int32).max:
        raise Unsound("label_values", f"{text} of labels, got {most:.3g}.", path)
    whole = np.rint(data)
    off = np.abs(data - whole)
    if data.size and float(off.max()) > WHOLE:
        odd = float(data.flat[int(off.argmax())])
        raise Unsound("label_values", f"{text}, got {odd:.6g}.", path)
    return np.asarray(whole, np.int32)


def mapped_labels(labels: LabelMap, mapping: Mapping[int, int]) -> LabelMap:
    """Labels with other numbers.

    Args:
        labels: As a file has them.
        mapping: Value -> new value; the others stay. Several may become one.
    """
    if not mapping:
        return labels
    data = np.asarray(labels.data)
    # -1 and a store's largest value must fit
    turned = data.astype(np.promote_types(data.dtype, np.int16))
    for value, new in mapping.items():
        turned[data == value] = new
    return replace(labels, data=turned)


def smallest_integers(data: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in the smallest type every reader knows."""
    data = np.asarray(data)
    low, high = (int(data.min()), int(data.max())) if data.size else (0, 0)
    kinds = (np.uint8, np.int16, np.int32, np.int64)
    kind = next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return data.astype(kind)
