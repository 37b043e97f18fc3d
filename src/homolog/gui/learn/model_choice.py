"""Encoders and models to choose from, read from their cards; no torch, no Qt.

A card is the ``model.json`` of a run's ``model`` folder or of an imported model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from homolog.data.learnt_spacing import Learnt, learnt_of
from homolog.errors import UnusableInput
from homolog.events import stopped_words
from homolog.geometry.places import lengths_text, spacing_text
from homolog.model_card import CARD, read_card
from homolog.runs.run import find_runs

SCRATCH = "scratch"
# Kind of a model learnt from a few painted voxels.
PAINTED = "few_voxels"
# Spacings that differ by more than this factor are worth a warning.
_SPACING_FACTOR = 1.4
_NAMES_SHOWN = 6


@dataclass(frozen=True)
class ModelChoice:
    """A trained network that lies on disk.

    Attributes:
        path: The run or model folder, as commands take it.
        name: Short name.
        kind: ``encoder``, or the task it was fine-tuned for.
        backbone: Name of the network.
        label_names: Label value -> name; empty for encoders and classifiers.
        classes: Of whole scans, where it tells those.
        spacing_mm: Voxel size (z, y, x) scans are resampled to; None keeps their own.
        modalities: What it learnt from.
        window: Voxels (z, y, x) seen at once; empty when the card does not say.
        card: The whole card.
    """

    path: Path
    name: str
    kind: str
    backbone: str
    label_names: Mapping[int, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    spacing_mm: tuple[float, ...] | None = None
    modalities: tuple[str, ...] = ()
    window: tuple[int, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """One line for a list: name and what it is."""
        early = stopped_words(self.card)
        unfinished = f", {early}" if early else ""
        if self.kind == "encoder":
            method = str(self.card.get("method") or "encoder")
            return f"{self.name} ({method}, {self.backbone}{unfinished})"
        if self.classifies:
            count = f"{len(self.classes)} class{'es' * (len(self.classes) != 1)}"
            return f"{self.name} ({count} of whole scans, {self.backbone}{unfinished})"
        how = f"painted, {self.backbone or 'intensity'}"
        how = how if self.kind == PAINTED else self.backbone
        return f"{self.name} ({len(self.label_names)} classes, {how}{unfinished})"

    @property
    def classifies(self) -> bool:
        """Whether it tells classes of whole scans, not labels of voxels."""
        return bool(self.classes)

    @property
    def facts(self) -> str:
        """What it finds and what it was trained on, in one or two lines."""
        parts = []
        if self.label_names:
            parts.append(f"Finds {_some(list(self.label_names.values()))}.")
        if self.classes:
            several = (self.card.get("task_spec") or {}).get("several")
            how = "any or none of" if several else "one of"
            parts.append(f"Tells of a whole scan {how} {_some(self.classes)}.")
        size = "its scans' own voxel size"
        if self.spacing_mm is not None:
            size = spacing_text(self.spacing_mm)
        elif (learnt := learnt_of(self.card, None)).spacing is not None:
            size = learnt.spacing.text
        elif learnt.remark:
            size = "a voxel size that it does not say"
        data = f"Trained on {' and '.join(self.modalities) or 'scans'} at {size}"
        if self.window:
            data += f", seeing {lengths_text(self.window, 'voxels')} at once"
        parts.append(data + ".")
        validation = self.card.get("validation") or {}
        for key, word in (("dice", "Dice"), ("auc", "AUC")):
            value = validation.get(key)
            if isinstance(value, int | float) and value == value:
                parts.append(f"{word} on held-out scans {value:.2f}.")
        if early := stopped_words(self.card):
            parts.append(f"The training was {early}; it can be resumed in Runs.")
        return " ".join(parts)

    @cached_property
    def learnt(self) -> Learnt:
        """The voxel size it learnt at, from its card or else from its training data.

        Reads the training store where the card does not say: not for lists.
        """
        places = (p for p in (self.path, self.path / "model") if (p / CARD).is_file())
        return learnt_of(self.card, next(places, None))


def read_choice(path: Path) -> ModelChoice:
    """The card of a run, a model folder or a file inside one.

    Raises:
        UnusableInput: There is no card, or it is damaged.
    """
    card_path = next(
        (p / CARD for p in (path, path / "model") if (p / CARD).is_file()), None
    )
    if card_path is None:
        raise UnusableInput(f"{path} holds no model yet ({CARD} is missing).")
    try:
        card = read_card(card_path.parent)
        painted = card.get("kind") == PAINTED
        # a painted model may read intensities alone
        network = card.get("backbone") or {"name": ""} if painted else card["backbone"]
        backbone = str(network["name"])
        spacing = (card.get("preprocessing") or {}).get("spacing_mm")
        spec = card.get("task_spec") or {}
        names = {int(v): str(n) for v, n in (card.get("label_names") or {}).items()}
        name = path.parent.name if path.name == "model" else path.name
        return ModelChoice(
            path=path,
            name=name,
            kind=str(card.get("kind", "encoder")),
            backbone=backbone,
            label_names=names if card.get("kind") != "encoder" else {},
            classes=_classes(card, spec),
            spacing_mm=None if spacing is None else tuple(float(s) for s in spacing),
            modalities=_modalities(card, spec),
            window=tuple(int(n) for n in card.get("window") or ()),
            card=card,
        )
    except UnusableInput:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableInput(f"{card_path} is damaged ({error}).") from error


def list_encoders(
    runs: Path, models: Path, extra: Iterable[Path] = ()
) -> list[ModelChoice]:
    """Encoders of pretraining runs (newest first), imported ones, and ``extra`` ones.

    Args:
        runs: Folder of the runs.
        models: Folder of imported models.
        extra: Runs or model folders that lie elsewhere.
    """
    return [c for c in _choices(runs, models, extra) if c.kind == "encoder"]


def list_models(
    runs: Path, models: Path, extra: Iterable[Path] = ()
) -> list[ModelChoice]:
    """As ``list_encoders``: models that can label or classify scans.

    A model without names of labels or classes cannot, and is left out.
    """
    found = _choices(runs, models, extra)
    return [c for c in found if c.kind != "encoder" and (c.label_names or c.classes)]


def list_embedders(
    runs: Path, models: Path, wanted: Path | None = None
) -> list[ModelChoice]:
    """Encoders, then fine-tuned models: all whose features can be computed.

    Args:
        runs: Folder of the runs.
        models: Folder of imported models.
        wanted: What was asked for elsewhere, listed last where it is not known.
    """
    found = [*list_encoders(runs, models), *list_models(runs, models)]
    found = [c for c in found if c.kind != PAINTED]  # their encoder is in the list
    if wanted is not None and wanted.resolve() not in {c.path.resolve() for c in found}:
        with contextlib.suppress(UnusableInput):
            found.append(read_choice(wanted))
    return found


def misfit(
    model: ModelChoice,
    name: str,
    modality: str,
    spacing_mm: Sequence[float],
    *,
    asks: bool = True,
) -> list[str]:
    """Sentences about a scan that is unlike those the model learnt from.

    Args:
        model: About to be used.
        name: Of the scan.
        modality: Of the scan; OTHER means unknown.
        spacing_mm: Of the scan (z, y, x).
        asks: Whether the user can say Continue, for this scan alone.
    """
    found = []
    known = [m for m in model.modalities if m != "OTHER"]
    if known and modality != "OTHER" and modality not in known:
        single = asks and len(known) == 1
        then = f"Continue takes it for {known[0]}" if single else "It will be refused"
        found.append(
            f"{name} is {modality}, but the model learnt from {' and '.join(known)}. "
            f"{then}; a model for {modality} would do better."
        )
    wanted = model.spacing_mm
    if wanted is None and len(spacing_mm) == 3 and (learnt := model.learnt).spacing:
        z, y, x = spacing_mm
        # the size of the scan is not asked here: a picture is told apart by its 1 mm
        wanted = learnt.spacing.target_mm((z, y, x), (2, 2, 2))
    elif wanted is None and model.learnt.remark:
        found.append(f"{name}: {model.learnt.remark}")
    if wanted is not None and len(wanted) == len(spacing_mm) == 3:
        factors = [a / b for a, b in zip(spacing_mm, wanted, strict=True) if b > 0]
        off = [max(f, 1 / f) for f in factors if f > 0]
        if off and max(off) > _SPACING_FACTOR:
            found.append(_spacing_sentence(name, spacing_mm, wanted))
    return found


def _spacing_sentence(name: str, own: Sequence[float], wanted: Sequence[float]) -> str:
    """``CT_03 has 5 mm slices, the model was trained at 1.5 mm``: the worst axis."""
    pairs = list(zip(own, wanted, strict=True))
    worst = max(range(3), key=lambda i: max(pairs[i][0] / pairs[i][1],
                                            pairs[i][1] / pairs[i][0]))  # fmt: skip
    what = "slices" if worst == 0 else "pixels"
    a, b = pairs[worst]
    return (
        f"{name} has {a:.3g} mm {what}, the model was trained at {b:.3g} mm. "
        "The scan will be resampled for it; the result comes back on its own grid."
    )


def _choices(runs: Path, models: Path, extra: Iterable[Path]) -> Iterator[ModelChoice]:
    found = []
    for run in find_runs(runs):
        card = run.folder / "model" / CARD
        try:
            found.append((card.stat().st_mtime, run.folder))
        except OSError:
            continue
    folders = [folder for _, folder in sorted(found, key=lambda f: -f[0])]
    if models.is_dir():
        folders += sorted(p for p in models.iterdir() if p.is_dir())
    for folder in dict.fromkeys(p.resolve() for p in (*folders, *extra)):
        try:
            yield read_choice(folder)
        except UnusableInput:
            continue  # the Models tab shows what is damaged


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - _NAMES_SHOWN} more"
    return ", ".join(names[:_NAMES_SHOWN]) + (more if len(names) > _NAMES_SHOWN else "")


def _classes(card: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[str, ...]:
    if card.get("kind") != "classify":
        return ()
    return tuple(str(name) for name in spec.get("classes") or ())


def _modalities(card: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[str, ...]:
    told = spec.get("modalities") or card.get("modalities") or ()
    if isinstance(told, Mapping):
        told = told.keys()
    return tuple(sorted(str(m) for m in told))


def treated_as(model: ModelChoice, modality: str) -> str | None:
    """The modality to tell the engine for a scan of another one, after the warning.

    Only where it can be told: the model must have learnt from a single modality.
    """
    known = [m for m in model.modalities if m != "OTHER"]
    if modality == "OTHER" or modality in known or len(known) != 1:
        return None
    return known[0]
