"""The table of bars: its scripts, tests and results are there, and its page is true."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bars() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "homolog_bars", TOP / "benchmarks" / "__main__.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_bar_has_its_script_or_its_tests(bars: ModuleType) -> None:
    for bar in bars.BARS:
        where = TOP if bar.is_tests else TOP / "benchmarks"
        assert (where / bar.words[0]).is_file(), bar.id
    assert len({bar.id for bar in bars.BARS}) == len(bars.BARS)


def test_the_page_tells_what_the_results_say(bars: ModuleType) -> None:
    page = (TOP / "docs" / "bars.md").read_text(encoding="utf-8")
    assert page == bars.markdown(), "python -m benchmarks --markdown docs/bars.md"


def test_a_result_below_its_target_is_not_met(
    bars: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "RESULTS", tmp_path)
    bar = next(bar for bar in bars.BARS if bar.id == "S10")
    assert bar.measured() is None, "no results, no figure"
    found = {"batch": 8, "rows": 1e6, "bar_ms": 2.0}
    for slow, met in ((1.9, True), (2.1, False)):
        rows = {**found, "processor_ms_per_batch": {"95": slow}}
        (tmp_path / "pair_lookup.json").write_text(json.dumps(rows))
        told = bar.measured()
        assert told is not None
        assert told.met is met


def test_failed_tests_are_no_success(
    bars: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "bars_tests.json"
    monkeypatch.setattr(bars, "OF_TESTS", kept)
    bar = next(bar for bar in bars.BARS if bar.id == "R6")
    for passed, failed, met in ((20, 0, True), (19, 1, False), (0, 0, False)):
        kept.write_text(json.dumps({"R6": {"passed": passed, "failed": failed}}))
        told = bar.measured()
        assert told is not None
        assert told.met is met
