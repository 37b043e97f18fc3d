"""Files as other projects publish them: taken whole, or refused for what is so."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import gzip
import json
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foreign_files
from each import each
from foreign_files import FILES, REFUSED, below, swin_unetr, write
from homolog.backbones import build
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.model_files import care
from homolog.model_files.decoder import load_decoder
from homolog.model_files.encoder import load_encoder
from homolog.model_files.foreign import check_kind, read_foreign
from homolog.model_files.layouts import LAYOUTS, recognise
from homolog.model_files.published import published_lines
from homolog.nn.decoders import suited_decoder
from homolog.scans.volume import Volume
from homolog.store.preprocess import Preprocessing, prepare_volume

# File -> network and what of its settings the shapes tell.
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "VoCo_B_SSL_head.pt": ("swin", {"feature_size": 12, "use_v2": True}),
    "VoComni_B.pt": ("swin", {"use_v2": True, "window": [7, 7, 7], "patch": 2}),
    "supervised_suprem_swinunetr_2100.pth": ("swin", {"use_v2": False}),
    "self_supervised_nv_swin_unetr_5050.pt": ("swin", {"heads": [3, 6, 12, 24]}),
    "swin_unetr_btcv.pt": ("swin", {"depths": [2, 2, 2, 2], "use_v2": False}),
    "unetr_btcv.pt": ("vit", {"hidden": 64, "layers": 12, "taps": [4, 7, 10, 12]}),
    "BrainIAC_v2.ckpt": ("vit", {"image_size": [32, 32, 32], "inner": 128}),
    "vit_perceptron.pt": ("vit", {"patch": [16, 16, 16], "layers": 3}),
    "BrainIAC.ckpt": ("resnet", {"block": "bottleneck", "stage_blocks": [3, 4, 6, 3]}),
    "resnet_18_23dataset.pth": ("resnet", {"shortcut": "padding", "norm": "batch"}),
    "resnet_10.pth": ("resnet", {"shortcut": "projection", "block": "basic"}),
    "resnet_50.pth": ("resnet", {"block": "bottleneck", "widths": [8, 16, 32, 64]}),
    "supervised_suprem_segresnet_2100.pth": (
        "segresnet", {"layout": "plain", "filters": 8, "blocks": [1, 2, 2, 4]}
    ),
    "ct_fm_segresnet/model.safetensors": (
        "segresnet", {"layout": "ds", "blocks": [1, 2, 2, 4, 4], "norm": "batch"}
    ),
    "ct_fm_feature_extractor/model.safetensors": ("segresnet", {"full_map": False}),
    "segresnet_ds_instance.pt": ("segresnet", {"full_map": True, "norm": "instance"}),
    "ct_fm.ckpt": ("segresnet", {"layout": "ds", "filters": 4}),
    "nnFoundationCNN/checkpoint_final.pth": (
        "resenc", {"channels": [4, 8, 8], "blocks": [1, 2, 1]}
    ),
    "nnunet_resenc/checkpoint_final.pth": ("resenc", {"channels": [4, 8, 8]}),
    "nnFoundationViT/checkpoint_final.pth": (
        "primus", {"y_first": True, "layers": 2, "image_size": [16, 16, 16]}
    ),
    "3dino_vit_weights.pth": (
        "vit", {"class_token": True, "layer_scale": 1e-5, "layers": 4}
    ),
    "resnet50_imagenet.pth": ("resnet2d", {"block": "bottleneck", "in_channels": 1}),
    "resnet18_imagenet.pth": ("resnet2d", {"block": "basic", "norm": "batch"}),
    "swav_800ep_pretrain.pth": ("resnet2d", {"stage_blocks": [1, 2, 1, 1]}),
    "moco_v2_800ep_pretrain.pth": ("resnet2d", {"widths": [8, 8, 16, 16]}),
    "RadImageNet_ResNet50.pt": ("resnet2d", {"block": "bottleneck"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every importable file, imported; ``NAME`` -> its model folder."""
    place = tmp_path_factory.mktemp("foreign")
    for number, name in enumerate(FILES):
        source = write(place / "files", name, FILES[name]())
        care.import_model(source, place / f"m{number}", None)
    return place


def folder_of(imported: Path, name: str) -> Path:
    return imported / f"m{list(FILES).index(name)}"


def card_of(imported: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (folder_of(imported, name) / "model.json").read_text()
    )
    return found


def test_every_layout_has_a_file_and_every_file_a_row() -> None:
    assert set(MADE) == set(FILES)
    backbones = {name for name, _ in MADE.values()}
    own = {"resunet"}  # made by this package, tested below
    assert {one.backbone for one in LAYOUTS if one.backbone} == backbones | own


@each("name", list(MADE))
def test_network_and_settings_are_read_off_the_file(imported: Path, name: str) -> None:
    card = card_of(imported, name)
    network, settings = MADE[name]
    assert card["backbone"]["name"] == network
    report = card["report"]
    assert (report["share"], report["left_over"], report["misshaped"]) == (1, [], [])
    loaded = load_encoder(folder_of(imported, name))
    found = json.loads(json.dumps(dataclasses.asdict(loaded.backbone.config)))
    assert {key: found[key] for key in settings} == settings
    assert loaded.report.share == 1
    assert not loaded.report.lacking


@each("name", list(REFUSED))
def test_what_has_no_network_is_refused_for_that(tmp_path: Path, name: str) -> None:
    make, why = REFUSED[name]
    source = write(tmp_path, name, make())
    with pytest.raises(UnusableInput) as told:
        care.import_model(source, tmp_path / "out", None)
    assert why in str(told.value)
    assert "seen: " in str(told.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_file_is_shown_with_all_that_are_known(tmp_path: Path) -> None:
    torch.save({"conv7.weight": torch.ones(2, 3)}, tmp_path / "w.pt")
    with pytest.raises(UnusableInput) as told:
        load_encoder(tmp_path / "w.pt")
    text = str(told.value)
    assert "seen: conv7.weight [2, 3]" in text
    assert all(one.title in text for one in LAYOUTS if one.backbone)


# --- equal numbers


def test_an_imported_swin_unetr_computes_what_monais_does(imported: Path) -> None:
    reference = swin_unetr()
    place = folder_of(imported, "VoComni_B.pt")
    encoder = load_encoder(place).backbone
    saved = load_decoder(place)
    assert saved is not None
    decoder = suited_decoder(encoder, 21).eval()
    decoder.load_state_dict(saved.state)
    image = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        ours = decoder(image, encoder(image))
        torch.testing.assert_close(ours, reference(image), atol=1e-5, rtol=1e-4)


def test_an_imported_segresnet_computes_what_monais_does(imported: Path) -> None:
    reference = foreign_files.segresnet_ds("instance")
    place = folder_of(imported, "segresnet_ds_instance.pt")
    encoder, saved = load_encoder(place).backbone, load_decoder(place)
    assert saved is not None
    decoder = suited_decoder(encoder, 3).eval()
    decoder.load_state_dict(saved.state)
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        ours = decoder(image, encoder(image))
        torch.testing.assert_close(ours, reference(image), atol=1e-5, rtol=1e-4)


def test_an_imported_unetr_computes_what_monais_does(imported: Path) -> None:
    reference = foreign_files.unetr()
    place = folder_of(imported, "unetr_btcv.pt")
    encoder, saved = load_encoder(place).backbone, load_decoder(place)
    assert saved is not None
    decoder = suited_decoder(encoder, 5).eval()
    decoder.load_state_dict(saved.state)
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        ours = decoder(image, encoder(image))
        torch.testing.assert_close(ours, reference(image), atol=1e-5, rtol=1e-4)


def test_an_nnunet_takes_its_decoder_along_and_a_pretraining_asks(
    tmp_path: Path,
) -> None:
    network = build("resenc", {"channels": [4, 8], "blocks": [1, 1], "full_map": True})
    decoder = suited_decoder(network, 3)
    state = below("encoder.", network.state_dict())
    for name, value in decoder.state_dict().items():
        named = name.replace("mixes.", "stages.").replace("head.", "seg_layers.0.")
        state[f"decoder.{named}"] = value
    content = {"network_weights": state, "trainer_name": "nnUNetTrainer"}
    source = write(tmp_path, "w.pth", content)
    care.import_model(source, tmp_path / "own", None)
    saved = load_decoder(tmp_path / "own")
    assert saved is not None
    assert set(saved.state) == set(decoder.state_dict())
    source = write(tmp_path, "ssl.pth", {**content, "trainer_name": "BaseMAETrainer"})
    loaded = load_encoder(source)
    assert not loaded.backbone.config.full_map
    assert "full_map=true takes it along" in loaded.card["layout"]["assumed"][0]


def test_a_decoder_in_parts_is_said_to_be_so(imported: Path) -> None:
    """VoCo's self-supervised file has the blocks on the encoder's maps alone."""
    told = card_of(imported, "VoCo_B_SSL_head.pt")["decoder"]
    whole = card_of(imported, "VoComni_B.pt")["decoder"]
    assert told["lacking"] > 0 == whole["lacking"]
    assert told["parameters"] < whole["parameters"]
    assert f"without {told['lacking']} tensors" in care.decoder_words({"decoder": told})


def test_biases_before_a_norm_move_its_mean(imported: Path) -> None:
    reference = foreign_files.resnet3d(deep=True)
    ours = load_encoder(folder_of(imported, "BrainIAC.ckpt")).backbone
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        x: Any = reference.act(reference.bn1(reference.conv1(image)))
        x = reference.maxpool(x)
        for number in range(1, 5):
            x = reference.get_submodule(f"layer{number}")(x)
        torch.testing.assert_close(ours(image)[-1], x, atol=1e-5, rtol=1e-4)


def test_a_perceptron_of_patches_is_the_same_convolution(imported: Path) -> None:
    reference = foreign_files.vit("perceptron")
    ours = load_encoder(folder_of(imported, "vit_perceptron.pt")).backbone
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        tokens = reference(image)[0]
        found = ours(image)[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, tokens, atol=1e-5, rtol=1e-4)


@each("name", ["RadImageNet_ResNet50.pt", "moco_v2_800ep_pretrain.pth",
               "swav_800ep_pretrain.pth"])  # fmt: skip
def test_one_network_under_other_names_is_the_same(imported: Path, name: str) -> None:
    first = card_of(imported, "resnet50_imagenet.pth")
    plain, other = (
        load_encoder(folder_of(imported, n)).encoder_id
        for n in ("resnet50_imagenet.pth", name)
    )
    assert first["backbone"] == card_of(imported, name)["backbone"]
    assert plain == other


# --- what must not be lost


def test_a_setting_that_would_drop_tensors_stops_the_import(tmp_path: Path) -> None:
    source = write(tmp_path, "VoComni_B.pt", FILES["VoComni_B.pt"]())
    told = care.hint("swin", {"use_v2": False})
    with pytest.raises(UnusableInput, match=r"would lose \d+ tensors of the encoder"):
        care.import_model(source, tmp_path / "out", told)
    assert not (tmp_path / "out").exists()


def test_a_part_that_is_missing_stops_the_import(tmp_path: Path) -> None:
    state = swin_unetr().state_dict()
    del state["swinViT.layers4.0.blocks.1.norm2.bias"]
    source = write(tmp_path, "w.pt", state)
    with pytest.raises(UnusableInput, match="lacks 1 tensor of the encoder"):
        load_encoder(source)
    assert load_encoder(source, allow_dropped=True).report.lacking == (
        "layers4.0.blocks.1.norm2.bias",
    )


def test_norms_whose_statistics_are_missing_stop_the_import(tmp_path: Path) -> None:
    state = foreign_files.resnet3d().state_dict()
    del state["layer2.0.bn1.running_var"]
    with pytest.raises(UnusableInput, match="lacks 1 tensor"):
        load_encoder(write(tmp_path, "w.pt", state))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state = swin_unetr().state_dict()
    state["swinViT.patch_embed.proj.bias"][0] = torch.nan
    with pytest.raises(UnusableInput, match="NaN or infinite weights in 1 tensors"):
        load_encoder(write(tmp_path, "w.pt", state))


def test_several_networks_are_asked_about(tmp_path: Path) -> None:
    first, second = (
        foreign_files.resnet2d(),
        foreign_files.resnet2d(blocks=(1, 1, 1, 1)),
    )
    state = below("image_a.", first) | below("image_b.", second)
    source = write(tmp_path, "two.pt", state)
    with pytest.raises(UnusableInput, match="several networks") as told:
        load_encoder(source)
    assert "'image_a.' or resnet2d below 'image_b.'" in str(told.value)
    loaded = load_encoder(source, {"below": "image_b."})
    assert loaded.card["backbone"]["config"]["stage_blocks"] == [1, 1, 1, 1]


def test_of_teacher_and_student_the_teacher_is_recognised() -> None:
    state = foreign_files.dino3d()
    shapes = {n: tuple(v.shape) for n, v in state.items()}
    both = {f"{who}.backbone.{n}": s for who in ("student", "teacher")
            for n, s in shapes.items()}  # fmt: skip
    assert recognise(both).prefix == "teacher.backbone."


def test_a_window_that_is_no_cube_is_found_by_its_cells() -> None:
    encoder = build("swin", {"feature_size": 12, "window": [3, 7, 7]})
    shapes = {n: tuple(v.shape) for n, v in encoder.state_dict().items()}
    found = recognise(shapes)
    assert found.settings["window"] == [3, 7, 7]
    assert "other orders" in found.notes[0]


def test_an_encoder_without_its_card_is_told_by_its_names(tmp_path: Path) -> None:
    settings = {"channels": [4, 8, 16], "blocks": 2}
    encoder = build("resunet", settings)
    loaded = load_encoder(write(tmp_path, "w.pt", encoder.state_dict()))
    assert loaded.card["backbone"]["config"]["channels"] == [4, 8, 16]
    assert loaded.report.share == 1


def test_an_exported_encoder_is_taken_in_again(imported: Path, tmp_path: Path) -> None:
    place = folder_of(imported, "VoComni_B.pt")
    out = tmp_path / "out.safetensors"
    care.export_model(place, out)
    care.import_model(out, tmp_path / "again", None)
    again, first = load_encoder(tmp_path / "again"), load_encoder(place)
    assert again.encoder_id == first.encoder_id
    assert again.card["preprocessing"] == first.card["preprocessing"]
    assert load_decoder(tmp_path / "again") is not None


def test_a_folder_of_a_hub_is_taken_by_its_weight_file(imported: Path) -> None:
    result = care.check_model(imported / "files" / "ct_fm_segresnet", None)
    assert result["card"]["backbone"]["name"] == "segresnet"


# --- what only looks like weights


PRETENDERS = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 349000000"
            b"\n", "git-LFS pointer to a file of 349 MB"),
    "annex": (b"/annex/objects/MD5E-s349--00.pt\n", "git-annex pointer"),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "answer": (b'{"error": "Repository not found"}', "JSON text"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file"),
    "gzip": (gzip.compress(b"weights"), "a gzip archive"),
}  # fmt: skip


@each("kind", list(PRETENDERS))
@each("ending", [".pt", ".safetensors"])
def test_a_pretender_is_told_as_what_it_is(
    tmp_path: Path, kind: str, ending: str
) -> None:
    content, words = PRETENDERS[kind]
    file = tmp_path / f"w{ending}"
    file.write_bytes(content)
    with pytest.raises(UnusableInput, match=words):
        read_foreign(file)


def test_a_link_of_git_annex_is_told(tmp_path: Path) -> None:
    (tmp_path / "w.pt").symlink_to("../.git/annex/objects/a/b/MD5E-s3--0.pt")
    with pytest.raises(UnusableInput, match="git annex get"):
        read_foreign(tmp_path / "w.pt")


@each("name", ["w.pt", "w.safetensors"])
def test_a_download_cut_short_is_told(tmp_path: Path, name: str) -> None:
    source = write(tmp_path, name, {"a": torch.ones(5000)})
    source.write_bytes(source.read_bytes()[:9000])
    with pytest.raises(UnusableInput, match="the download was cut short"):
        read_foreign(source)


def test_what_a_file_is_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(PRETENDERS["page"][0])
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from homolog.model_files.foreign import check_kind\n"
        f"try:\n    check_kind(Path({str(tmp_path / 'w.pt')!r}))\n"
        "except ValueError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules and 'monai' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "web page" in done.stdout) == (0, True), done.stderr


def test_a_torchscript_program_is_told(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "w.pt"))
    with pytest.raises(UnusableInput, match="TorchScript program"):
        read_foreign(tmp_path / "w.pt")


def test_classes_of_training_frameworks_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"

    class Plan:
        def __setstate__(self, state: object) -> None:
            ran.touch()

    Plan.__module__, Plan.__qualname__ = "nnssl.plans", "Plan"
    module = types.ModuleType("nnssl.plans")
    module.Plan = Plan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nnssl", types.ModuleType("nnssl"))
    monkeypatch.setitem(sys.modules, "nnssl.plans", module)
    content = {"network_weights": {"a": torch.ones(2)}, "init_args": {"plan": Plan()}}
    torch.save(content, tmp_path / "w.pt")
    assert pickle.dumps(Plan())  # it can be pickled at all
    found = read_foreign(tmp_path / "w.pt")
    assert (list(found.tensors), ran.exists()) == (["network_weights.a"], False)


def test_containers_of_training_frameworks_become_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AttributeDict(dict):  # type: ignore[type-arg]
        pass

    place = "pytorch_lightning.utilities.parsing"
    AttributeDict.__module__, AttributeDict.__qualname__ = place, "AttributeDict"
    module = types.ModuleType(place)
    module.AttributeDict = AttributeDict  # type: ignore[attr-defined]
    for name in ("pytorch_lightning", "pytorch_lightning.utilities"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, place, module)
    content = {
        "state_dict": AttributeDict({"a": torch.ones(2)}),
        "hyper_parameters": AttributeDict(lr=0.1, more=AttributeDict(depth=3)),
        "seen": collections.defaultdict(list, {"x": [1]}),
        "last": collections.deque([1, 2]),
        "when": datetime.datetime(2026, 1, 2),
    }  # fmt: skip
    torch.save(content, tmp_path / "w.ckpt")
    found = read_foreign(tmp_path / "w.ckpt")
    assert list(found.tensors) == ["state_dict.a"]
    assert found.told["hyper_parameters"] == {"lr": 0.1, "more": {"depth": 3}}
    assert found.told["seen"] == {"x": [1]}


# --- how scans were prepared


def test_a_plan_becomes_the_preprocessing(imported: Path) -> None:
    card = card_of(imported, "nnFoundationCNN/checkpoint_final.pth")
    recipe = card["preprocessing"]
    assert (recipe["spacing_mm"], recipe["scaling"]) == ([1, 1, 1], "zscore")
    assert card["published"]["patch"] == [160, 160, 160]
    assert "nnssl_adaptation_plan in the file" in "\n".join(published_lines(card))
    assert "window" not in card  # 213^3 voxels at once is more than a machine holds


def test_a_plan_beside_the_file_is_read(tmp_path: Path) -> None:
    state = {"network_weights": foreign_files.resenc()}
    source = write(tmp_path, "checkpoint_final.pth", state)
    plan = foreign_files.plan("ResEncL", spacing=[3, 1, 1])
    (tmp_path / "adaptation_plan.json").write_text(json.dumps(plan))
    card = load_encoder(source).card
    assert card["preprocessing"]["spacing_mm"] == [3, 1, 1]
    assert card["published"]["origin"].startswith("adaptation_plan.json")


def test_the_plans_of_an_nnunet_are_read(tmp_path: Path) -> None:
    values = {"percentile_00_5": -958.0, "percentile_99_5": 327.5, "mean": 82.9}
    # without "std" CTNormalization cannot be done alike
    chosen = {
        "spacing": [2.5, 0.8, 0.8], "patch_size": [96, 128, 128],
        "normalization_schemes": ["CTNormalization"],
        "architecture": {"arch_kwargs": {"strides": [[1, 1, 1], [1, 2, 2], 2]}},
    }  # fmt: skip
    plans = {
        "configurations": {"2d": {"spacing": [0.8, 0.8]}, "3d_fullres": chosen},
        "foreground_intensity_properties_per_channel": {"0": values},
    }
    content = {
        "network_weights": foreign_files.resenc(), "trainer_name": "nnUNetTrainer",
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0},
    }  # fmt: skip
    loaded = load_encoder(write(tmp_path, "checkpoint_final.pth", content))
    recipe = loaded.card["preprocessing"]
    assert recipe["spacing_mm"] == [2.5, 0.8, 0.8]
    assert recipe["window_hu"] == [-958.0, 327.5]
    assert "scaling" not in recipe
    assert loaded.card["window"] == [96, 128, 128]
    assert loaded.backbone.config.steps == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    (remark,) = loaded.card["published"]["remarks"]
    assert "cut to -958 to 327.5 HU" in remark
    values["std"] = 136.9
    told = load_encoder(write(tmp_path, "checkpoint_best.pth", content)).card
    recipe = told["preprocessing"]
    assert (recipe["scaling"], recipe["dataset_hu"]) == ("dataset", [82.9, 136.9])
    assert not told["published"].get("remarks")


def test_a_plan_without_resampling_keeps_voxels(tmp_path: Path) -> None:
    told = foreign_files.plan("ResEncL")
    told["pretrain_plan"]["configurations"]["onemmiso"]["spacing"] = None
    content = {"network_weights": foreign_files.resenc(), "nnssl_adaptation_plan": told}
    card = load_encoder(write(tmp_path, "w.pth", content)).card
    assert card["preprocessing"]["spacing_mm"] is None
    assert card["learnt_spacing_mm"] is None


def test_settings_beside_the_file_settle_what_no_shape_tells(tmp_path: Path) -> None:
    source = write(tmp_path, "model.safetensors", foreign_files.vit().state_dict())
    assert load_encoder(source).backbone.config.heads == 1
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 4, "norm": [3]}))
    loaded = load_encoder(source)
    assert loaded.backbone.config.heads == 4
    assert loaded.card["layout"]["assumed"] == [
        "heads 4: by config.json beside the file."
    ]


@each("name", ["VoCo_B_SSL_head.pt", "VoComni_B.pt",
               "supervised_suprem_swinunetr_2100.pth",
               "supervised_suprem_segresnet_2100.pth"])  # fmt: skip
def test_what_projects_publish_is_the_preprocessing(imported: Path, name: str) -> None:
    recipe = card_of(imported, name)["preprocessing"]
    assert recipe["window_hu"] == [-175, 250]
    assert (recipe["spacing_mm"], recipe["scaling"]) == ([1.5, 1.5, 1.5], "unit")


def test_of_an_unknown_project_nothing_is_claimed(imported: Path) -> None:
    card = card_of(imported, "swin_unetr_btcv.pt")
    assert "preprocessing" not in card
    assert "not known" in "\n".join(published_lines(card))


def scan(values: Any, kind: str = "CT") -> Volume:
    data = np.asarray(values, np.float32).reshape(1, 4, 4, 4)
    return Volume(data, Affine.scale((1.0, 1.0, 1.0)), "scan", kind, {})


def test_scalings_are_those_of_the_projects() -> None:
    values = np.linspace(-1200, 1200, 64)
    unit = Preprocessing(window_hu=(-175.0, 250.0), scaling="unit")
    found = prepare_volume(scan(values), unit).normalised().ravel()
    wanted = (np.clip(values, -175, 250) + 175) / 425  # MONAI's ScaleIntensityRange
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    zscore = Preprocessing(scaling="zscore")
    found = prepare_volume(scan(values), zscore).normalised().ravel()
    wanted = (values - values.mean()) / values.std()  # nnU-Net's ZScoreNormalization
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    ct = Preprocessing(
        window_hu=(-958.0, 327.5), scaling="dataset", dataset_hu=(82.9, 136.9)
    )
    found = prepare_volume(scan(values), ct).normalised().ravel()
    wanted = (np.clip(values, -958, 327.5) - 82.9) / 136.9  # nnU-Net's CTNormalization
    np.testing.assert_allclose(found, wanted, atol=5e-3)
    signed = Preprocessing(percentiles=(5.0, 95.0), scaling="signed")
    found = prepare_volume(scan(values, "MR"), signed).normalised().ravel()
    low, high = np.percentile(values, (5, 95))
    wanted = np.clip((values - low) / (high - low), 0, 1) * 2 - 1
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_an_empty_scan_has_finite_values_in_every_scaling() -> None:
    for scaling in ("unit", "signed", "zscore", "dataset"):
        for kind in ("CT", "MR"):
            made = prepare_volume(
                scan(np.zeros(64), kind), Preprocessing(scaling=scaling)
            )
            assert np.isfinite(made.normalised()).all()


def test_check_kind_lets_weights_pass(tmp_path: Path) -> None:
    check_kind(write(tmp_path, "w.pt", {"a": torch.ones(3)}))
    named = write(tmp_path, "w.safetensors", {"a": torch.ones(3)})
    check_kind(named)
    other = named.rename(tmp_path / "pytorch_model.bin")  # under another's name
    assert list(read_foreign(other).tensors) == ["a"]
