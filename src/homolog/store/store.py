"""Prepared scans on disk, read crop by crop: the reader.

``STORE/store.json`` lists the cases; ``STORE/cases/ID/`` holds ``image.b2nd``,
``label.b2nd``, ``points.npy`` (foreground index) and ``card.json``. Written by
homolog.store.build. Of a large store ``index.sqlite`` holds the cards once more, see
homolog.store.table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.config import config_hash, from_dict
from homolog.errors import JobError, UnusableInput
from homolog.json_files import Shape, check_shape, object_or_none, read_object
from homolog.store.arrays import Damage, StoredArray
from homolog.store.card import (
    IMAGE,
    LABEL,
    POINTS,
    Card,
    check_card,
    is_as_written,
    is_plain_name,
    signed,
)
from homolog.store.preprocess import Preprocessing
from homolog.store.splits import SPLITS
from homolog.store.table import LARGE, CardTable, Entry, state_of, write_index
from homolog.writing import crc_text, is_locked

FORMAT = 1
LABELS_MADE = "labels_made"  # in store.json: how, where labels are no one's file
LOCK = ".lock"  # of a store, held by the process that writes into it
# How deep labelled voxels lie, where a method needed it: array, facts, steps a voxel.
DEPTH, DEPTH_CARD, DEPTH_STEPS = "depth.b2nd", "depth.json", 4
# Cases whose foreground index stays in memory.
_INDICES = 1024


class Store:
    """A folder of prepared cases, opened for reading.

    Attributes:
        path: The folder.
        cards: One per case, by id; of a large store read when they are asked for.
        label_names: Label value -> name, without background.
        regions: Name of a union of labels -> their names (nnU-Net's regions).
        preprocessing: The recipe all cases were prepared with.
        fingerprint: Sizes, spacings and intensities of the cases, and sentences that
            explain the spacing.
        hash: Changes with any case, its split or the recipe.
    """

    def __init__(
        self, path: Path, contents: dict[str, Any], cards: list[Card] | CardTable
    ) -> None:
        self.path = path
        table = cards if isinstance(cards, CardTable) else None
        self.cards: Sequence[Card] = table or tuple(sorted(cards, key=lambda c: c.id))
        self.preprocessing = from_dict(
            Preprocessing, contents["preprocessing"], where=str(path)
        )
        names = contents.get("label_names", {})
        self.label_names: dict[int, str] = {int(v): n for v, n in names.items()}
        self.regions: dict[str, list[str]] = contents.get("regions", {})
        self.fingerprint: dict[str, Any] = contents.get("fingerprint", {})
        self._by_id: dict[str, Card] = {}
        if table is not None:
            self.hash: str = table.facts["hash"]
        else:
            self.hash = config_hash([(c.id, c.key, c.split) for c in self.cards])
            self._by_id = {card.id: card for card in self.cards}
        self._points: OrderedDict[str, dict[int, NDArray[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Read the list of cases and their cards; no voxels.

        Raises:
            UnusableInput: No store there, or its preparation did not finish.
        """
        folder = Path(path).resolve()
        table = CardTable.open(folder)
        if table is not None:
            with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
                return cls(folder, table.facts["contents"], table)
        state = _state_of(folder)
        contents = read_contents(folder)
        if contents is None:
            raise UnusableInput(
                f"{path} is not a finished store (no store.json); make one with: "
                f"homolog prepare SCANS --out {path}"
            )
        if contents.get("format") != FORMAT:
            raise UnusableInput(
                f"{path} has store format {contents.get('format')!r}, this version "
                f"reads {FORMAT}; run prepare again."
            )
        cards = []
        for name, entry in contents["cases"].items():
            card = read_card(case_folder(folder, name))
            if card is None or card.key != entry["key"]:
                if is_locked(folder / LOCK):
                    raise UnusableInput(
                        f"{path} is being prepared by another process; wait until it "
                        "has ended."
                    )
                raise UnusableInput(
                    f"case {name!r} of {path} is missing, damaged or was changed by a "
                    "preparation that did not finish; run the same prepare again."
                )
            cards.append(dataclasses.replace(card, split=entry["split"]))
        try:
            store = cls(folder, contents, cards)
            if len(cards) < LARGE or state is None or is_locked(folder / LOCK):
                return store
            table = made_table(store, state, contents)
            return store if table is None else cls(folder, contents, table)
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise UnusableInput(
                f"{folder / 'store.json'} is damaged ({error}); run prepare again."
            ) from None

    def __len__(self) -> int:
        return len(self.cards)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store.open, (self.path,))

    def card(self, case_id: str) -> Card:
        """Card of a case."""
        table = self.table
        found = self._by_id.get(case_id) if table is None else table.of(case_id)
        if found is None:
            raise UnusableInput(f"no case {case_id!r} in {self.path}.")
        return found

    def image(self, case_id: str) -> StoredArray:
        """Stored image (C, D, H, W) int16; value = stored * scale + offset."""
        card = self.card(case_id)
        return self._array(card, IMAGE)

    def label(self, case_id: str) -> StoredArray | None:
        """Label map (D, H, W) int16 on the image's grid, or None."""
        card = self.card(case_id)
        return self._array(card, LABEL) if card.has_label else None

    def depth(self, card: Card) -> StoredArray | None:
        """Depth (D, H, W) int16 of each labelled voxel within its label.

        ``DEPTH_STEPS`` per voxel; None where it was never made, or of an older
        preparation.
        """
        return depth_in(case_folder(self.path, card.id), card)

    def label_points(self, case_id: str) -> dict[int, NDArray[Any]]:
        """Foreground index: label -> (n, 3) voxels drawn evenly from all it has."""
        with self._lock:
            if case_id in self._points:
                self._points.move_to_end(case_id)
                return self._points[case_id]
        points = self._read_points(self.card(case_id))
        with self._lock:
            self._points[case_id] = points
            while len(self._points) > _INDICES:
                self._points.popitem(last=False)
        return points

    @property
    def table(self) -> CardTable | None:
        """Of a large store, whose cards are read when they are asked for."""
        return self.cards if isinstance(self.cards, CardTable) else None

    def split(self, name: str) -> Sequence[Card]:
        """Cards of ``train``, ``val`` or ``test``."""
        if self.table is not None:
            return self.table.where("split", name)
        return tuple(card for card in self.cards if card.split == name)

    def _array(self, card: Card, name: str) -> StoredArray:
        path = case_folder(self.path, card.id) / name
        checksums = card.checksums.get(name, "")
        return StoredArray(path, card.array_shape(name), card.files[name], checksums)

    def _read_points(self, card: Card) -> dict[int, NDArray[Any]]:
        if not card.has_label:
            return {}
        return read_points_file(case_folder(self.path, card.id), card)


def _state_of(folder: Path) -> dict[str, Any] | None:
    try:
        return state_of(folder)
    except OSError:
        return None


def made_table(
    store: Store, state: dict[str, Any], contents: dict[str, Any]
) -> CardTable | None:
    """The table of a store whose cards were read; None where it cannot be written."""
    rest = {name: told for name, told in contents.items() if name != "cases"}
    facts = {"hash": store.hash, "contents": rest}
    entries = (Entry.of(card, signed(card.to_dict())) for card in store.cards)
    try:
        write_index(store.path, state, facts, entries)
    except (OSError, sqlite3.Error):
        return None  # a folder that is only read; the cards do without
    return CardTable.open(store.path)


def read_points_file(folder: Path, card: Card) -> dict[int, NDArray[Any]]:
    """Foreground index of a case: label -> (n, 3) voxels.

    Raises:
        JobError: It is missing, damaged, or not one of this card's case.
    """
    path = folder / POINTS
    try:
        if path.stat().st_size != card.files[POINTS]:
            raise Damage(path, "it has another size than its card says")
        written = path.read_bytes()
        wanted = card.checksums.get(POINTS, "")
        if wanted and wanted != crc_text(written):
            raise Damage(path, "it does not match its checksum")
        rows = np.load(io.BytesIO(written), allow_pickle=False)
    except FileNotFoundError:
        raise JobError(f"{path} is missing; run prepare again.") from None
    except (OSError, ValueError, EOFError) as error:
        raise Damage(path, f"it cannot be read ({error})") from error
    is_table = rows.ndim == 2 and rows.shape[1:] == (4,) and rows.dtype.kind == "i"
    if not is_table or (rows[:, 1:] < 0).any() or (rows[:, 1:] >= card.shape).any():
        raise Damage(path, "it is no list of voxels of this case")
    # Rows are sorted by label: (label, z, y, x).
    values, first = np.unique(rows[:, 0], return_index=True)
    if tuple(values) != tuple(card.label_values):
        raise Damage(path, "it lists other labels than its card")
    parts = np.split(rows[:, 1:], first[1:])
    return {int(v): part for v, part in zip(values, parts, strict=True)}


def case_folder(store: Path, case_id: str) -> Path:
    """Folder of a case."""
    return store / "cases" / case_id


_SHAPE: Shape = {
    "cases": dict[str, dict], "preprocessing": dict, "label_names?": dict[str, str],
    "fingerprint?": dict,
}  # fmt: skip


def read_contents(folder: Path) -> dict[str, Any] | None:
    """``store.json``, or None where there is none.

    Raises:
        UnusableInput: It is not the JSON of a store.
    """
    path = folder / "store.json"
    try:
        contents = read_object(path, _SHAPE)
        for name, entry in contents["cases"].items():
            if not is_plain_name(name) or entry.get("split") not in SPLITS:
                raise ValueError(f"case {name!r} cannot be")
            check_shape(entry, {"key": str, "split": str | None}, f"cases.{name}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnusableInput as error:
        sentence = str(error).rstrip(".")
        raise UnusableInput(f"{sentence}; run prepare again.") from None
    except ValueError as error:
        raise UnusableInput(
            f"{path} is damaged ({error}); run prepare again."
        ) from None
    return contents


def read_card(folder: Path) -> Card | None:
    """Card of a case folder; None when missing or unreadable (it will be rebuilt)."""
    try:
        plain = object_or_none(folder / "card.json")
        if plain is None or not is_as_written(plain):
            return None
        card = Card.from_dict(plain)
        check_card(card)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return card


def depth_in(folder: Path, card: Card) -> StoredArray | None:
    """As ``Store.depth``, of a case's folder."""
    shape = {"key": str, "steps": int, "bytes": int, "checksums?": str}
    facts = object_or_none(folder / DEPTH_CARD, shape)
    if facts is None or (facts["key"], facts["steps"]) != (card.key, DEPTH_STEPS):
        return None
    sums = facts.get("checksums", "")
    return StoredArray(folder / DEPTH, card.shape, facts["bytes"], sums)
