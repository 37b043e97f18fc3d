"""What a MONAI bundle of Homolog needs besides MONAI: how scans are prepared.

MONAI loads and saves scans and slides the network. ``homolog_scan``, which lies beside
this file and needs NumPy alone, prepares scans as Homolog does.

Part of Homolog; Apache License 2.0.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence  # noqa: UP035

import homolog_scan
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from monai.transforms import MapTransform

GRID, OUTSIDE, AFFINE = "homolog_grid", "homolog_outside", "homolog_affine"
_LOG = logging.getLogger("homolog")
_CHANNEL = re.compile(r"_\d{4}$")
_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def find_scans(place: str, channels: int = 1) -> list[dict[str, Any]]:
    """A scan file, or those of a folder, as MONAI's list of data.

    Args:
        place: File or folder.
        channels: Where a model takes several, files that differ in ``_0000``,
            ``_0001`` ... at their ends are the channels of one case.
    """
    path = Path(place)
    if not path.exists():
        raise FileNotFoundError(f"dataset_dir: there is no {path}.")
    files = [path] if path.is_file() else sorted(path.iterdir())
    scans = [f for f in files if f.name.lower().endswith(_ENDINGS)]
    if not scans:
        raise ValueError(f"dataset_dir: {path} holds no scan ({', '.join(_ENDINGS)}).")
    if channels == 1:
        return [{"image": str(scan)} for scan in scans]
    cases: dict[str, list[str]] = {}
    for scan in scans:
        stem = scan.name.split(".nii")[0] if ".nii" in scan.name else scan.stem
        cases.setdefault(_CHANNEL.sub("", stem), []).append(str(scan))
    for name, found in cases.items():
        if len(found) != channels:
            raise ValueError(
                f"the model takes {channels} channels: expected {name}_0000 to "
                f"{name}_{channels - 1:04d}, found {len(found)} files."
            )
    return [{"image": found} for found in cases.values()]


class PrepareScand(MapTransform):
    """A scan (C, x, y, z) as the network sees it, (C, z, y, x).

    Axes, voxel size and intensities, as ``homolog prepare`` makes them.

    Args:
        keys: Of the scans.
        recipe: Path of homolog.json.
        modality: CT, MR ...; where the model learnt from several.
    """

    def __init__(self, keys: Any, recipe: str, modality: str | None = None) -> None:
        super().__init__(keys)
        self.recipe = homolog_scan.read_recipe(recipe)
        self.modality = modality or ""

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """A new dictionary."""
        found = dict(data)
        for key in self.key_iterator(found):
            image = found[key]
            values = image.as_tensor().numpy() if hasattr(image, "as_tensor") else image
            turned = np.transpose(values, (0, 3, 2, 1))
            affine = homolog_scan.lps(np.asarray(image.affine))
            made = homolog_scan.prepare(turned, affine, self.recipe, self.modality)
            scan = MetaTensor(torch.from_numpy(made.image), meta=dict(image.meta))
            scan.affine = torch.from_numpy(_columns(made.grid.affine))
            scan.meta[GRID], scan.meta[OUTSIDE] = made.grid, made.outside
            scan.meta[AFFINE] = np.asarray(image.affine, np.float64)
            found[key] = scan
        return found


def _columns(affine: np.ndarray) -> np.ndarray:
    """RAS affine of an array whose axes are z, y, x."""
    found = homolog_scan.ras(affine)
    found[:, :3] = found[:, 2::-1]
    return found


class FollowingInferer(SlidingWindowInferer):
    """MONAI's sliding window with the windows that Homolog takes.

    A smaller scan gets a smaller window, one a little larger than the window is one
    window, and what lies outside a scan is what its darkest value became.

    Args:
        recipe: Path of homolog.json.
        kwargs: Of SlidingWindowInferer.
    """

    def __init__(self, recipe: str, **kwargs: Any) -> None:
        self.recipe = homolog_scan.read_recipe(recipe)
        super().__init__(
            roi_size=kwargs.pop("roi_size", self.recipe["window"]),
            overlap=kwargs.pop("overlap", self.recipe["overlap"]),
            mode=kwargs.pop("mode", "gaussian"),
            **kwargs,
        )

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(B, C, z, y, x) -> (B, K, z, y, x)."""
        recipe = {**self.recipe, "window": list(self.roi_size)}
        shape = inputs.shape[2:]
        window, follows = homolog_scan.window_of(shape, recipe)
        sides = homolog_scan.padding(shape, window, follows)
        outside = _outside(inputs)
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        flat = [n for side in reversed(sides) for n in side]
        if any(flat):
            image = torch.cat(
                [
                    torch.nn.functional.pad(image[:, c : c + 1], flat, value=value)
                    for c, value in enumerate(outside)
                ],
                1,
            )
        weight, overlap = None, self.overlap
        if recipe["slicewise"]:
            weight = homolog_scan.gaussian(window, True)[None, None]
            weight = torch.from_numpy(np.array(weight))
            overlap = (0.0, float(self.overlap), float(self.overlap))
        found = sliding_window_inference(
            image, window, self.sw_batch_size, network, overlap, self.mode,
            sw_device=self.sw_device, device=self.device, roi_weight_map=weight,
            progress=self.progress,
        )  # fmt: skip
        inner = [slice(a, a + n) for (a, _), n in zip(sides, shape)]
        return found[(slice(None), slice(None), *inner)]


def _outside(inputs: torch.Tensor) -> Sequence[float]:
    """What the network sees outside a scan, a value a channel."""
    told = getattr(inputs, "meta", {}).get(OUTSIDE)
    if told is not None:
        return [float(v) for v in told]
    return [float(v) for v in inputs.amin((0, 2, 3, 4))]


class RestoreLabelsd(MapTransform):
    """Classes (1, z, y, x) -> label values on the scan's own grid (1, x, y, z).

    Args:
        keys: Of the classes.
        recipe: Path of homolog.json.
        image_key: Of the scan that ``PrepareScand`` made.
    """

    def __init__(self, keys: Any, recipe: str, image_key: str = "image") -> None:
        super().__init__(keys)
        self.recipe = homolog_scan.read_recipe(recipe)
        self.image_key = image_key

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """A new dictionary."""
        found = dict(data)
        meta = found[self.image_key].meta
        for key in self.key_iterator(found):
            classes = np.asarray(torch.as_tensor(found[key]).cpu())[0]
            labels = homolog_scan.restore(classes, meta[GRID], self.recipe)
            kind = homolog_scan.label_type(self.recipe)
            kept = {k: v for k, v in meta.items() if k not in (GRID, OUTSIDE, AFFINE)}
            values = np.ascontiguousarray(labels.T[None].astype(kind))
            made = MetaTensor(torch.from_numpy(values), meta=kept)
            made.affine = torch.from_numpy(meta[AFFINE])
            found[key] = made
        return found


def run(
    dataset: Sequence[Any],
    network: torch.nn.Module,
    inferer: Any,
    postprocessing: Callable[[Any], Any],
    device: Any,
) -> list[str]:
    """Label scan after scan; one that cannot be does not stop the others.

    Args:
        dataset: Prepared scans.
        network: (B, C, z, y, x) -> (B, K, z, y, x).
        inferer: Slides the network.
        postprocessing: Takes ``image`` and ``pred``, and saves.
        device: Where the network runs.

    Returns:
        The scans that failed, with the reason; there the exit status is 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    failed = []
    for number in range(len(dataset)):
        try:
            case = dataset[number]
            image = case["image"]
            given = MetaTensor(image.as_tensor()[None].to(device), meta=image.meta)
            with torch.no_grad():
                logits = inferer(given, network)
            postprocessing({**case, "pred": logits[0].cpu()})
        except Exception as error:  # noqa: BLE001 - the other scans are labelled
            name = dataset.data[number]["image"]
            why = error.__cause__ or error
            failed.append(f"{name}: {why}")
            _LOG.error("%s", failed[-1])
            continue
        _LOG.info("labelled %s of %s", number + 1, len(dataset))
    if failed:
        raise SystemExit(1)
    return failed
