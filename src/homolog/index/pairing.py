"""Which files of a folder tree are label maps, and of which scan.

A file is a label map when

1. it lies in a folder called ``labels``, ``masks``, ``segmentations`` ... below the
   source, or
2. its name begins or ends with a word for labels (``seg``, ``mask``, ``gtv``,
   ``manual`` ...) and its values are patches of few whole numbers, or it has the name
   of a scan apart from that word, or
3. its name is that of a scan beside it and something more (``mt1``, ``mt1_cord``), it
   has that scan's grid, and its values look like labels.

It belongs to the scan of the same name (words for image and label apart), or to the one
whose name is the longest beginning of its own, or, when it has no name of its own
(``seg.nii.gz``), to all scans of its folder; the last two only on the same grid. Where
several label maps fit equally, none is attached and a note lists them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from homolog.scans.files import scan_stem
from homolog.scans.inspect import Inspection, same_grid
from homolog.scans.names import bare_name, is_label_folder, label_rank, shorter_names
from homolog.words import counted, listed

Peek = Callable[[Path], Inspection]

_SAME_NAME, _LONGER_NAME, _NO_NAME = range(3)
_ORDINARY_RANK = 3


@dataclass
class Pairs:
    """Scans of a tree with their label maps.

    Attributes:
        images: All scans, in order.
        labels: Scan -> label map.
        notes: What was not attached, and why.
    """

    images: list[Path]
    labels: dict[Path, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def pair_labels(files: Sequence[Path], root: Path, peek: Peek) -> Pairs:
    """Tell scans from label maps among the files of a tree and bring them together.

    Args:
        files: Scan files below ``root``, sorted.
        root: The source; its own name and those above it do not count.
        peek: Inspects a file; answers are expected to be remembered.
    """
    labels = [f for f in files if _in_label_folder(f, root)]
    images = [f for f in files if f not in set(labels)]
    if not images:
        return Pairs(list(files))
    shelf = _Shelf(images)
    named = [f for f in images if _is_named_label(f, shelf, peek)]
    shelf = _Shelf([f for f in images if f not in set(named)])
    grown = [f for f in shelf.files if _is_grown_label(f, shelf, peek)]
    shelf = _Shelf([f for f in shelf.files if f not in set(grown)])
    if not shelf.files:
        return Pairs(list(files))
    pairs = Pairs(shelf.files)
    offers: dict[Path, list[tuple[int, int, Path]]] = defaultdict(list)
    orphans = []
    for label in [*labels, *named, *grown]:
        kind, partners = _partners(label, root, shelf, peek)
        if not partners:
            orphans.append(label)
        rank = label_rank(scan_stem(label))
        for image in partners:
            offers[image].append(
                (kind, _ORDINARY_RANK if rank is None else rank, label)
            )
    _choose(offers, pairs)
    if orphans:
        many = counted(len(orphans), "label map")
        pairs.notes.append(f"{many} without a scan: {_some(orphans, root)}.")
    return pairs


class _Shelf:
    """Scans by folder, by name and by bare name."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        self.by_stem: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        self.by_bare: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        self.by_folder: dict[Path, list[Path]] = defaultdict(list)
        self.folders_in: dict[Path, set[Path]] = defaultdict(set)
        for file in self.files:
            stem = scan_stem(file)
            self.by_stem[file.parent, stem].append(file)
            self.by_bare[file.parent, bare_name(stem)].append(file)
            self.by_folder[file.parent].append(file)
            for folder in file.parents:
                self.folders_in[folder.parent].add(folder)

    def same_name(self, label: Path, folder: Path) -> list[Path]:
        return self._named(scan_stem(label), label, folder)

    def beginning(self, label: Path, folder: Path) -> list[Path]:
        stem = scan_stem(label)
        for shorter in shorter_names(stem):
            found = self._named(shorter, label, folder)
            more = stem[len(shorter) :].strip("_-. ")
            if found and not more.isdigit():
                return found
        return []

    def _named(self, stem: str, label: Path, folder: Path) -> list[Path]:
        """Scans of a name, else those whose bare name is the same; not the label."""
        bare = bare_name(stem)
        exact = [f for f in self.by_stem.get((folder, stem), ()) if f != label]
        if exact or not bare:
            return exact
        return [f for f in self.by_bare.get((folder, bare), ()) if f != label]

    def family(self, label: Path, folder: Path) -> list[Path]:
        bare = bare_name(scan_stem(label))
        return [
            f
            for f in self.by_folder.get(folder, ())
            if f != label and bare_name(scan_stem(f)).startswith(bare + "_")
        ]


def _in_label_folder(file: Path, root: Path) -> bool:
    return any(is_label_folder(p) for p in file.relative_to(root).parts[:-1])


def _is_named_label(file: Path, shelf: _Shelf, peek: Peek) -> bool:
    if label_rank(scan_stem(file)) is None:
        return False
    twins = shelf.same_name(file, file.parent)
    if any(label_rank(scan_stem(twin)) is None for twin in twins):
        return True
    stats = peek(file).stats
    return stats is not None and stats.patchy


def _is_grown_label(file: Path, shelf: _Shelf, peek: Peek) -> bool:
    for image in shelf.beginning(file, file.parent):
        stats = peek(file).stats
        if stats is not None and stats.looks_like_labels and _fits(file, image, peek):
            other = peek(image).stats
            return other is None or not other.looks_like_labels
    return False


def _fits(label: Path, image: Path, peek: Peek) -> bool:
    a, b = peek(label).header, peek(image).header
    return a is not None and b is not None and same_grid(a, b)


def _partners(
    label: Path, root: Path, shelf: _Shelf, peek: Peek
) -> tuple[int, list[Path]]:
    """How a label map's scans were matched, and these."""
    folders = _folders_of_images(label, root, shelf)
    for folder in folders:
        same = shelf.same_name(label, folder)
        if same:
            return _SAME_NAME, same
    for folder in folders:
        longer = [f for f in shelf.beginning(label, folder) if _fits(label, f, peek)]
        if longer:
            return _LONGER_NAME, longer
    for folder in folders:
        bare = bare_name(scan_stem(label))
        family = (
            shelf.family(label, folder) if bare else shelf.by_folder.get(folder, [])
        )
        fitting = [f for f in family if f != label and _fits(label, f, peek)]
        if fitting:
            return _NO_NAME, fitting
    return _NO_NAME, []


def _folders_of_images(label: Path, root: Path, shelf: _Shelf) -> list[Path]:
    """Where to look: beside the label, and beside (or above) its label folder."""
    folders = [label.parent]
    parts = label.relative_to(root).parts[:-1]
    for i, part in enumerate(parts):
        if not is_label_folder(part):
            continue
        base, below = root.joinpath(*parts[:i]), Path(*parts[i + 1 :])
        folders.append(base / below)
        folders += sorted(f / below for f in shelf.folders_in.get(base, ()))
    return folders


def _choose(offers: Mapping[Path, list[tuple[int, int, Path]]], pairs: Pairs) -> None:
    unclear: list[tuple[Path, list[Path]]] = []
    for image in pairs.images:
        offered = offers.get(image, [])
        if not offered:
            continue
        best = min(kind for kind, _, _ in offered)
        group = [(rank, label) for kind, rank, label in offered if kind == best]
        if best != _LONGER_NAME:  # "ct_liver", "ct_tumour": different things, no rank
            top = min(rank for rank, _ in group)
            group = [(rank, label) for rank, label in group if rank == top]
        if len(group) == 1:
            pairs.labels[image] = group[0][1]
        else:
            unclear.append((image, [label for _, label in group]))
    chosen = set(pairs.labels.values())
    doubtful = {label for _, group in unclear for label in group}
    offered_all = {label for group in offers.values() for _, _, label in group}
    left = sorted(offered_all - chosen - doubtful)
    if left:
        pairs.notes.append(
            f"{counted(len(left), 'label map')} left aside for a better one "
            f"(first: {left[0].parent.name}/{left[0].name})."
        )
    if unclear:
        image, candidates = unclear[0]
        names = listed((c.name for c in candidates), most=6)
        pairs.notes.append(
            f"{counted(len(unclear), 'scan')} with several possible label "
            f"maps, none attached (first: {image.name} with {names}); name the wanted "
            "ones in a manifest or with --labels."
        )


def _some(files: Sequence[Path], root: Path) -> str:
    return listed((f.relative_to(root) for f in files), most=4)
