"""How labels are carried to other scans: the settings alone, light to import."""

from __future__ import annotations

from dataclasses import dataclass, replace

from homolog.config import option

METHODS = ("auto", "both", "features", "grey", "registration")


@dataclass(frozen=True)
class PropagateConfig:
    """How labels are carried to other scans."""

    method: str = option(
        "auto",
        "what places are compared by: features of the encoder, grey values, or both; "
        "registration: SimpleITK's affine and B-spline instead; auto: both with an "
        "encoder, grey without",
        choices=METHODS,
    )
    cells: int = option(
        40_000,
        "places compared around the labels in the finest round; time grows with them",
        minimum=500,
        advanced=True,
    )
    margin_mm: float = option(
        30.0,
        "how far around the labels scans are compared",
        unit="mm",
        minimum=0.0,
        advanced=True,
    )
    reach_mm: float = option(
        4.0,
        "how far around its mapped place a voxel may take a label that looks more "
        "like it; 0: the map alone",
        unit="mm",
        minimum=0.0,
    )
    grey_share: float = option(
        0.5,
        "how much the usual grey values of each label in the scan itself say; 0: "
        "nothing",
        minimum=0.0,
        maximum=2.0,
    )
    smooth_mm: float = option(
        4.0,
        "width of the smoothing along the scan's own edges; 0: none",
        unit="mm",
        minimum=0.0,
    )
    ignore_above: float = option(
        1.0,
        "voxels less sure than this get a label called ignore, which teaches nothing "
        "when a store is prepared with these labels; 1: none",
        minimum=0.0,
        maximum=1.0,
    )
    trust: float = option(
        0.65,
        "of four scans and more, those less sure than this share of the median, or "
        "whose places miss there and back by more than the median divided by it, are "
        "left out of a store to train on; 0: none",
        minimum=0.0,
        maximum=1.0,
        later=True,
    )

    def of_labels(self) -> PropagateConfig:
        """The same without what no carried label depends on."""
        return replace(self, trust=PropagateConfig.trust)

    def chosen(self, *, has_encoder: bool) -> str:
        """The method, with ``auto`` decided."""
        if self.method != "auto":
            return self.method
        return "both" if has_encoder else "grey"
