"""Labels carried from scan files or cases of a store to others, and the table."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from homolog.config import config_hash, to_dict
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Progress, Request, Saved
from homolog.features.embed import DenseEncoder
from homolog.features.files import kept_features
from homolog.features.of_scans import features_of
from homolog.label_names import IGNORE
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
    keep_rows,
    mean_dice_of,
    rows_before,
    scores_of,
    told,
)
from homolog.scans.files import (
    read_labels,
    read_scan,
    scan_hash,
)
from homolog.scans.inspect import labels_by_place
from homolog.scans.names import names_told, write_names
from homolog.scans.paths import scan_stem
from homolog.scans.problems import problem_of
from homolog.scans.volume import LabelMap, Volume, mapped_labels
from homolog.scans.write import write_labels, write_volume
from homolog.store.store import Store
from homolog.use.predict import find_scans, result_paths
from homolog.words import listed

DOUBT_FOLDER, DOUBT_ENDING = "uncertainty", "_uncertainty.nii.gz"
CPU = torch.device("cpu")
# Counted up when the same settings give other labels.
_VERSION = 1


@dataclass(frozen=True)
class Case:
    """A scan, and its labels where they are known.

    Attributes:
        name: For people and tables.
        scan: File or DICOM folder.
        labels: Label file, or None.
        mapping: Value in the label file -> value meant.
        names: Value meant -> name.
        patient: Cases of one patient are the same here; empty: unknown.
    """

    name: str
    scan: Path
    labels: Path | None = None
    mapping: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    patient: str = ""

    def read_labels(self) -> LabelMap:
        """The label map in the values meant."""
        assert self.labels is not None
        return mapped_labels(read_labels(self.labels), self.mapping)


def cases_of_store(store: Store) -> list[Case]:
    """All cases of a store, read from the files it was made of."""
    return [
        Case(
            card.id,
            Path(card.source),
            Path(card.label_source) if card.label_source and card.has_label else None,
            card.label_map,
            store.label_names,
            card.subject,
        )
        for card in store.cards
    ]


def choose(
    scans: Sequence[Path],
    wanted: Sequence[str],
    labels: Sequence[Path],
    to: Sequence[str] = (),
) -> tuple[list[Case], list[Case]]:
    """Which cases labels are carried from, and to which.

    Args:
        scans: One store; or scans and folders of scans.
        wanted: Cases of the store, or scan files.
        labels: One label file for each of ``wanted`` that is a file.
        to: Names of cases that get labels; empty: all others.

    Raises:
        UnusableInput: Such a case is not there or has no labels, labels of another
            number, or nothing is left to carry them to.
    """
    store = None
    if len(scans) == 1 and (scans[0] / "store.json").is_file():
        store = Store.open(scans[0])
        pool = cases_of_store(store)
    else:
        pool = [Case(scan_stem(p), p) for p in find_scans(scans)]
    known = {case.name: case for case in pool}
    files = [text for text in wanted if text not in known or store is None]
    if len(labels) != len(files):
        missing = f"{scans[0]} has no case {files[0]!r}; " if store and files else ""
        raise UnusableInput(
            f"{missing}each scan file of --from needs one label file (--labels), got "
            f"{len(files)} files ({listed(files, most=3) or 'none'}) and {len(labels)} "
            "label files."
        )
    given = dict(zip(files, labels, strict=True))
    sources = [
        _from_file(Path(text), given[text]) if text in given else known[text]
        for text in dict.fromkeys(wanted)
    ]
    for case in sources:
        if case.labels is None:
            raise UnusableInput(f"{case.name} has no labels to carry.")
    taken = {case.scan.resolve() for case in sources}
    targets = [case for case in pool if case.scan.resolve() not in taken]
    if unknown := sorted(set(to) - {case.name for case in targets}):
        raise UnusableInput(
            f"there is no other scan {unknown[0]!r} to carry labels to."
        )
    targets = [case for case in targets if not to or case.name in to]
    if not targets:
        raise UnusableInput("there is no other scan to carry the labels to.")
    return sources, targets


def _from_file(scan: Path, labels: Path) -> Case:
    for path in (scan, labels):
        if not path.exists():
            raise UnusableInput(f"there is no {path}.")
    return Case(scan_stem(scan), scan, labels, {}, names_told(labels))


def propagate(
    sources: Sequence[Case],
    targets: Sequence[Case],
    out: Path,
    encoder: DenseEncoder | None,
    config: PropagateConfig,
    features: Path | None = None,
    device: torch.device = CPU,
) -> Job[dict[str, Any]]:
    """Carry labels to scan after scan; one that cannot be does not stop the others.

    Args:
        sources: Labelled.
        targets: Each gets ``OUT/FILE`` and ``OUT/uncertainty/NAME_uncertainty.nii.gz``.
        out: Folder of the results; made if absent. What lies there already from the
            same scans and settings is not made again.
        encoder: Makes the features; None where only grey values are compared.
        config: How.
        features: Where feature maps are kept; the user's cache if None.
        device: Where scans are compared.

    Returns:
        ``cases`` (one row each, least sure first), ``scores`` (per case and label,
        where truth is known), ``mean_dice`` over patients other than those labelled,
        ``failed``, ``method``, files and ``stopped``.

    Raises:
        UnusableInput: The labelled scans cannot be read, or their labels do not fit.
    """
    config, encoder = decided(config, encoder)
    goals = result_paths([case.scan for case in targets], out)
    (out / DOUBT_FOLDER).mkdir(parents=True, exist_ok=True)
    with kept_features(features) as place:
        run = _Run(out, encoder, config, place, sources, device)
        rows, failed, stopped = yield from run.all(targets, goals)
    return told(
        out, rows, failed, config, [case.name for case in sources], stopped=stopped
    )


class _Run:
    """One propagation: what all its scans share."""

    def __init__(
        self, out: Path, encoder: DenseEncoder | None, config: PropagateConfig,
        place: Path, sources: Sequence[Case], device: torch.device,
    ) -> None:  # fmt: skip
        self.out, self.encoder, self.config, self.place = out, encoder, config, place
        self.sources, self.device = sources, device
        self.labelled: list[Labelled] | None = None
        self.before = rows_before(out)
        self.patients = {case.patient for case in sources if case.patient}
        self.key = config_hash(
            _VERSION, to_dict(config.of_labels()), encoder.key if encoder else "",
            [(scan_hash(c.scan), scan_hash(c.labels or c.scan)) for c in sources],
        )  # fmt: skip

    def all(
        self, targets: Sequence[Case], goals: Mapping[Path, Path]
    ) -> Job[tuple[list[dict[str, Any]], list[dict[str, str]], bool]]:
        """Rows, failures, and whether it was stopped."""
        rows: list[dict[str, Any]] = []
        failed: list[dict[str, str]] = []
        for number, case in enumerate(targets):
            news = Progress("scans", number, len(targets), case.name)
            if (yield news) is Request.STOP:
                return rows, failed, True
            try:
                row = yield from self.one(case, goals[case.scan])
            except _SourceFault as error:
                raise UnusableInput(str(error)) from error
            except Exception as error:  # noqa: BLE001 - the other scans are done
                reason = problem_of(error).text.removeprefix(f"{case.scan}: ")
                failed.append({"scan": str(case.scan), "reason": reason})
                yield Note(f"{case.scan}: {reason}", "warning")
                continue
            if row is None:
                return rows, failed, True
            rows.append(row)
            keep_rows(out=self.out, before=self.before, rows=rows)
            yield Saved(row["result"], "labels")
        yield Progress("scans", len(targets), len(targets))
        return rows, failed, False

    def one(self, case: Case, goal: Path) -> Job[dict[str, Any] | None]:
        """The row of one scan; None when stopped."""
        doubt = self.out / DOUBT_FOLDER / (scan_stem(goal) + DOUBT_ENDING)
        key = config_hash(self.key, scan_hash(case.scan))
        old = self.before.get(case.name)
        if old and old.get("key") == key and goal.is_file() and doubt.is_file():
            return {**old, "reused": True}
        if self.labelled is None:
            self.labelled = yield from self.read_sources()
            if self.labelled is None:
                return None
        began = time.monotonic()
        volume = read_scan(case.scan)
        scan = yield from self.see(volume, case.scan)
        if scan is None:
            return None
        found = yield from carry(self.labelled, scan, volume, self.config)
        if found is None:
            return None
        _write(found, volume, goal, doubt, self.config.ignore_above)
        scores = _scores(case, found.labels)
        return {
            "case": case.name, "scan": str(case.scan), "result": str(goal),
            "uncertainty": str(doubt), "confidence": round(found.confidence, 4),
            "miss_mm": round(found.miss_mm, 2),
            "dice": mean_dice_of(scores), "scores": scores,
            "same_patient": case.patient in self.patients,
            "seconds": round(time.monotonic() - began, 2), "key": key, "reused": False,
        }  # fmt: skip

    def see(self, volume: Volume, path: Path) -> Job[Seen | None]:
        """A scan as it is compared; None when stopped."""
        maps = None
        if self.encoder is not None:
            maps = yield from features_of(volume, path, self.encoder, self.place)
            if maps is None:
                return None
        return looked_at(volume, maps, self.device)

    def read_sources(self) -> Job[list[Labelled] | None]:
        """The labelled scans, with one set of values; None when stopped."""
        maps = []
        try:
            for case in self.sources:
                volume = read_scan(case.scan)
                labels = labels_by_place(case.read_labels(), volume)
                maps.append((case, volume, labels))
            values, names = _common([(case, labels) for case, _, labels in maps])
        except Exception as error:
            raise _SourceFault(problem_of(error).text) from error
        found = []
        for case, volume, labels in maps:
            scan = yield from self.see(volume, case.scan)
            if scan is None:
                return None
            found.append(labelled(scan, labels, values, names))
        return found


class _SourceFault(Exception):
    """A labelled scan cannot be used: nothing can be carried."""


def _common(
    sources: Sequence[tuple[Case, LabelMap]],
) -> tuple[list[int], dict[int, str]]:
    """Values that any source has, and their names."""
    values: set[int] = set()
    names: dict[int, str] = {}
    for case, labels in sources:
        values |= {int(v) for v in np.unique(labels.data) if v > 0}
        for value, name in case.names.items():
            if names.setdefault(value, name) != name:
                raise UnusableInput(
                    f"label {value} is {names[value]!r} in {sources[0][0].labels} but "
                    f"{name!r} in {case.labels}; give one class one name and value."
                )
    if not values:
        raise UnusableInput(f"{sources[0][0].labels} holds no label.")
    return sorted(values), {v: names.get(v, f"label {v}") for v in sorted(values)}


def _write(
    found: Carried, volume: Volume, goal: Path, doubt: Path, ignore_above: float
) -> None:
    labels = without_doubtful(found, ignore_above)
    write_labels(labels, goal)
    write_names(goal, labels.names)
    steps = np.round(found.doubt, 2)[None]  # two digits: the file is a tenth as large
    name = f"{volume.name}_uncertainty"
    write_volume(Volume(steps, volume.affine, name, "OTHER", volume.meta), doubt)


def without_doubtful(found: Carried, ignore_above: float) -> LabelMap:
    """Carried labels where what is less sure than this is called ``ignore``.

    Args:
        found: Of one scan.
        ignore_above: Uncertainty 0..1; at 1 all labels stay.
    """
    labels = found.labels
    doubtful = found.doubt > ignore_above
    if not doubtful.any():
        return labels
    value = max(labels.names) + 1
    data = labels.data.astype(np.uint8 if value < 256 else np.int32)
    data[doubtful] = value
    names = {**labels.names, value: IGNORE}
    return dataclasses.replace(labels, data=data, names=names)


def _scores(case: Case, labels: LabelMap) -> list[dict[str, Any]]:
    """Dice per label where the truth is known and lies on the same grid."""
    if case.labels is None:
        return []
    truth = labels_by_place(case.read_labels(), labels)
    if truth.shape != labels.shape or not truth.affine.close_to(
        labels.affine, labels.shape, 0.1
    ):
        return []
    return scores_of(case.name, labels, np.asarray(truth.data))
