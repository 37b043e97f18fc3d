"""A report as a page, tables and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from homolog.drawing.html import (
    MANY,
    Page,
    box_chart,
    curve_chart,
    matrix_chart,
    scatter_chart,
)
from homolog.drawing.pictures import Picture
from homolog.errors import JobError
from homolog.probe.report import ranking
from homolog.reporting.convergence import SHARE, Course
from homolog.reporting.organs import Separation
from homolog.reporting.report import OWN, RANDOM, Findings, Report
from homolog.words import counted, duration, listed, metric_title
from homolog.writing import write_json, write_table

COLUMNS = ("encoder", "weights", "features", "measure", "label", "value")
DISTURBED = (
    "encoder", "kind", "case", "gamma", "rotate_deg", "scale", "before", "after",
    "deviation",
)  # fmt: skip
_NONE = "–"


def write_files(report: Report, out: Path) -> dict[str, str]:
    """Write ``report.html``, ``report.json``, ``report.csv``, and ``robustness.csv``.

    Args:
        report: Of ``report_on``.
        out: Folder.

    Returns:
        ``html``, ``json``, ``csv``, and ``robustness`` where it was measured.

    Raises:
        JobError: They could not be written.
    """
    files = {
        ending: str(out / f"report.{ending}") for ending in ("html", "json", "csv")
    }
    disturbed = [
        {"encoder": f.name, **row} for f in report.found if f.robust
        for row in f.robust.rows
    ]  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_table(Path(files["csv"]), COLUMNS, _rows(report))
        if disturbed:
            files["robustness"] = str(out / "robustness.csv")
            write_table(Path(files["robustness"]), DISTURBED, disturbed)
        write_json(Path(files["json"]), report.to_dict())
        page_of(report).write(Path(files["html"]))
    except OSError as error:
        raise JobError(f"{out} could not be written to ({error.strerror}).") from error
    return files


def _rows(report: Report) -> list[dict[str, Any]]:
    """One row for each number of the separations."""
    rows = []
    for found in report.found:
        for kind, each in found.maps.items():
            for weights, told in each.items():
                numbers = told.to_dict()
                by_organ, likeness = numbers.pop("by_organ"), numbers.pop("likeness")
                base = {"encoder": found.name, "weights": weights, "features": kind}
                plain = [("", m, v) for m, v in numbers.items()]
                plain += [(o, "silhouette", v) for o, v in by_organ.items()]
                plain += [
                    (f"{a} | {b}", "likeness", likeness[i][j])
                    for i, a in enumerate(report.organs)
                    for j, b in enumerate(report.organs)
                    if j >= i
                ]
                rows += [
                    {**base, "label": label, "measure": measure, "value": value}
                    for label, measure, value in plain
                ]
    return rows


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read on a terminal, of ``Report.to_dict``."""
    told = []
    for each in result["encoders"]:
        told.append(each["name"])
        best = each["maps"].get(each["best_map"] or "")
        if best:
            own, random = best["own"], best["random"]
            told.append(
                f"  {each['best_map']}: silhouette of {len(result['organs'])} organs "
                f"{own['silhouette']:.3f} (random weights {random['silhouette']:.3f}), "
                f"same organ in another patient {own['auc']:.3f} "
                f"({random['auc']:.3f}; 0.5 is chance)"
            )
        robust = each["robustness"]
        if robust:
            parts = [
                f"{kind} {numbers['median']:+.1%} ({numbers['first_quartile']:+.1%} to "
                f"{numbers['third_quartile']:+.1%})"
                for kind, numbers in robust["kinds"].items()
            ]
            told.append(f"  {robust['of']} under {'; '.join(parts)}")
        course = each["course"]
        if course and course["reached"] is not None:
            told.append(
                f"  {metric_title(course['metric'])}: {SHARE:.0%} of its best after "
                f"{course['reached']} of {course['total']} steps"
            )
    return [*told, *(f"not told: {note}" for note in result["notes"])]


def page_of(report: Report) -> Page:
    """The page."""
    names = listed(f.name for f in report.found)
    page = Page(
        f"What {names} learnt",
        f"Looked at on {report.store.path.name}: "
        + (
            f"{counted(len(report.organs), 'label')} of "
            f"{counted(len(report.patients), 'patient')}."
            if report.organs
            else "no labels were compared."
        ),
    )
    page.tiles(_tiles(report))
    _organs(page, report)
    _probe(page, report)
    _robustness(page, report)
    _courses(page, report)
    page.section("How it was done")
    if report.patients:
        page.text(f"Patients: {listed(report.patients, most=12)}.")
    for note in report.notes:
        page.text(note[:1].upper() + note[1:])
    times = listed(f"{f.name} {duration(f.seconds)}" for f in report.found)
    page.note(f"Store {report.store.path}. Seed {report.config.seed}. Time: {times}.")
    return page


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    tiles = []
    for found in report.found[:2]:
        if found.maps:
            own, random = (found.maps[found.best][w] for w in (OWN, RANDOM))
            tiles.append(
                (f"{found.name}: silhouette of organs", f"{own.silhouette:.2f}",
                 f"random weights {random.silhouette:.2f}; map {found.best}")
            )  # fmt: skip
            tiles.append(
                (f"{found.name}: same organ in another patient", f"{own.auc:.2f}",
                 f"random weights {random.auc:.2f}; 0.5 is chance")
            )  # fmt: skip
        if found.robust:
            worst = found.robust.summary()["all of these"]
            tiles.append(
                (f"{found.name}: {found.robust.of}, disturbed",
                 f"{worst['median']:+.0%}", "median relative deviation")
            )  # fmt: skip
        if found.course and found.course.reached is not None:
            metric = metric_title(found.course.metric)
            tiles.append(
                (f"{found.name}: {SHARE:.0%} of its best {metric}",
                 f"{found.course.reached}", f"of {found.course.total} steps")
            )  # fmt: skip
    return tiles


def _colours(report: Report) -> dict[str, str]:
    return {
        organ: MANY[number % len(MANY)] for number, organ in enumerate(report.organs)
    }


def _organs(page: Page, report: Report) -> None:
    looked = [f for f in report.found if f.maps]
    if not looked:
        return
    page.section(
        "Organs of different patients",
        "Each dot is a voxel of a labelled organ of one of the patients, its features "
        "brought to a plane: by t-SNE, which keeps neighbours together, and along the "
        "two main directions (PCA). Where dots of one colour lie together and apart "
        "from others, the features tell that organ in every patient. Axes have no "
        "meaning.",
    )
    colours = _colours(report)
    for found in looked:
        for what in ("tsne", "pca"):
            page.charts(*(_scatter(found, w, what, colours) for w in (RANDOM, OWN)))
    page.note(
        "Of each encoder the map with the highest silhouette is drawn, beside the same "
        "map of the same network with random weights. Silhouette: -1 to 1; 1, each "
        "organ is a tight cluster of its own; around 0, they overlap."
    )
    _table(page, looked)
    for found in looked:
        _by_organ(page, found, report)


def _scatter(
    found: Findings, weights: str, what: str, colours: Mapping[str, str]
) -> str:
    drawn = found.scatters[weights]
    score = found.maps[found.best][weights].silhouette
    name = found.name if weights == OWN else "random weights"
    title = f"{name}, {found.best}: t-SNE, silhouette {score:.2f}"
    if what == "pca":
        title = f"{name}, {found.best}: PCA, {drawn.share:.0%} of the variance"
    places = drawn.tsne if what == "tsne" else drawn.pca
    groups = {
        organ: (
            places[drawn.organ == k, 0].tolist(),
            places[drawn.organ == k, 1].tolist(),
        )
        for k, organ in enumerate(colours)
    }
    keys = weights == OWN
    width = 540 if keys else 408
    return scatter_chart(groups, title=title, colours=colours, width=width, keys=keys)


def _table(page: Page, looked: Sequence[Findings]) -> None:
    head = [
        "features", "silhouette", "random", "one organ", "two organs", "told apart",
        "random",
    ]  # fmt: skip
    rows = []
    for found in looked:
        for kind, each in found.maps.items():
            own, random = each[OWN], each[RANDOM]
            rows.append(
                [
                    f"{found.name}, {kind}", _two(own.silhouette),
                    _two(random.silhouette), _two(own.within), _two(own.between),
                    _two(own.auc), _two(random.auc),
                ]
            )  # fmt: skip
    page.table(head, rows)
    page.note(
        "One organ, two organs: mean cosine similarity of voxels of two patients. Told "
        "apart: how often a pair of one organ is more alike than a pair of two organs "
        "(0.5 is chance)."
    )


def _by_organ(page: Page, found: Findings, report: Report) -> None:
    own, random = (found.maps[found.best][w] for w in (OWN, RANDOM))
    order = sorted(own.by_organ, key=lambda o: -own.by_organ[o])
    page.charts(
        *(
            matrix_chart(told.likeness.tolist(), report.organs, title=title)
            for title, told in (
                ("random weights: similarity between patients", random),
                (f"{found.name}: similarity between patients", own),
            )
        )
    )
    page.table(
        [f"silhouette ({found.name}, {found.best})", "own", "random weights"],
        [[o, _two(own.by_organ[o]), _two(_of(random, o))] for o in order],
    )


def _of(told: Separation, organ: str) -> float:
    return told.by_organ.get(organ, float("nan"))


def _probe(page: Page, report: Report) -> None:
    if report.probe is None:
        return
    page.section("Read by simple learners", report.probe["verdict"])
    head, rows = ranking(report.probe)
    page.table(head, rows, [1] * len(report.probe["encoders"]))
    page.note(
        "Balanced accuracy of a logistic regression and of the nearest neighbours that "
        f"learn from {counted(len(report.probe['taught']), 'patient')} and are judged "
        f"on {len(report.probe['judged'])} others; homolog probe tells more."
    )


def _robustness(page: Page, report: Report) -> None:
    models = [f for f in report.found if f.robust]
    if not models:
        return
    kinds = list(models[0].robust.by_kind()) if models[0].robust else []
    page.section(
        "Robustness",
        "How far answers move, relative to the answer on the undisturbed scan, when "
        "test scans are disturbed: gamma between 1.8 and 2.6, turned by up to 15 "
        "degrees and scaled by up to 15 %. Boxes reach from the first to the third "
        "quartile, whiskers from the 5th to the 95th percentile.",
    )
    rows = {
        kind: {f.name: f.robust.by_kind()[kind] for f in models if f.robust}
        for kind in kinds
    }
    of = models[0].robust.of if models[0].robust else ""
    page.charts(box_chart(rows, y_title=f"relative deviation, {of}"))
    texts = []
    for found in models:
        for kind, told in found.robust.summary().items() if found.robust else ():
            texts.append(
                [f"{found.name}, {kind}", f"{told['median']:+.1%}",
                 f"{told['first_quartile']:+.1%}", f"{told['third_quartile']:+.1%}",
                 f"{told['mean_size']:.1%}", str(told["count"])]
            )  # fmt: skip
    page.table(
        ["", "median", "first quartile", "third quartile", "mean size", "scans"], texts
    )


def _courses(page: Page, report: Report) -> None:
    courses = {f.name: f.course for f in report.found if f.course}
    if not courses:
        return
    page.section("The course of the training")
    scored = {n: (c.steps, c.values) for n, c in courses.items() if c.metric}
    reached = [
        f"{name}: {SHARE:.0%} of its best {metric_title(c.metric)} after {c.reached} "
        f"of {c.total} steps."
        for name, c in courses.items()
        if c.reached is not None
    ]
    charts = [
        curve_chart(
            c.losses, x_title="step", y_title=f"{n}: losses", smooth=5, width=460
        )
        for n, c in courses.items()
    ]
    metric = next((c.metric for c in courses.values() if c.metric), "")
    page.charts(
        curve_chart(scored, x_title="step", y_title=metric_title(metric), width=460),
        *charts,
    )
    for text in reached:
        page.text(text)
    if not scored:
        page.note("Nothing was validated in training: convergence is not told.")
    for name, course in courses.items():
        _pictures(page, name, course)


def _pictures(page: Page, name: str, course: Course) -> None:
    """What was learnt: at first, in the midst, and at the end."""
    count = len(course.pictures)
    for place in dict.fromkeys((0, count // 2, count - 1)) if count else ():
        path = course.pictures[place]
        step = int(path.stem.rpartition("_")[2])
        page.figure(_read(path), f"{name} after {counted(step, 'step')}.")


def _read(path: Path) -> Picture:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255.0


def _two(value: float) -> str:
    return _NONE if value != value else f"{value:.2f}"
