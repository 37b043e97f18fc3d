"""Scores against the share of labels, from scratch and from a pretrained encoder.

Every run is the command a user would type (`homolog finetune`, `homolog evaluate`), so
the figures are those of the product. Rows are written as they come and never repeated:
the script can be stopped and called again.

    python benchmarks/label_fractions.py SCANS --work DIR --out results.json

An S2DC encoder is made when `s2dc` is asked for; any other encoder is a finished run
given by name, and `--scratch-set` then gives the untrained network the same sizes:

    ... --encoder alice=RUN --inits scratch alice --backbones vit \\
        --scratch-set backbone.hidden=96 backbone.layers=4

`--task classify --metric auc` tells classes of scans instead; SCANS may be a manifest
(`image,class,split`), and `--store` a finished store.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any


def homolog(*words: str, threads: int) -> dict[str, Any]:
    """Run one command with --json; its last line as a dict, and its processor time.

    Processor time does not depend on what else the machine does; wall time does.
    """
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    words = (sys.executable, "-m", "homolog.cli", *words, "--json")
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        run = subprocess.Popen(words, stdout=out, stderr=errors, env=env)
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if run.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {errors.read()[-2000:]}")
        result: dict[str, Any] = json.loads(out.read().strip().splitlines()[-1])
    result["processor_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    return result


class Study:
    """Rows on disk, and the runs that are still to be made."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.out: Path = arguments.out
        self.scans: Path = arguments.scans
        self.arguments = arguments
        self.given = dict(pair.split("=", 1) for pair in arguments.encoder)
        unknown = set(arguments.inits) - {"scratch", "s2dc", *self.given}
        if unknown:
            raise SystemExit(f"--inits: no --encoder is named {sorted(unknown)}")
        self.lock = Lock()
        self.rows: list[dict[str, Any]] = []
        if self.out.exists():
            self.rows = json.loads(self.out.read_text())["rows"]

    def prepare(self) -> None:
        """Store and pretrained encoders, unless they are there."""
        if not (self.store / "store.json").exists():
            homolog("prepare", str(self.scans), "--out", str(self.store),
                    "--seed", "0", threads=2)  # fmt: skip
        for backbone in self.arguments.backbones:
            run = self.work / f"s2dc_{backbone}"
            if "s2dc" in self.arguments.inits and not (run / "model").exists():
                minutes = str(self.arguments.pretrain_minutes)
                homolog("pretrain", "s2dc", str(self.store), "--out", str(run),
                        "--backbone", backbone, "--recipe", "cpu", "--minutes", minutes,
                        threads=self.arguments.pretrain_threads)  # fmt: skip

    @property
    def store(self) -> Path:
        return self.arguments.store or self.work / "store"

    def todo(self) -> list[dict[str, Any]]:
        """Settings without a row, seed by seed, so that early rows are comparable."""
        done = {self.key(row) for row in self.rows}
        settings = [
            {"backbone": b, "init": i, "fraction": f, "seed": s}
            for s, f, b, i in itertools.product(
                self.arguments.seeds, self.arguments.fractions,
                self.arguments.backbones, self.arguments.inits,
            )
        ]  # fmt: skip
        return [s for s in settings if self.key(s) not in done]

    @staticmethod
    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["backbone"], row["init"], row["fraction"], row["seed"]

    def run(self, setting: dict[str, Any]) -> None:
        """One fine-tuning and its evaluation on the test split."""
        backbone, init, fraction, seed = self.key(setting)
        whole = fraction == 1.0
        length = self.length(whole)
        name = f"{backbone}_{init}_{fraction:g}_{seed}"
        out = self.work / "runs" / f"{name}_{os.getpid()}_{int(time.time())}"
        trained = homolog(
            "finetune", self.arguments.task, str(self.store),
            *self.encoder(init, backbone), "--recipe", "cpu", *length,
            "--fraction", str(fraction), "--seed", str(seed), "--out", str(out),
            *(w for s in self.arguments.set for w in ("--set", s)),
            threads=self.arguments.threads,
        )  # fmt: skip
        scores = homolog("evaluate", "--model", str(out), str(self.store),
                         "--split", "test", threads=self.arguments.threads)  # fmt: skip
        row = {**setting, "length": " ".join(length), "threads": self.arguments.threads,
               "training": _bare(trained), "scores": _bare(scores)}  # fmt: skip
        with self.lock:
            self.rows.append(row)
            self.save()
        print(name, summary_of(scores), flush=True)

    def encoder(self, init: str, backbone: str) -> list[str]:
        """The words that name the encoder to start from."""
        if init == "scratch":
            sets = self.arguments.scratch_set
            words = ["--encoder", init, "--backbone", backbone]
            return [*words, *(w for s in sets for w in ("--set", s))]
        return ["--encoder", self.given.get(init, str(self.work / f"s2dc_{backbone}"))]

    def length(self, whole: bool) -> list[str]:
        """How long to train: steps where given, else minutes."""
        arguments = self.arguments
        steps = arguments.steps_all if whole else arguments.steps
        if steps:
            return ["--steps", str(steps)]
        return ["--minutes", str(arguments.minutes_all if whole else arguments.minutes)]

    def save(self) -> None:
        """Rows and the table made of them."""
        temporary = self.out.with_suffix(".tmp")
        temporary.write_text(
            json.dumps(
                {"rows": self.rows, "table": table(self.rows, self.arguments.metric)},
                indent=1,
            )
        )
        os.replace(temporary, self.out)


def _bare(result: dict[str, Any]) -> dict[str, Any]:
    """Without the paths of this machine."""
    paths = ("run", "model", "out", "csv", "json", "store", "encoder", "report")
    return {k: v for k, v in result.items() if k not in paths}


def summary_of(scores: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in scores.items() if k not in ("cases", "rows")})[
        :300
    ]


def table(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Mean and spread per setting, and the paired gain of pretraining."""
    found = []
    keys = sorted({(r["backbone"], r["fraction"]) for r in rows})
    for backbone, fraction in keys:
        entry: dict[str, Any] = {"backbone": backbone, "fraction": fraction}
        here = [
            r for r in rows if (r["backbone"], r["fraction"]) == (backbone, fraction)
        ]
        entry["labelled"] = labelled(here[0]["training"])
        by_init: dict[str, dict[int, float]] = {}
        for row in here:
            own = by_init.setdefault(row["init"], {})
            own[row["seed"]] = row["scores"]["mean"][metric]
        plain = by_init.get("scratch", {})
        for init, values in by_init.items():
            entry[init] = {
                metric: statistics.mean(values.values()),
                "std": statistics.pstdev(values.values()),
                "seeds": len(values),
            }
            gains = [values[s] - plain[s] for s in sorted(set(values) & set(plain))]
            if gains and init != "scratch":
                entry[init]["paired_gain"] = {
                    "mean": statistics.mean(gains), "each": gains,
                }  # fmt: skip
        found.append(entry)
    return found


def labelled(training: dict[str, Any]) -> str:
    """``"5 + 16"``: cases that were learnt from, and those that chose the weights."""
    told = training.get("labelled")
    if told is None:  # rows of before it was counted: all of the store's, 16 at most
        cases = training["cases"]
        told = {"learnt_from": cases["train"], "chosen_by": min(16, cases["val"])}
    return f"{told['learnt_from']} + {told['chosen_by']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="segment")
    parser.add_argument("--metric", default="dice", help="in the mean of evaluate")
    parser.add_argument("--store", type=Path, help="instead of preparing SCANS")
    parser.add_argument("--backbones", nargs="+", default=["resunet", "swin"])
    parser.add_argument("--inits", nargs="+", default=["scratch", "s2dc"])
    parser.add_argument("--encoder", nargs="+", default=[], metavar="NAME=RUN")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE")
    parser.add_argument("--scratch-set", nargs="+", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--fractions", nargs="+", type=float, default=[1.0, 0.1, 0.3, 0.05]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes-all", type=float, default=10.0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps-all", type=int, default=0, help="instead of minutes")
    parser.add_argument("--steps", type=int, default=0, help="instead of minutes")
    parser.add_argument("--pretrain-minutes", type=float, default=15.0)
    parser.add_argument("--pretrain-threads", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="cores of one run")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    study = Study(arguments)
    study.work.mkdir(parents=True, exist_ok=True)
    study.prepare()
    with ThreadPoolExecutor(arguments.parallel) as pool:
        list(pool.map(study.run, study.todo()))
    for entry in table(study.rows, arguments.metric):
        print(json.dumps(entry))


if __name__ == "__main__":
    main()
