"""Every trained model on disk as a card, and what may be done with it.

No Qt, no torch: ``model.json`` is read as the JSON it is (written by
``homolog.model_files``), weights are only hashed and copied.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtpy.QtCore import QFile, Qt
from qtpy.QtWidgets import QMenu, QWidget

from homolog import writing
from homolog.errors import JobError, UnusableInput
from homolog.gui.shared import preferences
from homolog.gui.shared.choices import PAINTED
from homolog.gui.shared.hub import Hub
from homolog.model_files import card as model_cards
from homolog.model_files import library
from homolog.model_files.card import CARD
from homolog.model_files.facts import facts_of, licence_line, title_of
from homolog.model_files.library import SHIPPED, models_below, shipped_models
from homolog.runs.run import Run, find_runs
from homolog.writing import folder_bytes

TRASH = "trash"
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
        source: ``shipped`` with Homolog, ``run`` or ``imported``.
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
        """Lines for a list; the licence of what was not trained here is one of them."""
        if self.damaged:
            return f"{self.name}\n? damaged"
        own = " (built in)" if self.source == SHIPPED else ""
        licence = "" if self.source == "run" else licence_line(self.card)
        lines = [f"{self.name}{own}", self.title, licence]
        return "\n".join(line for line in lines if line)

    @property
    def haystack(self) -> str:
        """Everything the search looks through."""
        words = [self.name, self.title, self.kind, self.source, self.damaged]
        return " ".join(words + [text for _, text in self.facts]).lower()


def find_models(runs: Path, models: Path) -> list[ModelCard]:
    """Every model: those that come with Homolog, imported ones, runs; newest first."""
    found = [read_model(*place) for place in _folders(runs, models)]
    order = (SHIPPED, "imported", "run")
    return sorted(found, key=lambda m: (order.index(m.source), -m.created))


def read_model(folder: Path, root: Path, source: str = "imported") -> ModelCard:
    """One model folder as a card; a damaged one says so.

    Args:
        folder: With ``model.json``.
        root: What its name is relative to.
        source: ``shipped``, ``run`` or ``imported``.
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


# What a model does, where it is not to segment.
_USES = {
    "classify": "Classify scans", "detect": "Find boxes in scans",
    "translate": "Make images of scans",
}  # fmt: skip


def uses(model: ModelCard) -> list[tuple[str, str, dict[str, Any]]]:
    """(what to do, tab, what its ``visit`` gets) for a sound model."""
    path = str(model.path)
    if model.damaged:
        return []
    if model.kind == PAINTED:  # its encoder has a card of its own
        return [("Segment scans", "Segment", {"model": path})]
    explore = ("Explore scans with its features", "Explore", {"encoder": path})
    if model.kind != "encoder":
        use = _USES.get(model.kind, "Segment scans")
        return [(use, "Segment", {"model": path}), explore]
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
    taken = {known.name for known in shipped_models()}
    return writing.free_name(
        base, lambda name: name in taken or (models / name).exists()
    )


def import_config(
    source: Path, out: Path, backbone: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What the helper that imports a foreign file gets; no network: as it tells."""
    return {
        "action": "import",
        "source": str(source.absolute()),
        "out": str(out.absolute()),
        "backbone": backbone or None,
        "settings": dict(settings),
    }


def export_config(
    model: ModelCard, out: Path, kind: str = "safetensors"
) -> dict[str, Any]:
    """What the helper that writes a model for other programs gets."""
    if kind == "safetensors" and out.suffix != ".safetensors":
        out = out.with_name(f"{out.name}.safetensors")
    return {
        "action": "export",
        "source": str(model.path.absolute()),
        "out": str(out.absolute()),
        "kind": kind,
    }


def check_deletable(model: ModelCard, roots: Sequence[Path]) -> None:
    """Raise unless a model may go to the trash.

    Raises:
        JobError: Its run is being worked on, or it lies outside our folders.
    """
    folder = model.folder.resolve()
    if model.source == SHIPPED:
        raise JobError(f"{model.name} comes with Homolog and stays.")
    if not any(folder.is_relative_to(root.resolve()) for root in roots):
        raise JobError(f"{folder} is not in the runs or models folder.")
    run = Run(model.path.resolve())
    if (run.folder / "run.json").is_file() and run.is_alive():
        raise JobError(f"{model.name} is being trained; stop it first.")


def _folders(runs: Path, models: Path) -> Iterator[tuple[Path, Path, str]]:
    for known in shipped_models():
        yield known.folder, library.ENCODERS, SHIPPED
    for known in models_below(models, "imported"):
        yield known.folder, models, "imported"
    for run in find_runs(runs):
        # A demo keeps its trainings in folders of its own.
        for pattern in (f"model/{CARD}", f"*/model/{CARD}"):
            for card in sorted(run.folder.glob(pattern)):
                yield card.parent, runs, "run"


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


def to_trash(folder: Path) -> str:
    """Move a folder to the desktop's trash, or to ours; on a background thread.

    Where a disk has no trash (a server, a share, a container), the folder goes to
    ``trash`` in the home folder.

    Returns:
        Where it is, for the end of "It is ...".

    Raises:
        OSError: It could not be moved; nothing was lost.
    """
    done = QFile.moveToTrash(str(folder))
    if done[0] if isinstance(done, tuple) else done:
        return "in the trash"
    own = preferences.home() / TRASH
    place = own / writing.free_name(folder.name, lambda n: (own / n).exists())
    writing.move_to(folder, place)
    return f"in {place}: this disk has no trash. Delete it there to free its room"
