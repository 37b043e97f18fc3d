"""A probe as lines, tables and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homolog.drawing.html import Page, bar_chart
from homolog.errors import JobError
from homolog.probe.scores import TITLES, Figure
from homolog.words import counted, duration, human_bytes, listed
from homolog.writing import write_json, write_table

COLUMNS = (
    "encoder", "weights", "features", "measure", "patient", "label", "value",
)  # fmt: skip
_RANKING = (
    "features of", "linear probe", "random weights", "difference", "kNN", "centroids",
)  # fmt: skip
_BESIDE = ("LogME", "a scan", "memory", "best map", "learnt")


def write_probe(result: Mapping[str, Any], out: Path) -> dict[str, str]:
    """Write ``probe.csv`` (every patient and label), ``probe.json`` and ``probe.html``.

    Args:
        result: Of ``probe_encoders``.
        out: Folder.

    Returns:
        ``csv``, ``json`` and ``html``: the files.

    Raises:
        JobError: They could not be written.
    """
    files = {ending: str(out / f"probe.{ending}") for ending in ("csv", "json", "html")}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_table(Path(files["csv"]), COLUMNS, result["rows"])
        kept = {k: v for k, v in result.items() if k not in ("rows", "stopped")}
        write_json(Path(files["json"]), kept)
        page(result).write(Path(files["html"]))
    except OSError as error:
        raise JobError(f"{out} could not be written to ({error.strerror}).") from error
    return files


def measures_of(result: Mapping[str, Any]) -> list[str]:
    """The measures of a probe, in order."""
    first = result["encoders"][0]["features"][0]
    return [m for m in TITLES if m in first]


def ranking(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the encoders best first, then what needs no network."""
    extra = measures_of(result)[-1]
    head = [*_RANKING, TITLES[extra].partition(" ")[0], *_BESIDE]
    rows = []
    for entry in result["encoders"]:
        main = main_set(entry)
        linear = main["linear"]
        rows.append(
            [
                entry["name"],
                text_of(linear),
                two(linear["random"]["value"]),
                text_of(linear["gain"], sign=True),
                two(main["knn"]["value"]),
                two(main["centroid"]["value"]),
                two(main[extra]["value"]) if extra in main else "–",
                _logme(main),
                *_cost(entry),
                entry["best_map"] or "–",
                {True: "yes", False: "no", None: "?"}[entry["learnt"]],
            ]
        )
    for none in result["no_network"]:
        rows.append(
            [
                none["features"], text_of(none["linear"]), "–", "–",
                two(none["knn"]["value"]), two(none["centroid"]["value"]),
                two(none[extra]["value"]) if extra in none else "–", _logme(none),
                "–", "–", "–", "–",
            ]
        )  # fmt: skip
    return head, rows


def _logme(figures: Mapping[str, Any]) -> str:
    value = (figures.get("logme") or {}).get("value")
    return "–" if value is None else f"{value:.3f}"


def _cost(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Time of a scan, and memory."""
    cost = entry.get("cost")
    if not cost:
        return "–", "–"
    return duration(cost["seconds_per_scan"]), human_bytes(cost["memory_bytes"])


def main_set(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of an encoder, the features that stand for it."""
    found: Mapping[str, Any] = next(
        s for s in entry["features"] if s["features"] == entry["main"]
    )
    return found


def text_of(figure: Mapping[str, Any], *, sign: bool = False) -> str:
    """``0.61 (0.55 to 0.67)``."""
    told = Figure(figure["value"], figure["low"], figure["high"])
    return told.signed if sign else told.text


def two(value: float | None) -> str:
    """Two digits, or a dash."""
    return Figure(value).text


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read on a terminal."""
    head, rows = ranking(result)
    table = [[cell.replace("–", "-") for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    told = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    told += ["", _how(result)]
    told += [entry["verdict"] for entry in result["encoders"]]
    told += [
        f"{e['name']}: licence: {e['licence']}"
        for e in result["encoders"]
        if e.get("licence") and "training data" not in e["licence"]
    ]
    if len(result["encoders"]) > 1:
        told.append(result["verdict"])
    told += [f"could not be probed: {f['reason']}" for f in result["failed"]]
    return told


def _how(result: Mapping[str, Any]) -> str:
    count, patients = len(result["labels"]), counted(len(result["judged"]), "patient")
    what = f"{counted(count, 'class')} of scans"
    if result["kind"] == "labels":
        what = f"{counted(count, 'label')} of voxels, background included"
    return (
        f"Balanced accuracy over {what}, on {patients} ({result['whom']}); taught on "
        f"{counted(len(result['taught']), 'patient')}; by chance "
        f"{result['chance']:.2f}; 95 % intervals over patients."
    )


def page(result: Mapping[str, Any]) -> Page:
    """The page."""
    built = Page("What do these encoders know?", result["verdict"])
    built.tiles([_tile(entry) for entry in result["encoders"][:4]])
    head, rows = ranking(result)
    built.section("Encoders, best first", _how(result))
    built.table(head, rows, [1] * len(result["encoders"]))
    built.note(
        "Nothing is fine-tuned: the features stay as they are, and a logistic "
        "regression, the vote of the nearest neighbours and the nearest mean read "
        "them. Random weights: the same network before any training, mean of "
        f"{counted(result['settings']['random'], 'seed')}. The Dice is that of the "
        "logistic regression on every voxel: coarse maps draw no edges, so it is far "
        "below that of a fine-tuned network. LogME (You et al., ICML 2021) needs no "
        "training at all: the evidence of the taught labels under a linear model of "
        "the features; higher is better, and only this table's are comparable. The "
        "time of a scan and the memory are those of computing an encoder's features "
        f"on this machine, for a scan the size of {result['taught'][0]}."
    )
    for entry in result["encoders"]:
        _encoder(built, entry, result)
    built.section("How it was done")
    built.text(f"Taught on {listed(result['taught'], most=12)}.")
    built.text(f"Judged on {listed(result['judged'], most=12)}.")
    times = [f"{e['name']} {duration(e['seconds'])}" for e in result["encoders"]]
    built.note(f"Store {result['store']}. Time with its random networks: "
               f"{listed(times)}.")  # fmt: skip
    return built


def _tile(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    linear = main_set(entry)["linear"]
    against = f"random weights {two(linear['random']['value'])}"
    return entry["name"], two(linear["value"]), against


def _encoder(built: Page, entry: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """One encoder: its maps, and its labels."""
    measures = measures_of(result)
    built.section(entry["name"], entry["verdict"])
    head = ["features", "numbers"]
    head += [t for m in measures for t in (TITLES[m], "random")]
    rows = []
    for each in entry["features"]:
        row = [each["features"], str(each["length"])]
        for measure in measures:
            row += [text_of(each[measure]), two(each[measure]["random"]["value"])]
        rows.append(row)
    built.table(head, rows)
    main = main_set(entry)
    charts = []
    for measure in (measures[0], measures[-1]):
        bars = _bars(main[measure], result["labels"], entry["name"])
        if bars:
            charts.append(bar_chart(bars, title=f"{TITLES[measure]}, {entry['main']}"))
    built.charts(*charts)


def _bars(
    figure: Mapping[str, Any], labels: Sequence[str], name: str
) -> dict[str, dict[str, float]]:
    """Label -> the encoder's and random weights' value; unknown ones are left out."""
    pairs = zip(labels, figure["labels"], figure["random"]["labels"], strict=True)
    return {
        label: {name: own, "random weights": float("nan") if other is None else other}
        for label, own, other in pairs
        if own is not None
    }
