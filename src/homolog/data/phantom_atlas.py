"""The atlas: a trunk from the heart to the iliac crests, in mm around its centre.

Positions are z, y, x with z to the head, y to the back, x to the left, so that the
liver, on the right, has negative x. Sizes are those of a slim adult.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from homolog.data.phantom_bones import VERTEBRA_PITCH_MM, bones, spine_centre, wall
from homolog.data.phantom_organs import belly_organs, chest_organs, dome
from homolog.data.phantom_shapes import (
    Organ,
    all_of,
    complement,
    ellipsoid,
    shrunk,
    trunk,
)

LABEL_NAMES = {
    1: "liver",
    2: "spleen",
    3: "kidney_right",
    4: "kidney_left",
    5: "lung_right",
    6: "lung_left",
    7: "heart",
    8: "stomach",
    9: "aorta",
    10: "vena_cava",
    11: "vertebrae",
    12: "pancreas",
    13: "gallbladder",
}


@cache
def organs() -> tuple[Organ, ...]:
    """Everything there is, in painting order."""
    cavity = trunk(117, 76)
    below = dome(44, 32)
    chest = all_of(cavity, complement(dome(48, 36)))
    belly = all_of(shrunk(cavity, 3), below)
    heart = ellipsoid((84, -24, 24), (44, 38, 46), 0.35)
    return (*wall(cavity), *chest_organs(chest, heart), *belly_organs(belly), *bones())


@cache
def landmarks() -> dict[str, tuple[float, float, float]]:
    """Named atlas positions (z, y, x in mm) that an anatomist would call homologous."""
    named = {
        "liver_dome": (40.0, -12.0, -58.0),
        "liver_centre": (2.0, -8.0, -64.0),
        "liver_tip": (-52.0, -2.0, -72.0),
        "liver_left_lobe": (14.0, -38.0, 20.0),
        "spleen_centre": (-4.0, 34.0, 87.0),
        "spleen_tip": (-44.0, 34.0, 79.0),
        "kidney_right_centre": (-46.0, 38.0, -64.0),
        "kidney_right_upper_pole": (-4.0, 36.0, -50.0),
        "kidney_right_lower_pole": (-88.0, 36.0, -70.0),
        "kidney_left_centre": (-36.0, 40.0, 58.0),
        "kidney_left_upper_pole": (6.0, 38.0, 44.0),
        "kidney_left_lower_pole": (-78.0, 38.0, 64.0),
        "heart_centre": (84.0, -24.0, 24.0),
        "heart_apex": (66.0, -38.0, 56.0),
        "stomach_centre": (2.0, -28.0, 62.0),
        "gallbladder_centre": (-42.0, -44.0, -46.0),
        "pancreas_head": (-26.0, -4.0, -20.0),
        "aorta_bifurcation": (-92.0, 26.0, 7.0),
        "aorta_hiatus": (30.0, 34.5, 13.0),
        "vena_cava_at_heart": (56.0, 2.0, -18.5),
        "lung_right_hilum": (96.0, 14.0, -36.0),
        "lung_left_hilum": (96.0, 14.0, 36.0),
    }
    for count, level in enumerate(range(4, -5, -1)):
        z = (level - 0.5) * VERTEBRA_PITCH_MM
        y, _ = spine_centre(np.float64(z))  # type: ignore[arg-type]
        named[f"vertebra_{count + 1}"] = (z, float(y), 0.0)
    return named
