"""An encoder as a checkpoint that nnU-Net starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.errors import UnusableInput
from homolog.exporting.kinds import why_not
from homolog.exporting.portable import licence_page
from homolog.exporting.told import (
    CARD_FILE,
    card_lines,
    labels_of,
    public_card,
    title_of,
)
from homolog.model_files.decoder import load_decoder
from homolog.model_files.encoder import load_encoder
from homolog.writing import write_json, write_text, writing_folder

CHECKPOINT = "checkpoint_final.pth"
_CONFIGURATION = "3d_fullres"
_NETWORK = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
# nnU-Net keeps the parts of a layer a second time, by number.
_COPIES = {"conv": "0", "norm": "1"}
_SLOPE = 1e-2


def export_nnunet(source: Path, out: Path) -> dict[str, Any]:
    """Write a folder with checkpoint_final.pth, plans.json and dataset.json.

    nnU-Net's ``-pretrained_weights`` wants every tensor of its network but the last
    layers. The encoder is the model's, and so is a decoder of nnU-Net's kind; instead
    of another one stands what nnU-Net itself would start with, at random.

    Args:
        source: Run, model folder or weight file.
        out: New folder.

    Returns:
        ``tensors`` (the model's of ``encoder`` and ``decoder``, and ``all`` in the
        file) and ``lines``.

    Raises:
        UnusableInput: Another network than ``resenc``.
    """
    loaded = load_encoder(source)
    if reason := why_not(loaded.card, "nnunet"):
        raise UnusableInput(f"{source} cannot be written as nnunet: {reason}.")
    card = {**public_card(loaded.card), "encoder_id": loaded.encoder_id}
    plan = architecture(loaded.backbone)
    random = _decoder(plan["arch_kwargs"], _classes(card))
    taught = _taught(source, random)
    weights = network_weights(loaded.backbone, random | taught)
    told = {
        "plans": plans(card, plan),
        "dataset_json": dataset(card, loaded.backbone),
        "configuration": _CONFIGURATION,
        "fold": 0,
    }
    with writing_folder(out) as folder:
        content = {
            "network_weights": weights,
            "trainer_name": "nnUNetTrainer",
            "current_epoch": 0,
            "inference_allowed_mirroring_axes": None,
            "init_args": told,
        }
        torch.save(content, folder / CHECKPOINT)
        write_json(folder / "plans.json", told["plans"])
        write_json(folder / "dataset.json", told["dataset_json"])
        write_json(folder / CARD_FILE, card)
        write_text(folder / "README.md", _page(card, whole=bool(taught)))
        write_text(folder / "LICENSE", licence_page(card))
    own = len(loaded.backbone.state_dict())
    line = f"{own} tensors of the encoder, {len(taught)} of the decoder"
    if not taught:
        line = (
            f"{own} tensors of the encoder; the decoder is at random, as nnU-Net would "
            "start it"
        )
    tensors = {"encoder": own, "decoder": len(taught), "all": len(weights)}
    return {"tensors": tensors, "lines": [line]}


def architecture(backbone: Backbone) -> dict[str, Any]:
    """``architecture`` of a configuration in plans.json."""
    first = [_first(stage) for stage in backbone.get_submodule("stages").children()]
    return {
        "network_class_name": _NETWORK,
        "arch_kwargs": {
            "n_stages": len(first),
            "features_per_stage": [conv.out_channels for conv in first],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [list(conv.kernel_size) for conv in first],
            "strides": [list(conv.stride) for conv in first],
            "n_blocks_per_stage": list(backbone.config.blocks),
            "n_conv_per_stage_decoder": [1] * (len(first) - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _first(stage: nn.Module) -> nn.Conv3d:
    """The convolution that carries the stride of a stage."""
    return next(part for part in stage.modules() if isinstance(part, nn.Conv3d))


def network_weights(
    backbone: Backbone, decoder: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every tensor of nnU-Net's ResidualEncoderUNet by its name there.

    Args:
        backbone: Our encoder.
        decoder: Names within nnU-Net's decoder -> tensor.
    """
    own = {k: v.detach().clone() for k, v in backbone.state_dict().items()}
    encoder = with_copies(own)
    found = {f"encoder.{key}": value for key, value in encoder.items()}
    # the decoder of nnU-Net holds the encoder, too
    found |= {f"decoder.encoder.{key}": value for key, value in encoder.items()}
    rest = with_copies(decoder)
    return found | {f"decoder.{key}": value for key, value in rest.items()}


def with_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, those of layers under their second names, too."""
    found = dict(state)
    for key, value in state.items():
        before, _, last = key.rpartition(".")
        layer, _, part = before.rpartition(".")
        if part in _COPIES:
            found[f"{layer}.all_modules.{_COPIES[part]}.{last}"] = value
    return found


def _decoder(plan: Mapping[str, Any], classes: int) -> dict[str, Tensor]:
    """nnU-Net's decoder as it starts it: He's normal weights, no bias."""
    channels, steps = plan["features_per_stage"], plan["strides"]
    kernels = plan["kernel_sizes"]
    found: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number, stage in enumerate(range(len(channels) - 1, 0, -1)):
            below, here = channels[stage], channels[stage - 1]
            step, kernel = tuple(steps[stage]), tuple(kernels[stage - 1])
            layers = {
                f"transpconvs.{number}": nn.ConvTranspose3d(below, here, step, step),
                f"stages.{number}.convs.0.conv": nn.Conv3d(2 * here, here, kernel),
                f"seg_layers.{number}": nn.Conv3d(here, classes, 1),
            }
            for name, layer in layers.items():
                nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
                found[f"{name}.weight"] = layer.weight.detach()
                found[f"{name}.bias"] = torch.zeros(layer.out_channels)
            found[f"stages.{number}.convs.0.norm.weight"] = torch.ones(here)
            found[f"stages.{number}.convs.0.norm.bias"] = torch.zeros(here)
    return found


def _taught(source: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own decoder under nnU-Net's names; empty where it is another one.

    Args:
        source: Of the model.
        wanted: All that nnU-Net's decoder holds.
    """
    saved = load_decoder(source)
    if saved is None or not any(k.startswith("transpconvs.") for k in saved.state):
        return {}
    last = max(int(name.split(".")[1]) for name in wanted if "seg_layers" in name)
    found = {}
    for name, value in saved.state.items():
        if name.startswith("mixes."):
            name = name.replace("mixes.", "stages.", 1)
        elif name.startswith("head."):
            name = f"seg_layers.{last}.{name.removeprefix('head.')}"
        found[name] = value
    fits = all(k in wanted and wanted[k].shape == v.shape for k, v in found.items())
    return found if fits else {}


def _classes(card: Mapping[str, Any]) -> int:
    return max(len(labels_of(card)), 2)


def plans(card: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """plans.json: what of a plan is true of the encoder."""
    window = (card.get("task_spec") or {}).get("window") or card.get("window")
    how = card.get("preprocessing") or {}
    spacing = how.get("spacing_mm") or (card.get("learnt_spacing_mm") or {}).get(
        "largest"
    )
    values = ct_values(how)
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": window,
        "spacing": spacing,
        "normalization_schemes": [
            "CTNormalization" if values else "ZScoreNormalization"
        ],
        "use_mask_for_norm": [False],
        "architecture": dict(plan),
    }
    return {
        "dataset_name": "Dataset000_Homolog",
        "plans_name": "nnUNetResEncUNetHomologPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {_CONFIGURATION: configuration},
        **({"foreground_intensity_properties_per_channel": values} if values else {}),
    }


def ct_values(how: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What nnU-Net's CTNormalization cuts and divides by; empty where it is not ours.

    Differs from nnU-Net: the names say percentiles, mean and spread of labelled voxels;
    here they are the ends of the window and what makes of values what the network saw.
    """
    way = how.get("scaling", "usual")
    if how.get("modality") != "CT" or way in ("signed", "zscore"):
        return {}
    low, high = how.get("window_hu") or (-1000.0, 1000.0)
    mean, spread = {
        "usual": ((low + high) / 2, (high - low) / 2),
        "unit": (low, high - low),
        "dataset": how.get("dataset_hu") or (0.0, 1.0),
    }[way]
    ends = {"percentile_00_5": low, "percentile_99_5": high}
    return {
        "0": {k: float(v) for k, v in {**ends, "mean": mean, "std": spread}.items()}
    }


def dataset(card: Mapping[str, Any], backbone: Backbone) -> dict[str, Any]:
    """dataset.json: channels and labels."""
    names = (card.get("task_spec") or {}).get("channel_names") or []
    kind = (card.get("preprocessing") or {}).get("modality") or "image"
    count = backbone.config.in_channels
    labels = labels_of(card) or {0: "background"}
    return {
        "channel_names": {
            str(i): names[i] if i < len(names) and names[i] else kind
            for i in range(count)
        },
        "labels": {name: i for i, name in enumerate(labels.values())},
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }


def _page(card: Mapping[str, Any], *, whole: bool) -> str:
    """README.md."""
    decoder = "as well" if whole else "is random, as nnU-Net starts it"
    return "\n".join(
        [
            f"# {title_of(card)}, for nnU-Net", "",
            f"`{CHECKPOINT}` holds `network_weights` of a ResidualEncoderUNet: the "
            f"encoder is the model's, the decoder {decoder}. `plans.json` holds the "
            "network it belongs to.", "",
            "1. Plan and preprocess your dataset (`nnUNetv2_plan_and_preprocess -d ID "
            "-pl nnUNetPlannerResEncM`).",
            "2. In its plans, replace `architecture` of `3d_fullres` by the one of "
            "`plans.json`; the patch size must be a multiple of the product of the "
            "strides.",
            f"3. `nnUNetv2_train ID 3d_fullres 0 -p PLANS -pretrained_weights "
            f"{CHECKPOINT}`", "",
            "Scans were prepared for the encoder as told below; nnU-Net prepares by "
            "its own plan. Spacing and normalisation near to those below keep what it "
            "learnt.", "", *card_lines(card), "",
        ]
    )  # fmt: skip
