"""Model cards read without torch; copies are verified; no Qt here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from toy_runs import make_model, slow_run

from homolog.errors import JobError, UnusableInput
from homolog.gui.shared import models as control
from homolog.gui.shared.choices import begin_with, list_embedders
from homolog.model_files import library
from homolog.model_files.facts import facts_of, title_of
from homolog.model_files.keeping import copy_model


@pytest.fixture
def places(home: Path) -> tuple[Path, Path]:
    """A run with an encoder, a demo with two models, an imported and a damaged one."""
    runs, models = home / "runs", home / "models"
    make_model(slow_run(runs / "pre").folder / "model")
    demo = slow_run(runs / "demo").folder
    make_model(demo / "pretrain" / "model", method="mae")
    make_model(
        demo / "finetuned" / "model", kind="segment",
        label_names={"1": "liver", "2": "left kidney"},
        cases={"train": ["a", "b"], "val": ["c"]},
        encoder={"source": "/x/demo/pretrain"}, validation={"dice": 0.81},
    )  # fmt: skip
    make_model(models / "theirs", licence="CC BY 4.0")
    (models / "broken").mkdir()
    (models / "broken" / "model.json").write_text("{")
    return runs, models


def test_all_models_are_found(places: tuple[Path, Path]) -> None:
    found = {m.name: m for m in control.find_models(*places)}
    assert set(found) == {"pre", "demo/pretrain", "demo/finetuned", "theirs", "broken"}
    assert found["pre"].source == "run"
    assert found["theirs"].source == "imported"
    assert "damaged" in found["broken"].damaged
    facts = dict(found["demo/finetuned"].facts)
    assert facts["Labels"] == "liver, left kidney"
    assert facts["Trained on"] == "2 scans, 1 more chose the weights (CT)"
    assert facts["Voxel size"] == "0.8 x 0.8 x 1.5 mm (x, y, z)"
    assert facts["Validation"].startswith("Dice 0.810")
    assert facts["Started from"] == "pretrain"
    assert dict(found["theirs"].facts)["Licence"] == "CC BY 4.0"
    assert "SHA-256 " in dict(found["pre"].facts)["Weights"]
    assert control.find_models(places[0] / "no", places[1] / "no") == []


def test_the_search_looks_through_the_cards(places: tuple[Path, Path]) -> None:
    models = control.find_models(*places)
    assert [m.name for m in control.matching(models, "kidney LIVER")] == [
        "demo/finetuned"
    ]
    assert len(control.matching(models, "")) == 5
    assert control.matching(models, "unicorn") == []


def test_what_a_model_is_good_for(places: tuple[Path, Path]) -> None:
    found = {m.name: m for m in control.find_models(*places)}
    tabs = [tab for _, tab, _ in control.uses(found["pre"])]
    assert tabs == ["Explore", "Fine-tune"]
    _, tab, what = control.uses(found["demo/finetuned"])[0]
    assert (tab, what) == ("Segment", {"model": str(found["demo/finetuned"].path)})
    assert control.uses(found["broken"]) == []


def test_a_copy_is_whole_and_verified(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    runs, models = places
    out = models / control.free_name(models, "theirs")
    assert out.name == "theirs_v2"
    assert copy_model(runs / "pre", out) == out
    card = json.loads((out / "model.json").read_text())
    name = card["weights"]
    assert (out / name).read_bytes() == (runs / "pre" / "model" / name).read_bytes()
    with pytest.raises(UnusableInput, match="exists"):
        copy_model(runs / "pre", out)
    (out / name).write_bytes(b"rotten")
    with pytest.raises(UnusableInput, match="checksum"):
        copy_model(out, models / "x")
    (out / name).unlink()
    assert "missing" in control.read_model(out, models).damaged
    with pytest.raises(UnusableInput, match="cannot be read"):
        copy_model(out, models / "x")
    assert not (models / "x").exists()
    assert [p.name for p in models.iterdir() if p.name.startswith(".")] == []


def test_what_may_be_dropped(places: tuple[Path, Path], tmp_path: Path) -> None:
    runs, _ = places
    (tmp_path / "w.pt").write_bytes(b"")
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    assert control.is_model(runs / "pre")
    assert control.is_model(runs / "pre" / "model")
    assert control.is_model(tmp_path / "w.pt")
    assert not control.is_ours(tmp_path / "w.pt")
    assert not control.is_model(tmp_path / "scan.nii.gz")
    assert not control.is_model(tmp_path)


def test_only_our_own_idle_models_are_deleted(places: tuple[Path, Path]) -> None:
    found = {m.name: m for m in control.find_models(*places)}
    control.check_deletable(found["pre"], places)
    with pytest.raises(JobError, match="not in the runs"):
        control.check_deletable(found["pre"], [places[1]])
    lock = slow_run(places[0] / "pre2").lock()
    make_model(places[0] / "pre2" / "model")
    assert lock.acquire()
    live = control.read_model(places[0] / "pre2" / "model", places[0], "run")
    with pytest.raises(JobError, match="being trained"):
        control.check_deletable(live, places)
    lock.release()


def test_the_helpers_get_whole_paths(places: tuple[Path, Path]) -> None:
    model = control.find_models(*places)[0]
    config = control.export_config(model, Path("out"))
    assert config["action"] == "export"
    assert Path(config["out"]).is_absolute()
    assert config["out"].endswith("out.safetensors")
    config = control.import_config(Path("a.pt"), Path("b"), "swin", {"x": 1})
    assert Path(config["source"]).is_absolute()
    assert (config["backbone"], config["settings"]) == ("swin", {"x": 1})


def test_a_classifiers_card_tells_its_classes(tmp_path: Path) -> None:
    spec = {
        "classes": ["effusion", "nodule"], "several": True, "slices": 40,
        "thresholds": [0.4, 0.61], "types": ["left"], "modalities": ["XR"],
    }  # fmt: skip
    make_model(
        tmp_path / "films", kind="classify", task_spec=spec, label_names={},
        validation={"auc": 0.875},
    )  # fmt: skip
    card = json.loads((tmp_path / "films" / "model.json").read_text())
    assert title_of(card).startswith("classification of whole scans, 2 classes, ")
    told = dict(facts_of(card, 1000, tmp_path / "films"))
    assert told["Classes"] == "effusion, nodule (any or none of a scan)"
    assert told["Thresholds"] == "effusion 0.40, nodule 0.61"
    assert told["Validation"] == "AUC 0.875 on held-out scans"
    for held, few in ((6, ": few, and a new scan may differ"), (20, "")):
        ids = [f"c{i}" for i in range(held)]
        more = {
            "cases": {"train": ["a"], "val": ids},
            "validation": {"dice": 0.8, "worst": 0.41},
        }
        told = dict(facts_of({**card, **more}, 1000, tmp_path / "films"))
        text = f"Dice 0.800 on the {held} scans that chose the weights, worst 0.41{few}"
        assert told["Validation"] == text
    assert (told["Types"], "Slices" in told) == ("left", True)


def test_what_comes_with_homolog_stands_first_and_stays(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "ENCODERS", tmp_path / "shipped")
    make_model(tmp_path / "shipped" / "body-ct", licence="CC BY-NC 4.0")
    models = control.find_models(*places)
    assert [m.source for m in models[:2]] == ["shipped", "imported"]
    first = models[0]
    name, _, licence = first.lines.splitlines()
    assert (name, licence) == (
        "body-ct (built in)", "⚠ Not commercial: CC BY-NC 4.0",
    )  # fmt: skip
    assert dict(first.facts)["Licence"] == "CC BY-NC 4.0 (not for commercial use)"
    assert control.free_name(places[1], "body-ct") == "body-ct_v2"
    with pytest.raises(JobError, match="comes with Homolog"):
        control.check_deletable(first, [tmp_path])


def test_choices_begin_with_what_is_at_hand(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "ENCODERS", tmp_path / "shipped")
    make_model(tmp_path / "shipped" / "a-mr", modalities={"MR": 3})
    make_model(tmp_path / "shipped" / "body-ct", modalities={"CT": 3}, licence="MIT")
    found = list_embedders(*places)
    names = [(m.name, m.where) for m in found]
    assert names[:4] == [
        ("a-mr", "shipped"), ("body-ct", "shipped"), ("theirs", "library"),
        ("pre", "run"),
    ]  # fmt: skip
    assert found[1].title == "body-ct (built in)"
    assert "Licence: MIT." in found[1].facts
    assert begin_with(found, ["CT"]) == found[3]  # one's own run, as ever
    odd = replace(found[3], kind="classify", modalities=())
    assert begin_with([odd, *found], ["CT"]) == found[3]  # its modality is unknown
    assert begin_with([odd], ["CT"]) == begin_with([odd]) == odd
    at_hand = found[:3]
    assert begin_with(at_hand, ["CT", "OTHER"]) == found[1]
    assert begin_with(at_hand, ["MR"]) == found[0]
    assert begin_with(at_hand) == begin_with(at_hand, ["PET"]) == found[0]
    assert begin_with(found[2:3], ["CT"]) == found[2]
    every = replace(found[0], name="any", modalities=("CT", "MR"))
    assert begin_with([every, *at_hand], ["CT"]) == found[1]  # the one made for it
    assert begin_with([*at_hand, every]) == every
    assert begin_with([]) is None
    there = list_embedders(*places, wanted=tmp_path / "shipped" / "body-ct")
    assert [m.name for m in there].count("body-ct") == 1
