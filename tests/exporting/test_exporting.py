"""What is exported answers as the model does, elsewhere too, and says what it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_models import classifier, segmenter, translator

from homolog.backbones import build
from homolog.cli import cli
from homolog.config import from_dict, to_dict
from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.exporting import bundle as bundles
from homolog.exporting.export import export_model
from homolog.exporting.kinds import KINDS
from homolog.exporting.portable import session
from homolog.geometry.affine import Affine
from homolog.model_files.encoder import load_encoder
from homolog.model_files.folder import load_model, save_model
from homolog.scans.files import read_scan
from homolog.scans.volume import Volume
from homolog.store.preprocess import Preprocessing, prepare_volume
from homolog.use.predict import cases_of, open_predictor, read_case

NNUNET_TENSORS = 192


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmenter(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment where Homolog cannot be imported."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "homolog").mkdir()
    text = "raise ImportError('not to be had')\n"
    (folder / "homolog" / "__init__.py").write_text(text, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}


def scan_of(folder: Path, number: int = 0) -> Path:
    found = sorted((folder / "imagesTr").iterdir())[number]
    assert found.name.endswith(".nii.gz")
    return found


def own_labels(model: Path, scan: Path) -> np.ndarray:
    task, trained = open_predictor(model, torch.device("cpu"))
    labels: Any = drain(task.run(read_scan(scan), trained))
    return np.asarray(labels.data)


def moved(scan: Path, out: Path, affine: np.ndarray, flip: int | None = None) -> Path:
    """The same voxels on another grid."""
    image = nib.load(scan)
    data = np.asanyarray(image.dataobj)
    if flip is not None:
        data = np.flip(data, flip)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(data), affine), out)
    return out


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_network_labels_scans_without_us(
    kind: str,
    model: Path,
    phantom_folder: Path,
    tmp_path: Path,
    alone: dict[str, str],
) -> None:
    """In a process that cannot import Homolog; voxels of another size than learnt."""
    affine = np.diag([-6.0, 8.0, 9.0, 1.0])
    scan = moved(scan_of(phantom_folder), tmp_path / "scan.nii.gz", affine, 0)
    out = tmp_path / "exported"
    told = export_model(model, out, kind, scan)
    assert told["equal_labels"] >= 0.999
    assert told["sides"] == "any"
    assert told["difference"] < 1e-4
    if kind == "torchscript":  # the same program, and seconds to load PyTorch
        return
    done = subprocess.run(
        [sys.executable, str(out / "label_scan.py"), str(scan), "--out",
         str(tmp_path / "labels.nii.gz")],
        env=alone, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = nib.load(tmp_path / "labels.nii.gz")
    own = own_labels(model, scan)
    assert len(np.unique(own)) == 3
    assert (np.asanyarray(found.dataobj).T == own).mean() >= 0.999
    assert np.array_equal(found.affine, affine)


def test_fixed_sides_are_told(tmp_path: Path) -> None:
    """Attention cuts maps into windows of one size; the batch is free."""
    small = {"feature_size": 4, "heads": [1, 1, 1, 1], "window": [2, 2, 2],
             "depths": [2, 1, 1, 1]}  # fmt: skip
    source = segmenter(
        tmp_path / "swin", "swin", small, window=[16, 16, 32], divisor=[16] * 3
    )
    told = export_model(source, tmp_path / "swin_onnx", "onnx")
    assert told["sides"] == "fixed"
    assert told["difference"] < 1e-4
    recipe = json.loads((tmp_path / "swin_onnx" / "homolog.json").read_text("utf-8"))
    assert recipe["sides"] == "fixed"
    assert recipe["follow"] is None
    assert "Sides are fixed: 16 x 16 x 32" in (
        tmp_path / "swin_onnx" / "README.md"
    ).read_text("utf-8")


def test_an_encoders_maps_are_written(encoder: Path, tmp_path: Path) -> None:
    import onnx

    out = tmp_path / "encoder"
    told = export_model(encoder, out, "onnx")
    assert told["sides"] == "any"
    image = torch.randn(2, 1, 16, 32, 24)
    with torch.no_grad():
        own = load_encoder(encoder).backbone(image)
    found = session(out / "model.onnx")(image)
    assert len(found) == 3
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(own, found, strict=True))
    props = {p.key: p.value for p in onnx.load(out / "model.onnx").metadata_props}
    assert json.loads(props["card"])["licence"] == "as its scans"
    assert not (out / "label_scan.py").exists()
    with pytest.raises(UnusableInput, match="an encoder alone labels none"):
        export_model(encoder, tmp_path / "bundle", "bundle")


def test_monais_own_command_gives_our_labels(
    model: Path, phantom_folder: Path, tmp_path: Path, alone: dict[str, str]
) -> None:
    """Without Homolog; one scan that cannot be read does not stop the others."""
    out, scans, labels = (tmp_path / name for name in ("bundle", "scans", "labels"))
    told = export_model(model, out, "bundle")
    assert told["lines"][-1].startswith("python -m monai.bundle run")
    scans.mkdir()
    first = scan_of(phantom_folder)
    oblique = np.array(
        [[0, -7.0, 1.0, 3], [8.0, 0, 0, -5], [0, 1.0, 7.0, 9], [0, 0, 0, 1]]
    )
    moved(first, scans / "a.nii.gz", oblique, 1)
    moved(scan_of(phantom_folder, 1), scans / "c.nii.gz", nib.load(first).affine)
    (scans / "b.nii.gz").write_bytes(b"no scan")
    command = bundles.run_command(out, scans, labels)
    done = subprocess.run(
        command, env=alone, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "b.nii.gz" in done.stderr
    assert sorted(p.name for p in labels.iterdir()) == ["a_seg.nii.gz", "c_seg.nii.gz"]
    for name in "ac":
        scan, found = scans / f"{name}.nii.gz", nib.load(labels / f"{name}_seg.nii.gz")
        assert np.allclose(found.affine, nib.load(scan).affine, atol=1e-5)
        own = own_labels(model, scan)
        assert (np.asanyarray(found.dataobj).T == own).mean() >= 0.999
        assert found.get_data_dtype() == np.uint8


def test_a_bundle_is_as_monai_wants_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export_model(model, out, "bundle")
    told = json.loads((out / "configs" / "metadata.json").read_text("utf-8"))
    for key in ("version", "changelog", "monai_version", "pytorch_version",
                "numpy_version", "required_packages_version", "task", "description",
                "authors", "copyright", "network_data_format"):  # fmt: skip
        assert told[key], key
    pred = told["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert "Weights: CC BY 4.0" in (out / "LICENSE").read_text("utf-8")
    page = (out / "docs" / "README.md").read_text("utf-8")
    assert "0 background, 2 liver, 5 spleen" in page
    everything = b"".join(p.read_bytes() for p in out.rglob("*.*") if p.is_file())
    assert b"/home/someone" not in everything


def test_slices_go_through_a_2d_network_as_by_us(
    phantom_folder: Path, tmp_path: Path
) -> None:
    small = {"widths": [8, 8, 8, 8], "stage_blocks": [1, 1, 1, 1]}
    source = segmenter(
        tmp_path / "flat", "resnet2d", small, window=[1, 32, 32],
        smallest=[1, 32, 32], divisor=[1, 32, 32],
    )  # fmt: skip
    scan = scan_of(phantom_folder)
    told = export_model(source, tmp_path / "script", "torchscript", scan)
    assert told["equal_labels"] >= 0.999


def test_the_hubs_folder_is_a_model_of_ours(
    model: Path, encoder: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    """It labels as the model does, and an encoder comes back with equal weights."""
    export_model(model, tmp_path / "hub", "huggingface")
    names = {p.name for p in (tmp_path / "hub").iterdir()}
    assert {"config.json", "README.md", "model.safetensors", "model.json"} <= names
    front = (tmp_path / "hub" / "README.md").read_text("utf-8").split("---\n")[1]
    assert "license: cc-by-4.0" in front
    assert "pipeline_tag: image-segmentation" in front
    config = json.loads((tmp_path / "hub" / "config.json").read_text("utf-8"))
    assert config["id2label"] == {"0": "background", "1": "liver", "2": "spleen"}
    scan = scan_of(phantom_folder)
    assert np.array_equal(own_labels(tmp_path / "hub", scan), own_labels(model, scan))

    export_model(encoder, tmp_path / "hub2", "huggingface")
    own = load_encoder(encoder).encoder_id
    assert load_encoder(tmp_path / "hub2").encoder_id == own
    out = tmp_path / "back"
    done = CliRunner().invoke(
        cli, ["models", "import", str(tmp_path / "hub2" / "model.safetensors"),
              "--out", str(out)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert load_encoder(out).encoder_id == own
    front = (tmp_path / "hub2" / "README.md").read_text("utf-8")
    assert 'license: other\nlicense_name: "as its scans"' in front


def test_safetensors_come_back_as_they_were(encoder: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "encoder.safetensors", tmp_path / "back"
    result = CliRunner().invoke(
        cli, ["models", "export", str(encoder), "--out", str(file), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.output.splitlines()[-1])["kind"] == "safetensors"
    assert json.loads(file.with_suffix(".json").read_text("utf-8"))["licence"]
    told = ["--backbone", "resunet", "--set", "channels=[8,16,16]"]
    done = CliRunner().invoke(
        cli, ["models", "import", str(file), *told, "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert load_encoder(out).encoder_id == load_encoder(encoder).encoder_id
    again = CliRunner().invoke(
        cli, ["models", "export", str(encoder), "--out", str(file)]
    )
    assert again.exit_code != 0
    assert "exists; choose another --out" in str(again.exception)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_nothing_is_replaced_and_no_half_is_left(
    kind: str, encoder: Path, tmp_path: Path
) -> None:
    taken = tmp_path / f"taken{KINDS[kind].suffix}"
    taken.write_text("mine", encoding="utf-8")
    with pytest.raises(UnusableInput, match="exists"):
        export_model(encoder, taken, kind)
    assert [p.name for p in tmp_path.iterdir()] == [taken.name]
    assert taken.read_text(encoding="utf-8") == "mine"


def test_what_cannot_be_written_says_why(tmp_path: Path) -> None:
    detector = save_model(tmp_path / "boxes", {"w": torch.ones(1)}, {"kind": "detect"})
    with pytest.raises(UnusableInput, match="boxes are put together"):
        export_model(detector, tmp_path / "a", "onnx")
    few = save_model(tmp_path / "few", {"w": torch.ones(1)}, {"kind": "few_voxels"})
    with pytest.raises(UnusableInput, match="head on features"):
        export_model(few, tmp_path / "a", "torchscript")
    with pytest.raises(UnusableInput, match=r"must end in \.safetensors"):
        export_model(few, tmp_path / "a.pt")
    with pytest.raises(UnusableInput, match="writes a folder"):
        export_model(few, tmp_path / "a.onnx", "onnx")
    with pytest.raises(UnusableInput, match="not for huggingface"):
        export_model(few, tmp_path / "a", "huggingface", tmp_path / "scan.nii.gz")
    weights = tmp_path / "foreign.pt"
    torch.save({"w": torch.ones(1)}, weights)
    with pytest.raises(UnusableInput, match="make a model of it first"):
        export_model(weights, tmp_path / "a", "onnx")


def test_a_lacking_package_is_named(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnusableInput, match=r"pip install 'napari-homolog\[export\]'"):
        export_model(encoder, tmp_path / "a", "onnx")
    assert not list(tmp_path.iterdir())


def test_channels_of_a_case_go_together(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By files named _0000 and _0001; MONAI's parser runs in this process here."""
    from monai.bundle import ConfigParser

    source = segmenter(
        tmp_path / "model", channels=2, channel_names=["T1", "T2"],
        channel_modalities=["MR", "MR"], modality="MR",
    )  # fmt: skip
    first = nib.load(scan_of(phantom_folder))
    values = np.asanyarray(first.dataobj).astype(np.float32)
    (tmp_path / "scans").mkdir()
    files = [tmp_path / "scans" / f"case_000{i}.nii.gz" for i in range(2)]
    for file, data in zip(files, (values, np.sqrt(np.abs(values + 900))), strict=True):
        nib.save(nib.Nifti1Image(data, first.affine), file)
    task, trained = open_predictor(source, torch.device("cpu"))
    ((case, channels),) = cases_of(trained, files).items()
    own: Any = drain(task.run(read_case(trained, case, channels), trained))

    out = tmp_path / "bundle"
    export_model(source, out, "bundle")
    monkeypatch.syspath_prepend(str(out / "scripts"))
    for name in ("homolog_scan", "homolog_monai"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    parser = ConfigParser()
    parser.read_config(str(out / "configs" / "inference.json"))
    parser["bundle_root"] = str(out)
    parser["dataset_dir"] = str(tmp_path / "scans")
    parser["output_dir"] = str(tmp_path / "labels")
    parser.get_parsed_content("run")
    (found,) = (tmp_path / "labels").iterdir()
    labels = np.asanyarray(nib.load(found).dataobj).T
    assert len(np.unique(own.data)) == 3
    assert (labels == own.data).mean() >= 0.999


@pytest.fixture(scope="module")
def resenc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder of nnU-Net's kind for thick slices."""
    config = {
        "channels": [8, 16, 24], "blocks": [1, 2, 1],
        "steps": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build("resenc", config)
        for weight in backbone.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    card = {
        "kind": "encoder",
        "backbone": {"name": "resenc", "config": to_dict(backbone.config)},
        "preprocessing": {"modality": "CT", "spacing_mm": [3.0, 1.0, 1.0]},
        "window": [8, 16, 16],
        "licence": "CC BY-NC 4.0",
    }
    folder = tmp_path_factory.mktemp("resenc") / "model"
    return save_model(folder, backbone.state_dict(), card)


def test_nnunets_network_gets_all_its_tensors(resenc: Path, tmp_path: Path) -> None:
    """Under the names of dynamic-network-architectures 0.4.4, each layer twice."""
    out = tmp_path / "nnunet"
    told = export_model(resenc, out, "nnunet")
    content = torch.load(out / "checkpoint_final.pth", weights_only=True)
    weights = content["network_weights"]
    # of ResidualEncoderUNet with these settings and two classes
    assert len(weights) == told["tensors"]["all"] == NNUNET_TENSORS
    assert weights["encoder.stem.convs.0.conv.weight"].shape == (8, 1, 1, 3, 3)
    first = "stages.1.blocks.0"
    for before in ("encoder", "decoder.encoder"):
        for own, copy in (("conv", 0), ("norm", 1)):
            assert torch.equal(
                weights[f"{before}.{first}.conv1.{own}.weight"],
                weights[f"{before}.{first}.conv1.all_modules.{copy}.weight"],
            )
        assert f"{before}.{first}.skip.1.all_modules.0.weight" in weights
        assert f"{before}.stages.1.blocks.1.skip.1.conv.weight" not in weights
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    assert shapes["decoder.transpconvs.0.weight"] == (24, 16, 2, 2, 2)
    assert shapes["decoder.transpconvs.1.weight"] == (16, 8, 1, 2, 2)
    assert shapes["decoder.stages.1.convs.0.conv.weight"] == (8, 16, 1, 3, 3)
    assert shapes["decoder.seg_layers.1.weight"] == (2, 8, 1, 1, 1)
    plan = json.loads((out / "plans.json").read_text("utf-8"))
    found = plan["configurations"]["3d_fullres"]
    assert found["spacing"] == [3.0, 1.0, 1.0]
    assert found["normalization_schemes"] == ["CTNormalization"]
    values = plan["foreground_intensity_properties_per_channel"]["0"]
    low, high = values["percentile_00_5"], values["percentile_99_5"]
    seen = [(v - values["mean"]) / values["std"] for v in (low, high)]
    assert seen == pytest.approx([-1.0, 1.0])  # as our usual preparation of CT
    assert found["architecture"]["arch_kwargs"]["n_blocks_per_stage"] == [1, 2, 1]


def test_nnunets_checkpoint_comes_back(resenc: Path, tmp_path: Path) -> None:
    out = tmp_path / "nnunet"
    export_model(resenc, out, "nnunet")
    own = load_encoder(resenc)
    # the file itself, without the card that lies beside it
    alone = tmp_path / "elsewhere.pth"
    alone.write_bytes((out / "checkpoint_final.pth").read_bytes())
    done = CliRunner().invoke(
        cli, ["models", "import", str(alone), "--out", str(tmp_path / "back")]
    )
    assert done.exit_code == 0, done.output
    back = load_encoder(tmp_path / "back")
    image = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        wanted, found = own.backbone(image), back.backbone(image)
    # the decoder in the file needs the map of full resolution, too
    assert len(found) == len(wanted) + 1
    assert all(torch.equal(a, b) for a, b in zip(wanted, found[1:], strict=True))
    assert back.card["preprocessing"]["spacing_mm"] == [3.0, 1.0, 1.0]
    values = np.linspace(-3000, 3000, 64, dtype=np.float32).reshape(1, 4, 4, 4)
    ct = Volume(values, Affine.scale((3.0, 1.0, 1.0)), "scan", "CT", {})
    ways = [
        from_dict(Preprocessing, one.card["preprocessing"]) for one in (own, back)
    ]  # the values of a CT are prepared alike
    seen = [prepare_volume(ct, replace(way, spacing_mm=None)) for way in ways]
    np.testing.assert_allclose(seen[0].normalised(), seen[1].normalised(), atol=1e-5)


def test_a_decoder_of_nnunets_kind_goes_with_its_encoder(tmp_path: Path) -> None:
    settings = {"channels": [8, 16, 24], "blocks": [1, 1, 1], "full_map": True}
    source = segmenter(tmp_path / "model", "resenc", settings, divisor=[4, 4, 4])
    told = export_model(source, tmp_path / "nnunet", "nnunet")
    own = load_model(source).state
    content = torch.load(tmp_path / "nnunet" / "checkpoint_final.pth")
    weights = content["network_weights"]
    assert told["tensors"]["decoder"] == sum(k.startswith("decoder.") for k in own)
    for theirs, ours in (
        ("decoder.transpconvs.1.bias", "decoder.transpconvs.1.bias"),
        ("decoder.stages.0.convs.0.all_modules.0.weight",
         "decoder.mixes.0.convs.0.conv.weight"),
        ("decoder.seg_layers.1.weight", "decoder.head.weight"),
        ("encoder.stages.2.blocks.0.conv2.norm.weight",
         "encoder.stages.2.blocks.0.conv2.norm.weight"),
    ):  # fmt: skip
        assert torch.equal(weights[theirs], own[ours])


def test_only_nnunets_own_network_starts_it(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="only an encoder of the backbone resenc"):
        export_model(encoder, tmp_path / "a", "nnunet")


@pytest.mark.parametrize("make", [classifier, translator])
def test_other_tasks_hand_out_their_network(make: Any, tmp_path: Path) -> None:
    """Not a bundle: what comes before and after the network is our code."""
    source = make(tmp_path / "model")
    told = export_model(source, tmp_path / "out", "onnx")
    assert told["difference"] < 1e-4
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "card.json", "README.md", "LICENSE"}
    _, trained = open_predictor(source, torch.device("cpu"))
    image = torch.randn(1, 1, 16, 24, 24)
    with torch.no_grad():
        own = trained.network(image)
    (found,) = session(tmp_path / "out" / "model.onnx")(image)
    assert (own - found).abs().max() < 1e-4 * max(float(own.abs().max()), 1.0)
    with pytest.raises(UnusableInput, match="cannot be written as bundle"):
        export_model(source, tmp_path / "bundle", "bundle")
    with pytest.raises(UnusableInput, match="labels voxels"):
        export_model(source, tmp_path / "more", "onnx", tmp_path / "scan.nii.gz")
