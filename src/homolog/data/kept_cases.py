"""What a store has already and new sources lack: it stays, unless it is asked to go.

A case stays as it is, so the store's recipe and its label values hold for the new ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from homolog.config import from_dict
from homolog.data.card import Card
from homolog.data.case_source import CaseSource, Rejected
from homolog.data.label_joining import JoinedCases, join_cases
from homolog.data.label_names import has_name
from homolog.data.label_naming import parse_names
from homolog.data.preprocess import Preprocessing
from homolog.data.problems import Unsound
from homolog.data.store import case_folder, read_card, read_contents
from homolog.errors import UnusableInput
from homolog.geometry.affine import Triple

# A scan that was sound once and cannot be read now; what the store holds of it is.
_BROKEN = frozenset(
    ("missing", "empty", "unreadable", "truncated", "corrupt", "missing_slice")
)
_AGREE = 0.05  # of voxel sizes that count as one
_LISTED = 5
_WORDS = {"window_hu": "window (HU)", "percentiles": "percentiles"}
# What stands for the kept cases where labels are joined; no case has such a name.
_STORE = "the store"


@dataclass(frozen=True)
class Before:
    """A store before it is prepared again.

    Attributes:
        cards: Its cases, by id; those of an unfinished preparation are not among them.
        contents: Of ``store.json``; empty where there was none, or a damaged one.
        damage: Why ``store.json`` could not be read; empty where it could.
    """

    cards: Mapping[str, Card] = field(default_factory=dict)
    contents: Mapping[str, Any] = field(default_factory=dict)
    damage: str = ""

    @property
    def recipe(self) -> Preprocessing:
        """What its cases were prepared with."""
        return from_dict(
            Preprocessing, self.contents["preprocessing"], where="store.json"
        )

    @property
    def names(self) -> dict[int, str]:
        """Label value -> name."""
        return parse_names(self.contents.get("label_names"))


def before(out: Path) -> Before:
    """What a store holds; nothing where there is none yet."""
    try:
        contents = read_contents(out) or {}
    except UnusableInput as error:
        return Before(damage=str(error))
    cards = {}
    for case_id, entry in contents.get("cases", {}).items():
        card = read_card(case_folder(out, case_id))
        if card is not None and card.key == entry["key"]:
            cards[case_id] = card
    return Before(cards, contents)


def kept_cards(
    old: Before, cases: Sequence[CaseSource], refused: Sequence[Rejected]
) -> list[Card]:
    """Cases that the sources lack.

    One whose scan is among the sources under another name, or is refused by now for
    what it is, does not count; one whose file is merely damaged since does.
    """
    ids = {case.id for case in cases}
    paths = {str(case.image.absolute()) for case in cases}
    out = {str(Path(one.path).absolute()) for one in refused if one.code not in _BROKEN}
    return [
        card
        for card in old.cards.values()
        if card.id not in ids
        and card.source not in paths | out
        and card.label_source not in out
    ]


def check_same_scans(old: Before, cases: Sequence[CaseSource], out: Path) -> None:
    """Refuse sources that call another scan as the store calls one of its own.

    Raises:
        UnusableInput: Names the first of them.
    """
    from homolog.data.scan_io import scan_hash

    by_name = {case_id.lower(): card for case_id, card in old.cards.items()}
    clashes = []
    for case in cases:
        card = by_name.get(case.id.lower())
        if card is None or card.source == str(case.image.absolute()):
            continue
        try:
            same = card.source_hash == scan_hash(case.image)
        except Exception:  # noqa: BLE001
            continue  # its own turn comes, and then its reason is told
        if not same or case.id != card.id:
            clashes.append((case, card))
    if clashes:
        case, card = clashes[0]
        many = f" (and {len(clashes) - 1} more)" if len(clashes) > 1 else ""
        raise UnusableInput(
            f"the store {out} has a case {card.id!r} of {card.source}, and "
            f"{case.image} is another scan of that name{many}; choose another --out, "
            "name all sources in one prepare, or say --replace."
        )


def recipe_for(
    kept: Sequence[Card],
    old: Before,
    asked: Preprocessing | None,
    spacing: Triple | str | None,
    grids: Sequence[Triple],
) -> tuple[Preprocessing, Triple | str]:
    """The recipe of a store that keeps cases: theirs; what was asked must agree.

    Args:
        kept: At least one.
        old: The store.
        asked: What was asked for; settings left as they are by default follow.
        spacing: What was asked for.
        grids: Voxel sizes (mm) of the new scans that are volumes.

    Returns:
        Recipe without its voxel size, and what to choose that by.

    Raises:
        UnusableInput: What was asked differs from what the kept cases have.
    """
    recipe, plain = old.recipe, Preprocessing()
    wanted = asked or plain
    changes = {}
    for name, word in _WORDS.items():
        new, own = getattr(wanted, name), getattr(recipe, name)
        if new not in (getattr(plain, name), own):
            changes[word] = (new, own)
    if spacing is None:
        spacing = wanted.spacing_mm or ("native" if asked else "auto")
    own_mm: Triple | str = recipe.spacing_mm or common_mm(kept) or "native"
    agrees = spacing in ("auto", own_mm)
    agrees |= isinstance(spacing, tuple) and _close(spacing, own_mm)
    agrees |= spacing == "native" and recipe.spacing_mm is None
    if not agrees:
        changes["voxel size"] = (spacing, own_mm)
    if changes:
        word, (new, own) = next(iter(changes.items()))
        raise UnusableInput(
            f"{_cases(kept)} of the store are not in these sources and have the {word} "
            f"{_text(own)}, not {_text(new)}; leave that as it was, name all sources "
            "in one prepare, or let those cases go with --replace."
        )
    if recipe.spacing_mm is None and (
        spacing == "native" or all(_close(g, own_mm) for g in grids)
    ):
        own_mm = "native"
    modality = asked.modality if asked else None
    return dataclasses.replace(recipe, modality=modality, spacing_mm=None), own_mm


def common_mm(cards: Sequence[Card]) -> Triple | None:
    """Voxel size that volumes share; None where they do not."""
    sizes = np.array([c.spacing_mm for c in cards if min(c.shape) > 1])
    if not len(sizes):
        return None
    z, y, x = (float(f"{v:.4g}") for v in np.median(sizes, axis=0))
    shared = all(_close(tuple(row), (z, y, x)) for row in sizes)
    return (z, y, x) if shared else None


def _close(a: object, b: object) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return False
    one, other = np.asarray(a, float), np.asarray(b, float)
    return bool((np.abs(one / other - 1.0) <= _AGREE).all())


def join_with_kept(
    cases: Sequence[CaseSource],
    kept: Sequence[Card],
    old: Before,
    given: Mapping[int, str],
) -> JoinedCases:
    """Labels of new cases in the store's values, which kept cases already have.

    Returns:
        The new cases; the last one stands for the kept ones and carries their names.

    Raises:
        UnusableInput: A kept case would need other values.
    """
    names = {v: n for v, n in old.names.items() if has_name(v, n)}
    held = frozenset(value for card in kept for value in card.label_values)
    own = CaseSource(
        id=_STORE, image=Path(_STORE), label_values=held,
        label_names={v: names[v] for v in sorted(held) if v in names},
    )  # fmt: skip
    # once more than there are new ones: a name has the value that most give it
    copies = len(cases) + 1
    joined = join_cases([*[own] * copies, *cases], given)
    ours = [case for case in joined.cases if case.id == _STORE]
    if len(ours) < copies or any(case.label_map for case in ours):
        reason = joined.refused[0].reason.rstrip(".") if joined.refused else ""
        raise UnusableInput(
            f"{_cases(kept)} of the store are not in these sources, and their labels "
            f"cannot be brought together with the new ones"
            f"{f' ({reason})' if reason else ''}; say what the labels are with "
            "--names, choose another --out, or let those cases go with --replace."
        )
    fresh = [case for case in joined.cases if case.id != _STORE]
    return dataclasses.replace(joined, cases=(*fresh, ours[0]))


def still_lacking(kept: Sequence[Card], built: Sequence[Card]) -> list[Card]:
    """Those of the kept cases whose very scan did not come in under another name."""
    by_scan = {card.source_hash: card for card in built}
    left = []
    for card in kept:
        twin = by_scan.get(card.source_hash)
        same = twin is not None and (
            not card.is_labelled
            or (twin.label_counts, twin.target) == (card.label_counts, card.target)
        )
        if not same:
            left.append(card)
    return left


def listed(ids: Sequence[str]) -> str:
    """``a, b and 3 more``."""
    if len(ids) <= _LISTED:
        return ", ".join(ids)
    return f"{', '.join(ids[: _LISTED - 1])} and {len(ids) - _LISTED + 1} more"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{number:g}" for number in value)
    return str(value)


def _cases(cards: Sequence[Card]) -> str:
    return f"{len(cards)} case{'s' if len(cards) != 1 else ''}"


def is_refusal(error: Exception) -> bool:
    """Whether a scan is refused for what it is, not for being broken by now."""
    return isinstance(error, Unsound) and error.problem.code not in _BROKEN
