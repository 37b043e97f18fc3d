"""The pictures of the demo's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from homolog.drawing.pictures import (
    Picture,
    Plane,
    beside,
    coloured,
    colours_of,
    grey,
    with_heat,
    with_labels,
    with_line,
    with_ring,
)
from homolog.features.colours import Colours
from homolog.features.search import cosine_maps, on_grid, query_at
from homolog.geometry.affine import Triple
from homolog.scans.volume import FeatureMap, LabelMap, Points, Volume
from homolog.store.preprocess import BODY_HU

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
