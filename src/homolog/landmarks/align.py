"""The table of matching places of a store, matched by a trained embedding."""

from __future__ import annotations

import shutil
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.events import Job, Note, Progress, Request
from homolog.features.embed import DenseEncoder, scan_of_case, write_features
from homolog.features.files import open_features
from homolog.features.search import Search, query_at
from homolog.scans.volume import FeatureMap
from homolog.store.card import Card
from homolog.store.pairs import ROW, PairTable, Rows, write_pairs
from homolog.store.store import Store
from homolog.views.random import generator
from homolog.words import utc_now
from homolog.writing import scratch_folder


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
