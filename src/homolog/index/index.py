"""From folders, datasets, manifests and single files to cases with their labels."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from homolog.errors import UnusableInput
from homolog.events import Job, Note, Progress, Request
from homolog.index.bids import is_derived, same_run, source_folder
from homolog.index.datasets import (
    JOIN,
    Candidate,
    CaseSource,
    Found,
    Rejected,
    ScanIndex,
    channels_notes,
    is_dataset,
    read_dataset,
)
from homolog.index.manifests import MANIFEST_SUFFIXES, read_manifest
from homolog.index.subjects import Persons, guess_subjects
from homolog.index.tree import walk
from homolog.scans.dicom.format import (
    dicom_scans,
    holds_several,
    image_of_dicom_labels,
    straight_path,
)
from homolog.scans.dicom.labels import is_labels
from homolog.scans.inspect import (
    Inspection,
    inspect_channels,
    inspect_scan,
    label_problems,
    nan_as_remark,
    same_place,
)
from homolog.scans.names import (
    bare_name,
    is_label_folder,
    label_rank,
    names_of_label,
    shorter_names,
)
from homolog.scans.paths import (
    is_known_suffix,
    is_series_path,
    real_path,
    refuse_special,
    scan_stem,
)
from homolog.scans.problems import Problem, problem_of
from homolog.scans.volume import HU_REACH_DOWN_TO, guess_modality
from homolog.words import counted, listed
from homolog.writing import is_reserved

# Which files of a folder tree are label maps, and of which scan.
#
# A file is a label map when
#
# 1. it lies in a folder called ``labels``, ``masks``, ``segmentations`` ... below the
# source, or
# 2. its name begins or ends with a word for labels (``seg``, ``mask``, ``gtv``,
# ``manual`` ...) and its values are patches of few whole numbers, or it has the name
# of a scan apart from that word, or
# 3. its name is that of a scan beside it and something more (``mt1``, ``mt1_cord``), it
# has that scan's grid, and its values look like labels.
#
# It belongs to the scan of the same name (words for image and label apart), or to the
# one whose name is the longest beginning of its own, or, when it has no name of its own
# (``seg.nii.gz``), to all scans of its folder; the last two only on the same grid.
# Where several label maps fit equally, none is attached and a note lists them.
#
# Of a BIDS data set what lies below ``derivatives`` was made of its scans: label maps
# there belong to the scans of the same subject, session and run, and other images are
# left out.


_MOST_NOTES = 3  # of one kind before the rest is counted
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
    made = [f for f in files if is_derived(f, root)]
    own = set(made) if len(made) < len(files) else set()
    processed = [f for f in own if not _is_label_name(scan_stem(f))]
    labels = [f for f in files if f in own or _in_label_folder(f, root)]
    labels = [f for f in labels if f not in set(processed)]
    images = [f for f in files if f not in {*labels, *processed}]
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
    if processed:
        pairs.notes.append(
            f"{counted(len(processed), 'processed scan')} below derivatives left out "
            f"({_some(sorted(processed), root)}); name that folder as a source if they "
            "are wanted."
        )
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


def _is_label_name(stem: str) -> bool:
    """Whether a derived file is a label map by its name; chances of classes are not."""
    return label_rank(stem) is not None and not stem.lower().endswith("probseg")


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
    return a is not None and b is not None and same_place(a, b)


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
        of_run = [
            f
            for f in shelf.by_folder.get(folder, ())
            if same_run(scan_stem(label), scan_stem(f)) and _fits(label, f, peek)
        ]
        if of_run:
            return _LONGER_NAME, of_run
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
    if (beside := source_folder(label, root)) is not None:
        folders.append(beside)
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


Peek = Callable[[Path], Inspection]  # inspects a file once, however often called


def find_cases(
    source: Path,
    labels: Collection[Path],
    peek: Peek,
    channels: str = JOIN,
    straighten: bool = False,
) -> Found:
    """Candidates of one source.

    Args:
        source: Folder, dataset, manifest, scan file, or series of a DICOM folder.
        labels: Label files given separately; never taken for scans.
        peek: Inspects a file once.
        channels: What becomes of the channels of a case: ``join`` or ``separate``.
        straighten: DICOM slices that lean or are uneven are resampled.

    Raises:
        UnusableInput: There is no such file or folder, or its manifest is unreadable.
    """
    if not source.exists() and not is_series_path(source):
        raise UnusableInput(f"{source}: no such file or folder.")
    refuse_special(source)
    if source.is_dir():
        return _folder(source, labels, peek, channels, straighten)
    if source.suffix.lower() in MANIFEST_SUFFIXES:
        if source.name == "dataset.json" and is_dataset(source.parent):
            return read_dataset(source.parent, channels)
        return read_manifest(source, channels)
    if holds_several(source):
        found = Found()
        images = _dicom(source, found, [], straighten)
        root = source.parent
        found.candidates = [Candidate(i, _name(i, root), root) for i in images]
        return found
    source = straight_path(source) if straighten else source
    name = source.name if is_series_path(source) else scan_stem(source)
    return Found([Candidate(source, name, source.parent)])


def _folder(
    root: Path, labels: Collection[Path], peek: Peek, channels: str, straighten: bool
) -> Found:
    found = Found()
    tree = walk(root)
    for folder in tree.datasets:
        try:
            one = read_dataset(folder, channels)
        except Exception as error:
            if folder == root:
                raise
            found.rejected.append(rejected_for(folder / "dataset.json", error))
            continue
        if folder != root:  # names stay relative to the source
            below = folder.relative_to(root)
            one.candidates = [
                replace(c, name=str(below / c.name), root=root) for c in one.candidates
            ]
        found.candidates += one.candidates
        found.rejected += one.rejected
        found.notes += one.notes
    images: list[Path] = []
    drawn: list[Path] = []
    for folder in tree.dicom_folders:
        images += _dicom(folder, found, drawn, straighten)
    attached = _drawn_on(drawn, images, found, straighten)
    given = {real_path(p) for p in labels}
    files = [f for f in tree.files if real_path(f) not in given]
    pairs = pair_labels(files, root, peek)
    found.notes += pairs.notes
    images += pairs.images
    subjects = guess_subjects(images, root)
    for image in sorted(images):
        found.candidates.append(
            Candidate(
                image=image,
                name=_name(image, root),
                root=root,
                label=pairs.labels.get(image) or attached.get(image),
                folder_subject=subjects.get(image, ""),
            )
        )
    if not found.candidates and not found.rejected:
        raise UnusableInput(f"{root}: no scans in this folder.")
    return found


def rejected_for(path: Path, error: Exception) -> Rejected:
    """What went wrong with one file or folder, for ``rejected.json``."""
    problem = problem_of(error)
    return Rejected(str(path), problem.text, problem.code)


def _dicom(
    folder: Path, found: Found, drawn: list[Path], straighten: bool
) -> list[Path]:
    """The scans of a folder; labels that are DICOM objects go to ``drawn``."""
    try:
        paths, others = dicom_scans(folder, straighten=straighten)
    except Exception as error:  # noqa: BLE001 - the other folders are read
        found.rejected.append(rejected_for(folder, error))
        return []
    for other in others:
        kind = other.other_object
        if "DICOMDIR" in kind:
            continue
        if is_labels(other) and other.damage is None:
            drawn.append(other.path)
            continue
        text = f"holds {kind}, not a scan."
        found.rejected.append(Rejected(str(other.path), text, "not_an_image"))
    return paths


def _drawn_on(
    drawn: Sequence[Path], images: Sequence[Path], found: Found, straighten: bool
) -> dict[Path, Path]:
    """Image -> the DICOM segmentation or contours that name it as theirs.

    Of several for one image none is attached; those without an image are told.
    """
    offers: dict[Path, list[Path]] = defaultdict(list)
    for label in drawn:
        image = image_of_dicom_labels(label, straighten=straighten)
        if image is not None and image in set(images):
            offers[image].append(label)
            continue
        text = "labels kept as DICOM, whose images are not among the scans here."
        found.rejected.append(Rejected(str(label), text, "not_an_image"))
    for image, labels in offers.items():
        if len(labels) > 1:
            found.notes.append(
                f"{len(labels)} DICOM objects hold labels of {image.name}, none "
                f"attached (first: {labels[0].name}); name the wanted one in a "
                "manifest."
            )
    return {image: labels[0] for image, labels in offers.items() if len(labels) == 1}


def _name(image: Path, root: Path) -> str:
    """The relative path without a suffix; the source's own name for the source."""
    if image == root:
        return root.name
    return str(image.relative_to(root).with_name(scan_stem(image)))


def index_sources(
    sources: Sequence[Path | str],
    labels: Sequence[Path | str] = (),
    *,
    modality: str | None = None,
    subjects: str = "",
    known: Mapping[str, str] | None = None,
    channels: str = JOIN,
    fill_nan: bool = False,
    straighten: bool = False,
) -> Job[ScanIndex]:
    """Find the scans of all sources, inspect each, and bring labels to them.

    Args:
        sources: Folders of scans, nnU-Net or Decathlon datasets, DICOM trees, CSV or
            JSON manifests, single files; several at once.
        labels: Label files, or folders of them, for scans of the same name.
        modality: Overrides that of headers, names and values.
        subjects: Regular expression on names (folders below the source and all); its
            first group is the person. A manifest's subject wins.
        known: Ids of a store's cases, by the path of their scan. A scan that a manifest
            calls by its whole path keeps its id, and takes none of another.
        channels: ``join``: the images of a case on one grid (nnU-Net's numbered files,
            the Decathlon's files of four axes, several images in a row of a manifest)
            are one case of several channels; ``separate``: each is a scan of its own.
        fill_nan: Scans with NaN or infinite values are taken, and told.
        straighten: DICOM slices that lean or are uneven are resampled to a straight
            and even grid, and told.

    Yields:
        Progress, one per scan, and a Note for what the user should know.

    Returns:
        The index; ``stopped`` is True when a STOP request ended it early.

    Raises:
        UnusableInput: A source does not exist, or a manifest cannot be read at all.
        ConfigError: ``subjects`` cannot be meant.
    """
    persons = Persons(subjects)
    peek = _remembering(fill_nan)
    given = _given_labels([Path(p) for p in labels])
    found = yield from _gathered(
        sources, set(given.values()), peek, channels, straighten
    )
    candidates = _with_given(_once(found), given, found)
    found.notes += channels_notes(candidates)
    cases: list[CaseSource] = []
    by_content: dict[str, Candidate] = {}
    ids = _Ids(known or {})
    for number, candidate in enumerate(candidates):
        request = yield Progress("inspect", number, len(candidates), candidate.name)
        if request is Request.STOP:
            return _index(cases, found, stopped=True)
        try:
            inspection, candidate = _inspect(candidate, peek, modality or "")
            reason = inspection.objection or _twin(inspection, by_content)
            if reason is None:
                case = _case(candidate, inspection, ids, persons, modality, peek)
        except Exception as error:  # noqa: BLE001 - the other scans go on
            reason = problem_of(error)
        if reason is not None:
            where = str(candidate.image)
            found.rejected.append(Rejected(where, reason.text, reason.code))
            continue
        by_content[inspection.content] = candidate
        cases.append(case)
    yield Progress("inspect", len(candidates), len(candidates))
    found.notes += persons.unmatched()
    found.notes += [] if modality else _units_note(candidates, cases)
    found.notes += _label_notes(cases, peek)
    for note in found.notes:
        yield Note(note)
    return _index(cases, found, persons.note())


def _remembering(fill_nan: bool) -> Peek:
    """Inspects a file once, however often it is asked."""
    seen: dict[Path, Inspection] = {}

    def peek(path: Path) -> Inspection:
        if path not in seen:
            found = inspect_scan(path)
            seen[path] = nan_as_remark(found) if fill_nan else found
        return seen[path]

    return peek


def _index(
    cases: Sequence[CaseSource], found: Found, patients: str = "", stopped: bool = False
) -> ScanIndex:
    return ScanIndex(
        tuple(cases), tuple(found.rejected), tuple(found.notes), patients, stopped
    )


def _gathered(
    sources: Sequence[Path | str],
    labels: Collection[Path],
    peek: Peek,
    channels: str,
    straighten: bool,
) -> Job[Found]:
    """What lies in all sources; a fault of one costs no other."""
    found = Found()
    for source in sources:
        yield Progress("look", 0, 0, str(source))
        try:
            one = find_cases(Path(source), labels, peek, channels, straighten)
        except UnusableInput:
            raise  # the source was named by the user
        except Exception as error:  # noqa: BLE001 - the other sources are looked at
            found.rejected.append(rejected_for(Path(source), error))
            continue
        found.candidates += one.candidates
        found.rejected += one.rejected
        found.notes += one.notes
    return found


def _given_labels(paths: Iterable[Path]) -> dict[str, Path]:
    """Bare name -> label file."""
    given: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise UnusableInput(f"{path}: no such label file or folder.")
        refuse_special(path)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and is_known_suffix(file) and file.name[0] != ".":
                given.setdefault(bare_name(scan_stem(file)), file)
    return given


def _once(found: Found) -> list[Candidate]:
    """Each file once, though sources may overlap.

    The first mention counts; what it leaves open (a scan named alone has no label map)
    is taken from the later ones.
    """
    known: dict[tuple[Path, int | None], Candidate] = {}
    for candidate in found.candidates:
        image, frame = candidate.place
        key = (real_path(image), frame)
        first = known.setdefault(key, candidate)
        if first is not candidate:
            fuller = {f.name: getattr(candidate, f.name) for f in fields(candidate)}
            if first.label not in (None, candidate.label):
                del fuller["label_names"]  # they are of the other label map
            del fuller["short"]  # the first mention has a name already
            del fuller["channels"]  # a file named alone stays one
            open_ = {n: v for n, v in fuller.items() if v and not getattr(first, n)}
            known[key] = replace(first, **open_)
    twice = len(found.candidates) - len(known)
    if twice:
        found.notes.append(f"{twice} scans came up in several sources; taken once.")
    return list(known.values())


def _with_given(
    candidates: list[Candidate], given: dict[str, Path], found: Found
) -> list[Candidate]:
    if not given:
        return candidates
    result = []
    used = set()
    for candidate in candidates:
        names = (bare_name(scan_stem(candidate.image)), bare_name(candidate.name))
        label = next((given[n] for n in names if n in given), None)
        if label is not None:
            used.add(label)
            candidate = replace(candidate, label=label)
        result.append(candidate)
    unused = len(set(given.values()) - used)
    if unused:
        found.notes.append(f"{unused} label files given have no scan of their name.")
    return result


def _inspect(
    candidate: Candidate, peek: Peek, modality: str
) -> tuple[Inspection, Candidate]:
    """The findings about a case, and the case with the modalities of its channels."""
    if candidate.channels:
        wanted = [
            replace(c, modality=modality) if modality else c for c in candidate.channels
        ]
        inspection, told = inspect_channels(wanted, peek)
        candidate = replace(candidate, channels=told)
    else:
        inspection = peek(candidate.image)
    if candidate.label is None or inspection.header is None or not inspection.usable:
        return inspection, candidate
    found = label_problems(inspection.header, peek(candidate.label))
    return replace(inspection, problems=(*found, *inspection.problems)), candidate


def _twin(inspection: Inspection, by_content: dict[str, Candidate]) -> Problem | None:
    first = by_content.get(inspection.content)
    if first is None:
        return None
    return Problem("duplicate", f"the same content as {first.image}.")


def _case(
    candidate: Candidate,
    inspection: Inspection,
    ids: _Ids,
    persons: Persons,
    modality: str | None,
    peek: Peek,
) -> CaseSource:
    header, label = inspection.header, candidate.label
    assert header is not None  # usable inspections have one
    case_id = ids.of(candidate)
    stats = None if label is None else peek(label).stats
    named = names_of_label(label, candidate.image, candidate.label_names, stats)
    tagged = str(header.meta.get("subject", ""))
    return CaseSource(
        id=case_id,
        image=candidate.image,
        label=label,
        modality=modality or _modality(candidate, inspection),
        subject=persons.add(
            case_id, candidate.name, candidate.subject, tagged, candidate.folder_subject
        ),
        split=candidate.split,
        target=candidate.target,
        types=candidate.types,
        boxes=candidate.boxes,
        label_names=named.names,
        label_values=named.values,
        channels=candidate.channels,
        regions=candidate.regions,
    )


def _modality(candidate: Candidate, inspection: Inspection) -> str:
    """Of a case; of several channels what they agree in, else OTHER."""
    if candidate.channels:
        kinds = {one.modality for one in candidate.channels if not one.is_mask}
        return kinds.pop() if len(kinds) == 1 else "OTHER"
    return _stated(candidate, inspection) or inspection.modality


def _units_note(
    candidates: Sequence[Candidate], cases: Sequence[CaseSource]
) -> list[str]:
    """A sentence on cases that should be CT but hold no Hounsfield units."""
    said_ct = {c.image for c in candidates if c.modality == "CT"}
    no_hu = [c.id for c in cases if c.modality == "OTHER" and c.image in said_ct]
    if not no_hu:
        return []
    return [
        f"{counted(len(no_hu), 'scan')} should be CT but hold no Hounsfield units "
        f"(nothing below {HU_REACH_DOWN_TO:g}: {listed(no_hu, most=3)}): each is "
        "normalised by its own values, as MR is; --modality CT takes them as they are."
    ]


def _label_notes(cases: Sequence[CaseSource], peek: Peek) -> list[str]:
    """What was lost of label maps when they were read, the first of them."""
    labels = dict.fromkeys(case.label for case in cases if case.label)
    told = [
        f"{label.name}: {problem.text}"
        for label in labels
        for problem in peek(label).problems
        if problem.code == "overlap"
    ]
    rest = len(told) - _MOST_NOTES
    return told if rest <= 0 else [*told[:_MOST_NOTES], f"(and {rest} more of these.)"]


def _stated(candidate: Candidate, inspection: Inspection) -> str:
    """What the source calls it; a CT whose values are no HU is none, "" if nothing."""
    if candidate.modality == "CT" and inspection.stats is not None:
        return guess_modality(inspection.stats, "CT")
    return candidate.modality


class _Ids:
    """Gives every case an id of its own, the name of its folder.

    Args:
        known: Path of a scan -> its id in the store that is brought up to date.
    """

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known = known
        self._given: set[str] = set()  # in small letters: disks may ignore case
        self._stored = {case_id.lower() for case_id in known.values()}

    def of(self, candidate: Candidate) -> str:
        """From the relative path; root's name or a hash parts equals.

        Of what a manifest calls by its whole path: the id that it has in the store, or
        a short one that no other scan of the store has.
        """
        taken, choices, stays = self._given, [], ""
        if candidate.short:
            stays = self._known.get(str(candidate.image.absolute()), "")
            taken = self._given | (self._stored - {stays.lower()})
            parts, least = Path(candidate.name).parts, len(Path(candidate.short).parts)
            ends = [str(Path(*parts[-n:])) for n in range(least, len(parts))]
            choices = [stays] if stays else [_clean(end) for end in ends]
        plain = _clean(candidate.name) or "case"
        if is_reserved(plain):
            plain = f"case_{plain}"
        digest = hashlib.sha256(
            f"{candidate.root.name}/{candidate.name}".encode("utf-8", "surrogateescape")
        )
        choices += [plain, f"{_clean(candidate.root.name)}__{plain}"]
        choices += [f"{plain}-{digest.hexdigest()[:8]}"]
        choices += [f"{plain}-{n}" for n in range(2, len(taken) + 3)]
        chosen = next(
            c
            for c in choices
            if c and c.lower() not in taken and (c == stays or not is_reserved(c))
        )
        self._given.add(chosen.lower())
        return chosen


def _clean(name: str) -> str:
    joined = "__".join(
        part for part in Path(name).parts if part not in ("/", ".", "..")
    )
    return re.sub(r"[^A-Za-z0-9._-]+", "_", joined).strip("._")[:120].rstrip("._")
