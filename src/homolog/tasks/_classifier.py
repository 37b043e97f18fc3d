"""A classifier on an encoder: its network, and what is minimised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.nn.heads import pooled, pooled_twice
from homolog.nn.teacher import Teacher
from homolog.tasks._base import TaskModule
from homolog.views.view import Views, ViewSpec

# Share of the training after which the weight average has its full momentum.
_AVERAGE_FROM = 0.1


class ClassifyNetwork(nn.Module):
    """The encoder's deepest map pooled, normalised, dropout, one linear layer.

    Args:
        encoder: 2D or 3D.
        classes: How many (K).
        dropout: Of the pooled features.
        largest: Each feature's largest value is read beside its mean.
    """

    def __init__(
        self,
        encoder: Backbone,
        classes: int,
        dropout: float = 0.0,
        *,
        largest: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pooled_twice if largest else pooled
        width = encoder.channels[-1] * (2 if largest else 1)
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, classes)
        )

    def forward(self, image: Tensor, frozen: bool = False) -> Tensor:
        """(B, C, D, H, W) -> scores (B, K); ``frozen`` stops the encoder's gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.pool(self.encoder.maps(image)[-1])
        scores: Tensor = self.head(features)
        return scores


class ClassifyModule(TaskModule):
    """Cross-entropy on whole scans, every class counting the same where asked.

    Args:
        network: What learns.
        spec: The view of a scan.
        weights: Of each class (K,).
        smoothing: Share of the truth given to all classes alike.
        freeze: Share of the training during which the encoder gets no gradient.
        average: Momentum of the weight average; 0 keeps none.
    """

    def __init__(
        self,
        network: ClassifyNetwork,
        spec: ViewSpec,
        weights: Sequence[float],
        *,
        smoothing: float = 0.0,
        freeze: float = 0.0,
        average: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.smoothing, self.freeze, self.momentum = smoothing, freeze, average
        self.average = Teacher(network) if average > 0 else None
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self._accuracy: Tensor | None = None

    def views(self) -> dict[str, ViewSpec]:
        """The scan."""
        return {"scan": self.spec}

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``cross_entropy``."""
        view = views["scan"]
        assert view.target is not None
        scores = self.network(view.flat(), frozen=progress < self.freeze).float()
        weights: Tensor = self.weights  # type: ignore[assignment]
        self._accuracy = (scores.argmax(1) == view.target).float().mean().detach()
        error = nn.functional.cross_entropy(
            scores, view.target, weights.float(), label_smoothing=self.smoothing
        )
        return {"cross_entropy": error}

    def after_step(self, progress: float) -> None:
        """Move the weight average; it starts as a copy and slows down."""
        if self.average is not None:
            share = min(1.0, progress / _AVERAGE_FROM)
            self.average.update(self.network, self.momentum * share)

    def monitors(self) -> dict[str, Tensor]:
        """Share of the last batch told rightly."""
        return {} if self._accuracy is None else {"batch_accuracy": self._accuracy}

    def encoder(self) -> Backbone:
        """The network's encoder."""
        return self.network.encoder

    def deployed(self) -> nn.Module:
        """The average where there is one."""
        return self.network if self.average is None else self.average.module
