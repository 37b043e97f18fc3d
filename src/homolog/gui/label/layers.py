"""The layers of the Label tab: what is painted, what is predicted. No Qt.

Painted layers are known by a note in their metadata, and after a restored session by
their name; the autosave saves them like all that is drawn, and predictions never.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from homolog.gui.shared.layers import (
    KEY,
    derived_attributes,
    is_kind,
    lies_over,
    notes_of,
)
from homolog.gui.shared.scan_layers import selection_kept
from homolog.tasks.few_voxels.reach import COLOUR, NAME, unknown_value
from homolog.tasks.few_voxels.scan import FewClass, few_classes

PAINTED, PREDICTED = " painted", " prediction"
_NOTE = "few"
_TABLE, _COLOURS_AHEAD = "homolog_label_colours", 25
BRUSH_MM = 3.0
# Paint stands out, the prediction lets the scan through.
_PAINT_OPACITY, _SHOWN_OPACITY = 0.9, 0.4


def add_painted(viewer: Any, scan: Any) -> Any:
    """An empty layer to paint on, on a scan's grid; it is selected, brush in hand."""
    layer = viewer.add_labels(
        np.zeros(scan.data.shape, np.uint8),
        **_attributes(scan, f"{scan.name}{PAINTED}", PAINTED),
        opacity=_PAINT_OPACITY,
    )
    ready_brush(viewer, layer)
    return layer


def ready_brush(viewer: Any, layer: Any) -> None:
    """Select a layer and put a brush of 3 mm in the hand, that paints in depth too."""
    viewer.layers.selection.active = layer
    layer.n_edit_dimensions = 3
    # napari's brush is counted in voxels of the finest axis
    layer.brush_size = max(1, round(BRUSH_MM / min(float(s) for s in layer.scale)))
    layer.mode = "paint"


def add_predicted(viewer: Any, scan: Any, painted: Any) -> Any:
    """The layer of a scan's prediction, right below its paint; nothing is selected."""
    with selection_kept(viewer):
        layer = viewer.add_labels(
            np.zeros(scan.data.shape, np.uint8),
            **_attributes(scan, f"{scan.name}{PREDICTED}", PREDICTED),
            opacity=_SHOWN_OPACITY,
        )
        here, above = viewer.layers.index(layer), viewer.layers.index(painted)
        viewer.layers.move(here, above)
    return layer


def painted_on(scan: Any, layers: Iterable[Any]) -> Any | None:
    """The layer that was painted on a scan."""
    own = [x for x in layers if is_kind(x, "Labels") and lies_over(x, scan)]
    marked = [x for x in own if notes_of(x).get(_NOTE) == PAINTED]
    named = [x for x in own if x.name == f"{scan.name}{PAINTED}"]
    return next((x for x in [*marked, *named] if isinstance(x.data, np.ndarray)), None)


def usable_on(scan: Any, layer: Any) -> bool:
    """Whether a layer of somebody else's can be painted on for a scan."""
    return (
        layer is not None
        and is_kind(layer, "Labels")
        and notes_of(layer).get(_NOTE) is None
        and lies_over(layer, scan)
        and isinstance(layer.data, np.ndarray)
    )


def take(layer: Any) -> None:
    """Make somebody's layer one of ours; its voxels stay."""
    notes = {**notes_of(layer), "derived": True, _NOTE: PAINTED}
    layer.metadata = {**layer.metadata, KEY: notes}


def is_predicted(layer: Any) -> bool:
    """Whether a layer is a prediction of ours."""
    return notes_of(layer).get(_NOTE) == PREDICTED


def show_classes(layer: Any, classes: Sequence[FewClass]) -> None:
    """Give a layer the classes' colours, and their names for the cursor and saving."""
    from napari.utils import DirectLabelColormap

    table: dict[int | None, Any] = {None: "#00000000", 0: "#00000000"}
    # The next classes' colours too: a new table costs napari tens of milliseconds.
    table |= {c.value: c.colour for c in few_classes(range(1, _COLOURS_AHEAD))}
    table |= {c.value: c.colour for c in classes}
    names = {c.value: c.name for c in classes}
    if is_predicted(layer):
        unknown = unknown_value(list(names))
        table[unknown], names[unknown] = COLOUR, NAME
    if layer.metadata.get(_TABLE) != table:
        layer.colormap = DirectLabelColormap(color_dict=table)
        layer.metadata[_TABLE] = table
    layer.metadata["label_names"] = names
    layer.features = {
        "index": [0, *names],
        "label": ["unpainted" if not is_predicted(layer) else "none", *names.values()],
    }


def colours_of(layer: Any) -> dict[int, str]:
    """Value -> ``#rrggbb`` of a layer whose colours were set one by one."""
    table = getattr(layer.colormap, "color_dict", None) or {}
    found = {}
    for value, colour in table.items():
        if value:
            parts = [round(255 * float(c)) for c in colour[:3]]
            found[int(value)] = "#" + "".join(f"{p:02x}" for p in parts)
    return found


def redraw(layer: Any) -> None:
    """Show what was written into a layer's array."""
    layer.refresh(extent=False, thumbnail=False)


def _attributes(scan: Any, name: str, note: str) -> dict[str, Any]:
    attributes = derived_attributes(scan, name)
    attributes["metadata"][KEY][_NOTE] = note
    return attributes
