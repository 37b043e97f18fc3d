"""Wall and bones of the procedural trunk (atlas mm; see phantom_atlas.py)."""

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
    ellipsoid,
    trunk,
    tube,
)

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
