"""What must stay light: logic without Qt and napari, nothing with torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOGIC = (
    "autosave.saved_work", "data.control", "files.opening", "files.reader",
    "files.sources", "files.writer", "label.layers", "label.learning",
    "label.words", "landmarks.control", "learn.control", "runs.control",
    "segment.control",
    "shared.choices", "shared.engine", "shared.feature_slices", "shared.layers",
    "shared.notices", "shared.preferences", "shared.runs", "shared.scan_layers",
    "shared.scans", "window",
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
