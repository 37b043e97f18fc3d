"""From paint and predictions to files: a model saved, a store prepared. No Qt.

The functions run on threads; what they return is the configuration of a worker's job.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from homolog.data.scan_header import scan_stem
from homolog.errors import UnusableInput
from homolog.gui.data.store_building import build_config, free_name
from homolog.gui.files.layer_scan import scan_file
from homolog.gui.files.writer import save_layer
from homolog.private_files import make_folder
from homolog.tasks._few_settings import FewClass, FewConfig


@dataclass(frozen=True)
class Pair:
    """A scan's layer and a labels layer on it."""

    scan: Any
    labels: Any


def model_config(
    pairs: Sequence[Pair],
    classes: Sequence[FewClass],
    config: FewConfig,
    *,
    encoder: Path | None,
    out: Path,
    features: Path,
    device: str,
    scratch: Path,
) -> dict[str, Any]:
    """The config of a ``few_voxels`` job; scans and paint are written where needed.

    Args:
        pairs: Scans with their painted layers; empty ones are left out.
        classes: Of the paint.
        config: As the head was fitted.
        encoder: Run or model folder; None: intensities alone.
        out: The new model's folder.
        features: Where feature maps are kept.
        device: Where an encoder runs.
        scratch: A folder of this window.

    Raises:
        UnusableInput: Nothing is painted.
    """
    used = [p for p in pairs if np.asarray(p.labels.data).any()]
    if not used:
        raise UnusableInput("Paint some voxels first; there is nothing to save.")
    place = _fresh(scratch / "painted")
    scans = [scan_file(p.scan, scratch) for p in used]
    labels = [
        save_layer(p.labels, place / f"{i}_{scan_stem(s)}.nii.gz", [p.scan])[0]
        for i, (p, s) in enumerate(zip(used, scans, strict=True))
    ]
    there = set().union(*(np.unique(np.asarray(p.labels.data)) for p in used))
    ground = next((c.value for c in classes if c.background), None)
    return {
        "scans": [str(p) for p in scans],
        "labels": [str(p) for p in labels],
        "encoder": None if encoder is None else str(encoder),
        "out": str(out),
        "features": str(features),
        "names": {str(c.value): c.name for c in classes},
        "colours": {str(c.value): c.colour for c in classes},
        "background": ground if ground in there else None,
        "device": device,
        "head": config.head,
        "position": config.position,
        "body_only": config.body_only,
    }


def store_config(pairs: Sequence[Pair], stores: Path, scratch: Path) -> dict[str, Any]:
    """The config of a ``prepare`` job over scans and their predictions.

    Args:
        pairs: Scans with their predicted layers; empty ones are left out.
        stores: Folder of the stores.
        scratch: A folder of this window.

    Raises:
        UnusableInput: No prediction holds anything.
    """
    used = [p for p in pairs if np.asarray(p.labels.data).any()]
    if not used:
        raise UnusableInput("There is no prediction yet; paint two classes first.")
    folder = _fresh(scratch / "labels-to-learn")
    scans = [scan_file(p.scan, scratch) for p in used]
    stems = [scan_stem(s) for s in scans]
    if len(set(stems)) < len(stems):
        raise UnusableInput(
            f"Scans of one store need different file names, got {', '.join(stems)}."
        )
    for pair, scan in zip(used, scans, strict=True):
        save_layer(pair.labels, folder / f"{scan_stem(scan)}.nii.gz", [pair.scan])
    name = free_name(stores, f"labelled_{scan_stem(scans[0])}"[:60])
    return build_config(scans, stores, name, labels=str(folder))


def model_name(text: str, models: Path) -> str:
    """Why a model cannot have that name; empty when it can."""
    name = text.strip()
    if not re.fullmatch(r"[\w][\w .+-]*", name):
        return "Give the model a name of letters, digits, spaces, - and _ only."
    if (models / name).exists():
        return f"There is a model {name!r} already; choose another name."
    return ""


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    return folder
