"""What is probed: the maps of an encoder, or what needs no network at all.

A source gives its features in parts (one per map), so that a linear head on them labels
a whole scan without a feature ever being blown up to voxels: interpolation is linear,
and so is the head; the few class scores of the cells are brought to the voxels instead.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from homolog.config import config_hash, to_dict
from homolog.events import Job
from homolog.features.embed import (
    DenseEncoder,
    feature_grid,
    feature_rows,
    scan_of_case,
    slide,
    unit_of,
)
from homolog.features.files import (
    FeatureCard,
    commit,
    feature_paths,
    find_features,
    new_array,
    open_features,
)
from homolog.features.search import find_body, grid_shape
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine, Index
from homolog.methods.base import DENSE, Embedder
from homolog.nn.decoders import Decoder
from homolog.probe.cases import Sample
from homolog.scans.volume import FeatureMap, Volume
from homolog.store.card import Card
from homolog.store.preprocess import Intensities, in_network_units, in_units
from homolog.tasks.few_voxels.scan import (
    SimpleFeatures,
    SimpleSpec,
    features_at,
    knots_of,
)
from homolog.training.stepping import resolve_precision

Floats = NDArray[np.float32]
Voxels = NDArray[np.int64]

# Scores in memory at once: 64 MB of float32.
_AT_ONCE = 16_000_000
# Widths at which grey values are smoothed, and knots of their bands.
SMOOTHING_MM = (0.0, 2.0, 4.0, 8.0)
_KNOTS = 12
# Values read around single voxels, for each voxel of the scan, that cost as much as
# reading it whole.
_SPARSE = 30
# Voxels of a scan from which the features of a whole scan without a network come.
_POOLED = 2000


class Source(ABC):
    """Features of voxels and of whole scans.

    Attributes:
        name: For people.
        parts: What it gives, in order.
        sets: Name of a choice of parts that is probed together -> their places.
        main: The set that stands for the source.
    """

    name: str
    parts: tuple[str, ...]
    sets: Mapping[str, tuple[int, ...]]
    main: str

    def prepare(self, case: CaseRef) -> Job[bool]:
        """Make what is needed of a case; False when stopped."""
        yield from ()
        return True

    @abstractmethod
    def vectors(self, case: CaseRef, voxels: Voxels) -> list[Floats]:
        """Features (N, F) of voxels (N, 3) of a case's grid, for each part."""

    @abstractmethod
    def scores(
        self, case: CaseRef, weights: Sequence[Floats]
    ) -> Iterator[tuple[slice, list[Floats]]]:
        """Features of every voxel times weights, slab by slab.

        Args:
            case: Whose.
            weights: (F, M) for each part.

        Yields:
            Which slices (z), and (d, H, W, M) for each part.
        """

    @abstractmethod
    def pooled(self, case: CaseRef) -> list[Floats]:
        """Features (F,) of the scan as a whole, for each part."""


def _slabs(card: Card, size: int) -> Iterator[slice]:
    """Slices z of a scan whose planes hold ``size`` numbers a voxel."""
    rows = max(1, _AT_ONCE // (size * card.shape[1] * card.shape[2]))
    for first in range(0, card.shape[0], rows):
        yield slice(first, min(first + rows, card.shape[0]))


class AllMaps(Embedder):
    """Every map of an encoder as it is, and what heads and a decoder make of them.

    Args:
        embedder: Of the encoder; without heads and neck its features are maps anyhow.
        decoder: Trained with the encoder; its features are one map more.
        cell: Voxels (z, y, x) over which they are means.
    """

    def __init__(
        self,
        embedder: Embedder,
        decoder: Decoder | None = None,
        cell: Index = (1, 1, 1),
    ) -> None:
        strides = [s[-1] for s in embedder.backbone.strides]
        names = {
            f"stride {s}" + (f" (map {i})" if strides.count(s) > 1 else ""): i
            for i, s in enumerate(strides)
        }
        own: dict[str, int] = {}
        if len(embedder.heads) or embedder.neck is not None:
            own = {f"embedding {name}": i for name, i in embedder.maps.items()}
        heads = {f"embedding {k}": head for k, head in embedder.heads.items()}
        used = decoder
        if embedder.decoder is not None:  # the embedding is made of it as it is
            used, cell = embedder.decoder, embedder.cell
        dense = {} if decoder is None else {f"decoder stride {cell[-1]}": DENSE}
        super().__init__(
            embedder.backbone, {**names, **dense, **own}, heads, embedder.neck, used,
            cell,
        )  # fmt: skip
        self.plain, self.dense = tuple(names), tuple(dense)
        self.made = tuple(own)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, C, D, H, W) -> name -> (B, E, d, h, w), unit norm along E, float32."""
        maps = self.backbone.maps(image)
        found = {name: maps[self.maps[name]] for name in self.plain}
        if self.decoder is not None and self.dense:
            cells = self.decoder.cells(image, maps, self.cell)
            found |= dict.fromkeys(self.dense, cells)
        if self.made:
            found |= self.read(image, maps, self.made)
        return {
            name: nn.functional.normalize(features.float(), dim=1, eps=1e-6)
            for name, features in found.items()
        }


class EncoderSource(Source):
    """The maps of an encoder, each kept as a feature file.

    Args:
        name: For people.
        encoder: With an ``AllMaps``.
        folder: Where maps are kept and found again.
    """

    def __init__(self, name: str, encoder: DenseEncoder, folder: Path) -> None:
        maps = encoder.embedder
        assert isinstance(maps, AllMaps)
        self.name, self.encoder, self.folder = name, encoder, folder
        self.parts = tuple(maps.maps)
        key = encoder.key
        self._keys = {part: config_hash(key, part) for part in self.parts}
        single = (*maps.plain, *maps.dense)
        places = {part: (i,) for i, part in enumerate(single)}
        plain = tuple(range(len(maps.plain)))
        self.main = "all maps" if len(plain) > 1 else self.parts[0]
        self.sets = {**places, self.main: plain}
        if maps.made:
            made = tuple(range(len(single), len(self.parts)))
            self.sets = {**self.sets, "embedding": made}

    def prepare(self, case: CaseRef) -> Job[bool]:
        """Embed the scan, unless all its maps lie in the folder."""
        if len(self._found(case)) == len(self.parts):
            return True
        encoder, card = self.encoder, case.card
        scan, affine = scan_of_case(case.store, card, encoder.learnt)
        sliding = slide(
            scan.shape, encoder.window, unit_of(encoder.embedder),
            encoder.config.overlap,
        )  # fmt: skip
        made = {}
        try:
            for part, stride, size in self._kinds():
                path, _ = feature_paths(
                    self.folder, card.id, _scan_hash(card), self._keys[part]
                )
                shape = feature_grid(scan.shape, stride)
                made[part] = (*new_array(path, shape, size), path)
            counts = yield from feature_rows(
                scan, encoder.embedder, sliding,
                {part: array for part, (array, _, _) in made.items()},
                encoder.device, encoder.config.batch_size,
                resolve_precision(
                    encoder.config.precision, encoder.device, encoder.embedder
                ),
            )  # fmt: skip
            if counts is None:
                return False
            for part, stride, _ in self._kinds():
                array, half, path = made[part]
                told = self._told(card, part, array.shape, affine.coarsen(stride))
                commit(array, half, path, replace(told, stride=stride, pieces=counts))
        finally:
            for _, half, _ in made.values():
                half.unlink(missing_ok=True)
        return True

    def _kinds(self) -> Iterator[tuple[str, Index, int]]:
        """Name, stride and length of each part."""
        encoder = self.encoder
        yield from zip(self.parts, encoder.strides, encoder.sizes, strict=True)

    def _told(
        self, card: Card, part: str, shape: Sequence[int], affine: Affine
    ) -> FeatureCard:
        encoder = self.encoder
        d, h, w, size = shape
        return FeatureCard(
            key=self._keys[part],
            scan_hash=_scan_hash(card),
            encoder_id=encoder.encoder_id,
            scan=card.id,
            shape=(d, h, w),
            size=size,
            stride=(1, 1, 1),
            affine=affine.to_list(),
            parts=[[part, size]],
            settings={**to_dict(encoder.config), "window": list(encoder.window)},
        )

    def _found(self, case: CaseRef) -> list[Path]:
        """Cards of the maps that lie in the folder."""
        hashed = _scan_hash(case.card)
        found = [find_features(self.folder, hashed, self._keys[p]) for p in self.parts]
        return [card for card in found if card is not None]

    def _maps(self, case: CaseRef) -> list[FeatureMap]:
        return [open_features(card) for card in self._found(case)]

    def vectors(self, case: CaseRef, voxels: Voxels) -> list[Floats]:
        """Trilinear between cells, border cells held."""
        mm = case.card.affine.apply(voxels)
        return [features_at(features, mm) for features in self._maps(case)]

    def scores(
        self, case: CaseRef, weights: Sequence[Floats]
    ) -> Iterator[tuple[slice, list[Floats]]]:
        """Of the cells, then brought to the voxels."""
        card = case.card
        coarse = []
        for features, weight in zip(self._maps(case), weights, strict=True):
            cells = np.moveaxis(features.data, 0, -1)
            values = np.empty((*cells.shape[:3], weight.shape[1]), np.float32)
            for z in range(len(cells)):  # the cells may lie on disk
                values[z] = np.asarray(cells[z], np.float32) @ weight
            coarse.append((values, _between(features, card)))
        for rows in _slabs(card, sum(w.shape[1] for w in weights)):
            yield rows, [_fine(values, m, rows) for values, m in coarse]

    def pooled(self, case: CaseRef) -> list[Floats]:
        """Mean and spread over the cells that show body."""
        body = find_body(volume_of(case))
        back = case.card.affine.inverse()
        found = []
        for features in self._maps(case):
            index = np.indices(grid_shape(features)).reshape(3, -1).T
            inside = body.at(back.apply(features.affine.apply(index)))
            cells = np.moveaxis(features.data, 0, -1).reshape(len(index), -1)
            picked = np.asarray(cells[inside] if inside.any() else cells, np.float32)
            found.append(np.concatenate([picked.mean(axis=0), picked.std(axis=0)]))
        return found


class NoNetwork(Source):
    """Grey values around a voxel, and its place in the body: what needs no learning.

    Grey values are smoothed at several widths; of each, the value, how near it is to
    each of a dozen knots (organs are bands of grey) and how steep it is. The place is
    the share of the body's box along z, y, x, with products.

    Args:
        knots: Of each channel, see ``knots_of``.
        place: What the part that is no grey value is called.
    """

    def __init__(
        self, knots: Sequence[tuple[float, ...]], place: str = "position"
    ) -> None:
        self.name, self.main = "no network", "grey values"
        self.parts = (self.main, place)
        both = f"grey values and {place}"
        self.sets = {self.main: (0,), place: (1,), both: (0, 1)}
        self._spec = SimpleSpec(SMOOTHING_MM, position=False, knots=tuple(knots))
        self._last: tuple[CaseRef, SimpleFeatures] | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], place: str = "position") -> NoNetwork:
        """With knots where the grey values of the labels lie."""
        channels = samples[0].case.card.channels
        classes = np.concatenate([s.classes for s in samples])
        greys = np.concatenate([_greys(s) for s in samples], axis=1)
        return cls(
            [
                knots_of([greys[c, classes == k] for k in np.unique(classes)], _KNOTS)
                for c in range(channels)
            ],
            place,
        )

    def vectors(self, case: CaseRef, voxels: Voxels) -> list[Floats]:
        """Of single voxels."""
        return [self._at(case, voxels), _place(case.card, voxels)]

    def scores(
        self, case: CaseRef, weights: Sequence[Floats]
    ) -> Iterator[tuple[slice, list[Floats]]]:
        """Of all voxels of a slab."""
        (_, h, w), grey = case.card.shape, self._grey(case)
        for rows in _slabs(case.card, self._spec.size):
            block = grey.block((rows.start, 0, 0), (rows.stop, h, w))
            index = np.indices(block.shape[1:]).reshape(3, -1).T
            place = _place(case.card, index + np.array([rows.start, 0, 0]))
            yield (
                rows,
                [
                    np.tensordot(block, weights[0], axes=(0, 0)),
                    (place @ weights[1]).reshape(*block.shape[1:], -1),
                ],
            )

    def pooled(self, case: CaseRef) -> list[Floats]:
        """Mean and spread of grey values in the body, and the size of its box."""
        card = case.card
        rng = np.random.default_rng(zlib.crc32(card.id.encode()))
        low, high = np.array(card.foreground)
        voxels = rng.integers(low, high, size=(4 * _POOLED, 3))
        inside = find_body(volume_of(case)).at(voxels)
        picked = voxels[inside] if inside.any() else voxels
        values = self._at(case, picked[:_POOLED])
        box = ((high - low) * np.array(card.spacing_mm)).astype(np.float32)
        return [np.concatenate([values.mean(axis=0), values.std(axis=0)]), box]

    def _at(self, case: CaseRef, voxels: Voxels) -> Floats:
        """Grey features of voxels, read around each or from the whole scan."""
        grey, card = self._grey(case), case.card
        reach = 3 * max(SMOOTHING_MM)
        around = prod(2 * ceil(reach / s) + 3 for s in grey.volume.affine.spacing_mm)
        if len(voxels) * around < _SPARSE * prod(card.shape):
            return grey.at(voxels)
        (_, h, w), found = card.shape, np.empty((len(voxels), self._spec.size), "f4")
        for rows in _slabs(card, self._spec.size):
            mine = (voxels[:, 0] >= rows.start) & (voxels[:, 0] < rows.stop)
            if mine.any():
                block = grey.block((rows.start, 0, 0), (rows.stop, h, w))
                z, y, x = voxels[mine].T
                found[mine] = block[:, z - rows.start, y, x].T
        return found

    def _grey(self, case: CaseRef) -> SimpleFeatures:
        if self._last is None or self._last[0].card is not case.card:
            volume = volume_of(case)
            if volume.shape[0] == 1:  # nothing above or below to smooth with
                thick = volume.affine @ Affine.scale((1e6, 1.0, 1.0))
                volume = replace(volume, affine=thick)
            numbers = case.card.intensity
            if case.card.channels > 1:  # each has numbers of its own
                values = in_network_units(
                    np.asarray(case.store.image(case.card.id)[:]), case.card.levels
                )
                volume = replace(volume, data=values)
                numbers = Intensities(
                    float(values.min()), float(values.max()), 0.0, 1.0
                )
            simple = SimpleFeatures(volume, numbers, (0.0, 0.0, 0.0), self._spec)
            self._last = case, simple
        return self._last[1]


def volume_of(case: CaseRef) -> Volume:
    """A case in the units of its scan."""
    card = case.card
    values = in_units(np.asarray(case.store.image(card.id)[:]), card.levels)
    return Volume(values, card.affine, card.id, card.modality)


def _scan_hash(card: Card) -> str:
    """Of the stored scan: another preparation of the same file is another one."""
    return config_hash(card.source_hash, card.key, card.id)


def _greys(sample: Sample) -> Floats:
    """Normalised values (C, N) of voxels."""
    card = sample.case.card
    z, y, x = sample.voxels.T
    stored = np.asarray(sample.case.store.image(card.id)[:])[:, z, y, x]
    return in_network_units(stored, card.levels)


def _place(card: Card, voxels: Voxels) -> Floats:
    """Place (N, 9) in the body's box: z, y, x in -1..1, and their products."""
    low, high = np.array(card.foreground, np.float64)
    share = 2 * (voxels - low) / np.maximum(high - low - 1, 1) - 1
    z, y, x = share.T
    columns = (z, y, x, z * z, y * y, x * x, z * y, z * x, y * x)
    return np.stack(columns, axis=1).astype(np.float32)


def _between(features: FeatureMap, card: Card) -> list[Floats]:
    """Share (voxels, cells) of each cell in each voxel, for each axis."""
    matrix = (features.affine.inverse() @ card.affine).matrix
    shares = []
    for axis, (cells, voxels) in enumerate(
        zip(grid_shape(features), card.shape, strict=True)
    ):
        place = matrix[axis, axis] * np.arange(voxels) + matrix[axis, 3]
        place = np.clip(place, 0, cells - 1)
        low = np.minimum(place.astype(np.int64), max(cells - 2, 0))
        part = (place - low).astype(np.float32)
        share = np.zeros((voxels, cells), np.float32)
        share[np.arange(voxels), low] = 1 - part
        share[np.arange(voxels), np.minimum(low + 1, cells - 1)] += part
        shares.append(share)
    return shares


def _fine(values: Floats, shares: list[Floats], rows: slice) -> Floats:
    """Cell values (d, h, w, M) at the voxels of some slices: (rows, H, W, M)."""
    z, y, x = shares[0][rows], shares[1], shares[2]
    found = np.tensordot(z, values, axes=(1, 0))
    count, h, w, m = found.shape
    found = y @ found.reshape(count, h, w * m)
    found = x @ found.reshape(count * len(y), w, m)
    return found.reshape(count, len(y), len(x), m)
