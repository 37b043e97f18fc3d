"""What looking up matching places costs a training step.

A table of one million places (48 per pair, 8 partners each, about 2600 scans) is made
up, and batches of 8 are drawn from it as the feed does.

    python benchmarks/pair_lookup.py --out benchmarks/results/pair_lookup.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from homolog.feed.partners import partners_of
from homolog.store.pairs import ROW, PairTable
from homolog.views.random import generator


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=8)
    asked = parser.parse_args()
    scans = max(2, asked.rows // (48 * 8))
    rng = np.random.default_rng(0)
    rows = np.zeros(asked.rows, ROW)
    rows["case"] = np.sort(rng.integers(scans, size=asked.rows))
    rows["partner"] = rng.integers(scans, size=asked.rows)
    rows["score"] = rng.random(asked.rows)
    store = Path("store")
    ids = tuple(f"case_{i}" for i in range(scans))
    began = time.perf_counter()
    table = {store: PairTable(ids, rows, {})}
    partners = partners_of([(store, name) for name in ids], table, 0.5)
    opened = time.perf_counter() - began
    took = []
    for step in range(200):
        began = time.process_time()
        for sample in range(step * asked.batch, (step + 1) * asked.batch):
            draw = generator(0, sample, stream="partner")
            partners.draw(int(rng.integers(scans)), draw)
        took.append(1e3 * (time.process_time() - began))
    result = {
        "rows": asked.rows,
        "bytes": rows.nbytes,
        "seconds_to_open": opened,
        "batch": asked.batch,
        "processor_ms_per_batch": {
            p: float(np.percentile(took, p)) for p in (50, 95, 100)
        },
        "bar_ms": 2.0,
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
