"""``homolog align``, and what ``homolog pretrain alice`` says where it was not run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from homolog.cli import cli
from homolog.pretrain.settings import MissingPairs
from homolog.store.pairs import read_pairs


def run(*words: object) -> dict[str, Any]:
    outcome = CliRunner().invoke(
        cli, [*map(str, words), "--json", "--device=cpu"], standalone_mode=False
    )
    if outcome.exception is not None:
        raise outcome.exception
    found: dict[str, Any] = json.loads(outcome.stdout.splitlines()[-1])
    return found


TINY = (
    "--backbone", "resunet", "--steps", 2, "--set", "backbone.channels=4,8,8",
    "--set", "method.size=16,16,16", "--set", "training.previews=0",
)  # fmt: skip


@pytest.fixture
def store(three_patients: Any, tmp_path: Path) -> Path:
    """A store without a table."""
    return Path(shutil.copytree(three_patients.path, tmp_path / "store"))


def test_alice_says_what_is_missing_and_the_aligner_makes_it(
    store: Path, tmp_path: Path
) -> None:
    alice = ("pretrain", "alice", store, "--out", tmp_path / "alice", *TINY,
             "--set", "method.token_stride=4", "--set",
             "method.least_score=-1", "--set",
             "method.largest_cycle_mm=0")  # fmt: skip
    with pytest.raises(MissingPairs, match="no table of matching places"):
        run(*alice)
    assert not (tmp_path / "alice").exists()
    sam = tmp_path / "sam"
    run("pretrain", "anatomical_embedding", store, "--out", sam, *TINY)
    run(*alice, "--aligner", sam)
    assert (tmp_path / "alice" / "model").is_dir()
    table = read_pairs(store)
    assert table is not None
    count = len(table.ids)
    assert count == 3
    assert set(np.unique(table.rows["case"])) == set(range(count))
    assert (table.rows["case"] != table.rows["partner"]).all()
    assert (table.rows["score"] <= 1 + 1e-3).all()
    assert np.isfinite(table.rows["cycle_mm"]).all()

    told = run("align", store, "--encoder", sam, "--points", 3, "--partners", 1)
    assert told["rows"] == 3 * 1 * count
    assert len(read_pairs(store).rows) == told["rows"]
    assert not list(store.glob(".align-*"))
