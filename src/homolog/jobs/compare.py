"""Which pretraining helps on these scans, with how many labels?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import option
from homolog.events import Job
from homolog.jobs.base import DEVICES

FAILURES = "failed"
STOPPED = "Stopped; the same words go on where it was."


# Paper: Joint five repeats.
@dataclass(frozen=True)
class Config:
    """Fine-tune from scratch and from encoders, with few and with many labels.

    \b
    homolog compare store --methods scratch,carried,s2dc --patients 1,2,all --out T
    homolog compare store --methods scratch,ours=runs/pre --steps 300 --out T
    homolog compare store --plan plan.toml --out T
    homolog compare store --task detect --methods scratch,s2dc --patients all --out T

    Every arm learns from the same patients (fewer lie within more), with the same
    number of steps and seeds, and is tested on the same test patients, which no
    pretraining sees either. No labelled case beside those counted chooses weights: the
    last ones, or their average, are kept. Methods that use labels are pretrained with
    the labels of the counted patients alone.

    Segmentations are compared by Dice, classes by AUC, boxes by AP50, images that are
    made by PSNR: each task has its own score. Patients are what is resampled, also
    where a score (AUC, AP50) is one of many patients together.

    Ctrl-C, or a power cut, loses nothing: the same words go on. A changed plan repeats
    only what it changes. A failed cell is told, and the rest goes on.
    """  # noqa: D301 - click reads the backspace

    store: str = option(
        ..., "A store with labelled cases.", flag="store", metavar="STORE", reads=True
    )
    methods: str = option(
        "",
        "Arms, with commas: scratch; carried, which first learns from the few labels "
        "carried to all others; a method of homolog methods, pretrained here; "
        "NAME=METHOD; NAME=RUN, a ready encoder.",
        metavar="ARMS",
        empty="the plan's",
    )
    patients: str = option(
        "",
        "Numbers of labelled patients, such as 1,2,5,all.",
        metavar="N,...",
        empty="1,2,5,all",
    )
    seeds: int | None = option(
        None, "Seeds, of pretraining and of fine-tuning.", minimum=1, empty="3"
    )
    steps: int | None = option(
        None, "Steps of every fine-tuning.", minimum=1, empty="the recipe's"
    )
    pretrain_steps: int | None = option(
        None, "Steps of every pretraining.", minimum=1, empty="the recipe's"
    )
    test_patients: int | None = option(
        None,
        "Test so many patients, drawn by the seed.",
        minimum=1,
        metavar="K",
        empty="those of the store's test split",
    )
    folds: int | None = option(
        None,
        "Divide all labelled patients, the test split's too, into K parts; each is "
        "tested once.",
        minimum=2,
        metavar="K",
        empty="one test set",
    )
    plan: str | None = option(
        None,
        "TOML or JSON file with all of this and the settings of each arm; flags win.",
        metavar="FILE",
        reads=True,
        empty="none",
    )
    assignments: tuple[str, ...] = option(
        (),
        "A setting of every fine-tuning, as of homolog finetune, or ARM.KEY=VALUE of "
        "one arm's. May be repeated.",
        flag="--set",
        metavar="[ARM.]KEY=VALUE",
    )
    pretrain_assignments: tuple[str, ...] = option(
        (),
        "The same of the pretrainings: method.KEY, backbone.KEY, training.KEY.",
        flag="--pretrain-set",
        metavar="[ARM.]KEY=VALUE",
    )
    backbone: str | None = option(
        None,
        "Network of scratch and of the methods.",
        metavar="B",
        empty="the recipes'",
    )
    recipe: str | None = option(
        None, "Settings to start from: cpu, gpu, auto.", metavar="R", empty="auto"
    )
    task: str | None = option(
        None,
        "What is learnt: segment, classify, detect or translate.",
        metavar="T",
        empty="segment",
    )
    marks: int | None = option(
        None,
        "Times the network is scored on a few test patients as it learns, for the "
        "curve over steps; 0: never.",
        minimum=0,
        empty="5",
    )
    parallel: int = option(
        0,
        "Runs at a time; 0: as many as cores and memory allow, one on a GPU.",
        minimum=0,
    )
    threads: int = option(0, "CPU threads of each run; 0: one.", minimum=0)
    out: str | None = option(
        None,
        "Folder of the table and of all runs; found again by the same words.",
        metavar="DIR",
        writes=True,
        empty="compare-STORE here",
    )
    device: str = option("auto", DEVICES, metavar="DEVICE")
    seed: int = option(
        0, "First seed; it also draws test patients and folds.", minimum=0
    )


def home(config: Config) -> Path:
    """Where the terminal puts it if it is not said."""
    return Path(f"compare-{Path(config.store).resolve().name}")


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Compare; see ``homolog.comparing.compare.compare``."""
    from homolog.comparing.compare import compare
    from homolog.comparing.plan import make_plan, read_plan
    from homolog.store.store import Store

    own, before = list(config.assignments), list(config.pretrain_assignments)
    if config.backbone is not None:
        own.insert(0, f"backbone.name={config.backbone}")
        before.insert(0, f"backbone.name={config.backbone}")
    if config.steps is not None:
        own.insert(0, f"training.steps={config.steps}")
    if config.pretrain_steps is not None:
        before.insert(0, f"training.steps={config.pretrain_steps}")
    plan = make_plan(
        read_plan(Path(config.plan)) if config.plan else {},
        methods=config.methods, patients=config.patients,
        assignments=own, pretrain_assignments=before, seed=config.seed,
        seeds=config.seeds, test_patients=config.test_patients, folds=config.folds,
        marks=config.marks, recipe=config.recipe, task=config.task,
    )  # fmt: skip
    return (
        yield from compare(
            plan, Store.open(config.store),
            (Path(config.out) if config.out else folder).resolve(),
            device=config.device, parallel=config.parallel, threads=config.threads,
        )
    )  # fmt: skip


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    from homolog.comparing.compare import table_lines

    return [*table_lines(dict(result)), f"report: {result['report']}"]
