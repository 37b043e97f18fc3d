"""The numbers of a label map: whole when read, small when written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.problems import Unsound
from homolog.data.volume import LabelMap, Volume


def labels_of(volume: Volume, names: Mapping[int, str], path: Path | str) -> LabelMap:
    """A volume read from a label file as labels.

    A picture whose only value besides 0 is 255 is a mask and becomes 0 and 1.

    Raises:
        Unsound: ``label_values`` when values are not whole numbers.
    """
    data = volume.data[0]
    if data.dtype.kind == "f":
        if not np.isfinite(data).all() or (data != np.rint(data)).any():
            raise Unsound("label_values", "label values must be whole numbers.", path)
        data = data.astype(np.int32)
    picture = volume.meta.get("kind") == "image2d"
    if picture and set(np.unique(data).tolist()) <= {0, 255}:
        data = (data > 0).astype(np.uint8)
    return LabelMap(data, volume.affine, dict(names), volume.name, volume.meta)


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
