"""Label a scan with an exported Homolog model; no Homolog needed.

    python label_scan.py SCAN.nii.gz --out labels.nii.gz

Needs numpy, nibabel and, for model.onnx, onnxruntime, for model.ts, torch. A model of
several channels takes a file of each, in the order that README.md names. Part of
Homolog; Apache License 2.0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import homolog_scan
import nibabel as nib
import numpy as np

HERE = Path(__file__).parent


def network(folder: Path = HERE) -> Any:
    """The network beside this file: (1, C, D, H, W) float32 -> logits, both NumPy."""
    if (folder / "model.onnx").exists():
        import onnxruntime

        kinds = onnxruntime.get_available_providers()
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), providers=[k for k in wanted if k in kinds]
        )
        return lambda image: session.run(None, {"image": image})[0]
    import torch

    script = torch.jit.load(str(folder / "model.ts"), map_location="cpu").eval()

    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return script(torch.from_numpy(image)).numpy()

    return run


def label(files: list[Path], out: Path, modality: str = "") -> None:
    """Read a scan (one file a channel), write its labels on its own grid."""
    recipe = homolog_scan.read_recipe()
    images = [nib.load(file) for file in files]
    first = images[0]
    for image, file in zip(images, files):
        if image.shape[:3] != first.shape[:3]:
            raise ValueError(f"{file} has another size than {files[0]}.")
    arrays = [np.asanyarray(image.dataobj) for image in images]
    parts = [a[..., None] if a.ndim == 3 else a for a in arrays]
    data = np.concatenate(parts, -1).T  # (C, z, y, x)
    prepared = homolog_scan.prepare(
        data, homolog_scan.lps(first.affine), recipe, modality
    )
    classes = homolog_scan.label(prepared, network(), recipe)
    labels = homolog_scan.restore(classes, prepared.grid, recipe)
    kind = homolog_scan.label_type(recipe)
    nib.save(nib.Nifti1Image(labels.T.astype(kind), first.affine), out)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scan", nargs="+", type=Path, help="NIfTI; one file a channel")
    parser.add_argument("--out", type=Path, required=True, help="label map; new")
    parser.add_argument("--modality", default="", help="CT, MR, ...: see README.md")
    told = parser.parse_args()
    if told.out.exists():
        parser.error(f"{told.out} exists; choose another --out.")
    try:
        label(told.scan, told.out, told.modality)
    except (OSError, ValueError, nib.filebasedimages.ImageFileError) as error:
        print(f"{told.scan[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
