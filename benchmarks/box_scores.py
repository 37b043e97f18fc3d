"""What an encoder of the package knows of scans it never saw.

Every encoder is held against its own network with random weights, against grey values
and against SimpleITK (mutual information). Places of one scan are looked for in
another; medians over places, all pairs together.

- ``landmarks``: BTCV, organ centres and poles of one person found in another.
- ``chaos``: the same from BTCV (CT) to CHAOS (MR) of another person.
- ``sts``: CT to MR of one person's limb. The true place is the place itself, by the
  frame that both scans share; how well they share it is told by the tumour's centre.
- ``propagation``: labels of one BTCV person carried to others, Dice.
- ``probe``: a linear probe on few labelled BTCV people (``homolog probe``).

BTCV of the data kit has no HU; values are taken back to about -125..275 HU first.

    python benchmarks/box_scores.py --data KIT --work DIR --encoder body-ct=RUN \\
        --out R.json --parts landmarks,chaos,sts,propagation,probe
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from homolog.demo.scores import untrained
from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.search import Search, query_at
from homolog.model_files.encoder import load_encoder
from homolog.propagation.carry import looked_at
from homolog.propagation.config import PropagateConfig
from homolog.propagation.descriptors import Seen
from homolog.propagation.matching import MatchConfig, map_of
from homolog.propagation.of_scans import cases_of_store, propagate
from homolog.propagation.registration import registered
from homolog.scans.files import read_labels, read_scan, scan_hash
from homolog.scans.volume import FeatureMap, LabelMap
from homolog.store.store import Store

Cloud = NDArray[np.float64]
# A scan as maps compare it, and its features; each where an arm needs it.
Opened = tuple[Seen | None, FeatureMap | None]
PARTS = ("landmarks", "chaos", "sts", "propagation", "probe")
# Of an encoder: the most alike feature, the smooth map, and the same without training.
FEATURE_ARMS = ("match", "map", "random match", "random map")
PLAIN_ARMS = ("grey map", "affine", "affine + B-spline")
# People of STS with CT whom no encoder of the package learnt from.
_STS = (
    "002", "005", "007", "010", "012", "015", "018", "022", "028", "030", "035", "039",
    "041", "043", "045", "048", "051",
)  # fmt: skip
# Labels that BTCV and CHAOS both have: name -> value in each.
_ORGANS = {
    "spleen": (1, 4), "right kidney": (2, 2), "left kidney": (3, 3), "liver": (6, 1),
}  # fmt: skip
_POLE = 0.03  # share of an organ's voxels that make its upper or lower end
_STS_PLACES, _BODY_HU = 30, -300.0
_BTCV_SOURCE, _BTCV_TARGETS = "btcv_00", 6


@dataclass(frozen=True)
class Pair:
    """Places known in two scans, (N, 3) mm z, y, x."""

    a: Path
    b: Path
    points: Cloud
    truth: Cloud


def main() -> None:
    """Run the parts that are asked for, arm by arm, and write what they score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="Kept between calls.")
    parser.add_argument("--encoder", action="append", default=[], metavar="NAME=RUN")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--arms", default=",".join((*FEATURE_ARMS, *PLAIN_ARMS)))
    parser.add_argument("--pairs", type=int, default=20, help="Of scans, at most.")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    encoders = dict(e.split("=", 1) for e in given.encoder)
    arms, parts = given.arms.split(","), given.parts.split(",")
    results = json.loads(given.out.read_text()) if given.out.exists() else {}

    def keep(part: str, key: str, figures: Mapping[str, Any]) -> None:
        results.setdefault(part, {})[key] = figures
        print(part, key, figures, flush=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")

    btcv_in_hu(given.data, given.work / "btcv")
    makers: dict[str, Callable[[], list[Pair]]] = {
        "landmarks": lambda: btcv_pairs(given.data, given.work, given.pairs),
        "chaos": lambda: chaos_pairs(given.data, given.work),
        "sts": lambda: sts_pairs(given.data),
    }
    for part in parts:
        if part in makers:
            pairs = makers[part]()[: given.pairs]
            keep(part, "pairs", told(pairs, part, given.data))
            for arm in (a for a in arms if a in PLAIN_ARMS):
                keep(part, arm, scored(pairs, arm, None, given.work))
            for name, path in encoders.items():
                for arm in (a for a in arms if a in FEATURE_ARMS):
                    keep(part, f"{name} {arm}", scored(pairs, arm, path, given.work))
        elif part == "propagation":
            for key, figures in propagated(given.work, encoders, arms, given.pairs):
                keep(part, key, figures)
        elif part == "probe":
            for name, path in encoders.items():
                keep(part, name, probed(given.work, path))


# The scans.


def btcv_in_hu(data: Path, folder: Path) -> None:
    """The BTCV people as an nnU-Net set in about HU, made once."""
    source = data / "btcv_abdomen_ct"
    if (folder / "dataset.json").exists():
        return
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for path in sorted((source / "imagesTr").glob("*.nii.gz")):
        image = nib.load(path)
        grey = np.asarray(image.dataobj, np.float32)
        hu = np.where(grey > 0, grey * (400 / 255) - 125, -1000)
        made = nib.Nifti1Image(np.round(hu).astype(np.int16), image.affine)
        nib.save(made, folder / "imagesTr" / path.name)
        labels = (source / "labelsTr" / path.name).read_bytes()
        (folder / "labelsTr" / path.name).write_bytes(labels)
    text = (source / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text)


def btcv_store(work: Path) -> Path:
    """A store of them at 3 mm, made once."""
    store = work / "store"
    if not (store / "store.json").exists():
        homolog(
            "prepare", str(work / "btcv"), "--out", str(store),
            "--spacing", "3,3,3", "--window-hu=-150,250",
        )  # fmt: skip
    return store


def btcv_pairs(data: Path, work: Path, most: int) -> list[Pair]:
    """A fixed sample of pairs of people, all landmarks that both have."""
    text = (data / "btcv_abdomen_ct" / "landmarks.json").read_text()
    marks = json.loads(text)["cases"]
    pairs = [(a, b) for a in marks for b in marks if a != b]
    order = np.random.default_rng(0).permutation(len(pairs))
    found = []
    for a, b in (pairs[i] for i in order[:most]):
        names = [n for n in marks[a] if n in marks[b]]
        points, truth = (np.array([marks[c][n][::-1] for n in names]) for c in (a, b))
        images = work / "btcv" / "imagesTr"
        found.append(
            Pair(images / f"{a}.nii.gz", images / f"{b}.nii.gz", points, truth)
        )
    return found


def chaos_pairs(data: Path, work: Path) -> list[Pair]:
    """Each person of CHAOS with one of BTCV; centres and poles of organs of both."""
    mr, ct = data / "chaos_t2_mr", work / "btcv"
    found = []
    people = sorted((mr / "imagesTr").glob("*.nii.gz"))
    others = sorted((ct / "imagesTr").glob("*.nii.gz"))
    for b, a in zip(people, others, strict=False):
        own = organ_places(read_labels(ct / "labelsTr" / a.name), 0)
        there = organ_places(read_labels(mr / "labelsTr" / b.name), 1)
        names = [n for n in own if n in there]
        if names:
            points, truth = (np.array([p[n] for n in names]) for p in (own, there))
            found.append(Pair(a, b, points, truth))
    return found


def organ_places(labels: LabelMap, column: int) -> dict[str, Cloud]:
    """Centre, upper and lower end of each organ that is whole, mm z, y, x."""
    found: dict[str, Cloud] = {}
    across = int(np.abs(labels.affine.matrix[0, :3]).argmax())  # the axis along z
    last = labels.data.shape[across] - 1
    for organ, values in _ORGANS.items():
        index = np.argwhere(np.asarray(labels.data) == values[column])
        if not len(index) or index[:, across].min() == 0:
            continue
        if index[:, across].max() == last:
            continue
        mm = labels.affine.apply(index.astype(float))
        height = mm[:, 0]
        low, high = np.quantile(height, (_POLE, 1 - _POLE))
        found[f"{organ} centre"] = mm.mean(0)
        found[f"{organ} upper end"] = mm[height >= high].mean(0)
        found[f"{organ} lower end"] = mm[height <= low].mean(0)
    return found


def sts_pairs(data: Path) -> list[Pair]:
    """CT and MR of one person; places within the body that both show."""
    found = []
    for number in _STS:
        a, b = (data / "sts_petctmr" / f"STS_{number}" / f"{m}_image.nii.gz"
                for m in ("CT", "MR_T1"))  # fmt: skip
        if not (a.exists() and b.exists()):
            continue
        ct, mr = read_scan(a), read_scan(b)
        body = np.asarray(ct.data[0]) > _BODY_HU
        body = ndimage.binary_erosion(ndimage.binary_opening(body), iterations=2)
        mm = ct.affine.apply(np.argwhere(body).astype(float))
        there = mr.affine.inverse().apply(mm)
        shape = np.array(mr.data.shape[1:])
        inside = ((there > 2) & (there < shape - 3)).all(1)
        near = np.clip(np.round(there).astype(int), 0, shape - 1)
        bright = np.asarray(mr.data[0])[tuple(near.T)] > 0.1 * np.percentile(
            mr.data[0], 99
        )
        mm = mm[inside & bright]
        rng = np.random.default_rng(int(number))
        mm = mm[rng.permutation(len(mm))[:_STS_PLACES]]
        if len(mm):
            found.append(Pair(a, b, mm, mm))
    return found


def told(pairs: Sequence[Pair], part: str, data: Path) -> dict[str, Any]:
    """How many pairs and places; for one person's scans, how well they agree."""
    figures: dict[str, Any] = {
        "pairs": len(pairs), "places": sum(len(p.points) for p in pairs),
    }  # fmt: skip
    if part == "sts":
        apart = []
        for pair in pairs:
            masks = [
                read_labels(p.with_name(p.name.replace("_image", "_mask")))
                for p in (pair.a, pair.b)
            ]
            centres = [
                m.affine.apply(np.argwhere(np.asarray(m.data) > 0).mean(0))
                for m in masks
            ]
            apart.append(float(np.linalg.norm(centres[0] - centres[1])))
        figures["tumour_centres_apart_mm"] = spread(np.array(apart))
    return figures


# The arms.


def encoder_of(path: str, *, random: bool) -> DenseEncoder:
    """The encoder, or its network before any training."""
    loaded = load_encoder(path)
    loaded = untrained(loaded) if random else loaded
    return DenseEncoder.of(loaded, EmbedConfig(), torch.device("cpu"))


def scored(
    pairs: Sequence[Pair], arm: str, path: str | None, work: Path
) -> dict[str, Any]:
    """Errors of all places, mm, and time per pair (features not counted)."""
    encoder = None
    if path is not None:
        encoder = encoder_of(path, random=arm.startswith("random"))
    kept: dict[Path, Opened] = {}

    def opened(scan: Path) -> Opened:
        if scan not in kept:
            volume, maps = read_scan(scan), None
            if encoder is not None:
                folder, digest = work / "features", scan_hash(scan)
                job = embed_scan(volume, encoder, folder=folder, scan_hash=digest)
                maps = drain(job)
            seen = None if arm.endswith("match") else looked_at(volume, maps)
            kept[scan] = seen, maps
        return kept[scan]

    errors: list[Cloud] = []
    failed, spent = 0, 0.0
    for pair in pairs:
        a, b = opened(pair.a), opened(pair.b)
        began = time.process_time()
        try:
            put = found_by(arm.removeprefix("random "), a, b, pair.points)
        except RuntimeError as error:  # SimpleITK: the scans do not overlap
            failed += 1
            print(arm, pair.b.name, str(error).splitlines()[-1], flush=True)
            continue
        spent += time.process_time() - began
        errors.append(np.linalg.norm(put - pair.truth, axis=1))
    medians = [float(np.median(e)) for e in errors]
    return {
        **spread(np.concatenate(errors)),
        "medians_of_pairs_mm": [round(m, 1) for m in medians],
        "failed_pairs": failed,
        "core_seconds_per_pair": round(spent / max(1, len(errors)), 1),
    }


def found_by(arm: str, a: Opened, b: Opened, points: Cloud) -> Cloud:
    """Points (N, 3) of A where an arm puts them in B, mm z, y, x."""
    if arm == "match":
        assert a[1] is not None
        assert b[1] is not None
        found = Search(b[1]).find(query_at(a[1], points))
        return np.array([m.mm for m in found])
    one, other = a[0], b[0]
    assert one is not None
    assert other is not None
    maps: dict[str, Callable[[], Any]] = {
        "map": lambda: map_of(other, one, None, MatchConfig(1.0, 0.0)),
        "grey map": lambda: map_of(other, one, None, MatchConfig(0.0, 1.0)),
        "affine": lambda: registered(other, one, spline=False),
        "affine + B-spline": lambda: registered(other, one),
    }
    return np.asarray(maps[arm]()(torch.from_numpy(points).float()).double())


def spread(errors: Cloud) -> dict[str, float]:
    """Median, 90th percentile, and share within 10 mm."""
    return {
        "median_mm": round(float(np.median(errors)), 1),
        "p90_mm": round(float(np.percentile(errors, 90)), 1),
        "within_10_mm": round(float(np.mean(errors <= 10)), 3),
    }


def propagated(
    work: Path, encoders: Mapping[str, str], arms: Sequence[str], most: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Dice of labels carried from one person to others, by each way."""
    store = Store.open(btcv_store(work))
    cases = cases_of_store(store)
    sources = [c for c in cases if c.name == _BTCV_SOURCE]
    targets = [c for c in cases if c.name != _BTCV_SOURCE][::3][
        : min(most, _BTCV_TARGETS)
    ]
    plans: list[tuple[str, str | None, bool, str]] = []
    if "grey map" in arms:
        plans.append(("grey", None, False, "grey"))
    if "affine + B-spline" in arms:
        plans.append(("registration", None, False, "registration"))
    for name, path in encoders.items():
        if "random map" in arms:
            plans.append((f"{name} random", path, True, "features"))
        if "map" in arms:
            plans.append((f"{name} features", path, False, "features"))
            plans.append((f"{name} features and grey", path, False, "both"))
    for key, weights, random, method in plans:
        config = PropagateConfig(method=method)
        if method == "registration":
            config = replace(config, reach_mm=0.0, grey_share=0.0, smooth_mm=0.0)
        encoder = None if weights is None else encoder_of(weights, random=random)
        with tempfile.TemporaryDirectory() as folder:
            job = propagate(sources, targets, Path(folder), encoder, config, None)
            found = drain(job)
        rows = {r["case"]: round(r["dice"], 3) for r in found["cases"]}
        dice = found["mean_dice"]
        yield key, {"dice": dice["mean"], "per_label": dice, "per_case": rows}


def probed(work: Path, path: str) -> Any:
    """What ``homolog probe`` says: the encoder, random weights, grey values, place."""
    out = work / "probe" / Path(path).resolve().parent.name
    homolog(
        "probe", str(btcv_store(work)), "--encoder", path, "--out", str(out),
        "--patients", "2", "--judge", "rest", "--most", "6", "--no-dense",
        "--features", str(work / "features"),
    )  # fmt: skip
    return json.loads((out / "probe.json").read_text())


def homolog(*words: str) -> None:
    """Run the command of this interpreter's package; stop where it fails."""
    done = subprocess.run([sys.executable, "-m", "homolog.cli", *words], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
