"""A 2D encoder fine-tuned and used by hand in a real window, by real workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from learn_fakes import until

from homolog.gui.shared.threads import wait_for_threads
from homolog.gui.window import dock_panel
from homolog.runs import launch
from homolog.runs.run import Run

NET = {"widths": [8, 16], "stage_blocks": [1, 1], "block": "basic", "norm": "group"}
# A worker imports torch first; other tests may hold the cores.
PATIENCE_S = 240.0


def write_encoder(folder: Path, preprocessing: Any) -> Path:
    """A finished pretraining of a slice encoder, as the list of encoders finds it."""
    import torch

    from homolog.backbones import build
    from homolog.config import to_dict
    from homolog.model_files.folder import save_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build("resnet2d", NET)
    card = {
        "kind": "encoder", "method": "swav", "licence": "as its scans",
        "backbone": {"name": "resnet2d", "config": to_dict(backbone.config)},
        "preprocessing": to_dict(preprocessing), "window": [1, 32, 32],
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"kind": "pretrain", "config": {}}')
    save_model(folder / "model", backbone.state_dict(), card)
    return folder


@pytest.fixture
def window(
    make_napari_viewer_proxy: Any, home: Path, phantom_store: Any, warm_workers: None
) -> Any:
    (home / "stores").mkdir()
    (home / "stores" / "phantoms").symlink_to(phantom_store.path)
    write_encoder(home / "runs" / "slices", phantom_store.preprocessing)

    def make() -> Any:
        viewer = make_napari_viewer_proxy(show=True)
        viewer.window.resize(1280, 900)
        return viewer, dock_panel(viewer)

    yield make
    for child in launch._children:
        child.kill()
        child.wait()
        if child.stdin is not None:
            child.stdin.close()
    launch._reap()
    wait_for_threads()


def test_a_slice_encoder_is_finetuned_and_labels_an_open_layer(
    window: Any, home: Path, phantom_folder: Path
) -> None:
    viewer, panel = window()
    panel.visit("Fine-tune", {"encoder": str(home / "runs" / "slices")})
    tab = panel.panels["Fine-tune"]
    until(lambda: tab.wish() is not None and tab.stores, PATIENCE_S)
    until(lambda: tab.encoder.currentData() == str(home / "runs" / "slices"))
    assert "resnet2d" in tab.encoder.currentText()
    tab.length.choose("steps", 3)
    until(tab.box.start.isEnabled, PATIENCE_S)
    tab.box.start.click()
    until(lambda: panel.current() == "Runs", PATIENCE_S)
    (folder,) = (f for f in (home / "runs").iterdir() if f.name != "slices")
    run = Run(folder)
    until(lambda: run.state() in ("finished", "failed", "crashed"), PATIENCE_S)
    assert run.state() == "finished", run.log.read_text()
    card = json.loads((folder / "model" / "model.json").read_text())
    assert card["task_spec"]["slicewise"] is True
    assert card["window"][0] == 1

    scan = sorted((phantom_folder / "imagesTr").iterdir())[0]
    viewer.open(str(scan), plugin="napari-homolog")
    image = viewer.layers[-1]
    panel.visit("Segment", {"model": str(folder)})
    tab = panel.panels["Segment"]
    until(lambda: tab.chosen is not None and tab.chosen.path == folder.resolve())
    until(tab.scan.start.isEnabled, PATIENCE_S)
    tab.scan.start.click()
    until(lambda: len(viewer.layers) == 2 or "⚠" in tab.scan.words.text(), PATIENCE_S)
    assert len(viewer.layers) == 2, tab.scan.words.text()
    labels = viewer.layers[-1]
    assert labels.data.shape == image.data.shape
    assert np.allclose(labels.scale, image.scale)
    assert np.allclose(labels.translate, image.translate)
    until(lambda: tab.classes.rows)
    assert len(tab.classes.rows) == len(card["label_names"])
