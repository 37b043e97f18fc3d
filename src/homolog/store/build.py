"""Build a store: every sound scan prepared once, every other one with its reason."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from homolog.config import to_dict
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress, Request, Saved, Stopped
from homolog.geometry.affine import Affine, Index, Triple
from homolog.geometry.anisotropy import thick_axis
from homolog.label_names import LISTED, findings_of, parse_names
from homolog.scans.problems import Unsound, problem_of
from homolog.store.card import Card, is_plain_name
from homolog.store.cases import (
    Before,
    before,
    build_case,
    case_key,
    check_same_scans,
    checksums,
    common_mm,
    current_card,
    damages,
    is_refusal,
    join_with_kept,
    kept_cards,
    recipe_for,
    refresh_card,
    still_lacking,
    write_card,
)
from homolog.store.label_joining import (
    JoinedCases,
    join_cases,
    label_names,
    names_by_class,
    what_was_named,
)
from homolog.store.learnt_spacing import AGREE
from homolog.store.preprocess import (
    MAX_VOXELS,
    Preprocessing,
    differing_settings,
    plan_grid,
)
from homolog.store.splits import (
    FRACTIONS,
    assign_splits,
    hidden_subjects,
    leak_check,
    staying,
)
from homolog.store.store import (
    FORMAT,
    LOCK,
    case_folder,
    read_card,
    read_contents,
)
from homolog.words import counted, lengths_text, listed, times
from homolog.writing import (
    FileLock,
    is_locked,
    knows_no_locks,
    make_folder,
    put_in_place,
    sweep_leftovers,
    write_json,
)

if TYPE_CHECKING:
    from homolog.index.datasets import CaseSource, Rejected


# What the scans have in common, and the voxel size that follows.
# One axis this much coarser than the others is a stack of thick slices.
_ANISOTROPY = 3.0
_AXES = ("z", "y", "x")


@dataclass(frozen=True)
class Fingerprint:
    """Sizes and spacings of a set of scans.

    Attributes:
        spacing_mm: Voxel size chosen (z, y, x); None keeps each scan's own.
        sentences: Why, for people.
        numbers: What was measured, JSON types.
    """

    spacing_mm: Triple | None
    sentences: tuple[str, ...]
    numbers: Mapping[str, Any] = field(default_factory=dict)


# A stack whose slices are tilted by more than this is oblique.
_OBLIQUE = np.cos(np.radians(15.0))
# Of oblique stacks that many must point elsewhere than the rest.
_APART = 0.05


def choose_axes(grids: Sequence[tuple[Affine, Index]]) -> tuple[str, list[str]]:
    """``axes`` of a recipe, and why, where it is not ``anatomical``.

    Oblique stacks of thick slices, such as short axes of hearts, are nearest to another
    axis of the body in one patient than in the next: there slices keep together.

    Args:
        grids: Affine and shape of each scan, in its own axis order.
    """
    fall: Counter[str] = Counter()
    solid = [(affine, shape) for affine, shape in grids if min(shape) > 1]
    for affine, _ in solid:
        across = thick_axis(affine.spacing_mm)
        if across is not None and np.abs(affine.direction[:, across]).max() < _OBLIQUE:
            fall[_AXES[affine.closest_axes()[0].index(across)]] += 1
    tilted = fall.total()
    if not tilted * 2 > len(solid):
        return "anatomical", []
    if tilted - fall.most_common(1)[0][1] < _APART * tilted:
        return "anatomical", []
    most = listed([f"{axis} in {n}" for axis, n in fall.most_common()])
    return "acquired", [
        f"Slices are thick and oblique, and run nearest across {most} of {len(solid)} "
        "scans: z runs across the slices in all, y and x within them (--axes "
        "anatomical takes the nearest axes of the body)."
    ]


def fingerprint(
    grids: Sequence[tuple[Affine, Index]],
    spacing: Triple | str = "auto",
    axes: str = "anatomical",
) -> Fingerprint:
    """Measure the grids of all cases and choose the voxel size of the store.

    Median voxel size per axis; where one axis is more than three times coarser (thick
    slices), its 10th percentile, so that few scans lose detail. Scans that agree within
    5% are not resampled at all.

    Args:
        grids: Affine and shape of each scan, in its own axis order.
        spacing: A voxel size (z, y, x) in mm, ``native``, or ``auto``.
        axes: Which z, y and x are, as in a recipe.

    Source: Isensee et al., Nature Methods 2021, supplementary note 2 (target spacing).
    Differs from the paper: no resampling where all scans agree; single slices keep
    their pixels.
    """
    recipe = Preprocessing(axes=axes)
    turned = [_turned(affine, shape, recipe) for affine, shape in grids]
    solid = [(s, n) for s, n in turned if min(n) > 1]
    numbers: dict[str, Any] = {
        "cases": len(turned),
        "single_slices": len(turned) - len(solid),
    }
    if solid:
        sizes = np.array([n for _, n in solid], dtype=float)
        spacings = np.array([s for s, _ in solid])
        numbers["size_median"] = np.median(sizes, axis=0).tolist()
        numbers["spacing_median_mm"] = np.median(spacings, axis=0).tolist()
        numbers["spacing_min_mm"] = spacings.min(axis=0).tolist()
        numbers["spacing_max_mm"] = spacings.max(axis=0).tolist()
    if isinstance(spacing, tuple):
        chosen: Triple | None = spacing
        sentences = [f"Voxel size {lengths_text(spacing)}, as asked."]
    elif spacing == "native":
        chosen, sentences = None, ["Each scan keeps its own voxel size, as asked."]
    elif not solid:
        chosen = None
        sentences = ["All images are single slices: each keeps its own pixels."]
    else:
        chosen, sentences = _choose(spacings, sizes)
    if chosen is not None and len(solid) < len(turned):
        sentences.append(
            f"{len(turned) - len(solid)} single slices keep their own pixels."
        )
    sentences += _sizes(grids, dataclasses.replace(recipe, spacing_mm=chosen), numbers)
    return Fingerprint(chosen, tuple(sentences), numbers)


def _choose(spacings: np.ndarray, sizes: np.ndarray) -> tuple[Triple | None, list[str]]:
    """Target voxel size of (N, 3) spacings in mm and sizes, and why."""
    median = np.median(spacings, axis=0)
    if (np.abs(spacings / median - 1.0) <= AGREE).all():
        return None, [
            f"All scans have a voxel size of {lengths_text(median)} (within 5%): "
            "nothing is resampled."
        ]
    target = median.copy()
    reasons = [
        "Voxel sizes differ "
        f"({lengths_text(spacings.min(axis=0))} to "
        f"{lengths_text(spacings.max(axis=0))}): "
        f"the median per axis is {lengths_text(median)}."
    ]
    coarse = int(target.argmax())
    others = [axis for axis in range(3) if axis != coarse]
    typical = np.median(sizes, axis=0)
    is_thick = target[coarse] > _ANISOTROPY * target[others].max()
    is_short = typical[coarse] * _ANISOTROPY < typical[others].min()
    if is_thick and is_short:
        tenth = float(np.percentile(spacings[:, coarse], 10))
        target[coarse] = max(tenth, float(target[others].max()))
        reasons.append(
            f"Slices are thick along {_AXES[coarse]}: its 10th percentile, "
            f"{target[coarse]:.4g} mm, keeps the detail of the finer scans."
        )
    z, y, x = (float(f"{value:.4g}") for value in target)
    return (z, y, x), [*reasons, f"Voxel size {lengths_text((z, y, x))} was chosen."]


def _sizes(
    grids: Sequence[tuple[Affine, Index]],
    recipe: Preprocessing,
    numbers: dict[str, Any],
) -> list[str]:
    """Typical and largest prepared size; a sentence when scans will be too large."""
    shapes = []
    for affine, shape in grids:
        axes, flips = recipe.axes_of(affine, shape)
        turned = tuple(shape[a] for a in axes)
        canonical = affine.reorient(axes, flips, shape)
        grid = plan_grid(canonical, (turned[0], turned[1], turned[2]), recipe)
        shapes.append(grid.shape)
    if not shapes:
        return []
    largest = max(shapes, key=prod)
    numbers["prepared_size_median"] = np.median(np.array(shapes), axis=0).tolist()
    numbers["prepared_size_largest"] = list(largest)
    too_large = sum(prod(shape) > MAX_VOXELS for shape in shapes)
    if not too_large:
        return []
    return [
        f"{too_large} scans would have more than {MAX_VOXELS:,} voxels (the largest "
        f"{lengths_text(largest, 'voxels')}) and are left out; a coarser --spacing "
        "takes them in."
    ]


def intensities_by_modality(cards: Sequence[Card]) -> dict[str, dict[str, float]]:
    """Range and typical normalisation of the prepared cases of each modality."""
    result: dict[str, dict[str, float]] = {}
    for modality in sorted({card.modality for card in cards}):
        members = [card for card in cards if card.modality == modality]
        result[modality] = {
            "cases": len(members),
            "low_min": min(c.low for c in members),
            "low_median": float(np.median([c.low for c in members])),
            "high_median": float(np.median([c.high for c in members])),
            "high_max": max(c.high for c in members),
            "centre_median": float(np.median([c.centre for c in members])),
            "spread_median": float(np.median([c.spread for c in members])),
        }
    return result


def _turned(
    affine: Affine, shape: Index, recipe: Preprocessing
) -> tuple[Triple, Index]:
    """Spacing and size along z, y, x of the recipe."""
    axes, _ = recipe.axes_of(affine, shape)
    spacing = affine.spacing_mm
    z, y, x = axes
    return (spacing[z], spacing[y], spacing[x]), (shape[z], shape[y], shape[x])


# What may lie in a store's folder, who may write into it, and what is swept out.
def check_folder(out: Path) -> None:
    """Refuse to write into a folder that holds something else, or that is in use.

    Raises:
        UnusableInput: It is a file, a folder with other things and no store, or another
            process is writing into it.
    """
    if out.exists() and not out.is_dir():
        raise UnusableInput(f"the store must be a folder, {out} is a file.")
    if not out.is_dir():
        return
    if is_locked(out / LOCK):
        raise _in_use(out)
    if (out / "store.json").is_file() or (out / "cases").is_dir():
        return
    if any(path.name != LOCK for path in out.iterdir()):
        raise UnusableInput(
            f"{out} holds other files and no store; choose a new or an empty folder."
        )


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """The right to write into a store; one process has it at a time.

    What a killed writer left half done is swept out first.

    Raises:
        UnusableInput: Another living process is writing into it.
    """
    _check_links(out)
    make_folder(out / "cases")
    lock = FileLock(out / LOCK, signed=True)
    try:
        if not lock.acquire():
            raise _in_use(out)
    except OSError as error:
        if not knows_no_locks(error):
            raise
    try:
        tidy(out)
        yield
    finally:
        lock.release()


def _check_links(out: Path) -> None:
    """Refuse to write into, and to sweep, folders that are not the store's own.

    Raises:
        UnusableInput: One of its folders is a link.
    """
    cases = out / "cases"
    inside = list(cases.iterdir()) if cases.is_dir() else []
    for folder in (cases, out / "pairs", *inside):
        if folder.is_symlink():
            raise UnusableInput(
                f"{folder} is a link to {folder.resolve()}; a store is only written "
                "where its folders are its own. Remove the link, or choose another "
                "--out."
            )


def _in_use(out: Path) -> UnusableInput:
    holder = FileLock(out / LOCK).holder()
    return UnusableInput(
        f"another process{f' ({holder})' if holder else ''} is writing into the store "
        f"{out}; wait until it has ended, or write into another one."
    )


# A case folder that made room for a new one, and how earlier versions called it.
_RETIRED = re.compile(r"\.(?P<name>.+)\.old|\.old-(?P<former>.+)")


def tidy(store: Path) -> None:
    """Sweep out what killed writers left; the caller holds the store's lock.

    A case that was moved aside and never replaced gets its place back.
    """
    for folder in list((store / "cases").iterdir()):
        if retired := _RETIRED.fullmatch(folder.name):
            place = folder.with_name(retired["name"] or retired["former"])
            if not place.exists() and read_card(folder) is not None:
                put_in_place(folder, place)
        if retired or folder.name.startswith(".new-"):
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir():
            sweep_leftovers(folder)
    for folder in (store, store / "cases", store / "pairs"):
        sweep_leftovers(folder)


def check_ids(cases: Sequence[CaseSource]) -> None:
    """Refuse ids that are no folder names, or that two cases share."""
    for case_id, count in Counter(case.id for case in cases).items():
        if not is_plain_name(case_id):
            raise UnusableInput(
                "a case id must be a plain file name without a leading dot, "
                f"got {case_id!r}."
            )
        if count > 1:
            raise UnusableInput(f"{count} cases are called {case_id!r}.")


def unlisted(store: Path) -> list[str]:
    """Cases on disk that ``store.json`` does not list: of an unfinished preparation."""
    listed = (read_contents(store) or {}).get("cases", {})
    return sorted(
        folder.name
        for folder in (store / "cases").iterdir()
        if is_plain_name(folder.name)
        and folder.name not in listed
        and (folder / "card.json").is_file()
    )


def remove(store: Path, ids: Iterable[str]) -> None:
    """Take cases out of a store's folder."""
    for case_id in ids:
        shutil.rmtree(case_folder(store, case_id), ignore_errors=True)


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
    subjects: str = "",
    axes: str = "auto",
    channels: str = "join",
    straighten: bool = False,
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
        subjects: Where in names persons stand, see ``index_sources``.
        axes: As in ``write_store``.
        channels: ``join`` or ``separate``, see ``index_sources``.
        straighten: See ``index_sources``.

    Returns:
        As ``write_store``.
    """
    from homolog.index.index import index_sources

    check_folder(out)
    modality = preprocessing.modality if preprocessing else None
    known = {card.source: card.id for card in before(out).cards.values()}
    index = yield from index_sources(
        sources, labels, modality=modality, subjects=subjects, known=known,
        channels=channels, fill_nan=bool(preprocessing and preprocessing.fill_nan),
        straighten=straighten,
    )  # fmt: skip
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
        axes=axes,
    )
    return {**result, "whose": index.patients}


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
    axes: str | None = None,
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
        names: Label value -> name, before those of the cases; those given when the
            store was last prepared stay for values not named now.
        seed: Of the splits and the foreground index.
        fractions: Share of subjects per split.
        replace: The store is to hold these cases and no others.
        keep_identifiers: Store subjects as they are given, not as keyed hashes.
        axes: ``anatomical``, ``acquired`` (see ``Preprocessing``) or ``auto``: see
            ``choose_axes``; None takes that of the recipe.

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
        spacing, dict(names or {}), seed, fractions, replace, keep_identifiers, axes,
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
    axes: str | None


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
            write_json(out / "rejected.json", reasons, end="")
        raise UnusableInput(_nothing(reasons))
    kept = yield from _sealed(out, still_lacking(kept, cards))
    cards += kept
    splits = _splits(cards, subjects, old if kept else None, asked)
    contents = _contents(cards, called, recipe, print_, splits)
    contents["splits"] = _draw(asked)
    if regions := {**old.contents.get("regions", {}), **_regions(asked.cases)}:
        contents["regions"] = regions
    contents["given_names"] = {str(v): n for v, n in as_given.items()}
    yield from _remarks(joined)
    write_json(out / "rejected.json", reasons, end="")
    write_json(out / "store.json", contents, end="")
    removed = yield from _removed(old, cards, out, replace=asked.replace)
    if kept:
        yield Note(_stayed(kept))
    yield Saved(str(out), "store")
    own = names_by_class(asked.cases, called)
    told = what_was_named(asked.named, given, own, cards)
    result = _summary(cards, reasons, out, print_, counts, told)
    return {**result, "kept": [card.id for card in kept], "removed": removed}


def _regions(cases: Sequence[CaseSource]) -> dict[str, list[str]]:
    """Unions of labels, by names, that a data set wants to be scored as one."""
    return {n: list(members) for c in cases for n, members in c.regions.items()}


def _stayed(kept: Sequence[Card]) -> str:
    names = listed((card.id for card in kept), most=LISTED)
    return (
        f"{counted(len(kept), 'case')} of the store that these sources do not give "
        f"stayed ({names}); --replace lets them go."
    )


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
    """Take out cases that the store had and has no more; report which."""
    now = {card.id for card in cards}
    gone = [case_id for case_id in old.cards if case_id not in now]
    left = [case_id for case_id in unlisted(out) if case_id not in gone]
    if replace:
        gone, left = sorted({*gone, *left}), []
    remove(out, gone)
    if gone:
        many = counted(len(gone), "case")
        names = listed(gone, most=LISTED)
        yield Note(f"{many} left the store: {names}.", "warning")
    if left:
        yield Note(
            f"{counted(len(left), 'case')} of a preparation that did not finish lie "
            f"in {out} and are not part of the store: {listed(left, most=LISTED)}. "
            "Prepare their sources again to take them in; --replace removes them."
        )
    return gone


def _is_same(recipe: Preprocessing, old: Before) -> bool:
    """Whether what the store holds was prepared in the same way."""
    return not differing_settings([recipe, old.recipe])


def _recipe(
    cases: Sequence[CaseSource], asked: _Asked, kept: Sequence[Card], old: Before
) -> tuple[Preprocessing, Fingerprint]:
    """The recipe with its voxel size decided from the headers of all cases."""
    from homolog.scans.files import read_header

    grids = []
    for case in cases:
        try:
            header = read_header(case.image)
        except Exception:  # noqa: BLE001
            continue  # its own turn comes, and then its reason is reported
        grids.append((header.affine, header.shape))
    recipe, spacing = asked.preprocessing or Preprocessing(), asked.spacing
    if kept:
        sizes = [a.spacing_mm for a, shape in grids if min(shape) > 1]
        recipe, spacing = recipe_for(kept, old, asked.preprocessing, spacing, sizes)
        grids += [(c.original["affine"], c.original["shape"]) for c in kept]
    elif spacing is None:
        own = recipe.spacing_mm if asked.preprocessing else None
        spacing = own or ("native" if asked.preprocessing else "auto")
    axes, why = _axes(asked, recipe, grids, kept)
    print_ = fingerprint(grids, spacing, axes)
    print_ = dataclasses.replace(print_, sentences=(*print_.sentences, *why))
    if kept:
        size = print_.spacing_mm or common_mm(kept)
        voxel = f"{times(size, 4)} mm" if size else "each its own"
        word = (
            f"The recipe of {counted(len(kept), 'case')} that the store keeps holds "
            f"for all; voxel size: {voxel}."
        )
        print_ = dataclasses.replace(print_, sentences=(word, *print_.sentences[1:]))
    return dataclasses.replace(recipe, spacing_mm=print_.spacing_mm, axes=axes), print_


def _axes(
    asked: _Asked,
    recipe: Preprocessing,
    grids: Sequence[tuple[Affine, Index]],
    kept: Sequence[Card],
) -> tuple[str, list[str]]:
    """``axes`` of the store, and why.

    Raises:
        UnusableInput: Others were asked for than those of cases that stay.
    """
    if kept:
        if asked.axes in (None, "auto", recipe.axes):
            return recipe.axes, []
        raise UnusableInput(
            f"{counted(len(kept), 'case')} of the store are not in these sources and "
            f"have {recipe.axes} axes, not {asked.axes}; leave that as it was, name "
            "all sources in one prepare, or let those cases go with --replace."
        )
    if asked.axes == "auto":
        return choose_axes(grids)
    return asked.axes or recipe.axes, []


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
        told: Case id -> subject as the sources give it: by these splits are drawn, so
            that they are the same whoever prepares.
        old: The store, where it keeps cases, whose subjects no source gives now: all
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
    """The contents of ``store.json``."""
    leak_check([dataclasses.replace(card, split=splits[card.id]) for card in cards])
    modalities = {card.modality for card in cards}
    if len(modalities) == 1:
        # New scans, whatever their header states, are then treated as these were.
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
        "classed": sum(card.target is not None for card in cards),
        "classes": len({n for c in cards if c.target for n in findings_of(c.target)}),
        "boxed": sum(bool(card.boxes) for card in cards),
        "channels": max((card.channels for card in cards), default=1),
        "patients": len({card.subject or card.id for card in cards}),
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
