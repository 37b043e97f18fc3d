"""An encoder made ready to embed, and the features of a scan written once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.config import config_hash, from_dict, option, to_dict
from homolog.data.feature_files import (
    FeatureCard,
    commit,
    feature_paths,
    find_features,
    new_array,
)
from homolog.data.learnt_spacing import Learnt, learnt_of
from homolog.data.preprocess import Prepared, Preprocessing, prepare_volume
from homolog.data.quantise import to_int16
from homolog.data.resample import Regrid
from homolog.data.volume import Volume
from homolog.events import Job, Note
from homolog.geometry.affine import Affine, Index
from homolog.methods._base import Embedder
from homolog.model_files import LoadedEncoder, load_embedder
from homolog.tasks._embed import Scan, feature_grid, feature_rows, slide, unit_of
from homolog.tasks._join import join_features
from homolog.training.precision import resolve_precision

if TYPE_CHECKING:
    from homolog.data.card import Card
    from homolog.data.store import Store

# Whoever changes what features look like for the same weights counts this up.
_VERSION = 2
_WINDOW = (96, 96, 96)


@dataclass(frozen=True)
class EmbedConfig:
    """How a scan is embedded."""

    strides: tuple[int, ...] = option(
        (),
        "strides of the feature maps joined, e.g. 2,8; empty takes what the model says",
        unit="voxel",
        minimum=1,
    )
    window: tuple[int, int, int] | None = option(
        None,
        "window z, y, x slid over the scan; empty: a third larger than in training",
        unit="voxel",
        minimum=1,
    )
    overlap: float = option(
        0.5, "shared part of neighbouring windows", minimum=0.0, maximum=0.9
    )
    batch_size: int = option(1, "windows per forward pass", minimum=1, advanced=True)
    precision: str = option(
        "auto",
        "bf16 or fp16 autocast, or fp32; auto: the narrowest the device computes in",
        choices=("auto", "bf16", "fp16", "fp32"),
        advanced=True,
    )


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
        """From a loaded encoder: its own embedder, or maps of the strides asked for.

        Raises:
            ValueError: The backbone has no map of a stride asked for.
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
            to_dict(config), to_dict(self.preprocessing), *size,
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
    return Scan(
        prepared.data, prepared.scale, prepared.offset, prepared.intensity, name
    )


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
    scan = Scan(store.image(card.id), card.scale, card.offset, card.intensity, card.id)
    if learnt is None:
        return scan, card.affine
    target = learnt.target_of_case(card)
    grid = Regrid.between(card.shape, card.spacing_mm, target)
    if grid.is_identity:
        return scan, card.affine
    data, scale, offset, _ = to_int16(np.asarray(scan.data[:]), grid)
    return (
        dataclasses.replace(
            scan,
            data=data,
            scale=scale * card.scale,
            offset=offset * card.scale + card.offset,
        ),
        grid.affine(card.affine),
    )


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
        Path of the card; None when told to stop. Nothing half-written stays.
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
        Counts of windows; None when told to stop.
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
