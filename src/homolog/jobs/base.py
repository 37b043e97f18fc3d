"""What the jobs of this room share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from homolog.config import option
from homolog.errors import UnusableInput
from homolog.features.config import EmbedConfig

if TYPE_CHECKING:
    from homolog.features.embed import DenseEncoder

DEVICES = "Where to compute: auto, cpu, cuda or cuda:i."
STRAIGHTEN = (
    "Resample DICOM slices that lean (a tilted gantry) or are unevenly spaced to a "
    "straight and even grid, once; otherwise such a scan is left out with its reason."
)
MODALITIES = ("CT", "MR", "PET", "XR", "US", "OTHER")


@dataclass(frozen=True)
class DenseConfig(EmbedConfig):
    """An encoder, and how its window slides over a scan."""

    encoder: str | None = option(
        ...,
        "A pretraining run, a model folder, a weight file or a model's name.",
        metavar="RUN",
        reads="model",
    )
    backbone: str | None = option(
        None,
        "Network of a weight file that does not say it.",
        metavar="NAME",
        empty="the file's",
    )
    device: str = option("auto", DEVICES, metavar="DEVICE")

    def embedding(self) -> EmbedConfig:
        """How the window slides, alone."""
        return EmbedConfig(
            **{f.name: getattr(self, f.name) for f in fields(EmbedConfig)}
        )

    def open_encoder(self) -> DenseEncoder:
        """The encoder, ready to embed."""
        from homolog.config import to_dict
        from homolog.features.of_scans import encoder_of

        return encoder_of(
            Path(str(self.encoder)),
            to_dict(self.embedding()),
            self.device,
            self.backbone,
        )


@dataclass(frozen=True)
class FeaturesConfig(DenseConfig):
    """The same, with a place where feature maps are kept."""

    features: str | None = option(
        None,
        "Where feature maps are kept and found again.",
        metavar="DIR",
        writes=True,
        empty="the user's cache",
    )


def paths(values: Sequence[str], what: str) -> list[Path]:
    """Texts as paths.

    Raises:
        UnusableInput: There is none.
    """
    found = [Path(value) for value in values]
    if not found:
        raise UnusableInput(f"no {what} was given.")
    return found


def optional_path(value: str | None) -> Path | None:
    """A path, or None where none was given."""
    return Path(value) if value else None
