"""The demo: the whole path on built-in data, and its report.

Learn without labels, label a little, compare: the same jobs as the commands, in the
same kinds of folders: ``scans/`` (nnU-Net layout), ``store/``, ``pretrain/``,
``scratch/``, ``finetuned/`` (runs), ``features/``, and the answer: ``results.json``,
``report.html`` and ``overview.png``.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog import __version__
from homolog.comparing.statistics import Difference
from homolog.config import from_dict, merge, option
from homolog.demo.scores import (
    CARRIED,
    ENCODERS,
    CarriedLabels,
    Looks,
    Segmentations,
    carry_labels,
    colours_picture,
    label_keys,
    landmarks_found,
    landmarks_picture,
    look_inside,
    overview_picture,
    patients_picture,
    pooled,
    segment_tests,
    segmentation_picture,
    similarity_picture,
    stacked,
)
from homolog.drawing.html import Page, bar_chart, curve_chart
from homolog.drawing.pictures import as_bytes, png_bytes
from homolog.events import (
    Job,
    Note,
    Progress,
    Request,
    Saved,
    Started,
    Stopped,
    without_stopped,
)
from homolog.features.of_scans import fit_colours
from homolog.finetune.job import job as finetune_job
from homolog.finetune.settings import SCRATCH
from homolog.index.index import index_sources
from homolog.model_files.card import read_card
from homolog.model_files.folder import find_model
from homolog.phantom.phantom import write_patients
from homolog.pretrain.job import job as pretrain_job
from homolog.pretrain.settings import resolve as resolve_pretrain
from homolog.reporting.convergence import losses_of
from homolog.store.build import write_store
from homolog.store.preprocess import Preprocessing
from homolog.store.store import Store
from homolog.words import counted, duration, listed
from homolog.writing import write_bytes, write_json

# Pixels: two charts stand side by side on the page.
_CHART = 480


def write_report(
    path: Path,
    folder: Path,
    summary: Mapping[str, Any],
    looks: Looks,
    segmentations: Mapping[str, Segmentations],
    carried: CarriedLabels,
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
        carried: Labels of one patient on the test patients.
        runs: Summaries of ``pretrain``, ``scratch`` and ``finetuned``.
        config: Settings of the demo.
    """
    labelled = counted(summary["labelled"], "patient")
    page = Page(
        "homolog demo",
        f"{summary['patients']} procedural patients (CT-like, no real person). An "
        f"encoder learnt from {runs['pretrain']['cases']} of them without any label "
        f"(S2DC). Then the labels of {labelled} were used: to learn a segmentation, "
        "from scratch and from that encoder; and to carry them to others without "
        f"learning anything. All figures are of {summary['tests']} other "
        "patients, of whom nothing was learnt.",
    )
    _tiles(page, summary)
    _figures(page, summary)
    _patients(page, looks)
    _segmentation(page, looks, segmentations, summary)
    _carried(page, looks, carried, summary)
    _organs(page, looks)
    _colours(page, looks)
    _landmarks(page, looks, summary)
    _training(page, folder, runs, summary, config)
    page.write(path)


def _tiles(page: Page, summary: Mapping[str, Any]) -> None:
    """Four large figures."""
    dice, error = summary["dice"], summary["landmark_error_mm"]
    auc, paired, carried = (
        summary[name] for name in ("same_organ_auc", "paired", "carried")
    )
    labelled = counted(summary["labelled"], "labelled patient")
    page.tiles(
        [
            (
                "Segmentation (Dice)",
                _arrow("{:.3f}", dice["scratch"], dice["pretrained"]),
                f"from scratch → pretrained, {labelled}; pretrained is ahead on "
                f"{paired['wins']} of {paired['of']} test patients",
            ),
            (
                "Labels carried, nothing trained (Dice)",
                _text("{:.3f}", carried["dice"]["grey"]),
                f"from 1 labelled patient by grey values, "
                f"{duration(carried['seconds']['grey'] or 0.0)} a patient",
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


def _figures(page: Page, summary: Mapping[str, Any]) -> None:
    """The whole table."""
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
    page.text(paired_words(summary["paired"]) + ".")
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
    write_bytes(path, png_bytes(as_bytes(picture)))


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
    for line in shipped_lines(summary["shipped"]):
        page.text(line)


def _segmentation(
    page: Page,
    looks: Looks,
    segmentations: Mapping[str, Segmentations],
    summary: Mapping[str, Any],
) -> None:
    scratch, tuned = segmentations["scratch"], segmentations["finetuned"]
    cases = sorted(tuned.labels, key=tuned.dice_of_case)
    case = cases[len(cases) // 2]
    patient = next(p for p in looks.patients if p.labels.name == case)
    page.section(
        "Segmentation from few labels",
        f"The same network, the same labels (of "
        f"{counted(summary['labelled'], 'patient')}), the same number of steps; what "
        "differs are the encoder's first weights, which are changed more slowly where "
        "they were pretrained."
        + (
            f" {counted(summary['trainings'], 'training')} of each, with patients to "
            "learn from and random numbers of its own; scores are their means."
            if summary["trainings"] > 1
            else ""
        ),
    )
    page.figure(
        segmentation_picture(
            patient, {"scratch": scratch.labels[case], "tuned": tuned.labels[case]}
        ),
        f"Test patient {case}, the middle one: scan, truth, from scratch, pretrained. "
        + (
            f"Labels of the first training; mean Dice of {summary['trainings']}: "
            if summary["trainings"] > 1
            else "Dice: "
        )
        + f"{scratch.dice_of_case(case):.3f} and {tuned.dice_of_case(case):.3f}.",
        label_keys(patient),
    )
    _dice_charts(page, scratch, tuned)
    page.note(
        f"After {counted(summary['steps']['finetuned'], 'step')} neither has come to "
        "its end; after many both end close to each other. Another seed, or another "
        "number of threads, moves a training by a few hundredths: the interval is one "
        f"over these patients. Mean Dice by training: {_by_training(summary)}."
    )


def _by_training(summary: Mapping[str, Any]) -> str:
    return listed(
        f"{before:.3f} from scratch, {after:.3f} pretrained"
        for before, after in zip(*summary["dice_by_training"].values(), strict=True)
    )


def _dice_charts(page: Page, scratch: Segmentations, tuned: Segmentations) -> None:
    page.charts(
        bar_chart(
            {
                name: {
                    "scratch": scratch.dice_of_case(name),
                    "pretrained": tuned.dice_of_case(name),
                }
                for name in sorted(tuned.labels)
            },
            title="Dice by test patient, mean of the organs",
            width=_CHART,
        ),
        bar_chart(
            {
                name: {"scratch": before, "pretrained": tuned.per_organ[name]}
                for name, before in scratch.per_organ.items()
            },
            title="Dice by organ, mean of the test patients",
            width=_CHART,
        ),
    )


def _carried(
    page: Page, looks: Looks, carried: CarriedLabels, summary: Mapping[str, Any]
) -> None:
    """Labels of one patient on the others."""
    grey = carried.by["grey"]
    page.section(
        "One labelled patient, nothing trained",
        f"The labels of {carried.source} carried to every test patient by matching "
        "what their places look like (homolog propagate): once by grey values alone, "
        "once by the features of the encoder. Each scan also gets a map of how sure "
        "its labels are, to correct what is not and learn from that.",
    )
    cases = sorted(grey.labels, key=grey.dice_of_case)
    if cases:
        case = cases[len(cases) // 2]
        patient = next(p for p in looks.patients if p.labels.name == case)
        shown = {n: s for n, s in carried.by.items() if case in s.labels}
        dice = listed(
            f"by {CARRIED[name]} (Dice {found.dice_of_case(case):.3f})"
            for name, found in shown.items()
        )
        page.figure(
            segmentation_picture(
                patient, {n: s.labels[case] for n, s in shown.items()}
            ),
            f"Test patient {case}, the middle one: scan, truth, labels carried {dice}.",
            label_keys(patient),
        )
    told, form = summary["carried"], "{:.3f}"
    page.table(
        ["compared by", "Dice, mean", "worst test patient", "seconds a patient"],
        [
            [
                name,
                _text(form, told["dice"][key]),
                _text(form, told["worst_dice"][key]),
                _text("{:.1f}", told["seconds"][key]),
            ]
            for key, name in CARRIED.items()
        ],
    )
    page.note(
        "These patients are one anatomy, smoothly bent: nothing is easier to carry "
        "labels between, and grey values suffice. Real patients differ in more than "
        "shape; homolog propagate and homolog compare tell what it is worth on yours."
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
            losses_of(folder / "pretrain"),
            x_title="step", y_title="pretraining losses", smooth=5, width=_CHART,
        ),
        curve_chart(
            {
                "scratch": _sum_of(losses_of(folder / "scratch")),
                "pretrained": _sum_of(losses_of(folder / "finetuned")),
            },
            x_title="step", y_title="fine-tuning loss", smooth=5, width=_CHART,
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
                ("labels carried", ""),
                ("features compared", ""),
            )
            if part in seconds
        ],
    )
    page.note(
        f"homolog {__version__}, seed {config['seed']}, device {config['device']}. "
        "Another seed changes the labelled patients, the first weights and all "
        "patients. Whether pretraining helps on your data is asked by homolog compare, "
        "with more seeds and patients."
    )


_Curve = tuple[list[float], list[float]]


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


# The stages.
# Found on the phantom: a small network makes more steps in the time there is, and soft
# tissue differs too little for it in the usual window of 2000 HU. Few, fast steps on 13
# labels want a high learning rate and every crop centred on some label.
NETWORK: Mapping[str, Any] = {"name": "resunet", "channels": [16, 32, 64, 128]}
WINDOW_HU = (-250.0, 350.0)
PRETRAIN_SETTINGS: Mapping[str, Any] = {
    "method": {"size": [48, 48, 48], "token_stride": 8},
    "backbone": NETWORK,
    "training": {"steps": 150, "batch_size": 4, "previews": 0},
}
FINETUNE_SETTINGS: Mapping[str, Any] = {
    "backbone": NETWORK,
    "task_config": {"window": [48, 48, 48], "balance": 1.0, "intensity": 0.3},
    "training": {
        "steps": 400,  # more would be taken from the pretraining
        "batch_size": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 20,
        "validate_every": 0,
        "previews": 0,
    },
}

# At that rate what came pretrained is moved far by each step: it learns more slowly.
PRETRAINED_SETTINGS: Mapping[str, Any] = {
    "task_config": {"encoder_factor": 0.3, "average": 0.0}
}


# Share of the time that training gets where nothing was measured (a demo continued),
# and the share of this that pretraining gets; the rest is for the fine-tunings.
_TRAINING_SHARE, _PRETRAINING_SHARE = 0.65, 0.4
# What comes after the patients, training left out, takes this many times as long.
_REST_BY_PATIENTS = 10.0
# A step of a fine-tuning takes so much of the time of one of the pretraining.
_FINETUNE_STEP = 0.7
# Between the seeds of two fine-tunings, so that those of two demos are not the same.
_NEXT_SEED = 1000
# Fewer steps of a fine-tuning teach no small organ; a slow machine takes longer.
_FEWEST_STEPS = 300


@dataclass(frozen=True)
class DemoConfig:
    """How much of everything; the defaults take under five minutes on two cores."""

    patients: int = option(20, "patients made", minimum=4, maximum=1000)
    tests: int = option(8, "of these, patients nothing is learnt from", minimum=2)
    labelled: int = option(1, "patients whose labels are used", minimum=1)
    trainings: int = option(
        2,
        "fine-tunings from scratch, and as many pretrained, each with patients to "
        "learn from and random numbers of its own; scores are their means",
        minimum=1,
        maximum=20,
    )
    minutes: float = option(
        4.5, "for everything; most of it goes to training", unit="min", minimum=0.1
    )
    shape: tuple[int, int, int] = option(
        (64, 80, 80), "voxels of a patient's scan", unit="voxel", minimum=16
    )
    spacing_mm: tuple[float, float, float] = option(
        (4.0, 4.0, 4.0), "voxel size", unit="mm", minimum=0.5
    )
    seed: int = option(0, "seed of everything random", minimum=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:i")
    pretrain: dict[str, Any] = dataclasses.field(default_factory=dict)
    finetune: dict[str, Any] = dataclasses.field(default_factory=dict)


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Run the demo; parts that are complete are not repeated.

    Args:
        config: Fields of DemoConfig.
        folder: New, empty, or a demo that was stopped.

    Returns:
        Summary, JSON types: the figures of the table, ``report`` and ``seconds``.
    """
    demo = _Demo(from_dict(DemoConfig, config, where="demo"), Path(folder))
    stages: tuple[tuple[str, Callable[[], Job[bool]]], ...] = (
        ("patients", demo.make_patients),
        ("store", demo.prepare),
        ("pretraining", demo.pretrain),
        ("fine-tuning from scratch", demo.from_scratch),
        ("fine-tuning the pretrained encoder", demo.from_pretrained),
        ("test patients segmented", demo.segment),
        ("labels carried", demo.carry),
        ("features compared", demo.look),
        ("report", demo.report),
    )
    began = time.monotonic()
    for number, (name, stage) in enumerate(stages, start=1):
        yield Started(f"[{number}/{len(stages)}] {name}")
        start = time.monotonic()
        finished = yield from stage()
        if not finished:
            yield Stopped(number)
            return {"stopped": True, "stage": name}
        demo.seconds[name] = round(time.monotonic() - start, 1)
        demo.seconds["total"] = round(time.monotonic() - began, 1)
    return {**demo.summary(), "stopped": False}


class _Demo:
    """State between the stages; each stage returns whether it came to its end."""

    looks: Looks
    segmentations: Mapping[str, Segmentations]
    carried: CarriedLabels

    def __init__(self, config: DemoConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.seconds: dict[str, float] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.training_s = 60.0 * config.minutes * _TRAINING_SHARE

    def make_patients(self) -> Job[bool]:
        config, scans = self.config, self.folder / "scans"
        done = scans / "complete"
        if done.exists():
            return True
        began = time.monotonic()
        patients = write_patients(
            scans, config.patients, seed=config.seed, test=config.tests,
            shape=config.shape, spacing_mm=config.spacing_mm,
        )  # fmt: skip
        for i, name in enumerate(patients, start=1):
            request = yield Progress("patients", i, config.patients, name)
            if request is Request.STOP:
                return False
        done.touch()
        # How fast this machine is decides what the rest will take besides training.
        spent_s = time.monotonic() - began
        left_s = 60.0 * config.minutes - (1.0 + _REST_BY_PATIENTS) * spent_s
        self.training_s = max(left_s, 0.4 * 60.0 * config.minutes)
        return True

    def prepare(self) -> Job[bool]:
        # As homolog prepare, but no patient is held out for validation: with equal
        # steps and last weights kept, there is nothing to choose, and time is short.
        index = yield from index_sources([self.folder / "scans"])
        if index.stopped:
            return False
        result = yield from write_store(
            index.cases,
            self.folder / "store",
            preprocessing=Preprocessing(window_hu=WINDOW_HU),
            spacing="native",
            rejected=index.rejected,
            seed=self.config.seed,
            fractions={"train": 1.0},
        )
        return not result["stopped"]

    def pretrain(self) -> Job[bool]:
        config = self.config
        length = {"training": {"minutes": _PRETRAINING_SHARE * self.training_s / 60.0}}
        resolved = resolve_pretrain(
            "s2dc",
            [self.folder / "store"],
            recipe="cpu",
            settings=_merged(PRETRAIN_SETTINGS, length, config.pretrain),
            seed=config.seed,
            device=config.device,
        )
        result = yield from without_stopped(
            pretrain_job(resolved, self.folder / "pretrain")
        )
        self.runs["pretrain"] = result
        return not result["stopped"]

    def from_scratch(self) -> Job[bool]:
        # As many as usual, fewer where a slow machine has no time for them; but with
        # too few none of the small organs is learnt, and there is nothing to compare.
        usual = int(FINETUNE_SETTINGS["training"]["steps"])
        step_s = _FINETUNE_STEP * float(self.runs["pretrain"]["seconds_per_step"])
        count = 2 * self.config.trainings
        own_s = (1.0 - _PRETRAINING_SHARE) / count * self.training_s
        steps = min(usual, max(_FEWEST_STEPS, int(own_s / max(step_s, 1e-6))))
        return (yield from self._finetunings("scratch", SCRATCH, {"steps": steps}))

    def from_pretrained(self) -> Job[bool]:
        # As many steps as the other: the same work for both.
        length = {"steps": self.runs["scratch"]["steps"]}
        encoder = str(self.folder / "pretrain")
        return (yield from self._finetunings("finetuned", encoder, length))

    def _finetunings(
        self, kind: str, encoder: str, length: dict[str, Any]
    ) -> Job[bool]:
        for number, name in enumerate(self._names(kind)):
            finished = yield from self._finetune(name, encoder, length, number)
            if not finished:
                return False
        return True

    def _names(self, kind: str) -> list[str]:
        """Folders of the fine-tunings of a kind: ``scratch``, ``scratch_2``, ..."""
        more = range(2, self.config.trainings + 1)
        return [kind, *(f"{kind}_{number}" for number in more)]

    def _finetune(
        self, name: str, encoder: str, length: dict[str, Any], number: int
    ) -> Job[bool]:
        config = self.config
        training = len(Store.open(self.folder / "store").split("train"))
        settings = _merged(
            FINETUNE_SETTINGS,
            {} if encoder == SCRATCH else PRETRAINED_SETTINGS,
            {"training": length},
            config.finetune,
            {
                "task": "segment",
                "store": str(self.folder / "store"),
                "encoder": encoder,
                "patients": min(config.labelled, training),
                # both of a pair learn from the same patients in the same order
                "seed": config.seed + _NEXT_SEED * number,
                "device": config.device,
            },
        )
        result = yield from without_stopped(finetune_job(settings, self.folder / name))
        self.runs[name] = result
        return not result["stopped"]

    def segment(self) -> Job[bool]:
        self.segmentations = {}
        for kind in ("scratch", "finetuned"):
            by_run = []
            for name in self._names(kind):
                found = yield from segment_tests(
                    self.folder / name, self.folder / "store", self.config.device
                )
                if found is None:
                    return False
                by_run.append(found)
            self.segmentations = {**self.segmentations, kind: pooled(by_run)}
        return True

    def carry(self) -> Job[bool]:
        # Of those whose labels were learnt from, the first by name.
        card = read_card(find_model(self.folder / "scratch"))
        source = min(card["cases"]["train"])
        found = yield from carry_labels(self.folder, source, self.config.device)
        if found is None:
            return False
        self.carried = found
        return True

    def look(self) -> Job[bool]:
        looks = yield from look_inside(
            self.folder, self.config.device, seed=self.config.seed
        )
        if looks is None:
            return False
        self.looks = looks
        return True

    def report(self) -> Job[bool]:
        path = self.folder / "report.html"
        write_report(
            path, self.folder, self.summary(), self.looks, self.segmentations,
            self.carried, self.runs, dataclasses.asdict(self.config),
        )  # fmt: skip
        write_overview(self.folder / "overview.png", self.looks)
        write_json(self.folder / "results.json", self.summary(), end="")
        yield Saved(str(path), "report")
        for line in table_lines(self.summary()):
            yield Note(line)
        return True

    def summary(self) -> dict[str, Any]:
        """The figures, JSON types."""
        scratch, tuned = (self.segmentations[n] for n in ("scratch", "finetuned"))
        return {
            **_numbers(
                {
                    "dice": {
                        "scratch": scratch.mean_dice,
                        "pretrained": tuned.mean_dice,
                    },
                    "worst_dice": {
                        "scratch": scratch.worst_dice,
                        "pretrained": tuned.worst_dice,
                    },
                    **self.looks.figures(),
                }
            ),
            "dice_by_patient": {
                case: {
                    "scratch": scratch.dice_of_case(case),
                    "pretrained": tuned.dice_of_case(case),
                }
                for case in sorted(tuned.labels)
            },
            "paired": {
                **_paired(tuned.ahead_of(scratch)),
                "steps": self.runs["finetuned"]["steps"],
                "by_training": [
                    after - before
                    for before, after in zip(scratch.by_run, tuned.by_run, strict=True)
                ],
            },
            "dice_by_training": {
                "scratch": list(scratch.by_run),
                "pretrained": list(tuned.by_run),
            },
            "carried": {"source": self.carried.source, **self._carried()},
            "shipped": _numbers(self.looks.shipped),
            "patients": self.config.patients,
            "labelled": self.runs["scratch"]["cases"]["train"],
            "tests": self.config.tests,
            "trainings": self.config.trainings,
            "steps": {name: run["steps"] for name, run in self.runs.items()},
            "seconds": dict(self.seconds),
            "seed": self.config.seed,
            "report": str(self.folder / "report.html"),
            "encoder": str(self.folder / "pretrain"),
        }

    def _carried(self) -> dict[str, dict[str, float | None]]:
        by = self.carried.by
        return _numbers(
            {
                "dice": {name: found.mean_dice for name, found in by.items()},
                "worst_dice": {name: found.worst_dice for name, found in by.items()},
                "seconds": self.carried.seconds,
            }
        )


def _paired(found: Difference) -> dict[str, Any]:
    low, high = found.patients or (None, None)
    return {
        "mean": found.mean, "low": low, "high": high, "wins": found.wins,
        "of": found.count,
    }  # fmt: skip


def paired_words(paired: Mapping[str, Any]) -> str:
    """How far the pretrained one is ahead on the same test patients."""
    each = [f"{gain:+.3f}" for gain in paired["by_training"]]
    trainings = (
        f"; {len(each)} trainings of each, {listed(each)}" if len(each) > 1 else ""
    )
    reach = ""
    if paired["low"] is not None:
        reach = f" (95 % interval {paired['low']:+.3f} to {paired['high']:+.3f})"
    return (
        f"Dice after {counted(paired['steps'], 'step')}, pretrained less scratch on "
        f"the same patients: {paired['mean']:+.3f} on average{reach}, ahead on "
        f"{paired['wins']} of {paired['of']}{trainings}"
    )


def carried_words(carried: Mapping[str, Any]) -> str:
    """What labels of one patient are worth on others."""
    parts = [
        f"{_text('{:.3f}', carried['dice'][key])} by {name} "
        f"({duration(carried['seconds'][key] or 0.0)} a patient)"
        for key, name in CARRIED.items()
    ]
    return (
        f"labels of {carried['source']} carried, nothing trained: Dice {listed(parts)}"
    )


def shipped_lines(shipped: Mapping[str, Any]) -> list[str]:
    """What the encoders of the package find in these patients, a sentence each."""
    return [
        f"{name} (comes with the package, nothing is learnt here): landmarks "
        f"{_text('{:.1f}', found['landmark_error_mm'])} mm, "
        f"{_text('{:.0%}', found['landmarks_within_10_mm'])} within 10 mm; same organ, "
        f"area under ROC {_text('{:.3f}', found['same_organ_auc'])}"
        for name, found in shipped.items()
    ]


def table_lines(summary: Mapping[str, Any]) -> list[str]:
    """The closing table as lines of text."""
    rows = [
        ("segmentation: Dice, mean", "dice", "scratch", "{:.3f}"),
        ("segmentation: Dice, worst patient", "worst_dice", "scratch", "{:.3f}"),
        ("landmark error, mean (mm)", "landmark_error_mm", "random", "{:.1f}"),
        ("landmarks within 10 mm", "landmarks_within_10_mm", "random", "{:.0%}"),
        ("similarity contrast (std)", "similarity_contrast", "random", "{:.2f}"),
        ("same organ, area under ROC", "same_organ_auc", "random", "{:.3f}"),
    ]
    lines = [f"{'':36}{'not pretrained':>16}{'pretrained':>12}"]
    for title, key, control, form in rows:
        values = summary[key]
        cells = [
            "-" if values[k] is None else form.format(values[k])
            for k in (control, "pretrained")
        ]
        lines.append(f"{title:36}{cells[0]:>16}{cells[1]:>12}")
    return [
        *lines,
        *shipped_lines(summary["shipped"]),
        paired_words(summary["paired"]),
        carried_words(summary["carried"]),
    ]


def _numbers(
    figures: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, float | None]]:
    """The same for JSON, which has no NaN."""
    return {
        name: {k: None if math.isnan(v) else v for k, v in values.items()}
        for name, values in figures.items()
    }


def _merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    return merge({}, *parts)
