"""From folders, datasets, manifests and single files to cases that can be prepared.

Every scan is inspected; an unsound one is put aside with its reason, the others go on.
Files that do not claim to be scans are passed over.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from homolog.errors import UnusableInput
from homolog.events import Job, Note, Progress, Request
from homolog.index.datasets import (
    MANIFEST_SUFFIXES,
    Candidate,
    CaseSource,
    Found,
    Rejected,
    ScanIndex,
    is_dataset,
    read_dataset,
    read_manifest,
)
from homolog.index.pairing import pair_labels
from homolog.index.subjects import guess_subjects
from homolog.index.tree import walk
from homolog.scans.dicom import is_series_path
from homolog.scans.files import (
    dicom_scans,
    is_known_suffix,
    real_path,
    refuse_special,
    scan_stem,
)
from homolog.scans.inspect import Inspection, inspect_scan, label_problems
from homolog.scans.names import bare_name, names_of_label
from homolog.scans.problems import Problem, problem_of

Peek = Callable[[Path], Inspection]  # inspects a file once, however often called


def find_cases(source: Path, labels: Collection[Path], peek: Peek) -> Found:
    """Candidates of one source.

    Args:
        source: Folder, dataset, manifest, scan file, or series of a DICOM folder.
        labels: Label files given separately; never taken for scans.
        peek: Inspects a file once.

    Raises:
        UnusableInput: There is no such file or folder, or its manifest is unreadable.
    """
    if not source.exists() and not is_series_path(source):
        raise UnusableInput(f"{source}: no such file or folder.")
    refuse_special(source)
    if source.is_dir():
        return _folder(source, labels, peek)
    if source.suffix.lower() in MANIFEST_SUFFIXES:
        if source.name == "dataset.json" and is_dataset(source.parent):
            return read_dataset(source.parent)
        return read_manifest(source)
    name = source.name if is_series_path(source) else scan_stem(source)
    return Found([Candidate(source, name, source.parent)])


def _folder(root: Path, labels: Collection[Path], peek: Peek) -> Found:
    found = Found()
    tree = walk(root)
    for folder in tree.datasets:
        try:
            one = read_dataset(folder)
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
    for folder in tree.dicom_folders:
        images += _dicom(folder, found)
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
                label=pairs.labels.get(image),
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


def _dicom(folder: Path, found: Found) -> list[Path]:
    try:
        paths, others = dicom_scans(folder)
    except Exception as error:  # noqa: BLE001 - the other folders are read
        found.rejected.append(rejected_for(folder, error))
        return []
    for other in others:
        kind = other.other_object
        if "DICOMDIR" in kind:
            continue
        text = f"holds {kind}, not a scan."
        found.rejected.append(Rejected(str(other.path), text, "not_an_image"))
    return paths


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
) -> Job[ScanIndex]:
    """Find the scans of all sources, inspect each, and bring labels to them.

    Args:
        sources: Folders of scans, nnU-Net or Decathlon datasets, DICOM trees, CSV or
            JSON manifests, single files; several at once.
        labels: Label files, or folders of them, for scans of the same name.
        modality: Overrides that of headers, names and values.

    Yields:
        Progress, one per scan, and a Note for what the user should know.

    Returns:
        The index; ``stopped`` is True when a STOP request ended it early.

    Raises:
        UnusableInput: A source does not exist, or a manifest cannot be read at all.
    """
    seen: dict[Path, Inspection] = {}

    def peek(path: Path) -> Inspection:
        if path not in seen:
            seen[path] = inspect_scan(path)
        return seen[path]

    given = _given_labels([Path(p) for p in labels])
    found = yield from _gathered(sources, set(given.values()), peek)
    candidates = _with_given(_once(found), given, found)
    cases: list[CaseSource] = []
    by_content: dict[str, Candidate] = {}
    ids: set[str] = set()
    for number, candidate in enumerate(candidates):
        request = yield Progress("inspect", number, len(candidates), candidate.name)
        if request is Request.STOP:
            return ScanIndex(
                tuple(cases), tuple(found.rejected), tuple(found.notes), stopped=True
            )
        try:
            inspection = _inspect(candidate, peek)
            reason = inspection.objection or _twin(inspection, by_content)
            if reason is None:
                case = _case(candidate, inspection, ids, modality, peek)
        except Exception as error:  # noqa: BLE001 - the other scans go on
            reason = problem_of(error)
        if reason is not None:
            where = str(candidate.image)
            found.rejected.append(Rejected(where, reason.text, reason.code))
            continue
        by_content[inspection.content] = candidate
        cases.append(case)
    yield Progress("inspect", len(candidates), len(candidates))
    for note in found.notes:
        yield Note(note)
    return ScanIndex(tuple(cases), tuple(found.rejected), tuple(found.notes))


def _gathered(
    sources: Sequence[Path | str], labels: Collection[Path], peek: Peek
) -> Job[Found]:
    """What lies in all sources; a fault of one costs no other."""
    found = Found()
    for source in sources:
        yield Progress("look", 0, 0, str(source))
        try:
            one = find_cases(Path(source), labels, peek)
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
    known: dict[Path, Candidate] = {}
    for candidate in found.candidates:
        first = known.setdefault(real_path(candidate.image), candidate)
        if first is not candidate:
            fuller = {f.name: getattr(candidate, f.name) for f in fields(candidate)}
            if first.label not in (None, candidate.label):
                del fuller["label_names"]  # they are of the other label map
            open_ = {n: v for n, v in fuller.items() if v and not getattr(first, n)}
            known[real_path(candidate.image)] = replace(first, **open_)
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


def _inspect(candidate: Candidate, peek: Peek) -> Inspection:
    inspection = peek(candidate.image)
    if candidate.label is None or inspection.header is None or not inspection.usable:
        return inspection
    found = label_problems(inspection.header, peek(candidate.label))
    return replace(inspection, problems=(*found, *inspection.problems))


def _twin(inspection: Inspection, by_content: dict[str, Candidate]) -> Problem | None:
    first = by_content.get(inspection.content)
    if first is None:
        return None
    return Problem("duplicate", f"the same content as {first.image}.")


def _case(
    candidate: Candidate,
    inspection: Inspection,
    ids: set[str],
    modality: str | None,
    peek: Peek,
) -> CaseSource:
    header, label = inspection.header, candidate.label
    assert header is not None  # usable inspections have one
    case_id = _unique(candidate, ids)
    stats = None if label is None else peek(label).stats
    named = names_of_label(label, candidate.image, candidate.label_names, stats)
    tagged = str(header.meta.get("subject", ""))
    return CaseSource(
        id=case_id,
        image=candidate.image,
        label=label,
        modality=modality or candidate.modality or inspection.modality,
        subject=candidate.subject or tagged or candidate.folder_subject or case_id,
        split=candidate.split,
        target=candidate.target,
        types=candidate.types,
        boxes=candidate.boxes,
        label_names=named.names,
        label_values=named.values,
    )


def _unique(candidate: Candidate, ids: set[str]) -> str:
    """A folder name from the relative path; root's name or a hash parts equals."""
    plain = _clean(candidate.name) or "case"
    digest = hashlib.sha256(
        f"{candidate.root.name}/{candidate.name}".encode("utf-8", "surrogateescape")
    )
    rooted = f"{_clean(candidate.root.name)}__{plain}"
    choices = [plain, rooted, f"{plain}-{digest.hexdigest()[:8]}"]
    choices += [f"{plain}-{n}" for n in range(2, len(ids) + 3)]
    chosen = next(c for c in choices if c.lower() not in ids)  # disks may ignore case
    ids.add(chosen.lower())
    return chosen


def _clean(name: str) -> str:
    joined = "__".join(
        part for part in Path(name).parts if part not in ("/", ".", "..")
    )
    return re.sub(r"[^A-Za-z0-9._-]+", "_", joined).strip("._")[:120]
