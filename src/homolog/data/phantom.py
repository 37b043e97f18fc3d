"""Procedural anatomy: a CT-like trunk of which every correspondence is known.

One atlas (phantom_atlas.py) is deformed into as many patients as wanted by smooth
invertible maps (phantom_warp.py); each patient gets tissue values of their own,
a dose of contrast medium, texture and noise. Since a patient is the atlas seen through
a known map, the place of any point of one patient in any other is known exactly.
numpy and scipy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from homolog.data.phantom_atlas import LABEL_NAMES, landmarks, organs
from homolog.data.phantom_shapes import FAR_MM, Organ
from homolog.data.phantom_warp import Warp, random_warp
from homolog.data.volume import LabelMap, Points, Volume
from homolog.geometry.affine import Affine, Index, Triple

AIR_HU = -1000.0

# Around these the anatomy of patients differs most: organs and the corners of the wall.
_VARIED = (
    "liver_dome", "liver_tip", "liver_left_lobe", "spleen_centre", "stomach_centre",
    "kidney_right_centre", "kidney_left_centre", "heart_centre", "gallbladder_centre",
    "aorta_bifurcation", "lung_right_hilum", "lung_left_hilum",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Phantom:
    """One patient.

    Attributes:
        volume: The scan, (1, D, H, W) int16 HU, modality CT.
        labels: Organs on the scan's grid; names as LABEL_NAMES.
        landmarks: Named homologous points that lie within the scan, world mm.
        warp: The map between this patient and the atlas.
    """

    volume: Volume
    labels: LabelMap
    landmarks: Points
    warp: Warp

    def place(self, atlas_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where atlas positions (N, 3) lie in this patient, world mm."""
        return self.warp.to_patient(np.asarray(atlas_mm, np.float64))

    def corresponding(
        self, points_mm: NDArray[np.float64], other: Phantom
    ) -> NDArray[np.float64]:
        """Where points (N, 3) of this patient lie in another one, world mm."""
        atlas = self.warp.to_atlas(np.asarray(points_mm, np.float64))
        return other.warp.to_patient(atlas)


def make_phantom(
    seed: int,
    shape: Index = (64, 80, 80),
    spacing_mm: Triple = (4.0, 4.0, 4.0),
    *,
    noise: float = 18.0,
    strength: float = 1.0,
    name: str = "",
) -> Phantom:
    """A patient, a function of its arguments alone.

    Args:
        seed: Which patient.
        shape: Voxels (z, y, x); the default shows the whole trunk.
        spacing_mm: Voxel size (z, y, x).
        noise: Standard deviation of the scanner's noise, HU.
        strength: How much patients differ; 0 gives the atlas itself, free of variety.
        name: Name of the volume; ``phantom_SEED`` if empty.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x70A7]))
    centres = np.array([landmarks()[n] for n in _VARIED])
    warp = random_warp(rng, centres, strength=strength)
    affine = _scan_affine(rng, warp, shape, spacing_mm, strength)
    hu, label = _paint(rng, warp, affine, shape, strength)
    if noise > 0:
        hu += _noise(rng, shape, noise)
    name = name or f"phantom_{seed}"
    data = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)[None]
    return Phantom(
        Volume(data, affine, name, "CT"),
        LabelMap(label, affine, dict(LABEL_NAMES), name),
        _visible_landmarks(warp, affine, shape),
        warp,
    )


def _scan_affine(
    rng: np.random.Generator,
    warp: Warp,
    shape: Index,
    spacing_mm: Triple,
    strength: float,
) -> Affine:
    """The scan is centred on the trunk up to the technician's eye."""
    centre = warp.affine.inverse().apply(np.zeros(3))
    centre = centre + rng.normal(0.0, 6.0 * strength, 3)
    extent = (np.array(shape) - 1) * np.array(spacing_mm)
    return Affine.of(spacing_mm, tuple(centre - extent / 2))


def _visible_landmarks(warp: Warp, affine: Affine, shape: Index) -> Points:
    names = np.array(list(landmarks()))
    mm = warp.to_patient(np.array(list(landmarks().values())))
    index = affine.inverse().apply(mm)
    inside = ((index >= 0) & (index <= np.array(shape) - 1)).all(axis=1)
    return Points(mm[inside], tuple(str(n) for n in names[inside]))


def _atlas_positions(warp: Warp, affine: Affine, shape: Index) -> NDArray[np.float32]:
    """Atlas position of every voxel, (D * H * W, 3)."""
    index = np.indices(shape, dtype=np.float32).reshape(3, -1).T
    matrix = (warp.affine @ affine).matrix.astype(np.float32)
    straight = index @ matrix[:3, :3].T + matrix[:3, 3]
    bent: NDArray[np.float32] = straight + warp.displacement(straight)  # type: ignore[arg-type]
    return bent


def _paint(
    rng: np.random.Generator, warp: Warp, affine: Affine, shape: Index, strength: float
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Organ over organ with partial volume: HU (D, H, W) and labels (D, H, W)."""
    points = _atlas_positions(warp, affine, shape)
    hu = np.full(len(points), AIR_HU, np.float32)
    label = np.zeros(len(points), np.uint8)
    texture = _texture(rng, shape, affine.spacing_mm).ravel()
    contrast = rng.uniform(0.5 - 0.5 * strength, 0.5 + 0.5 * strength)
    edge_mm = np.float32(max(affine.spacing_mm))
    values = {name: value for value, name in LABEL_NAMES.items()}
    body: NDArray[np.intp] | None = None
    for organ in organs():
        jitter = 1 + 0.15 * strength * rng.normal()
        mean = organ.hu + contrast * organ.enhancement_hu * jitter
        mean += 4 * strength * rng.normal()
        where = _candidates(points, organ, body, margin_mm=float(edge_mm))
        if not len(where):
            continue
        share = np.clip(0.5 - organ.distance(points[where]) / edge_mm, 0, 1)
        hu[where] += share * (mean + organ.texture_hu * texture[where] - hu[where])
        if body is None:  # the skin comes first; nothing is painted outside of it
            body = where[share > 0]
        if not organ.keeps_label:
            label[where[share > 0.5]] = values.get(organ.name, 0)
    return hu.reshape(shape), label.reshape(shape)


def _candidates(
    points: NDArray[np.float32],
    organ: Organ,
    body: NDArray[np.intp] | None,
    margin_mm: float,
) -> NDArray[np.intp]:
    """Indices of the voxels an organ may touch."""
    where = np.arange(len(points)) if body is None else body
    for axis, (low, high) in enumerate(organ.box):
        if low > -FAR_MM or high < FAR_MM:
            along = points[where, axis]
            where = where[(along > low - margin_mm) & (along < high + margin_mm)]
    return where


def _texture(
    rng: np.random.Generator, shape: Index, spacing_mm: Triple
) -> NDArray[np.float32]:
    """The patient's own coarse texture, unit variance, about 6 mm wide."""
    field = rng.standard_normal(shape, dtype=np.float32)
    sigma = [6.0 / s for s in spacing_mm]
    field = ndimage.gaussian_filter(field, sigma, mode="wrap", truncate=2.5)
    unit: NDArray[np.float32] = field / max(float(field.std()), 1e-6)
    return unit


def _noise(
    rng: np.random.Generator, shape: Index, std_hu: float
) -> NDArray[np.float32]:
    """Scanner noise, slightly correlated as after reconstruction."""
    field = rng.standard_normal(shape, dtype=np.float32)
    field = ndimage.uniform_filter(field, (1, 2, 2), mode="wrap")
    scaled: NDArray[np.float32] = field * np.float32(std_hu * 2)  # the filter halves it
    return scaled
