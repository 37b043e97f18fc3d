"""Features made before are found again without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from explore_files import (
    ENCODER,
    unit_features,
    write_encoder,
    write_features,
    write_scan,
)

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.gui.shared.choices import read_choice
from homolog.gui.shared.scans import encoder_id, find_card, look_for

SHAPE = (16, 20, 24)


def test_features_are_found_by_content_of_scan_and_encoder(tmp_path: Path) -> None:
    affine = Affine.of((2, 2, 2), (5, 6, 7))
    scan = write_scan(tmp_path, "scan", affine)
    choice = read_choice(write_encoder(tmp_path / "runs" / "run"))
    folder = tmp_path / "features"
    digest, card, features = look_for(scan, choice, folder)
    assert (card, features) == (None, None)
    cells = unit_features((8, 10, 12))
    written = write_features(folder, scan, affine, SHAPE, cells)
    renamed = scan.rename(tmp_path / "renamed.nii.gz")
    again, card, features = look_for(renamed, choice, folder)
    assert again == digest
    assert card == written
    assert np.array_equal(np.moveaxis(features.data, 0, -1), cells)
    other = read_choice(write_encoder(tmp_path / "runs" / "two", "f" * 16))
    assert look_for(renamed, other, folder)[1] is None
    assert find_card(folder, digest, ENCODER) == written


def test_features_of_voxels_of_another_size_than_learnt_are_stale(
    tmp_path: Path,
) -> None:
    """As they were made before scans were brought to an encoder's voxel size."""
    affine = Affine.of((2, 2, 2), (5, 6, 7))
    scan = write_scan(tmp_path, "scan", affine)
    choice = read_choice(write_encoder(tmp_path / "runs" / "run"))
    folder = tmp_path / "features"
    written = write_features(folder, scan, affine, SHAPE, unit_features((8, 10, 12)))
    for mm, found in ((2.0, written), (2.05, written), (1.0, None), (4.0, None)):
        bounds = {"smallest": [mm] * 3, "largest": [mm] * 3}
        told = replace(choice, card={**choice.card, "learnt_spacing_mm": bounds})
        assert look_for(scan, told, folder)[1] == found


@pytest.mark.parametrize(
    ("tuned", "half"), [(False, False), (True, False), (False, True)]
)
def test_the_encoders_id_is_that_of_the_engine(
    tmp_path: Path, tuned: bool, half: bool
) -> None:
    pytest.importorskip("torch")
    from homolog.backbones import build
    from homolog.config import to_dict
    from homolog.model_files.encoder import load_encoder
    from homolog.model_files.folder import save_model

    backbone = build("resunet", {"in_channels": 1, "channels": [4, 8], "blocks": 1})
    state = backbone.state_dict()
    if half:  # as the encoders of the package are kept
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    if tuned:
        state = {f"encoder.{k}": v for k, v in state.items()}
        state["decoder.weight"] = next(iter(state.values())).clone()
    card = {
        "kind": "segment" if tuned else "encoder",
        "backbone": {"name": "resunet", "config": to_dict(backbone.config)},
        "label_names": {"1": "liver"} if tuned else {},
    }
    name = "model" if tuned else "encoder"
    save_model(tmp_path / "run" / "model", state, card, name)
    choice = read_choice(tmp_path / "run")
    assert encoder_id(choice) == load_encoder(tmp_path / "run").encoder_id


def test_missing_weights_are_told_in_one_sentence(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "run", "")
    with pytest.raises(UnusableInput, match="missing or damaged"):
        encoder_id(read_choice(folder))
