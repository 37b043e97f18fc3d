"""Turn scans into a store for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.config import ConfigError, from_dict, option
from homolog.events import Job, Note
from homolog.jobs.base import MODALITIES, STRAIGHTEN, paths
from homolog.words import counted, human_bytes

if TYPE_CHECKING:
    from homolog.store.preprocess import Preprocessing

STOPPED = "Stopped; what is prepared stays, run it again to go on."
REPORTED = (
    "cases",
    "labelled",
    "classed",
    "boxed",
    "channels",
    "patients",
    "rejected",
    "store",
    "kept",
    "removed",
)
# Reasons listed one by one before the rest is counted.
_LISTED = 20


@dataclass(frozen=True)
class Config:
    """Turn scans into a store: checked, on one grid spacing, quick to read in parts.

    SOURCE is a folder of scans, an nnU-Net or Decathlon dataset, a DICOM tree, a
    CSV or JSON manifest, a folder of pictures, or single files. What is unsound is
    left out with its reason. Run it again to go on after an interruption or to take
    in what changed; what is current is not read twice, and cases of the store that
    SOURCE does not have stay in it.

    A manifest has a column image (a|b are channels of one case, called as the column
    channels says) and, where known, label, modality, class (a|b are two, "no finding"
    is none), types, subject, split (train, val, test), boxes.

    Without --names, labels are called as dataset.json, a label_names.json beside the
    label maps, a 3D Slicer segmentation, or a JSON manifest says, or else by their
    number. Labels of one name are one class, whatever their numbers; those called
    ignore teach nothing.

    Names of files and folders are kept (ids of cases, sources of the store): rename
    files named after patients before you share a store.
    """

    sources: tuple[str, ...] = option(
        ..., "Scans wherever they lie.", flag="sources", metavar="SOURCE..."
    )
    out: str = option(
        ...,
        "Folder of the store; new, empty, or one to bring up to date.",
        metavar="STORE",
        writes=True,
    )
    labels: tuple[str, ...] = option(
        (),
        "Folder of label maps named like their scans. May be repeated.",
        metavar="DIR",
        empty="where the sources have them",
    )
    spacing: str | tuple[float, ...] = option(
        "auto",
        "Voxel size in mm, 'native' to keep each scan's, or 'auto'.",
        metavar="Z,Y,X",
    )
    axes: str = option(
        "auto",
        "What z, y, x are: the nearest axes of the body (anatomical), or z across the "
        "slices as they were acquired and y, x within them (acquired); auto takes "
        "acquired where most scans are oblique stacks of thick slices that run nearest "
        "to another axis of the body in one patient than in the next.",
        choices=("auto", "anatomical", "acquired"),
    )
    channels: str = option(
        "join",
        "Of cases of several images on one grid (nnU-Net's NAME_0000, NAME_0001; the "
        "Decathlon's files of four axes; image a|b in a manifest): one case of several "
        "channels (join), or a scan of each (separate), as pretraining on scans of "
        "many kinds wants it.",
        choices=("join", "separate"),
    )
    window_hu: tuple[float, float] | None = option(
        None, "CT values kept.", metavar="LO,HI", empty="-1000,1000"
    )
    modality: str | None = option(
        None,
        "Treat every scan as this, whatever its file says.",
        choices=MODALITIES,
        empty="what the file says",
    )
    names: str = option(
        "",
        "What label values are called, such as '1=liver,2=left kidney'; wins over "
        "names in files, and is kept when the store is brought up to date.",
        metavar="VALUE=NAME,...",
        empty="what the files say",
    )
    subjects: str = option(
        "",
        "Regular expression on names, folders below SOURCE and all; its first group is "
        "the patient, such as '(patient[0-9]+)'. A manifest's subject wins.",
        metavar="REGEX",
        empty="by DICOM tags, folders, and names without time, phase or sequence",
    )
    like: str | None = option(
        None,
        "Prepare the scans as those of this model were: voxel size, window and values. "
        "Options named beside it win.",
        metavar="MODEL",
        reads="model",
        empty="as usual",
    )
    straighten: bool = option(False, STRAIGHTEN)
    keep_identifiers: bool = option(
        False,
        "Store patients' names (DICOM's PatientID, subjects of a manifest) as they "
        "are. Otherwise as keyed hashes, by which nobody else finds the name.",
    )
    fill_nan: bool = option(
        False,
        "Take scans with NaN or infinite values, such as borders of resampled ones: "
        "they become the least finite value, and their share is told. A model trained "
        "on STORE treats new scans alike.",
    )
    replace: bool = option(
        False, "Take out cases of STORE that SOURCE does not have; else they stay."
    )
    seed: int = option(0, "Seed of everything random.", minimum=0)


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Prepare scans into a store; what is there and current is kept.

    Returns:
        As ``write_store``: cases, labelled, rejected, store, explanation, stopped, ...
        And ``whose``: how many patients there are, and how that is known.

    Raises:
        ConfigError: A spacing, window or label name that cannot be meant.
        FileNotFoundError: A source that is not there.
    """
    from homolog.label_names import read_names
    from homolog.scans.paths import is_series_path
    from homolog.store.build import prepare_store

    spacing, recipe = _spacing(config.spacing), _recipe(config)
    if config.like is not None:
        spacing, told = _size_of(config.like, spacing)
        yield Note(f"prepared as the scans of {config.like}: {told}.")
    sources = paths(config.sources, "scan")
    labels = [Path(p) for p in config.labels]
    for path in (*sources, *labels):
        if not is_series_path(path) and not path.exists():
            raise FileNotFoundError(2, "there is no such file or folder", str(path))
    return (
        yield from prepare_store(
            sources, Path(config.out), labels=labels, spacing=spacing,
            preprocessing=recipe, names=read_names(config.names),
            seed=config.seed, keep_identifiers=config.keep_identifiers,
            replace=config.replace, subjects=config.subjects, axes=config.axes,
            channels=config.channels, straighten=config.straighten,
        )
    )  # fmt: skip


def _recipe(config: Config) -> Preprocessing:
    from homolog.store.preprocess import Preprocessing

    wanted: dict[str, Any] = {}
    if config.like is not None:
        own = _card(config.like).get("preprocessing") or {}
        kept = (
            "window_hu",
            "percentiles",
            "scaling",
            "dataset_hu",
            "modality",
            "fill_nan",
        )
        wanted = {name: own[name] for name in kept if name in own}
    if config.modality is not None:
        wanted["modality"] = config.modality
    if config.fill_nan or config.like is None:
        wanted["fill_nan"] = config.fill_nan
    if config.window_hu is not None:
        wanted["window_hu"] = list(config.window_hu)
    recipe = from_dict(Preprocessing, wanted, where="prepare")
    low, high = recipe.window_hu
    if not low < high:
        raise ConfigError(f"the window must go from low to high, got {low:g},{high:g}.")
    return recipe


def _card(model: str) -> dict[str, Any]:
    """``model.json`` of a run, model folder or model's name; torch is not imported.

    Raises:
        ConfigError: There is none.
        UnusableInput: No such path or name.
    """
    from homolog.model_files.card import CARD, read_card
    from homolog.model_files.library import located

    path = located(model)
    for folder in (path, path / "model", path.parent):
        if (folder / CARD).is_file():
            return read_card(folder)
    raise ConfigError(
        f"--like takes a run or a model folder, {model} has no {CARD}; a weight file "
        "becomes a model by homolog models import."
    )


def _size_of(model: str, asked: Any) -> tuple[Any, str]:
    """Voxel size to prepare with, and how the model's scans were prepared, in words."""
    from homolog.config import to_dict
    from homolog.model_files.card import learnt_of
    from homolog.store.preprocess import Preprocessing, recipe_words

    card = _card(model)
    recipe = {**to_dict(Preprocessing()), **(card.get("preprocessing") or {})}
    learnt = learnt_of(card, None)
    if recipe["spacing_mm"] is None and learnt.spacing is not None:
        recipe["spacing_mm"] = learnt.spacing.middle_mm()
    if asked != "auto":
        recipe["spacing_mm"] = None if asked == "native" else list(asked)
        return asked, recipe_words(recipe)
    told = recipe_words(recipe)
    own = recipe["spacing_mm"]
    if own is not None:
        z, y, x = own
        return (float(z), float(y), float(x)), told
    return ("auto" if learnt.spacing or learnt.remark else "native"), told


def _spacing(value: str | tuple[float, ...]) -> Any:
    from homolog.store.preprocess import Preprocessing

    if isinstance(value, str):
        if value not in ("auto", "native"):
            raise ConfigError(
                f"the voxel size must be auto, native or three numbers, got {value!r}."
            )
        return value
    recipe = from_dict(Preprocessing, {"spacing_mm": list(value)}, where="voxel size")
    return recipe.spacing_mm


def lines(result: Mapping[str, Any]) -> list[str]:
    """What people read."""
    rejected, size = result["rejected"], human_bytes(result["bytes"])
    told = [
        f"{result['cases']} cases ({_known_of_cases(result)}), "
        f"{len(rejected)} rejected, {size} in {result['store']}",
        f"  {result['built']} prepared now, {result['reused']} were current",
        *([f"  {result['whose']}"] if result.get("whose") else []),
        *(f"  {sentence}" for sentence in result["explanation"]),
    ]
    if rejected:
        told += ["rejected:", *_rejected_lines(rejected)]
    return told


def _known_of_cases(result: Mapping[str, Any]) -> str:
    """What is known of the cases: label maps, classes, boxes."""
    classes = counted(result.get("classes", 0), "class")
    parts = [
        f"{result['labelled']} labelled" if result["labelled"] else "",
        f"{result['classed']} of {classes}" if result.get("classed") else "",
        f"{result['boxed']} with boxes" if result.get("boxed") else "",
        f"{result['channels']} channels" if result.get("channels", 1) > 1 else "",
    ]
    return ", ".join(part for part in parts if part) or "none labelled"


def _rejected_lines(rejected: Sequence[Mapping[str, str]]) -> list[str]:
    told = [f"  {r['path']}: {r['reason']}" for r in rejected[:_LISTED]]
    rest = Counter(r["reason"] for r in rejected[_LISTED:])
    told += [f"  {count} more: {reason}" for reason, count in rest.most_common(10)]
    if rest:
        told.append("  all of them: rejected.json in the store")
    return told
