"""Pretraining, fine-tuning and preparing that go on from another project's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foreign_files
from each import each
from foreign_files import FILES, write
from homolog.config import ConfigError, from_dict
from homolog.events import Note, drain
from homolog.features.embed import load_embedder
from homolog.jobs import prepare
from homolog.methods import METHODS
from homolog.model_files import care
from homolog.model_files.encoder import load_encoder
from homolog.pretrain.settings import (
    PretrainConfig,
    build_method,
    go_on_decoding,
    resolve,
)
from homolog.store.preprocess import Preprocessing
from homolog.store.store import Store

# File -> a method that takes its network.
GO_ON = {
    "VoComni_B.pt": "mae", "supervised_suprem_segresnet_2100.pth": "s2dc",
    "ct_fm.ckpt": "swav", "resnet_50.pth": "mae",
    "nnFoundationCNN/checkpoint_final.pth": "swav",
    "nnFoundationViT/checkpoint_final.pth": "swav", "3dino_vit_weights.pth": "mae",
    "resnet50_imagenet.pth": "swav",
}  # fmt: skip


def resolved(name: str, store: Store, encoder: Path, **more: Any) -> PretrainConfig:
    given = resolve(
        name, [store.path], recipe="cpu", device="cpu", encoder=str(encoder),
        settings={"training": {"steps": 2}, **more},
    )  # fmt: skip
    return from_dict(PretrainConfig, given)


@each("name", list(GO_ON))
def test_pretraining_goes_on_from_imported_weights(
    tmp_path: Path, phantom_store: Store, name: str
) -> None:
    """No backbone need be named, and every weight is the file's."""
    source = write(tmp_path, name, FILES[name]())
    wanted = load_encoder(source)
    config = resolved(GO_ON[name], phantom_store, source)
    assert config.backbone["name"] == wanted.card["backbone"]["name"]
    found = build_method(config).encoder().state_dict()
    for key, value in wanted.backbone.state_dict().items():
        torch.testing.assert_close(found[key], value, atol=0, rtol=0)


def test_tokens_are_as_wide_as_the_encoders_patches(
    tmp_path: Path, phantom_store: Store
) -> None:
    name = "3dino_vit_weights.pth"
    source = write(tmp_path, name, FILES[name]())
    config = resolved("mae", phantom_store, source)
    assert config.method_config["token_stride"] == 16
    assert any("no map of stride 8" in note for note in config.notes)
    with pytest.raises(ConfigError, match="no map of stride 8"):
        resolved("mae", phantom_store, source, method={"token_stride": 8})


def test_the_decoder_that_came_along_goes_on_too(
    tmp_path: Path, phantom_store: Store
) -> None:
    source = write(tmp_path, "VoComni_B.pt", FILES["VoComni_B.pt"]())
    care.import_model(source, tmp_path / "model", None)
    cls = METHODS.get("mixcl")
    assert cls is not None
    config = resolved("mixcl", phantom_store, tmp_path / "model")
    method = build_method(config)
    assert method.dense_decoder() is not None
    told = go_on_decoding(config, method)
    assert told.startswith("decoder: ")
    assert "from pretraining" in told


def test_scans_prepared_otherwise_are_told(
    tmp_path: Path, phantom_store: Store
) -> None:
    source = write(tmp_path, "VoCo_B_SSL_head.pt", FILES["VoCo_B_SSL_head.pt"]())
    care.import_model(source, tmp_path / "model", None)
    config = resolved("swav", phantom_store, tmp_path / "model")
    (note,) = [n for n in config.notes if "prepared otherwise" in n]
    assert "CT -175 to 250 HU as 0 to 1" in note
    assert f"--like {tmp_path / 'model'}" in note


def imported(folder: Path, spacing: list[float] | None = None) -> Path:
    content = foreign_files.nnssl_resenc()
    content["nnssl_adaptation_plan"] = foreign_files.plan("ResEncL", spacing)
    care.import_model(write(folder, "w.pth", content), folder / "model", None)
    return folder / "model"


def test_a_store_is_prepared_like_a_models_scans(
    tmp_path: Path, phantom_folder: Path
) -> None:
    model = imported(tmp_path, [12, 10, 10])
    config = prepare.Config(
        sources=(str(phantom_folder),), out=str(tmp_path / "store"), like=str(model)
    )
    events = list(prepare.job(config, tmp_path))
    store = Store.open(tmp_path / "store")
    assert store.preprocessing.scaling == "zscore"
    assert {card.spacing_mm for card in store.cards} == {(12.0, 10.0, 10.0)}
    told = " ".join(e.text for e in events if isinstance(e, Note))
    assert "mean 0 and spread 1 over all voxels" in told
    # and pretraining on it has nothing to remark
    given = resolved("swav", store, model)
    assert not any("prepared otherwise" in note for note in given.notes)


def test_options_beside_like_win(tmp_path: Path, phantom_folder: Path) -> None:
    config = prepare.Config(
        sources=(str(phantom_folder),), out=str(tmp_path / "store"), spacing="native",
        like=str(imported(tmp_path, [12, 10, 10])), window_hu=(-50.0, 50.0),
    )  # fmt: skip
    drain(prepare.job(config, tmp_path))
    found = Store.open(tmp_path / "store").preprocessing
    assert (found.window_hu, found.scaling) == ((-50.0, 50.0), "zscore")
    assert found.spacing_mm is None


def test_like_a_weight_file_is_refused_with_the_way(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"x")
    config = prepare.Config(sources=("x",), out="y", like=str(tmp_path / "w.pt"))
    with pytest.raises(ConfigError, match="becomes a model by homolog models import"):
        drain(prepare.job(config, tmp_path))


def test_features_see_scans_as_the_file_did(tmp_path: Path) -> None:
    loaded = load_encoder(imported(tmp_path))
    recipe = from_dict(Preprocessing, loaded.card["preprocessing"])
    assert recipe.scaling == "zscore"
    assert json.loads(json.dumps(loaded.card)) == loaded.card
    assert load_embedder(loaded).backbone is loaded.backbone
