"""Labels of one patient carried to others: Dice and seconds, against the baselines.

Compared by one pipeline: features of an encoder with and without grey values, the same
network with random weights, grey values alone; and SimpleITK's affine + B-spline, whose
labels are warped and nothing else. Each arm carries the labels of one case of a store
to others of it.

    python benchmarks/propagation.py STORE --from CASE --encoder RUN --out results.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from homolog.demo.scores import untrained
from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder
from homolog.model_files.encoder import load_encoder
from homolog.propagation.config import PropagateConfig
from homolog.propagation.of_scans import Case, cases_of_store, propagate
from homolog.store.store import Store

ARMS = ("both", "features", "random", "random and grey", "grey", "registration")


def arm(name: str, path: Path) -> tuple[DenseEncoder | None, PropagateConfig]:
    """Encoder and settings of an arm."""
    if name in ("grey", "registration"):
        bare = {"reach_mm": 0.0, "grey_share": 0.0, "smooth_mm": 0.0}
        rest: Mapping[str, Any] = bare if name == "registration" else {}
        return None, PropagateConfig(method=name, **rest)
    loaded = load_encoder(path)
    if name.startswith("random"):
        loaded = untrained(loaded, seed=0)
    encoder = DenseEncoder.of(loaded, EmbedConfig(), torch.device("cpu"))
    plain = name in ("features", "random")
    return encoder, PropagateConfig(method="features" if plain else "both")


def others(cases: list[Case], source: Case, most: int) -> list[Case]:
    """Labelled cases of other patients, one each, evenly drawn."""
    rest = {c.patient: c for c in cases if c.patient != source.patient and c.labels}
    found = sorted(rest.values(), key=lambda c: c.name)
    return found[:: max(1, len(found) // most)][:most] if most else found


def main() -> None:
    """Run the arms and write what they score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--from", dest="source", required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--most", type=int, default=0)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    cases = cases_of_store(Store.open(given.store))
    sources = [c for c in cases if c.name in given.source.split(",")]
    targets = others(cases, sources[0], given.most)
    targets = [c for c in targets if c not in sources]
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    own = results.setdefault(given.store.name, {})
    own["from"], own["to"] = given.source, [c.name for c in targets]
    for name in given.arms.split(","):
        encoder, config = arm(name, given.encoder)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            found = drain(
                propagate(
                    sources, targets, Path(folder), encoder, config, given.features
                )
            )
        spent = (time.process_time() - began) / max(1, len(targets))
        rows = found["cases"]
        pairs = np.array([[r["confidence"], r["dice"]] for r in rows]).T
        own[name] = {
            "dice": found["mean_dice"],
            "per_case": {r["case"]: r["dice"] for r in rows},
            "core_seconds_per_patient": round(spent, 1),
            "confidence_against_dice": float(np.corrcoef(pairs)[0, 1]),
            "failed": [{**f, "scan": Path(f["scan"]).name} for f in found["failed"]],
        }
        print(given.store.name, name, own[name], flush=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
