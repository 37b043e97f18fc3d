"""Landmarks between scan files, in all cases of a store, and its table of pairs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.drawing.pictures import (
    CT_WINDOW_HU,
    LINE,
    Picture,
    Plane,
    as_bytes,
    grey,
    png_bytes,
    with_line,
    words_on_black,
)
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Preview, Progress, Request, Saved
from homolog.features.embed import DenseEncoder, scan_of_case, write_features
from homolog.features.files import kept_features, open_features
from homolog.features.of_scans import features_of
from homolog.features.search import Search, body_of, query_at
from homolog.geometry.affine import Triple
from homolog.geometry.places import AXES_NAMED
from homolog.landmarks.config import LandmarksConfig
from homolog.landmarks.match import Consensus, Mask, match_landmarks
from homolog.scans.files import read_scan
from homolog.scans.points import (
    COLUMNS,
    SUFFIX,
    Landmark,
    landmark_rows,
    read_landmark_points,
    write_landmark_markups,
    write_landmarks,
)
from homolog.scans.problems import sentence_of
from homolog.scans.volume import FeatureMap, Points, Volume, closest_canonical
from homolog.store.card import Card
from homolog.store.pairs import ROW, PairTable, Rows, write_pairs
from homolog.store.store import Store
from homolog.views.random import generator
from homolog.words import utc_now
from homolog.writing import scratch_folder, write_bytes, write_table

# The table of matching places of a store, matched by a trained embedding.


def align(
    store: Store, encoder: DenseEncoder, *, points: int, partners: int, seed: int
) -> Job[dict[str, Any]]:
    """Match places of every case in other cases of a store; keep them as its table.

    Args:
        store: Gets the table.
        encoder: What embeds its cases.
        points: Per pair of scans.
        partners: Per scan, at most.
        seed: Of the choice of both.

    Returns:
        ``pairs``: folder of the table; ``rows``, ``cases``; quartiles of ``score`` and
        ``cycle_mm``; ``stopped``.

    Raises:
        UnusableInput: A store of one case, or prepared differently from what the
            encoder learnt from.
    """
    if len(store) < 2:
        raise UnusableInput(
            f"matching places need two scans or more, {store.path} holds {len(store)}."
        )
    yield from encoder.warn()
    if store.preprocessing != encoder.preprocessing:
        yield Note(
            f"the encoder learnt from scans prepared differently from {store.path}; "
            "matches may be worse."
        )
    # Features are many times larger than the table, and needed only now.
    scratch = scratch_folder(store.path)
    try:
        maps: list[FeatureMap] = []
        for number, card in enumerate(store.cards):
            yield Progress("scans", number, len(store), card.id)
            scan, affine = scan_of_case(store, card, encoder.learnt)
            path = yield from write_features(
                scan, affine, card.source_hash, encoder, scratch
            )
            if path is None:
                return {"pairs": None, "rows": 0, "stopped": True}
            maps.append(open_features(path))
        rows = yield from _all_rows(store, maps, points, partners, seed)
        if rows is None:
            return {"pairs": None, "rows": 0, "stopped": True}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    facts = {
        "encoder_id": encoder.encoder_id,
        "store_hash": store.hash,
        "points": points,
        "partners": partners,
        "seed": seed,
        "created": utc_now(),
    }
    table = PairTable(tuple(c.id for c in store.cards), rows, facts)
    folder = write_pairs(store.path, table)
    return {
        "pairs": str(folder),
        "rows": len(rows),
        "cases": len(store),
        "score": _quartiles(rows["score"]),
        "cycle_mm": _quartiles(rows["cycle_mm"]),
        "stopped": False,
    }


def _all_rows(
    store: Store, maps: list[FeatureMap], points: int, partners: int, seed: int
) -> Job[Rows | None]:
    """Every case against its partners; None when stopped."""
    count = len(store)
    # a search takes seconds to prepare and memory to keep: only the last ones stay
    search = lru_cache(2 * partners)(lambda i: Search(maps[i]))
    found: list[Rows] = []
    for a, card in enumerate(store.cards):
        rng = generator(seed, a, stream="align")
        others = [b for b in rng.permutation(count) if b != a][:partners]
        request = yield Progress("matching", a, count, card.id)
        if request is Request.STOP:
            return None
        own = search(a)
        for b in sorted(int(o) for o in others):
            mm = _body_places(store, card, maps[a], rng, points)
            there = search(b).find(query_at(maps[a], mm))
            place = np.array([m.mm for m in there])
            back = own.find(query_at(maps[b], _kept(maps[b], place)))
            rows = np.zeros(len(mm), ROW)
            rows["case"], rows["partner"] = a, b
            rows["mm"], rows["partner_mm"] = mm, place
            rows["score"] = [m.similarity for m in there]
            home = np.array([m.mm for m in back])
            rows["cycle_mm"] = np.linalg.norm(home - mm, axis=1)
            found.append(rows)
    yield Progress("matching", count, count)
    return np.concatenate(found)


def _body_places(
    store: Store,
    card: Card,
    features: FeatureMap,
    rng: np.random.Generator,
    count: int,
) -> NDArray[np.float64]:
    """Random tissue (count, 3) mm: brighter than the middle of the scan's range.

    Air says nothing about where it is. Of twice as many places as tried, those with
    the highest stored values are kept where too few are bright enough.
    """
    array = store.image(card.id)
    start, stop = (np.asarray(c, dtype=np.float64) for c in card.foreground)
    voxels = start + rng.random((4 * count, 3)) * np.maximum(stop - 1 - start, 0)
    whole = np.rint(voxels).astype(int)
    stored = np.array([float(array[0:1, z, y, x].item()) for z, y, x in whole])
    values = stored * card.scale + card.offset
    limit = -500.0 if card.modality == "CT" else float(np.percentile(values, 40))
    bright = np.flatnonzero(values > limit)
    rest = np.argsort(-values)
    chosen = np.concatenate([bright, rest[~np.isin(rest, bright)]])[:count]
    mm = card.affine.apply(voxels[chosen])
    return _kept(features, mm)


def _kept(features: FeatureMap, mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places moved into the feature grid where they lie just beyond it."""
    d, h, w = features.data.shape[1:]
    index = features.affine.inverse().apply(mm)
    inside = np.clip(index, 0, np.array([d, h, w]) - 1.0)
    return features.affine.apply(inside)


def _quartiles(values: NDArray[Any]) -> list[float]:
    return [float(v) for v in np.percentile(values, [25, 50, 75])]


# The same points in many scans, side by side: a sheet of axial slices.


# Pixels of a tile, of the gap between tiles and of the names on the left.
SIDE, _GAP, _NAMES = 160, 4, 96
_CROSS, _HOLE = 12.0, 4.0  # arms of the cross, and its empty middle
_QUERY: Triple = (0.3, 0.8, 1.0)
_ACCEPTED: Triple = (0.3, 1.0, 0.4)
_REFUSED: Triple = (1.0, 0.4, 0.3)
_UNKNOWN: Triple = (0.6, 0.6, 0.6)


@dataclass(frozen=True, eq=False)
class Tile:
    """A slice with a point in it.

    Attributes:
        picture: (SIDE, SIDE, 3) in 0..1.
        name: Of the point.
        words: What stands below.
        colour: Of cross and words.
    """

    picture: Picture
    name: str
    words: str
    colour: Triple


def tiles_of(volume: Volume, points: Points | Sequence[Landmark]) -> list[Tile]:
    """One tile per point, the axial slice it lies in, a cross where it lies.

    Args:
        volume: Scan A with its Points, or scan B with the Landmarks found in it.
        points: In the order of the rows.
    """
    scan = closest_canonical(volume)
    if isinstance(points, Points):
        return [
            Tile(_picture(scan, mm, _QUERY), name, "", _QUERY)
            for name, mm in zip(points.names, points.mm, strict=True)
        ]
    tiles = []
    for mark in points:
        if mark.b_mm is None:
            empty = np.zeros((SIDE, SIDE, 3), np.float32)
            tiles.append(Tile(empty, mark.name, "not found", _UNKNOWN))
            continue
        colour = _ACCEPTED if mark.accepted else _REFUSED
        words = f"{mark.similarity:.2f} {'' if mark.accepted else 'refused'}"
        picture = _picture(scan, np.array(mark.b_mm), colour)
        tiles.append(Tile(picture, mark.name, words, colour))
    return tiles


def contact_sheet(columns: Sequence[tuple[str, Sequence[Tile]]]) -> NDArray[np.uint8]:
    """Rows are points, columns are scans.

    Args:
        columns: Name of the scan and its tiles, all in the same order of points.

    Returns:
        (h, w, 3) uint8.
    """
    rows = len(columns[0][1]) if columns else 0
    line = LINE + _GAP
    height = line + rows * (SIDE + line + _GAP)
    sheet = np.zeros((height, _NAMES + len(columns) * (SIDE + _GAP), 3), np.float32)
    for column, (name, tiles) in enumerate(columns):
        left = _NAMES + column * (SIDE + _GAP)
        across = slice(left, left + SIDE)
        sheet[:LINE, across] = words_on_black(name, SIDE)
        for row, tile in enumerate(tiles):
            top = line + row * (SIDE + line + _GAP)
            low = top + SIDE + 2
            sheet[top : top + SIDE, across] = tile.picture
            sheet[low : low + LINE, across] = words_on_black(
                tile.words, SIDE, tile.colour
            )
            if column == 0:
                names = words_on_black(tile.name, _NAMES - 8)
                sheet[top : top + LINE, 2 : _NAMES - 6] = names
    return as_bytes(sheet)


def _picture(scan: Volume, mm: NDArray[np.float64], colour: Triple) -> Picture:
    """The axial slice of a canonical scan around a point, in a square."""
    spacing = scan.affine.spacing_mm
    extent = max(scan.shape[1] * spacing[1], scan.shape[2] * spacing[2])
    plane = Plane.through(mm, scan.affine, 0, SIDE / extent)
    values = plane.cut(scan.data[0])
    picture = grey(values, plane.zoom(spacing), _window(scan, values))
    y, x = plane.place(mm, scan.affine, scan.shape)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        start = (y + dy * _HOLE, x + dx * _HOLE)
        stop = (y + dy * _CROSS, x + dx * _CROSS)
        picture = with_line(picture, start, stop, colour)
    square = np.zeros((SIDE, SIDE, 3), np.float32)
    h, w = min(picture.shape[0], SIDE), min(picture.shape[1], SIDE)
    top, left = (SIDE - h) // 2, (SIDE - w) // 2
    square[top : top + h, left : left + w] = picture[:h, :w]
    return square


def _window(scan: Volume, values: NDArray[Any]) -> tuple[float, float]:
    """Soft tissue of a CT; elsewhere nearly all that the slice holds."""
    if scan.modality == "CT":
        return CT_WINDOW_HU
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    return low, max(high, low + 1e-6)


@dataclass(frozen=True, eq=False)
class Searched:
    """A scan that is ready to be searched.

    Attributes:
        volume: The scan.
        search: Its features.
        body: (d, h, w) cells in the body.
    """

    volume: Volume
    search: Search
    body: Mask


def points_of(scan: Path, path: Path, coordinates: Any) -> Points:
    """Points of a file, world mm LPS; voxel indices are those of the scan.

    Raises:
        UnusableInput: See read_landmark_points; or there is no point.
    """
    affine = read_scan(scan).affine if coordinates in (None, "voxel") else None
    points = read_landmark_points(path, coordinates=coordinates, affine=affine)
    if not len(points.mm):
        raise UnusableInput(f"{path} holds no points.")
    return points


def match_pair(
    scan: Path,
    other: Path,
    points: Points,
    encoder: DenseEncoder,
    rules: LandmarksConfig,
    out: Path,
    folder: Path | None = None,
    seed: int = 0,
) -> Job[dict[str, Any]]:
    """Points of a scan found in another one.

    Args:
        scan: File of scan A.
        other: File of scan B.
        points: Points of A, world mm.
        encoder: What embeds both.
        rules: When a match is believed.
        out: ``.csv``, ``.json`` or ``.mrk.json``.
        folder: Where features are kept; the user's cache if None.
        seed: Of the consensus.

    Returns:
        ``matches`` (one dict per point), ``accepted``, ``consensus`` (or None),
        ``out`` and ``stopped``.
    """
    if not out.name.lower().endswith((".csv", ".json")):
        raise UnusableInput(
            f"matches are written as .csv, .json or {SUFFIX}, got {out}."
        )
    with kept_features(folder) as place:
        source = yield from searched(scan, encoder, place)
        target = None
        if source is not None:
            target = yield from searched(other, encoder, place)
    if source is None or target is None:
        return {"matches": [], "out": str(out), "stopped": True}
    marks, consensus = matched(source, target, points, rules, seed)
    affine = target.volume.affine
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.name.lower().endswith(SUFFIX):
        write_landmark_markups(marks, out)
    else:
        write_landmarks(marks, out, affine_b=affine)
    yield Saved(str(out), "landmarks")
    if consensus is None and rules.consensus != "none":
        yield Note(
            f"too few accepted landmarks agree on a {rules.consensus} map; none was "
            "refused for it.",
            "warning",
        )
    return {
        "matches": landmark_rows(marks, affine_b=affine),
        "accepted": sum(m.accepted for m in marks),
        "consensus": consensus_facts(consensus),
        "out": str(out),
        "stopped": False,
    }


def match_store(
    scan: Path,
    store_path: Path,
    points: Points,
    encoder: DenseEncoder,
    rules: LandmarksConfig,
    out: Path,
    folder: Path | None = None,
    seed: int = 0,
) -> Job[dict[str, Any]]:
    """Points of a scan found in all scans of a prepared store.

    ``out`` gets ``table.csv`` (one row per case and point) and ``contact_sheet.png``.
    A case that fails is listed and passed over.

    Returns:
        ``cases`` (``case``, ``accepted``, ``points`` of each), ``failed`` (``case``
        and ``reason``), ``table``, ``contact_sheet`` and ``stopped``.
    """
    store = Store.open(store_path)
    out.mkdir(parents=True, exist_ok=True)
    cohort = _Cohort(out)
    with kept_features(folder) as place:
        source = yield from searched(scan, encoder, place)
        if source is None:
            return {"cases": [], "failed": [], "out": str(out), "stopped": True}
        cohort.columns.append((source.volume.name, tiles_of(source.volume, points)))
        stopped = False
        for number, card in enumerate(store.cards):
            request = yield Progress("cases", number, len(store.cards), card.id)
            if request is Request.STOP:
                stopped = True
                break
            try:
                target = yield from searched(_source(store, card), encoder, place)
            except Exception as error:  # noqa: BLE001 - the other cases are searched
                reason = sentence_of(error)
                cohort.failed.append({"case": card.id, "reason": reason})
                yield Note(f"{card.id}: {reason}", "warning")
                continue
            if target is None:
                stopped = True
                break
            marks, _ = matched(source, target, points, rules, seed)
            cohort.add(card.id, target.volume, marks)
    return {**(yield from cohort.written()), "stopped": stopped}


class _Cohort:
    """What was matched in the cases of a store so far.

    Args:
        out: Gets ``table.csv`` and ``contact_sheet.png``.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._rows: list[dict[str, Any]] = []
        self._cases: list[dict[str, Any]] = []
        self.failed: list[dict[str, str]] = []
        self.columns: list[tuple[str, list[Tile]]] = []

    def add(self, case: str, volume: Volume, marks: Sequence[Landmark]) -> None:
        """The landmarks of one case."""
        self._rows += [
            {"case": case, **row}
            for row in landmark_rows(marks, affine_b=volume.affine)
        ]
        accepted = sum(m.accepted for m in marks)
        self._cases.append({"case": case, "accepted": accepted, "points": len(marks)})
        self.columns.append((case, tiles_of(volume, marks)))

    def written(self) -> Job[dict[str, Any]]:
        """Write both files; all but ``stopped`` of the result of match_store."""
        table, sheet = self._out / "table.csv", self._out / "contact_sheet.png"
        write_table(table, ("case", *COLUMNS), self._rows)
        yield Saved(str(table), "table")
        picture = png_bytes(contact_sheet(self.columns))
        write_bytes(sheet, picture)
        yield Preview(str(sheet), "the points in all scans")
        return {
            "cases": self._cases,
            "failed": self.failed,
            "table": str(table),
            "contact_sheet": str(sheet),
            "out": str(self._out),
        }


def searched(path: Path, encoder: DenseEncoder, folder: Path) -> Job[Searched | None]:
    """A scan file ready to be searched; None when stopped."""
    volume = read_scan(path)
    features = yield from features_of(volume, path, encoder, folder)
    if features is None:
        return None
    return Searched(volume, Search(features), body_of(volume, features))


def matched(
    source: Searched,
    target: Searched,
    points: Points,
    rules: LandmarksConfig,
    seed: int = 0,
) -> tuple[list[Landmark], Consensus | None]:
    """Points of one prepared scan found in another; see match_landmarks."""
    return match_landmarks(
        source.search,
        target.search,
        points,
        rules,
        body_a=source.body,
        body_b=target.body,
        scan_b=(target.volume.affine, target.volume.shape),
        seed=seed,
    )


def consensus_facts(consensus: Consensus | None) -> dict[str, Any] | None:
    """A consensus in JSON types."""
    if consensus is None:
        return None
    return {
        "kind": consensus.kind,
        "axes": AXES_NAMED,
        "matrix": consensus.matrix.tolist(),
        "inliers": int(consensus.inliers.sum()),
        "of": len(consensus.inliers),
        "rms_mm": consensus.rms_mm,
        "leave_one_out_mm": [
            None if v != v else float(v) for v in consensus.leave_one_out_mm
        ],
    }


def _source(store: Store, card: Card) -> Path:
    """The scan a case was prepared from; a relative path also beside the store.

    Raises:
        UnusableInput: It is no longer there.
    """
    source = Path(card.source)
    for path in (source, store.path.parent / source):
        if path.exists():
            return path
    raise UnusableInput(
        f"its scan is no longer at {source}; put it back, or prepare the store again."
    )
