"""The translate task: channels in, one channel out, in its own values and place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from each import each
from homolog.backbones import build
from homolog.config import ConfigError, from_dict, to_dict
from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.feed.batches import Feed, levels_of
from homolog.feed.reading import CaseRef
from homolog.finetune.job import job
from homolog.finetune.settings import resolve_request
from homolog.geometry.affine import Affine
from homolog.model_files.folder import save_model
from homolog.scans.channels import read_channels
from homolog.scans.files import read_scan
from homolog.scans.volume import Volume, closest_canonical, reorder_axes
from homolog.scans.write import write_volume
from homolog.sliding.sliding import slide_values
from homolog.sliding.windows import SlidingConfig
from homolog.store.build import prepare_store
from homolog.store.preprocess import Preprocessing
from homolog.store.store import Store
from homolog.tasks.base import Trained
from homolog.tasks.translate.network import Translation, thinned
from homolog.tasks.translate.task import Translate, TranslateConfig
from homolog.use.evaluate import evaluate_store
from homolog.use.predict import open_predictor, predict_scans

CPU = torch.device("cpu")
SHAPE = (16, 20, 24)
GRID = Affine.of((2.0, 1.0, 1.0), (5.0, -8.0, 30.0))


def smooth(seed: int) -> np.ndarray:
    from scipy import ndimage

    noise = np.random.default_rng(seed).standard_normal(SHAPE)
    return ndimage.gaussian_filter(noise, 2.0).astype(np.float32)


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A scan and another sequence of it, a bent function of its values."""
    given = smooth(seed)
    given = (given - given.min()) / np.ptp(given)
    return 1000.0 * given, 300.0 + 600.0 * (1.0 - given) ** 2


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("pairs")
    rows = ["image,channels,id,split,subject"]
    for number, split in enumerate(("train", "train", "train", "val", "test")):
        names = []
        for data, kind in zip(pair(number), ("T1", "T2"), strict=True):
            name = f"p{number}_{kind}.nii.gz"
            write_volume(Volume(data[None], GRID), root / name)
            names.append(name)
        rows.append(f"{names[0]}|{names[1]},T1|T2,p{number},{split},p{number}")
    (root / "cases.csv").write_text("\n".join(rows))
    drain(prepare_store([root / "cases.csv"], root / "store"))
    return Store.open(root / "store")


def request(store: Store, **more: Any) -> dict[str, Any]:
    return resolve_request(
        {
            "task": "translate", "store": str(store.path), "encoder": "scratch",
            "recipe": "cpu", "device": "cpu", "threads": 1,
            "backbone": {"name": "resunet", "channels": [8, 16]},
            "task_config": {"window": [16, 16, 16], "target": "T2", "intensity": 0.5},
            "training": {"steps": 60, "batch_size": 2, "validate_every": 30},
            **more,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(cohort: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    drain(job(request(cohort), run))
    return run


def test_a_sequence_is_made_from_another(trained: Path, cohort: Store) -> None:
    """Paper: S2DC Table 5."""
    task, model = open_predictor(trained, CPU)
    assert isinstance(task, Translate)
    result = drain(evaluate_store(task, model, cohort, "test"))
    methods = result["methods"]
    assert list(methods) == ["model", "input", "gaussian"]
    # it learnt the bent function; neither the input nor a filter knows it
    assert methods["model"]["psnr"] > methods["gaussian"]["psnr"] + 5.0
    assert methods["gaussian"]["psnr"] >= methods["input"]["psnr"]
    assert methods["model"]["nmse"] < 0.5 * methods["input"]["nmse"]
    assert any("PSNR" in line for line in result["lines"])


def test_the_image_lies_on_the_scans_grid_under_its_name(
    trained: Path, tmp_path: Path
) -> None:
    task, model = open_predictor(trained, CPU)
    given, truth = pair(4)
    moved = GRID.reorient((2, 0, 1), (True, False, True), SHAPE)
    turned = reorder_axes(given[None], (2, 0, 1), (True, False, True))
    for name, data, affine in (("a", given[None], GRID), ("b", turned, moved)):
        write_volume(
            Volume(np.ascontiguousarray(data), affine), tmp_path / f"{name}.nii.gz"
        )
    scans = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    result = drain(predict_scans(task, model, scans, tmp_path / "out"))
    assert result["failed"] == []
    made = [read_scan(tmp_path / "out" / scan.name) for scan in scans]
    for scan, image in zip(scans, made, strict=True):
        assert image.affine.close_to(read_scan(scan).affine, image.shape)
    one, other = (closest_canonical(image).data for image in made)
    assert np.allclose(one, other, atol=1e-2)
    # in the target's own values, as far as these have a place
    assert np.corrcoef(made[0].data[0].ravel(), truth.ravel())[0, 1] > 0.9
    assert abs(float(made[0].data.mean() - truth.mean())) < 60


def test_a_model_says_what_it_lacks(trained: Path, cohort: Store) -> None:
    with pytest.raises(ConfigError, match="must be above 1"):
        TranslateConfig(dose=0.5)
    config = request(cohort)
    config["task_config"] |= {"target": "FLAIR"}
    with pytest.raises(
        UnusableInput,
        match="have the channels T1 and T2, translate was to make and see FLAIR",
    ):
        drain(job(config, trained / "no"))
    told = from_dict(TranslateConfig, {"target": 1, "inputs": [0]})
    assert told.seen == ("0",)
    card = cohort.cards[0]
    assert Translate(told).usable(card)
    assert not Translate(TranslateConfig(inputs=("T1", "T9"))).usable(card)


def test_the_brightest_values_of_the_target_are_learnt(cohort: Store) -> None:
    task = Translate(TranslateConfig(target="T2", window=(16, 16, 16), flip=(0, 0, 0)))
    cases = [CaseRef(cohort, card) for card in cohort.cards]
    backbone = build("resunet", {"channels": (8, 16)})
    spec = task.describe(cases, backbone, CPU)
    module = task.module(task.network(backbone, spec), spec)
    feed = Feed(
        cases, module.views(), batch_size=2, seed=0, threads=0,
        targets=task.targets(cases, spec), unclipped=task.unclipped(spec),
    )  # fmt: skip
    views = feed.views(feed.batch(0), CPU)
    levels = levels_of([cases[0].card])
    image = views["target"].image
    high = float(levels.high.max())
    assert float(image[:, :, 1].max()) > high  # the target keeps what lies above
    assert float(image[:, :, 0].max()) <= high + 1e-5
    assert float(levels_of([cases[0].card], (1,)).outside[0, 1]) == float(
        levels.low[0, 1]
    )
    assert set(module.losses(views, 0.5)) == {"l1"}


def test_a_low_dose_keeps_the_mean_and_has_the_noise_of_its_counts() -> None:
    """Paper: S2DC Table 6."""
    values = torch.full((200_000,), 3.0)
    low = thinned(values, 20.0, 100.0, torch.Generator().manual_seed(0))
    # variance of Binomial(300, 1/20) * 20 / 100
    assert float(low.mean()) == pytest.approx(3.0, rel=5e-3)
    expected = 300 * (1 / 20) * (19 / 20) * (20 / 100) ** 2
    assert float(low.var()) == pytest.approx(expected, rel=2e-2)
    assert (thinned(torch.tensor([-1.0, 0.0]), 20.0, 100.0) == 0).all()


def test_a_full_dose_is_learnt_from_a_simulated_low_one(tmp_path: Path) -> None:
    """Paper: S2DC Table 6."""
    for number in range(3):
        dose = np.clip(smooth(10 + number) * 20.0 + 2.0, 0.0, None)
        path = tmp_path / "pet" / f"pet_{number}.nii.gz"
        write_volume(Volume(dose[None], GRID), path)
    drain(prepare_store([tmp_path / "pet"], tmp_path / "store"))
    store = Store.open(tmp_path / "store")
    config = request(
        store, task_config={"dose": 20, "counts": 20, "window": [16, 16, 16]}
    )
    config["cases"] = [card.id for card in store.cards]
    config["training"] |= {"steps": 60, "learning_rate": 6e-3}
    drain(job(config, tmp_path / "run"))
    task, model = open_predictor(tmp_path / "run", CPU)
    assert Translation.of(model.spec).absolute
    result = drain(evaluate_store(task, model, store, "all"))
    assert result["methods"]["model"]["psnr"] > result["methods"]["input"]["psnr"] + 3
    again = drain(evaluate_store(task, model, store, "all"))
    assert again["methods"] == result["methods"]  # the noise of a case is its own


class Plus(nn.Module):
    """The sum of the channels, voxel by voxel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.sum(1, keepdim=True)


@each("shape", [(9, 17, 23), (4, 5, 6), (1, 20, 20)])
def test_values_are_blended_back_to_what_each_window_says(shape: Any) -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((2, *shape)))
    config = SlidingConfig(window=(8, 8, 8), overlap=0.5, fill=(5.0, 7.0))
    found = drain(slide_values(Plus(), image, channels=1, config=config, device=CPU))
    assert found.values.shape == (1, *shape)
    assert torch.allclose(found.values[0], image.sum(0).float(), atol=1e-5)


def test_one_channel_of_an_encoder_becomes_several(
    cohort: Store, tmp_path: Path
) -> None:
    """Two channels alike are seen as the one was; and segment takes such an encoder."""
    torch.manual_seed(0)
    encoder = build("resunet", {"channels": (8, 16)})
    card = {
        "kind": "encoder", "method": "mae",
        "backbone": {"name": "resunet", "config": to_dict(encoder.config)},
        "preprocessing": to_dict(Preprocessing()),
    }  # fmt: skip
    save_model(tmp_path / "pre" / "model", encoder.state_dict(), card)
    config = request(cohort, encoder=str(tmp_path / "pre"), backbone={})
    config["task_config"] |= {"inputs": ["T1", "T2"], "dose": 0.0, "target": "T2"}
    task = Translate(TranslateConfig(inputs=("T1", "T2")))
    assert not task.usable(cohort.cards[0])  # the target is no input
    from homolog.model_files.encoder import load_encoder

    two = load_encoder(tmp_path / "pre", in_channels=2).backbone
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        one, both = encoder.eval()(image), two.eval()(image.repeat(1, 2, 1, 1, 1))
    for a, b in zip(one, both, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_channels_beyond_the_models_are_told(trained: Path, cohort: Store) -> None:
    task, model = open_predictor(trained, CPU)
    both = read_channels(cohort.cards[0].channel_sources)
    with pytest.raises(UnusableInput, match="takes 1 channel"):
        drain(task.run(both, model))
    assert isinstance(model, Trained)
    assert replace(model, precision="fp32").spec == model.spec
