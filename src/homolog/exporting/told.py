"""What an exported model says of itself: a card without paths, and pages to read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

from homolog import __version__
from homolog.events import stopped_words
from homolog.store.preprocess import values_words
from homolog.words import listed

CARD_FILE = "card.json"  # not model.json: it is no model folder of ours
UNSTATED = "not stated by those who trained it"
_PATH = re.compile(r"^(/|[A-Za-z]:[\\/]|~/)[^\n]*$")


def public_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card for others.

    Paths of this machine become the names at their ends; the weight files of the model
    folder are not named, for others lie beside it.
    """
    kept = {key: card[key] for key in card if key not in ("weights", "sha256")}
    return {str(key): _public(value) for key, value in kept.items()}


def _public(value: Any) -> Any:
    if isinstance(value, str):
        return PureWindowsPath(value).name if _PATH.match(value) else value
    if isinstance(value, Mapping):
        return {str(key): _public(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_public(inner) for inner in value]
    return value


def licence_of(card: Mapping[str, Any]) -> str:
    """The licence of the weights in words."""
    return str(card.get("licence") or UNSTATED)


def labels_of(card: Mapping[str, Any]) -> dict[int, str]:
    """Value -> name of what a model labels, background first; classes by number."""
    spec = card.get("task_spec") or {}
    if names := spec.get("label_names"):
        return {0: "background"} | {int(v): str(n) for v, n in names.items()}
    return dict(enumerate(map(str, spec.get("classes") or ())))


def title_of(card: Mapping[str, Any]) -> str:
    """``Homolog segment model on resunet``."""
    told = card.get("title")
    if told:
        return str(told)
    backbone = (card.get("backbone") or {}).get("name")
    kind = card.get("kind") or "encoder"
    what = "encoder" if kind == "encoder" else f"{kind} model"
    return f"Homolog {what} on {backbone}" if backbone else f"Homolog {what}"


def card_lines(card: Mapping[str, Any]) -> list[str]:
    """What is known of a model, as lines of Markdown."""
    backbone = card.get("backbone") or {}
    lines = ["## The model", ""]
    if backbone:
        lines.append(f"- network: `{backbone['name']}`")
    if method := card.get("method"):
        lines.append(f"- pretrained by: {method}")
    encoder = card.get("encoder") or {}
    if encoder.get("source") == "scratch":
        lines.append("- encoder: trained from random weights")
    elif encoder:
        by = encoder.get("method")
        lines.append("- encoder: pretrained" + (f" by {by}" if by else ""))
    if labels := labels_of(card):
        text = ", ".join(f"{value} {name}" for value, name in labels.items())
        lines.append(f"- labels: {text}")
    if steps := card.get("steps"):
        lines.append(f"- training: {stopped_words(card) or f'{steps} steps'}")
    lines += _data_lines(card)
    if scores := {
        k: v for k, v in (card.get("validation") or {}).items() if _is_number(v)
    }:
        text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        lines.append(f"- on held-out cases: {text}")
    lines += ["", "## Scans", ""]
    lines += preprocessing_lines(card)
    lines += ["", "## Licence", "", f"Of the weights: {licence_of(card)}."]
    if told := card.get("deviations"):
        several = isinstance(told, Sequence) and not isinstance(told, str)
        parts = list(map(str, told)) if several else [str(told)]
        lines += ["", "## Differs from the paper", "", *(f"- {p}" for p in parts)]
    made = card.get("homolog_version") or __version__
    return [*lines, "", f"Made by Homolog {made}, exported by Homolog {__version__}."]


def _data_lines(card: Mapping[str, Any]) -> list[str]:
    cases = card.get("cases")
    count = len(cases.get("train", ())) if isinstance(cases, Mapping) else cases
    kinds = card.get("modalities") or (card.get("task_spec") or {}).get("modalities")
    if isinstance(kinds, Mapping):
        kinds = sorted(kinds)
    lines = []
    if count:
        lines.append(f"- learnt from: {count} scans" + _of(kinds))
    if data := card.get("data"):
        lines.append(f"- data: {data}")
    return lines


def _of(kinds: Any) -> str:
    return f" ({listed(list(map(str, kinds)))})" if kinds else ""


def preprocessing_lines(card: Mapping[str, Any]) -> list[str]:
    """How scans are prepared for the network, in words."""
    how = card.get("preprocessing") or {}
    learnt = card.get("learnt_spacing_mm")
    lines = []
    if how.get("axes") == "acquired":
        lines.append("- axes: z across the slices as acquired, else as in the file")
    else:
        lines.append(
            "- axes: nearest to z, y, x of the body (array axes run to the head, the "
            "back and the left)"
        )
    if how.get("spacing_mm"):
        lines.append(f"- voxel size: {_sizes(how['spacing_mm'])} mm (z, y, x)")
    elif learnt:
        low, high = learnt["smallest"], learnt["largest"]
        lines.append(
            f"- voxel size: brought into {_sizes(low)} to {_sizes(high)} mm (z, y, x)"
        )
    window, shares = how.get("window_hu"), how.get("percentiles")
    modality = how.get("modality")
    if how.get("scaling", "usual") != "usual":
        lines.append(f"- values: {values_words(how)}")
        window = shares = None
    if window and modality in (None, "CT"):
        lines.append(f"- CT: {window[0]:g} to {window[1]:g} HU become -1 to 1")
    if shares and modality != "CT":
        lines.append(
            f"- {modality or 'others'}: clipped at the {shares[0]:g} and "
            f"{shares[1]:g} percentile of the body, less its mean, by its standard "
            "deviation"
        )
    if size := (card.get("task_spec") or {}).get("window") or card.get("window"):
        lines.append(f"- window: {' x '.join(map(str, size))} voxels (z, y, x)")
    return lines


def _sizes(values: Sequence[Any]) -> str:
    return " x ".join("any" if v is None else f"{v:.3g}" for v in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
