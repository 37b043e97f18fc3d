"""Organs of the chest and the belly (atlas mm; see phantom_atlas.py)."""

from __future__ import annotations

import numpy as np

from homolog.data.phantom_shapes import (
    ALWAYS,
    FAR_MM,
    Cloud,
    Distance,
    Organ,
    all_of,
    any_of,
    complement,
    ellipsoid,
    shrunk,
    tube,
    without,
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
