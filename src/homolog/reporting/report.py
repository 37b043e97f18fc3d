"""All parts of a report on encoders, and on models made of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.config import to_dict
from homolog.distributed import choose_device
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder
from homolog.features.files import kept_features
from homolog.feed.reading import CaseRef
from homolog.model_files.encoder import LoadedEncoder, load_encoder
from homolog.probe.cases import Patient
from homolog.probe.config import ProbeConfig
from homolog.probe.sources import EncoderSource
from homolog.probe.study import (
    probe_encoders,
    random_like,
    short_names,
    with_all_maps,
)
from homolog.reporting.config import ReportConfig
from homolog.reporting.convergence import Course, course_of
from homolog.reporting.organs import (
    OrganVoxels,
    Separation,
    Tokens,
    drawn,
    part_of,
    pca,
    separation,
    tsne,
)
from homolog.reporting.robustness import Deviations, deviations, usable_cases
from homolog.scans.problems import problem_of
from homolog.store.splits import ordered_subjects
from homolog.store.store import Store
from homolog.use.predict import open_trained

OWN, RANDOM = "own", "random"
Plane = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scatter:
    """Voxels of one map on a plane.

    Attributes:
        organ: (N,) place of each one's label.
        tsne: (N, 2).
        pca: (N, 2).
        share: Of the variance along the two main directions.
    """

    organ: NDArray[np.int64]
    tsne: Plane
    pca: Plane
    share: float


@dataclass(eq=False)
class Findings:
    """What was found of one encoder or model.

    Attributes:
        name: For people.
        path: As given.
        card: Of its model.
        maps: Set of maps -> ``own`` and ``random`` -> how far organs lie apart.
        best: The set with the highest silhouette.
        scatters: ``own`` and ``random``, of the best set.
        robust: Of a model that labels or classifies.
        course: Of its training.
        seconds: It all took.
    """

    name: str
    path: Path
    card: dict[str, Any]
    maps: dict[str, dict[str, Separation]] = field(default_factory=dict)
    best: str = ""
    scatters: dict[str, Scatter] = field(default_factory=dict)
    robust: Deviations | None = None
    course: Course | None = None
    seconds: float = 0.0

    @property
    def is_model(self) -> bool:
        """Whether it answers, and does not only see."""
        return self.card.get("kind") not in (None, "encoder")

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "name": self.name, "path": str(self.path),
            "method": self.card.get("method"), "kind": self.card.get("kind"),
            "steps": self.card.get("steps"), "best_map": self.best or None,
            "maps": {
                name: {weights: found.to_dict() for weights, found in each.items()}
                for name, each in self.maps.items()
            },
            "robustness": None if self.robust is None else {
                "of": self.robust.of, "kinds": self.robust.summary(),
                "left_out": list(self.robust.left_out),
            },
            "course": None if self.course is None else self.course.to_dict(),
            "seconds": round(self.seconds, 1),
        }  # fmt: skip


@dataclass(eq=False)
class Report:
    """Everything a page shows.

    Attributes:
        store: Whose cases were looked at.
        config: How.
        organs: Names of the labels.
        patients: Whose voxels were compared.
        found: Of each encoder.
        probe: Result of ``probe_encoders``; None where it was not asked for.
        notes: What is missing, and why.
        stopped: Whether it was stopped before its end.
    """

    store: Store
    config: ReportConfig
    organs: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    found: list[Findings] = field(default_factory=list)
    probe: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON types, all but the scatters."""
        kept = ("encoders", "no_network", "verdict", "taught", "judged")
        return {
            "store": str(self.store.path), "store_hash": self.store.hash,
            "settings": to_dict(self.config), "organs": list(self.organs),
            "patients": list(self.patients),
            "encoders": [each.to_dict() for each in self.found],
            "probe": None if self.probe is None else {k: self.probe[k] for k in kept},
            "notes": list(self.notes),
        }  # fmt: skip


def report_on(
    store: Store,
    encoders: Sequence[Path],
    config: ReportConfig,
    embedding: EmbedConfig,
    *,
    device: str = "auto",
    backbone: str | None = None,
    folder: Path | None = None,
) -> Job[Report]:
    """Look at encoders, or models made of them, on a store's labelled cases.

    A part that is not possible (no labels, no training's folder, a task without such
    answers) is left out, and a note says why.

    Args:
        store: With labels.
        encoders: Runs, model folders or weight files.
        config: What.
        embedding: How windows slide.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        backbone: Network of weight files that do not say it.
        folder: Where feature maps are kept; the user's cache if None.

    Raises:
        UnusableInput: An encoder that cannot be read, or nothing that can be told.
    """
    report = Report(store, config)
    with kept_features(folder) as place:
        run = _Run(report, embedding, device, backbone, Path(place))
        for path, name in zip(encoders, short_names(encoders), strict=True):
            began = time.monotonic()
            loaded = load_encoder(path, backbone)
            report.found.append(Findings(name, path, dict(loaded.card)))
            finished = yield from run.one(report.found[-1], loaded)
            report.found[-1].seconds = time.monotonic() - began
            if not finished:
                report.stopped = True
                return report
        if config.probe and not (yield from run.probed(encoders)):
            report.stopped = True
            return report
    told = any(f.maps or f.robust or f.course for f in report.found)
    if not told and report.probe is None:
        raise UnusableInput(f"nothing can be told: {'; '.join(report.notes)}")
    return report


@dataclass(eq=False)
class _Run:
    """What stays the same for all encoders."""

    report: Report
    embedding: EmbedConfig
    device: str
    backbone: str | None
    folder: Path
    _voxels: OrganVoxels | None = None

    def one(self, found: Findings, loaded: LoadedEncoder) -> Job[bool]:
        """All parts but the probe; False when stopped."""
        config = self.report.config
        if config.course:
            found.course = course_of(found.path)
            if found.course is None:
                yield from self._missing(f"{found.name} is no run: its course is lost")
        if config.organs:
            try:
                if not (yield from self._organs(found, loaded)):
                    return False
            except UnusableInput as error:
                yield from self._missing(f"no organs of {found.name}: {error}")
        if config.robustness and found.is_model:
            return (yield from self._robustness(found))
        return True

    def probed(self, encoders: Sequence[Path]) -> Job[bool]:
        """Linear probe and neighbours; False when stopped."""
        config, report = self.report.config, self.report
        try:
            result = yield from probe_encoders(
                report.store, encoders,
                ProbeConfig(most=config.most, seed=config.seed, random=1, dense=False),
                self.embedding, device=self.device, backbone=self.backbone,
                folder=self.folder,
            )  # fmt: skip
        except UnusableInput as error:
            yield from self._missing(f"no probe: {error}")
            return True
        if result["stopped"]:
            return False
        report.probe = result
        return True

    def _missing(self, text: str) -> Job[None]:
        text = text.rstrip(".") + "."
        if text not in self.report.notes:
            self.report.notes.append(text)
            yield Note(text, "warning")

    def _drawn(self) -> OrganVoxels:
        """The voxels of all encoders."""
        if self._voxels is None:
            config, store = self.report.config, self.report.store
            patients = _patients(store, config)
            self._voxels = OrganVoxels.draw(patients, config.voxels, config.seed)
            self.report.organs = self._voxels.names
            self.report.patients = tuple(p.name for p in patients)
        return self._voxels

    def _organs(self, found: Findings, loaded: LoadedEncoder) -> Job[bool]:
        voxels, seed = self._drawn(), self.report.config.seed
        dense = DenseEncoder.of(loaded, self.embedding, choose_device(self.device))
        yield from dense.warn()
        own = with_all_maps(dense, dense.embedder)
        networks = {OWN: own, RANDOM: random_like(loaded, dense, seed)}
        tokens: dict[str, dict[str, Tokens]] = {}
        for weights, network in networks.items():
            name = found.name + (", random weights" if weights == RANDOM else "")
            read = yield from voxels.read(EncoderSource(name, network, self.folder))
            if read is None:
                return False
            tokens[weights] = read
        for number, kind in enumerate(tokens[OWN]):
            total = len(tokens[OWN])
            yield Progress(f"{found.name}: measuring", number, total, kind)
            found.maps[kind] = {w: separation(t[kind], seed) for w, t in tokens.items()}
        found.best = max(found.maps, key=lambda m: found.maps[m][OWN].silhouette)
        for weights, sets in tokens.items():
            yield Progress(f"{found.name}: t-SNE", 0, 1, weights)
            found.scatters[weights] = _scatter(sets[found.best], seed)
        return True

    def _robustness(self, found: Findings) -> Job[bool]:
        report, config = self.report, self.report.config
        try:
            task, model = open_trained(found.path, choose_device(self.device))
            cases = usable_cases(task, report.store, config.split, config.most)
            robust = yield from deviations(
                task, model, cases, config.draws, config.seed, found.name
            )
        except (UnusableInput, JobError) as error:
            reason = problem_of(error).text
            yield from self._missing(f"no robustness of {found.name}: {reason}")
            return True
        found.robust = robust
        return robust is not None


def _scatter(tokens: Tokens, seed: int) -> Scatter:
    shown = part_of(tokens, drawn(tokens, seed))
    places, share = pca(shown, seed)
    return Scatter(shown.organ, tsne(shown, seed), places, share)


def _patients(store: Store, config: ReportConfig) -> list[Patient]:
    """Labelled patients of the split; of all where it has fewer than two."""
    labelled = [
        c for c in store.cards if c.has_label and any(v > 0 for v in c.label_values)
    ]
    people = [
        Patient(ids[0], tuple(CaseRef(store, store.card(i)) for i in ids))
        for ids in ordered_subjects(labelled, config.seed)
    ]
    own = [p for p in people if config.split in ("all", p.cases[0].card.split)]
    chosen = own if len(own) >= 2 else people
    return chosen[: config.most or None]
