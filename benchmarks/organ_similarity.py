"""Does a point's similarity map show its organ? Pretrained against random weights.

For every organ of a label map: the voxel deepest inside it is the query, its cosine
similarity to the whole scan is read at the label map's voxels (by the affines, so the
labels may cover a part of the scan), and the area under the ROC curve of "same organ"
is taken over all of them ("all") and over those with any label ("labelled"), which is
the harder question: organ against organs instead of organ against air and fat.

    python benchmarks/organ_similarity.py --scan ct.nii.gz --labels organs.nii.gz
        --encoder runs/pretrain [--names label_names.json] [--organs liver,spleen]
        [--strides 2,8] [--window 96,96,96] [--random-seeds 3] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from homolog.demo.scores import OrganScore, deepest_point, organ_score, untrained
from homolog.distributed import choose_device
from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.files import kept_features
from homolog.model_files.encoder import LoadedEncoder, load_encoder
from homolog.scans.files import read_labels, read_scan, scan_hash
from homolog.scans.volume import LabelMap

# Smaller organs hold fewer cells than a query needs.
FEWEST_VOXELS = 200


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True, action="append")
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument(
        "--offset", action="append", default=[], metavar="Z,Y,X",
        help="where a label map begins in the scan, in voxels, for maps cut out of it "
        "whose file forgot to move the origin; once per --labels, 0,0,0 for none",
    )  # fmt: skip
    parser.add_argument("--names", type=Path, help="JSON: label value -> name")
    parser.add_argument("--organs", default="", help="names or values, with commas")
    parser.add_argument("--strides", default="")
    parser.add_argument("--window", default="")
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--random-seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(v) for v in text.split(",") if v)


def read_names(path: Path | None, labels: Path) -> dict[int, str]:
    """``{value: name}``, or one such table per label file under its name."""
    if path is None:
        return {}
    raw = json.loads(path.read_text())
    raw = raw.get(labels.name.split(".")[0], raw)
    return {int(v): str(n) for v, n in raw.items() if v.isdigit()}


def chosen_organs(labels: LabelMap, wanted: str) -> list[int]:
    values, counts = np.unique(labels.data, return_counts=True)
    present = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v > 0}
    if not wanted:
        return [v for v, n in present.items() if n >= FEWEST_VOXELS]
    by_name = {n: v for v, n in labels.names.items()}
    asked = [int(w) if w.isdigit() else by_name.get(w, -1) for w in wanted.split(",")]
    return [v for v in asked if v in present]


def scores(
    loaded: LoadedEncoder, options: argparse.Namespace, maps: list[LabelMap]
) -> dict[str, OrganScore]:
    window = numbers(options.window)
    config = EmbedConfig(
        strides=numbers(options.strides),
        window=(window[0], window[1], window[2]) if window else None,
        overlap=options.overlap,
    )
    encoder = DenseEncoder.of(loaded, config, choose_device(options.device))
    scan, key = read_scan(options.scan), scan_hash(options.scan)
    found: dict[str, OrganScore] = {}
    with kept_features(options.features) as folder:
        features = drain(embed_scan(scan, encoder, folder=folder, scan_hash=key))
        assert features is not None
        for labels in maps:
            for value in chosen_organs(labels, options.organs):
                point = deepest_point(labels, value)
                score = organ_score(features, point, features, labels, value)
                found.setdefault(score.organ, score)
    return found


def main() -> None:
    options = arguments()
    maps = [read_labels(p, read_names(options.names, p)) for p in options.labels]
    for i, start in enumerate(options.offset[: len(maps)]):
        moved = maps[i].affine.crop(numbers(start))
        maps[i] = dataclasses.replace(maps[i], affine=moved)
    loaded = load_encoder(options.encoder)
    trained = scores(loaded, options, maps)
    random = [
        scores(untrained(loaded, seed), options, maps)
        for seed in range(options.random_seeds)
    ]
    rows = []
    for organ, score in trained.items():
        chance = [r[organ] for r in random]
        rows.append(
            {
                "organ": organ,
                "pretrained": score.auc,
                "random": float(np.mean([c.auc for c in chance])) if chance else None,
                "pretrained_labelled": score.auc_labelled,
                "random_labelled": float(np.mean([c.auc_labelled for c in chance]))
                if chance
                else None,
            }
        )
    print(f"{'organ':28}{'all voxels':>22}{'labelled voxels':>22}")
    print(f"{'':28}{'pretrained  random':>22}{'pretrained  random':>22}")
    for row in rows:
        cells = [
            "       -" if v is None else f"{v:8.3f}"
            for k, v in row.items()
            if k != "organ"
        ]
        print(f"{row['organ']:28}{cells[0]:>14}{cells[1]}{cells[2]:>14}{cells[3]}")
    if options.json:
        result = {
            "scan": options.scan.name,
            "organs": rows,
            "encoder": loaded.encoder_id,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
