"""Answers at coarser resolutions while a segmentation is learnt, and none after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from classify_runs import run
from each import each
from homolog.backbones import build
from homolog.losses.segmentation import at_scale, dice_cross_entropy, scale_weights
from homolog.model_files.folder import load_model
from homolog.nn.decoders import suited_decoder
from homolog.store.store import Store
from homolog.tasks.segment.network import SegmentModule, SegmentNetwork
from homolog.views.view import View, Views, ViewSpec

KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "residual": ("resunet", {"channels": (8, 8, 16, 16)}, (16, 16, 16)),
    "slicewise": (
        "resnet2d",
        {"widths": (8, 8, 16, 16), "stage_blocks": (1, 1, 1, 1), "block": "basic"},
        (2, 64, 64),
    ),
    "swin_unetr": (
        "swin", {"feature_size": 12, "depths": (1, 1, 1, 1), "window": (4, 4, 4)},
        (32, 32, 32),
    ),
    "unetr": (
        "vit", {"hidden": 48, "layers": 4, "heads": 4, "inner": 48,
                "image_size": (16, 16, 16), "patch": (8, 8, 8)}, (16, 16, 16),
    ),
    "nnformer": (
        "nnformer", {"decoder": "nnformer", "feature_size": 8, "heads": (1, 2, 4, 8),
                     "depths": (1, 1, 1, 1), "windows": (4, 4, 4, 4)}, (16, 64, 64),
    ),
}  # fmt: skip


def network_of(kind: str, classes: int = 3) -> SegmentNetwork:
    name, settings, _ = KINDS[kind]
    torch.manual_seed(0)
    backbone = build(name, settings)
    return SegmentNetwork(backbone, suited_decoder(backbone, classes, 1))


def crop_of(image: Tensor, label: Tensor) -> Views:
    """A batch of one view each."""
    count = len(image)
    found: dict[str, Any] = dict.fromkeys(View.__dataclass_fields__)
    found |= {
        "image": image[:, None], "label": label[:, None],
        "affine": torch.eye(4, dtype=torch.float64).expand(count, 1, 4, 4),
    }  # fmt: skip
    return Views({"crop": View(**found)})


def test_each_scale_counts_half_of_the_finer_one_and_the_coarsest_nothing() -> None:
    assert scale_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    assert scale_weights(2) == [1, 0]
    assert scale_weights(1) == [1]
    assert sum(scale_weights(6)) == pytest.approx(1)


def test_coarse_labels_are_those_amid_the_cells() -> None:
    label = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    label[0, 2, 2, 2], label[0, 0, 0, 0], label[0, 1, 3, 3] = 2, 1, -1
    coarse = at_scale(label, (2, 2, 2))
    assert coarse.shape == (1, 2, 2, 2)
    assert coarse.dtype == torch.int64
    assert coarse[0, 0, 1, 1] == -1  # unlabelled stays so
    assert coarse[0, 0, 0, 0] == 0  # a corner is not the middle
    whole = torch.ones(1, 3, 5, 5, dtype=torch.int64)
    assert (at_scale(whole, (2, 3, 3)) == 1).all()


@each("kind", list(KINDS))
def test_every_decoder_tells_its_stages_and_heads_learn(kind: str) -> None:
    network = network_of(kind)
    module = SegmentModule(network, ViewSpec(size=KINDS[kind][2]), [0, 1, 2], deep=True)
    image = torch.randn(1, 1, *KINDS[kind][2])
    with torch.no_grad():
        network.eval()
        stages = network.stages(image)
        assert torch.allclose(stages[-1], network.features(image), atol=1e-6)
        network.train()
    channels = [features.shape[1] for features in stages]
    assert tuple(channels) == network.decoder.stage_channels
    volumes = [features[0, 0].numel() for features in stages]
    assert volumes == sorted(volumes)
    assert stages[-1].shape[2:] == image.shape[2:]
    label = torch.randint(0, 3, (1, *KINDS[kind][2]))
    losses = module.losses(crop_of(image, label), 0.0)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert module.coarse is not None
    assert len(module.coarse) == len(stages) - 2
    for head in module.coarse:
        assert head.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_the_loss_is_the_weighted_sum_of_its_scales() -> None:
    network = network_of("residual").eval()
    size = KINDS["residual"][2]
    deep = SegmentModule(network, ViewSpec(size=size), [0, 1, 2], deep=True)
    image, label = torch.randn(2, 1, *size), torch.randint(0, 3, (2, *size))
    told = deep.losses(crop_of(image, label), 0.0)
    _, third, second, fine = network.stages(image)
    assert deep.coarse is not None
    answers = [network.head(fine), deep.coarse[0](second), deep.coarse[1](third)]
    by_hand = [
        dice_cross_entropy(logits, at_scale(label, logits.shape[2:]))
        for logits in answers
    ]
    shares = [4 / 7, 2 / 7, 1 / 7]  # of three; the coarsest of four counts nothing
    dice = sum(w * d for w, (d, _) in zip(shares, by_hand, strict=True))
    entropy = sum(w * e for w, (_, e) in zip(shares, by_hand, strict=True))
    assert float(told["dice"]) == pytest.approx(float(dice), rel=1e-5)
    assert float(told["cross_entropy"]) == pytest.approx(float(entropy), rel=1e-5)
    plain = SegmentModule(network, ViewSpec(size=size), [0, 1, 2])
    alone = dice_cross_entropy(network(image), label)
    found = plain.losses(crop_of(image, label), 0.0)
    assert torch.equal(found["dice"], alone[0])
    assert torch.equal(found["cross_entropy"], alone[1])


def test_a_saved_model_has_no_further_heads(
    phantom_store: Store, phantom_folder: Path, tmp_path: Path
) -> None:
    """Paper: Alice nnFormer."""
    names = {}
    for deep in ("false", "true"):
        out = tmp_path / deep
        run(
            "finetune", "segment", phantom_store.path, "--encoder=scratch", "--steps=2",
            "--recipe=cpu", "--out", out, "--set=backbone.channels=8,8,16",
            "--set=window=16,16,16", "--set=training.dry_run_steps=0",
            "--validate=none", f"--set=deep_supervision={deep}",
        )  # fmt: skip
        model = load_model(out)
        names[deep] = set(model.state)
        assert model.card["task_config"]["deep_supervision"] == (deep == "true")
    assert names["true"] == names["false"]
    scan = next((phantom_folder / "imagesTr").glob("*.nii.gz"))
    result = run(
        "predict", scan, "--model", tmp_path / "true", "--out", tmp_path / "labels"
    )
    assert result["predicted"]
