"""ResNet: MONAI's 3D residual network, key for key, returning a map of every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from monai.networks.layers.utils import get_norm_layer
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from torch import Tensor, nn
from torch.nn import functional

from homolog.backbones.base import Backbone, BackboneConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index
from homolog.small_maps import guard_small_maps


# Paper: SAM configuration.
@dataclass(frozen=True)
class ResNetConfig(BackboneConfig):
    """Defaults are ResNet-18; (1, 1, 1, 1) is ResNet-10, (3, 4, 6, 3) ResNet-34.

    With block=bottleneck (3, 4, 6, 3) is ResNet-50.
    """

    widths: tuple[int, ...] = option(
        (64, 128, 256, 512), "channels of each stage, fine to coarse", minimum=1
    )
    stage_blocks: tuple[int, ...] = option(
        (2, 2, 2, 2), "residual blocks of each stage", minimum=1
    )
    block: str = option(
        "basic",
        "basic is that of ResNet-18 and -34; a bottleneck (ResNet-50) hands on four "
        "times as many channels",
        choices=("basic", "bottleneck"),
        later=True,
    )
    norm: str = option(
        "instance",
        "instance suits batches of a few crops; batch is what MedicalNet weights need",
        choices=("instance", "batch"),
    )
    shortcut: str = option(
        "projection",
        "how a stage's input joins a wider output; padding is MONAI's type A "
        "(ResNet-18 and -34 of MedicalNet)",
        choices=("projection", "padding"),
        advanced=True,
    )
    stem_kernel: int = option(
        7, "kernel of the first convolution", minimum=3, maximum=7, advanced=True
    )
    z_stride: int = option(
        0,
        "no map is coarser than this across slices (4: strides 2, 4, 4, ... along z); "
        "0: as in plane",
        unit="voxel",
        choices=(0, 4, 8, 16),
        advanced=True,
    )


class ResNet(Backbone):
    """Stem of stride 2, max pooling, stages: maps of stride 2, 4, 8, 16 and 32.

    The state dict has the keys of MONAI's ``ResNet`` without its classifier, so
    MedicalNet files load (``norm=batch``; ResNet-18 and -34 ``shortcut=padding``,
    ResNet-50 ``block=bottleneck``).
    Sizes must be multiples of the strides up to 16; the map of stride 32 has
    ceil(n / 32) cells.

    Source: He et al., CVPR 2016; MONAI 1.6.1, networks/nets/resnet.py.
    Differs from MONAI: the norm holds in every layer (MONAI's argument reaches the stem
    only), gradients flow through padding shortcuts (MONAI's are cut by ``.data``), the
    first convolution has stride 2 as in MedicalNet.
    """

    Config = ResNetConfig
    title = "ResNet"
    decoder = "residual"
    prefixes = ("encoder.", "backbone.")
    SMALL = MappingProxyType(
        {"widths": [16, 32, 64, 128], "stage_blocks": [1, 1, 1, 1], "stem_kernel": 3}
    )

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        if not config.widths or len(config.widths) != len(config.stage_blocks):
            raise ConfigError(
                "widths and stage_blocks must name the same stages, at least one, got "
                f"{config.widths} and {config.stage_blocks}."
            )
        if config.stem_kernel % 2 == 0:
            raise ConfigError(f"stem_kernel must be odd, got {config.stem_kernel}.")
        first = config.widths[0]
        self.conv1 = nn.Conv3d(
            config.in_channels, first, config.stem_kernel, stride=2,
            padding=config.stem_kernel // 2, bias=False,
        )  # fmt: skip
        self.bn1 = _norm(config, first)
        self.act = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        inside = first
        sides = [2 ** (i + 1) for i in range(len(config.widths) + 1)]
        strides = [(min(s, config.z_stride or s), s, s) for s in sides]
        for number, (wide, blocks) in enumerate(
            zip(config.widths, config.stage_blocks, strict=True), start=1
        ):
            before, after = strides[number - 1 : number + 1]
            step = _ratio(before, after) if number > 1 else (1, 1, 1)
            layer = _stage(config, inside, wide, blocks, step)
            self.add_module(f"layer{number}", layer)
            inside = wide * _block(config).expansion
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu"
                )
        expansion = _block(config).expansion
        self.channels = (first, *(w * expansion for w in config.widths))
        self.strides = tuple(strides)
        self.size_divisor: Index = strides[min(len(strides), _EXACT) - 1]
        guard_small_maps(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> five maps (B, E_i, d_i, h_i, w_i), stride 2 to 32."""
        self.check_size(cast("Index", tuple(image.shape[-3:])))
        found = self.act(self.bn1(self.conv1(image)))
        maps = [found]
        found = self.maxpool(found)
        for number in range(1, len(self.config.widths) + 1):
            found = self.get_submodule(f"layer{number}")(found)
            maps.append(found)
        return tuple(maps)

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave the classifier out, and biases that a norm takes away again.

        MONAI's own projections have one. The mean over a batch takes it away; that of
        running statistics is moved by it.
        """
        found = {k: v for k, v in state.items() if not k.startswith("fc.")}
        for name in [n for n in found if n.endswith("downsample.0.bias")]:
            bias = found.pop(name)
            mean = name.replace("downsample.0.bias", "downsample.1.running_mean")
            if mean in found:
                found[mean] = found[mean] - bias
        return found


# Sizes must be multiples of the strides up to that of this map, of 16 in plane.
_EXACT = 4


def _ratio(before: Index, after: Index) -> Index:
    """Steps along z, y, x from a map to the next."""
    z, y, x = (b // a for a, b in zip(before, after, strict=True))
    return z, y, x


class _Padded(nn.Module):
    """Subsampled input, zeros in the channels it has not: MONAI's shortcut A."""

    def __init__(self, channels: int, stride: Index) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, found: Tensor) -> Tensor:
        z, y, x = self.stride
        thin = found[:, :, ::z, ::y, ::x]
        more = self.channels - thin.shape[1]
        return functional.pad(thin, (0, 0, 0, 0, 0, 0, 0, more))


def _block(config: ResNetConfig) -> Any:
    return ResNetBottleneck if config.block == "bottleneck" else ResNetBlock


def _stage(
    config: ResNetConfig, inside: int, width: int, blocks: int, stride: Index
) -> nn.Sequential:
    kind = _block(config)
    wide = width * kind.expansion
    shortcut: nn.Module | None = None
    if max(stride) != 1 or inside != wide:
        if config.shortcut == "padding":
            shortcut = _Padded(wide, stride)
        else:
            shortcut = nn.Sequential(
                nn.Conv3d(inside, wide, 1, stride=stride, bias=False),
                _norm(config, wide),
            )
    # MONAI's block carries the key names of its files
    steps: Any = stride  # which takes a step for each axis, too
    first = kind(inside, width, 3, steps, shortcut, norm=_norm_name(config))
    rest = [kind(wide, width, 3, norm=_norm_name(config)) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _norm_name(config: ResNetConfig) -> tuple[str, dict[str, bool]]:
    return config.norm, {"affine": True}


def _norm(config: ResNetConfig, channels: int) -> nn.Module:
    norm: nn.Module = get_norm_layer(_norm_name(config), 3, channels)
    return norm
