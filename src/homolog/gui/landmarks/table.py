"""The landmarks of one pair of scans, and how far each is to be trusted. No Qt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from homolog.data.landmarks import NAN, Landmark
from homolog.geometry.affine import Triple
from homolog.geometry.places import place_numbers
from homolog.tasks._landmark_rules import LandmarksConfig, judged

Trust: TypeAlias = Literal["sure", "unsure", "refused", "manual", "searching"]

SEARCHING = "searching"
BY_HAND = "refused by hand"
# Accepted, but worth a look: hardly better than another place, or leads back beside.
CLEAR_MARGIN, CLEAR_CYCLE_MM = 0.02, 8.0

# Okabe and Ito's green, orange, vermilion, blue; the symbol says it without colour.
COLOURS: dict[Trust, str] = {
    "sure": "#009e73", "unsure": "#e69f00", "refused": "#d55e00",
    "manual": "#56b4e9", "searching": "#999999",
}  # fmt: skip
SYMBOLS: dict[Trust, str] = {
    "sure": "disc", "unsure": "diamond", "refused": "cross",
    "manual": "square", "searching": "disc",
}  # fmt: skip
MARKS: dict[Trust, str] = {
    "sure": "●", "unsure": "◆", "refused": "✚", "manual": "■", "searching": "…",
}  # fmt: skip
WORDS: dict[Trust, str] = {
    "sure": "sure", "unsure": "unsure, have a look", "refused": "refused",
    "manual": "set by hand", "searching": "searching ...",
}  # fmt: skip


def trust_of(mark: Landmark, outlier: bool = False) -> Trust:
    """How far a landmark is to be trusted: by its figures, or because a person set it.

    Args:
        mark: The landmark.
        outlier: Whether it contradicts the map the others agree on.
    """
    if mark.manual:
        return "manual"
    if mark.b_mm is None and mark.reason == SEARCHING:
        return "searching"
    if not mark.accepted or mark.b_mm is None:
        return "refused"
    doubtful = mark.margin < CLEAR_MARGIN or mark.cycle_mm > CLEAR_CYCLE_MM
    return "unsure" if doubtful or outlier else "sure"


@dataclass
class LandmarkTable:
    """Landmarks in order, the chosen one, and what a person decided.

    Attributes:
        chosen: Id of the landmark both viewers show.
        outliers: Ids that contradict the last fit.
    """

    chosen: int | None = None
    outliers: set[int] = field(default_factory=set)
    _marks: dict[int, Landmark] = field(default_factory=dict)
    _decided: set[int] = field(default_factory=set)
    _last: int = 0

    def __iter__(self) -> Iterator[Landmark]:
        return iter(list(self._marks.values()))

    def __len__(self) -> int:
        return len(self._marks)

    def get(self, number: int | None) -> Landmark | None:
        """A landmark by its id."""
        return None if number is None else self._marks.get(number)

    @property
    def current(self) -> Landmark | None:
        """The chosen one."""
        return self.get(self.chosen)

    def trust(self, mark: Landmark) -> Trust:
        """See ``trust_of``."""
        return trust_of(mark, mark.id in self.outliers)

    def add(self, a_mm: Triple, name: str = "") -> Landmark:
        """A place of A that is yet to be searched in B; it becomes the chosen one."""
        self._last += 1
        mark = Landmark(
            self._last, _plain(name) or f"point {self._last}", a_mm, None,
            NAN, NAN, NAN, False, SEARCHING,
        )  # fmt: skip
        self._marks[mark.id] = mark
        self.chosen = mark.id
        return mark

    def restore(self, marks: Iterable[Landmark]) -> list[Landmark]:
        """Landmarks of a file or a saved session, with new ids where one is taken."""
        added = []
        for mark in marks:
            number = mark.id
            if number in self._marks or number < 1:
                number = self._last + 1
            self._last = max(self._last, number)
            kept = replace(mark, id=number)
            if kept.b_mm is None and kept.reason == SEARCHING:
                kept = replace(kept, reason="not searched yet")
            self._marks[number] = kept
            if kept.reason == BY_HAND:
                self._decided.add(number)
            added.append(kept)
        return added

    def found(self, number: int, answer: Landmark) -> bool:
        """What the search found for a landmark; whether that was taken.

        A place that a person set in B meanwhile is kept, and so is their verdict.
        """
        mark = self._marks.get(number)
        if mark is None or mark.manual:
            return False
        kept = replace(answer, id=number, name=mark.name, a_mm=mark.a_mm, manual=False)
        if number in self._decided and kept.b_mm is not None:
            kept = replace(kept, accepted=mark.accepted, reason=mark.reason)
        self._marks[number] = kept
        self.outliers.discard(number)
        return True

    def lost(self, number: int, sentence: str) -> None:
        """The search did not work."""
        mark = self._marks.get(number)
        if mark is not None and not mark.manual:
            self._marks[number] = replace(mark, accepted=False, reason=sentence)

    def set_by_hand(self, number: int, b_mm: Triple, similarity: float = NAN) -> None:
        """A person put the place in B where it belongs."""
        mark = self._marks[number]
        self._marks[number] = replace(
            mark, b_mm=b_mm, similarity=similarity, margin=NAN, cycle_mm=NAN,
            accepted=True, reason="", manual=True,
        )  # fmt: skip
        self.outliers.discard(number)

    def accept(self, number: int, accepted: bool) -> None:
        """A person's verdict; it outlives another search."""
        mark = self._marks[number]
        if mark.b_mm is None:
            return
        reason = "" if accepted else BY_HAND
        self._marks[number] = replace(mark, accepted=accepted, reason=reason)
        self._decided.add(number)

    def judge(self, limits: LandmarksConfig) -> None:
        """Judge what was found by other limits; a person's verdict stays."""
        for number, mark in self._marks.items():
            if number not in self._decided:
                self._marks[number] = judged(mark, limits)

    def rename(self, number: int, name: str) -> None:
        """Give a landmark a name; an empty one changes nothing."""
        mark = self._marks[number]
        self._marks[number] = replace(mark, name=_plain(name) or mark.name)

    def delete(self, number: int) -> None:
        """Forget a landmark; its neighbour becomes the chosen one."""
        numbers = list(self._marks)
        place = numbers.index(number)
        del self._marks[number]
        self._decided.discard(number)
        self.outliers.discard(number)
        if self.chosen == number:
            left = list(self._marks)
            self.chosen = left[min(place, len(left) - 1)] if left else None

    def to_search(self) -> list[Landmark]:
        """Those that another search may change: not what a person set."""
        return [m for m in self if not m.manual]

    def uncertain(self) -> list[int]:
        """Ids worth a look: unsure ones by margin, then refused ones."""
        ranks = {"unsure": 0, "refused": 1}
        found = [
            (ranks[self.trust(m)], m.margin if not math.isnan(m.margin) else 0.0, m.id)
            for m in self
            if self.trust(m) in ranks and m.id not in self._decided
        ]
        return [number for _, _, number in sorted(found)]

    def next_uncertain(self) -> int | None:
        """The id to look at now; the chosen one's follower, round and round."""
        numbers = self.uncertain()
        if not numbers:
            return None
        if self.chosen in numbers:
            at = numbers.index(self.chosen)
            return numbers[(at + 1) % len(numbers)]
        return numbers[0]

    def pairs(self) -> list[Landmark]:
        """Accepted landmarks with both places: what a fit is made of."""
        return [m for m in self if m.accepted and m.b_mm is not None]


def number_text(value: float, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def place_text(mm: Triple | None) -> str:
    """``x, y, z`` in mm for a column that says so, or a dash."""
    return "–" if mm is None else place_numbers(mm)


def _plain(name: str) -> str:
    return " ".join(name.split())
