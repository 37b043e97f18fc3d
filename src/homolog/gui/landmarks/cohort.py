"""One landmark in many scans, open or in a store: what was found where. No Qt."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal

from homolog.errors import UnusableInput
from homolog.events import Event, Progress
from homolog.features.files import CARD_SUFFIX, open_features, read_card
from homolog.features.search import Search, body_of
from homolog.geometry.affine import Affine
from homolog.gui.landmarks.control import Trust, trust_of
from homolog.gui.landmarks.pair import LandmarkPair
from homolog.gui.landmarks.searching import Side, Sides, search_points
from homolog.gui.shared import preferences
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.layers import SourceGrid, contrast_limits
from homolog.gui.shared.scan_layers import shown_of
from homolog.gui.shared.scans import Scan, content_hash, encoder_id, find_card, is_stale
from homolog.gui.shared.threads import Helper, in_background
from homolog.landmarks.config import LandmarksConfig
from homolog.landmarks.match import judged
from homolog.scans.points import Landmark
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume
from homolog.store.card import Card
from homolog.store.learnt_spacing import Learnt
from homolog.store.preprocess import in_units
from homolog.store.store import Store
from homolog.words import duration

# Small pictures around a place: the same millimetres in every scan. No Qt.


Picture = NDArray[np.uint8]
SIDE_PX = 64
# A thorax is a good 300 mm wide: this shows an organ with its neighbours.
MM_PER_PX = 1.25
_BEYOND = 24  # grey of what lies outside the scan


def patch(
    data: Any,
    grid: Affine,
    shown_mm: NDArray[np.float64],
    limits: tuple[float, float],
    *,
    axis: int = 0,
    side_px: int = SIDE_PX,
    mm_per_px: float = MM_PER_PX,
) -> Picture:
    """A square of the slice through a place, by the nearest voxels.

    Args:
        data: (D, H, W).
        grid: Voxel -> shown mm, scale and translate only.
        shown_mm: (3,) the middle.
        limits: Values shown black and white.
        axis: Along which the slice is seen: 0 z, 1 y, 2 x.
        side_px: Pixels along each side.
        mm_per_px: Size of a pixel.

    Returns:
        (side_px, side_px) with 0 black and 255 white; dark grey outside the scan.
    """
    index = grid.inverse().apply(shown_mm)
    spacing = np.array(grid.spacing_mm)
    steps = (np.arange(side_px) - (side_px - 1) / 2) * mm_per_px
    down, right = (a for a in range(3) if a != axis)
    places = [np.array([index[axis]])] * 3
    places[down] = index[down] + steps / spacing[down]
    places[right] = index[right] + steps / spacing[right]
    near = [np.rint(p).astype(np.int64) for p in places]
    inside = [(n >= 0) & (n < size) for n, size in zip(near, data.shape, strict=True)]
    cut = [np.clip(n, 0, size - 1) for n, size in zip(near, data.shape, strict=True)]
    values = np.asarray(data[np.ix_(*cut)], np.float32).reshape(side_px, side_px)
    z, y, x = inside
    seen = (z[:, None, None] & y[:, None] & x).reshape(side_px, side_px)
    low, high = limits
    grey = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255
    picture: Picture = np.where(seen, grey, _BEYOND).astype(np.uint8)
    return picture


@dataclass
class Row:
    """A scan of the cohort.

    Attributes:
        key: Of the scan.
        name: Of the scan.
        state: ``searching``, ``found``, ``waiting`` (no features yet), ``computing`` or
            ``failed``.
        mark: The landmark as found in it.
        picture: Around that place.
        words: Why it failed, or how far its features are.
        share: Of its features that is computed, 0..1.
    """

    key: str
    name: str
    state: str = "searching"
    mark: Landmark | None = None
    picture: Picture | None = None
    words: str = ""
    share: float = 0.0

    @property
    def trust(self) -> Trust:
        """How far its match is to be trusted."""
        if self.mark is None:
            return "refused" if self.state == "failed" else "searching"
        return trust_of(self.mark)

    def told(self) -> str:
        """What is known, in words."""
        if self.mark is not None:
            return self.mark.reason or "accepted"
        waiting = "no features yet; press Compute missing"
        return self.words or (waiting if self.state == "waiting" else "searching ...")

    def judge(self, limits: LandmarksConfig) -> None:
        """Believe or refuse what was found by other limits."""
        if self.mark is not None:
            self.mark = judged(self.mark, limits)


def best_first(rows: Iterable[Row]) -> list[Row]:
    """The most similar first; rows without a match stay in their order, below."""

    def rank(row: Row) -> float:
        similarity = math.nan if row.mark is None else row.mark.similarity
        return math.inf if math.isnan(similarity) else -similarity

    return sorted(rows, key=rank)


def summary(rows: Iterable[Row]) -> str:
    """``3 of 6 scans accepted, 1 without features``."""
    told = list(rows)
    accepted = sum(r.mark is not None and r.mark.accepted for r in told)
    text = f"{accepted} of {len(told)} scans accepted"
    for state, words in (("waiting", "without features"), ("failed", "failed")):
        count = sum(row.state == state for row in told)
        text += f", {count} {words}" if count else ""
    return text


def computing_words(count: int) -> str:
    """What is said when features of scans are asked for."""
    if count == 1:
        return "Computing features of one scan."
    return f"Computing features of {count} scans, one by one."


def find_in(
    sides: Sides,
    source: tuple[Scan, Any, Any],
    target: tuple[Scan, Any, Any],
    mark: Landmark,
    limits: LandmarksConfig | None = None,
) -> tuple[Landmark, Picture | None]:
    """A landmark in one scan, and what it looks like there.

    Args:
        sides: Prepared scans.
        source: Scan A, its features, its layer.
        target: The scan to search.
        mark: With its place in A.
        limits: When a match is believed; the defaults if None.
    """
    (found,) = search_points(sides.of(*source), sides.of(*target), [mark], limits)
    if found.b_mm is None:
        return found, None
    scan, _, layer = target
    low, high = (float(v) for v in layer.contrast_limits)
    shown = np.asarray(shown_of(scan.to_true, found.b_mm))
    return found, patch(layer.data, scan.grid, shown, (low, high))


# One landmark searched in every open scan; the pattern that other sources follow.


class CohortSearch(QObject):
    """A landmark and what was found of it, scan by scan.

    Signals:
        changed: Rows came or went, or more is known of one.
        told: A sentence about what was done.

    Attributes:
        found: Rows by key, in the order of the scans.
        mark: What is searched.

    Args:
        pair: Asked and told.
    """

    changed = Signal()
    told = Signal(str)

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__(pair)
        self.pair = pair
        self.found: dict[str, Row] = {}
        self.mark: Landmark | None = None

    @property
    def busy(self) -> bool:
        """Whether there is something to cancel."""
        return False

    @property
    def share(self) -> float:
        """Done of the work, 0..1."""
        told = self.found.values()
        done = sum(
            1.0 if row.state in ("found", "failed") else row.share for row in told
        )
        return done / max(len(told), 1)

    @property
    def doing(self) -> str:
        """Which scan's features are being computed, and how far; "" for none."""
        rows = [row for row in self.found.values() if row.state == "computing"]
        return f"{rows[0].name}: {rows[0].words}" if rows else ""

    def find(self, mark: Landmark) -> None:
        """Search a landmark of scan A everywhere, anew."""
        raise NotImplementedError

    def compute(self) -> None:
        """Compute what is missing, and search there."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Search and compute no more; what was found stays."""

    def open(self, key: str) -> None:
        """Show what was found in a scan as scan B."""
        raise NotImplementedError

    def judge(self) -> None:
        """The limits are others."""
        for row in self.found.values():
            row.judge(self.pair.control.limits)
        self.changed.emit()

    def forget(self) -> None:
        """Another scan A, or the landmark is gone: nothing found belongs to it."""
        self.cancel()
        self.mark, self.found = None, {}
        self.changed.emit()

    def take(self, row: Row, answer: tuple[Landmark, Any]) -> None:
        """What was found in a scan."""
        row.mark, row.picture = answer
        row.state, row.words = "found", ""
        row.judge(self.pair.control.limits)
        self.changed.emit()

    def fail(self, row: Row, error: object) -> None:
        """Why a scan cannot be searched."""
        row.state, row.words = "failed", str(error)
        self.changed.emit()

    def conclude(self) -> None:
        """Tell the result once no scan is searched any more."""
        name = "" if self.mark is None else self.mark.name
        if self.found and not self.busy:
            self.told.emit(f"'{name}': {summary(self.found.values())}.")


class OpenScans(CohortSearch):
    """Every open scan but A; those with features answer at once."""

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__(pair)
        pair.scans_changed.connect(self._scans_changed)
        pair.scan_changed.connect(self._scan_changed)

    def find(self, mark: Landmark) -> None:
        """See CohortSearch."""
        control = self.pair.control
        self.mark, self.found = mark, {}
        for scan in control.book.scans.values():
            if scan.key != control.a:
                self._find(scan)
        count = sum(row.state == "searching" for row in self.found.values())
        self.told.emit(
            f"Searching '{mark.name}' in {count} of {len(self.found)} other scans."
        )
        self.changed.emit()

    def compute(self) -> None:
        """See CohortSearch."""
        keys = [key for key, row in self.found.items() if row.state == "waiting"]
        self.pair.work.compute(keys)
        self.told.emit(computing_words(len(keys)))

    def open(self, key: str) -> None:
        """See CohortSearch."""
        row = self.found.get(key)
        self.pair.going.scan(key, self.mark, None if row is None else row.mark)

    def _find(self, scan: Scan) -> None:
        row = self.found[scan.key] = Row(scan.key, scan.ref.name)
        mark, pair = self.mark, self.pair
        a = pair.control.scan_a
        if mark is None or a is None or a.ready is None:
            return
        if scan.ready is None:
            row.state = "waiting"
            return
        in_background(
            find_in, pair.searching.sides, (a, a.ready, pair.layer_of(a)),
            (scan, scan.ready, pair.layer_of(scan)), mark,
            pair.control.limits, owner=self,
            done=lambda answer: self._done(row, answer),
            failed=lambda error: self.fail(row, error),
        )  # fmt: skip

    def _done(self, row: Row, answer: tuple[Landmark, Any]) -> None:
        self.take(row, answer)
        if not any(r.state == "searching" for r in self.found.values()):
            self.conclude()

    def _scan_changed(self, key: str) -> None:
        """Features came: a waiting scan is searched; work is told."""
        scan, row = self.pair.control.book.scans.get(key), self.found.get(key)
        if scan is None or row is None or row.state != "waiting":
            return
        if scan.ready is not None:
            self._find(scan)
        else:
            row.words = scan.line()
        self.changed.emit()

    def _scans_changed(self) -> None:
        """Closed scans go."""
        scans = self.pair.control.book.scans
        self.found = {k: r for k, r in self.found.items() if k in scans}
        self.changed.emit()


# Cases of a prepared store as scans to search and to show. No Qt, no torch.
#
# A case is searched by its stored voxels; features are those of its own scan where that
# file is still there unchanged, and else of the stored voxels, written as a file.


# Prepared cases that stay in memory: about 17 bytes per cell each.
_KEPT = 32


@dataclass(frozen=True, eq=False)
class StoreCase:
    """A case of an open store.

    Attributes:
        store: The store.
        card: Of the case.
        features: Card of its features; None while there are none.
    """

    store: Store
    card: Card
    features: Path | None = None

    @property
    def stem(self) -> str:
        """Name of its file where it is written out; tells contents and recipe too."""
        return f"{self.card.id}-{self.card.key}"


def list_cases(
    path: Path, encoder: ModelChoice, folder: Path, leave_out: str = ""
) -> list[StoreCase]:
    """All cases of a store with what was computed of them before; on a thread.

    Args:
        path: Of the store.
        encoder: Whose features are wanted.
        folder: Where features are kept.
        leave_out: Content hash of the scan the landmark comes from.

    Raises:
        UnusableInput: No store there, or the encoder's weights are missing.
    """
    store, wanted = Store.open(path), encoder_id(encoder)
    cards = [card for card in store.cards if card.source_hash != leave_out]
    learnt = encoder.learnt
    return [
        StoreCase(store, c, _features(store, c, wanted, folder, learnt)) for c in cards
    ]


def case_volume(case: StoreCase) -> Volume:
    """The stored voxels of a case, in the units of its scan."""
    card = case.card
    values: NDArray[Any] = np.asarray(case.store.image(card.id))
    if any((one.scale, one.offset) != (1.0, 0.0) for one in card.levels):
        values = in_units(values, card.levels)
    return Volume(values, card.affine, card.id, card.modality)


def case_file(case: StoreCase, scratch: Path) -> Path:
    """A file of a case: its own scan while that is there unchanged, else a copy.

    Args:
        case: The case.
        scratch: Where stored voxels are written as ``.nii``.
    """
    source = source_of(case)
    if source is not None:
        return source
    path = scratch / f"{case.stem}.nii"
    if not path.is_file():
        write_volume(case_volume(case), path)
    return path


def source_of(case: StoreCase) -> Path | None:
    """The scan a case was prepared from; None where it is gone or has changed.

    A path that was given relative to some folder is also tried beside the store.
    """
    told = Path(case.card.source)
    tried = [told] if told.is_absolute() else [told, case.store.path.parent / told]
    for path in tried:
        try:
            if path.exists() and content_hash(path) == case.card.source_hash:
                return path.absolute()
        except Exception:  # noqa: BLE001
            continue  # damaged since: the store still has its voxels
    return None


class CaseSides:
    """Prepared cases, the latest ones kept; any thread may ask."""

    def __init__(self) -> None:
        self._made: OrderedDict[Path, Side] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, card: Path, volume: Volume) -> Side:
        """A case, prepared now if it was not.

        Args:
            card: Of its features.
            volume: Its voxels.
        """
        with self._lock:
            if card not in self._made:
                features = open_features(card)
                body = body_of(volume, features)
                self._made[card] = Side(
                    Search(features),
                    body if body.any() else None,
                    (volume.affine, volume.shape),
                )
            self._made.move_to_end(card)
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
            return self._made[card]


def find_in_case(
    sides: CaseSides,
    a: Side,
    case: StoreCase,
    mark: Landmark,
    ct_window: tuple[float, float] | None,
    limits: LandmarksConfig | None = None,
) -> tuple[Landmark, Picture | None]:
    """A landmark in one case, and what it looks like there.

    Args:
        sides: Prepared cases.
        a: Scan A.
        case: With features.
        mark: With its place in A.
        ct_window: HU shown black and white; None: what suits the case.
        limits: When a match is believed; the defaults if None.
    """
    if case.features is None:
        raise UnusableInput(f"{case.card.id} has no features yet.")
    volume = case_volume(case)
    (found,) = search_points(a, sides.of(case.features, volume), [mark], limits)
    if found.b_mm is None:
        return found, None
    grid = SourceGrid.of(case.card.affine, case.card.shape)
    shown = grid.shown_to_true.inverse().apply(np.array(found.b_mm))
    window = ct_window if volume.modality == "CT" and ct_window else None
    window = window or contrast_limits(volume)
    return found, patch(volume.data[0], grid.shown, shown, window)


def _features(
    store: Store, card: Card, wanted: str, folder: Path, learnt: Learnt
) -> Path | None:
    found = find_card(folder, card.source_hash, wanted, learnt)
    if found is not None:
        return found
    # Of stored voxels that were written out: their name tells contents and recipe.
    for path in sorted(folder.glob(f"{StoreCase(store, card).stem}.*{CARD_SUFFIX}")):
        told = read_card(path)
        if told.encoder_id == wanted and not is_stale(told, learnt):
            return path
    return None


# One landmark searched in every case of a prepared store, with progress and cancel.


class StoreSearch(CohortSearch):
    """Cases of one store: searched one after the other, features by a worker.

    Attributes:
        store: Which store.
    """

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__(pair)
        self.store: Path | None = None
        self._cases: dict[str, StoreCase] = {}
        self._sides = CaseSides()
        self._to_search: deque[str] = deque()
        self._to_compute: deque[str] = deque()
        self._searching = self._computing = False
        self._helper: Helper | None = None
        self._opening = ""
        # Answers to what was asked before belong to nothing any more.
        self._turn = 0

    @property
    def busy(self) -> bool:
        """See CohortSearch."""
        return self._searching or self._computing

    def find(self, mark: Landmark) -> None:
        """See CohortSearch."""
        self.cancel()
        self.mark, self.found = mark, {}
        encoder, a = self.pair.control.book.encoder, self.pair.control.scan_a
        if self.store is None or encoder is None or a is None or a.ready is None:
            return
        self._searching = True
        turn = self._turn

        def failed(error: Exception) -> None:
            if turn == self._turn:
                self._searching = False
                self.told.emit(f"{error}")
                self.changed.emit()

        self.told.emit(f"Reading the store {self.store.name} ...")
        in_background(
            list_cases, self.store, encoder, self.pair.hub.features,
            a.ready.features.scan_id, owner=self,
            done=lambda cases: self._listed(turn, cases), failed=failed,
        )  # fmt: skip
        self.changed.emit()

    def compute(self) -> None:
        """See CohortSearch."""
        keys = [key for key, row in self.found.items() if row.state == "waiting"]
        self._to_compute.extend(k for k in keys if k not in self._to_compute)
        for key in keys:
            self.found[key].words = "waiting for its turn"
        self.told.emit(computing_words(len(keys)))
        self._compute_next()

    def cancel(self) -> None:
        """See CohortSearch."""
        self._turn += 1
        self._to_search.clear()
        self._to_compute.clear()
        was_busy, self._searching, self._computing = self.busy, False, False
        helper, self._helper = self._helper, None
        if helper is not None:
            for ended in (helper.done, helper.failed, helper.stopped):
                ended.connect(helper.deleteLater)
            helper.stop()
        for row in self.found.values():
            if row.state in ("searching", "computing", "waiting"):
                case = self._cases[row.key]
                row.state = "waiting" if case.features is None else "failed"
                row.words = "" if case.features is None else "not searched: cancelled"
                row.share = 0.0
        if was_busy and self.found:
            self.told.emit("Cancelled; what was found stays.")
        self.changed.emit()

    def forget(self) -> None:
        """See CohortSearch."""
        super().forget()
        self._cases = {}

    def open(self, key: str) -> None:
        """See CohortSearch; the file is looked for on a thread."""
        case, row = self._cases.get(key), self.found.get(key)
        if case is None or row is None:
            return
        mark, found = self.mark, row.mark
        self._opening = key
        self.told.emit(f"Opening {row.name} as scan B ...")

        def done(path: Path) -> None:
            if self._opening == key:  # not another one meanwhile
                self.pair.going.file(path, row.name, mark, found)

        in_background(
            case_file, case, self.pair.hub.scratch, owner=self, done=done,
            failed=lambda error: self.told.emit(f"{row.name}: {error}"),
        )  # fmt: skip

    # Searching

    def _listed(self, turn: int, cases: list[StoreCase]) -> None:
        if turn != self._turn:
            return
        self._cases = {case.card.id: case for case in cases}
        for key, case in self._cases.items():
            state = "waiting" if case.features is None else "searching"
            self.found[key] = Row(key, key, state)
        self._to_search.extend(k for k, r in self.found.items() if r.state != "waiting")
        name = "" if self.mark is None else self.mark.name
        self.told.emit(
            f"Searching '{name}' in {len(self._to_search)} of {len(cases)} scans."
        )
        self._searching = False
        self._search_next()
        self.changed.emit()

    def _search_next(self) -> None:
        if self._searching:
            return
        if not self._to_search:
            if not self._computing:
                self.conclude()
            self.changed.emit()
            return
        key, turn = self._to_search.popleft(), self._turn
        row, case, mark = self.found[key], self._cases[key], self.mark
        a = self.pair.control.scan_a
        if mark is None or a is None or a.ready is None:
            self.cancel()
            return
        self._searching = True
        layer = self.pair.layer_of(a)
        window = None
        if a.ref.modality == "CT" and layer is not None:
            low, high = layer.contrast_limits
            window = (float(low), float(high))

        def ended(answer: tuple[Landmark, Any] | None, error: object = "") -> None:
            if turn != self._turn:
                return
            self._searching = False
            if answer is None:
                self.fail(row, error)
            else:
                self.take(row, answer)
            self._search_next()

        in_background(
            _find, self.pair.searching.sides, (a, a.ready, layer), self._sides,
            case, mark, window, self.pair.control.limits, owner=self, done=ended,
            failed=lambda error: ended(None, error),
        )  # fmt: skip

    # Computing

    def _compute_next(self) -> None:
        if self._computing:
            return
        if not self._to_compute:
            self._search_next()
            return
        key, turn = self._to_compute.popleft(), self._turn
        row = self.found[key]
        row.state, row.words = "computing", "starting ..."
        self._computing = True
        in_background(
            case_file, self._cases[key], self.pair.hub.scratch, owner=self,
            done=lambda path: self._embed(turn, row, path),
            failed=lambda error: self._not_computed(turn, row, error),
        )  # fmt: skip
        self.changed.emit()

    def _embed(self, turn: int, row: Row, path: Path) -> None:
        encoder = self.pair.control.book.encoder
        if turn != self._turn or encoder is None:
            return
        config = {
            "encoder": str(encoder.path),
            "scans": [str(path)],
            "folder": str(self.pair.hub.features),
            "device": str(preferences.get("compute", "device", "auto")),
        }
        helper = self._helper = Helper("embed", config, self)
        helper.news.connect(lambda event: self._tell(turn, row, event))
        helper.done.connect(lambda result: self._computed(turn, row, result))
        helper.failed.connect(lambda text: self._not_computed(turn, row, text))
        helper.start()

    def _tell(self, turn: int, row: Row, event: Event) -> None:
        if turn != self._turn or not isinstance(event, Progress) or not event.total:
            return
        left = f", {duration(event.remaining_s)} left" if event.remaining_s > 0 else ""
        row.share = min(event.index / event.total, 1.0)
        row.words = f"computing {row.share:.0%}{left}"
        self.changed.emit()

    def _computed(self, turn: int, row: Row, result: dict[str, Any]) -> None:
        entries = result.get("features") or []
        if turn != self._turn:
            return
        if not entries:
            self._not_computed(turn, row, "no features came; try again")
            return
        case = replace(self._cases[row.key], features=Path(entries[0]["card"]))
        self._cases[row.key] = case
        row.state, row.words = "searching", ""
        self._end_helper()
        self.pair.hub.changed.emit("features")
        self._to_search.append(row.key)
        self._search_next()
        self._compute_next()

    def _not_computed(self, turn: int, row: Row, reason: object) -> None:
        if turn == self._turn:
            self._end_helper()
            self.fail(row, reason)
            self._compute_next()

    def _end_helper(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.deleteLater()
        self._computing = False


def _find(
    open_sides: Sides,
    a: tuple[Any, Any, Any],
    sides: CaseSides,
    case: StoreCase,
    mark: Landmark,
    window: tuple[float, float] | None,
    limits: LandmarksConfig,
) -> tuple[Landmark, Any]:
    side_a: Side = open_sides.of(*a)
    return find_in_case(sides, side_a, case, mark, window, limits)
