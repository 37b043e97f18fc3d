"""S2DC: patches that differ are told apart, patches of one structure may stay alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.config import option
from homolog.geometry.affine import Index
from homolog.geometry.correspondence import token_grid, token_matches, token_partners
from homolog.losses.assignment import (
    dual_log_softmax,
    log_transport,
    patch_to_patch,
    patch_to_structure,
    structure_weights,
    to_dustbins,
    unmatched_pairs,
)
from homolog.losses.contrast import info_nce
from homolog.losses.similarity import (
    cosine_matrix,
    full_precision,
    to_patches,
)
from homolog.methods.base import Method, TokenCropConfig
from homolog.nn.decoders import (
    Decoder,
    features_decoder,
    fine_cell,
    suited_decoder,
)
from homolog.nn.heads import Projector, pooled, tokens_of
from homolog.nn.masking import (
    cells_of,
    cells_shown,
    draw_cells,
    hidden_patches,
    hidden_voxel_error,
    keys_of,
    to_voxels,
)
from homolog.nn.memory_bank import FeatureQueue
from homolog.nn.optim import Teacher
from homolog.recipes import Sources
from homolog.views.view import Intensity, View, Views, ViewSpec

# Settings and recipes of S2DC.


# Paper: S2DC Eq. 9; S2DC Table 7.
@dataclass(frozen=True)
class S2DCConfig(TokenCropConfig):
    """Settings of S2DC; the defaults are those of a small machine."""

    translate: tuple[float, float, float] = option(
        (0.25, 0.25, 0.25),
        "largest shift of the second view along z, y, x, as a share of the crop",
        minimum=0,
        maximum=1,
    )
    shift_only: bool = option(
        False, "change intensity by an offset only (the published code)", advanced=True
    )
    augment_both: bool = option(
        True, "change the intensity of the student's view too", advanced=True
    )
    tokens: str = option(
        "encoder",
        "what the token losses read: encoder, the map of token_stride; both, the "
        "features of a decoder at full resolution too, which a fine-tuning goes on "
        "with",
        choices=("encoder", "both"),
    )
    fine_stride: int = option(
        2, "side of a token of the decoder", unit="voxel", choices=(1, 2, 4)
    )
    fine_tokens: int = option(
        512,
        "tokens of the decoder that are compared, drawn in each crop",
        minimum=16,
        maximum=4096,
    )
    head_layers: int = option(2, "layers of the heads", minimum=1, maximum=4)
    head_hidden: int = option(128, "width of the heads", minimum=1)
    head_dim: int = option(64, "features compared by the losses", minimum=1)
    queue_length: int = option(256, "negatives of the global loss", minimum=1)
    temperature: float = option(0.1, "of the global loss", minimum=0.01)
    momentum: float = option(0.99, "of the teacher", minimum=0, maximum=1)
    batch_negatives: bool = option(
        False, "other crops of the batch are negatives too", advanced=True
    )
    assignment: str = option(
        "dual_softmax",
        "how tokens are matched",
        choices=("dual_softmax", "sinkhorn"),
        advanced=True,
    )
    match_temperature: float = option(0.1, "of the assignment", minimum=0.01)
    sinkhorn_rounds: int = option(
        100, "rounds of the assignment", minimum=1, advanced=True
    )
    dustbin_score: float = option(
        1.0, "first value of the learnt dustbin score", advanced=True
    )
    dustbin_loss: bool = option(
        True, "tokens without partner are drawn to the dustbin", advanced=True
    )
    one_to_one: bool = option(False, "mutually nearest partners only", advanced=True)
    negatives: bool = option(
        False, "push pairs that do not match apart (the published code)", advanced=True
    )
    unbiased_sigma: bool = option(
        False, "Sharpe ratio with the unbiased standard deviation", advanced=True
    )
    detach_weights: bool = option(
        True, "no gradient through the structure weights", advanced=True
    )
    paper_norm: bool = option(
        False, "divide the structure term by N^2 as printed; it vanishes", advanced=True
    )
    weight_global: float = option(1.0, "weight of the global loss", minimum=0)
    weight_p2p: float = option(1.0, "weight of patch-to-patch", minimum=0)
    weight_p2s: float = option(1.0, "weight of patch-to-structure", minimum=0)
    weight_fine: float = option(
        1.0, "weight of both for the tokens of the decoder", minimum=0
    )
    weight_reconstruction: float = option(
        0.0,
        "weight of the error of hidden blocks, which a decoder at full resolution "
        "fills that a fine-tuning goes on with; 0: nothing is hidden (the paper)",
        minimum=0,
    )
    mask_ratio: float = option(
        0.6,
        "share of blocks hidden from the student, where they are filled",
        minimum=0.05,
        maximum=0.95,
        advanced=True,
    )
    keep: str = option(
        "teacher", "whose backbone is saved", choices=("teacher", "student")
    )


# Paper: S2DC training.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "method": {"size": [48, 48, 48], "token_stride": 8},
        "backbone": {"name": "resunet"},
        "training": {
            "steps": 400,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "weight_decay": 0.05,
            "warmup_steps": 20,
        },
    },
    # 24 GB: batch 4-8; 80 GB: 16-32.
    "gpu": {
        "method": {
            "size": [96, 96, 96],
            "token_stride": 16,
            "head_layers": 3,
            "head_hidden": 2048,
            "head_dim": 512,
            "queue_length": 4096,
            "momentum": 0.999,
        },
        "backbone": {"name": "swin", "feature_size": 48},
        "training": {
            "steps": 20000,
            "batch_size": 8,
            "learning_rate": 3e-4,
            "weight_decay": 0.1,
            "warmup_steps": 500,
        },
    },
    # As the paper: 96^3, Swin-B, 100k iterations, no temperature in Eq. 4, weights 1.
    # Not in the paper, from the published code: heads, momentum, affine, optimiser.
    "paper": {
        "method": {
            "size": [96, 96, 96],
            "token_stride": 16,
            "rotate_deg": [30.0, 0.0, 0.0],
            "scale": [0.9, 1.2],
            "translate": [0.0, 0.25, 0.25],
            "intensity_probability": 0.1,
            "shift_only": True,
            "augment_both": False,
            "head_layers": 3,
            "head_hidden": 2048,
            "head_dim": 512,
            "queue_length": 4096,
            "temperature": 0.1,
            "momentum": 0.999,
            "match_temperature": 1.0,
        },
        "backbone": {"name": "swin", "feature_size": 48, "use_v2": True},
        "training": {
            "steps": 100_000,
            "batch_size": 16,
            "learning_rate": 3e-4,
            "weight_decay": 0.1,
            "warmup_steps": 500,
            "precision": "fp32",
        },
    },
}

_MOST_TOKENS = 4096


class _Fine(NamedTuple):
    """Fine tokens that are compared, (B, K) each; None where there are none.

    Attributes:
        index_a: Which of the student's view.
        index_b: Their partners in the teacher's.
        drawn: Which of the K are real: a crop may have fewer.
    """

    index_a: Tensor | None = None
    index_b: Tensor | None = None
    drawn: Tensor | None = None


class _Found(NamedTuple):
    """What a network makes of a crop.

    Attributes:
        crop: (B, E) unit vectors.
        tokens: (B, N, E) unit vectors.
        fine: (B, K, E) unit vectors of some fine tokens; None where none are drawn.
        filled: (B, C, D, H, W) the crop with its hidden blocks filled; None: none are.
    """

    crop: Tensor
    tokens: Tensor
    fine: Tensor | None = None
    filled: Tensor | None = None


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
        self.decoder: Decoder | None = None
        channels: int = backbone.config.in_channels
        if config.weight_reconstruction > 0:
            self.decoder = suited_decoder(backbone, channels)
            self.mask_value = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))
        elif config.tokens == "both":
            self.decoder = features_decoder(backbone)
        if self.decoder is not None and config.tokens == "both":
            self.cell = fine_cell(backbone, config.fine_stride)
            self.fine_head = Projector(
                self.decoder.width,
                config.head_dim,
                hidden=config.head_hidden,
                layers=config.head_layers,
            )

    def forward(
        self, image: Tensor, fine: Tensor | None = None, hidden: Tensor | None = None
    ) -> _Found:
        """Vectors of a crop and of its tokens, and its hidden blocks filled.

        Args:
            image: (B, C, D, H, W).
            fine: (B, K) int64, which fine tokens.
            hidden: (B, 1, D, H, W) bool, voxels that are not seen.
        """
        if hidden is not None:
            image = torch.where(hidden, self.mask_value.to(image.dtype), image)
        maps = self.backbone.maps(image)
        drawn, filled = None, None
        if self.decoder is not None and not (fine is None and hidden is None):
            dense = self.decoder.dense(image, maps)
            if fine is not None:
                cells = nn.functional.avg_pool3d(dense, self.cell)
                drawn = self.fine_head(cells_of(cells, fine))
            if hidden is not None:
                filled = self.decoder.dense_result(dense)
        return _Found(
            self.global_head(pooled(maps[-1])),
            self.token_head(tokens_of(maps[self.token_map])),
            drawn,
            filled,
        )


SOURCES: Mapping[str, Sources] = {
    "paper": {
        "paper: implementation details": "method.size backbone.name training.steps",
        "paper: Eq. 4, without a temperature": "method.match_temperature",
        "paper: Eq. 9, a plain sum": "method.weight_global method.weight_p2p "
        "method.weight_p2s",
        "code": "method.rotate_deg method.scale method.translate "
        "method.intensity_probability method.shift_only method.augment_both "
        "method.head_layers method.head_hidden method.head_dim method.momentum "
        "backbone.feature_size backbone.use_v2 training.learning_rate "
        "training.weight_decay training.warmup_steps training.precision",
        "code: its last stage but one": "method.token_stride",
        "own: the code's 0.9 teaches next to nothing": "method.temperature",
        "own: the code has 90 for each of its batch": "method.queue_length",
        "own: the code has 16 crops of one scan": "training.batch_size",
    }
}


class S2DC(Method):
    """Teacher and student see one crop, the teacher's copy warped by a known affine.

    Three terms: a global InfoNCE against a queue of the teacher's vectors (Eq. 1);
    patch-to-patch, which makes each token find its own place in the other view among
    all tokens (Eq. 2-5); patch-to-structure, the same with less weight on tokens that
    look like many others (Eq. 6-8).

    While nothing is learnt the global term is worth ln(K + 1) once its queue of K is
    full, and those of N dual-softmax tokens 2 ln N; the monitors ``raw_*`` are the
    terms before weighting, to be compared with it.

    With ``tokens=both`` the same two terms are taken, beside, of the features of a
    decoder at full resolution, as means over ``fine_stride`` voxels: of so many tokens
    some are drawn, each with its partner, and compared with each other.

    With ``weight_reconstruction`` blocks are hidden from the student, whose tokens must
    find their places all the same, and a decoder fills them.

    Gradient accumulation: the terms are means over samples, but the queue stands still
    during one step and samples without a matched pair are left out of their micro-batch
    only, so that accumulated and large batches agree when every sample has a match.

    Source: Pan et al., "Structure-aware Semantic Discrepancy and Consistency for 3D
    Medical Image Self-supervised Learning", arXiv 2507.02581.
    Differs from the paper: a temperature in Eq. 4 (0.1; ``match_temperature=1`` is
    literal); half-open boxes in Eq. 3; sigma of Eq. 6 is the standard deviation;
    weights of Eq. 7 are normalised over the matched pairs and detached, and Eq. 8 is
    not divided by N^2 (``paper_norm`` does); tokens of padding are left out; samples
    without a pair are skipped; fine tokens of a decoder, on demand, and of these a
    sample (all would be 13,824 by as many in a crop of 48 voxels); hidden blocks, on
    demand, and their error (He et al., CVPR 2022, as ``mae``); the teacher moves after
    the optimiser's step; layer norm in the heads.
    One affine per view, composed once, both samples the view and gives the
    correspondence, where the published code composes a second one that disagrees.
    """

    Config = S2DCConfig
    title: ClassVar[str] = "S2DC: structure-aware discrepancy and consistency"
    paper: ClassVar[str] = (
        "Pan et al., Structure-aware Semantic Discrepancy and Consistency for 3D "
        "Medical Image Self-supervised Learning, arXiv 2507.02581"
    )
    sees_padding: ClassVar[Mapping[str, str]] = {
        "global": "the vector of a crop is the mean over all of its cells",
    }
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES

    config: S2DCConfig

    def __init__(self, backbone: Backbone, config: S2DCConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        token_map = backbone.map_of_stride(config.token_stride)
        self.stride: Index = backbone.strides[token_map]
        self.grid: Index = token_grid(self.size, self.stride)
        self.tokens = math.prod(self.grid)
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
        """``global``, ``p2p``, ``p2s`` and what is taken beside them, weighted.

        Paper: S2DC Eq. 1.
        """
        config = self.config
        plain, warped = views["student"], views["teacher"]
        fine = self._draw_fine(plain, warped, progress)
        hidden = self._hidden(plain, progress)
        blocks = None if hidden is None else to_voxels(hidden, self.grid, self.stride)
        query, tokens_a, fine_a, filled = self.student(
            plain.flat(), fine.index_a, blocks
        )
        key, tokens_b, fine_b, _ = self.teacher(warped.flat(), fine.index_b)
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
        if fine_a is not None and fine.drawn is not None:
            raw |= self._fine_losses(fine_a, fine_b, fine.drawn)
        if filled is not None and hidden is not None:
            raw["reconstruction"] = hidden_voxel_error(
                to_patches(filled, self.stride), plain, hidden, self.stride,
                normalise=False,
            )  # fmt: skip
        self._raw = {f"raw_{name}": value.detach() for name, value in raw.items()}
        self._raw["matched_share"] = matches.any(2).float().mean()
        weights = self._weights()
        return {name: weights[name] * value for name, value in raw.items()}

    def _weights(self) -> dict[str, float]:
        """Of every term there may be."""
        config = self.config
        return {
            "global": config.weight_global,
            "p2p": config.weight_p2p,
            "p2s": config.weight_p2s,
            "fine_p2p": config.weight_fine * config.weight_p2p,
            "fine_p2s": config.weight_fine * config.weight_p2s,
            "reconstruction": config.weight_reconstruction,
        }

    def _hidden(self, plain: View, progress: float) -> Tensor | None:
        """(B V, N) bool: blocks that the student does not see; None: it sees all."""
        if self.config.weight_reconstruction <= 0:
            return None
        ratio = self.config.mask_ratio
        return hidden_patches(plain, progress, self.tokens, ratio)

    def _fine_losses(
        self, fine_a: Tensor, fine_b: Tensor, drawn: Tensor
    ) -> dict[str, Tensor]:
        """``fine_p2p`` and ``fine_p2s`` of tokens (B, K, E) and their partners."""
        self.watch("fine", fine_a.flatten(0, 1))
        partners = torch.eye(drawn.shape[1], device=drawn.device, dtype=torch.bool)
        p2p, p2s = self._token_losses(
            fine_a, fine_b, partners & drawn[:, :, None], drawn, drawn
        )
        return {"fine_p2p": p2p, "fine_p2s": p2s}

    def _draw_fine(self, plain: View, warped: View, progress: float) -> _Fine:
        """Tokens of the student's view that have a partner, and these."""
        if self.config.tokens != "both":
            return _Fine()
        cell: Index = self.student.cell
        affines = plain.affine.flatten(0, 1), warped.affine.flatten(0, 1)
        partner = token_partners(*affines, self.size, cell)
        valid = self._valid_tokens(warped, cell).gather(1, partner.clamp_min(0))
        usable = (partner >= 0) & valid & self._valid_tokens(plain, cell)
        keys = keys_of(warped, progress)
        index, drawn = draw_cells(usable.float(), keys, self.config.fine_tokens)
        return _Fine(index, partner.clamp_min(0).gather(1, index), drawn)

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

    def _valid_tokens(self, view: View, cell: Index | None = None) -> Tensor:
        """(B V, N) bool: tokens (cells) that show enough of the scan."""
        return cells_shown(view, cell or self.stride, self.config.min_valid)

    def after_step(self, progress: float) -> None:
        """Move the teacher, then let the step's keys into the queue."""
        self.teacher.update(self.student, self.config.momentum)
        for key in self._fresh_keys:
            self.queue.enqueue(key)
        self._fresh_keys.clear()

    def encoder(self) -> Backbone:
        """The teacher's backbone, smoother than the student's (``keep`` chooses)."""
        return self._kept().backbone

    def dense_decoder(self) -> Decoder | None:
        """That of the same network."""
        kept = self._kept()
        return kept.decoder if kept.backbone.planar() is kept.backbone else None

    def _kept(self) -> _Network:
        kept = self.teacher.module if self.config.keep == "teacher" else self.student
        assert isinstance(kept, _Network)
        return kept

    def monitors(self) -> dict[str, Tensor]:
        """Raw terms, share of matched tokens, spread of tokens and of the queue."""
        keys = self.queue.ordered()
        if len(keys) > 1:
            self.watch("global", keys)
        return {**super().monitors(), **self._raw}


def _forget_fresh_keys(method: nn.Module, _: Any) -> None:
    """Keys of a step that was not finished belong to no loaded state."""
    method._fresh_keys.clear()  # type: ignore[union-attr, operator]
