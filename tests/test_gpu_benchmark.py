"""The script for a GPU that is lent for minutes runs through; no GPU is needed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from homolog.methods import METHODS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu  # type: ignore[import-not-found]

        yield gpu
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_every_row_is_made_in_small(script: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ["--tiny", "--device", "cpu", "--minutes", "5", "--out", str(out)]
    script.main([*words, "--skip", "segment/vit", "segment/nnformer", "compile/swin"])
    told = json.loads(out.read_text(encoding="utf-8"))
    rows = told["rows"]
    assert told["not_run"] == []
    assert [name for name, row in rows.items() if "error" in row] == []
    for name in METHODS.names():
        assert rows[f"correct/{name}"]["agrees"] is True
        assert rows[f"correct/{name}"]["worst"] == 0.0  # the CPU against itself
        assert rows[f"train/{name}"]["steps_s"] > 0
    kinds = {name.split("/")[0] for name in rows}
    assert kinds >= {"machine", "segment", "slide", "batch", "layout", "compile"}
    assert rows["slide/fp32"]["labels_that_differ"] < 1e-3
    assert rows["slide/whole_body"]["labels_that_differ"] < 0.02  # bfloat16


def row(script: ModuleType, name: str, make: Any, limit_s: float = 60.0) -> Any:
    return sys.modules["gpu_sheet"].Row(name, 1.0, limit_s, make)


def test_what_fails_or_hangs_stops_nothing(script: ModuleType, tmp_path: Path) -> None:
    def fails(found: dict[str, Any]) -> None:
        found["before"] = 1.0
        raise ValueError("no such kernel")

    def hangs(found: dict[str, Any]) -> None:
        while True:
            time.sleep(0.01)

    def works(found: dict[str, Any]) -> None:
        found["value"] = float("nan")

    path = tmp_path / "sheet.json"
    sheet = script.Sheet(path, time.monotonic() + 60, resumed=False)
    rows = [
        row(script, "fails", fails), row(script, "hangs", hangs, 0.2),
        row(script, "works", works),
    ]  # fmt: skip
    assert sheet.run(rows, CPU)
    made = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert made["fails"]["before"] == 1.0
    assert "no such kernel" in made["fails"]["error"]
    assert "ended after" in made["hangs"]["error"]
    assert made["works"]["value"] == "nan"


def test_no_row_begins_too_late_and_a_restart_goes_on(
    script: ModuleType, tmp_path: Path
) -> None:
    made: list[str] = []
    path = tmp_path / "sheet.json"

    def named(name: str) -> Any:
        return row(script, name, lambda found: made.append(name))

    script.Sheet(path, time.monotonic() + 60, resumed=False).run([named("a")], CPU)
    late = script.Sheet(path, time.monotonic() + 0.5, resumed=True)
    late.run([named("a"), named("b")], CPU)
    assert late.content["not_run"] == ["b"]
    again = script.Sheet(path, time.monotonic() + 60, resumed=True)
    again.run([named("a"), named("c")], CPU)
    assert made == ["a", "c"]
    assert again.content["restarts"] == 2


def test_random_numbers_are_the_same_on_every_device(script: ModuleType) -> None:
    def drawn() -> list[torch.Tensor]:
        torch.manual_seed(0)
        layer = torch.nn.Dropout(0.5)
        value = torch.ones(40)
        return [
            torch.rand(3), torch.randperm(9), torch.rand_like(value), layer(value),
            torch.empty(4).exponential_(), torch.bernoulli(value / 2),
        ]  # fmt: skip

    with script.HostRandom():
        first, second = drawn(), drawn()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert set(first[3].tolist()) == {0.0, 2.0}


def test_time_of_kernels_that_overlap_counts_once(script: ModuleType) -> None:
    union = sys.modules["gpu_profile"].union_of
    assert union([(0, 4), (2, 5), (7, 8), (1, 2)]) == 6
