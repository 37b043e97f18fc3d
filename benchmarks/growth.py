"""How costs grow: cases of a store, size of a scan, classes, pairs, length of a queue.

Each is measured over sizes that double or grow tenfold, in processor seconds (the least
of several), and a power law is fitted to the upper half of each curve: an exponent of 0
is free, 1 in proportion, 2 its square. Stores of many cases are made up: one phantom's
files under many names; of more than 10^5, entries of the table alone, which all share
the files of one case. What is beyond the largest is extrapolated, and told so.

    python benchmarks/growth.py [--most-cases 100000] [--only cases ...]
        [--out benchmarks/results/growth.json] [--figure docs/assets/growth.svg]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from homolog.drawing.html import PALETTE, curve_chart, figure
from homolog.events import drain
from homolog.feed.batches import Feed
from homolog.index.datasets import CaseSource
from homolog.losses.contrast import Labelled, info_nce, label_contrast
from homolog.nn.memory_bank import FeatureQueue
from homolog.phantom.phantom import write_cohort
from homolog.pretrain.settings import chosen_cases
from homolog.store import store as store_module
from homolog.store.arrays import StoredArray, checksums_of, write_array
from homolog.store.build import write_store
from homolog.store.card import signed
from homolog.store.crops import read_box
from homolog.store.store import Store, case_folder, read_contents
from homolog.store.table import INDEX, Entry, state_of, write_index
from homolog.views.view import ViewSpec
from homolog.writing import write_json, write_text

Row = dict[str, float]
EXTRAPOLATED = (10**7, 10**8)
SIDE = 32
BATCH = 8
LINKS = 20_000  # names that one file may have


def least(call: Callable[[], Any], rounds: int = 5) -> float:
    """Processor seconds of one call; the first one does not count."""
    call()
    took = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        took.append(time.process_time() - began)
    return min(took)


# ------------------------------------------------------------------------------- cases


def made_up_store(folder: Path, count: int) -> Path:
    """A store that lists one phantom's files ``count`` times."""
    scans, one = folder / "scans", folder / "one"
    if not one.exists():
        (name,) = write_cohort(scans, 1, shape=(SIDE,) * 3, spacing_mm=(8.0,) * 3)
        source = CaseSource(
            id=name,
            image=scans / "imagesTr" / f"{name}_0000.nii.gz",
            label=scans / "labelsTr" / f"{name}.nii.gz",
        )
        drain(write_store([source], one))
    store = Store.open(one)
    contents = read_contents(one)
    assert contents is not None
    (card,) = store.cards
    made = folder / f"of_{count}"
    entries = {}
    for number in range(count):
        own = dataclasses.replace(card, id=f"case_{number}", key=f"{number:032x}")
        place = case_folder(made, own.id)
        place.mkdir(parents=True)
        text = json.dumps(signed(own.to_dict()))
        (place / "card.json").write_text(text)
        for name in card.files:
            if number % LINKS == 0:
                shutil.copy(case_folder(one, card.id) / name, place / name)
            else:
                os.link(case_folder(made, f"case_{number - 1}") / name, place / name)
        entries[own.id] = {"key": own.key, "split": "train"}
    (made / "store.json").write_text(json.dumps({**contents, "cases": entries}))
    return made


def opened(path: Path) -> Row:
    """A store opened and drawn from, in this process."""
    import psutil

    me = psutil.Process()
    before = me.memory_info().rss
    began = time.process_time()
    store = Store.open(path)
    open_s = time.process_time() - began
    began = time.process_time()
    cases = chosen_cases([store], ())
    spec = ViewSpec(size=(16, 16, 16), count=2, rotate_deg=(10.0, 10.0, 10.0))
    feed = Feed(cases, {"a": spec}, batch_size=BATCH, seed=0, threads=0)
    feed_s = time.process_time() - began
    began = time.process_time()
    feed.case_of(0)  # an epoch's order is drawn
    order_s = time.process_time() - began
    held = me.memory_info().rss - before
    steps = iter(range(10**6))
    for _ in range(20):  # blosc2 and the like are loaded
        feed.batch(next(steps))
    batch_s = least(lambda: feed.batch(next(steps)), rounds=40)
    return {"open_s": open_s, "feed_s": feed_s, "order_s": order_s,
            "batch_s": batch_s, "bytes": float(held)}  # fmt: skip


def told_by(*words: object) -> Row:
    """What this script tells in a process of its own."""
    command = [sys.executable, __file__, *map(str, words)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(told.stdout)
    return row


def of_cases(most: int) -> list[Row]:
    """Cards of cases; of 5000 and more the first opening makes the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        count = 100
        while count <= most:
            path = made_up_store(Path(folder), count)
            first = told_by("--open", path)
            again = told_by("--open", path)
            row = {**again, "first_open_s": first["open_s"]}
            rows.append({"size": float(count), **row})
            print(rows[-1], flush=True)
            count *= 10
    return rows


def made_up_table(folder: Path, count: int) -> Path:
    """A store of so many entries in ``store.json`` and its table; one case in truth."""
    one = folder / "of_1"
    one = one if one.exists() else made_up_store(folder, 1)
    (card,) = Store.open(one).cards
    contents = read_contents(one)
    assert contents is not None
    made = folder / f"table_{count}"
    (made / "cases").mkdir(parents=True)
    before, after = json.dumps({**contents, "cases": {}}).split('"cases": {}')
    digits = len(str(count - 1))

    def name(number: int) -> str:
        return f"case_{number:0{digits}}"

    with open(made / "store.json", "w") as file:
        file.write(before + '"cases": {')
        for number in range(count):
            comma = "," if number else ""
            told = f'"{name(number)}":{{"key":"{number:032x}","split":"train"}}'
            file.write(comma + told)
        file.write("}" + after)
    text = json.dumps(card.to_dict(), separators=(",", ":"))  # not signed: as of old
    head, middle, tail = _around(text, card.id, card.key)

    def entries() -> Iterator[Entry]:
        for number in range(count):
            own, key = name(number), f"{number:032x}"
            yield Entry(
                own, key, "train", card.modality, card.channels, True, card.shape[0],
                f"{head}{own}{middle}{key}{tail}".encode(),
            )  # fmt: skip

    rest = {k: v for k, v in contents.items() if k != "cases"}
    facts = {"hash": f"{count:016x}", "contents": rest}
    write_index(made, state_of(made), facts, entries())
    return made


def _around(text: str, case_id: str, key: str) -> tuple[str, str, str]:
    """A card's text without its name and key."""
    head, rest = text.split(f'"id":"{case_id}"', 1)
    middle, tail = rest.split(f'"key":"{key}"', 1)
    return f'{head}"id":"', f'"{middle}"key":"', f'"{tail}'


def of_entries(most: int) -> list[Row]:
    """Entries of a table alone: all of them share the files of one case."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        count = 100_000
        while count <= most:
            began = time.process_time()
            path = made_up_table(Path(folder), count)
            made_s = time.process_time() - began
            one = case_folder(Path(folder) / "of_1", "case_0")
            row = told_by("--open", path, "--files", one)
            row["made_us_each"] = made_s / count * 1e6
            row["table_bytes_each"] = (path / INDEX).stat().st_size / count
            rows.append({"size": float(count), **row})
            print(rows[-1], flush=True)
            shutil.rmtree(path)
            count *= 10
    return rows


# ------------------------------------------------------------------------- all others


def of_scan_size() -> list[Row]:
    """A crop of 32^3 voxels out of scans of growing size."""
    rows = []
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for side in (64, 128, 256, 384):
            values = rng.integers(-1000, 1000, (1, side, side, side), np.int16)
            path = Path(folder) / f"{side}.b2nd"
            write_array(values, path)
            size = path.stat().st_size
            sums = checksums_of(path, values.shape)
            array = StoredArray(path, values.shape, size, sums)
            starts = rng.integers(0, side - SIDE, (50, 3)).tolist()

            def crops(array: StoredArray = array, starts: Any = starts) -> None:
                for start in starts:
                    read_box(array, start, (SIDE,) * 3, 0)

            rows.append({"size": float(side**3), "crop_s": least(crops) / len(starts)})
            path.unlink()
    return rows


def of_classes() -> list[Row]:
    """A scan of 64^3 voxels labelled by a network with growing numbers of classes."""
    from sliding_window import network_of, noise, ours

    rows = []
    for classes in (4, 16, 64, 256):
        network, image = network_of("split", classes), noise(64)
        call = lambda n=network, i=image, c=classes: ours(n, i, c, 32)  # noqa: E731
        rows.append({"size": float(classes), "label_s": least(call, 3)})
    return rows


def of_pairs() -> list[Row]:
    """Contrast of N pairs among all others, forward and backward."""
    rows = []
    for count in (250, 500, 1000, 2000, 4000):
        own = torch.arange(1, count + 1)
        every, space = torch.ones_like(own, dtype=torch.bool), torch.zeros_like(own)
        sides = [torch.randn(count, 128, requires_grad=True) for _ in range(2)]

        def call(own: Any = own, every: Any = every, space: Any = space,
                 sides: Any = sides) -> None:  # fmt: skip
            pair = (Labelled(x, own, space, every) for x in sides)
            label_contrast(*pair, 0.5, within=True).backward()

        rows.append({"size": float(count), "step_s": least(call, 3)})
    return rows


def of_queue() -> list[Row]:
    """Eight keys enqueued and compared with all of a queue."""
    rows = []
    for length in (1024, 4096, 16384, 65536):
        queue = FeatureQueue(length, 128)
        queue.enqueue(torch.randn(length, 128))
        keys = torch.randn(8, 128)
        asked = torch.randn(8, 128, requires_grad=True)

        def call(queue: Any = queue, keys: Any = keys, asked: Any = asked) -> None:
            occupied = queue.occupied
            info_nce(asked, keys, queue.rows, 0.1, occupied=occupied).backward()
            queue.enqueue(keys)

        rows.append({"size": float(length), "step_s": least(call)})
    return rows


# ----------------------------------------------------------------------------- answers

CURVES: dict[str, tuple[str, Callable[[int], list[Row]]]] = {
    "cases": ("cases of a store", of_cases),
    "entries": ("entries of a table", of_entries),
    "scan": ("voxels of a scan", lambda _: of_scan_size()),
    "classes": ("classes", lambda _: of_classes()),
    "pairs": ("pairs contrasted", lambda _: of_pairs()),
    "queue": ("keys of a queue", lambda _: of_queue()),
}


def exponent(rows: list[Row], name: str) -> float:
    """Of the power law through the upper half of a curve."""
    upper = rows[len(rows) // 2 - 1 :]
    sizes = np.log([row["size"] for row in upper])
    costs = np.log([max(row[name], 1e-9) for row in upper])
    return float(np.polyfit(sizes, costs, 1)[0])


def answered(rows: list[Row]) -> dict[str, Any]:
    """Rows, an exponent for each cost, and what more cases would cost."""
    names = [name for name in rows[0] if name != "size"]
    fitted = {name: round(exponent(rows, name), 3) for name in names}
    last = rows[-1]
    beyond = {
        str(count): {
            name: last[name] * (count / last["size"]) ** fitted[name] for name in names
        }
        for count in EXTRAPOLATED
    }
    found = {"rows": rows, "exponents": fitted}
    return found | ({"extrapolated": beyond} if "open_s" in names else {})


def drawn(results: dict[str, Any]) -> str:
    """One panel a curve, both axes as powers of ten."""
    panels, keys = [], {}
    for key, (title, _) in CURVES.items():
        if key not in results:
            continue
        rows, fitted = results[key]["rows"], results[key]["exponents"]
        series = {}
        for name in (n for n in fitted if n.endswith("_s")):
            if key == "cases" and name in ("feed_s", "order_s"):
                continue  # drawn of entries
            label = f"{name.removesuffix('_s')} (exponent {fitted[name]:.2f})"
            series[label] = (
                [float(np.log10(row["size"])) for row in rows],
                [float(np.log10(max(row[name], 1e-9))) for row in rows],
            )
        chart = curve_chart(
            series, x_title=f"{title}, power of ten", y_title="s, power of ten",
            width=420, height=240,
        )  # fmt: skip
        panels.append((title, chart))
    keys["processor seconds"] = PALETTE[0]
    return figure(panels, keys, width=420, height=240)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most-cases", type=int, default=100_000)
    parser.add_argument("--most-entries", type=int, default=10_000_000)
    parser.add_argument("--only", nargs="*", choices=CURVES, default=list(CURVES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.open:
        real = store_module.case_folder
        if options.files:
            store_module.case_folder = lambda *_: options.files
        print(json.dumps(opened(options.open)))
        store_module.case_folder = real
        return
    results: dict[str, Any] = {}
    if options.out and options.out.exists():
        results = json.loads(options.out.read_text())
    for key in options.only:
        most = options.most_entries if key == "entries" else options.most_cases
        results[key] = answered(CURVES[key][1](most))
        print(key, json.dumps(results[key]["exponents"]), flush=True)
        if options.out:
            write_json(options.out, results)
    if options.figure:
        write_text(options.figure, drawn(results))


if __name__ == "__main__":
    main()
