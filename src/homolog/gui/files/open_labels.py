"""Label layers that lie on open scans, as label files for a store; without Qt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from homolog.data.scan_header import scan_stem
from homolog.errors import UnusableInput
from homolog.gui.files.layer_geometry import is_kind, shape_of, shown_affine
from homolog.gui.files.layer_scan import layer_scan, scan_file
from homolog.gui.files.writer import save_layer


def labels_on(scan: Any, layers: Iterable[Any]) -> list[Any]:
    """Visible labels layers on the grid of a scan layer.

    Args:
        scan: A layer that ``layer_scan`` knows.
        layers: All layers of the viewer.
    """
    return [
        layer
        for layer in layers
        if is_kind(layer, "Labels")
        and layer.visible
        and shape_of(layer) == shape_of(scan)
        and np.allclose(
            shown_affine(layer).matrix, shown_affine(scan).matrix, rtol=1e-5, atol=1e-3
        )
    ]


def pairs_of(layers: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Each open scan with the one visible labels layer that lies on it.

    Raises:
        UnusableInput: Several lie on one scan; which is meant cannot be known.
    """
    layers = list(layers)
    found = []
    for scan in layers:
        if layer_scan(scan) is None:
            continue
        on_it = labels_on(scan, layers)
        if len(on_it) > 1:
            names = ", ".join(layer.name for layer in on_it)
            raise UnusableInput(
                f"Several label layers lie on {scan.name} ({names}); hide all but one."
            )
        found += [(scan, label) for label in on_it]
    return found


def gather(
    paths: list[Path], unsaved: list[Any], pairs: list[tuple[Any, Any]], scratch: Path
) -> list[Path]:
    """Sources of a store; layers that are no files are written. Slow: on a thread.

    Args:
        paths: Files and folders.
        unsaved: Scan layers that are no files.
        pairs: (scan layer, labels layer) whose labels go into ``scratch/labels``, named
            like the scan's file.
        scratch: A new folder that outlives the building.
    """
    files = {layer.unique_id: scan_file(layer, scratch) for layer in unsaved}
    for scan, labels in pairs:
        image = files.get(scan.unique_id) or scan_file(scan, scratch)
        target = scratch / "labels" / f"{scan_stem(image)}.nii.gz"
        save_layer(labels, target, [scan])
    return list(dict.fromkeys([*paths, *files.values()]))
