"""VICReg: two views of one thing look alike, features vary and do not repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from homolog.backbones.base import Backbone
from homolog.config import option
from homolog.distributed import sum_over_ranks_with_gradient as over_ranks
from homolog.geometry.correspondence import token_matches
from homolog.losses.similarity import full_precision
from homolog.methods.base import Method, TokenCropConfig
from homolog.nn.heads import Projector, pooled, tokens_of
from homolog.views.view import Intensity, View, Views, ViewSpec


@dataclass(frozen=True)
class VICRegConfig(TokenCropConfig):
    """Settings of VICReg; the defaults suit a small machine."""

    hidden: int = option(128, "width inside the projector", minimum=1)
    dim: int = option(128, "features compared by the loss", minimum=2)
    weight_invariance: float = option(25.0, "weight of the invariance", minimum=0)
    weight_variance: float = option(25.0, "weight of the variance", minimum=0)
    weight_covariance: float = option(1.0, "weight of the covariance", minimum=0)


class VICReg(Method):
    """Two views of a crop are alike, as a whole and place by place.

    Nothing is pushed apart: every feature has to vary between samples, and no two
    features may say the same.

    Source: Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance
    Regularization for Self-Supervised Learning", ICLR 2022, Eq. 1-6.
    Differs from the paper: beside whole crops, tokens that show one place in both views
    are compared (as in VICRegL, NeurIPS 2022); layer norm in the projectors.
    """

    Config = VICRegConfig
    title: ClassVar[str] = "VICReg: variance, invariance, covariance"
    paper: ClassVar[str] = (
        "Bardes et al., VICReg: Variance-Invariance-Covariance Regularization for "
        "Self-Supervised Learning, ICLR 2022"
    )
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {
            "method": {"size": [48, 48, 48]},
            "backbone": {"name": "resunet"},
            "training": {"steps": 400, "batch_size": 4, "learning_rate": 1e-3},
        },
        "gpu": {
            "method": {"size": [96, 96, 96], "hidden": 2048, "dim": 2048},
            "backbone": {"name": "resunet"},
            "training": {"steps": 20_000, "batch_size": 16, "learning_rate": 3e-4},
        },
        # The paper: three layers of 8192, LARS with batches of 2048 images.
        "paper": {
            "method": {"size": [96, 96, 96], "hidden": 8192, "dim": 8192},
            "backbone": {"name": "resnet"},
            "training": {"steps": 100_000, "batch_size": 32, "optimizer": "larc"},
        },
    }

    sees_padding: ClassVar[Mapping[str, str]] = {
        "crops": "the vector of a crop is the mean over all of its cells",
    }

    config: VICRegConfig

    def __init__(self, backbone: Backbone, config: VICRegConfig) -> None:
        super().__init__(backbone, config)
        backbone.check_size(config.size)
        self.backbone = backbone
        self.map_index = backbone.map_of_stride(config.token_stride)
        self.of_places, self.of_crops = (
            Projector(
                width, config.dim, hidden=config.hidden, layers=3, normalise=False
            )
            for width in (backbone.channels[self.map_index], backbone.channels[-1])
        )

    def views(self) -> dict[str, ViewSpec]:
        """Two crops about one place, each turned, zoomed and changed by itself."""
        config = self.config
        p = config.intensity_probability
        spec = ViewSpec(
            size=config.size,
            rotate_deg=config.rotate_deg,
            scale=config.scale,
            flip=config.flip,
            intensity=Intensity(shift_probability=p, scale_probability=p),
        )
        return {"first": spec, "second": spec}

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``places`` and ``crops``: the three terms of VICReg, weighted and added."""
        first, second = (self.backbone.maps(views[n].flat()) for n in views)
        c, d = (self.of_crops(pooled(maps[-1])) for maps in (first, second))
        a, b = (self.of_places(tokens_of(m[self.map_index])) for m in (first, second))
        self.watch("places", a.flatten(0, 1))
        self.watch("crops", c)
        # each token of the first view beside its partner; 0 where it has none
        partner, weight = self._partners(views)
        b = b.gather(1, partner[..., None].expand_as(a))
        return {
            "places": self._vicreg(a.flatten(0, 1), b.flatten(0, 1), weight.flatten()),
            "crops": self._vicreg(c, d, torch.ones_like(c[:, 0])),
        }

    def _partners(self, views: Views) -> tuple[Tensor, Tensor]:
        """Token of the second view for each of the first (B, N), and 1 where it counts.

        Both lie within the scan and within each other's view.
        """
        stride = self.backbone.strides[self.map_index]
        a, b = views["first"], views["second"]
        places = a.affine.flatten(0, 1), b.affine.flatten(0, 1)
        matches = token_matches(*places, a.size, stride)  # (B, N, N)
        matches &= self._inside(a)[:, :, None]
        matches &= self._inside(b)[:, None, :]
        return matches.float().argmax(2), matches.any(2).float()

    def _vicreg(self, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        config = self.config
        invariance, variance, covariance = vicreg(a, b, weight)
        return (
            config.weight_invariance * invariance
            + config.weight_variance * variance
            + config.weight_covariance * covariance
        )

    def _inside(self, view: View) -> Tensor:
        """(B V, N) bool: tokens that show enough of the scan."""
        stride = self.backbone.strides[self.map_index]
        inside = view.valid.flatten(0, 1)[:, None].float()
        share = torch.nn.functional.avg_pool3d(inside, stride).flatten(1)
        return share >= max(self.config.min_valid, 1e-6)

    def encoder(self) -> Backbone:
        """The trained backbone; the projectors are dropped."""
        return self.backbone


@full_precision
def vicreg(a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance, variance and covariance; rows of all processes are one batch.

    Args:
        a: (M, E) vectors of one view.
        b: (M, E) their partners in the other.
        weight: (M,) 1 for pairs that count, 0 for others.

    Source: VICReg, Eq. 1-5, with gamma 1 and epsilon 1e-4.
    Differs from the paper: squared distances are means over features.
    """
    rows = weight[:, None]
    count = over_ranks(weight.sum()).clamp_min(2)
    invariance = over_ranks(((a - b).square() * rows).sum()) / (count * a.shape[1])
    variance, covariance = [], []
    for vectors in (a, b):
        centred = (vectors - over_ranks((vectors * rows).sum(0)) / count) * rows
        matrix = over_ranks(centred.mT @ centred) / (count - 1)
        std = (matrix.diagonal() + 1e-4).sqrt()
        variance.append((1 - std).clamp_min(0).mean())
        beside = matrix.square().sum() - matrix.diagonal().square().sum()
        covariance.append(beside / len(matrix))
    return invariance, torch.stack(variance).mean(), torch.stack(covariance).sum()
