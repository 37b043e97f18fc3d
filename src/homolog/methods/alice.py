"""Alice: two patients' crops of one anatomy, hidden patches, and questions of CASA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.config import as_in, option
from homolog.distributed import mean_over_ranks
from homolog.geometry.affine import Index
from homolog.geometry.correspondence import overlap, token_grid
from homolog.losses.assignment import token_codes
from homolog.losses.contrast import info_nce
from homolog.losses.similarity import cosine_distance, hidden_patch_error, to_patches
from homolog.methods.base import (
    Case,
    CropConfig,
    MaskedCropConfig,
    Method,
    PairsWanted,
)
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
    keys_of,
    random_mask,
    to_voxels,
    visible_tokens,
)
from homolog.nn.optim import Teacher
from homolog.recipes import PaperScans, Sources
from homolog.views.view import Intensity, Matched, View, Views, ViewSpec

# Settings and recipes of Alice.


# Paper: Alice sum of losses; Alice Table 11.
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
        "matches of a smaller cosine are not used; a crop without a match is paired "
        "with itself. What a cosine means is the embedding's own (a young one "
        "gives 0.99 to everything); the next two mean the same for all",
        minimum=-1,
        maximum=1,
        advanced=True,
    )
    largest_cycle_mm: float = option(
        10.0,
        "matches that lead back further from where they began are not used; 0: any",
        unit="mm",
        minimum=0,
    )
    best_share: float = option(
        1.0,
        "share of the matches that is used, the most similar first",
        minimum=0.01,
        maximum=1,
        advanced=True,
    )
    normalise: bool = option(True, "predict patches of mean 0 and std 1", advanced=True)
    predict: str = option(
        "voxels",
        "what hidden patches are predicted as: voxels (the paper), or codes: how the "
        "target assigns each to the head_dim outputs of its head, as iBOT does; more "
        "outputs (1000 and more) make finer codes",
        choices=("voxels", "codes"),
    )
    alignment: str = option(
        "casa",
        "what l_st compares: casa, answers to the visible tokens' questions (the "
        "paper), or direct: the decoder's tokens with the target's, as SIM does",
        choices=("casa", "direct"),
    )
    code_temperature: float = option(
        0.1, "of predicted codes", minimum=0.01, advanced=True
    )
    target_code_temperature: float = option(
        0.04, "of the target's codes", minimum=0.01, advanced=True
    )
    weight_reconstruction: float = option(1.0, "weight of l_r", minimum=0)
    weight_between: float = option(1.0, "weight of l_dv, between patients", minimum=0)
    weight_within: float = option(
        1.0, "weight of l_st, the semantic alignment within a crop", minimum=0
    )
    similarity: str = option(
        "info_nce",
        "how the branches are compared; cosine is the paper's default, and settles on "
        "one vector for everything at small batches unless there is a predictor; auto: "
        "info_nce, or, where crops show more than half of a scan along every axis and "
        "so none shows another body part, cosine with a predictor",
        choices=("auto", "info_nce", "cosine"),
    )
    negatives: str = option(
        "all",
        "what info_nce tells apart: all other crops of the batch, or those elsewhere, "
        "of other body parts: whose boxes share nothing with the own ones, as far as "
        "the matching places of scans tell",
        choices=("all", "elsewhere"),
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
    target_mask_ratio: float = option(
        0.0,
        "share of patches hidden from the target, too; the paper's ablation, which is "
        "best at 0",
        minimum=0,
        maximum=0.95,
        advanced=True,
    )
    momentum: float = option(
        0.99, "of the target at the start; rises to 1 over the training", minimum=0,
        maximum=1,
    )  # fmt: skip
    keep: str = option(
        "student", "whose encoder is saved", choices=("student", "teacher")
    )


# Paper: Alice 4.2, training.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "method": {
            "size": [48, 48, 48],
            "token_stride": 8,
            "similarity": "auto",
            "negatives": "elsewhere",
        },
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
            "similarity": "auto",
            "negatives": "elsewhere",
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
    # Crops of 192 x 192 x 64, ViT-B, batch 64, AdamW (0.9, 0.95) 5e-5, 100k iterations,
    # warm-up of 100 epochs. The cosine without a predictor is the paper's, and
    # collapses: the heads of a ViT gave one vector for every crop within 31 steps of
    # batch 4. The recipe info_nce is the same with what prevents it.
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
            "warmup_epochs": 100.0,
        },
    },
}
# The same with the paper's other similarity (its Table 7 has both equal).
_PAPER = RECIPES["paper"]
_TOLD_APART = {"similarity": "info_nce", "negatives": "elsewhere"}
RECIPES = {
    **RECIPES,
    "info_nce": {**_PAPER, "method": {**_PAPER["method"], **_TOLD_APART}},
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


# Paper: Alice 3.1, visible tokens.
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


# Paper: Alice 3.1, target.
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


def _without(rows: Tensor, number: int) -> Tensor:
    return torch.cat([rows[:number], rows[number + 1 :]])


def in_body(view: View) -> tuple[Tensor, Tensor]:
    """Views (B V, 4, 4) in a frame of the body, and its number (B V,).

    Where no matching places are known, every scan is a frame of its own.
    """
    count = view.affine.shape[1]
    if view.to_body is None or view.frame is None:
        return view.affine.flatten(0, 1), view.case.repeat_interleave(count)
    placed = view.to_body[:, None] @ view.affine
    return placed.flatten(0, 1), view.frame.repeat_interleave(count)


# Crops longer than this share of scans along every axis all show one place.
_HALF = 0.5
# Shares of a box that are rounding.
_TOUCH = 1e-6
# Another stream of masks for the second side of a pair.
_KEY_SIDE = 0x2545F4914F6CDD1D
# Momentum of the centre of the target's outputs, as in DINO and iBOT.
_CENTRE_MOMENTUM = 0.9
# Side of a pair -> the group that is masked, and the one that the target sees.
_SIDES = {"query": ("query", "query_target"), "key": ("key", "key_target")}


_ORIGINS: Sources = {
    "paper: 4.2": "method.size backbone.image_size training.steps training.batch_size "
    "training.accumulate training.learning_rate training.beta2 training.warmup_epochs "
    "method.mask_ratio",
    "paper: ViT-B of patches of 16": "backbone.name backbone.hidden backbone.inner "
    "backbone.layers backbone.heads method.token_stride",
    "paper: 3.1, flips": "method.flip",
    "paper: Table 7": "method.similarity",
    "code": "method.head_hidden method.head_bottleneck method.head_dim method.momentum",
    "own: the paper says lightweight": "method.decoder_layers",
    "own: as wide as the tokens": "method.alignment_dim",
    "own: not printed": "training.weight_decay",
}
SOURCES: Mapping[str, Sources] = {
    "paper": _ORIGINS,
    "info_nce": {**_ORIGINS, "paper: 4.4": "method.negatives"},
}


# Paper: Alice A.1, window.
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
    Differs from the paper: InfoNCE by default (the paper's table has both equal): with
    the cosine loss and batches of 4 the heads gave one vector for every crop after ten
    steps; its negatives are crops of other body parts, as in the paper, where
    ``negatives=elsewhere`` (recipes cpu and gpu): crops that share a place with the own
    pair by matching places of the store, or within a scan, are none; warm-up of 100
    epochs in steps of the store at hand; heads with layer norm; the
    target of a hidden patch has a std of at least 0.01, and padding is not
    reconstructed; no flips by default, since they hide left from right; backbones that
    cannot drop tokens are masked as in SimMIM instead of by re-grouping windows (Green
    MIM); with ``predict=codes`` (iBOT's objective) a decoder over masked crops predicts
    the codes where iBOT's encoder does, and with ``alignment=direct`` (SIM's) tokens
    are compared place by place, without SIM's code of relative positions. Of the
    published code's departures (un-augmented targets, DINO's loss, all
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
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES
    paper_scans: ClassVar[PaperScans | None] = PaperScans("A.1", (-125.0, 255.0))
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES
    config: AliceConfig
    centre: Tensor

    def __init__(self, backbone: Backbone, config: AliceConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        index = backbone.map_of_stride(config.token_stride)
        self.patch: Index = backbone.strides[index]
        self.grid: Index = token_grid(self.size, self.patch)
        self.online = Online(backbone, config, index, self.grid)
        self.target = Teacher(Target(self.online))
        self.alignment: SemanticAlignment | None = None
        if config.alignment == "casa":
            self.alignment = SemanticAlignment(
                backbone.channels[index], config.head_dim, config.alignment_dim
            )
        if config.predict == "codes":
            self.register_buffer("centre", torch.zeros(config.head_dim))
        self._told: list[Tensor] = []
        self._raw: dict[str, Tensor] = {}

    def pairs_wanted(self) -> PairsWanted:
        """Matching places of two patients.

        Paper: Alice 4.2, pairs.
        """
        config = self.config
        return PairsWanted(
            config.pairs, config.least_score, config.largest_cycle_mm, config.best_share
        )

    @classmethod
    def settled(
        cls, settings: Mapping[str, Any], cases: Sequence[Case]
    ) -> dict[str, Any]:
        """How vectors are compared, by how much of a scan a crop shows.

        Paper: Alice Table 7.
        """
        found = dict(settings)
        if found["similarity"] == "auto":
            shares = np.array(found["size"]) / [case.card.shape for case in cases]
            alike = bool((np.median(shares, axis=0) > _HALF).all())
            found["similarity"] = "cosine" if alike else "info_nce"
            found["predictor"] = found["predictor"] or alike
        return found

    def remarks(self, classes: Mapping[str, int]) -> list[str]:
        """How vectors are compared, where that was decided or may go wrong.

        Paper: Alice Table 7.
        """
        config = self.config
        if config.similarity != "cosine":
            return []
        if config.predictor:
            return ["vectors are compared by their cosines, read by a predictor."]
        return [
            "vectors are compared by their cosines without a predictor, as published: "
            "watch global_std and tokens_std, which fall to 0 where the heads give one "
            "vector for everything (--set method.predictor=true or "
            "method.similarity=info_nce prevents it)."
        ]

    def views(self) -> dict[str, ViewSpec]:
        """Of each side of the pair the crop as it is, and strongly augmented.

        Paper: Alice 3.1, augmentations.
        """
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
        """``reconstruction``, ``between`` and ``within``, weighted.

        Paper: Alice Eq. 2.
        """
        config = self.config
        seen: dict[str, Seen] = {}
        told: dict[str, Tensor] = {}
        errors = []
        for side, (masked, target) in _SIDES.items():
            view = views[masked]
            mask = self.hidden(view, progress)
            if side == "key":
                mask = self._another(views, progress, mask)
            seen[side] = self.online(view.flat(), mask)
            told[side] = self.target(self._shown(views[target], progress))
            errors.append(self._reconstruction(view, seen[side], mask))
        self.watch("tokens", seen["query"].tokens.flatten(0, 1))
        self.watch("global", torch.cat([s.pooled for s in seen.values()]))
        apart = self._elsewhere(views)
        between = [
            self._apart(seen[a].asked, told[b].mean(1), apart)
            for a, b in (("query", "key"), ("key", "query"))
        ]
        within = [self._aligned(seen[side], told[side], apart) for side in _SIDES]
        raw = {
            "reconstruction": torch.stack(errors).mean(),
            "between": torch.stack(between).sum(),
            "within": torch.stack(within).sum(),
        }
        self._raw = {f"raw_{name}": value.detach() for name, value in raw.items()}
        same = views["query"].case == views["key"].case
        self._raw["same_patient_share"] = same.float().mean()
        if apart is not None:
            others = max(1, len(apart) - 1)
            self._raw["elsewhere_share"] = apart.float().sum(1).mean() / others
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

    def _shown(self, view: View, progress: float) -> Tensor:
        """What the target sees, (B V, C, D, H, W): whole crops, but for the ablation.

        Paper: Alice Table 10.
        """
        ratio, image = self.config.target_mask_ratio, view.flat()
        if ratio == 0:
            return image
        mask = hidden_patches(view, progress, math.prod(self.grid), ratio)
        return image.masked_fill(to_voxels(mask, self.grid, self.patch), 0.0)

    def _another(self, views: Views, progress: float, mask: Tensor) -> Tensor:
        """The mask of the key, another one where both sides are one patient's crop.

        Paper: Alice 3.1, masks.
        """
        query, key = views["query"], views["key"]
        same = (query.case == key.case).repeat_interleave(key.affine.shape[1])
        keys = keys_of(key, progress) ^ _KEY_SIDE
        other = random_mask(keys, mask.shape[1], self.config.mask_ratio)
        return torch.where(same[:, None], other, mask)

    def _elsewhere(self, views: Views) -> Tensor | None:
        """(B, B) bool, which pairs show other body parts than each; None: all others.

        Places of two patients are compared where matching places link their scans;
        otherwise only those of one scan are.

        Paper: Alice 4.4, InfoNCE.
        """
        if self.config.negatives == "all":
            return None
        sides = [views[masked] for masked, _ in _SIDES.values()]
        shown = [in_body(view) for view in sides]
        affine = torch.cat([place for place, _ in shown])
        frame = torch.cat([number for _, number in shown])
        shared = overlap(affine[:, None], self.size, affine[None], self.size) > _TOUCH
        shared &= frame[:, None] == frame[None]
        count = len(shared) // 2  # of queries, then as many keys
        alike = shared.reshape(2, count, 2, count).any(2).any(0)
        own = torch.eye(count, device=alike.device, dtype=torch.bool)
        return ~(alike | alike.mT | own)

    def _reconstruction(self, view: View, seen: Seen, mask: Tensor) -> Tensor:
        """l_r of hidden patches: of their voxels, or of the target's codes for them."""
        config = self.config
        shown = cells_shown(view, self.patch, config.min_valid)
        if config.predict == "codes":
            # of the same crop, whole: a code belongs to a place
            told = self.target(view.flat())
            self._told.append(told.detach().flatten(0, 1).mean(0))
            return token_codes(
                seen.tokens,
                told,
                self.centre,
                mask & shown,
                config.code_temperature,
                config.target_code_temperature,
            )
        return hidden_patch_error(
            seen.patches,
            to_patches(view.flat(), self.patch),
            mask & shown,
            normalise=config.normalise,
        )

    def _aligned(self, seen: Seen, told: Tensor, apart: Tensor | None = None) -> Tensor:
        """l_st of one crop: answers read from either branch, token by token.

        Paper: Alice Eq. 5; Alice Table 6.
        """
        if self.alignment is None:
            return self._apart(seen.tokens, told, apart)
        online = self.alignment(seen.visible, seen.tokens)
        with torch.no_grad():  # the target's answer depends on the online queries
            target = self.alignment(seen.visible, told)
        return self._apart(online, target, apart)

    def _apart(
        self, online: Tensor, target: Tensor, apart: Tensor | None = None
    ) -> Tensor:
        """l_s of vectors (..., E) and their targets.

        Args:
            online: (B, E) or (B, N, E).
            target: Alike.
            apart: (B, B), whose vectors are negatives of each; None: all others'. A
                crop without any has its cosine distance instead.
        """
        if self.config.similarity == "cosine":
            return cosine_distance(online, target)
        # negatives: what the other crops of the batch say
        a, b = online.flatten(0, -2), target.flatten(0, -2)
        pooled = target if target.ndim == 2 else target.mean(1)
        per = len(a) // len(pooled)
        if len(pooled) < 2:
            return cosine_distance(online, target)
        terms = []
        for i in range(len(pooled)):
            own = slice(i * per, (i + 1) * per)
            others, far = _without(pooled, i), None  # a mask would wait
            if apart is not None:
                far = _without(apart[i], i)
            term = info_nce(
                a[own], b[own], others, self.config.temperature, occupied=far
            )
            if far is not None:
                term = torch.where(far.any(), term, cosine_distance(a[own], b[own]))
            terms.append(term)
        return torch.stack(terms).mean()

    def after_step(self, progress: float) -> None:
        """Move the target; its momentum rises to 1 along a cosine.

        Paper: Alice 3.1, target.
        """
        rest = (1.0 - self.config.momentum) * (math.cos(math.pi * progress) + 1) / 2
        self.target.update(Target(self.online), 1.0 - rest)
        if self._told:
            mean = mean_over_ranks(torch.stack(self._told).mean(0))
            self.centre.lerp_(mean, 1.0 - _CENTRE_MOMENTUM)
            self._told.clear()

    def encoder(self) -> Backbone:
        """The online encoder (``keep`` chooses)."""
        if self.config.keep == "teacher":
            target: Target = self.target.module  # type: ignore[assignment]
            return target.backbone
        return self.online.backbone

    def monitors(self) -> dict[str, Tensor]:
        """Raw terms, pairs of one patient, spread of tokens and of pooled vectors."""
        return {**super().monitors(), **self._raw}
