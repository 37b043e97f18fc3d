"""What a classifier says of a scan, and the report over many scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.feed.batches import StoredScan, view_of
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Index
from homolog.label_names import findings_text
from homolog.metrics.classification import (
    classification_scores,
    finding_scores,
    macro_mean,
)
from homolog.store.preprocess import Prepared
from homolog.tasks.base import Trained
from homolog.tasks.classify.network import (
    ClassifyNetwork,
    JoinedClassifiers,
    keeps_slices,
    slices_inside,
)
from homolog.tasks.classify.space import ClassifyConfig
from homolog.tasks.classify.truth import slice_positions
from homolog.tasks.segment.network import spec_index
from homolog.tasks.segment.task import intensity_changes
from homolog.training.stepping import autocast
from homolog.views.view import ViewSpec, Whole
from homolog.words import as_csv
from homolog.writing import write_text

# What a classifier says of one scan, and the tables it is written to.


_CHANCE = "p_"
_TYPE = "type_"
_SLICE_PLACE = ("slice", "z_mm")


@dataclass(frozen=True)
class ClassChances:
    """What a classifier says of a scan.

    Attributes:
        name: Of the scan.
        chances: Class -> probability; they sum to 1 where a scan has one class.
        thresholds: Class -> least probability at which it is told to be there, where
            a scan may have several; empty where it has one.
        types: Further findings -> probability.
        slices: One row per slice looked at: ``slice`` (number along z of the scan in
            canonical axes, from 0; the viewer's slider), ``z_mm`` (LPS), and what is
            told of it: ``presence`` (probability that it shows a finding),
            ``attention`` (its share in the answer), and the probabilities of the
            classes, the slice seen alone.
    """

    name: str
    chances: Mapping[str, float]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    types: Mapping[str, float] = field(default_factory=dict)
    slices: Sequence[Mapping[str, float]] = ()

    @property
    def predicted(self) -> str:
        """The likeliest class; of several, those above their threshold."""
        if not self.thresholds:
            return max(self.chances, key=lambda name: self.chances[name])
        return findings_text(
            name for name, p in self.chances.items() if p >= self.thresholds[name]
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON types: ``class``, ``chances``, and what else there is."""
        told: dict[str, Any] = {
            "class": self.predicted, "chances": dict(self.chances),
        }  # fmt: skip
        if self.thresholds:
            told["thresholds"] = dict(self.thresholds)
        if self.types:
            told["types"] = dict(self.types)
        if self.slices:
            told["slices"] = [dict(row) for row in self.slices]
        return told


def chance_columns(names: Sequence[str]) -> list[str]:
    """Columns of the probabilities: no class can be named like another column."""
    return [_CHANCE + name for name in names]


def type_columns(names: Sequence[str]) -> list[str]:
    """Columns of the probabilities of types."""
    return [_TYPE + name for name in names]


def class_of_column(column: str) -> str | None:
    """Inverse of ``chance_columns``; None for another column."""
    return column[len(_CHANCE) :] if column.startswith(_CHANCE) else None


def write_classes(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row per scan: what it is told to be, and the probability of each class.

    Args:
        path: Of the table.
        rows: ``scan`` and what ``ClassChances.to_dict`` gives.
    """
    names, types = list(rows[0]["chances"]), list(rows[0].get("types", ()))
    lines = [["scan", "class", *chance_columns(names), *type_columns(types)]]
    for row in rows:
        numbers = [row["chances"][name] for name in names]
        numbers += [row["types"][name] for name in types]
        lines.append([row["scan"], row["class"], *(f"{p:.4f}" for p in numbers)])
    _write(path, lines)


def write_slices(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row per slice looked at of each scan, see ``ClassChances.slices``."""
    names = [n for n in rows[0]["slices"][0] if n not in _SLICE_PLACE]
    lines = [["scan", *_SLICE_PLACE, *names]]
    for row in rows:
        for told in row.get("slices", ()):
            numbers = (f"{told[name]:.4f}" for name in names)
            place = [str(int(told["slice"])), f"{told['z_mm']:.3f}"]
            lines.append([row["scan"], *place, *numbers])
    _write(path, lines)


def _write(path: Path, lines: Sequence[Sequence[str]]) -> None:
    write_text(path, as_csv(lines[0], lines[1:]))


# How good a classifier is, from the rows of an evaluation.


_TYPE_COLUMN = type_columns([""])[0]
_TOLD = (
    "auc", "average_precision", "accuracy", "sensitivity", "specificity",
    "calibration_error",
)  # fmt: skip


# Of slices, as the metastasis study tells them.
SLICE_METRICS = ("auc", "average_precision", "accuracy")


def summarise_classes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics over all cases.

    Args:
        rows: As ``Classify.score`` makes them, with ``case``; ``known`` holds what is
            known beside one class: marks (1, 0, -1 not known) of ``classes``, whether
            each is ``told``, marks of ``types``, of ``slices`` and their ``presence``.

    Returns:
        ``cases``; ``mean``: of one class per scan ``classification_scores``, of several
        the mean over classes; ``classes``: class -> ``finding_scores``; ``confusion``
        (one class per scan): true -> predicted -> n; ``types`` and ``slices`` where the
        model tells of them.
    """
    if not rows:
        return {"cases": 0, "mean": {}, "classes": {}, "confusion": {}}
    names = [n for n in map(class_of_column, rows[0]) if n is not None]
    chances = np.array([[row[c] for c in chance_columns(names)] for row in rows])
    result: dict[str, Any] = {"cases": len(rows)}
    known = [row.get("known", {}) for row in rows]
    if "classes" in known[0]:
        truth = np.array([marks["classes"] for marks in known])
        told = np.array([marks["told"] for marks in known], bool)
        scores = finding_scores(truth, chances, told)
        result["mean"] = macro_mean(scores)
    else:
        numbers = [names.index(row["true"]) for row in rows]
        truth = np.eye(len(names), dtype=np.int64)[numbers]
        told = np.eye(len(names), dtype=bool)[chances.argmax(1)]
        scores = finding_scores(truth, chances, told)
        result["mean"] = classification_scores(numbers, chances)
        pairs = Counter((row["true"], row["predicted"]) for row in rows)
        result["confusion"] = {a: {b: pairs[a, b] for b in names} for a in names}
    result["classes"] = dict(zip(names, scores, strict=True))
    if "types" in known[0]:
        result["types"] = _types(rows, np.array([marks["types"] for marks in known]))
    if "slices" in known[0]:
        result["slices"] = slice_scores(
            np.concatenate([marks["slices"] for marks in known]),
            np.concatenate([marks["presence"] for marks in known]),
            float(known[0].get("limit", 0.5)),
        )
        if known[0].get("by_slice"):  # nothing else was asked of it
            told_of = result["slices"]
            result["mean"] = {name: told_of[name] for name in SLICE_METRICS}
            result["classes"] = {}
    return result


def _types(
    rows: Sequence[Mapping[str, Any]], truth: NDArray[np.int64]
) -> dict[str, Any]:
    names = [
        key[len(_TYPE_COLUMN) :] for key in rows[0] if key.startswith(_TYPE_COLUMN)
    ]
    chances = np.array([[row[c] for c in type_columns(names)] for row in rows])
    scores = finding_scores(truth, chances, chances >= 0.5)
    return {
        "mean": macro_mean(scores),
        "classes": dict(zip(names, scores, strict=True)),
    }


def slice_scores(
    truth: NDArray[np.int64], presence: NDArray[np.float64], limit: float = 0.5
) -> dict[str, float | None]:
    """``finding_scores`` of slices: whether each shows a finding, (N,) each.

    Args:
        truth: 1 shows, 0 does not, -1 not known.
        presence: Probability.
        limit: From which one is told to show it.
    """
    chances = presence[:, None]
    return finding_scores(truth[:, None], chances, chances >= limit)[0]


def report_lines(result: Mapping[str, Any]) -> list[str]:
    """Metrics, each class on its own, then who was taken for whom."""
    lines = [f"{result['cases']} cases"]
    several = result["cases"] and "confusion" not in result
    if several and result["classes"]:
        lines.append("mean over classes:")
    for name, value in result["mean"].items():
        lines.append(f"{name.replace('_', ' '):<20}{_number(value)}")
    if several:
        lines += [_line(name, s) for name, s in result["classes"].items()]
    for true, row in result.get("confusion", {}).items():
        told = ", ".join(f"{n} as {name}" for name, n in row.items() if n)
        lines.append(f"{true}: {told or 'none'}")
    types = result.get("types", {}).get("classes", {})
    lines += [_line(f"type {name}", scores) for name, scores in types.items()]
    if "slices" in result:
        lines.append(_line("slices with a finding", result["slices"]))
    return lines


def _line(name: str, scores: Mapping[str, Any]) -> str:
    """``effusion (12 of 40): auc 0.91, ...``."""
    known = scores["positives"] + scores["negatives"]
    told = [f"{key.replace('_', ' ')} {_number(scores[key])}" for key in _TOLD]
    return f"{name} ({scores['positives']} of {known}): {', '.join(told)}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a classifier says of one scan; slices are those of the view inside it (n).

    Attributes:
        chances: (K,) probabilities of the classes.
        types: (T,) probabilities of the types.
        places: (n,) where the slices lie among the prepared scan's.
        z_mm: (n,) z of their middles in the world, LPS.
        covered: (n, 2) first slice of the prepared scan that each covers, and one past
            the last.
        presence: (n,) probability that a slice shows a finding; (0,) where not learnt.
        attention: (n,) its share in the answer; None but slice by slice.
        alone: (n, K) probabilities of the classes, the slice seen by itself; likewise.
    """

    chances: Numbers
    types: Numbers
    places: Numbers
    z_mm: Numbers
    covered: NDArray[np.int64]
    presence: Numbers
    attention: Numbers | None
    alone: Numbers | None

    def slice_rows(
        self, numbers: Numbers, classes: Sequence[str]
    ) -> list[dict[str, float]]:
        """See ``ClassChances.slices``; empty where slices are not told apart.

        Args:
            numbers: (D,) number in the scan's own grid of each prepared slice.
            classes: Names.
        """
        if self.attention is None and not len(self.presence):
            return []
        own = np.interp(self.places, np.arange(len(numbers)), numbers)
        rows = []
        for row, (number, z_mm) in enumerate(zip(own, self.z_mm, strict=True)):
            told = {"slice": float(round(number)), "z_mm": float(z_mm)}
            if len(self.presence):
                told["presence"] = float(self.presence[row])
            if self.attention is not None:
                told["attention"] = float(self.attention[row])
            if self.alone is not None:
                alone = zip(classes, self.alone[row], strict=True)
                told |= {f"p_{name}": float(p) for name, p in alone}
            rows.append(told)
        return sorted(rows, key=lambda told: told["slice"])


def view_spec(
    size: Index, config: ClassifyConfig | None = None, *, slices: bool = False
) -> ViewSpec:
    """The view of a scan: as it is, or changed at random.

    Args:
        size: The window (D, H, W).
        config: How it is changed.
        slices: Whether the encoder keeps slices apart: then they are the scan's own.
    """
    place = Whole(slices=slices)
    if config is None:
        return ViewSpec(size=size, place=place)
    solid = float(size[0] > 1)
    shift = config.translate
    return ViewSpec(
        size=size,
        place=place,
        translate=(shift * solid, shift, shift),
        rotate_deg=(config.rotate_deg, 0.0, 0.0),
        scale=(1.0 / (1.0 + config.scale), 1.0 + config.scale),
        flip=config.flip,
        intensity=intensity_changes(config.intensity),
    )


@torch.no_grad()
def answer(model: Trained, scan: StoredScan) -> Answer:
    """What the model says of a prepared scan."""
    network = model.network
    assert isinstance(network, ClassifyNetwork | JoinedClassifiers)
    window = spec_index(model.spec, "window")
    spec = view_spec(window, slices=keeps_slices(network.encoder))
    view = view_of(spec, scan, model.device)
    valid = slices_inside(view)
    was = network.training
    network.eval()
    try:
        with autocast(model.device, model.precision):
            scores = network.scores(view.flat(), valid)
    finally:
        network.train(was)
    several = bool(model.spec.get("several", False))

    def chances(logits: torch.Tensor) -> Numbers:
        exact = logits.double()
        sure = exact.sigmoid() if several else exact.softmax(-1)
        return np.asarray(sure.cpu().numpy())

    inside = valid[0].cpu().numpy()
    affine = view.affine[:, 0].cpu()
    place = torch.tensor(scan.affine.inverse().matrix[:1])
    at, step = slice_positions(place, affine, window)
    places = np.clip(at[0].numpy()[inside], 0, scan.shape[0] - 1)
    reach = max(float(step[0]) / 2, 0.5) + 1e-3
    first = np.ceil(places - reach).clip(0).astype(np.int64)
    last = np.floor(places + reach).astype(np.int64) + 1
    middle = (np.array(scan.shape) - 1) / 2
    points = np.stack([places, *(np.full(len(places), m) for m in middle[1:])], 1)
    none = np.zeros(0)
    types, slices, shares = scores.types, scores.slices, scores.attention
    alone = scores.alone
    return Answer(
        chances=chances(scores.classes[0]),
        types=none if types is None else types[0].double().sigmoid().cpu().numpy(),
        places=places,
        z_mm=scan.affine.apply(points)[:, 0],
        covered=np.stack([first, last], 1),
        presence=none
        if slices is None
        else slices[0].double().sigmoid().cpu().numpy()[inside],
        attention=None if shares is None else shares[0].double().cpu().numpy()[inside],
        alone=None if alone is None else chances(alone[0])[inside],
    )


def stored_scan(prepared: Prepared) -> tuple[StoredScan, Numbers]:
    """A scan's file as the store would keep it.

    Returns:
        The scan, and the number in its own canonical grid of each of its slices.
    """
    scan = StoredScan(prepared.data, prepared.affine, prepared.levels)
    return scan, prepared.grid.positions(0)


def stored(case: CaseRef) -> StoredScan:
    """A case of a store."""
    card = case.card
    data = np.asarray(case.store.image(card.id)[:])
    return StoredScan(data, card.affine, card.levels)
