"""Labels of one patient carried to others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from homolog.config import option
from homolog.events import Job
from homolog.jobs.base import FeaturesConfig, optional_path, paths
from homolog.propagation.config import PropagateConfig
from homolog.words import counted

FAILURES = "failed"


@dataclass(frozen=True)
class Config(PropagateConfig, FeaturesConfig):
    """Carry labels of one or a few scans to all others; nothing is trained.

    \b
    homolog propagate store --from patient_01 --encoder RUN --out carried
    homolog propagate scans/ --from a.nii.gz --labels a_seg.nii.gz --out carried

    Scans are mapped to each other by what their places look like (dense features of an
    encoder, grey values, or both), first as a whole, then bent; several labelled scans
    vote. --out gets a label map per scan under its own name and on its own grid,
    uncertainty/NAME_uncertainty.nii.gz (0 sure to 1), and propagation.csv: the scans
    to correct first come first. Where labels are known, dice.csv tells how good they
    are. What lies in --out from the same scans and settings is not made again.
    """  # noqa: D301 - click reads the backspace

    scans: tuple[str, ...] = option(
        ...,
        "A prepared store; or scans and folders of scans.",
        flag="scans",
        metavar="STORE|SCAN...",
        reads=True,
    )
    sources: tuple[str, ...] = option(
        ...,
        "Labelled cases of the store, or scan files with --labels.",
        flag="--from",
        metavar="CASE[,CASE]",
    )
    labels: tuple[str, ...] = option(
        (),
        "Label file of each scan file of --from.",
        metavar="FILE[,FILE]",
        reads=True,
    )
    encoder: str | None = option(
        None,
        "A pretraining run, a model folder or a weight file.",
        metavar="RUN",
        reads=True,
        empty="none, grey values alone",
    )
    out: str = option(..., "Folder of the results.", metavar="DIR", writes=True)


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Labels carried to other scans; see ``propagation.of_scans.propagate``."""
    from homolog.propagation.of_scans import choose, propagate

    how = PropagateConfig(
        **{f.name: getattr(config, f.name) for f in fields(PropagateConfig)}
    )
    sources, targets = choose(
        paths(config.scans, "scan"), config.sources, [Path(p) for p in config.labels]
    )
    encoder = config.open_encoder() if config.encoder else None
    kept = optional_path(config.features)
    return (
        yield from propagate(sources, targets, Path(config.out), encoder, how, kept)
    )


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read: the scans to correct first come first."""
    told = []
    for row in result["cases"]:
        dice = "" if row["dice"] is None else f", Dice {row['dice']:.3f}"
        same = " (the same patient)" if row["same_patient"] else ""
        again = ", was there already" if row["reused"] else f", {row['seconds']:.0f} s"
        told.append(
            f"{row['case']}{same}: confidence {row['confidence']:.2f}{dice}{again}"
        )
    if result["mean_dice"]:
        parts = [f"{name} {dice:.3f}" for name, dice in result["mean_dice"].items()]
        told.append(f"mean Dice of other patients: {', '.join(parts)}")
    if result["failed"]:
        told.append(f"{len(result['failed'])} could not be:")
        told += [f"  {f['scan']}: {f['reason']}" for f in result["failed"]]
    done = counted(len(result["cases"]), "scan")
    told.append(
        f"labels of {done} by {result['method']} in {result['out']}; correct first "
        f"what {result['table']} lists first"
    )
    return told
