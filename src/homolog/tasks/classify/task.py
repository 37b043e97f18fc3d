"""The classify task: classes of a whole scan, learnt from scans of known classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from homolog.backbones.base import Backbone
from homolog.errors import UnusableInput
from homolog.events import Job
from homolog.feed.reading import CaseRef
from homolog.label_names import findings_text
from homolog.metrics.classification import (
    best_thresholds,
    classification_scores,
    finding_scores,
    macro_mean,
)
from homolog.scans.volume import Volume
from homolog.store.card import Card
from homolog.tasks.base import LearnedTask, PredictOptions, TaskModule, Trained
from homolog.tasks.classify.answer import (
    SLICE_METRICS,
    Answer,
    ClassChances,
    answer,
    chance_columns,
    report_lines,
    slice_scores,
    stored,
    stored_scan,
    summarise_classes,
    type_columns,
    view_spec,
)
from homolog.tasks.classify.network import (
    ClassifyModule,
    ClassifyNetwork,
    JoinedClassifiers,
    keeps_slices,
)
from homolog.tasks.classify.space import (
    PUBLISHED,
    RECIPES,
    SOURCES,
    ClassifyConfig,
    described,
    seen_channels,
    stacked_of,
    weights_of,
)
from homolog.tasks.classify.truth import (
    SLICES,
    Annotated,
    Space,
    slice_truth,
    truth_rows,
)
from homolog.tasks.segment.network import prepared_for, spec_index

if TYPE_CHECKING:
    from homolog.recipes import Sources


# Paper: S2DC classification.
class Classify(LearnedTask):
    """Classes of a whole image or volume, by the encoder and one linear layer.

    A scan has one class, or several or none of them; further findings and the slices
    that show one may be learnt beside. The scan is scaled to fit the window, one factor
    for all axes, and padded. A 3D encoder takes volumes; a 2D encoder takes images, and
    volumes slice by slice.
    """

    Config: ClassVar[type] = ClassifyConfig
    title: ClassVar[str] = "Classification"
    best_metric: ClassVar[str] = "auc"
    of_sets: ClassVar[bool] = True
    takes_label_maps: ClassVar[bool] = False
    joins: ClassVar[bool] = True
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {**RECIPES, **PUBLISHED}
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES

    config: ClassifyConfig

    def __init__(self, config: ClassifyConfig) -> None:
        super().__init__(config)
        self._annotated = Annotated()

    def usable(self, card: Card) -> bool:
        """Its class is known; or which of its slices show a finding."""
        if self.config.labels == SLICES:
            return card.has_label or bool(card.boxes)
        return card.target is not None

    def describe(
        self, cases: Sequence[CaseRef], backbone: Backbone, device: torch.device
    ) -> dict[str, Any]:
        """Window, classes, types and modalities."""
        if all(case.card.shape[0] == 1 for case in cases):
            backbone = backbone.planar()
        return described(self.config, cases, backbone, device, self._annotated)

    def network(self, backbone: Backbone, spec: Mapping[str, Any]) -> ClassifyNetwork:
        """One linear layer, or two, on pooled features."""
        if spec_index(spec, "window")[0] == 1:
            backbone = backbone.planar()
        stack = backbone.spatial_dims == 2 and spec_index(spec, "window")[0] > 1
        space = Space.of(spec)
        return ClassifyNetwork(
            backbone,
            len(space.classes),
            self.config.dropout,
            largest=self.config.pooling == "mean_and_max",
            hidden=self.config.hidden,
            pooling=self.config.slice_pooling if stack else None,
            types=len(space.types),
            slices=space.slices > 0,
            stacked=stacked_of(spec) if stack else None,
        )

    def joined(self, networks: Sequence[nn.Module]) -> JoinedClassifiers:
        """The mean of logits."""
        return JoinedClassifiers(networks)

    def channels(self, card: Card) -> int:
        """Those of a slice with its neighbours and masks."""
        return seen_channels(self.config, card)

    def module(self, network: nn.Module, spec: Mapping[str, Any]) -> TaskModule:
        """Cross-entropy on whole scans."""
        assert isinstance(network, ClassifyNetwork)
        config = self.config
        window = spec_index(spec, "window")
        return ClassifyModule(
            network,
            view_spec(window, config, slices=keeps_slices(network.encoder)),
            Space.of(spec),
            weights_of(config, spec),
            smoothing=config.smoothing,
            average=config.average,
        )

    def targets(
        self, cases: Sequence[CaseRef], spec: Mapping[str, Any]
    ) -> list[list[float]]:
        """What is known of each case, see ``_scan_truth.Truth``."""
        return truth_rows(cases, Space.of(spec), self._annotated)

    def remark(self, spec: Mapping[str, Any], chosen: int) -> str:
        """Thresholds need cases to be chosen by."""
        if chosen or self.config.threshold != "validation" or not spec.get("several"):
            return ""
        return "without held-out cases no threshold can be chosen: 0.5 is taken."

    def settle(self, model: Trained, cases: Sequence[CaseRef]) -> dict[str, Any]:
        """``thresholds`` of the classes, where they are to be chosen."""
        space = Space.of(model.spec)
        if not space.several or self.config.threshold != "validation":
            return {}
        chances = np.array([answer(model, stored(case)).chances for case in cases])
        return {"thresholds": best_thresholds(self._marks(cases, space)[0], chances)}

    def validate(
        self,
        model: Trained,
        cases: Iterable[CaseRef],
        look: Callable[..., None] | None = None,
        share: float = 1.0,
    ) -> dict[str, float]:
        """``auc`` and the rest of the metrics, means over classes where a scan may have
        several; ``types_auc``, ``slices_auc``. ``auc`` is 0.5 where undefined.
        """  # noqa: D205 - one sentence
        space = Space.of(model.spec)
        seen, answers = [], []
        for case in cases:
            seen.append(case)
            answers.append(answer(model, stored(case)))
        chances = np.array([told.chances for told in answers])
        classes, types = self._marks(seen, space)
        if space.several:
            decided = chances >= np.array(_thresholds(model.spec))
            scores = macro_mean(finding_scores(classes, chances, decided))
        else:
            scores = classification_scores(classes[:, 0].tolist(), chances)
        if scores["auc"] is None:
            scores["auc"] = 0.5
        if space.types:
            told = np.array([found.types for found in answers])
            beside = macro_mean(finding_scores(types, told, told >= 0.5))
            scores["types_auc"] = beside["auc"]
        if space.slices:
            marks = [_slice_marks(c, a) for c, a in zip(seen, answers, strict=True)]
            presence = np.concatenate([a.presence for a in answers])
            limit = self.config.slice_threshold
            slices = slice_scores(np.concatenate(marks), presence, limit)
            scores["slices_auc"] = slices["auc"]
            if space.by_slice:
                scores |= {name: slices[name] for name in SLICE_METRICS}
                scores["auc"] = 0.5 if slices["auc"] is None else slices["auc"]
        return {name: value for name, value in scores.items() if value is not None}

    def score(
        self,
        model: Trained,
        case: CaseRef,
        *,
        flips: Sequence[int] = (),
        tolerance_mm: float = 1.0,
    ) -> Job[list[dict[str, Any]]]:
        """One row: true and predicted classes, and all probabilities."""
        yield from ()
        space = Space.of(model.spec)
        classes, types = self._marks([case], space)
        found = answer(model, stored(case))
        told = _chances_of(model.spec, case.card.id, found)
        row: dict[str, Any] = {
            "true": case.card.target or "", "predicted": told.predicted,
            **dict(zip(chance_columns(space.classes), found.chances, strict=True)),
            **dict(zip(type_columns(space.types), found.types, strict=True)),
        }  # fmt: skip
        known: dict[str, Any] = {}
        if space.several:
            names = zip(space.classes, classes[0], strict=True)
            row["true"] = findings_text(name for name, mark in names if mark == 1)
            known["classes"] = classes[0].tolist()
            known["told"] = (found.chances >= _thresholds(model.spec)).tolist()
        if space.types:
            known["types"] = types[0].tolist()
        if space.slices:
            known["slices"] = _slice_marks(case, found).tolist()
            known["presence"] = found.presence.tolist()
            known["limit"] = self.config.slice_threshold
            if space.by_slice:
                known["by_slice"] = True
        return [{**row, "known": known} if known else row]

    def columns(self, spec: Mapping[str, Any]) -> Sequence[str]:
        """Case, true and predicted classes, probabilities."""
        told = (*chance_columns(spec["classes"]), *type_columns(Space.of(spec).types))
        return ("case", "true", "predicted", *told)

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See ``summarise_classes``."""
        return summarise_classes(rows)

    def report(self, result: Mapping[str, Any]) -> list[str]:
        """See ``report_lines``."""
        return report_lines(result)

    def run(
        self,
        volume: Volume,
        model: Trained,
        options: PredictOptions = PredictOptions(),  # noqa: B008 - frozen
    ) -> Job[ClassChances]:
        """The classes of a scan; of ``options`` the modality counts.

        Raises:
            UnusableInput: Another modality or number of channels than learnt from, or
                a volume for a model of images.
        """
        prepared = yield from prepared_for(model, volume, options.modality)
        scan, numbers = stored_scan(prepared)
        depth = scan.shape[0]
        if spec_index(model.spec, "window")[0] == 1 and depth > 1:
            raise UnusableInput(
                f"the model classifies single slices, {volume.name!r} has {depth}."
            )
        return _chances_of(model.spec, volume.name, answer(model, scan), numbers)

    def _marks(
        self, cases: Sequence[CaseRef], space: Space
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N, 1 or K) class or marks of the classes, and (N, T) marks of the types."""
        bare = replace(space, slices=0)
        rows = np.array(truth_rows(cases, bare, self._annotated), np.int64)
        count = rows.shape[1] - len(space.types)
        return rows[:, :count], rows[:, count:]


def _slice_marks(case: CaseRef, found: Answer) -> np.ndarray:
    """What is known of the slices that were looked at, -1 where nothing is."""
    truth = slice_truth(case)
    if truth is None:
        return np.full(len(found.covered), -1)
    marks = [truth[first:last] for first, last in found.covered]
    return np.array([part.max(initial=-1) for part in marks])


def _thresholds(spec: Mapping[str, Any]) -> list[float]:
    """Of each class; 0.5 where none was chosen."""
    chosen = spec.get("thresholds")
    return [float(v) for v in chosen] if chosen else [0.5] * len(spec["classes"])


def _chances_of(
    spec: Mapping[str, Any],
    name: str,
    found: Answer,
    numbers: np.ndarray | None = None,
) -> ClassChances:
    """For people and tables; slices only where their numbers in the file are known."""
    space = Space.of(spec)
    limits = dict(zip(space.classes, _thresholds(spec), strict=True))
    return ClassChances(
        name,
        dict(zip(space.classes, found.chances.tolist(), strict=True)),
        limits if space.several else {},
        dict(zip(space.types, found.types.tolist(), strict=True)),
        () if numbers is None else found.slice_rows(numbers, space.classes),
    )
