"""Labels of one patient carried to others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, option
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

    With --as-store --out is a store to fine-tune on at once: the labelled cases as they
    are and the others with carried labels, images shared with the first store.
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
        "A labelled case of the store, or a scan file with --labels. May be repeated.",
        flag="--from",
        metavar="CASE",
    )
    targets: tuple[str, ...] = option(
        (),
        "A case of the store, or the name of a scan file without its ending, that gets "
        "labels. May be repeated.",
        flag="--to",
        metavar="CASE",
        empty="all others",
    )
    labels: tuple[str, ...] = option(
        (),
        "Label file of each scan file of --from, in their order. May be repeated.",
        metavar="FILE",
        reads=True,
    )
    encoder: str | None = option(
        None,
        "A pretraining run, a model folder, a weight file or a model's name.",
        metavar="RUN",
        reads="model",
        empty="none, grey values alone",
    )
    as_store: bool = option(
        False, "Make a store instead of label files; SCAN is a store then."
    )
    out: str = option(..., "Folder of the results.", metavar="DIR", writes=True)


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Labels carried to other scans.

    See ``propagation.of_scans.propagate``, or ``propagation.into_store.propagate_into``
    with ``as_store``.
    """
    from homolog.distributed import choose_device
    from homolog.propagation.of_scans import choose, propagate

    how = PropagateConfig(
        **{f.name: getattr(config, f.name) for f in fields(PropagateConfig)}
    )
    if config.as_store:
        return (yield from _as_store(config, how))
    sources, targets = choose(
        paths(config.scans, "scan"), config.sources, [Path(p) for p in config.labels],
        config.targets,
    )  # fmt: skip
    encoder = config.open_encoder() if config.encoder else None
    kept = optional_path(config.features)
    return (
        yield from propagate(
            sources, targets, Path(config.out), encoder, how, kept,
            choose_device(config.device),
        )
    )  # fmt: skip


def _as_store(config: Config, how: PropagateConfig) -> Job[dict[str, Any]]:
    from homolog.distributed import choose_device
    from homolog.propagation.into_store import propagate_into
    from homolog.store.store import Store

    if config.labels or len(config.scans) != 1:
        raise ConfigError("--as-store takes one store and labelled cases of it alone.")
    store = Store.open(config.scans[0])
    targets = config.targets or tuple(card.id for card in store.cards)
    encoder = config.open_encoder() if config.encoder else None
    return (
        yield from propagate_into(
            store,
            config.sources,
            targets,
            Path(config.out),
            encoder,
            how,
            choose_device(config.device),
        )
    )


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read: the scans to correct first come first."""
    told = []
    for row in result["cases"]:
        dice = "" if row["dice"] is None else f", Dice {row['dice']:.3f}"
        same = " (the same patient)" if row["same_patient"] else ""
        again = ", was there already" if row["reused"] else f", {row['seconds']:.0f} s"
        doubt = ", doubtful" if row.get("doubtful") else ""
        told.append(
            f"{row['case']}{same}: confidence {row['confidence']:.2f}{doubt}{dice}"
            f"{again}"
        )
    if result["mean_dice"]:
        parts = [f"{name} {dice:.3f}" for name, dice in result["mean_dice"].items()]
        told.append(f"mean Dice of other patients: {', '.join(parts)}")
    if result["failed"]:
        told.append(f"{len(result['failed'])} could not be:")
        told += [f"  {f['scan']}: {f['reason']}" for f in result["failed"]]
    done = counted(len(result["cases"]), "scan")
    if store := result.get("store"):
        left = sum(bool(row.get("doubtful")) for row in result["cases"])
        out = f", {left} of them too doubtful to learn from" if left else ""
        told.append(
            f"labels of {done} by {result['method']}{out}; train on the store {store}"
        )
        return told
    told.append(
        f"labels of {done} by {result['method']} in {result['out']}; correct first "
        f"what {result['table']} lists first"
    )
    return told
