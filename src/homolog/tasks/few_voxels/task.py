"""The few-voxels task: its model on disk, and labels of scan files."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from homolog.config import ConfigError, from_dict, to_dict
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Progress, Request, Saved
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.files import kept_features
from homolog.features.of_scans import features_of
from homolog.geometry.places import AXES_NAMED
from homolog.index.datasets import CaseSource
from homolog.model_files.encoder import LoadedEncoder, load_encoder
from homolog.model_files.folder import LoadedModel, read_weights, save_model
from homolog.scans.files import (
    read_labels,
    read_scan,
    scan_hash,
)
from homolog.scans.inspect import labels_by_place
from homolog.scans.names import names_beside, write_names
from homolog.scans.volume import FeatureMap, LabelMap, Volume, mapped_labels
from homolog.scans.write import write_labels
from homolog.store.label_joining import join_cases
from homolog.store.learnt_spacing import KEY, SCANNED_KEY, LearntSpacing
from homolog.store.preprocess import Preprocessing
from homolog.tasks.base import PredictOptions, Task, Trained
from homolog.tasks.few_voxels.config import FewConfig
from homolog.tasks.few_voxels.head import Head
from homolog.tasks.few_voxels.learn import Learnt, learn, next_click, painted_values
from homolog.tasks.few_voxels.predict import predict_volume
from homolog.tasks.few_voxels.reach import COLOUR, NAME, Reach
from homolog.tasks.few_voxels.scan import (
    FewClass,
    FewScan,
    SimpleSpec,
    check_grid,
    few_classes,
    few_scan,
)
from homolog.words import utc_now

KIND = "few_voxels"
_HEAD = "head"
_REACH = "reach."
_LICENCE = "code Apache-2.0; head as the licence of the painted scans"
# Of an encoder's card, what is needed to build it and prepare scans for it again.
_OF_ENCODER = (
    "method", "method_config", "backbone", "embedding", "preprocessing", "window",
    "spacing_mm", "axes", KEY, SCANNED_KEY, "paper", "deviations", "source", "steps",
)  # fmt: skip
_ORIGIN = ("title", "licence", "cases", "trained_on", "modalities", "steps")


class FewNetwork(nn.Module):
    """Encoder (or none) and head, as one thing that predicts.

    Args:
        head: Fitted.
        dense: Makes the features the head reads; None: it reads intensities alone.
    """

    def __init__(self, head: Head, dense: DenseEncoder | None) -> None:
        super().__init__()
        self.head = head
        self.dense = dense
        self.embedder = None if dense is None else dense.embedder


def save_few(
    folder: Path,
    head: Head,
    *,
    modalities: Mapping[str, int],
    loaded: LoadedEncoder | None = None,
    dense: DenseEncoder | None = None,
    preprocessing: Preprocessing | None = None,
    facts: Mapping[str, Any] | None = None,
    painted: LearntSpacing | None = None,
) -> Path:
    """Write a model folder that ``homolog predict`` takes; it needs nothing else.

    Args:
        folder: The model folder; a former one is replaced by a complete new one.
        head: Fitted.
        modalities: Of the painted scans, with their numbers.
        loaded: The encoder with its card; None: intensities alone.
        dense: The same encoder as it embedded the scans.
        preprocessing: How intensities were normalised, where there is no encoder.
        facts: More of the card, JSON types: painted voxels, score, scan hashes.
        painted: Voxel size of the painted scans; other scans are brought to it where
            the encoder does not say at which it learnt.

    Returns:
        The folder.

    Raises:
        ValueError: Another encoder than the head's.
        JobError: It could not be written.
    """
    if (dense.encoder_id if dense else "") != head.encoder_id or bool(dense) != bool(
        loaded
    ):
        raise ValueError(
            f"the head reads features of the encoder {head.encoder_id or 'none'}, "
            f"got {dense.encoder_id if dense else 'none'}."
        )
    card: dict[str, Any] = {
        "kind": KIND,
        "title": "Segmentation from a few painted voxels",
        "task_spec": _spec(head, modalities),
        KIND: _settings(head, dense),
        "modalities": dict(modalities),
        "created": utc_now(),
        "complete": True,
        **(facts or {}),
    }
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(array))
        for name, array in _arrays(head).items()
    }
    if loaded is None or dense is None:
        recipe = replace(preprocessing or Preprocessing(), spacing_mm=None)
        card |= {"preprocessing": to_dict(recipe), "licence": _LICENCE}
        return save_model(folder, tensors, card, name=_HEAD)
    card |= _encoder_card(loaded.card, dense, painted)
    extra: dict[str, Any] = {_HEAD: tensors}
    own = dense.embedder.own_state()
    if own:
        extra["embedder"] = own
    elif (card.get("embedding") or {}).get("heads"):
        card["embedding"] = {**card["embedding"], "heads": []}
    weights = dense.embedder.backbone.state_dict()
    return save_model(folder, weights, card, name="encoder", extra=extra)


def _settings(head: Head, dense: DenseEncoder | None) -> dict[str, Any]:
    """What of a head is no array, and how the encoder embedded the scans."""
    return {
        "head": head.kind,
        "neighbours": head.neighbours,
        "classes": [asdict(c) for c in head.classes],
        "simple": to_dict(head.spec),
        "encoder_id": head.encoder_id,
        "encoder_size": head.encoder_size,
        "body_only": head.body_only,
        "embed": None if dense is None else to_dict(dense.config),
    }


def _encoder_card(
    given: Mapping[str, Any], dense: DenseEncoder, painted: LearntSpacing | None
) -> dict[str, Any]:
    """What of the encoder's own card goes into the model's."""
    card = {k: given[k] for k in _OF_ENCODER if k in given}
    size = dense.learnt.spacing or (painted if dense.learnt.remark else None)
    if size is not None:
        card[KEY] = size.to_dict()
    # an encoder that comes from a few-voxel model is described as it was first
    origin = given.get("encoder") or {k: given[k] for k in _ORIGIN if k in given}
    card["encoder"] = {**origin, "id": dense.encoder_id}
    card["licence"] = f"{_LICENCE}; encoder: {origin.get('licence', 'unknown')}"
    return card


def open_few(
    loaded: LoadedModel, device: torch.device, precision: str | None = None
) -> Trained:
    """A few-voxel model from its folder, ready to predict.

    Args:
        loaded: Its folder, read and verified.
        device: Where the encoder is to run.
        precision: Of the encoder; None: as when the head was fitted.

    Raises:
        UnusableInput: Head or encoder are missing, damaged or do not belong together.
    """
    card, where = loaded.card, f"{loaded.folder}/model.json"
    try:
        told = card[KIND]
        spec = SimpleSpec(
            tuple(told["simple"]["smoothing_mm"]),
            bool(told["simple"]["position"]),
            tuple(tuple(k) for k in told["simple"]["knots"]),
        )
        classes = tuple(FewClass(**c) for c in told["classes"])
        tensors = read_weights(loaded.folder, card, f"{_HEAD}.safetensors")
        arrays = {name: value.numpy() for name, value in tensors.items()}
        far = {n.removeprefix(_REACH): a for n, a in arrays.items() if _REACH in n}
        head = Head(
            str(told["head"]), classes, spec, str(told["encoder_id"]),
            int(told["encoder_size"]), int(told["neighbours"]),
            {n: a for n, a in arrays.items() if _REACH not in n},
            bool(told.get("body_only", False)),
            Reach(far) if far else None,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise UnusableInput(f"{where} is damaged ({error}).") from error
    _check_arrays(head, loaded.folder)
    dense = None
    if head.encoder_id:
        config = from_dict(EmbedConfig, told["embed"], where=where)
        if precision is not None:
            config = replace(config, precision=precision)
        encoder = load_encoder(loaded.folder)
        dense = DenseEncoder.of(encoder, config, device)
        if dense.encoder_id != head.encoder_id:
            raise UnusableInput(
                f"the head in {loaded.folder} reads features of the encoder "
                f"{head.encoder_id}, but the encoder there is {dense.encoder_id}."
            )
    network = FewNetwork(head, dense).eval()
    return Trained(network, card["task_spec"], card, device, precision or "fp32")


def _arrays(head: Head) -> dict[str, Any]:
    """All numbers of a head by the name they are kept under."""
    far = {} if head.reach is None else head.reach.arrays
    return {**head.arrays, **{f"{_REACH}{name}": a for name, a in far.items()}}


def _check_arrays(head: Head, folder: Path) -> None:
    """Refuse a head whose weights have another shape than its card says."""
    if head.kind == "logistic":
        wanted = {
            "weight": (len(head.classes), head.size),
            "bias": (len(head.classes),),
        }
    else:
        count = head.arrays["targets"].shape[0] if "targets" in head.arrays else 0
        wanted = {
            "mean": (head.size,), "scale": (head.size,),
            "support": (count, head.size), "targets": (count,),
        }  # fmt: skip
    found = {name: array.shape for name, array in _arrays(head).items()}
    if head.reach is not None:
        near = found.get(f"{_REACH}targets", (0,))[0]
        shapes = head.reach.shapes(
            near, head.encoder_size, len(head.classes), head.spec
        )
        wanted |= {f"{_REACH}{name}": shape for name, shape in shapes.items()}
    if found != wanted:
        raise UnusableInput(f"the head in {folder} should hold {wanted}, got {found}.")


def _spec(head: Head, modalities: Mapping[str, int]) -> dict[str, Any]:
    """What any model that labels tells: values, names, colours, modalities."""
    shown = [c for c in head.classes if not c.background]
    if head.reach is not None:
        shown.append(FewClass(head.unknown, NAME, COLOUR))
    return {
        "channels": head.spec.channels,
        "modalities": sorted(modalities),
        "label_values": [0, *(c.value for c in shown)],
        "label_names": {str(c.value): c.name for c in shown},
        "label_colours": {str(c.value): c.colour for c in shown},
    }


# The few-voxels task: a first segmentation from a handful of painted voxels.
#
# ``fit`` makes a head in milliseconds from features that are there already; a slice and
# then the scan follow. What fits and predicts (the modules beside) knows neither torch
# nor Qt; this file is the task as ``homolog predict`` sees it.


class FewVoxels(Task):
    """Logistic regression or a vote of neighbours on dense features."""

    Config: ClassVar[type] = FewConfig
    title: ClassVar[str] = "Segmentation from a few painted voxels"

    @classmethod
    def opened(
        cls, loaded: LoadedModel, device: torch.device, precision: str | None
    ) -> tuple[FewVoxels, Trained]:
        """A saved few-voxel model, see ``open_few``."""
        return cls(FewConfig()), open_few(loaded, device, precision)

    def run(
        self,
        volume: Volume,
        model: Trained,
        options: PredictOptions = PredictOptions(),  # noqa: B008 - frozen
    ) -> Job[LabelMap | None]:
        """Label a scan on its own grid; None when stopped.

        Of ``options`` overlap and modality count; a note says so of mirrorings.
        """
        network, modality = model.network, options.modality
        assert isinstance(network, FewNetwork)
        for sentence in notes_of(model, volume, modality, options.flips):
            yield Note(sentence, "warning")
        recipe = from_dict(
            Preprocessing, model.card.get("preprocessing", {}), where="model.json"
        )
        if modality is not None:
            recipe = replace(recipe, modality=modality)
        features: FeatureMap | None = None
        if network.dense is not None:
            dense = replace(network.dense, preprocessing=recipe)
            if options.overlap is not None:
                config = replace(dense.config, overlap=float(options.overlap))
                dense = replace(dense, config=config)
            features = yield from _features(volume, dense)
            if features is None:
                return None
        scan = few_scan(volume, features, recipe)
        result = yield from predict_volume(network.head, scan)
        return None if result is None else result.labels


def notes_of(
    model: Trained, volume: Volume, modality: str | None, flips: Sequence[int]
) -> list[str]:
    """Sentences on what makes a scan unlike those that were painted.

    Args:
        model: With its spec.
        volume: The scan.
        modality: What the user says it is, whatever its file says.
        flips: Mirrorings asked for.
    """
    found = []
    spec: Mapping[str, Any] = model.spec
    known = [m for m in spec["modalities"] if m != "OTHER"]
    own = modality or volume.modality
    if known and own != "OTHER" and own not in known:
        found.append(
            f"the model was painted on {', '.join(known)}, but {volume.name!r} is "
            f"{own}: its values mean something else, and the labels will hardly be "
            "right."
        )
    if flips:
        found.append("a few-voxel model does not average over mirrorings.")
    return found


def _features(volume: Volume, dense: Any) -> Job[FeatureMap | None]:
    """The scan's features: from the user's cache where the scan is a file."""
    source = volume.meta.get("source")
    if not source or not Path(source).exists():
        made: FeatureMap | None = yield from embed_scan(volume, dense)
        return made
    with kept_features() as folder:
        kept: FeatureMap | None = yield from embed_scan(
            volume, dense, folder=folder, scan_hash=scan_hash(Path(source))
        )
    return kept


# A segmentation model from a few painted voxels of scan files.


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
        volume = read_scan(path)
        painted = labels_by_place(read_labels(paint), volume)
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
        painted=LearntSpacing.of_scans(
            [p.volume for p in pairs],
            acquired=dense is not None and dense.preprocessing.acquired,
        ),
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
