"""A probe in plain words: has an encoder learnt, what, and which one is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from homolog.probe.scores import Figure
from homolog.words import duration, listed

# Times that differ less than this are alike.
_MUCH = 1.3
_WORDS = {
    True: "learnt", None: "cannot be told", False: "nothing learnt that shows here",
}  # fmt: skip


def verdict(entry: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of one encoder.

    Args:
        entry: Its ``name``, ``main`` set and ``features``.
        result: ``no_network``, ``chance`` and ``judged``.

    Returns:
        ``learnt`` (None where it cannot be told), ``value`` (balanced accuracy of the
        linear probe on the main set), ``best_map``, and ``verdict``, a sentence or two.
    """
    sets = {s["features"]: s for s in entry["features"]}
    main = sets[entry["main"]]["linear"]
    value, random, gain = main["value"], main["random"], main["gain"]
    grey, place = (s["linear"]["value"] for s in result["no_network"][:2])
    learnt = _learnt(main)
    best = _best_map(entry)
    text = (
        f"{entry['name']}: {_head(learnt, gain)}. Linear probe balanced accuracy "
        f"{_two(value)} against {_two(random['value'])} of random weights "
        f"(difference {_signed(gain)}), {_two(grey)} of grey values"
    )
    text += f", {_two(result['chance'])} by chance" if grey is None else ""
    told = [(f"best map: {best}", best)] if best else []
    told += [(n, n) for n in sets if n.startswith("decoder ") and n != best]
    for word, name in told:
        known = sets[name]["linear"]
        text += (
            f"; {word} ({_two(known['value'])} against "
            f"{_two(known['random']['value'])} of random weights)"
        )
    text += "."
    if value is not None and grey is not None and grey > value:
        text += " Grey values alone do better."
    if value is not None and place is not None and place > value:
        what = (
            "the place in the body alone" if result["kind"] == "labels"
            else "the size of the scan alone"
        )  # fmt: skip
        text += f" Mind that {what} reaches {_two(place)}."
    return {
        "learnt": learnt, "value": value, "best_map": best, "verdict": text,
    }  # fmt: skip


def _learnt(main: Mapping[str, Any]) -> bool | None:
    """Ahead of random weights in every patient's light, and of each of them."""
    value, gain = main["value"], main["gain"]
    known = [v for v in main["random"]["each"] if v is not None]
    if value is None or gain["low"] is None or not known:
        return None
    return bool(gain["low"] > 0 and value > max(known))


def _head(learnt: bool | None, gain: Mapping[str, Any]) -> str:
    if learnt is False and gain["high"] is not None and gain["high"] < 0:
        return "worse than random weights"
    return _WORDS[learnt]


def _best_map(entry: Mapping[str, Any]) -> str | None:
    """The single map that tells labels apart best."""
    known = [
        (s["linear"]["value"], s["features"])
        for s in entry["features"]
        if s["features"].startswith(("stride ", "decoder "))
        and s["linear"]["value"] is not None
    ]
    return max(known)[1] if len(known) > 1 else None


def best_of(order: Sequence[Mapping[str, Any]], ahead: Figure) -> str:
    """A sentence for several encoders.

    Args:
        order: Their entries, best first.
        ahead: How far the first is ahead of the second, patient by patient.
    """
    first, second = order[:2]
    two = f"{first['name']} ({_two(first['value'])})"
    other = f"{second['name']} ({_two(second['value'])})"
    gain = _signed(ahead.to_dict())
    if ahead.low is not None and ahead.low > 0:
        text = f"Best of {len(order)}: {two}, ahead of {other} by {gain}."
    else:
        alike = [first, second, *filter(_is_level, order[2:])]
        text = f"{two} and {other} cannot be told apart here ({gain})."
        if more := alike[2:]:
            names = listed(f"{e['name']} ({_two(e['value'])})" for e in more)
            text += f" Nor can {names} be told from the best."
        text += _cheapest(alike)
    text += _by_logme(order)
    if not any(e["learnt"] for e in order):
        text += " None is surely ahead of random weights."
    return text


def _is_level(entry: Mapping[str, Any]) -> bool:
    """Whether the best one may be ahead by chance."""
    low = (entry.get("behind") or {}).get("low")
    return low is None or low <= 0


def _cheapest(alike: Sequence[Mapping[str, Any]]) -> str:
    """Which of those that tell labels apart alike needs the least time."""
    known = [e for e in alike if e.get("cost")]
    if len(known) < 2:
        return ""
    seconds = sorted((e["cost"]["seconds_per_scan"], e["name"]) for e in known)
    (least, name), (other, _) = seconds[:2]
    if other < _MUCH * least:
        return ""
    return f" {name} is the quickest of them: {duration(least)} a scan."


def _by_logme(order: Sequence[Mapping[str, Any]]) -> str:
    """Whether the score that trains nothing puts the same one first."""
    known = [
        (main["logme"]["value"], e["name"])
        for e in order
        for main in e.get("features", ())
        if main["features"] == e["main"]
        and (main.get("logme") or {}).get("value") is not None
    ]
    if len(known) < len(order):
        return ""
    name = max(known)[1]
    if name == order[0]["name"]:
        return f" LogME, which trains nothing, puts {name} first as well."
    return f" LogME, which trains nothing, puts {name} first instead."


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _signed(gain: Mapping[str, Any]) -> str:
    if gain["value"] is None:
        return "–"
    if gain["low"] is None:
        return f"{gain['value']:+.2f}"
    return (
        f"{gain['value']:+.2f}, 95 % interval {gain['low']:+.2f} to {gain['high']:+.2f}"
    )
