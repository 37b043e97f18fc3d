"""How scans are embedded: the settings alone, light to import."""

from __future__ import annotations

from dataclasses import dataclass

from homolog.config import option


@dataclass(frozen=True)
class EmbedConfig:
    """How a scan is embedded."""

    strides: tuple[int, ...] = option(
        (),
        "strides of the feature maps joined, e.g. 2,8; empty takes what the model says",
        unit="voxel",
        minimum=1,
        metavar="S,S...",
    )
    window: tuple[int, int, int] | None = option(
        None,
        "window z, y, x slid over the scan; empty: a third larger than in training",
        unit="voxel",
        minimum=1,
        metavar="Z,Y,X",
    )
    overlap: float = option(
        0.5, "shared part of neighbouring windows", minimum=0.0, maximum=0.9
    )
    batch_size: int = option(1, "windows per forward pass", minimum=1, advanced=True)
    precision: str = option(
        "auto",
        "bf16 or fp16 autocast, or fp32; auto: the narrowest the device computes in",
        choices=("auto", "bf16", "fp16", "fp32"),
        advanced=True,
    )
