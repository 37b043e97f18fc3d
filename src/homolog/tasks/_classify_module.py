"""How a classifier learns: the classes of scans, and what is known beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.losses.partial_binary import partial_binary_cross_entropy
from homolog.nn.teacher import Teacher
from homolog.tasks._base import TaskModule
from homolog.tasks._classifier import ClassifyNetwork, Scores
from homolog.tasks._scan_truth import Space, Truth, slices_in_view
from homolog.tasks._segmenter import AVERAGE_FROM
from homolog.views.view import View, Views, ViewSpec


@dataclass(frozen=True)
class Weights:
    """What counts how much.

    Attributes:
        classes: Of each class (K); of several classes per scan, of their presence.
        types: Of the presence of each type (T).
        type_term: Of the term of the types.
        slice_term: Of the term of the slices.
    """

    classes: Sequence[float]
    types: Sequence[float] = ()
    type_term: float = 0.0
    slice_term: float = 0.0


class ClassifyModule(TaskModule):
    """Cross-entropy on whole scans; binary where a scan may have several classes.

    Types of findings and the presence of findings in each slice may be learnt beside;
    a scan of which they are not known does not count there.

    Args:
        network: What learns.
        spec: The view of a scan.
        space: What is told of a scan.
        weights: What counts how much.
        smoothing: Share of the truth given to all classes alike.
        freeze: Share of the training during which the encoder gets no gradient.
        average: Momentum of the weight average; 0 keeps none.

    Source: Hundred Million, section IV-E (types and slices as auxiliary tasks).
    Differs from the paper: which does not tell the weights of its auxiliary tasks.
    """

    def __init__(
        self,
        network: ClassifyNetwork,
        spec: ViewSpec,
        space: Space,
        weights: Weights,
        *,
        smoothing: float = 0.0,
        freeze: float = 0.0,
        average: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.spec, self.space, self.terms = spec, space, weights
        self.smoothing, self.freeze, self.momentum = smoothing, freeze, average
        self.average = Teacher(network) if average > 0 else None
        self.weights: Tensor
        self.type_weights: Tensor
        kept = {"weights": weights.classes, "type_weights": weights.types}
        for name, values in kept.items():
            told = torch.tensor(list(values), dtype=torch.float32)
            self.register_buffer(name, told, persistent=False)
        self._right: dict[str, Tensor] = {}

    def views(self) -> dict[str, ViewSpec]:
        """The scan."""
        return {"scan": self.spec}

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``cross_entropy`` or ``binary_cross_entropy``; ``types``, ``slices``."""
        view = views["scan"]
        assert view.target is not None
        truth = Truth.of(view.target, self.space)
        valid = slices_inside(view)
        scores = self.network.scores(view.flat(), valid, frozen=progress < self.freeze)
        found = self._classes(scores.classes.float(), truth)
        if scores.types is not None:
            found["types"] = self.terms.type_term * partial_binary_cross_entropy(
                scores.types, truth.types, self.type_weights, self.smoothing
            )
        if scores.slices is not None:
            found["slices"] = self.terms.slice_term * self._slices(
                scores, truth, view, valid
            )
        return found

    def _classes(self, scores: Tensor, truth: Truth) -> dict[str, Tensor]:
        if self.space.several:
            known = truth.classes >= 0
            right = ((scores > 0) == (truth.classes > 0)) & known
            share = right.sum() / known.sum().clamp_min(1)
            error = partial_binary_cross_entropy(
                scores, truth.classes, self.weights, self.smoothing
            )
            name = "binary_cross_entropy"
        else:
            share = (scores.argmax(1) == truth.classes).float().mean()
            error = nn.functional.cross_entropy(
                scores, truth.classes, self.weights, label_smoothing=self.smoothing
            )
            name = "cross_entropy"
        self._right = {"batch_accuracy": share.detach()}
        return {name: error}

    def _slices(
        self, scores: Scores, truth: Truth, view: View, valid: Tensor
    ) -> Tensor:
        assert scores.slices is not None
        marks = slices_in_view(truth, view.affine[:, 0], view.size, valid)
        return partial_binary_cross_entropy(scores.slices, marks)

    def after_step(self, progress: float) -> None:
        """Move the weight average; it starts as a copy and slows down."""
        if self.average is not None:
            share = min(1.0, progress / AVERAGE_FROM)
            self.average.update(self.network, self.momentum * share)

    def monitors(self) -> dict[str, Tensor]:
        """Share of the last batch told rightly."""
        return dict(self._right)

    def encoder(self) -> Backbone:
        """The network's encoder."""
        return self.network.encoder

    def deployed(self) -> nn.Module:
        """The average where there is one."""
        return self.network if self.average is None else self.average.module


def slices_inside(view: View) -> Tensor:
    """(B, D) bool: slices of the one view of each scan that show any of the scan."""
    return view.valid[:, 0].flatten(2).any(2)
