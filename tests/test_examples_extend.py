"""The examples of CONTRIBUTING: two files in the folders, no other edit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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
