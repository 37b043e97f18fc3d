"""Arrays that know where they lie. numpy only: the GUI process imports these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index

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


def closest_canonical(volume: Volume) -> Volume:
    """The same scan with axes permuted and flipped to run closest to z, y, x of LPS.

    No value changes. ``meta`` gains ``axes``, ``flips`` and ``original_affine``,
    ``original_shape``, which ``restore_axes`` inverts.
    """
    axes, flips = volume.affine.closest_axes()
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
