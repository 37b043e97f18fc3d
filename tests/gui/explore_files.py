"""Feature files as a worker would write them, for tests of Explore."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from homolog.features.files import FeatureCard, commit, feature_paths, new_array
from homolog.geometry.affine import Affine, Index
from homolog.scans.files import scan_hash
from homolog.scans.volume import FeatureMap, Volume, closest_canonical
from homolog.scans.write import write_volume

ENCODER = "0123456789abcdef"


def unit_features(shape: Index, size: int = 16, seed: int = 0) -> NDArray[np.float16]:
    """Random unit vectors (d, h, w, E)."""
    rng = np.random.default_rng(seed)
    cells = rng.standard_normal((*shape, size))
    cells /= np.linalg.norm(cells, axis=-1, keepdims=True)
    return cells.astype(np.float16)


def feature_map(cells: NDArray[np.float16], affine: Affine) -> FeatureMap:
    """As ``open_features`` gives it."""
    return FeatureMap(np.moveaxis(cells, -1, 0), affine, ENCODER, "scan")


def tilted(degrees: float = 20.0) -> NDArray[np.float64]:
    """A direction turned about x."""
    a = np.deg2rad(degrees)
    return np.array(
        [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]]
    )


def write_scan(
    folder: Path, name: str, affine: Affine, shape: Index = (16, 20, 24), seed: int = 0
) -> Path:
    """A scan file with noise of its own."""
    rng = np.random.default_rng(seed)
    data = rng.integers(-100, 100, (1, *shape)).astype(np.int16)
    path = folder / f"{name}.nii.gz"
    write_volume(Volume(data, affine, name, "CT"), path)
    return path


def write_features(
    folder: Path,
    scan: Path,
    affine: Affine,
    shape: Index,
    cells: NDArray[np.float16],
    stride: int = 2,
) -> Path:
    """Array and card of a scan's features, on its canonical grid coarsened."""
    turned = closest_canonical(Volume(np.zeros((1, *shape), np.int8), affine))
    grid = turned.affine.coarsen((stride,) * 3)
    digest = scan_hash(scan)
    path, card_path = feature_paths(folder, scan.name.split(".")[0], digest, "key")
    array, half = new_array(path, cells.shape[:3], cells.shape[3])
    array[...] = cells
    commit(
        array, half, path,
        FeatureCard(
            "key", digest, ENCODER, str(scan), cells.shape[:3], cells.shape[3],
            (stride,) * 3, grid.to_list(), settings={"strides": [], "overlap": 0.5},
        ),
    )  # fmt: skip
    return card_path


def write_encoder(folder: Path, encoder_id: str = ENCODER) -> Path:
    """A model folder that tells its encoder's id; no weights are needed for that."""
    (folder / "model").mkdir(parents=True)
    card = {
        "kind": "encoder", "method": "s2dc", "encoder_id": encoder_id,
        "backbone": {"name": "resunet", "config": {}}, "weights": "encoder.safetensors",
        "sha256": {}, "preprocessing": {"spacing_mm": [2.0, 2.0, 2.0]},
    }  # fmt: skip
    (folder / "model" / "model.json").write_text(json.dumps(card))
    (folder / "run.json").write_text(json.dumps({"kind": "pretrain", "config": {}}))
    return folder
