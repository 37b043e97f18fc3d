"""The network of a classifier, slices as samples, and how it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from homolog.backbones.base import Backbone
from homolog.distributed import evened
from homolog.losses.segmentation import partial_binary_cross_entropy
from homolog.nn.heads import (
    DepthHead,
    InstancePooling,
    Standardise,
    pooled,
    pooled_twice,
)
from homolog.tasks.base import TaskModule
from homolog.tasks.classify.truth import Space, Truth, slices_in_view
from homolog.views.view import View, Views, ViewSpec

# A 2D encoder on the slices of volumes, a few at a time: memory stays bounded.


# Slices that are in the network at once.
CHUNK = 16


def slice_vectors(
    encoder: Backbone,
    image: Tensor,
    known: Tensor,
    pool: Callable[[Tensor], Tensor] = pooled,
    chunk: int = CHUNK,
) -> Tensor:
    """The encoder's deepest map of each slice, pooled.

    Where a gradient is wanted and there are more slices than a chunk holds, only one
    chunk's activations are kept: the others are computed a second time on the way back.

    Args:
        encoder: 2D.
        image: (B, C, D, H, W).
        known: (B, D) bool; slices that are not are not looked at.
        pool: (n, E', 1, h, w) -> (n, E).
        chunk: Slices at once.

    Returns:
        (B, D, E); 0 where a slice is not known.
    """
    batch, _, depth = image.shape[:3]
    slices = image.transpose(1, 2).flatten(0, 1)
    wanted = known.flatten().nonzero()[:, 0]
    twice = torch.is_grad_enabled() and len(wanted) > chunk

    def look(part: Tensor) -> Tensor:
        return pool(encoder.maps(part.unsqueeze(2))[-1])

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _averages_at_rest(encoder)

    if not len(wanted):  # one all the same: its weights must be met in every step
        wanted = torch.arange(len(slices), device=image.device)[:1]
    found = [
        checkpoint(look, slices[part], use_reentrant=False, context_fn=contexts)
        if twice
        else look(slices[part])
        for part in (wanted[k : k + chunk] for k in range(0, len(wanted), chunk))
    ]
    seen = torch.cat(found)
    whole = seen.new_zeros(batch * depth, seen.shape[1]).index_copy(0, wanted, seen)
    return whole.reshape(batch, depth, -1)


@contextmanager
def _averages_at_rest(module: nn.Module) -> Iterator[None]:
    """Batch norms do not count the same slices twice."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum


# A classifier on an encoder: one answer for a whole scan, and what else it tells.


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


# Paper: Hundred Million IV-D.
@dataclass(frozen=True)
class Stacked:
    """What an encoder of slices sees of each: its neighbours too, and a mask.

    Attributes:
        channels: Of a case.
        neighbours: Slices seen at once, an odd number; the slice itself is the middle.
        masks: Channels that are masks: of these the slice itself alone is seen.
        compress: Channels that all of it becomes by a 1 x 1 convolution; 0: as it is.

    Source: Hundred Million, section IV-D (five slices of MPRAGE and the mask of what
        is suspected as six channels, made three by a 1 x 1 convolution).
    Differs from the paper: the convolution begins as the slice itself.
    """

    channels: int
    neighbours: int = 1
    masks: tuple[int, ...] = ()
    compress: int = 0

    @property
    def width(self) -> int:
        """Channels before they are compressed."""
        shown = self.channels - len(self.masks)
        return shown * self.neighbours + len(self.masks)

    def __call__(self, image: Tensor, valid: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, ``width``, D, H, W).

        Beyond the first and the last slice of a scan stand these again.

        Args:
            image: Of the views.
            valid: (B, D) bool, slices that lie in the scan.
        """
        depth = image.shape[2]
        number = torch.arange(depth, device=image.device)
        first = valid.int().argmax(1)
        last = depth - 1 - valid.int().flip(1).argmax(1)
        shown = [c for c in range(self.channels) if c not in self.masks]
        parts, images = [], image[:, shown]
        for step in range(-(self.neighbours // 2), self.neighbours // 2 + 1):
            at = (number + step).expand(len(image), depth)
            at = torch.minimum(torch.maximum(at, first[:, None]), last[:, None])
            at = at.clamp(0, depth - 1)[:, None, :, None, None]
            parts.append(images.gather(2, at.expand_as(images)))
        if self.masks:
            parts.append((image[:, list(self.masks)] > 0.5).to(image.dtype))
        return torch.cat(parts, 1)

    def mixing(self) -> nn.Module | None:
        """The 1 x 1 convolution; None where there is none."""
        if not self.compress:
            return None
        mix = nn.Conv3d(self.width, self.compress, 1)
        shown = self.channels - len(self.masks)
        middle = shown * (self.neighbours // 2)
        with torch.no_grad():
            nn.init.normal_(mix.weight, std=0.02)
            mix.weight[:, middle : middle + shown] = 1.0 / shown
        return mix


def keeps_slices(backbone: Backbone) -> bool:
    """Whether every slice has its own place in all maps: 2D, or never coarser in z."""
    return all(stride[0] == 1 for stride in backbone.strides)


# Paper: Joint 3D classification; Alice B, COVID.
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
        stacked: What the encoder sees of each slice beside it; None: nothing.
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
        stacked: Stacked | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.stacked = stacked
        self.mix = None if stacked is None else stacked.mixing()
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

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> scores (B, K)."""
        return self.scores(image).classes

    def scores(self, image: Tensor, valid: Tensor | None = None) -> Scores:
        """All that is told.

        Args:
            image: (B, C, D, H, W).
            valid: (B, D) bool, slices that lie in the scan; all where None.
        """
        if self.pooling is not None:
            return self._slice_by_slice(image, valid)
        maps = self.encoder.maps(image)
        vector = self.pool(maps[-1])
        return Scores(
            self.head(vector),
            None if self.types is None else self.types(vector),
            None if self.slices is None else self.slices(maps, image.shape[2]),
        )

    def _slice_by_slice(self, image: Tensor, valid: Tensor | None) -> Scores:
        assert self.pooling is not None
        if valid is None:
            valid = torch.ones(
                image.shape[0], image.shape[2], dtype=torch.bool, device=image.device
            )
        if self.stacked is not None:
            image = self.stacked(image, valid)
        if self.mix is not None:
            image = self.mix(image)
        bag = slice_vectors(self.encoder, image, valid, self.pool)
        vector, attention = self.pooling(bag, valid)
        return Scores(
            self.head(vector),
            None if self.types is None else self.types(vector),
            None if self.slices is None else self.slices(bag)[..., 0],
            attention,
            None if torch.is_grad_enabled() else self.head(bag),
        )


class JoinedClassifiers(nn.Module):
    """Several classifiers of the same classes; the mean of their logits.

    Args:
        networks: ClassifyNetworks that see the same views.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks)

    @property
    def encoder(self) -> Backbone:
        """The first one's: it says what views are made."""
        first = self.members[0]
        assert isinstance(first, ClassifyNetwork)
        return first.encoder

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> scores (B, K)."""
        return self.scores(image).classes

    def scores(self, image: Tensor, valid: Tensor | None = None) -> Scores:
        """As ``ClassifyNetwork.scores``."""
        told = [
            member.scores(image, valid)
            for member in self.members
            if isinstance(member, ClassifyNetwork)
        ]
        means = {}
        for field in fields(Scores):
            parts = [getattr(scores, field.name) for scores in told]
            if parts[0] is not None:
                means[field.name] = torch.stack(parts).float().mean(0)
        return Scores(**means)


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


# Paper: Hundred Million IV-E.
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
        average: Momentum of the weight average; 0 keeps none.

    Source: Hundred Million, section IV-E (types and slices as auxiliary tasks).
    Differs from the paper: which does not tell the weights of its auxiliary tasks.
    """

    network: ClassifyNetwork

    def __init__(
        self,
        network: ClassifyNetwork,
        spec: ViewSpec,
        space: Space,
        weights: Weights,
        *,
        smoothing: float = 0.0,
        average: float = 0.0,
    ) -> None:
        super().__init__(network, average)
        self.spec, self.space, self.terms = spec, space, weights
        self.smoothing = smoothing
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
        scores = self.network.scores(view.flat(), valid)
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
            counts = self.weights[truth.classes].sum()
            error = evened(error, counts)
            name = "cross_entropy"
        self._right = {"batch_accuracy": share.detach()}
        return {name: error}

    def _slices(
        self, scores: Scores, truth: Truth, view: View, valid: Tensor
    ) -> Tensor:
        assert scores.slices is not None
        marks = slices_in_view(truth, view.affine[:, 0], view.size, valid)
        return partial_binary_cross_entropy(scores.slices, marks)

    def monitors(self) -> dict[str, Tensor]:
        """Share of the last batch told rightly."""
        return dict(self._right)


def slices_inside(view: View) -> Tensor:
    """(B, D) bool: slices of the one view of each scan that show any of the scan."""
    return view.valid[:, 0].flatten(2).any(2)
