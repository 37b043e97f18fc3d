"""How well landmarks are found: deformed copies of known truth, pairs of scans."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.events import Job, Progress, Request
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.files import kept_features
from homolog.features.search import Search, body_of
from homolog.label_names import shared_labels
from homolog.landmarks.config import LandmarksConfig
from homolog.landmarks.of_scans import Searched, matched, searched
from homolog.metrics.classification import landmark_errors, landmark_score
from homolog.phantom.deform import Deformation, random_deformation
from homolog.scans.files import read_labels
from homolog.scans.names import names_told
from homolog.scans.points import Landmark, read_points
from homolog.scans.volume import LabelMap, Points, Volume, mapped_labels
from homolog.writing import write_json, write_table

# A copy's values: gain and noise, as shares of the spread of the scan's values.
_GAIN, _NOISE = 0.02, 0.02


@dataclass(frozen=True)
class DeformedConfig:
    """How copies are made and what is asked of them.

    Attributes:
        copies: Deformed copies per scan.
        typical_mm: Root mean square of the displacement, rotation and scale apart.
        points: Points per copy, drawn inside the body.
        seed: Of everything random.
    """

    copies: int = 2
    typical_mm: float = 10.0
    points: int = 50
    seed: int = 0


def deformed_copy(
    volume: Volume, seed: int, typical_mm: float = 10.0
) -> tuple[Volume, Deformation]:
    """A smoothly deformed, turned, scaled and slightly noisy copy, and its map."""
    deformation = random_deformation(
        volume.affine, volume.shape, seed=seed, typical_mm=typical_mm
    )
    copy = deformation.applied(volume)
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x4015]))
    values = copy.data.astype(np.float32)
    spread = float(values[:, ::4, ::4, ::4].std())
    values *= np.float32(1 + _GAIN * rng.normal())
    values += np.float32(_NOISE * spread) * rng.standard_normal(
        values.shape, dtype=np.float32
    )
    kind = copy.data.dtype
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        values = np.clip(np.rint(values), limits.min, limits.max)
    name = f"{volume.name}_copy{seed}"
    return replace(copy, data=values.astype(kind), name=name), deformation


def body_points(
    source: Searched, deformation: Deformation | None, count: int, seed: int
) -> NDArray[np.float64]:
    """Points (N <= count, 3) of A, evenly drawn in the body, seen by the copy too."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0xB0D1]))
    cells = np.argwhere(source.body)
    places = cells[rng.permutation(len(cells))] + rng.uniform(-0.5, 0.5, cells.shape)
    mm = source.search.features.affine.apply(places[: 20 * count])
    scan = source.volume
    seen = _within(scan, mm)
    if deformation is not None:
        seen = seen & _within(scan, deformation.to_copy(mm))
    return mm[seen][:count]


def score_deformed(
    scans: Sequence[Path],
    encoder: DenseEncoder,
    asked: DeformedConfig,
    rules: LandmarksConfig | None = None,
    folder: Path | None = None,
) -> Job[dict[str, Any]]:
    """Landmark errors in deformed copies of scans.

    Args:
        scans: Files.
        encoder: What embeds scan and copies.
        asked: How copies are made.
        rules: When a match counts as accepted; the defaults if None.
        folder: Where the scans' features are kept; the user's cache if None.

    Returns:
        ``rows`` (one per point), ``scans`` (summary of each), ``overall``,
        ``stopped``.
    """
    rules = rules or LandmarksConfig()
    rows: list[dict[str, Any]] = []
    total = len(scans) * asked.copies
    stopped = False
    with kept_features(folder) as place:
        for number, path in enumerate(scans):
            source = yield from searched(path, encoder, place)
            if source is None:
                return _summary(rows, stopped=True)
            for copy in range(asked.copies):
                request = yield Progress(
                    "copies", number * asked.copies + copy, total, path.name
                )
                found = None
                if request is not Request.STOP:
                    seed = asked.seed * 1000 + copy
                    found = yield from _in_copy(source, encoder, asked, rules, seed)
                if found is None:
                    stopped = True
                    break
                rows += [{"scan": str(path), "copy": copy, **row} for row in found]
            if stopped:
                break
    return _summary(rows, stopped=stopped)


def score_pair(
    scans: tuple[Path, Path],
    encoder: DenseEncoder,
    *,
    count: int = 50,
    seed: int = 0,
    truth: tuple[Path, Path] | None = None,
    labels: tuple[Path, Path] | None = None,
    rules: LandmarksConfig | None = None,
    folder: Path | None = None,
) -> Job[dict[str, Any]]:
    """What can be told of a pair of patients.

    With ``truth`` (tables of the same named points) errors in mm; with ``labels``
    (label maps) whether the place found carries the label of the point, over points
    drawn evenly over labels; without either, cycle errors of body points alone.

    Returns:
        As score_deformed; rows hold ``error_mm`` or ``hit`` where known.

    Raises:
        UnusableInput: No names or labels in common.
    """
    with kept_features(folder) as place:
        source = yield from searched(scans[0], encoder, place)
        target = None
        if source is not None:
            target = yield from searched(scans[1], encoder, place)
    if source is None or target is None:
        return _summary([], stopped=True)
    maps = None if labels is None else _by_name(labels)
    values: list[int] = []
    true: NDArray[np.float64] | None = None
    if truth is not None:
        names, mm, true = _common(truth)
    elif maps is not None:
        mm, values = _labelled(maps, count, seed)
        names = tuple(maps[0].names.get(v, str(v)) for v in values)
    else:
        mm = body_points(source, None, count, seed)
        names = tuple(f"point_{i + 1}" for i in range(len(mm)))
    began = time.perf_counter()
    marks, _ = matched(source, target, Points(mm, names), rules or LandmarksConfig())
    seconds = (time.perf_counter() - began) / max(len(marks), 1)
    rows = [{**row, "seconds": seconds} for row in _rows(marks, true)]
    for row, mark, value in zip(rows, marks, values, strict=False):
        assert maps is not None
        row["hit"] = mark.b_mm is not None and _label_at(maps[1], mark.b_mm) == value
    name = f"{scans[0]},{scans[1]}"
    return _summary([{"scan": name, "copy": 0, **row} for row in rows], stopped=False)


def _in_copy(
    source: Searched,
    encoder: DenseEncoder,
    asked: DeformedConfig,
    rules: LandmarksConfig,
    seed: int,
) -> Job[list[dict[str, Any]] | None]:
    volume, deformation = deformed_copy(source.volume, seed, asked.typical_mm)
    features = yield from embed_scan(volume, encoder)
    if features is None:
        return None
    target = Searched(volume, Search(features), body_of(volume, features))
    mm = body_points(source, deformation, asked.points, seed)
    if not len(mm):
        raise UnusableInput(f"no body was found in {source.volume.name}.")
    names = tuple(f"point_{i + 1}" for i in range(len(mm)))
    began = time.perf_counter()
    marks, _ = matched(source, target, Points(mm, names), rules)
    seconds = (time.perf_counter() - began) / len(marks)
    rows = _rows(marks, deformation.to_copy(mm))
    return [{**row, "seconds": seconds} for row in rows]


def _rows(
    marks: Sequence[Landmark], true: NDArray[np.float64] | None
) -> list[dict[str, Any]]:
    """One dict per point, JSON types; what is unknown is None."""
    rows = []
    for i, mark in enumerate(marks):
        error = None
        if true is not None and mark.b_mm is not None:
            error = float(landmark_errors(np.array([mark.b_mm]), true[i : i + 1])[0])
        rows.append(
            {
                "name": mark.name,
                "a_mm": list(mark.a_mm),
                "true_mm": None if true is None else [float(v) for v in true[i]],
                "b_mm": None if mark.b_mm is None else list(mark.b_mm),
                "error_mm": error,
                "hit": None,
                "similarity": _known(mark.similarity),
                "margin": _known(mark.margin),
                "cycle_mm": _known(mark.cycle_mm),
                "accepted": mark.accepted,
                "reason": mark.reason,
            }
        )
    return rows


def _summary(rows: Sequence[Mapping[str, Any]], *, stopped: bool) -> dict[str, Any]:
    names = dict.fromkeys(str(row["scan"]) for row in rows)
    parts = [{"scan": n, **figures([r for r in rows if r["scan"] == n])} for n in names]
    return {
        "rows": list(rows),
        "scans": parts,
        "overall": figures(rows),
        "stopped": stopped,
    }


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What many points tell together, JSON types; None where nothing is known.

    Errors are over all points that were found anywhere, refused ones included; those of
    accepted ones stand beside them. Points that were not found are counted.
    """
    result: dict[str, Any] = {
        "points": len(rows),
        "not_found": sum(row["b_mm"] is None for row in rows),
        "accepted": sum(bool(row["accepted"]) for row in rows),
    }
    for prefix, chosen in (
        ("", rows),
        ("accepted_", [r for r in rows if r["accepted"]]),
    ):
        score = landmark_score(_column(chosen, "error_mm"))
        result |= {
            f"{prefix}mean_mm": _known(score.mean_mm),
            f"{prefix}median_mm": _known(score.median_mm),
            f"{prefix}p90_mm": _known(score.p90_mm),
            f"{prefix}within_10_mm": _known(score.within_10_mm),
        }
        hits = _column(chosen, "hit")
        result[f"{prefix}hit_rate"] = float(hits.mean()) if hits.size else None
    cycle = _column(rows, "cycle_mm")
    for share in (25, 50, 75, 90):
        value = float(np.percentile(cycle, share)) if cycle.size else None
        result[f"cycle_p{share}_mm"] = value
    seconds = _column(rows, "seconds")
    result["seconds_per_point"] = float(seconds.mean()) if seconds.size else None
    return result


def write_scores(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], out: Path
) -> dict[str, str]:
    """Write ``landmarks.csv`` (one row per point) and ``landmarks.json``.

    Returns:
        ``csv`` and ``json``: the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    flat = []
    for row in rows:
        places = {
            f"{name}_{axis}_mm": None if row[f"{name}_mm"] is None else value
            for name in ("a", "true", "b")
            for axis, value in zip("zyx", row[f"{name}_mm"] or [None] * 3, strict=True)
        }
        flat.append({k: v for k, v in row.items() if not isinstance(v, list)} | places)
    columns = [k for k in flat[0] if k not in ("true_mm", "b_mm")] if flat else ["scan"]
    table, figures_file = out / "landmarks.csv", out / "landmarks.json"
    write_table(table, columns, flat)
    write_json(figures_file, summary)
    return {"csv": str(table), "json": str(figures_file)}


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([float(r[name]) for r in rows if r[name] is not None], np.float64)


def _common(
    paths: tuple[Path, Path],
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Names that both tables of points have, their places in A and in B."""
    a, b = (read_points(path) for path in paths)
    there = dict(zip(b.names, b.mm, strict=True))
    shared = [(n, mm) for n, mm in zip(a.names, a.mm, strict=True) if n in there]
    if not shared:
        raise UnusableInput(f"{paths[0]} and {paths[1]} name no point in common.")
    names = tuple(n for n, _ in shared)
    return names, np.array([m for _, m in shared]), np.array([there[n] for n in names])


def _by_name(paths: tuple[Path, Path]) -> tuple[LabelMap, LabelMap]:
    """Two label maps in the values of the first."""
    told = [names_told(path) for path in paths]
    shared = shared_labels((str(paths[0]), told[0]), (str(paths[1]), told[1]))
    a = mapped_labels(read_labels(paths[0], shared.names), shared.first)
    b = mapped_labels(read_labels(paths[1]), shared.second)
    return a, b


def _labelled(
    maps: tuple[LabelMap, LabelMap], count: int, seed: int
) -> tuple[NDArray[np.float64], list[int]]:
    """Points of A drawn evenly over the labels that both maps have."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x1ABE]))
    sets = [{int(v) for v in np.unique(m.data) if v > 0} for m in maps]
    both = sorted(sets[0] & sets[1])
    if not both:
        raise UnusableInput("the two label maps have no label in common.")
    values = [both[i % len(both)] for i in range(count)]
    places = []
    for value in both:
        voxels = np.argwhere(maps[0].data == value)
        places.append(voxels[rng.integers(len(voxels), size=values.count(value))])
    order = sorted(range(count), key=lambda i: (values[i], i))
    return maps[0].affine.apply(np.concatenate(places)), [values[i] for i in order]


def _label_at(labels: LabelMap, mm: Sequence[float]) -> int:
    """The label of the voxel at a place; 0 beyond the map."""
    index = np.rint(labels.affine.inverse().apply(mm)).astype(int)
    if (index < 0).any() or (index >= labels.shape).any():
        return 0
    return int(labels.data[tuple(index)])


def _within(scan: Volume, mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    index = scan.affine.inverse().apply(mm)
    inside = (index >= 0) & (index <= np.array(scan.shape) - 1)
    return np.asarray(inside.all(axis=1))


def _known(value: float) -> float | None:
    return None if value != value else float(value)
