"""Stores, runs and models that earlier versions made are used as before.

``old/VERSION.zip`` was made by that commit (``benchmarks/old_artifacts.py``), with what
came out of it then. On a machine like the one it was made on, the bytes must be equal;
elsewhere, where sums are rounded in another order, values must be close.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from homolog.cli import cli
from homolog.events import Finished
from homolog.runs.run import Run
from homolog.runs.worker import execute

OLD = Path(__file__).parent / "old"
VERSIONS = ("7a16592", "22e4530")  # before the folders were moved; just before that
CASES = 6


def _maker() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "old_artifacts.py"
    spec = spec_from_file_location("old_artifacts", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["old_artifacts"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = _maker()


@pytest.fixture(scope="module", params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The folder as it lay on the disk of who made it, in another place."""
    folder = tmp_path_factory.mktemp("old") / request.param
    MAKER.unpack(OLD / f"{request.param}.zip", folder)
    return folder


def _made(old: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((old / "made.json").read_text(encoding="utf-8"))
    return made


def _homolog(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def _same_machine(old: Path) -> bool:
    return bool(MAKER.machine() == _made(old)["machine"])


@pytest.mark.parametrize("name", ["pre", "seg"])
def test_runs_resume_to_the_same_end(old: Path, name: str, tmp_path: Path) -> None:
    run, made = Run(tmp_path / name), _made(old)
    shutil.copytree(old / "stopped" / name, run.folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert isinstance(list(execute(run))[-1], Finished)
    finally:
        torch.set_num_threads(threads)
    if _same_machine(old):
        assert MAKER.ends(run.folder) == made[name]
    last = MAKER.last_losses(run.folder)
    assert last == pytest.approx(made["last"][name], rel=0.02)


@pytest.mark.parametrize("name", ["seg", "quick"])
def test_models_predict_the_same_labels(old: Path, name: str, tmp_path: Path) -> None:
    windows = ["--windows=trained"] if name == "seg" else []
    scans = [
        old / "cohort" / "imagesTr" / "phantom_001_0000.nii.gz",
        old / "large" / "imagesTr" / "phantom_000_0000.nii.gz",
    ]
    _homolog("predict", *scans, "--model", old / name, "--out", tmp_path, *windows)
    for scan in scans:
        first, second = (
            MAKER.voxels(folder / scan.name)
            for folder in (old / f"of_{name}", tmp_path)
        )
        if _same_machine(old):
            np.testing.assert_array_equal(first, second)
        assert (first == second).mean() > 0.99


def test_an_encoder_makes_the_same_features(old: Path, tmp_path: Path) -> None:
    scan = old / "cohort" / "imagesTr" / "phantom_001_0000.nii.gz"
    _homolog("embed", scan, "--encoder", old / "pre", "--out", tmp_path)
    (path,), (before,) = (
        list(folder.glob("*.npy")) for folder in (tmp_path, old / "features")
    )
    # Names say how features were made; that was told more fully since the first one.
    assert path.name == before.name or old.name == VERSIONS[0]
    np.testing.assert_allclose(np.load(path), np.load(before), atol=0.01)
    if _same_machine(old):
        np.testing.assert_array_equal(np.load(path), np.load(before))


def test_a_store_is_brought_up_to_date(old: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(old / "store", store)
    before = MAKER.arrays(store)
    words = _homolog("prepare", old / "cohort", "--out", store)
    assert MAKER.arrays(store) == before
    # What makes a prepared case has not changed since the second version.
    kept = 0 if old.name == VERSIONS[0] else CASES
    assert f"{CASES - kept} prepared now, {kept} were current" in words
