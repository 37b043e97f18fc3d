"""Masked autoencoder: the control every cleverer method has to beat."""

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
from homolog.geometry.correspondence import token_grid
from homolog.losses.similarity import hidden_patch_error, to_patches
from homolog.methods.base import Case, CropConfig, MaskedCropConfig, Method
from homolog.nn.decoders import Decoder, suited_decoder
from homolog.nn.heads import DenseDecoder, TokenDecoder, tokens_of
from homolog.nn.masking import (
    cells_shown,
    hidden_patches,
    hidden_voxel_error,
    to_voxels,
    visible_tokens,
)
from homolog.recipes import Sources
from homolog.views.view import Intensity, View, Views, ViewSpec


@dataclass(frozen=True)
class MAEConfig(MaskedCropConfig):
    """Settings of the masked autoencoder; the defaults suit a small machine."""

    intensity_probability: float = as_in(
        CropConfig, "intensity_probability", default=0.0
    )
    decoder: str = option(
        "light",
        "what predicts the voxels: light, a small decoder of the coarse maps that is "
        "thrown away; full, that of a segmentation network, at full resolution, which "
        "a fine-tuning goes on with",
        choices=("light", "full"),
    )
    normalise: bool | None = option(
        None,
        "predict patches of mean 0 and std 1; automatic: with the light decoder alone, "
        "for a full one is to learn grey values, which tell organs apart",
        choices=(None, True, False),
    )
    decoder_width: int = option(96, "features inside the light decoder", minimum=8)


SOURCES: Mapping[str, Sources] = {
    "paper": {
        "paper: A.1": "method.mask_ratio method.normalise method.decoder_width "
        "method.decoder_layers training.learning_rate training.weight_decay "
        "training.beta2 backbone.name method.token_stride",
        "paper: 40 of 800 epochs": "training.warmup_steps",
        "own: crops of volumes in the place of pictures": "method.size method.scale "
        "method.rotate_deg training.steps training.batch_size",
    }
}


class MAE(Method):
    """Hide patches, predict their voxels.

    A backbone that can leave tokens out (``vit``) sees only the visible ones, and a
    small transformer decodes. Any other backbone sees the whole crop with the hidden
    blocks overwritten by a learnt value, and a light convolution decodes its maps from
    ``token_stride`` on. The hidden patches are a function of view and progress, not of
    a random state.

    With ``decoder=full`` every backbone sees the crop with the hidden blocks
    overwritten, and the decoder that a segmentation network would have makes every
    voxel of all its maps; the error is that of the hidden voxels. A fine-tuning then
    starts from this decoder, too.

    Predicting 0 of normalised patches costs 1.

    Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022;
    for other backbones Xie et al., "SimMIM", CVPR 2022; with the full decoder Wald et
    al., "Revisiting MAE pre-training for 3D medical image segmentation", CVPR 2025
    (nnssl).
    Differs from the paper: three axes; patches of padding are left out of the loss; the
    std of the target is at least 0.01; mask ratio 0.6 for blocks that a convolution
    sees around. The full decoder's ``gpu`` recipe differs from Wald et al.: a residual
    U-Net from stride 2 on with a light last stage, crops of 128 voxels, AdamW with a
    cosine, a learnt value instead of 0 in hidden blocks, 100 000 steps (theirs 250
    000).
    """

    Config = MAEConfig
    title: ClassVar[str] = "MAE: masked autoencoder"
    compares_samples: ClassVar[bool] = False
    paper: ClassVar[str] = (
        "He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022"
    )
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {
            "method": {"size": [48, 48, 48], "token_stride": 8, "decoder": "full"},
            "backbone": {"name": "resunet"},
            "training": {
                "steps": 400,
                "batch_size": 4,
                "learning_rate": 1e-3,
                "weight_decay": 0.05,
                "warmup_steps": 20,
            },
        },
        # 24 GB: batch 4 with accumulate 2; nnssl: 160^3, batch 6, SGD, 250 000 steps.
        "gpu": {
            "method": {
                "size": [128, 128, 128],
                "token_stride": 16,
                "mask_ratio": 0.75,
                "decoder": "full",
                "flip": [0.5, 0.5, 0.5],
            },
            "backbone": {
                "name": "resunet",
                "channels": [64, 128, 256, 320, 320],
                "blocks": 3,
            },
            "training": {
                "steps": 100_000,
                "batch_size": 8,
                "learning_rate": 5e-4,
                "weight_decay": 0.05,
                "warmup_steps": 2000,
            },
        },
        # 75% hidden, decoder of 8 blocks of 512, AdamW 1.5e-4 at batch 256, decay 0.05.
        "paper": {
            "method": {
                "size": [96, 96, 96],
                "token_stride": 16,
                "mask_ratio": 0.75,
                "rotate_deg": [0.0, 0.0, 0.0],
                "scale": [0.8, 1.25],
                "normalise": True,
                "decoder_width": 512,
                "decoder_layers": 8,
            },
            "backbone": {"name": "vit"},
            "training": {
                "steps": 100_000,
                "batch_size": 32,
                "learning_rate": 1.5e-4,
                "weight_decay": 0.05,
                "beta2": 0.95,
                "warmup_steps": 5000,
            },
        },
    }
    config: MAEConfig

    def __init__(self, backbone: Backbone, config: MAEConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        self.map_index = backbone.map_of_stride(config.token_stride)
        self.patch: Index = backbone.strides[self.map_index]
        self.grid: Index = token_grid(self.size, self.patch)
        self.backbone = backbone
        channels: int = backbone.config.in_channels
        voxels = channels * math.prod(self.patch)
        self.full = config.decoder == "full"
        self.whole = self.full or not backbone.drops_tokens
        if self.whole:
            self.mask_value = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))
        if self.full:
            self.decoder: nn.Module = suited_decoder(backbone, channels)
        elif backbone.drops_tokens:
            self.decoder = TokenDecoder(
                backbone.channels[self.map_index],
                grid=self.grid,
                hidden=config.decoder_width,
                layers=config.decoder_layers,
                out_features=voxels,
            )
        else:
            self.decoder = DenseDecoder(
                list(backbone.channels[self.map_index :]),
                hidden=config.decoder_width,
                out_features=voxels,
            )

    @classmethod
    def settled(
        cls, settings: Mapping[str, Any], cases: Sequence[Case]
    ) -> dict[str, Any]:
        """Whether targets are normalised follows from the decoder."""
        made = dict(settings)
        if made.get("normalise") is None:
            made["normalise"] = made.get("decoder", "light") == "light"
        return made

    def views(self) -> dict[str, ViewSpec]:
        """One crop."""
        config = self.config
        p = config.intensity_probability
        changes = Intensity(shift_probability=p, scale_probability=p)
        return {
            "crop": ViewSpec(
                size=self.size,
                rotate_deg=config.rotate_deg,
                scale=config.scale,
                flip=config.flip,
                intensity=changes,
            )
        }

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``reconstruction``: error of the hidden patches."""
        view = views["crop"]
        image = view.flat()
        mask = self.hidden(view, progress)
        counts = mask & cells_shown(view, self.patch, self.config.min_valid)
        made, wanted = self.reconstruct(image, mask), self.config.normalise
        normalise = not self.full if wanted is None else wanted
        if self.full:
            error = hidden_voxel_error(
                made, view, counts, self.patch, normalise=normalise
            )
        else:
            target = to_patches(image, self.patch)
            error = hidden_patch_error(made, target, counts, normalise=normalise)
        return {"reconstruction": error}

    def hidden(self, view: View, progress: float) -> Tensor:
        """(B V, N) bool, the patches hidden at this point of the training."""
        count = math.prod(self.grid)
        return hidden_patches(view, progress, count, self.config.mask_ratio)

    def reconstruct(self, image: Tensor, mask: Tensor) -> Tensor:
        """Images (B, C, D, H, W) and masks (B, N) -> predicted patches (B, N, P)."""
        if not self.whole:
            visible = visible_tokens(mask, self.config.mask_ratio)
            tokens: Tensor = self.backbone.forward_visible(image, visible)  # type: ignore[operator]
            self.watch("tokens", tokens.flatten(0, 1))
            predicted: Tensor = self.decoder(tokens, visible)
            return predicted
        blocks = to_voxels(mask, self.grid, self.patch)
        seen = torch.where(blocks, self.mask_value.to(image.dtype), image)
        maps = self.backbone.maps(seen)
        self.watch("tokens", tokens_of(maps[self.map_index]).flatten(0, 1))
        if isinstance(self.decoder, Decoder):
            made = self.decoder.dense_result(self.decoder.dense(seen, maps))
            return to_patches(made, self.patch)
        return tokens_of(self.decoder(maps[self.map_index :]))

    def encoder(self) -> Backbone:
        """The trained backbone."""
        return self.backbone

    def dense_decoder(self) -> Decoder | None:
        """The full decoder; the light one is dropped."""
        if self.backbone.planar() is not self.backbone:
            return None
        return self.decoder if isinstance(self.decoder, Decoder) else None
