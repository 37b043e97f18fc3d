"""The similarity task: where in a scan it looks like at a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from homolog.config import option
from homolog.data.volume import FeatureMap, Volume
from homolog.events import Job
from homolog.tasks._base import Task
from homolog.tasks._matching import best_match, cosine_maps, kept_inside, query_at
from homolog.tasks._regrid import on_grid
from homolog.tasks.embed import Embed


@dataclass(frozen=True)
class SimilarityConfig:
    """How a point is compared with a scan."""

    apart_mm: float = option(
        20.0,
        "places nearer than this to the best one are no second choice for the margin",
        unit="mm",
        minimum=0.0,
    )


class Similarity(Task):
    """Cosine of one point's feature with every place of the same or another scan."""

    Config: ClassVar[type] = SimilarityConfig
    title: ClassVar[str] = "Similarity to a point"

    def run(self, volume: Volume, **inputs: Any) -> Job[Volume | None]:
        """The similarity map on a scan's own grid.

        Args:
            volume: The scan that holds the point.
            inputs: ``point_mm``: (3,) world mm (z, y, x). ``encoder``: DenseEncoder.
                ``other``: the Volume to search, ``volume`` itself if absent. ``folder``
                with ``scan_hash`` and ``other_hash``: where features are kept.

        Returns:
            (1, D, H, W) float32 in -1..1 with the searched scan's affine; its ``meta``
            holds the best match under ``match``. None when told to stop.

        Raises:
            UnusableInput: The point lies outside the scan.
        """
        other: Volume | None = inputs.get("other")
        kept = {"encoder": inputs["encoder"], "folder": inputs.get("folder")}
        embed = Embed(inputs["encoder"].config)
        source = yield from embed.run(volume, **kept, scan_hash=inputs.get("scan_hash"))
        if source is None:
            return None
        target: FeatureMap | None = source
        if other is not None:
            target = yield from embed.run(
                other, **kept, scan_hash=inputs.get("other_hash")
            )
        if target is None:
            return None
        return similarity_volume(
            source, target, np.asarray(inputs["point_mm"], np.float64),
            volume if other is None else other, self.config.apart_mm,
        )  # fmt: skip


def similarity_volume(
    source: FeatureMap,
    target: FeatureMap,
    point_mm: NDArray[np.float64],
    scan: Volume,
    apart_mm: float = 20.0,
) -> Volume:
    """The cosine map of a point of ``source`` in ``target``, on the scan's own grid.

    Args:
        source: Features of the scan that holds the point.
        target: Features of the scan that is searched.
        point_mm: (3,) world mm.
        scan: The scan that is searched; gives grid and affine.
        apart_mm: See ``best_match``.
    """
    query = query_at(source, point_mm[None])
    cells = cosine_maps(target, query)[0]
    match = best_match(cells, target.affine, apart_mm=apart_mm)
    match = kept_inside(match, scan.affine, scan.shape)
    values = on_grid(cells, target.affine, scan.shape, scan.affine)
    meta = {**scan.meta, "match": match}
    return Volume(values[None], scan.affine, f"{scan.name}_similarity", "OTHER", meta)
