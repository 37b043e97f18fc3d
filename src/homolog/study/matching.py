"""Landmarks of one scan found in others, as a job: pairs, and all scans of a store."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import check, from_dict
from homolog.data.card import Card
from homolog.data.feature_files import kept_features
from homolog.data.landmark_files import read_landmark_points
from homolog.data.landmarks import COLUMNS, Landmark, landmark_rows, write_landmarks
from homolog.data.markups_io import SUFFIX, write_landmark_markups
from homolog.data.points_io import write_text
from homolog.data.problems import sentence_of
from homolog.data.safe_write import write_safely
from homolog.data.scan_io import read_scan
from homolog.data.store import Store
from homolog.data.volume import Points, Volume
from homolog.drawing.png import png_bytes
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Preview, Progress, Request, Saved
from homolog.geometry.places import AXES_NAMED
from homolog.safe_text import UnixRows, cell_row
from homolog.study.contact_sheet import Tile, contact_sheet, tiles_of
from homolog.study.embedding import encoder_of, features_of
from homolog.study.jobs import ending, taken
from homolog.tasks._body import body_of
from homolog.tasks._consensus import Consensus
from homolog.tasks._dense import DenseEncoder
from homolog.tasks._landmark_rules import LandmarksConfig, Mask, match_landmarks
from homolog.tasks._search import Search

_DEFAULTS: Mapping[str, Any] = {
    "encoder": ..., "scan": ..., "points": ..., "out": ..., "other": None,
    "store": None, "coordinates": None, "settings": {}, "features": None,
    "strides": None, "window": None, "overlap": 0.5, "backbone": None,
    "device": "auto", "seed": 0,
}  # fmt: skip


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


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Points of a scan in another scan, or in all scans of a store.

    Args:
        config: ``encoder`` (run, model folder or weight file), ``scan`` (A), ``points``
            (its file), either ``other`` (B, with ``out`` a file) or ``store`` (with
            ``out`` a folder); ``coordinates`` (LPS, RAS, voxel; None: as the file
            says), ``settings`` (fields of LandmarksConfig), ``features`` (folder;
            None: the cache), ``strides``, ``window``, ``overlap``, ``backbone``,
            ``device``, ``seed``.
        folder: Not used.

    Returns:
        See match_pair and match_store.
    """
    asked = taken(config, "match", _DEFAULTS)
    if (asked["other"] is None) == (asked["store"] is None):
        raise UnusableInput("match needs either another scan or a store.")
    settings = {
        "strides": tuple(asked["strides"] or ()),
        "window": asked["window"],
        "overlap": asked["overlap"],
    }
    encoder = encoder_of(
        Path(asked["encoder"]), settings, asked["device"], asked["backbone"]
    )
    rules = from_dict(LandmarksConfig, asked["settings"], where="match")
    check(rules)
    scan, out = Path(asked["scan"]), Path(asked["out"])
    points = points_of(scan, Path(asked["points"]), asked["coordinates"])
    kept = None if asked["features"] is None else Path(asked["features"])
    if asked["other"] is not None:
        work = match_pair(
            scan, Path(asked["other"]), points, encoder, rules, out, kept,
            asked["seed"],
        )  # fmt: skip
    else:
        work = match_store(
            scan, Path(asked["store"]), points, encoder, rules, out, kept,
            asked["seed"],
        )  # fmt: skip
    return (yield from ending(work))


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
        "consensus": told(consensus),
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
    rows: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    columns: list[tuple[str, list[Tile]]] = []
    stopped = False
    with kept_features(folder) as place:
        source = yield from searched(scan, encoder, place)
        if source is None:
            return {"cases": [], "failed": [], "out": str(out), "stopped": True}
        columns.append((source.volume.name, tiles_of(source.volume, points)))
        for number, card in enumerate(store.cards):
            request = yield Progress("cases", number, len(store.cards), card.id)
            if request is Request.STOP:
                stopped = True
                break
            try:
                target = yield from searched(_source(store, card), encoder, place)
            except Exception as error:  # noqa: BLE001 - the other cases are searched
                reason = sentence_of(error)
                failed.append({"case": card.id, "reason": reason})
                yield Note(f"{card.id}: {reason}", "warning")
                continue
            if target is None:
                stopped = True
                break
            marks, _ = matched(source, target, points, rules, seed)
            affine = target.volume.affine
            rows += [
                {"case": card.id, **row}
                for row in landmark_rows(marks, affine_b=affine)
            ]
            accepted = sum(m.accepted for m in marks)
            cases.append({"case": card.id, "accepted": accepted, "points": len(marks)})
            columns.append((card.id, tiles_of(target.volume, marks)))
    table, sheet = out / "table.csv", out / "contact_sheet.png"
    _write_table(rows, table)
    yield Saved(str(table), "table")
    picture = png_bytes(contact_sheet(columns))
    write_safely(
        sheet,
        lambda p: _put(p, picture),
        lambda p: p.read_bytes() == picture,
    )
    yield Preview(str(sheet), "the points in all scans")
    return {
        "cases": cases,
        "failed": failed,
        "table": str(table),
        "contact_sheet": str(sheet),
        "out": str(out),
        "stopped": stopped,
    }


def searched(path: Path, encoder: DenseEncoder, folder: Path) -> Job[Searched | None]:
    """A scan file ready to be searched; None when told to stop."""
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


def told(consensus: Consensus | None) -> dict[str, Any] | None:
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
    told = Path(card.source)
    for path in (told, store.path.parent / told):
        if path.exists():
            return path
    raise UnusableInput(
        f"its scan is no longer at {told}; put it back, or prepare the store again."
    )


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(UnixRows(text), ("case", *COLUMNS), lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        told = {k: "" if v is None else v for k, v in row.items()}
        writer.writerow(cell_row(told))
    write_text(path, text.getvalue())
