"""The classify task: one class for a whole scan, learnt from scans of known class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from homolog.backbones._base import Backbone
from homolog.data.card import Card
from homolog.data.preprocess import prepare_volume
from homolog.data.volume import Volume
from homolog.errors import UnusableInput
from homolog.events import Job, Note
from homolog.feed import CaseRef
from homolog.feed.single import StoredScan, view_of
from homolog.metrics.classification import classification_scores
from homolog.tasks._base import LearnedTask, TaskModule, Trained
from homolog.tasks._classifier import ClassifyModule, ClassifyNetwork
from homolog.tasks._classify_settings import RECIPES, ClassifyConfig
from homolog.tasks._labelling import check_scan, model_preprocessing
from homolog.tasks._segment_settings import intensity_changes
from homolog.tasks._segmenter import choose_window, smallest_window, spec_index
from homolog.views.view import ViewSpec, Whole

# Longest side and most voxels of a window chosen by itself; of slices, and of volumes.
_SLICE_LIMITS = {"cpu": (128, 128**2), "cuda": (512, 512**2)}
_CHANCE = "p_"
_VOLUME_LIMITS = {"cpu": (64, 48**3), "cuda": (160, 128**3)}


@dataclass(frozen=True)
class ClassChances:
    """What a classifier says of a scan.

    Attributes:
        name: Of the scan.
        chances: Class -> probability; they sum to 1.
    """

    name: str
    chances: Mapping[str, float]

    @property
    def predicted(self) -> str:
        """The likeliest class."""
        return max(self.chances, key=lambda name: self.chances[name])


class Classify(LearnedTask):
    """A class of a whole image or volume, by the encoder and one linear layer.

    The scan is scaled to fit the window, one factor for all axes, and padded. A 2D
    encoder takes images of one slice; a 3D encoder takes volumes.
    """

    Config: ClassVar[type] = ClassifyConfig
    title: ClassVar[str] = "Classification"
    best_metric: ClassVar[str] = "auc"
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES

    config: ClassifyConfig

    def usable(self, card: Card) -> bool:
        """Its class is known."""
        return card.target is not None

    def describe(
        self, cases: Sequence[CaseRef], backbone: Backbone, device: torch.device
    ) -> dict[str, Any]:
        """Window, classes and modalities."""
        counts = Counter(str(case.card.target) for case in cases)
        names = sorted(counts)
        if len(names) < 2:
            raise UnusableInput(
                f"classify needs scans of two classes, all {len(cases)} are "
                f"{names[0]!r}."
            )
        flat = backbone.spatial_dims == 2
        deep = [c.card.id for c in cases if flat and c.card.shape[0] > 1]
        if deep:
            raise UnusableInput(
                f"{type(backbone).__name__} is 2D and classifies single slices, but "
                f"{len(deep)} scans are volumes, first {deep[0]!r}; take a 3D backbone."
            )
        window = self.config.window
        if window is None:
            limits = _SLICE_LIMITS if flat else _VOLUME_LIMITS
            side, voxels = limits.get(device.type, limits["cuda"])
            window = choose_window(
                [case.card.shape for case in cases],
                backbone.size_divisor,
                smallest_window(backbone),
                side=side,
                voxels=voxels,
            )
        backbone.check_size(window)
        return {
            "window": list(window),
            "channels": cases[0].card.channels,
            "modalities": sorted({case.card.modality for case in cases}),
            "classes": names,
            "counts": [counts[name] for name in names],
        }

    def network(self, backbone: Backbone, spec: Mapping[str, Any]) -> ClassifyNetwork:
        """One linear layer on pooled features."""
        config = self.config
        return ClassifyNetwork(
            backbone, len(spec["classes"]), config.dropout,
            largest=config.pooling == "mean_and_max",
        )  # fmt: skip

    def module(self, network: nn.Module, spec: Mapping[str, Any]) -> TaskModule:
        """Cross-entropy on whole scans."""
        assert isinstance(network, ClassifyNetwork)
        config, counts = self.config, spec["counts"]
        weights = [1.0] * len(counts)
        if config.balanced:
            weights = [sum(counts) / (len(counts) * n) for n in counts]
        return ClassifyModule(
            network,
            self._scan(spec_index(spec, "window"), changed=True),
            weights,
            smoothing=config.smoothing,
            freeze=config.freeze,
            average=config.average,
        )

    def _scan(self, size: tuple[int, int, int], *, changed: bool) -> ViewSpec:
        config = self.config
        if not changed:
            return ViewSpec(size=size, place=Whole())
        solid = float(size[0] > 1)
        shift = config.translate
        return ViewSpec(
            size=size,
            place=Whole(),
            translate=(shift * solid, shift, shift),
            rotate_deg=(config.rotate_deg, 0.0, 0.0),
            scale=(1.0 / (1.0 + config.scale), 1.0 + config.scale),
            flip=config.flip,
            intensity=intensity_changes(config.intensity),
        )

    def targets(self, cases: Sequence[CaseRef], spec: Mapping[str, Any]) -> list[int]:
        """Number of each case's class."""
        names = list(spec["classes"])
        return [names.index(str(case.card.target)) for case in cases]

    def validate(
        self,
        model: Trained,
        cases: Sequence[CaseRef],
        look: Callable[..., None] | None = None,
    ) -> dict[str, float]:
        """``auc`` and the rest of ``classification_scores``; 0.5 where undefined."""
        truth = self.targets(cases, model.spec)
        chances = np.array([self._chances(model, _stored(case)) for case in cases])
        scores = classification_scores(truth, chances)
        if scores["auc"] is None:
            scores["auc"] = 0.5
        return {name: value for name, value in scores.items() if value is not None}

    def score(
        self, model: Trained, case: CaseRef, **options: Any
    ) -> Job[list[dict[str, Any]]]:
        """One row: the true and the likeliest class, and all probabilities."""
        yield from ()
        names = list(model.spec["classes"])
        if str(case.card.target) not in names:
            raise UnusableInput(
                f"the class {case.card.target!r} of case {case.card.id!r} is none of "
                f"the model's: {', '.join(names)}."
            )
        chances = self._chances(model, _stored(case))
        return [
            {
                "true": case.card.target,
                "predicted": names[int(chances.argmax())],
                **dict(zip(chance_columns(names), chances.tolist(), strict=True)),
            }
        ]

    def columns(self, spec: Mapping[str, Any]) -> Sequence[str]:
        """Case, true and likeliest class, probabilities."""
        return ("case", "true", "predicted", *chance_columns(spec["classes"]))

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """``mean``: metrics over all cases; ``confusion``: true -> predicted -> n."""
        if not rows:
            return {"cases": 0, "mean": {}, "confusion": {}}
        names = [key[len(_CHANCE) :] for key in rows[0] if key.startswith(_CHANCE)]
        columns = chance_columns(names)
        chances = np.array([[row[column] for column in columns] for row in rows])
        truth = [names.index(row["true"]) for row in rows]
        pairs = Counter((row["true"], row["predicted"]) for row in rows)
        return {
            "cases": len(rows),
            "mean": classification_scores(truth, chances),
            "confusion": {a: {b: pairs[a, b] for b in names} for a in names},
        }

    def report(self, result: Mapping[str, Any]) -> list[str]:
        """Metrics, then who was taken for whom."""
        lines = [f"{result['cases']} cases"]
        for name, value in result["mean"].items():
            told = "undefined" if value is None else f"{value:.3f}"
            lines.append(f"{name.replace('_', ' '):<20}{told}")
        for true, row in result["confusion"].items():
            told = ", ".join(f"{n} as {name}" for name, n in row.items() if n)
            lines.append(f"{true}: {told or 'none'}")
        return lines

    def run(self, volume: Volume, **inputs: Any) -> Job[ClassChances]:
        """The class of a scan.

        Args:
            volume: A scan as stored in its file.
            inputs: ``model``: Trained. ``modality``: take the scan for this one.

        Raises:
            UnusableInput: Another modality or number of channels than learnt from, or
                a volume for a model of slices.
        """
        model: Trained = inputs["model"]
        recipe = model_preprocessing(model, inputs.get("modality"))
        check_scan(model, volume, inputs.get("modality"))
        prepared = prepare_volume(volume, recipe)
        if prepared.note:
            yield Note(f"{volume.name}: {prepared.note}.", "warning")
        depth = prepared.data.shape[1]
        if spec_index(model.spec, "window")[0] == 1 and depth > 1:
            raise UnusableInput(
                f"the model classifies single slices, {volume.name!r} has {depth}."
            )
        scan = StoredScan(
            prepared.data, prepared.affine, prepared.scale, prepared.offset,
            prepared.intensity,
        )  # fmt: skip
        chances = self._chances(model, scan)
        names = model.spec["classes"]
        return ClassChances(
            volume.name, dict(zip(names, chances.tolist(), strict=True))
        )

    @torch.no_grad()
    def _chances(self, model: Trained, scan: StoredScan) -> np.ndarray:
        """Probabilities (K,) float64 of a prepared scan."""
        spec = self._scan(spec_index(model.spec, "window"), changed=False)
        view = view_of(spec, scan, model.device)
        was = model.network.training
        model.network.eval()
        try:
            enabled = model.precision == "bf16"
            with torch.autocast(model.device.type, torch.bfloat16, enabled=enabled):
                scores = model.network(view.flat())
        finally:
            model.network.train(was)
        found: np.ndarray = scores[0].double().softmax(0).cpu().numpy()
        return found


def chance_columns(names: Sequence[str]) -> list[str]:
    """Columns of the probabilities: no class can be named like another column."""
    return [_CHANCE + name for name in names]


def _stored(case: CaseRef) -> StoredScan:
    card = case.card
    data = np.asarray(case.store.image(card.id)[:])
    return StoredScan(data, card.affine, card.scale, card.offset, card.intensity)
