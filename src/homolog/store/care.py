"""Is a store still what was written? Every byte is read; what is damaged is mended."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homolog.config import from_dict
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Progress, Request
from homolog.index.datasets import CaseSource
from homolog.scans.problems import sentence_of
from homolog.store.build import unlisted, writing
from homolog.store.card import Card, boxes_on_grid
from homolog.store.cases import (
    build_case,
    case_hash,
    case_key,
    checksums,
    damages,
    write_card,
)
from homolog.store.pairs import read_pairs
from homolog.store.preprocess import Preprocessing
from homolog.store.store import (
    LABELS_MADE,
    LOCK,
    case_folder,
    depth_in,
    read_card,
    read_contents,
)
from homolog.writing import is_locked, write_json


@dataclass
class StoreReport:
    """The state of a store.

    Attributes:
        store: Its folder.
        cases: How many it lists.
        bytes: That were read.
        damaged: Of every damaged file its ``case``, ``file`` and ``what`` is wrong.
        mended: Cases that were made anew from their source.
        sealed: Cases that were given checksums.
        unsealed: Cases without, which an earlier version made.
        problems: What is left to do, in sentences.
        hints: What a user may want to know.
        stopped: Whether it was stopped before its end.
    """

    store: str
    cases: int = 0
    bytes: int = 0
    damaged: list[dict[str, str]] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    sealed: list[str] = field(default_factory=list)
    unsealed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    stopped: bool = False


def care_for(store: Path, *, repair: bool = False) -> Job[StoreReport]:
    """Compare every file of a store with its checksum.

    Args:
        store: The folder.
        repair: Make damaged cases anew from their scans where those are the same as
            ever, and give cases of earlier versions their checksums.

    Raises:
        UnusableInput: No store there, or another process is writing into it.
    """
    contents = read_contents(store)
    if contents is None:
        raise UnusableInput(f"{store} is not a finished store (no store.json).")
    if not repair and is_locked(store / LOCK):
        raise UnusableInput(f"another process is writing into the store {store}.")
    report = StoreReport(str(store), cases=len(contents["cases"]))
    with writing(store) if repair else contextlib.nullcontext():
        for number, case_id in enumerate(contents["cases"]):
            request = yield Progress("check", number, report.cases, case_id)
            if request is Request.STOP:
                report.stopped = True
                return report
            yield from _case(store, case_id, contents, report, repair=repair)
        yield Progress("check", report.cases, report.cases)
    _rest(store, report)
    return report


def _case(
    store: Path,
    case_id: str,
    contents: dict[str, Any],
    report: StoreReport,
    *,
    repair: bool,
) -> Job[None]:
    folder = case_folder(store, case_id)
    card = read_card(folder)
    if card is None or card.key != contents["cases"][case_id]["key"]:
        what = "it is missing, damaged, or of a preparation that did not finish"
        report.damaged.append({"case": case_id, "file": "card.json", "what": what})
        report.problems.append(
            f"{case_id}: card.json: {what}; run the same prepare again."
        )
        return
    report.bytes += sum(card.files.values())
    wrong = damages(folder, card)
    for name, words in wrong.items():
        report.damaged.append({"case": case_id, "file": name, "what": words})
        yield Note(f"{case_id}: {name} is damaged: {words}.", "warning")
    if not wrong and not card.checksums:
        if repair:
            seal(folder, card)
            report.sealed.append(case_id)
        else:
            report.unsealed.append(case_id)
    if wrong and not repair:
        can = "its scan is there" if Path(card.source).exists() else "its scan is gone"
        report.problems.append(
            f"{case_id}: {', '.join(wrong)} damaged ({can}: {card.source})."
        )
    elif wrong:
        try:
            mend(store, card, contents)
            report.mended.append(case_id)
            yield Note(f"{case_id} was made anew from {card.source}.")
        except Exception as error:  # noqa: BLE001 - the other cases are looked at
            report.problems.append(
                f"{case_id} could not be mended: {sentence_of(error)}"
            )
    for words in _depth(folder, card, repair=repair):
        report.damaged.append({"case": case_id, "file": "depth.b2nd", "what": words})
        yield Note(f"{case_id}: depth.b2nd is damaged: {words}.", "warning")
        if not repair:
            report.problems.append(f"{case_id}: depth.b2nd damaged.")


def seal(folder: Path, card: Card) -> Card:
    """Give a case checksums of what it holds now."""
    card = dataclasses.replace(card, checksums=checksums(folder, card))
    write_card(card, folder)
    return card


def mend(store: Path, card: Card, contents: dict[str, Any]) -> Card:
    """Make a case anew from its scan; the caller may write into the store.

    Args:
        store: The folder.
        card: Of the case; it is sound, its files need not be.
        contents: Of ``store.json``, which is written anew where the case's key changed.

    Raises:
        UnusableInput: The scan is gone or another one by now, or its labels were
            carried.
    """
    if LABELS_MADE in contents:
        raise UnusableInput(
            "its labels were carried from others and lie in no file; make this store "
            "anew with the same propagate."
        )
    image = Path(card.source)
    if case_hash(image, card.channel_sources) != card.source_hash:
        raise UnusableInput(f"its scan {image} has changed since; run prepare again.")
    own, grid = card.original["affine"], card.affine
    source = CaseSource(
        id=card.id, image=image,
        label=Path(card.label_source) if card.label_source else None,
        modality=card.modality, subject=card.subject, split=card.split,
        target=card.target, types=card.types,
        boxes=boxes_on_grid(card.boxes, grid, own), label_map=card.label_map,
        channels=card.channel_sources,
    )  # fmt: skip
    recipe = from_dict(Preprocessing, contents["preprocessing"], where=str(store))
    recipe = dataclasses.replace(recipe, modality=card.modality)
    key = case_key(source, recipe)
    seed = int(contents.get("splits", {}).get("seed", 0))
    made = build_case(source, store, recipe, key, seed)
    made = dataclasses.replace(made, boxes=card.boxes)
    write_card(made, case_folder(store, card.id))
    if key != card.key:
        contents["cases"][card.id]["key"] = key
        write_json(store / "store.json", contents, end="")
    return made


def _depth(folder: Path, card: Card, *, repair: bool) -> Iterator[str]:
    """What is wrong with the map of depths, which is made again where it is missing."""
    depth = depth_in(folder, card)
    if depth is None:
        return
    if wrong := depth.damage():
        yield wrong
        if repair:
            (folder / "depth.json").unlink()
            (folder / "depth.b2nd").unlink(missing_ok=True)


def _rest(store: Path, report: StoreReport) -> None:
    """What lies beside the cases."""
    try:
        read_pairs(store)
    except UnusableInput as error:
        report.problems.append(str(error))
    if report.unsealed:
        report.hints.append(
            f"{len(report.unsealed)} of {report.cases} cases have no checksums (an "
            "earlier version made them): they unpack, but other damage cannot be "
            f"seen. They get some with: homolog doctor {store} --repair"
        )
    if left := unlisted(store):
        report.hints.append(
            f"{len(left)} prepared cases are not part of the store (a preparation did "
            "not finish); prepare their sources again to take them in."
        )
