"""Scans of thick slices: networks and crops follow them, in every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from homolog.config import from_dict, to_dict
from homolog.events import drain
from homolog.feed.batches import Feed
from homolog.finetune.settings import FinetuneConfig, check_cases, task_of
from homolog.finetune.settings import resolve_request as finetuning
from homolog.finetune.start import starting_point
from homolog.geometry.affine import Affine
from homolog.index.datasets import CaseSource
from homolog.methods import METHODS
from homolog.model_files.folder import save_model
from homolog.phantom.anatomy import LABEL_NAMES
from homolog.phantom.phantom import write_cohort
from homolog.pretrain.settings import (
    PretrainConfig,
    build_method,
    chosen_cases,
    find_partners,
    resolve,
)
from homolog.store.build import write_store
from homolog.store.store import Store
from homolog.training.run_settings import backbone_card
from homolog.views.plan import Scan, plan_views
from homolog.views.view import ViewSpec

SHAPE, SPACING = (18, 96, 96), (16.0, 4.0, 4.0)
STEPS = [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def thick(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three phantom patients in slices four times as thick as pixels are wide."""
    folder = tmp_path_factory.mktemp("thick")
    write_cohort(folder, 3, seed=0, shape=SHAPE, spacing_mm=SPACING)
    cases = [
        CaseSource(
            id=label.name.removesuffix(".nii.gz"),
            image=folder / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz"),
            label=label, modality="CT", subject=label.name.removesuffix(".nii.gz"),
            split=None, target=None, boxes=(), label_names=dict(LABEL_NAMES),
        )
        for label in sorted((folder / "labelsTr").iterdir())
    ]  # fmt: skip
    drain(write_store(cases, folder / "store"))
    return Store.open(folder / "store")


def resolved(name: str, store: Store, /, **settings: Any) -> dict[str, Any]:
    own = {"pairs": "random"} if name == "alice" else {}
    own |= settings.pop("method", {})
    return resolve(
        name, [store.path], recipe="cpu", device="cpu",
        settings={"method": own, **settings},
    )  # fmt: skip


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_learns_from_thick_slices(name: str, thick: Store) -> None:
    """Its completed settings, one batch, a gradient, and its dense features."""
    config = from_dict(PretrainConfig, resolved(name, thick))
    method = build_method(config)
    cases = chosen_cases([thick], ())
    feed = Feed(
        cases, method.views(), batch_size=2, seed=0,
        partners=find_partners(method, [thick], cases, 0),
        targets=method.targets(cases),
    )  # fmt: skip
    terms = method.losses(feed.views(feed.batch(0), CPU), 0.0)
    torch.stack(list(terms.values())).sum().backward()
    assert all(value.isfinite() for value in terms.values())
    network = method.encoder()
    if network.spatial_dims == 3:
        size = next(iter(method.views().values())).size
        size = (max(size[0], network.size_divisor[0]), *size[1:])
        with torch.no_grad():
            maps = method.embedder()(torch.randn(1, 1, *size))
        assert all(found.isfinite().all() for found in maps.values())
    own = to_dict(config)["method_config"]
    assert resolved(name, thick, method=own)["method_config"] == own


def test_a_residual_network_and_its_crops_follow_the_slices(thick: Store) -> None:
    config = resolved("mae", thick)
    assert config["backbone"]["steps"] == STEPS
    z, y, x = config["method_config"]["size"]
    assert z % 4 == y % 16 == x % 16 == 0
    assert z < y == x
    assert z * y * x == pytest.approx(48**3, rel=0.25)
    assert config["method_config"]["rotate_deg"] == [20.0, 0.0, 0.0]
    assert any("slices are thick" in note for note in config["notes"])


def test_what_the_user_sets_stays(thick: Store) -> None:
    own = {"size": [16, 32, 32], "rotate_deg": [5.0, 5.0, 5.0]}
    steps = [[2, 2, 2]] * 4
    config = resolved("mae", thick, method=own, backbone={"steps": steps})
    assert config["backbone"]["steps"] == steps
    assert {key: config["method_config"][key] for key in own} == own


def test_cubes_are_learnt_from_as_ever(phantom_store: Store) -> None:
    config = resolved("mae", phantom_store)
    assert "steps" not in config["backbone"]
    assert config["method_config"]["rotate_deg"] == [20.0, 20.0, 20.0]
    request = {"store": str(phantom_store.path), "recipe": "cpu", "device": "cpu"}
    assert finetuning(request)["backbone"] == {"name": "resunet"}


def test_a_new_segmenter_follows_the_slices_and_an_encoder_brings_its_own(
    thick: Store, tmp_path: Path
) -> None:
    request = {"store": str(thick.path), "recipe": "cpu", "device": "cpu"}
    settings = finetuning(request)
    assert settings["backbone"]["steps"] == STEPS
    assert finetuning(settings) == settings
    complete = from_dict(FinetuneConfig, settings)
    cases = check_cases(complete)
    backbone = starting_point(complete, cases).backbone
    task = task_of(complete)
    spec = task.describe(cases.all, backbone, CPU)
    assert spec["window"] == [16, 96, 96]
    crop = task.module(task.network(backbone, spec), spec).views()["crop"]
    assert crop.rotate_deg == (15.0, 0.0, 0.0)
    own = {**settings, "backbone": {"name": "resunet", "steps": [[2, 2, 2]] * 4}}
    assert finetuning(own)["backbone"]["steps"] == [[2, 2, 2]] * 4

    other = {**settings["backbone"], "steps": [[1, 2, 2], *[[2, 2, 2]] * 3]}
    other.pop("name")
    network = type(backbone)(from_dict(type(backbone).Config, other))
    card = {"kind": "encoder", "backbone": backbone_card(network)}
    folder = save_model(tmp_path / "model", network.state_dict(), card)
    asked = finetuning({**request, "encoder": str(folder)})
    assert "steps" not in asked["backbone"]
    found = starting_point(from_dict(FinetuneConfig, asked), cases).backbone
    assert found.strides == network.strides
    more = resolved("mae", thick)["method_config"]["size"]
    started = resolve(
        "mae", [thick.path], recipe="cpu", device="cpu", encoder=str(folder)
    )
    assert started["backbone"]["steps"] == other["steps"]
    assert started["method_config"]["size"][0] % 8 == 0 != more[0]
    method = build_method(from_dict(PretrainConfig, started))
    assert method.encoder().strides == network.strides


@pytest.mark.parametrize("axis", range(3))
def test_views_of_thick_slices_copy_them(axis: int) -> None:
    """Zoom and bending stay within the slices; cubes are changed every way."""
    spacing = [1.0, 1.0, 1.0]
    spec = ViewSpec(
        size=(8, 8, 8), count=3, scale=(0.8, 1.3), anisotropy=0.2, elastic_mm=2.0
    )

    def plan(spacing: list[float]) -> tuple[Any, Any]:
        scan = Scan(Affine.of(spacing), (40, 40, 40))
        group = plan_views(
            {"one": spec}, scan, lambda rng: np.full(3, 20.0), seed=0, sample=0
        )["one"]
        lengths = np.linalg.norm(group.affine[:, :3, :3], axis=1)
        return lengths / spacing, np.abs(group.displacement_mm).max((0, 2, 3, 4))

    lengths, moved = plan(spacing)
    assert (lengths != 1).all()
    assert (moved > 0).all()
    spacing[axis] = 3.0
    lengths, moved = plan(spacing)
    assert (lengths[:, axis] == 1).all()
    assert moved[axis] == 0
    others = [a for a in range(3) if a != axis]
    assert (lengths[:, others] != 1).all()
    assert (moved[others] > 0).all()
