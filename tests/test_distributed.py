"""Two processes with half the batch each are one process with all of it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from homolog import distributed
from homolog.errors import UnusableInput

PROGRAM = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("distributed")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return folder / "one", folder / "two"


def losses(folder: Path, columns: list[str]) -> torch.Tensor:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return torch.tensor([[float(row[c]) for c in columns] for row in rows])


@pytest.mark.parametrize(
    ("what", "columns"),
    [("toy", ["error", "pull"]), ("s2dc", ["global", "p2p", "p2s"])],
)
def test_losses_agree_for_twenty_steps(
    both: tuple[Path, Path], what: str, columns: list[str]
) -> None:
    one, two = (losses(folder / what, columns) for folder in both)
    assert one.shape == (20, len(columns))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("what", ["toy", "s2dc"])
def test_every_process_ends_with_the_same_state(
    both: tuple[Path, Path], what: str
) -> None:
    first, second = (
        torch.load(both[1] / f"{what}_{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert first.keys() == second.keys()
    own = {"queue"} if what == "toy" else set()  # the toy does not gather its queue
    for name in first.keys() - own:
        assert torch.equal(first[name], second[name]), name
    if what == "s2dc":
        assert int(first["queue.pointer"]) == 20 * 4 % len(first["queue.rows"])


def test_only_the_first_process_writes(both: tuple[Path, Path]) -> None:
    told = json.loads((both[1] / "told_1.json").read_text())
    assert told["saved"] == 0
    assert told["drawn"] == []
    first = json.loads((both[1] / "told_0.json").read_text())
    assert first["saved"] > 0
    assert first["drawn"] == list(range(2, 21, 2))


def test_a_stop_in_one_process_stops_all_at_the_same_step(
    both: tuple[Path, Path],
) -> None:
    ends = [json.loads((both[1] / f"told_{r}.json").read_text()) for r in (0, 1)]
    assert ends[0]["stopped_after"] == ends[1]["stopped_after"]
    assert 0 < ends[0]["stopped_after"] < 500


def test_gathered_rows_have_the_gradient_of_the_whole_batch(
    both: tuple[Path, Path],
) -> None:
    one, two = (
        torch.load(folder / "gradient_0.pt", weights_only=True) for folder in both
    )
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-5)


def test_one_process_is_a_world_of_one() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    here = distributed.world()
    assert (here.rank, here.size, here.is_first) == (0, 1, True)
    assert distributed.gather_rows_with_gradient(rows) is rows
    assert not distributed.gather_rows(rows).requires_grad
    assert torch.equal(distributed.sum_over_ranks(rows), rows.detach())
    assert torch.equal(distributed.mean_over_ranks(rows), rows.detach())
    assert torch.equal(distributed.max_over_ranks(rows), rows.detach())
    distributed.wait_for_all()


def test_without_torchrun_no_group_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with distributed.session(torch.device("cpu")) as here:
        assert here.size == 1
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("text", ["gpu", "cuda:x", "cuda:99", "", "cpu:0"])
def test_a_device_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(UnusableInput, match="device"):
        distributed.choose_device(text)


def test_auto_takes_what_there_is() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert distributed.choose_device("auto").type == expected
    assert distributed.choose_device("cpu").type == "cpu"
