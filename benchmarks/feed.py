"""What the feed can make, and whether a GPU would wait for it: a prediction.

Of each method at its recipe ``gpu``, on phantoms of 160 x 224 x 224 voxels: seconds of
processor time of a batch (this machine's cores; not wall time, so that others on them
do not count), its part in planning, and the operations of a step by torch's own count
on the meta device. From both, what an H200 and a 4090 would wait at 40 % of their peak
in bfloat16, with as many cores as such a machine has. **Predicted, not measured**: no
GPU was used, views are made on the GPU beside it, and cores differ. Products within
attention are not counted, so that networks of it wait rather less than is said.

    python benchmarks/feed.py [--store STORE] [--only s2dc ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gpu import Bench, request
from homolog.feed.batches import Feed
from homolog.methods import METHODS
from homolog.pretrain.job import feed_of
from homolog.pretrain.settings import build_method, cases_of, find_partners
from homolog.store.store import Store
from homolog.training.footprint import META, on_meta, pretended, shares_of
from homolog.training.stepping import autocast
from large_phantoms import make_store

# Dense bfloat16 with tensor cores, of the makers' sheets; and cores for each GPU.
CARDS = {"H200": (989e12, 16), "RTX 4090": (165e12, 8)}
SHARE = 0.4
# Threads take turns at Python: planning of all of them runs on one core.
OUT = Path(__file__).resolve().parent / "results" / "feed.json"
ROUNDS = 3


def operations(method: Any, feed: Feed, share: float) -> float:
    """Of a step, forward and back, by sample."""
    module: Any = on_meta(method)
    batch = feed.batch(0, share)
    with pretended():
        views = feed.views(batch, META)
        counter = FlopCounterMode(display=False)
        with counter:
            with autocast(META, "bf16"):
                terms = module.losses(views, share)
            torch.stack([t.float() for t in terms.values()]).sum().backward()
    return counter.get_total_flops() / len(batch.ids)


def seconds(feed: Feed, share: float) -> tuple[float, float]:
    """Of processor time by sample: all of it, and planning alone (in Python)."""
    part = feed._parts[0] if feed._parts else feed._whole
    whole, planning = [], []
    feed.batch(0, share)
    for step in range(1, ROUNDS + 1):
        began = time.process_time()
        made = feed.batch(step, share)
        whole.append((time.process_time() - began) / len(made.ids))
        began = time.process_time()
        for number in range(4):
            case = part.cases[part.order[number]]
            feed._sampler._plan(case, number, part.specs, None)
        planning.append((time.process_time() - began) / 4)
    return min(whole), min(planning)


def waits(flops: float, each_s: float, planning_s: float) -> dict[str, Any]:
    """Share of the time that a GPU waits, by threads and by processes."""
    found: dict[str, Any] = {}
    for name, (peak, cores) in CARDS.items():
        step_s = flops / (SHARE * peak)
        readers = cores - 1
        by = {
            "threads": max(planning_s, each_s / min(8, readers)),
            "processes": each_s / readers,
        }
        found[name] = {
            "samples_s": 1 / step_s,
            **{how: max(0.0, 1 - step_s / max(s, step_s)) for how, s in by.items()},
            "cores_needed": each_s / step_s,
        }
    return found


def of_method(bench: Bench, name: str) -> dict[str, Any]:
    settings = request(bench, name, bench.store(), "gpu", {}, "cpu")
    stores = [Store.open(path) for path in settings.stores]
    cases = cases_of(settings, stores)
    method = build_method(settings)
    partners = find_partners(method, stores, cases, settings.seed)
    feed = feed_of(settings, method, cases, partners, torch.device("cpu"))
    feed = feed.with_batch_size(max(feed.batch_multiple, 4))
    rows = []
    for share in shares_of(feed):
        each_s, planning_s = seconds(feed, share)
        flops = operations(method, feed, share)
        views = sum(s.count for s in method.views().values())
        rows.append(
            {
                "at": share, "ms_per_sample": 1e3 * each_s,
                "planning_ms_per_sample": 1e3 * planning_s,
                "crops_s_per_core": views / each_s,
                "mb_per_sample": feed.batch(0, share).nbytes / 1e6 / feed.batch_size,
                "gflop_per_sample": flops / 1e9,
                "waits": waits(flops, each_s, planning_s),
            }
        )  # fmt: skip
    return {
        "backbone": settings.backbone["name"],
        "size": settings.method_config.get("size"),
        "batch": settings.training.batch_size, "phases": rows,
    }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="painted where it is not there")
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        store = options.store or Path(place) / "store"
        if not store.exists():
            make_store(store, 3, (160, 224, 224), processes=1)
        bench = Bench(torch.device("cpu"), False, store, store)
        for name in options.only or METHODS.names():
            rows[name] = of_method(bench, name)
            for row in rows[name]["phases"]:
                told = ", ".join(
                    f"{card} {w['threads']:.0%}/{w['processes']:.0%} "
                    f"({w['cores_needed']:.1f} cores)"
                    for card, w in row["waits"].items()
                )
                print(
                    f"{name:22} {row['ms_per_sample']:6.2f} ms (planning "
                    f"{row['planning_ms_per_sample']:5.2f}) "
                    f"{row['crops_s_per_core']:7.0f} crops/s a core "
                    f"{row['gflop_per_sample']:8.0f} GFLOP; waits {told}",
                    flush=True,
                )
    content = {
        "what": "predicted waits for the feed; processor time measured, no GPU used",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__, "share_of_peak": SHARE,
        "cards": {k: {"bf16": v[0], "cores": v[1]} for k, v in CARDS.items()},
        "methods": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
