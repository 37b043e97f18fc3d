"""Fixtures shared by all tests: a tiny cohort on disk and its store."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile

# Test files run side by side, one core each; must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Every process that a test starts would compile the whole package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The key of subjects is one of the tests' own, not the developer's.
os.environ["HOMOLOG_CONFIG"] = tempfile.mkdtemp(prefix="homolog-tests-config-")
# Nor are the models in their library.
os.environ.pop("HOMOLOG_MODELS", None)
with open(os.environ["HOMOLOG_CONFIG"] + "/library.json", "w") as _file:
    json.dump({"models": os.environ["HOMOLOG_CONFIG"] + "/models"}, _file)

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from rewriting import rewrite_for_all

sys.dont_write_bytecode = False
# What is imported is no garbage: looking through it, while tests are collected and ever
# after, was a fifth of the suite's time.
gc.disable()

# A busy machine is no fault: property tests have no deadline.
hypothesis.settings.register_profile("homolog", deadline=None)
hypothesis.settings.load_profile("homolog")

COHORT = 8
SHAPE = (32, 40, 40)
SPACING_MM = (8.0, 8.0, 8.0)


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: many a test waits for another process."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_configure(config: pytest.Config) -> None:
    """Before any other process of tests is started."""
    rewrite_for_all(config)


# Long ones that would come last otherwise, when one process works and the others wait.
FIRST = ("test_simulated_gpu.py", "test_steady.py", "test_distributed.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files go out in this order, one to each process that is free."""
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """From here on garbage is looked for, among what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What a test writes need not outlive a power cut.

    A quarter of the time of the store's tests went into 5,000 calls of ``os.fsync``.
    Whoever tests what happens when it fails puts a function of its own in its place.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # an open file it must be, all the same
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_models_of_the_package(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """Lists of models hold those of a test; what is built in has tests of its own."""
    from homolog.model_files import library

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "ENCODERS", tmp_path_factory.mktemp("built_in"))
        yield


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers that ``launch`` starts have torch loaded from the beginning.

    None outlives its test.
    """
    import types

    from homolog.runs import launch
    from warm import WarmPopen

    names = {name: getattr(subprocess, name) for name in subprocess.__all__}
    monkeypatch.setattr(
        launch, "subprocess", types.SimpleNamespace(**names | {"Popen": WarmPopen})
    )
    yield
    for child in launch._children:
        child.kill()
        child.wait()
    launch._reap()


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight labelled phantom patients in nnU-Net's layout, 32 x 40 x 40 at 8 mm."""
    from homolog.phantom.phantom import write_cohort

    folder = tmp_path_factory.mktemp("phantoms")
    write_cohort(folder, COHORT, seed=0, shape=SHAPE, spacing_mm=SPACING_MM)
    return folder


@pytest.fixture(scope="session")
def phantom_store(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """The open store of those patients; read it, do not write into it."""
    store = _store_of(phantom_folder, COHORT, tmp_path_factory.mktemp("store"))
    _align_by_landmarks(store, phantom_folder)
    return store


@pytest.fixture(scope="session")
def three_patients(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """The open store of the first three, without a table of matching places."""
    return _store_of(phantom_folder, 3, tmp_path_factory.mktemp("three"))


def _store_of(folder: Path, count: int, place: Path):
    from homolog.events import drain
    from homolog.index.datasets import CaseSource
    from homolog.phantom.anatomy import LABEL_NAMES
    from homolog.store.build import write_store
    from homolog.store.store import Store

    cases = [
        CaseSource(
            id=label.name.removesuffix(".nii.gz"),
            image=folder / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz"),
            label=label,
            modality="CT",
            subject=label.name.removesuffix(".nii.gz"),
            split=None,
            target=None,
            boxes=(),
            label_names=dict(LABEL_NAMES),
        )
        for label in sorted((folder / "labelsTr").iterdir())[:count]
    ]
    out = place / "phantoms"
    drain(write_store(cases, out))
    return Store.open(out)


def _align_by_landmarks(store, folder: Path) -> None:
    """A table of matching places, from the phantoms' own landmarks."""
    import numpy as np

    from homolog.scans.points import read_points
    from homolog.store.pairs import ROW, PairTable, write_pairs

    ids = tuple(card.id for card in store.cards)
    found = [read_points(folder / "landmarks" / f"{name}.csv") for name in ids]
    rows = []
    for a, points in enumerate(found):
        b = (a + 1) % len(ids)
        known = dict(zip(found[b].names, found[b].mm, strict=True))
        for name, mm in zip(points.names, points.mm, strict=True):
            if name in known:  # a small scan does not show every landmark
                rows.append((a, mm, b, known[name], 0.9, 1.0))
    table = PairTable(ids, np.array(rows, ROW), {"store_hash": store.hash})
    write_pairs(store.path, table)


@pytest.fixture(scope="session")
def data_kit() -> Path:
    """Folder of real scans, named by HOMOLOG_DATA_KIT; skips where there is none."""
    folder = os.environ.get("HOMOLOG_DATA_KIT", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("HOMOLOG_DATA_KIT does not name the folder of real scans")
    return Path(folder)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported encoder of random weights; read it, do not write into it."""
    import torch

    from homolog.backbones import build
    from homolog.config import to_dict
    from homolog.model_files.folder import save_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build("resunet", {"channels": [8, 16, 16]})
    card = {
        "kind": "encoder",
        "backbone": {"name": "resunet", "config": to_dict(backbone.config)},
        "embedding": {"maps": {"fine": 0, "features": 1}, "heads": []},
        "preprocessing": {"modality": "CT"},
        "window": [16, 24, 24],
        "licence": "as its scans",
    }
    folder = tmp_path_factory.mktemp("encoder") / "model"
    return save_model(folder, backbone.state_dict(), card)
