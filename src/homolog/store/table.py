"""The cards of a large store as one table: it opens at once, a card is read when asked.

``STORE/index.sqlite`` is made of the cards and can be deleted at any time: the cards
and ``store.json`` are the truth. It counts only for the very ``store.json`` and the
very folder of cases it was made of; else all cards are read, and it is made anew where
the folder can be written. What is asked of all cases at once (split, modality, ...)
lies in columns beside the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.store.card import Card, check_card, is_as_written, is_plain_name
from homolog.store.splits import SPLITS
from homolog.writing import replacing

INDEX = "index.sqlite"
VERSION = 1
# Stores of fewer cases have none: their cards are read in a second or two.
LARGE = 5000
# Column -> type of its numbers; split and modality by their place among the names.
COLUMNS: Mapping[str, str] = {
    "split": "u1", "modality": "<u2", "channels": "<u4", "labelled": "u1",
    "slices": "<u4",
}  # fmt: skip
_CHUNK = 1 << 20  # rows of a column in one blob
_MOST_TEXT = 1 << 24  # of a card
_CARDS_KEPT = 4096


class Entry(NamedTuple):
    """A row, and its numbers of the columns.

    Attributes:
        id: Of the case.
        key: Of the case, see ``Card``.
        split: One of SPLITS, or None.
        modality: Of the card, as the next three.
        channels: How many.
        labelled: Whether it has a label map.
        slices: Of the prepared scan, along z.
        text: The card as JSON.
    """

    id: str
    key: str
    split: str | None
    modality: str
    channels: int
    labelled: bool
    slices: int
    text: bytes

    @classmethod
    def of(cls, card: Card, plain: Mapping[str, Any]) -> Entry:
        """Of a card with the split the store gives it, and its file's contents."""
        text = json.dumps(plain, separators=(",", ":")).encode()
        return cls(
            card.id, card.key, card.split, card.modality, card.channels,
            card.has_label, card.shape[0], text,
        )  # fmt: skip


def state_of(store: Path) -> dict[str, Any]:
    """What a table must have been made of to count: ``store.json``, ``cases/``.

    Raises:
        OSError: One of them is not there.
    """
    digest = hashlib.sha256()
    with open(store / "store.json", "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    # a case that is prepared again is moved into the folder
    changed = (store / "cases").stat().st_mtime_ns
    return {"store": digest.hexdigest(), "cases": changed}


def write_index(
    store: Path,
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
    entries: Iterable[Entry],
) -> None:
    """Make the table, all of it or nothing.

    Args:
        store: Its folder.
        state: Of ``state_of``, before the cards were read.
        facts: What else a store is opened with, JSON types.
        entries: Of all cases, in the order of their ids.

    Raises:
        OSError: The folder cannot be written.
        sqlite3.Error: The same, or a full disk.
    """
    with replacing(store / INDEX) as half:
        base = sqlite3.connect(half)
        try:
            _fill(base, state, facts, entries)
        finally:
            base.close()


_SCHEMA = (
    "PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF",
    "CREATE TABLE cases (place INTEGER PRIMARY KEY, id TEXT NOT NULL, "
    "key TEXT NOT NULL, sum INTEGER NOT NULL, card BLOB NOT NULL)",
    "CREATE TABLE columns (name TEXT, chunk INTEGER, sum INTEGER, data BLOB)",
    "CREATE TABLE facts (text TEXT NOT NULL, sum INTEGER, sample BLOB)",
)  # fmt: skip


def _fill(
    base: sqlite3.Connection,
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
    entries: Iterable[Entry],
) -> None:
    for line in _SCHEMA:
        base.execute(line)
    columns = _Columns(base)
    sample = b""

    def rows() -> Iterator[tuple[int, str, str, int, bytes]]:
        nonlocal sample
        for place, one in enumerate(entries):
            sample = sample or one.text  # the cards of a store are much alike
            packed = _packed(one.text, sample)
            columns.add(one)
            yield place, one.id, one.key, zlib.crc32(packed), packed

    base.executemany("INSERT INTO cases VALUES (?, ?, ?, ?, ?)", rows())
    columns.keep()
    base.execute("CREATE UNIQUE INDEX by_id ON cases (id)")
    told = {
        "version": VERSION, "count": columns.count,
        "modalities": list(columns.modalities), "state": dict(state),
        "facts": dict(facts),
    }  # fmt: skip
    text = json.dumps(told)
    row = text, zlib.crc32(text.encode() + sample), sample
    base.execute("INSERT INTO facts VALUES (?, ?, ?)", row)
    base.commit()


class _Columns:
    """Numbers of all rows, written by the blob.

    Attributes:
        count: Rows so far.
        modalities: Name -> number, as they came.
    """

    def __init__(self, base: sqlite3.Connection) -> None:
        self.count, self._chunk = 0, 0
        self.modalities: dict[str, int] = {}
        self._base = base
        self._values: dict[str, list[int]] = {name: [] for name in COLUMNS}

    def add(self, one: Entry) -> None:
        """A row more."""
        values = self._values
        values["split"].append(_NUMBER[one.split])
        number = self.modalities.setdefault(one.modality, len(self.modalities))
        values["modality"].append(number)
        values["channels"].append(one.channels)
        values["labelled"].append(one.labelled)
        values["slices"].append(one.slices)
        self.count += 1
        if self.count % _CHUNK == 0:
            self.keep()

    def keep(self) -> None:
        """Write what is not written yet."""
        for name, values in self._values.items():
            data = np.array(values, COLUMNS[name]).tobytes()
            row = name, self._chunk, zlib.crc32(data), data
            self._base.execute("INSERT INTO columns VALUES (?, ?, ?, ?)", row)
            values.clear()
        self._chunk += 1


_SPLITS = (*SPLITS, None) if None not in SPLITS else tuple(SPLITS)
_NUMBER = {name: number for number, name in enumerate(_SPLITS)}


def _packed(text: bytes, sample: bytes) -> bytes:
    made = zlib.compressobj(1, zdict=sample)
    return made.compress(text) + made.flush()


def _unpacked(packed: bytes, sample: bytes) -> bytes:
    opened = zlib.decompressobj(zdict=sample)
    text = opened.decompress(packed, _MOST_TEXT)
    if opened.unconsumed_tail or not opened.eof:
        raise ValueError("a card is longer than any is")
    return text


class CardTable(Sequence[Card]):
    """Cards by their place in the order of their ids; each is read when asked for.

    Args:
        path: Of the table.
        base: It, open; the cards are its own even where another takes its place.

    Attributes:
        facts: As given to ``write_index``.
    """

    def __init__(self, path: Path, base: sqlite3.Connection) -> None:
        told, sample = _facts(base)
        self.path, self.state = path, told["state"]
        self.facts: dict[str, Any] = told["facts"]
        self._count = int(told["count"])
        self._modalities: list[str] = list(told["modalities"])
        self._sample = sample
        self._base, self._lock, self._process = base, threading.Lock(), os.getpid()
        self._columns: dict[str, NDArray[Any]] = {}
        self._known = lru_cache(maxsize=_CARDS_KEPT)(self._read)

    @classmethod
    def open(cls, store: Path) -> CardTable | None:
        """The table of a store; None where there is none that counts."""
        path = store / INDEX
        if not path.is_file():
            return None
        with contextlib.suppress(OSError, sqlite3.Error, ValueError, KeyError,
                                 TypeError):  # fmt: skip
            table = cls(path, _connected(path))
            if table.state == state_of(store):
                return table
        return None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Card: ...
    @overload
    def __getitem__(self, place: slice) -> CardRows: ...
    def __getitem__(self, place: int | slice) -> Card | CardRows:
        if isinstance(place, slice):
            return CardRows(self, np.arange(self._count)[place])
        at = int(place) + (self._count if place < 0 else 0)
        if not 0 <= at < self._count:
            raise IndexError(f"case {place} of {self._count}")
        return self._known(at)

    def __iter__(self) -> Iterator[Card]:
        asked = "SELECT place, id, key, sum, card FROM cases ORDER BY place"
        with self._lock:
            cursor = self._connection().execute(asked)
        while True:
            with self._lock:
                rows = cursor.fetchmany(256)
            if not rows:
                return
            for place, *row in rows:
                yield self._made(place, row)

    def place_of(self, case_id: str) -> int | None:
        """Where a case stands; None where there is no such case."""
        found = self._asked("SELECT place FROM cases WHERE id = ?", case_id)
        return None if found is None else int(found[0])

    def of(self, case_id: str) -> Card | None:
        """The card of a case; None where there is no such case."""
        place = self.place_of(case_id)
        return None if place is None else self._known(place)

    def where(self, column: str, value: str | None) -> CardRows:
        """Those of a split, or of a modality."""
        names = _SPLITS if column == "split" else self._modalities
        number = names.index(value) if value in names else -1  # type: ignore[arg-type]
        return CardRows(self, np.flatnonzero(self.column(column) == number))

    def names(self, column: str) -> Sequence[str | None]:
        """What the numbers of a column of names mean."""
        return _SPLITS if column == "split" else self._modalities

    def column(self, name: str) -> NDArray[Any]:
        """(N,) numbers of all cases, see ``COLUMNS``.

        Raises:
            UnusableInput: The table is damaged.
        """
        if name not in self._columns:
            asked = "SELECT data, sum FROM columns WHERE name = ? ORDER BY chunk"
            with self._telling():
                with self._lock:
                    rows = self._connection().execute(asked, (name,)).fetchall()
                if any(zlib.crc32(data) != told for data, told in rows):
                    raise ValueError("a column does not match its checksum")
                parts = [np.frombuffer(data, COLUMNS[name]) for data, _ in rows]
                whole = np.concatenate(parts)
                if len(whole) != self._count:
                    raise ValueError("a column has another length")
            self._columns[name] = whole
        return self._columns[name]

    def _read(self, place: int) -> Card:
        asked = "SELECT id, key, sum, card FROM cases WHERE place = ?"
        return self._made(place, self._asked(asked, place))

    def _made(self, place: int, row: Sequence[Any] | None) -> Card:
        with self._telling():
            if row is None:
                raise ValueError(f"row {place} is missing")
            name, key, checksum, packed = row
            if zlib.crc32(packed) != checksum:
                raise ValueError(f"case {name!r} does not match its checksum")
            plain = json.loads(_unpacked(packed, self._sample))
            if not is_as_written(plain):
                raise ValueError(f"the card of case {name!r} is not as written")
            card = Card.from_dict(plain)
            check_card(card)
            if (card.id, card.key) != (name, key) or not is_plain_name(name):
                raise ValueError(f"case {name!r} has another one's card")
            split = _SPLITS[self.column("split")[place]]
            return dataclasses.replace(card, split=split)

    def _asked(self, asked: str, value: Any) -> Sequence[Any] | None:
        with self._telling(), self._lock:
            found: Sequence[Any] | None
            found = self._connection().execute(asked, (value,)).fetchone()
        return found

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Damage is told with what to do."""
        try:
            yield
        except (sqlite3.Error, zlib.error, ValueError, KeyError, TypeError,
                AttributeError, IndexError, RecursionError) as error:  # fmt: skip
            raise UnusableInput(
                f"{self.path} is damaged ({error}); delete it: it is made anew of the "
                "cards when the store is opened."
            ) from error

    def _connection(self) -> sqlite3.Connection:
        """One of this process: one that was begun by another is not to be shared."""
        if self._process != os.getpid():
            base = _connected(self.path)
            if _facts(base)[0]["state"] != self.state:
                raise ValueError("the store was prepared again meanwhile")
            self._base, self._process = base, os.getpid()
        return self._base


def _facts(base: sqlite3.Connection) -> tuple[dict[str, Any], bytes]:
    """What a table tells of itself, and what its cards were packed with.

    Raises:
        ValueError: Not as it was written, or by another version.
    """
    row = base.execute("SELECT text, sum, sample FROM facts").fetchone()
    text, checksum, sample = row
    told: dict[str, Any] = json.loads(text)
    if zlib.crc32(text.encode() + sample) != checksum or told["version"] != VERSION:
        raise ValueError("its facts are not as written")
    return told, sample


class CardRows(Sequence[Card]):
    """Some cards of a table.

    Args:
        table: All of them.
        places: (n,) theirs.
    """

    def __init__(self, table: CardTable, places: NDArray[np.int64]) -> None:
        self.table, self.places = table, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> Card: ...
    @overload
    def __getitem__(self, place: slice) -> CardRows: ...
    def __getitem__(self, place: int | slice) -> Card | CardRows:
        if isinstance(place, slice):
            return CardRows(self.table, self.places[place])
        return self.table[int(self.places[place])]


def _connected(path: Path) -> sqlite3.Connection:
    """Reading alone: a file that is replaced meanwhile stays the one it was."""
    base = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True,
        check_same_thread=False,
    )  # fmt: skip
    # it may come from someone else
    base.execute("PRAGMA trusted_schema=OFF")
    base.execute("PRAGMA cell_size_check=ON")
    return base
