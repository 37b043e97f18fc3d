"""S2DC: patches that differ are told apart, patches of one structure may stay alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.geometry.affine import Index
from homolog.geometry.correspondence import token_grid, token_matches
from homolog.losses.assignment import (
    dual_log_softmax,
    patch_to_patch,
    patch_to_structure,
    structure_weights,
    to_dustbins,
    unmatched_pairs,
)
from homolog.losses.contrast import info_nce
from homolog.losses.precision import full_precision
from homolog.losses.similarity import cosine_matrix
from homolog.losses.transport import log_transport
from homolog.methods._base import Method
from homolog.methods._s2dc_settings import RECIPES, S2DCConfig
from homolog.nn.heads import Projector, pooled, tokens_of
from homolog.nn.queue import FeatureQueue
from homolog.nn.teacher import Teacher
from homolog.views.view import Intensity, View, Views, ViewSpec

_MOST_TOKENS = 4096


class _Network(nn.Module):
    """Backbone with a global and a token head; the teacher is a copy of this."""

    def __init__(self, backbone: Backbone, config: S2DCConfig, token_map: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.token_map = token_map
        self.global_head, self.token_head = (
            Projector(
                channels,
                config.head_dim,
                hidden=config.head_hidden,
                layers=config.head_layers,
            )
            for channels in (backbone.channels[-1], backbone.channels[token_map])
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, D, H, W) -> unit vectors (B, E) and tokens (B, N, E)."""
        maps = self.backbone.maps(image)
        return (
            self.global_head(pooled(maps[-1])),
            self.token_head(tokens_of(maps[self.token_map])),
        )


class S2DC(Method):
    """Teacher and student see one crop, the teacher's copy warped by a known affine.

    Three terms: a global InfoNCE against a queue of the teacher's vectors (Eq. 1);
    patch-to-patch, which makes each token find its own place in the other view among
    all tokens (Eq. 2-5); patch-to-structure, the same with less weight on tokens that
    look like many others (Eq. 6-8).

    Each term has a value it takes while nothing is learnt, see ``trivial``; the
    monitors ``raw_*`` are the terms before weighting, to be compared with it.

    Gradient accumulation: the terms are means over samples, but the queue stands still
    during one step and samples without a matched pair are left out of their micro-batch
    only, so that accumulated and large batches agree when every sample has a match.

    Source: Pan et al., "Structure-aware Semantic Discrepancy and Consistency for 3D
    Medical Image Self-supervised Learning", arXiv 2507.02581.
    Differs from the paper: a temperature in Eq. 4 (0.1; ``match_temperature=1`` is
    literal); half-open boxes in Eq. 3; sigma of Eq. 6 is the standard deviation;
    weights of Eq. 7 are normalised over the matched pairs and detached, and Eq. 8 is
    not divided by N^2 (``paper_norm`` does); tokens of padding are left out; samples
    without a pair are skipped; the teacher moves after the optimiser's step; layer norm
    in the heads.
    One affine per view, composed once, both samples the view and gives the
    correspondence, where the published code composes a second one that disagrees.
    """

    Config = S2DCConfig
    title: ClassVar[str] = "S2DC: structure-aware discrepancy and consistency"
    paper: ClassVar[str] = (
        "Pan et al., Structure-aware Semantic Discrepancy and Consistency for 3D "
        "Medical Image Self-supervised Learning, arXiv 2507.02581"
    )
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES

    config: S2DCConfig

    def __init__(self, backbone: Backbone, config: S2DCConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        token_map = backbone.map_of_stride(config.token_stride)
        self.stride: Index = backbone.strides[token_map]
        self.tokens = math.prod(token_grid(self.size, self.stride))
        if self.tokens > _MOST_TOKENS:
            raise ValueError(
                f"crops of {self.size} have {self.tokens} tokens of stride "
                f"{config.token_stride}; at most {_MOST_TOKENS} can be compared with "
                f"each other: take smaller crops or a larger token_stride."
            )
        self.student = _Network(backbone, config, token_map)
        self.teacher = Teacher(self.student)
        self.queue = FeatureQueue(config.queue_length, config.head_dim)
        if config.assignment == "sinkhorn":
            self.dustbin = nn.Parameter(torch.tensor(config.dustbin_score))
        self._fresh_keys: list[Tensor] = []
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            _forget_fresh_keys
        )
        self._raw: dict[str, Tensor] = {}

    def views(self) -> dict[str, ViewSpec]:
        """One crop as it is, and the same place warped."""
        config = self.config
        plain = self._intensity() if config.augment_both else Intensity()
        return {
            "student": ViewSpec(size=self.size, intensity=plain),
            "teacher": ViewSpec(
                size=self.size,
                rotate_deg=config.rotate_deg,
                scale=config.scale,
                translate=config.translate,
                flip=config.flip,
                intensity=self._intensity(),
            ),
        }

    def _intensity(self) -> Intensity:
        p = self.config.intensity_probability
        if self.config.shift_only:
            return Intensity(shift_probability=p)
        return Intensity(
            shift_probability=p,
            scale_probability=p,
            gamma=(0.8, 1.25),
            gamma_probability=p / 2,
            noise_std=(0.0, 0.05),
            noise_probability=p,
            blur_probability=p / 2,
        )

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``global``, ``p2p`` and ``p2s``, weighted."""
        config = self.config
        plain, warped = views["student"], views["teacher"]
        query, tokens_a = self.student(plain.flat())
        key, tokens_b = self.teacher(warped.flat())
        if self.training and torch.is_grad_enabled():
            self._fresh_keys.append(key)
        self.watch("tokens", tokens_a.flatten(0, 1))

        valid_a, valid_b = self._valid_tokens(plain), self._valid_tokens(warped)
        matches = token_matches(
            plain.affine.flatten(0, 1),
            warped.affine.flatten(0, 1),
            self.size,
            self.stride,
            one_to_one=config.one_to_one,
        )
        matches = matches & valid_a[:, :, None] & valid_b[:, None, :]
        p2p, p2s = self._token_losses(tokens_a, tokens_b, matches, valid_a, valid_b)
        raw = {
            "global": info_nce(
                query,
                key,
                self.queue.rows,
                config.temperature,
                occupied=self.queue.occupied,
                batch_negatives=config.batch_negatives,
            ),
            "p2p": p2p,
            "p2s": p2s,
        }
        self._raw = {f"raw_{name}": value.detach() for name, value in raw.items()}
        self._raw["matched_share"] = matches.any(2).float().mean()
        return {
            "global": config.weight_global * raw["global"],
            "p2p": config.weight_p2p * raw["p2p"],
            "p2s": config.weight_p2s * raw["p2s"],
        }

    @full_precision
    def _token_losses(
        self,
        tokens_a: Tensor,
        tokens_b: Tensor,
        matches: Tensor,
        valid_a: Tensor,
        valid_b: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Patch-to-patch and patch-to-structure of tokens (B, N, E), un-weighted."""
        config = self.config
        cosine = cosine_matrix(tokens_a, tokens_b)
        valid = {"valid_a": valid_a, "valid_b": valid_b}
        if config.assignment == "sinkhorn":
            plan = log_transport(
                cosine / config.match_temperature,
                self.dustbin,
                rounds=config.sinkhorn_rounds,
                **valid,
            )
            logs = plan[:, :-1, :-1]
        else:
            logs = dual_log_softmax(cosine, config.match_temperature, **valid)
        p2p = patch_to_patch(logs, matches)
        if config.negatives:
            wrong = valid_a[:, :, None] & valid_b[:, None, :] & ~matches
            p2p = p2p + unmatched_pairs(logs, wrong)
        if config.assignment == "sinkhorn" and config.dustbin_loss:
            p2p = p2p + to_dustbins(plan, matches, valid_a, valid_b)
        weights = structure_weights(
            cosine.detach() if config.detach_weights else cosine,
            matches,
            **valid,
            unbiased=config.unbiased_sigma,
            paper_norm=config.paper_norm,
        )
        return p2p, patch_to_structure(logs, weights)

    def _valid_tokens(self, view: View) -> Tensor:
        """(B V, N) bool: tokens that show enough of the scan."""
        inside = view.valid.flatten(0, 1)[:, None].float()
        share = nn.functional.avg_pool3d(inside, self.stride)
        return share.flatten(1) >= max(self.config.min_valid, 1e-6)

    def after_step(self, progress: float) -> None:
        """Move the teacher, then let the step's keys into the queue."""
        self.teacher.update(self.student, self.config.momentum)
        for key in self._fresh_keys:
            self.queue.enqueue(key)
        self._fresh_keys.clear()

    def encoder(self) -> Backbone:
        """The teacher's backbone, smoother than the student's (``keep`` chooses)."""
        kept = self.teacher.module if self.config.keep == "teacher" else self.student
        backbone: Backbone = kept.backbone  # type: ignore[assignment]
        return backbone

    @property
    def trivial(self) -> dict[str, float]:
        """What each raw term is worth while nothing is learnt.

        ln(K + 1) for the global term once the queue is full (0 while it is empty), and
        2 ln N for dual-softmax tokens. Padding lowers N. For transport, with all
        cosines 0 and the first dustbin score z, the plan is sigmoid(-z / 2) / N.

        Source: methods reference 1.6.
        """
        tokens = 2.0 * math.log(self.tokens)
        lone = 0.0
        if self.config.assignment == "sinkhorn":
            half = self.config.dustbin_score / 2.0
            tokens = math.log(self.tokens) + _softplus(half)
            lone = _softplus(-half) if self.config.dustbin_loss else 0.0
        return {
            "global": math.log(self.queue.length + 1),
            "p2p": tokens + lone,
            "p2s": tokens,
        }

    def monitors(self) -> dict[str, Tensor]:
        """Raw terms, share of matched tokens, spread of tokens and of the queue."""
        keys = self.queue.ordered()
        if len(keys) > 1:
            self.watch("global", keys)
        return {**super().monitors(), **self._raw}


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _forget_fresh_keys(method: nn.Module, _: Any) -> None:
    """Keys of a step that was not finished belong to no loaded state."""
    method._fresh_keys.clear()  # type: ignore[union-attr, operator]
