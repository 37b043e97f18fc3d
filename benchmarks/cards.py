"""What each method would do on GPUs of 8 to 141 GB, by the model of its memory.

No GPU is needed and none was used: ``homolog.training.footprint`` makes a step of the
recipe ``gpu`` on torch's meta device and counts its tensors. ``auto`` is what a run
does by itself, ``up`` what ``training.fit=up`` adds. A step is counted in bfloat16.

    python benchmarks/cards.py [--store STORE] [--only s2dc ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gpu import Bench, request
from homolog.methods import METHODS
from homolog.pretrain.job import feed_of
from homolog.pretrain.settings import build_method, cases_of, find_partners
from homolog.store.store import Store
from homolog.training.fitting import Fit, Setting, compares_samples, fitted, needs_of
from homolog.training.footprint import CONTEXT_BYTES, USABLE, footprint, shares_of
from large_phantoms import make_store

# GB as they are sold -> GiB that a driver tells of.
CARDS = {8: 7.6, 12: 11.6, 24: 23.5, 80: 79.1, 141: 139.8}
GIB = 1 << 30
OUT = Path(__file__).resolve().parent / "results" / "cards.json"


def told(fit: Fit) -> dict[str, Any]:
    setting = fit.setting
    return {
        "batch": setting.batch_size, "accumulate": setting.accumulate,
        "recompute": setting.recompute, "gib": round(fit.bytes / GIB, 2),
        "fits": fit.fits, "why": fit.why,
    }  # fmt: skip


def of_method(bench: Bench, name: str) -> dict[str, Any]:
    """A method's row: the parts of a step, and what is chosen for each card."""
    settings = request(bench, name, bench.store(), "gpu", {}, "cpu")
    plan = settings.training
    stores = [Store.open(path) for path in settings.stores]
    cases = cases_of(settings, stores)
    method = build_method(settings)
    partners = find_partners(method, stores, cases, settings.seed)
    feed = feed_of(settings, method, cases, partners, torch.device("cpu"))
    began = time.process_time()
    held = footprint(method, feed, plan, "bf16", shares_of(feed))
    spent = time.process_time() - began
    needs = needs_of(method, feed, plan, "bf16")
    wanted = Setting(plan.batch_size, plan.accumulate, plan.recompute)
    compares = compares_samples(method)
    parts = {
        part: round(getattr(held, part) / GIB, 3)
        for part in ("weights", "gradients", "optimiser", "guard", "activations")
    }
    cards: dict[str, Any] = {}
    for sold, gib in CARDS.items():
        cards[str(sold)] = {
            fit: told(
                fitted(
                    needs, wanted, int(gib * GIB), compares=compares,
                    multiple=feed.batch_multiple, fit=fit,
                )
            )
            for fit in ("auto", "up")
        }  # fmt: skip
    return {
        "backbone": settings.backbone["name"],
        "size": settings.method_config.get("size"),
        "batch": plan.batch_size, "accumulate": plan.accumulate,
        "compares_samples": compares, "parts_gib": parts,
        "card_gib": round(held.on_card / GIB, 2), "model_cpu_s": round(spent, 2),
        "cards": cards,
    }  # fmt: skip


def line(name: str, row: Mapping[str, Any]) -> str:
    def cell(card: Mapping[str, Any]) -> str:
        auto, up = card["auto"], card["up"]
        text = f"{auto['batch']}x{auto['accumulate']}" + "r" * auto["recompute"]
        text += "" if auto["fits"] else "!"
        more = f"{up['batch']}x{up['accumulate']}" + "r" * up["recompute"]
        return text if more == text else f"{text} ({more})"

    cells = " ".join(f"{cell(c):>18}" for c in row["cards"].values())
    return f"{name:22} {row['card_gib']:7.1f} {cells}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="painted where it is not there")
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as place:
        store = options.store or Path(place) / "store"
        if not store.exists():
            make_store(store, 3, (160, 224, 224), processes=1)
        bench = Bench(torch.device("cpu"), False, store, store)
        rows = {}
        print(f"{'':22} {'GiB':>7} " + " ".join(f"{c:>15} GB" for c in CARDS))
        for name in options.only or METHODS.names():
            rows[name] = of_method(bench, name)
            print(line(name, rows[name]), flush=True)
    content = {
        "what": "batch x accumulate by the model of the memory; no GPU was used",
        "torch": torch.__version__, "usable": USABLE,
        "context_gib": CONTEXT_BYTES / GIB, "cards_gib": CARDS, "methods": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
