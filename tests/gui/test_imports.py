"""What must stay light: logic without Qt and napari, nothing with torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOGIC = (
    "commands", "data.control", "data.store_building", "files.associations",
    "files.layer_geometry", "files.layer_scan", "files.layers", "files.looking",
    "files.open_labels", "files.opening", "files.reader", "files.samples",
    "files.writer", "learn.control", "models.control", "runs.control",
    "segment.control", "telling",
)  # fmt: skip


@pytest.mark.parametrize("names", [LOGIC])
def test_logic_imports_no_qt_and_no_engine(names: tuple[str, ...]) -> None:
    lines = [f"import homolog.gui.{name}" for name in names]
    heavy = ("torch", "monai", "napari", "qtpy", "PyQt6", "PySide6", "pyqtgraph")
    lines += ["import sys", f"print([m for m in {heavy!r} if m in sys.modules])"]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
