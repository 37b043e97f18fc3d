"""What a model's card says, in words: for the terminal and the window. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from homolog.events import stopped_words
from homolog.model_files.card import learnt_of
from homolog.store.preprocess import values_words
from homolog.words import counted, human_bytes, lengths_text, listed, spacing_text

KINDS = {
    "encoder": "encoder (features)", "segment": "segmentation",
    "classify": "classification of whole scans", "detect": "detection of boxes",
    "translate": "image to image",
    "few_voxels": "segmentation from a few painted voxels",
}  # fmt: skip
# Letters of a line in a list.
_LINE = 36
# CC BY-NC-SA, "non-commercial", "research use only" ...
_NOT_COMMERCIAL = re.compile(
    r"\bNC\b|non-?\s?commercial|not for commercial|research (use )?only|"
    r"academic (use )?only",
    re.IGNORECASE,
)
_NO_NETWORK: Mapping[str, Any] = {"name": "none: intensity and place alone"}


def title_of(card: Mapping[str, Any]) -> str:
    """``"encoder, s2dc on resunet"``; with how far it came where it was stopped."""
    backbone = (card.get("backbone") or _NO_NETWORK)["name"]
    early = stopped_words(card)
    early = f", {early}" if early else ""
    if card.get("kind") == "encoder":
        method = card.get("method") or card.get("title") or "encoder"
        return f"encoder, {method} on {backbone}{early}"
    kind, count = str(card.get("kind")), len(card.get("label_names") or {})
    if kind in ("classify", "detect"):
        classes = len((card.get("task_spec") or {}).get("classes") or ())
        return f"{KINDS[kind]}, {counted(classes, 'class')}, {backbone}{early}"
    if kind == "translate":
        return f"{KINDS[kind]}, {backbone}{early}"
    return f"{KINDS.get(kind, kind)}, {counted(count, 'label')}, {backbone}{early}"


def facts_of(
    card: Mapping[str, Any], size: int, path: Path
) -> Iterator[tuple[str, str]]:
    """(what, text) of everything a user may want to know before trusting a model.

    Args:
        card: ``model.json``.
        size: Bytes of its folder.
        path: As commands take it.
    """
    kind = str(card.get("kind"))
    yield "Kind", KINDS.get(kind, kind)
    if title := card.get("title") or card.get("method"):
        yield "Method", str(title)
    yield from _network(card)
    yield "Trained on", trained_on(card)
    if data := data_words(card):
        yield "Data", data
    yield "Licence", licence_words(card)
    yield "Voxel size", _voxel_size(card)
    yield from _published(card)
    if window := card.get("window"):
        yield "Window", lengths_text(window, "voxels")
    if card.get("kind") != "encoder" and (names := card.get("label_names")):
        yield "Labels", ", ".join(str(name) for name in names.values())
    yield from _scan_classes(card.get("task_spec") or {}, kind)
    steps = card.get("steps")
    if steps is not None:
        early = stopped_words(card)
        yield "Steps", f"{steps}" + (f" ({early})" if early else "")
    if (told := card.get("weights_of")) and stopped_words(card):
        seen = "" if told.get("validated") else ", not validated"
        yield "Weights of", f"the {told['kept']} step, {told['step']}{seen}"
    for key, word in (("dice", "Dice"), ("auc", "AUC")):
        value = (card.get("validation") or {}).get(key)
        if isinstance(value, int | float) and value == value:
            yield "Validation", f"{word} {value:.3f} {_judged_on(card)}"
    if (origin := card.get("encoder")) and isinstance(origin, Mapping):
        began = str(origin.get("source", ""))
        yield "Started from", Path(began).name if began else "random weights"
    yield from _scores(card)
    digest = str(card["sha256"].get(card["weights"], ""))
    yield "Weights", f"{human_bytes(size)}, SHA-256 {digest[:12]}"
    yield (
        "Made with",
        f"homolog {card.get('homolog_version', '?')}"
        + (f", {_day(card['created'])}" if card.get("created") else ""),
    )
    yield "Folder", str(path)


def _judged_on(card: Mapping[str, Any]) -> str:
    """On what a validation stands, and how far it can be trusted."""
    cases = card.get("cases")
    held = len(cases.get("val", ())) if isinstance(cases, Mapping) else 0
    if not held:
        return "on held-out scans"
    worst = (card.get("validation") or {}).get("worst")
    text = f"on the {counted(held, 'scan')} that chose the weights"
    if isinstance(worst, int | float) and worst == worst:
        text += f", worst {worst:.2f}"
    return text + (": few, and a new scan may differ" if held < _MANY else "")


_MANY = 20


def _published(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How the scans of another project's network were prepared, and who says so."""
    told = card.get("published")
    if told and (recipe := card.get("preprocessing")):
        yield "Values", f"{values_words(recipe)}, by {told['origin']}"
    for text in (told or {}).get("remarks", ()):
        yield "Mind", str(text)


def _network(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is kept of a network."""
    backbone = card.get("backbone") or _NO_NETWORK
    yield "Network", str(backbone["name"]) + _brief(backbone.get("config") or {})
    if decoder := card.get("decoder"):
        yield "Decoder", f"{decoder.get('kind')}, {decoder.get('width')} wide"


def _voxel_size(card: Mapping[str, Any]) -> str:
    spacing = (card.get("preprocessing") or {}).get("spacing_mm")
    if spacing is not None:
        return spacing_text(spacing)
    learnt = learnt_of(card, None)
    if learnt.spacing is not None:
        return f"{learnt.spacing.text}: other scans are brought to it"
    if learnt.remark:
        return "not stated: scans are taken at their own"
    return "each scan's own"


def _scan_classes(spec: Mapping[str, Any], kind: str) -> Iterator[tuple[str, str]]:
    """What a classifier tells of a scan."""
    if kind == "detect":
        yield "Classes", ", ".join(map(str, spec.get("classes", ())))
        if "threshold" in spec:
            yield "Told from", f"a score of {spec['threshold']:.2f}"
    if kind != "classify" or not spec.get("classes"):
        return
    how = "any or none of a scan" if spec.get("several") else "one per scan"
    yield "Classes", f"{', '.join(map(str, spec['classes']))} ({how})"
    if limits := spec.get("thresholds"):
        pairs = zip(spec["classes"], limits, strict=True)
        yield "Thresholds", ", ".join(f"{name} {p:.2f}" for name, p in pairs)
    if types := spec.get("types"):
        yield "Types", ", ".join(map(str, types))
    if spec.get("slices"):
        yield "Slices", "tells which slices show a finding"


def trained_on(card: Mapping[str, Any]) -> str:
    """How many scans of which modalities a model learnt from."""
    cases, kinds = card.get("cases"), card.get("modalities")
    if isinstance(cases, Mapping):
        count = len(cases.get("train", ()))
        held = len(cases.get("val", ()))
        text = f"{count} scans" + (f", {held} more chose the weights" if held else "")
    elif isinstance(cases, int):
        text = f"{cases} scans"
    elif card.get("trained_on"):
        text = f"{len(card['trained_on'])} scans"
    else:
        return "unknown: the file does not say"
    kinds = kinds or (card.get("task_spec") or {}).get("modalities")
    if kinds:
        text += f" ({', '.join(str(k) for k in kinds)})"
    return text


def data_words(card: Mapping[str, Any]) -> str:
    """Data sets by name, each with its licence; empty where the card names none."""
    parts = []
    for one in card.get("data") or ():
        scans = f", {counted(one['scans'], 'scan')}" if one.get("scans") else ""
        parts.append(f"{one.get('name')} ({one.get('licence') or 'no licence'}{scans})")
    return listed(parts)


def _scores(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was measured on scans it never saw, against random weights."""
    for one in card.get("scores") or ():
        unit = f" {one['unit']}" if one.get("unit") else ""
        text = f"{one.get('what')} {_number(one.get('value'))}{unit}"
        text += f" on {one['on']}" if one.get("on") else ""
        if (other := one.get("random")) is not None:
            text += f" (random weights {_number(other)}{unit})"
        yield "Score", text


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)


def scan_kinds(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Modalities that a model learnt from, by name; empty where nobody says."""
    told = (card.get("task_spec") or {}).get("modalities") or card.get("modalities")
    return tuple(sorted(str(kind) for kind in told or ()))


def licence_words(card: Mapping[str, Any]) -> str:
    """The licence of the weights, and plainly what it means for whoever uses them."""
    told, kind = _licence(card)
    if kind == "unknown":
        text = told or "not stated"
        return f"{text} (ask whoever made it before you pass on what it makes)"
    return f"{told} (not for commercial use)" if kind == "not commercial" else told


def licence_line(card: Mapping[str, Any]) -> str:
    """The same for a narrow list."""
    told, kind = _licence(card)
    if kind == "unknown":
        return "⚠ Licence not stated"
    brief = told.split(" (")[0]  # the card has what stands in brackets
    line = f"⚠ Not commercial: {brief}" if kind else f"Licence: {brief}"
    return line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"


def _licence(card: Mapping[str, Any]) -> tuple[str, str]:
    """What a card says; and ``unknown``, ``not commercial`` or nothing more to say."""
    told = str(card.get("licence") or "").strip()
    if not told or told.lower().startswith(("unknown", "not stated")):
        return told, "unknown"
    return told, "not commercial" if _NOT_COMMERCIAL.search(told) else ""


def _brief(config: Mapping[str, Any]) -> str:
    shown = {
        k: v for k, v in config.items() if k != "in_channels" and v not in ([], None)
    }
    parts = [f"{k} {v}".replace("[", "").replace("]", "") for k, v in shown.items()]
    return f" ({', '.join(parts[:3])})" if parts else ""


def _day(text: str) -> str:
    return str(text).partition("T")[0]
