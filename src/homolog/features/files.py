"""Dense features on disk: a memory-mapped array and a card, found by what made them.

numpy only, so that a viewer reads what a worker wrote without loading torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index
from homolog.json_files import Shape, parsed_object
from homolog.scans.volume import FeatureMap
from homolog.writing import beside, make_folder, put_in_place, sweep_once, write_json

CARD_SUFFIX = ".features.json"
ARRAY_SUFFIX = ".features.npy"
COLOURS_SUFFIX = ".pca.npy"


@dataclass(frozen=True)
class FeatureCard:
    """What is known about a feature file.

    Attributes:
        key: Hash of everything the features depend on but the scan.
        scan_hash: Content hash of the scan.
        encoder_id: Hash of the encoder's weights.
        scan: Path or name of the scan, for people.
        shape: Cells (d, h, w).
        size: Length E of a feature vector.
        stride: Prepared voxels (z, y, x) per cell.
        affine: Cell -> world mm, LPS, 4 rows.
        parts: Name and length of each joined feature, in order.
        settings: How the window slid.
        pieces: More facts: windows computed, constant windows reused.
    """

    key: str
    scan_hash: str
    encoder_id: str
    scan: str
    shape: Index
    size: int
    stride: Index
    affine: list[list[float]]
    parts: list[list[Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    pieces: dict[str, int] = field(default_factory=dict)


_SHAPE: Shape = {
    "key": str, "scan_hash": str, "encoder_id": str, "scan": str,
    "shape": tuple[int, int, int], "size": int, "stride": tuple[int, int, int],
    "affine": list[list[float]], "parts?": list, "settings?": dict, "pieces?": dict,
}  # fmt: skip


def feature_paths(
    folder: Path, name: str, scan_hash: str, key: str
) -> tuple[Path, Path]:
    """Array and card of a scan's features; the name is for people, the hashes count."""
    stem = f"{name}.{scan_hash}-{key}"
    return folder / f"{stem}{ARRAY_SUFFIX}", folder / f"{stem}{CARD_SUFFIX}"


def find_features(folder: Path, scan_hash: str, key: str) -> Path | None:
    """Card of features made before, whatever the scan was called then."""
    for card in sorted(Path(folder).glob(f"*.{scan_hash}-{key}{CARD_SUFFIX}")):
        if array_path(card).is_file():
            return card
    return None


def array_path(card: Path) -> Path:
    """The array that belongs to a card."""
    return card.with_name(card.name.removesuffix(CARD_SUFFIX) + ARRAY_SUFFIX)


def colours_path(card: Path) -> Path:
    """Where the colours of a feature map lie, (d, h, w, 3) uint8 on its cells."""
    return card.with_name(card.name + COLOURS_SUFFIX)


def new_array(path: Path, shape: Index, size: int) -> tuple[NDArray[np.float16], Path]:
    """A writable memory map (d, h, w, E) under a temporary name beside ``path``."""
    make_folder(path.parent)
    sweep_once(path.parent)
    half = beside(path)
    array = np.lib.format.open_memmap(
        half, mode="w+", dtype=np.float16, shape=(*shape, size)
    )
    return array, half


def commit(
    array: NDArray[np.float16], half: Path, path: Path, card: FeatureCard
) -> None:
    """Give a finished array its name, then write its card: no card, no features."""
    flush = getattr(array, "flush", None)
    if flush is not None:
        flush()
    put_in_place(half, path)
    stem = path.name.removesuffix(ARRAY_SUFFIX)
    write_json(path.with_name(stem + CARD_SUFFIX), asdict(card))


def read_card(path: Path) -> FeatureCard:
    """The card of a feature file.

    Raises:
        UnusableInput: Not a card.
    """
    try:
        card = FeatureCard(**parsed_object(Path(path).read_bytes(), _SHAPE))
    except (OSError, ValueError, TypeError) as error:
        raise UnusableInput(
            f"{path} is not the card of a feature map ({error})."
        ) from None
    d, h, w = card.shape
    z, y, x = card.stride
    return FeatureCard(**{**asdict(card), "shape": (d, h, w), "stride": (z, y, x)})


def open_features(card_path: Path) -> FeatureMap:
    """Features as a memory-mapped FeatureMap; cells are read when touched.

    Args:
        card_path: ``*.features.json``.

    Returns:
        data (E, d, h, w) float16, a view of the file's (d, h, w, E), in which one
        cell's vector lies together.

    Raises:
        UnusableInput: Card or array missing, or of another shape than the card says.
    """
    card = read_card(card_path)
    path = array_path(Path(card_path))
    if not path.is_file():
        raise UnusableInput(f"the features {path} of {card_path} are missing.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnusableInput(f"{path} holds no features ({error}).") from None
    if array.shape != (*card.shape, card.size) or array.dtype != np.float16:
        raise UnusableInput(
            f"{path} should hold {(*card.shape, card.size)} float16, got "
            f"{array.shape} {array.dtype}."
        )
    return FeatureMap(
        np.moveaxis(array, -1, 0),
        Affine(np.array(card.affine)),
        card.encoder_id,
        card.scan_hash,
    )


# The user's cache of features is kept below this; the longest unused go first.
CACHE_BYTES = 8_000_000_000


@contextlib.contextmanager
def kept_features(folder: Path | None = None) -> Iterator[Path]:
    """The folder in which features are looked for: the one given or the user's cache.

    The cache is ``$HOMOLOG_CACHE/features``, else ``homolog/features`` under
    ``$XDG_CACHE_HOME`` or ``~/.cache``; afterwards it is trimmed to CACHE_BYTES.
    """
    if folder is not None:
        yield Path(folder)
        return
    own = os.environ.get("HOMOLOG_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(own) / "features" if own else Path(base) / "homolog" / "features"
    make_folder(cache)
    yield cache
    trim(cache, CACHE_BYTES)


def trim(folder: Path, most_bytes: int) -> None:
    """Delete the longest unused features until the rest is small enough."""
    cards = [c for c in folder.glob(f"*{CARD_SUFFIX}") if array_path(c).is_file()]
    used = sorted((array_path(c).stat().st_atime, c) for c in cards)
    total = sum(array_path(c).stat().st_size for c in cards)
    for _, card in used:
        if total <= most_bytes:
            break
        size = array_path(card).stat().st_size
        try:
            array_path(card).unlink()
        except PermissionError:  # Windows deletes nothing that somebody has mapped
            continue
        total -= size
        card.unlink(missing_ok=True)
        colours_path(card).unlink(missing_ok=True)
