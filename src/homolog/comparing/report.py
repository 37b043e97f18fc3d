"""``report.html`` and ``curves.svg``: learning curves, differences, what was run.

Made of ``comparison.json`` alone, so that it can be made again without the runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from homolog.comparing.plan import ALL
from homolog.drawing.html import (
    GREY,
    PALETTE,
    Page,
    curve_chart,
    figure,
    interval_chart,
)
from homolog.words import counted, duration, listed, metric_title
from homolog.writing import write_text

Summary = Mapping[str, Any]


def write_report(summary: Summary, out: Path) -> Path:
    """Write both; returns the page.

    Args:
        summary: As in ``comparison.json``.
        out: Folder.
    """
    page = Page("Which pretraining helps?", lead(summary))
    page.section("With how many labelled patients")
    curves = learning_curves(summary)
    page.charts(curves, difference_curves(summary))
    page.note(
        f"{direction(summary)} Dots are means over test patients and seeds, whiskers "
        "95 % intervals over test patients (bootstrap). Differences are paired: the "
        "same patient, the mean over seeds first; positive ones are better."
    )
    _table(page, summary)
    _speed(page, summary)
    _classes(page, summary)
    _what_was_run(page, summary)
    path = out / "report.html"
    page.write(path)
    if curves:
        write_text(out / "curves.svg", curves)
    return path


def lead(summary: Summary) -> str:
    """What was compared, and how far it is, in a few sentences."""
    arms = listed(arm["name"] for arm in summary["arms"])
    done, total = summary["done"], summary["cells"]
    state = "" if done == total else f" So far {done} of {total} cells are done."
    return (
        f"{arms}: {summary['task']}, tested on "
        f"{counted(summary['test_patients'], 'patient')} with "
        f"{counted(len(summary['seeds']), 'seed')}. Every arm learnt from the same "
        "labelled patients with the same number of steps; no pretraining saw a test "
        f"patient, and no case beside those counted chose weights.{state}"
    )


def direction(summary: Summary) -> str:
    """Which way is better, such as ``PSNR (dB): higher is better.``."""
    better = "lower" if summary.get("lower_is_better") else "higher"
    return f"{metric_title(str(summary['metric']))}: {better} is better."


def learning_curves(summary: Summary, width: int = 640, height: int = 300) -> str:
    """Scores over numbers of labelled patients, an SVG drawing of so many pixels."""
    colours = colours_of(summary)
    return _learning_curves(summary, width, height, colours, keys=True)


def curves_figure(
    summaries: Mapping[str, Summary], width: int = 440, height: int = 280
) -> str:
    """Learning curves of several data sets, one panel each: an SVG file of its own.

    Args:
        summaries: Title -> as in ``comparison.json``.
        width: Pixels of a panel.
        height: Pixels of a panel.

    Returns:
        SVG; empty where nothing has a result yet.
    """
    colours: dict[str, str] = {}
    for summary in summaries.values():
        colours = colours_of(summary, colours)
    shown = {
        arm["name"] for summary in summaries.values() for arm in summary["arms"]
        if any(_three(e, "mean", "low", "high") for e in _row_of(summary, arm["name"]))
    }  # fmt: skip
    panels = [
        (title, _learning_curves(summary, width, height, colours, keys=False))
        for title, summary in summaries.items()
    ]
    return figure(
        [(title, drawing) for title, drawing in panels if drawing],
        {name: colour for name, colour in colours.items() if name in shown},
        width=width,
        height=height,
    )


def colours_of(
    summary: Summary, known: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """A colour for each arm: grey for what others are compared with.

    Args:
        summary: As in ``comparison.json``.
        known: Colours that arms of the same names keep.
    """
    colours = dict(known)
    free = [c for c in PALETTE if c not in colours.values()] or list(PALETTE)
    for arm in summary["arms"]:
        if arm["name"] in colours:
            continue
        if arm["name"] == arm["against"]:
            colours[arm["name"]] = GREY
        else:
            colours[arm["name"]] = free[0]
            free = [*free[1:], free[0]]
    return colours


def _learning_curves(
    summary: Summary, width: int, height: int, colours: Mapping[str, str], *, keys: bool
) -> str:
    return interval_chart(
        {
            arm["name"]: [
                _three(entry, "mean", "low", "high")
                for entry in _row_of(summary, arm["name"])
            ]
            for arm in summary["arms"]
        },
        ticks=_places(summary),
        x_title="labelled patients",
        y_title=metric_title(str(summary["metric"])),
        width=width,
        height=height,
        colours=[colours[arm["name"]] for arm in summary["arms"]],
        keys=keys,
    )


def difference_curves(summary: Summary) -> str:
    """Differences to the control over numbers of labelled patients."""
    found = {
        f"{arm['name']} - {arm['against']}": [
            _three(entry, "difference", "difference_low", "difference_high")
            for entry in _row_of(summary, arm["name"])
        ]
        for arm in summary["arms"]
    }
    return interval_chart(
        found, ticks=_places(summary), x_title="labelled patients",
        y_title=f"difference in {metric_title(str(summary['metric']))}", zero=True,
        colours=list(colours_of(summary).values()),
    )  # fmt: skip


def _counts(summary: Summary) -> list[Any]:
    return list(dict.fromkeys(entry["patients"] for entry in summary["table"]))


def _places(summary: Summary) -> list[str]:
    return [str(count) for count in _counts(summary)]


def _row_of(summary: Summary, arm: str) -> list[Mapping[str, Any] | None]:
    """Entries of an arm, in the order of the numbers of patients."""
    known = {e["patients"]: e for e in summary["table"] if e["arm"] == arm}
    return [known.get(count) for count in _counts(summary)]


def _three(
    entry: Mapping[str, Any] | None, *names: str
) -> tuple[float, float, float] | None:
    """Mean, low and high; without an interval the mean alone."""
    if entry is None or entry.get(names[0]) is None:
        return None
    mean = float(entry[names[0]])
    low, high = (entry.get(name) for name in names[1:])
    return mean, mean if low is None else low, mean if high is None else high


def _table(page: Page, summary: Summary) -> None:
    page.section("Table")
    rows, best = [], []
    for e in summary["table"]:
        gain, low = e["difference"], e["difference_low"]
        better = f"{e['wins']} of {e['tests']}" if e["wins"] is not None else ""
        rows.append(
            [
                str(e["arm"]), _who(e), _number(e["mean"]),
                _interval(e["low"], e["high"]), _number(e["seed_std"]),
                str(e["against"]) if gain is not None else "",
                _signed(gain), _interval(low, e["difference_high"], "+"),
                _interval(e["both_low"], e["both_high"], "+"),
                _number(e["p_holm"]), better,
            ]
        )  # fmt: skip
        best.append(6 if gain is not None and low is not None and low > 0 else None)
    page.table(
        [
            "arm", "labelled", metric_title(str(summary["metric"])), "95 % interval",
            "sd over seeds", "against", "difference", "over patients",
            "over patients and seeds", "p (Holm)", "better",
        ],
        rows, best,
    )  # fmt: skip
    page.note(
        "Differences whose interval over patients lies above 0 are stressed. The "
        "interval over patients and seeds is what another sample of both would give "
        "(two crossed random effects): with few seeds it is wide. p: "
        f"{_test(summary)}, corrected by Holm for the number of rows. better: test "
        "patients on which the arm is ahead."
    )


def _test(summary: Summary) -> str:
    """What the p values are of."""
    if summary.get("of_sets"):
        return "by drawing patients anew, as one score is of all of them together"
    return "Wilcoxon's signed-rank test over patients"


def _who(entry: Mapping[str, Any]) -> str:
    cases = entry["cases"]
    return f"{entry['patients']} ({cases:g} scans)"


def _speed(page: Page, summary: Summary) -> None:
    if not any(curve.get("steps") for curve in summary["curves"]):
        return
    page.section("Over the steps")
    charts = []
    colours = colours_of(summary)
    for count in _counts(summary):
        series = {
            curve["arm"]: (curve["steps"], curve["values"])
            for curve in summary["curves"]
            if curve["patients"] == count
        }
        who = "all" if count == ALL else str(count)
        charts.append(
            curve_chart(
                series, x_title=f"steps, {who} labelled",
                y_title=metric_title(str(summary["metric"])), width=420, height=240,
                colours=[colours[name] for name in series],
            )
        )  # fmt: skip
    page.charts(*charts)
    page.table(
        ["arm", "labelled", "mean height", "steps to 98 % of its best",
         "steps to the control's end", "of"],
        [
            [str(e["arm"]), str(e["patients"]), _number(e["area"]),
             *(_whole(e[k]) for k in ("steps_to_98", "steps_to_control", "steps"))]
            for e in summary["table"]
        ],
    )  # fmt: skip
    page.note(
        "Of a few test cases looked at while it learns, for this report alone: they "
        "choose nothing. Mean height: area under the curve between its first and last "
        "mark."
    )


def _classes(page: Page, summary: Summary) -> None:
    names = sorted({name for e in summary["table"] for name in e["classes"]})
    if not names:
        return
    page.section("By class")
    page.table(
        ["arm", "labelled", *names],
        [
            [str(e["arm"]), str(e["patients"]),
             *(_number(e["classes"].get(name)) for name in names)]
            for e in summary["table"]
        ],
    )  # fmt: skip


def _what_was_run(page: Page, summary: Summary) -> None:
    page.section("What was run")
    rows = []
    for arm in summary["arms"]:
        spent = [
            seconds for name, seconds in summary["seconds"].items()
            if name.startswith(f"{arm['name']}-n")
        ]  # fmt: skip
        took = [
            _mean_time([s[stage] for s in spent if stage in s])
            for stage in ("pretrain", "propagate", "carried", "finetune")
        ]
        carried = {**arm.get("propagate", {}), **arm.get("carried", {})}
        rows.append(
            [
                arm["name"], arm["what"],
                _settings(arm["pretrain"]) if arm["method"] else "",
                _settings(carried) if arm.get("carry") else "",
                _settings(arm["finetune"]), *took,
            ]
        )  # fmt: skip
    page.table(
        ["arm", "begins with", "pretraining", "carrying labels", "fine-tuning",
         "pretraining took", "carrying took", "learning what was carried took",
         "a fine-tuning took"],
        rows,
    )  # fmt: skip
    if not summary["same_steps"]:
        page.text("Not all arms were trained for the same number of steps.")
    for trouble in summary["failed"]:
        page.text(f"No result: {trouble['cell']}: {trouble['sentence']}")
    page.note(
        f"homolog {summary['version']}, store {summary['store_hash']}, seeds "
        f"{listed(summary['seeds'])}. Settings that are not named are the recipe's; "
        "the complete ones lie in run.json of each run, rows of all cells and test "
        "cases in rows.jsonl. Times are of training steps alone."
    )


def _settings(tables: Mapping[str, Any]) -> str:
    return ", ".join(_flat(tables)) or "the recipe's"


def _flat(tables: Mapping[str, Any], before: str = "") -> list[str]:
    parts = []
    for key, value in tables.items():
        if isinstance(value, Mapping):
            parts += _flat(value, f"{before}{key}.")
        else:
            parts.append(f"{before}{key}={json.dumps(value)}")
    return parts


def _mean_time(seconds: Sequence[float]) -> str:
    return duration(sum(seconds) / len(seconds)) if seconds else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return ""
    return f"{low:{sign}.3f} to {high:{sign}.3f}"
