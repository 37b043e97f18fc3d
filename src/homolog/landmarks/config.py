"""When a match is believed: the limits alone, light to import."""

from __future__ import annotations

from dataclasses import dataclass

from homolog.config import option


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
        flag="--cycle-mm",
    )
    largest_stray_mm: float = option(
        60.0,
        "matches farther than this from where the rest of the body puts them are "
        "refused, and all where the scans have too little in common; 0: not looked at",
        unit="mm",
        minimum=0.0,
        flag="--stray-mm",
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
        flag="--consensus-mm",
    )
    body_only: bool = option(
        True,
        "points outside the body are refused, and only the body is searched",
        flag="--body-only/--anywhere",
    )
    exhaustive: bool = option(
        False, "compare with every place; slow, misses nothing", advanced=True
    )
