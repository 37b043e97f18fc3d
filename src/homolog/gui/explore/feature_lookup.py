"""Which features of a scan lie on disk already, found without torch.

A card names the content hash of its scan and the id of the encoder that made it. The
id is a hash over the encoder's weights, so it can be had from the model folder alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from homolog.config import config_hash
from homolog.data.feature_files import (
    CARD_SUFFIX,
    FeatureCard,
    array_path,
    open_features,
    read_card,
)
from homolog.data.learnt_spacing import Learnt
from homolog.data.volume import FeatureMap
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.gui.files.layer_scan import file_stamp
from homolog.gui.learn.model_choice import ModelChoice

# Weights digest -> encoder id; scan file and stamp -> content hash.
_ids: dict[str, str] = {}
_hashes: dict[tuple[str, tuple[int, int]], str] = {}


def encoder_id(choice: ModelChoice) -> str:
    """The id in the cards of an encoder's features.

    Reads the weights once, so not on the GUI thread.

    Args:
        choice: An encoder, or a fine-tuned model (its encoder counts).

    Raises:
        UnusableInput: The weights are missing or damaged.
    """
    told = choice.card.get("encoder_id")
    if told:
        return str(told)
    digest = str((choice.card.get("sha256") or {}).get(choice.card.get("weights"), ""))
    if digest and digest in _ids:
        return _ids[digest]
    folder = choice.path / "model"
    folder = folder if folder.is_dir() else choice.path
    path = folder / str(choice.card.get("weights", "encoder.safetensors"))
    try:
        found = _id_of_weights(path, choice.card["backbone"]["config"], choice.kind)
    except ImportError as error:
        raise UnusableInput(
            "the library safetensors is not installed, so the encoder cannot be read."
        ) from error
    except Exception as error:  # the reader of weights has errors of its own
        raise UnusableInput(
            f"the weights {path} are missing or damaged ({error})."
        ) from error
    if digest:
        _ids[digest] = found
    return found


def _id_of_weights(path: Path, settings: Mapping[str, Any], kind: str) -> str:
    """As ``homolog.model_files.encoder_id`` of the loaded network."""
    from safetensors.numpy import load_file

    state = load_file(path)
    if kind != "encoder":
        state = {
            name.removeprefix("encoder."): value
            for name, value in state.items()
            if name.startswith("encoder.")
        }
    digest = hashlib.sha256(config_hash(settings).encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} torch.{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def content_hash(path: Path) -> str:
    """Content hash of a scan; the whole file is read once, so not on the GUI thread."""
    from homolog.data.scan_io import scan_hash

    place = (str(path), file_stamp(path))
    if place not in _hashes:
        _hashes[place] = scan_hash(path)
    return _hashes[place]


def find_card(
    folder: Path, scan_hash: str, encoder: str, learnt: Learnt | None = None
) -> Path | None:
    """The card of features of a scan by an encoder.

    Of several, that with the usual settings, then the newest. Features of voxels of
    another size than the encoder learnt at (made before scans were brought to it) are
    passed over.
    """
    cards = list(_cards(Path(folder), scan_hash, encoder))
    if learnt is not None:
        cards = [c for c in cards if not is_stale(c[1], learnt)]
    if not cards:
        return None
    return max(cards, key=lambda c: (_usual(c[1]), c[0].stat().st_mtime))[0]


def _cards(
    folder: Path, scan_hash: str, encoder: str
) -> Iterator[tuple[Path, FeatureCard]]:
    for path in sorted(folder.glob(f"*.{scan_hash}-*{CARD_SUFFIX}")):
        try:
            card = read_card(path)
        except UnusableInput:
            continue
        if card.encoder_id == encoder and array_path(path).is_file():
            yield path, card


def is_stale(card: FeatureCard, learnt: Learnt) -> bool:
    """Whether the voxels that were embedded had another size than those learnt from."""
    cell = Affine(np.array(card.affine)).spacing_mm
    z, y, x = (mm / s for mm, s in zip(cell, card.stride, strict=True))
    d, h, w = card.shape
    if card.stride[0] == 1:
        learnt = learnt.planar()  # slice by slice: their distance does not matter
    if learnt.spacing is None or (d == 1 and np.allclose((z, y, x), 1.0)):
        return False  # perhaps a picture: nobody knows the size of its pixels
    return learnt.spacing.target_mm((z, y, x), (d, h, w)) is not None


def _usual(card: FeatureCard) -> bool:
    """Whether the window slid as when nothing else was asked for."""
    settings = card.settings
    return not settings.get("strides") and settings.get("overlap", 0.5) == 0.5


def look_for(
    scan: Path, choice: ModelChoice, folder: Path
) -> tuple[str, Path | None, FeatureMap | None]:
    """Features of a scan by an encoder, opened: content hash, card and map.

    Raises:
        UnusableInput: Scan, weights or features cannot be read.
    """
    digest = content_hash(scan)
    card = find_card(folder, digest, encoder_id(choice), choice.learnt)
    return digest, card, None if card is None else open_features(card)
