"""Two processes with half the batch each are one process with all of it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from each import each
from homolog import distributed
from homolog.errors import UnusableInput
from homolog.methods import METHODS
from two_of_each import keys

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
    (folder / "said.txt").write_bytes(done.stderr)
    return folder / "one", folder / "two"


def losses(folder: Path, columns: list[str]) -> torch.Tensor:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return torch.tensor([[float(row[c]) for c in columns] for row in rows])


@pytest.mark.parametrize(
    ("what", "columns"),
    [
        ("toy", ["error", "pull"]),
        ("late", ["error", "pull"]),
        ("s2dc", ["global", "p2p", "p2s"]),
    ],
)
def test_losses_agree_for_twenty_steps(
    both: tuple[Path, Path], what: str, columns: list[str]
) -> None:
    one, two = (losses(folder / what, columns) for folder in both)
    assert one.shape == (20, len(columns))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("what", ["toy", "late", "s2dc"])
def test_every_process_ends_with_the_same_state(
    both: tuple[Path, Path], what: str
) -> None:
    first, second = (
        torch.load(both[1] / f"{what}_{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert first.keys() == second.keys()
    own = set() if what == "s2dc" else {"queue"}  # the toy does not gather its queue
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


@pytest.fixture(scope="module")
def runs(both: tuple[Path, Path]) -> tuple[Path, dict[str, list[int]], str]:
    """Their folder, the exit status of each process, and what was said."""
    folder = both[0].parent
    ends = json.loads((folder / "ends.json").read_text())
    return folder / "runs", ends, (folder / "said.txt").read_text()


def test_a_killed_training_of_two_goes_on_exactly(
    runs: tuple[Path, dict[str, list[int]], str],
) -> None:
    folder, ends, _ = runs
    assert ends["whole"] == ends["together"] == [0, 0]
    assert 9 in ends["killed"]
    for file in (
        "metrics.csv", "checkpoints/step_00000020/state.safetensors",
        "checkpoints/step_00000020/state.json",
    ):  # fmt: skip
        whole, killed = (folder / run / file for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), file
    assert json.loads((folder / "killed" / "run.json").read_text())["sessions"] == 2


def test_another_number_of_processes_is_refused(
    runs: tuple[Path, dict[str, list[int]], str],
) -> None:
    _, ends, said = runs
    assert ends["alone"] == [2]
    assert ends["three"] == [2, 2, 2]
    assert "is trained by 2 processes, got 1 process" in said
    assert said.count("is trained by 2 processes, got 3 processes") == 1
    assert "torchrun --nproc-per-node 2 -m homolog.cli runs resume" in said


def test_what_one_process_refuses_or_meets_is_told_and_ends_all(
    runs: tuple[Path, dict[str, list[int]], str],
) -> None:
    folder, ends, said = runs
    assert ends["taken"] == [2, 2]
    assert "exists (finished)" in said
    assert ends["fails"] == [1, 1]
    last = json.loads((folder / "fails" / "events.jsonl").read_text().splitlines()[-1])
    assert last["message"] == "process 1 of 2 failed: case 3 could not be read."


def test_memory_that_ends_in_one_process_is_told_by_all(
    runs: tuple[Path, dict[str, list[int]], str],
) -> None:
    folder, ends, _ = runs
    assert ends["full"] == [1, 1]
    last = json.loads((folder / "full" / "events.jsonl").read_text().splitlines()[-1])
    told = "process 1 of 2 failed: not enough memory for batch_size 2 on 2 processes"
    assert last["message"].startswith(told)


@each("key", keys())
def test_two_processes_are_one_for_each(both: tuple[Path, Path], key: str) -> None:
    (one,), two = (
        [
            torch.load(folder / f"each_{rank}.pt", weights_only=True)[key]
            for rank in range(count)
        ]
        for count, folder in enumerate(both, 1)
    )
    name = key.split("/")[0]
    alone = METHODS.get(name).per_rank if name in METHODS.names() else {}
    assert one["bad"] == two[0]["bad"] == 0
    for term, value in one["terms"].items():
        if not set(alone) & {term.split(" of ")[0]} and (
            not alone or term.endswith("step 0")
        ):
            assert two[0]["terms"][term] == pytest.approx(value, rel=1e-3, abs=1e-6)
            assert two[0]["terms"][term] == two[1]["terms"][term]
    for weight, value in two[0]["weights"].items():
        assert torch.equal(value, two[1]["weights"][weight]), weight


def test_a_command_for_one_process_runs_in_the_first_alone(
    runs: tuple[Path, dict[str, list[int]], str],
) -> None:
    _, ends, said = runs
    assert ends["info"][1] == 0
    assert ends["info"][0] != 0  # there is no such scan
    assert said.count("info works in one process, the other 1 ") == 1


def test_each_process_works_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    for name, value in {
        "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "usable_gpus", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: done.append(("set", d)))
    group = torch.distributed
    monkeypatch.setattr(
        group, "init_process_group", lambda *a, **k: done.append((a, k["device_id"]))
    )
    monkeypatch.setattr(group, "destroy_process_group", lambda: done.append("end"))
    device = distributed.choose_device("auto")
    with distributed.session(device):
        pass
    gpu = torch.device("cuda", 1)
    assert done == [("set", gpu), (("nccl",), gpu), "end"]
    with pytest.raises(UnusableInput, match="each takes its own"):
        distributed.choose_device("cuda:0")
    monkeypatch.setattr(distributed, "usable_gpus", lambda: 1)
    with pytest.raises(UnusableInput, match="2 processes on this machine with 1"):
        distributed.choose_device("cuda")


def test_a_wait_for_a_process_that_failed_is_broken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aborted = threading.Event()
    monkeypatch.setattr(distributed, "failure_elsewhere", lambda: "process 1 failed")
    with distributed._watch(aborted.set, every_s=0.001):
        assert aborted.wait(10)


def test_the_cpu_works_beside_a_broken_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    assert distributed.choose_device("cpu").type == "cpu"
    assert distributed.choose_device("auto").type == "cpu"
    with pytest.raises(UnusableInput, match="0 usable GPUs"):
        distributed.choose_device("cuda")


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


@each("text", ["gpu", "cuda:x", "cuda:99", "", "cpu:0"])
def test_a_device_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(UnusableInput, match="device"):
        distributed.choose_device(text)


def test_auto_takes_what_there_is() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert distributed.choose_device("auto").type == expected
    assert distributed.choose_device("cpu").type == "cpu"
