"""Features as colours, as a job: their three main directions, fitted over all scans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.config import ConfigError
from homolog.events import Job, Progress, Request, Saved
from homolog.features.colours import fit_colours
from homolog.features.files import colours_path, open_features
from homolog.features.search import on_grid
from homolog.jobs.base import ending, paths, taken
from homolog.scans.files import read_scan
from homolog.scans.volume import FeatureMap, Volume
from homolog.store.preprocess import inside, spread_sample
from homolog.writing import write_npy

_DEFAULTS: Mapping[str, Any] = {"cards": ..., "scans": ()}


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Write the colours of feature maps beside their cards, as ``CARD.pca.npy``.

    Fitted together, one colour means one feature in all of them.

    Args:
        config: ``cards`` (``*.features.json``), and ``scans``, the scan file of each,
            so that air has no say in the choice of colours; may be empty.
        folder: Not used.

    Returns:
        ``maps``: per card ``card`` and ``npy``, (d, h, w, 3) uint8 on the card's cell
        grid; ``explained``: three shares of the variance; ``stopped``.
    """
    asked = taken(config, "colours", _DEFAULTS)
    cards, scans = paths(asked["cards"], "feature map"), list(asked["scans"] or ())
    if scans and len(scans) != len(cards):
        raise ConfigError(f"{len(cards)} cards need as many scans, got {len(scans)}.")
    return (yield from ending(_write(cards, [Path(s) for s in scans])))


def _write(cards: list[Path], scans: list[Path]) -> Job[dict[str, Any]]:
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
