"""A classifier on an encoder: one answer for a whole scan, and what else it tells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.nn.depth_head import DepthHead
from homolog.nn.heads import pooled, pooled_twice
from homolog.nn.instance_pooling import InstancePooling
from homolog.nn.slicewise import slice_vectors
from homolog.nn.standardise import Standardise


@dataclass(frozen=True)
class Scores:
    """What a network says of a batch; logits but for ``attention``.

    Attributes:
        classes: (B, K).
        types: (B, T); None where none are learnt.
        slices: (B, D), whether a slice shows a finding; None where not learnt.
        attention: (B, D), share of each slice in the answer; None but slice by slice.
        alone: (B, D, K), classes of each slice by itself; None but slice by slice.
    """

    classes: Tensor
    types: Tensor | None = None
    slices: Tensor | None = None
    attention: Tensor | None = None
    alone: Tensor | None = None


def keeps_slices(backbone: Backbone) -> bool:
    """Whether every slice has its own place in all maps: 2D, or never coarser in z."""
    return all(stride[0] == 1 for stride in backbone.strides)


class ClassifyNetwork(nn.Module):
    """The encoder's deepest map pooled, standardised, one linear layer or two.

    A 2D encoder sees a volume slice by slice, and the slices' vectors are pooled.

    Args:
        encoder: 2D or 3D.
        classes: How many (K).
        dropout: Of the pooled features.
        largest: Each feature's largest value is read beside its mean.
        hidden: Width of a layer before the last one; 0 has none.
        pooling: How the slices of a volume become one (``InstancePooling``); None where
            the encoder sees the whole.
        types: Further findings that are learnt beside the classes (T).
        slices: Whether it is learnt which slices show a finding.
    """

    def __init__(
        self,
        encoder: Backbone,
        classes: int,
        dropout: float = 0.0,
        *,
        largest: bool = False,
        hidden: int = 0,
        pooling: str | None = None,
        types: int = 0,
        slices: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pooled_twice if largest else pooled
        width = encoder.channels[-1] * (2 if largest else 1)
        self.head = _head(width, classes, dropout, hidden)
        self.pooling = InstancePooling(width, pooling) if pooling else None
        self.types = _head(width, types, dropout, hidden) if types else None
        self.slices: nn.Module | None = None
        if slices and pooling:
            self.slices = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        elif slices:
            self.slices = DepthHead(encoder.channels)

    def forward(self, image: Tensor, frozen: bool = False) -> Tensor:
        """(B, C, D, H, W) -> scores (B, K); ``frozen`` stops the encoder's gradient."""
        return self.scores(image, frozen=frozen).classes

    def scores(
        self, image: Tensor, valid: Tensor | None = None, *, frozen: bool = False
    ) -> Scores:
        """All that is told.

        Args:
            image: (B, C, D, H, W).
            valid: (B, D) bool, slices that lie in the scan; all where None.
            frozen: Send no gradient into the encoder.
        """
        if self.pooling is not None:
            return self._slice_by_slice(image, valid, frozen)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            maps = self.encoder.maps(image)
        vector = self.pool(maps[-1])
        return Scores(
            self.head(vector),
            None if self.types is None else self.types(vector),
            None if self.slices is None else self.slices(maps, image.shape[2]),
        )

    def _slice_by_slice(
        self, image: Tensor, valid: Tensor | None, frozen: bool
    ) -> Scores:
        assert self.pooling is not None
        if valid is None:
            valid = torch.ones(
                image.shape[0], image.shape[2], dtype=torch.bool, device=image.device
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            bag = slice_vectors(self.encoder, image, valid, self.pool)
        vector, attention = self.pooling(bag, valid)
        return Scores(
            self.head(vector),
            None if self.types is None else self.types(vector),
            None if self.slices is None else self.slices(bag)[..., 0],
            attention,
            None if torch.is_grad_enabled() else self.head(bag),
        )


def _head(width: int, out: int, dropout: float, hidden: int) -> nn.Sequential:
    """What tells samples apart, dropout, and one fully connected layer or two."""
    parts: list[nn.Module] = [
        nn.LayerNorm(width, elementwise_affine=False),
        Standardise(width),
        nn.Dropout(dropout),
    ]
    if hidden:
        parts += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(hidden or width, out))
