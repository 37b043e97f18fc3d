"""The contract of a task: a use of an encoder that labels or classifies scans.

``Task`` is what ``homolog predict`` needs of a model; ``LearnedTask`` adds what the
fine-tuning job and an evaluation need. Below: the metrics of label maps, shared by all
tasks that have them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from homolog.config import from_dict, option, to_dict
from homolog.events import Job
from homolog.geometry.affine import Triple
from homolog.metrics.overlap import SurfaceScore, dice_per_label, surface_per_label
from homolog.nn.optim import Teacher
from homolog.store.learnt_spacing import Learnt

if TYPE_CHECKING:
    import torch

    from homolog.backbones.base import Backbone
    from homolog.feed.places import Search
    from homolog.feed.reading import CaseRef
    from homolog.model_files.folder import LoadedModel
    from homolog.recipes import Sources
    from homolog.scans.volume import LabelMap, Volume
    from homolog.store.card import Card
    from homolog.views.view import Views, ViewSpec


# Share of a training after which the weight average has its full momentum.
_AVERAGE_FROM = 0.1
# In the ``meta`` of a label map: JSON types that ``predict`` reports beside it.
FACTS = "told"
METRICS = ("dice", "iou", "nsd", "hd95_mm")
_HIGHER_IS_BETTER = {"dice": True, "iou": True, "nsd": True, "hd95_mm": False}


@dataclass(frozen=True)
class PredictOptions:
    """How scans are predicted; a task heeds what concerns it.

    Attributes:
        flips: Axes (0: z, 1: y, 2: x) whose mirrorings are averaged.
        overlap: Of neighbouring windows, 0..1; None takes the model's.
        windows: ``scan``: a scan not much larger than the window of training is one
            window; ``trained``: that of training, always; None: ``scan``.
        modality: Take scans for this one, whatever their files say.
        least_score: Boxes with a smaller score are not told; None takes the model's.
    """

    flips: tuple[int, ...] = ()
    overlap: float | None = None
    windows: str | None = None
    modality: str | None = None
    least_score: float | None = None


class Findings(Protocol):
    """What a task says of a scan as a whole."""

    def to_dict(self) -> dict[str, Any]:
        """A row of a table, JSON types."""
        ...


class Task(ABC):
    """One use of an encoder.

    Attributes:
        Config: Frozen dataclass; makes flags, form and recipe file.
        title: Name for people.
        learns: Whether it is fine-tuned on labelled cases first (see LearnedTask).
    """

    Config: ClassVar[type]
    title: ClassVar[str] = ""
    learns: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def opened(
        cls, loaded: LoadedModel, device: torch.device, precision: str | None
    ) -> tuple[Task, Trained] | None:
        """A saved model of this task that is opened in a way of its own.

        Args:
            loaded: Its folder, read and verified.
            device: Where it is to run.
            precision: As for ``open_trained``.

        Returns:
            The task and the model; None: it is a trained network, opened as all are.
        """
        return None

    @abstractmethod
    def run(
        self,
        volume: Volume,
        model: Trained,
        options: PredictOptions = PredictOptions(),
    ) -> Job[LabelMap | Volume | Findings | None]:
        """Predict one scan.

        Args:
            volume: A scan as stored in its file.
            model: A model of this task.
            options: How.

        Returns:
            Labels or an image on the scan's own grid, or findings; None when stopped.

        Raises:
            UnusableInput: Another modality or number of channels than learnt from.
        """


class TaskModule(nn.Module, ABC):
    """What is trained: an encoder with a task's head. The training loop's contract.

    Its ``deployed()`` part is what is validated, saved and predicts later.

    Args:
        network: What learns; its ``encoder`` is what came pretrained.
        average: Momentum of the average of its weights over the steps; 0 keeps none.

    Attributes:
        compares_samples: Whether a loss compares the samples of a batch.
    """

    compares_samples: ClassVar[bool] = False

    def __init__(self, network: nn.Module, average: float = 0.0) -> None:
        super().__init__()
        self.network: Any = network
        self.momentum = average
        self.average = Teacher(network) if average > 0 else None

    @abstractmethod
    def views(self) -> dict[str, ViewSpec]:
        """What it needs to see, labels included."""

    @abstractmethod
    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """Weighted scalar terms; their sum is minimised. ``progress`` runs 0..1."""

    def after_step(self, progress: float) -> None:
        """Move the weight average; it starts as a copy and slows down."""
        if self.average is not None:
            share = min(1.0, progress / _AVERAGE_FROM)
            self.average.update(self.network, self.momentum * share)

    def monitors(self) -> dict[str, Tensor]:
        """Scalars that show whether learning is healthy."""
        return {}

    def encoder(self) -> Backbone:
        """The part that came pretrained; it gets its own learning rate."""
        encoder: Backbone = self.network.encoder
        return encoder

    def deployed(self) -> nn.Module:
        """The network to evaluate and save: the trained one or its weight average."""
        network: nn.Module = self.network
        return network if self.average is None else self.average.module


@dataclass(frozen=True)
class LearnedConfig:
    """What every learned task knows; each adds its own fields."""

    encoder_factor: float = option(
        1.0,
        "learning rate of the encoder, and of what else came pretrained, as a share of "
        "that of what is new; 0: it stays as it came",
        minimum=0.0,
    )
    decoder: str = option(
        "auto",
        "decoder that came with the encoder: auto, what fits of it is taken; none, it "
        "starts from random weights",
        choices=("auto", "none"),
        advanced=True,
    )
    layer_decay: float = option(
        1.0,
        "factor of the rate from each stage of the encoder to the next finer one, down "
        "to its first layers; 1: all stages alike",
        minimum=0.0,
        maximum=1.0,
    )
    head_first: float = option(
        0.0,
        "share of the training during which only what is new learns, and what came "
        "pretrained stays as it came",
        minimum=0.0,
        maximum=1.0,
    )
    sawtooth: bool = option(
        True,
        "where only what is new learns first: all rates rise anew when the rest joins",
        advanced=True,
    )
    average: float = option(
        0.0,
        "momentum of the weight average that is validated and saved; 0 takes the "
        "weights themselves",
        minimum=0.0,
        maximum=0.9999,
        advanced=True,
    )
    validate_cases: int | None = option(
        16,
        "labelled held-out cases that choose which weights are kept, at most; 0: all; "
        "empty: none, the last weights (or their average) are kept",
        minimum=0,
        empty="none",
    )


C = TypeVar("C", bound=LearnedConfig)


def settings_of(config: type[C], told: Mapping[str, Any], *, where: str = "") -> C:
    """A task's settings as a run or a model holds them, of earlier versions too.

    Args:
        config: Of the task.
        told: Names to values, JSON types.
        where: Names the source in error messages.

    Raises:
        ConfigError: A name or value that cannot be meant.
    """
    return from_dict(config, renamed(config, told), where=where)


def renamed(config: type[LearnedConfig], told: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under their names of today: ``head_first`` was ``freeze``.

    Where an earlier version wrote all its settings, those it had not are as they were:
    nothing rises anew.
    """
    found = dict(told)
    if "freeze" not in found or any(f.name == "freeze" for f in fields(config)):
        return found
    found.setdefault("head_first", found.pop("freeze"))
    if {"encoder_factor", "average", "validate_cases"} <= found.keys():
        return {**to_dict(config()), "sawtooth": False, **found}
    return found


@dataclass(frozen=True, eq=False)
class Trained:
    """A fine-tuned network that is ready to predict.

    Attributes:
        network: In evaluation mode, on its device.
        spec: What ``LearnedTask.describe`` returned when it was trained.
        card: The whole ``model.json``; empty while training.
        device: Where it runs.
        precision: ``fp32``, or ``bf16`` for autocast.
        learnt: The voxel size it learnt at.
    """

    network: nn.Module
    spec: Mapping[str, Any]
    card: Mapping[str, Any]
    device: torch.device
    precision: str = "fp32"
    learnt: Learnt = field(default_factory=Learnt)


class LearnedTask(Task):
    """A task fine-tuned on labelled cases. One file holds all that is special to it.

    The fine-tuning job chooses cases, encoder and optimiser, trains ``module()`` and
    saves its ``deployed()`` network together with ``describe()``'s answer, from which
    ``network()`` builds it again.

    Attributes:
        Config: A LearnedConfig.
        best_metric: The validation metric that decides which weights are kept; with a
            leading ``-`` lower is better.
        of_sets: Whether it is a score of many cases together (average precision), so
            that cases have none by themselves and their mean would be another thing.
        takes_label_maps: Whether label maps teach it: maps carried from one patient to
            others can.
        lacking: What to do where no case of a store is usable.
        RECIPES: ``cpu``, ``gpu`` -> nested overrides with the keys ``task``,
            ``backbone`` (with ``name``), ``training``; and ``pretrained``, further
            ones of ``task`` and ``training`` that hold where an encoder is given. What
            suits another network better is that network's own: see
            ``Backbone.FINETUNE``.
        SOURCES: Of a recipe as published, where each of its settings is from: see
            ``homolog.recipes.Sources``.
        joins: Whether the answers of several models can be averaged (``joined``).
    """

    Config: ClassVar[type] = LearnedConfig
    joins: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    best_metric: ClassVar[str] = ""
    of_sets: ClassVar[bool] = False
    takes_label_maps: ClassVar[bool] = True
    lacking: ClassVar[str] = (
        "give label maps to: homolog prepare SCANS --labels DIR --out STORE, or "
        "classes of whole scans, or boxes, in a manifest"
    )
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    SOURCES: ClassVar[Mapping[str, Sources]] = {}

    @abstractmethod
    def usable(self, card: Card) -> bool:
        """Whether a case carries the labels the task learns from."""

    @abstractmethod
    def describe(
        self,
        cases: Sequence[CaseRef],
        backbone: Backbone,
        device: torch.device,
    ) -> dict[str, Any]:
        """Everything but weights that the network must remember; JSON types.

        Args:
            cases: All usable cases of the store, not only those trained on.
            backbone: The encoder it is built on.
            device: Where it trains; larger windows fit a GPU.
        """

    @abstractmethod
    def network(self, backbone: Backbone, spec: Mapping[str, Any]) -> nn.Module:
        """Encoder (as ``.encoder``) plus head, untrained head."""

    def joined(self, networks: Sequence[nn.Module]) -> nn.Module:
        """One network whose answers are the mean of several.

        Args:
            networks: As ``network`` makes them, as ``.members`` of the result.

        Raises:
            NotImplementedError: Where the task does not say that it ``joins``.
        """
        raise NotImplementedError(f"models of {self.title} cannot be joined.")

    @abstractmethod
    def module(self, network: nn.Module, spec: Mapping[str, Any]) -> TaskModule:
        """What the training loop trains."""

    def why_none(self, cards: Sequence[Card]) -> str:
        """What to do where no case of a store is usable."""
        return self.lacking

    def channels(self, card: Card) -> int:
        """How many channels of a case the encoder sees."""
        return card.channels

    def unclipped(self, spec: Mapping[str, Any]) -> Sequence[int]:
        """Channels of a case that are wanted with all their values."""
        return ()

    @property
    def balance(self) -> float:
        """Share of crops centred on a uniformly chosen label (0: anywhere)."""
        return 0.0

    def targets(
        self, cases: Sequence[CaseRef], spec: Mapping[str, Any]
    ) -> list[list[float]] | None:
        """A row of numbers per case for ``View.target``; None where scans have none."""
        return None

    def placing(self, cases: Sequence[CaseRef]) -> Sequence[CaseRef]:
        """The cases as the feed places crops in them; it centres some on labels."""
        return cases

    def search(
        self,
        module: TaskModule,
        model: Callable[[], Trained],
        cases: Sequence[CaseRef],
        spec: Mapping[str, Any],
        seed: int,
    ) -> Search | None:
        """What is looked for in training scans as it learns, to show it again.

        Args:
            module: What is trained; holds what is found.
            model: The deployed network as it is now.
            cases: Those learnt from, in the feed's order.
            spec: Of ``describe``.
            seed: Of the run.
        """
        return None

    def remark(self, spec: Mapping[str, Any], chosen: int) -> str:
        """A sentence before the training, where there is something to know.

        Args:
            spec: Of ``describe``.
            chosen: Held-out cases that will choose the weights.
        """
        return ""

    def settle(self, model: Trained, cases: Sequence[CaseRef]) -> dict[str, Any]:
        """What the chosen network and the held-out cases add to ``describe``'s answer.

        Args:
            model: With the weights that are kept.
            cases: Held-out cases; at least one.
        """
        return {}

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What an evaluation reports of the rows of ``score``; with ``cases``."""
        return summarise(rows)

    def columns(self, spec: Mapping[str, Any]) -> Sequence[str]:
        """Columns of the table that an evaluation writes, ``case`` first."""
        return ("case", "label", "name", *METRICS)

    def report(self, result: Mapping[str, Any]) -> list[str]:
        """An evaluation's summary for people, in lines."""
        return table_lines(result)

    def effort(self, card: Card, spec: Mapping[str, Any]) -> float:
        """How many training samples take as long as predicting a case, about."""
        return 1.0

    @abstractmethod
    def validate(
        self,
        model: Trained,
        cases: Iterable[CaseRef],
        look: Callable[..., None] | None = None,
        share: float = 1.0,
    ) -> dict[str, float]:
        """Mean metrics on held-out cases; holds ``best_metric``.

        Args:
            model: The network as it is now.
            cases: Held-out cases, met once and one by one: the next is taken when the
                one before is done, for time may end it.
            look: Called with case, stored image, predicted and true label values,
                for the pictures; tasks without label maps may call its ``boxes`` or
                ``images`` instead, where it has them.
            share: Part of each scan to look at, 0..1, where time is short; tasks that
                see a scan as a whole look at all of it.
        """

    @abstractmethod
    def score(
        self,
        model: Trained,
        case: CaseRef,
        *,
        flips: Sequence[int] = (),
        tolerance_mm: float = 1.0,
    ) -> Job[list[dict[str, Any]]]:
        """Predict one labelled case of a store; one row of metrics per label.

        Args:
            model: A model of this task.
            case: Labelled, prepared as the model's training cases were.
            flips: Axes whose mirrorings are averaged.
            tolerance_mm: Of the NSD.
        """


# One row of metrics per label of a case, and their summary over cases.


def score_labels(
    predicted: NDArray[Any],
    truth: NDArray[Any],
    names: Mapping[int, str],
    *,
    spacing_mm: Triple | None,
    tolerance_mm: float = 1.0,
    regions: Mapping[str, Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """Dice, IoU, NSD and HD95 of every label.

    A label that both maps lack is left empty (None) and enters no mean. One that only
    one of them has scores Dice 0, IoU 0, NSD 0 and the diagonal of the scan as HD95.
    Voxels that are unlabelled (negative) in ``truth`` count in neither.

    Args:
        predicted: (D, H, W) label values.
        truth: (D, H, W) label values.
        names: Label value -> name; these labels are scored.
        spacing_mm: Voxel size (z, y, x); None: unknown, and so are NSD and HD95.
        tolerance_mm: Of the NSD.
        regions: Name -> values that are scored as one, too; their ``label`` is a text,
            ``1+2``, and they enter no mean over labels.

    Returns:
        Rows with ``label``, ``name`` and the METRICS.

    Paper: Joint IoU in 3D.
    """
    dice = dice_per_label(predicted, truth, list(names))
    unknown = SurfaceScore(float("nan"), float("nan"))
    surface = dict.fromkeys(names, unknown)
    if spacing_mm is not None:
        surface = surface_per_label(
            predicted, truth, list(names), spacing_mm=spacing_mm,
            tolerance_mm=tolerance_mm,
        )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name, values in (regions or {}).items():
        found, true = (
            np.isin(one, list(values)).astype(np.int8) for one in (predicted, truth)
        )
        true[truth < 0] = -1
        (row,) = score_labels(
            found, true, {1: name}, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm
        )
        rows.append({**row, "label": "+".join(map(str, values))})
    return [
        {
            "label": label,
            "name": name,
            "dice": _or_none(dice[label]),
            # of the same two sets: intersection over union follows from Dice
            "iou": _or_none(dice[label] / (2.0 - dice[label])),
            "nsd": _or_none(surface[label].nsd),
            "hd95_mm": _or_none(surface[label].hd95_mm),
        }
        for label, name in names.items()
    ] + rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over cases, per label and in all, and the worst case of each metric.

    A case's value is the mean over its labels; ``mean`` is the mean of those, so that a
    case with few labels weighs as much as another.

    Args:
        rows: As from score_labels, with ``case``.

    Returns:
        ``cases``; ``mean`` and ``std`` (metric -> number); ``worst`` (metric -> case
        and value); ``labels`` (name -> metric -> mean).
    """
    cases = list(dict.fromkeys(row["case"] for row in rows))
    labels = list(dict.fromkeys(row["name"] for row in rows))
    single = [row for row in rows if not isinstance(row.get("label"), str)]
    summary: dict[str, Any] = {
        "cases": len(cases), "mean": {}, "std": {}, "worst": {}, "labels": {},
    }  # fmt: skip
    for metric in METRICS:
        per_case = {c: _mean(_values(single, metric, "case", c)) for c in cases}
        known = {c: v for c, v in per_case.items() if v is not None}
        mean = _mean(list(known.values()))
        summary["mean"][metric] = mean
        if mean is None:
            continue
        spread = sum((v - mean) ** 2 for v in known.values()) / len(known)
        summary["std"][metric] = math.sqrt(spread)
        choose = min if _HIGHER_IS_BETTER[metric] else max
        worst = choose(known, key=lambda c: known[c])
        summary["worst"][metric] = {"case": worst, "value": known[worst]}
    for label in labels:
        summary["labels"][label] = {
            metric: _mean(_values(rows, metric, "name", label)) for metric in METRICS
        }
    return summary


def _values(
    rows: Sequence[Mapping[str, Any]], metric: str, key: str, value: Any
) -> list[float]:
    return [
        r[metric] for r in rows if r[key] == value and r.get(metric) is not None
    ]  # rows of earlier versions have no IoU


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """The summary for people."""
    lines = [f"{result['cases']} cases"]
    head = f"{'':<24}{'Dice':>8}{'IoU':>8}{'NSD':>8}{'HD95 mm':>9}"
    lines.append(head)
    for name, means in result["labels"].items():
        lines.append(f"{name[:23]:<24}{_cells(means)}")
    lines.append(f"{'mean':<24}{_cells(result['mean'])}")
    worst = {m: w["value"] for m, w in result["worst"].items()}
    lines.append(f"{'worst case':<24}{_cells(worst)}")
    if "dice" in result["worst"]:
        lines.append(f"worst Dice: {result['worst']['dice']['case']}")
    return lines


def _cells(values: Mapping[str, float | None]) -> str:
    *shares, distance = (values.get(m) for m in METRICS)
    text = "".join(f"{'-' if v is None else f'{v:.3f}':>8}" for v in shares)
    return text + f"{'-' if distance is None else f'{distance:.2f}':>9}"
