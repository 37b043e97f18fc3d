"""How well boxes are found: average precision, FROC, images told apart.

Boxes are rows ``low..., high...`` of one frame, in 2D or 3D; IoU is a share of areas or
volumes, so that any unit will do, different ones along the axes too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

Numbers = NDArray[np.float64]

# False positives per image at which a FROC is read.
# Source: Hundred Million, section IV-C.
FROC_RATES = (0.01, 0.05, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# A box is found from this IoU on: of COCO, and of small lesions in volumes.
FOUND, TOUCHED = 0.5, 0.1
_RANGE = (0.5, 0.95, 0.05)
# Boxes of one class in one image that count, those of the highest scores.
MOST = 100


@dataclass(frozen=True, eq=False)
class Finding:
    """Boxes of one class in one image.

    Attributes:
        truth: (G, 2 * dims) true boxes.
        boxes: (D, 2 * dims) predicted boxes.
        scores: (D,) how sure each is.
    """

    truth: Numbers
    boxes: Numbers
    scores: Numbers


@dataclass(frozen=True, eq=False)
class _Matched:
    """Predictions of all images, and whether each met a true box of its own.

    Attributes:
        scores: (D,).
        hit: (T, D) bool, for each IoU.
        truths: True boxes in all.
    """

    scores: Numbers
    hit: NDArray[np.bool_]
    truths: int


def box_scores(images: Sequence[Finding]) -> dict[str, Any]:
    """Metrics of one class over images.

    A prediction hits the free true box it overlaps most, if its IoU is large enough;
    those of higher scores choose first. Each true box is hit once.

    Args:
        images: One entry per image, also where it has no box of either kind.

    Returns:
        ``truths`` and ``predictions`` (numbers), ``ap50`` and ``ap10`` (average
        precision at IoU 0.5 and 0.1), ``ap`` (mean over IoU 0.5, 0.55, ... 0.95),
        ``froc`` and ``froc10`` (mean sensitivity at FROC_RATES, IoU 0.5 and 0.1),
        ``sensitivities`` and ``sensitivities10`` (one per rate), ``auc`` (of images
        with a true box against those without, by their highest score). What is
        undefined, for want of true boxes or of either kind of image, is None.

    Source: Lin et al., Microsoft COCO, ECCV 2014 (101 recalls); Hundred Million,
        section IV-C (FROC); MONAI 1.6.1, apps/detection/metrics (matching, precision).

    Paper: Joint Table 5, detection.
    """
    from monai.apps.detection.metrics.coco import COCOMetric

    coco = COCOMetric(
        ("x",), iou_list=(TOUCHED, FOUND), iou_range=_RANGE, max_detection=(MOST,),
        per_class=False, verbose=False,
    )  # fmt: skip
    limits = [float(v) for v in coco.iou_thresholds]
    results = _matches(images, limits)
    found = _together(results, limits)
    scores: dict[str, Any] = {
        "truths": found.truths, "predictions": len(found.scores),
    }  # fmt: skip
    names = ("ap50", "ap10", "ap")
    if found.truths:
        told, _ = coco(results)
        keys = [f"AP_IoU_{v:.2f}_MaxDet_{MOST}" for v in (FOUND, TOUCHED)]
        keys.append(f"mAP_IoU_{_RANGE[0]:.2f}_{_RANGE[1]:.2f}_{_RANGE[2]:.2f}_")
        keys[-1] += f"MaxDet_{MOST}"
        scores |= {n: max(0.0, told[k]) for n, k in zip(names, keys, strict=True)}
    else:
        scores |= dict.fromkeys(names)
    for ending, limit in (("", FOUND), ("10", TOUCHED)):
        hit = found.hit[limits.index(limit)]
        curve = froc(found.scores, hit, found.truths, len(images))
        scores[f"sensitivities{ending}"] = curve
        scores[f"froc{ending}"] = None if curve is None else float(np.mean(curve))
    scores["auc"] = image_auc(
        [len(image.truth) > 0 for image in images],
        [float(image.scores.max(initial=0.0)) for image in images],
    )
    return scores


def froc(
    scores: Numbers,
    hit: NDArray[np.bool_],
    truths: int,
    images: int,
    rates: Sequence[float] = FROC_RATES,
) -> list[float] | None:
    """Share of the true boxes found at so many false positives per image.

    Args:
        scores: (D,) of the predictions of all images.
        hit: (D,) whether each met a true box.
        truths: True boxes in all.
        images: How many.
        rates: False positives per image that are allowed, on average.

    Returns:
        For each rate the largest share that any threshold reaches with no more false
        positives; None without true boxes.

    Paper: Hundred Million IV-C, FROC.
    """
    if not truths:
        return None
    order = np.argsort(-scores, kind="mergesort")
    wrong = np.cumsum(~hit[order])
    right = np.cumsum(hit[order])
    # a threshold takes all predictions of one score together
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    last = last[last >= 0]
    shares = []
    for rate in rates:
        allowed = right[last][wrong[last] <= rate * images + 1e-9]
        shares.append(float(allowed.max(initial=0)) / truths)
    return shares


def image_auc(truth: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Area under the ROC curve of images; None where all are of one kind."""
    if len(set(truth)) < 2:
        return None
    return float(roc_auc_score(truth, scores))


def best_score(images: Sequence[Finding], limit: float = FOUND) -> float:
    """The least score to be told at which F1 over all images is largest.

    Args:
        images: Of one class, or of all classes one after another.
        limit: IoU from which on a box is found.

    Returns:
        A score halfway between the last one told and the next; 0.5 where no true box
        is found at any.
    """
    found = _together(_matches(images, [limit]), [limit])
    if not found.truths or not found.hit.any():
        return 0.5
    order = np.argsort(-found.scores, kind="mergesort")
    ranked, right = found.scores[order], np.cumsum(found.hit[0][order])
    f1 = 2 * right / (np.arange(1, len(order) + 1) + found.truths)
    f1[np.append(np.diff(ranked) == 0, False)] = -1.0  # equal scores go together
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def class_mean(classes: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over classes of what is defined; None where nothing is."""
    names = ("ap50", "ap10", "ap", "froc", "froc10", "auc")
    mean: dict[str, float | None] = {}
    for name in names:
        known = [s[name] for s in classes.values() if s[name] is not None]
        mean[name] = float(np.mean(known)) if known else None
    return mean


def hits(image: Finding, limit: float = FOUND) -> NDArray[np.bool_]:
    """(D,) whether each prediction met a true box of its own, in the order given."""
    (result,) = _matches([image], [limit])
    found = np.zeros(len(image.scores), bool)
    order = np.argsort(-image.scores, kind="mergesort")[:MOST]
    found[order] = result[0]["dtMatches"][0] > 0 if 0 in result else False
    return found


def overlaps(first: Numbers, second: Numbers) -> Numbers:
    """IoU of every box (N, 2 * dims) with every other (M, 2 * dims), (N, M)."""
    from monai.data.box_utils import box_iou

    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    return np.asarray(box_iou(first, second), np.float64)


def _matches(
    images: Sequence[Finding], limits: Sequence[float]
) -> list[dict[int, dict[str, Any]]]:
    from monai.apps.detection.metrics.matching import matching_batch

    found: list[dict[int, dict[str, Any]]] = matching_batch(
        iou_fn=overlaps,
        iou_thresholds=limits,
        pred_boxes=[image.boxes for image in images],
        pred_classes=[np.zeros(len(image.boxes), np.int64) for image in images],
        pred_scores=[image.scores for image in images],
        gt_boxes=[image.truth for image in images],
        gt_classes=[np.zeros(len(image.truth), np.int64) for image in images],
        max_detections=MOST,
    )
    return found


def _together(
    results: Sequence[Mapping[int, Mapping[str, Any]]], limits: Sequence[float]
) -> _Matched:
    rows = [result[0] for result in results if 0 in result]
    if not rows:
        return _Matched(np.zeros(0), np.zeros((len(limits), 0), bool), 0)
    return _Matched(
        np.concatenate([np.asarray(row["dtScores"], np.float64) for row in rows]),
        np.concatenate([row["dtMatches"] > 0 for row in rows], axis=1),
        sum(row["gtMatches"].shape[1] for row in rows),
    )
