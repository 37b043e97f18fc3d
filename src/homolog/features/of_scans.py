"""Features of scan files: made, kept, and their main directions as colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.config import ConfigError, check, from_dict
from homolog.distributed import choose_device
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress, Request, Saved
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, body_cells, embed_scan
from homolog.features.files import (
    array_path,
    colours_path,
    find_features,
    open_features,
    read_card,
)
from homolog.features.search import on_grid
from homolog.geometry.places import AXES_NAMED
from homolog.model_files.encoder import load_encoder
from homolog.scans.files import read_scan, scan_hash
from homolog.scans.problems import problem_of
from homolog.scans.volume import FeatureMap, Volume
from homolog.scans.write import write_volume
from homolog.store.preprocess import inside, spread_sample
from homolog.training.stepping import is_out_of_memory
from homolog.words import times
from homolog.writing import write_npy

# Features as colours: their three main directions as red, green and blue.


# Cells looked at per scan when the directions are found, evenly spread.
_CELLS_PER_SCAN = 20_000


@dataclass(frozen=True, eq=False)
class Colours:
    """Directions and ranges that turn a feature into a colour.

    Attributes:
        mean: (E,).
        directions: (3, E), orthonormal, by falling variance.
        low: (3,) coordinates that become 0.
        high: (3,) coordinates that become 1.
        explained: (3,) share of the variance along each direction.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    explained: NDArray[np.float32]

    def paint(self, cells: NDArray[np.floating]) -> NDArray[np.float32]:
        """Features (E, d, h, w) -> colours (3, d, h, w) in 0..1."""
        size = cells.shape[0]
        result = np.empty((3, *cells.shape[1:]), np.float32)
        for z in range(cells.shape[1]):  # slab by slab: the cells may lie on disk
            flat = np.asarray(cells[:, z], np.float32).reshape(size, -1)
            place = self.directions @ (flat - self.mean[:, None])
            span = np.maximum(self.high - self.low, 1e-12)
            colour = (place - self.low[:, None]) / span[:, None]
            result[:, z] = np.clip(colour, 0, 1).reshape(3, *cells.shape[2:])
        return result


def fit_colours(
    scans: Sequence[NDArray[np.floating]],
    bodies: Sequence[NDArray[np.bool_] | None] | None = None,
) -> Colours:
    """The three main directions of the features of one or several scans together.

    Fitted together, one colour means one feature in all of them. The sign of each
    direction is fixed by its largest entry being positive, so that pictures repeat.

    Args:
        scans: (E, d, h, w) each.
        bodies: Cells (d, h, w) to look at, per scan; None looks at all of them. Where
            fewer than 50 cells are body, all are looked at.

    Paper: S2DC Fig. 6.
    """
    from sklearn.decomposition import PCA  # slow to load

    sample = np.concatenate(
        [
            _spread(cells, None if bodies is None else bodies[i])
            for i, cells in enumerate(scans)
        ]
    ).astype(np.float64)
    if len(sample) == 1:
        sample = np.repeat(sample, 2, axis=0)
    mean = sample.mean(axis=0)
    centred = sample - mean
    count = min(3, *sample.shape)
    with np.errstate(invalid="ignore"):  # features that are the same everywhere
        found = PCA(count, svd_solver="covariance_eigh").fit(centred)
    directions = np.zeros((3, sample.shape[1]))
    directions[:count] = found.components_
    largest = np.abs(directions).argmax(axis=1)
    directions *= np.where(directions[range(3), largest] < 0, -1, 1)[:, None]
    low, high = np.percentile(centred @ directions.T, (1, 99), axis=0)
    explained = np.zeros(3)
    explained[:count] = np.nan_to_num(found.explained_variance_ratio_)
    numbers = (mean, directions, low, high, explained)
    return Colours(*(n.astype(np.float32) for n in numbers))


def _spread(
    cells: NDArray[np.floating], body: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """Evenly spread features (n, E)."""
    places = np.arange(int(np.prod(cells.shape[1:])))
    if body is not None and body.sum() >= 50:
        places = np.flatnonzero(body)
    places = places[:: max(1, len(places) // _CELLS_PER_SCAN)]
    index = np.unravel_index(places, cells.shape[1:])
    return np.asarray(np.moveaxis(cells, 0, -1)[index], np.float32)


def encoder_of(
    source: Path,
    settings: Mapping[str, Any],
    device: str,
    backbone: str | None = None,
) -> DenseEncoder:
    """The encoder of a run, model folder or weight file, ready to embed.

    Args:
        source: Where it lies.
        settings: Fields of EmbedConfig.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        backbone: Network of a weight file that does not say it.
    """
    config = from_dict(EmbedConfig, settings, where="embed")
    check(config)
    loaded = load_encoder(source, backbone)
    return DenseEncoder.of(loaded, config, choose_device(device))


def embed_scans(
    scans: Sequence[Path], folder: Path, encoder: DenseEncoder
) -> Job[dict[str, Any]]:
    """Features of scan after scan; one of several that fails does not stop the others.

    Returns:
        ``features``: entries in the order of the scans; ``failed`` (scan, reason);
        ``out``; ``stopped``, with the entries made until then.

    Raises:
        UnusableInput: No scan could be read; of a single scan, its own error.
        JobError: A single window does not fit into memory.
    """
    entries: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    result: dict[str, Any] = {"features": entries, "failed": failed, "out": str(folder)}
    yield from encoder.warn()
    for number, path in enumerate(scans):
        request = yield Progress("scans", number, len(scans), path.name)
        if request is Request.STOP:
            return {**result, "stopped": True}
        try:
            entry = yield from _one_scan(path, folder, encoder)
        except JobError:
            raise  # the window's or the disk's fault, not the scan's
        except Exception as error:
            if len(scans) == 1:
                raise
            reason = problem_of(error).text.removeprefix(f"{path}: ")
            failed.append({"scan": str(path), "reason": reason})
            yield Note(f"{path}: {reason}", "warning")
            continue
        if entry is None:
            return {**result, "stopped": True}
        entries.append(entry)
    yield Progress("scans", len(scans), len(scans))
    if failed and not entries:
        first = failed[0]
        text = f"none of {len(scans)} scans could be embedded; first {first['scan']}: "
        raise UnusableInput(text + first["reason"])
    return {**result, "stopped": False}


def _one_scan(
    path: Path, folder: Path, encoder: DenseEncoder
) -> Job[dict[str, Any] | None]:
    """The entry of one scan; None if stopped."""
    key = scan_hash(path)
    card = find_features(folder, key, encoder.key)
    reused = card is not None
    if card is None:
        made = yield from features_of(read_scan(path), path, encoder, folder)
        if made is None:
            return None
        card = find_features(folder, key, encoder.key)
    assert card is not None
    return entry_of(path, card, reused=reused)


def features_of(
    scan: Volume, path: Path, encoder: DenseEncoder, folder: Path
) -> Job[FeatureMap | None]:
    """Features of a scan file, computed unless ``folder`` has them; None if stopped.

    Raises:
        JobError: A single window does not fit into memory.
    """
    try:
        features: FeatureMap | None = yield from embed_scan(
            scan, encoder, folder=folder, scan_hash=scan_hash(path)
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise JobError(
            f"not enough memory on {encoder.device} for a window of "
            f"{times(encoder.window)} voxels; take a smaller window, or another device."
        ) from error
    return features


def entry_of(scan: Path, card_path: Path, *, reused: bool) -> dict[str, Any]:
    """What is reported of one scan's features, JSON types."""
    card, features = read_card(card_path), open_features(card_path)
    return {
        "scan": str(scan),
        "features": str(array_path(card_path)),
        "card": str(card_path),
        "shape": list(card.shape),
        "size": card.size,
        "stride": list(card.stride),
        "spacing_mm": list(features.affine.spacing_mm),
        "affine": card.affine,
        "axes": AXES_NAMED,
        "scan_hash": card.scan_hash,
        "encoder_id": card.encoder_id,
        "reused": reused,
    }


def write_colours(
    cards: Sequence[Path], scans: Sequence[Path] = ()
) -> Job[dict[str, Any]]:
    """Write the colours of feature maps beside their cards, as ``CARD.pca.npy``.

    Args:
        cards: Of the maps; fitted together, one colour means one feature in all.
        scans: The scan file of each, so that air has no say in the choice of colours;
            may be empty.

    Returns:
        ``maps``: per card ``card`` and ``npy``, (d, h, w, 3) uint8 on the card's cell
        grid; ``explained``: three shares of the variance; ``stopped``.

    Raises:
        ConfigError: Another number of scans, or features of different encoders.
    """
    if scans and len(scans) != len(cards):
        raise ConfigError(f"{len(cards)} cards need as many scans, got {len(scans)}.")
    maps = [open_features(card) for card in cards]
    sizes = {m.data.shape[0] for m in maps}
    if len(sizes) > 1:
        raise ConfigError("features of different encoders have no colours in common.")
    bodies: list[NDArray[np.bool_]] = []
    total = len(scans) + len(cards)
    for number, scan in enumerate(scans):
        if (yield Progress("colours", number, total, scan.name)) is Request.STOP:
            return {"maps": [], "explained": [], "stopped": True}
        bodies.append(body_of(read_scan(scan), maps[number]))
    colours = fit_colours([m.data for m in maps], bodies or None)
    found: list[dict[str, str]] = []
    for number, (card, features) in enumerate(zip(cards, maps, strict=True)):
        news = Progress("colours", len(scans) + number, total, card.name)
        if (yield news) is Request.STOP:
            return {"maps": found, "explained": [], "stopped": True}
        cells = np.moveaxis(colours.paint(features.data), 0, -1)
        place = colours_path(card)
        write_npy(place, np.rint(cells * 255).astype(np.uint8))
        found.append({"card": str(card), "npy": str(place)})
        yield Saved(str(place), "colours")
    yield Progress("colours", total, total)
    explained = [round(float(v), 4) for v in colours.explained]
    return {"maps": found, "explained": explained, "stopped": False}


def body_of(scan: Volume, features: FeatureMap) -> NDArray[np.bool_]:
    """Which cells (d, h, w) show body rather than air, read off the scan itself."""
    d, h, w = features.data.shape[1:]
    values = on_grid(scan.data[0], scan.affine, (d, h, w), features.affine)
    sample = spread_sample(np.asarray(scan.data))
    return inside(values, sample, scan.modality == "CT")


def write_colour_volumes(
    entries: Sequence[dict[str, Any]], out: Path, encoder: DenseEncoder
) -> Job[None]:
    """One RGB volume per scan; the directions are those of all scans together.

    Args:
        entries: See ``entry_of``; each gains ``pca`` (the file) and ``explained``.
        out: Gets ``NAME_pca.nii.gz``.
        encoder: That made them.
    """
    scans = [Path(entry["scan"]) for entry in entries]
    maps = [open_features(Path(e["card"])) for e in entries]
    bodies = [
        body_cells(encoder.prepare(read_scan(path)), encoder.strides[0])
        for path in scans
    ]
    colours = fit_colours([m.data for m in maps], bodies)
    for path, entry, features in zip(scans, entries, maps, strict=True):
        volume = _colour_volume(read_scan(path), features, colours.paint(features.data))
        place = out / f"{volume.name}.nii.gz"
        write_volume(volume, place)
        entry["pca"] = str(place)
        entry["explained"] = [round(float(v), 4) for v in colours.explained]
        yield Saved(str(place), "colours")


def _colour_volume(
    scan: Volume, features: FeatureMap, cells: NDArray[np.float32]
) -> Volume:
    """Colours (3, d, h, w) in 0..1 on a scan's own grid, as (3, D, H, W) uint8."""
    rgb = np.stack(
        [on_grid(c, features.affine, scan.shape, scan.affine) for c in cells]
    )
    data = np.rint(rgb * 255).astype(np.uint8)
    return Volume(data, scan.affine, f"{scan.name}_pca", "OTHER", scan.meta)
