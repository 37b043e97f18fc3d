"""What a model's card says, in words; no Qt, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from homolog.data.learnt_spacing import learnt_of
from homolog.events import stopped_words
from homolog.geometry.places import lengths_text, spacing_text
from homolog.gui.runs.words import size_words

KINDS = {
    "encoder": "encoder (features)", "segment": "segmentation",
    "classify": "classification of whole scans",
    "few_voxels": "segmentation from a few painted voxels",
}  # fmt: skip
_NO_NETWORK: Mapping[str, Any] = {"name": "none: intensity and place alone"}


def title_of(card: Mapping[str, Any]) -> str:
    """``"encoder, s2dc on resunet"``; with how far it came where it was stopped."""
    backbone = (card.get("backbone") or _NO_NETWORK)["name"]
    early = stopped_words(card)
    early = f", {early}" if early else ""
    if card.get("kind") == "encoder":
        method = card.get("method") or "encoder"
        return f"encoder, {method} on {backbone}{early}"
    kind, count = str(card.get("kind")), len(card.get("label_names") or {})
    if kind == "classify":
        classes = len((card.get("task_spec") or {}).get("classes") or ())
        plural = "es" * (classes != 1)
        return f"{KINDS[kind]}, {classes} class{plural}, {backbone}{early}"
    return f"{KINDS.get(kind, kind)}, {count} labels, {backbone}{early}"


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
    backbone = card.get("backbone") or _NO_NETWORK
    yield "Network", str(backbone["name"]) + _brief(backbone.get("config") or {})
    yield "Trained on", _trained_on(card)
    spacing = (card.get("preprocessing") or {}).get("spacing_mm")
    own = "each scan's own" if spacing is None else spacing_text(spacing)
    if spacing is None:
        learnt = learnt_of(card, None)
        if learnt.spacing is not None:
            own = f"{learnt.spacing.text}: other scans are brought to it"
        elif learnt.remark:
            own = "not stated: scans are taken at their own"
    yield "Voxel size", own
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
            yield "Validation", f"{word} {value:.3f} on held-out scans"
    if (origin := card.get("encoder")) and isinstance(origin, Mapping):
        began = str(origin.get("source", ""))
        yield "Started from", Path(began).name if began else "random weights"
    yield "Licence", str(card.get("licence") or "not stated")
    digest = str(card["sha256"].get(card["weights"], ""))
    yield "Weights", f"{size_words(size)}, SHA-256 {digest[:12]}"
    yield (
        "Made with",
        f"homolog {card.get('homolog_version', '?')}"
        + (f", {_day(card['created'])}" if card.get("created") else ""),
    )
    yield "Folder", str(path)


def _scan_classes(spec: Mapping[str, Any], kind: str) -> Iterator[tuple[str, str]]:
    """What a classifier tells of a scan."""
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


def _trained_on(card: Mapping[str, Any]) -> str:
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


def _brief(config: Mapping[str, Any]) -> str:
    shown = {
        k: v for k, v in config.items() if k != "in_channels" and v not in ([], None)
    }
    parts = [f"{k} {v}".replace("[", "").replace("]", "") for k, v in shown.items()]
    return f" ({', '.join(parts[:3])})" if parts else ""


def _day(text: str) -> str:
    return str(text).partition("T")[0]
