"""A MONAI bundle that labels scans by itself, by MONAI's own command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from homolog.errors import JobError, UnusableInput
from homolog.exporting.network import Sides, Source, open_source, scan_recipe, traced
from homolog.exporting.portable import (
    PROGRAMS,
    RECIPE,
    SCANS,
    check_words,
    equal_share,
    licence_page,
    own_labels,
    sides_words,
)
from homolog.exporting.told import (
    CARD_FILE,
    card_lines,
    labels_of,
    licence_of,
    title_of,
)
from homolog.scans.files import read_scan
from homolog.writing import scratch_folder, write_json, write_text, writing_folder

CONFIG = Path("configs") / "inference.json"
_MONAI_PART = "homolog_monai.py"
_POSTFIX = "seg"
_RECIPE_PATH = f"$@bundle_root + '/configs/{RECIPE}'"
_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)


def export_bundle(source: Path, out: Path, check: Path | None = None) -> dict[str, Any]:
    """Write a MONAI bundle of a segmentation model.

    Args:
        source: Run or model folder.
        out: New folder.
        check: A scan that the bundle labels by MONAI's own command, for the share of
            labels that equal ours.

    Returns:
        ``sides``, ``difference``, ``equal_labels`` and ``lines``.

    Raises:
        UnusableInput: Another kind of model.
        JobError: What was written answers otherwise than the model.
    """
    model = open_source(source, "bundle")
    script, sides = traced(model)
    with writing_folder(out) as folder:
        for name in ("configs", "models", "docs", "scripts"):
            (folder / name).mkdir()
        script.save(str(folder / "models" / "model.ts"))
        for name in (SCANS, _MONAI_PART):
            text = (PROGRAMS / name).read_text(encoding="utf-8")
            write_text(folder / "scripts" / name, text)
        write_json(folder / "configs" / RECIPE, scan_recipe(model, sides))
        write_json(folder / CONFIG, inference(model.channels))
        write_json(folder / "configs" / "metadata.json", metadata(model))
        told: dict[str, Any] = {
            "sides": sides.words,
            "difference": sides.difference,
        }
        if check is not None:
            told["equal_labels"] = _same_labels(model, folder, check)
        card = {**model.card, "exported": told}
        write_json(folder / "docs" / CARD_FILE, card)
        write_text(folder / "docs" / "README.md", _page(model, sides, told))
        write_text(folder / "LICENSE", licence_page(model.card))
    command = " ".join(run_command(out, Path("SCANS"), Path("LABELS"))[1:])
    return {
        **told,
        "lines": [sides_words(model, sides), *check_words(told), f"python {command}"],
    }


def run_command(bundle: Path, scans: Path, out: Path) -> list[str]:
    """MONAI's own command for a bundle of ours."""
    return [
        sys.executable, "-m", "monai.bundle", "run",
        "--config_file", str(bundle / CONFIG), "--bundle_root", str(bundle),
        "--dataset_dir", str(scans), "--output_dir", str(out),
    ]  # fmt: skip


def inference(channels: int) -> dict[str, Any]:
    """configs/inference.json."""
    return {
        "imports": ["$import os", "$import sys", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/labels'",
        "modality": None,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "channels": channels,
        "scripts": "$sys.path.insert(1, os.path.abspath(@bundle_root + '/scripts'))",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', "
        "map_location=@device).eval()",
        "data": {
            "_target_": "homolog_monai.find_scans", "place": "@dataset_dir",
            "channels": "@channels",
        },
        **_transforms(),
        "dataset": {
            "_target_": "Dataset", "data": "@data", "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "homolog_monai.FollowingInferer", "recipe": _RECIPE_PATH,
            "sw_batch_size": 1,
        },
        "initialize": ["@scripts"],
        "run": [
            {
                "_target_": "homolog_monai.run", "dataset": "@dataset",
                "network": "@network_def", "inferer": "@inferer",
                "postprocessing": "@postprocessing", "device": "@device",
            }
        ],
    }  # fmt: skip


def _transforms() -> dict[str, Any]:
    """``preprocessing`` and ``postprocessing``."""
    before = [
        {"_target_": "LoadImaged", "keys": "image", "image_only": True},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {
            "_target_": "homolog_monai.PrepareScand", "keys": "image",
            "recipe": _RECIPE_PATH, "modality": "@modality",
        },
    ]  # fmt: skip
    after = [
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "homolog_monai.RestoreLabelsd", "keys": "pred",
            "recipe": _RECIPE_PATH,
        },
        {
            "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir",
            "output_postfix": _POSTFIX, "output_ext": ".nii.gz", "resample": False,
            "separate_folder": False, "output_dtype": "$None", "print_log": False,
        },
    ]  # fmt: skip
    return {
        "preprocessing": {"_target_": "Compose", "transforms": before},
        "postprocessing": {"_target_": "Compose", "transforms": after},
    }


def metadata(model: Source) -> dict[str, Any]:
    """configs/metadata.json, of MONAI's schema."""
    card = model.card
    labels = list(labels_of(card).items())
    kinds = _modalities(model)
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "as exported"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "name": title_of(card),
        "task": "segmentation of " + ", ".join(name for _, name in labels[1:]),
        "description": f"{title_of(card)}; labels lie on each scan's own grid.",
        "authors": str(card.get("authors") or "see docs/README.md"),
        "copyright": licence_of(card),
        "data_source": str(card.get("data") or "see docs/README.md"),
        "data_type": "nifti",
        "image_classes": ", ".join(kinds) or "image",
        "label_classes": ", ".join(f"{value} {name}" for value, name in labels),
        "intended_use": "research",
        "network_data_format": _data_format(model),
    }


def _modalities(model: Source) -> list[str]:
    return [m for m in model.card["task_spec"]["modalities"] if m != "OTHER"]


def _data_format(model: Source) -> dict[str, Any]:
    """What goes into the network and comes out of it, of one window."""
    names = model.card["task_spec"].get("channel_names") or [""] * model.channels
    labels = {str(i): n for i, n in enumerate(labels_of(model.card).values())}
    shape = [f"{m}*n" if m > 1 else "n" for m in model.encoder.size_divisor]
    both = {
        "type": "image", "spatial_shape": shape, "dtype": "float32", "value_range": [],
        "is_patch_data": True,
    }  # fmt: skip
    image = {
        **both,
        "format": "magnitude",
        "modality": "/".join(_modalities(model)) or "other",
        "num_channels": model.channels,
        "channel_def": {str(i): n or "image" for i, n in enumerate(names)},
    }
    pred = {
        **both,
        "format": "segmentation",
        "num_channels": len(labels),
        "channel_def": labels,
    }
    return {"inputs": {"image": image}, "outputs": {"pred": pred}}


def _same_labels(model: Source, folder: Path, scan: Path) -> float:
    """Share of voxels that MONAI's command labels as we do.

    Raises:
        JobError: The command failed, or fewer are equal than ``EQUAL_LABELS``.
        UnusableInput: A scan that MONAI does not read.
    """
    if not scan.is_file():
        raise UnusableInput(f"--check takes a scan file that MONAI reads, got {scan}.")
    volume, own = own_labels(model, scan)
    known = json.loads((folder / "configs" / RECIPE).read_text(encoding="utf-8"))
    named = [] if known["modality"] else ["--modality", volume.modality]
    room = scratch_folder()
    try:
        done = subprocess.run(
            [*run_command(folder, scan, room), *named],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        found = sorted(room.glob("*.nii.gz"))
        if done.returncode or len(found) != 1:
            last = (done.stderr.strip().splitlines() or ["it wrote no labels"])[-1]
            raise JobError(f"MONAI could not run the bundle on {scan}: {last}")
        labels = np.asarray(read_scan(found[0]).data[0])
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return equal_share(own, labels, scan)


def _page(model: Source, sides: Sides, told: Mapping[str, Any]) -> str:
    """docs/README.md."""
    recipe = scan_recipe(model, sides)
    lines = [f"# {title_of(model.card)}, as a MONAI bundle", ""]
    lines += [
        "It needs PyTorch, MONAI and nibabel, not Homolog:", "",
        "```sh",
        "pip install torch monai nibabel fire",
        "python -m monai.bundle run --config_file BUNDLE/configs/inference.json \\",
        "    --bundle_root BUNDLE --dataset_dir SCANS --output_dir LABELS",
        "```", "",
        "`SCANS` is a scan (NIfTI, NRRD, MetaImage) or a folder of them; `LABELS` gets "
        f"`NAME_{_POSTFIX}.nii.gz` for each, on the scan's own grid.",
    ]  # fmt: skip
    if model.channels > 1:
        names = ", ".join(recipe["channel_names"])
        lines.append(
            f"A case has {model.channels} files, NAME_0000 ... in this order: {names}."
        )
    if not recipe["modality"] and not recipe["channel_modalities"]:
        known = "|".join(recipe["modalities"])
        lines.append(f"Say what the scans are: `--modality {known}`.")
    lines += ["", *_parts(sides), "", "## Compared with Homolog", ""]
    lines += check_words(told)
    lines += ["", *_differences(sides), "", sides_words(model, sides), ""]
    return "\n".join([*lines, *card_lines(model.card), ""])


def _parts(sides: Sides) -> list[str]:
    return [
        "MONAI reads, slides the network (`sliding_window_inference`, Gaussian), takes "
        "the largest class and saves. `scripts/homolog_scan.py` (NumPy) prepares scans "
        "and brings labels back: MONAI's Spacingd neither averages where voxels grow "
        "nor rounds to the store's integers, and no transform of MONAI takes "
        "percentiles of the body. `models/model.ts` is TorchScript.",
    ]


def _differences(sides: Sides) -> list[str]:
    lines = [
        "Where labels may differ from `homolog predict`:", "",
        "- on a GPU: Homolog computes in bfloat16 where the GPU can, the bundle in "
        "float32;",
        "- where two labels are equally likely to the last digit: sums are rounded in "
        "another order;",
    ]  # fmt: skip
    if sides.free:
        lines.append(
            "- a scan up to half again as long as the window is one window: here "
            "always, in Homolog where memory allows;"
        )
    else:
        lines.append(
            "- a scan smaller than the window: the window is fixed here, Homolog takes "
            "a smaller one;"
        )
    lines.append(
        "- DICOM, pictures and files whose header is mended: Homolog reads them by its "
        "own rules."
    )
    return lines
