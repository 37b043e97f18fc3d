"""A translator in the window's lists, and its image on the grid of the scan's layer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.gui.data.control import UNREAD, rows_of
from homolog.gui.files.opening import read_layer
from homolog.gui.learn.control import teaching_problem, what_is_learnt
from homolog.gui.segment.control import Batch, image_layer, keep_image
from homolog.gui.shared.choices import ModelChoice, list_models, read_store
from homolog.gui.shared.models import title_of
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume
from homolog.store.build import prepare_store

GRID = Affine.of((3.0, 1.0, 1.0))
CARD = {
    "kind": "translate", "backbone": {"name": "resunet"},
    "task_spec": {
        "channel_names": ["T1", "FLAIR"],
        "translation": {"name": "T2", "modality": "MR", "dose": 0.0},
    },
}  # fmt: skip


def test_a_file_of_several_images_opens_as_layers(tmp_path: Path) -> None:
    data = np.stack([np.arange(9 * 10 * 11).reshape(9, 10, 11) % m for m in (97, 53)])
    path = tmp_path / "both.nii.gz"
    write_volume(Volume(data.astype(np.int16), GRID), path)
    shown, attributes, kind = read_layer(path)
    assert (kind, shown.shape) == ("image", (2, 9, 10, 11))
    assert attributes["channel_axis"] == 0
    assert attributes["name"] == ["both 0", "both 1"]
    limits = attributes["contrast_limits"]
    assert limits[0][1] > limits[1][1]  # each by its own values


def test_a_translator_says_what_it_makes() -> None:
    model = ModelChoice(Path("run"), "run", "translate", "resunet", card=CARD)
    assert model.translates
    assert not model.classifies
    assert model.title == "run (T2 from T1 and FLAIR, resunet)"
    assert "Makes T2 from T1 and FLAIR." in model.facts
    assert title_of(CARD) == "image to image, resunet"


def test_what_is_made_is_named_as_made() -> None:
    model = ModelChoice(Path("run"), "run", "translate", "resunet", card=CARD)
    assert (model.makes, model.keeps_values) == ("T2", False)
    spec = {"translation": {"name": "", "modality": "PET", "dose": 20.0}}
    low = ModelChoice(Path("r"), "r", "translate", "x", card={"task_spec": spec})
    assert (low.makes, low.keeps_values) == ("full dose PET", True)


def test_it_is_among_the_models_of_the_segment_tab(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "t2" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "run.json").write_text('{"kind": "finetune", "config": {}}')
    card = {**CARD, "weights": "model.safetensors", "sha256": {}}
    (folder / "model.json").write_text(json.dumps(card))
    (model,) = list_models(tmp_path / "runs", tmp_path / "models")
    assert model.title == "t2 (T2 from T1 and FLAIR, resunet)"


def test_its_image_lies_on_the_layer_of_the_scan(tmp_path: Path) -> None:
    scan, made = tmp_path / "scan.nii.gz", tmp_path / "part" / "scan.nii.gz"
    values = np.random.default_rng(0).random((1, 9, 10, 11)).astype(np.float32)
    for path in (scan, made):
        path.parent.mkdir(exist_ok=True)
        write_volume(Volume(values, GRID), path)
    data, attributes, _ = read_layer(scan)
    layer = SimpleNamespace(
        data=data, scale=attributes["scale"], translate=attributes["translate"],
        units=attributes["units"], metadata=attributes["metadata"], name="scan",
    )  # fmt: skip
    image, on, kind = image_layer(made, "scan T2", layer)
    assert (kind, on["name"], image.shape) == ("image", "scan T2", data.shape)
    assert (on["scale"], on["translate"]) == (layer.scale, layer.translate)
    layer.contrast_limits = (1.0, 7.0)
    _, on, _ = image_layer(made, "scan T2", layer, alike=True)
    assert on["contrast_limits"] == (1.0, 7.0)  # seen as what it was made of
    out = tmp_path / "out"
    out.mkdir()
    assert keep_image(made, out) == out / "scan.nii.gz"
    assert Batch  # the list of the Segment tab takes it from there


def test_stores_that_can_teach_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = ["image,channels,id,split"]
    for number in range(2):
        for kind in "ab":
            data = rng.random((1, 9, 10, 11)).astype(np.float32)
            write_volume(Volume(data, GRID), tmp_path / f"{number}{kind}.nii.gz")
        rows.append(f"{number}a.nii.gz|{number}b.nii.gz,T1|T2,p{number},train")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    drain(prepare_store([tmp_path / "cases.csv"], tmp_path / "store"))
    drain(prepare_store([tmp_path / "0a.nii.gz"], tmp_path / "alone"))
    two, alone = read_store(tmp_path / "store"), read_store(tmp_path / "alone")
    assert two.channels == ("T1", "T2")
    assert "channels T1 and T2" in two.title
    assert teaching_problem("translate", [two]) == ""
    assert what_is_learnt("translate", [two]) == ("2 channels", "T1, T2")
    assert "have one channel" in teaching_problem("translate", [alone])


def test_a_file_of_four_axes_of_a_data_set_is_no_fault(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((2, 9, 10, 11)).astype(np.float32)
    (tmp_path / "imagesTr").mkdir()
    write_volume(Volume(data, GRID), tmp_path / "imagesTr" / "b1.nii.gz")
    names = {"modality": {"0": "T1", "1": "FLAIR"}, "labels": {"0": "background"}}
    (tmp_path / "dataset.json").write_text(json.dumps(names))
    (row,) = rows_of(tmp_path)
    assert [one.name for one in row.scans] == ["b1 (T1 and FLAIR)"]
    assert [one.badge.level for one in row.scans] == [UNREAD]
