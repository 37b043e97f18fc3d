"""The examples run as they are written, on fewer steps."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from homolog.scans.files import read_header

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder that pretrain_and_look leaves, and what it returns."""
    out = tmp_path_factory.mktemp("look")
    return out, load("pretrain_and_look").main(out, steps=4)


def test_pretrain_and_look_finds_a_place_in_the_other_patient(
    looked: tuple[Path, float],
) -> None:
    out, away = looked
    assert (out / "pre" / "model" / "encoder.safetensors").is_file()
    # 4 steps teach nothing, but the place lies within the patient (320 x 384 x 384 mm)
    assert 0 <= away < 384


def test_landmarks_are_written_for_slicer_with_their_doubt(
    looked: tuple[Path, float], tmp_path: Path
) -> None:
    found = load("landmarks").main(looked[0] / "pre", tmp_path)
    assert len(found) > 20
    assert all(mark.accepted or mark.reason for mark in found)
    markups = json.loads((tmp_path / "b.mrk.json").read_text(encoding="utf-8"))
    (points,) = (m["controlPoints"] for m in markups["markups"])
    assert [p["label"] for p in points] == [mark.name for mark in found]


def test_finetune_and_predict_learns_the_large_organs(tmp_path: Path) -> None:
    liver = load("finetune_and_predict").main(tmp_path, steps=60)
    assert liver > 0.2  # 0.01 without learning
    for name in ("phantom_005", "phantom_006"):
        scan = read_header(tmp_path / "scans" / "imagesTs" / f"{name}_0000.nii.gz")
        labels = read_header(tmp_path / "labels" / f"{name}_0000.nii.gz")
        assert labels.shape == scan.shape
        assert labels.affine == scan.affine


def test_examples_stay_short() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    assert len(files) >= 3
    for path in files:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path.name
