"""A window in which nothing is empty: scans, labels, a store, runs and models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from explore_files import write_scan
from qtpy.QtWidgets import QApplication
from test_compare_page import compare_run
from test_segment_panel import write_model
from toy_runs import make_model, slow_run

from homolog.geometry.affine import Affine
from homolog.gui.dock import MainPanel
from homolog.gui.files.reader import read_layers
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import wait_for_threads
from homolog.gui.window import dock_panel


@pytest.fixture
def filled(
    make_napari_viewer_proxy, home: Path, tmp_path: Path, monkeypatch, phantom_store
):
    """Makes a dock with scans, labels, a store, runs and models: all forms are open."""
    monkeypatch.setattr(Hub, "want_schema", lambda self: None)

    def make() -> MainPanel:
        (home / "stores").mkdir()
        (home / "stores" / "organs").symlink_to(phantom_store.path)
        slow_run(home / "runs" / "slow")
        compare_run(home / "runs" / "table")
        write_model(home / "runs" / "seg")
        make_model(home / "models" / "given")
        viewer = make_napari_viewer_proxy(show=True)
        viewer.window.resize(1280, 720)
        panel = dock_panel(viewer)
        for number in range(2):
            place = Affine.of((2, 1, 1), (100 * number, 0, 0))
            path = write_scan(tmp_path, f"CT_{number}", place, (8, 9, 10), seed=number)
            for data, attributes, _ in read_layers(str(path)):
                viewer.add_image(data, **attributes)
        grid = viewer.layers["CT_0"]
        values = np.arange(720).reshape(8, 9, 10) % 4
        viewer.add_labels(
            values.astype(np.uint8), scale=grid.scale, units=grid.units, name="organs"
        )
        viewer.layers.selection.active = grid
        return panel

    yield make
    wait_for_threads()
    QApplication.processEvents()
