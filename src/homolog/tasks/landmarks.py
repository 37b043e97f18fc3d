"""The landmarks task: points of one scan found in another, with honest doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from homolog.data.landmarks import Landmark
from homolog.data.volume import FeatureMap, Points, Volume
from homolog.events import Job
from homolog.tasks._base import Task
from homolog.tasks._body import body_of
from homolog.tasks._consensus import Consensus
from homolog.tasks._landmark_rules import LandmarksConfig, match_landmarks
from homolog.tasks._search import Search
from homolog.tasks.embed import Embed


@dataclass(frozen=True, eq=False)
class Found:
    """What was found.

    Attributes:
        landmarks: One per point, in their order.
        consensus: The map that the accepted ones agree on, if one was asked for.
    """

    landmarks: tuple[Landmark, ...]
    consensus: Consensus | None = None


class Landmarks(Task):
    """Points of one scan searched in another by the features of any encoder."""

    Config: ClassVar[type] = LandmarksConfig
    title: ClassVar[str] = "Landmarks in another scan"

    def run(self, volume: Volume, **inputs: Any) -> Job[Found | None]:
        """Points of a scan found in another one.

        Args:
            volume: Scan A, which holds the points.
            inputs: ``other``: the Volume B. ``points``: Points of A, world mm.
                ``encoder``: DenseEncoder. ``folder`` with ``scan_hash`` and
                ``other_hash``: where features are kept. ``seed``: of the consensus.

        Returns:
            What was found; None when told to stop.
        """
        other: Volume = inputs["other"]
        points: Points = inputs["points"]
        kept = {"encoder": inputs["encoder"], "folder": inputs.get("folder")}
        embed = Embed(inputs["encoder"].config)
        source: FeatureMap | None = yield from embed.run(
            volume, **kept, scan_hash=inputs.get("scan_hash")
        )
        if source is None:
            return None
        target: FeatureMap | None = yield from embed.run(
            other, **kept, scan_hash=inputs.get("other_hash")
        )
        if target is None:
            return None
        config: LandmarksConfig = self.config
        marks, consensus = match_landmarks(
            Search(source),
            Search(target),
            points,
            config,
            body_a=body_of(volume, source),
            body_b=body_of(other, target),
            scan_b=(other.affine, other.shape),
            seed=inputs.get("seed", 0),
        )
        return Found(tuple(marks), consensus)
