"""Labels carried from cases of a store to its other ones, into a store to train on.

On the store's own grid: nothing is read from scan files, and nothing is resampled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.config import config_hash, to_dict
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress, Request, Saved
from homolog.features.embed import (
    DenseEncoder,
    embed_into,
    feature_grid,
    scan_of_case,
)  # fmt: skip
from homolog.propagation.carry import (
    Carried,
    Labelled,
    carry,
    decided,
    labelled,
    looked_at,
)  # fmt: skip
from homolog.propagation.config import PropagateConfig
from homolog.propagation.descriptors import Seen
from homolog.propagation.told import (
    doubtful_of,
    keep_rows,
    mean_dice_of,
    rows_before,
    scores_of,
    told,
)  # fmt: skip
from homolog.scans.problems import problem_of
from homolog.scans.volume import FeatureMap, LabelMap, Volume
from homolog.store.card import Card
from homolog.store.preprocess import in_units
from homolog.store.relabelled import Relabelled, relabelling
from homolog.store.splits import patients_of
from homolog.store.store import Store
from homolog.words import listed

# Counted up when the same settings give other labels.
_VERSION = 1
UNLABELLED = -1
CPU = torch.device("cpu")


def propagate_into(
    store: Store,
    sources: Sequence[str],
    targets: Sequence[str],
    out: Path,
    encoder: DenseEncoder | None,
    config: PropagateConfig,
    device: torch.device = CPU,
) -> Job[dict[str, Any]]:
    """Carry labels within a store; the result is a store of the same scans.

    It holds the sources with their own labels and the targets with carried ones, but
    those whose labels are doubtful (``trust``); voxels less sure than ``ignore_above``
    teach nothing there. What lies in ``out`` from the same cases and settings is not
    made again.

    Args:
        store: Open.
        sources: Labelled cases of it.
        targets: Cases that get labels; what they have is used for scores alone.
        out: Folder of the new store.
        encoder: Makes the features; None where only grey values are compared.
        config: How.
        device: Where scans are compared.

    Returns:
        As ``of_scans.propagate``; ``store`` is the new one, rows have no files, and
        the cases of rows that are ``doubtful`` are not in it.

    Raises:
        UnusableInput: Cases that are not there or have no labels, or a folder that
            holds something else.
        JobError: The store is damaged, or the disk is full.
    """
    config, encoder = decided(config, encoder)
    cards = [store.card(name) for name in dict.fromkeys(sources)]
    bare = [card.id for card in cards if not card.label_values]
    if bare or not cards:
        raise UnusableInput(f"{listed(bare) or 'nobody'} has no labels to carry.")
    wanted = [n for n in dict.fromkeys(targets) if n not in {c.id for c in cards}]
    with relabelling(store, out) as new:
        run = _Run(store, new, cards, encoder, config, device)
        rows, failed, stopped = yield from run.all([store.card(n) for n in wanted])
        ids = [card.id for card in cards]
        if not stopped:
            for name in doubtful_of(rows, config.trust):
                new.leave_out(name)
            new.finish({"from": ids, "by": to_dict(config)})
            yield Saved(str(out), "store")
        result = told(out, rows, failed, config, ids, stopped=stopped)
    return {**result, "store": str(out)}


class _Run:
    """One propagation within a store."""

    def __init__(
        self, store: Store, new: Relabelled, sources: Sequence[Card],
        encoder: DenseEncoder | None, config: PropagateConfig, device: torch.device,
    ) -> None:  # fmt: skip
        self.store, self.new, self.sources = store, new, sources
        self.encoder, self.config, self.device = encoder, config, device
        self.labelled: list[Labelled] | None = None
        self.before = rows_before(new.out)
        self.people = patients_of(store.cards)
        self.patients = {self.people[card.id] for card in sources}
        self.key = config_hash(
            _VERSION, to_dict(config.of_labels()), encoder.key if encoder else "",
            [card.key for card in sources],
        )  # fmt: skip

    def all(
        self, targets: Sequence[Card]
    ) -> Job[tuple[list[dict[str, Any]], list[dict[str, str]], bool]]:
        """Rows, failures, and whether it was stopped."""
        rows: list[dict[str, Any]] = []
        failed: list[dict[str, str]] = []
        for card in self.sources:
            self.new.keep(card.id)
        for number, card in enumerate(targets):
            news = Progress("scans", number, len(targets), card.id)
            if (yield news) is Request.STOP:
                return rows, failed, True
            try:
                row = yield from self.one(card)
            except JobError:
                raise  # the store's fault, or the sources': no other case would do
            except Exception as error:  # noqa: BLE001 - the other cases are done
                reason = problem_of(error).text
                failed.append({"scan": card.id, "reason": reason})
                yield Note(f"{card.id}: {reason}", "warning")
                continue
            if row is None:
                return rows, failed, True
            rows.append(row)
            keep_rows(self.new.out, self.before, rows)
        yield Progress("scans", len(targets), len(targets))
        return rows, failed, False

    def one(self, card: Card) -> Job[dict[str, Any] | None]:
        """The row of one case; None when stopped."""
        old = self.before.get(card.id)
        if old is not None and self.new.has(card.id, self.key):
            return {**old, "reused": True}
        began = time.monotonic()
        if self.labelled is None:
            try:
                self.labelled = yield from self.read_sources()
            except Exception as error:
                names = listed((card.id for card in self.sources), most=3)
                raise JobError(
                    f"nothing can be carried from {names}: {problem_of(error).text}"
                ) from error
            if self.labelled is None:
                return None
        scan = yield from self.see(card)
        if scan is None:
            return None
        found = yield from carry(self.labelled, scan, _image(self.store, card),
                                 self.config)  # fmt: skip
        if found is None:
            return None
        stored = store_labels(found, self.config.ignore_above)
        self.new.put(card.id, stored, self.key)
        truth = _labels(self.store, card)
        scores = scores_of(card.id, found.labels, truth.data) if truth else []
        return {
            "case": card.id, "confidence": round(found.confidence, 4),
            "miss_mm": round(found.miss_mm, 2), "dice": mean_dice_of(scores),
            "scores": scores, "same_patient": self.people[card.id] in self.patients,
            "seconds": round(time.monotonic() - began, 2), "reused": False,
        }  # fmt: skip

    def see(self, card: Card) -> Job[Seen | None]:
        """A case as it is compared; None when stopped."""
        maps = None
        if self.encoder is not None:
            maps = yield from _features(self.store, card, self.encoder)
            if maps is None:
                return None
        return looked_at(_image(self.store, card), maps, self.device)

    def read_sources(self) -> Job[list[Labelled] | None]:
        """The labelled cases, with one set of values; None when stopped."""
        values = sorted({v for card in self.sources for v in card.label_values})
        names = {v: self.store.label_names.get(v, f"label {v}") for v in values}
        found = []
        for card in self.sources:
            scan = yield from self.see(card)
            if scan is None:
                return None
            labels = _labels(self.store, card)
            assert labels is not None
            found.append(labelled(scan, labels, values, names))
        return found


def store_labels(found: Carried, ignore_above: float) -> NDArray[np.int16]:
    """Carried labels as a store keeps them; what is less sure teaches nothing.

    Args:
        found: Of one case, on its stored grid.
        ignore_above: Uncertainty 0..1; at 1 all labels stay.
    """
    values = found.labels.data.astype(np.int16)
    values[found.doubt > ignore_above] = UNLABELLED
    return values


def _image(store: Store, card: Card) -> Volume:
    values = in_units(np.asarray(store.image(card.id)[:]), card.levels)
    return Volume(values, card.affine, card.id, card.modality)


def _labels(store: Store, card: Card) -> LabelMap | None:
    stored = store.label(card.id)
    if stored is None:
        return None
    return LabelMap(np.asarray(stored[:]), card.affine, store.label_names, card.id)


def _features(
    store: Store, card: Card, encoder: DenseEncoder
) -> Job[FeatureMap | None]:
    """Dense features of a case, in memory; None when stopped."""
    yield from encoder.warn()
    scan, affine = scan_of_case(store, card, encoder.learnt)
    shape = feature_grid(scan.shape, encoder.strides[0])
    array = np.zeros((*shape, sum(encoder.sizes)), np.float16)
    if (yield from embed_into(scan, encoder, array)) is None:
        return None
    return FeatureMap(
        np.moveaxis(array, -1, 0), affine.coarsen(encoder.strides[0]),
        encoder.encoder_id,
    )  # fmt: skip
