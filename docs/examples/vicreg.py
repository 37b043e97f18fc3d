<<<<<<< HEAD
"""VICReg: the same place looks alike in two views, features vary and do not repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from homolog.backbones.base import Backbone
from homolog.config import option
from homolog.distributed import sum_over_ranks_with_gradient as over_ranks
from homolog.losses.similarity import full_precision
from homolog.methods.base import Method, TokenCropConfig
from homolog.nn.heads import Projector, tokens_of
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
    """Tokens of one place in two views are alike, and no two features say the same.

    Source: Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance
    Regularization for Self-Supervised Learning", ICLR 2022, Eq. 1-6.
    Differs from the paper: the vectors are tokens that show one place in both views
    (as in VICRegL, NeurIPS 2022) instead of whole images; layer norm in the projector.
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

    config: VICRegConfig

    def __init__(self, backbone: Backbone, config: VICRegConfig) -> None:
        super().__init__(backbone, config)
        backbone.check_size(config.size)
        self.backbone = backbone
        self.map_index = backbone.map_of_stride(config.token_stride)
        self.projector = Projector(
            backbone.channels[self.map_index],
            config.dim,
            hidden=config.hidden,
            layers=3,
            normalise=False,
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
        """``invariance``, ``variance`` and ``covariance``, weighted."""
        config = self.config
        first, second = (self._tokens(views[name]) for name in ("first", "second"))
        stride = self.backbone.strides[self.map_index]
        matches = views.token_matches("first", "second", stride)  # (B, N, N)
        inside = self._inside(views["first"])[:, :, None]
        matches = matches & inside & self._inside(views["second"])[:, None]
        # every token of the first view beside its partner; 0 where it has none
        partner = matches.float().argmax(2)
        second = second.gather(1, partner[..., None].expand(-1, -1, config.dim))
        weight = matches.any(2).flatten().float()
        self.watch("tokens", first.flatten(0, 1))
        terms = vicreg(first.flatten(0, 1), second.flatten(0, 1), weight)
        weights = {
            "invariance": config.weight_invariance,
            "variance": config.weight_variance,
            "covariance": config.weight_covariance,
        }
        return {name: weights[name] * value for name, value in terms.items()}

    def _tokens(self, view: View) -> Tensor:
        """(B V, N, E) projected tokens."""
        maps = self.backbone.maps(view.flat())
        projected: Tensor = self.projector(tokens_of(maps[self.map_index]))
        return projected

    def _inside(self, view: View) -> Tensor:
        """(B V, N) bool: tokens that show enough of the scan."""
        stride = self.backbone.strides[self.map_index]
        inside = view.valid.flatten(0, 1)[:, None].float()
        share = torch.nn.functional.avg_pool3d(inside, stride).flatten(1)
        return share >= max(self.config.min_valid, 1e-6)

    def encoder(self) -> Backbone:
        """The trained backbone; the projector is dropped."""
        return self.backbone


@full_precision
def vicreg(a: Tensor, b: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The three terms of matched vectors, those of all processes as one batch.

    Args:
        a: (M, E) vectors of one view.
        b: (M, E) their partners in the other.
        weight: (M,) 1 for pairs that count, 0 for others.

    Source: VICReg, Eq. 1-5, gamma 1 and epsilon 1e-4.
    Differs from the paper: squared distances and variances are means over features.
    """
    rows = weight[:, None]
    count = over_ranks(weight.sum()).clamp_min(2)
    apart = over_ranks(((a - b).square() * rows).sum()) / count / a.shape[1]
    variance, covariance = [], []
    for vectors in (a, b):
        centred = (vectors - over_ranks((vectors * rows).sum(0)) / count) * rows
        matrix = over_ranks(centred.mT @ centred) / (count - 1)
        std = (matrix.diagonal() + 1e-4).sqrt()
        variance.append((1 - std).clamp_min(0).mean())
        beside = matrix.square().sum() - matrix.diagonal().square().sum()
        covariance.append(beside / len(matrix))
    return {
        "invariance": apart,
        "variance": torch.stack(variance).mean(),
        "covariance": torch.stack(covariance).sum(),
    }
=======
"""Placeholder."""
>>>>>>> main
