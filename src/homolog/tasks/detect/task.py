"""The detect task: boxes of findings or organs with class and score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from homolog.backbones.base import Backbone
from homolog.config import as_in, option
from homolog.errors import UnusableInput
from homolog.events import Job, Note, drain
from homolog.feed.batches import StoredScan
from homolog.feed.reading import CaseRef, grid_of
from homolog.geometry.affine import Affine, Index
from homolog.geometry.anisotropy import thick_axis
from homolog.metrics.detection import best_score, hits, overlaps
from homolog.scans.boxes import BoxList, ScanBox
from homolog.scans.volume import Volume
from homolog.store.card import Card, boxes_on_grid
from homolog.tasks import PRETRAINED
from homolog.tasks.base import LearnedTask, PredictOptions, TaskModule, Trained
from homolog.tasks.detect.answer import (
    COLUMNS,
    MERGES,
    Boxes,
    find_boxes,
    finding_of,
    report_lines,
    summarise_boxes,
)
from homolog.tasks.detect.detector import (
    DetectModule,
    Detector,
    JoinedDetectors,
    PyramidDetector,
)
from homolog.tasks.detect.faster_rcnn import (
    FasterRcnnNetwork,
    check_planar,
    torchvision_module,
)
from homolog.tasks.detect.one_stage import DetectNetwork
from homolog.tasks.detect.points import PointNetwork
from homolog.tasks.detect.published import PUBLISHED, SOURCES
from homolog.tasks.detect.search import (
    REMEMBERED,
    FalsePositives,
    Searched,
    windows_of_scan,
)
from homolog.tasks.detect.targets import (
    BoxConfig,
    BoxSpace,
    KnownBoxes,
    Levels,
    Sizes,
    affordable_levels,
    box_space,
    chosen_spacing,
    is_usable,
    sizes_of,
    target_rows,
)
from homolog.tasks.segment.network import (
    channels_spec,
    choose_window,
    prepared_for,
    smallest_window,
    spec_index,
)
from homolog.tasks.segment.task import SegmentConfig, intensity_changes
from homolog.views.view import Anchor, ViewSpec
from homolog.words import counted

if TYPE_CHECKING:
    from homolog.recipes import Sources

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "backbone": {"name": "resunet"},
        "task": {"width": 32},
        "training": {
            "steps": 1000,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 50,
            "validate_every": 200,
        },
        "pretrained": PRETRAINED["cpu"],
    },
    "gpu": {
        "backbone": {"name": "resunet"},
        "task": {"width": 128, "depth": 4, "search_every": 1000, "search_cases": 32},
        "training": {
            "steps": 15000,
            "batch_size": 8,
            "learning_rate": 5e-4,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
        "pretrained": PRETRAINED["gpu"],
    },
}


DETECTORS: Mapping[str, Callable[..., PyramidDetector]] = {
    "one_stage": DetectNetwork,
    "points": PointNetwork,
    "faster_rcnn": FasterRcnnNetwork,
}


@dataclass(frozen=True)
class DetectConfig(BoxConfig):
    """How boxes are learnt."""

    detector: str = option(
        "one_stage",
        "one_stage: every cell of a pyramid may tell a box; points: heat maps of "
        "middles and corners on one fine grid; faster_rcnn: proposals that are looked "
        "at again, in single images, where torchvision is installed",
        choices=tuple(DETECTORS),
    )
    window: tuple[int, int, int] | None = as_in(
        SegmentConfig,
        "window",
        help="crop z, y, x; empty takes the median scan's size as far as memory allows",
    )
    spacing_mm: tuple[float, float, float] | None = option(
        None,
        "voxel size z, y, x at which the network looks; empty: so coarse that small "
        "boxes are 8 voxels wide (16 in images) and large ones fit the window",
        unit="mm",
        minimum=0.0,
    )
    balance: float = as_in(
        SegmentConfig, "balance", help="share of crops centred on a box"
    )
    false_positives: float | None = option(
        None,
        "share of crops centred on what the detector wrongly finds in training scans, "
        "which are searched as it learns; empty: 0.2 where scans are larger than two "
        "windows, else 0",
        minimum=0.0,
        maximum=0.9,
        empty="by size",
    )
    search_every: int = option(
        200, "steps between two such searches", minimum=1, advanced=True
    )
    search_cases: int = option(
        8, "training scans that each of them looks at", minimum=1, advanced=True
    )
    width: int = option(
        64, "channels of the pyramid and the head", minimum=8, advanced=True
    )
    depth: int = option(
        2, "convolutions of the head before its last", minimum=0, advanced=True
    )
    rotate_deg: float = as_in(
        SegmentConfig,
        "rotate_deg",
        default=10.0,
        help="largest rotation within slices, and out of them where slices are not "
        "thick",
    )
    scale: float = as_in(SegmentConfig, "scale", default=0.2)
    flip: tuple[float, float, float] = as_in(SegmentConfig, "flip")
    intensity: float = as_in(SegmentConfig, "intensity")
    overlap: float = as_in(SegmentConfig, "overlap")
    merge: str = option(
        "fusion",
        "how boxes on one finding become one: fusion, their mean by score; nms, the "
        "surest",
        choices=MERGES,
    )
    iou: float = option(
        0.4,
        "boxes of a class that overlap by more are on one finding",
        minimum=0.05,
        maximum=0.95,
    )
    least_score: float = option(
        0.05,
        "boxes with a smaller score are no candidates",
        minimum=0.0,
        maximum=0.9,
        advanced=True,
    )


# Of a window chosen by itself: the longest side, the side of the largest cube (square),
# and a side that is long enough where findings are small; of volumes, and of slices.
# Last: cells of the finest level.
_LIMITS = {"cpu": (80, 64, 32, 16**3), "cuda": (160, 144, 96, 48**3)}
_SLICE_LIMITS = {"cpu": (256, 224, 128, 64**2), "cuda": (1024, 768, 512, 256**2)}
# A window need not be longer than so many large boxes.
_SURROUNDED = 4
# Share of crops on false positives, where scans have more than so many windows.
_AGAIN, _MANY = 0.2, 2.0


class Detections(BoxList):
    """What a detector says of a scan: its boxes, the surest first."""


class Detect(LearnedTask):
    """Boxes around findings or organs, by a detector on the encoder's maps.

    True boxes come from the manifest, or from label maps. The network looks at voxels
    as large as the boxes allow; a scan larger than its window is covered by overlapping
    ones whose boxes are merged.

    Source: Tian et al., FCOS, TPAMI 2022; Baumgartner et al., nnDetection, MICCAI 2021
        (boxes of instances, crops balanced between those with a box and those without,
        windows whose borders count less).
    Differs from the papers: see the detectors and ``FalsePositives``.
    """

    Config: ClassVar[type] = DetectConfig
    title: ClassVar[str] = "Detection"
    best_metric: ClassVar[str] = "ap50"
    of_sets: ClassVar[bool] = True
    joins: ClassVar[bool] = True
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {**RECIPES, **PUBLISHED}
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES

    config: DetectConfig

    def __init__(self, config: DetectConfig) -> None:
        super().__init__(config)
        self._boxes = KnownBoxes(config)

    def usable(self, card: Card) -> bool:
        """Its boxes are known, or that it has none."""
        return is_usable(card, self.config)

    def describe(
        self, cases: Sequence[CaseRef], backbone: Backbone, device: torch.device
    ) -> dict[str, Any]:
        """Window, voxel size, levels, classes and modalities."""
        planar = all(case.card.shape[0] == 1 for case in cases)
        if planar:
            backbone = backbone.planar()
        elif backbone.spatial_dims == 2:
            raise UnusableInput(
                "a 2D network finds boxes in single images, but these scans have "
                "several slices; take a 3D network (resunet, swin, ...)."
            )
        if self.config.detector == "faster_rcnn":
            check_planar(planar)
            torchvision_module("models.detection")
        space = box_space(cases, self._boxes)
        sizes = sizes_of(cases, self._boxes, (1, 2) if planar else (0, 1, 2))
        looked_at = self._looked_at(cases, backbone, device, sizes)
        return {
            **looked_at,
            "false_positives": self._again(cases, looked_at),
            "overlap": self.config.overlap,
            "merge": self.config.merge,
            "iou": self.config.iou,
            "least_score": self.config.least_score,
            **channels_spec(cases),
            "modalities": sorted({case.card.modality for case in cases}),
            "classes": list(space.classes),
            "stores": {name: list(own) for name, own in space.stores.items()},
            "boxes": {
                "small_mm": round(sizes.small_mm, 3),
                "large_mm": [round(mm, 3) for mm in sizes.large_mm],
                "count": sum(len(self._boxes.of(case)) for case in cases),
                "without": sum(not self._boxes.of(case) for case in cases),
            },
        }

    def _again(self, cases: Sequence[CaseRef], looked_at: Mapping[str, Any]) -> float:
        """Share of crops that are centred on false positives."""
        if self.config.false_positives is not None:
            return self.config.false_positives
        own = looked_at["spacing_mm"]
        shapes = [_seen_shape(c.card, own or c.card.spacing_mm) for c in cases]
        several = windows_of_scan(shapes, looked_at["window"]) > _MANY
        return _AGAIN if several else 0.0

    def _looked_at(
        self,
        cases: Sequence[CaseRef],
        backbone: Backbone,
        device: torch.device,
        sizes: Sizes,
    ) -> dict[str, Any]:
        """Voxel size, window and levels that suit boxes of these sizes."""
        planar = all(case.card.shape[0] == 1 for case in cases)
        axes = (1, 2) if planar else (0, 1, 2)
        limits = _SLICE_LIMITS if planar else _LIMITS
        side, cube, enough, cells = limits.get(device.type, limits["cuda"])
        own = grid_of(cases)[0]
        spacing = self.config.spacing_mm or chosen_spacing(sizes, own, axes, cube)
        least = smallest_window(backbone)
        longest = max(sizes.large_mm[a] / spacing[a] for a in axes)
        # small findings need no wide crops: more of them are seen in the same time
        side = min(side, max(_SURROUNDED * round(longest), enough))
        window = self.config.window
        if window is None:
            window = choose_window(
                [_seen_shape(case.card, spacing) for case in cases],
                backbone.size_divisor,
                least,
                side=side,
                voxels=cube ** len(axes),
                spacing_mm=None if planar else spacing,
            )
            window = (1, *window[1:]) if planar else window
        backbone.check_size(window)
        levels = affordable_levels(
            backbone.strides,
            sizes.small_mm / min(spacing[a] for a in axes),
            longest,
            window=window,
            most=cells,
        )
        same = np.allclose(spacing, own, rtol=1e-3)
        return {
            "window": list(window),
            "smallest": [min(a, b) for a, b in zip(least, window, strict=True)],
            "spacing_mm": None if same else [round(mm, 4) for mm in spacing],
            "levels": levels.to_dict(),
            "planar": planar,
            "across": None if planar else thick_axis(spacing),
        }

    def network(self, backbone: Backbone, spec: Mapping[str, Any]) -> PyramidDetector:
        """Pyramid and head on the encoder's maps."""
        planar = bool(spec["planar"])
        return DETECTORS[self.config.detector](
            backbone.planar() if planar else backbone,
            Levels.from_dict(spec["levels"]),
            len(spec["classes"]),
            width=self.config.width,
            depth=self.config.depth,
            planar=planar,
        )

    def joined(self, networks: Sequence[nn.Module]) -> JoinedDetectors:
        """The mean of what their cells say."""
        return JoinedDetectors(networks)

    def module(self, network: nn.Module, spec: Mapping[str, Any]) -> TaskModule:
        """Crops of the window's size with their boxes."""
        assert isinstance(network, Detector)
        again = spec.get("false_positives", 0.0) > 0
        return DetectModule(
            network, self._crop(spec), average=self.config.average,
            remembered=REMEMBERED if again else 0,
        )  # fmt: skip

    def search(
        self,
        module: TaskModule,
        model: Callable[[], Trained],
        cases: Sequence[CaseRef],
        spec: Mapping[str, Any],
        seed: int,
    ) -> FalsePositives | None:
        """False positives in training scans, where crops are centred on them."""
        share = spec.get("false_positives", 0.0)
        if share <= 0:
            return None
        assert isinstance(module, DetectModule)
        return FalsePositives(
            module, model, Searched(cases, self._boxes, _space_of(spec), seed),
            share=share, every=self.config.search_every, count=self.config.search_cases,
        )  # fmt: skip

    @property
    def balance(self) -> float:
        """Share of crops centred on a box."""
        return self.config.balance

    def placing(self, cases: Sequence[CaseRef]) -> Sequence[CaseRef]:
        """With the boxes that are learnt, whatever they come from."""
        return [self._boxes.placing(case) for case in cases]

    def targets(
        self, cases: Sequence[CaseRef], spec: Mapping[str, Any]
    ) -> list[list[float]]:
        """The boxes of each case, see ``target_rows``."""
        return target_rows(cases, self._boxes, _space_of(spec))

    def remark(self, spec: Mapping[str, Any], chosen: int) -> str:
        """How many boxes there are, and at which voxel size they are looked for."""
        told = spec["boxes"]
        names = ", ".join(spec["classes"][:8])
        more = f" and {len(spec['classes']) - 8} more" * (len(spec["classes"]) > 8)
        text = f"{told['count']} boxes ({names}{more}), {told['without']} scans without"
        if spec["spacing_mm"] is not None:
            sides = " x ".join(f"{mm:g}" for mm in spec["spacing_mm"])
            text += f"; looked for at voxels of {sides} mm"
        strides = spec["levels"]["strides"]
        text += f", on cells {' and '.join(str(max(s)) for s in strides)} voxels wide."
        if spec.get("false_positives", 0.0) > 0:
            scans = counted(self.config.search_cases, "training scan")
            text += (
                f" Every {self.config.search_every} steps {scans} are searched for "
                f"false positives; from then on {spec['false_positives']:.0%} of the "
                "crops are centred on such."
            )
        if not chosen:
            text += " Without held-out cases all boxes above a score of 0.5 are told."
        return text

    def _crop(self, spec: Mapping[str, Any]) -> ViewSpec:
        config, planar = self.config, bool(spec["planar"])
        tilt = 0.0 if planar or spec["across"] is not None else config.rotate_deg
        turns = [tilt, tilt, tilt]
        turns[spec["across"] or 0] = config.rotate_deg
        told = spec["spacing_mm"]
        z, y, x = turns
        return ViewSpec(
            size=spec_index(spec, "window"),
            place=Anchor(),
            translate=(0.0 if planar else 0.1, 0.1, 0.1),
            rotate_deg=(z, y, x),
            scale=(1.0 / (1.0 + config.scale), 1.0 + config.scale),
            anisotropy=config.scale / 3.0,
            flip=config.flip,
            spacing_mm=None if told is None else (told[0], told[1], told[2]),
            intensity=intensity_changes(config.intensity),
        )

    def effort(self, card: Card, spec: Mapping[str, Any]) -> float:
        """Voxels looked at by those of a crop."""
        seen = _seen_shape(card, spec["spacing_mm"] or card.spacing_mm)
        return max(1.0, math.prod(seen) / math.prod(spec_index(spec, "window")))

    def settle(self, model: Trained, cases: Sequence[CaseRef]) -> dict[str, Any]:
        """``threshold``: the score from which on boxes are told, by the best F1."""
        rows = [row for case in cases for row in drain(self.score(model, case))]
        return {"threshold": round(best_score([finding_of(row) for row in rows]), 4)}

    def validate(
        self,
        model: Trained,
        cases: Iterable[CaseRef],
        look: Callable[..., None] | None = None,
        share: float = 1.0,
    ) -> dict[str, float]:
        """``ap50`` and the rest of the metrics, means over classes; undefined as 0."""
        rows: list[dict[str, Any]] = []
        for case in cases:
            scores = drain(self.score(model, case))
            rows += [{"case": case.card.id, **row} for row in scores]
            if show := getattr(look, "boxes", None):
                show(case, [row["known"] for row in scores])
        found = summarise_boxes(rows)["mean"]
        return {"ap50": 0.0} | {k: v for k, v in found.items() if v is not None}

    def score(
        self,
        model: Trained,
        case: CaseRef,
        *,
        flips: Sequence[int] = (),
        tolerance_mm: float = 1.0,
    ) -> Job[list[dict[str, Any]]]:
        """A row per class: true boxes, those told, those found, and all of them.

        A box is told from the model's threshold on, and found where a told one of its
        own overlaps it by half.
        """
        space = _space_of(model.spec)
        found = yield from find_boxes(
            model, _stored(case), PredictOptions(flips=tuple(flips))
        )
        if found is None:
            return []
        known = space.known(case)
        truth = self._boxes.of(case)
        rows = []
        for number, name in enumerate(space.classes):
            if not known[number]:
                continue
            true = [
                [*box["min"], *box["max"]]
                for box in truth
                if space.number(box["label"]) == number
            ]
            own = found.kept(found.label == number)
            rows.append(_row(name, true, own, threshold_of(model.spec)))
        return rows

    def columns(self, spec: Mapping[str, Any]) -> Sequence[str]:
        """Case, class, and numbers of boxes."""
        return COLUMNS

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See ``summarise_boxes``."""
        return summarise_boxes(rows)

    def report(self, result: Mapping[str, Any]) -> list[str]:
        """See ``report_lines``."""
        return report_lines(result)

    def run(
        self,
        volume: Volume,
        model: Trained,
        options: PredictOptions = PredictOptions(),  # noqa: B008 - frozen
    ) -> Job[Detections | None]:
        """The boxes of a scan, on its own grid; None when stopped.

        Raises:
            UnusableInput: Another modality or number of channels than learnt from, or
                a volume for a model of images.
        """
        prepared = yield from prepared_for(model, volume, options.modality)
        if model.spec["planar"] and prepared.data.shape[1] > 1:
            raise UnusableInput(
                f"the model finds boxes in single images, {volume.name!r} has "
                f"{prepared.data.shape[1]} slices."
            )
        scan = StoredScan(prepared.data, prepared.affine, prepared.levels)
        found = yield from find_boxes(model, scan, options)
        if found is None:
            return None
        limit = options.least_score
        limit = threshold_of(model.spec) if limit is None else limit
        told = found.kept(found.scores >= limit)
        d, h, w = volume.data.shape[1:]
        sized = bool(volume.meta.get("sized", True))
        if not sized:
            yield Note(
                f"{volume.name}: its pixels have no known size; boxes are told in "
                "pixels, not in millimetres."
            )
        return Detections(
            volume.name,
            (d, h, w),
            _on_scan(told, model.spec["classes"], prepared.affine, volume),
            volume.affine if sized else None,
        )


def threshold_of(spec: Mapping[str, Any]) -> float:
    """The score from which on boxes are told; 0.5 where none was chosen."""
    return float(spec.get("threshold", 0.5))


def _on_scan(
    found: Boxes, classes: Sequence[str], prepared: Affine, volume: Volume
) -> tuple[ScanBox, ...]:
    """Boxes of the prepared grid on the scan's own, within it."""
    plain = [
        {"label": classes[label], "score": float(score),
         "min": box[:3].tolist(), "max": box[3:].tolist()}
        for box, label, score in zip(
            found.boxes, found.label, found.scores, strict=True
        )
    ]  # fmt: skip
    turned = boxes_on_grid(plain, prepared, volume.affine)
    top = volume.data.shape[1:]
    boxes = []
    for box in turned:
        low = (min(max(v, 0.0), n) for v, n in zip(box["min"], top, strict=True))
        high = (min(max(v, 0.0), n) for v, n in zip(box["max"], top, strict=True))
        z, y, x = low
        d, h, w = high
        boxes.append(ScanBox(box["label"], box["score"], (z, y, x), (d, h, w)))
    return tuple(boxes)


def _row(
    name: str, true: Sequence[Sequence[float]], found: Boxes, threshold: float
) -> dict[str, Any]:
    known = {
        "truth": [list(box) for box in true],
        "boxes": found.boxes.round(3).tolist(),
        "scores": found.scores.round(5).tolist(),
    }
    finding = finding_of({"known": known})
    shared = overlaps(finding.truth, finding.boxes)
    told = found.scores >= threshold
    return {
        "class": name,
        "true": len(true),
        "told": int(told.sum()),
        "found": int((hits(finding) & told).sum()),
        "best_iou": round(float(shared.max(1).mean()), 4) if shared.size else None,
        "best_score": round(float(found.scores.max()), 4)
        if len(found.scores)
        else None,
        "known": known,
    }


def _space_of(spec: Mapping[str, Any]) -> BoxSpace:
    stores = {name: tuple(own) for name, own in spec.get("stores", {}).items()}
    return BoxSpace(tuple(spec["classes"]), stores)


def _seen_shape(card: Card, spacing: Sequence[float]) -> Index:
    """Voxels of a scan at the voxel size that the network looks at."""
    d, h, w = (
        max(1, round(n * own / mm))
        for n, own, mm in zip(card.shape, card.spacing_mm, spacing, strict=True)
    )
    return d, h, w


def _stored(case: CaseRef) -> StoredScan:
    """A case of a store."""
    card = case.card
    data = np.asarray(case.store.image(card.id)[:])
    return StoredScan(data, card.affine, card.levels)
