"""A small slice of the fuzzes; the scripts in benchmarks/ run tens of thousands."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
POSIX = pytest.mark.skipif(os.name == "nt", reason="memory and time limits of POSIX")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@POSIX
def test_fifty_damaged_scans_are_findings_or_sound() -> None:
    result = script("fuzz_readers").fuzz(54, seed=7, flips=2)
    assert result["bad"] == []
    assert sum(result["total"].values()) == 54
    flips = result["one_bit_of_packed_voxels_flipped"]
    for name in ("nifti-gz", "nrrd-gz", "nhdr-gz", "nrrd-bz2", "mha-zlib", "png"):
        assert sum(flips[name].values()) >= 2
        assert "other" not in flips[name]


@POSIX
def test_a_hundred_damaged_lists_and_settings_are_refused_or_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    script("fuzz_readers")
    result = script("fuzz_files").fuzz(120, seed=11, heavy=False)
    assert result["bad"] == []
    assert sum(result["total"].values()) == 120
    assert set(result["formats"]) >= {"boxes", "points", "manifest", "plan", "run"}
