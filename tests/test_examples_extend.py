"""The examples of CONTRIBUTING: files in the folders, no other edit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from homolog.geometry.affine import Affine
from homolog.scans.volume import LabelMap
from homolog.scans.write import write_labels

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "docs" / "examples"


def test_a_method_and_a_network_are_added_by_one_file_each(tmp_path: Path) -> None:
    package = tmp_path / "homolog"
    shutil.copytree(HERE.parent / "src" / "homolog", package)
    shutil.copy(EXAMPLES / "vicreg.py", package / "methods")
    shutil.copy(EXAMPLES / "tiny_unet.py", package / "backbones")
    contracts = ("methods/test_contract.py", "backbones/test_backbone_contract.py")
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-n", "0", "-q",
            "-k", "vicreg or tiny_unet", *(str(HERE / name) for name in contracts),
        ],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout
    assert int(done.stdout.rpartition(" passed")[0].split()[-1]) >= 25


def test_a_job_is_added_by_one_file_and_is_a_command(tmp_path: Path) -> None:
    package = tmp_path / "homolog"
    shutil.copytree(HERE.parent / "src" / "homolog", package)
    shutil.copy(EXAMPLES / "volumes.py", package / "jobs")
    grid = Affine.of((10.0, 10.0, 10.0))
    data = np.zeros((4, 5, 6), np.uint8)
    data[0], data[1, 0, 0] = 1, 2  # 30 voxels and 1 voxel of 1 ml
    write_labels(LabelMap(data, grid, {}, "a"), tmp_path / "a.nii.gz")
    (tmp_path / "a.labels.json").write_text('{"1": "liver", "2": "cyst"}')
    table = tmp_path / "volumes.csv"
    words = ["volumes", str(tmp_path / "a.nii.gz"), "--least-ml", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "homolog.cli", *words, "--out", str(table)],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (row,) = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert row == {"file": "a.nii.gz", "name": "liver", "voxels": 30, "ml": 30.0}
    assert table.read_text() == "file,name,voxels,ml\na.nii.gz,liver,30,30.0\n"
