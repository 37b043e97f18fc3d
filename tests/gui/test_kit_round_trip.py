"""Labels saved on real scans lie, for SimpleITK, exactly where the scans do."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("napari")

from napari.layers import Labels, Layer

from homolog.gui.files import opening, writer
from homolog.gui.shared.layers import derived_attributes

KIT = Path(os.environ.get("HOMOLOG_DATA_KIT", ""))
NAMES = (
    "ct_body/ts_example_ct.nii.gz", "odd_files/oblique_anisotropic_brain_mr.nii.gz",
    "odd_files/orientation_PIR.nii.gz", "odd_files/chest_ct_64.nrrd",
    "odd_files/mha.mha", "odd_files/FLAIR.nrrd", "odd_files/avg152T1_RL.nii.gz",
)  # fmt: skip


def corner_gap(a: sitk.Image, b: sitk.Image) -> float:
    assert a.GetSize() == b.GetSize()
    last = np.array(a.GetSize()) - 1
    places = [
        [np.array(i.TransformIndexToPhysicalPoint((last * c).tolist())) for i in (a, b)]
        for c in np.array(list(itertools.product((0, 1), repeat=3)))
    ]
    return max(float(np.linalg.norm(p - q)) for p, q in places)


@pytest.mark.kit
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("name", NAMES)
def test_saved_labels_lie_on_their_scan(name: str, suffix: str, tmp_path: Path) -> None:
    if not os.environ.get("HOMOLOG_DATA_KIT"):
        pytest.skip("HOMOLOG_DATA_KIT does not name the folder of real scans")
    source = KIT / name
    scan = Layer.create(*opening.read_layer(source))
    drawn = np.zeros(scan.data.shape, np.uint8)
    drawn[tuple(n // 3 for n in scan.data.shape)] = 1
    layer = Labels(drawn, **derived_attributes(scan, "drawn"))
    (path,) = writer.save_layer(layer, tmp_path / f"drawn{suffix}")
    assert corner_gap(sitk.ReadImage(str(path)), sitk.ReadImage(str(source))) < 1e-3
