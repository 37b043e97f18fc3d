"""One case of a store: its key, how it is written, and when it is kept as it is.

Its key is one hash of all it depends on; with another key it is prepared again. It is
built in a folder of its own, then moved into place. A case stays as it is, so the
store's recipe and its label values hold for the new ones.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.config import config_hash, from_dict
from homolog.errors import JobError, UnusableInput
from homolog.geometry.affine import Triple
from homolog.index.datasets import CaseSource, Rejected
from homolog.label_names import has_name, parse_names
from homolog.scans.channels import read_channels
from homolog.scans.inspect import labels_by_place
from homolog.scans.paths import is_series_path, is_zarr
from homolog.scans.problems import Unsound
from homolog.scans.text_formats import data_files
from homolog.scans.volume import Channel, ValueStats, Volume, mapped_labels
from homolog.store.arrays import (
    Damage,
    StoredArray,
    checksums_of,
    damage_of,
    write_array,
)
from homolog.store.card import (
    IMAGE,
    LABEL,
    POINTS,
    Card,
    boxes_on_grid,
    prepared_fields,
    signed,
)
from homolog.store.label_joining import JoinedCases, join_cases
from homolog.store.preprocess import Preprocessing, labels_on_grid, prepare_volume
from homolog.store.store import case_folder, read_card, read_contents, read_points_file
from homolog.words import counted
from homolog.writing import crc_text, file_digest, write_json, write_npy, writing_folder

# The version of what preparing makes of a scan, part of every case's key. To be changed
# by hand with any change of the voxels, labels or card that preparing writes: stores
# are then rebuilt when prepared again. (It began as a hash of the code's text.)
PREPARATION = "563454f35a8e75f9283979575bfa0e90df0d1ef70ab35dd10fbd9e34b9a2d162"

# Headers whose voxels lie in a file beside them.
_PAIRED = {".hdr", ".img"}
# Headers that name the files of their voxels.
_NAMING = {".mhd", ".nhdr", ".mha", ".nrrd"}


def case_key(source: CaseSource, preprocessing: Preprocessing) -> str:
    """Hash of what a prepared case depends on: file contents, code and recipe.

    Args:
        source: The case.
        preprocessing: With the modality of this very case.
    """
    images = list(dict.fromkeys(one.path for one in source.channels))
    files = [*(images or [source.image]), *([source.label] if source.label else [])]
    digests = [scan_digest(path) for path in files]
    parts: list[Any] = [digests, PREPARATION, preprocessing.settings()]
    if source.label_map:
        parts.append({str(v): n for v, n in source.label_map.items()})
    if source.channels:
        told = [(c.name, c.modality, c.frame) for c in source.channels]
        parts.append({"channels": told, "files": [p.name for p in images]})
    return config_hash(*parts)


def scan_digest(path: Path) -> str:
    """SHA-256 of the bytes of a scan, in all files it consists of."""
    digest = hashlib.sha256(path.name.encode() if is_series_path(path) else b"")
    for part in _parts(path):
        digest.update(bytes.fromhex(file_digest(part)))
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    """A folder's files, a header with its data file, or the file itself."""
    if is_series_path(path):
        path = path.parent
    if path.is_dir():
        files = path.rglob("*") if is_zarr(path) else path.iterdir()
        return sorted(p for p in files if p.is_file())
    if path.suffix.lower() in _NAMING:
        return list(dict.fromkeys([path, *data_files(path)]))
    if path.suffix.lower() in _PAIRED:
        family = path.parent.glob(f"{escape(path.stem)}.*")
        return sorted({path, *(p for p in family if p.is_file())})
    return [path]


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
    the card states, are found.
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
        sums[POINTS] = crc_text((folder / POINTS).read_bytes())
    return sums


def write_card(card: Card, folder: Path) -> None:
    """Write the card of a case into its folder."""
    write_json(folder / "card.json", signed(card.to_dict()), end="")


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
    try:
        with writing_folder(folder) as fresh:
            return _fill(source, fresh, preprocessing, key, seed)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise JobError(
                f"the disk of {store} is full; {source.id!r} was not stored. Free some "
                "space and run the same prepare again: it goes on where it stopped."
            ) from error
        raise


def _fill(
    source: CaseSource, folder: Path, preprocessing: Preprocessing, key: str, seed: int
) -> Card:
    from homolog.scans.files import read_labels

    volume = read_case(source.image, source.channels)
    prepared = prepare_volume(volume, preprocessing)
    own, source_hash = volume.affine, content_hash(volume)
    nothing = np.broadcast_to(np.int8(0), (1, *volume.shape))
    grid = dataclasses.replace(volume, data=nothing)
    del volume  # scan, prepared scan and labels are never in memory together
    write_array(prepared.data, folder / IMAGE)
    none = np.empty((prepared.data.shape[0], 0, 0, 0), np.int16)
    prepared = dataclasses.replace(prepared, data=none)
    names = [IMAGE]
    counts: dict[int, int] = {}
    if source.label is not None:
        own_labels = labels_by_place(read_labels(source.label), grid)
        own_labels = mapped_labels(own_labels, source.label_map)
        array = labels_on_grid(own_labels, prepared)
        del own_labels
        write_array(array, folder / LABEL)
        points, counts = foreground_index(array, seed)
        write_npy(folder / POINTS, points)
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
        channel_files=tuple(one.to_dict() for one in source.channels),
        **prepared_fields(prepared, own),
    )
    sized = bool(grid.meta.get("sized", True))
    if sized != card.is_sized:
        card = dataclasses.replace(card, sized=sized)
    card = dataclasses.replace(card, checksums=checksums(folder, card))
    write_card(card, folder)
    return card


def read_case(image: Path, channels: Sequence[Channel]) -> Volume:
    """The scan of a case: its file, or its channels as one volume."""
    from homolog.scans.files import read_scan

    return read_channels(channels) if channels else read_scan(image)


def content_hash(volume: Volume) -> str:
    """As ``scan_hash`` of its file, without reading that again."""
    stats = ValueStats()
    for channel in volume.data:
        for plane in channel:
            stats.update(plane)
    return stats.content_hash(volume.affine, volume.shape)


def case_hash(image: Path, channels: Sequence[Channel]) -> str:
    """``content_hash`` of the files of a case."""
    from homolog.scans.files import scan_hash

    return content_hash(read_channels(channels)) if channels else scan_hash(image)


def refresh_card(card: Card, source: CaseSource, store: Path) -> Card:
    """The card with what the source states today; written anew only if it changed."""
    today = dataclasses.replace(
        card,
        subject=source.subject,
        split=source.split,
        target=source.target,
        types=source.types,
        boxes=boxes_on_grid(source.boxes, card.original["affine"], card.affine),
        source=str(source.image.absolute()),
        label_source=str(source.label.absolute()) if source.label else None,
        channel_files=tuple(one.to_dict() for one in source.channels),
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


# A scan that was sound once and cannot be read now; what the store holds of it is.
_BROKEN = frozenset(
    ("missing", "empty", "unreadable", "truncated", "corrupt", "missing_slice")
)
_AGREE = 0.05  # of voxel sizes that count as one
_WORDS = {
    "window_hu": "window (HU)", "percentiles": "percentiles",
    "scaling": "scaling of values", "dataset_hu": "mean and spread (HU)",
}  # fmt: skip
# What stands for the kept cases where labels are joined; no case has such a name.
_STORE = "the store"


@dataclass(frozen=True)
class Before:
    """A store before it is prepared again.

    Attributes:
        cards: Its cases, by id; those of an unfinished preparation are not among them.
        contents: Of ``store.json``; empty where there was none, or a damaged one.
        damage: Why ``store.json`` could not be read; empty where it could.
    """

    cards: Mapping[str, Card] = field(default_factory=dict)
    contents: Mapping[str, Any] = field(default_factory=dict)
    damage: str = ""

    @property
    def recipe(self) -> Preprocessing:
        """What its cases were prepared with."""
        return from_dict(
            Preprocessing, self.contents["preprocessing"], where="store.json"
        )

    @property
    def names(self) -> dict[int, str]:
        """Label value -> name."""
        return parse_names(self.contents.get("label_names"))


def before(out: Path) -> Before:
    """What a store holds; nothing where there is none yet."""
    try:
        contents = read_contents(out) or {}
    except UnusableInput as error:
        return Before(damage=str(error))
    cards = {}
    for case_id, entry in contents.get("cases", {}).items():
        card = read_card(case_folder(out, case_id))
        if card is not None and card.key == entry["key"]:
            cards[case_id] = card
    return Before(cards, contents)


def kept_cards(
    old: Before, cases: Sequence[CaseSource], refused: Sequence[Rejected]
) -> list[Card]:
    """Cases that the sources lack.

    One whose scan is among the sources under another name, or is refused by now for
    what it is, does not count; one whose file is merely damaged since does.
    """
    ids = {case.id for case in cases}
    paths = {str(case.image.absolute()) for case in cases}
    paths |= {str(one.path.absolute()) for case in cases for one in case.channels}
    out = {str(Path(one.path).absolute()) for one in refused if one.code not in _BROKEN}
    return [
        card
        for card in old.cards.values()
        if card.id not in ids
        and card.source not in paths | out
        and card.label_source not in out
    ]


def check_same_scans(old: Before, cases: Sequence[CaseSource], out: Path) -> None:
    """Refuse sources that call another scan as the store calls one of its own.

    Raises:
        UnusableInput: Names the first of them.
    """
    by_name = {case_id.lower(): card for case_id, card in old.cards.items()}
    clashes = []
    for case in cases:
        card = by_name.get(case.id.lower())
        if card is None or card.source == str(case.image.absolute()):
            continue
        try:
            same = card.source_hash == case_hash(case.image, case.channels)
        except Exception:  # noqa: BLE001
            continue  # its own turn comes, and then its reason is reported
        if not same or case.id != card.id:
            clashes.append((case, card))
    if clashes:
        case, card = clashes[0]
        many = f" (and {len(clashes) - 1} more)" if len(clashes) > 1 else ""
        raise UnusableInput(
            f"the store {out} has a case {card.id!r} of {card.source}, and "
            f"{case.image} is another scan of that name{many}; choose another --out, "
            "name all sources in one prepare, or say --replace."
        )


def recipe_for(
    kept: Sequence[Card],
    old: Before,
    asked: Preprocessing | None,
    spacing: Triple | str | None,
    grids: Sequence[Triple],
) -> tuple[Preprocessing, Triple | str]:
    """The recipe of a store that keeps cases: theirs; the request must agree.

    Args:
        kept: At least one.
        old: The store.
        asked: The request; settings left as they are by default follow.
        spacing: The requested one.
        grids: Voxel sizes (mm) of the new scans that are volumes.

    Returns:
        Recipe without its voxel size, and what to choose that by.

    Raises:
        UnusableInput: The request differs from what the kept cases have.
    """
    recipe, plain = old.recipe, Preprocessing()
    wanted = asked or plain
    changes = {}
    for name, word in _WORDS.items():
        new, own = getattr(wanted, name), getattr(recipe, name)
        if new not in (getattr(plain, name), own):
            changes[word] = (new, own)
    if spacing is None:
        spacing = wanted.spacing_mm or ("native" if asked else "auto")
    own_mm: Triple | str = recipe.spacing_mm or common_mm(kept) or "native"
    agrees = spacing in ("auto", own_mm)
    agrees |= isinstance(spacing, tuple) and _close(spacing, own_mm)
    agrees |= spacing == "native" and recipe.spacing_mm is None
    if not agrees:
        changes["voxel size"] = (spacing, own_mm)
    if changes:
        word, (new, own) = next(iter(changes.items()))
        raise UnusableInput(
            f"{counted(len(kept), 'case')} of the store are not in these sources and "
            f"have the {word} {_text(own)}, not {_text(new)}; leave that as it was, "
            "name all sources in one prepare, or let those cases go with --replace."
        )
    if recipe.spacing_mm is None and (
        spacing == "native" or all(_close(g, own_mm) for g in grids)
    ):
        own_mm = "native"
    modality = asked.modality if asked else None
    return dataclasses.replace(recipe, modality=modality, spacing_mm=None), own_mm


def common_mm(cards: Sequence[Card]) -> Triple | None:
    """Voxel size that volumes share; None where they do not."""
    sizes = np.array([c.spacing_mm for c in cards if min(c.shape) > 1])
    if not len(sizes):
        return None
    z, y, x = (float(f"{v:.4g}") for v in np.median(sizes, axis=0))
    shared = all(_close(tuple(row), (z, y, x)) for row in sizes)
    return (z, y, x) if shared else None


def _close(a: object, b: object) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return False
    one, other = np.asarray(a, float), np.asarray(b, float)
    return bool((np.abs(one / other - 1.0) <= _AGREE).all())


def join_with_kept(
    cases: Sequence[CaseSource],
    kept: Sequence[Card],
    old: Before,
    given: Mapping[int, str],
) -> JoinedCases:
    """Labels of new cases in the store's values, which kept cases already have.

    Returns:
        The new cases; the last one stands for the kept ones and carries their names.

    Raises:
        UnusableInput: A kept case would need other values.
    """
    names = {v: n for v, n in old.names.items() if has_name(v, n)}
    held = frozenset(value for card in kept for value in card.label_values)
    own = CaseSource(
        id=_STORE, image=Path(_STORE), label_values=held,
        label_names={v: names[v] for v in sorted(held) if v in names},
    )  # fmt: skip
    # once more than there are new ones: a name has the value that most give it
    copies = len(cases) + 1
    joined = join_cases([*[own] * copies, *cases], given)
    ours = [case for case in joined.cases if case.id == _STORE]
    if len(ours) < copies or any(case.label_map for case in ours):
        reason = joined.refused[0].reason.rstrip(".") if joined.refused else ""
        raise UnusableInput(
            f"{counted(len(kept), 'case')} of the store are not in these sources, and "
            f"their labels cannot be brought together with the new ones"
            f"{f' ({reason})' if reason else ''}; say what the labels are with "
            "--names, choose another --out, or let those cases go with --replace."
        )
    fresh = [case for case in joined.cases if case.id != _STORE]
    return dataclasses.replace(joined, cases=(*fresh, ours[0]))


def still_lacking(kept: Sequence[Card], built: Sequence[Card]) -> list[Card]:
    """Those of the kept cases whose very scan did not come in under another name."""
    by_scan = {card.source_hash: card for card in built}
    left = []
    for card in kept:
        twin = by_scan.get(card.source_hash)
        same = twin is not None and (
            not card.is_labelled
            or (twin.label_counts, twin.target) == (card.label_counts, card.target)
        )
        if not same:
            left.append(card)
    return left


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{number:g}" for number in value)
    return str(value)


def is_refusal(error: Exception) -> bool:
    """Whether a scan is refused for what it is, not for being broken by now."""
    return isinstance(error, Unsound) and error.problem.code not in _BROKEN
