"""2D ResNet: torchvision's residual network, key for key, a map of every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from monai.networks.layers.utils import get_norm_layer
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from torch import Tensor, nn

from homolog.backbones.base import Backbone, BackboneConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index
from homolog.small_maps import guard_small_maps

# Channels of a group of group norm.
_GROUP = 8


@dataclass(frozen=True)
class ResNet2DConfig(BackboneConfig):
    """Defaults are ResNet-50; widths (128, 256, 512, 1024) make it ResNet-50w2."""

    widths: tuple[int, ...] = option(
        (64, 128, 256, 512),
        "inner channels of each stage, fine to coarse; a bottleneck hands on four "
        "times as many",
        minimum=8,
    )
    stage_blocks: tuple[int, ...] = option(
        (3, 4, 6, 3), "residual blocks of each stage", minimum=1
    )
    block: str = option(
        "bottleneck",
        "basic is that of ResNet-18 and -34",
        choices=("bottleneck", "basic"),
    )
    norm: str = option(
        "batch",
        "batch is what ImageNet weights need; group suits batches of a few images, "
        "and slices of one volume",
        choices=("batch", "group", "instance"),
    )


# Paper: Hundred Million networks.
class ResNet2D(Backbone):
    """Stem of stride 2, max pooling, stages: maps of in-plane stride 2, 4, 8, 16, 32.

    The state dict has the keys of torchvision's ``resnet50`` without its classifier, so
    ImageNet and RadImageNet files load (``norm=batch``; three input channels are summed
    into one). Sizes must be multiples of the strides up to 16.

    Source: He et al., CVPR 2016; ResNet-50w2 as in Caron et al., NeurIPS 2020.
    Differs from torchvision: no classifier; the maps of all stages are returned; other
    norms may be chosen.
    """

    Config = ResNet2DConfig
    title = "ResNet, 2D"
    spatial_dims = 2
    decoder = "residual"
    prefixes = ("encoder.", "backbone.")
    SMALL = MappingProxyType(
        {
            "widths": [16, 32, 64, 128], "stage_blocks": [1, 1, 1, 1],
            "block": "basic", "norm": "group",
        }
    )  # fmt: skip
    # Slices are small samples, and one says little.
    FINETUNE = MappingProxyType(
        {
            "segment": {
                "cpu": {"batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 20},
                "gpu": {"batch_size": 16, "learning_rate": 4e-4},
            },
            "translate": {
                "cpu": {"batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 20},
                "gpu": {"batch_size": 16, "learning_rate": 4e-4},
            },
        }
    )

    def __init__(self, config: ResNet2DConfig) -> None:
        super().__init__(config)
        if not config.widths or len(config.widths) != len(config.stage_blocks):
            raise ConfigError(
                "widths and stage_blocks must name the same stages, at least one, got "
                f"{config.widths} and {config.stage_blocks}."
            )
        if config.norm == "group" and any(w % _GROUP for w in config.widths):
            raise ConfigError(
                f"with norm=group widths must be multiples of {_GROUP}, got "
                f"{config.widths}."
            )
        first = config.widths[0]
        self.conv1 = nn.Conv2d(
            config.in_channels, first, 7, stride=2, padding=3, bias=False
        )
        self.bn1 = _norm(config, first)
        self.act = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        expansion = _block(config).expansion
        inside = first
        for number, (width, blocks) in enumerate(
            zip(config.widths, config.stage_blocks, strict=True), start=1
        ):
            stride = 1 if number == 1 else 2
            self.add_module(
                f"layer{number}", _stage(config, inside, width, blocks, stride)
            )
            inside = width * expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu"
                )
        self.channels = (first, *(w * expansion for w in config.widths))
        strides = [2 ** (i + 1) for i in range(len(config.widths) + 1)]
        self.strides = tuple((1, s, s) for s in strides)
        side = min(strides[-1], 16)
        self.size_divisor: Index = (1, side, side)
        guard_small_maps(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> five maps (B, E_i, h_i, w_i), stride 2 to 32."""
        self.check_size(cast("Index", (1, *image.shape[-2:])))
        found = self.act(self.bn1(self.conv1(image)))
        maps = [found]
        found = self.maxpool(found)
        for number in range(1, len(self.config.widths) + 1):
            found = self.get_submodule(f"layer{number}")(found)
            maps.append(found)
        return tuple(maps)

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave the classifier out."""
        return {k: v for k, v in state.items() if not k.startswith("fc.")}


def _block(config: ResNet2DConfig) -> Any:
    return ResNetBottleneck if config.block == "bottleneck" else ResNetBlock


def _stage(
    config: ResNet2DConfig, inside: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    kind = _block(config)
    wide = width * kind.expansion
    shortcut: nn.Module | None = None
    if stride != 1 or inside != wide:
        shortcut = nn.Sequential(
            nn.Conv2d(inside, wide, 1, stride=stride, bias=False), _norm(config, wide)
        )
    norm = _norm_of(config, width)
    first = kind(inside, width, 2, stride, shortcut, norm=norm)
    return nn.Sequential(
        first, *(kind(wide, width, 2, norm=norm) for _ in range(blocks - 1))
    )


def _norm_of(config: ResNet2DConfig, channels: int) -> tuple[str, dict[str, Any]]:
    if config.norm == "group":
        return "group", {"num_groups": channels // _GROUP}
    return config.norm, {"affine": True}


def _norm(config: ResNet2DConfig, channels: int) -> nn.Module:
    norm: nn.Module = get_norm_layer(_norm_of(config, channels), 2, channels)
    return norm
