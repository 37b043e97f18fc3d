"""What the Segment tab knows and decides: models, files of a batch, results; no Qt."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.events import Event, Note, Progress, Saved, Started
from homolog.gui.files.writer import free_path
from homolog.gui.segment.channels import Wanted, lacking, said_files
from homolog.gui.shared.choices import ModelChoice, misfit
from homolog.gui.shared.layers import (
    KEY,
    LayerData,
    derived_attributes,
    label_features,
    label_layer,
    notes_of,
    shape_of,
    volume_layer,
)
from homolog.index.manifests import is_manifest, read_manifest
from homolog.index.tree import list_series
from homolog.scans.boxes import JSON_SUFFIX
from homolog.scans.files import (
    read_header,
    read_labels,
    read_scan,
)
from homolog.scans.names import is_label_folder, label_rank, write_names
from homolog.scans.paths import (
    is_scan_path,
    is_series_path,
    scan_stem,
    split_series,
)
from homolog.scans.points import SUFFIX
from homolog.scans.volume import Channel
from homolog.words import as_csv, counted, duration, metric_title, times
from homolog.writing import free_name, put_in_place

# What came out of a model, in numbers and words: classes of labels, and of a scan.
#
# No Qt, no torch.


Colour: TypeAlias = tuple[float, float, float, float]

# Okabe and Ito's colours without black, told apart by the colour-blind.
_OKABE_ITO = (
    "E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7", "999999",
)  # fmt: skip
FEW = len(_OKABE_ITO)
METRICS = {name: metric_title(name) for name in ("dice", "nsd", "hd95_mm")}
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


# A batch of scans to segment, and what became of each; no Qt, no torch.


# Modality and voxel size (z, y, x) in mm.
Facts: TypeAlias = tuple[str, tuple[float, float, float]]

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
REMOVED = "removed"  # out of the list while a worker had it
_SIGNS = {WAITING: "", RUNNING: "▶ ", DONE: "✓ ", FAILED: "⚠ "}
_FLAG_HINT = re.compile(r"; if [^;]*, say --[^;]*\.")


@dataclass
class BatchItem:
    """One scan of a batch.

    Attributes:
        scan: File, DICOM folder or series.
        state: ``waiting``, ``running``, ``done`` or ``failed``.
        words: What is told beside its name.
        result: Label map, image or boxes written; None before.
        volumes_ml: Of each class, by name.
        told: What a classifier told of it; empty before.
        note: How it differs from the scans the model learnt from; empty when alike.
        made_by: The model of its result, and what was said of it.
        made_image: Whether the result is an image.
        channels: Its files, where the model takes several together; ``scan`` is then
            where the case would lie if it were one file.
        lacks: Why they are not all that the model takes; empty when they are.
    """

    scan: Path
    state: str = WAITING
    words: str = ""
    result: Path | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    made_image: bool = False
    made_by: MadeBy = field(default_factory=lambda: MadeBy())
    channels: tuple[Channel, ...] = ()
    lacks: str = ""

    @property
    def said(self) -> Path:
        """What the ``predict`` job is told."""
        return said_files(self.channels) if self.channels else self.scan

    @property
    def files(self) -> list[Path]:
        """What was added to the list."""
        return list(dict.fromkeys(c.path for c in self.channels)) or [self.scan]

    @property
    def name(self) -> str:
        """For the list; DICOM folders, often all of one name, with their parent."""
        series = is_series_path(self.scan)
        path = self.scan.parent if series else self.scan
        told = f"{path.parent.name}/{path.name}" if path.is_dir() else path.name
        return f"{told} …{split_series(self.scan)[1][-8:]}" if series else told

    @property
    def numbers(self) -> dict[str, float]:
        """Millilitres, or chances, of each class."""
        if self.told:
            return {row.name: row.chance for row in chance_rows(self.told)}
        return {f"{name} (ml)": v for name, v in self.volumes_ml.items()}

    @property
    def line(self) -> str:
        """``✓ CT_03.nii.gz: saved as CT_03_v2.nii.gz``."""
        trouble = self.lacks or self.note
        if self.state == WAITING and not self.words and trouble:
            return f"⚠ {self.name}: {trouble}"
        told = f": {self.words}" if self.words else ""
        return f"{_SIGNS[self.state]}{self.name}{told}"


class Batch:
    """Scans in the order they were added, each with what became of it.

    For a model of several channels an item is a case: its files together.
    """

    def __init__(self) -> None:
        self.items: list[BatchItem] = []
        self.done_word, self.model = "segmented", ""
        self._now: list[BatchItem] = []

    def add(self, scans: Iterable[Path]) -> int:
        """Add scans that are not yet in the list; how many were new."""
        known = set(self.files)
        fresh = [p for p in dict.fromkeys(scans) if p not in known]
        self.items += [BatchItem(path) for path in fresh]
        return len(fresh)

    @property
    def files(self) -> list[Path]:
        """All that were added, whatever cases they make."""
        return [path for item in self.items for path in item.files]

    def arrange(
        self, cases: Mapping[Path, tuple[Channel, ...]], wanted: Sequence[Wanted]
    ) -> None:
        """Make items of cases; one that is as it was keeps what became of it.

        Args:
            cases: Where a case would lie -> its channels, as ``grouped`` finds them;
                files by themselves have none.
            wanted: The channels that the model takes.
        """
        before = {(item.scan, item.channels): item for item in self.items}
        self.items = []
        for scan, channels in cases.items():
            lacks = lacking(channels, wanted) if wanted else ""
            item = before.get((scan, channels)) or BatchItem(scan, channels=channels)
            item.lacks = lacks
            self.items.append(item)

    def advise(
        self,
        model: ModelChoice | None,
        facts: Mapping[Path, Facts],
        modality: str | None = None,
    ) -> None:
        """Note which scans are unlike those the model learnt from.

        Args:
            model: The chosen one.
            facts: What the scans' headers tell.
            modality: What the user takes all scans for, whatever their files say.
        """
        for item in self.items:
            item.note = ""
            first = item.files[0]
            if model is not None and first in facts:
                told, spacing = facts[first]
                # of several channels each has its own kind
                kind = "OTHER" if item.channels else modality or told
                odd = misfit(model, "This scan", kind, spacing, asks=False)
                item.note = " ".join(odd)

    def remove(self, numbers: Iterable[int]) -> list[str]:
        """Take scans out of the list.

        Returns:
            Those that a worker still has to do, as it was told of them.
        """
        gone = set(numbers)
        left = [item for i, item in enumerate(self.items) if i in gone]
        self.items = [item for i, item in enumerate(self.items) if i not in gone]
        open_now = [i for i in left if i.state in (WAITING, RUNNING) and i in self._now]
        for item in open_now:
            item.state = REMOVED
        return [str(item.scan) for item in open_now]

    @property
    def open(self) -> list[BatchItem]:
        """Scans not yet done; failed ones are tried again."""
        return [item for item in self.items if item.state != DONE]

    def next_round(self) -> list[Path]:
        """Waiting scans for one worker; no two whose results would share a name."""
        taken: set[str] = set()
        self._now = []
        for item in self.items:
            name = _stem(item)
            if item.state == WAITING and name not in taken:
                taken.add(name)
                self._now.append(item)
        return [item.said for item in self._now]

    def restart(self) -> None:
        """Failed and unfinished scans wait again; what lacks a channel cannot be."""
        for item in self.open:
            item.state, item.words = WAITING, ""
            if item.lacks:
                item.state, item.words = FAILED, item.lacks

    def begin_anew(self) -> None:
        """All scans wait: another model answers."""
        for item in self.items:
            item.state, item.words, item.result = WAITING, "", None
            item.told, item.volumes_ml = {}, {}

    def tell(self, event: Event) -> BatchItem | None:
        """Take one piece of news of the worker; the scan it is about.

        After a Saved, the caller moves the file and calls ``saved``. None where the
        news is about no scan of the list.
        """
        current = self._about(event) or self.current
        if current is not None and current.state == REMOVED:
            return None
        if isinstance(event, Saved) and current is not None and current.state == DONE:
            return None  # a second file of the same result
        if isinstance(event, Progress) and event.phase == "scans":
            if event.index >= len(self._now):
                return None
            for before in self._now[: event.index]:
                if before.state == RUNNING:
                    before.words = "done"  # a classifier's answers come together
            item = self._now[event.index]
            if item.state == WAITING:
                item.state, item.words = RUNNING, "reading..."
            return None if item.state == REMOVED else item
        if current is None:
            return None
        if isinstance(event, Progress | Started) and event.total:
            done = event.index if isinstance(event, Progress) else 0
            left = getattr(event, "remaining_s", 0.0)
            more = f", {duration(left)} left" if left > 0 else ""
            current.words = f"{100 * done // event.total} %{more}"
        elif isinstance(event, Note) and event.text.startswith(f"{current.scan}: "):
            current.state = FAILED
            current.words = reason_text(event.text.removeprefix(f"{current.scan}: "))
        elif isinstance(event, Saved) and event.what in ("labels", "boxes", "image"):
            current.state, current.words = DONE, "saving..."
            current.made_image = event.what == "image"
        return current

    def _about(self, event: Event) -> BatchItem | None:
        """Whose result was saved, or could not be: beside a GPU the next has begun."""
        if isinstance(event, Note):
            named = (i for i in self._now if event.text.startswith(f"{i.scan}: "))
            return next(named, None)
        if not isinstance(event, Saved):
            return None
        name = Path(event.path).name.lower()
        own = [i for i in self._now if name.startswith(f"{_stem(i)}.")]
        return max(own, key=lambda i: len(_stem(i)), default=None)

    @property
    def current(self) -> BatchItem | None:
        """The scan being worked on."""
        return next((i for i in reversed(self._now) if i.state == RUNNING), None)

    def saved(self, item: BatchItem, path: Path) -> None:
        """A result lies at its final place."""
        item.state, item.result = DONE, path
        item.words = "saved" + (f" as {path.name}" if path.name != item.name else "")

    def take_volumes(self, volumes: Mapping[str, Mapping[str, float]]) -> None:
        """Millilitres of scans, by what the job was told; it may have been stopped."""
        for item in self.items:
            if told := volumes.get(str(item.scan)):
                item.volumes_ml = dict(told)

    def finish(self, result: Mapping[str, Any]) -> None:
        """The worker's result: volumes, and reasons of those that failed."""
        by_scan = {str(item.scan): item for item in self._now}
        for entry in result.get("predicted", ()):
            item = by_scan.get(str(entry["scan"]))
            if item is None:
                continue
            item.volumes_ml = dict(entry.get("volumes_ml") or {})
            said = (*filter(None, (item.note,)), *map(str, entry.get("notes") or ()))
            item.made_by = MadeBy(self.model, said)
            if "chances" in entry:
                item.told, item.state = dict(entry), DONE
                item.words = short_text(entry)
        for entry in result.get("failed", ()):
            item = by_scan.get(str(entry["scan"]))
            if item is not None:
                item.state, item.words = FAILED, reason_text(str(entry["reason"]))
        self.break_off("")

    def break_off(self, reason: str) -> None:
        """The worker is gone: what it had not finished waits, or failed with a reason.

        Args:
            reason: Of a crash; empty when it was stopped.
        """
        for item in self._now:
            if item.state == RUNNING:
                item.state = FAILED if reason else WAITING
                item.words = reason_text(reason) if reason else "stopped"
            elif item.state == WAITING and reason:
                item.state, item.words = FAILED, reason_text(reason)
        self._now = []

    @property
    def table(self) -> str:
        """The list as CSV: a line per scan, millilitres or chances of each class."""
        told = [item.numbers for item in self.items]
        columns = list(dict.fromkeys(column for row in told for column in row))
        rows = [
            [item.name, item.state, item.result.name if item.result else item.words,
             *(_digits(row.get(column)) for column in columns)]
            for item, row in zip(self.items, told, strict=True)
        ]  # fmt: skip
        return as_csv(["scan", "state", "result", *columns], rows)

    @property
    def summary(self) -> str:
        """``3 of 4 segmented, 1 could not be``."""
        done = sum(item.state == DONE for item in self.items)
        bad = sum(item.state == FAILED for item in self.items)
        text = f"{done} of {len(self.items)} {self.done_word}"
        return text + (f", {bad} could not be" if bad else "")


def _stem(item: BatchItem) -> str:
    """What the names of a scan's results begin with, in small letters."""
    return scan_stem(item.scan).lower()


def _digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def reason_text(text: str) -> str:
    """A reason for people at a window: no flags of the command line."""
    text = _FLAG_HINT.sub(".", text.strip())
    return text[:1].upper() + text[1:]


def find_scans(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Scans named directly, lying in folders or listed by tables, and what is none.

    Label maps lying in a folder (by their names) are left out; of a DICOM folder each
    usable series is a scan. Reads names and first bytes of files, and headers of DICOM.

    Returns:
        The scans, and a sentence for all that is none.
    """
    found: list[Path] = []
    odd: list[str] = []
    for path in paths:
        if is_series_path(path) or (path.is_file() and is_scan_path(path)):
            found.append(path)
        elif path.is_dir():
            inside = _scans_inside(path, odd)
            found += inside
            if not inside:
                odd.append(f"{path.name} holds no scan.")
        elif is_manifest(path):
            found += _scans_listed(path, odd)
        elif path.exists():
            odd.append(f"{path.name} is no scan that can be read here.")
        else:
            odd.append(f"There is no {path}.")
    return list(dict.fromkeys(found)), odd


def _scans_listed(table: Path, odd: list[str]) -> list[Path]:
    """The scans of a table; why lines of it are none joins what is odd."""
    try:
        listed_in = read_manifest(table)
    except (UnusableInput, OSError) as error:
        odd.append(str(error))
        return []
    if gone := listed_in.rejected:
        first = f"{Path(gone[0].path).name}: {gone[0].reason}"
        odd.append(f"{counted(len(gone), 'line')} of {table.name} left out, {first}")
    return [
        path
        for one in listed_in.candidates
        for path in ([c.path for c in one.channels] or [one.image])
    ]


def read_facts(scans: Iterable[Path]) -> dict[Path, Facts]:
    """Modality and voxel size of scans, from their headers; bad ones are left out."""
    found: dict[Path, Facts] = {}
    for scan in scans:
        with contextlib.suppress(Exception):  # predicting it tells what is wrong
            header = read_header(scan)
            found[scan] = (header.modality, header.affine.spacing_mm)
    return found


_DEEPEST = 6  # folders below one that was dropped: site, patient, study, series ...


def _scans_inside(folder: Path, odd: list[str], depth: int = _DEEPEST) -> list[Path]:
    if is_scan_path(folder):
        return _series_inside(folder, odd)
    found: list[Path] = []
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return []  # not ours to read
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if depth > 0 and not is_label_folder(path.name):
                found += _scans_inside(path, odd, depth - 1)
        elif is_scan_path(path) and not _is_half(path) and not _is_label(path):
            found.append(path)
    return found


def _series_inside(folder: Path, odd: list[str]) -> list[Path]:
    """Each usable series of a DICOM folder; the folder where it holds one alone."""
    series = list_series(folder)
    sound = [one for one in series if not one.trouble]
    for one in series:
        if one.trouble and sound:
            odd.append(f"{folder.name}: a series was left out: {one.trouble}")
    if len(series) == 1 or not sound:
        return [folder]  # what is wrong with it is told when it is read
    return [one.path for one in sound]


def _is_label(path: Path) -> bool:
    return label_rank(scan_stem(path)) is not None


def _is_half(path: Path) -> bool:
    """Whether a file is the voxels of a pair whose header stands beside it."""
    return path.suffix.lower() == ".img" and path.with_suffix(".hdr").exists()


def keep_result(part: Path, out: Path, names: Mapping[int, str]) -> Path:
    """Move a finished label map to its own name, with its classes' names beside it.

    Returns:
        Where it lies now: its name, or with ``_v2`` where that was taken.
    """
    target = free_path(out / part.name)
    put_in_place(part, target)
    write_names(target, names)
    return target


def keep_boxes(part: Path, out: Path) -> Path:
    """Move the boxes of a scan, and their regions of 3D Slicer beside them.

    Returns:
        Where the boxes lie now: under the scan's name, or ``NAME_v2`` where that was
        taken.
    """
    stem = part.name.removesuffix(JSON_SUFFIX)
    endings = (SUFFIX, JSON_SUFFIX)
    name = free_name(stem, lambda n: any((out / f"{n}{e}").exists() for e in endings))
    for ending in endings:
        made = part.with_name(f"{stem}{ending}")
        if made.is_file():
            put_in_place(made, out / f"{name}{ending}")
    return out / f"{name}{JSON_SUFFIX}"


def keep_image(part: Path, out: Path) -> Path:
    """Move a finished image to its own name, or ``NAME_v2`` where that was taken."""
    target = free_path(out / part.name)
    put_in_place(part, target)
    return target


def keep_table(part: Path, out: Path) -> Path:
    """Move a finished table; where it lies now, ``NAME_v2.csv`` where it was taken."""
    ending = part.suffix
    stem = free_name(part.stem, lambda name: (out / f"{name}{ending}").exists())
    target = out / f"{stem}{ending}"
    put_in_place(part, target)
    return target


@dataclass(frozen=True)
class MadeBy:
    """How a result came about; kept with its layer, for a report.

    Attributes:
        model: The run or model folder.
        warnings: Sentences that belong to this result.
    """

    model: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, layer: Any) -> MadeBy:
        """What a layer keeps of it; nothing where nobody knows."""
        told = notes_of(layer).get("made_by") or {}
        warnings = tuple(str(w) for w in told.get("warnings") or ())
        return cls(str(told.get("model") or ""), warnings)

    def keep(self, attributes: Mapping[str, Any]) -> None:
        """Put it into the metadata of a layer to be."""
        told = {"model": self.model, "warnings": list(self.warnings)}
        attributes["metadata"][KEY]["made_by"] = told


def volumes_in(table: Path) -> dict[str, dict[str, float]]:
    """Scan -> class -> millilitres of a ``volumes.csv``; empty for other tables."""
    if not re.fullmatch(r"volumes(_v\d+)?\.csv", table.name):
        return {}
    found: dict[str, dict[str, float]] = {}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            scan = row.pop("scan", "")
            ends = ((k.removesuffix("_ml"), v) for k, v in row.items() if v)
            found[scan] = {name: float(value) for name, value in ends}
    return found


def result_layer(
    path: Path,
    names: Mapping[int, str],
    name: str,
    layer: Any = None,
    made_by: MadeBy | None = None,
) -> LayerData:
    """A label map file as a Labels layer, on the grid of its scan's layer.

    Args:
        path: Label map.
        names: Label value -> name.
        name: Of the new layer.
        layer: The scan's layer, where it is open.
        made_by: The model, and what was said of its result.
    """
    labels = read_labels(path, names or None)
    data, attributes, kind = label_layer(labels)
    known = dict(names or labels.names)
    if layer is not None and tuple(data.shape) == shape_of(layer):
        attributes = derived_attributes(layer, name)
        data = data.reshape(layer.data.shape)
    attributes["name"] = name
    attributes["metadata"]["label_names"] = known
    attributes["metadata"][KEY]["label_names"] = known
    if known:
        attributes["features"] = label_features(known)
    if made_by is not None:
        made_by.keep(attributes)
    return data, attributes, kind


def image_layer(
    path: Path, name: str, layer: Any = None, *, alike: bool = False
) -> LayerData:
    """An image that was made of a scan as a layer, on the grid of the scan's layer.

    Args:
        path: The image.
        name: Of the new layer.
        layer: The scan's layer, where it is open.
        alike: Whether its values mean the same: it is shown with the same contrast.
    """
    data, attributes, kind = volume_layer(read_scan(path))
    if layer is not None and tuple(data.shape) == shape_of(layer):
        on = derived_attributes(layer, name)
        data = data.reshape(layer.data.shape)
        attributes = {**attributes, **on}
    if alike and layer is not None:
        attributes["contrast_limits"] = tuple(map(float, layer.contrast_limits))
    return data, {**attributes, "name": name}, kind


def predict_config(
    model: Path,
    scans: Sequence[Path | str],
    out: Path,
    *,
    device: str = "auto",
    flips: str = "",
    overlap: float | None = None,
    modality: str | None = None,
) -> dict[str, Any]:
    """Configuration of the ``predict`` job."""
    config: dict[str, Any] = {
        "model": str(model), "scans": [str(s) for s in scans], "out": str(out),
        "flips": flips, "overlap": overlap, "device": device,
    }  # fmt: skip
    return config | ({"modality": modality} if modality else {})
