"""The napari window with our reader in charge of medical files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLUGIN = "napari-homolog"


def open_viewer(paths: Sequence[Path], *, show: bool = True) -> Any:
    """A viewer with each file opened by our reader (napari's own cannot read .nii.gz).

    Args:
        paths: Scan files.
        show: Whether the window appears at once.

    Returns:
        The napari Viewer; the caller starts the event loop.
    """
    import napari

    viewer = napari.Viewer(title="Homolog", show=show)
    for path in paths:
        viewer.open(str(path), plugin=PLUGIN)
    if viewer.layers:
        viewer.scale_bar.visible = True
    return viewer
