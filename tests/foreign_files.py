"""Weight files as other projects publish them: their names and shapes, small widths.

From MONAI's own networks where it has them; else from the published names. Values are
random; running statistics and norms are such that a network computes with them.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import (
    UNETR,
    SegResNet,
    SegResNetDS,
    SwinUNETR,
    ViT,
    resnet18,
    resnet50,
)
from torch import Tensor, nn

State = dict[str, Tensor]


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network with random weights, its norms not at their trivial start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make()
        for name, value in network.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                value.add_(0.1 * torch.rand_like(value))
            if name.endswith("running_var"):
                value.add_(0.5)
    return network.eval()


def swin_unetr(version_2: bool = True, outputs: int = 21, width: int = 12) -> nn.Module:
    """MONAI's, feature_size 12 instead of 48, 96 or 192."""
    return seeded(
        lambda: SwinUNETR(
            in_channels=1, out_channels=outputs, feature_size=width, use_v2=version_2
        )
    )


def unetr() -> nn.Module:
    """MONAI's, 64 wide instead of 768."""
    return seeded(
        lambda: UNETR(
            1, 5, (32, 32, 32), feature_size=16, hidden_size=64, mlp_dim=128,
            num_heads=1, proj_type="conv",
        )
    )  # fmt: skip


def vit(projection: str = "conv") -> nn.Module:
    """MONAI's, as BrainIAC v2 has it."""
    return seeded(
        lambda: ViT(
            1, (32, 32, 32), (16, 16, 16), 64, 128, 3, 1, proj_type=projection,
            qkv_bias=False,
        )
    )  # fmt: skip


def resnet3d(deep: bool = False, shortcut: str = "B") -> nn.Module:
    """MONAI's, of MedicalNet's shapes."""
    make = resnet50 if deep else resnet18
    return seeded(
        lambda: make(
            spatial_dims=3, n_input_channels=1, num_classes=2, shortcut_type=shortcut,
            conv1_t_stride=2, widen_factor=0.125,
        )
    )  # fmt: skip


def segresnet() -> nn.Module:
    """MONAI's plain one, as SuPreM has it."""
    return seeded(lambda: SegResNet(3, 8, 1, 4, blocks_down=(1, 2, 2, 4)))


def segresnet_ds(norm: str = "batch") -> nn.Module:
    """MONAI's, as CT-FM's segmentation has it."""
    return seeded(
        lambda: SegResNetDS(
            3, 4, in_channels=1, out_channels=3, blocks_down=(1, 2, 2, 4, 4), norm=norm,
            dsdepth=2,
        )
    )  # fmt: skip


def below(prefix: str, state: Mapping[str, Tensor]) -> State:
    """The same names behind a prefix."""
    return {f"{prefix}{name}": value for name, value in state.items()}


class Names:
    """A state made name by name."""

    def __init__(self, seed: int = 0) -> None:
        self.state: State = {}
        self._draw = torch.Generator().manual_seed(seed)

    def add(self, name: str, *shape: int) -> Tensor:
        """A random tensor."""
        value = torch.randn(shape, generator=self._draw) / math.sqrt(shape[-1])
        self.state[name] = value
        return value

    def norm(self, name: str, width: int) -> None:
        """Weight and bias."""
        self.state[f"{name}.weight"] = torch.ones(width)
        self.state[f"{name}.bias"] = torch.zeros(width)

    def linear(self, name: str, outside: int, inside: int, bias: bool = True) -> None:
        """Weight and bias."""
        self.add(f"{name}.weight", outside, inside)
        if bias:
            self.add(f"{name}.bias", outside)


CHANNELS, BLOCKS = (4, 8, 8), (1, 2, 1)


def resenc(channels: tuple[int, ...] = CHANNELS, blocks: tuple[int, ...] = BLOCKS,
           kernel: tuple[int, int, int] = (3, 3, 3)) -> State:  # fmt: skip
    """nnU-Net's residual encoder below ``encoder.``, each convolution named twice."""
    names = Names()

    def unit(place: str, outside: int, inside: int, kernel: tuple[int, ...]) -> None:
        weight = names.add(f"{place}.conv.weight", outside, inside, *kernel)
        names.state[f"{place}.all_modules.0.weight"] = weight
        if not place.split(".")[-2] == "skip":
            bias = names.add(f"{place}.conv.bias", outside)
            names.state[f"{place}.all_modules.0.bias"] = bias
        names.norm(f"{place}.norm", outside)
        for part in ("weight", "bias"):
            names.state[f"{place}.all_modules.1.{part}"] = names.state[
                f"{place}.norm.{part}"
            ]

    unit("encoder.stem.convs.0", channels[0], 1, kernel)
    inside = channels[0]
    for stage, (wide, count) in enumerate(zip(channels, blocks, strict=True)):
        for number in range(count):
            place = f"encoder.stages.{stage}.blocks.{number}"
            first = number == 0
            unit(f"{place}.conv1", wide, inside, kernel)
            unit(f"{place}.conv2", wide, wide, kernel)
            if first and inside != wide:
                step = 1 if stage else 0  # a pooling before the convolution
                unit(f"{place}.skip.{step}", wide, inside, (1, 1, 1))
            inside = wide
    return names.state


def nnssl_resenc() -> dict[str, Any]:
    """A checkpoint as nnssl and nnFoundation publish it."""
    encoder = resenc()
    state = encoder | below("decoder.", encoder)
    state |= {"decoder.stages.0.convs.0.conv.weight": torch.ones(8, 16, 3, 3, 3),
              "decoder.transpconvs.0.weight": torch.ones(8, 8, 2, 2, 2),
              "decoder.seg_layers.0.weight": torch.ones(1, 8, 1, 1, 1)}  # fmt: skip
    return {
        "network_weights": state, "nnssl_adaptation_plan": plan("ResEncL"),
        "trainer_name": "BaseMAETrainer", "init_args": {"device": "cuda"},
    }  # fmt: skip


def plan(architecture: str, spacing: list[float] | None = None) -> dict[str, Any]:
    """The plan in a checkpoint of nnssl."""
    return {
        "architecture_plans": {"arch_class_name": architecture, "arch_kwargs": None},
        "pretrain_plan": {"configurations": {"onemmiso": {
            "spacing": spacing or [1, 1, 1], "spacing_style": "onemmiso",
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False], "patch_size": [160, 160, 160],
        }}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [160, 160, 160],
        "key_to_encoder": "encoder.stages", "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv"], "key_to_lpe": None,
    }  # fmt: skip


def primus(width: int = 66, layers: int = 2, side: int = 2) -> State:
    """EVA blocks behind a convolution of patches, as nnssl's Primus."""
    names = Names()
    names.add("down_projection.proj.weight", width, 1, 8, 8, 8)
    names.add("down_projection.proj.bias", width)
    names.add("eva.pos_embed", 1, side**3, width)
    inner = width * 8 // 3
    for number in range(layers):
        place = f"eva.blocks.{number}"
        for part in ("gamma_1", "gamma_2"):
            names.state[f"{place}.{part}"] = torch.full((width,), 0.1)
        names.norm(f"{place}.norm1", width)
        names.norm(f"{place}.norm2", width)
        for part in "qkv":
            names.linear(f"{place}.attn.{part}_proj", width, width, part != "k")
        names.norm(f"{place}.attn.norm", width)
        names.linear(f"{place}.attn.proj", width, width)
        names.linear(f"{place}.mlp.fc1_g", inner, width)
        names.linear(f"{place}.mlp.fc1_x", inner, width)
        names.norm(f"{place}.mlp.norm", inner)
        names.linear(f"{place}.mlp.fc2", width, inner)
    names.norm("eva.norm", width)
    return names.state


def dino3d(width: int = 64, layers: int = 4, chunks: int = 2, side: int = 2) -> State:
    """The teacher of 3DINO; its blocks stand in chunks."""
    names = Names()
    names.add("cls_token", 1, 1, width)
    names.add("pos_embed", 1, side**3 + 1, width)
    names.add("mask_token", 1, width)
    names.add("patch_embed.proj.weight", width, 1, 16, 16, 16)
    names.add("patch_embed.proj.bias", width)
    for number in range(layers):
        place = f"blocks.{number // (layers // chunks)}.{number}" if chunks else (
            f"blocks.{number}")  # fmt: skip
        names.norm(f"{place}.norm1", width)
        names.linear(f"{place}.attn.qkv", 3 * width, width)
        names.linear(f"{place}.attn.proj", width, width)
        names.add(f"{place}.ls1.gamma", width)
        names.norm(f"{place}.norm2", width)
        names.linear(f"{place}.mlp.fc1", 4 * width, width)
        names.linear(f"{place}.mlp.fc2", width, 4 * width)
        names.add(f"{place}.ls2.gamma", width)
    names.norm("norm", width)
    return names.state


def resnet2d(
    widths: tuple[int, ...] = (8, 8, 16, 16), blocks: tuple[int, ...] = (1, 2, 1, 1),
    deep: bool = True, outside: int = 4,
) -> State:  # fmt: skip
    """torchvision's names; 64 to 512 wide in truth."""
    names = Names()

    def norm(place: str, width: int) -> None:
        names.norm(place, width)
        names.state[f"{place}.running_mean"] = torch.zeros(width)
        names.state[f"{place}.running_var"] = torch.ones(width)
        names.state[f"{place}.num_batches_tracked"] = torch.tensor(3)

    names.add("conv1.weight", widths[0], 3, 7, 7)
    norm("bn1", widths[0])
    inside = widths[0]
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        wide = width * outside if deep else width
        for number in range(count):
            place = f"layer{stage}.{number}"
            kernels = (1, 3, 1) if deep else (3, 3)
            sizes = (inside, width, width, wide) if deep else (inside, width, width)
            for i, k in enumerate(kernels, start=1):
                names.add(f"{place}.conv{i}.weight", sizes[i], sizes[i - 1], k, k)
                norm(f"{place}.bn{i}", sizes[i])
            if number == 0 and (inside != wide or stage > 1):
                names.add(f"{place}.downsample.0.weight", wide, inside, 1, 1)
                norm(f"{place}.downsample.1", wide)
            inside = wide
    return names.state


def renamed_fc(state: Mapping[str, Tensor]) -> State:
    """The perceptrons as MONAI's self-supervised Swin named them."""
    return {
        name.replace("mlp.linear1", "mlp.fc1").replace("mlp.linear2", "mlp.fc2"): value
        for name, value in state.items()
    }


def _swin_of(state: Mapping[str, Tensor]) -> State:
    return {n.removeprefix("swinViT."): v for n, v in state.items()
            if n.startswith("swinViT.")}  # fmt: skip


def _voco_ssl() -> State:
    whole = swin_unetr().state_dict()
    return {n: v for n, v in whole.items() if n.startswith(("swinViT.", "encoder"))}


def _nvidia() -> dict[str, Any]:
    swin = renamed_fc(_swin_of(swin_unetr(version_2=False).state_dict()))
    heads = {"rotation_head.weight": torch.ones(4, 192), "conv.weight": torch.ones(1),
             "contrastive_head.bias": torch.ones(5)}  # fmt: skip
    return {"state_dict": below("module.", swin | heads), "epoch": 3,
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}  # fmt: skip


def _suprem(network: nn.Module) -> dict[str, Any]:
    state = below("module.backbone.", network.state_dict())
    state["module.organ_embedding"] = torch.ones(32, 512)
    state["module.controller.weight"] = torch.ones(3, 4, 1, 1, 1)
    return {"net": state, "epoch": 2100, "args": argparse.Namespace(lr=1e-4)}


def _medicalnet(deep: bool, shortcut: str) -> dict[str, Any]:
    state = resnet3d(deep, shortcut).state_dict()
    state = {n: v for n, v in state.items() if not n.startswith("fc.")}
    return {"state_dict": below("module.", state), "epoch": 9}


def _brainiac() -> dict[str, Any]:
    state = resnet3d(deep=True).state_dict()
    state = {n: v for n, v in state.items() if not n.startswith("fc.")}
    heads = {"projection_head.0.weight": torch.ones(4, 4)}
    return {"state_dict": below("backbone.", state) | heads,
            "hyper_parameters": {"lr": 1e-3}}  # fmt: skip


def _ct_fm() -> State:
    state = segresnet_ds().state_dict()
    return {n: v for n, v in state.items() if n.startswith("encoder.")}


def _moco() -> dict[str, Any]:
    query, key = resnet2d(), resnet2d(blocks=(1, 2, 1, 1))
    state = below("module.encoder_q.", query) | below("module.encoder_k.", key)
    return {
        "state_dict": state | {"module.queue": torch.ones(8, 4)},
        "arch": "resnet50",
    }


def _radimagenet() -> State:
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6",
               "layer4": "7"}  # fmt: skip
    found = {}
    for name, value in resnet2d().items():
        first, _, rest = name.partition(".")
        found[f"backbone.{numbers[first]}.{rest}"] = value
    return found


def _dino() -> dict[str, Any]:
    heads = below("dino_head.", {"mlp.0.weight": torch.ones(4, 4)})
    return {"teacher": below("backbone.", dino3d()) | heads}


# File name as published -> what is in it. All can be imported.
FILES: Mapping[str, Callable[[], Any]] = {
    "VoCo_B_SSL_head.pt": _voco_ssl,
    "VoComni_B.pt": lambda: swin_unetr().state_dict(),
    "supervised_suprem_swinunetr_2100.pth": lambda: _suprem(swin_unetr(False, 14)),
    "self_supervised_nv_swin_unetr_5050.pt": _nvidia,
    "swin_unetr_btcv.pt": lambda: {"state_dict": swin_unetr(False, 14).state_dict()},
    "unetr_btcv.pt": lambda: unetr().state_dict(),
    "BrainIAC_v2.ckpt": lambda: {"state_dict": below("backbone.", vit().state_dict())},
    "vit_perceptron.pt": lambda: vit("perceptron").state_dict(),
    "BrainIAC.ckpt": _brainiac,
    "resnet_18_23dataset.pth": lambda: _medicalnet(False, "A"),
    "resnet_10.pth": lambda: _medicalnet(False, "B"),
    "resnet_50.pth": lambda: _medicalnet(True, "B"),
    "supervised_suprem_segresnet_2100.pth": lambda: _suprem(segresnet()),
    "ct_fm_segresnet/model.safetensors": lambda: segresnet_ds().state_dict(),
    "ct_fm_feature_extractor/model.safetensors": _ct_fm,
    "segresnet_ds_instance.pt": lambda: segresnet_ds("instance").state_dict(),
    "ct_fm.ckpt": lambda: {"state_dict": below("backbone.", _ct_fm())},
    "nnFoundationCNN/checkpoint_final.pth": nnssl_resenc,
    "nnunet_resenc/checkpoint_final.pth": lambda: {
        "network_weights": resenc(), "trainer_name": "nnUNetTrainer"
    },
    "nnFoundationViT/checkpoint_final.pth": lambda: {
        "network_weights": primus(), "nnssl_adaptation_plan": plan("PrimusM")
    },
    "3dino_vit_weights.pth": _dino,
    "resnet50_imagenet.pth": lambda: resnet2d()
    | {"fc.weight": torch.ones(10, 64), "fc.bias": torch.ones(10)},
    "resnet18_imagenet.pth": lambda: resnet2d(deep=False),
    "swav_800ep_pretrain.pth": lambda: below("module.", resnet2d())
    | {"module.projection_head.0.weight": torch.ones(8, 64),
       "module.prototypes.weight": torch.ones(3, 8)},
    "moco_v2_800ep_pretrain.pth": _moco,
    "RadImageNet_ResNet50.pt": _radimagenet,
}  # fmt: skip


def _plain_unet() -> State:
    names = Names()
    for stage, place in itertools.product(range(3), ("convs.0", "convs.1")):
        names.add(f"encoder.stages.{stage}.0.{place}.conv.weight", 8, 8, 3, 3, 3)
    return names.state


def _numbers(*given: tuple[str, tuple[int, ...]]) -> State:
    names = Names()
    for name, shape in given:
        names.add(name, *shape)
    return names.state


# File name -> (what is in it, what its refusal must say).
REFUSED: Mapping[str, tuple[Callable[[], Any], str]] = {
    "VoComni_nnunet.pt": (
        lambda: {"network_weights": _plain_unet()}, "PlainConvUNet of nnU-Net: a plain"
    ),
    "self_supervised_models_genesis_unet_620.pt": (
        lambda: {"state_dict": _numbers(
            ("module.down_tr64.ops.0.conv1.weight", (32, 1, 3, 3, 3)),
            ("module.down_tr64.ops.0.bn1.weight", (32,)),
        )},
        "Models Genesis: a plain U-Net",
    ),
    "anatomix.pth": (
        lambda: _numbers(("model.0.weight", (16, 1, 3, 3, 3)), ("model.1.bias", (16,))),
        "U-Net of anatomix: a plain",
    ),
    "STU-Net_base.model": (
        lambda: {"state_dict": _numbers(
            ("conv_blocks_context.0.0.conv1.weight", (32, 1, 3, 3, 3)),
        )},
        "STU-Net: its U-Net",
    ),
    "dinov2_vits14_pretrain.pth": (
        lambda: _numbers(
            ("cls_token", (1, 1, 8)), ("pos_embed", (1, 5, 8)),
            ("patch_embed.proj.weight", (8, 3, 14, 14)),
            ("blocks.0.norm1.weight", (8,)),
        ),
        "2D: of two dimensions",
    ),
    "resnext50.pth": (
        lambda: _numbers(
            ("conv1.weight", (8, 3, 7, 7)), ("layer1.0.conv1.weight", (8, 8, 1, 1)),
            ("layer1.0.conv2.weight", (8, 2, 3, 3)),
            ("layer1.0.conv3.weight", (32, 8, 1, 1)),
        ),
        "its convolutions are grouped",
    ),
    "wide_resnet50_2.pth": (
        lambda: resnet2d(outside=2), "widen 8 channels to 16, not fourfold"
    ),
    "allconvunet_tcia_fold1.pth": (
        lambda: _numbers(("conv0.weight", (5, 1, 3, 3, 3)), ("batch0.weight", (5,))),
        "in no layout that is known",
    ),
}  # fmt: skip


def write(folder: Path, name: str, content: Any) -> Path:
    """A weight file under its published name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({n: v.contiguous().clone() for n, v in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def all_files(folder: Path) -> Iterator[Path]:
    """Every file of FILES and REFUSED, written."""
    for name, make in FILES.items():
        yield write(folder, name, make())
    for name, (make, _) in REFUSED.items():
        yield write(folder, name, make())
