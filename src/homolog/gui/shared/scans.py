"""Open scans and their features, as the tabs know them; no Qt, no napari.

A scan is known by a key. Its features are looked for, computed or ready; where they
are ready, a place of it can be asked what it looks like (a query), and every scan with
features answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.config import config_hash
from homolog.errors import UnusableInput
from homolog.features.files import (
    CARD_SUFFIX,
    FeatureCard,
    array_path,
    open_features,
    read_card,
)
from homolog.features.search import best_match, kept_inside, on_grid, query_at
from homolog.geometry.affine import Affine, Index
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.feature_slices import (
    Answer,
    Cut,
    HeatBuffer,
    Map,
    Pin,
    Pins,
    SliceCache,
    cut_of,
    usual_similarity,
    whole_map,
)
from homolog.gui.shared.layers import (
    ScanRef,
    file_stamp,
    layer_scan,
    shown_affine,
    shown_to_true,
)
from homolog.scans.volume import FeatureMap
from homolog.store.learnt_spacing import Learnt
from homolog.words import duration, lengths_text

# Which features of a scan lie on disk already, found without torch.
#
# A card names the content hash of its scan and the id of the encoder that made it. The
# id is a hash over the encoder's weights, so it can be had from the model folder alone.


# Weights digest -> encoder id; scan file and stamp -> content hash.
_ids: dict[str, str] = {}
_hashes: dict[tuple[str, tuple[int, int]], str] = {}


def encoder_id(choice: ModelChoice) -> str:
    """The id in the cards of an encoder's features.

    Reads the weights once, so not on the GUI thread.

    Args:
        choice: An encoder, or a fine-tuned model (its encoder counts).

    Raises:
        UnusableInput: The weights are missing or damaged.
    """
    told = choice.card.get("encoder_id")
    if told:
        return str(told)
    digest = str((choice.card.get("sha256") or {}).get(choice.card.get("weights"), ""))
    if digest and digest in _ids:
        return _ids[digest]
    folder = choice.path / "model"
    folder = folder if folder.is_dir() else choice.path
    path = folder / str(choice.card.get("weights", "encoder.safetensors"))
    try:
        found = _id_of_weights(path, choice.card["backbone"]["config"], choice.kind)
    except ImportError as error:
        raise UnusableInput(
            "the library safetensors is not installed, so the encoder cannot be read."
        ) from error
    except Exception as error:  # the reader of weights has errors of its own
        raise UnusableInput(
            f"the weights {path} are missing or damaged ({error})."
        ) from error
    if digest:
        _ids[digest] = found
    return found


def _id_of_weights(path: Path, settings: Mapping[str, Any], kind: str) -> str:
    """As ``homolog.model_files.encoder.encoder_id`` of the loaded network."""
    from safetensors.numpy import load_file

    state = load_file(path)
    if kind != "encoder":
        state = {
            name.removeprefix("encoder."): value
            for name, value in state.items()
            if name.startswith("encoder.")
        }
    digest = hashlib.sha256(config_hash(settings).encode())
    for name, value in sorted(state.items()):
        if value.dtype == np.float16:  # kept small on the disk; the network has float32
            value = value.astype(np.float32)
        digest.update(f"{name} torch.{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def content_hash(path: Path) -> str:
    """Content hash of a scan; the whole file is read once, so not on the GUI thread."""
    from homolog.scans.files import scan_hash

    place = (str(path), file_stamp(path))
    if place not in _hashes:
        _hashes[place] = scan_hash(path)
    return _hashes[place]


def find_card(
    folder: Path, scan_hash: str, encoder: str, learnt: Learnt | None = None
) -> Path | None:
    """The card of features of a scan by an encoder.

    Of several, that with the usual settings, then the newest. Features of voxels of
    another size than the encoder learnt at (made before scans were brought to it) are
    passed over.
    """
    cards = list(_cards(Path(folder), scan_hash, encoder))
    if learnt is not None:
        cards = [c for c in cards if not is_stale(c[1], learnt)]
    if not cards:
        return None
    return max(cards, key=lambda c: (_usual(c[1]), c[0].stat().st_mtime))[0]


def _cards(
    folder: Path, scan_hash: str, encoder: str
) -> Iterator[tuple[Path, FeatureCard]]:
    for path in sorted(folder.glob(f"*.{scan_hash}-*{CARD_SUFFIX}")):
        try:
            card = read_card(path)
        except UnusableInput:
            continue
        if card.encoder_id == encoder and array_path(path).is_file():
            yield path, card


def is_stale(card: FeatureCard, learnt: Learnt) -> bool:
    """Whether the voxels that were embedded had another size than those learnt from."""
    cell = Affine(np.array(card.affine)).spacing_mm
    z, y, x = (mm / s for mm, s in zip(cell, card.stride, strict=True))
    d, h, w = card.shape
    if card.stride[0] == 1:
        learnt = learnt.planar()  # slice by slice: their distance does not matter
    if learnt.spacing is None or (d == 1 and np.allclose((z, y, x), 1.0)):
        return False  # perhaps a picture: nobody knows the size of its pixels
    return learnt.spacing.target_mm((z, y, x), (d, h, w)) is not None


def _usual(card: FeatureCard) -> bool:
    """Whether the window slid as when nothing else was asked for."""
    settings = card.settings
    return not settings.get("strides") and settings.get("overlap", 0.5) == 0.5


def look_for(
    scan: Path, choice: ModelChoice, folder: Path
) -> tuple[str, Path | None, FeatureMap | None]:
    """Features of a scan by an encoder, opened: content hash, card and map.

    Raises:
        UnusableInput: Scan, weights or features cannot be read.
    """
    digest = content_hash(scan)
    card = find_card(folder, digest, encoder_id(choice), choice.learnt)
    return digest, card, None if card is None else open_features(card)


# A scan that can be asked what it looks like at a place; no Qt, no napari.


State: TypeAlias = Literal["looking", "none", "waiting", "computing", "ready", "failed"]


@dataclass
class Ready:
    """Features of a scan, opened and ready for queries.

    Attributes:
        features: (E, d, h, w), memory-mapped; cell -> true mm.
        shown: Cell -> shown mm, scale and translate only.
        cache: Its displayed slices.
        buffer: What its heat layer shows.
        usual: Similarity that says nothing; heat begins there.
    """

    features: FeatureMap
    shown: Affine
    cache: SliceCache
    buffer: HeatBuffer
    usual: float

    @classmethod
    def of(cls, features: FeatureMap, to_true: Affine) -> Ready:
        """From opened features and the scan's map from shown to true mm."""
        d, h, w = features.data.shape[1:]
        shown = to_true.inverse() @ features.affine
        usual = usual_similarity(features)
        return cls(features, shown, SliceCache(features), HeatBuffer((d, h, w)), usual)

    @property
    def shape(self) -> Index:
        """Cells (d, h, w)."""
        return self.cache.shape


@dataclass
class Scan:
    """An open scan.

    Attributes:
        key: Of its layer.
        ref: Name, file, size.
        to_true: Shown mm -> true mm.
        grid: Voxel of the layer -> shown mm.
        state: How far its features are.
        words: Why they failed, or what is being done.
        share: Done of the work, 0..1.
        remaining_s: Seconds left while computing.
        shown: Whether the user wants its heat.
        ready: Its features once they are there.
    """

    key: str
    ref: ScanRef
    to_true: Affine
    grid: Affine
    state: State = "looking"
    words: str = ""
    share: float = 0.0
    remaining_s: float = 0.0
    shown: bool = True
    ready: Ready | None = None

    def holds(self, shown_mm: NDArray[np.float64]) -> bool:
        """Whether a shown position lies within its voxels."""
        index = self.grid.inverse().apply(shown_mm)
        size = np.array(self.ref.shape)
        return bool(((index >= -0.5) & (index <= size - 0.5)).all())

    def line(self) -> str:
        """Its state in words."""
        if self.state == "computing":
            left = (
                f", {duration(self.remaining_s)} left" if self.remaining_s > 0 else ""
            )
            return f"computing {self.share:.0%}{left}"
        if self.state == "ready" and self.ready is not None:
            cell = lengths_text(self.ready.features.affine.spacing_mm)
            return f"ready, one feature per {cell}"
        return {
            "looking": "looking for features ...",
            "none": "no features yet",
            "waiting": "waiting for its turn",
        }.get(self.state, self.words)


@dataclass(frozen=True)
class Query:
    """What is asked of all scans.

    Attributes:
        vector: (E,) unit norm.
        scan_key: Scan it was taken from.
        mm: True mm there.
        pin: Number of the pin, None while hovering.
    """

    vector: NDArray[np.float32]
    scan_key: str
    mm: NDArray[np.float64]
    pin: int | None = None

    def is_as(self, other: Query | None) -> bool:
        """Whether another query asks the same of all scans, at the same place."""
        return (
            other is not None
            and (self.scan_key, self.pin) == (other.scan_key, other.pin)
            and np.array_equal(self.mm, other.mm)
            and np.array_equal(self.vector, other.vector)
        )


def open_scans(layers: Iterable[Any]) -> tuple[dict[str, Any], list[Scan]]:
    """Scans among a viewer's layers: key -> layer, and what is known of each."""
    found, scans = {}, []
    for layer in layers:
        ref = layer_scan(layer) if layer.ndim == 3 else None
        if ref is not None:
            key = str(layer.unique_id)
            found[key] = layer
            scans.append(Scan(key, ref, shown_to_true(layer), shown_affine(layer)))
    return found, scans


def answer_of(
    scan: Scan, ready: Ready, vector: NDArray[np.float32], outdated: Callable[[], bool]
) -> Answer | None:
    """A scan's whole map and best match; on a thread. None when outdated."""
    whole: Map | None = whole_map(ready.features, vector, outdated)
    if whole is None:
        return None
    match = best_match(whole, ready.features.affine)
    match = kept_inside(match, scan.to_true @ scan.grid, scan.ref.shape)
    return Answer(scan.ref.name, match.mm, match.similarity, match.margin, whole)


def labels_of(
    scan: Scan, ready: Ready, whole: Map, low: float, high: float
) -> NDArray[np.uint8]:
    """Voxels of a scan's own grid (D, H, W) whose similarity lies in a range: 1.

    Args:
        scan: The scan.
        ready: Its features.
        whole: Similarity of all its cells.
        low: Least similarity.
        high: Greatest.
    """
    values = on_grid(whole, ready.shown, scan.ref.shape, scan.grid)
    return ((values >= low) & (values <= high)).astype(np.uint8)


def starting_threshold(usual: float) -> float:
    """Most of the way from what says nothing to equal."""
    usual = min(max(usual, -1.0), 0.98)
    return usual + 0.7 * (1.0 - usual)


def is_same(one: Scan, other: Scan) -> bool:
    """Whether two looks at a layer saw the same voxels at the same place."""
    return (
        one.ref.path == other.ref.path
        and one.ref.shape == other.ref.shape
        and np.allclose(one.grid.matrix, other.grid.matrix)
        and np.allclose(one.to_true.matrix, other.to_true.matrix)
    )


INSTALL = "The training engine is not installed in this Python."
NO_MODEL = "No model yet. Pretraining needs no labels."
NO_SCAN = "No scan is open. Drop a NIfTI, MHA or NRRD file or a DICOM folder here."
NO_FEATURES = "Features are computed once per scan and kept. Press Compute features."
IN_3D = "Similarity under the mouse needs the 2D view: press Ctrl+Y or the 2D button."
OUTSIDE = "Move the mouse over a scan that has features."
READY = "Move the mouse over the scan. Shift+click or Shift+F pins the place."
COMPUTING = "Features are being computed; you can go on working."
LOOKING = "Looking for features computed before ..."
# All that may be told, the command that installs apart: room is kept for the longest.
HINTS = (NO_MODEL, NO_SCAN, NO_FEATURES, IN_3D, OUTSIDE, READY, COMPUTING, LOOKING)


@dataclass(frozen=True)
class Hint:
    """A sentence instead of silence.

    Attributes:
        text: What to do.
        action: ``pretrain``, ``data``, ``install``, ``compute`` or "" for none.
        scans: How many ``compute`` is about; a single one has a button of its own.
    """

    text: str
    action: str = ""
    scans: int = 0


@dataclass
class ExploreControl:
    """All state of the panel."""

    encoder: ModelChoice | None = None
    scans: dict[str, Scan] = field(default_factory=dict)
    pins: Pins = field(default_factory=Pins)
    query: Query | None = None
    hover: bool = True
    low: float = 0.0
    high: float = 1.0
    engine_missing: tuple[str, ...] = ()

    def hint(self, ndisplay: int = 2, over: bool | None = None) -> Hint:
        """What to tell now.

        Args:
            ndisplay: Dimensions on screen.
            over: Whether the cursor is over a scan with features; None: unknown.
        """
        if self.encoder is None:
            if self.engine_missing:
                return Hint(INSTALL, "install")
            return Hint(NO_MODEL, "pretrain")
        if not self.scans:
            return Hint(NO_SCAN, "data")
        states = {scan.state for scan in self.scans.values()}
        if "ready" not in states:
            if states & {"computing", "waiting"}:
                return Hint(COMPUTING)
            if "looking" in states:
                return Hint(LOOKING)
            if self.engine_missing:
                return Hint(INSTALL, "install")
            return Hint(NO_FEATURES, "compute", len(self.scans))
        if ndisplay == 3:
            return Hint(IN_3D)
        return Hint(OUTSIDE if over is False else READY)

    def set_scans(self, scans: Iterable[Scan]) -> tuple[list[Scan], list[str]]:
        """The scans that are open now, in the order of the layers.

        Returns:
            Those that are new, and keys of those that are gone. A changed file or place
            makes a scan new.
        """
        order, new = {}, []
        for scan in scans:
            known = self.scans.get(scan.key)
            if known is not None and is_same(known, scan):
                known.ref = scan.ref
                order[scan.key] = known
            else:
                order[scan.key] = scan
                new.append(scan)
        gone = [key for key in self.scans if key not in order]
        self.scans = order
        for key in [*gone, *(scan.key for scan in new)]:
            self.pins.forget_answers(key)
        if self.query is not None and self.query.scan_key in gone:
            if self.query.pin is None:
                self.query = None
        return new, gone

    def choose_encoder(self, encoder: ModelChoice | None) -> bool:
        """Another encoder: nothing is ready any more. Whether it is another one."""
        if _path(encoder) == _path(self.encoder):
            self.encoder = encoder
            return False
        self.encoder = encoder
        self.query = None
        self.pins.forget_answers()
        for scan in self.scans.values():
            scan.state, scan.ready, scan.words = "looking", None, ""
        return True

    def found(self, key: str, ready: Ready | None) -> Scan | None:
        """Features were looked for, or computed. None when the scan is gone."""
        scan = self.scans.get(key)
        if scan is None:
            return None
        if ready is None:
            scan.state = "none" if scan.state == "looking" else scan.state
            return scan
        if scan.ready is not None:
            return scan  # its heat layer shows what was found first
        first = not any(s.state == "ready" for s in self.scans.values())
        scan.state, scan.ready, scan.words = "ready", ready, ""
        if first:
            self.low = round(starting_threshold(ready.usual), 2)
            self.high = 1.0
        if self.encoder is not None:
            self.pins.requery(self._query_of, str(self.encoder.path))
        return scan

    def failed(self, keys: Iterable[str], sentence: str) -> None:
        """Computing ended without features."""
        for key in keys:
            scan = self.scans.get(key)
            if scan is not None and scan.state != "ready":
                scan.state = "failed" if sentence else "none"
                scan.words = sentence

    def ready(self) -> list[tuple[Scan, Ready]]:
        """Scans that answer."""
        return [(s, s.ready) for s in self.scans.values() if s.ready is not None]

    def under(
        self, shown_mm: NDArray[np.float64], order: Sequence[str], active: str | None
    ) -> Scan | None:
        """Which scan a shown position means.

        Args:
            shown_mm: (3,).
            order: Keys of visible scans, topmost first.
            active: Key of the selected scan; it is meant where it has features.
        """
        first = [active] if active in order else []
        for key in [*first, *order]:
            scan = self.scans.get(str(key))
            if scan is not None and scan.ready is not None and scan.holds(shown_mm):
                return scan
        return None

    def ask(self, scan: Scan, shown_mm: NDArray[np.float64]) -> Query | None:
        """The query at a shown position of a scan; None where no cell is."""
        if scan.ready is None:
            return None
        mm = scan.to_true.apply(shown_mm)
        try:
            vector = query_at(scan.ready.features, mm[None])[0]
        except UnusableInput:
            return None
        self.query = Query(vector, scan.key, mm)
        return self.query

    def pin(self, query: Query, name: str = "") -> Pin:
        """Keep a query."""
        scan = self.scans[query.scan_key]
        z, y, x = (float(v) for v in query.mm)
        pin = self.pins.add(
            scan.key, scan.ref.name, (z, y, x), query.vector, _path(self.encoder), name
        )
        self.query = self.query_of_pin(pin)
        return pin

    def query_of_pin(self, pin: Pin | None) -> Query | None:
        """A pin's query, where it belongs to the encoder chosen now."""
        if pin is None or pin.encoder != _path(self.encoder):
            return None
        return Query(pin.query, pin.scan_key, np.array(pin.mm), pin.number)

    def cut(self, scan: Scan, axis: int, place_mm: float) -> Cut | None:
        """Where the displayed slice cuts a scan's cells."""
        if scan.ready is None:
            return None
        return cut_of(scan.ready.shown, scan.ready.shape, axis, place_mm)

    def readout(self, shown_mm: NDArray[np.float64], scan: Scan) -> str:
        """What is told of the place under the cursor, beside the chosen pin.

        Of the place itself nothing is told: it is like itself.
        """
        pin = self.pins.current
        if scan.ready is None or self.query is None:
            return ""
        if self.query.pin is None:
            if self.query_of_pin(pin) is None or pin is None:
                return "lit: what looks like the place under the mouse"
            value: float | None = float(self.query.vector @ pin.query)
        else:
            cell = scan.ready.shown.inverse().apply(shown_mm)
            value = scan.ready.buffer.value_at(cell)
        if value is None or pin is None:
            return ""
        return f"similarity {value:.2f} to '{pin.name}'"

    def _query_of(self, pin: Pin) -> NDArray[np.float32] | None:
        scan = self.scans.get(pin.scan_key)
        if scan is None or scan.ready is None:
            return None
        try:
            vector: NDArray[np.float32] = query_at(
                scan.ready.features, np.array([pin.mm])
            )[0]
        except UnusableInput:
            return None
        return vector


class Latest:
    """The latest request wins: what was asked before knows that it is outdated."""

    def __init__(self) -> None:
        self._count = 0

    def next(self) -> Callable[[], bool]:
        """A new request; the function tells whether a newer one was made."""
        self._count += 1
        mine = self._count
        return lambda: mine != self._count


def _path(encoder: ModelChoice | None) -> str:
    return "" if encoder is None else str(encoder.path)
