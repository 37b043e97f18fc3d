"""CPU time of a training step of each method, of fine-tuning and of predict: two trees.

The package as it was (``--before``, the src folder of another checkout) and as it is
work in a process each, on one store that the older one prepared, from the settings that
the older one resolved; their steps are measured in turn. Told is processor time, which
other processes take none of, the least of the rounds, with one thread.

    git worktree add /tmp/before d2c39cb
    python benchmarks/before_after.py --before /tmp/before/src --out FILE
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TRAINING = {"steps": 100_000, "log_every": 2, "checkpoint_every": 100_000}
METHODS = (
    "alice", "anatomical_embedding", "hundred_million", "joint", "mae", "mixcl", "s2dc",
    "swav",
)  # fmt: skip
SHAPE, SPACING_MM = (64, 96, 96), (4.0, 4.0, 4.0)


# In a process of each tree: names that both have.


def _job_of(kind: str) -> Any:
    from homolog.runs.jobs import job_of

    return job_of(kind)


def _advance(job: Any) -> tuple[int, float]:
    """Up to the next step that is told: its number, and processor seconds so far."""
    for event in job:
        if type(event).__name__ == "Step":
            return int(event.index), time.process_time()
    raise RuntimeError("the job ended")


def child() -> None:
    """Answers a line of JSON with a line of JSON, until there are no more."""
    import torch

    torch.set_num_threads(1)
    job: Any = None
    at = (0, 0.0)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        told = json.loads(line)
        answer: Any = None
        if told["do"] == "resolve":
            answer = _resolved(told["kind"], told["config"])
        elif told["do"] == "begin":
            job = _job_of(told["kind"])(told["config"], Path(told["folder"]))
            at = _advance(job)
        elif told["do"] == "step":
            then = _advance(job)
            answer = (then[1] - at[1]) / (then[0] - at[0])
            at = then
        elif told["do"] == "end":
            job.close()
            job = None
        elif told["do"] == "whole":
            began = time.process_time()
            for _ in _job_of(told["kind"])(told["config"], Path(told["folder"])):
                pass
            answer = time.process_time() - began
        print(json.dumps(answer), file=answers, flush=True)


def _resolved(kind: str, request: dict[str, Any]) -> dict[str, Any]:
    if kind == "pretrain":
        from homolog.pretrain.settings import resolve

        return resolve(**request)
    from homolog.config import to_dict

    try:
        from homolog.finetune.settings import resolve as resolve_task
    except ImportError:
        from homolog.tasks._finetune_settings import (  # type: ignore[no-redef,import-not-found]
            resolve as resolve_task,
        )
    return to_dict(resolve_task(request))


# The one that asks both.


class Tree:
    """A process with one of the two packages."""

    def __init__(self, source: Path) -> None:
        self.source = source.resolve()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child"], text=True, env=self.environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """With its package in front, and one thread."""
        return {**os.environ, "PYTHONPATH": str(self.source), "OMP_NUM_THREADS": "1"}

    def ask(self, do: str, **told: Any) -> Any:
        """The answer to one request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **told}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.source} gave up at {do} {told}")
        return json.loads(line)

    def command(self, *words: str) -> None:
        """A command of its own terminal."""
        subprocess.run(
            [sys.executable, "-m", "homolog.cli", *words], check=True,
            env=self.environment(), capture_output=True,
        )  # fmt: skip


def training_row(
    trees: dict[str, Tree], kind: str, request: dict[str, Any], rounds: int, room: Path
) -> dict[str, float]:
    """Least processor seconds a step of each tree, in turn, and their ratio."""
    config = trees["before"].ask("resolve", kind=kind, config=request)
    for name, tree in trees.items():
        folder = room / name
        folder.mkdir(parents=True)
        tree.ask("begin", kind=kind, config=config, folder=str(folder))
    took: dict[str, list[float]] = {name: [] for name in trees}
    for round_ in range(rounds + 1):
        for name in sorted(trees, reverse=bool(round_ % 2)):
            took[name].append(trees[name].ask("step"))
    for tree in trees.values():
        tree.ask("end")
    return _row({name: min(values[1:]) for name, values in took.items()})


def predict_row(
    trees: dict[str, Tree], told: dict[str, dict[str, Any]], rounds: int, room: Path
) -> dict[str, float]:
    """Least processor seconds of a scan's prediction: reading, network, writing."""
    took: dict[str, list[float]] = {name: [] for name in trees}
    for round_ in range(rounds + 1):
        for name in sorted(trees, reverse=bool(round_ % 2)):
            place = room / f"{name}{round_}"
            place.mkdir(parents=True)
            config = {**told[name], "out": str(place / "out"), "device": "cpu"}
            took[name].append(
                trees[name].ask(
                    "whole", kind="predict", config=config, folder=str(place)
                )
            )
    return _row({name: min(values[1:]) for name, values in took.items()})


def _row(took: dict[str, float]) -> dict[str, float]:
    return {
        "before_s": round(took["before"], 4),
        "after_s": round(took["after"], 4),
        "ratio": round(took["before"] / took["after"], 3),
    }


def measure(before: Path, rounds: int, only: list[str]) -> dict[str, Any]:
    """All rows."""
    from homolog.phantom.phantom import write_cohort

    trees = {"before": Tree(before), "after": Tree(HERE.parent / "src")}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        scans, store = room / "scans", room / "store"
        write_cohort(scans, 6, seed=0, shape=SHAPE, spacing_mm=SPACING_MM)
        trees["before"].command("prepare", str(scans), "--out", str(store))
        for name in METHODS:
            if not only or name in only:
                if name == "alice":
                    _pairs(trees["before"], store, room / "sam")
                request = {
                    "method": name, "stores": [str(store)], "recipe": "cpu",
                    "settings": {"training": TRAINING}, "device": "cpu",
                }  # fmt: skip
                rows[name] = training_row(
                    trees, "pretrain", request, rounds, room / name
                )
                print(name, rows[name], flush=True)
        if not only or "segment" in only:
            rows |= _segment_rows(trees, rounds, room, store, scans)
    return rows


def _pairs(tree: Tree, store: Path, run: Path) -> None:
    """Matching places of the store's scans, which Alice's crops are cut at."""
    tree.command(
        "pretrain", "anatomical_embedding", str(store), "--steps", "5", "--out",
        str(run), "--recipe", "cpu", "--device", "cpu",
    )  # fmt: skip
    tree.command("align", str(store), "--encoder", str(run), "--device", "cpu")


def _segment_rows(
    trees: dict[str, Tree], rounds: int, room: Path, store: Path, scans: Path
) -> dict[str, Any]:
    """A step of fine-tuning, and predictions by a model that the older tree made."""
    request = {
        "task": "segment", "store": str(store), "encoder": "scratch", "recipe": "cpu",
        "backbone": {"name": "resunet"}, "training": TRAINING, "device": "cpu",
    }  # fmt: skip
    rows = {"segment": training_row(trees, "finetune", request, rounds, room / "seg")}
    print("segment", rows["segment"], flush=True)
    trees["before"].command(
        "finetune", "segment", str(store), "--encoder", "scratch", "--steps", "5",
        "--backbone", "resunet", "--out", str(room / "model"),
    )  # fmt: skip
    own = {
        "model": str(room / "model"),
        "scans": [str(next((scans / "imagesTr").glob("*.nii.gz")))],
    }
    for name, how in (
        ("predict, same windows", {"windows": "trained"}),
        ("predict", {}),
    ):
        told = {"before": own, "after": {**own, **how}}
        rows[name] = predict_row(trees, told, rounds, room / name)
        print(name, rows[name], flush=True)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true")
    options = parser.parse_args()
    if options.child:
        child()
        return
    found = measure(options.before, options.rounds, options.only)
    if options.out:
        from homolog.writing import write_json

        told = {"machine": platform.machine(), "torch": metadata.version("torch")}
        write_json(options.out, {**told, "rounds": options.rounds, "rows": found})


if __name__ == "__main__":
    main()
