"""Names of labels and of findings, as texts, and colours by name; reads no file.

Several findings of one scan are one text, ``effusion|nodule`` or ``no finding``: so
tables, cards and models name them. An empty cell is no answer: it is not known what the
scan shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from homolog.errors import UnusableInput

Colour = tuple[float, float, float]  # red, green, blue, 0..1

SEPARATOR = "|"
NONE = "no finding"
# A label of this name teaches nothing (nnU-Net).
IGNORE = "ignore"
# Classes of scans that hold nothing to be found, unless the user names others.
EMPTY_CLASSES = ("normal", "healthy")
# What tables write for a scan that was read and shows none of the findings.
_NONE_WORDS = {NONE, "no findings", "no_finding", "none"}

# Colours of the phantom's labels by name; others take the spare ones in turn.
LABEL_COLOURS: Mapping[str, Colour] = {
    "liver": (0.80, 0.45, 0.30),
    "spleen": (0.62, 0.40, 0.75),
    "kidney_right": (0.95, 0.75, 0.25),
    "kidney_left": (0.98, 0.85, 0.45),
    "lung_right": (0.35, 0.65, 0.90),
    "lung_left": (0.50, 0.78, 0.95),
    "heart": (0.90, 0.25, 0.35),
    "stomach": (0.40, 0.75, 0.60),
    "aorta": (1.00, 0.10, 0.15),
    "vena_cava": (0.20, 0.35, 0.95),
    "vertebrae": (0.93, 0.90, 0.78),
    "pancreas": (0.95, 0.60, 0.65),
    "gallbladder": (0.45, 0.80, 0.25),
}
_SPARE: tuple[Colour, ...] = (
    (0.90, 0.60, 0.00), (0.34, 0.71, 0.91), (0.00, 0.62, 0.45), (0.94, 0.89, 0.26),
    (0.84, 0.37, 0.00), (0.80, 0.47, 0.65), (0.60, 0.60, 0.60), (0.55, 0.85, 0.35),
)  # fmt: skip


def parse_names(raw: Any) -> dict[int, str]:
    """``{"1": "liver"}`` or ``{"liver": 1}`` -> value: name; regions are skipped."""
    if not isinstance(raw, Mapping):
        return {}
    names = {}
    for key, value in raw.items():
        if isinstance(value, str) and _is_whole(key):
            names[int(key)] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            names[value] = str(key)
    return dict(sorted(names.items()))


def parse_regions(raw: Any) -> dict[str, tuple[int, ...]]:
    """``{"tumour": [1, 2]}`` -> name: values, of the entries that name several."""
    if not isinstance(raw, Mapping):
        return {}
    found = {
        str(name): tuple(int(v) for v in values)
        for name, values in raw.items()
        if isinstance(values, list) and all(_is_whole(v) for v in values)
    }
    return {name: values for name, values in found.items() if values}


def names_with_regions(raw: Any) -> dict[int, str]:
    """As ``parse_names``; a value that only regions name is the rest of the smallest.

    Source: nnU-Net v2, region-based training: ``"whole tumour": [1, 2, 3]``.
    """
    names = parse_names(raw)
    regions = sorted(parse_regions(raw).items(), key=lambda pair: len(pair[1]))
    for name, values in regions:
        left = [v for v in values if v not in names]
        for value in left:
            alone = len(values) == 1
            rest = f"rest of {name}" if len(left) == 1 else f"{name} {value}"
            names[value] = name if alone else rest
    return dict(sorted(names.items()))


def is_ignore(name: str) -> bool:
    """Whether a label of this name says that its voxels teach nothing."""
    return key_of(name) == IGNORE


def key_of(name: str) -> str:
    """Names of one key are one name."""
    return " ".join(name.split()).casefold()


def _is_whole(text: object) -> bool:
    digits = str(text).removeprefix("-")
    return digits.isdecimal() and len(digits) < 19


def holds_nothing(target: str | None, names: Iterable[str] = EMPTY_CLASSES) -> bool:
    """Whether a scan's class says that there is nothing to find in it.

    Args:
        target: Its class; None where it is not known.
        names: Classes that say so, beside ``no finding``.
    """
    if target is None:
        return False
    return says_none(target) or key_of(target) in {key_of(name) for name in names}


def findings_of(text: str) -> tuple[str, ...]:
    """``"nodule|effusion"`` -> ``("effusion", "nodule")``; empty for ``no finding``."""
    if says_none(text):
        return ()
    parts = (part.strip() for part in text.split(SEPARATOR))
    return tuple(sorted({part for part in parts if part}))


def findings_text(names: Iterable[str]) -> str:
    """Inverse of ``findings_of``."""
    return SEPARATOR.join(sorted(set(names))) or NONE


def says_none(text: str | None) -> bool:
    """Whether a scan was read and shows none of the findings."""
    return text is not None and text.strip().lower() in _NONE_WORDS


def has_several(text: str) -> bool:
    """Whether more than one finding is named."""
    return SEPARATOR in text


def findings_cell(value: Any) -> str | None:
    """What a table's cell, or a JSON list, says of a scan; None where it is silent.

    A single name stays as it is written.

    Raises:
        UnusableInput: No finding and one, in one cell.
    """
    if isinstance(value, list | tuple):
        names = [str(part).strip() for part in value]
        return _together(names) if names else NONE
    text = "" if value is None else str(value).strip()
    return _together(text.split(SEPARATOR)) if has_several(text) else text or None


def merged_findings(first: str | None, second: str | None) -> str | None:
    """What two rows about one scan say together."""
    if first is None or second is None or first == second:
        return first if second is None else second
    return findings_text({*findings_of(first), *findings_of(second)})


def _together(parts: Iterable[str]) -> str | None:
    names = [part.strip() for part in parts if part.strip()]
    found = [name for name in names if not says_none(name)]
    if found and len(found) < len(names):
        raise UnusableInput(
            f"a scan shows findings or none, got {SEPARATOR.join(names)!r}."
        )
    if len(found) == 1:
        return found[0]
    return findings_text(found) if names else None


def colours_of(names: Mapping[int, str]) -> dict[int, Colour]:
    """A colour per label value."""
    spare = iter(_SPARE * (1 + len(names) // len(_SPARE)))
    return {v: LABEL_COLOURS.get(n) or next(spare) for v, n in sorted(names.items())}
