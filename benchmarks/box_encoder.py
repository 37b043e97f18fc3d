"""Train an encoder that the package ships, from scans whose licences allow it.

One command collects the scans of the data kit, prepares a store of them, pretrains and
packs the model with its card. It goes on where it was stopped. Scans are never copied
into the repository, nor into the model: only weights and the list of their sources.

    python benchmarks/box_encoder.py body-ct --data KIT --out DIR
    python benchmarks/box_encoder.py ct-mr --data KIT --out DIR
    python benchmarks/box_encoder.py body-ct --out DIR --scores FIGURES.json

``--scores`` writes figures of ``benchmarks/box_scores.py`` into the card. ``--set`` and
``--steps`` shorten a trial.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homolog.model_files.folder import load_model, read_weights, save_model

_TCIA = "The Cancer Imaging Archive"
_TOTAL = "github.com/wasserth/TotalSegmentator, tests/reference_files"


@dataclass(frozen=True)
class Scan:
    """One file of the kit: whose it is, and why it may be learnt from.

    Attributes:
        path: In the kit.
        subject: Person; scans of one person have one name.
        source: Collection or repository.
        licence: As that source publishes it.
        modality: CT or MR.
        licence_of: Who says so.
        group: Each has a store of its own, and groups are looked at equally often.
    """

    path: str
    subject: str
    source: str
    licence: str
    modality: str = "CT"
    licence_of: str = _TCIA + ", page of the collection"
    group: str = "trunk"


_REPOSITORY = "LICENSE of the repository"
_POLICY = (
    _TCIA + ": its data usage policy (CC BY unless the collection restricts it); the "
    "page of the collection was not read again"
)
# One person of each collection: of these nothing is left over to be tested on.
BODY_CT = (
    Scan("ct_body/lidc_idri_0314.nii.gz", "LIDC-IDRI-0314", "LIDC-IDRI", "CC BY 3.0"),
    Scan(
        "ct_body/cmb_crc_01068.nii.gz", "MSB-01068", "CMB-CRC", "CC BY 4.0",
        licence_of=_POLICY,
    ),
    Scan(
        "ct_body/lung_pet_ct_dx_A0001.nii.gz", "Lung_Dx-A0001", "Lung-PET-CT-Dx",
        "CC BY 4.0",
    ),
    Scan(
        "ct_body/lung_fused_0001.nii.gz", "Lung-Fused-0001",
        "Lung-Fused-CT-Pathology", "CC BY 3.0", licence_of=_POLICY,
    ),
    Scan(
        "ct_body/acrin_flt_breast_001.nii.gz", "ACRIN-FLT-Breast_001",
        "ACRIN-FLT-Breast", "CC BY 3.0",
    ),
    Scan(
        "ct_body/cptac_pda_C3L-00189.nii.gz", "C3L-00189", "CPTAC-PDA", "CC BY 3.0",
        licence_of=_POLICY,
    ),
    Scan(
        "ct_body/ts_aorta_ct.nii.gz", "TS-aorta", _TOTAL, "Apache-2.0",
        licence_of=_REPOSITORY,
    ),
    Scan(
        "ct_body/ts_example_ct.nii.gz", "TS-example", _TOTAL, "Apache-2.0",
        licence_of=_REPOSITORY,
    ),
)  # fmt: skip
# People of STS (limbs, CC BY 3.0) that the blind encoder learns from; the others are
# for tests. In the kit's order, every second one.
_STS_LEARNT = (
    "001", "004", "006", "008", "011", "013", "016", "021", "024", "029", "034", "036",
    "040", "042", "044", "047", "050",
)  # fmt: skip


def _sts() -> Iterator[Scan]:
    for number in _STS_LEARNT:
        for name, modality in (("CT", "CT"), ("MR_T1", "MR")):
            yield Scan(
                f"sts_petctmr/STS_{number}/{name}_image.nii.gz", f"STS_{number}",
                "Soft-tissue-Sarcoma (IBSI validation set)", "CC BY 3.0", modality,
                group="limbs",
            )  # fmt: skip


BLIND = (
    *BODY_CT,
    Scan(
        "ct_body/ts_example_mr_sm.nii.gz", "TS-example-MR", _TOTAL, "Apache-2.0", "MR",
        _REPOSITORY,
    ),
    *_sts(),
)  # fmt: skip
# Parts of box_scores.py: what is looked for, and where.
_SCORES = (
    ("landmarks", "organ centres and poles", "BTCV, from person to person"),
    ("chaos", "organ centres and ends", "BTCV (CT) to CHAOS (MR), person to person"),
    ("sts", "places in limbs", "STS, CT to MR of one person"),
)
_NEVER_SEEN = {
    "BTCV": "all 18 people: they are what it is tested on",
    "CHAOS": "all 12 people: matching from CT to MR is tested on them",
    "ibsi_lung_patient": "licence forbids commercial use",
}


@dataclass(frozen=True)
class Plan:
    """What an encoder is made of.

    Attributes:
        title: One line for lists.
        scans: What it learns from.
        never_seen: Sets of the kit that it does not, with the reason.
        recipe: Of ``anatomical_embedding``.
        settings: ``--set`` of the pretraining.
        spacing_mm: Voxel size (z, y, x).
        window_hu: CT values kept.
        use: What it is for, and what not.
        start: Encoder that it goes on from; "": random weights.
    """

    title: str
    scans: tuple[Scan, ...]
    never_seen: Mapping[str, str]
    recipe: str
    settings: Mapping[str, str]
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)
    window_hu: tuple[int, int] = (-150, 250)
    use: str = ""
    start: str = ""
    cases: int = field(init=False, default=0)


_SHARED = {
    "backbone.channels": "16,32,96,192",
    "method.size": "48,64,64",
    "method.scale": "0.75,1.3",
    "method.rotate_deg": "10,10,10",
    "method.coarse_hardest": "256",
    "method.coarse_negatives": "128",
    # cells of 12 mm: those of 6 mm make a step twice as long
    "method.fine_stride": "4",
    "training.batch_size": "2",
    "training.steps": "2800",
    "training.warmup_steps": "50",
    "training.checkpoint_every": "100",
}
PLANS = {
    "body-ct": Plan(
        title="Body CT: chest, abdomen and pelvis",
        scans=BODY_CT,
        never_seen={
            **_NEVER_SEEN,
            "STS": "all 34 people: matching from CT to MR is tested on them",
        },
        recipe="cpu",
        settings={**_SHARED, "method.intensity_probability": "0.8"},
        use="CT of the trunk in HU; knows where things lie, not which disease they "
        "show. Learnt from 8 people: a start for landmarks, labels carried from one "
        "patient to the next and training with few labels, not a clinical device.",
    ),
    "ct-mr": Plan(
        title="CT and MR: places, whatever the contrast",
        scans=BLIND,
        never_seen={
            **_NEVER_SEEN,
            "STS": "17 of 34 people, every second one: matching from CT to MR of one "
            "person is tested on them",
        },
        recipe="blind",
        settings={
            **_SHARED,
            "method.synthetic_contrast": "0.6",
            "training.steps": "1500",
        },
        start="body-ct",
        use="CT or MR of trunk and limbs; for finding a place of one kind of scan in "
        "another, roughly: a registration within one person is far better.",
    ),
}


def main() -> None:
    """Collect, prepare, pretrain, pack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(PLANS))
    parser.add_argument("--data", type=Path, help="The kit; needed until a store is.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="Instead of the plan's.")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--take", type=int, help="First scans only, for a trial.")
    parser.add_argument("--half", action="store_true", help="Store float16 weights.")
    parser.add_argument("--scores", type=Path)
    parser.add_argument("--until", choices=("store", "run", "model"), default="model")
    given = parser.parse_args()
    plan = PLANS[given.name]
    given.out.mkdir(parents=True, exist_ok=True)
    scans = plan.scans[: given.take]
    run, stores = given.out / "run", []
    for group in dict.fromkeys(scan.group for scan in scans):
        stores.append(given.out / ("store" if group == "trunk" else f"store_{group}"))
        if not (stores[-1] / "store.json").exists():
            own = [scan for scan in scans if scan.group == group]
            prepare(plan, own, given.data, stores[-1])
    if given.until == "store":
        return
    settings = {**plan.settings, **dict(c.split("=", 1) for c in given.changes)}
    if given.steps:
        settings["training.steps"] = str(given.steps)
    pretrain(plan, settings, stores, run)
    if given.until == "run":
        return
    scores = json.loads(given.scores.read_text()) if given.scores else {}
    scans = tuple(scan for scan in scans if scan.path in listed(stores))
    folder = pack(given.name, scans, run, given.out / given.name, scores, given.half)
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{folder}: {size / 1e6:.2f} MB")


def prepare(plan: Plan, scans: Sequence[Scan], data: Path | None, store: Path) -> None:
    """A manifest of the scans beside their store, and the store."""
    if data is None:
        raise SystemExit("--data is needed to prepare the scans: the kit's folder.")
    missing = [s.path for s in scans if not (data / s.path).is_file()]
    for path in missing:
        print(f"not in the kit, left out: {path}", flush=True)
    manifest = store.with_name(f"{store.name}.csv")
    with manifest.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "modality", "subject", "split"))
        for scan in scans:
            if scan.path not in missing:
                where = (data / scan.path).resolve()
                table.writerow((where, scan.modality, scan.subject, "train"))
    low, high = plan.window_hu
    homolog(
        "prepare", str(manifest), "--out", str(store), "--keep-identifiers",
        "--spacing", ",".join(f"{mm:g}" for mm in plan.spacing_mm),
        f"--window-hu={low},{high}",
    )  # fmt: skip


def pretrain(
    plan: Plan, settings: Mapping[str, str], stores: Sequence[Path], run: Path
) -> None:
    """Begin the run, or go on with it."""
    if (run / "model" / "model.json").exists() and load_model(run).card["complete"]:
        return
    if (run / "run.json").exists():
        homolog("runs", "resume", str(run))
        return
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    start = ("--encoder", plan.start) if plan.start else ()
    homolog(
        "pretrain", "anatomical_embedding", *map(str, stores), "--out", str(run),
        "--recipe", plan.recipe, "--without", "none", "--share-power", "0",
        *start, *sets,
    )  # fmt: skip


def pack(
    name: str,
    scans: Sequence[Scan],
    run: Path,
    folder: Path,
    scores: Mapping[str, Any],
    half: bool,
) -> Path:
    """The model as it is shipped: weights, and a card that tells what it is made of."""
    plan = PLANS[name]
    model = load_model(run)
    card = {
        key: value
        for key, value in model.card.items()
        if key not in ("weights", "sha256", "homolog_version")
    }
    states = {
        Path(file).stem: read_weights(model.folder, model.card, file)
        for file in model.card["sha256"]
    }
    if half:
        states = {
            stem: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}
            for stem, s in states.items()
        }
    card |= {
        "name": name,
        "subtitle": plan.title,
        "use": plan.use,
        "licence": "Apache-2.0 (weights; the scans learnt from: see data)",
        "data": sources_of(scans),
        "never_seen": dict(plan.never_seen),
        "scores": card_scores(name, scores),
        "stored_as": "float16" if half else "float32",
        "started_from": plan.start or "random weights",  # not where that lay
    }
    encoder = states.pop("encoder")
    return save_model(folder, encoder, card, "encoder", states)


def listed(stores: Sequence[Path]) -> str:
    """What the manifests beside the stores name: not every kit has every scan."""
    return "".join(s.with_name(f"{s.name}.csv").read_text() for s in stores)


def sources_of(scans: Sequence[Scan]) -> list[dict[str, Any]]:
    """The collections, each with its licence and the people of it."""
    found: dict[tuple[str, str, str], list[Scan]] = {}
    for scan in scans:
        key = (scan.source, scan.licence, scan.licence_of)
        found.setdefault(key, []).append(scan)
    return [
        {
            "name": source, "licence": licence, "licence_of": where,
            "scans": len(of), "subjects": sorted({scan.subject for scan in of}),
        }
        for (source, licence, where), of in found.items()
    ]  # fmt: skip


def card_scores(name: str, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures of ``box_scores.py`` for one encoder, beside those of random weights."""
    rows: list[dict[str, Any]] = []
    for part, what, on in _SCORES:
        own = scores.get(part, {})
        for arm, how in (("match", "most alike"), ("map", "smooth map")):
            if f"{name} {arm}" not in own:
                continue
            random = own.get(f"{name} random {arm}", {})
            row = {
                "what": f"median error of {what}, {how},", "on": on, "unit": "mm",
                "value": own[f"{name} {arm}"]["median_mm"],
            }  # fmt: skip
            if random:
                row["random"] = random["median_mm"]
            rows.append(row)
    carried = scores.get("propagation", {})
    if f"{name} features" in carried:
        row = {
            "what": "Dice of labels carried from one person", "on": "BTCV",
            "value": round(carried[f"{name} features"]["dice"], 3),
        }  # fmt: skip
        if f"{name} random" in carried:
            row["random"] = round(carried[f"{name} random"]["dice"], 3)
        rows.append(row)
    return rows


def homolog(*words: str) -> None:
    """Run the command of this interpreter's package; stop where it fails."""
    done = subprocess.run([sys.executable, "-m", "homolog.cli", *words], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
