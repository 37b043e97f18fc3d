"""The whole path on built-in patients: learn without labels, label a little, compare.

The same jobs as the commands, in the same kinds of folders: ``scans/`` (nnU-Net
layout), ``store/``, ``pretrain/``, ``scratch/``, ``finetuned/`` (runs), ``features/``,
and the answer: ``results.json``, ``report.html`` and ``overview.png``.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import from_dict, merge, option
from homolog.data.atomic import write_json
from homolog.data.index import index_sources
from homolog.data.phantom_cohort import write_patients
from homolog.data.preprocess import Preprocessing
from homolog.data.store import Store
from homolog.data.store_writer import write_store
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
from homolog.pretrain import job as pretrain_job
from homolog.pretrain import resolve as resolve_pretrain
from homolog.study.demo_report import write_overview, write_report
from homolog.study.demo_scores import (
    Looks,
    Segmentations,
    look_inside,
    segment_tests,
)
from homolog.tasks._finetune import job as finetune_job

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
        "steps": 150,  # usual here, where minutes say how many
        "batch_size": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 20,
        "validate_every": 0,
        "previews": 0,
    },
}


# Share of the time that training gets where nothing was measured (a demo continued).
_TRAINING_SHARE = 0.75
# What comes after the patients, training left out, takes this many times as long.
_REST_BY_PATIENTS = 4.0


@dataclass(frozen=True)
class DemoConfig:
    """How much of everything; the defaults take under five minutes on two cores."""

    patients: int = option(14, "patients made", minimum=4, maximum=1000)
    tests: int = option(4, "of these, patients nothing is learnt from", minimum=2)
    labelled: int = option(2, "patients whose labels are used", minimum=1)
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
    """State between the stages; each stage tells whether it came to its end."""

    looks: Looks
    segmentations: Mapping[str, Segmentations]

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
        left_s = 60.0 * config.minutes - spent_s - 20.0 - _REST_BY_PATIENTS * spent_s
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
        length = {"training": {"minutes": 0.42 * self.training_s / 60.0}}
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
        length = {"minutes": 0.29 * self.training_s / 60.0}
        return (yield from self._finetune("scratch", "scratch", length))

    def from_pretrained(self) -> Job[bool]:
        # As many steps as the other was given time for: the same work for both.
        length = {"steps": self.runs["scratch"]["steps"]}
        return (
            yield from self._finetune(
                "finetuned", str(self.folder / "pretrain"), length
            )
        )

    def _finetune(self, name: str, encoder: str, length: dict[str, Any]) -> Job[bool]:
        config = self.config
        store = Store.open(self.folder / "store")
        training = len(store.split("train"))
        settings = _merged(
            FINETUNE_SETTINGS,
            {"training": length},
            config.finetune,
            {
                "task": "segment",
                "store": str(self.folder / "store"),
                "encoder": encoder,
                "fraction": min(config.labelled / training, 1.0),
                "seed": config.seed,
                "device": config.device,
            },
        )
        result = yield from without_stopped(finetune_job(settings, self.folder / name))
        self.runs[name] = result
        return not result["stopped"]

    def segment(self) -> Job[bool]:
        self.segmentations = {}
        for name in ("scratch", "finetuned"):
            found = yield from segment_tests(
                self.folder / name, self.folder / "store", self.config.device
            )
            if found is None:
                return False
            self.segmentations = {**self.segmentations, name: found}
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
            self.runs, dataclasses.asdict(self.config),
        )  # fmt: skip
        write_overview(self.folder / "overview.png", self.looks)
        write_json(self.summary(), self.folder / "results.json")
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
            "patients": self.config.patients,
            "labelled": self.runs["scratch"]["cases"]["train"],
            "tests": self.config.tests,
            "steps": {name: run["steps"] for name, run in self.runs.items()},
            "seconds": dict(self.seconds),
            "seed": self.config.seed,
            "report": str(self.folder / "report.html"),
            "encoder": str(self.folder / "pretrain"),
        }


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
    return lines


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
