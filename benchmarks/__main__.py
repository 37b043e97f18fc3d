"""The bars of the engine: what was aimed at, what was measured, by which command.

    python -m benchmarks                    # the table, from benchmarks/results
    python -m benchmarks --run S2 R1        # measure rows anew, all without names
    python -m benchmarks --markdown docs/bars.md

Each row is measured by a script of this folder, which writes the results file of its
name, or by tests, whose outcome is kept in ``bars_tests.json``. Ratios are to the named
peer in the same process or in turn with it; above 1 is better.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
OF_TESTS = RESULTS / "bars_tests.json"
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a row shows of its results.

    Attributes:
        text: The figures, with their units.
        met: Whether the target is reached.
    """

    text: str
    met: bool


@dataclass(frozen=True)
class Bar:
    """One row.

    Attributes:
        id: S speed, R robustness.
        what: What is measured, against whom.
        target: In words.
        words: Script of this folder and its words, or the tests.
        read: The results file's content -> what it shows.
        file: Results file, where it has not the script's name.
    """

    id: str
    what: str
    target: str
    words: tuple[str, ...]
    read: Callable[[Found], Measured]
    file: str = ""

    @property
    def is_tests(self) -> bool:
        """Whether tests measure it."""
        return self.words[0].startswith("tests/")

    @property
    def results(self) -> Path:
        """Where its figures lie."""
        if self.is_tests:
            return OF_TESTS
        return RESULTS / (self.file or f"{Path(self.words[0]).stem}.json")

    @property
    def command(self) -> str:
        """What a person types."""
        if self.is_tests:
            return f"python -m pytest {shlex.join(self.words)}"
        return f"python benchmarks/{' '.join(self.words)}"

    def measured(self) -> Measured | None:
        """What its results show; None where there are none."""
        try:
            found = json.loads(self.results.read_text(encoding="utf-8"))
            return self.read(found[self.id] if self.is_tests else found)
        except (OSError, KeyError, ValueError):
            return None


def _contrast(f: Found) -> Measured:
    return Measured(
        f"{f['ratio']:.0f} x faster, 1/{f['memory_ratio']:.0f} of the memory, value "
        f"{f['difference']:.0e} apart",
        all(f["met"].values()),
    )


def _elastic(f: Found) -> Measured:
    worst = max(f["differences"].values())
    return Measured(
        f"{f['ratio']:.1f} x faster, statistics {worst:.1%} apart, new label values: "
        f"{len(f['new_label_values'])}",
        bool(f["passed"]),
    )


def _crop(f: Found) -> Measured:
    met = f["met"]
    return Measured(
        f"{f['read_ratio']:.0f} x faster, {f['bytes_touched_over_own']:.1f} x its own "
        f"bytes touched, stored at {f['stored_over_raw']:.0%} of raw",
        met["read"] and met["touched"] and met["stored"],
    )


def _balanced(f: Found) -> Measured:
    return Measured(f"{f['balanced_ratio']:.0f} x faster", f["met"]["balanced"])


def _resample(f: Found) -> Measured:
    return Measured(
        f"{f['monai_ratio']:.1f} x, {f['scipy_ratio']:.0f} x faster, PSNR "
        f"{f['psnr_db']:.0f} dB",
        all(f["met"].values()),
    )


def _sliding(f: Found) -> Measured:
    large = f["large"]["split"]
    beyond = sum(row["beyond_rounding"] for row in f["labels"])
    peer = f["against_monai"]
    return Measured(
        f"{large['cpu_seconds']:.1f} s of one core, {large['extra_mb'] / 1000:.1f} GB; "
        f"at 128 a side {peer['times_faster']:.1f} x faster than MONAI, 1/"
        f"{peer['memory_ratio']:.0f} of its memory; labels beyond rounding: {beyond}",
        large["cpu_seconds"] <= 15.0 and large["extra_mb"] <= 1500.0 and not beyond,
    )


def _air(f: Found) -> Measured:
    air = f["air"]
    same = "identical" if air["labels_identical"] else "different"
    return Measured(
        f"{air['share_run']:.0%} of the windows run, labels {same}",
        air["share_run"] <= 0.7 and air["labels_identical"],
    )


def _swin(f: Found) -> Measured:
    took = f["times_s"]
    return Measured(
        f"inference {took['inference_fp32']['ratio']:.1f} x, training step "
        f"{took['training_fp32']['ratio']:.1f} x faster; {f['farthest_fp32']:.0e} "
        f"apart (fp64 {f['farthest_fp64']:.0e})",
        all(f["met"].values()),
    )


def _feed(f: Found) -> Measured:
    worst: dict[str, dict[str, float]] = {}
    for name, method in f["methods"].items():
        for phase in method["phases"]:
            for card, wait in phase["waits"].items():
                least = min(wait["threads"], wait["processes"])
                known = worst.setdefault(card, {})
                known[name] = max(least, known.get(name, 0.0))
    told = []
    for card, waits in worst.items():
        over = {name: wait for name, wait in waits.items() if wait > 0.05}
        slow = ", ".join(f"{name} {wait:.0%}" for name, wait in sorted(over.items()))
        told.append(f"{card}: {len(waits) - len(over)} of {len(waits)} within")
        told[-1] += f" (not {slow})" if slow else ""
    met = all(wait <= 0.05 for waits in worst.values() for wait in waits.values())
    return Measured(f"predicted: {'; '.join(told)}", met)


def _pairs(f: Found) -> Measured:
    worst = f["processor_ms_per_batch"]["95"]
    return Measured(
        f"{worst:.2f} ms (95 % of the batches of {f['batch']}, {f['rows']:.0e} rows)",
        worst <= f["bar_ms"],
    )


def _entries(f: Found) -> Measured:
    later, many = f["cases"]["rows"][-1], f["entries"]["rows"][-1]
    return Measured(
        f"{later['size']:.0e} cases: {later['open_s']:.3f} s (the first time "
        f"{later['first_open_s']:.0f} s); {many['size']:.0e} entries: "
        f"{many['open_s']:.2f} s, {many['bytes'] / 1e9:.2f} GB, a batch "
        f"{many['batch_s'] * 1e3:.0f} ms",
        later["open_s"] < 1.0 and f["entries"]["exponents"]["batch_s"] < 0.05,
    )


def _peers(f: Found) -> Measured:
    rows = f["rows"]
    named = {
        "torchio": "TorchIO's change", "nnunet_spatial": "nnU-Net's change",
        "nnunet_feed": "its crops read", "nnunet_sliding": "its sliding window",
    }  # fmt: skip
    told = [f"{named[n]} {row['times_faster']:.1f} x" for n, row in rows.items()]
    return Measured(
        ", ".join(told),
        rows.keys() == named.keys()
        and all(row["times_faster"] >= 1.0 for row in rows.values()),
    )


def _startup(f: Found) -> Measured:
    heavy = sorted({*f["loaded_by_help"], *f["loaded_by_plugin"]})
    return Measured(
        f"{f['help_s']:.2f} s and {f['plugin_s']:.2f} s of a core; heavy libraries "
        f"loaded: {', '.join(heavy) or 'none'}",
        max(f["help_s"], f["plugin_s"]) <= f["bar_s"] and not heavy,
    )


def _gpu(f: Found) -> Measured:
    rows = f["rows"]
    failed = sum("error" in row for row in rows.values())
    card = rows["machine"].get("card", "no GPU")
    return Measured(f"{len(rows)} rows on {card}, {failed} failed", not failed)


def _kills(f: Found) -> Measured:
    rows = {**f["trainings"], **f.get("jobs", {})}
    same = sum(not row["different"] for row in rows.values())
    often = sum(row["kills"] >= 20 for row in rows.values())
    return Measured(
        f"{f['kills']} kills: {same} of {len(rows)} trainings and jobs end with the "
        f"same bytes; {often} of {len(rows)} were killed 20 times",
        same == often == len(rows) and len(rows) >= 15,
    )


def _fuzz(f: Found) -> Measured:
    return Measured(
        f"{f['count']} files: {f['total']['refused']} refused, {len(f['bad'])} "
        "crashed, hung, swelled or let an error out",
        not f["bad"] and f["count"] >= 20_000,
    )


def _flips(f: Found) -> Measured:
    files = {name: row for name, row in f.items() if isinstance(row, dict)}
    wrong = sum(row.get("other data", 0) for row in files.values())
    return Measured(
        f"{f['flips']} flips in each of {len(files)} files: {wrong} unnoticed",
        not wrong,
    )


def _seeded(f: Found) -> Measured:
    return Measured(
        f"{f['faults'] - f['survivors']} of {f['faults']} noticed by a test",
        not f["survivors"],
    )


def _tests(f: Found) -> Measured:
    return Measured(
        f"{f['passed']} passed, {f['failed']} failed",
        not f["failed"] and f["passed"] > 0,
    )


BARS = (
    Bar("S1", "contrast of 1000 pairs of 128 features, forward and backward, against "
        "MONAI `ContrastiveLoss`", ">= 30 x faster, <= 1/50 of the memory, value "
        "within 1e-4", ("contrast.py",), _contrast),
    Bar("S2", "affine and elastic change of image and labels, 96^3, against MONAI "
        "`Rand3DElasticd`", ">= 6 x faster at equal field statistics (10 %), no new "
        "label values", ("elastic.py",), _elastic),
    Bar("S3", "96^3 crop of a stored CT of 512x512x300, against SimpleITK reading the "
        "`.nii.gz`", ">= 30 x faster, <= 4 x its own bytes touched, stored at <= 35 %",
        ("crops.py",), _crop),
    Bar("S4", "label-balanced crop, against MONAI `RandCropByPosNegLabeld`",
        ">= 50 x faster", ("crops.py",), _balanced),
    Bar("S5", "512x512x300 to 1.5 mm, against MONAI `Spacing` and scipy's cubic spline",
        ">= 5 x, >= 20 x faster, PSNR >= 40 dB", ("resample.py",), _resample),
    Bar("S6", "sliding window, 256^3, 105 classes",
        "<= 15 s, <= 1.5 GB, MONAI's labels", ("sliding_window.py",), _sliding),
    Bar("S7", "sliding window over a body in air (40 %)", "<= 70 % of the windows run, "
        "identical labels", ("sliding_window.py",), _air),
    Bar("S8", "Swin encoder with MONAI's weights, against MONAI", ">= 1.3 x in "
        "inference, training no slower, 1e-5 apart (fp64 1e-10)", ("swin.py",), _swin),
    Bar("S9", "share of a step that waits for data, recipe `gpu` of every method, "
        "crops read by 16 (H200) and 8 (4090) cores, the GPU at 40 % of its peak",
        "<= 5 %", ("feed.py",), _feed),
    Bar("S10", "matching places of a batch of 8 looked up in a table", "<= 2 ms",
        ("pair_lookup.py",), _pairs),
    Bar("S11", "`homolog --help`, import of the plugin",
        "<= 0.35 s each, no heavy library", ("startup.py",), _startup),
    Bar("S12", "steps per second, memory and waits of every method on a GPU",
        "a file with the card's name", ("gpu.py",), _gpu),
    Bar("S13", "opening a store, and a batch of 8 crops drawn from it",
        "10^5 cases in < 1 s, a batch's cost flat to 10^7 entries",
        ("growth.py",), _entries),
    Bar("S14", "affine and elastic change of 96^3, crops of 96^3 read, 105 classes "
        "in sliding windows of 32^3, against TorchIO and nnU-Net (an environment of "
        "their own; skipped where there is none)", "none slower", ("peers.py",),
        _peers),
    Bar("R1", "broken scans of 95 kinds, and 268 sound files",
        "each found for the right reason, no false alarm",
        ("tests/scans/test_inspect.py",), _tests),
    Bar("R2", "trainings killed (SIGKILL) at random steps and before their writes, "
        "and resumed: all methods and learnt tasks; jobs killed and run again",
        ">= 20 kills of each, equal bytes", ("kills.py",), _kills),
    Bar("R3", "disk full, read-only folder, two writers of one run or store",
        "last good state kept, cause named",
        ("tests/model_files/test_checkpoint.py", "tests/runs/test_worker.py",
         "tests/store/test_store.py", "-k",
         "disk or read_only or second_worker or one_process"), _tests),
    Bar("R4", "memory runs out in prediction, in three places",
        "it goes on, same labels",
        ("tests/sliding/test_sliding.py", "-k", "out_of_memory"), _tests),
    Bar("R5", "hostile weights, archives, scans, manifests, recipes, lists, reports "
        "and tables ([the attacks](safety.md#attacks))",
        "nothing in them runs, one clear sentence", ("tests/test_attacks.py",), _tests),
    Bar("R6", "two processes (gloo) against one with the batch of both",
        "losses within 1e-5 for 20 steps", ("tests/test_distributed.py",), _tests),
    Bar("R7", "mutated scans of every format read",
        ">= 20,000: no crash, hang, swelling, stray error", ("fuzz_readers.py",),
        _fuzz),
    Bar("R8", "one flipped bit in a store's files", "never other voxels in silence",
        ("bit_flips.py",), _flips),
    Bar("R9", "faults put into losses and geometry", "each noticed by a test",
        ("seeded_faults.py",), _seeded),
    Bar("R10", "mutated files of every other kind read: label maps, tables, boxes, "
        "points, manifests, weights, models, stores, runs, plans",
        ">= 20,000: no crash, hang, swelling, stray error", ("fuzz_files.py",), _fuzz),
)  # fmt: skip


def run_tests(bar: Bar) -> None:
    """Run the tests of a row and keep their outcome."""
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", *bar.words],
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(told.stdout[-400:])
    counts = {
        kind: int(n)
        for n, kind in re.findall(r"(\d+) (passed|failed|error)", told.stdout)
    }
    kept = json.loads(OF_TESTS.read_text()) if OF_TESTS.exists() else {}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    kept[bar.id] = {"passed": counts.get("passed", 0), "failed": failed}
    beside = OF_TESTS.with_suffix(".tmp")
    beside.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    os.replace(beside, OF_TESTS)


def run(bars: tuple[Bar, ...]) -> None:
    """Measure rows anew, each script once."""
    done: set[tuple[str, ...]] = set()
    for bar in bars:
        if bar.words in done:
            continue
        done.add(bar.words)
        print(f"{bar.id}: {bar.command}", flush=True)
        if bar.is_tests:
            run_tests(bar)
            continue
        script, *words = bar.words
        subprocess.run(
            [sys.executable, str(HERE / script), *words, "--out", str(bar.results)],
            cwd=HERE.parent,
            check=False,
        )


def table() -> list[tuple[str, str, str, str, str, str]]:
    """Rows of text: id, what, target, measured, met, command."""
    rows = []
    for bar in BARS:
        found = bar.measured()
        text = found.text if found else "not measured"
        met = ("yes" if found.met else "**no**") if found else ""
        rows.append((bar.id, bar.what, bar.target, text, met, f"`{bar.command}`"))
    return rows


_GROWN = (
    (
        "cases",
        "first_open_s",
        "first opening of a store of 10^{0:.0f} cases, which "
        "reads all cards and makes its table",
        "cases",
    ),
    ("cases", "open_s", "any later opening (by the table from 5000 cases on)", "cases"),
    ("entries", "open_s", "opening a table of 10^{0:.0f} entries", "entries"),
    ("entries", "feed_s", "a feed of all of them", "entries"),
    ("entries", "order_s", "the order of an epoch drawn", "entries"),
    ("entries", "batch_s", "a batch of 8 crops planned and read there", "entries"),
    ("scan", "crop_s", "a crop of 32^3 out of a scan of 10^{0:.1f} voxels", "voxels"),
    ("classes", "label_s", "64^3 voxels labelled, 10^{0:.1f} classes", "classes"),
    ("pairs", "step_s", "contrast of 10^{0:.1f} pairs among all others", "pairs"),
    ("queue", "step_s", "8 keys against a queue of 10^{0:.1f}", "keys"),
)


def growth() -> list[str]:
    """How costs grow, from growth.json; nothing where that is not there."""
    try:
        found = json.loads((RESULTS / "growth.json").read_text(encoding="utf-8"))
    except OSError:
        return []
    lines = [
        "## How costs grow",
        "",
        "Processor seconds of one core; an exponent of 1 is in proportion "
        "(`python benchmarks/growth.py`).",
        "",
        "| what | exponent | at the largest measured |",
        "| --- | --- | --- |",
    ]
    for key, name, what, of in _GROWN:
        last = found[key]["rows"][-1]
        words = what.format(math.log10(last["size"]))
        power = found[key]["exponents"][name]
        lines.append(f"| {words} | {power:.2f} ({of}) | {last[name]:.2g} s |")
    last = found["entries"]["rows"][-1]
    many = found["entries"]["extrapolated"][str(10**8)]
    lines += [
        "",
        f"Of {last['size']:,.0f} entries (made up, they share the files of one case) "
        f"a process holds {last['bytes'] / 1e9:.2f} GB more, the table "
        f"{last['table_bytes_each']:.0f} bytes an entry.",
        f"Of a hundred million a store would open in {many['open_s']:.0f} s, a feed "
        f"begin in {many['feed_s'] + many['order_s']:.0f} s and hold "
        f"{many['bytes'] / 1e9:.0f} GB (extrapolated, not measured).",
        "",
        "![Costs over sizes, both as powers of ten](assets/growth.svg)",
        "",
    ]
    return lines


def markdown() -> str:
    """The page of the bars."""
    head = ("", "what", "target", "measured", "met", "by")
    lines = [
        "# Bars",
        "",
        "What the engine was to reach, and what was measured (`python -m benchmarks`; "
        "two shared CPU cores; no GPU",
        "has run it yet). Ratios are to the named peer, in turn with it on the same "
        "machine.",
        "",
        *(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *table())),
        "",
        *growth(),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--run", nargs="*", metavar="ID", help="measure anew")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.run is not None:
        unknown = sorted({*options.run} - {bar.id for bar in BARS})
        if unknown:
            known = ", ".join(bar.id for bar in BARS)
            parser.error(f"no bar {', '.join(unknown)}; there are {known}.")
        run(tuple(b for b in BARS if not options.run or b.id in options.run))
    if options.markdown:
        options.markdown.write_text(markdown(), encoding="utf-8")
        return
    for name, what, target, text, met, command in table():
        print(f"{name:4} {what}\n     target    {target}\n     measured  {text}")
        print(f"     {'met: ' + met.strip('*') if met else 'open':10}{command}\n")


if __name__ == "__main__":
    main()
