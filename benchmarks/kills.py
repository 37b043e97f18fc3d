"""Trainings killed at random moments and resumed, against the same left alone.

Every method and every learnt task, on phantom patients: the command is started, its
process is killed (SIGKILL) three times at random moments, each time resumed with
``homolog runs resume``, and in the end compared with a run that nobody disturbed. Equal
means: the same bytes of the last checkpoint's weights and optimiser, of ``model/`` and
of ``metrics.csv`` (its times left out). CPU, one thread.

    python benchmarks/kills.py [--out benchmarks/results/kills.json] [--only alice ...]
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, KILLS = 24, 3
TIMES = ("seconds", "step_s", "elapsed_s", "time", "data_s")

HYBRID = [
    "--set=backbone.widths=8,8,16,16", "--set=backbone.stage_blocks=1,1,1,1",
    "--set=backbone.block=basic", "--set=backbone.norm=group", "--set=backbone.dim=16",
    "--set=backbone.layers=1", "--set=backbone.heads=2", "--set=backbone.inner=16",
]  # fmt: skip
FLAT = [
    "--backbone=resnet2d", "--set=backbone.widths=8,16",
    "--set=backbone.stage_blocks=1,1", "--set=backbone.block=basic",
    "--set=backbone.norm=group",
]  # fmt: skip
CUBE = ["--set=method.size=16,16,16", "--set=method.token_stride=4"]
SMALL = {"resunet": ["--set=backbone.channels=4,8,8"], "hybrid": HYBRID}


def homolog(*arguments: object) -> list[str]:
    """The command line that starts one command in a process of its own."""
    return [sys.executable, "-m", "homolog.cli", *map(str, arguments)]


def called(*arguments: object) -> None:
    """A command that must succeed."""
    done = subprocess.run(homolog(*arguments), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{done.stderr}")


def prepared(work: Path) -> dict[str, Path]:
    """Stores of phantoms, and a table of matching places for alice."""
    from homolog.phantom.phantom import write_cohort

    source, store, sam = work / "cohort", work / "store", work / "sam"
    names = write_cohort(source, 8, test=1, shape=(32, 40, 40), spacing_mm=(8.0,) * 3)
    called("prepare", source, "--out", store)
    rows = [
        {"image": str(path), "class": "even" if i % 2 else "odd", "subject": path.name}
        for i, path in enumerate(sorted((source / "imagesTr").iterdir()))
    ]
    assert len(rows) + 1 == len(names)
    manifest = work / "classes.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    called("prepare", manifest, "--out", work / "classes")
    small = ["--set=method.size=16,16,16", "--set=backbone.channels=4,8,8"]
    called(
        "pretrain", "anatomical_embedding", store, "--recipe=cpu", "--steps=4", *small,
        "--out", sam, "--device=cpu",
    )  # fmt: skip
    return {"store": store, "classes": work / "classes", "sam": sam}


def commands(made: dict[str, Path]) -> dict[str, list[object]]:
    """What is trained: name -> arguments without ``--out``."""
    from homolog.methods import METHODS

    store = made["store"]
    found: dict[str, list[object]] = {}
    for name in METHODS.names():
        fields = METHODS.get(name).Config.__dataclass_fields__
        backbone = (METHODS.get(name).backbones or ("resunet",))[0]
        own = [f"--backbone={backbone}", *SMALL[backbone]]
        own += [s for s in CUBE if s.split(".")[1].split("=")[0] in fields]
        if backbone == "hybrid":
            own += [
                "--set=method.slice_size=1,32,32",
                "--set=method.small_size=1,16,16",
            ]
        if name == "alice":
            own += ["--aligner", str(made["sam"])]
        found[name] = ["pretrain", name, store, *own]
    found["segment"] = [
        "finetune", "segment", store, "--encoder=scratch", "--backbone=resunet",
        "--set=backbone.channels=4,8,8", "--set=window=16,16,16",
        "--set=training.validate_every=8",
    ]  # fmt: skip
    found["classify"] = [
        "finetune", "classify", made["classes"], "--encoder=scratch", *FLAT,
        "--set=training.validate_every=8",
    ]  # fmt: skip
    common = [
        "--recipe=cpu", f"--steps={STEPS}", "--device=cpu",
        "--set=training.log_every=1",
        "--set=training.checkpoint_every=3",
    ]  # fmt: skip
    return {name: [*arguments, *common] for name, arguments in found.items()}


def rows_of(run: Path) -> int:
    """Steps that metrics.csv holds so far."""
    try:
        return (run / "metrics.csv").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


def killed(arguments: list[str], run: Path, target: int, late_s: float) -> int:
    """Start it and kill it soon after a step; the step it had reached, -1: ended."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 300
    while rows_of(run) < target and process.poll() is None:
        if time.monotonic() > until:
            raise SystemExit(f"{run} did not reach step {target}")
        time.sleep(0.002)
    time.sleep(late_s)
    was_running = process.poll() is None
    process.kill()
    process.wait()
    return rows_of(run) if was_running else -1


def ends(run: Path) -> dict[str, str]:
    """Name of a part of a run -> digest of its bytes."""
    checkpoint = max((run / "checkpoints").iterdir())
    parts = {
        f"checkpoint/{p.name}": p.read_bytes()
        for p in sorted(checkpoint.iterdir())
        if p.suffix == ".safetensors"
    }
    parts |= {
        f"model/{p.name}": p.read_bytes()
        for p in sorted((run / "model").rglob("*.safetensors"))
    }
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        table = [
            {k: v for k, v in row.items() if k not in TIMES}
            for row in csv.DictReader(file)
        ]
    parts["metrics.csv"] = json.dumps(table).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}


def compare(name: str, arguments: list[object], work: Path, seed: int) -> dict:
    """Kill one training three times; whether it ends as the undisturbed one."""
    chance = random.Random(f"{seed}/{name}")
    whole, run = work / f"{name}_whole", work / f"{name}_killed"
    called(*arguments, "--out", whole)
    start = homolog(*arguments, "--out", run)
    at = []
    for target in sorted(chance.sample(range(1, STEPS - 1), KILLS)):
        begin = start if not at else homolog("runs", "resume", run)
        at.append(killed(begin, run, target, chance.uniform(0, 0.3)))
    finished = subprocess.run(
        homolog("runs", "resume", run), capture_output=True, text=True
    )
    if finished.returncode and rows_of(run) < STEPS:
        raise SystemExit(f"{name}: {finished.stderr}")
    first, second = ends(whole), ends(run)
    different = sorted(
        part
        for part in first.keys() | second.keys()
        if first.get(part) != second.get(part)
    )
    return {
        "killed_at_step": at, "kills": sum(a >= 0 for a in at),
        "parts": len(first), "different": different,
    }  # fmt: skip


def main() -> None:
    """Print a line a training, write the table, and fail if one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wanted = commands(prepared(work))
        names = options.only or list(wanted)
        table = {}
        for name in names:
            table[name] = compare(name, wanted[name], work, options.seed)
            print(name, json.dumps(table[name]), flush=True)
    result = {
        "steps": STEPS,
        "kills": sum(row["kills"] for row in table.values()),
        "equal": sum(not row["different"] for row in table.values()),
        "trainings": table,
    }
    print(f"{result['kills']} kills, {result['equal']} of {len(table)} equal")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if result["equal"] < len(table):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
