"""The segment task on a 2D encoder: slices through a 2D U-Net, stacked to a volume."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from each import each
from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.backbones.resnet2d import ResNet2D
from homolog.cli import cli
from homolog.config import to_dict
from homolog.events import Note, Request, Validated, drain
from homolog.feed.batches import Feed
from homolog.finetune.job import job
from homolog.finetune.settings import choose_cases, resolve
from homolog.geometry.affine import Affine
from homolog.model_files.encoder import load_encoder
from homolog.model_files.folder import load_model, save_model
from homolog.scans.files import read_labels, read_scan
from homolog.scans.volume import Volume
from homolog.sliding.blending import slices_at_once
from homolog.store.preprocess import Preprocessing, prepare_volume
from homolog.store.store import Store
from homolog.tasks.base import PredictOptions, Trained
from homolog.tasks.segment import network as _labelling
from homolog.tasks.segment.network import label_stored
from homolog.tasks.segment.task import Segment, SegmentConfig
from homolog.use.predict import open_trained

CPU = torch.device("cpu")
NET = {"widths": [8, 16], "stage_blocks": [1, 1], "block": "basic", "norm": "group"}


def network_of(spec: Mapping[str, Any] | None = None, norm: str = "group") -> Any:
    torch.manual_seed(0)
    backbone = build("resnet2d", {**NET, "norm": norm})
    told = {"channels": 1, "label_values": [0, 1, 2], **(spec or {})}
    return Segment(SegmentConfig()).network(backbone, told).eval()


def model_of(window: list[int], norm: str = "group") -> Trained:
    spec = {
        "window": window, "divisor": [1, 8, 8], "smallest": [1, 16, 16],
        "overlap": 0.5, "slicewise": True, "channels": 1, "modalities": ["CT"],
        "label_values": [0, 1, 2], "label_names": {"1": "one", "2": "two"},
        "flip": [0, 0, 0],
    }  # fmt: skip
    card = {"preprocessing": to_dict(Preprocessing())}
    return Trained(network_of(norm=norm), spec, card, CPU)


def scan_of(shape: tuple[int, int, int], affine: Affine | None = None) -> Volume:
    rng = np.random.default_rng(3)
    z, y, x = np.indices(shape)
    data = 300 * np.sin(x / 5 + z / 3) * np.cos(y / 7) + rng.normal(0, 60, shape)
    return Volume(data[None].astype(np.int16), affine or Affine.identity(), "s", "CT")


@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
def test_a_volume_equals_its_slices_one_by_one(norm: str) -> None:
    """Paper: Joint 2D U-Net."""
    network = network_of(norm=norm).double()
    image = torch.randn(2, 1, 5, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        whole, features = network(image), network.features(image)
        for b in range(2):
            for z in range(5):
                alone = image[b : b + 1, :, z : z + 1]
                found = network(alone)[0, :, 0]
                torch.testing.assert_close(whole[b, :, z], found, rtol=0, atol=1e-10)
        again = network.head(features.transpose(1, 2).flatten(0, 1))
    assert whole.shape == (2, 3, 5, 32, 48)
    assert features.shape == (2, 16, 5, 32, 48)
    again = again.unflatten(0, (2, 5)).transpose(1, 2)
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-12)


@each("shape", [(11, 40, 56), (4, 20, 70), (1, 64, 40), (3, 9, 11)])
def test_labels_do_not_depend_on_how_slices_are_grouped(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of([1, 32, 32])
    model.network.double()
    stored = scan_of(shape)
    seen: list[Tensor] = []
    normalise = _labelling.Normalise.__call__
    monkeypatch.setattr(
        _labelling.Normalise, "__call__",
        lambda self, w: seen.append(w) or normalise(self, w).double(),
    )  # fmt: skip
    found = []
    for voxels in (1, 3 * 32 * 32, 10**9):
        monkeypatch.setitem(_labelling.SLICES_VOXELS, "cpu", voxels)
        labels = drain(Segment(SegmentConfig()).run(stored, model=model))
        assert labels is not None
        found.append(labels.data)
        assert seen[-1].shape[2] == slices_at_once(shape[0], (1, 32, 32), voxels)
    assert len(np.unique(found[0])) > 1
    assert all(np.array_equal(found[0], other) for other in found[1:])
    for z in range(shape[0]):  # and a slice alone gets what it gets in its volume
        alone = Volume(stored.data[:, z : z + 1], stored.affine, "s", "CT")
        labels = drain(Segment(SegmentConfig()).run(alone, model=model))
        assert labels is not None
        assert np.array_equal(labels.data[0], found[0][z])


def test_no_slice_is_computed_twice_along_z(monkeypatch: pytest.MonkeyPatch) -> None:
    model, slices = model_of([1, 32, 32]), 0
    forward = model.network.forward

    def counting(image: Tensor) -> Tensor:
        nonlocal slices
        slices += image.shape[0] * image.shape[2]
        return forward(image)

    monkeypatch.setattr(model.network, "forward", counting)
    monkeypatch.setitem(_labelling.SLICES_VOXELS, "cpu", 4 * 32 * 32)
    drain(
        Segment(SegmentConfig()).run(
            scan_of((12, 32, 32)), model, PredictOptions(flips=(0,))
        )
    )
    assert slices == 12  # neither by overlap nor by mirroring the order of slices


@each(
    "depth, voxels, at_once",
    [(35, 512_000, 35), (35, 10 * 48 * 48, 9), (7, 1, 1), (1, 10**6, 1), (64, 64, 1)],
)
def test_a_volume_goes_through_in_equal_parts(
    depth: int, voxels: int, at_once: int
) -> None:
    assert slices_at_once(depth, (1, 48, 48), voxels) == at_once


def test_labels_lie_on_the_scans_own_grid() -> None:
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    scan = scan_of((9, 30, 22), Affine.of((3.0, 0.7, 0.8), (5.0, -40.0, 7.0), turn))
    labels = drain(Segment(SegmentConfig()).run(scan, model=model_of([1, 32, 32])))
    assert labels is not None
    assert labels.affine == scan.affine
    assert labels.shape == scan.shape
    assert labels.names == {1: "one", 2: "two"}


def described(store: Store, **changes: Any) -> tuple[Segment, Any, dict[str, Any]]:
    task = Segment(SegmentConfig(**changes))
    cases = choose_cases(store, task)
    spec = task.describe(cases.all, build("resnet2d", NET), CPU)
    return task, cases, spec


def test_the_window_is_one_slice_about_the_median_scan(phantom_store: Store) -> None:
    _, _, spec = described(phantom_store)
    assert spec["window"] == [1, 40, 40]
    assert spec["slicewise"] is True
    with pytest.raises(ValueError, match=r"needs one slice, sizes \(1, y, x\)"):
        described(phantom_store, window=(8, 32, 32))


def test_crops_are_slices_of_the_store_changed_within_their_plane(
    phantom_store: Store,
) -> None:
    """All changes of geometry together read one slice: no other z is mixed in."""
    task, cases, spec = described(
        phantom_store, window=(1, 32, 32), rotate_deg=40.0, scale=0.3, elastic_mm=20.0,
        flip=(1.0, 0.5, 0.5), balance=1.0, intensity=0.0,
    )  # fmt: skip
    module = task.module(network_of(spec), spec)
    feed = Feed(cases.train, module.views(), batch_size=8, seed=1, balance=1.0)
    batch = feed.batch(0)
    crop = feed.views(batch, CPU)["crop"]
    assert crop.size == (1, 32, 32)
    heights = set()
    for b in range(8):
        case = feed.cases[int(batch.case[b])]
        to_store = case.card.affine.inverse().matrix @ crop.affine[b, 0].numpy()
        y, x = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
        places = np.stack([np.zeros_like(y), y, x, np.ones_like(y)]).reshape(4, -1)
        z = (to_store @ places)[0]
        assert np.allclose(z, np.round(z[0]), atol=1e-9)
        heights.add((case.card.id, round(z[0])))
        assert crop.displacement_mm is not None
        field = crop.displacement_mm[b, 0].double()
        normal = torch.from_numpy(case.card.affine.direction[:, 0])
        moved = (field * normal[:, None, None, None]).sum(0).abs().max()
        assert moved < 1e-5 < field.abs().max()
        assert crop.label is not None
        assert (crop.label[b] > 0).any()
    assert len(heights) > 4  # from many scans and heights, not one slab


def config_of(store: Store, **changes: Any) -> dict[str, Any]:
    base = {
        "task": "segment", "store": str(store.path), "encoder": "scratch",
        "backbone": {"name": "resnet2d", **NET},
        "task_config": {"intensity": 0.0},
        "training": {"steps": 4, "batch_size": 4, "dry_run_steps": 0,
                     "precision": "fp32", "validate_every": 2},
        "device": "cpu",
    }  # fmt: skip
    return {**base, **changes}


def test_the_recipe_gives_a_small_network_and_many_slices() -> None:
    asked = {"store": "s", "backbone": {"name": "resnet2d"}}
    small = resolve({**asked, "recipe": "cpu"})
    assert small.backbone == {"name": "resnet2d", **ResNet2D.SMALL}
    assert small.training["batch_size"] == 16
    assert resolve({**asked, "recipe": "gpu"}).training["batch_size"] == 16
    hybrid = resolve({"store": "s", "backbone": {"name": "hybrid"}})
    assert hybrid.training == small.training
    assert resolve({"store": "s"}).training["batch_size"] < 16


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_stopped_and_resumed_equals_uninterrupted(
    phantom_store: Store, tmp_path: Path, norm: str
) -> None:
    config = config_of(phantom_store)
    config["backbone"] = {**config["backbone"], "norm": norm}
    result = drain(job(config, tmp_path / "whole"))
    assert result["steps"] == 4
    stream = job(config, tmp_path / "cut")
    while not isinstance(next(stream), Validated):
        pass
    stream.send(Request.STOP)
    assert drain(stream)["stopped"] is True
    assert drain(job(config, tmp_path / "cut"))["steps"] == 4
    whole, cut = (load_model(tmp_path / n).state for n in ("whole", "cut"))
    assert all(torch.equal(whole[n], cut[n]) for n in whole)
    task, model = open_trained(tmp_path / "cut", CPU)
    again = task.validate(model, choose_cases(phantom_store, task).val)
    assert again["dice"] == pytest.approx(result["best"]["dice"], abs=1e-6)


def saved_encoder(folder: Path, store: Store, name: str, backbone: Backbone) -> Path:
    card = {
        "kind": "encoder", "method": "swav",
        "backbone": {"name": name, "config": to_dict(backbone.config)},
        "preprocessing": to_dict(store.preprocessing),
    }  # fmt: skip
    return save_model(folder / "model", backbone.state_dict(), card)


def test_a_pretrained_slice_encoder_is_what_the_unet_starts_from(
    phantom_store: Store, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    encoder = build("resnet2d", NET)
    saved_encoder(tmp_path / "pre", phantom_store, "resnet2d", encoder)
    config = config_of(phantom_store, encoder=str(tmp_path / "pre"), backbone={})
    config["training"] = {**config["training"], "steps": 1, "learning_rate": 0.0}
    drain(job(config, tmp_path / "run"))
    model = load_model(tmp_path / "run")
    assert model.card["backbone"]["name"] == "resnet2d"
    assert model.card["encoder"]["method"] == "swav"
    for name, weight in encoder.state_dict().items():
        assert torch.equal(model.state[f"encoder.{name}"], weight)


def test_a_hybrid_hands_out_its_slice_encoder(
    phantom_store: Store, tmp_path: Path
) -> None:
    """Its weights are loaded first; what is saved is a plain 2D U-Net.

    Paper: Joint 2D U-Net.
    """
    torch.manual_seed(6)
    small = {"dim": 16, "layers": 1, "heads": 2, "inner": 16, "dropout": 0.0}
    pretrained = build("hybrid", {**NET, **small})
    saved_encoder(tmp_path / "pre", phantom_store, "hybrid", pretrained)
    config = config_of(phantom_store, encoder=str(tmp_path / "pre"), backbone={})
    config["training"] = {**config["training"], "steps": 1, "learning_rate": 0.0}
    drain(job(config, tmp_path / "run"))
    model, intra = load_model(tmp_path / "run"), pretrained.planar()
    assert intra.spatial_dims == 2
    assert model.card["backbone"]["name"] == "resnet2d"
    encoder = {n for n in model.state if n.startswith("encoder.")}
    assert encoder == {f"encoder.{n}" for n in intra.state_dict()}
    for name, weight in intra.state_dict().items():
        assert torch.equal(model.state[f"encoder.{name}"], weight)
    task, trained = open_trained(tmp_path / "run", CPU)
    assert isinstance(task, Segment)
    assert trained.network.slicewise
    again = load_encoder(tmp_path / "run").backbone  # and it starts the next one
    assert torch.equal(again.state_dict()["conv1.weight"], intra.conv1.weight)


def test_mirroring_along_z_is_neither_done_nor_warned_of() -> None:
    scan, model = scan_of((3, 32, 32)), model_of([1, 32, 32])
    events = list(
        Segment(SegmentConfig()).run(scan, model, PredictOptions(flips=(0, 2)))
    )
    told = [e.text for e in events if isinstance(e, Note)]
    assert any("mirrored along x" in text for text in told)
    assert not any("along z" in text for text in told)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of a disc, with their masks."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    y, x = np.indices((48, 40))
    rows = []
    for number in range(12):
        at, radius = rng.uniform(14, 26, 2), rng.uniform(6, 10)
        disc = np.hypot(y - at[0], x - at[1]) < radius
        image = np.clip(70 + 110 * disc + rng.normal(0, 12, disc.shape), 0, 255)
        names = f"p{number:02}.png", f"m{number:02}.png"
        for name, values in zip(names, (image, disc), strict=True):
            Image.fromarray(values.astype(np.uint8)).save(folder / name)
        rows.append([*names, "XR"])
    with (folder / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label", "modality"], *rows])
    return folder


def run(*arguments: object) -> str:
    outcome = CliRunner().invoke(
        cli, [*map(str, arguments), "--device=cpu"], standalone_mode=False
    )
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.stdout


def test_pictures_with_masks_are_learnt_and_labelled(
    pictures: Path, tmp_path: Path
) -> None:
    CliRunner().invoke(
        cli, ["prepare", str(pictures / "scans.csv"), "--out", str(tmp_path / "store")],
        standalone_mode=False,
    )  # fmt: skip
    net = [f"--set=backbone.{k}={','.join(map(str, v)) if isinstance(v, list) else v}"
           for k, v in NET.items()]  # fmt: skip
    run(
        "finetune", "segment", tmp_path / "store", "--encoder=scratch",
        "--backbone=resnet2d", *net, "--steps=40", "--recipe=cpu",
        "--out", tmp_path / "run", "--set=training.validate_every=40",
        "--set=training.dry_run_steps=0", "--set=training.learning_rate=5e-3",
        "--set=training.batch_size=4",
    )  # fmt: skip
    scan = pictures / "p00.png"
    run("predict", scan, "--model", tmp_path / "run", "--out", tmp_path / "out")
    labels = read_labels(tmp_path / "out" / "p00.nii.gz")
    assert labels.shape == read_scan(scan).shape == (1, 48, 40)
    truth = np.asarray(Image.open(pictures / "m00.png"))
    truth = truth if truth.shape == labels.data[0].shape else truth.T
    both = ((labels.data[0] == 1) & (truth > 0)).sum()
    assert 2 * both / ((labels.data[0] == 1).sum() + (truth > 0).sum()) > 0.8


def test_a_window_of_the_stored_volume_is_normalised_like_its_slices() -> None:
    """What a plain loop over stored slices gives, number by number."""
    model = model_of([1, 32, 32])
    prepared = prepare_volume(scan_of((5, 32, 32)), Preprocessing())
    result = drain(label_stored(model, prepared.data, prepared))
    assert result is not None
    normalise = _labelling.Normalise(prepared.levels, model.device)
    image = normalise(torch.from_numpy(prepared.data[None]))
    with torch.no_grad():
        loop = [model.network(image[:, :, z : z + 1]) for z in range(5)]
    expected = torch.cat([p[0].argmax(0) for p in loop])
    assert (result.labels.long() == expected).double().mean() > 0.9999
