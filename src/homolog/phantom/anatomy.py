"""The anatomy of the phantom: bones and organs as shapes, in atlas mm.

Shapes are signed distances in mm: each maps points (N, 3) (z, y, x) to (N,) approximate
distances, negative inside; union is a minimum, intersection a maximum. The atlas is a
trunk from the heart to the iliac crests around its centre, z to the head, y to the back
and x to the left, so that the liver, on the right, has negative x; sizes are those of a
slim adult.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Solid shapes.
Cloud: TypeAlias = NDArray[np.floating[Any]]
Distance: TypeAlias = Callable[[Cloud], Cloud]
Box: TypeAlias = tuple[tuple[float, float], ...]

FAR_MM = 1e3
ALWAYS = (-FAR_MM, FAR_MM)


def ellipsoid(
    centre: Sequence[float], radii: Sequence[float], tilt: float = 0.0
) -> Distance:
    """An ellipsoid; ``tilt`` turns it (radians) in the coronal (z, x) plane."""
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    middle = np.asarray(centre, np.float32)
    axes = np.asarray(radii, np.float32)

    def distance(points: Cloud) -> Cloud:
        q = points - middle
        if tilt:
            z, x = q[:, 0].copy(), q[:, 2].copy()
            q[:, 0], q[:, 2] = cos * z - sin * x, sin * z + cos * x
        scaled = q / axes
        k0 = np.sqrt(np.einsum("ni,ni->n", scaled, scaled))
        scaled /= axes
        k1 = np.sqrt(np.einsum("ni,ni->n", scaled, scaled))
        result: Cloud = k0 * (k0 - 1) / np.maximum(k1, 1e-6)
        return result

    return distance


def tube(path: Sequence[Sequence[float]], radii: Sequence[float]) -> Distance:
    """A round tube along a polyline; the radius changes from point to point."""
    nodes = np.asarray(path, np.float32)

    def distance(points: Cloud) -> Cloud:
        best: Cloud | None = None
        for i in range(len(nodes) - 1):
            axis = nodes[i + 1] - nodes[i]
            q = points - nodes[i]
            t = np.clip(q @ axis / (axis @ axis), 0, 1)
            gap = np.linalg.norm(q - t[:, None] * axis, axis=1)
            gap -= radii[i] + t * np.float32(radii[i + 1] - radii[i])
            best = gap if best is None else np.minimum(best, gap)
        assert best is not None
        return best

    return distance


def trunk(half_width: float, half_depth: float, waist: float = 0.06) -> Distance:
    """An endless trunk: a rounded oval cross-section that narrows at the waist."""

    def distance(points: Cloud) -> Cloud:
        z, y, x = points.T
        slim = 1 - waist * np.exp(-(((z + 30) / 55) ** 2))
        ratio = (np.abs(x) / (half_width * slim)) ** 2.4
        ratio += (np.abs(y) / (half_depth * slim)) ** 2.4
        radius = ratio ** np.float32(1 / 2.4)
        # Along the ray to the axis one unit of radius is |(x, y)| / radius mm.
        length = np.hypot(x, y)
        near = np.maximum(radius, 1e-3)
        result: Cloud = (radius - 1) * np.maximum(length / near, half_depth * 0.5)
        return result

    return distance


def all_of(*parts: Distance) -> Distance:
    """Where every part is (intersection)."""
    return lambda points: np.maximum.reduce([part(points) for part in parts])


def any_of(*parts: Distance) -> Distance:
    """Where some part is (union)."""
    return lambda points: np.minimum.reduce([part(points) for part in parts])


def without(part: Distance, hole: Distance) -> Distance:
    """A part less a hole."""
    return lambda points: np.maximum(part(points), -hole(points))


def shrunk(part: Distance, margin_mm: float) -> Distance:
    """A part whose surface lies ``margin_mm`` further inside."""
    return lambda points: part(points) + np.float32(margin_mm)


def complement(part: Distance) -> Distance:
    """Where the part is not."""
    return lambda points: -part(points)


@dataclass(frozen=True, eq=False)
class Organ:
    """One thing painted over what was painted before.

    Attributes:
        name: One of the label names, or any word for unlabelled tissue.
        hu: Mean attenuation without contrast medium.
        enhancement_hu: What a full dose of contrast medium adds.
        distance: Signed distance, atlas mm.
        box: ((z0, z1), (y0, y1), (x0, x1)) outside of which it certainly is not.
        keeps_label: Painted inside another organ without changing its label.
        texture_hu: Standard deviation of the patient's own coarse texture.
    """

    name: str
    hu: float
    distance: Distance
    box: Box = (ALWAYS,) * 3
    enhancement_hu: float = 0.0
    keeps_label: bool = False
    texture_hu: float = 0.0


# Wall and bones of the trunk.
VERTEBRA_PITCH_MM = 29.0


def spine_centre(z: Cloud) -> tuple[Cloud, Cloud]:
    """Position (y, x) of the vertebral bodies' axis at height z: the lordosis."""
    return 60 - 7 * np.cos((z + 40) / 60), 0 * z


def _vertebrae(points: Cloud) -> Cloud:
    z, y, x = points.T
    mid_y, mid_x = spine_centre(z)
    size = 19 - z * 0.02  # lumbar bodies are the larger ones
    body = np.hypot((y - mid_y) * 1.15, x - mid_x) - size
    phase = np.abs((z / VERTEBRA_PITCH_MM) % 1 - 0.5) * VERTEBRA_PITCH_MM
    within = phase - (VERTEBRA_PITCH_MM / 2 - 3.5)  # the rest of the pitch is disc
    arch = np.abs(np.hypot(y - mid_y - 28, x) - 12) - 3.5
    spinous = np.maximum(np.abs(x) - 3.5, np.abs(y - mid_y - 46) - 10)
    transverse = np.maximum(np.abs(x) - 38, np.abs(y - mid_y - 24) - 4)
    low = np.abs(((z + 4) / VERTEBRA_PITCH_MM) % 1 - 0.5) * VERTEBRA_PITCH_MM - 8
    processes = np.maximum(np.minimum(spinous, transverse), low)
    solid: Cloud = np.minimum(np.maximum(body, within), np.minimum(processes, arch))
    canal = np.hypot(y - mid_y - 28, x) - 8.5
    result: Cloud = np.maximum(solid, -canal)
    return result


def _marrow(points: Cloud) -> Cloud:
    z, y, x = points.T
    mid_y, mid_x = spine_centre(z)
    phase = np.abs((z / VERTEBRA_PITCH_MM) % 1 - 0.5) * VERTEBRA_PITCH_MM
    inside = np.hypot((y - mid_y) * 1.15, x - mid_x) - (15 - z * 0.02)
    result: Cloud = np.maximum(inside, phase - (VERTEBRA_PITCH_MM / 2 - 7))
    return result


def _discs(points: Cloud) -> Cloud:
    z, y, x = points.T
    mid_y, mid_x = spine_centre(z)
    result: Cloud = np.hypot((y - mid_y) * 1.15, x - mid_x) - (18 - z * 0.02)
    return result


def _cord(points: Cloud) -> Cloud:
    z, y, x = points.T
    cord: Cloud = np.hypot(y - spine_centre(z)[0] - 28, x) - 7
    return cord


def _ribs(points: Cloud) -> Cloud:
    z, y, x = points.T
    shell = np.abs(trunk(123, 82)(points)) - 4.0
    phase = ((z - 0.45 * y) / 27) % 1 - 0.5
    band = np.abs(phase) * 27 * 0.9 - 4.0
    margin = -20 - 0.5 * y - z  # the costal margin climbs to the front
    result: Cloud = np.maximum(
        np.maximum(shell, band), np.maximum(margin, 12 - np.abs(x))
    )
    return result


def wall(cavity: Distance) -> tuple[Organ, ...]:
    """Skin, fat and muscles around the cavity."""
    return (
        Organ("fat", -105, trunk(143, 100), texture_hu=6),
        Organ("muscle", 52, trunk(128, 87), texture_hu=8, enhancement_hu=12),
        Organ("cavity_fat", -95, cavity, texture_hu=12),
        Organ(
            "back_muscle",
            55,
            any_of(
                tube([(-160, 80, 31), (160, 80, 26)], [19, 14]),
                tube([(-160, 80, -31), (160, 80, -26)], [19, 14]),
            ),
            (ALWAYS, (58, 102), (-54, 54)),
            enhancement_hu=12,
            texture_hu=10,
        ),
        Organ(
            "psoas",
            58,
            any_of(
                tube([(-15, 56, 25), (-130, 38, 46)], [9, 20]),
                tube([(-15, 56, -25), (-130, 38, -46)], [9, 20]),
            ),
            ((-155, 0), (10, 70), (-70, 70)),
            enhancement_hu=12,
            texture_hu=8,
        ),
    )


def bones() -> tuple[Organ, ...]:
    """Spine, ribs, sternum and the wings of the pelvis."""
    centre = (ALWAYS, (30, 126), (-44, 44))
    wings = any_of(
        ellipsoid((-142, 26, 84), (52, 58, 13), 0.45),
        ellipsoid((-142, 26, -84), (52, 58, 13), -0.45),
    )
    return (
        Organ("disc", 85, _discs, centre),
        Organ("vertebrae", 430, _vertebrae, centre, texture_hu=25),
        Organ("marrow", 190, _marrow, centre, 20, keeps_label=True, texture_hu=25),
        Organ("cord", 32, _cord, (ALWAYS, (60, 110), (-12, 12))),
        Organ("rib", 380, _ribs, ((-70, FAR_MM), ALWAYS, ALWAYS), texture_hu=30),
        Organ(
            "sternum",
            260,
            ellipsoid((104, -84, 0), (66, 7, 19)),
            ((34, FAR_MM), (-96, -70), (-24, 24)),
        ),
        Organ(
            "pelvis",
            360,
            all_of(wings, trunk(130, 88)),
            ((-200, -80), (-40, 90), (-125, 125)),
            texture_hu=30,
        ),
    )


def dome(right: float, left: float) -> Distance:
    """Below the diaphragm whose tops lie at these heights."""

    def distance(points: Cloud) -> Cloud:
        z, y, x = points.T
        back = ((y + 12) / 80) ** 2 * 32
        top = np.maximum(
            right - ((x + 58) / 72) ** 2 * 40 - back,
            left - ((x - 62) / 72) ** 2 * 40 - back,
        )
        depth: Cloud = (z - top) * np.float32(0.75)
        return depth

    return distance


def _side(sign: int, margin_mm: float) -> Distance:
    """The half-space x * sign > margin."""
    return lambda points: np.float32(margin_mm) - sign * points[:, 2]


# Where the pulmonary vessels of one side lead, mirrored for the other.
_PULMONARY = (
    (40, 40, 84), (20, 52, 72), (70, -30, 90), (118, -32, 76),
    (128, 36, 84), (64, 50, 96), (98, 8, 108), (46, 6, 66),
)  # fmt: skip


def chest_organs(chest: Distance, heart: Distance) -> tuple[Organ, ...]:
    """What fills the chest, lungs first, the heart last."""
    upper = (-30, FAR_MM)
    vessels = [
        tube([(96, 14, side * 36), (z, y, side * x)], [5.5, 1.8])
        for side in (-1, 1)
        for z, y, x in _PULMONARY
    ]
    return (
        Organ("mediastinum", 10, chest, (upper, ALWAYS, ALWAYS), texture_hu=15),
        *(
            Organ(
                name,
                -840,
                without(all_of(shrunk(chest, 2), _side(sign, 19)), shrunk(heart, -4)),
                (upper, ALWAYS, ALWAYS),
                enhancement_hu=15,
                texture_hu=22,
            )
            for name, sign in (("lung_right", -1), ("lung_left", 1))
        ),
        Organ(
            "lung_vessels",
            30,
            all_of(any_of(*vessels), shrunk(chest, 4)),
            (upper, ALWAYS, ALWAYS),
            enhancement_hu=150,
            keeps_label=True,
        ),
        Organ(
            "airway",
            -960,
            any_of(
                tube([(150, 8, 0), (114, 12, 0)], [9, 9]),
                tube([(114, 12, 0), (94, 18, 38)], [7, 5]),
                tube([(114, 12, 0), (92, 18, -38)], [7, 5]),
            ),
            ((85, FAR_MM), (-5, 30), (-50, 50)),
        ),
        Organ(
            "oesophagus",
            38,
            tube([(160, 34, 4), (70, 36, 8), (22, 8, 34)], [7, 7, 8]),
            ((10, FAR_MM), (0, 50), (-10, 46)),
        ),
        *_heart(heart),
    )


def _heart(heart: Distance) -> tuple[Organ, ...]:
    return (
        Organ("heart", 42, heart, ((28, 140), (-72, 24), (-40, 88)), 110, texture_hu=8),
        Organ(
            "heart_chambers",
            42,
            any_of(
                ellipsoid((78, -30, 42), (26, 18, 22), 0.35),
                ellipsoid((92, -14, 2), (24, 16, 16)),
            ),
            ((40, 130), (-60, 10), (-25, 75)),
            210,
            keeps_label=True,
        ),
    )


def belly_organs(belly: Distance) -> tuple[Organ, ...]:
    """What fills the belly, from the bowel to the great vessels."""
    return (
        *_bowel(belly),
        *_liver(belly),
        *_stomach(belly),
        *_spleen_and_pancreas(belly),
        *_kidney("kidney_right", (-46, 36, -60), -1),
        *_kidney("kidney_left", (-36, 38, 54), 1),
        *_great_vessels(),
    )


def _bowel(belly: Distance) -> tuple[Organ, ...]:
    return (
        Organ(
            "bowel",
            12,
            all_of(belly, ellipsoid((-88, -28, 0), (46, 46, 78))),
            ((-140, -38), (-80, 24), (-84, 84)),
            30,
            texture_hu=48,
        ),
        Organ(
            "colon",
            -40,
            any_of(
                tube([(-118, 0, -84), (-62, 2, -86), (-48, -46, -58)], [20, 18, 15]),
                tube([(-48, -46, -58), (-62, -58, 0), (-34, -50, 56)], [15, 14, 14]),
                tube([(-34, -50, 56), (-26, 20, 92), (-118, 18, 86)], [13, 13, 13]),
            ),
            ((-145, -5), (-80, 44), (-112, 112)),
            texture_hu=140,
        ),
    )


def _liver(belly: Distance) -> tuple[Organ, ...]:
    liver = all_of(
        belly,
        without(
            any_of(
                ellipsoid((2, -4, -60), (66, 66, 62), 0.25),
                ellipsoid((14, -38, 2), (24, 30, 52), -0.2),
            ),
            ellipsoid((-36, 30, -30), (40, 34, 40)),
        ),
    )
    hepatic = any_of(
        tube([(36, 18, -24), (10, -6, -84)], [6, 2.5]),
        tube([(36, 18, -24), (6, -34, -50)], [6, 2.5]),
        tube([(36, 18, -24), (18, -40, 6)], [5, 2]),
        tube([(-8, 2, -32), (-2, -6, -66), (-26, 4, -92)], [7, 6, 3]),
        tube([(-2, -6, -66), (22, 16, -88)], [5, 2.5]),
        tube([(-8, 2, -32), (12, -34, -18)], [6, 3]),
    )
    return (
        Organ("liver", 58, liver, ((-74, 46), (-76, 70), (-118, 62)), 55, texture_hu=5),
        Organ(
            "hepatic_vessels",
            42,
            all_of(hepatic, shrunk(liver, 1)),
            ((-40, 46), (-50, 40), (-105, 20)),
            130,
            keeps_label=True,
        ),
        Organ(
            "gallbladder",
            8,
            ellipsoid((-42, -44, -46), (20, 13, 12), 0.3),
            ((-66, -20), (-60, -28), (-64, -28)),
        ),
    )


def _stomach(belly: Distance) -> tuple[Organ, ...]:
    stomach = all_of(belly, ellipsoid((2, -28, 62), (44, 34, 30), -0.35))
    return (
        Organ("stomach", 34, stomach, ((-56, 40), (-66, 10), (14, 108)), 30),
        Organ(
            "stomach_lumen",
            18,
            shrunk(stomach, 6),
            ((-50, 36), (-60, 4), (18, 102)),
            keeps_label=True,
            texture_hu=18,
        ),
        Organ(
            "stomach_gas",
            -880,
            all_of(shrunk(stomach, 7), ellipsoid((8, -50, 58), (28, 14, 20))),
            ((-24, 40), (-68, -32), (34, 82)),
            keeps_label=True,
        ),
    )


def _spleen_and_pancreas(belly: Distance) -> tuple[Organ, ...]:
    spleen = all_of(belly, ellipsoid((-4, 34, 87), (44, 30, 21), -0.2))
    return (
        Organ("spleen", 50, spleen, ((-56, 46), (2, 68), (56, 114)), 75, texture_hu=5),
        Organ(
            "pancreas",
            42,
            tube(
                [(-30, -4, -22), (-10, -6, -4), (2, 14, 40), (4, 24, 66)],
                [13, 10, 10, 7],
            ),
            ((-46, 20), (-22, 36), (-38, 78)),
            60,
            texture_hu=8,
        ),
    )


def _great_vessels() -> tuple[Organ, ...]:
    return (
        Organ(
            "aorta",
            42,
            any_of(
                tube(
                    [(160, 30, 18), (60, 36, 17), (0, 33, 9), (-92, 26, 7)],
                    [13, 12, 10.5, 9],
                ),
                tube([(-92, 26, 7), (-150, 20, 44)], [7, 6]),
                tube([(-92, 26, 7), (-150, 20, -36)], [7, 6]),
            ),
            ((-160, FAR_MM), (8, 50), (-46, 54)),
            230,
        ),
        Organ(
            "vena_cava",
            40,
            any_of(
                tube(
                    [(-96, 30, -17), (-40, 26, -21), (20, 20, -24), (62, 0, -18)],
                    [10, 11, 11, 11],
                ),
                tube([(-96, 30, -17), (-150, 26, 30)], [8, 7]),
                tube([(-96, 30, -17), (-150, 26, -46)], [8, 7]),
            ),
            ((-160, 76), (-14, 44), (-56, 40)),
            110,
        ),
        Organ(
            "renal_veins",
            40,
            any_of(
                tube([(-38, 30, -20), (-46, 34, -44)], [5, 4]),
                tube([(-34, 20, -16), (-32, 18, 8), (-34, 34, 42)], [5, 4, 4]),
            ),
            ((-60, -20), (8, 44), (-50, 50)),
            150,
        ),
    )


def _kidney(
    name: str, centre: tuple[float, float, float], side: int
) -> tuple[Organ, ...]:
    z, y, x = centre
    tilt = -0.22 * side
    whole = ellipsoid(centre, (48, 23, 25), tilt)
    hollow = ellipsoid((z, y - 6, x - side * 24), (15, 13, 16))
    box = ((z - 54, z + 54), (y - 26, y + 26), (x - 36, x + 36))
    return (
        Organ(name, 34, without(whole, hollow), box, 165, texture_hu=6),
        Organ(
            "medulla",
            30,
            all_of(shrunk(whole, 9), complement(hollow)),
            box,
            60,
            keeps_label=True,
        ),
        Organ("renal_pelvis", 6, all_of(hollow, shrunk(whole, 3)), box, 20),
    )


# The atlas.
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
