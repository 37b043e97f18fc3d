"""Slices with their neighbours and a mask as channels, told apart one by one."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from classify_runs import learnt, prepared, run
from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store.store import Store
from homolog.tasks.classify.network import Stacked
from homolog.tasks.classify.space import ClassifyConfig, seen_channels
from homolog.tasks.classify.task import Classify

SHAPE = (8, 32, 32)
AFFINE = Affine.of((4.0, 1.0, 1.0), direction=np.diag([1.0, -1.0, -1.0]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Volumes whose marked slices lie below a bright one, and look like all others."""
    folder = tmp_path_factory.mktemp("below")
    rng = np.random.default_rng(0)
    rows = [["image", "channels", "label", "modality", "split"]]
    for number in range(24):
        data = rng.normal(100, 8, SHAPE)
        data[:, 8:24, 8:24] += 100
        bright = rng.choice(SHAPE[0] - 1, 2, replace=False) + 1
        data[bright, 10:22, 10:22] += 500
        marks = np.zeros(SHAPE, np.uint8)
        marks[bright - 1, 10:22, 10:22] = 1
        name, suspect = f"v{number:02}", np.zeros(SHAPE, np.uint8)
        suspect[:, 10:22, 10:22] = 1
        write_volume(
            Volume(data.astype(np.int16)[None], AFFINE), folder / f"{name}.nii.gz"
        )
        write_labels(LabelMap(marks, AFFINE), folder / f"{name}_seg.nii.gz")
        write_labels(LabelMap(suspect, AFFINE), folder / f"{name}_mask.nii.gz")
        split = "train" if number < 16 else "val" if number < 20 else "test"
        images = f"{name}.nii.gz|{name}_mask.nii.gz"
        rows.append([images, "T1|mask", f"{name}_seg.nii.gz", "MR", split])
    with (folder / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return prepared(folder / "scans.csv", tmp_path_factory.mktemp("store") / "s")


def test_neighbours_and_masks_are_channels_of_a_slice() -> None:
    """Paper: Hundred Million IV-D."""
    image = torch.arange(2 * 2 * 5 * 2 * 2.0).reshape(2, 2, 5, 2, 2)
    valid = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0]]).bool()
    seen = Stacked(2, neighbours=5, masks=(1,))
    found = seen(image, valid)
    assert found.shape == (2, seen.width, 5, 2, 2) == (2, 6, 5, 2, 2)
    assert torch.equal(found[0, 2], image[0, 0])  # the middle one is the slice itself
    assert torch.equal(found[0, 1, 2:], image[0, 0, 1:4])
    assert torch.equal(found[0, 4, 0], image[0, 0, 2])
    # beyond a scan's ends stand its last slices, not what lies outside it
    assert torch.equal(found[0, 0, 0], image[0, 0, 0])
    assert torch.equal(found[1, 0, 1], image[1, 0, 1])
    assert torch.equal(found[1, 4, 3], image[1, 0, 3])
    assert torch.equal(found[:, 5], (image[:, 1] > 0.5).float())
    mix = Stacked(2, 5, (1,), compress=3).mixing()
    assert mix is not None
    made = mix(torch.nn.functional.one_hot(torch.tensor([2]), 6).float()
               .reshape(1, 6, 1, 1, 1))  # fmt: skip
    assert made.shape == (1, 3, 1, 1, 1)
    assert (made - 1).abs().max() < 1.0  # it begins as the slice itself
    assert Stacked(1).mixing() is None


def test_what_neighbours_show_is_learnt(store: Store, tmp_path: Path) -> None:
    """Paper: Hundred Million IV-D."""
    card = store.cards[0]
    assert card.levels[1].intensity.high == 1.0  # the mask stays 0 and 1
    config = ClassifyConfig(labels="slices", neighbours=3, compress=2)
    assert seen_channels(config, card) == 2
    assert Classify(config).usable(card)
    settings = (
        "labels=slices", "neighbours=3", "slice_threshold=0.6", "window=8,32,32",
        "training.batch_size=6", "training.learning_rate=1e-2", "intensity=0",
    )  # fmt: skip
    out = learnt(store, tmp_path / "three", 60, *settings)
    told = run("evaluate", store.path, "--model", out)
    assert told["slices"]["auc"] > 0.9
    assert told["mean"]["auc"] == told["slices"]["auc"]
    assert told["mean"]["average_precision"] > 0.8
    assert 0.5 < told["mean"]["accuracy"] <= 1.0


def test_what_cannot_be_meant_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="odd number"):
        ClassifyConfig(neighbours=4)
    with pytest.raises(UnusableInput, match="are of an encoder of slices"):
        run(
            "finetune", "classify", store.path, "--encoder=scratch",
            "--backbone=resunet", "--set=backbone.channels=8,16", "--steps=1",
            "--set=labels=slices", "--set=neighbours=3", "--out", tmp_path / "no",
        )  # fmt: skip
