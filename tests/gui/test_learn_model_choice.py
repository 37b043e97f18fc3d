"""Encoders and models as the window lists them, from their cards; no Qt, no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from homolog.errors import UnusableInput
from homolog.gui.shared.choices import (
    ModelChoice,
    list_encoders,
    list_models,
    misfit,
    read_choice,
    treated_as,
)

SEGMENT: dict[str, Any] = {
    "kind": "segment",
    "backbone": {"name": "resunet"},
    "preprocessing": {"spacing_mm": [1.5, 1.5, 1.5]},
    "task_spec": {"modalities": ["CT"]},
    "label_names": {"1": "liver", "2": "spleen"},
    "window": [96, 96, 96],
    "validation": {"dice": 0.9123},
    "weights": "model.safetensors",
    "sha256": {},
}
ENCODER: dict[str, Any] = {
    "kind": "encoder", "method": "s2dc", "backbone": {"name": "swin"},
    "label_names": {"1": "liver"}, "modalities": {"MR": 2, "CT": 1}, "complete": False,
    "weights": "encoder.safetensors", "sha256": {},
}  # fmt: skip


def _run(folder: Path, card: dict[str, Any] | None, age: float = 0.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"kind": "x", "config": {}}')
    if card is not None:
        (folder / "model").mkdir()
        path = folder / "model" / "model.json"
        path.write_text(json.dumps(card))
        os.utime(path, (1e9 - age, 1e9 - age))
    return folder


def test_cards_are_sorted_into_encoders_and_models(tmp_path: Path) -> None:
    runs, models = tmp_path / "runs", tmp_path / "models"
    _run(runs / "old", SEGMENT, age=100)
    _run(runs / "new", SEGMENT)
    _run(runs / "pre", ENCODER)
    _run(runs / "unfinished", None)
    damaged = _run(runs / "damaged", SEGMENT)
    (damaged / "model" / "model.json").write_text("{")
    (models / "imported").mkdir(parents=True)
    (models / "imported" / "model.json").write_text(json.dumps(SEGMENT))
    assert [m.name for m in list_models(runs, models)] == ["imported", "new", "old"]
    assert [m.name for m in list_encoders(runs, models)] == ["pre"]
    assert list_models(tmp_path / "none", tmp_path / "none") == []


def test_a_card_is_told_in_words(tmp_path: Path) -> None:
    model = read_choice(_run(tmp_path / "seg", SEGMENT))
    assert model.title == "seg (2 classes, resunet)"
    assert model.facts == (
        "Finds liver and spleen. Trained on CT at 1.5 mm, seeing 96 x 96 x 96 voxels "
        "at once. Dice on held-out scans 0.91."
    )
    assert dict(model.label_names) == {1: "liver", 2: "spleen"}
    encoder = read_choice(_run(tmp_path / "pre", ENCODER) / "model")
    assert encoder.title == "pre (s2dc, swin, stopped early)"
    assert encoder.modalities == ("CT", "MR")
    assert not encoder.label_names
    with pytest.raises(UnusableInput, match="holds no model yet"):
        read_choice(_run(tmp_path / "new", None))


def _model(**changes: Any) -> ModelChoice:
    values: dict[str, Any] = {
        "spacing_mm": (1.5, 1.5, 1.5), "modalities": ("CT",), **changes
    }  # fmt: skip
    return ModelChoice(Path("m"), "m", "segment", "resunet", {1: "a"}, **values)


def test_scans_unlike_those_learnt_from_are_told() -> None:
    assert misfit(_model(), "CT_01", "CT", (1.5, 1.2, 1.2)) == []
    pictures = _model(spacing_mm=None, card={"learnt_spacing_mm": None})
    assert misfit(pictures, "CT_01", "CT", (9.0, 1.0, 1.0)) == []
    bounds = {"smallest": [1.0, 1.0, 1.0], "largest": [1.0, 1.0, 1.0]}
    own = _model(spacing_mm=None, card={"learnt_spacing_mm": bounds})
    assert misfit(own, "CT_01", "CT", (1.0, 1.02, 1.0)) == []
    (told,) = misfit(own, "CT_01", "CT", (5.0, 1.0, 1.0))
    assert told.startswith("CT_01 has 5 mm slices, the model was trained at 1 mm.")
    (told,) = misfit(own, "CT_01", "CT", (9.0, 1.0, 1.0))
    assert told.startswith("CT_01 has voxels of 9 mm along z, 9 times coarser than")
    assert told.endswith("it will be refused.")
    assert "at 1 mm" in own.facts
    before = _model(spacing_mm=None)  # models kept their voxel size
    (told,) = misfit(before, "CT_01", "CT", (9.0, 1.0, 1.0))
    assert "does not say at which voxel size it learnt" in told
    assert "at a voxel size that it does not say" in before.facts
    assert misfit(_model(), "CT_03", "OTHER", (5.0, 1.0, 1.0)) == [
        "CT_03 has 5 mm slices, the model was trained at 1.5 mm. The scan will be "
        "resampled for it; the result comes back on its own grid."
    ]
    (told,) = misfit(_model(), "head", "MR", (1.5, 1.5, 1.5))
    assert told.startswith("head is MR, but the model learnt from CT. Continue takes")
    assert treated_as(_model(), "MR") == "CT"
    assert treated_as(_model(), "CT") is None
    assert treated_as(_model(), "OTHER") is None
    assert treated_as(_model(modalities=("CT", "PET")), "MR") is None
