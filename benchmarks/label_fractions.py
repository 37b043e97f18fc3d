"""Scores against the number of labelled patients: a call of `homolog compare`.

Prepares a store where there is none, compares, and keeps what needs no path of this
machine: the table, the curves and one row for each cell and test case. Stopped and
called again it goes on.

    python benchmarks/label_fractions.py SCANS --work DIR --out results.json -- \\
        --methods scratch,s2dc --patients 5,all --seeds 3 --steps 300

All that follows ``--`` are words of `homolog compare`. SCANS may be a manifest, or a
finished store.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PATHS = ("store", "out", "report", "table_csv", "written", "warnings")


def homolog(*words: str) -> dict[str, Any]:
    """Run one command with --json; its last line as a dict."""
    command = (sys.executable, "-m", "homolog.cli", *words, "--json")
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if not run.stdout.strip():
        raise SystemExit(run.returncode)
    result: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return result


def rows_of(folder: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the arms, numbers and seeds of this table."""
    arms = {arm["name"] for arm in summary["arms"]}
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [r for r in rows if r["arm"] in arms and r["seed"] in summary["seeds"]]


def plan_in(words: list[str]) -> str:
    """Text of the plan file among the words; empty without one."""
    if "--plan" not in words:
        return ""
    return Path(words[words.index("--plan") + 1]).read_text(encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scans", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="of the comparison; else in WORK")
    parser.add_argument("--out", type=Path, required=True)
    given = sys.argv[1:]
    at = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:at])
    words = given[at + 1 :]  # argparse takes none after options
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = arguments.scans
    if not (store / "store.json").is_file():
        store = arguments.work / "store"
        if not (store / "store.json").is_file():
            homolog("prepare", str(arguments.scans), "--out", str(store), "--seed", "0")
    table = arguments.table or arguments.work / "table"
    summary = homolog(
        "compare", str(store), "--out", str(table), *words
    )  # fmt: skip
    kept = {key: value for key, value in summary.items() if key not in PATHS}
    hidden = {"encoder": "", "what": "a ready encoder"}
    kept["arms"] = [arm | (hidden if arm["encoder"] else {}) for arm in kept["arms"]]
    kept["plan"] = plan_in(words)
    kept["failed"] = [trouble["cell"] for trouble in kept["failed"]]
    kept["words"] = [word for word in words if "/" not in word]
    beside = arguments.out.with_suffix(".tmp")
    beside.write_text(json.dumps({**kept, "rows": rows_of(table, summary)}, indent=1))
    os.replace(beside, arguments.out)


if __name__ == "__main__":
    main()
