"""What a method asks for (ViewSpec) and what it gets (View, Views)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from homolog.geometry.affine import Index
from homolog.views.energy_bands import BandReference

Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Anchor:
    """At the sample's own place: drawn once, shared by all groups that ask for it."""


# Paper: Joint Eq. 11, the same n slices.
@dataclass(frozen=True)
class Elsewhere:
    """At an independent random place of the same scan, anew for every view.

    Attributes:
        partner: In the other patient's scan instead of the sample's own.
        slices: Across the slices where the sample is, so that all views show the same
            ones (the middle ones of them, where a view is of fewer); anywhere in plane.
    """

    partner: bool = False
    slices: bool = False


@dataclass(frozen=True)
class Within:
    """Centred somewhere inside the first view of another group.

    Attributes:
        group: Name of that group; it must come earlier in ``Method.views()``.
    """

    group: str


@dataclass(frozen=True)
class Whole:
    """The whole scan, scaled (one factor for all axes) to fit the view and padded.

    Attributes:
        slices: The scan's own slices where they fit, or as many evenly spread ones as
            the view has; only the other two axes share a factor.
    """

    slices: bool = False


@dataclass(frozen=True)
class Matched:
    """At a place known in two patients, never moved to keep the view in the scan.

    The feed draws a matching pair of places for each sample. Where it knows none, both
    sides are the sample's own scan and anchor.

    Attributes:
        partner: In the other patient's scan instead of the sample's own.
    """

    partner: bool = False


# Paper: MixCL views.
@dataclass(frozen=True)
class Same:
    """Voxel by voxel what another group shows, with intensity changes of its own.

    Attributes:
        group: Name of that group; it must come earlier in ``Method.views()``, have the
            same size, count and spacing, and no intensity changes.
    """

    group: str


Place: TypeAlias = Anchor | Elsewhere | Within | Whole | Matched | Same


@dataclass(frozen=True)
class Intensity:
    """Random intensity changes; values are normalised intensities (about -1..3).

    Each has a probability per view; a probability of 0 switches it off.

    Attributes:
        shift: Added offset drawn in this range;
        shift_by_range: as a share of the scan's range of values.
        scale: Multiplicative factor drawn in this range.
        gamma: Exponent on the view's values rescaled to 0..1.
        noise_std: Gaussian noise of a standard deviation drawn in this range.
        blur_voxels: Gaussian blur of a sigma drawn in this range.
        contrast: Factor about the view's mean; values are kept in the view's range.
        low_resolution: Zoom factor (0..1] down and up again.
        curve: Strength, 0..1, of a random curve from grey values to grey values that
            may rise and fall: as if another modality had been used.
        bands: Strength, 0..1, of setting the energy of each frequency band to that of
            ``bands_reference``: as if another scanner had been used. Of the view, or
            of the whole slice that it is cut from, as the reference says.
        bands_reference: Energies of reference images, needed for ``bands``.
        regions: Strength, 0..1, of a contrast drawn at random over regions: as if any
            other modality had been used (``homolog.views.contrast``).
        bias: Half the logarithm of how much darker than elsewhere a view may become,
            slowly, as by the coils of MR scanners.
        slices_voxels: Thickness of slices along one axis, drawn in this range: as if
            the scan had been taken in thicker ones.
    """

    shift: Range = (-0.1, 0.1)
    shift_probability: float = 0.0
    shift_by_range: bool = False
    scale: Range = (0.9, 1.1)
    scale_probability: float = 0.0
    gamma: Range = (0.7, 1.5)
    gamma_probability: float = 0.0
    noise_std: Range = (0.0, 0.1)
    noise_probability: float = 0.0
    blur_voxels: Range = (0.5, 1.0)
    blur_probability: float = 0.0
    contrast: Range = (0.75, 1.25)
    contrast_probability: float = 0.0
    low_resolution: Range = (0.5, 1.0)
    low_resolution_probability: float = 0.0
    curve: Range = (0.3, 1.0)
    curve_probability: float = 0.0
    bands: Range = (1.0, 1.0)
    bands_probability: float = 0.0
    bands_reference: BandReference | None = None
    regions: Range = (0.7, 1.0)
    regions_probability: float = 0.0
    bias: Range = (0.1, 0.5)
    bias_probability: float = 0.0
    slices_voxels: Range = (1.5, 4.0)
    slices_probability: float = 0.0


@dataclass(frozen=True)
class ViewSpec:
    """One group of views of a sample.

    Attributes:
        size: Voxels (D, H, W); D = 1 cuts a slice or takes a 2D image.
        count: Views in the group (V).
        place: Where the views are centred.
        translate: Centre jitter per axis, drawn in +- this fraction of the view's size.
        stray: Probability that a view stands at an independent place of the scan
            instead of ``place``.
        rotate_deg: Rotation per axis (about z, y, x) drawn in +- these angles.
        scale: Isotropic size factor; 1.2 shows the anatomy 1.2 times larger. Of scans
            whose voxels are three times as long as wide or more it holds within the
            slices only, as do ``anisotropy`` and ``elastic_mm``.
        anisotropy: Extra per-axis factor drawn in 1 / (1 + a) .. 1 + a.
        flip: Probability of a flip along each axis (z, y, x).
        quarter_turns: Random multiples of 90 degrees in the planes whose sides agree,
        quarter_probability: so often.
        planar: Slices are copied: nothing is scaled or bent across them.
        shape_probability: Of rotation, scale and anisotropy together; otherwise a view
            keeps the scan's axes and size.
        elastic_mm: Standard deviation of each component of the displacement; lowered
            where so few millimetres between control points would make tissue fold.
        elastic_points: Control points per axis of the displacement field, a cubic
            B-spline spread over the view.
        elastic_probability: Of the elastic displacement.
        spacing_mm: Voxel size of the view; None takes the store's.
        intensity: Random intensity changes.
        labels: Whether the label map is sampled too (nearest neighbour).
        boxes: Names of findings. The label map of a case that has none is then made of
            its boxes, with values of its own: see ``homolog.store.arrays``.
        depths: Whether the distance of labelled voxels from their label's boundary is
            sampled too; the store must hold it (``homolog.store.pairs``).
    """

    size: Index
    count: int = 1
    place: Place = Anchor()
    translate: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stray: float = 0.0
    rotate_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: Range = (1.0, 1.0)
    anisotropy: float = 0.0
    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    quarter_turns: bool = False
    quarter_probability: float = 1.0
    planar: bool = False
    shape_probability: float = 1.0
    elastic_mm: float = 0.0
    elastic_points: Index = (6, 6, 6)
    elastic_probability: float = 1.0
    spacing_mm: tuple[float, float, float] | None = None
    intensity: Intensity = field(default_factory=Intensity)
    labels: bool = False
    boxes: tuple[str, ...] = ()
    depths: bool = False


@dataclass(frozen=True)
class View:
    """One group of views of a batch.

    Attributes:
        image: (B, V, C, D, H, W) float32, normalised intensities.
        affine: (B, V, 4, 4) float64, view voxel (z, y, x) -> world mm (z, y, x), LPS.
            With an elastic displacement it is the affine part.
        valid: (B, V, D, H, W) bool, False where the view looks outside the scan.
        case: (B,) int64, index of the scan in the feed (of a Matched partner group,
            the partner's).
        label: (B, V, D, H, W) int64 or None; -1 where unlabelled or outside; values
            from ``data.box_map.BOXES`` on where boxes were asked for and are all
            that a case has.
        displacement_mm: (B, V, 3, p, q, r) float32 control points of a cubic B-spline
            in world mm (z, y, x), spread over the view's corners, or None;
            ``geometry.sampling.displacement_at`` gives its value at every voxel.
        depth: (B, V, D, H, W) float32 or None: how many voxels of the store lie between
            a labelled voxel and its label's boundary; 0 on it and outside labels.
        label_space: (B,) int64 or None: scans of one number name their labels alike.
        target: What is known of the whole scan, or None: its class (B,) int64, -1 where
            unknown; or as many numbers as the task gave the feed, (B, F).
        modality: (B,) int64 or None: number of the scan's modality, of those in the
            feed by name.
        where: (B, V, 3) float32 or None: the view's centre (z, y, x) in its scan's box,
            0 and 1 at the faces; beyond them where it lies outside.
        to_body: (B, 4, 4) float64 or None: world mm -> mm in a frame of the body, as
            matching places of scans tell.
        frame: (B,) int64 or None: number of that frame; places in one compare.
        origin: (B, V, 17) int64 on the CPU or None: ``case`` and the bits of ``affine``
            as the feed knew them, so that random keys (homolog.nn.masking) are made
            without hundreds of small operations on the device. Leave it out of views
            that are put elsewhere.
        host_target: ``target`` on the CPU, or None: for what is decided by its values
            there, so that nothing waits for the device.
    """

    image: Tensor
    affine: Tensor
    valid: Tensor
    case: Tensor
    label: Tensor | None = None
    displacement_mm: Tensor | None = None
    depth: Tensor | None = None
    label_space: Tensor | None = None
    target: Tensor | None = None
    modality: Tensor | None = None
    where: Tensor | None = None
    to_body: Tensor | None = None
    frame: Tensor | None = None
    origin: Tensor | None = None
    host_target: Tensor | None = None

    @property
    def size(self) -> Index:
        """Voxels (D, H, W)."""
        d, h, w = self.image.shape[-3:]
        return d, h, w

    def flat(self) -> Tensor:
        """(B * V, C, D, H, W): what a backbone eats (the first two axes merged)."""
        return self.image.flatten(0, 1)


def origin_of(affine: Tensor, case: Tensor) -> Tensor:
    """``View.origin`` of views (B, V, 4, 4) float64 of scans (B,), both on the CPU."""
    bits = affine.contiguous().view(torch.int64).flatten(2)
    return torch.cat([case[:, None, None].expand(*bits.shape[:2], 1), bits], 2)


def affine_of(origin: Tensor) -> Tensor:
    """The affine (B, V, 4, 4) float64 of ``View.origin``, on the CPU."""
    bits = origin[..., 1:].contiguous().reshape(*origin.shape[:2], 4, 4)
    return bits.view(torch.float64)


class Views(Mapping[str, View]):
    """The groups of one batch by name, in the order the method asked for them."""

    def __init__(self, groups: Mapping[str, View]) -> None:
        self._groups = dict(groups)

    def __getitem__(self, name: str) -> View:
        if name not in self._groups:
            known = ", ".join(self._groups)
            raise ValueError(f"no view group {name!r}; this batch has: {known}.")
        return self._groups[name]

    def __contains__(self, name: object) -> bool:
        return name in self._groups

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return next(iter(self._groups.values())).image.device


# What can be asked for: checks of view groups against each other.


@dataclass(frozen=True)
class Phase:
    """A stretch of a training that looks at some of the groups only.

    Attributes:
        share: Of the whole training, 0..1; those of all phases sum to 1.
        groups: What is made in it; nothing else is read.
        samples: Share of every batch's samples that is made, at least two of them.
        volumes: Only scans of several slices.
    """

    share: float
    groups: tuple[str, ...]
    samples: float = 1.0
    volumes: bool = False


def phase_at(phases: Sequence[Phase], progress: float) -> int:
    """Number of the phase at a share of the training done, 0..1."""
    end = 0.0
    for number, phase in enumerate(phases):
        end += phase.share
        if progress < end - 1e-9:
            return number
    return len(phases) - 1


def check_phases(phases: Sequence[Phase], specs: Mapping[str, ViewSpec]) -> None:
    """Raise ValueError where phases do not fill a training with known groups."""
    total = sum(phase.share for phase in phases)
    if abs(total - 1) > 1e-6 or any(phase.share <= 0 for phase in phases):
        shares = ", ".join(f"{phase.share:g}" for phase in phases)
        raise ValueError(
            f"the shares of phases must be above 0 and sum to 1: {shares}."
        )
    for phase in phases:
        check_specs({name: specs[name] for name in phase.groups})


def check_specs(specs: Mapping[str, ViewSpec]) -> None:
    """Raise ValueError where a group cannot be drawn."""
    if not specs:
        raise ValueError("at least one group of views is needed, got none.")
    if len({spec.boxes for spec in specs.values() if spec.labels}) > 1:
        raise ValueError("all view groups with labels must ask for the same boxes.")
    for position, (name, spec) in enumerate(specs.items()):
        if spec.boxes and not spec.labels:
            raise ValueError(f"view group {name!r} asks for boxes without labels.")
        if spec.count < 1 or min(spec.size) < 1:
            raise ValueError(
                f"view group {name!r} needs a count and sizes of at least 1, "
                f"got count {spec.count}, size {spec.size}."
            )
        if spec.scale[0] <= 0 or spec.scale[0] > spec.scale[1]:
            raise ValueError(
                f"view group {name!r} needs 0 < scale low <= high, got {spec.scale}."
            )
        changes = spec.intensity
        if changes.bands_probability > 0 and changes.bands_reference is None:
            raise ValueError(
                f"view group {name!r} is to change energy bands, but has no energies "
                "of reference images (Intensity.bands_reference)."
            )
        earlier = list(specs)[:position]
        if bands_before(spec) and (spec.size[0] > 1 or isinstance(spec.place, Same)):
            raise ValueError(
                f"view group {name!r} is to change energy bands of whole slices, so "
                f"its views must be of one slice and its own, got {spec.size} at "
                f"{type(spec.place).__name__}."
            )
        if isinstance(spec.place, Within) and spec.place.group not in earlier:
            raise ValueError(
                f"view group {name!r} lies within {spec.place.group!r}, which must "
                f"come earlier; earlier groups: {', '.join(earlier) or 'none'}."
            )
        if isinstance(spec.place, Same):
            _check_twin(name, spec, spec.place.group, specs, earlier)
        if isinstance(spec.place, Within) and is_partner(specs, name):
            raise ValueError(f"view group {name!r} cannot lie within a partner's view.")


def _check_twin(
    name: str,
    spec: ViewSpec,
    other: str,
    specs: Mapping[str, ViewSpec],
    earlier: Sequence[str],
) -> None:
    if other not in earlier:
        raise ValueError(
            f"view group {name!r} shows the same as {other!r}, which must come "
            f"earlier; earlier groups: {', '.join(earlier) or 'none'}."
        )
    shown = specs[other]
    fields = ("size", "count", "spacing_mm")
    differing = [f for f in fields if getattr(spec, f) != getattr(shown, f)]
    if differing or isinstance(shown.place, Same) or shown.intensity != Intensity():
        what = ", ".join(differing) or "place or intensity changes"
        raise ValueError(
            f"view group {name!r} cannot show the same as {other!r}: that group must "
            "stand for itself, without intensity changes, and both must agree in size, "
            f"count and spacing (not right: {what})."
        )


def bands_before(spec: ViewSpec) -> bool:
    """Whether energy bands of the slice are changed before views are cut from it."""
    changes = spec.intensity
    reference = changes.bands_reference
    return changes.bands_probability > 0 and reference is not None and reference.whole


def is_partner(specs: Mapping[str, ViewSpec], name: str) -> bool:
    """Whether a group is cut from the other patient's scan."""
    place = specs[name].place
    while isinstance(place, Within | Same):
        place = specs[place.group].place
    return isinstance(place, Matched | Elsewhere) and place.partner
