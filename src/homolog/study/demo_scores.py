"""The demo's figures: segmentation of test patients, organs and landmarks found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.card import Card
from homolog.data.points_io import read_points
from homolog.data.scan_io import read_labels, read_scan
from homolog.data.store import Store
from homolog.data.volume import FeatureMap
from homolog.distributed import choose_device
from homolog.events import Job
from homolog.metrics.landmarks import landmark_score
from homolog.metrics.overlap import dice_per_label
from homolog.model_files import load_encoder
from homolog.study.demo_pictures import Patient
from homolog.study.looking import (
    OrganScore,
    deepest_point,
    landmarks_found,
    mean_of,
    organ_score,
)
from homolog.study.untrained import untrained
from homolog.tasks._dense import DenseEncoder, EmbedConfig
from homolog.tasks._trained import open_trained
from homolog.tasks.embed import Embed

ORGANS = ("liver", "spleen", "kidney_left", "vertebrae")
ENCODERS = ("random", "pretrained")
# Of windows when test patients are segmented; half the usual, to save time.
_OVERLAP = 0.25


@dataclass(frozen=True, eq=False)
class Segmentations:
    """How one model labelled the test patients.

    Attributes:
        rows: One per patient and label: ``case``, ``name`` and ``dice``.
        labels: Patient -> predicted labels (D, H, W) on the scan's own grid.
    """

    rows: tuple[Mapping[str, Any], ...]
    labels: Mapping[str, NDArray[Any]]

    def dice_of_case(self, case: str) -> float:
        """Mean Dice over the labels of a patient."""
        return mean_of([r["dice"] for r in self.rows if r["case"] == case])

    @property
    def per_organ(self) -> dict[str, float]:
        """Mean Dice over the patients, by label."""
        names = dict.fromkeys(str(r["name"]) for r in self.rows)
        return {
            n: mean_of([r["dice"] for r in self.rows if r["name"] == n]) for n in names
        }

    @property
    def mean_dice(self) -> float:
        """Mean over patients of their mean Dice."""
        return mean_of([self.dice_of_case(c) for c in self.labels])

    @property
    def worst_dice(self) -> float:
        """Of the patient with the lowest mean."""
        return min(self.dice_of_case(c) for c in self.labels)


@dataclass(frozen=True, eq=False)
class Looks:
    """What the features of both encoders do on the test patients.

    Attributes:
        patients: The test patients.
        maps: Encoder -> features, one per patient.
        organs: Encoder -> scores, over pairs of patients and organs.
        errors_mm: Encoder -> landmark errors over all pairs of patients.
    """

    patients: tuple[Patient, ...]
    maps: Mapping[str, Sequence[FeatureMap]]
    organs: Mapping[str, Sequence[OrganScore]]
    errors_mm: Mapping[str, NDArray[np.float64]]

    def figures(self) -> dict[str, dict[str, float]]:
        """Means, JSON types: figure -> encoder -> value."""
        scores = {name: landmark_score(e) for name, e in self.errors_mm.items()}
        return {
            "landmark_error_mm": {n: s.mean_mm for n, s in scores.items()},
            "landmark_median_mm": {n: s.median_mm for n, s in scores.items()},
            "landmarks_within_10_mm": {n: s.within_10_mm for n, s in scores.items()},
            "similarity_contrast": {
                n: mean_of([o.contrast for o in found])
                for n, found in self.organs.items()
            },
            "same_organ_auc": {
                n: mean_of([o.auc_labelled for o in found])
                for n, found in self.organs.items()
            },
        }


def segment_tests(
    model: Path, store_path: Path, device: str
) -> Job[Segmentations | None]:
    """Label the store's test cases and compare with the truth.

    Returns:
        None when told to stop.
    """
    task, trained = open_trained(model, choose_device(device))
    store = Store.open(store_path)
    rows: list[Mapping[str, Any]] = []
    labels: dict[str, NDArray[Any]] = {}
    for card in store.split("test"):
        predicted = yield from task.run(
            read_scan(card.source), model=trained, overlap=_OVERLAP
        )
        if predicted is None:
            return None
        assert card.label_source is not None
        truth = read_labels(card.label_source).data
        dice = dice_per_label(predicted.data, truth, list(store.label_names))
        rows += [
            {"case": card.id, "name": store.label_names[v], "dice": d}
            for v, d in dice.items()
        ]
        labels[card.id] = predicted.data
    return Segmentations(tuple(rows), labels)


def look_inside(folder: Path, device: str, *, seed: int) -> Job[Looks | None]:
    """Embed the test patients by both encoders; find organs and landmarks.

    Args:
        folder: The demo's folder.
        device: Where to embed.
        seed: Of the random weights.

    Returns:
        None when told to stop.
    """
    store = Store.open(folder / "store")
    cards = store.split("test")
    patients = tuple(patient_of(folder, store, card) for card in cards)
    loaded = load_encoder(folder / "pretrain")
    encoders = {"random": untrained(loaded, seed + 1), "pretrained": loaded}
    maps: dict[str, list[FeatureMap]] = {name: [] for name in ENCODERS}
    for name in ENCODERS:
        config = EmbedConfig()
        encoder = DenseEncoder.of(encoders[name], config, choose_device(device))
        for card, patient in zip(cards, patients, strict=True):
            features = yield from Embed(config).run(
                patient.volume,
                encoder=encoder,
                folder=folder / "features",
                scan_hash=card.source_hash,
            )
            if features is None:
                return None
            maps[name].append(features)
    return Looks(
        patients,
        maps,
        {n: organ_scores(patients, m) for n, m in maps.items()},
        {n: pairwise_errors(patients, m) for n, m in maps.items()},
    )


def patient_of(folder: Path, store: Store, card: Card) -> Patient:
    """Scan, labels and landmarks of one case of the demo."""
    assert card.label_source is not None
    return Patient(
        read_scan(card.source),
        read_labels(card.label_source, store.label_names),
        read_points(folder / "scans" / "landmarks" / f"{card.id}.csv"),
    )


def organ_scores(
    patients: Sequence[Patient], maps: Sequence[FeatureMap]
) -> list[OrganScore]:
    """Each patient's organs searched in the next patient."""
    scores = []
    for i in range(len(patients)):
        j = (i + 1) % len(patients)
        for value, name in patients[i].labels.names.items():
            present = (patients[j].labels.data == value).any()
            if name in ORGANS and present and (patients[i].labels.data == value).any():
                point = deepest_point(patients[i].labels, value)
                scores.append(
                    organ_score(maps[i], point, maps[j], patients[j].labels, value)
                )
    return scores


def pairwise_errors(
    patients: Sequence[Patient], maps: Sequence[FeatureMap]
) -> NDArray[np.float64]:
    """Landmark errors over all ordered pairs of patients, mm."""
    errors = [
        landmarks_found(maps[i], maps[j], patients[i].points, patients[j].points)[2]
        for i, j in itertools.permutations(range(len(patients)), 2)
    ]
    return np.concatenate(errors)
