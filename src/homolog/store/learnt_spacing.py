"""The voxel size that a model learnt at: kept with it, so that scans are brought to it.

A network counts in voxels. A store whose scans agree is not resampled, so its recipe
names no voxel size; what its scans have is then the size the network learnt at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from homolog.geometry.affine import Index, Triple
from homolog.scans.volume import PICTURE_SUFFIXES
from homolog.words import spacing_text

if TYPE_CHECKING:
    from homolog.scans.volume import Volume


# In ``model.json``: the size learnt at, and that of scans before they were prepared.
KEY = "learnt_spacing_mm"
SCANNED_KEY = "scanned_spacing_mm"
# Voxel sizes that agree to this share are one: a store's scans are left as they are,
# and so is a new scan.
AGREE = 0.05
# Voxels so many times coarser than any learnt from are worth a warning: what was learnt
# is seen in part only. Beyond the second number it is not to be seen at all. So many
# times finer ones are rather a header with the wrong unit.
_COARSE, _TOO_COARSE, _TOO_FINE = 2.5, 8.0, 10.0

Bounds = tuple[float | None, float | None, float | None]


class SizedCase(Protocol):
    """A case with a voxel size; a Card of a store is one."""

    @property
    def id(self) -> str:
        """Name of the case."""
        ...

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size of the stored grid (z, y, x)."""
        ...

    @property
    def shape(self) -> Index:
        """Stored size (D, H, W)."""
        ...

    @property
    def modality(self) -> str:
        """One of MODALITIES."""
        ...

    @property
    def is_sized(self) -> bool:
        """Whether its voxels have a known size."""
        ...


class OriginalCase(SizedCase, Protocol):
    """A case that knows its scan's own grid; a Card of a store is one."""

    @property
    def original(self) -> dict[str, Any]:
        """``axes``, ``affine`` and ``shape`` of the scan's own grid."""
        ...


@dataclass(frozen=True)
class LearntSpacing:
    """Smallest and largest voxel size learnt from, mm along z, y, x of the body.

    None along an axis: any will do (slices that go through a network one by one).
    """

    smallest: Bounds
    largest: Bounds

    @classmethod
    def of_cases(cls, cards: Iterable[SizedCase]) -> LearntSpacing | None:
        """Of a store's cases as it keeps them; None where none has a size in a body."""
        return cls._of_grids(
            (card.spacing_mm, card.shape) for card in cards if not _is_pixels(card)
        )

    @classmethod
    def of_originals(cls, cards: Iterable[OriginalCase]) -> LearntSpacing | None:
        """Of a store's cases as they were scanned, along z, y, x of the store."""
        grids = []
        for card in cards:
            if not _is_pixels(card):
                own, shape = card.original["affine"].spacing_mm, card.original["shape"]
                z, y, x = card.original["axes"]
                grids.append(((own[z], own[y], own[x]), (shape[z], shape[y], shape[x])))
        return cls._of_grids(grids)

    @classmethod
    def of_scans(
        cls, volumes: Iterable[Volume], *, acquired: bool = False
    ) -> LearntSpacing | None:
        """Of scans as stored in their files, whatever the order of their axes.

        Args:
            volumes: The scans.
            acquired: Whether z of the model runs across slices as acquired.
        """
        grids = []
        for volume in volumes:
            if not _has_pixels(volume):
                own, shape = volume.affine.spacing_mm, volume.shape
                axes, _ = (
                    volume.affine.acquired_axes(shape)
                    if acquired
                    else volume.affine.closest_axes()
                )
                z, y, x = axes
                grids.append(((own[z], own[y], own[x]), (shape[z], shape[y], shape[x])))
        return cls._of_grids(grids)

    @classmethod
    def _of_grids(cls, grids: Iterable[tuple[Triple, Index]]) -> LearntSpacing | None:
        """Of spacings and sizes along z, y, x of the body."""
        sizes: list[list[float]] = [[], [], []]
        for spacing, shape in grids:
            for axis, (mm, n) in enumerate(zip(spacing, shape, strict=True)):
                if n > 1:  # a single slice has no distance to the next
                    sizes[axis].append(mm)
        if not any(sizes):
            return None
        z, y, x = ((min(s), max(s)) if s else (None, None) for s in sizes)
        return cls((z[0], y[0], x[0]), (z[1], y[1], x[1]))

    def middle_mm(self) -> Triple | None:
        """The one size of scans that agree in it; None where they do not."""
        pairs = list(zip(self.smallest, self.largest, strict=True))
        if self.varies or any(a is None or b is None for a, b in pairs):
            return None
        z, y, x = (((a or 0.0) * (b or 0.0)) ** 0.5 for a, b in pairs)
        return z, y, x

    def planar(self) -> LearntSpacing:
        """The same where no slice knows of another: any distance will do."""
        return LearntSpacing((None, *self.smallest[1:]), (None, *self.largest[1:]))

    def target_mm(self, spacing_mm: Triple, shape: Index) -> Triple | None:
        """What a scan's voxels must become; None where they are as those learnt from.

        Args:
            spacing_mm: Of the scan, along z, y, x of the body.
            shape: Its size; an axis of one voxel stays.
        """
        z, y, x = (
            own if n == 1 else _into(own, low, high)
            for own, n, low, high in zip(
                spacing_mm, shape, self.smallest, self.largest, strict=True
            )
        )
        return None if (z, y, x) == tuple(spacing_mm) else (z, y, x)

    @property
    def varies(self) -> bool:
        """Whether scans of truly different voxel sizes were learnt from."""
        pairs = zip(self.smallest, self.largest, strict=True)
        return any(a and b and b > a * (1 + 2 * AGREE) for a, b in pairs)

    @property
    def text(self) -> str:
        """``1 mm`` of cubes, or ``1 x 1 x 0.5 to 1 mm (x, y, z)``."""
        parts = []
        for low, high in zip(self.smallest, self.largest, strict=True):
            if low is None or high is None:
                parts.append("any")
            elif high > low * (1 + AGREE):
                parts.append(f"{low:.3g} to {high:.3g}")
            else:
                parts.append(f"{(low * high) ** 0.5:.3g}")
        if len(set(parts)) == 1:
            return f"{parts[0]} mm"
        return f"{' x '.join(parts[::-1])} mm (x, y, z)"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"smallest": list(self.smallest), "largest": list(self.largest)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> LearntSpacing:
        """Inverse of to_dict.

        Raises:
            ValueError: Not three positive numbers (or null) each.
        """
        return cls(size_bounds(plain["smallest"]), size_bounds(plain["largest"]))


@dataclass(frozen=True)
class Learnt:
    """What is known of the voxel size a model learnt at.

    Attributes:
        spacing: To which scans are brought; None: they are prepared by the model's
            recipe alone (which names a size, or there is none: pictures).
        remark: A warning where the model itself does not state it; else empty.
        scanned: What the scans had before they were prepared; None where the model does
            not state it.
    """

    spacing: LearntSpacing | None = None
    remark: str = ""
    scanned: LearntSpacing | None = None

    def planar(self) -> Learnt:
        """See ``LearntSpacing.planar``."""
        own, scanned = (s and s.planar() for s in (self.spacing, self.scanned))
        return replace(self, spacing=own, scanned=scanned)

    def far(self, spacing_mm: Triple, shape: Index) -> Far | None:
        """How far a scan's voxels are from those the model learnt from.

        Args:
            spacing_mm: Of the scan, along z, y, x.
            shape: Its size; an axis of one voxel does not count.

        Returns:
            None where they are near enough, or nothing is known.
        """
        known = self.scanned or self.spacing
        if known is None:
            return None
        worst: Far | None = None
        for axis, (own, n) in enumerate(zip(spacing_mm, shape, strict=True)):
            low, high = known.smallest[axis], known.largest[axis]
            if n == 1 or low is None or high is None:
                continue
            coarse = Far(axis, own, high, own / high)
            fine = Far(axis, own, low, low / own)
            for one, least in ((coarse, _COARSE), (fine, _TOO_FINE)):
                if one.factor > least and (worst is None or one.factor > worst.factor):
                    worst = one
        return worst

    def far_of(self, volume: Volume, spacing_mm: Triple, shape: Index) -> Far | None:
        """As ``far``; None for a picture, which has only pixels."""
        return None if _has_pixels(volume) else self.far(spacing_mm, shape)

    def target_mm(
        self, volume: Volume, spacing_mm: Triple, shape: Index
    ) -> Triple | None:
        """As ``LearntSpacing.target_mm``; None for a picture, which has only pixels.

        Args:
            volume: The scan.
            spacing_mm: Of the scan turned to its closest canonical axes.
            shape: Of the same.
        """
        if self.spacing is None or _has_pixels(volume):
            return None
        return self.spacing.target_mm(spacing_mm, shape)

    def target_of_case(self, card: SizedCase) -> Triple | None:
        """The same of a case as its store keeps it."""
        if self.spacing is None or _is_pixels(card):
            return None
        return self.spacing.target_mm(card.spacing_mm, card.shape)


@dataclass(frozen=True)
class Far:
    """A voxel size far from all that a model learnt from.

    Attributes:
        axis: Of the largest difference: 0, 1, 2 for z, y, x.
        own_mm: Of the scan.
        known_mm: The nearest that was learnt from.
        factor: How many times coarser, or finer, above 1.
    """

    axis: int
    own_mm: float
    known_mm: float
    factor: float

    @property
    def hides(self) -> bool:
        """Whether what was learnt cannot be seen in such a scan."""
        return self.own_mm > self.known_mm and self.factor > _TOO_COARSE

    @property
    def text(self) -> str:
        """One sentence without its end."""
        what = f"voxels of {self.own_mm:.3g} mm along {'zyx'[self.axis]}"
        than = f"{self.factor:.2g} times"
        if self.own_mm < self.known_mm:
            return (
                f"{what}, {than} finer than any the model learnt from "
                f"({self.known_mm:.3g} mm): is its header right"
            )
        lost = "what it learnt" if self.hides else "small parts of what it learnt"
        return (
            f"{what}, {than} coarser than any the model learnt from "
            f"({self.known_mm:.3g} mm): {lost} cannot be seen there"
        )


def brought_note(name: str, own_mm: Sequence[float], new_mm: Sequence[float]) -> str:
    """The sentence on a scan whose voxels were changed for a network; z, y, x."""
    return (
        f"{name}: its voxels of {spacing_text(own_mm)} were brought to "
        f"{spacing_text(new_mm)}, the size the model learnt at."
    )


def sizes_note(cards: Iterable[SizedCase]) -> str:
    """The sentence for cases that are learnt from differ in voxel size, or ''."""
    learnt = LearntSpacing.of_cases(cards)
    if learnt is None or not learnt.varies:
        return ""
    return (
        f"the scans' voxel sizes differ ({learnt.text}) and each is learnt "
        "from at its own; one size for all: homolog prepare ... --spacing z,y,x."
    )


def other_size_note(learnt: Learnt, cards: Sequence[SizedCase]) -> str:
    """The sentence for an encoder learnt at another voxel size than cases have."""
    odd = [card for card in cards if learnt.target_of_case(card) is not None]
    if not odd or learnt.spacing is None:
        return ""
    return (
        f"the encoder learnt at {learnt.spacing.text}, but {len(odd)} of "
        f"{len(cards)} cases have another voxel size (first {odd[0].id!r}: "
        f"{spacing_text(odd[0].spacing_mm)}); its features may fit less well."
    )


def _is_pixels(card: SizedCase) -> bool:
    """Whether a scan has pixels but no size in a body: pictures and projections."""
    return card.modality == "XR" or not card.is_sized


def _has_pixels(volume: Volume) -> bool:
    """As ``_is_pixels``."""
    if volume.modality == "XR" or volume.meta.get("kind") == "image2d":
        return True
    sized = volume.meta.get("sized")
    if sized is None:  # made in memory
        return str(volume.meta.get("source", "")).lower().endswith(PICTURE_SUFFIXES)
    return not sized


def _into(own: float, low: float | None, high: float | None) -> float:
    """The nearest size learnt from; a size that agrees with one stays itself."""
    if low is not None and own * (1 + AGREE) < low:
        return low
    if high is not None and own > high * (1 + AGREE):
        return high
    return own


def size_bounds(values: Sequence[Any]) -> Bounds:
    """Voxel sizes in mm (z, y, x) as a card keeps them; None: no bound there.

    Raises:
        ValueError: Not three numbers above 0.
    """
    z, y, x = (None if v is None else float(v) for v in values)
    if any(v is not None and not 0 < v < float("inf") for v in (z, y, x)):
        raise ValueError(f"voxel sizes must be positive, got {list(values)}")
    return z, y, x
