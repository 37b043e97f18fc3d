"""A segmentation model from a few painted voxels of scan files."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Progress, Request, Saved
from homolog.features.embed import DenseEncoder
from homolog.features.files import kept_features
from homolog.features.of_scans import features_of
from homolog.geometry.places import AXES_NAMED
from homolog.index.datasets import CaseSource
from homolog.model_files.encoder import LoadedEncoder
from homolog.scans.files import read_labels, read_scan, scan_hash
from homolog.scans.names import names_beside, write_names
from homolog.scans.volume import LabelMap, Volume, mapped_labels
from homolog.scans.write import write_labels
from homolog.store.label_joining import join_cases
from homolog.store.learnt_spacing import LearntSpacing
from homolog.store.preprocess import Preprocessing
from homolog.tasks.few_voxels.config import FewConfig
from homolog.tasks.few_voxels.learn import Learnt, learn, next_click, painted_values
from homolog.tasks.few_voxels.predict import predict_volume
from homolog.tasks.few_voxels.scan import (
    FewClass,
    FewScan,
    check_grid,
    few_classes,
    few_scan,
)
from homolog.tasks.few_voxels.task import save_few


@dataclass(frozen=True, eq=False)
class Painted:
    """A scan file with its painted labels, read and of one grid."""

    path: Path
    paint: Path
    volume: Volume
    labels: LabelMap


@dataclass(frozen=True)
class Meaning:
    """What painted values mean.

    Attributes:
        names: By value.
        colours: By value, ``#rrggbb``.
        background: The value of what is none of the other classes.
    """

    names: dict[int, str] = field(default_factory=dict)
    colours: dict[int, str] = field(default_factory=dict)
    background: int | None = None


def label_few(
    pairs: Sequence[Painted],
    few: FewConfig,
    meaning: Meaning,
    open_encoder: Callable[[], tuple[LoadedEncoder, DenseEncoder]] | None = None,
    *,
    out: Path | None = None,
    predict: Path | None = None,
    features: Path | None = None,
    score: bool = True,
) -> Job[dict[str, Any]]:
    """Fit, score, save and predict.

    Args:
        pairs: Scans with their painted labels.
        few: How to learn.
        meaning: What the painted values mean.
        open_encoder: Loads it: as stored, and ready to embed; None: intensities alone.
        out: Model folder; None: none is written.
        predict: File for the labels of the first scan; None: none is written.
        features: Where feature maps are kept; the user's cache if None.
        score: Whether strokes are left out in turn.

    Returns:
        ``classes`` (value, name, colour, background, voxels), ``warnings``, ``score``,
        ``seconds``, ``next`` (see NextClick; None where there is no such place),
        ``model``, ``prediction``, ``voxels`` (class name -> predicted voxels) and
        ``stopped``.

    Raises:
        UnusableInput: Nothing painted, or labels that contradict each other.
    """
    pairs, classes = yield from _named(pairs, meaning)
    loaded, dense = open_encoder() if open_encoder else (None, None)
    seconds: dict[str, float] = {}
    result: dict[str, Any] = {"seconds": seconds, "stopped": True}
    began = time.monotonic()
    scans = yield from _open(pairs, dense, features)
    if scans is None:
        return result
    seconds["features"] = _since(began)
    began = time.monotonic()
    learnt = learn(scans, [p.labels for p in pairs], classes, few)
    seconds["fit"] = _since(began)
    for sentence in learnt.warnings:
        yield Note(sentence, "warning")
    counts = learnt.counts()
    result |= {
        "classes": [{**asdict(c), "voxels": counts[c.value]} for c in classes],
        "warnings": list(learnt.warnings),
        "score": None,
        "encoder_id": learnt.head.encoder_id,
    }
    if (yield Progress("fitted", 1, 1, pairs[0].path.name)) is Request.STOP:
        return result
    if score:
        began = time.monotonic()
        result["score"] = asdict(learnt.score())
        seconds["score"] = _since(began)
    if out:
        place = _save(out, learnt, pairs, loaded, dense, result)
        result["model"] = str(place)
        yield Saved(str(place), "model")
    found = yield from _predict(learnt, scans[0], pairs[0], predict, seconds)
    if found is None:
        return result
    return {**result, **found, "stopped": False}


def _named(
    pairs: Sequence[Painted], meaning: Meaning
) -> Job[tuple[list[Painted], list[FewClass]]]:
    """The painted values of all scans brought together by name, and their classes."""
    joined = join_cases(_as_cases(pairs), meaning.names)
    for refused in joined.refused:
        raise UnusableInput(f"{refused.path}: {refused.reason}")
    for sentence in (*joined.warnings, *joined.remarks):
        yield Note(sentence)
    names: dict[int, str] = {}
    for case in reversed(joined.cases):
        names |= case.label_names
    mapped = [_mapped(p, c) for p, c in zip(pairs, joined.cases, strict=True)]
    values = painted_values([p.labels for p in mapped])
    if not values:
        files = ", ".join(str(p.paint) for p in pairs)
        raise UnusableInput(f"expected painted voxels above 0, {files} holds only 0.")
    classes = few_classes(
        values, names | meaning.names, meaning.colours, meaning.background
    )
    return mapped, list(classes)


def read_pairs(scans: Sequence[Path], labels: Sequence[Path]) -> list[Painted]:
    """Scans with their painted labels, before anything slow is begun.

    Raises:
        UnusableInput: Not as many of both, or labels of another grid.
        ConfigError: Not as many label maps as scans.
    """
    if len(scans) != len(labels):
        raise ConfigError(
            f"every scan needs its painted labels: got {len(scans)} scan(s) and "
            f"{len(labels)} label map(s)."
        )
    found = []
    for path, paint in zip(scans, labels, strict=True):
        for file in (path, paint):
            if not file.exists():
                raise FileNotFoundError(2, "there is no such file or folder", str(file))
        volume, painted = read_scan(path), read_labels(paint)
        check_grid(volume, painted)
        found.append(Painted(path, paint, volume, painted))
    return found


def _as_cases(pairs: Sequence[Painted]) -> list[CaseSource]:
    """Painted scans, to have their labels brought together by name."""
    return [
        CaseSource(
            f"{number}", pair.path, pair.paint, label_names=names_beside(pair.paint),
            label_values=frozenset(painted_values([pair.labels])),
        )
        for number, pair in enumerate(pairs)
    ]  # fmt: skip


def _mapped(pair: Painted, case: CaseSource) -> Painted:
    """Labels as the scans together name them; what teaches nothing is unpainted."""
    mapping = {value: max(own, 0) for value, own in case.label_map.items()}
    return replace(pair, labels=mapped_labels(pair.labels, mapping))


def _open(
    pairs: Sequence[Painted], dense: DenseEncoder | None, folder: Path | None
) -> Job[list[FewScan] | None]:
    """The scans with their features; None when told to stop."""
    if dense is None:
        return [few_scan(p.volume) for p in pairs]
    found = []
    with kept_features(folder) as place:
        for pair in pairs:
            features = yield from features_of(pair.volume, pair.path, dense, place)
            if features is None:
                return None
            found.append(few_scan(pair.volume, features, dense.preprocessing))
    return found


def _save(
    out: Path,
    learnt: Learnt,
    pairs: Sequence[Painted],
    loaded: LoadedEncoder | None,
    dense: DenseEncoder | None,
    result: Mapping[str, Any],
) -> Path:
    facts = {
        "cases": len(pairs),
        "trained_on": [scan_hash(p.path) for p in pairs],
        "label_names": {str(v): n for v, n in learnt.head.names.items()},
        "painted": {c["name"]: c["voxels"] for c in result["classes"]},
        "warnings": list(learnt.warnings),
        "left_out": result["score"],
        "fitted": asdict(learnt.config),
    }
    return save_few(
        out,
        learnt.head,
        modalities=dict(Counter(p.volume.modality for p in pairs)),
        loaded=loaded,
        dense=dense,
        preprocessing=Preprocessing() if dense is None else None,
        facts=facts,
        painted=LearntSpacing.of_scans([p.volume for p in pairs]),
    )


def _predict(
    learnt: Learnt,
    scan: FewScan,
    pair: Painted,
    target: Path | None,
    seconds: dict[str, float],
) -> Job[dict[str, Any] | None]:
    """The first scan's labels, written where asked, and where to paint next."""
    import numpy as np

    began = time.monotonic()
    found = yield from predict_volume(learnt.head, scan, pair.labels)
    if found is None:
        return None
    seconds["predict"] = _since(began)
    click = next_click(learnt.head, scan, learnt.paints[0], found.uncertainty)
    told: dict[str, Any] = {
        "axes": AXES_NAMED,
        "next": None if click is None else asdict(click),
        "voxels": {
            name: int(np.count_nonzero(found.labels.data == value))
            for value, name in learnt.head.names.items()
        },
        "prediction": None,
    }
    if target:
        write_labels(found.labels, target)
        write_names(target, found.labels.names)
        told["prediction"] = str(target)
        yield Saved(str(target), "labels")
    return told


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
