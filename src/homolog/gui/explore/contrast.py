"""Whether a pin's features tell the organ under it from the rest; no Qt, no napari."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.features.search import find_body, on_grid
from homolog.geometry.affine import Affine
from homolog.gui.shared.feature_slices import Map
from homolog.gui.shared.scan_layers import shown_of
from homolog.gui.shared.scans import Ready, Scan
from homolog.metrics.classification import same_organ_auc
from homolog.scans.volume import Volume

# Voxels are compared that far apart; features change no faster.
_STEP_MM = 4.0


@dataclass(frozen=True)
class Labelled:
    """A scan with its similarity map and labels on it.

    Attributes:
        scan: The scan.
        ready: Its features.
        whole: Similarity (d, h, w) of its cells with the pin.
        values: Voxels (D, H, W) of the scan's layer.
        labels: Of a labels layer on it, the same shape.
        names: Value -> name.
    """

    scan: Scan
    ready: Ready
    whole: Map
    values: NDArray[Any]
    labels: NDArray[np.integer]
    names: dict[int, str]


def value_at(one: Labelled, mm: Sequence[float]) -> int:
    """The label at a place, true mm; 0 where there is none."""
    index = one.scan.grid.inverse().apply(shown_of(one.scan.to_true, mm))
    voxel = np.clip(np.rint(index).astype(int), 0, np.array(one.labels.shape) - 1)
    return int(one.labels[tuple(voxel)])


def auc_of(one: Labelled, value: int) -> float:
    """How well similarity tells a label from the rest of the body, 0.5 is chance.

    Slow, so on a thread. NaN where all or nothing has the label.
    """
    steps = [max(1, round(_STEP_MM / s)) for s in one.scan.grid.spacing_mm]
    z, y, x = steps
    organ = one.labels[::z, ::y, ::x] == value
    grid = one.scan.grid @ Affine.scale([float(s) for s in steps])
    d, h, w = organ.shape
    alike = on_grid(one.whole, one.ready.shown, (d, h, w), grid)
    volume = Volume(
        np.asarray(one.values)[None], one.scan.grid, one.scan.ref.name,
        one.scan.ref.modality,
    )  # fmt: skip
    places = np.indices(organ.shape).reshape(3, -1).T * np.array(steps)
    body = find_body(volume).at(places).reshape(organ.shape) | organ
    return same_organ_auc(alike[body], organ[body])


def contrast_line(pinned: Labelled, others: Sequence[Labelled], mm: Any) -> str:
    """One sentence; of other scans where a label has the same name. On a thread.

    Args:
        pinned: The scan with the pin.
        others: Other scans with labels on them.
        mm: Of the pin, true mm.
    """
    value = value_at(pinned, mm)
    if not value:
        return "Organ contrast: the pin lies in none of the labels of its scan."
    name = pinned.names.get(value, f"label {value}")
    found = [f"{auc_of(pinned, value):.2f} in {pinned.scan.ref.name}"]
    for other in others:
        same = value if not pinned.names else _called(other.names, name)
        if same and (other.labels == same).any():
            found.append(f"{auc_of(other, same):.2f} in {other.scan.ref.name}")
    return (
        f"Organ contrast: how well likeness to the pin tells {name} from the rest of "
        f"the body: AUC {', '.join(found)} (0.5 is chance, 1 perfect)."
    )


def _called(names: dict[int, str], name: str) -> int:
    return next((v for v, n in names.items() if n.lower() == name.lower()), 0)
