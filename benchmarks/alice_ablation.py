"""Which of Alice's terms help: Dice of a UNETR on phantom patients, fine-tuned on few.

Every run is the command a user would type. Rows are written as they come and never
repeated: the script can be stopped and called again.

    python benchmarks/alice_ablation.py --work DIR --out results.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from homolog.phantom.phantom import write_cohort

OFF = {"reconstruction": 1.0, "between": 0.0, "within": 0.0}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "scratch": None,
    "l_r": OFF,
    "l_r + l_dv": {**OFF, "between": 1.0},
    "l_r + l_st": {**OFF, "within": 1.0},
    "all": {**OFF, "between": 1.0, "within": 1.0},
    "all, random pairs": {**OFF, "between": 1.0, "within": 1.0, "pairs": "random"},
}


def homolog(*words: str) -> dict[str, Any]:
    """One command with --json; its last line."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = (sys.executable, "-m", "homolog.cli", *words, "--json")
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def prepare(work: Path) -> Path:
    """Cohort, store, anatomical embedding and table of matching places."""
    store, sam = work / "store", work / "sam"
    if not (store / "store.json").exists():
        write_cohort(work / "cohort", 26, seed=11, labelled=20, test=6,
                     shape=(48, 56, 56), spacing_mm=(6.0, 6.0, 6.0))  # fmt: skip
        homolog("prepare", str(work / "cohort"), "--out", str(store))
    if not (sam / "model").exists():
        homolog("pretrain", "anatomical_embedding", str(store), "--out", str(sam),
                "--recipe", "cpu", "--steps", "300", "--set",
                "method.temperature=0.1", "--set", "method.size=32,32,32")  # fmt: skip
    if not (store / "pairs" / "pairs.json").exists():
        homolog("align", str(store), "--encoder", str(sam))
    return store


SMALL = {"hidden": 96, "inner": 384, "layers": 4, "heads": 4}


def pretrained(
    place: Path, store: Path, name: str, seed: int, asked: Any
) -> dict[str, Any]:
    """Pretrain one variant, unless it is there: its losses and monitors."""
    settings = VARIANTS[name]
    kept = place / "told.json"
    if kept.exists():
        told: dict[str, Any] = json.loads(kept.read_text())
        return told
    words = sized(asked, "method.size")
    for key, value in (settings or {}).items():
        full = key if key == "pairs" else f"weight_{key}"
        words += ["--set", f"method.{full}={value}"]
    told = homolog(
        "pretrain", "alice", str(store), "--out", str(place / "alice"), "--recipe",
        "cpu", "--steps", str(asked.steps), "--seed", str(seed), "--set",
        f"method.least_score={asked.least_score}", *words,
    )  # fmt: skip
    told = {"losses": told["losses"], "monitors": told["monitors"]}
    kept.write_text(json.dumps(told))
    return told


def sized(asked: Any, *more: str) -> list[str]:
    """Crops of one size, for which the position embedding is made."""
    side = f"{asked.side},{asked.side},{asked.side}"
    names = ("backbone.image_size", *more)
    return [word for name in names for word in ("--set", f"{name}={side}")]


def run(
    work: Path, store: Path, setting: tuple[str, int, float], asked: Any
) -> dict[str, Any]:
    """Pretrain one variant, fine-tune on a share of labels, score the test patients."""
    name, seed, fraction = setting
    place = work / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
    row: dict[str, Any] = {"variant": name, "seed": seed, "fraction": fraction}
    start = ["--encoder", "scratch", *sized(asked)]
    for key, value in SMALL.items():
        start += ["--set", f"backbone.{key}={value}"]
    if VARIANTS[name] is not None:
        row |= pretrained(place, store, name, seed, asked)
        start = ["--encoder", str(place / "alice")]
    where = str(place / f"seg_{fraction:g}")
    homolog(
        "finetune", "segment", str(store), "--backbone", "vit", *start,
        "--recipe", "cpu", "--steps", str(asked.finetune_steps), "--fraction",
        str(fraction), "--seed", str(seed), "--out", where, "--set",
        f"task.window={asked.side},{asked.side},{asked.side}", "--set",
        f"training.learning_rate={asked.learning_rate}",
    )  # fmt: skip
    scores = homolog("evaluate", "--model", where, str(store), "--split", "test")
    return {**row, "dice": scores["mean"]["dice"]}


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over seeds, and the paired gain over scratch."""
    found = []
    for fraction in sorted({r["fraction"] for r in rows}):
        here = [r for r in rows if r["fraction"] == fraction]
        plain = {r["seed"]: r["dice"] for r in here if r["variant"] == "scratch"}
        for name in VARIANTS:
            own = {r["seed"]: r["dice"] for r in here if r["variant"] == name}
            if not own:
                continue
            gains = [own[s] - plain[s] for s in sorted(own) if s in plain]
            found.append({"variant": name, "fraction": fraction, "seeds": len(own),
                          "dice": statistics.mean(own.values()),
                          "std": statistics.pstdev(own.values()),
                          "gains": gains})  # fmt: skip
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--finetune-steps", type=int, default=200)
    parser.add_argument("--side", type=int, default=32, help="of crops, voxels")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--full", nargs="*", default=["scratch", "all"],
                        help="variants also fine-tuned on all labels")  # fmt: skip
    parser.add_argument("--least-score", type=float, default=0.5)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    rows = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    store = prepare(asked.work)
    settings = [(n, s, asked.fraction) for s in asked.seeds for n in VARIANTS]
    settings += [(n, s, 1.0) for s in asked.seeds for n in asked.full]
    done = {(r["variant"], r["seed"], r["fraction"]) for r in rows}
    for setting in settings:
        if setting in done:
            continue
        rows.append(run(asked.work, store, setting, asked))
        result = {"rows": rows, "table": table(rows)}
        asked.out.write_text(json.dumps(result, indent=1))
        print(*setting, rows[-1]["dice"], flush=True)


if __name__ == "__main__":
    main()
