"""Large and small crops of one sample: what the clustering methods look at."""

from __future__ import annotations

from dataclasses import replace

from homolog.methods._swav_settings import MultiCropConfig
from homolog.views.view import Anchor, Elsewhere, Intensity, ViewSpec, Within


def plain_changes(config: MultiCropConfig) -> Intensity:
    """Changes of grey values, each with the probability of the settings."""
    p = config.intensity_probability
    return Intensity(
        shift_probability=p, scale_probability=p, gamma_probability=p,
        noise_probability=p, blur_probability=p / 2,
    )  # fmt: skip


def multi_crop(config: MultiCropConfig, intensity: Intensity) -> dict[str, ViewSpec]:
    """Two large crops, and small ones within the first of them or anywhere."""
    far = config.place == "scan"
    large = ViewSpec(
        size=config.size,
        count=2,
        place=Elsewhere() if far else Anchor(),
        translate=(0.0, 0.0, 0.0) if far else (0.25, 0.25, 0.25),
        rotate_deg=config.rotate_deg,
        scale=config.scale,
        flip=config.flip,
        intensity=intensity,
    )
    if not config.small_count:
        return {"large": large}
    small = replace(
        large,
        size=config.small_size,
        count=config.small_count,
        place=Elsewhere() if far else Within("large"),
        translate=(0.0, 0.0, 0.0),
    )
    return {"large": large, "small": small}
