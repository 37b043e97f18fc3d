"""SAM: every voxel learns to be unlike all places but its own, in any crop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.config import as_in, option
from homolog.geometry.affine import Index
from homolog.geometry.correspondence import (
    nearest_tokens,
    token_grid,
    token_positions_mm,
)
from homolog.geometry.sampling import constant
from homolog.losses.contrast import (
    cells_of_others,
    enlarged,
    gather_cells,
    hard_negatives,
    pick,
    place_contrast,
    squared_distances,
)
from homolog.losses.similarity import to_patches
from homolog.methods.base import DENSE, CropConfig, Embedder, Method, TokenCropConfig
from homolog.nn.decoders import (
    Decoder,
    features_decoder,
    fine_cell,
    suited_decoder,
)
from homolog.nn.heads import FeaturePyramid, PlaceHead, tokens_of
from homolog.nn.masking import (
    cells_shown,
    hidden_patches,
    hidden_voxel_error,
    keys_of,
    to_voxels,
    uniform,
)
from homolog.recipes import PaperScans, Sources
from homolog.views.view import Intensity, View, Views, ViewSpec

# Settings and recipes of the anatomical embedding.


@dataclass(frozen=True)
class AnatomicalEmbeddingConfig(CropConfig):
    """Settings of the anatomical embedding; the defaults suit a small machine.

    Distances of 0 mm mean "by the cell": the store's spacing decides how many
    millimetres a cell of the feature map has.
    """

    scale: tuple[float, float] = as_in(CropConfig, "scale", default=(0.8, 1.2))
    rotate_deg: tuple[float, float, float] = as_in(
        CropConfig,
        "rotate_deg",
        default=(0.0, 0.0, 0.0),
        maximum=90,
        help="rotation of each crop about z, y, x, drawn in +- this; 0 keeps the "
        "embedding aware of the patient's axes",
    )
    min_valid: float = as_in(TokenCropConfig, "min_valid")

    fine_from: str = option(
        "pyramid",
        "what the fine embedding reads: pyramid, the map of fine_stride with what "
        "coarser ones know; decoder, the features of a decoder at full resolution, "
        "which a fine-tuning goes on with; none: there is no fine embedding, which is "
        "much quicker and matches to a coarse cell alone",
        choices=("pyramid", "decoder", "none"),
    )
    weight_reconstruction: float = option(
        0.0,
        "weight of the error of blocks hidden in the second crop, which a decoder at "
        "full resolution fills that a fine-tuning goes on with; 0: nothing is hidden "
        "(the paper)",
        minimum=0,
    )
    mask_ratio: float = option(
        0.6,
        "share of blocks hidden, where they are filled",
        minimum=0.05,
        maximum=0.95,
        advanced=True,
    )
    fine_stride: int = option(
        2, "map of the fine embedding", unit="voxel", choices=(1, 2, 4)
    )
    coarse_stride: int = option(
        8, "map of the coarse embedding", unit="voxel", choices=(4, 8, 16, 32)
    )
    width: int = option(48, "channels of the feature pyramid", minimum=4)
    dim: int = option(32, "length of each of the two embeddings", minimum=2)
    temperature: float = option(0.5, "divides the cosines of both terms", minimum=0.01)
    anchors: int = option(64, "places asked for per pair and direction", minimum=1)
    hardest: int = option(
        512, "wrong places most like an anchor that are looked at", minimum=1
    )
    negatives: int = option(128, "how many of these are taken at random", minimum=1)
    coarse_hardest: int = option(
        64, "the same for the coarse embedding", minimum=1, advanced=True
    )
    coarse_negatives: int = option(48, "how many of these are taken", minimum=1)
    global_negatives: int = option(
        64, "coarse places of other scans of the batch", minimum=0
    )
    positive_mm: float = option(
        0.0, "a partner lies nearer than this; 0: one fine cell", unit="mm", minimum=0
    )
    ignore_mm: float = option(
        0.0,
        "places nearer than this to the own one are no negatives; 0: half a fine cell",
        unit="mm",
        minimum=0,
        advanced=True,
    )
    coarse_positive_mm: float = option(
        0.0,
        "the same for the coarse embedding; 0: one coarse cell",
        unit="mm",
        minimum=0,
        advanced=True,
    )
    coarse_positive_z_mm: float = option(
        0.0,
        "and along z alone; 0: no limit of its own",
        unit="mm",
        minimum=0,
        advanced=True,
    )
    coarse_ignore_mm: float = option(
        0.0,
        "coarse places nearer than this are no negatives; 0: half a coarse cell",
        unit="mm",
        minimum=0,
        advanced=True,
    )
    translate: tuple[float, float, float] = option(
        (0.25, 0.25, 0.25),
        "how far each crop is moved off the common place, as a share of its size",
        minimum=0,
        maximum=0.5,
    )
    stray: float = option(
        0.2, "share of pairs whose crops lie anywhere", minimum=0, maximum=1
    )
    changes: str = option(
        "all",
        "of grey values, each with intensity_probability (half of it for gamma and "
        "blur): all, or scanner: noise and blur alone, as published",
        choices=("all", "scanner"),
        advanced=True,
    )
    noise_std: tuple[float, float] = option(
        (0.0, 0.05), "range of the noise's standard deviation", minimum=0, advanced=True
    )
    blur_voxels: tuple[float, float] = option(
        (0.5, 1.0), "range of the blur", unit="voxel", minimum=0, advanced=True
    )
    other_modality: float = option(
        0.0,
        "probability of a random grey value curve, against other scanners and "
        "modalities",
        minimum=0,
        maximum=1,
    )
    synthetic_contrast: float = option(
        0.0,
        "probability that a crop gets a contrast drawn at random over regions, so that "
        "places are known whatever the modality; each crop of a pair its own",
        minimum=0,
        maximum=1,
    )
    bias_field: float = option(
        0.0,
        "probability that a crop is darker towards a side, as by the coils of MR "
        "scanners",
        minimum=0,
        maximum=1,
    )
    thick_slices: float = option(
        0.0,
        "probability that a crop looks as if taken in slices of 1.5 to 4 voxels, each "
        "crop of a pair its own",
        minimum=0,
        maximum=1,
    )


_FOR_SEGMENTS: Mapping[str, Any] = {
    "fine_from": "none",
    "weight_reconstruction": 1.0,
    "temperature": 0.1,
    "intensity_probability": 0.8,
    "rotate_deg": [20.0, 20.0, 20.0],
    "scale": [0.8, 1.25],
}

# Paper: SAM configuration.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    # At 0.5 hard negatives hold the fine term at chance for hundreds of steps; at 0.1
    # it falls from the first. 37 minutes of two cores, beside other work, on body CT.
    "cpu": {
        "method": {"size": [48, 64, 64], "temperature": 0.1, "hardest": 2048},
        "backbone": {"name": "resunet", "channels": [16, 32, 64, 128]},
        "training": {
            "steps": 1200,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "warmup_steps": 20,
        },
    },
    # Blind to modality: each crop of a pair has a contrast of its own, drawn at random;
    # what both have in common is where things lie. For scans of any kind, and for
    # matching across kinds.
    "blind": {
        "method": {
            "size": [48, 64, 64],
            "fine_stride": 4,
            "temperature": 0.1,
            "hardest": 2048,
            "coarse_hardest": 256,
            "coarse_negatives": 128,
            "rotate_deg": [10.0, 10.0, 10.0],
            "scale": [0.75, 1.3],
            "intensity_probability": 0.5,
            "synthetic_contrast": 0.8,
            "other_modality": 0.2,
            "bias_field": 0.4,
            "thick_slices": 0.5,
        },
        "backbone": {"name": "resunet", "channels": [16, 32, 96, 192]},
        "training": {
            "steps": 3000,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "warmup_steps": 50,
        },
    },
    # For a segmentation with few labels rather than for landmarks: coarse places alone,
    # so that crops may be turned and zoomed more, and a decoder that fills hidden
    # blocks and is handed on. Found on heart and abdomen MR (docs/measured.md).
    "segment": {
        "method": {
            "size": [48, 64, 64],
            **_FOR_SEGMENTS,
            "coarse_hardest": 256,
            "coarse_negatives": 128,
        },
        "backbone": {"name": "resunet", "channels": [32, 64, 128, 256]},
        "training": {
            "steps": 1500,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "warmup_steps": 20,
        },
    },
    # The same for a card, not run on one yet.
    "segment_gpu": {
        "method": {
            "size": [64, 96, 96],
            **_FOR_SEGMENTS,
            "coarse_hardest": 512,
            "coarse_negatives": 256,
            "anchors": 100,
            "global_negatives": 300,
        },
        "backbone": {"name": "resunet"},
        "training": {
            "steps": 20000,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "warmup_steps": 500,
        },
    },
    # 24 GB: batch 3; 80 GB: batch 6-8.
    "gpu": {
        "method": {
            "size": [64, 96, 96],
            "coarse_stride": 16,
            "width": 128,
            "dim": 128,
            "temperature": 0.1,
            "anchors": 100,
            "hardest": 2000,
            "negatives": 500,
            "coarse_hardest": 250,
            "coarse_negatives": 200,
            "global_negatives": 300,
        },
        "backbone": {"name": "resnet"},
        "training": {
            "steps": 20000,
            "batch_size": 4,
            "learning_rate": 3e-4,
            "weight_decay": 1e-4,
            "warmup_steps": 500,
        },
    },
    # The published configuration for DeepLesion (scans at 2 mm): crops 96 x 96 x 32,
    # 20000 iterations of 3 pairs in fp32, SGD 0.02 that stays, a coarse map of stride
    # 4 x 16 x 16.
    "paper": {
        "method": {
            "size": [32, 96, 96],
            "coarse_stride": 16,
            "width": 128,
            "dim": 128,
            "temperature": 0.5,
            "anchors": 100,
            "hardest": 2000,
            "negatives": 500,
            "coarse_hardest": 250,
            "coarse_negatives": 200,
            "global_negatives": 300,
            "positive_mm": 5.0,
            "ignore_mm": 3.0,
            "coarse_positive_mm": 25.0,
            "coarse_positive_z_mm": 6.0,
            "coarse_ignore_mm": 5.0,
            "intensity_probability": 0.5,
            "changes": "scanner",
            "noise_std": [0.0, 0.001],
            "blur_voxels": [0.0, 4.0],
        },
        "backbone": {"name": "resnet", "z_stride": 4},
        "training": {
            "steps": 20000,
            "batch_size": 3,
            "optimizer": "sgd",
            "learning_rate": 0.02,
            "min_learning_rate_factor": 1.0,
            "weight_decay": 1e-4,
            "warmup_steps": 500,
            "precision": "fp32",
        },
    },
}

_PAIR = ("first", "second")
# Streams of random numbers of one pair: what they decide.
_ANCHORS, _HARD, _OTHERS = 1, 2, 3


@dataclass(frozen=True)
class _Side:
    """One view of a pair at one stride: N cells of each of B samples.

    ``cells`` (B, N, E) unit vectors, ``mm`` (B, N, 3), ``valid`` (B, N).
    """

    cells: Tensor
    mm: Tensor
    valid: Tensor


SOURCES: Mapping[str, Sources] = {
    "paper": {
        "paper: ResNet-18 with a pyramid": "backbone.name",
        "code: of its group, for DeepLesion": "method.size method.coarse_stride "
        "method.width method.dim method.temperature method.anchors method.hardest "
        "method.negatives method.coarse_hardest method.coarse_negatives "
        "method.global_negatives method.positive_mm method.ignore_mm "
        "method.coarse_positive_mm method.coarse_positive_z_mm method.coarse_ignore_mm "
        "method.changes method.noise_std method.blur_voxels backbone.z_stride "
        "training.steps training.batch_size training.optimizer training.learning_rate "
        "training.min_learning_rate_factor training.weight_decay "
        "training.warmup_steps training.precision",
        "own: the code does not say how often": "method.intensity_probability",
    }
}


# Paper: SAM window.
class AnatomicalEmbedding(Method):
    """A fine and a coarse unit vector per voxel that are alike at the same anatomy.

    Two crops of one scan, zoomed differently, share places that are known in
    millimetres. Every anchor's own place in the other crop has to be more like it than
    the most similar wrong places of both crops (hard and diverse negatives), and, for
    the coarse vector, than places of other scans of the batch. Matching averages the
    cosines of both vectors.

    The method says where things are: it is blind beyond the scans it learnt from, and
    crops are neither turned nor flipped, so the patient's axes are part of what it
    knows. Crops have the store's spacing (published: 2 mm).

    Source: Yan et al., "SAM: Self-supervised Learning of Pixel-wise Anatomical
    Embeddings in Radiological Images", TMI 2022, arXiv 2012.02383; configuration of its
    group's re-implementation, methods reference L 1-L 3.
    Differs from the paper: forbidden negatives are masked with -inf, never taken; a
    partner is found by rounding in millimetres over all cells instead of among 2000
    candidates; distances follow the cell where not given; crops that share no place
    take negatives of both views; a trilinear pyramid over any backbone; but in
    the recipe ``paper`` the coarse stride is the same along all axes, coarse partners
    may lie at any height, grey values change more than by noise and blur, and AdamW;
    on demand (``fine_from=decoder``) the
    fine embedding reads means over cells of a segmentation network's decoder, or there
    is none (``none``); and (``weight_reconstruction``) blocks of coarse cells are
    hidden in the second crop, whose places must be found all the same, and filled; and
    (``synthetic_contrast``) each crop has a contrast drawn at random over regions, as
    Billot et al. (SynthSeg, 2023) and Dey et al. (anatomix, 2024) draw it for labels.
    """

    Config = AnatomicalEmbeddingConfig
    title: ClassVar[str] = "SAM: self-supervised anatomical embedding"
    paper: ClassVar[str] = (
        "Yan et al., SAM: Self-supervised Learning of Pixel-wise Anatomical Embeddings "
        "in Radiological Images, IEEE TMI 2022, arXiv 2012.02383"
    )
    per_rank: ClassVar[Mapping[str, str]] = {
        "coarse": "negatives of other scans are those of the process",
    }
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES
    paper_scans: ClassVar[PaperScans | None] = PaperScans(
        "its group's code", (-1024.0, 3071.0), (2.0, 2.0, 2.0)
    )
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES
    FOR_TWO_CORES: ClassVar[Sequence[str]] = ("cpu", "blind", "segment")

    config: AnatomicalEmbeddingConfig

    def __init__(self, backbone: Backbone, config: AnatomicalEmbeddingConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        has_fine = config.fine_from != "none"
        if has_fine and config.coarse_stride <= config.fine_stride:
            raise ValueError(
                f"coarse_stride must be larger than fine_stride, got "
                f"{config.coarse_stride} and {config.fine_stride}."
            )
        self.backbone = backbone
        coarse = backbone.map_of_stride(config.coarse_stride)
        self.block: Index = backbone.strides[coarse]
        channels: int = backbone.config.in_channels
        self.decoder: Decoder | None = None
        if config.weight_reconstruction > 0:
            self.decoder = suited_decoder(backbone, channels)
            self.mask_value = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))
        elif config.fine_from == "decoder":
            self.decoder = features_decoder(backbone)
        self.cell: Index = (1, 1, 1)
        self.maps = {"coarse": coarse}
        self.pyramid: FeaturePyramid | None = None
        width = config.width
        if has_fine:
            fine = DENSE
            if config.fine_from == "decoder":
                assert self.decoder is not None
                self.cell = fine_cell(backbone, config.fine_stride)
                width = self.decoder.width
            else:
                fine = backbone.map_of_stride(config.fine_stride)
            self.maps = {"fine": fine, "coarse": coarse}
            # a decoder has what the finer maps of a pyramid would have
            first = coarse if fine == DENSE else 0
            self.pyramid = FeaturePyramid(backbone.channels, config.width, first)
            self.fine_head = PlaceHead(width, config.dim)
        from_map = backbone.channels[coarse] if not has_fine else config.width
        self.coarse_head = PlaceHead(from_map, config.dim)
        self._raw: dict[str, Tensor] = {}

    def views(self) -> dict[str, ViewSpec]:
        """Two crops about one place; now and then the second lies anywhere."""
        config = self.config
        p = config.intensity_probability
        tissue = p if config.changes == "all" else 0.0
        changes = Intensity(
            shift_probability=tissue,
            scale_probability=tissue,
            gamma=(0.8, 1.25),
            gamma_probability=tissue / 2,
            noise_std=config.noise_std,
            noise_probability=p,
            blur_voxels=config.blur_voxels,
            blur_probability=p / 2,
            curve_probability=config.other_modality,
            regions_probability=config.synthetic_contrast,
            bias_probability=config.bias_field,
            slices_probability=config.thick_slices,
        )
        return {
            name: ViewSpec(
                size=self.size,
                translate=config.translate,
                scale=config.scale,
                rotate_deg=config.rotate_deg,
                stray=config.stray if name == "second" else 0.0,
                intensity=changes,
            )
            for name in _PAIR
        }

    def embedder(self) -> Embedder:
        """The vectors: pyramid and heads are part of the model."""
        heads: dict[str, nn.Module] = {"coarse": self.coarse_head}
        if "fine" in self.maps:
            heads = {"fine": self.fine_head, **heads}
        read = self.decoder if DENSE in self.maps.values() else None
        return Embedder(self.backbone, self.maps, heads, self.pyramid, read, self.cell)

    def dense_decoder(self) -> Decoder | None:
        """What the fine embedding reads or fills blocks, where that is a decoder."""
        return self.decoder if self.backbone.planar() is self.backbone else None

    def _stride(self, name: str) -> Index:
        """Voxels (z, y, x) of a cell of one of the two embeddings."""
        index = self.maps[name]
        return self.cell if index == DENSE else self.backbone.strides[index]

    def encoder(self) -> Backbone:
        """The trained backbone."""
        return self.backbone

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``fine`` and ``coarse``, means of both directions, and ``reconstruction``.

        All but ``coarse`` as far as the settings have them.
        """
        pair = (views[_PAIR[0]], views[_PAIR[1]])
        halves, filled = self._seen(pair, progress)
        sides = {
            name: [self._side(v, m, name) for v, m in zip(pair, maps, strict=True)]
            for name, maps in halves.items()
        }
        terms: dict[str, list[Tensor]] = {name: [] for name in halves}
        shares = []
        ups = self._ups(sides, halves) if "fine" in halves else None
        for a, b in ((0, 1), (1, 0)):
            keys = keys_of(pair[a], progress)
            of = {name: (both[a], both[b]) for name, both in sides.items()}
            two = pair[a], pair[b]
            if ups is not None:
                term, share = self._fine_term(two, of["fine"], (ups[a], ups[b]), keys)
                terms["fine"].append(term)
                shares.append(share)
            case = pair[a].case.repeat_interleave(pair[a].affine.shape[1])
            term, share = self._coarse_term(two, of["coarse"], keys, case)
            terms["coarse"].append(term)
            if ups is None:
                shares.append(share)
        self.watch("coarse", sides["coarse"][0].cells.flatten(0, 1))
        self._raw["matched_share"] = torch.stack(shares).mean()
        means = {name: torch.stack(both).mean() for name, both in terms.items()}
        if filled is not None:
            self._raw["raw_reconstruction"] = filled.detach()
            means["reconstruction"] = self.config.weight_reconstruction * filled
        return means

    def _ups(
        self, sides: Mapping[str, list[_Side]], halves: Mapping[str, Sequence[Tensor]]
    ) -> list[Tensor]:
        """Coarse vectors at fine cells, for the choice of hard negatives."""
        grid = halves["fine"][0].shape[2:]
        first = sides["fine"][0].cells
        self.watch("fine", first.flatten(0, 1)[:: max(1, grid[0])])
        with torch.no_grad():
            return [tokens_of(enlarged(m, tuple(grid))) for m in halves["coarse"]]

    def _seen(
        self, pair: tuple[View, View], progress: float
    ) -> tuple[dict[str, Sequence[Tensor]], Tensor | None]:
        """Vectors of both crops by name, and the error of hidden blocks filled."""
        embedder = self.embedder()
        a, b = (view.flat() for view in pair)
        if self.config.weight_reconstruction <= 0:
            found = embedder(torch.cat([a, b]))
            return {name: value.chunk(2) for name, value in found.items()}, None
        assert self.decoder is not None
        grid = token_grid(self.size, self.block)
        ratio = self.config.mask_ratio
        mask = hidden_patches(pair[1], progress, math.prod(grid), ratio)
        hidden = to_voxels(mask, grid, self.block)
        seen = torch.where(hidden, self.mask_value.to(b.dtype), b)
        image = torch.cat([a, seen])
        maps = self.backbone.maps(image)
        found = embedder.unit(embedder.read(image, maps, embedder.maps))
        dense = self.decoder.dense(seen, [m[len(a) :] for m in maps])
        filled = to_patches(self.decoder.dense_result(dense), self.block)
        error = hidden_voxel_error(filled, pair[1], mask, self.block, normalise=False)
        return {name: value.chunk(2) for name, value in found.items()}, error

    def _side(self, view: View, cells: Tensor, name: str) -> _Side:
        stride = self._stride(name)
        return _Side(
            tokens_of(cells),
            token_positions_mm(view.affine.flatten(0, 1), self.size, stride),
            cells_shown(view, stride, self.config.min_valid),
        )

    def _partners(
        self, pair: tuple[View, View], sides: tuple[_Side, _Side], name: str
    ) -> tuple[Tensor, Tensor]:
        """Cell of b for each cell of a (B, N), and whether it is its partner (B, N)."""
        config = self.config
        stride = self._stride(name)
        affines = [view.affine.flatten(0, 1) for view in pair]
        index, offset = nearest_tokens(affines[0], affines[1], self.size, stride)
        limit = config.positive_mm if name == "fine" else config.coarse_positive_mm
        near = offset.norm(dim=-1) < self._in_mm(limit, 1.0, affines[1], stride)
        if name == "coarse" and config.coarse_positive_z_mm > 0:
            near &= offset[..., 0].abs() < config.coarse_positive_z_mm
        valid = sides[0].valid & sides[1].valid.gather(1, index)
        return index, near & valid

    def _in_mm(
        self, told: float, cells: float, affine: Tensor, stride: Index
    ) -> Tensor | float:
        """A distance as told, or that many cells of each sample's view, (B, 1)."""
        if told > 0:
            return told
        sides = affine[..., :3, :3].norm(dim=-2) * constant(
            stride, affine.device, affine.dtype
        )
        widest: Tensor = sides.amax(-1, keepdim=True)
        return cells * widest

    def _anchors(
        self, sides: tuple[_Side, _Side], partner: Tensor, matched: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index of anchors (B, A), their vectors, their positives, which of them count.

        A pair of crops without a common place has no positives: its anchors are their
        own (cosine 1), and only the negatives teach.
        """
        numbers = uniform(keys + _ANCHORS, matched.shape[1])
        some = matched.any(1, keepdim=True)
        allowed = torch.where(some, matched, sides[0].valid)
        index, counted = pick(numbers, allowed, self.config.anchors)
        anchors = gather_cells(sides[0].cells, index)
        there = gather_cells(sides[1].cells, partner.gather(1, index))
        return index, anchors, torch.where(some[..., None], there, anchors), counted

    def _fine_term(
        self,
        pair: tuple[View, View],
        sides: tuple[_Side, _Side],
        ups: tuple[Tensor, Tensor],
        keys: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Paper: SAM fine."""
        config = self.config
        partner, matched = self._partners(pair, sides, "fine")
        index, anchors, positives, counted = self._anchors(
            sides, partner, matched, keys
        )
        pool = torch.cat([side.cells for side in sides], 1)
        with torch.no_grad():
            scores = anchors @ pool.mT
            scores += gather_cells(ups[0], index) @ torch.cat(ups, 1).mT
            forbidden = self._too_near(pair, sides, index, partner, matched, "fine")
            numbers = _rows(keys + _HARD, anchors.shape[1], config.hardest)
        taken, usable = hard_negatives(
            scores, forbidden, numbers, config.hardest, config.negatives
        )
        loss = place_contrast(
            anchors,
            positives,
            gather_cells(pool, taken),
            config.temperature,
            counted=counted,
            usable=usable,
        )
        return loss, matched.float().mean()

    def _coarse_term(
        self,
        pair: tuple[View, View],
        sides: tuple[_Side, _Side],
        keys: Tensor,
        case: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Paper: SAM coarse."""
        config = self.config
        partner, matched = self._partners(pair, sides, "coarse")
        index, anchors, positives, counted = self._anchors(
            sides, partner, matched, keys
        )
        pool = torch.cat([side.cells for side in sides], 1)
        with torch.no_grad():
            scores = anchors @ pool.mT
            forbidden = self._too_near(pair, sides, index, partner, matched, "coarse")
            numbers = _rows(keys + _HARD, anchors.shape[1], config.coarse_hardest)
        taken, usable = hard_negatives(
            scores, forbidden, numbers, config.coarse_hardest, config.coarse_negatives
        )
        negatives = gather_cells(pool, taken)
        if config.global_negatives and len(case) > 1:
            others, is_other = self._others(pool, sides, keys, case)
            count = anchors.shape[1]
            negatives = torch.cat(
                [negatives, others[:, None].expand(-1, count, -1, -1)], 2
            )
            usable = torch.cat([usable, is_other[:, None].expand(-1, count, -1)], 2)
        loss = place_contrast(
            anchors,
            positives,
            negatives,
            config.temperature,
            counted=counted,
            usable=usable,
        )
        return loss, matched.float().mean()

    def _too_near(
        self,
        pair: tuple[View, View],
        sides: tuple[_Side, _Side],
        index: Tensor,
        partner: Tensor,
        matched: Tensor,
        name: str,
    ) -> Tensor:
        """(B, A, 2N) bool: the own place in either view, its surroundings, padding."""
        config = self.config
        stride = self._stride(name)
        told = config.ignore_mm if name == "fine" else config.coarse_ignore_mm
        limit = self._in_mm(told, 0.5, pair[0].affine.flatten(0, 1), stride)
        places = torch.cat([side.mm for side in sides], 1)
        far = limit if isinstance(limit, float) else limit[..., None]
        near = squared_distances(gather_cells(places, index), places) < far**2
        cells = sides[0].cells.shape[1]
        near.scatter_(2, index[..., None], True)
        there = partner.gather(1, index)[..., None] + cells
        known = matched.gather(1, index)[..., None]
        near.scatter_(2, there, near.gather(2, there) | known)
        invalid = ~torch.cat([side.valid for side in sides], 1)
        return near | invalid[:, None]

    def _others(
        self, pool: Tensor, sides: tuple[_Side, _Side], keys: Tensor, case: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Random coarse cells (B, G, E) of other scans of the batch, and which are."""
        valid = torch.cat([side.valid for side in sides], 1)
        numbers = uniform(keys + _OTHERS, valid.numel())
        return cells_of_others(pool, valid, case, numbers, self.config.global_negatives)

    def monitors(self) -> dict[str, Tensor]:
        """Share of cells with a partner, spread of both vectors."""
        return super().monitors() | self._raw


def _rows(keys: Tensor, rows: int, count: int) -> Tensor:
    """Random numbers (B, rows, count)."""
    return uniform(keys, rows * count).reshape(len(keys), rows, count)
