"""A page on one labelled scan: names, volumes, the slices, the model, warnings."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import homolog
from homolog.drawing.html import Page
from homolog.drawing.pictures import (
    CT_WINDOW_HU,
    Picture,
    Plane,
    beside,
    grey,
    with_labels,
    words_on_black,
)
from homolog.errors import UnusableInput
from homolog.events import stopped_words
from homolog.label_names import Colour, colours_of
from homolog.model_files.card import CARD, read_card
from homolog.model_files.facts import facts_of
from homolog.model_files.library import located
from homolog.scans.files import read_labels, read_scan
from homolog.scans.formats.slicer import label_colours
from homolog.scans.inspect import inspect_scan, labels_by_place
from homolog.scans.names import names_told
from homolog.scans.volume import LabelMap, Volume, closest_canonical
from homolog.words import counted, spacing_text, times, volume_text

# Facts of a model that a reader of a case asks for; its own report tells all.
_OF_A_MODEL = (
    "Kind", "Trained on", "Data", "Licence", "Voxel size", "Labels", "Steps",
    "Weights of", "Validation", "Weights", "Made with",
)  # fmt: skip
_PLANES = ("axial", "coronal", "sagittal")
_SLICES, _IN_A_ROW = 12, 4
_PLANE_PX, _SLICE_PX = 330, 250
_TINT = 0.35


@dataclass(frozen=True)
class ClassRow:
    """What is said of one class of a case.

    Attributes:
        value: In the label map.
        name: For people.
        voxels: How many.
        volume_ml: Their volume; None where the scan's voxels have no known size.
        slices: First and last slice that shows it, from the feet, from 0; None when
            absent.
        mean: Of the scan's values inside it; NaN when absent.
        sd: Their standard deviation.
    """

    value: int
    name: str
    voxels: int
    volume_ml: float | None
    slices: tuple[int, int] | None
    mean: float
    sd: float


@dataclass(frozen=True, eq=False)
class Case:
    """A scan with its labels, both on one grid of axes z, y, x of LPS.

    Attributes:
        scan: The scan.
        labels: The label map; ``names`` and what it holds are the classes.
        colours: Label value -> red, green, blue, 0..1.
        remarks: What is odd about the scan.
        sized: Whether its voxels have a known size.
    """

    scan: Volume
    labels: LabelMap
    colours: Mapping[int, Colour]
    remarks: tuple[str, ...] = ()
    sized: bool = True

    @classmethod
    def read(cls, scan: Path, labels: Path) -> Case:
        """A case from files; names and colours are those of the label file.

        Raises:
            UnusableInput: Files that cannot be used, or labels on another grid.
        """
        volume = read_scan(scan)
        own = labels_by_place(read_labels(labels, names_told(labels)), volume)
        close = own.affine.close_to(volume.affine, volume.shape)
        if own.shape != volume.shape or not close:
            sizes = " and ".join(times(s[::-1]) for s in (own.shape, volume.shape))
            raise UnusableInput(
                f"{labels.name} does not lie on the grid of {scan.name} ({sizes} "
                "voxels, or another place): is it of another scan?"
            )
        told = inspect_scan(scan, deep=False).problems
        remarks = tuple(one.text for one in told if not one.fatal)
        sized = all(one.code != "spacing_unknown" for one in told)
        whole = Volume(own.data[None], volume.affine)
        data = closest_canonical(whole).data[0]
        shown = closest_canonical(volume)
        present = {int(v) for v in np.unique(data) if v > 0}
        names = {
            v: own.names.get(v) or f"label {v}"
            for v in sorted(present | {v for v in own.names if v > 0})
        }
        placed = LabelMap(np.maximum(data, 0), shown.affine, names)
        colours = {**colours_of(names), **label_colours(labels)}
        return cls(shown, placed, colours, remarks, sized)

    def rows(self) -> list[ClassRow]:
        """The classes, by value."""
        names, data = self.labels.names, self.labels.data
        values = np.asarray(self.scan.data[0], np.float32)
        each_ml = float(np.prod(self.scan.affine.spacing_mm)) / 1000.0
        found = dict(enumerate(ndimage.find_objects(data), start=1))
        rows = []
        for value, name in names.items():
            part = found.get(value)
            voxels, slices, mean, sd = 0, None, np.nan, np.nan
            if part is not None:
                inside = values[part][data[part] == value]
                voxels, mean, sd = len(inside), inside.mean(), inside.std()
                slices = (part[0].start, part[0].stop - 1)
            volume = voxels * each_ml if self.sized else None
            row = ClassRow(value, name, voxels, volume, slices, float(mean), float(sd))
            rows.append(row)
        return rows


def case_page(
    case: Case,
    name: str,
    *,
    model: Path | None = None,
    warnings: Sequence[str] = (),
    window: tuple[float, float] | None = None,
    today: datetime.date | None = None,
) -> Page:
    """The page on a case.

    Args:
        case: The scan with its labels.
        name: What the scan is called.
        model: A run or model folder that made the labels; its card is told.
        warnings: Sentences that belong to this result.
        window: Values shown black and white; chosen by the scan if None.
        today: The date on the page; of this day if None.

    Raises:
        UnusableInput: There is no model at ``model``.
    """
    scan, rows = case.scan, case.rows()
    kind = "" if scan.modality == "OTHER" else f"{scan.modality}, "
    size = spacing_text(scan.affine.spacing_mm)
    size = size if case.sized else "voxels of unknown size"
    page = Page(name, f"{kind}{times(scan.shape[::-1])} voxels, {size}.")
    page.section("Classes")
    page.table(*_table(rows))
    page.note(
        "Slices are numbered from the feet, from 0, as on the slider of the window; "
        f"values are {'HU' if scan.modality == 'CT' else 'as the scan has them'}."
    )
    _pictures(page, case, rows, window or _window(scan))
    folder, card = (None, {}) if model is None else _card(model)
    early = stopped_words(card)
    early = f"the training of the model was {early}." if early else ""
    told = [text for text in (*warnings, *case.remarks, early) if text]
    page.section("Warnings", "" if told else "None.")
    for text in told:
        page.text(f"{text[:1].upper()}{text[1:]}")
    page.text("A model's result, to be checked on the scan; no diagnosis.")
    if model is not None and folder is not None:
        _model(page, model, folder, card)
    day = (today or datetime.date.today()).isoformat()
    page.note(
        f"Made on {day} with homolog {homolog.__version__}. For research use only: not "
        "a medical device."
    )
    return page


def _table(rows: Sequence[ClassRow]) -> tuple[list[str], list[list[str]]]:
    head = ["class", "volume", "voxels", "slices", "mean value", "standard deviation"]
    cells = []
    for r in rows:
        if r.slices is None:
            cells.append([r.name, "absent", "0", "–", "–", "–"])
            continue
        volume = "size unknown" if r.volume_ml is None else volume_text(r.volume_ml)
        first, last = r.slices
        shown = f"{first}" if first == last else f"{first}–{last}"
        cells.append(
            [r.name, volume, f"{r.voxels:,}", shown, f"{r.mean:.4g}", f"{r.sd:.3g}"]
        )
    return head, cells


def _window(scan: Volume) -> tuple[float, float]:
    """The soft tissues of a CT; of others all but the extremes."""
    values = np.asarray(scan.data[0], np.float32)
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if scan.modality == "CT" and low < CT_WINDOW_HU[0]:
        return CT_WINDOW_HU
    return (low, high) if high > low else (low, low + 1.0)


def _pictures(
    page: Page, case: Case, rows: Sequence[ClassRow], window: tuple[float, float]
) -> None:
    """Three planes through the labels, and slices from their first to their last."""
    there = [r.slices for r in rows if r.slices is not None]
    if not there:
        return
    keys = [(r.name, case.colours[r.value]) for r in rows if r.slices is not None]
    low, high = (f"{v:.4g}" for v in window)
    page.section("Where")
    if case.scan.shape[0] > 1:
        page.figure(
            beside(list(_planes(case, window))),
            "Axial, coronal and sagittal slice through the middle of all classes, the "
            f"patient's right on the left. Shown from {low} to {high}.",
            keys,
        )
    numbers = np.linspace(min(a for a, _ in there), max(b for _, b in there), _SLICES)
    chosen = sorted({round(float(n)) for n in numbers})
    page.figure(
        _sheet([_slice(case, number, window) for number in chosen]),
        f"{counted(len(chosen), 'slice')} from the first to the last that shows a "
        "class.",
        keys,
    )


def _planes(case: Case, window: tuple[float, float]) -> Iterator[Picture]:
    inside = ndimage.find_objects((case.labels.data > 0).astype(np.uint8))[0]
    sizes = np.array(case.scan.shape) * case.scan.affine.spacing_mm
    factor = _PLANE_PX / float(sizes.max())
    for axis, name in enumerate(_PLANES):
        middle = (inside[axis].start + inside[axis].stop - 1) // 2
        yield _shown(case, Plane(axis, middle, factor), window, f"{name} {middle}")


def _slice(case: Case, number: int, window: tuple[float, float]) -> Picture:
    _, height, width = np.array(case.scan.shape) * case.scan.affine.spacing_mm
    factor = _SLICE_PX / float(max(height, width))
    return _shown(case, Plane(0, number, factor), window, f"slice {number}")


def _shown(
    case: Case, plane: Plane, window: tuple[float, float], words: str
) -> Picture:
    """A slice with its labels, and its number above it."""
    zoom = plane.zoom(case.scan.affine.spacing_mm)
    picture = grey(plane.cut(case.scan.data[0]), zoom, window)
    labels: NDArray[Any] = plane.cut(case.labels.data)
    picture = with_labels(picture, labels, zoom, case.colours, _TINT)
    return np.concatenate([words_on_black(words, picture.shape[1]), picture])


def _sheet(pictures: Sequence[Picture]) -> Picture:
    """Pictures of one size in rows."""
    lines = [
        beside(pictures[i : i + _IN_A_ROW]) for i in range(0, len(pictures), _IN_A_ROW)
    ]
    wide = max(line.shape[1] for line in lines)
    filled = [
        np.pad(line, ((0, 8), (0, wide - line.shape[1]), (0, 0))) for line in lines
    ]
    return np.concatenate(filled)


def _card(source: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a model, and its card; a run has it inside."""
    folder = located(source)
    inside = folder / "model"
    folder = inside if (inside / CARD).is_file() else folder
    return folder, read_card(folder)


def _model(page: Page, source: Path, folder: Path, card: Mapping[str, Any]) -> None:
    """What is known of the model; no path of this machine."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    facts = dict(facts_of(card, size, Path(source.name)))
    page.section(f"The model {source.name}")
    page.table(["", ""], [[what, facts[what]] for what in _OF_A_MODEL if what in facts])
