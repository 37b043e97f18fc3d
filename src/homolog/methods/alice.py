"""Alice: two patients' crops of one anatomy, hidden patches, and questions of CASA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.geometry.affine import Index
from homolog.geometry.correspondence import token_grid
from homolog.losses.contrast import info_nce
from homolog.losses.reconstruct import hidden_patch_error, to_patches
from homolog.losses.similarity import cosine_distance
from homolog.methods._alice_network import Online, Seen, Target
from homolog.methods._alice_settings import RECIPES, AliceConfig
from homolog.methods._base import Method, PairsWanted
from homolog.nn.masking import random_mask, view_keys
from homolog.nn.semantic_alignment import SemanticAlignment
from homolog.nn.teacher import Teacher
from homolog.views.view import Intensity, Matched, View, Views, ViewSpec

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
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES
    trivial: ClassVar[Mapping[str, float]] = {"reconstruction": 1.0}

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
        affine = view.affine.flatten(0, 1)
        case = view.case.repeat_interleave(view.affine.shape[1])
        keys = view_keys(affine, case, progress)
        return random_mask(keys, math.prod(self.grid), self.config.mask_ratio)

    def _reconstruction(self, view: View, patches: Tensor, mask: Tensor) -> Tensor:
        inside = view.valid.flatten(0, 1)[:, None].float()
        share = nn.functional.avg_pool3d(inside, self.patch).flatten(1)
        shown = share >= max(self.config.min_valid, 1e-6)
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
