"""Trainings and jobs killed (SIGKILL) and gone on with, against the same left alone.

Every method and every learnt task, on phantom patients, in two kinds of runs:

* *steps*: killed at random moments after random steps, each time resumed with
  ``homolog runs resume``;
* *writing*: killed near its end; then each session kills itself right before its n-th
  write (a file opened to be written, renamed, linked, removed, a folder made), n drawn
  over all writes that the end of a training takes: checkpoints, ``best/``, ``model/``
  and the run's own files. Of what is not brought to the disk by then, under temporary
  names and at the end of the journals, half is cut away, as a power cut does.

Equal means: the same bytes of the last checkpoint's weights and optimiser, of
``model/`` and of ``metrics.csv`` (its times left out), and no temporary file left.
Jobs that do not resume (a store, few voxels, prediction) are killed right before their
writes, run again, and must end with the same files. CPU, one thread.

    python benchmarks/kills.py [--kills 20] [--only alice ...]

Rows are kept as they come; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded

RESULT = Path(__file__).parent / "results" / "kills.json"
STEPS = 24
TIMES = ("seconds", "step_s", "elapsed_s", "time", "data_s")
WAIT_S = 600.0
# What changes what lies on the disk, as Python tells it.
WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")
# Written all the time, by a clock.
CLOCKED = ("heartbeat", "lock", "control")
# What is slow to load and not ours is loaded once; sessions are forked.
SLOW = ("torch", "monai.networks.nets", "scipy.ndimage", "SimpleITK", "sklearn")
fork = multiprocessing.get_context("fork")

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
Words = list[object]


# ---- sessions ------------------------------------------------------------------------


def session(
    words: Words, folder: Path, dies_at: int = 0, told: Path | None = None
) -> multiprocessing.process.BaseProcess:
    """One command, begun in a process of its own; its output goes nowhere.

    Args:
        words: Of the command line.
        folder: Whose writes are counted.
        dies_at: It kills itself right before so many writes; 0: never.
        told: Gets a line a write.
    """

    def work() -> None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        log = os.open(f"{folder}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for number, to in enumerate((nowhere, nowhere, log)):
            os.dup2(to, number)
        sys.argv = ["homolog", *map(str, words)]
        if dies_at or told:
            watch(folder, dies_at, told)
        from homolog.cli import main

        main()

    process = fork.Process(target=work)
    process.start()
    return process


def finished(words: Words, folder: Path, told: Path | None = None) -> None:
    """One command that must succeed."""
    process = session(words, folder, told=told)
    process.join()
    if process.exitcode:
        log = Path(f"{folder}.log").read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(map(str, words))}\n{log}")


def watch(folder: Path, dies_at: int, told: Path | None) -> None:
    """Count this process' writes below a folder; end it right before one of them."""
    within = os.fsdecode(folder)
    remember_synced()
    log = -1
    if told is not None:
        log = os.open(told, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for path in folder.glob("*.[jc]s*"):
        _began[path.name] = path.stat().st_size
    count, ending = 0, False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count, ending
        if event not in WRITES or ending or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        if not isinstance(path, str) or not path.startswith(within):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if os.path.basename(path) in CLOCKED:
            return
        count += 1
        if log >= 0:
            os.write(log, f"{event} {without_marks(path[len(within) :])}\n".encode())
        if count == dies_at:
            ending = True
            tear(folder)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def without_marks(path: str) -> str:
    """A path without what tells one process from another."""
    import re

    return re.sub(r"[0-9a-f]{8}-\d+-\d+\.part", "PART", path)


# Inode -> bytes that this process brought to the disk.
_synced: dict[int, int] = {}


def remember_synced() -> None:
    """Keep how much of each file was on the disk when it was last asked for."""
    real = os.fsync

    def fsync(file: Any) -> None:
        real(file)
        about = os.fstat(file if isinstance(file, int) else file.fileno())
        _synced[about.st_ino] = about.st_size

    os.fsync = fsync


def tear(folder: Path) -> None:
    """Cut away half of what is not on the disk yet, in what is written or appended."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        about = path.stat()
        temporary = ".part" in str(path.relative_to(folder))
        if temporary or path.name in ("events.jsonl", "metrics.csv"):
            # of a journal, all that earlier sessions wrote
            before = 0 if temporary else _began.get(path.name, 0)
            kept = min(_synced.get(about.st_ino, before), about.st_size)
            os.truncate(path, kept + (about.st_size - kept) // 2)


# Name of a journal -> its bytes when this process began.
_began: dict[str, int] = {}


# ---- what is trained -----------------------------------------------------------------


def prepared(work: Path) -> None:
    """Stores of phantoms, pairs, painted voxels, and a table of places for alice."""
    from homolog.phantom.phantom import write_cohort

    if (work / "ready").exists():
        return
    for inside in work.iterdir():
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    source, log = work / "cohort", work / "setup"
    write_cohort(source, 8, test=1, shape=(32, 40, 40), spacing_mm=(8.0,) * 3)
    finished(["prepare", source, "--out", work / "store"], log)
    scans = sorted((source / "imagesTr").iterdir())
    write_rows(
        work / "classes.csv",
        [
            {"image": str(path), "class": "even" if i % 2 else "odd",
             "subject": path.name} for i, path in enumerate(scans)
        ],
    )  # fmt: skip
    finished(["prepare", work / "classes.csv", "--out", work / "classes"], log)
    write_pairs(scans[:5], work)
    finished(["prepare", work / "pairs.csv", "--out", work / "pairs"], log)
    write_paint(source, work / "paint.nii.gz")
    small = ["--set=method.size=16,16,16", "--set=backbone.channels=4,8,8"]
    finished(
        ["pretrain", "anatomical_embedding", work / "store", "--recipe=cpu",
         "--steps=4", *small, "--out", work / "sam", "--device=cpu"], log,
    )  # fmt: skip
    tiny = tasks(work)["segment"]
    finished([*tiny, "--recipe=cpu", "--steps=4", "--out", work / "tiny"], log)
    (work / "ready").touch()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A table of texts."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_pairs(scans: list[Path], work: Path) -> None:
    """Each scan with another sequence of it, and the table of both."""
    import SimpleITK as sitk

    (work / "pairs_of_scans").mkdir()
    rows = []
    for number, path in enumerate(scans):
        image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32)
        other = sitk.Sqrt(sitk.Abs(image - 300.0))
        names = [f"pairs_of_scans/p{number}_{kind}.nii.gz" for kind in ("T1", "T2")]
        for one, name in zip((image, other), names, strict=True):
            sitk.WriteImage(one, str(work / name))
        rows.append(
            {"image": "|".join(names), "channels": "T1|T2", "id": f"p{number}",
             "split": "val" if number == 3 else "train", "subject": f"p{number}"}
        )  # fmt: skip
    write_rows(work / "pairs.csv", rows)


def write_paint(source: Path, path: Path) -> None:
    """Thirty voxels of three classes, painted in the first scan."""
    import numpy as np
    import SimpleITK as sitk

    truth = sitk.ReadImage(str(sorted((source / "labelsTr").iterdir())[0]))
    data = sitk.GetArrayFromImage(truth)
    rng = np.random.default_rng(0)
    values, counts = np.unique(data[data > 0], return_counts=True)
    large = values[np.argsort(-counts)[:2]]
    paint = np.zeros(data.shape, np.uint8)
    for value, of in enumerate((data == large[0], data == large[1], data == 0), 1):
        places = np.argwhere(of)
        for place in places[rng.permutation(len(places))[:10]]:
            paint[tuple(place)] = value
    made = sitk.GetImageFromArray(paint)
    made.CopyInformation(truth)
    sitk.WriteImage(made, str(path))


def methods(work: Path) -> dict[str, Words]:
    """Name -> arguments of every method."""
    from homolog.methods import METHODS

    found: dict[str, Words] = {}
    for name in METHODS.names():
        fields = METHODS.get(name).Config.__dataclass_fields__
        backbone = (METHODS.get(name).backbones or ("resunet",))[0]
        own: Words = [f"--backbone={backbone}", *SMALL[backbone]]
        own += [s for s in CUBE if s.split(".")[1].split("=")[0] in fields]
        if backbone == "hybrid":
            own += [
                "--set=method.slice_size=1,32,32",
                "--set=method.small_size=1,16,16",
            ]
        if name == "alice":
            own += ["--aligner", work / "sam"]
        found[name] = ["pretrain", name, work / "store", *own]
    return found


def tasks(work: Path) -> dict[str, Words]:
    """Name -> arguments of every task that a run learns."""
    resunet = ["--backbone=resunet", "--set=backbone.channels=4,8,8"]
    stores = {
        "segment": ("store", [*resunet, "--set=window=16,16,16"]),
        "classify": ("classes", FLAT),
        "detect": ("store", [*resunet, "--set=window=16,24,24", "--set=width=8",
                             "--set=boxes_from=labels"]),
        "translate": ("pairs", [*resunet, "--set=window=16,16,16", "--set=target=T2"]),
    }  # fmt: skip
    return {
        name: [
            "finetune", name, work / store, "--encoder=scratch", *own, "--device=cpu",
            "--set=training.validate_every=8",
        ]
        for name, (store, own) in stores.items()
    }  # fmt: skip


def trainings(work: Path) -> dict[str, Words]:
    """Name -> arguments without ``--out``."""
    common: Words = [
        "--recipe=cpu", f"--steps={STEPS}", "--device=cpu",
        "--set=training.log_every=1", "--set=training.checkpoint_every=3",
    ]  # fmt: skip
    both = {**methods(work), **tasks(work)}
    return {name: [*arguments, *common] for name, arguments in both.items()}


def jobs(work: Path) -> dict[str, Callable[[Path], Words]]:
    """Name -> arguments that write all they write into a folder."""
    scan = sorted((work / "cohort" / "imagesTr").iterdir())[0]

    def few(out: Path) -> Words:
        return [
            "few-voxels", scan, "--labels", work / "paint.nii.gz", "--encoder",
            work / "sam", "--background=3", "--out", out / "model", "--predict",
            out / "labels.nii.gz", "--features", out / "features", "--device=cpu",
        ]  # fmt: skip

    def predict(out: Path) -> Words:
        return ["predict", scan, "--model", work / "tiny", "--out", out, "--device=cpu"]

    return {
        "prepare": lambda out: ["prepare", work / "cohort", "--out", out],
        "few_voxels": few,
        "predict": predict,
    }


# ---- kills ---------------------------------------------------------------------------


def rows_of(run: Path) -> int:
    """Steps that metrics.csv holds so far."""
    try:
        return (run / "metrics.csv").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


def killed(words: Words, run: Path, target: int, late_s: float) -> int:
    """Start it and kill it soon after a step; the step it had reached, -1: ended."""
    process = session(words, run)
    until = time.monotonic() + WAIT_S
    while rows_of(run) < target and process.is_alive():
        if time.monotonic() > until:
            raise SystemExit(f"{run} did not reach step {target}")
        time.sleep(0.002)
    time.sleep(late_s)
    was_running = process.is_alive()
    process.kill()
    process.join()
    return rows_of(run) if was_running else -1


def begins(arguments: Words, run: Path, *, anew: bool) -> Words:
    return [*arguments, "--out", run] if anew else ["runs", "resume", run]


def to_the_end(run: Path) -> None:
    """Resume what did not end."""
    if state_of(run) != "finished":
        finished(["runs", "resume", run], run)


def state_of(run: Path) -> str:
    from homolog.runs.run import Run

    # killed before it was written
    return str(Run.open(run).state()) if (run / "run.json").exists() else "not begun"


def at_steps(
    arguments: Words, run: Path, chance: random.Random, kills: int
) -> list[int]:
    """Kill one training after random steps, then let it end; the steps."""
    at: list[int] = []
    for target in sorted(chance.choices(range(STEPS + 1), k=kills)):
        words = begins(arguments, run, anew=not (run / "run.json").exists())
        at.append(killed(words, run, target, chance.uniform(0, 0.3)))
        if state_of(run) == "finished":
            break
    if state_of(run) == "not begun":
        finished(begins(arguments, run, anew=True), run)
    to_the_end(run)
    return [step for step in at if step >= 0]


def numbers(count: int, of: int, chance: random.Random) -> list[int]:
    """So many of 1 ... of, spread over all of them."""
    return sorted(
        {1 + int((i + chance.random()) * of / count) for i in range(count)}
        & set(range(1, of + 1))
    )


def before_writes(
    arguments: Words, run: Path, chance: random.Random, kills: int
) -> list[str]:
    """Kill the end of a training at its writes again and again; which these were."""
    killed(begins(arguments, run, anew=True), run, STEPS - 3, 0.0)
    counted, told = run.with_name(run.name + "_counted"), run.with_suffix(".writes")
    shutil.copytree(run, counted)
    finished(["runs", "resume", counted], counted, told)
    whole = told.read_text().splitlines()
    shutil.rmtree(counted)
    at = []
    # the latest last: a session that gets so far has ended, or nearly
    for number in numbers(kills, len(whole), chance):
        told.unlink()
        process = session(["runs", "resume", run], run, number, told)
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break
        last = told.read_text().splitlines()[-1]
        at.append(f"{number} of {len(whole)}: {last}")
    to_the_end(run)
    return at


def parts_of(run: Path) -> dict[str, str]:
    """Name of a part of a run -> digest of its bytes."""
    checkpoint = max((run / "checkpoints").iterdir())
    places = [*checkpoint.glob("*.safetensors"), *run.glob("model/*.safetensors")]
    parts = {str(p.relative_to(run)): p.read_bytes() for p in sorted(places)}
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        table = [
            {k: v for k, v in row.items() if k not in TIMES}
            for row in csv.DictReader(file)
        ]
    parts["metrics.csv"] = json.dumps(table).encode()
    found = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    return found | left_over(run)


def left_over(folder: Path) -> dict[str, str]:
    """Temporary names that nobody removed."""
    names = [str(p.relative_to(folder)) for p in folder.rglob(".*")]
    return {f"left over: {without_marks(name)}": "" for name in names}


def differing(first: dict[str, str], second: dict[str, str]) -> set[str]:
    return {p for p in first.keys() | second.keys() if first.get(p) != second.get(p)}


def compare(name: str, arguments: Words, work: Path, kills: int) -> dict[str, Any]:
    """Kill one training; whether it ends each time as the undisturbed one."""
    chance = random.Random(f"0/{name}")
    place = work / "runs" / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    began = time.monotonic()
    whole = place / "whole"
    finished([*arguments, "--out", whole], whole)
    wanted = parts_of(whole)
    steps: list[int] = []
    written: list[str] = []
    different: set[str] = set()
    for number in range(2 * kills):
        left = kills - len(steps) - len(written)
        if left <= 0:
            break
        run = place / f"killed{number}"
        if number % 2:
            steps += at_steps(arguments, run, chance, min(left, kills // 2))
        else:
            written += before_writes(arguments, run, chance, min(left, kills // 2))
        different |= differing(wanted, parts_of(run))
    if not different:
        shutil.rmtree(place)
    return {
        "kills": len(steps) + len(written), "runs": number, "parts": len(wanted),
        "different": sorted(different), "killed_after_step": steps,
        "killed_before_write": written, "seconds": round(time.monotonic() - began),
    }  # fmt: skip


def files_of(folder: Path) -> dict[str, str]:
    """Path below a folder -> digest."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in CLOCKED
    } | left_over(folder)


def again(
    name: str, words: Callable[[Path], Words], work: Path, kills: int
) -> dict[str, Any]:
    """Kill a job at its writes and run it again; whether the same files come."""
    chance = random.Random(f"0/{name}")
    place = work / "jobs" / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    began = time.monotonic()
    one, two = place / "one", place / "two"
    finished(words(one), one)
    finished(words(two), two, place / "writes")
    wanted = files_of(one)
    own = differing(wanted, files_of(two))  # times and the like
    writes = (place / "writes").read_text().splitlines()
    different: set[str] = set()
    at: list[str] = []
    for chain in range(kills):
        if len(at) >= kills:
            break
        out = place / f"out{chain}"
        few = min(kills - len(at), kills // 2)
        for number in numbers(few, len(writes), chance):
            process = session(words(out), out, dies_at=number)
            process.join()
            if process.exitcode == -signal.SIGKILL:
                at.append(f"{number} of {len(writes)}: {writes[number - 1]}")
        finished(words(out), out)
        different |= differing(wanted, files_of(out)) - own
    return {
        "kills": len(at), "parts": len(wanted) - len(own), "not_compared": sorted(own),
        "different": sorted(different), "killed_before_write": at,
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip


# ---- the table -----------------------------------------------------------------------


def told(table: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The table with its sums."""
    rows = [row for part in table.values() for row in part.values()]
    return {
        "steps": STEPS,
        "kills": sum(row["kills"] for row in rows),
        "equal": sum(not row["different"] for row in rows),
        **table,
    }


def main() -> None:
    """Print a line a training, keep each, and fail if one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--work", type=Path, help="kept; else a temporary folder")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    for name in SLOW:
        __import__(name)
    table: dict[str, dict[str, dict[str, Any]]] = {"trainings": {}, "jobs": {}}
    if options.out.exists():
        known = json.loads(options.out.read_text(encoding="utf-8"))
        table |= {part: known.get(part, {}) for part in table}
    with tempfile.TemporaryDirectory() as scratch:
        work = (options.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        prepared(work)
        wanted: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
            name: ("jobs", lambda n=name, w=words: again(n, w, work, options.kills))
            for name, words in jobs(work).items()
        }
        wanted |= {
            name: (
                "trainings",
                lambda n=name, w=words: compare(n, w, work, options.kills),
            )
            for name, words in trainings(work).items()
        }
        for name in options.only or list(wanted):
            part, measure = wanted[name]
            row = table[part].get(name, {})
            if not row or row["kills"] < options.kills or row["different"]:
                row = table[part][name] = measure()
                text = json.dumps(told(table), indent=1) + "\n"
                options.out.write_text(text, encoding="utf-8")
            print(name, row["kills"], "kills,", row["different"] or "equal", flush=True)
    result = told(table)
    rows = sum(map(len, table.values()))
    print(f"{result['kills']} kills, {result['equal']} of {rows} equal")
    if result["equal"] < rows:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
