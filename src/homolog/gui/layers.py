"""Volumes and label maps as napari layers: closest-canonical arrays, scale + translate.

napari 0.9 draws permuted affines wrongly (or not at all) and oblique ones without their
rotation, so layers never carry them: the array is turned to run closest to z, y, x of
LPS; the true affine and the turn travel in ``metadata["homolog"]``, to be inverted on
saving.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from homolog.data.volume import LabelMap, Volume, closest_canonical

LayerData: TypeAlias = tuple[Any, dict[str, Any], str]

AXIS_LABELS = ("z", "y", "x")
UNITS = ("mm", "mm", "mm")
# The window a radiologist opens an abdomen with; whole-range HU shows grey on grey.
CT_WINDOW_HU = (-160.0, 240.0)


def volume_layer(volume: Volume) -> LayerData:
    """A scan as an image layer; several channels become one layer per channel.

    Args:
        volume: As read from the file, any axis order.

    Returns:
        ``(data, attributes, "image")``: data (D, H, W), or (C, D, H, W) with
        ``channel_axis`` 0.
    """
    turned = closest_canonical(volume)
    single = turned.data.shape[0] == 1
    data = turned.data[0] if single else turned.data
    attributes = {
        **_geometry(turned),
        "name": volume.name,
        "colormap": "gray",
        "contrast_limits": contrast_limits(volume),
    }
    if not single:
        attributes["channel_axis"] = 0
        attributes["name"] = [f"{volume.name} {i}" for i in range(len(data))]
        attributes["contrast_limits"] = [attributes["contrast_limits"]] * len(data)
        attributes["colormap"] = ["gray"] * len(data)
    return data, attributes, "image"


def label_layer(labels: LabelMap) -> LayerData:
    """A label map as a labels layer on its own canonical grid."""
    turned = closest_canonical(
        Volume(labels.data[None], labels.affine, labels.name, meta=labels.meta)
    )
    attributes = {**_geometry(turned), "name": labels.name}
    attributes["metadata"]["label_names"] = dict(labels.names)
    data = turned.data[0]
    return data.astype(np.int32, copy=False), attributes, "labels"


def contrast_limits(volume: Volume) -> tuple[float, float]:
    """What to show at first: the soft-tissue window for CT, robust range otherwise."""
    if volume.modality == "CT":
        return CT_WINDOW_HU
    sample = volume.data.reshape(-1)
    sample = sample[:: max(1, sample.size // 200_000)]
    low, high = (float(v) for v in np.percentile(sample, (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1.0)


def _geometry(turned: Volume) -> dict[str, Any]:
    original = turned.meta["original_affine"]
    return {
        "scale": turned.affine.spacing_mm,
        "translate": turned.affine.origin_mm,
        "units": UNITS,
        "axis_labels": AXIS_LABELS,
        "metadata": {
            "homolog": {
                "affine": original.to_list(),
                "shape": tuple(turned.meta["original_shape"]),
                "axes": tuple(turned.meta["axes"]),
                "flips": tuple(turned.meta["flips"]),
                "modality": turned.modality,
                "source": str(turned.meta.get("source", "")),
            }
        },
    }
