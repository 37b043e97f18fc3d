"""Metrics of a model on a store's split, or of label files against label files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from homolog.config import to_dict
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress, Request
from homolog.feed.reading import CaseRef
from homolog.label_names import SharedLabels, shared_labels
from homolog.scans.files import read_labels
from homolog.scans.inspect import labels_by_place
from homolog.scans.names import names_told
from homolog.scans.paths import is_scan_path
from homolog.scans.volume import LabelMap, mapped_labels
from homolog.store.store import Store
from homolog.tasks.base import (
    METRICS,
    LearnedTask,
    Trained,
    score_labels,
    summarise,
    table_lines,
)
from homolog.tasks.segment.network import model_preprocessing
from homolog.words import spacing_text
from homolog.writing import write_json, write_table

COLUMNS = ("case", "label", "name", *METRICS)
# Endings by which an image's file name differs from its label's.
_ENDINGS = (".seg", "_0000", "_label", "_labels", "_seg", "_mask")


def evaluate_store(
    task: LearnedTask,
    model: Trained,
    store: Store,
    split: str,
    *,
    only: Sequence[str] = (),
    flips: Sequence[int] = (),
    tolerance_mm: float = 1.0,
) -> Job[dict[str, Any]]:
    """Score every labelled case of a split on the store's grid.

    Args:
        task: What the model was trained for.
        model: Trained.
        store: Prepared by the model's own recipe.
        split: ``train``, ``val``, ``test`` or ``all``.
        only: Names of cases; of these alone, where there are any.
        flips: Axes whose mirrorings are averaged.
        tolerance_mm: Of the NSD.

    Returns:
        ``rows`` (for a segmentation one per case and label) and the task's
        ``summarise``'s keys, ``seen`` (cases the model learnt from or was chosen by),
        ``stopped``, and for people and tables ``lines`` and ``columns``.

    Raises:
        UnusableInput: No labelled case, or a store prepared otherwise.
    """
    _check_recipe(model, store)
    cases = _labelled(task, store, split, only)
    yield from _other_sizes(model, cases)
    known = set(model.card.get("trained_on", ()))
    seen = [c.card.id for c in cases if c.card.source_hash in known]
    if seen:
        yield Note(
            f"the model has seen {len(seen)} of these {len(cases)} cases in training "
            f"(first {seen[0]!r}): the figures flatter it.",
            "warning",
        )
    rows: list[dict[str, Any]] = []
    stopped = False
    for number, case in enumerate(cases):
        news = Progress("cases", number, len(cases), item=case.card.id)
        stopped = (yield news) is Request.STOP
        if stopped:
            break
        scores = yield from task.score(
            model, case, flips=flips, tolerance_mm=tolerance_mm
        )
        rows += [{"case": case.card.id, **score} for score in scores]
    # asked within the last case, which has no scores then
    asked = (yield Progress("cases", len(cases), len(cases))) is Request.STOP
    stopped = stopped or (asked and not scores)
    summary = task.summarise(rows)
    result = {**summary, "rows": rows, "seen": seen, "stopped": stopped}
    shown = {"columns": list(task.columns(model.spec)), "lines": task.report(result)}
    return {**result, **shown}


def _labelled(
    task: LearnedTask, store: Store, split: str, only: Sequence[str]
) -> list[CaseRef]:
    """What is scored."""
    cases = [
        CaseRef(store, card)
        for card in store.cards
        if task.usable(card)
        and split in ("all", card.split)
        and (not only or card.id in only)
    ]
    strangers = sorted(set(only) - {case.card.id for case in cases})
    if strangers:
        raise UnusableInput(
            f"{store.path} has no labelled case {strangers[0]!r} in split {split!r}."
        )
    if not cases:
        raise UnusableInput(f"{store.path} has no labelled case in split {split!r}.")
    return cases


def evaluate_folder(
    predicted: Path,
    truth: Path,
    *,
    names: Mapping[int, str] | None = None,
    tolerance_mm: float = 1.0,
) -> Job[dict[str, Any]]:
    """Score label files against label files of the same names, each on its own grid.

    Args:
        predicted: Folder of predictions.
        truth: Folder of true labels; those without a prediction are an error.
        names: As in ``evaluate_pairs``.
        tolerance_mm: Of the NSD.

    Returns:
        As ``evaluate_store``, and ``unmatched``: predictions without a true label map.

    Raises:
        UnusableInput: A true label map without prediction, or grids that differ.
    """
    pairs, unmatched = pair_files(predicted, truth)
    found = yield from evaluate_pairs(pairs, names=names, tolerance_mm=tolerance_mm)
    return {**found, "unmatched": [str(p) for p in unmatched]}


def evaluate_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
    *,
    names: Mapping[int, str] | None = None,
    tolerance_mm: float = 1.0,
) -> Job[dict[str, Any]]:
    """Score pairs of label files.

    Args:
        pairs: Case name -> (prediction, true label map).
        names: What the values of the predictions are called; only these are scored. As
            files near them say, and all that are there, if None. Where the truth names
            its labels too, names win over values.
        tolerance_mm: Of the NSD.

    Returns:
        ``rows`` (one per case and label) and ``summarise``'s keys, ``stopped``,
        ``lines`` and ``columns``.

    Raises:
        UnusableInput: Grids that differ, or names that cannot be brought together.
    """
    rows: list[dict[str, Any]] = []
    stopped = False
    for number, (name, (guess, right)) in enumerate(pairs.items()):
        stopped = (
            yield Progress("cases", number, len(pairs), item=name)
        ) is Request.STOP
        if stopped:
            break
        theirs, ours, shared = _in_truths_values(right, guess, names)
        if theirs.shape != ours.shape or not theirs.affine.close_to(
            ours.affine, theirs.shape, tolerance_voxels=0.05
        ):
            raise UnusableInput(
                f"{guess} and {right} must lie on one grid, got {ours.shape} "
                f"{ours.affine!r} and {theirs.shape} {theirs.affine!r}."
            )
        if names:
            found = {shared.second.get(v, v) for v in names}
        else:
            found = {int(v) for m in (theirs, ours) for v in np.unique(m.data) if v > 0}
        labels = {
            v: shared.names.get(v, f"label {v}")
            for v in sorted(found - shared.strangers)
        }
        sized = all(m.meta.get("sized", True) for m in (theirs, ours))
        scores = score_labels(
            ours.data,
            theirs.data.astype(np.int32),
            labels,
            # pixels of unknown size have no distances
            spacing_mm=theirs.affine.spacing_mm if sized else None,
            tolerance_mm=tolerance_mm,
        )
        rows += [{"case": name, **score} for score in scores]
    yield Progress("cases", len(pairs), len(pairs))
    result = {**summarise(rows), "rows": rows, "stopped": stopped}
    return {**result, "columns": list(COLUMNS), "lines": table_lines(result)}


def _in_truths_values(
    right: Path, guess: Path, names: Mapping[int, str] | None
) -> tuple[LabelMap, LabelMap, SharedLabels]:
    """Truth and prediction, both in the truth's values, and what these are called."""
    called = dict(names) if names else names_told(guess)
    shared = shared_labels((str(right), names_told(right)), (str(guess), called))
    theirs = mapped_labels(read_labels(right), shared.first)
    ours = labels_by_place(read_labels(guess), theirs)
    return theirs, mapped_labels(ours, shared.second), shared


def pair_files(
    predicted: Path, truth: Path
) -> tuple[dict[str, tuple[Path, Path]], list[Path]]:
    """Case name -> (prediction, true label map), and predictions left over.

    Names agree without their suffix (``.seg.nrrd`` is one) and without ``_0000``,
    ``_label``, ``_labels``, ``_seg`` or ``_mask``.
    """
    guesses, rights = _files(predicted), _files(truth)
    missing = sorted(rights.keys() - guesses.keys())
    if not rights:
        raise UnusableInput(f"{truth} holds no label map.")
    if len(missing) == len(rights):
        raise UnusableInput(
            f"no file of {predicted} is named like a label map of {truth} "
            f"(for example {rights[missing[0]].name})."
        )
    if missing:
        raise UnusableInput(
            f"{predicted} lacks {len(missing)} of {len(rights)} cases, first "
            f"{rights[missing[0]].name}; a mean without them would be false."
        )
    pairs = {name: (guesses[name], rights[name]) for name in sorted(rights)}
    return pairs, [guesses[n] for n in sorted(guesses.keys() - rights.keys())]


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UnusableInput(f"{folder} is not a folder of label maps.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_dir() or not is_scan_path(path):
            continue
        name = path.name.split(".nii")[0] if ".nii" in path.name else path.stem
        for ending in _ENDINGS:
            name = name.removesuffix(ending)
        if name in found:
            raise UnusableInput(f"{found[name]} and {path} are both named {name!r}.")
        found[name] = path
    return found


def write_tables(result: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """``metrics.csv`` (the rows) and ``metrics.json`` (everything).

    Raises:
        JobError: They could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    csv_path, json_path = folder / "metrics.csv", folder / "metrics.json"
    kept = {k: v for k, v in result.items() if k not in ("columns", "lines")}
    try:
        write_table(csv_path, result["columns"], result["rows"])
        write_json(json_path, kept)
    except OSError as error:
        raise JobError(
            f"{folder} could not be written to ({error.strerror})."
        ) from error
    return csv_path, json_path


def _other_sizes(model: Trained, cases: Sequence[CaseRef]) -> Job[None]:
    """Tell of cases whose voxels have another size than those learnt from.

    Raises:
        UnusableInput: All of them have.
    """
    learnt = model.learnt.spacing
    if model.learnt.remark:
        yield Note(model.learnt.remark, "warning")
    if learnt is None or model_preprocessing(model).spacing_mm is not None:
        return
    cards = [case.card for case in cases]
    odd = [card.id for card in cards if model.learnt.target_of_case(card) is not None]
    if not odd:
        return
    first = next(card for card in cards if card.id == odd[0])
    own = spacing_text(first.spacing_mm)
    text = (
        f"{len(odd)} of {len(cases)} cases have voxels of another size than the model "
        f"learnt at (first {odd[0]!r}: {own}, learnt at {learnt.text})"
    )
    then = "predict the scans and evaluate the files"
    if len(odd) == len(cases):
        raise UnusableInput(f"{text}; {then}.")
    yield Note(f"{text}: their figures mean little; {then}.", "warning")


def _check_recipe(model: Trained, store: Store) -> None:
    """Refuse a store whose voxels mean something else than those learnt from."""
    wanted, own = to_dict(model_preprocessing(model)), to_dict(store.preprocessing)
    plain = {"axes": "anatomical"}  # in cards of before there was a choice
    if own in [{**plain, **told} for told in model.card.get("preprocessings", ())]:
        return  # one of the several stores it learnt from
    odd = [key for key in wanted if wanted[key] != own.get(key)]
    if odd:
        text = "; ".join(f"{k} {own.get(k)!r} instead of {wanted[k]!r}" for k in odd)
        raise UnusableInput(
            f"{store.path} was prepared otherwise than the model's scans ({text}); "
            "prepare it so, or predict the scans and evaluate the files."
        )
