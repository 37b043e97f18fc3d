"""Build a store: every sound scan prepared once, every other one with its reason."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.config import to_dict
from homolog.data.atomic import write_json
from homolog.data.card import Card
from homolog.data.case_key import case_key
from homolog.data.case_writer import (
    build_case,
    checksums,
    current_card,
    damages,
    refresh_card,
    write_card,
)
from homolog.data.fingerprint import (
    Fingerprint,
    fingerprint,
    intensities_by_modality,
)
from homolog.data.given_names import what_was_named
from homolog.data.kept_cases import (
    Before,
    before,
    check_same_scans,
    common_mm,
    is_refusal,
    join_with_kept,
    kept_cards,
    listed,
    recipe_for,
    still_lacking,
)
from homolog.data.label_joining import JoinedCases, join_cases, told_of_classes
from homolog.data.label_names import label_names
from homolog.data.label_naming import parse_names
from homolog.data.preprocess import Preprocessing, differing_settings
from homolog.data.problems import Unsound, problem_of
from homolog.data.splits import FRACTIONS, assign_splits, leak_check, staying
from homolog.data.store import FORMAT, case_folder
from homolog.data.store_folder import (
    check_folder,
    check_ids,
    remove,
    unlisted,
    writing,
)
from homolog.data.subjects import hidden_subjects
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress, Request, Saved, Stopped
from homolog.geometry.affine import Triple

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
    replace: bool = False,
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
        replace: The store is to hold these scans and no others.
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
        replace=replace,
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
    replace: bool = False,
    keep_identifiers: bool = False,
) -> Job[dict[str, Any]]:
    """Prepare cases into a store; what is there and current is kept.

    A killed run leaves whole cases behind and the next one goes on. A case that turns
    out unusable is put aside with its reason and the others go on. One case is in
    memory at a time, and one process at a time writes into a store. Cases of the store
    that are not among these stay as they are, and its recipe with them.

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
        replace: The store is to hold these cases and no others.
        keep_identifiers: Store subjects as they are told, not as keyed hashes.

    Returns:
        ``cases, labelled, rejected, store, kept, removed`` and more, JSON types.

    Raises:
        UnusableInput: No case is sound, the folder is something else or in use, or the
            cases do not fit to those that the store keeps.
        JobError: The disk is full.
    """
    out = Path(out)
    check_folder(out)
    check_ids(cases)
    asked = _Asked(
        sorted(cases, key=lambda case: case.id), tuple(rejected), preprocessing,
        spacing, dict(names or {}), seed, fractions, replace, keep_identifiers,
    )  # fmt: skip
    with writing(out):
        return (yield from _written(asked, out))


@dataclass(frozen=True)
class _Asked:
    """What a store is to be made of, see ``write_store``."""

    cases: list[CaseSource]
    rejected: tuple[Rejected, ...]
    preprocessing: Preprocessing | None
    spacing: Triple | str | None
    named: dict[int, str]
    seed: int
    fractions: Mapping[str, float]
    replace: bool
    keep_identifiers: bool


def _written(asked: _Asked, out: Path) -> Job[dict[str, Any]]:
    """``write_store`` with the right to write."""
    old, kept = before(out), list[Card]()
    if old.damage:
        yield Note(f"{old.damage} Its list of cases is written anew.", "warning")
    if not asked.replace:
        check_same_scans(old, asked.cases, out)
        kept = kept_cards(old, asked.cases, asked.rejected)
    given = parse_names(old.contents.get("given_names"))
    as_given = dict(sorted({**given, **asked.named}.items()))
    if kept:
        joined = join_with_kept(asked.cases, kept, old, as_given)
        cases, called = joined.cases[:-1], joined.cases
    else:
        joined = join_cases(asked.cases, as_given)
        cases = called = joined.cases
    subjects = {case.id: case.subject for case in cases}
    cases = tuple(cases if asked.keep_identifiers else hidden_subjects(cases))
    rejected = (*asked.rejected, *joined.refused)
    reasons: Reasons = [{"path": str(r.path), "reason": r.reason} for r in rejected]
    recipe, print_ = _recipe(cases, asked, kept, old)
    fallback = old.cards if old.cards and _is_same(recipe, old) else {}
    built = _prepare_all(cases, out, recipe, reasons, asked.seed, fallback)
    cards, counts, stopped = yield from built
    if stopped:
        yield Stopped(len(cards))
        return _summary(cards, reasons, out, print_, counts, stopped=True)
    if not cards:
        if not kept:
            write_json(reasons, out / "rejected.json")
        raise UnusableInput(_nothing(reasons))
    kept = yield from _sealed(out, still_lacking(kept, cards))
    cards += kept
    splits = _splits(cards, subjects, old if kept else None, asked)
    contents = _contents(cards, called, recipe, print_, splits)
    contents["splits"] = _draw(asked)
    contents["given_names"] = {str(v): n for v, n in as_given.items()}
    yield from _remarks(joined)
    write_json(reasons, out / "rejected.json")
    write_json(contents, out / "store.json")
    removed = yield from _removed(old, cards, out, replace=asked.replace)
    if kept:
        yield Note(
            f"{_count(kept)} of the store that these sources do not give stayed "
            f"({listed([card.id for card in kept])}); --replace lets them go."
        )
    yield Saved(str(out), "store")
    own = told_of_classes(asked.cases, called)
    told = what_was_named(asked.named, given, own, cards)
    result = _summary(cards, reasons, out, print_, counts, told)
    return {**result, "kept": [card.id for card in kept], "removed": removed}


def _remarks(joined: JoinedCases) -> Job[None]:
    """What a user should know of labels that were brought together."""
    for refused in joined.refused:
        yield Note(f"{refused.path} was left out: {refused.reason}", "warning")
    for sentence in joined.warnings:
        yield Note(sentence, "warning")
    for sentence in joined.remarks:
        yield Note(sentence)


def _sealed(out: Path, kept: Sequence[Card]) -> Job[list[Card]]:
    """Cases that stay, each with checksums; those of earlier versions get theirs."""
    result = []
    for card in kept:
        folder = case_folder(out, card.id)
        wrong = damages(folder, card)
        if wrong:
            name, words = next(iter(wrong.items()))
            yield Note(
                f"{card.id} stayed, but its {name} is damaged: {words}; mend it with: "
                f"homolog doctor {out} --repair",
                "warning",
            )
        elif not card.checksums:
            card = dataclasses.replace(card, checksums=checksums(folder, card))
            write_card(card, folder)
        result.append(card)
    return result


def _removed(
    old: Before, cards: Sequence[Card], out: Path, *, replace: bool
) -> Job[list[str]]:
    """Take out cases that the store had and has no more; say which."""
    now = {card.id for card in cards}
    gone = [case_id for case_id in old.cards if case_id not in now]
    left = [case_id for case_id in unlisted(out) if case_id not in gone]
    if replace:
        gone, left = sorted({*gone, *left}), []
    remove(out, gone)
    if gone:
        yield Note(f"{_count(gone)} left the store: {listed(gone)}.", "warning")
    if left:
        yield Note(
            f"{_count(left)} of a preparation that did not finish lie in {out} and are "
            f"not part of the store: {listed(left)}. Prepare their sources again to "
            "take them in; --replace removes them."
        )
    return gone


def _count(cases: Sequence[object]) -> str:
    return f"{len(cases)} case{'s' if len(cases) != 1 else ''}"


def _is_same(recipe: Preprocessing, old: Before) -> bool:
    """Whether what the store holds was prepared in the same way."""
    return not differing_settings([recipe, old.recipe])


def _recipe(
    cases: Sequence[CaseSource], asked: _Asked, kept: Sequence[Card], old: Before
) -> tuple[Preprocessing, Fingerprint]:
    """The recipe with its voxel size decided from the headers of all cases."""
    from homolog.data.scan_io import read_header

    grids = []
    for case in cases:
        try:
            header = read_header(case.image)
        except Exception:  # noqa: BLE001
            continue  # its own turn comes, and then its reason is told
        grids.append((header.affine, header.shape))
    recipe, spacing = asked.preprocessing or Preprocessing(), asked.spacing
    if kept:
        sizes = [a.spacing_mm for a, shape in grids if min(shape) > 1]
        recipe, spacing = recipe_for(kept, old, asked.preprocessing, spacing, sizes)
        grids += [(c.original["affine"], c.original["shape"]) for c in kept]
    elif spacing is None:
        own = recipe.spacing_mm if asked.preprocessing else None
        spacing = own or ("native" if asked.preprocessing else "auto")
    print_ = fingerprint(grids, spacing)
    if kept:
        size = print_.spacing_mm or common_mm(kept)
        voxel = f"{' x '.join(f'{v:.4g}' for v in size)} mm" if size else "each its own"
        word = (
            f"The recipe of {_count(kept)} that the store keeps holds for all; voxel "
            f"size: {voxel}."
        )
        print_ = dataclasses.replace(print_, sentences=(word, *print_.sentences[1:]))
    return dataclasses.replace(recipe, spacing_mm=print_.spacing_mm), print_


def _prepare_all(
    cases: Sequence[CaseSource],
    out: Path,
    recipe: Preprocessing,
    reasons: Reasons,
    seed: int,
    fallback: Mapping[str, Card],
) -> Job[tuple[list[Card], Counter[str], bool]]:
    """Prepare one case after the other; reasons are added where one cannot be.

    Of a case whose file is broken by now, what ``fallback`` has stays.
    """
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
            wrong = damages(case_folder(out, case.id), card) if card else {}
            for name, words in wrong.items():
                yield Note(f"{case.id}: {name} was damaged: {words}; it is made anew.")
            how = "built" if card is None or wrong else "reused"
            worked += how == "built"
            if card is None or wrong:
                card = build_case(case, out, own, key, seed)
            else:
                card = refresh_card(card, case, out)
        except JobError:
            raise  # the store's fault, not the case's
        except Exception as error:  # noqa: BLE001 - the other cases are prepared
            reason = _reason(error)
            reasons.append({"path": str(case.image), "reason": reason})
            stays = fallback.get(case.id)
            if stays is None or is_refusal(error):
                yield Note(f"{case.id} was left out: {reason}", "warning")
                continue
            yield Note(f"{case.id} stays as it was in the store: {reason}", "warning")
            card, how = stays, "reused"
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
    return problem_of(error).text


def _splits(
    cards: Sequence[Card], told: Mapping[str, str], old: Before | None, asked: _Asked
) -> dict[str, str]:
    """Split of every case, by id.

    Args:
        cards: All of the new store.
        told: Case id -> subject as the sources tell it: by these splits are drawn, so
            that they are the same whoever prepares.
        old: The store, where it keeps cases, whose subjects nobody tells any more: all
            that it had stay in their split, and subjects meet by their keyed hash.
        asked: Seed and shares.
    """
    if old is None:
        own = [dataclasses.replace(c, subject=told[c.id]) for c in cards]
        return assign_splits(own, asked.seed, asked.fractions)
    hidden = hidden_subjects(cards)
    if old.contents.get("splits") == _draw(asked):
        former = {i: entry["split"] for i, entry in old.contents["cases"].items()}
        hidden = staying(hidden, former)
    return assign_splits(hidden, asked.seed, asked.fractions)


def _draw(asked: _Asked) -> dict[str, Any]:
    """What decides the draw of the splits, for ``store.json``."""
    return {"seed": asked.seed, "fractions": dict(asked.fractions)}


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
        "kept": [],
        "removed": [],
    }
