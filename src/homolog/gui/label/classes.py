"""The classes of the paint: names, colours, keys, and which one is background. No Qt.

Structures count from 1 up; the background has the highest number there is, so that
classes can be added without renumbering, and predictions hold 1, 2, 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from homolog.tasks._few_settings import FewClass, few_classes

BACKGROUND = 255
# Letters that neither napari nor another tab takes with Shift, near the left hand.
KEYS = "QWEDZXCBK"
_MOST = 200


class ClassList:
    """What the values of all painted layers of a window mean.

    Attributes:
        current: Value that is painted with.
        counts: Value -> painted voxels of all scans that take part.
    """

    def __init__(self) -> None:
        self._classes: list[FewClass] = []
        self.counts: dict[int, int] = {}
        self._put("structure 1", 1)
        self._put("background", BACKGROUND, background=True)
        self.current = 1

    def __iter__(self) -> Iterator[FewClass]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def get(self, value: int) -> FewClass | None:
        """The class of a value."""
        return next((c for c in self._classes if c.value == value), None)

    @property
    def names(self) -> dict[int, str]:
        """Value -> name."""
        return {c.value: c.name for c in self._classes}

    @property
    def background(self) -> int | None:
        """Value of the background; None where no class is."""
        return next((c.value for c in self._classes if c.background), None)

    def key_of(self, place: int) -> str:
        """Letter that chooses the class in a row, with Shift; empty for none."""
        return KEYS[place] if place < len(KEYS) else ""

    def add(self) -> FewClass | None:
        """A new structure, chosen at once; None when there are too many."""
        taken = {c.value for c in self._classes}
        free = next((v for v in range(1, _MOST) if v not in taken), None)
        if free is None:
            return None
        self._put(f"structure {free}", free)
        self.current = free
        return self.get(free)

    def remove(self, value: int) -> str:
        """Take an unpainted class away; why not, or empty when it is gone."""
        known = self.get(value)
        if known is None:
            return ""
        if self.counts.get(value):
            return (
                f"{known.name!r} has {self.counts[value]} painted voxels. Erase them "
                "first (napari's eraser), then remove the class."
            )
        if len(self._classes) == 1:
            return "The last class stays."
        self._classes.remove(known)
        if self.current == value:
            self.current = self._classes[0].value
        return ""

    def rename(self, value: int, name: str) -> str:
        """Give a class another name; why not, or empty when it has it."""
        name = name.strip()
        if not name:
            return "A class needs a name."
        if any(c.name == name and c.value != value for c in self._classes):
            return f"There is a class {name!r} already; names must differ."
        self._change(value, name=name)
        return ""

    def recolour(self, value: int, colour: str) -> None:
        """Give a class another colour, ``#rrggbb``."""
        self._change(value, colour=colour)

    def set_background(self, value: int | None) -> None:
        """One class, or none, means none of the others."""
        self._classes = [replace(c, background=c.value == value) for c in self._classes]

    def adopt(
        self, names: Mapping[int, str], colours: Mapping[int, str] | None = None
    ) -> None:
        """Take the classes of a layer that was painted before.

        Args:
            names: Value -> name.
            colours: Value -> ``#rrggbb``, where known.
        """
        if not names:
            return
        if not any(self.counts.values()):
            self._classes = []
        for value, name in sorted(names.items()):
            if self.get(value) is not None:
                continue
            is_ground = name.strip().lower() == "background"
            self._put(
                name, value, (colours or {}).get(value),
                background=is_ground and self.background is None,
            )  # fmt: skip
        if self.get(self.current) is None:
            self.current = self._classes[0].value

    def name_all(self, values: Iterable[int]) -> bool:
        """A class for every painted value that has none; whether one was made."""
        new = [v for v in values if self.get(v) is None]
        for value in new:
            self._put(f"structure {value}", value)
        return bool(new)

    def painted(self, values: Sequence[int]) -> tuple[FewClass, ...]:
        """The classes of these values."""
        return tuple(c for c in self._classes if c.value in set(values))

    def _put(
        self, name: str, value: int, colour: str | None = None, background: bool = False
    ) -> None:
        taken = {c.name for c in self._classes}
        name = name if name not in taken else f"{name} ({value})"
        # asked with every value below, so that a class keeps its colour for good
        below = list(range(1, value + 1)) if value < BACKGROUND else [value]
        ground = value if background else None
        made = few_classes(
            below, {value: name}, {value: colour} if colour else None, ground
        )[-1]
        self._classes.append(made)
        self._classes.sort(key=lambda c: c.value)

    def _change(self, value: int, **what: str) -> None:
        self._classes = [
            replace(c, **what) if c.value == value else c  # type: ignore[arg-type]
            for c in self._classes
        ]
