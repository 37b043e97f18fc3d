"""A small slice of the fuzz of readers; benchmarks/fuzz_readers.py runs thousands."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "fuzz_readers.py"


@pytest.mark.skipif(os.name == "nt", reason="memory and time limits of POSIX")
def test_fifty_damaged_scans_are_findings_or_sound() -> None:
    spec = importlib.util.spec_from_file_location("fuzz_readers", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_readers"] = module
    spec.loader.exec_module(module)
    result = module.fuzz(54, seed=7, flips=2)
    assert result["bad"] == []
    assert sum(result["total"].values()) == 54
    flips = result["one_bit_of_packed_voxels_flipped"]
    for name in ("nifti-gz", "nrrd-gz", "nhdr-gz", "nrrd-bz2", "mha-zlib", "png"):
        assert sum(flips[name].values()) >= 2
        assert "other" not in flips[name]
