"""The embed task: dense features of one scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from homolog.data.feature_files import open_features
from homolog.data.foreground import inside, spread_sample
from homolog.data.preprocess import Prepared
from homolog.data.volume import FeatureMap, Volume
from homolog.events import Job
from homolog.geometry.affine import Index
from homolog.tasks._base import Task
from homolog.tasks._dense import (
    DenseEncoder,
    EmbedConfig,
    embed_into,
    scan_of,
    write_features,
)
from homolog.tasks._embed import feature_grid
from homolog.tasks._labelling import preparation_notes


class Embed(Task):
    """Sliding-window features of an encoder, blended on the feature grid."""

    Config: ClassVar[type] = EmbedConfig
    title: ClassVar[str] = "Dense features"

    def run(self, volume: Volume, **inputs: Any) -> Job[FeatureMap | None]:
        """Features of a scan.

        Args:
            volume: A scan as stored in its file.
            inputs: ``encoder``: DenseEncoder. ``folder``: where features are kept and
                found again (with ``scan_hash``); in memory if absent.

        Returns:
            (E, d, h, w) float16 of unit norm, memory-mapped where a folder was given;
            None when told to stop.
        """
        encoder: DenseEncoder = inputs["encoder"]
        folder: Path | None = inputs.get("folder")
        yield from encoder.warn()
        prepared = encoder.prepare(volume)
        yield from preparation_notes(
            volume, prepared, named_size=encoder.preprocessing.spacing_mm
        )
        scan = scan_of(prepared, volume.name or "scan")
        if folder is not None:
            scan_hash: str = inputs["scan_hash"]
            card = yield from write_features(
                scan, prepared.affine, scan_hash, encoder, Path(folder)
            )
            return None if card is None else open_features(card)
        shape = feature_grid(scan.shape, encoder.strides[0])
        array = np.zeros((*shape, sum(encoder.sizes)), np.float16)
        counts = yield from embed_into(scan, encoder, array)
        if counts is None:
            return None
        return FeatureMap(
            np.moveaxis(array, -1, 0),
            prepared.affine.coarsen(encoder.strides[0]),
            encoder.encoder_id,
        )


def body_cells(prepared: Prepared, stride: Index) -> NDArray[np.bool_]:
    """Which cells (d, h, w) of a feature grid show body rather than air or padding.

    Args:
        prepared: The scan.
        stride: Voxels (z, y, x) per cell; the voxel in the middle of a cell decides.
    """
    z, y, x = (slice(s // 2, None, s) for s in stride)
    picked = prepared.data[0, z, y, x]
    values = picked * np.float32(prepared.scale) + np.float32(prepared.offset)
    sample = spread_sample(prepared.data) * np.float32(prepared.scale)
    mask = inside(
        values, sample + np.float32(prepared.offset), prepared.modality == "CT"
    )
    result = np.zeros(feature_grid(prepared.grid.shape, stride), bool)
    d, h, w = mask.shape
    result[:d, :h, :w] = mask
    return result
