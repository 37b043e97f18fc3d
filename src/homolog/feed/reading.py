"""What one sample is cut from: boxes of a scan, or of one with its bands changed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.errors import JobError, UnusableInput
from homolog.geometry.affine import Array, Index, Triple
from homolog.geometry.anisotropy import median_grid
from homolog.store.card import Card
from homolog.store.crops import BoxMap, Sliceable, read_box
from homolog.store.store import Store
from homolog.views.energy_bands import Spectrum, drawn_energies
from homolog.views.generate import Block, Box, Share, block_affine, boxes_of
from homolog.views.intensity import CHANGES
from homolog.views.plan import GroupPlan, Scan
from homolog.views.view import ViewSpec, bands_before

_BANDS = CHANGES.index("bands")

# The cases a feed is made of.


@dataclass(frozen=True)
class CaseRef:
    """A case of a store."""

    store: Store
    card: Card


class StoredCases(Sequence[CaseRef]):
    """Cases of stores, among them large ones: each is looked up when asked for.

    What a feed must know of all of them at once comes from the stores' tables.

    Args:
        parts: Stores, and the places of their cases that are taken, (n,) each.
    """

    def __init__(self, parts: Sequence[tuple[Store, NDArray[np.int64]]]) -> None:
        self.parts = tuple((store, np.asarray(places)) for store, places in parts)
        self._ends = np.cumsum([len(places) for _, places in self.parts]).tolist()

    @classmethod
    def of(
        cls, stores: Sequence[Store], splits: Collection[str], names: Collection[str]
    ) -> StoredCases:
        """All cases but those of some splits, and those of some names."""
        parts = []
        for store in stores:
            out = {
                number
                for number, name in enumerate(_names(store, "split"))
                if name in splits
            }
            codes = _column(store, "split")
            kept = ~np.isin(codes, sorted(out))
            for name in names:
                kept[_places(store, name)] = False
            parts.append((store, np.flatnonzero(kept)))
        return cls(parts)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> CaseRef: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[CaseRef, ...]: ...
    def __getitem__(self, place: int | slice) -> CaseRef | tuple[CaseRef, ...]:
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(len(self))))
        at = int(place) + (len(self) if place < 0 else 0)
        if not 0 <= at < len(self):
            raise IndexError(f"case {place} of {len(self)}")
        part = bisect_right(self._ends, at)
        store, places = self.parts[part]
        within = at - (self._ends[part - 1] if part else 0)
        return CaseRef(store, store.cards[int(places[within])])

    def column(self, name: str) -> NDArray[np.int64]:
        """(N,) ``channels``, ``labelled`` (0, 1) or ``slices`` of all cases."""
        return self._whole([_column(s, name)[places] for s, places in self.parts])

    def spaces(self) -> NDArray[np.int64]:
        """(N,) number of each case's store; a store that comes twice is one."""
        known: dict[object, int] = {}
        numbers = [known.setdefault(s.path, len(known)) for s, _ in self.parts]
        return np.repeat(numbers, [len(places) for _, places in self.parts])

    def modalities(self) -> tuple[NDArray[np.int64], list[str]]:
        """(N,) number of each case's modality, as ``numbered``, and their names."""
        told = [np.asarray(_names(s, "modality"), dtype=str) for s, _ in self.parts]
        codes = [_column(s, "modality")[places] for s, places in self.parts]
        own = [names[np.unique(c)] for names, c in zip(told, codes, strict=True)]
        names = sorted({str(name) for some in own for name in some})
        place = {name: number for number, name in enumerate(names)}
        tables = [np.array([place.get(str(n), -1) for n in some]) for some in told]
        return self._whole(
            [table[c] for table, c in zip(tables, codes, strict=True)]
        ), names

    def _whole(self, parts: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
        return np.concatenate([part.astype(np.int64) for part in parts])


def _names(store: Store, column: str) -> Sequence[str | None]:
    if store.table is not None:
        return store.table.names(column)
    return list(dict.fromkeys(getattr(card, column) for card in store.cards))


def _column(store: Store, column: str) -> NDArray[Any]:
    """(N,) of all cases of a store."""
    if store.table is not None:
        return store.table.column(column)
    if column in ("split", "modality"):
        names = list(_names(store, column))
        return np.array([names.index(getattr(card, column)) for card in store.cards])
    ask: dict[str, Callable[[Card], int]] = {
        "channels": lambda card: card.channels,
        "labelled": lambda card: int(card.has_label),
        "slices": lambda card: card.shape[0],
    }
    return np.array([ask[column](card) for card in store.cards])


def _places(store: Store, name: str) -> list[int]:
    """Where a case stands in its store; nowhere where there is none of that name."""
    if store.table is not None:
        place = store.table.place_of(name)
        return [] if place is None else [place]
    return [place for place, card in enumerate(store.cards) if card.id == name]


def grid_of(cases: Iterable[CaseRef]) -> tuple[Triple, Index]:
    """Voxel size (mm) and voxels of a typical scan, z, y, x; see ``median_grid``."""
    return median_grid((case.card.spacing_mm, case.card.shape) for case in cases)


@contextmanager
def naming(case: CaseRef) -> Iterator[None]:
    """Errors name the case they belong to."""
    try:
        yield
    except UnusableInput as error:
        raise UnusableInput(f"case {case.card.id!r}: {error}") from error
    except Exception as error:
        text = str(error) or type(error).__name__
        raise JobError(f"case {case.card.id!r}: {text}") from error


def check_cases(cases: Sequence[CaseRef]) -> None:
    """Raise UnusableInput where there are none or they do not fit together."""
    if not cases:
        raise UnusableInput("at least one case is needed to train on, got none.")
    first = cases[0].card
    if isinstance(cases, StoredCases) and first.channels == 1:  # which have no names
        odd_ones = np.flatnonzero(cases.column("channels") != 1)
        cases = cases[: 1 if len(odd_ones) else 0] + tuple(
            cases[int(place)] for place in odd_ones[:1]
        )
    for case in cases:
        if case.card.channels != first.channels:
            raise UnusableInput(
                f"all cases must have the same channels; case {first.id!r} has "
                f"{first.channels}, case {case.card.id!r} has {case.card.channels}."
            )
        if odd := _other_channel(first, case.card):
            raise UnusableInput(odd)


def _other_channel(first: Card, card: Card) -> str:
    """Which channel two cases call otherwise; empty where none."""
    pairs = zip(first.channel_names, card.channel_names, strict=True)
    for number, (one, other) in enumerate(pairs):
        if one and other and one.casefold() != other.casefold():
            return (
                f"all cases must have the same channels; number {number} is {one!r} in "
                f"case {first.id!r}, and {other!r} in case {card.id!r}."
            )
    return ""


def numbered(values: Sequence[str]) -> list[int]:
    """Place of each value among all that occur, by name."""
    names = sorted(set(values))
    return [names.index(value) for value in values]


_UNLABELLED = -1
_SLAB_VOXELS = 1 << 24  # of the scan at a time, where voxels are pooled


def read_blocks(
    store: Store,
    card: Card,
    plan: Mapping[str, GroupPlan],
    specs: Mapping[str, ViewSpec],
    shares: Sequence[Share],
) -> list[Block]:
    """What the views of one scan of a sample need, one block per share.

    Args:
        store: Where the case lies.
        card: The case.
        plan: The drawn views.
        specs: What the views are.
        shares: Which groups are read together; all of this scan.

    Returns:
        Blocks without the batch axis: image (n, C, d, h, w) int16, affine (n, 4, 4),
        extent (n, 3), label and depth (n, d, h, w) int16 where a group of the share
        wants them.
    """
    scan = Scan(card.affine, card.shape)
    image = store.image(card.id)
    label = depth = None
    # the card decides: a case may be taken as if it had no labels
    if any(s.labels or s.depths for s in shares) and card.has_label:
        label = store.label(card.id) if any(s.labels for s in shares) else None
        depth = store.depth(card) if any(s.depths for s in shares) else None
    bands, blocks = SliceBands(image, card, scan), []
    for share in shares:
        boxes = boxes_of(share, plan, specs, scan)
        sources: list[Sliceable] = [image] * len(boxes)
        if bands_before(specs[share.groups[0]]):
            sources = bands.sources(specs[share.groups[0]], plan[share.groups[0]])
        pairs = zip(sources, boxes, strict=True)
        images = [_read_image(source, box) for source, box in pairs]
        affines = [block_affine(box, scan).matrix for box in boxes]
        extents = [np.array(box.size) / box.pool for box in boxes]
        labels = depths = None
        if share.labels:
            drawn: Sliceable | None = label
            if label is None and share.boxes and card.boxes:
                drawn = BoxMap(card.boxes, share.boxes, card.shape)
            labels = [_read_label(drawn, box, _UNLABELLED) for box in boxes]
        if share.depths:
            depths = [_read_label(depth, box, 0) for box in boxes]
        blocks.append(
            Block(
                image=torch.from_numpy(_stack(images)),
                affine=torch.from_numpy(np.stack(affines)),
                extent=torch.from_numpy(np.stack(extents)),
                label=None if labels is None else torch.from_numpy(_stack(labels)),
                depth=None if depths is None else torch.from_numpy(_stack(depths)),
            )
        )
    return blocks


def _read_image(array: Sliceable, box: Box) -> NDArray[np.int16]:
    """(C, d, h, w); voxels are averaged where the box asks for it."""
    if box.pool == (1, 1, 1):
        return read_box(array, box.start, box.size, 0)
    # slab by slab: a whole scan need never lie in memory
    depth = box.size[0]
    plane = box.size[1] * box.size[2] * array.shape[0]
    cells = max(1, _SLAB_VOXELS // (plane * box.pool[0]))
    slabs = []
    for z in range(0, depth, cells * box.pool[0]):
        size = (min(cells * box.pool[0], depth - z), *box.size[1:])
        start = (box.start[0] + z, *box.start[1:])
        slabs.append(_pooled(read_box(array, start, size, 0), box.pool))
    return np.concatenate(slabs, axis=1)


def _pooled(values: NDArray[np.int16], pool: Index) -> NDArray[np.int16]:
    """Means of cells of ``pool`` voxels; cells over the border repeat its voxels."""
    result = values.astype(np.float32)
    for axis, step in enumerate(pool, start=1):
        if step == 1:
            continue
        gap = -result.shape[axis] % step
        widths = [(0, gap if a == axis else 0) for a in range(4)]
        result = np.pad(result, widths, mode="edge")
        shape = list(result.shape)
        shape[axis : axis + 1] = [shape[axis] // step, step]
        result = result.reshape(shape).mean(axis + 1)
    return np.rint(result).astype(np.int16)


def _read_label(array: Sliceable | None, box: Box, fill: int) -> NDArray[np.int16]:
    """(d, h, w); of a pooled cell the value at its middle (its side is odd).

    ``fill`` stands outside the array, and everywhere without one.
    """
    cells = tuple(-(-n // k) for n, k in zip(box.size, box.pool, strict=True))
    if array is None:
        return np.full(cells, fill, dtype=np.int16)
    size = [n * k for n, k in zip(cells, box.pool, strict=True)]
    values = read_box(array, box.start, size, fill)
    steps = tuple(slice(k // 2, None, k) for k in box.pool)
    return np.ascontiguousarray(values[steps]).astype(np.int16)


def _stack(parts: Sequence[NDArray[np.int16]]) -> NDArray[np.int16]:
    """Of one size each, or filled up to the largest."""
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0][None])
    lead = parts[0].shape[:-3]
    largest = np.max([part.shape[-3:] for part in parts], axis=0)
    whole = np.zeros((len(parts), *lead, *largest), dtype=np.int16)
    for row, part in zip(whole, parts, strict=True):
        row[(..., *(slice(0, n) for n in part.shape[-3:]))] = part
    return whole


# Energy bands of whole slices, changed before crops are cut from them.


@dataclass(frozen=True)
class _Changed:
    """A stored scan, one slice of which reads otherwise.

    Attributes:
        array: (C, D, H, W).
        number: Of the slice.
        slice: (C, H, W), what it reads.
    """

    array: Sliceable
    number: int
    slice: NDArray[np.int16]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the scan."""
        return self.array.shape

    @property
    def dtype(self) -> Any:
        """Of the scan."""
        return self.array.dtype

    def __getitem__(self, key: Any) -> NDArray[np.int16]:
        """Read by four slices."""
        found = np.array(self.array[key])
        first, stop, _ = key[1].indices(self.shape[1])
        if first <= self.number < stop:
            found[:, self.number - first] = self.slice[key[0], key[2], key[3]]
        return found


# Paper: Hundred Million Eq. 8, the entire image.
class SliceBands:
    """What the views of one sample are cut from, where their bands are changed before.

    Slices are read and transformed once, however many views are cut from them.

    Args:
        image: Stored scan (C, D, H, W).
        card: Of it.
        scan: Its grid.
    """

    def __init__(self, image: Sliceable, card: Card, scan: Scan) -> None:
        self._image, self._card, self._scan = image, card, scan
        self._slices: dict[int, Spectrum] = {}

    def sources(self, spec: ViewSpec, plan: GroupPlan) -> list[Sliceable]:
        """The scan, or the scan with its slice changed, for each view of a group."""
        return [self._source(spec, plan, view) for view in range(len(plan.affine))]

    def _source(self, spec: ViewSpec, plan: GroupPlan, view: int) -> Sliceable:
        draws, reference = plan.intensity, spec.intensity.bands_reference
        if not draws.on[view, _BANDS]:
            return self._image
        assert reference is not None
        middle = np.array([*((n - 1) / 2 for n in spec.size), 1.0])
        place = self._scan.affine.inverse().apply((plan.affine[view] @ middle)[:3])
        number = int(np.clip(round(float(place[0])), 0, self._scan.shape[0] - 1))
        key = torch.from_numpy(draws.key[view : view + 1])
        wanted = drawn_energies(reference.of(self._card.modality), key)[0]
        spectrum = self._spectrum(number, reference.sigmas)
        changed = spectrum.with_energies(wanted.double().numpy())
        strength = float(draws.value[view, _BANDS])
        mixed = (1 - strength) * spectrum.slices + strength * changed
        stored = stored_numbers(mixed, self._card)
        return _Changed(self._image, number, stored)

    def _spectrum(self, number: int, sigmas: tuple[float, ...]) -> Spectrum:
        if number not in self._slices:
            values = slice_values(self._image, self._card, number)
            self._slices[number] = Spectrum(values, sigmas)
        return self._slices[number]


def slice_values(image: Sliceable, card: Card, number: int) -> Array:
    """(C, H, W) normalised values of one slice of a stored scan."""
    size = (1, *image.shape[2:])
    stored = read_box(image, (number, 0, 0), size, 0)[:, 0]
    value = stored.astype(np.float64) * card.scale + card.offset
    found: Array = np.asarray(card.intensity.normalise(value), dtype=np.float64)
    return found


def stored_numbers(values: Array, card: Card) -> NDArray[np.int16]:
    """Normalised values as a store would keep them."""
    stored = (values * card.spread + card.centre - card.offset) / card.scale
    limits = np.iinfo(np.int16)
    return np.rint(stored).clip(limits.min, limits.max).astype(np.int16)
