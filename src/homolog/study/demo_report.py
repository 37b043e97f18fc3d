"""The demo's report: what was done, what came of it, pictures to judge it by."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog import __version__
from homolog.drawing.pca import fit_colours
from homolog.drawing.pictures import as_bytes
from homolog.drawing.png import png_bytes
from homolog.study.charts import bar_chart, curve_chart
from homolog.study.demo_pictures import (
    colours_picture,
    label_keys,
    landmarks_picture,
    overview_picture,
    patients_picture,
    segmentation_picture,
    similarity_picture,
    stacked,
)
from homolog.study.demo_scores import ENCODERS, Looks, Segmentations
from homolog.study.looking import landmarks_found
from homolog.study.report import Page


def write_report(
    path: Path,
    folder: Path,
    summary: Mapping[str, Any],
    looks: Looks,
    segmentations: Mapping[str, Segmentations],
    runs: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
) -> None:
    """Write ``report.html``.

    Args:
        path: The file.
        folder: The demo's folder; loss curves are read from its runs.
        summary: Figures of the demo.
        looks: Features of the test patients.
        segmentations: ``scratch`` and ``finetuned``.
        runs: Summaries of ``pretrain``, ``scratch`` and ``finetuned``.
        config: Settings of the demo.
    """
    page = Page(
        "homolog demo",
        f"{summary['patients']} procedural patients (CT-like, no real person). An "
        f"encoder learnt from {runs['pretrain']['cases']} of them without any label "
        f"(S2DC); then the labels of {summary['labelled']} were used to learn a "
        f"segmentation, once from scratch and once from that encoder. All figures are "
        f"of {summary['tests']} other patients.",
    )
    _figures(page, summary)
    _patients(page, looks)
    _organs(page, looks)
    _colours(page, looks)
    _landmarks(page, looks, summary)
    _segmentation(page, looks, segmentations)
    _training(page, folder, runs, summary, config)
    page.write(path)


def _figures(page: Page, summary: Mapping[str, Any]) -> None:
    """Three large figures and the whole table."""
    dice, error = summary["dice"], summary["landmark_error_mm"]
    auc = summary["same_organ_auc"]
    page.tiles(
        [
            (
                "Segmentation (Dice)",
                _arrow("{:.3f}", dice["scratch"], dice["pretrained"]),
                f"from scratch → pretrained, {summary['labelled']} labelled patients",
            ),
            (
                "Landmark found in another patient",
                _arrow("{:.0f} mm", error["random"], error["pretrained"]),
                "mean error, random weights → pretrained",
            ),
            (
                "Same organ recognised",
                _arrow("{:.2f}", auc["random"], auc["pretrained"]),
                "area under ROC among labelled organs (0.5 is chance)",
            ),
        ]
    )
    rows = (
        ("Dice, mean of the test patients", "dice", "scratch", "{:.3f}", 1),
        ("Dice, worst test patient", "worst_dice", "scratch", "{:.3f}", 1),
        ("Landmark error, mean (mm)", "landmark_error_mm", "random", "{:.1f}", -1),
        ("Landmark error, median (mm)", "landmark_median_mm", "random", "{:.1f}", -1),
        ("Landmarks within 10 mm", "landmarks_within_10_mm", "random", "{:.0%}", 1),
        ("Same organ, area under ROC", "same_organ_auc", "random", "{:.3f}", 1),
        ("Similarity contrast (std)", "similarity_contrast", "random", "{:.2f}", 1),
    )
    texts, best = [], []
    for title, key, control, form, sign in rows:
        before, after = summary[key][control], summary[key]["pretrained"]
        texts.append([title, _text(form, before), _text(form, after)])
        known = before is not None and after is not None
        gain = sign * (after - before) if known else 0.0
        best.append(2 if gain > 0 else 1 if gain < 0 else None)
    page.section("In figures")
    page.table(["", "not pretrained", "pretrained"], texts, best)
    page.note(
        "Not pretrained means: the same network trained from scratch with as many "
        "steps (Dice), or with its random first weights (all others). The better value "
        "is stressed, whichever it is."
    )


def _patients(page: Page, looks: Looks) -> None:
    page.section(
        "The patients",
        "One procedural atlas, bent into every patient by a smooth map that is known "
        "exactly: size, posture and each organ's place and shape differ, and so do "
        "tissue values, contrast medium, texture and noise.",
    )
    page.figure(
        patients_picture(looks.patients[:4]),
        "Coronal slices of test patients (patient's right on the left) and their true "
        "labels.",
        label_keys(looks.patients[0]),
    )


def _organs(page: Page, looks: Looks) -> None:
    source, target = looks.patients[0], looks.patients[1]
    page.section(
        "Click a point, see where it looks alike",
        "Left: a point in one patient. Middle and right: how similar every place of "
        "another patient is, by the features of random weights and of the pretrained "
        "encoder. The ring marks the truly corresponding place.",
    )
    rows = []
    for name in ("liver_centre", "kidney_left_centre", "spleen_centre", "vertebra_6"):
        if name not in source.points.names or name not in target.points.names:
            continue
        maps = {e: (looks.maps[e][0], looks.maps[e][1]) for e in ENCODERS}
        rows.append(
            similarity_picture(
                source, target, maps, source.landmark(name), target.landmark(name)
            )
        )
    if rows:
        page.figure(
            stacked(rows),
            "Point, similarity with random weights, similarity after pretraining. "
            "Rows: liver, left kidney, spleen, a vertebra. Bright is similar.",
        )
    names = dict.fromkeys(o.organ for o in looks.organs["pretrained"])
    page.charts(
        bar_chart(
            {
                n: {
                    e: float(
                        np.nanmean(
                            [o.auc_labelled for o in looks.organs[e] if o.organ == n]
                        )
                    )
                    for e in ENCODERS
                }
                for n in names
            },
            title="Same organ, area under ROC among labelled voxels",
        )
    )


def write_overview(path: Path, looks: Looks) -> None:
    """One picture of what the demo shows, for a README or a slide."""
    source, target = looks.patients[0], looks.patients[1]
    maps = (looks.maps["pretrained"][0], looks.maps["pretrained"][1])
    bodies = [source.body(maps[0]), target.body(maps[1])]
    colours = fit_colours([m.data for m in maps], bodies)
    picture = overview_picture(source, target, maps, colours)
    path.write_bytes(png_bytes(as_bytes(picture)))


def _colours(page: Page, looks: Looks) -> None:
    maps = looks.maps["pretrained"][:4]
    shown = looks.patients[:4]
    bodies = [p.body(m) for p, m in zip(shown, maps, strict=True)]
    colours = fit_colours([m.data for m in maps], bodies)
    page.section(
        "What the encoder sees",
        "The three main directions of the learnt features as red, green and blue, the "
        "same in all patients: where colours agree, the encoder sees the same anatomy.",
    )
    share = float(colours.explained.sum())
    page.figure(
        colours_picture(shown, maps, colours),
        f"Scans and their features in colour ({share:.0%} of the features' variance).",
    )


def _landmarks(page: Page, looks: Looks, summary: Mapping[str, Any]) -> None:
    source, target = looks.patients[0], looks.patients[1]
    found: dict[str, NDArray[np.float64]] = {}
    names: tuple[str, ...] = ()
    for encoder in ENCODERS:
        maps = looks.maps[encoder]
        names, places, _ = landmarks_found(
            maps[0], maps[1], source.points, target.points
        )
        found[encoder] = places
    page.section(
        "Landmarks found again",
        "Landmarks of one patient searched in another by their features alone: no "
        "registration, no labels. Rings are the true places, dots what was found.",
    )
    if len(names):
        page.figure(
            landmarks_picture(target, names, found),
            "All landmarks projected on one coronal slice. Left: random weights; "
            f"right: pretrained. Mean error over all pairs of test patients: "
            f"{_text('{:.1f}', summary['landmark_error_mm']['random'])} and "
            f"{_text('{:.1f}', summary['landmark_error_mm']['pretrained'])} mm "
            f"(voxels are {target.volume.affine.spacing_mm[0]:g} mm).",
        )


def _segmentation(
    page: Page, looks: Looks, segmentations: Mapping[str, Segmentations]
) -> None:
    scratch, tuned = segmentations["scratch"], segmentations["finetuned"]
    cases = sorted(tuned.labels, key=tuned.dice_of_case)
    case = cases[len(cases) // 2]
    patient = next(p for p in looks.patients if p.labels.name == case)
    page.section(
        "Segmentation from few labels",
        "The same network, the same labelled patients, the same number of steps; only "
        "the first weights of the encoder differ.",
    )
    page.figure(
        segmentation_picture(
            patient, {"scratch": scratch.labels[case], "tuned": tuned.labels[case]}
        ),
        f"Test patient {case}: scan, truth, from scratch (Dice "
        f"{scratch.dice_of_case(case):.3f}), pretrained (Dice "
        f"{tuned.dice_of_case(case):.3f}).",
        label_keys(patient),
    )
    before, after = scratch.per_organ, tuned.per_organ
    page.charts(
        bar_chart(
            {n: {"scratch": before[n], "pretrained": after[n]} for n in before},
            title="Dice by organ, mean of the test patients",
        )
    )


def _training(
    page: Page,
    folder: Path,
    runs: Mapping[str, Mapping[str, Any]],
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
) -> None:
    page.section("Training")
    page.charts(
        curve_chart(
            _losses(folder / "pretrain"),
            x_title="step", y_title="pretraining losses", smooth=5,
        ),
        curve_chart(
            {
                "scratch": _sum_of(_losses(folder / "scratch")),
                "pretrained": _sum_of(_losses(folder / "finetuned")),
            },
            x_title="step", y_title="fine-tuning loss", smooth=5,
        ),
    )  # fmt: skip
    seconds = summary["seconds"]
    page.table(
        ["part", "steps", "seconds"],
        [
            [part, str(runs[name]["steps"]) if name else "", f"{seconds[part]:.0f}"]
            for part, name in (
                ("patients", ""),
                ("store", ""),
                ("pretraining", "pretrain"),
                ("fine-tuning from scratch", "scratch"),
                ("fine-tuning the pretrained encoder", "finetuned"),
                ("test patients segmented", ""),
                ("features compared", ""),
            )
            if part in seconds
        ],
    )
    page.note(
        f"homolog {__version__}, seed {config['seed']}, device {config['device']}. One "
        "seed and few test patients show that the path works; whether pretraining "
        "helps on your data is asked by more seeds and patients."
    )


_Curve = tuple[list[float], list[float]]


def _losses(run: Path) -> dict[str, _Curve]:
    """Loss terms of a run's ``metrics.csv`` against the step: all left of the rate."""
    path = run / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    last = columns.index("learning_rate") if "learning_rate" in columns else 1
    steps = [float(r["step"]) for r in rows]
    return {c: (steps, [float(r[c] or "nan") for r in rows]) for c in columns[1:last]}


def _sum_of(terms: Mapping[str, _Curve]) -> _Curve:
    """What is minimised."""
    if not terms:
        return [], []
    steps = next(iter(terms.values()))[0]
    return steps, [
        sum(values) for values in zip(*(y for _, y in terms.values()), strict=True)
    ]


def _text(form: str, value: float | None) -> str:
    return "–" if value is None else form.format(value)


def _arrow(form: str, before: float | None, after: float | None) -> str:
    return f"{_text(form, before)} → {_text(form, after)}"
