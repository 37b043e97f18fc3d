"""Dense features of a whole scan: windows slid over it, blended on the feature grid.

Windows start at multiples of the stride, so the cells of all windows coincide and are
averaged as they are; nothing is interpolated but the coarser of several joined maps,
and nothing is ever blown up to voxels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homolog.config import config_hash, from_dict, to_dict
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Progress, Request
from homolog.features.config import EmbedConfig
from homolog.features.files import (
    FeatureCard,
    commit,
    feature_paths,
    find_features,
    new_array,
    open_features,
)
from homolog.geometry.affine import Affine, Index
from homolog.methods import METHODS
from homolog.methods.base import Embedder
from homolog.model_files.card import learnt_of
from homolog.model_files.encoder import LoadedEncoder
from homolog.model_files.folder import read_weights
from homolog.scans.volume import FeatureMap, Volume
from homolog.sliding.blending import Blend, WindowGrid, gaussian_weight, legal_window
from homolog.store.learnt_spacing import Learnt
from homolog.store.preprocess import (
    ChannelLevels,
    Prepared,
    Preprocessing,
    Regrid,
    in_network_units,
    inside,
    preparation_notes,
    prepare_volume,
    spread_sample,
    to_int16,
)
from homolog.training.stepping import autocast, resolve_precision

if TYPE_CHECKING:
    from homolog.store.card import Card
    from homolog.store.store import Store


# Distinct constant windows whose features are kept (air, padding).
_CONSTANTS_KEPT = 4


class Voxels(Protocol):
    """What slices like a (C, D, H, W) int16 array, in memory or in a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, D, H, W)."""

    def __getitem__(self, key: Any) -> Any:
        """Basic slicing."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A prepared scan as the embedder reads it.

    Attributes:
        data: (C, D, H, W) int16.
        levels: What the numbers of each channel mean.
        name: For messages.
    """

    data: Voxels
    levels: tuple[ChannelLevels, ...]
    name: str = "scan"

    @property
    def shape(self) -> Index:
        """(D, H, W)."""
        d, h, w = self.data.shape[1:]
        return d, h, w

    @property
    def outside(self) -> NDArray[np.float32]:
        """What a network sees beyond the scan, (C,): the normalised darkest values."""
        return np.array([one.low for one in self.levels], np.float32)

    def window(self, start: Index, size: Index) -> NDArray[np.float32]:
        """(C, *size) normalised values; beyond the scan ``outside``."""
        inner = tuple(
            slice(s, min(s + n, end))
            for s, n, end in zip(start, size, self.shape, strict=True)
        )
        stored = np.asarray(self.data[(slice(None), *inner)])
        block = in_network_units(stored, self.levels)
        if block.shape[1:] == size:
            return block
        whole = np.empty((block.shape[0], *size), np.float32)
        whole[:] = self.outside[:, None, None, None]
        whole[(slice(None), *(slice(0, n) for n in block.shape[1:]))] = block
        return whole


@dataclass(frozen=True)
class Sliding:
    """How the windows slide.

    Attributes:
        window: Voxels (D, H, W) of a window, a multiple of ``unit``.
        shape: The scan's size.
        unit: Every window start and size is a multiple of it (z, y, x).
        starts: First voxel of each window, sorted along ``axis`` first.
        axis: Along which finished rows are handed out.
    """

    window: Index
    shape: Index
    unit: Index
    starts: tuple[Index, ...]
    axis: int

    def cells(self, stride: Index) -> WindowGrid:
        """The same windows counted in cells of a stride."""
        window = _divide(self.window, stride)
        starts = tuple(_divide(s, stride) for s in self.starts)
        last = [max(s[a] for s in starts) + window[a] for a in range(3)]
        return WindowGrid(
            window, (last[0], last[1], last[2]), (0, 0, 0), self.axis, starts
        )


def slide(shape: Index, window: Index, unit: Index, overlap: float) -> Sliding:
    """Windows that cover a scan, all starts aligned to the unit.

    Args:
        shape: The scan's size (D, H, W).
        window: Wanted window, shrunk to small scans and to a multiple of ``unit``.
        unit: Least common multiple of strides and the network's size divisor.
        overlap: Shared part of neighbouring windows, 0 <= overlap < 1.

    Raises:
        ValueError: ``overlap`` outside 0..1.
    """
    if not 0.0 <= overlap < 1.0:
        raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}.")
    wanted = tuple(max(m, n // m * m) for n, m in zip(window, unit, strict=True))
    size = legal_window(shape, (wanted[0], wanted[1], wanted[2]), unit)
    per_axis = []
    for n, side, m in zip(shape, size, unit, strict=True):
        step = max(int(side * (1.0 - overlap)) // m * m, m)
        end = max(-(-(n - side) // m) * m, 0)  # the last window may reach beyond
        per_axis.append(sorted({*range(0, end, step), end}))
    axis = min(range(3), key=lambda a: (size[a] / shape[a], a))
    order = [axis, *(a for a in range(3) if a != axis)]
    starts = []
    for place in itertools.product(*(per_axis[a] for a in order)):
        start = [0, 0, 0]
        for a, n in zip(order, place, strict=True):
            start[a] = n
        starts.append((start[0], start[1], start[2]))
    return Sliding(size, shape, unit, tuple(starts), axis)


def load_embedder(encoder: LoadedEncoder) -> Embedder:
    """The dense features an encoder was made for: its maps and their heads.

    A card without a method (a foreign file, a fine-tuned model) gives the map next to
    the coarsest, without a head.

    Raises:
        UnusableInput: The heads' weights are missing or damaged.
    """
    kept = encoder.card.get("embedding") or {}
    if not kept.get("heads"):
        last = max(len(encoder.backbone.strides) - 2, 0)
        return Embedder(encoder.backbone, kept.get("maps") or {"features": last}).eval()
    if encoder.folder is None:
        raise UnusableInput("an encoder with heads needs its model folder.")
    method = METHODS.get(encoder.card["method"])
    settings: Any = from_dict(method.Config, encoder.card["method_config"])
    embedder = method(encoder.backbone, settings).embedder()
    heads = read_weights(encoder.folder, encoder.card, "embedder.safetensors")
    embedder.load_own_state(heads)
    return embedder.eval()


def unit_of(embedder: Embedder) -> Index:
    """What window starts and sizes must be multiples of."""
    strides = [embedder.stride(name) for name in embedder.maps]
    divisor = embedder.backbone.size_divisor
    if embedder.backbone.spatial_dims == 2:
        divisor = (1, *divisor[-2:])
    z, y, x = (lcm(divisor[a], *(s[a] for s in strides)) for a in range(3))
    return z, y, x


@torch.inference_mode()
def feature_rows(
    scan: Scan,
    embedder: Embedder,
    sliding: Sliding,
    outputs: Mapping[str, NDArray[np.float16]],
    device: torch.device,
    batch_size: int = 1,
    precision: str = "fp32",
) -> Job[dict[str, int] | None]:
    """Slide the windows and fill one array per feature, row by finished row.

    Args:
        scan: What is embedded.
        embedder: In evaluation mode, on the device.
        sliding: Where the windows stand.
        outputs: Feature name -> (d, h, w, E) array to fill, the grid of its stride.
        device: Where the network runs.
        batch_size: Windows per forward pass.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for autocast; sums are float32.

    Returns:
        Counts: ``windows`` and ``constant`` (of these, windows of one single value,
        whose features were computed once); None when stopped.
    """
    fill = _Fill(embedder, sliding, outputs, device)
    constants: dict[float, dict[str, Tensor]] = {}
    counts = {"windows": len(sliding.starts), "constant": 0}
    began = time.monotonic()
    for done, batch in _batches(scan, sliding, batch_size):
        with autocast(device, precision):
            maps = _forward(embedder, batch, constants, device, counts)
        first = done - len(batch)
        for i, ((start, _), features) in enumerate(zip(batch, maps, strict=True)):
            fill.write(first + i)  # the sums are a ring: free its rows before adding
            fill.add(start, features)
        left = (time.monotonic() - began) / done * (len(sliding.starts) - done)
        request = yield Progress(
            "embedding", done, len(sliding.starts), scan.name, remaining_s=left
        )
        if request is Request.STOP:
            return None
    fill.write(len(sliding.starts))
    return counts


def _batches(
    scan: Scan, sliding: Sliding, batch_size: int
) -> Iterator[tuple[int, list[tuple[Index, NDArray[np.float32]]]]]:
    """(windows read so far, [(start, (C, *window)), ...])."""
    for first in range(0, len(sliding.starts), batch_size):
        starts = sliding.starts[first : first + batch_size]
        windows = [(s, scan.window(s, sliding.window)) for s in starts]
        yield first + len(starts), windows


def _forward(
    embedder: Embedder,
    batch: list[tuple[Index, NDArray[np.float32]]],
    constants: dict[float, dict[str, Tensor]],
    device: torch.device,
    counts: dict[str, int],
) -> list[dict[str, Tensor]]:
    """Features of each window; windows of one known value are not computed again."""
    found: list[dict[str, Tensor] | None] = []
    todo: list[NDArray[np.float32]] = []
    values: list[float | None] = []
    for _, block in batch:
        value = float(block.flat[0])
        same = bool((block == block.flat[0]).all())
        values.append(value if same else None)
        known = constants.get(value) if same else None
        counts["constant"] += same
        found.append(known)
        if known is None:
            todo.append(block)
    if todo:
        maps = embed_windows(embedder, torch.from_numpy(np.stack(todo)).to(device))
        position = 0
        for i, known in enumerate(found):
            if known is not None:
                continue
            own = {name: values_[position] for name, values_ in maps.items()}
            position += 1
            found[i] = own
            value_i = values[i]
            if value_i is not None and len(constants) < _CONSTANTS_KEPT:
                constants[value_i] = own
    return [f for f in found if f is not None]


def embed_windows(embedder: Embedder, windows: Tensor) -> dict[str, Tensor]:
    """Features of windows (B, C, D, H, W), name -> (B, E, d, h, w) unit norm.

    Raises:
        UnusableInput: The encoder wants another number of channels.
    """
    wanted = int(getattr(embedder.backbone.config, "in_channels", windows.shape[1]))
    if windows.shape[1] != wanted:
        raise UnusableInput(
            f"this encoder takes {wanted} channel(s), the scan has {windows.shape[1]}."
        )
    maps: dict[str, Tensor] = embedder(windows)
    return maps


class _Fill:
    """Blended sums of all features, written to their arrays as rows get finished."""

    def __init__(
        self,
        embedder: Embedder,
        sliding: Sliding,
        outputs: Mapping[str, NDArray[np.float16]],
        device: torch.device,
    ) -> None:
        self.sliding = sliding
        self.outputs = outputs
        self.strides = {name: embedder.stride(name) for name in outputs}
        self.grids = {name: sliding.cells(s) for name, s in self.strides.items()}
        self.weights = {
            name: gaussian_weight(grid.window, device)
            for name, grid in self.grids.items()
        }
        self.blends = {
            name: Blend(outputs[name].shape[-1], grid, device, torch.float32)
            for name, grid in self.grids.items()
        }

    def add(self, start: Index, features: Mapping[str, Tensor]) -> None:
        for name, blend in self.blends.items():
            cell = _divide(start, self.strides[name])
            blend.add(cell, features[name], self.weights[name])

    def write(self, done: int) -> None:
        """Write the rows that windows from ``done`` on cannot change."""
        for name, blend in self.blends.items():
            grid, array = self.grids[name], self.outputs[name]
            axis = grid.axis
            rest = [n for a, n in enumerate(grid.padded) if a != axis]
            for row, sums in blend.finished(grid.rows_done(done)):
                if row >= array.shape[axis]:
                    continue
                # The sum of weights cancels: only a feature's direction counts.
                unit = torch.nn.functional.normalize(sums[:-1], dim=0, eps=1e-12)
                plane = unit.T.reshape(*rest, -1).to("cpu", torch.float16).numpy()
                target = np.moveaxis(array, axis, 0)[row]
                target[:] = plane[: target.shape[0], : target.shape[1]]


def feature_grid(shape: Index, stride: Index) -> Index:
    """Cells (d, h, w) that cover a scan."""
    d, h, w = (-(-n // s) for n, s in zip(shape, stride, strict=True))
    return d, h, w


def _divide(index: Index, stride: Index) -> Index:
    z, y, x = (i // s for i, s in zip(index, stride, strict=True))
    return z, y, x


# Several feature maps of one scan as one: the coarse ones read on the finest grid.


def join_features(
    maps: Sequence[NDArray[np.float16]],
    strides: Sequence[Index],
    result: NDArray[np.float16],
) -> None:
    """Concatenate unit vectors of several grids, each with an equal share.

    The cosine of two joined vectors is the mean of the cosines of their parts, as SAM
    averages its fine and coarse similarity.

    Args:
        maps: (d_i, h_i, w_i, E_i) each, unit norm, cells aligned at the scan's corner.
        strides: Voxels (z, y, x) per cell of each.
        result: (d, h, w, sum E_i) to fill; the grid of the first map's stride.

    Source: methods reference, section 4 (fine and coarse embeddings are averaged).
    """
    share = np.float32(1 / np.sqrt(len(maps)))
    finest = strides[0]
    for z in range(result.shape[0]):
        first = 0
        for values, stride in zip(maps, strides, strict=True):
            size = values.shape[-1]
            if stride == finest:
                plane = np.asarray(values[z], np.float32)
            else:
                ratio = [f / c for f, c in zip(finest, stride, strict=True)]
                plane = _plane_on_finer_grid(values, z, result.shape[1:3], ratio)
                length = np.linalg.norm(plane, axis=-1, keepdims=True)
                plane /= np.maximum(length, 1e-6)
            result[z, :, :, first : first + size] = plane * share
            first += size


def _plane_on_finer_grid(
    values: NDArray[np.float16], z: int, plane: tuple[int, int], ratio: Sequence[float]
) -> NDArray[np.float32]:
    """One plane (h, w, E) of the finer grid, trilinear; borders are held."""
    rows = _between(np.array([z]), ratio[0], values.shape[0])
    low, high, share = (v[0] for v in rows)
    near = np.asarray(values[low], np.float32)
    upper = np.asarray(values[high], np.float32)
    result: NDArray[np.float32] = near + share * (upper - near)
    for axis, count in enumerate(plane):
        low_i, high_i, part = _between(
            np.arange(count), ratio[axis + 1], result.shape[axis]
        )
        wide = part.reshape([-1 if a == axis else 1 for a in range(3)])
        near = np.take(result, low_i, axis=axis)
        result = near + wide * (np.take(result, high_i, axis=axis) - near)
    return result


def _between(
    cells: NDArray[np.int64], ratio: float, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Lower and upper coarse cell of fine cells, and the share of the upper one."""
    place = np.clip((cells + 0.5) * ratio - 0.5, 0, length - 1)
    low = np.floor(place).astype(np.int64)
    share = (place - low).astype(np.float32)
    return low, np.minimum(low + 1, length - 1), share


# An encoder made ready to embed, and the features of a scan written once.


# Whoever changes what features look like for the same weights counts this up.
_VERSION = 2
_WINDOW = (96, 96, 96)


@dataclass(frozen=True, eq=False)
class DenseEncoder:
    """Everything needed to turn scans into features.

    Attributes:
        embedder: In evaluation mode, on the device.
        preprocessing: What the encoder saw in training.
        window: Window slid over the scan, voxels (z, y, x).
        encoder_id: Hash of the weights.
        config: How the window slides.
        device: Where it runs.
        learnt: The voxel size it learnt at.
    """

    embedder: Embedder
    preprocessing: Preprocessing
    window: Index
    encoder_id: str
    config: EmbedConfig
    device: torch.device
    learnt: Learnt = field(default_factory=Learnt)
    _told: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls, loaded: LoadedEncoder, config: EmbedConfig, device: torch.device
    ) -> DenseEncoder:
        """From a loaded encoder: its own embedder, or maps of the strides requested.

        Raises:
            ValueError: The backbone has no map of a stride requested.
        """
        backbone, card = loaded.backbone, loaded.card
        if config.strides:
            maps = {f"stride_{s}": backbone.map_of_stride(s) for s in config.strides}
            embedder = Embedder(backbone, maps)
        else:
            embedder = load_embedder(loaded)
        embedder = _finest_first(embedder).to(device).eval()
        learnt = learnt_of(card, loaded.folder)
        if backbone.spatial_dims == 2:
            learnt = learnt.planar()
        return cls(
            embedder,
            from_dict(Preprocessing, card.get("preprocessing", {}), where="model.json"),
            config.window or _default_window(embedder, card.get("window")),
            loaded.encoder_id,
            config,
            device,
            learnt,
        )

    def prepare(self, volume: Volume) -> Prepared:
        """A scan as the encoder learnt to see scans, brought to its voxel size."""
        return prepare_volume(volume, self.preprocessing, self.learnt)

    def warn(self) -> Job[None]:
        """Say once what the encoder does not know of its voxel size."""
        if self.learnt.remark and self.learnt.remark not in self._told:
            self._told.add(self.learnt.remark)
            yield Note(self.learnt.remark, "warning")

    @property
    def strides(self) -> list[Index]:
        """Voxels per cell of each joined map, finest first."""
        return [self.embedder.stride(name) for name in self.embedder.maps]

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Length of each joined feature, found by embedding one empty window."""
        channels = int(getattr(self.embedder.backbone.config, "in_channels", 1))
        # Twice the unit: norms over space need more than one cell.
        size = [n if n == 1 else 2 * n for n in unit_of(self.embedder)]
        empty = torch.zeros((1, channels, *size), device=self.device)
        with torch.inference_mode():
            maps = self.embedder(empty)
        return [int(maps[name].shape[1]) for name in self.embedder.maps]

    @property
    def key(self) -> str:
        """Changes with anything but the scan that the features depend on."""
        config = dataclasses.replace(self.config, batch_size=1, strides=())
        maps = sorted(self.embedder.maps.values())
        heads = {n: v.sum().item() for n, v in self.embedder.own_state().items()}
        learnt = self.learnt.spacing
        # an encoder that is not known to bring scans to a size has the key it had
        size = [] if learnt is None else [learnt.to_dict()]
        return config_hash(
            _VERSION, self.encoder_id, maps, heads, list(self.window),
            to_dict(config), self.preprocessing.settings(), *size,
        )  # fmt: skip


def _default_window(embedder: Embedder, trained: Sequence[int] | None) -> Index:
    """A third larger than the crops of training: fewer cells then lie near a border.

    On the phantom, crops of 48 and windows of 64 voxels: landmark error 9.8 instead of
    10.4 mm; windows of 80 add nothing.
    """
    if trained is None:
        return _WINDOW if embedder.backbone.spatial_dims == 3 else (1, *_WINDOW[1:])
    z, y, x = (
        n if n == 1 else max(m, round(n * 4 / 3 / m) * m)
        for n, m in zip(trained, unit_of(embedder), strict=True)
    )
    return z, y, x


def _finest_first(embedder: Embedder) -> Embedder:
    """The same features ordered by stride: the grid of the first is that of all."""
    names = sorted(embedder.maps, key=embedder.stride)
    return embedder.with_maps({name: embedder.maps[name] for name in names})


def scan_of(prepared: Prepared, name: str) -> Scan:
    """A prepared scan as the embedder reads it."""
    return Scan(prepared.data, prepared.levels, name)


def scan_of_case(
    store: Store, card: Card, learnt: Learnt | None = None
) -> tuple[Scan, Affine]:
    """A case of a store as the embedder reads it, and its voxel -> world mm.

    Args:
        store: That keeps the case.
        card: The case.
        learnt: Of an encoder: a case of another voxel size is brought to its own.
            Otherwise only needed chunks are read.
    """
    scan = Scan(store.image(card.id), card.levels, card.id)
    if learnt is None:
        return scan, card.affine
    target = learnt.target_of_case(card)
    grid = Regrid.between(card.shape, card.spacing_mm, target)
    if grid.is_identity:
        return scan, card.affine
    parts, levels = [], []
    for channel, one in zip(np.asarray(scan.data[:]), scan.levels, strict=True):
        data, scale, offset, _ = to_int16(channel[None], grid)
        parts.append(data)
        own = offset * one.scale + one.offset
        levels.append(dataclasses.replace(one, scale=scale * one.scale, offset=own))
    found = dataclasses.replace(scan, data=np.concatenate(parts), levels=tuple(levels))
    return found, grid.affine(card.affine)


def write_features(
    scan: Scan, affine: Affine, scan_hash: str, encoder: DenseEncoder, folder: Path
) -> Job[Path | None]:
    """The scan's features in ``folder``, computed unless they lie there already.

    Args:
        scan: What is embedded, prepared by the encoder's own preprocessing.
        affine: Its voxel -> world mm.
        scan_hash: Content hash of the scan.
        encoder: What embeds it.
        folder: Where array and card are kept.

    Returns:
        Path of the card; None when stopped. Nothing half-written stays.
    """
    found = find_features(folder, scan_hash, encoder.key)
    if found is not None:
        return found
    path, card_path = feature_paths(folder, scan.name, scan_hash, encoder.key)
    shape = feature_grid(scan.shape, encoder.strides[0])
    result, half = new_array(path, shape, sum(encoder.sizes))
    try:
        counts = yield from embed_into(scan, encoder, result, folder)
        if counts is None:
            return None
        names = list(encoder.embedder.maps)
        card = FeatureCard(
            key=encoder.key,
            scan_hash=scan_hash,
            encoder_id=encoder.encoder_id,
            scan=scan.name,
            shape=shape,
            size=sum(encoder.sizes),
            stride=encoder.strides[0],
            affine=affine.coarsen(encoder.strides[0]).to_list(),
            parts=[[n, s] for n, s in zip(names, encoder.sizes, strict=True)],
            settings={**to_dict(encoder.config), "window": list(encoder.window)},
            pieces=counts,
        )
        commit(result, half, path, card)
    finally:
        half.unlink(missing_ok=True)
    return card_path


def embed_into(
    scan: Scan,
    encoder: DenseEncoder,
    result: NDArray[np.float16],
    scratch: Path | None = None,
) -> Job[dict[str, int] | None]:
    """Fill an array (d, h, w, E) with a scan's features.

    Args:
        scan: What is embedded.
        encoder: What embeds it.
        result: The grid of the finest map, its length that of all maps joined.
        scratch: Folder for the single maps while they are joined; memory if None.

    Returns:
        Counts of windows; None when stopped.
    """
    names, strides = list(encoder.embedder.maps), encoder.strides
    sliding = slide(
        scan.shape, encoder.window, unit_of(encoder.embedder), encoder.config.overlap
    )
    with contextlib.ExitStack() as stack:
        if len(names) == 1:
            single = [result]
        else:
            single = [
                stack.enter_context(_scratch(scratch, f"{scan.name}.{n}", grid, size))
                for n, size, grid in zip(
                    names,
                    encoder.sizes,
                    [feature_grid(scan.shape, s) for s in strides],
                    strict=True,
                )
            ]
        counts = yield from feature_rows(
            scan,
            encoder.embedder,
            sliding,
            dict(zip(names, single, strict=True)),
            encoder.device,
            encoder.config.batch_size,
            resolve_precision(
                encoder.config.precision, encoder.device, encoder.embedder
            ),
        )
        if counts is not None and len(names) > 1:
            join_features(single, strides, result)
    return counts


@contextlib.contextmanager
def _scratch(
    folder: Path | None, name: str, shape: Index, size: int
) -> Iterator[NDArray[np.float16]]:
    """An array (d, h, w, E) that is gone afterwards."""
    if folder is None:
        yield np.zeros((*shape, size), np.float16)
        return
    array, half = new_array(folder / name, shape, size)
    try:
        yield array
    finally:
        half.unlink(missing_ok=True)


# The embed task: dense features of one scan.


def embed_scan(
    volume: Volume,
    encoder: DenseEncoder,
    folder: Path | None = None,
    scan_hash: str = "",
) -> Job[FeatureMap | None]:
    """Dense features of a scan: a sliding window, blended on the feature grid.

    Args:
        volume: A scan as stored in its file.
        encoder: With its settings.
        folder: Where features are kept and found again, by ``scan_hash``; in memory if
            absent.
        scan_hash: Content hash of the scan.

    Returns:
        (E, d, h, w) float16 of unit norm, memory-mapped where a folder was given; None
        when stopped.
    """
    yield from encoder.warn()
    prepared = encoder.prepare(volume)
    yield from preparation_notes(
        volume, prepared, named_size=encoder.preprocessing.spacing_mm
    )
    scan = scan_of(prepared, volume.name or "scan")
    if folder is not None:
        card = yield from write_features(
            scan, prepared.affine, scan_hash, encoder, Path(folder)
        )
        return None if card is None else open_features(card)
    shape = feature_grid(scan.shape, encoder.strides[0])
    array = np.zeros((*shape, sum(encoder.sizes)), np.float16)
    counts = yield from embed_into(scan, encoder, array)
    if counts is None:
        return None
    return FeatureMap(
        np.moveaxis(array, -1, 0),
        prepared.affine.coarsen(encoder.strides[0]),
        encoder.encoder_id,
    )


def body_cells(prepared: Prepared, stride: Index) -> NDArray[np.bool_]:
    """Which cells (d, h, w) of a feature grid show body rather than air or padding.

    Args:
        prepared: The scan.
        stride: Voxels (z, y, x) per cell; the voxel in the middle of a cell decides.
    """
    z, y, x = (slice(s // 2, None, s) for s in stride)
    first = prepared.levels[0]
    values = first.values(prepared.data[0, z, y, x])
    sample = first.values(spread_sample(prepared.data[:1]))
    mask = inside(values, sample, first.modality == "CT")
    result = np.zeros(feature_grid(prepared.grid.shape, stride), bool)
    d, h, w = mask.shape
    result[:d, :h, :w] = mask
    return result
