"""What Explore makes for keeps: labels from a range, and features as colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal

from homolog.data.feature_files import read_card
from homolog.gui.explore.feature_lookup import find_card
from homolog.gui.explore.layers import selection_kept
from homolog.gui.explore.scan import Ready, Scan, answer_of, labels_of
from homolog.gui.explore.session import Explorer
from homolog.gui.files.layer_geometry import KEY
from homolog.gui.files.layer_scan import derived_attributes, grid_attributes, scan_file
from homolog.gui.threads import Helper, in_background

NOTHING_ASKED = "Pin a place first, or move the mouse over one: labels need a map."


class Products(QObject):
    """Layers the user asked for by a button.

    Signals:
        told: A sentence about what was made, or why not.
        busy: Whether colours are being computed.
    """

    told = Signal(str)
    busy = Signal(bool)

    def __init__(self, explorer: Explorer) -> None:
        super().__init__(explorer)
        self._explorer = explorer
        self._helper: Helper | None = None

    # Labels

    def make_labels(self) -> None:
        """Labels from the lit range of the shown query, in every scan that shows it."""
        control = self._explorer.control
        query = control.query
        asked = [
            (scan, ready) for scan, ready in control.ready() if self._lit(scan.key)
        ]
        if query is None or not asked:
            self.told.emit(NOTHING_ASKED)
            return
        pin = control.pins.get(query.pin)
        name = pin.name if pin is not None else "similar"
        colour = pin.colour if pin is not None else "#56b4e9"
        told: list[str] = []
        for scan, ready in asked:
            whole = ready.buffer.whole

            def work(
                scan: Scan = scan, ready: Ready = ready, whole: Any = whole
            ) -> NDArray[np.uint8]:
                if whole is None:
                    answer = answer_of(scan, ready, query.vector, lambda: False)
                    whole = None if answer is None else answer.whole
                return labels_of(scan, ready, whole, control.low, control.high)

            def done(labels: NDArray[np.uint8], key: str = scan.key) -> None:
                told.append(self._add_labels(key, labels, name, colour))
                self.told.emit(" ".join(told))

            in_background(
                work, owner=self, done=done,
                failed=lambda error: self.told.emit(f"No labels were made: {error}"),
            )  # fmt: skip

    def _lit(self, key: str) -> bool:
        heat = self._explorer.layers.heat(key)
        return heat is not None and bool(heat.visible)

    def _add_labels(
        self, key: str, labels: NDArray[np.uint8], name: str, colour: str
    ) -> str:
        """Add a label layer; tells what was labelled."""
        from napari.utils import DirectLabelColormap

        layer, scan = (
            self._explorer.layer_of(key),
            self._explorer.control.scans.get(key),
        )
        if layer is None or scan is None:
            return ""
        count = int(np.count_nonzero(labels))
        if not count:
            return f"Nothing in {scan.ref.name} lies in this range: lower it."
        attributes = derived_attributes(layer, f"{scan.ref.name} {name}")
        attributes["metadata"][KEY]["label_names"] = {1: name}
        attributes["metadata"]["label_names"] = {1: name}
        colours = {None: "transparent", 0: "transparent", 1: colour}
        viewer = self._explorer.viewer
        with selection_kept(viewer):
            viewer.add_labels(
                labels.astype(np.int32), **attributes, opacity=0.6,
                colormap=DirectLabelColormap(color_dict=colours),
            )  # fmt: skip
        millilitres = count * float(np.prod(scan.ref.spacing_mm)) / 1000
        return f"Labelled {millilitres:.1f} ml in {scan.ref.name}."

    # Colours

    def colour(self) -> None:
        """Features of all scans that have them as red, green and blue."""
        explorer = self._explorer
        if self._helper is not None:
            return
        found = [
            (scan.key, explorer.layer_of(scan.key), ready.features.scan_id,
             ready.features.encoder_id)
            for scan, ready in explorer.control.ready()
        ]  # fmt: skip
        if not found:
            self.told.emit("Compute features of a scan first.")
            return
        self.busy.emit(True)
        folder, scratch = explorer.hub.features, explorer.hub.scratch
        choice = explorer.control.encoder

        def look() -> list[tuple[str, str, str]]:
            rows = []
            for key, layer, scan_hash, encoder in found:
                learnt = None if choice is None else choice.learnt
                card = find_card(folder, scan_hash, encoder, learnt)
                if card is not None and layer is not None:
                    rows.append((key, str(card), str(scan_file(layer, scratch))))
            return rows

        in_background(look, owner=self, done=self._start, failed=self._fail)

    def cancel(self) -> None:
        """Compute colours no more."""
        if self._helper is not None:
            self._helper.stop()

    def _start(self, rows: list[tuple[str, str, str]]) -> None:
        if not rows:
            self._end("The features are no longer on disk: compute them again.")
            return
        keys, cards, scans = (list(column) for column in zip(*rows, strict=True))
        helper = Helper("colours", {"cards": cards, "scans": scans}, self)
        self._helper = helper
        by_card = dict(zip(cards, keys, strict=True))
        helper.done.connect(lambda result: self._coloured(by_card, result))
        helper.failed.connect(self._end)
        helper.stopped.connect(lambda: self._end(""))
        helper.start()

    def _coloured(self, by_card: dict[str, str], result: dict[str, Any]) -> None:
        def read() -> list[tuple[str, NDArray[np.uint8], Any]]:
            return [
                (
                    by_card[entry["card"]],
                    np.load(entry["npy"]),
                    read_card(Path(entry["card"])).affine,
                )
                for entry in result.get("maps", [])
                if entry["card"] in by_card
            ]

        def done(maps: list[tuple[str, NDArray[np.uint8], Any]]) -> None:
            for key, rgb, affine in maps:
                self._add_colours(key, rgb, affine)
            share = sum(float(v) for v in result.get("explained", []))
            many = "the same colour means the same feature in all of them; "
            self._end(
                f"Coloured {len(maps)} scan{'s' if len(maps) != 1 else ''}: "
                + (many if len(maps) > 1 else "")
                + f"the colours tell {share:.0%} of what differs."
            )

        in_background(read, owner=self, done=done, failed=self._fail)

    def _add_colours(self, key: str, rgb: NDArray[np.uint8], affine: Any) -> None:
        from homolog.geometry.affine import Affine

        layer = self._explorer.layer_of(key)
        if layer is None:
            return
        attributes = grid_attributes(layer, Affine(np.array(affine)))
        attributes["name"] = f"{layer.name} features"
        viewer = self._explorer.viewer
        with selection_kept(viewer):
            added = viewer.add_image(
                rgb, rgb=True, **attributes, opacity=0.6, interpolation2d="linear",
                visible=layer.visible,
            )  # fmt: skip
            here, above = viewer.layers.index(added), viewer.layers.index(layer) + 1
            if here != above:
                viewer.layers.move(here, above)

    def _fail(self, error: Exception) -> None:
        self._end(str(error))

    def _end(self, sentence: str) -> None:
        if self._helper is not None:
            self._helper.deleteLater()
        self._helper = None
        self.busy.emit(False)
        if sentence:
            self.told.emit(sentence)
