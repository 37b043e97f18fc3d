"""When a match is believed: the limits, and the words of a refusal."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from homolog.config import option
from homolog.data.landmarks import NAN, Landmark
from homolog.tasks._matching import Match

# Part of the reason of those that disagree with the others.
ELSEWHERE = "from where the other landmarks put it"
# Part of the reason where no match between two scans is believed.
LITTLE = "too little in common"


@dataclass(frozen=True)
class LandmarksConfig:
    """When a match is believed.

    The defaults were chosen on phantom pairs (300 random body points, 3 mm CT, an
    anatomical_embedding of 800 steps). Of 229 points that B shows, 66 % were found
    within 15 mm; of those kept by a cycle of 10 mm 78 %, of those of 15 mm also by a
    margin of 0.01 81 %, by an affine consensus of 25 mm 83 %. Similarity separates
    right from wrong poorly (0.95 and 0.91 in the middle) and its scale is the
    encoder's, so its limit only stops the absurd. The margin of 0.02 was chosen on
    deformed copies of two body CTs (400 points, an encoder of 1200 steps): of those
    kept by the cycle 90 % are within 10 mm, with the margin 93 %. Points of which B
    shows nothing keep a good cycle in 59 % of cases; the surroundings refuse those.
    """

    apart_mm: float = option(
        20.0,
        "places nearer than this to the best one are no second choice for the margin",
        unit="mm",
        minimum=0.0,
    )
    least_similarity: float = option(
        0.5, "matches less similar than this are refused", minimum=-1.0, maximum=1.0
    )
    least_margin: float = option(
        0.02,
        "matches that stand out less than this from the second-best place are refused",
        minimum=0.0,
        maximum=2.0,
    )
    largest_cycle_mm: float = option(
        10.0,
        "matches that lead back farther than this from the point are refused",
        unit="mm",
        minimum=0.0,
    )
    largest_stray_mm: float = option(
        60.0,
        "matches farther than this from where the rest of the body puts them are "
        "refused, and all where the scans have too little in common; 0: not looked at",
        unit="mm",
        minimum=0.0,
    )
    consensus: str = option(
        "none",
        "the map of A to B on which all landmarks must agree",
        choices=("none", "rigid", "similarity", "affine"),
    )
    largest_consensus_mm: float = option(
        25.0,
        "matches farther than this from where that map puts them are refused",
        unit="mm",
        minimum=0.0,
    )
    body_only: bool = option(
        True, "points outside the body are refused, and only the body is searched"
    )
    exhaustive: bool = option(
        False, "compare with every place; slow, misses nothing", advanced=True
    )


def judged(mark: Landmark, config: LandmarksConfig) -> Landmark:
    """A landmark found before, judged by other limits; nothing is searched.

    What a person set stays, and so does what has no figures to judge by and what was
    refused because others disagree, which one landmark alone cannot tell.
    """
    figures = (mark.similarity, mark.margin, mark.cycle_mm)
    if mark.manual or mark.b_mm is None or np.isnan(figures).any():
        return mark
    told = (ELSEWHERE, LITTLE) if config.largest_stray_mm > 0 else (ELSEWHERE,)
    if not mark.accepted and any(words in mark.reason for words in told):
        return mark
    reason = _reason(*figures, mark.stray_mm, config)
    return replace(mark, accepted=not reason, reason=reason)


def reason_of(
    match: Match, cycle_mm: float, config: LandmarksConfig, stray_mm: float = NAN
) -> str:
    """Why a match is refused, the gravest reason; empty where it is believed."""
    return _reason(match.similarity, match.margin, cycle_mm, stray_mm, config)


def _reason(
    similarity: float,
    margin: float,
    cycle_mm: float,
    stray_mm: float,
    config: LandmarksConfig,
) -> str:
    if similarity < config.least_similarity:
        return f"similarity {similarity:.3f} is below {config.least_similarity:g}"
    if cycle_mm > config.largest_cycle_mm:
        return (
            f"leads back {cycle_mm:.0f} mm beside the point (at most "
            f"{config.largest_cycle_mm:g})"
        )
    if 0 < config.largest_stray_mm < stray_mm:
        return (
            f"{stray_mm:.0f} mm from where the rest of the body puts it (at most "
            f"{config.largest_stray_mm:g})"
        )
    if margin < config.least_margin:
        return (
            f"only {margin:.3f} better than another place (at least "
            f"{config.least_margin:g})"
        )
    return ""
