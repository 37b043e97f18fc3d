"""Build a store, as a job: scans wherever they lie -> a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, from_dict
from homolog.events import Job
from homolog.geometry.affine import Triple
from homolog.jobs.base import ending, paths, taken
from homolog.store.build import prepare_store
from homolog.store.names import read_names
from homolog.store.preprocess import Preprocessing

_DEFAULTS: Mapping[str, Any] = {
    "sources": ..., "out": ..., "labels": (), "spacing": "auto", "modality": None,
    "window_hu": None, "names": "", "seed": 0, "replace": False,
    "keep_identifiers": False,
}  # fmt: skip


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Prepare scans into a store; what is there and current is kept.

    Args:
        config: ``sources`` and ``labels`` (absolute paths), ``out``, ``spacing``
            (``auto``, ``native`` or [z, y, x] in mm), ``modality``, ``window_hu``
            ([low, high]), ``names`` (as in ``build_store``), ``seed``; ``replace``
            takes out what the store has and the sources lack; ``keep_identifiers``
            stores subjects as they are told.
        folder: Not used; the store has its own.

    Returns:
        As ``write_store``: cases, labelled, rejected, store, explanation, stopped, ...
    """
    asked = taken(config, "prepare", _DEFAULTS)
    sources = paths(asked["sources"], "scan")
    labels = [Path(p) for p in asked["labels"]]
    building = build_store(
        sources,
        Path(asked["out"]),
        labels=labels,
        spacing=asked["spacing"],
        modality=asked["modality"],
        window_hu=asked["window_hu"],
        names=asked["names"],
        seed=int(asked["seed"]),
        keep_identifiers=bool(asked["keep_identifiers"]),
        replace=bool(asked["replace"]),
    )
    return (yield from ending(building))


def build_store(
    sources: list[Path],
    out: Path,
    *,
    labels: list[Path],
    spacing: Any,
    modality: str | None,
    window_hu: Any,
    names: str,
    seed: int,
    keep_identifiers: bool = False,
    replace: bool = False,
) -> Job[dict[str, Any]]:
    """Check what was asked for, then prepare.

    Args:
        sources: Scans, folders, data sets or manifests.
        out: Folder of the store.
        labels: Folders of label maps, when they lie apart.
        spacing: ``auto``, ``native`` or (z, y, x) in mm.
        modality: Of every scan; None: as its file says.
        window_hu: CT values kept (low, high); None: as ever.
        names: What label values are called, as ``1=liver,2=spleen``; may be empty.
        seed: Of the splits and the foreground index.
        keep_identifiers: Store subjects as they are told, not as keyed hashes.
        replace: The store is to hold these scans and no others.

    Raises:
        ConfigError: A spacing, window or label name that cannot be meant.
        FileNotFoundError: A source that is not there.
    """
    from homolog.scans.dicom import is_series_path

    for path in (*sources, *labels):
        if not is_series_path(path) and not path.exists():
            raise FileNotFoundError(2, "there is no such file or folder", str(path))
    recipe: dict[str, Any] = {"modality": modality.upper() if modality else None}
    if window_hu is not None:
        recipe["window_hu"] = list(window_hu)
    preprocessing = from_dict(Preprocessing, recipe, where="prepare")
    low, high = preprocessing.window_hu
    if not low < high:
        raise ConfigError(f"the window must go from low to high, got {low:g},{high:g}.")
    return (
        yield from prepare_store(
            sources, out, labels=labels, spacing=_spacing(spacing),
            preprocessing=preprocessing, names=read_names(names), seed=seed,
            keep_identifiers=keep_identifiers,
            replace=replace,
        )
    )  # fmt: skip


def _spacing(value: Any) -> Triple | str:
    if isinstance(value, str):
        if value not in ("auto", "native"):
            raise ConfigError(
                f"the voxel size must be auto, native or three numbers, got {value!r}."
            )
        return value
    recipe = from_dict(Preprocessing, {"spacing_mm": list(value)}, where="voxel size")
    assert recipe.spacing_mm is not None
    return recipe.spacing_mm
