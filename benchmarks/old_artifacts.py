"""Stores, runs and models of an earlier version, made by it and used by this one.

``make`` runs with any version of the package and makes small things of it through the
command line alone: a store of phantoms, a pretraining and a fine-tuning stopped in the
middle and resumed to their end, a few-voxel model, features, landmarks, labels.
``check`` runs with the version under test and repeats every use of them: information,
resumed trainings, labels, features, landmarks, the store brought up to date. Equal
means the same bytes (of a run: weights, optimiser, metrics without their times). CPU,
one thread.

    PYTHONPATH=OLD/src python benchmarks/old_artifacts.py make FOLDER
    python benchmarks/old_artifacts.py check FOLDER [--out result.json]
    python benchmarks/old_artifacts.py pack FOLDER tests/old/COMMIT.zip

``pack`` keeps what a test needs of a folder made before, and what to expect of it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHAPE, LARGE, SPACING_MM, CASES = (16, 20, 20), (20, 28, 28), (16.0, 16.0, 16.0), 6
# Long enough to be caught in the middle.
STEPS, STOP_AFTER = 24, 5
# The zip that others share files with; it is packed first.
BESIDE = "22e4530.zip"
TIMES = ("seconds", "step_s", "elapsed_s", "time", "data_s")
# Organs that are painted, some voxels each.
PAINTED = ("liver", "heart")


def homolog(*arguments: object) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "homolog.cli", *map(str, arguments)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


def last_json(text: str) -> dict[str, Any]:
    """The last line of a command's output, which is one JSON object."""
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found


def make(folder: Path) -> None:
    """Everything, by the version on the path, in ``folder`` (new or empty)."""
    folder.mkdir(parents=True, exist_ok=True)
    a, b = _cohort(folder)
    store, pre, seg = folder / "store", folder / "pre", folder / "seg"
    homolog("prepare", folder / "cohort", "--out", store)
    common = [
        "--recipe=cpu", f"--steps={STEPS}", "--device=cpu",
        "--set=training.batch_size=2", "--set=training.checkpoint_every=3",
        "--set=training.log_every=1",
    ]  # fmt: skip
    _stopped_and_resumed(
        folder, "pre", "pretrain", "s2dc", store, *common,
        "--set=method.size=8,8,8", "--set=method.token_stride=4",
        "--set=backbone.channels=4,4,4", "--set=method.head_hidden=8",
        "--set=method.head_dim=8", "--set=method.queue_length=16",
    )  # fmt: skip
    _stopped_and_resumed(
        folder, "seg", "finetune", "segment", store, f"--encoder={pre}", *common,
        "--set=window=16,24,24", "--set=training.validate_every=8",
    )  # fmt: skip
    homolog(
        "few-voxels", a, "--labels", _painted(folder, a), "--no-position", "--out",
        folder / "quick", "--features", folder / "cache", "--no-score",
    )  # fmt: skip
    use(folder, folder, a, b)
    _note(folder, seg)


def use(made: Path, out: Path, a: Path, b: Path) -> None:
    """Apply finished models of ``made`` to two scans; results to ``out``."""
    windows = ["--windows=trained"] if "--windows" in homolog("predict", "-h") else []
    large = made / "large" / "imagesTr" / "phantom_000_0000.nii.gz"
    for name, own in (("seg", windows), ("quick", [])):
        homolog(
            "predict", b, large, "--model", made / name, "--out", out / f"of_{name}",
            *own,
        )  # fmt: skip
    encoder = ("--encoder", made / "pre")
    homolog("embed", b, "--out", out / "features", *encoder)
    points = made / "cohort" / "landmarks" / f"{_case_of(a)}.csv"
    homolog(
        "match", a, b, "--points", points, "--out", out / "matches.csv",
        "--features", out / "cache", *encoder,
    )  # fmt: skip


def _cohort(folder: Path) -> tuple[Path, Path]:
    """Phantom patients; the first two scans of them."""
    try:
        from homolog.phantom.phantom import write_cohort
    except ImportError:  # where the phantom lay before
        from homolog.data.phantom_cohort import write_cohort  # type: ignore

    write_cohort(folder / "cohort", CASES, shape=SHAPE, spacing_mm=SPACING_MM)
    # Larger than the window of any training: labelled in several.
    write_cohort(folder / "large", 1, seed=5, shape=LARGE, spacing_mm=SPACING_MM)
    a, b = sorted((folder / "cohort" / "imagesTr").iterdir())[:2]
    return a, b


def _case_of(scan: Path) -> str:
    return scan.name.removesuffix("_0000.nii.gz")


def _painted(folder: Path, scan: Path) -> Path:
    """A file with every seventh voxel of two organs painted."""
    import SimpleITK as sitk

    labels = folder / "cohort" / "labelsTr" / f"{_case_of(scan)}.nii.gz"
    names = json.loads((folder / "cohort" / "dataset.json").read_text())["labels"]
    image = sitk.ReadImage(str(labels))
    truth = sitk.GetArrayFromImage(image)
    painted = np.zeros(truth.shape, np.uint8)
    for number, name in enumerate(PAINTED, 1):
        places = np.argwhere(truth == int(names[name]))[::7]
        painted[tuple(places.T)] = number
    made = sitk.GetImageFromArray(painted)
    made.CopyInformation(image)
    out = folder / "painted.nii.gz"
    sitk.WriteImage(made, str(out))
    return out


def _stopped_and_resumed(folder: Path, name: str, *arguments: object) -> None:
    """Train to FOLDER/NAME, stopped on the way; FOLDER/stopped/NAME is how it lay."""
    run, kept = folder / name, folder / "stopped" / name
    process = subprocess.Popen(
        [sys.executable, "-m", "homolog.cli", *map(str, arguments), "--out", str(run)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 300
    while _rows(run) < STOP_AFTER and process.poll() is None:
        if time.monotonic() > until:
            raise SystemExit(f"{run} did not reach step {STOP_AFTER}")
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    if process.returncode != 130:
        raise SystemExit(f"{name} was not stopped in the middle\n{errors}")
    shutil.copytree(run, kept)
    homolog("runs", "resume", run)


def _rows(run: Path) -> int:
    try:
        return (run / "metrics.csv").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


def ends(run: Path) -> dict[str, str]:
    """Name of a part of a finished run -> digest of its bytes."""
    checkpoint = max((run / "checkpoints").iterdir())
    parts = {
        f"{folder.name}/{path.name}": path.read_bytes()
        for folder in (checkpoint, run / "model")
        for path in sorted(folder.rglob("*.safetensors"))
    }
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        table = [
            {k: v for k, v in row.items() if k not in TIMES}
            for row in csv.DictReader(file)
        ]
    parts["metrics.csv"] = json.dumps(table).encode()
    return {name: _digest(data) for name, data in parts.items()}


def last_losses(run: Path) -> dict[str, float]:
    """What the last step's terms cost, by name."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        row = list(csv.DictReader(file))[-1]
    terms = ("global", "p2p", "p2s", "dice", "cross_entropy")
    return {name: float(row[name]) for name in terms if name in row}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def voxels(path: Path) -> np.ndarray:
    """Voxels of a label map as a reader of nobody's gives them."""
    import SimpleITK as sitk

    found: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return found


def results(folder: Path) -> dict[str, str]:
    """Name of what ``use`` wrote -> digest of it."""
    found = {
        f"{name}/{path.name}": _digest(voxels(path).tobytes())
        for name in ("of_seg", "of_quick")
        for path in sorted((folder / name).glob("*.nii.gz"))
    }
    for path in sorted((folder / "features").glob("*.npy")):
        found["features"] = _digest(np.load(path).tobytes())
    with (folder / "matches.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            {k: row[k] for k in ("name", "b_x_mm", "b_y_mm", "b_z_mm", "similarity")}
            for row in csv.DictReader(file)
        ]
    found["matches"] = _digest(json.dumps(rows).encode())
    return found


def arrays(store: Path) -> dict[str, str]:
    """Case and name of an array of a store -> digest of its voxels."""
    import blosc2

    return {
        str(path.relative_to(store)): _digest(blosc2.open(str(path))[:].tobytes())
        for path in sorted(store.rglob("*.b2nd"))
    }


def machine() -> str:
    """What bytes of a training depend on beside the code."""
    import torch

    cpu = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if "model name" in x), "")
    ability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {ability}, {cpu}"


def _note(folder: Path, seg: Path) -> None:
    """What to expect of it, for a use later."""
    made = {
        "machine": machine(),
        "pre": ends(folder / "pre"),
        "seg": ends(seg),
        "last": {name: last_losses(folder / name) for name in ("pre", "seg")},
        "results": results(folder),
    }
    (folder / "made.json").write_text(json.dumps(made, indent=1), encoding="utf-8")


def check(folder: Path) -> dict[str, Any]:
    """Use what ``folder`` holds with the version on the path; what is equal."""
    made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    a, b = sorted((folder / "cohort" / "imagesTr").iterdir())[:2]
    table: dict[str, Any] = {"same machine": machine() == made["machine"]}
    with tempfile.TemporaryDirectory() as work:
        out = Path(work)
        for name in ("pre", "seg"):
            shutil.copytree(folder / "stopped" / name, out / name)
            homolog("runs", "show", out / name)
            homolog("runs", "resume", out / name)
            table |= _compared(f"resumed {name}", made[name], ends(out / name))
            homolog("models", "check", folder / name)
        use(folder, out, a, b)
        table |= _compared("", made["results"], results(out))
        homolog("models", "check", folder / "quick")
        homolog("doctor", folder / "store")
        before = arrays(folder / "store")
        shutil.copytree(folder / "store", out / "store")
        told = last_json(
            homolog("prepare", folder / "cohort", "--out", out / "store", "--json")
        )
        table |= _compared("prepared again", before, arrays(out / "store"))
        table["prepare says"] = {
            k: v for k, v in told.items() if isinstance(v, int) and v
        }
    return table


def _compared(what: str, first: dict[str, str], second: dict[str, str]) -> Any:
    """Rows of the table: the names that differ."""
    names = sorted(first.keys() | second.keys())
    different = [n for n in names if first.get(n) != second.get(n)]
    return {f"{what or 'used'}: {len(names)} parts, different": different}


@contextlib.contextmanager
def own_settings(folder: Path) -> Iterator[None]:
    """The folder's own key of subjects and one thread, for every process started."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HOMOLOG_CONFIG"] = str(folder / "config")
    yield


def pack(folder: Path, out: Path, beside: Path | None) -> None:
    """A zip of what a test opens; paths of ``folder`` in runs become @HERE@.

    Those of scans in a store's cards stay: they are part of its hash.

    What another zip holds byte for byte is only named, in ``shared.json``.
    """
    others: dict[str, bytes] = {}
    if beside is not None:
        with zipfile.ZipFile(beside) as archive:
            others = {name: archive.read(name) for name in archive.namelist()}
    shared = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in _needed(folder):
            name, data = path.relative_to(folder).as_posix(), path.read_bytes()
            if name.startswith("stopped/"):
                data = data.replace(str(folder).encode(), b"@HERE@")
            if others.get(name) == data:
                shared.append(name)
            else:
                archive.writestr(name, data)
        if shared:
            archive.writestr("shared.json", json.dumps(shared, indent=1))


def _needed(folder: Path) -> Iterator[Path]:
    """The files a test opens; of checkpoints the newest."""
    parts = [
        "cohort", "large", "store", "stopped", "pre/model", "seg/model", "quick",
        "config", "features", "of_seg", "of_quick", "made.json",
    ]  # fmt: skip
    skipped = {"log.txt", "lock", ".lock", "heartbeat"}
    for part in parts:
        top = folder / part
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            place = path.parent
            older = place.name.startswith("step_") and (
                place < max(place.parent.iterdir())
            )
            if path.is_file() and path.name not in skipped and not older:
                if place.name != "landmarks":
                    yield path


def unpack(archive: Path, folder: Path) -> None:
    """The folder that was packed, in another place."""
    with zipfile.ZipFile(archive) as own:
        own.extractall(folder)
    shared = folder / "shared.json"
    if shared.exists():
        with zipfile.ZipFile(archive.parent / BESIDE) as other:
            other.extractall(folder, json.loads(shared.read_text(encoding="utf-8")))
        shared.unlink()
    for path in (folder / "stopped").rglob("*.json*"):
        data = path.read_bytes().replace(b"@HERE@", str(folder).encode())
        path.write_bytes(data)


def main() -> None:
    """Make, check or pack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["make", "check", "pack"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("zip", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = options.folder.resolve()
    with own_settings(folder):
        if options.what == "make":
            make(folder)
        elif options.what == "pack":
            beside = options.zip.parent / BESIDE
            pack(folder, options.zip, beside if beside.exists() else None)
        else:
            table = check(folder)
            print(json.dumps(table, indent=1))
            if options.out:
                text = json.dumps(table, indent=1) + "\n"
                options.out.write_text(text, encoding="utf-8")
            if any(table[k] for k in table if "different" in k):
                raise SystemExit(1)


if __name__ == "__main__":
    main()
