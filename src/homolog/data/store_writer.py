"""Build a store: every sound scan prepared once, every other one with its reason."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.config import to_dict
from homolog.data.atomic import write_json
from homolog.data.card import Card
from homolog.data.case_key import case_key
from homolog.data.case_writer import (
    build_case,
    current_card,
    refresh_card,
)
from homolog.data.fingerprint import (
    Fingerprint,
    fingerprint,
    intensities_by_modality,
)
from homolog.data.given_names import names_kept, what_was_named
from homolog.data.label_joining import join_cases
from homolog.data.label_names import label_names
from homolog.data.preprocess import Preprocessing
from homolog.data.problems import Unsound
from homolog.data.splits import FRACTIONS, assign_splits, leak_check
from homolog.data.store import FORMAT
from homolog.data.store_folder import check_folder, check_ids, sweep
from homolog.data.subjects import hidden_subjects
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Progress, Request, Saved, Stopped
from homolog.geometry.affine import Triple
from homolog.private_files import make_folder

if TYPE_CHECKING:
    from homolog.data.case_source import CaseSource, Rejected

    Reasons = list[dict[str, str]]


def prepare_store(
    sources: Sequence[Path],
    out: Path,
    *,
    labels: Sequence[Path] = (),
    spacing: Triple | str = "auto",
    preprocessing: Preprocessing | None = None,
    names: Mapping[int, str] | None = None,
    seed: int = 0,
    keep_identifiers: bool = False,
) -> Job[dict[str, Any]]:
    """Index scans wherever they lie and build their store.

    Args:
        sources: Folders, files, data sets or manifests.
        out: Folder of the store; new, empty or an earlier store.
        labels: Folders of label maps, when they lie apart.
        spacing: Voxel size (z, y, x) in mm, ``native`` or ``auto``.
        preprocessing: The rest of the recipe.
        names: As in ``write_store``.
        seed: Of the splits and the foreground index.
        keep_identifiers: As in ``write_store``.

    Returns:
        As ``write_store``.
    """
    from homolog.data.index import index_sources

    check_folder(out)
    modality = preprocessing.modality if preprocessing else None
    index = yield from index_sources(sources, labels, modality=modality)
    if index.stopped:
        yield Stopped(0)
        reasons: Reasons = []
        return _summary(
            [], reasons, out, Fingerprint(None, ()), Counter(), stopped=True
        )
    result = yield from write_store(
        index.cases,
        out,
        preprocessing=preprocessing,
        spacing=spacing,
        rejected=index.rejected,
        names=names,
        seed=seed,
        keep_identifiers=keep_identifiers,
    )
    return result


def write_store(
    cases: Sequence[CaseSource],
    out: Path,
    *,
    preprocessing: Preprocessing | None = None,
    spacing: Triple | str | None = None,
    rejected: Sequence[Rejected] = (),
    names: Mapping[int, str] | None = None,
    seed: int = 0,
    fractions: Mapping[str, float] = FRACTIONS,
    keep_identifiers: bool = False,
) -> Job[dict[str, Any]]:
    """Prepare cases into a store; what is there and current is kept.

    A killed run leaves whole cases behind and the next one goes on. A case that turns
    out unusable is put aside with its reason and the others go on. One case is in
    memory at a time.

    Args:
        cases: The scans.
        out: Folder of the store.
        preprocessing: The recipe; its voxel size is used unless ``spacing`` is given.
        spacing: Voxel size, ``native`` or ``auto``; None takes that of the recipe, and
            ``auto`` without a recipe.
        rejected: What the index put aside already.
        names: Label value -> name, before what the cases say; those given when the
            store was last prepared stay for values not named now.
        seed: Of the splits and the foreground index.
        fractions: Share of subjects per split.
        keep_identifiers: Store subjects as they are told, not as keyed hashes.

    Returns:
        ``cases, labelled, rejected, store`` and more numbers, JSON types.

    Raises:
        UnusableInput: No case is sound, or the folder is something else.
        JobError: The disk is full.
    """
    out = Path(out)
    check_folder(out)
    make_folder(out / "cases")
    cases = sorted(cases, key=lambda case: case.id)
    check_ids(cases)
    named, kept = dict(names or {}), names_kept(out)
    as_given = dict(sorted({**kept, **named}.items()))
    joined, told_by_files = join_cases(cases, as_given), cases
    # splits are drawn by the subjects as told: whoever prepares, they are the same
    subjects = {case.id: case.subject for case in joined.cases}
    cases = joined.cases if keep_identifiers else hidden_subjects(joined.cases)
    rejected = (*rejected, *joined.refused)
    reasons: Reasons = [{"path": str(r.path), "reason": r.reason} for r in rejected]
    recipe, print_ = _recipe(cases, preprocessing, spacing, reasons)
    built = _prepare_all(cases, out, recipe, reasons, seed)
    cards, counts, stopped = yield from built
    if stopped:
        yield Stopped(len(cards))
        return _summary(cards, reasons, out, print_, counts, stopped=True)
    write_json(reasons, out / "rejected.json")
    if not cards:
        raise UnusableInput(_nothing(reasons))
    told = [dataclasses.replace(c, subject=subjects[c.id]) for c in cards]
    splits = assign_splits(told, seed, fractions)
    contents = _contents(cards, cases, recipe, print_, splits)
    contents["splits"] = {"seed": seed, "fractions": dict(fractions)}
    contents["given_names"] = {str(v): n for v, n in as_given.items()}
    for refused in joined.refused:
        yield Note(f"{refused.path} was left out: {refused.reason}", "warning")
    for sentence in joined.warnings:
        yield Note(sentence, "warning")
    for sentence in joined.remarks:
        yield Note(sentence)
    write_json(contents, out / "store.json")
    removed = sweep(out, [card.id for card in cards])
    if removed:
        yield Note(f"{removed} cases of an earlier run were removed from the store.")
    yield Saved(str(out), "store")
    explained = what_was_named(named, kept, told_by_files, cards)
    return _summary(cards, reasons, out, print_, counts, explained)


def _recipe(
    cases: Sequence[CaseSource],
    preprocessing: Preprocessing | None,
    spacing: Triple | str | None,
    reasons: Reasons,
) -> tuple[Preprocessing, Fingerprint]:
    """The recipe with its voxel size decided from the headers of all cases."""
    from homolog.data.scan_io import read_header

    if spacing is None:
        own = preprocessing.spacing_mm if preprocessing else None
        spacing = own or ("native" if preprocessing else "auto")
    grids = []
    for case in cases:
        try:
            header = read_header(case.image)
        except (UnusableInput, OSError):
            continue  # its own turn comes, and then its reason is told
        grids.append((header.affine, header.shape))
    print_ = fingerprint(grids, spacing)
    recipe = preprocessing or Preprocessing()
    return dataclasses.replace(recipe, spacing_mm=print_.spacing_mm), print_


def _prepare_all(
    cases: Sequence[CaseSource],
    out: Path,
    recipe: Preprocessing,
    reasons: Reasons,
    seed: int,
) -> Job[tuple[list[Card], Counter[str], bool]]:
    """Prepare one case after the other; reasons are added where one cannot be."""
    cards: list[Card] = []
    counts: Counter[str] = Counter()
    began, worked = time.monotonic(), 0
    for index, case in enumerate(cases):
        left = (
            (time.monotonic() - began) / worked * (len(cases) - index) if worked else 0
        )
        request = yield Progress("prepare", index, len(cases), case.id, left)
        if request is Request.STOP:
            return cards, counts, True
        own = dataclasses.replace(recipe, modality=recipe.modality or case.modality)
        try:
            key = case_key(case, own)
            card = current_card(out, case.id, key)
            how = "built" if card is None else "reused"
            worked += card is None
            if card is None:
                card = build_case(case, out, own, key, seed)
            else:
                card = refresh_card(card, case, out)
        except (UnusableInput, OSError, MemoryError) as error:
            reasons.append({"path": str(case.image), "reason": _reason(error)})
            yield Note(f"{case.id} was left out: {_reason(error)}", "warning")
            continue
        if card.note:
            yield Note(f"{case.id}: {card.note}")
        counts[how] += 1
        cards.append(card)
    yield Progress("prepare", len(cases), len(cases))
    return cards, counts, False


def _reason(error: Exception) -> str:
    if isinstance(error, Unsound):
        return error.problem.text
    if isinstance(error, MemoryError):
        return "it does not fit into memory; choose a coarser --spacing."
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        )
    return str(error)


def _contents(
    cards: Sequence[Card],
    cases: Sequence[CaseSource],
    recipe: Preprocessing,
    print_: Fingerprint,
    splits: Mapping[str, str],
) -> dict[str, Any]:
    """What ``store.json`` says."""
    leak_check([dataclasses.replace(card, split=splits[card.id]) for card in cards])
    modalities = {card.modality for card in cards}
    if len(modalities) == 1:
        # New scans, whatever their header says, are then treated as these were.
        recipe = dataclasses.replace(recipe, modality=modalities.pop())
    return {
        "format": FORMAT,
        "preprocessing": to_dict(recipe),
        "label_names": {str(v): n for v, n in label_names(cards, cases).items()},
        "fingerprint": {
            "spacing_mm": print_.spacing_mm,
            "sentences": list(print_.sentences),
            "grids": dict(print_.numbers),
            "intensities": intensities_by_modality(cards),
        },
        "cases": {
            card.id: {"key": card.key, "split": splits[card.id]} for card in cards
        },
    }


def _nothing(reasons: Reasons) -> str:
    if not reasons:
        return "no scan was found in the given sources."
    first = reasons[0]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"no sound scan was found: {first['path']}: {first['reason']}{more}"


def _summary(
    cards: Sequence[Card],
    reasons: Reasons,
    out: Path,
    print_: Fingerprint,
    counts: Counter[str],
    told: Sequence[str] = (),
    *,
    stopped: bool = False,
) -> dict[str, Any]:
    size = sum(sum(card.files.values()) for card in cards)
    return {
        "cases": len(cards),
        "labelled": sum(card.has_label for card in cards),
        "rejected": reasons,
        "store": str(out),
        "spacing_mm": print_.spacing_mm,
        "explanation": [*print_.sentences, *told],
        "bytes": size,
        "built": counts["built"],
        "reused": counts["reused"],
        "stopped": stopped,
    }
