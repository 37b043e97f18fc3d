"""The demo's figures: segmentation of test patients, organs and landmarks matched.

The control of every claim about features is the same network with random weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from homolog.backbones import build
from homolog.demo.pictures import Patient
from homolog.distributed import choose_device
from homolog.events import Job
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.search import cosine_maps, match_points, on_grid, query_at
from homolog.metrics.classification import (
    landmark_errors,
    landmark_score,
    same_organ_auc,
    similarity_contrast,
)
from homolog.metrics.overlap import dice_per_label
from homolog.model_files.encoder import LoadedEncoder, encoder_id, load_encoder
from homolog.scans.files import read_labels, read_scan
from homolog.scans.points import read_points
from homolog.scans.volume import FeatureMap, LabelMap, Points
from homolog.store.card import Card
from homolog.store.store import Store
from homolog.tasks.base import PredictOptions
from homolog.use.predict import open_trained


@dataclass(frozen=True)
class OrganScore:
    """How well one point's similarity map separates its organ from the rest.

    Attributes:
        organ: Its name.
        auc: Area under the ROC curve over all voxels of the label map, air included.
        auc_labelled: The same over voxels that carry any label: organ against organs.
        contrast: Mean similarity inside less outside, in standard deviations.
    """

    organ: str
    auc: float
    auc_labelled: float
    contrast: float


def deepest_point(labels: LabelMap, value: int) -> NDArray[np.float64]:
    """World mm (3,) of the voxel farthest from the border of a label.

    Raises:
        ValueError: The map lacks the label.
    """
    mask = labels.data == value
    if not mask.any():
        name = labels.names.get(value, str(value))
        raise ValueError(f"label {name!r} does not occur in {labels.name!r}.")
    padded = np.pad(mask, 1)  # the scan's border is a border too
    depth = ndimage.distance_transform_edt(padded, sampling=labels.affine.spacing_mm)
    deepest = np.argwhere(depth >= depth.max() - 1e-6)
    # Of several equally deep ones the one in their middle.
    apart = np.linalg.norm(deepest - deepest.mean(axis=0), axis=1)
    return labels.affine.apply(deepest[int(apart.argmin())] - 1)


def organ_score(
    source: FeatureMap,
    point_mm: NDArray[np.float64],
    target: FeatureMap,
    labels: LabelMap,
    value: int,
) -> OrganScore:
    """Similarity of a point to all of another (or the same) scan, against its labels.

    Args:
        source: Features of the scan that holds the point.
        point_mm: (3,) world mm.
        target: Features of the scan that is searched.
        labels: Labels of the searched scan on any grid of their own: similarity is
            read at the label map's voxels, by the affines.
        value: The organ's label.
    """
    cells = cosine_maps(target, query_at(source, point_mm[None]))[0]
    similarity = on_grid(cells, target.affine, labels.shape, labels.affine)
    organ, known = labels.data == value, labels.data > 0
    return OrganScore(
        labels.names.get(value, str(value)),
        same_organ_auc(similarity, organ),
        same_organ_auc(similarity[known], organ[known]),
        similarity_contrast(similarity, organ),
    )


def landmarks_found(
    source: FeatureMap,
    target: FeatureMap,
    source_points: Points,
    target_points: Points,
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Landmarks of one scan searched in another, where both have them.

    Returns:
        Names, found positions (N, 3) in world mm, and their errors (N,) in mm.
    """
    there = dict(zip(target_points.names, target_points.mm, strict=True))
    names = tuple(n for n in source_points.names if n in there)
    if not names:
        return (), np.zeros((0, 3)), np.zeros(0)
    here = dict(zip(source_points.names, source_points.mm, strict=True))
    matches = match_points(source, target, np.array([here[n] for n in names]))
    found = np.array([m.mm for m in matches])
    return names, found, landmark_errors(found, np.array([there[n] for n in names]))


def mean_of(values: Sequence[float]) -> float:
    """Mean of the numbers that are there; NaN if none is."""
    known = [v for v in values if v == v]
    return float(np.mean(known)) if known else float("nan")


def untrained(loaded: LoadedEncoder, seed: int = 0) -> LoadedEncoder:
    """The encoder as it was before any training, its card unchanged.

    Heads are left out: random ones would blur what the network itself sees.

    Args:
        loaded: Gives architecture, window, maps and preprocessing.
        seed: Of the weights.
    """
    chosen = loaded.card["backbone"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build(chosen["name"], chosen["config"]).eval()
    embedding = {**(loaded.card.get("embedding") or {}), "heads": False}
    card = {**loaded.card, "embedding": embedding}
    return replace(
        loaded, backbone=backbone, card=card, encoder_id=encoder_id(backbone)
    )


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
        None when stopped.
    """
    task, trained = open_trained(model, choose_device(device))
    store = Store.open(store_path)
    rows: list[Mapping[str, Any]] = []
    labels: dict[str, NDArray[Any]] = {}
    for card in store.split("test"):
        predicted = yield from task.run(
            read_scan(card.source), trained, PredictOptions(overlap=_OVERLAP)
        )
        if predicted is None:
            return None
        assert isinstance(predicted, LabelMap)
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
        None when stopped.
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
            features = yield from embed_scan(
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
