"""What the Data panel decides, without Qt: rows of scans, badges, what is built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index, Triple
from homolog.gui.files.scan_layer import header_bytes
from homolog.gui.files.writer import save_layer
from homolog.gui.shared.layers import (
    is_kind,
    layer_scan,
    lie_together,
    notes_of,
    scan_file,
    source_grid,
    true_affine,
)
from homolog.index.datasets import Candidate, Rejected
from homolog.index.index import find_cases
from homolog.index.manifests import is_manifest
from homolog.memory import free_bytes
from homolog.runs.run import find_runs
from homolog.scans.channels import SEVERAL
from homolog.scans.formats import ScanHeader
from homolog.scans.inspect import Inspection, inspect_scan
from homolog.scans.paths import is_series_path, scan_stem
from homolog.scans.problems import problem_of
from homolog.words import counted, human_bytes, listed, times

GOOD, UNREAD, DOUBT, BAD, UNKNOWN = "ok", "unread", "doubt", "bad", "unknown"
# A sign and a word, so that colour is never alone.
SIGNS = {GOOD: "✔", UNREAD: "○", DOUBT: "⚠", BAD: "✖", UNKNOWN: "…"}
WORDS = {
    GOOD: "sound", UNREAD: "not yet read", DOUBT: "usable", BAD: "cannot be used",
    UNKNOWN: "looking",
}  # fmt: skip
# Thicker slices than this many pixels are worth a word.
_THICK = 5.0


@dataclass(frozen=True)
class Badge:
    """How sound a scan is.

    Attributes:
        level: GOOD, UNREAD (its header is in order), DOUBT, BAD or UNKNOWN.
        reason: One sentence.
        deep: Whether all values were read.
    """

    level: str = UNKNOWN
    reason: str = ""
    deep: bool = False

    @property
    def text(self) -> str:
        """Sign, word and reason."""
        reason = f": {self.reason}" if self.reason else ""
        return f"{SIGNS[self.level]} {WORDS[self.level]}{reason}"


@dataclass(frozen=True)
class Row:
    """One scan in the list, or a folder of scans.

    Attributes:
        key: Unique in the list: the path, or the layer's id.
        name: For people.
        path: File, folder or series; None for a layer that is no file.
        facts: Size, spacing, orientation, modality and memory in one line.
        badge: How sound it is.
        scans: The scans of a folder.
        is_layer: Whether it is open in the viewer.
        is_folder: Whether it stands for ``scans``.
        labelled: How many of its scans have a label map.
    """

    key: str
    name: str
    path: Path | None
    facts: str = ""
    badge: Badge = field(default_factory=Badge)
    scans: tuple[Row, ...] = ()
    is_layer: bool = False
    is_folder: bool = False
    labelled: int = 0

    @property
    def text(self) -> str:
        """Three lines: name, facts, badge."""
        return "\n".join(
            part for part in (self.name, self.facts, self.badge.text) if part
        )


def rows_of(path: Path) -> list[Row]:
    """The row of a path, with those of the scans in a folder; headers only.

    Slow for large folders: called on a thread.
    """
    if not path.is_dir() and not is_manifest(path):
        return [file_row(path)]
    try:
        found = find_cases(path, (), lambda p: inspect_scan(p, deep=False))
    except Exception as error:  # noqa: BLE001 - the other rows are looked at
        text = problem_of(error).text.removeprefix(f"{path}: ")
        return [Row(str(path), path.name, path, badge=Badge(BAD, text), is_folder=True)]
    scans = [_candidate_row(c) for c in found.candidates]
    scans += [_rejected_row(r) for r in found.rejected]
    if len(scans) == 1 and scans[0].path == path:
        return scans
    labelled = sum(c.label is not None for c in found.candidates)
    told = known_words(
        labelled,
        sum(bool(c.target) for c in found.candidates),
        sum(bool(c.boxes) for c in found.candidates),
        max((len(c.channels) for c in found.candidates), default=1),
    )
    facts = f"{counted(len(scans), 'scan')}, {told}"
    badge, shown = folder_badge(scans), tuple(scans)
    row = Row(str(path), path.name, path, facts, badge, shown, is_folder=True)
    return [replace(row, labelled=labelled)]


def known_words(labelled: int, classed: int, boxed: int, channels: int = 1) -> str:
    """What is known of scans: ``3 with labels``, ``12 with a class``, or nothing.

    Images on one grid can be learnt from each other: they are told, too.
    """
    parts = [
        f"{labelled} with labels" if labelled else "",
        f"{classed} with a class" if classed else "",
        f"{boxed} with boxes" if boxed else "",
        f"{channels} images each" if channels > 1 else "",
    ]
    return ", ".join(p for p in parts if p) or "none with labels"


def file_row(path: Path, *, deep: bool = False, several: bool = False) -> Row:
    """The row of one scan file, DICOM folder or series.

    Args:
        path: The scan.
        deep: Read all its values too.
        several: It holds the channels of a case, as its data set says.
    """
    inspection = inspect_scan(path, deep=deep and not several)
    if several:
        sound = tuple(p for p in inspection.problems if p.code not in SEVERAL)
        inspection = replace(inspection, problems=sound)
    name = path.parent.name if is_series_path(path) else path.name
    facts = ""
    header = inspection.header
    if header is not None and inspection.placed and 0 not in header.shape:
        facts = header_facts(header, inspection.modality)
    return Row(str(path), name, path, facts, badge_of(inspection, deep=deep))


def layer_row(layer: Any) -> Row | None:
    """The row of an open layer; None for layers that are no scans. Quick."""
    scan = layer_scan(layer)
    if scan is None:
        return None
    grid = source_grid(layer)
    affine = true_affine(layer) if grid is None else grid.affine
    known = notes_of(layer).get("sized", True)
    facts = facts_line(
        scan.shape,
        scan.spacing_mm if known else None,
        affine,
        scan.modality,
        int(layer.data.nbytes),
    )
    doubts = [str(r) for r in notes_of(layer).get("remarks", ())]
    if notes_of(layer).get("note"):
        doubts.append(f"{notes_of(layer)['note']}.")
    if thick := _thick(scan.spacing_mm):
        doubts.append(thick)
    said = "opened whole."
    if scan.path is None:
        said = "not a file; a copy is written when a store is built."
    badge = Badge(DOUBT, doubts[0]) if doubts else Badge(GOOD, said)
    return Row(layer_key(layer), scan.name, scan.path, facts, badge, is_layer=True)


def layer_key(layer: Any) -> str:
    """Names a layer for as long as it lives."""
    return f"layer-{layer.unique_id}"


def header_facts(header: ScanHeader, modality: str) -> str:
    """Size, spacing, orientation, modality and memory of a scan."""
    size = header.affine.spacing_mm if header.sized else None
    return facts_line(header.shape, size, header.affine, modality, header_bytes(header))


def facts_line(
    shape: Index, spacing_mm: Triple | None, affine: Affine, modality: str, size: int
) -> str:
    """``214 x 160 x 88, 2 x 2 x 2 mm, LPS, CT, 6.0 MB``; lengths in x, y, z."""
    voxels = times(shape[::-1])
    kind = "modality unknown" if modality == "OTHER" else modality
    if spacing_mm is None:
        return f"{voxels} pixels of unknown size, {kind}, {human_bytes(size)}"
    spacing = times(spacing_mm[::-1], 3)
    code = affine.orientation[::-1]
    return f"{voxels}, {spacing} mm, {code}, {kind}, {human_bytes(size)}"


def badge_of(inspection: Inspection, *, deep: bool) -> Badge:
    """How sound a scan is, in one sentence."""
    if inspection.objection is not None:
        return Badge(BAD, inspection.objection.text, deep)
    header = inspection.header
    remarks = [p.text for p in inspection.problems]
    if header is not None:
        size, free = header_bytes(header), free_bytes()
        if free and size > free / 2:
            text = f"needs {human_bytes(size)} of {human_bytes(free)} free memory."
            remarks.insert(0, text)
        is_stack = header.shape[0] > 1
        if is_stack and (thick := _thick(header.affine.spacing_mm)):
            remarks.append(thick)
    if remarks:
        return Badge(DOUBT, remarks[0], deep)
    if not deep:
        return Badge(UNREAD, "its header is in order.")
    return Badge(GOOD, "all values read.", deep)


def folder_badge(scans: Sequence[Row]) -> Badge:
    """The sum of a folder's scans."""
    bad = [s for s in scans if s.badge.level == BAD]
    deep = all(s.badge.deep for s in scans)
    if not scans:
        return Badge(BAD, "no scans in this folder.")
    if len(bad) == len(scans):
        return Badge(BAD, f"none of {len(scans)} scans: {bad[0].badge.reason}")
    if bad:
        text = f"{len(bad)} of {len(scans)} left out, first {bad[0].name}: "
        return Badge(DOUBT, text + bad[0].badge.reason, deep)
    if not deep:
        return Badge(UNREAD, "the headers are in order.")
    return Badge(GOOD, "all values read.", deep)


def sources_to_build(rows: Iterable[Row]) -> list[Path]:
    """Paths of the rows a store can be built from; each once, bad ones left out."""
    paths = [r.path for r in rows if r.path is not None and r.badge.level != BAD]
    return list(dict.fromkeys(paths))


def name_for(ticked: list[Row]) -> str:
    """What to call the store of these rows: after the one folder or list, if any."""
    if len(ticked) != 1 or not ticked[0].is_folder:
        return ""
    path = ticked[0].path
    listed_in = path is not None and is_manifest(path)
    return Path(ticked[0].name).stem if listed_in else ticked[0].name


def checked_row(row: Row) -> Row:
    """A row after reading all values of its scan; slow."""
    assert row.path is not None
    new = file_row(row.path, deep=True)
    return replace(new, key=row.key, name=row.name, is_layer=row.is_layer)


def with_checked(row: Row, new: Row) -> Row:
    """A row with one of its scans (or itself) looked at anew."""
    if row.key == new.key:
        return new
    if not any(s.key == new.key for s in row.scans):
        return row
    scans = tuple(new if s.key == new.key else s for s in row.scans)
    return replace(row, scans=scans, badge=folder_badge(scans))


def _candidate_row(candidate: Candidate) -> Row:
    channels = candidate.channels
    row = file_row(candidate.image, several=any(c.frame is not None for c in channels))
    name = candidate.name
    if len(channels) > 1:
        name += f" ({listed([c.name or i for i, c in enumerate(channels)])})"
    return replace(row, name=name + (" + labels" if candidate.label else ""))


def _rejected_row(rejected: Rejected) -> Row:
    path = Path(rejected.path)
    return Row(str(path), path.name, path, badge=Badge(BAD, rejected.reason))


def _thick(spacing_mm: Triple) -> str:
    low, high = min(spacing_mm), max(spacing_mm)
    if high <= _THICK * low:
        return ""
    return f"thick slices: {high:.3g} mm apart, pixels of {low:.3g} mm."


# Label layers that lie on open scans, as label files for a store.


def labels_on(scan: Any, layers: Iterable[Any]) -> list[Any]:
    """Visible labels layers on the grid of a scan layer.

    Args:
        scan: A layer that ``layer_scan`` knows.
        layers: All layers of the viewer.
    """
    return [
        layer
        for layer in layers
        if is_kind(layer, "Labels") and layer.visible and lie_together(layer, scan)
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


def runs_of_store(store: Path, runs: Path) -> list[tuple[str, bool]]:
    """(name, whether it is being worked on) of each run that learns from a store.

    Args:
        store: Its folder.
        runs: Folder of runs.
    """
    own, found = store.resolve(), []
    for run in find_runs(runs):
        try:
            told = run.spec["config"]
        except (UnusableInput, KeyError):
            continue  # the tab Runs shows what is damaged
        if any(Path(text).resolve() == own for text in _paths_in(told)):
            found.append((run.folder.name, run.is_alive()))
    return found


def _paths_in(value: Any) -> Iterator[str]:
    """Every text in a configuration that may be a path."""
    if isinstance(value, str):
        if value and "\n" not in value and len(value) < _LONGEST_PATH:
            yield value
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from _paths_in(inside)
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from _paths_in(inside)


_LONGEST_PATH = 4096


def use_words(users: Sequence[str]) -> str:
    """What becomes of the runs that learnt from a store which is deleted.

    Args:
        users: Their names.
    """
    kept = "The scans it was built from stay."
    if not users:
        return f"{kept} No run of the tab Runs used it."
    told = listed(users, most=5)
    return f"{kept} Used by {told}: these cannot be resumed or compared without it."
