"""A procedural patient: CT or MR of a trunk of which every correspondence is known.

One atlas (``anatomy``) is deformed into as many patients as wanted by smooth invertible
maps; each patient gets tissue values of their own,
a dose of contrast medium, texture and noise. Since a patient is the atlas seen through
a known map, the place of any point of one patient in any other is known exactly.
numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from homolog.geometry.affine import Affine, Index, Triple
from homolog.phantom.anatomy import FAR_MM, LABEL_NAMES, Organ, landmarks, organs
from homolog.scans.points import write_points
from homolog.scans.volume import LabelMap, Points, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.writing import write_json

Cloud = NDArray[np.float64]

# A displacement whose steepness stays below this is a contraction, so x + u(x) has
# exactly one inverse and the fixed-point iteration finds it.
STEEPEST = 0.6


@dataclass(frozen=True, eq=False)
class Warp:
    """Patient world mm -> atlas mm in closed form, and back by iteration.

    The map is ``affine(p)`` followed by ``q + u(q)``, where u is a sum of Gaussian
    bumps, each of which shifts and swells the anatomy around its centre.

    Attributes:
        affine: Patient world mm -> undeformed atlas mm.
        centres: (K, 3) bump centres, atlas mm.
        shifts: (K, 3) displacement at the centre, mm.
        swells: (K,) relative growth at the centre.
        widths: (K,) standard deviations, mm.
    """

    affine: Affine
    centres: Cloud
    shifts: Cloud
    swells: Cloud
    widths: Cloud

    def to_atlas(self, patient_mm: Cloud) -> Cloud:
        """Patient world mm -> atlas mm, (N, 3) -> (N, 3)."""
        q = self.affine.apply(patient_mm)
        return q + self.displacement(q)

    def to_patient(self, atlas_mm: Cloud, tolerance_mm: float = 1e-9) -> Cloud:
        """Atlas mm -> patient world mm, (N, 3) -> (N, 3); exact to the tolerance."""
        atlas = np.asarray(atlas_mm, dtype=np.float64)
        q = atlas.copy()
        for _ in range(200):
            following = atlas - self.displacement(q)
            gap = np.abs(following - q).max(initial=0.0)
            q = following
            if gap < tolerance_mm:
                break
        return self.affine.inverse().apply(q)

    def displacement(self, points: Cloud) -> Cloud:
        """Where u leads from undeformed atlas positions, (N, 3) -> (N, 3) mm."""
        moved = np.zeros_like(points)
        kind = points.dtype
        for centre, shift, swell, width in zip(
            self.centres, self.shifts, self.swells, self.widths, strict=True
        ):
            q = points - centre.astype(kind)
            near = np.exp(np.einsum("ni,ni->n", q, q) * kind.type(-0.5 / width**2))
            moved += near[:, None] * (shift.astype(kind) + kind.type(swell) * q)
        return moved

    def tamed(self, points: Cloud) -> Warp:
        """The same warp, its bumps weakened until u is nowhere steeper than STEEPEST.

        Args:
            points: (N, 3) atlas positions at which the steepness is bounded; the
                bumps are much wider than their distance should be.
        """
        steepness = np.zeros(len(points))
        for centre, shift, swell, width in zip(
            self.centres, self.shifts, self.swells, self.widths, strict=True
        ):
            r = np.linalg.norm(points - centre, axis=1) / width
            near = np.exp(-0.5 * r**2)
            # |grad(shift g)| = |shift| r g / width, and
            # |grad(swell q g)| <= |swell| g max(1, |1 - r^2|).
            steepness += np.linalg.norm(shift) * r * near / width
            steepness += abs(swell) * near * np.maximum(1.0, np.abs(1 - r**2))
        factor = min(1.0, STEEPEST / max(float(steepness.max()), 1e-9))
        return replace(self, shifts=self.shifts * factor, swells=self.swells * factor)


def random_warp(
    rng: np.random.Generator, centres: Cloud, *, strength: float = 1.0
) -> Warp:
    """A patient's build: size, posture, and each organ shifted and swollen by itself.

    Args:
        rng: Where the numbers come from.
        centres: (K, 3) atlas positions around which the anatomy varies.
        strength: 0 gives the atlas itself, 1 ordinary variety.
    """
    build = np.exp(rng.normal(0.0, 0.06 * strength))
    factors = build * np.exp(rng.normal(0.0, 0.04 * strength, 3))
    angles = np.radians(rng.normal(0.0, 2.5 * strength, 3))
    table = rng.uniform(-120.0, 120.0, 3) * strength
    patient_from_atlas = (
        Affine.shift(table)
        @ _rotation(angles)
        @ Affine.scale([float(f) for f in factors])
    )
    count = len(centres)
    grid = np.stack(
        np.meshgrid(*[np.arange(-h, h + 1, 12.0) for h in (132, 108, 156)]), -1
    ).reshape(-1, 3)
    return Warp(
        patient_from_atlas.inverse(),
        centres + rng.normal(0.0, 8.0, (count, 3)),
        rng.normal(0.0, 7.0 * strength, (count, 3)),
        rng.normal(0.0, 0.14 * strength, count),
        rng.uniform(30.0, 48.0, count),
    ).tamed(grid)


def _rotation(angles: NDArray[np.float64]) -> Affine:
    """Rotation about z, then y, then x, by angles in radians."""
    matrix = np.eye(4)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(4)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return Affine(matrix)


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


# A folder of patients in nnU-Net's layout, with their landmarks.
def write_cohort(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    labelled: int | None = None,
    test: int = 0,
    shape: Index = (64, 80, 80),
    spacing_mm: Triple = (4.0, 4.0, 4.0),
    noise: float = 18.0,
    mr_scanners: int = 0,
) -> list[str]:
    """Write ``count`` patients; returns their case names. See ``write_patients``."""
    return list(
        write_patients(
            folder, count, seed=seed, labelled=labelled, test=test,
            shape=shape, spacing_mm=spacing_mm, noise=noise, mr_scanners=mr_scanners,
        )
    )  # fmt: skip


def write_patients(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    labelled: int | None = None,
    test: int = 0,
    shape: Index = (64, 80, 80),
    spacing_mm: Triple = (4.0, 4.0, 4.0),
    noise: float = 18.0,
    mr_scanners: int = 0,
) -> Iterator[str]:
    """Write patients one by one, yielding the name of each that is complete.

    ``folder`` gets ``dataset.json``, ``imagesTr/phantom_000_0000.nii.gz``,
    ``labelsTr/phantom_000.nii.gz``, for test patients ``imagesTs`` and ``labelsTs``,
    and of all patients ``landmarks/phantom_000.csv``.

    Args:
        folder: Made if absent.
        count: How many patients, test ones included.
        seed: Patient i is ``patient_seed(seed, i)``, whatever ``count`` is.
        labelled: How many of the others get a label file (the first ones); all if None.
        test: How many are set aside for testing (the last ones), with labels.
        shape: Voxels (z, y, x).
        spacing_mm: Voxel size (z, y, x).
        noise: Standard deviation of the noise of CT, HU.
        mr_scanners: MR instead of CT, of so many scanners that show tissues
            differently; patient i was seen with scanner i modulo their number.
    """
    folder = Path(folder)
    training = count - test
    labelled = training if labelled is None else min(labelled, training)
    for name in ("imagesTr", "labelsTr", "landmarks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("imagesTs", "labelsTs") if test else ():
        (folder / name).mkdir(exist_ok=True)
    _write_description(folder, labelled, "MR" if mr_scanners else "CT")
    looks = [random_scanner(seed, number) for number in range(mr_scanners)]
    for i in range(count):
        name = f"phantom_{i:03d}"
        who = patient_seed(seed, i)
        if looks:
            scanner = looks[i % len(looks)]
            patient = make_mr_phantom(
                who, shape, spacing_mm, scanner=scanner, name=name
            )
        else:
            patient = make_phantom(who, shape, spacing_mm, noise=noise, name=name)
        part = "Tr" if i < training else "Ts"
        write_volume(patient.volume, folder / f"images{part}" / f"{name}_0000.nii.gz")
        if i < labelled or i >= training:
            write_labels(patient.labels, folder / f"labels{part}" / f"{name}.nii.gz")
        write_points(patient.landmarks, folder / "landmarks" / f"{name}.csv")
        yield name


def patient_seed(seed: int, index: int) -> int:
    """Seed of the phantom of one patient of a cohort."""
    return seed * 100_003 + index


def _write_description(folder: Path, labelled: int, modality: str) -> None:
    labels = {"background": 0, **{n: v for v, n in LABEL_NAMES.items()}}
    description = {
        "name": "phantom",
        "description": "procedural anatomy with known correspondences",
        "channel_names": {"0": modality},
        "labels": labels,
        "numTraining": labelled,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", description, indent=2)


# An MR-like scan of the same body. Only the look is imitated (fat bright, air and bone
# dark, a coil's uneven gain), so that methods can be tried across modalities, not the
# physics of a sequence.
# Grey value of a tissue by its CT number: air, lung, fat, water, soft tissue, bone.
_HU = (-1000.0, -700.0, -110.0, -20.0, 40.0, 90.0, 200.0, 1000.0)
_GREY = (0.0, 25.0, 820.0, 160.0, 380.0, 460.0, 240.0, 60.0)
# What CT hardly distinguishes, MR can: gain by label.
_GAIN = {1: 1.1, 2: 0.75, 3: 0.85, 4: 0.85, 7: 0.6, 8: 0.8, 9: 0.2, 10: 0.25, 13: 1.5}


@dataclass(frozen=True)
class Scanner:
    """How a scanner and its sequence show the body, in the MR look.

    Attributes:
        grey: Grey values of air, lung, fat, water, soft tissues (2), two of bone.
        gains: Value of a label -> factor.
        coil: How uneven its coil is, as a share.
        noise: Standard deviation of the (Rician) noise, grey values.
    """

    grey: tuple[float, ...] = _GREY
    gains: Mapping[int, float] = field(default_factory=lambda: dict(_GAIN))
    coil: float = 0.18
    noise: float = 14.0


def random_scanner(seed: int, number: int, *, strength: float = 1.0) -> Scanner:
    """One of the scanners that patients of a cohort were seen with.

    Args:
        seed: Of the cohort.
        number: Which scanner.
        strength: How much scanners differ: at 1 the contrast of two tissues may turn
            round, and fat may be dark; 0 gives the usual one.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x5CA0 + number]))
    spread = 0.35 * strength
    known = {value: _GAIN.get(value, 1.0) for value in LABEL_NAMES}
    gains = {
        value: g * float(np.exp(rng.normal(0, spread))) for value, g in known.items()
    }
    air, lung, fat, *soft, low, high = _GREY
    fat *= 1.0 - strength * float(rng.uniform(0.0, 0.85))
    soft = [value * float(np.exp(rng.normal(0, spread))) for value in soft]
    return Scanner(
        (air, lung, fat, *soft, low, high),
        gains,
        0.18 + 0.12 * strength,
        14.0 * float(np.exp(rng.normal(0, spread))),
    )


def make_mr_phantom(
    seed: int,
    shape: Index = (64, 80, 80),
    spacing_mm: Triple = (4.0, 4.0, 4.0),
    *,
    scanner: Scanner | None = None,
    name: str = "",
) -> Phantom:
    """The patient ``make_phantom(seed)`` as an MR scan; labels and landmarks the same.

    Args:
        seed: Which patient.
        shape: Voxels (z, y, x).
        spacing_mm: Voxel size (z, y, x).
        scanner: What it was seen with; the usual one if None.
        name: Name of the volume; ``phantom_SEED_MR`` if empty.
    """
    scanner = scanner or Scanner()
    phantom = make_phantom(
        seed, shape, spacing_mm, noise=4.0, name=name or f"phantom_{seed}_MR"
    )
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x3E]))
    grey = np.interp(phantom.volume.data[0], _HU, scanner.grey).astype(np.float32)
    for value, gain in scanner.gains.items():
        grey[phantom.labels.data == value] *= gain
    coil = rng.standard_normal((3, 3, 3))
    gain_map = ndimage.zoom(
        coil, np.array(shape) / 3, order=3, grid_mode=True, mode="nearest"
    )
    grey *= np.exp(scanner.coil * gain_map / max(float(np.abs(gain_map).max()), 1e-6))
    real, imaginary = rng.normal(0.0, scanner.noise, (2, *shape))
    seen = np.hypot(grey + real, imaginary)
    data = np.clip(np.rint(seen), 0, 4095).astype(np.int16)[None]
    scan = phantom.volume
    volume = Volume(data, scan.affine, scan.name, "MR", scan.meta)
    return replace(phantom, volume=volume)
