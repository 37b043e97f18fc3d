"""Alice: two patients' crops of one anatomy, hidden patches, and questions of CASA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.config import as_in, option
from homolog.geometry.affine import Index
from homolog.geometry.correspondence import token_grid
from homolog.losses.contrast import info_nce
from homolog.losses.similarity import cosine_distance, hidden_patch_error, to_patches
from homolog.methods.base import CropConfig, MaskedCropConfig, Method, PairsWanted
from homolog.nn.heads import (
    BottleneckHead,
    DenseDecoder,
    Projector,
    SemanticAlignment,
    TokenDecoder,
    tokens_of,
)
from homolog.nn.masking import (
    cells_shown,
    hidden_patches,
    to_voxels,
    visible_tokens,
)
from homolog.nn.optim import Teacher
from homolog.views.view import Intensity, Matched, View, Views, ViewSpec

# Settings and recipes of Alice.


@dataclass(frozen=True)
class AliceConfig(MaskedCropConfig):
    """Settings of Alice; the defaults suit a small machine."""

    mask_ratio: float = as_in(MaskedCropConfig, "mask_ratio", default=0.75)
    rotate_deg: tuple[float, float, float] = as_in(
        CropConfig, "rotate_deg", default=(15.0, 15.0, 15.0)
    )
    intensity_probability: float = as_in(
        CropConfig, "intensity_probability", default=0.5
    )

    pairs: str = option(
        "aligned",
        "where the two patients' crops lie: aligned by the store's table of matching "
        "places, at random places, or the same place of the same patient",
        choices=("aligned", "random", "same"),
    )
    least_score: float = option(
        0.7,
        "matches less similar than this are not used; a crop without a match is paired "
        "with itself",
        minimum=-1,
        maximum=1,
    )
    largest_cycle_mm: float = option(
        0.0,
        "matches that lead back further from where they began are not used; 0: any",
        unit="mm",
        minimum=0,
        advanced=True,
    )
    normalise: bool = option(True, "predict patches of mean 0 and std 1", advanced=True)
    weight_reconstruction: float = option(1.0, "weight of l_r", minimum=0)
    weight_between: float = option(1.0, "weight of l_dv, between patients", minimum=0)
    weight_within: float = option(
        1.0, "weight of l_st, the semantic alignment within a crop", minimum=0
    )
    similarity: str = option(
        "info_nce",
        "how the branches are compared; cosine is the paper's default, and settles on "
        "one vector for everything at small batches",
        choices=("info_nce", "cosine"),
    )
    temperature: float = option(0.2, "of InfoNCE", minimum=0.01, advanced=True)
    decoder_width: int = option(
        0, "features inside the decoder; 0: as many as the encoder's tokens", minimum=0,
        advanced=True,
    )  # fmt: skip
    head_hidden: int = option(128, "width inside the heads", minimum=2)
    head_bottleneck: int = option(64, "unit vector inside the heads", minimum=2)
    head_dim: int = option(128, "length of the heads' vectors", minimum=2)
    alignment_dim: int = option(96, "width of the semantic alignment", minimum=2)
    predictor: bool = option(
        False,
        "a perceptron after the online vectors, as in BYOL: the first remedy where the "
        "features collapse",
        advanced=True,
    )
    momentum: float = option(
        0.99, "of the target at the start; rises to 1 over the training", minimum=0,
        maximum=1,
    )  # fmt: skip
    keep: str = option(
        "student", "whose encoder is saved", choices=("student", "teacher")
    )


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "method": {"size": [48, 48, 48], "token_stride": 8},
        "backbone": {
            "name": "vit",
            "image_size": [48, 48, 48],
            "patch": [8, 8, 8],
            "hidden": 96,
            "inner": 384,
            "layers": 4,
            "heads": 4,
        },
        "training": {
            "steps": 800,
            "batch_size": 4,
            "learning_rate": 5e-4,
            "weight_decay": 0.05,
            "beta2": 0.95,
            "warmup_steps": 80,
        },
    },
    # 24 GB: batch 4 pairs of 96^3; 80 GB: 8.
    "gpu": {
        "method": {
            "size": [96, 96, 96],
            "token_stride": 16,
            "decoder_layers": 4,
            "head_hidden": 2048,
            "head_bottleneck": 256,
            "head_dim": 512,
            "alignment_dim": 384,
            "momentum": 0.996,
        },
        "backbone": {"name": "vit"},
        "training": {
            "steps": 20000,
            "batch_size": 4,
            "learning_rate": 1e-4,
            "weight_decay": 0.05,
            "beta2": 0.95,
            "warmup_steps": 1000,
        },
    },
    # Crops of 192 x 192 x 64, ViT-B, batch 64, AdamW (0.9, 0.95) 5e-5, 100k iterations.
    "paper": {
        "method": {
            "size": [64, 192, 192],
            "token_stride": 16,
            "flip": [0.5, 0.5, 0.5],
            "similarity": "cosine",
            "decoder_layers": 8,
            "head_hidden": 2048,
            "head_bottleneck": 256,
            "head_dim": 512,
            "alignment_dim": 768,
            "momentum": 0.996,
        },
        "backbone": {
            "name": "vit",
            "image_size": [64, 192, 192],
            "hidden": 768,
            "inner": 3072,
            "layers": 12,
            "heads": 12,
        },
        "training": {
            "steps": 100_000,
            "batch_size": 8,
            "accumulate": 8,
            "learning_rate": 5e-5,
            "weight_decay": 0.05,
            "beta2": 0.95,
            "warmup_steps": 5000,
        },
    },
}


# The two branches of Alice: encoder, decoder and head; encoder and head.


class Seen(NamedTuple):
    """What the online branch makes of masked crops.

    Attributes:
        visible: (B, n, E) the encoder's visible tokens.
        tokens: (B, N, H) projected tokens of the decoder, all patches.
        pooled: (B, H) their mean.
        asked: (B, H) what is compared with the other patient: the mean, or the
            predictor's reading of it.
        patches: (B, N, P) predicted voxels.
    """

    visible: Tensor
    tokens: Tensor
    pooled: Tensor
    asked: Tensor
    patches: Tensor


class Online(nn.Module):
    """Encoder of visible tokens, decoder of all tokens, head phi.

    The target's head psi is the moving average of phi, so both read the same number of
    features: a decoder of another width is lifted to the encoder's first.
    """

    def __init__(
        self, backbone: Backbone, config: AliceConfig, map_index: int, grid: Index
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.map_index = map_index
        self.grid = grid
        self.patch = backbone.strides[map_index]
        self.mask_ratio = config.mask_ratio
        width = backbone.channels[map_index]
        inside = config.decoder_width or width
        channels: int = backbone.config.in_channels
        voxels = channels * math.prod(self.patch)
        if backbone.drops_tokens:
            self.decoder: nn.Module = TokenDecoder(
                width,
                grid=grid,
                hidden=inside,
                layers=config.decoder_layers,
                out_features=voxels,
            )
        else:
            self.mask_value = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))
            self.decoder = DenseDecoder(
                list(backbone.channels[map_index:]), hidden=inside, out_features=voxels
            )
        self.lift = nn.Linear(inside, width) if inside != width else nn.Identity()
        self.head = BottleneckHead(
            width,
            hidden=config.head_hidden,
            bottleneck=config.head_bottleneck,
            out_features=config.head_dim,
        )
        self.predictor: nn.Module = nn.Identity()
        if config.predictor:
            self.predictor = Projector(
                config.head_dim,
                config.head_dim,
                hidden=config.head_hidden,
                normalise=False,
            )

    def forward(self, image: Tensor, mask: Tensor) -> Seen:
        """Crops (B, C, D, H, W), hidden patches (B, N) bool."""
        if self.backbone.drops_tokens:
            keep = visible_tokens(mask, self.mask_ratio)
            visible: Tensor = self.backbone.forward_visible(image, keep)  # type: ignore[operator]
            features = self.decoder.features(visible, keep)  # type: ignore[operator]
            patches = self.decoder.output(features)  # type: ignore[operator]
        else:
            blocks = to_voxels(mask, self.grid, self.patch)
            hidden = torch.where(blocks, self.mask_value.to(image.dtype), image)
            maps = self.backbone.maps(hidden)[self.map_index :]
            cells = tokens_of(maps[0])
            keep = visible_tokens(mask, self.mask_ratio)
            visible = cells.gather(1, keep[..., None].expand(-1, -1, cells.shape[-1]))
            decoded = self.decoder.features(maps)  # type: ignore[operator]
            patches = tokens_of(self.decoder.output(decoded))  # type: ignore[operator]
            features = tokens_of(decoded)
        tokens = self.head(self.lift(features))
        pooled = tokens.mean(1)
        return Seen(visible, tokens, pooled, self.predictor(pooled), patches)


class Target(nn.Module):
    """Encoder and head psi over whole crops, (B, C, D, H, W) -> (B, N, H).

    Made of the online branch's own modules: the teacher copies it, and is moved towards
    it.
    """

    def __init__(self, online: Online) -> None:
        super().__init__()
        self.backbone = online.backbone
        self.head = online.head
        self.map_index = online.map_index

    def forward(self, image: Tensor) -> Tensor:
        """Whole crops -> projected tokens."""
        maps = self.backbone.maps(image)
        tokens: Tensor = self.head(tokens_of(maps[self.map_index]))
        return tokens


# Side of a pair -> the group that is masked, and the one that the target sees.
_SIDES = {"query": ("query", "query_target"), "key": ("key", "key_target")}


class Alice(Method):
    """Masked crops of two patients at the same anatomy, taught by a slow target.

    Three terms: hidden patches are predicted (Eq. 1); the pooled vector of one
    patient's masked crop resembles the target's of the other patient (Eq. 2); the
    visible tokens read the same out of the online tokens as out of the target's of the
    same crop (CASA, Eq. 3-5).

    The crops are centred on places that a trained anatomical embedding found to match;
    the table of places lies in the store. A crop whose place has no match good enough
    is paired with its own patient; ``same_patient_share`` counts these.

    A ``vit`` encodes the visible tokens only. Other backbones see the crop with hidden
    patches overwritten by a learnt value, and their tokens are the cells of the map of
    ``token_stride``.

    Source: Jiang et al., "Anatomical Invariance Modeling and Semantic Alignment for
    Self-supervised Learning in 3D Medical Image Analysis", ICCV 2023, arXiv 2302.05615.
    Differs from the paper: InfoNCE with the other crops of the batch as negatives by
    default (the paper's table has both equal): with the cosine loss and batches of 4
    the heads gave one vector for every crop after ten steps; heads with layer norm; the
    target of a hidden patch has a std of at least 0.01, and padding is not
    reconstructed; no flips by default, since they hide left from right; backbones that
    cannot drop tokens are masked as in SimMIM instead of by re-grouping windows (Green
    MIM). Of the published code's departures (un-augmented targets, DINO's loss, all
    voxels reconstructed) none is taken.
    """

    Config = AliceConfig
    title: ClassVar[str] = "Alice: anatomical invariance and semantic alignment"
    paper: ClassVar[str] = (
        "Jiang et al., Anatomical Invariance Modeling and Semantic Alignment for "
        "Self-supervised Learning in 3D Medical Image Analysis, ICCV 2023, "
        "arXiv 2302.05615"
    )
    per_rank: ClassVar[Mapping[str, str]] = {
        "between": "negatives are the other crops of the process",
        "within": "negatives are the other crops of the process",
    }
    sees_padding: ClassVar[Mapping[str, str]] = {
        "between": "the vector of a crop is the mean over all of its tokens",
        "within": "all tokens of a crop are asked",
    }
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES
    config: AliceConfig

    def __init__(self, backbone: Backbone, config: AliceConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        index = backbone.map_of_stride(config.token_stride)
        self.patch: Index = backbone.strides[index]
        self.grid: Index = token_grid(self.size, self.patch)
        self.online = Online(backbone, config, index, self.grid)
        self.target = Teacher(Target(self.online))
        self.alignment = SemanticAlignment(
            backbone.channels[index], config.head_dim, config.alignment_dim
        )
        self._raw: dict[str, Tensor] = {}

    def pairs_wanted(self) -> PairsWanted:
        """Matching places of two patients."""
        config = self.config
        return PairsWanted(config.pairs, config.least_score, config.largest_cycle_mm)

    def views(self) -> dict[str, ViewSpec]:
        """Of each side of the pair the crop as it is, and strongly augmented."""
        config = self.config
        p = config.intensity_probability
        strong = Intensity(
            shift_probability=p,
            scale_probability=p,
            gamma_probability=p / 2,
            noise_std=(0.0, 0.05),
            noise_probability=p / 2,
        )
        specs = {}
        for side, (masked, target) in _SIDES.items():
            place = Matched(partner=side == "key")
            specs[masked] = ViewSpec(size=self.size, place=place)
            specs[target] = ViewSpec(
                size=self.size,
                place=place,
                rotate_deg=config.rotate_deg,
                scale=config.scale,
                flip=config.flip,
                intensity=strong,
            )
        return specs

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``reconstruction``, ``between`` and ``within``, weighted."""
        config = self.config
        seen: dict[str, Seen] = {}
        told: dict[str, Tensor] = {}
        errors = []
        for side, (masked, target) in _SIDES.items():
            view = views[masked]
            mask = self.hidden(view, progress)
            seen[side] = self.online(view.flat(), mask)
            told[side] = self.target(views[target].flat())
            errors.append(self._reconstruction(view, seen[side].patches, mask))
        self.watch("tokens", seen["query"].tokens.flatten(0, 1))
        self.watch("global", torch.cat([s.pooled for s in seen.values()]))
        between = [
            self._apart(seen[a].asked, told[b].mean(1))
            for a, b in (("query", "key"), ("key", "query"))
        ]
        within = [self._aligned(seen[side], told[side]) for side in _SIDES]
        raw = {
            "reconstruction": torch.stack(errors).mean(),
            "between": torch.stack(between).sum(),
            "within": torch.stack(within).sum(),
        }
        self._raw = {f"raw_{name}": value.detach() for name, value in raw.items()}
        same = views["query"].case == views["key"].case
        self._raw["same_patient_share"] = same.float().mean()
        weights = {
            "reconstruction": config.weight_reconstruction,
            "between": config.weight_between,
            "within": config.weight_within,
        }
        return {name: weights[name] * value for name, value in raw.items()}

    def hidden(self, view: View, progress: float) -> Tensor:
        """(B V, N) bool, the patches hidden at this point of the training."""
        count = math.prod(self.grid)
        return hidden_patches(view, progress, count, self.config.mask_ratio)

    def _reconstruction(self, view: View, patches: Tensor, mask: Tensor) -> Tensor:
        shown = cells_shown(view, self.patch, self.config.min_valid)
        return hidden_patch_error(
            patches,
            to_patches(view.flat(), self.patch),
            mask & shown,
            normalise=self.config.normalise,
        )

    def _aligned(self, seen: Seen, told: Tensor) -> Tensor:
        """l_st of one crop: answers read from either branch, token by token."""
        online = self.alignment(seen.visible, seen.tokens)
        with torch.no_grad():  # the target's answer depends on the online queries
            target = self.alignment(seen.visible, told)
        return self._apart(online, target)

    def _apart(self, online: Tensor, target: Tensor) -> Tensor:
        """l_s of vectors (..., E) and their targets."""
        if self.config.similarity == "cosine":
            return cosine_distance(online, target)
        # negatives: what the other crops of the batch say
        a, b = online.flatten(0, -2), target.flatten(0, -2)
        pooled = target if target.ndim == 2 else target.mean(1)
        per = len(a) // len(pooled)
        if len(pooled) < 2:
            return cosine_distance(online, target)
        terms = [
            info_nce(
                a[i * per : (i + 1) * per],
                b[i * per : (i + 1) * per],
                torch.cat([pooled[:i], pooled[i + 1 :]]),  # a mask would wait
                self.config.temperature,
            )
            for i in range(len(pooled))
        ]
        return torch.stack(terms).mean()

    def after_step(self, progress: float) -> None:
        """Move the target; its momentum rises to 1 along a cosine."""
        rest = (1.0 - self.config.momentum) * (math.cos(math.pi * progress) + 1) / 2
        self.target.update(Target(self.online), 1.0 - rest)

    def encoder(self) -> Backbone:
        """The online encoder (``keep`` chooses)."""
        if self.config.keep == "teacher":
            target: Target = self.target.module  # type: ignore[assignment]
            return target.backbone
        return self.online.backbone

    def monitors(self) -> dict[str, Tensor]:
        """Raw terms, pairs of one patient, spread of tokens and of pooled vectors."""
        return {**super().monitors(), **self._raw}
