"""Saved work back to layers and pinned places. No Qt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from homolog.data.scan_header import is_series_path
from homolog.data.scan_io import read_labels
from homolog.gui.autosave.sessions import Left
from homolog.gui.files.layer_geometry import KEY, notes_of
from homolog.gui.files.layers import LayerData, label_layer
from homolog.gui.files.opening import why_not


def read_saved(left: Left) -> tuple[list[LayerData], list[dict[str, Any]], list[str]]:
    """The label layers of a session; on a thread.

    Returns:
        Layers to add, entries that could not be read, and a sentence for each.
    """
    layers: list[LayerData] = []
    lost: list[dict[str, Any]] = []
    why: list[str] = []
    for entry in left.labels:
        path = left.folder / str(entry["file"])
        try:
            layers.append(_layer(path, entry))
        except Exception as error:  # noqa: BLE001 - the other layers come back
            lost.append(entry)
            why.append(why_not(path, error))
    return layers, lost, why


def scans_to_open(left: Left, layers: Iterable[Any]) -> tuple[list[Path], list[Path]]:
    """Scans of a session that are not open: those that still exist, and the others."""
    open_now = {str(notes_of(layer).get("source") or "") for layer in layers}
    wanted = [Path(s) for s in dict.fromkeys(left.scans) if s and s not in open_now]
    there = [p for p in wanted if p.exists() or is_series_path(p)]
    return there, [p for p in wanted if p not in there]


def pins_of(explorer: Any) -> list[dict[str, Any]]:
    """Explore's pinned places as plain JSON types, with what they look like."""
    scans = explorer.control.scans
    found = []
    for pin in explorer.control.pins:
        scan = scans.get(pin.scan_key)
        path = None if scan is None else scan.ref.path
        found.append(
            {
                "name": pin.name,
                "scan": pin.scan,
                "path": "" if path is None else str(path),
                "mm": [float(v) for v in pin.mm],
                "query": [float(v) for v in pin.query],
                "encoder": pin.encoder,
                "visible": bool(pin.visible),
            }
        )
    return found


def add_pins(explorer: Any, pins: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put pinned places back where their scan is open; returns those that wait.

    A pin of an encoder that is not chosen rests until it is, as all pins do.
    """
    control, waiting = explorer.control, []
    for entry in pins:
        key = _scan_key(control.scans, entry)
        if key is None:
            waiting.append(dict(entry))
            continue
        z, y, x = (float(v) for v in entry["mm"])
        pin = control.pins.add(
            key, str(entry["scan"]), (z, y, x), np.array(entry["query"], np.float32),
            str(entry["encoder"]), str(entry["name"]),
        )  # fmt: skip
        pin.visible = bool(entry["visible"])
    return waiting


def _layer(path: Path, entry: Mapping[str, Any]) -> LayerData:
    names = {int(v): str(n) for v, n in entry["label_names"].items()}
    data, attributes, kind = label_layer(read_labels(path, names))
    if entry["ndim"] == 2 and len(data) == 1:  # drawn on a picture
        data = data[0]
        for field in ("scale", "translate", "units", "axis_labels"):
            attributes[field] = attributes[field][-2:]
    notes = attributes["metadata"][KEY]
    # The file of the session will go: the layer is what lies on its scan, no file.
    for gone in ("sample", "stamp"):
        notes.pop(gone, None)
    notes["source"] = str(entry["source"] or entry["own_file"])
    notes["derived"] = True
    attributes.update(
        name=str(entry["name"]), opacity=float(entry["opacity"]),
        visible=bool(entry["visible"]),
    )  # fmt: skip
    if entry["colours"]:
        from napari.utils import DirectLabelColormap

        attributes["colormap"] = DirectLabelColormap(
            color_dict={
                None if value == "other" else int(value): colour
                for value, colour in entry["colours"].items()
            }
        )
    return data, attributes, kind


def _scan_key(scans: Mapping[str, Any], entry: Mapping[str, Any]) -> str | None:
    """Key of the open scan that a pin belongs to: by file, else by name."""
    path = str(entry["path"])
    for key, scan in scans.items():
        known = scan.ref.path
        if str(known or "") == path if path else scan.ref.name == entry["scan"]:
            return key
    return None
