"""Stores to learn from, as the window lists them; cards only, no voxels, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from homolog.data.card import Card
from homolog.data.findings import NONE, findings_of, has_several, says_none
from homolog.data.preprocess import Preprocessing
from homolog.data.store import Store
from homolog.errors import JobError, UnusableInput
from homolog.geometry.places import spacing_text


@dataclass(frozen=True)
class ClassCount:
    """One class of a store.

    Attributes:
        value: In the label maps.
        name: For people.
        cases: Scans that show it.
        volume_ml: All its voxels together.
    """

    value: int
    name: str
    cases: int
    volume_ml: float


@dataclass(frozen=True)
class StoreChoice:
    """A store in the list.

    Attributes:
        path: Its folder.
        cases: Scans in it.
        labelled: Scans with a label map.
        learnable: Scans that are not kept for the final test.
        teachable: Those of them with a label map that are learnt from (not held out
            for validation).
        spacing: Voxel size in mm, as text.
        modalities: ``6 CT, 2 MR``.
        classes: Of label maps, with counts, by value.
        scan_classes: Of whole scans: name and number of scans, by name; where a scan
            may have several, last those without any.
        several: Whether a scan may have several such classes, or none.
        classed: Scans whose class is known.
        class_teachable: Scans with such a class that are learnt from.
        held_out: Scans with a label map that are kept for validation.
        class_held_out: Scans with such a class that are kept for validation.
        preprocessing: How its scans were prepared; None where it cannot be read.
        problem: Why it cannot be used; empty when it can.
    """

    path: Path
    cases: int = 0
    labelled: int = 0
    learnable: int = 0
    teachable: int = 0
    spacing: str = ""
    modalities: str = ""
    classes: tuple[ClassCount, ...] = field(default_factory=tuple)
    scan_classes: tuple[tuple[str, int], ...] = ()
    several: bool = False
    classed: int = 0
    class_teachable: int = 0
    held_out: int = 0
    class_held_out: int = 0
    preprocessing: Preprocessing | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.name

    @property
    def title(self) -> str:
        """One line: ``abdomen: 12 scans, 8 labelled, 1.5 mm, 12 CT``."""
        if self.problem:
            return f"{self.name}: cannot be used"
        scans = f"{self.cases} scan{'s' * (self.cases != 1)}"
        told = f"{self.labelled} labelled" if self.labelled or not self.classed else ""
        classed = f"{self.classed} with a class" if self.classed else ""
        parts = [scans, told, classed, self.spacing, self.modalities]
        return f"{self.name}: " + ", ".join(p for p in parts if p)


def read_store(path: Path) -> StoreChoice:
    """A store's line in the list; what is wrong with it becomes ``problem``."""
    try:
        store = Store.open(path)
    except (UnusableInput, JobError, OSError, ValueError, KeyError) as error:
        return StoreChoice(path, problem=str(error) or type(error).__name__)
    cards = store.cards
    learnt = [c for c in cards if c.split not in ("test", "val")]
    held = [c for c in cards if c.split == "val"]
    targets = [card.target for card in cards if card.target is not None]
    return StoreChoice(
        path=path,
        cases=len(cards),
        labelled=sum(card.has_label for card in cards),
        learnable=sum(card.split != "test" for card in cards),
        teachable=sum(card.has_label for card in learnt),
        spacing=_spacing(store),
        modalities=", ".join(
            f"{n} of unknown kind" if kind == "OTHER" else f"{n} {kind}"
            for kind, n in Counter(card.modality for card in cards).most_common()
        ),
        classes=_classes(cards, store.label_names),
        scan_classes=scan_classes(targets),
        several=any(map(has_several, targets)),
        classed=len(targets),
        class_teachable=sum(card.target is not None for card in learnt),
        held_out=sum(card.has_label for card in held),
        class_held_out=sum(card.target is not None for card in held),
        preprocessing=store.preprocessing,
        problem="" if cards else f"{path} holds no scan; build it anew.",
    )


def list_stores(folder: Path, others: Iterable[Path] = ()) -> list[StoreChoice]:
    """Stores inside the stores folder, then those chosen elsewhere, each once."""
    inside: list[Path] = []
    if folder.is_dir():
        inside = sorted(p for p in folder.iterdir() if (p / "store.json").is_file())
    paths = dict.fromkeys([*inside, *(Path(p) for p in others)])
    return [read_store(path) for path in paths]


def class_lines(classes: Sequence[ClassCount], most: int = 30) -> list[str]:
    """``liver: 8 scans, 1,204 ml``, one per class."""
    lines = [
        f"{c.name}: {c.cases} scan{'s' * (c.cases != 1)}, {volume_text(c.volume_ml)}"
        for c in classes[:most]
    ]
    if len(classes) > most:
        lines.append(f"and {len(classes) - most} more")
    return lines


def volume_text(volume_ml: float) -> str:
    """Millilitres with as many digits as mean something."""
    if volume_ml >= 100:
        return f"{volume_ml:,.0f} ml"
    if volume_ml >= 1:
        return f"{volume_ml:.1f} ml"
    return f"{volume_ml:.3f} ml"


def _spacing(store: Store) -> str:
    chosen = store.preprocessing.spacing_mm
    if chosen is not None:
        return spacing_text(chosen)
    own = {spacing_text(card.spacing_mm) for card in store.cards}
    return own.pop() if len(own) == 1 else "own voxel sizes"


def scan_classes(targets: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Scans of each class."""
    if not any(map(has_several, targets)):
        return tuple(sorted(Counter(targets).items()))
    found = Counter(name for target in targets for name in findings_of(target))
    none = sum(map(says_none, targets))
    return (*sorted(found.items()), *(((NONE, none),) if none else ()))


def _classes(cards: Sequence[Card], names: dict[int, str]) -> tuple[ClassCount, ...]:
    cases: Counter[int] = Counter()
    millilitres: dict[int, float] = {}
    for card in cards:
        voxel_ml = prod(card.spacing_mm) / 1000.0
        for value in card.label_values:
            count = card.label_counts.get(value, 0)
            cases[value] += 1
            millilitres[value] = millilitres.get(value, 0.0) + count * voxel_ml
    return tuple(
        ClassCount(v, names.get(v, f"label {v}"), cases[v], millilitres[v])
        for v in sorted(cases)
    )
