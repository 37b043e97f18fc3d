"""What a reader makes of one flipped bit in a store: other voxels, or a sentence?

Two phantom patients in a temporary folder. In each of many trials one bit of one file
of a case is flipped (seeded), and a process of its own reads the whole case. Counted:
the same data (the bit meant nothing), refused with a sentence, other data without a
word, died.

    python benchmarks/bit_flips.py [--flips 250] [--out FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from homolog.errors import JobError, UnusableInput
from homolog.events import drain
from homolog.phantom.phantom import write_cohort
from homolog.store.build import prepare_store
from homolog.store.store import Store

OUTCOMES = ("same data", "refused", "other data", "error without a sentence")
FILES = ("image.b2nd", "label.b2nd", "points.npy", "card.json")


def contents(store: Path) -> str:
    """Hash of all that training reads of the first case."""
    opened = Store.open(store)
    card = opened.cards[0]
    digest = hashlib.sha256(np.asarray(opened.image(card.id)).tobytes())
    label = opened.label(card.id)
    digest.update(b"" if label is None else np.asarray(label).tobytes())
    for value, rows in sorted(opened.label_points(card.id).items()):
        digest.update(f"{value}".encode() + np.asarray(rows).tobytes())
    used = (card.affine.to_list(), card.scale, card.offset, card.low, card.high)
    told = (*used, card.centre, card.spread, card.label_values, card.split)
    digest.update(repr(told).encode())
    return digest.hexdigest()


def outcome(store: Path, wanted: str) -> str:
    """What one process makes of the store as it is now."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            code = 0 if contents(store) == wanted else 2
        except (JobError, UnusableInput):
            code = 1
        except BaseException:  # noqa: BLE001 - counted
            code = 3
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"died of signal {os.WTERMSIG(status)}"
    return OUTCOMES[os.WEXITSTATUS(status)]


def flip(path: Path, bit: int) -> None:
    """Turn one bit over; the file keeps its size."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def trials(folder: Path, flips: int, name: str) -> Counter[str]:
    """Outcomes of flips spread evenly over the bits of one file."""
    wanted = contents(folder / "store")
    case = Store.open(folder / "store").cards[0].id
    path = folder / "store" / "cases" / case / name
    kept = folder / "kept"
    shutil.copy2(path, kept)
    rng = np.random.default_rng(13)
    found: Counter[str] = Counter()
    for bit in rng.integers(0, 8 * path.stat().st_size, flips):
        flip(path, int(bit))
        found[outcome(folder / "store", wanted)] += 1
        shutil.copy2(kept, path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=250)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder / "scans", 2, seed=0, shape=(64, 96, 96))
        drain(prepare_store([folder / "scans"], folder / "store"))
        result = {n: dict(trials(folder, options.flips, n)) for n in FILES}
    text = json.dumps({"flips": options.flips, **result}, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
