"""What a mixed corpus taught: do clusters tell anatomy, or only which machine it was?

For every run: its losses against ln K, how evenly clusters were used and the least
spread of features in training; and, of the finished 2D network on crops of every scan,
the effective rank of features, all together and within one modality, and how much of
the modality 16 k-means clusters of them tell (0 nothing, 1 all). An untrained network
of the first run's kind is the control.

    python benchmarks/mixed_corpus.py STORE... --runs a=RUN b=RUN --out result.json
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.config import to_dict
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.model_files.encoder import load_encoder
from homolog.nn.heads import pooled
from homolog.nn.memory_bank import shared_information
from homolog.store.store import Store
from homolog.views.view import ViewSpec

_SIZE = (1, 64, 64)
_CLUSTERS = 16
_PASSES = 4
_NOT_A_LOSS = ("step", "learning_rate", "gradient_norm")


def crops(cases: Sequence[CaseRef], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Crops (N, 1, 1, H, W) of every case, four each, and the modality of each."""
    specs = {"crop": ViewSpec(_SIZE)}
    feed = Feed(cases, specs, batch_size=len(cases), seed=seed, threads=0)
    made = [feed.views(feed.batch(n), "cpu")["crop"] for n in range(_PASSES)]
    modality = torch.cat([m.modality for m in made if m.modality is not None])
    return torch.cat([m.image[:, 0] for m in made]), modality


@torch.no_grad()
def looked_at(network: Backbone, images: Tensor, modality: Tensor) -> dict[str, float]:
    """Ranks and information of the deepest features."""
    flat = network.planar().eval()
    parts = [pooled(flat.maps(part)[-1]) for part in images.split(64)]  # type: ignore[no-untyped-call]
    features = nn.functional.normalize(torch.cat(parts), dim=1)
    clusters = torch.from_numpy(
        KMeans(_CLUSTERS, n_init=5, random_state=0).fit_predict(features.numpy())
    ).long()
    counts = torch.zeros(int(modality.max()) + 1, _CLUSTERS)
    counts.index_put_((modality, clusters), torch.ones(len(clusters)), accumulate=True)
    within = [rank(features[modality == m]) for m in modality.unique()]
    return {
        "rank": rank(features),
        "rank_within_modality": statistics.mean(within),
        "information": float(shared_information(counts)),
    }


def rank(features: Tensor) -> float:
    """Effective rank of centred features (N, E)."""
    singular = torch.linalg.svdvals(features - features.mean(0))
    share = singular / singular.sum().clamp_min(1e-12)
    return float((-(share * share.clamp_min(1e-12).log()).sum()).exp())


def told(run: Path) -> dict[str, Any]:
    """First and last mean, least value and last spread of every logged number."""
    with (run / "metrics.csv").open() as file:
        rows = [
            {k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)
        ]
    found: dict[str, Any] = {"steps": int(rows[-1]["step"])}
    for name in rows[0].keys() | rows[-1].keys() | rows[len(rows) // 2].keys():
        values = [row[name] for row in rows if name in row]
        part = max(1, len(values) // 10)
        if name in _NOT_A_LOSS:
            continue
        found[name] = {
            "first": statistics.mean(values[:part]),
            "last": statistics.mean(values[-part:]),
            "least": min(values),
            "spread_of_last": statistics.pstdev(values[-2 * part :]),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=RUN")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cases = [
        CaseRef(store, card)
        for store in map(Store.open, arguments.stores)
        for card in store.cards
        if card.split != "test"
    ]
    images, modality = crops(cases)
    runs: Mapping[str, str] = dict(pair.split("=", 1) for pair in arguments.runs)
    found: dict[str, Any] = {}
    for number, (name, run) in enumerate(runs.items()):
        network = load_encoder(run).backbone
        if not number:
            torch.manual_seed(0)
            kind = network.planar()
            fresh = build("resnet2d", to_dict(kind.config))
            found["untrained"] = looked_at(fresh, images, modality)
            print("untrained", json.dumps(found["untrained"]))
        found[name] = {
            **looked_at(network, images, modality), "training": told(Path(run)),
        }  # fmt: skip
        print(name, json.dumps(found[name]))
    arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
