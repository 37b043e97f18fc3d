"""Heads between a backbone and a loss: projectors of vectors and of dense maps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from homolog.distributed import sum_over_ranks, sum_over_ranks_with_gradient
from homolog.geometry.affine import Index
from homolog.losses.similarity import cosine_matrix, full_precision, unit

# One score per slice from the maps of a 3D encoder.


class DepthHead(nn.Module):
    """Mean and largest value of every map's planes, one linear layer per slice.

    Coarse maps are interpolated along z; the fine ones tell neighbours apart.

    Args:
        channels: Of the maps.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        width = 2 * sum(channels)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, 1)

    def forward(self, maps: Sequence[Tensor], depth: int) -> Tensor:
        """Maps (B, E_i, d_i, h_i, w_i) -> (B, ``depth``) logits."""
        parts = []
        for features in maps:
            plane = features.flatten(3)
            both = torch.cat([plane.mean(3), plane.amax(3)], 1)  # (B, 2 E_i, d_i)
            parts.append(
                nn.functional.interpolate(
                    both, size=depth, mode="linear", align_corners=False
                )
            )
        scores: Tensor = self.output(self.norm(torch.cat(parts, 1).mT))[..., 0]
        return scores


_NORMS: dict[str, type[nn.Module]] = {
    "layer": nn.LayerNorm,
    "batch": nn.BatchNorm1d,
}


class Projector(nn.Module):
    """A small multi-layer perceptron on the last axis, (..., E_in) -> (..., E_out).

    Args:
        in_features: E_in.
        out_features: E_out.
        hidden: Width of the inner layers.
        layers: Number of linear layers, at least 1.
        normalise: Scale the result to unit length, in float32.
        norm: Between the layers. ``layer`` where a sample is compared with others one
            by one: batch norm would tell which keys came from the same batch. ``batch``
            for clusters: with layer norm all samples start out nearly parallel, codes
            are uniform, and features collapse.

    Source: methods reference 1.5 and S 3.14.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: int,
        layers: int = 2,
        normalise: bool = True,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a projector needs at least 1 layer, got {layers}.")
        if norm not in _NORMS:
            known = ", ".join(sorted(_NORMS))
            raise ValueError(f"a projector's norm is one of {known}, got {norm!r}.")
        widths = [in_features, *[hidden] * (layers - 1)]
        parts: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            parts += [nn.Linear(narrow, wide), _NORMS[norm](wide), nn.GELU()]
        parts.append(nn.Linear(widths[-1], out_features))
        self.layers = nn.Sequential(*parts)
        self.normalise = normalise

    def forward(self, features: Tensor) -> Tensor:
        """(..., E_in) -> (..., E_out)."""
        flat = features.reshape(-1, features.shape[-1])
        projected: Tensor = self.layers(flat).reshape(*features.shape[:-1], -1)
        return unit(projected) if self.normalise else projected


# Paper: Alice 3.1, heads.
class BottleneckHead(nn.Module):
    """Three-layer perceptron, a bottleneck of unit length, then unit prototypes.

    Args:
        in_features: E_in.
        hidden: Width of the inner layers.
        bottleneck: Length of the vector that is scaled to unit length.
        out_features: E_out.

    Source: Caron et al., ICCV 2021 (DINO), appendix C; Alice, section 3.2.
    Differs from the paper: layer norm between the layers (see Projector).
    """

    def __init__(
        self, in_features: int, *, hidden: int, bottleneck: int, out_features: int
    ) -> None:
        super().__init__()
        self.narrow = Projector(in_features, bottleneck, hidden=hidden, layers=3)
        self.wide = nn.Parameter(torch.empty(out_features, bottleneck))
        nn.init.trunc_normal_(self.wide, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(..., E_in) -> (..., E_out), cosines with the rows of ``wide``, float32."""
        return cosine_matrix(self.narrow(features), self.wide)


def tokens_of(maps: Tensor) -> Tensor:
    """(B, E, d, h, w) -> (B, N, E), tokens in z, y, x order (x fastest)."""
    return maps.flatten(2).mT


def pooled(maps: Tensor) -> Tensor:
    """(B, E, d, h, w) -> (B, E), the mean over the grid."""
    return maps.flatten(2).mean(dim=2)


def pooled_twice(maps: Tensor) -> Tensor:
    """(B, E, d, h, w) -> (B, 2 E), the mean over the grid, then the largest value.

    Source: Ghesu et al., arXiv 2201.01283, section IV-E.
    """
    return torch.cat([pooled(maps), maps.flatten(2).amax(dim=2)], dim=1)


class DenseDecoder(nn.Module):
    """A light reading of feature maps: one vector per cell of a chosen map.

    Every map at least as coarse as the chosen one is projected, enlarged to its grid
    and added; one convolution mixes neighbours.

    Args:
        channels: Channels of the maps, fine to coarse, the chosen one first.
        hidden: Width inside.
        out_features: Values per cell.
    """

    def __init__(self, channels: list[int], *, hidden: int, out_features: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Conv3d(c, hidden, 1) for c in channels)
        self.mix = nn.Sequential(
            nn.GroupNorm(1, hidden),
            nn.GELU(),
            nn.Conv3d(hidden, hidden, 3, padding=1),
            nn.GELU(),
        )
        self.output = nn.Conv3d(hidden, out_features, 1)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Maps (B, E_i, d_i, h_i, w_i), the chosen one first -> (B, out, d, h, w)."""
        decoded: Tensor = self.output(self.features(maps))
        return decoded

    def features(self, maps: tuple[Tensor, ...]) -> Tensor:
        """The same before the output layer, (B, hidden, d, h, w)."""
        grid = maps[0].shape[2:]
        total = self.inputs[0](maps[0])
        for layer, features in zip(self.inputs[1:], maps[1:], strict=True):
            total = total + nn.functional.interpolate(
                layer(features), size=grid, mode="trilinear", align_corners=False
            )
        mixed: Tensor = self.mix(total)
        return mixed


class TokenDecoder(nn.Module):
    """A small transformer from visible tokens to a vector for every patch.

    Args:
        in_features: Size of the encoder's tokens.
        grid: Patches (d, h, w) of the whole crop.
        hidden: Width inside; the number of heads is the largest that divides it.
        layers: Transformer blocks.
        out_features: Values per patch.

    Source: He et al., CVPR 2022 (MAE), section 3.
    """

    def __init__(
        self,
        in_features: int,
        *,
        grid: Index,
        hidden: int,
        layers: int,
        out_features: int,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(in_features, hidden)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, hidden))
        nn.init.normal_(self.mask_token, std=0.02)
        self.places: Tensor
        self.register_buffer("places", sine_places(grid, hidden), persistent=False)
        heads = next(h for h in (16, 12, 8, 6, 4, 3, 2, 1) if hidden % h == 0)
        block = nn.TransformerEncoderLayer(
            hidden,
            heads,
            4 * hidden,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            block, layers, norm=nn.LayerNorm(hidden), enable_nested_tensor=False
        )
        self.output = nn.Linear(hidden, out_features)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Tokens (B, n, E) at patches ``visible`` (B, n) -> (B, N, out)."""
        decoded: Tensor = self.output(self.features(tokens, visible))
        return decoded

    def features(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """The same before the output layer, (B, N, hidden)."""
        entered = self.enter(tokens)
        batch, _, hidden = entered.shape
        count = self.places.shape[0]
        full = self.mask_token.to(entered.dtype).expand(batch, count, hidden)
        index = visible[:, :, None].expand(-1, -1, hidden)
        full = full.scatter(1, index, entered) + self.places.to(entered.dtype)
        decoded: Tensor = self.blocks(full)
        return decoded


def sine_places(grid: Index, dim: int) -> Tensor:
    """Fixed position vectors of a grid, (N, dim), x fastest.

    Each axis gets a third of the features: sines and cosines of its index at
    geometrically growing wavelengths; features left over are 0.

    Source: Vaswani et al., NeurIPS 2017, per axis.
    """
    waves = dim // 6
    rate = 10_000.0 ** (-torch.arange(waves) / max(waves, 1))
    places = torch.zeros(*grid, dim)
    for axis, count in enumerate(grid):
        angle = torch.arange(count)[:, None] * rate
        shape = [1, 1, 1, 2 * waves]
        shape[axis] = count
        part = torch.cat([angle.sin(), angle.cos()], 1).reshape(shape)
        places[..., 2 * waves * axis : 2 * waves * (axis + 1)] = part
    return places.reshape(-1, dim)


# Many vectors of one bag (slices of a scan) become one: mean, largest, attention.


POOLINGS = ("attention", "mean", "max")


class InstancePooling(nn.Module):
    """A bag's vectors -> one vector and the share each had in it.

    Args:
        features: Length of a vector (E).
        kind: ``attention`` weighs by what is seen (gated attention), ``mean`` counts
            all alike, ``max`` takes the largest value of each feature.
        hidden: Width of the attention.

    Source: Ilse et al., ICML 2018, Eq. 7 and 9.
    Differs from the paper: the attention sees layer-normalised vectors.
    """

    def __init__(self, features: int, kind: str = "attention", hidden: int = 128):
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {kind!r}.")
        self.kind = kind
        if kind == "attention":
            self.norm = nn.LayerNorm(features)
            self.value = nn.Linear(features, hidden)
            self.gate = nn.Linear(features, hidden)
            self.weight = nn.Linear(hidden, 1)

    def forward(self, bag: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Pool.

        Args:
            bag: (B, N, E).
            known: (B, N) bool; the others are left out. All count where none is known.

        Returns:
            (B, E), and the share of each vector (B, N) float32; shares sum to 1. Of
            ``max`` the share of features that came from it.
        """
        known = known | ~known.any(1, keepdim=True)
        if self.kind == "max":
            low = torch.finfo(bag.dtype).min
            largest, place = bag.masked_fill(~known[..., None], low).max(1)
            shares = nn.functional.one_hot(place, bag.shape[1]).float().mean(1)
            return largest, shares
        if self.kind == "mean":
            shares = known.float() / known.sum(1, keepdim=True)
        else:
            seen = self.norm(bag)
            inner = torch.tanh(self.value(seen)) * torch.sigmoid(self.gate(seen))
            worth = self.weight(inner)[..., 0].float()
            shares = worth.masked_fill(~known, float("-inf")).softmax(1)
        return torch.einsum("bn,bne->be", shares.to(bag.dtype), bag), shares


# A feature pyramid: coarse maps tell the fine ones where in the body they are.


class FeaturePyramid(nn.Module):
    """Top-down pathway: every map gets what all coarser maps know.

    Each map is projected to one width; from the coarsest on, the sum so far is enlarged
    (trilinear) and added to the next finer one.

    Args:
        channels: Channels of the maps, fine to coarse.
        width: Channels of every result.
        first: Maps before this one are handed on as they are.

    Source: Lin et al., "Feature Pyramid Networks", CVPR 2017, with three axes.
    Differs from the paper: trilinear instead of nearest enlargement (blocks of equal
    features would blur the peak of a similarity map); the 3^3 smoothing belongs to the
    heads that read a map.
    """

    def __init__(self, channels: Sequence[int], width: int, first: int = 0) -> None:
        super().__init__()
        self.width = width
        self.first = first
        self.lateral = nn.ModuleList(nn.Conv3d(c, width, 1) for c in channels[first:])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, E_i, d_i, h_i, w_i) -> as many maps (B, width, d_i, h_i, w_i)."""
        rest = maps[self.first :]
        flat = [layer(m) for layer, m in zip(self.lateral, rest, strict=True)]
        found = [flat[-1]]
        for finer in reversed(flat[:-1]):
            above = functional.interpolate(
                found[0], size=finer.shape[2:], mode="trilinear", align_corners=False
            )
            found.insert(0, finer + above)
        return (*maps[: self.first], *found)


class PlaceHead(nn.Sequential):
    """Reads one map of a pyramid: 3^3 convolution, then the embedding of every cell."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__(
            nn.Conv3d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(width, dim, 1),
        )


# CASA: both branches are asked the same questions, and must answer alike.


# Paper: Alice Eq. 3, 4.
class SemanticAlignment(nn.Module):
    """Conditional anatomical semantic alignment: what the visible tokens read out.

    The visible tokens of a masked crop are the queries; keys and values are tokens of
    the online or of the target branch. Both branches share all weights, so two equal
    sets of tokens give equal answers.

    Args:
        query_features: E_v, features of the encoder's visible tokens.
        token_features: E_h, features of the projected tokens.
        dim: C, width inside and of the answer.

    Source: Jiang et al., "Anatomical Invariance Modeling and Semantic Alignment for
    Self-supervised Learning in 3D Medical Image Analysis", ICCV 2023 (Alice), Eq. 3-4.
    Differs from the published code: one head, no residual from the query (both answers
    would share it and be alike for free), no feed-forward layer; as the paper has it.
    """

    def __init__(self, query_features: int, token_features: int, dim: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(query_features)
        self.token_norm = nn.LayerNorm(token_features)
        self.query = nn.Linear(query_features, dim, bias=False)
        self.key = nn.Linear(token_features, dim, bias=False)
        self.value = nn.Linear(token_features, dim, bias=False)
        self.answer = nn.Linear(dim, dim)

    def forward(self, visible: Tensor, tokens: Tensor) -> Tensor:
        """Visible tokens (B, n, E_v) and tokens (B, N, E_h) -> answers (B, n, C)."""
        queries = self.query(self.query_norm(visible))
        tokens = self.token_norm(tokens)
        weights = attention(queries, self.key(tokens))
        answers: Tensor = self.answer(_read(weights, self.value(tokens)))
        return answers


@full_precision
def attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Softmax of q . k / sqrt(C): (B, n, C), (B, N, C) -> (B, n, N), rows sum to 1."""
    scores: Tensor = queries @ keys.mT * queries.shape[-1] ** -0.5
    return scores.softmax(-1)


@full_precision
def _read(weights: Tensor, values: Tensor) -> Tensor:
    return weights @ values


# Features centred and scaled as they vary between samples.


class Standardise(nn.Module):
    """Each feature with mean 0 and variance 1 over the samples.

    Features of one kind of scan are nearly the same vector: what tells patients apart
    is small beside what they share, and a linear layer would need very long to find it.

    In training a batch, of all processes, is centred and scaled by its own numbers, and
    running averages are kept; in evaluation by the averages. So are small batches in
    training: three scans, perhaps of one class, say little of how scans vary.

    Args:
        width: Features F.
        least: Samples from which on a batch has its own numbers.
        momentum: Weight of a batch in the averages; of the first ones, more.
        eps: Added to the variance, so that a feature that hardly varies stays small.

    Source: the linear classifiers of He et al., Masked Autoencoders Are Scalable Vision
        Learners, CVPR 2022, A.1 (batch norm without affine before the last layer).
    Differs from the paper: averages for small batches.
    """

    def __init__(
        self, width: int, *, least: int = 8, momentum: float = 0.1, eps: float = 1e-3
    ) -> None:
        super().__init__()
        self.least, self.momentum, self.eps = least, momentum, eps
        self.mean: Tensor
        self.square: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        """(..., F) -> (..., F) in float32.

        Args:
            features: Of samples.
            counts: (...) bool, which of them count; all where None.
        """
        rows = features.float()
        mean, square = self.mean, self.square
        if self.training:
            weight = rows.new_ones(rows.shape[:-1]) if counts is None else counts
            weight = weight.flatten().float()
            total = sum_over_ranks(weight.sum())
            share = (weight / total.clamp_min(1.0))[:, None]
            flat = rows.flatten(0, -2)
            # no matrix product: autocast would round it to bfloat16
            own_mean = sum_over_ranks_with_gradient((share * flat).sum(0))
            own_square = sum_over_ranks_with_gradient((share * flat.square()).sum(0))
            self._keep(own_mean.detach(), own_square.detach(), total)
            many = total >= self.least  # stays on the device
            mean = torch.where(many, own_mean, self.mean)
            square = torch.where(many, own_square, self.square)
        spread = (square - mean.square()).clamp_min(0.0) + self.eps
        return (rows - mean) * spread.rsqrt()

    @torch.no_grad()
    def _keep(self, mean: Tensor, square: Tensor, total: Tensor) -> None:
        """Move the averages; not where nothing counts."""
        some = (total > 0).float()
        self.batches += some
        rate = some * (1.0 / self.batches.clamp_min(1.0)).clamp_min(self.momentum)
        self.mean.lerp_(mean, rate)
        self.square.lerp_(square, rate)
