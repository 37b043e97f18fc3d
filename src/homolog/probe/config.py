"""How encoders are probed: the settings alone, light to import."""

from __future__ import annotations

from dataclasses import dataclass

from homolog.config import option


@dataclass(frozen=True)
class ProbeConfig:
    """How much is taught, on whom it is judged, and against what."""

    of: str = option(
        "auto",
        "voxels of label maps, or classes of whole scans; auto: label maps where the "
        "store has any",
        choices=("auto", "labels", "classes"),
    )
    patients: int | None = option(
        None,
        "labelled patients that are taught on, drawn by the seed; empty: 3, or all of "
        "the training split for classes of whole scans",
        minimum=1,
    )
    judge: str = option(
        "auto",
        "patients that are judged: the test split, or the rest (all that are not "
        "taught on); auto: the test split where it has 3 labelled patients",
        choices=("auto", "test", "rest"),
    )
    most: int = option(
        10, "patients that are judged, at most, of label maps; 0: all", minimum=0
    )
    voxels: int = option(
        100,
        "voxels of each label and case that are taught on and judged; fewer where "
        "labels and cases are many",
        minimum=5,
    )
    decoder: int = option(
        0,
        "also probe what the decoder that came with an encoder makes, as means over so "
        "many voxels a side; 0: the encoder's maps alone",
        choices=(0, 1, 2, 4, 8),
    )
    random: int = option(
        2, "networks with random weights that each encoder is held against", minimum=1
    )
    neighbours: int = option(
        10, "voxels or scans that vote (kNN)", minimum=1, advanced=True
    )
    dense: bool = option(
        True, "also label every voxel by the linear probe and give its Dice"
    )
    seed: int = option(0, "Seed of everything random.", minimum=0)
