"""What a detector says of a scan: windows over it, their boxes merged, and the rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.data.box_utils import non_max_suppression
from numpy.typing import NDArray
from torch import Tensor

from homolog.events import Job, Progress, Request
from homolog.feed.batches import StoredScan, view_of
from homolog.geometry.affine import Index, Triple
from homolog.metrics.detection import (
    FROC_RATES,
    Finding,
    box_scores,
    class_mean,
    image_auc,
    overlaps,
)
from homolog.tasks.base import PredictOptions, Trained
from homolog.tasks.detect.detector import MOST_FOUND, Detector
from homolog.tasks.segment.network import spec_index
from homolog.training.stepping import autocast
from homolog.views.view import ViewSpec

MERGES = ("fusion", "nms")
# Windows of prediction may be so many times as long as those of training.
_STRETCH = 1.5

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes found in a scan, the surest first.

    Attributes:
        boxes: (N, 6) low and high edges (z, y, x) in voxels of the scan.
        label: (N,) int64, number of the class.
        scores: (N,) 0..1.
    """

    boxes: Numbers
    label: NDArray[np.int64]
    scores: Numbers

    @classmethod
    def none(cls) -> Boxes:
        """Nothing found."""
        return cls(np.zeros((0, 6)), np.zeros(0, np.int64), np.zeros(0))

    def kept(self, which: NDArray[Any]) -> Boxes:
        """Some of them."""
        return Boxes(self.boxes[which], self.label[which], self.scores[which])


# Where windows lie.


@dataclass(frozen=True)
class Window:
    """A window on a scan.

    Attributes:
        start: Its low edges (z, y, x) in voxels of the network's own size, 0 at the
            scan's; below 0 where the scan is smaller.
        size: Voxels (D, H, W).
        inner: Low and high edges of the part whose boxes count, in voxels of the
            window: what is nearer to a border is seen better by a neighbour.
    """

    start: Triple
    size: Index
    inner: tuple[Triple, Triple]


def windows_over(
    extent: Sequence[float], window: Index, overlap: float, whole: bool = False
) -> list[Window]:
    """Windows that cover a scan, evenly spread.

    Args:
        extent: Sides of the scan in voxels of the network's own size; no whole numbers.
        window: Sides of a window.
        overlap: Shared part of neighbours, at least; 0..1.
        whole: Starts are whole numbers, so that voxels are copied.
    """
    along = []
    for length, side in zip(extent, window, strict=True):
        gap = length - side
        if gap <= 0:
            starts = [math.floor(gap / 2) if whole else gap / 2]
        else:
            count = math.ceil(gap / max(1.0, side * (1 - overlap)) - 1e-9) + 1
            starts = [gap * i / (count - 1) for i in range(count)]
            starts = [float(round(s)) for s in starts] if whole else starts
        along.append([(s, *_inner(s, side, length, overlap)) for s in starts])
    return [
        Window(
            (z[0], y[0], x[0]), window,
            ((z[1], y[1], x[1]), (z[2], y[2], x[2])),
        )
        for z, y, x in itertools.product(*along)
    ]  # fmt: skip


def _inner(
    start: float, side: int, length: float, overlap: float
) -> tuple[float, float]:
    """A quarter of what neighbours share is left to them, but not at the scan's end."""
    margin = side * overlap / 4
    low = margin if start > 0.5 else -math.inf
    high = side - margin if start + side < length - 0.5 else math.inf
    return low, high


# From a scan to boxes.


def find_boxes(
    model: Trained,
    scan: StoredScan,
    options: PredictOptions = PredictOptions(),  # noqa: B008
    choose: Callable[[list[Window]], list[Window]] | None = None,
) -> Job[Boxes | None]:
    """Boxes of a prepared scan, merged over windows and mirrorings.

    Args:
        model: A detector.
        scan: As the store keeps it.
        options: ``flips``, ``overlap`` and ``windows`` count; ``least_score`` where
            it is below the model's least.
        choose: Windows that cover the scan -> those that are looked at; None: all.

    Returns:
        In voxels of the scan; None when told to stop.
    """
    network, spec = model.network, model.spec
    assert isinstance(network, Detector)
    own = np.array(scan.affine.spacing_mm)
    spacing = own_spacing(spec, scan.affine.spacing_mm)
    factor = np.array(spacing) / own
    extent = np.array(scan.shape) / factor
    overlap = spec["overlap"] if options.overlap is None else options.overlap
    asked = options.least_score
    least = spec["least_score"] if asked is None else min(spec["least_score"], asked)
    size = _window_of(network, spec, extent, options.windows)
    windows = windows_over(extent, size, overlap, bool((factor == 1).all()))
    windows = windows if choose is None else choose(windows)
    flips = [axis for axis in options.flips if axis in network.axes]
    turns = [
        tuple(a for a, on in zip(flips, marks, strict=True) if on)
        for marks in itertools.product((False, True), repeat=len(flips))
    ]
    heard = _Heard(model, factor, least)
    was = network.training
    network.eval()
    try:
        for number, window in enumerate(windows):
            news = Progress("windows", number, len(windows))
            if len(windows) > 1 and (yield news) is Request.STOP:
                return None
            image = _image(scan, window, spacing, factor, model.device)
            for turn in turns:
                heard.add(_Said(window, turn, _answer(model, image, turn)))
        heard.look()
    finally:
        network.train(was)
    merged = merge(heard.found, heard.seen, spec["iou"], spec["merge"])
    return _clipped(merged, scan.shape, network.axes)


def own_spacing(spec: Mapping[str, Any], scan_mm: Triple) -> Triple:
    """Voxel size at which the network looks at a scan; None on a card is its own."""
    told = spec.get("spacing_mm")
    if told is None:
        return scan_mm
    z, y, x = (float(mm) for mm in told)
    return z, y, x


def _window_of(
    network: Detector,
    spec: Mapping[str, Any],
    extent: Numbers,
    how: str | None,
) -> Index:
    """A scan that is not much larger is one window, where the network takes it."""
    window = spec_index(spec, "window")
    if how == "trained" or network.encoder.free_divisor is None:
        return window
    if any(n > _STRETCH * w for n, w in zip(extent, window, strict=True)):
        return window
    divisor = network.encoder.size_divisor
    z, y, x = (
        max(1, math.ceil(n / m - 1e-6)) * m
        for n, m in zip(extent, divisor, strict=True)
    )
    z, y, x = (max(a, b) for a, b in zip((z, y, x), spec["smallest"], strict=True))
    return (window[0] if window[0] == 1 else z), y, x


def _image(
    scan: StoredScan,
    window: Window,
    spacing: Triple,
    factor: Numbers,
    device: torch.device,
) -> Tensor:
    """(1, C, D, H, W) normalised intensities."""
    # the middle of the window's voxel 0, as a voxel position of the scan
    first = (np.array(window.start) + 0.5) * factor - 0.5
    affine = np.eye(4)
    affine[:3, :3] = scan.affine.matrix[:3, :3] * factor
    affine[:3, 3] = scan.affine.apply(first)
    view = view_of(ViewSpec(size=window.size, spacing_mm=spacing), scan, device, affine)
    return view.flat()


@dataclass(frozen=True, eq=False)
class _Said:
    """What the network said of a window.

    Attributes:
        window: Where it lies.
        turn: Axes it was mirrored along.
        said: Of ``Detector.forward``.
    """

    window: Window
    turn: Sequence[int]
    said: Any


# What is left on a GPU before it is looked at.
_HELD_BYTES = 256_000_000


class _Heard:
    """What was said of windows, and the boxes of what was looked at.

    A GPU goes on while it is kept; what it said is looked at together, on the host.

    Args:
        model: A detector.
        factor: Voxels of the scan by voxel of a window, along each axis.
        least: Boxes of smaller scores are left out.

    Attributes:
        found: Boxes of each window, in voxels of the scan.
        seen: Low and high edges of the part of the scan that each answers for.
    """

    def __init__(self, model: Trained, factor: Numbers, least: float) -> None:
        self._model, self._factor, self._least = model, factor, least
        self._waiting: list[_Said] = []
        self.found: list[Boxes] = []
        self.seen: list[tuple[Numbers, Numbers]] = []

    def add(self, one: _Said) -> None:
        """Take what was said of one more window."""
        self._waiting.append(one)
        on_gpu = self._model.device.type == "cuda"
        if not on_gpu or _held(self._waiting) > _HELD_BYTES:
            self.look()

    def look(self) -> None:
        """Make boxes of all that is kept."""
        network, factor = self._model.network, self._factor
        assert isinstance(network, Detector)
        for one in _on_host(self._waiting, self._model.device):
            start = np.tile(np.array(one.window.start), 2)
            low, high = (np.array(edge) + one.window.start for edge in one.window.inner)
            for boxes in _in_window(network, one, self._least):
                at = (boxes.boxes + start) * np.tile(factor, 2)
                self.found.append(Boxes(at, boxes.label, boxes.scores))
                self.seen.append((low * factor, high * factor))
        self._waiting.clear()


@torch.no_grad()
def _answer(model: Trained, image: Tensor, turn: Sequence[int]) -> Any:
    axes = [axis + 2 for axis in turn]
    with autocast(model.device, model.precision):
        return model.network(image.flip(axes) if axes else image)


def _held(heard: Sequence[_Said]) -> int:
    return sum(tensor.nbytes for one in heard for tensor in _tensors(one.said))


def _tensors(said: Any) -> list[Tensor]:
    """All tensors of what a detector said, in a fixed order."""
    if isinstance(said, Tensor):
        return [said]
    if is_dataclass(said):
        said = [getattr(said, field.name) for field in fields(said)]
    parts = said.values() if isinstance(said, dict) else said
    if not isinstance(said, dict | list | tuple):
        return []
    return [tensor for part in parts for tensor in _tensors(part)]


def _with_tensors(said: Any, given: Iterator[Tensor]) -> Any:
    """What was said with other tensors, in that order."""
    if isinstance(said, Tensor):
        return next(given)
    if is_dataclass(said) and not isinstance(said, type):
        own = {f.name: getattr(said, f.name) for f in fields(said)}
        return replace(said, **{k: _with_tensors(v, given) for k, v in own.items()})
    if isinstance(said, dict):
        return {k: _with_tensors(v, given) for k, v in said.items()}
    if isinstance(said, list):
        return [_with_tensors(part, given) for part in said]
    return said


def _on_host(heard: Sequence[_Said], device: torch.device) -> Sequence[_Said]:
    """What was said of windows, brought down together: a GPU is waited for once."""
    if device.type != "cuda" or not heard:
        return heard
    tensors = [tensor for one in heard for tensor in _tensors(one.said)]
    down: dict[int, Tensor] = {}
    for kind in {tensor.dtype for tensor in tensors}:
        places = [n for n, tensor in enumerate(tensors) if tensor.dtype == kind]
        flat = torch.cat([tensors[n].flatten() for n in places]).cpu()
        parts = torch.split(flat, [tensors[n].numel() for n in places])
        for n, part in zip(places, parts, strict=True):
            down[n] = part.view(tensors[n].shape)
    given = iter([down[n] for n in range(len(tensors))])
    return [replace(one, said=_with_tensors(one.said, given)) for one in heard]


def _in_window(network: Detector, one: _Said, least: float) -> list[Boxes]:
    """Boxes whose middles lie in the inner part, in voxels of the window."""
    window = one.window
    low, high = (np.array(edge) for edge in window.inner)
    opinions = []
    for boxes, label, scores in network.found(one.said, window.size, least):
        for axis in one.turn:
            side = window.size[axis]
            ends = boxes[:, [axis, axis + 3]]
            boxes[:, axis], boxes[:, axis + 3] = side - ends[:, 1], side - ends[:, 0]
        found = Boxes(
            boxes.double().cpu().numpy(), label.cpu().numpy(),
            scores.double().cpu().numpy(),
        )  # fmt: skip
        middle = (found.boxes[:, :3] + found.boxes[:, 3:]) / 2
        inner = np.all((middle >= low) & (middle <= high), axis=1)
        opinions.append(found.kept(inner))
    return opinions


def merge(
    found: Sequence[Boxes],
    seen: Sequence[tuple[Numbers, Numbers]],
    iou: float,
    how: str,
) -> Boxes:
    """One set of boxes of those of many windows.

    Of boxes of a class that overlap by ``iou`` the surest leads. With ``nms`` it
    stays as it is. With ``fusion`` its edges are means over those it stands for, each
    counting by its score, and its score is the mean of the best score of each window
    that sees the place; a window that says nothing counts as 0.

    Args:
        found: Of each window, in voxels of the scan.
        seen: Low and high edges of the part of the scan that each window answers for.
        iou: Between 0 and 1.
        how: ``fusion`` or ``nms``.

    Source: Solovyev et al., "Weighted boxes fusion", Image and Vision Computing 2021;
        Gidaris and Komodakis, ICCV 2015 (box voting).
    Differs from the paper: boxes are gathered around the surest as it was predicted,
        not around their running mean.
    """
    whole = Boxes(
        np.concatenate([part.boxes for part in found]),
        np.concatenate([part.label for part in found]),
        np.concatenate([part.scores for part in found]),
    )
    window = np.repeat(np.arange(len(found)), [len(part.label) for part in found])
    rows: list[tuple[Numbers, int, float]] = []
    for label in np.unique(whole.label):
        at = np.flatnonzero(whole.label == label)
        boxes, scores = whole.boxes[at], whole.scores[at]
        leaders = non_max_suppression(boxes, scores, iou, max_proposals=MOST_FOUND)
        if how == "nms":
            rows += [(boxes[n], int(label), float(scores[n])) for n in leaders]
            continue
        shared = overlaps(boxes[leaders], boxes)
        # each box stands behind the leader it overlaps most
        behind = shared.argmax(0)
        behind[shared.max(0) < iou] = -1
        behind[leaders] = np.arange(len(leaders))
        for place, n in enumerate(leaders):
            own = np.flatnonzero(behind == place)
            weights = scores[own][:, None]
            mean = (boxes[own] * weights).sum(0) / weights.sum()
            best: dict[int, float] = {}
            for member in own:
                number = int(window[at[member]])
                best[number] = max(best.get(number, 0.0), float(scores[member]))
            middle = (boxes[n, :3] + boxes[n, 3:]) / 2
            views = [
                k for k, (low, high) in enumerate(seen)
                if k in best or ((middle >= low) & (middle <= high)).all()
            ]  # fmt: skip
            score = sum(best.values()) / max(1, len(views))
            rows.append((mean, int(label), score))
    if not rows:
        return Boxes.none()
    rows.sort(key=lambda row: -row[2])
    rows = rows[:MOST_FOUND]
    return Boxes(
        np.stack([row[0] for row in rows]),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows]),
    )


def _clipped(found: Boxes, shape: Index, axes: Sequence[int]) -> Boxes:
    """Boxes within the scan; those that lie outside are dropped."""
    low = found.boxes[:, :3].clip(0, shape)
    high = found.boxes[:, 3:].clip(0, shape)
    for axis in set(range(3)) - set(axes):
        low[:, axis], high[:, axis] = 0, shape[axis]
    clipped = Boxes(np.concatenate([low, high], 1), found.label, found.scores)
    return clipped.kept((high - low > 1e-3).all(1))


# How good a detector is, from the rows of an evaluation.


COLUMNS = ("case", "class", "true", "told", "found", "best_iou", "best_score")
_TOLD = ("ap50", "ap10", "ap", "froc", "froc10", "auc")
_TITLES = {
    "ap50": "AP50", "ap10": "AP10", "ap": "AP", "froc": "FROC", "froc10": "FROC10",
    "auc": "AUC",
}  # fmt: skip


def finding_of(row: Mapping[str, Any]) -> Finding:
    """True and predicted boxes of a row, see ``case_rows``."""
    known = row["known"]
    return Finding(
        np.array(known["truth"], float).reshape(-1, 6),
        np.array(known["boxes"], float).reshape(-1, 6),
        np.array(known["scores"], float),
    )


def summarise_boxes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics over all cases, class by class and in the mean.

    Returns:
        ``cases``, ``images_with_boxes``; ``mean``; ``classes``: name -> ``box_scores``;
        ``rates``: at which the FROC is read; ``auc``: of scans that hold any box
        against those that hold none.
    """
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["class"] for row in rows))
    classes = {
        name: box_scores([finding_of(r) for r in rows if r["class"] == name])
        for name in names
    }
    truth = dict.fromkeys(cases, False)
    best = dict.fromkeys(cases, 0.0)
    for row in rows:
        truth[row["case"]] |= row["true"] > 0
        best[row["case"]] = max(best[row["case"]], *row["known"]["scores"], 0.0)
    return {
        "cases": len(cases),
        "images_with_boxes": sum(truth.values()),
        "mean": {**class_mean(classes), "auc": image_auc(
            [truth[c] for c in cases], [best[c] for c in cases]
        )},
        "classes": classes,
        "rates": list(FROC_RATES),
    }  # fmt: skip


def report_lines(result: Mapping[str, Any]) -> list[str]:
    """The table of classes, and the FROC."""
    lines = [
        f"{result['cases']} cases, {result['images_with_boxes']} of them with boxes",
        f"{'':<24}{'boxes':>6}" + "".join(f"{_TITLES[n]:>8}" for n in _TOLD),
    ]
    for name, scores in result["classes"].items():
        lines.append(f"{name[:23]:<24}{scores['truths']:>6}{_cells(scores)}")
    if len(result["classes"]) != 1 or result["mean"]["auc"] is not None:
        total = sum(s["truths"] for s in result["classes"].values())
        lines.append(f"{'all':<24}{total:>6}{_cells(result['mean'])}")
    lines.append("share of boxes found (IoU 0.5) at so many false ones per scan:")
    lines.append(f"{'':<24}" + "".join(f"{rate:>7g}" for rate in result["rates"]))
    for name, scores in result["classes"].items():
        curve = scores["sensitivities"]
        shown = "" if curve is None else "".join(f"{share:>7.2f}" for share in curve)
        lines.append(f"{name[:23]:<24}{shown or '      -'}")
    return lines


def _cells(scores: Mapping[str, float | None]) -> str:
    values = (scores[name] for name in _TOLD)
    return "".join(f"{'-' if v is None else f'{v:.3f}':>8}" for v in values)
