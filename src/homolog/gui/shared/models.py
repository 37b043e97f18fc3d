"""Every trained model on disk as a card, and what may be done with it.

No Qt, no torch: ``model.json`` is read as the JSON it is (written by
``homolog.model_files``), weights are only hashed and copied.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtpy.QtCore import QFile, Qt
from qtpy.QtWidgets import QMenu, QWidget

from homolog import writing
from homolog.errors import JobError, UnusableInput
from homolog.events import stopped_words
from homolog.gui.shared.choices import PAINTED
from homolog.gui.shared.hub import Hub
from homolog.model_files import card as model_cards
from homolog.model_files.card import CARD, learnt_of
from homolog.runs.run import Run, find_runs
from homolog.words import counted, human_bytes, lengths_text, spacing_text
from homolog.writing import folder_bytes

# What a model's card says, in words; no Qt, no torch.


KINDS = {
    "encoder": "encoder (features)", "segment": "segmentation",
    "classify": "classification of whole scans", "detect": "detection of boxes",
    "translate": "image to image",
    "few_voxels": "segmentation from a few painted voxels",
}  # fmt: skip
_NO_NETWORK: Mapping[str, Any] = {"name": "none: intensity and place alone"}


def title_of(card: Mapping[str, Any]) -> str:
    """``"encoder, s2dc on resunet"``; with how far it came where it was stopped."""
    backbone = (card.get("backbone") or _NO_NETWORK)["name"]
    early = stopped_words(card)
    early = f", {early}" if early else ""
    if card.get("kind") == "encoder":
        method = card.get("method") or "encoder"
        return f"encoder, {method} on {backbone}{early}"
    kind, count = str(card.get("kind")), len(card.get("label_names") or {})
    if kind in ("classify", "detect"):
        classes = len((card.get("task_spec") or {}).get("classes") or ())
        return f"{KINDS[kind]}, {counted(classes, 'class')}, {backbone}{early}"
    if kind == "translate":
        return f"{KINDS[kind]}, {backbone}{early}"
    return f"{KINDS.get(kind, kind)}, {counted(count, 'label')}, {backbone}{early}"


def facts_of(
    card: Mapping[str, Any], size: int, path: Path
) -> Iterator[tuple[str, str]]:
    """(what, text) of everything a user may want to know before trusting a model.

    Args:
        card: ``model.json``.
        size: Bytes of its folder.
        path: As commands take it.
    """
    kind = str(card.get("kind"))
    yield "Kind", KINDS.get(kind, kind)
    if title := card.get("title") or card.get("method"):
        yield "Method", str(title)
    yield from _network(card)
    yield "Trained on", _trained_on(card)
    spacing = (card.get("preprocessing") or {}).get("spacing_mm")
    own = "each scan's own" if spacing is None else spacing_text(spacing)
    if spacing is None:
        learnt = learnt_of(card, None)
        if learnt.spacing is not None:
            own = f"{learnt.spacing.text}: other scans are brought to it"
        elif learnt.remark:
            own = "not stated: scans are taken at their own"
    yield "Voxel size", own
    if window := card.get("window"):
        yield "Window", lengths_text(window, "voxels")
    if card.get("kind") != "encoder" and (names := card.get("label_names")):
        yield "Labels", ", ".join(str(name) for name in names.values())
    yield from _scan_classes(card.get("task_spec") or {}, kind)
    steps = card.get("steps")
    if steps is not None:
        early = stopped_words(card)
        yield "Steps", f"{steps}" + (f" ({early})" if early else "")
    if (told := card.get("weights_of")) and stopped_words(card):
        seen = "" if told.get("validated") else ", not validated"
        yield "Weights of", f"the {told['kept']} step, {told['step']}{seen}"
    for key, word in (("dice", "Dice"), ("auc", "AUC")):
        value = (card.get("validation") or {}).get(key)
        if isinstance(value, int | float) and value == value:
            yield "Validation", f"{word} {value:.3f} on held-out scans"
    if (origin := card.get("encoder")) and isinstance(origin, Mapping):
        began = str(origin.get("source", ""))
        yield "Started from", Path(began).name if began else "random weights"
    yield "Licence", str(card.get("licence") or "not stated")
    digest = str(card["sha256"].get(card["weights"], ""))
    yield "Weights", f"{human_bytes(size)}, SHA-256 {digest[:12]}"
    yield (
        "Made with",
        f"homolog {card.get('homolog_version', '?')}"
        + (f", {_day(card['created'])}" if card.get("created") else ""),
    )
    yield "Folder", str(path)


def _network(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is kept of a network."""
    backbone = card.get("backbone") or _NO_NETWORK
    yield "Network", str(backbone["name"]) + _brief(backbone.get("config") or {})
    if decoder := card.get("decoder"):
        yield "Decoder", f"{decoder.get('kind')}, {decoder.get('width')} wide"


def _scan_classes(spec: Mapping[str, Any], kind: str) -> Iterator[tuple[str, str]]:
    """What a classifier tells of a scan."""
    if kind == "detect":
        yield "Classes", ", ".join(map(str, spec.get("classes", ())))
        if "threshold" in spec:
            yield "Told from", f"a score of {spec['threshold']:.2f}"
    if kind != "classify" or not spec.get("classes"):
        return
    how = "any or none of a scan" if spec.get("several") else "one per scan"
    yield "Classes", f"{', '.join(map(str, spec['classes']))} ({how})"
    if limits := spec.get("thresholds"):
        pairs = zip(spec["classes"], limits, strict=True)
        yield "Thresholds", ", ".join(f"{name} {p:.2f}" for name, p in pairs)
    if types := spec.get("types"):
        yield "Types", ", ".join(map(str, types))
    if spec.get("slices"):
        yield "Slices", "tells which slices show a finding"


def _trained_on(card: Mapping[str, Any]) -> str:
    cases, kinds = card.get("cases"), card.get("modalities")
    if isinstance(cases, Mapping):
        count = len(cases.get("train", ()))
        held = len(cases.get("val", ()))
        text = f"{count} scans" + (f", {held} more chose the weights" if held else "")
    elif isinstance(cases, int):
        text = f"{cases} scans"
    elif card.get("trained_on"):
        text = f"{len(card['trained_on'])} scans"
    else:
        return "unknown: the file does not say"
    kinds = kinds or (card.get("task_spec") or {}).get("modalities")
    if kinds:
        text += f" ({', '.join(str(k) for k in kinds)})"
    return text


def _brief(config: Mapping[str, Any]) -> str:
    shown = {
        k: v for k, v in config.items() if k != "in_channels" and v not in ([], None)
    }
    parts = [f"{k} {v}".replace("[", "").replace("]", "") for k, v in shown.items()]
    return f" ({', '.join(parts[:3])})" if parts else ""


def _day(text: str) -> str:
    return str(text).partition("T")[0]


WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# Networks a foreign file may hold, until the engine has told its own list.
NETWORKS = ("swin", "vit", "resunet")
_FREE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ModelCard:
    """One model.

    Attributes:
        folder: With ``model.json``.
        path: As panels and commands take it: the run, or the model folder.
        name: Below the runs or the models folder.
        source: ``run`` or ``imported``.
        kind: ``encoder``, or the task it was fine-tuned for.
        facts: (what, text), in the order they are shown.
        size: Bytes.
        damaged: Why it cannot be used; empty for a sound one.
    """

    folder: Path
    path: Path
    name: str
    source: str
    kind: str = ""
    title: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    size: int = 0
    created: float = 0.0
    damaged: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lines(self) -> str:
        """Two lines for a list."""
        if self.damaged:
            return f"{self.name}\n? damaged"
        return f"{self.name}\n{self.title}"

    @property
    def haystack(self) -> str:
        """Everything the search looks through."""
        words = [self.name, self.title, self.kind, self.source, self.damaged]
        return " ".join(words + [text for _, text in self.facts]).lower()


def find_models(runs: Path, models: Path) -> list[ModelCard]:
    """Every model of the runs and the models folder, the newest first."""
    found = []
    for folder, root, source in _folders(runs, models):
        found.append(read_model(folder, root, source))
    return sorted(found, key=lambda model: -model.created)


def read_model(folder: Path, root: Path, source: str = "imported") -> ModelCard:
    """One model folder as a card; a damaged one says so.

    Args:
        folder: With ``model.json``.
        root: What its name is relative to.
        source: ``run`` or ``imported``.
    """
    path = folder.parent if folder.name == "model" else folder
    name = path.name
    with contextlib.suppress(ValueError):
        name = path.resolve().relative_to(root.resolve()).as_posix()
    created = 0.0
    with contextlib.suppress(OSError):
        created = (folder / CARD).stat().st_mtime
    try:
        card = read_card(folder)
    except UnusableInput as error:
        return ModelCard(
            folder, path, name, source, created=created, damaged=str(error)
        )
    size = folder_bytes(folder)
    try:
        title, facts = title_of(card), tuple(facts_of(card, size, path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{folder / CARD} is damaged ({error})."
        return ModelCard(folder, path, name, source, created=created, damaged=reason)
    return ModelCard(
        folder, path, name, source, str(card.get("kind", "encoder")), title,
        facts, size, created, _missing(folder, card), card,
    )  # fmt: skip


def read_card(folder: Path) -> dict[str, Any]:
    """``model.json`` of a model folder.

    Raises:
        UnusableInput: It is missing or damaged.
    """
    card = model_cards.read_card(folder)
    # a painted model may read intensities alone
    if card.get("kind") != PAINTED and not card.get("backbone"):
        raise UnusableInput(f"{folder / CARD} is damaged (backbone is missing).")
    return card


def matching(models: Sequence[ModelCard], words: str) -> list[ModelCard]:
    """Those whose card holds every word of the search."""
    wanted = words.lower().split()
    return [m for m in models if all(word in m.haystack for word in wanted)]


def uses(model: ModelCard) -> list[tuple[str, str, dict[str, Any]]]:
    """(what to do, tab, what its ``visit`` gets) for a sound model."""
    path = str(model.path)
    if model.damaged:
        return []
    if model.kind == PAINTED:  # its encoder has a card of its own
        return [("Segment scans", "Segment", {"model": path})]
    explore = ("Explore scans with its features", "Explore", {"encoder": path})
    if model.kind != "encoder":
        return [("Segment scans", "Segment", {"model": path}), explore]
    tune = ("Fine-tune it with labels", "Fine-tune", {"store": "", "encoder": path})
    return [explore, tune]


def is_model(path: Path) -> bool:
    """Whether a dropped path may be imported: our folder, a run, or a weight file."""
    if path.is_dir():
        return any((p / CARD).is_file() for p in (path, path / "model"))
    return path.suffix.lower() in WEIGHT_FILES


def is_ours(path: Path) -> bool:
    """Whether it says itself what it is, so that nothing need be asked."""
    return path.is_dir() and is_model(path)


def free_name(models: Path, wanted: str) -> str:
    """A folder name that is not taken: never overwrite, ``name_v2`` instead."""
    base = _FREE_NAME.sub("-", wanted).strip("-.") or "model"
    return writing.free_name(base, lambda name: (models / name).exists())


def import_config(
    source: Path, out: Path, backbone: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What the helper that imports a foreign file gets."""
    return {
        "action": "import",
        "source": str(source.absolute()),
        "out": str(out.absolute()),
        "backbone": backbone,
        "settings": dict(settings),
    }


def export_config(model: ModelCard, out: Path) -> dict[str, Any]:
    """What the helper that writes an encoder's weights gets."""
    if out.suffix != ".safetensors":
        out = out.with_name(f"{out.name}.safetensors")
    return {
        "action": "export",
        "source": str(model.path.absolute()),
        "out": str(out.absolute()),
    }


def copy_model(source: Path, out: Path) -> Path:
    """Copy a whole model folder, checksums verified; all of it or nothing.

    Seconds for large weights: on a background thread.

    Args:
        source: Model folder, or the run it lies in.
        out: The new model folder.

    Raises:
        UnusableInput: Damaged, or ``out`` exists.
        JobError: It could not be written.
    """
    folder = source if (source / CARD).is_file() else source / "model"
    card = read_card(folder)
    if out.exists():
        raise UnusableInput(f"{out} exists; choose another name.")
    for name, wanted in card["sha256"].items():
        if file_hash(folder / name) != wanted:
            raise UnusableInput(f"{folder / name} is damaged: its checksum is wrong.")
    try:
        with writing.writing_folder(out) as fresh:
            for name in (CARD, *card["sha256"]):
                shutil.copyfile(folder / name, fresh / name)
    except OSError as error:
        raise JobError(f"the model could not be copied to {out} ({error}).") from error
    return out


def file_hash(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UnusableInput: It cannot be read.
    """
    try:
        return writing.file_digest(path)
    except OSError as error:
        raise UnusableInput(f"{path} cannot be read ({error}).") from error


def check_deletable(model: ModelCard, roots: Sequence[Path]) -> None:
    """Raise unless a model may go to the trash.

    Raises:
        JobError: Its run is being worked on, or it lies outside our folders.
    """
    folder = model.folder.resolve()
    if not any(folder.is_relative_to(root.resolve()) for root in roots):
        raise JobError(f"{folder} is not in the runs or models folder.")
    run = Run(model.path.resolve())
    if (run.folder / "run.json").is_file() and run.is_alive():
        raise JobError(f"{model.name} is being trained; stop it first.")


def _folders(runs: Path, models: Path) -> Iterator[tuple[Path, Path, str]]:
    for run in find_runs(runs):
        # A demo keeps its trainings in folders of its own.
        for pattern in (f"model/{CARD}", f"*/model/{CARD}"):
            for card in sorted(run.folder.glob(pattern)):
                yield card.parent, runs, "run"
    if models.is_dir():
        for pattern in (f"*/{CARD}", f"*/*/{CARD}"):
            for card in sorted(models.glob(pattern)):
                if not card.parent.name.startswith("."):
                    yield card.parent, models, "imported"


def _missing(folder: Path, card: Mapping[str, Any]) -> str:
    for name in card["sha256"]:
        if not (folder / name).is_file():
            return f"the weights {name} are missing."
    return ""


# What panels ask of the desktop: the trash, and a menu of what a model is good for.


def use_menu(hub: Hub, model: ModelCard, parent: QWidget) -> QMenu:
    """What a model is good for; choosing sends the user to that tab."""
    menu = QMenu(parent)
    menu.setToolTipsVisible(True)
    menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    for words, tab, what in uses(model):
        action = menu.addAction(words)
        action.setToolTip(f"Go to the tab {tab} with {model.name}")
        action.triggered.connect(
            lambda _=False, tab=tab, what=what: hub.go.emit(tab, what)
        )
    return menu


def to_trash(folder: Path) -> None:
    """Move a folder to the desktop's trash; on a background thread.

    Raises:
        OSError: There is no trash for that disk; nothing was touched.
    """
    done = QFile.moveToTrash(str(folder))
    if not (done[0] if isinstance(done, tuple) else done):
        raise OSError(
            f"this system has no trash for {folder}; nothing was deleted. Delete the "
            "folder in the file manager."
        )
