"""Patients with the same blobs, their store, and a window on them, for landmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from explore_files import unit_features, write_features
from qtpy.QtWidgets import QApplication

from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.gui.files.reader import read_layers
from homolog.gui.window import dock_panel
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume
from homolog.store.build import prepare_store

SHAPE, CELLS = (16, 20, 24), (8, 10, 12)
BLOBS = [(3, 4, 5), (2, 6, 7), (5, 3, 3), (4, 6, 4)]
THERE = [(4, 5, 6), (3, 3, 8), (5, 6, 4), (2, 4, 4)]


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        QApplication.processEvents()
        time.sleep(0.005)


def settle(seconds: float = 0.2) -> None:
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end)


def place(number: int) -> Affine:
    """Where a patient lies."""
    return Affine.of((2, 2, 2), (5 + 200 * number, 6, 7))


def patient(folder: Path, number: int, name: str = "") -> Path:
    """A scan of soft tissue in air."""
    rng = np.random.default_rng(number)
    data = np.full((1, *SHAPE), -1000, np.int16)
    data[:, :, 2:-2, 2:-2] = rng.integers(20, 60, (1, SHAPE[0], 16, 20))
    name = name or f"scan_{number}"
    path = folder / f"{name}.nii.gz"
    write_volume(Volume(data, place(number), name, "CT"), path)
    return path


def show_blobs(features: Path, scan: Path, number: int, blobs: Any) -> None:
    """Features of a patient as a worker would have written them."""
    cells = unit_features(CELLS)  # the rest of the body is alike, too
    for index, blob in enumerate(blobs):
        # The first patient is asked; in others the same place looks a little different.
        alike = 1.0 if number == 0 else 0.95
        cells[blob] = alike * np.eye(16)[index]
        cells[blob][15] = np.sqrt(1 - alike**2)
    write_features(features, scan, place(number), SHAPE, cells)


def store_of(scans: list[Path], out: Path) -> Path:
    """The scans, prepared at their own voxel size."""
    drain(prepare_store(scans, out, spacing="native"))
    return out


def open_tab(viewer: Any, paths: list[Path]) -> tuple[Any, Any]:
    """The main panel and the landmark panel of a window, with scans open."""
    viewer.window.resize(1280, 720)
    panel = dock_panel(viewer)
    for path in paths:
        for data, attributes, _ in read_layers(str(path)):
            viewer.add_image(data, **attributes)
    settle()
    panel.show_tab("Landmarks")
    return panel, panel.panels["Landmarks"]


def all_ready(tab: Any) -> None:
    control = tab.pair.control
    until(lambda: control.is_ready and not tab.pair.searching.is_preparing)


def click(tab: Any, blob: Any) -> None:
    """As Shift+click on a blob of A."""
    pair = tab.pair
    shown = pair.control.scan_a.ready.shown.apply(blob)
    pair.viewer.dims.set_point(range(3), list(shown))
    pair.placing.pressed(tuple(shown))
    table = pair.control.table
    until(lambda: all(table.trust(m) != "searching" for m in table))
