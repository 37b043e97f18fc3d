"""The figures and pictures of the demo."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from homolog.backbones import build
from homolog.comparing.statistics import Difference, difference
from homolog.distributed import choose_device
from homolog.drawing.pictures import (
    Picture,
    Plane,
    beside,
    coloured,
    grey,
    with_heat,
    with_labels,
    with_line,
    with_ring,
)
from homolog.events import Job, Saved, without
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.of_scans import Colours
from homolog.features.search import cosine_maps, match_points, on_grid, query_at
from homolog.geometry.affine import Triple
from homolog.label_names import colours_of
from homolog.metrics.classification import (
    landmark_errors,
    landmark_score,
    same_organ_auc,
    similarity_contrast,
)
from homolog.metrics.overlap import dice_per_label
from homolog.model_files.encoder import LoadedEncoder, encoder_id, load_encoder
from homolog.model_files.library import shipped_models
from homolog.propagation.config import PropagateConfig
from homolog.propagation.of_scans import cases_of_store, propagate
from homolog.scans.files import read_labels, read_scan
from homolog.scans.points import read_points
from homolog.scans.volume import FeatureMap, LabelMap, Points, Volume
from homolog.store.card import Card
from homolog.store.preprocess import BODY_HU
from homolog.store.store import Store
from homolog.tasks.base import PredictOptions
from homolog.use.predict import open_trained

# The pictures of the demo's report.


AXIAL, CORONAL = 0, 1
TRUE, FOUND = (0.25, 1.0, 0.45), (1.0, 0.62, 0.1)


@dataclass(frozen=True, eq=False)
class Patient:
    """One case of the demo, on one grid.

    Attributes:
        volume: The scan.
        labels: The true labels.
        points: The true landmarks.
    """

    volume: Volume
    labels: LabelMap
    points: Points

    def body(self, features: FeatureMap) -> NDArray[np.bool_]:
        """Which cells of a feature map show body rather than air."""
        d, h, w = features.data.shape[1:]
        hu = np.asarray(self.volume.data[0], np.float32)
        cells = on_grid(hu, self.volume.affine, (d, h, w), features.affine)
        return np.asarray(cells > BODY_HU)

    def landmark(self, name: str) -> NDArray[np.float64]:
        """World mm of a landmark; the middle of the scan where it lies outside."""
        if name in self.points.names:
            place: NDArray[np.float64] = self.points.mm[self.points.names.index(name)]
            return place
        return self.volume.affine.apply((np.array(self.volume.shape) - 1) / 2)

    def plane(self, name: str, axis: int, factor: float) -> Plane:
        """The slice through a landmark."""
        return Plane.through(self.landmark(name), self.volume.affine, axis, factor)

    def grey(self, plane: Plane) -> Picture:
        """The scan's slice."""
        zoom = plane.zoom(self.volume.affine.spacing_mm)
        return grey(plane.cut(self.volume.data[0]), zoom)

    def labelled(
        self, plane: Plane, labels: NDArray[np.integer] | None = None
    ) -> Picture:
        """The slice with labels over it; the true ones unless others are given."""
        data = self.labels.data if labels is None else labels
        zoom = plane.zoom(self.volume.affine.spacing_mm)
        colours = colours_of(self.labels.names)
        return with_labels(self.grey(plane), plane.cut(data), zoom, colours)

    def ring(
        self, picture: Picture, plane: Plane, mm: NDArray[np.float64],
        colour: Triple = TRUE,
    ) -> Picture:  # fmt: skip
        """A ring around a world position."""
        place = plane.place(mm, self.volume.affine, self.volume.shape)
        return with_ring(picture, place, colour)


def stacked(rows: Sequence[Picture], gap: int = 8) -> Picture:
    """Rows of equal width under each other."""
    width = max(r.shape[1] for r in rows)
    height = sum(r.shape[0] for r in rows) + gap * (len(rows) - 1)
    result = np.zeros((height, width, 3), np.float32)
    top = 0
    for row in rows:
        result[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0] + gap
    return result


def patients_picture(patients: Sequence[Patient], factor: float = 0.8) -> Picture:
    """Coronal slices of several patients, bare above, labelled below."""
    planes = [p.plane("kidney_left_centre", CORONAL, factor) for p in patients]
    pairs = list(zip(patients, planes, strict=True))
    return stacked(
        [
            beside([p.grey(s) for p, s in pairs]),
            beside([p.labelled(s) for p, s in pairs]),
        ]
    )


def overview_picture(
    source: Patient,
    target: Patient,
    maps: tuple[FeatureMap, FeatureMap],
    colours: Colours,
    landmark: str = "liver_centre",
    factor: float = 1.1,
) -> Picture:
    """The demo at a glance: a point, the labels, the point's similarity elsewhere, RGB.

    Args:
        source: Patient with the point.
        target: Patient that is searched.
        maps: Features of source and target.
        colours: Common to both.
        landmark: The point.
        factor: Screen pixels per mm.
    """
    mm, true = source.landmark(landmark), target.landmark(landmark)
    plane = Plane.through(mm, source.volume.affine, CORONAL, factor)
    there = Plane.through(true, target.volume.affine, CORONAL, factor)
    heat = _heat(target, there, maps[0], maps[1], mm)
    return beside(
        [
            source.ring(source.grey(plane), plane, mm),
            source.labelled(plane),
            target.ring(heat, there, true),
            _coloured(target, there, maps[1], colours),
        ]
    )


def similarity_picture(
    source: Patient,
    target: Patient,
    maps: Mapping[str, tuple[FeatureMap, FeatureMap]],
    query_mm: NDArray[np.float64],
    true_mm: NDArray[np.float64],
    factor: float = 0.8,
) -> Picture:
    """A point in one patient, then its similarity in another for each encoder.

    Args:
        source: Patient with the point.
        target: Patient that is searched.
        maps: Encoder -> features of source and target.
        query_mm: The point in the source.
        true_mm: The same place in the target, marked with a ring.
        factor: Screen pixels per mm.
    """
    plane = Plane.through(query_mm, source.volume.affine, CORONAL, factor)
    pictures = [source.ring(source.grey(plane), plane, query_mm)]
    plane = Plane.through(true_mm, target.volume.affine, CORONAL, factor)
    for features, searched in maps.values():
        heat = _heat(target, plane, features, searched, query_mm)
        pictures.append(target.ring(heat, plane, true_mm))
    return beside(pictures)


def _heat(
    target: Patient,
    plane: Plane,
    features: FeatureMap,
    searched: FeatureMap,
    query_mm: NDArray[np.float64],
) -> Picture:
    """A slice with the similarity to a point of another patient over it."""
    cells = cosine_maps(searched, query_at(features, query_mm[None]))[0]
    volume = target.volume
    values = on_grid(cells, searched.affine, volume.shape, volume.affine)
    low, high = np.percentile(cells[target.body(searched)], (50, 99.8))
    zoom = plane.zoom(volume.affine.spacing_mm)
    return with_heat(
        target.grey(plane), plane.cut(values), zoom, float(low), float(high)
    )


def _coloured(
    patient: Patient, plane: Plane, features: FeatureMap, colours: Colours
) -> Picture:
    """A slice of a patient's features as colours, dimmed outside the body."""
    volume = patient.volume
    rgb = [
        on_grid(c, features.affine, volume.shape, volume.affine)
        for c in colours.paint(features.data)
    ]
    inside = plane.cut(volume.data[0]) > BODY_HU
    slices = np.stack([plane.cut(c) * (0.25 + 0.75 * inside) for c in rgb])
    return coloured(slices, plane.zoom(volume.affine.spacing_mm))


def colours_picture(
    patients: Sequence[Patient],
    maps: Sequence[FeatureMap],
    colours: Colours,
    factor: float = 0.8,
) -> Picture:
    """Slices of several patients, below them their features in common colours."""
    above, below = [], []
    for patient, features in zip(patients, maps, strict=True):
        plane = patient.plane("kidney_left_centre", CORONAL, factor)
        above.append(patient.grey(plane))
        below.append(_coloured(patient, plane, features, colours))
    return stacked([beside(above), beside(below)])


def landmarks_picture(
    patient: Patient,
    names: Sequence[str],
    found: Mapping[str, NDArray[np.float64]],
    factor: float = 1.1,
) -> Picture:
    """Landmarks on a coronal slice: true ones ringed, lines to where each was found.

    Args:
        patient: The patient that was searched.
        names: Landmarks.
        found: Encoder -> found positions (N, 3) in world mm, one picture each.
        factor: Screen pixels per mm.
    """
    plane = patient.plane("kidney_left_centre", CORONAL, factor)
    pictures = []
    for positions in found.values():
        picture = patient.grey(plane) * 0.75
        for name, mm in zip(names, positions, strict=True):
            true = patient.landmark(name)
            ends = [
                plane.place(p, patient.volume.affine, patient.volume.shape)
                for p in (true, mm)
            ]
            picture = with_line(picture, ends[0], ends[1], FOUND)
            picture = with_ring(picture, ends[1], FOUND, radius=2.0, thickness=3.0)
            picture = with_ring(picture, ends[0], TRUE, radius=5.0)
        pictures.append(picture)
    return beside(pictures)


def segmentation_picture(
    patient: Patient,
    predictions: Mapping[str, NDArray[np.integer]],
    factor: float = 0.8,
) -> Picture:
    """Truth and predictions, coronal above and axial below."""
    rows = []
    for name, axis in (("kidney_left_centre", CORONAL), ("spleen_centre", AXIAL)):
        plane = patient.plane(name, axis, factor)
        shown = [patient.grey(plane), patient.labelled(plane)]
        shown += [patient.labelled(plane, p) for p in predictions.values()]
        rows.append(beside(shown))
    return stacked(rows)


def label_keys(patient: Patient) -> list[tuple[str, Triple]]:
    """Names and colours of the labels."""
    colours = colours_of(patient.labels.names)
    return [(n.replace("_", " "), colours[v]) for v, n in patient.labels.names.items()]


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
    """How a model, or several trained alike, labelled the test patients.

    Attributes:
        rows: One per model, patient and label: ``case``, ``name`` and ``dice``.
        labels: Patient -> predicted labels (D, H, W) on the scan's own grid, of the
            first model.
        by_run: Mean Dice of each model.
    """

    rows: tuple[Mapping[str, Any], ...]
    labels: Mapping[str, NDArray[Any]]
    by_run: tuple[float, ...] = ()

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
        return min((self.dice_of_case(c) for c in self.labels), default=float("nan"))

    def ahead_of(self, other: Segmentations) -> Difference:
        """The paired differences to another model's Dice on the same patients."""
        both = [case for case in self.labels if case in other.labels]
        ours, theirs = (
            np.array([[one.dice_of_case(case) for case in both]])
            for one in (self, other)
        )
        return difference(ours, theirs)


@dataclass(frozen=True, eq=False)
class Looks:
    """What the features of both encoders, and the package's, do on test patients.

    Attributes:
        patients: The test patients.
        maps: Encoder -> features, one per patient.
        organs: Encoder -> scores, over pairs of patients and organs.
        errors_mm: Encoder -> landmark errors over all pairs of patients.
        shipped: Encoder of the package -> figure -> value; nothing is learnt for it.
    """

    patients: tuple[Patient, ...]
    maps: Mapping[str, Sequence[FeatureMap]]
    organs: Mapping[str, Sequence[OrganScore]]
    errors_mm: Mapping[str, NDArray[np.float64]]
    shipped: Mapping[str, Mapping[str, float]]

    def figures(self) -> dict[str, dict[str, float]]:
        """Means of both encoders, JSON types: figure -> encoder -> value."""
        scores = {name: landmark_score(self.errors_mm[name]) for name in ENCODERS}
        return {
            "landmark_error_mm": {n: s.mean_mm for n, s in scores.items()},
            "landmark_median_mm": {n: s.median_mm for n, s in scores.items()},
            "landmarks_within_10_mm": {n: s.within_10_mm for n, s in scores.items()},
            "similarity_contrast": {
                n: mean_of([o.contrast for o in self.organs[n]]) for n in ENCODERS
            },
            "same_organ_auc": {
                n: mean_of([o.auc_labelled for o in self.organs[n]]) for n in ENCODERS
            },
        }


def pooled(found: Sequence[Segmentations]) -> Segmentations:
    """Models trained alike as one: every score is the mean of theirs."""
    rows = tuple(row for one in found for row in one.rows)
    return Segmentations(rows, found[0].labels, tuple(one.mean_dice for one in found))


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


CARRIED = {"grey": "grey values", "features": "the encoder's features"}
# Places compared when labels are carried; a fifth of the usual, to save time.
_CELLS = 8000


@dataclass(frozen=True, eq=False)
class CarriedLabels:
    """What one labelled patient says of the test patients, nothing trained.

    Attributes:
        source: Whose labels were carried.
        by: ``grey`` and ``features``, see CARRIED -> labels of the test patients.
        seconds: The same -> mean seconds a patient.
    """

    source: str
    by: Mapping[str, Segmentations]
    seconds: Mapping[str, float]


def carry_labels(folder: Path, source: str, device: str) -> Job[CarriedLabels | None]:
    """Carry one patient's labels to the test patients, as ``homolog propagate`` does.

    Args:
        folder: The demo's folder.
        source: A case of its store.
        device: Where to embed and compare.

    Returns:
        None when stopped.
    """
    store = Store.open(folder / "store")
    cases = {case.name: case for case in cases_of_store(store)}
    tests = [cases[card.id] for card in store.split("test")]
    loaded = load_encoder(folder / "pretrain")
    place = choose_device(device)
    encoder = DenseEncoder.of(loaded, EmbedConfig(), place)
    found: dict[str, Segmentations] = {}
    seconds: dict[str, float] = {}
    for method in CARRIED:
        result = yield from without(
            propagate(
                [cases[source]],
                tests,
                folder / "carried" / method,
                encoder if method == "features" else None,
                PropagateConfig(method=method, cells=_CELLS),
                folder / "features",
                place,
            ),
            Saved,
        )
        if result["stopped"]:
            return None
        done = {row["case"]: row for row in result["cases"]}
        found[method] = Segmentations(
            tuple(
                {**score, "dice": math.nan if score["dice"] is None else score["dice"]}
                for score in result["scores"]
            ),
            {
                case.name: np.asarray(read_labels(Path(done[case.name]["result"])).data)
                for case in tests
                if case.name in done
            },
        )
        seconds[method] = mean_of([row["seconds"] for row in done.values()])
    return CarriedLabels(source, found, seconds)


def look_inside(folder: Path, device: str, *, seed: int) -> Job[Looks | None]:
    """Embed the test patients by both encoders, and by those of the package.

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
    encoders |= {model.name: load_encoder(model.folder) for model in shipped_models()}
    maps: dict[str, list[FeatureMap]] = {name: [] for name in encoders}
    for name, found in encoders.items():
        encoder = DenseEncoder.of(found, EmbedConfig(), choose_device(device))
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
    organs = {n: organ_scores(patients, m) for n, m in maps.items()}
    errors = {n: pairwise_errors(patients, m) for n, m in maps.items()}
    shipped = {
        name: {
            "landmark_error_mm": landmark_score(errors[name]).mean_mm,
            "landmarks_within_10_mm": landmark_score(errors[name]).within_10_mm,
            "same_organ_auc": mean_of([o.auc_labelled for o in organs[name]]),
        }
        for name in encoders
        if name not in ENCODERS
    }
    return Looks(patients, maps, organs, errors, shipped)


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
