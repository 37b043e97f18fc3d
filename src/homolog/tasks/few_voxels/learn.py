"""Learn from a few painted voxels: fit, cross-validated score, what to paint next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.config import check
from homolog.features.search import body_of
from homolog.geometry.affine import Index, Triple
from homolog.scans.volume import FeatureMap, LabelMap
from homolog.tasks.few_voxels.config import FewConfig
from homolog.tasks.few_voxels.head import Head, Samples, fit_head, take_samples
from homolog.tasks.few_voxels.predict import Uncertainty
from homolog.tasks.few_voxels.reach import Reach, reach_of
from homolog.tasks.few_voxels.scan import (
    FewClass,
    FewScan,
    Paint,
    SimpleSpec,
    painted,
    simple_spec,
)
from homolog.words import counted, listed

# What to tell somebody who paints: what is wrong with the paint, where to go next.


_FEWEST = 5
_UNBALANCED = 20
# A border between two classes is always unsure: a whole neighbourhood counts instead.
_REGION_CELLS = 1.0
# Of how deep a place lies in what is unknown, beside its uncertainty of 0 to 1.
_DEEP = 0.01


@dataclass(frozen=True)
class NextClick:
    """Where one more stroke helps most.

    Attributes:
        mm: World position (z, y, x), a voxel's centre.
        voxel: The voxel's index (z, y, x).
        uncertainty: 0..1 of the place's neighbourhood: 1 less the lead of the likeliest
            class over the second; 1 deep in what is unknown.
        likely: Names of the likeliest class there and of the second.
        unknown: Whether the place is too unlike all paint to be either.
    """

    mm: Triple
    voxel: Index
    uncertainty: float
    likely: tuple[str, str]
    unknown: bool = False


def warnings_of(
    scans: Sequence[FewScan], paints: Sequence[Paint], classes: Sequence[FewClass]
) -> list[str]:
    """Plain sentences about paint that cannot make a good model.

    Args:
        scans: All scans of the model.
        paints: Their painted voxels, in the same order.
        classes: What the values mean.
    """
    values = np.concatenate([p.values for p in paints])
    inside = np.concatenate([p.covered for p in paints])
    counts = {c: int((values == c.value).sum()) for c in classes}
    counts = {c: n for c, n in counts.items() if n}
    found = []
    if len(counts) == 1:
        name = next(iter(counts)).name
        found.append(
            f"Only {name!r} is painted: everything will become {name!r}; paint a "
            "second class, background for example."
        )
    few = {repr(c.name): n for c, n in counts.items() if n < _FEWEST}
    if len(few) == 1:
        ((name, count),) = few.items()
        only = f"has only {counted(count, 'painted voxel')}"
        found.append(f"{name} {only}; paint at least {_FEWEST}.")
    elif few:
        found.append(f"Paint at least {_FEWEST} voxels each of {listed(few, most=5)}.")
    slices = _one_slice(scans, paints)
    if slices:
        found.append(slices)
    if len(counts) > 1:
        most = max(counts, key=lambda c: counts[c])
        least = min(counts, key=lambda c: counts[c])
        if counts[most] > _UNBALANCED * counts[least]:
            found.append(
                f"{most.name!r} has {counts[most]} painted voxels, {least.name!r} only "
                f"{counts[least]}; paint more of {least.name!r}."
            )
    lost = int((~inside).sum())
    if lost:
        lie = "lies" if lost == 1 else "lie"
        found.append(
            f"{counted(lost, 'painted voxel')} {lie} outside the encoder's features "
            "and cannot be learnt from."
        )
    return found


def _one_slice(scans: Sequence[FewScan], paints: Sequence[Paint]) -> str:
    """A sentence where all paint lies in one slice of one scan."""
    used = [p for p in paints if len(p.voxels)]
    if len(used) != 1:
        return ""
    volume = scans[used[0].scan].volume
    order = volume.affine.closest_axes()[0]
    for name, axis in zip(("axial", "coronal", "sagittal"), order, strict=True):
        along = used[0].voxels[:, axis]
        # a stack of one slice has no other one to paint
        if volume.shape[axis] > 1 and along.min() == along.max():
            return (
                f"All painted voxels lie in one {name} slice; paint in others too, "
                "so that the model sees the organs' whole length."
            )
    return ""


def next_click(
    head: Head,
    scan: FewScan,
    paint: Paint,
    uncertainty: Uncertainty,
    *,
    apart_mm: float = 10.0,
) -> NextClick | None:
    """The most uncertain neighbourhood in the body, away from the paint.

    Nothing is less certain than what is unknown: its largest part comes first.

    Args:
        head: That predicted.
        scan: The scan.
        paint: Its painted voxels.
        uncertainty: Of the prediction, see ``FewResult``.
        apart_mm: Least distance from any painted voxel.

    Returns:
        The place; None where no place in the body is far enough from the paint, or
        there is nothing to be unsure about (a single class).
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree

    if len(head.classes) < 2:
        return None
    shape = uncertainty.values.shape
    grid = FeatureMap(np.empty((0, *shape), np.float32), uncertainty.affine)
    body = body_of(scan.volume, grid, scan.body) & (uncertainty.values > 0)
    index = np.argwhere(body)
    mm = uncertainty.affine.apply(index)
    if len(paint.mm) and len(index):
        apart, _ = cKDTree(paint.mm).query(mm, distance_upper_bound=apart_mm)
        far = ~np.isfinite(apart)
        index, mm = index[far], mm[far]
    if not len(index):
        return None
    region = _within(uncertainty.values, body, ndimage.gaussian_filter)
    unknown = uncertainty.unknown
    if unknown is not None and (body & unknown).any():
        # Where all around is unknown, the middle tells most.
        deep = ndimage.distance_transform_edt(body & unknown)
        region = region + _DEEP * (deep / deep.max()).astype(np.float32)
    values = region[tuple(index.T)]
    best = int(values.argmax())
    place = tuple(int(i) for i in index[best])
    voxel = np.rint(scan.volume.affine.inverse().apply(mm[best])).astype(int)
    first, second = (int(likely[place]) for likely in uncertainty.likely)
    z, y, x = (float(v) for v in mm[best])
    return NextClick(
        (z, y, x),
        (int(voxel[0]), int(voxel[1]), int(voxel[2])),
        min(float(values[best]), 1.0),
        (head.classes[first].name, head.classes[second].name),
        unknown is not None and bool(unknown[place]),
    )


def _within(
    values: NDArray[np.float32], mask: NDArray[np.bool_], blur: object
) -> NDArray[np.float32]:
    """Mean of the neighbourhood's values inside the mask."""
    assert callable(blur)
    weight = blur(mask.astype(np.float32), _REGION_CELLS)
    total = blur(np.where(mask, values, 0.0).astype(np.float32), _REGION_CELLS)
    mean: NDArray[np.float32] = np.where(mask, total / np.maximum(weight, 1e-6), 0.0)
    return mean


# A stroke longer than this is cut into blocks of that size.
_BLOCK_MM = 25.0
# Training voxels nearer than this to a left-out one are left out too.
GUARD_MM = 5.0
_FOLDS = 5


@dataclass(frozen=True)
class FewScore:
    """The left-out score.

    Attributes:
        accuracy: Share of left-out voxels that got their class, 0..1; None where
            nothing could be left out.
        recall: Class name -> share of its left-out voxels that were found.
        dice: Class name -> Dice over all left-out voxels.
        voxels: How many were left out.
        folds: How many times a head was fitted.
        unscored: Names of classes painted in one place only.
        reason: Why there is no score; empty where there is one.
    """

    accuracy: float | None
    recall: dict[str, float] = field(default_factory=dict)
    dice: dict[str, float] = field(default_factory=dict)
    voxels: int = 0
    folds: int = 0
    unscored: tuple[str, ...] = ()
    reason: str = ""


def leave_out_score(
    samples: Samples,
    classes: Sequence[FewClass],
    spec: SimpleSpec,
    config: FewConfig,
) -> FewScore:
    """Fit without some strokes, predict them, in turn.

    Connected strokes are left out whole (long ones in blocks), together with all paint
    nearer than 5 mm; a class painted in one place only is always learnt from.

    Args:
        samples: Painted voxels.
        classes: What the values mean.
        spec: Which simple features the vectors end with.
        config: Of the head.
    """
    names = {c.value: c.name for c in classes}
    groups = strokes(samples)
    places = {
        int(v): len(np.unique(groups[samples.values == v]))
        for v in np.unique(samples.values)
    }
    scored = [v for v, n in places.items() if n >= 2]
    alone = tuple(names[v] for v, n in places.items() if n < 2)
    if len(places) < 2:
        return FewScore(None, reason="only one class is painted.")
    if not scored:
        return FewScore(
            None, unscored=alone,
            reason="every class is painted in one place only; paint each in a second.",
        )  # fmt: skip
    truth: list[NDArray[np.int64]] = []
    told: list[NDArray[np.int64]] = []
    folds = 0
    for test, train in left_out(samples, groups, scored, config.seed):
        if len(np.unique(samples.values[train])) < 2:
            continue
        head = fit_head(samples.only(train), classes, spec, config)
        chances = head.probabilities(samples.vectors[test])
        values = np.array([c.value for c in head.classes])
        told.append(values[chances.argmax(axis=1)])
        truth.append(samples.values[test])
        folds += 1
    if not truth:
        return FewScore(
            None, unscored=alone,
            reason="all strokes lie within 5 mm of each other; paint further apart.",
        )  # fmt: skip
    return _figures(np.concatenate(truth), np.concatenate(told), names, folds, alone)


def left_out(
    samples: Samples, groups: NDArray[np.int64], scored: Sequence[int], seed: int
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Which samples (N,) are tested on and which are learnt from, fold by fold."""
    from scipy.spatial import cKDTree

    fold = np.full(len(groups), -1)
    for value in scored:
        own = np.unique(groups[samples.values == value])
        rng = np.random.Generator(np.random.Philox(key=[seed, value]))
        place = dict(zip(rng.permutation(own).tolist(), range(len(own)), strict=True))
        for g in own.tolist():
            fold[groups == g] = place[g] % _FOLDS
    found = []
    for number in range(int(fold.max()) + 1):
        test = fold == number
        if not test.any():
            continue
        train = ~test
        for scan in np.unique(samples.scan[test]):
            here = samples.scan == scan
            tree = cKDTree(samples.mm[test & here])
            near = np.isfinite(
                tree.query(samples.mm[here], distance_upper_bound=GUARD_MM)[0]
            )
            train[np.flatnonzero(here)[near]] = False
        # a class of which nothing is left to learn from cannot be told
        left = np.isin(samples.values, np.unique(samples.values[train]))
        test = test & left
        if test.any():
            found.append((test, train))
    return found


def strokes(samples: Samples) -> NDArray[np.int64]:
    """Number (N,) of the stroke each sample belongs to: one class, one scan, touching.

    Voxels touch that share a face, an edge or a corner, or that a choice among very
    many has parted by less than 5 mm.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    groups = np.zeros(len(samples.values), np.int64)
    count = 0
    keys = np.stack([samples.scan, samples.values], 1)
    for key in np.unique(keys, axis=0):
        own = np.flatnonzero((keys == key).all(axis=1))
        pairs = np.concatenate(
            [
                cKDTree(samples.voxels[own]).query_pairs(
                    1.0, p=np.inf, output_type="ndarray"
                ),
                cKDTree(samples.mm[own]).query_pairs(GUARD_MM, output_type="ndarray"),
            ]
        )
        graph = coo_array(
            (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (len(own), len(own))
        )
        _, parts = connected_components(graph, directed=False)
        blocks = _blocks(samples.mm[own], parts)
        groups[own] = count + blocks
        count += int(blocks.max()) + 1
    return groups


def _blocks(mm: NDArray[np.float64], parts: NDArray[Any]) -> NDArray[np.int64]:
    """Strokes (N,) with the long ones cut into blocks."""
    cells = np.zeros((len(mm), 4), np.int64)
    cells[:, 0] = parts
    for part in np.unique(parts):
        own = parts == part
        size = np.ptp(mm[own], axis=0)
        if size.max() > _BLOCK_MM:
            cells[own, 1:] = (mm[own] - mm[own].min(axis=0)) // _BLOCK_MM
    _, number = np.unique(cells, axis=0, return_inverse=True)
    return np.asarray(number, np.int64).reshape(-1)


def _figures(
    truth: NDArray[np.int64],
    told: NDArray[np.int64],
    names: dict[int, str],
    folds: int,
    alone: tuple[str, ...],
) -> FewScore:
    recall, dice = {}, {}
    for value in np.unique(truth).tolist():
        both = int(((truth == value) & (told == value)).sum())
        true, guessed = int((truth == value).sum()), int((told == value).sum())
        recall[names[value]] = both / true
        dice[names[value]] = 2 * both / (true + guessed)
    accuracy = float((truth == told).mean())
    return FewScore(accuracy, recall, dice, len(truth), folds, alone)


# From open scans and their paint to a head: what the panel and the command call.
#
# numpy, scipy and scikit-learn only: a window may call it in a thread of its own.


# Share of the paint that lies in the body where only the body is meant.
_WITHIN = 0.95


@dataclass(frozen=True, eq=False)
class Learnt:
    """A fitted head and what it was fitted to.

    Attributes:
        head: Ready to predict.
        samples: The painted voxels used.
        paints: All painted voxels, scan by scan.
        classes: All painted classes.
        warnings: Plain sentences about the paint.
        config: As it was fitted.
    """

    head: Head
    samples: Samples
    paints: tuple[Paint, ...]
    classes: tuple[FewClass, ...]
    warnings: tuple[str, ...]
    config: FewConfig

    def score(self) -> FewScore:
        """The left-out score; fits up to five more heads."""
        return leave_out_score(self.samples, self.classes, self.head.spec, self.config)

    def counts(self) -> dict[int, int]:
        """Painted value -> painted voxels of all scans."""
        values = np.concatenate([p.values for p in self.paints])
        found, counts = np.unique(values, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))


def learn(
    scans: Sequence[FewScan],
    labels: Sequence[LabelMap],
    classes: Sequence[FewClass],
    config: FewConfig | None = None,
) -> Learnt:
    """Fit a head to painted voxels of one or several scans.

    Args:
        scans: With features of one encoder, or all without.
        labels: Their painted labels, in the same order, each on its scan's own grid.
        classes: What the painted values mean, see ``few_classes``.
        config: Settings.

    Raises:
        UnusableInput: Nothing painted, a label map of another grid, features of
            different encoders, or a painted value without a class.
        ConfigError: A setting out of range.
    """
    config = config or FewConfig()
    check(config)
    paints = tuple(
        painted(scan, paint, number)
        for number, (scan, paint) in enumerate(zip(scans, labels, strict=True))
    )
    spec = simple_spec(scans, paints, config)
    samples = take_samples(scans, paints, classes, spec, config)
    head = fit_head(samples, classes, spec, config, scans[0].encoder_id)
    if config.body_only and _painted_in_body(paints, classes):
        head = replace(head, body_only=True)
    if config.unknown > 0:
        head = replace(head, reach=_reach(samples, head, config))
    told = tuple(warnings_of(scans, paints, classes))
    return Learnt(head, samples, paints, tuple(classes), told, config)


def _reach(samples: Samples, head: Head, config: FewConfig) -> Reach | None:
    """How far the paint reaches, by strokes left out in turn."""
    number = {c.value: i for i, c in enumerate(head.classes)}
    values = np.unique(samples.values).tolist()
    return reach_of(
        samples.vectors,
        np.array([number[int(v)] for v in samples.values]),
        head.spec,
        left_out(samples, strokes(samples), values, config.seed),
        share=config.unknown,
        background=head.ground,
        seed=config.seed,
    )


def _painted_in_body(paints: Sequence[Paint], classes: Sequence[FewClass]) -> bool:
    """Whether all that was painted, but the background, lies in the body.

    A few voxels beside it are strokes that went over the skin.
    """
    organs = [c.value for c in classes if not c.background]
    within = [p.in_body[np.isin(p.values, organs)] for p in paints]
    found = np.concatenate(within)
    return bool(found.size) and bool(found.mean() >= _WITHIN)


def warm_up() -> None:
    """Load what the first fit needs, some seconds long; for a thread of its own."""
    import sklearn.linear_model  # noqa: F401


def painted_values(labels: Sequence[LabelMap]) -> list[int]:
    """Values painted in any of the label maps, sorted."""
    found: set[int] = set()
    for paint in labels:
        found |= set(np.unique(paint.data).tolist())
    return sorted(v for v in found if v > 0)
