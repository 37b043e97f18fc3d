"""One case of a store: built in a folder of its own, then moved into place."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.array_file import (
    StoredArray,
    checksums_of,
    damage_of,
    write_array,
)
from homolog.data.array_frame import Damage
from homolog.data.atomic import flush, write_json
from homolog.data.card import (
    IMAGE,
    LABEL,
    POINTS,
    Card,
    boxes_on_grid,
    prepared_fields,
    signed,
)
from homolog.data.label_values import mapped_labels
from homolog.data.preprocess import (
    Preprocessing,
    labels_on_grid,
    prepare_volume,
)
from homolog.data.store import case_folder, read_card, read_points_file
from homolog.data.values import ValueStats
from homolog.data.volume import Volume
from homolog.errors import JobError
from homolog.private_files import make_folder

if TYPE_CHECKING:
    from homolog.data.case_source import CaseSource

# Voxels kept in the foreground index, per label.
_POINTS = 2000


def current_card(store: Path, case_id: str, key: str) -> Card | None:
    """Card of a case that is already there, complete and up to date; else None."""
    folder = case_folder(store, case_id)
    card = read_card(folder)
    if card is None or card.key != key or not card.files:
        return None
    return card


def damages(folder: Path, card: Card) -> dict[str, str]:
    """What is wrong with the files of a case, read whole: name -> words.

    Without checksums only what cannot be unpacked, and labels that are not as many as
    the card says, are found.
    """
    found: dict[str, str] = {}
    for name, size in card.files.items():
        if name == POINTS:
            continue
        wrong = damage_of(
            folder / name, card.array_shape(name), size, card.checksums.get(name, "")
        )
        if wrong:
            found[name] = wrong
    if card.has_label:
        try:
            read_points_file(folder, card)
        except Damage as damage:
            found[POINTS] = damage.where
        except JobError:
            found[POINTS] = "it is missing"
        if not card.checksums and LABEL not in found:
            label = StoredArray(folder / LABEL, card.shape, card.files[LABEL])
            if foreground_counts(np.asarray(label)) != card.label_counts:
                found[LABEL] = "it holds other numbers of labels than its card says"
    return found


def checksums(folder: Path, card: Card) -> dict[str, str]:
    """Of each file of a case, as it is now."""
    sums = {
        name: checksums_of(folder / name, card.array_shape(name))
        for name in card.files
        if name != POINTS
    }
    if POINTS in card.files:
        sums[POINTS] = f"{zlib.crc32((folder / POINTS).read_bytes()):08x}"
    return sums


def write_card(card: Card, folder: Path) -> None:
    """Write the card of a case into its folder."""
    write_json(signed(card.to_dict()), folder / "card.json")


def build_case(
    source: CaseSource, store: Path, preprocessing: Preprocessing, key: str, seed: int
) -> Card:
    """Read, prepare and write one case; it appears in the store complete or not at all.

    Args:
        source: Where the scan and its label map lie.
        store: Folder of the store.
        preprocessing: With the modality of this very case.
        key: From ``case_key``.
        seed: Of the foreground index.

    Raises:
        UnusableInput: The scan or its label map cannot be used.
        JobError: The disk is full, or what was written does not read back.
    """
    folder = case_folder(store, source.id)
    fresh = folder.with_name(f".new-{source.id}")
    shutil.rmtree(fresh, ignore_errors=True)
    make_folder(fresh)
    try:
        card = _fill(source, fresh, preprocessing, key, seed)
        _replace_folder(fresh, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise JobError(
                f"the disk of {store} is full; {source.id!r} was not stored. Free some "
                "space and run the same prepare again: it goes on where it stopped."
            ) from error
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return card


def _fill(
    source: CaseSource, folder: Path, preprocessing: Preprocessing, key: str, seed: int
) -> Card:
    from homolog.data.scan_io import read_labels, read_scan

    volume = read_scan(source.image)
    prepared = prepare_volume(volume, preprocessing)
    own, source_hash = volume.affine, content_hash(volume)
    del volume  # scan, prepared scan and labels are never in memory together
    write_array(prepared.data, folder / IMAGE)
    none = np.empty((prepared.data.shape[0], 0, 0, 0), np.int16)
    prepared = dataclasses.replace(prepared, data=none)
    names = [IMAGE]
    counts: dict[int, int] = {}
    if source.label is not None:
        own_labels = mapped_labels(read_labels(source.label), source.label_map)
        array = labels_on_grid(own_labels, prepared)
        del own_labels
        write_array(array, folder / LABEL)
        points, counts = foreground_index(array, seed)
        with (folder / POINTS).open("wb") as file:
            np.save(file, points)
            flush(file)
        names += [LABEL, POINTS]
    card = Card(
        id=source.id,
        subject=source.subject,
        split=source.split,
        target=source.target,
        types=source.types,
        boxes=boxes_on_grid(source.boxes, own, prepared.affine),
        label_values=tuple(sorted(counts)),
        label_counts=counts,
        label_map=dict(source.label_map),
        has_label=source.label is not None,
        source=str(source.image.absolute()),
        label_source=str(source.label.absolute()) if source.label else None,
        source_hash=source_hash,
        key=key,
        files={name: (folder / name).stat().st_size for name in names},
        **prepared_fields(prepared, own),
    )
    card = dataclasses.replace(card, checksums=checksums(folder, card))
    write_card(card, folder)
    return card


def content_hash(volume: Volume) -> str:
    """As ``scan_hash`` of its file, without reading that again."""
    stats = ValueStats()
    for channel in volume.data:
        for plane in channel:
            stats.update(plane)
    return stats.content_hash(volume.affine, volume.shape)


def refresh_card(card: Card, source: CaseSource, store: Path) -> Card:
    """The card with what the source says today; written anew only if it changed."""
    today = dataclasses.replace(
        card,
        subject=source.subject,
        split=source.split,
        target=source.target,
        types=source.types,
        boxes=boxes_on_grid(source.boxes, card.original["affine"], card.affine),
        source=str(source.image.absolute()),
        label_source=str(source.label.absolute()) if source.label else None,
    )
    if today.to_dict() != card.to_dict():
        write_card(today, case_folder(store, card.id))
    return today


def foreground_index(
    labels: NDArray[np.int16], seed: int
) -> tuple[NDArray[Any], dict[int, int]]:
    """Up to 2000 voxels of every label, drawn evenly, and how many each has.

    Args:
        labels: (D, H, W); 0 and below are no label.
        seed: Of the draw.

    Returns:
        (N, 4) int16 (int32 for a very long axis) rows (label, z, y, x) sorted by
        label, and label -> voxel count.
    """
    counts = foreground_counts(labels)
    wanted = {value: _ranks(value, count, seed) for value, count in counts.items()}
    seen = dict.fromkeys(counts, 0)
    rows = []
    for z, plane in enumerate(labels):
        flat = plane.reshape(-1)
        where = np.flatnonzero(flat > 0)
        where = where[np.argsort(flat[where], kind="stable")]
        values, first = np.unique(flat[where], return_index=True)
        for value, members in zip(values, np.split(where, first[1:]), strict=False):
            ranks = wanted[int(value)] - seen[int(value)]
            seen[int(value)] += len(members)
            chosen = members[ranks[(ranks >= 0) & (ranks < len(members))]]
            y, x = np.divmod(chosen, labels.shape[2])
            rows.append(np.stack([np.full_like(y, value), np.full_like(y, z), y, x], 1))
    table = np.concatenate(rows) if rows else np.zeros((0, 4), np.int64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    is_long = max(labels.shape) > np.iinfo(np.int16).max
    return table.astype(np.int32 if is_long else np.int16), counts


def foreground_counts(labels: NDArray[np.int16]) -> dict[int, int]:
    """Voxels of every label of a (D, H, W) map; 0 and below are no label."""
    total = np.zeros(np.iinfo(np.int16).max + 1, np.int64)
    for plane in labels:
        found = np.bincount(plane[plane > 0])
        total[: len(found)] += found
    return {int(v): int(total[v]) for v in np.flatnonzero(total)}


def _ranks(value: int, count: int, seed: int) -> NDArray[np.int64]:
    """Which of a label's voxels are kept, counted in reading order."""
    if count <= _POINTS:
        return np.arange(count)
    key = np.array([seed, value], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    return np.sort(rng.choice(count, _POINTS, replace=False))


def _replace_folder(fresh: Path, folder: Path) -> None:
    """Put a complete folder in place of an old one.

    Between the two renames the case is missing, never half there; a reader says so.
    """
    old = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
