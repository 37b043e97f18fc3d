"""What came out of a model, in numbers and words: classes of labels, and of a scan.

No Qt, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.words import as_csv, times

Colour: TypeAlias = tuple[float, float, float, float]

# Okabe and Ito's colours without black, told apart by the colour-blind.
_OKABE_ITO = (
    "E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7", "999999",
)  # fmt: skip
FEW = len(_OKABE_ITO)
METRICS = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 (mm)"}
_SLICES_SHOWN = 6
_POSITIVE = 0.5
# Slices below are not worth a line.
_WORTH_A_LINE = 0.1
_WORDS = {"presence": "Shows a finding", "attention": "Weight in the answer"}


@dataclass(frozen=True)
class ChanceRow:
    """One class of a scan.

    Attributes:
        name: Of the class or type.
        chance: Probability, 0..1.
        told: Whether the scan is said to show it.
        kind: ``class`` or ``type``.
    """

    name: str
    chance: float
    told: bool
    kind: str = "class"

    @property
    def text(self) -> str:
        """``92 %``; never more certain than the model can be."""
        if 0 < self.chance < 0.01:
            return "< 1 %"
        if 0.99 < self.chance < 1:
            return "> 99 %"
        return f"{self.chance:.0%}".replace("%", " %")


def chance_rows(told: Mapping[str, Any]) -> list[ChanceRow]:
    """Classes, likeliest first, then types.

    Args:
        told: What the ``predict`` job tells of a scan.
    """
    limits = told.get("thresholds") or {}
    rows = [
        ChanceRow(name, p, p >= limits[name] if limits else name == told["class"])
        for name, p in told["chances"].items()
    ]
    types = told.get("types") or {}
    rows = sorted(rows, key=lambda row: -row.chance)
    beside = [ChanceRow(name, p, p >= _POSITIVE, "type") for name, p in types.items()]
    return rows + sorted(beside, key=lambda row: -row.chance)


def short_text(told: Mapping[str, Any]) -> str:
    """``effusion 92 %, nodule 61 %`` for a list's line."""
    rows = [row for row in chance_rows(told) if row.kind == "class"]
    shown = [f"{row.name} {row.text}" for row in rows if row.told]
    if shown:
        return ", ".join(shown)
    return f"{told['class']} (at most {rows[0].name} {rows[0].text})"


def slice_measure(told: Mapping[str, Any]) -> str | None:
    """``presence`` or ``attention``: what orders the slices; None without slices."""
    slices: Sequence[Mapping[str, float]] = told.get("slices") or ()
    return next((key for key in _WORDS if slices and key in slices[0]), None)


def slice_heading(measure: str) -> str:
    """Column of the slices' table."""
    return _WORDS[measure]


def best_slices(told: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Number and value of the slices that speak most for the answer, most first.

    Those that look positive or might; of attention, those above their even share.
    """
    measure = slice_measure(told)
    if measure is None:
        return []
    even = 1.0 / len(told["slices"])
    least = _WORTH_A_LINE if measure == "presence" else even
    found = [(int(row["slice"]), float(row[measure])) for row in told["slices"]]
    found = [row for row in found if row[1] >= least]
    return sorted(found, key=lambda row: -row[1])[:_SLICES_SHOWN]


def slices_sentence(told: Mapping[str, Any]) -> str:
    """Which slices look positive; empty where that was not learnt."""
    if slice_measure(told) != "presence":
        return ""
    numbers = [
        int(r["slice"]) for r in told["slices"] if r["presence"] >= _POSITIVE
    ]  # fmt: skip
    if not numbers:
        return "No slice looks as if it showed a finding."
    return f"Slices that look as if they showed a finding: {ranges_text(numbers)}."


def ranges_text(numbers: Sequence[int]) -> str:
    """``3-5, 9``."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def table_text(scan: str, told: Mapping[str, Any]) -> str:
    """Tab-separated, for a spreadsheet."""
    rows = [
        [scan, row.kind, row.name, f"{row.chance:.4f}", "yes" if row.told else "no"]
        for row in chance_rows(told)
    ]
    return as_csv(["scan", "kind", "name", "probability", "told"], rows, "\t")


# Classes of a scan with their probabilities, and the slices that speak for them.


# Classes of a label map.


@dataclass(frozen=True)
class ClassRow:
    """One class of a label map.

    Attributes:
        value: In the array.
        name: For people.
        voxels: How many.
        volume_ml: Their volume.
        place: A voxel (z, y, x) inside it, in its largest slice; None when absent.
    """

    value: int
    name: str
    voxels: int
    volume_ml: float
    place: tuple[int, int, int] | None


def class_rows(
    data: NDArray[Any], names: Mapping[int, str], spacing_mm: Sequence[float]
) -> list[ClassRow]:
    """Count the classes of a label map; named ones are listed even when absent.

    Args:
        data: (D, H, W) or (H, W) integers.
        names: Label value -> name.
        spacing_mm: Voxel size (z, y, x).
    """
    from scipy.ndimage import find_objects

    solid = (
        np.atleast_3d(data) if data.ndim < 2 else data.reshape((1, *data.shape)[-3:])
    )
    voxel_ml = float(np.prod(np.asarray(spacing_mm, float)[-3:])) / 1000.0
    boxes = dict(enumerate(find_objects(solid), start=1))
    present = [v for v, box in boxes.items() if box is not None]
    rows = []
    for value in sorted({*present, *(v for v in names if v > 0)}):
        box = boxes.get(value)
        count, place = (0, None) if box is None else _count(solid, value, box)
        name = names.get(value, f"label {value}")
        rows.append(ClassRow(value, name, count, count * voxel_ml, place))
    return rows


def _count(
    data: NDArray[Any], value: int, box: tuple[slice, ...]
) -> tuple[int, tuple[int, int, int]]:
    """Voxels of a class, and the one nearest to the middle of its largest slice."""
    inside = data[box] == value
    areas = inside.sum(axis=(1, 2))
    z = int(areas.argmax())
    ys, xs = np.nonzero(inside[z])
    nearest = int(np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2))
    first = [s.start for s in box]
    place = (first[0] + z, first[1] + int(ys[nearest]), first[2] + int(xs[nearest]))
    return int(areas.sum()), place


def few_colours(values: Sequence[int]) -> dict[int, Colour]:
    """Okabe and Ito's colours for up to FEW classes, by value."""
    return {v: _rgba(_OKABE_ITO[i]) for i, v in enumerate(sorted(values)[:FEW])}


def shown_colours(
    colours: Mapping[int, Sequence[float]], hidden: set[int]
) -> dict[int | None, Sequence[float]]:
    """Colours for a DirectLabelColormap: background and hidden classes are clear."""
    clear = (0.0, 0.0, 0.0, 0.0)
    table: dict[int | None, Sequence[float]] = {None: clear, 0: clear}
    for value, colour in colours.items():
        table[value] = clear if value in hidden else tuple(float(c) for c in colour)
    return table


def scores_by_name(
    result: Mapping[str, Any],
) -> dict[int, dict[str, float | None]]:
    """The ``score`` job's rows of one case: label value -> metric -> value."""
    return {
        int(row["label"]): {metric: row.get(metric) for metric in METRICS}
        for row in result.get("rows", ())
    }


def score_text(metric: str, value: float | None) -> str:
    """A metric in a cell; a dash where it means nothing (both maps lack the class)."""
    if value is None or value != value:
        return "-"
    return f"{value:.1f}" if metric == "hd95_mm" else f"{value:.3f}"


def mean_sentence(result: Mapping[str, Any]) -> str:
    """The means over classes in one line."""
    mean = result.get("mean") or {}
    parts = [
        f"{title} {score_text(metric, mean.get(metric))}"
        for metric, title in METRICS.items()
    ]
    return "Mean over classes: " + ", ".join(parts) + "."


def csv_text(
    rows: Sequence[ClassRow], scores: Mapping[int, Mapping[str, float | None]]
) -> str:
    """The table as CSV, for a spreadsheet: full precision, units in the header."""
    lines = []
    for row in rows:
        own = scores.get(row.value, {})
        cells: list[Any] = [row.value, row.name, row.voxels, f"{row.volume_ml:.6g}"]
        if scores:
            found = [own.get(metric) for metric in METRICS]
            cells += ["" if v is None else f"{v:.6g}" for v in found]
        lines.append(cells)
    head = ["label", "name", "voxels", "volume_ml", *(METRICS if scores else ())]
    return as_csv(head, lines)


def grids_differ(
    own: Sequence[int], other: Sequence[int], name: str, other_name: str
) -> str:
    """Why two label maps cannot be compared, in one sentence; empty when they can."""
    if tuple(own) == tuple(other):
        return ""
    sizes = [times(shape) for shape in (own, other)]
    return (
        f"{other_name} does not match {name} ({sizes[1]} and {sizes[0]} voxels). Was "
        "it made for another scan?"
    )


def _rgba(text: str) -> Colour:
    red, green, blue = (int(text[i : i + 2], 16) / 255.0 for i in (0, 2, 4))
    return red, green, blue, 1.0
