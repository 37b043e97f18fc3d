"""Cases of a prepared store as scans to search and to show. No Qt, no torch.

A case is searched by its stored voxels; features are those of its own scan where that
file is still there unchanged, and else of the stored voxels, written as a file.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.card import Card
from homolog.data.feature_files import CARD_SUFFIX, open_features, read_card
from homolog.data.landmarks import Landmark
from homolog.data.learnt_spacing import Learnt
from homolog.data.scan_io import write_volume
from homolog.data.store import Store
from homolog.data.volume import Volume
from homolog.errors import UnusableInput
from homolog.gui.explore.feature_lookup import (
    content_hash,
    encoder_id,
    find_card,
    is_stale,
)
from homolog.gui.files.layer_geometry import SourceGrid
from homolog.gui.files.layers import contrast_limits
from homolog.gui.landmarks.matching import Side, search_points
from homolog.gui.landmarks.patches import Picture, patch
from homolog.gui.learn.model_choice import ModelChoice
from homolog.tasks._body import body_of
from homolog.tasks._landmark_rules import LandmarksConfig
from homolog.tasks._search import Search

# Prepared cases that stay in memory: about 17 bytes per cell each.
_KEPT = 32


@dataclass(frozen=True, eq=False)
class StoreCase:
    """A case of an open store.

    Attributes:
        store: The store.
        card: Of the case.
        features: Card of its features; None while there are none.
    """

    store: Store
    card: Card
    features: Path | None = None

    @property
    def stem(self) -> str:
        """Name of its file where it is written out; tells contents and recipe too."""
        return f"{self.card.id}-{self.card.key}"


def list_cases(
    path: Path, encoder: ModelChoice, folder: Path, leave_out: str = ""
) -> list[StoreCase]:
    """All cases of a store with what was computed of them before; on a thread.

    Args:
        path: Of the store.
        encoder: Whose features are wanted.
        folder: Where features are kept.
        leave_out: Content hash of the scan the landmark comes from.

    Raises:
        UnusableInput: No store there, or the encoder's weights are missing.
    """
    store, wanted = Store.open(path), encoder_id(encoder)
    cards = [card for card in store.cards if card.source_hash != leave_out]
    learnt = encoder.learnt
    return [
        StoreCase(store, c, _features(store, c, wanted, folder, learnt)) for c in cards
    ]


def case_volume(case: StoreCase) -> Volume:
    """The stored voxels of a case, in the units of its scan."""
    card = case.card
    values: NDArray[Any] = np.asarray(case.store.image(card.id))
    if (card.scale, card.offset) != (1.0, 0.0):
        values = values * np.float32(card.scale) + np.float32(card.offset)
    return Volume(values, card.affine, card.id, card.modality)


def case_file(case: StoreCase, scratch: Path) -> Path:
    """A file of a case: its own scan while that is there unchanged, else a copy.

    Args:
        case: The case.
        scratch: Where stored voxels are written as ``.nii``.
    """
    source = source_of(case)
    if source is not None:
        return source
    path = scratch / f"{case.stem}.nii"
    if not path.is_file():
        write_volume(case_volume(case), path)
    return path


def source_of(case: StoreCase) -> Path | None:
    """The scan a case was prepared from; None where it is gone or has changed.

    A path that was given relative to some folder is also tried beside the store.
    """
    told = Path(case.card.source)
    tried = [told] if told.is_absolute() else [told, case.store.path.parent / told]
    for path in tried:
        try:
            if path.exists() and content_hash(path) == case.card.source_hash:
                return path.absolute()
        except Exception:  # noqa: BLE001
            continue  # damaged since: the store still has its voxels
    return None


class CaseSides:
    """Prepared cases, the latest ones kept; any thread may ask."""

    def __init__(self) -> None:
        self._made: OrderedDict[Path, Side] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, card: Path, volume: Volume) -> Side:
        """A case, prepared now if it was not.

        Args:
            card: Of its features.
            volume: Its voxels.
        """
        with self._lock:
            if card not in self._made:
                features = open_features(card)
                body = body_of(volume, features)
                self._made[card] = Side(
                    Search(features),
                    body if body.any() else None,
                    (volume.affine, volume.shape),
                )
            self._made.move_to_end(card)
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
            return self._made[card]


def find_in_case(
    sides: CaseSides,
    a: Side,
    case: StoreCase,
    mark: Landmark,
    ct_window: tuple[float, float] | None,
    limits: LandmarksConfig | None = None,
) -> tuple[Landmark, Picture | None]:
    """A landmark in one case, and what it looks like there.

    Args:
        sides: Prepared cases.
        a: Scan A.
        case: With features.
        mark: With its place in A.
        ct_window: HU shown black and white; None: what suits the case.
        limits: When a match is believed; the defaults if None.
    """
    if case.features is None:
        raise UnusableInput(f"{case.card.id} has no features yet.")
    volume = case_volume(case)
    (found,) = search_points(a, sides.of(case.features, volume), [mark], limits)
    if found.b_mm is None:
        return found, None
    grid = SourceGrid.of(case.card.affine, case.card.shape)
    shown = grid.shown_to_true.inverse().apply(np.array(found.b_mm))
    window = ct_window if volume.modality == "CT" and ct_window else None
    window = window or contrast_limits(volume)
    return found, patch(volume.data[0], grid.shown, shown, window)


def _features(
    store: Store, card: Card, wanted: str, folder: Path, learnt: Learnt
) -> Path | None:
    found = find_card(folder, card.source_hash, wanted, learnt)
    if found is not None:
        return found
    # Of stored voxels that were written out: their name tells contents and recipe.
    for path in sorted(folder.glob(f"{StoreCase(store, card).stem}.*{CARD_SUFFIX}")):
        told = read_card(path)
        if told.encoder_id == wanted and not is_stale(told, learnt):
            return path
    return None
