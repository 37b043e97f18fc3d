"""The demo as a job: complete, resumable, honest about what it shows."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from homolog.demo.demo import job, table_lines
from homolog.events import Request, Saved, Started, Stopped, drain

TINY = {
    "patients": 5,
    "tests": 2,
    "labelled": 1,
    "shape": [32, 40, 40],
    "spacing_mm": [8.0, 8.0, 8.0],
    "device": "cpu",
    "pretrain": {
        "method": {"size": [16, 16, 16], "token_stride": 4},
        "backbone": {"channels": [8, 16, 16]},
        "training": {
            "minutes": 0, "steps": 2, "batch_size": 1, "dry_run_steps": 0,
            "log_every": 1,
        },
    },
    "finetune": {
        "backbone": {"channels": [8, 16, 16]},
        "task_config": {"window": [16, 24, 24], "validate_cases": 1},
        "training": {
            "minutes": 0, "steps": 2, "batch_size": 1, "dry_run_steps": 0,
            "log_every": 1,
        },
    },
}  # fmt: skip
FIGURES = (
    "dice", "worst_dice", "landmark_error_mm", "landmark_median_mm",
    "landmarks_within_10_mm", "similarity_contrast", "same_organ_auc",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A demo that was stopped while it made patients, and then continued."""
    folder = tmp_path_factory.mktemp("demo")
    first = job(TINY, folder)
    while next(first).__class__ is Started:
        pass
    assert isinstance(first.send(Request.STOP), Stopped)
    with pytest.raises(StopIteration) as end:
        next(first)
    assert end.value.value["stopped"] is True
    events, second = [], job(TINY, folder)
    while True:
        try:
            events.append(next(second))
        except StopIteration as stop:
            return folder, stop.value, events


def test_every_stage_leaves_what_its_command_would_leave(finished):
    folder, _, _ = finished
    for path in (
        "scans/dataset.json", "scans/landmarks/phantom_004.csv", "store/store.json",
        "pretrain/model/encoder.safetensors", "scratch/model/model.json",
        "finetuned/model/model.json", "results.json", "report.html", "overview.png",
    ):  # fmt: skip
        assert (folder / path).is_file(), path
    # Two test patients by two encoders, and the one labels are carried from.
    assert len(list((folder / "features").glob("*.features.npy"))) == 5
    for method in ("grey", "features"):
        assert len(list((folder / "carried" / method).glob("*.nii.gz"))) == 2


def test_the_summary_holds_every_figure_and_is_json(finished):
    folder, result, events = finished
    assert result["stopped"] is False
    for name in FIGURES:
        controls = {"pretrained", "scratch" if "dice" in name else "random"}
        assert set(result[name]) == controls
    assert 0 <= result["dice"]["scratch"] <= 1
    assert result["landmark_error_mm"]["random"] > 0
    text = (folder / "results.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert json.loads(text)["dice"] == result["dice"]
    assert any(isinstance(e, Saved) and e.what == "report" for e in events)


def test_both_fine_tunings_do_the_same_work(finished):
    folder, result, _ = finished
    names = ("pretrain", "scratch", "scratch_2", "finetuned", "finetuned_2")
    assert set(result["steps"]) == set(names)
    assert {result["steps"][name] for name in names[1:]} == {2}
    cards = [
        json.loads((folder / name / "model" / "model.json").read_text(encoding="utf-8"))
        for name in ("scratch", "finetuned")
    ]
    assert cards[0]["cases"] == cards[1]["cases"]
    assert len(cards[0]["cases"]["train"]) == 1
    seconds = [
        json.loads((folder / name / "model" / "model.json").read_text(encoding="utf-8"))
        for name in ("scratch_2", "finetuned_2")
    ]
    assert seconds[0]["cases"] == seconds[1]["cases"]
    both = result["dice_by_training"]
    for name in ("scratch", "pretrained"):
        assert len(both[name]) == 2
        assert result["dice"][name] == pytest.approx(sum(both[name]) / 2)
    assert cards[0]["training"] == cards[1]["training"] or (
        {**cards[0]["training"], "steps": 0} == {**cards[1]["training"], "steps": 0}
    )
    assert cards[0]["encoder"]["source"] == "scratch"
    assert cards[1]["encoder"]["method"] == "s2dc"


def test_test_patients_are_never_learnt_from(finished):
    folder, _, _ = finished
    store = json.loads((folder / "store" / "store.json").read_text(encoding="utf-8"))
    tests = {n for n, c in store["cases"].items() if c["split"] == "test"}
    assert tests == {"phantom_003", "phantom_004"}
    for name in ("pretrain", "scratch", "finetuned"):
        card = json.loads(
            (folder / name / "model" / "model.json").read_text(encoding="utf-8")
        )
        hashes = {
            json.loads(
                (folder / "store" / "cases" / t / "card.json").read_text(
                    encoding="utf-8"
                )
            )["source_hash"]
            for t in tests
        }
        assert not hashes & set(card["trained_on"])


def test_the_pair_of_models_is_compared_patient_by_patient(finished):
    _, result, _ = finished
    gains = [d["pretrained"] - d["scratch"] for d in result["dice_by_patient"].values()]
    paired = result["paired"]
    assert paired["of"] == len(gains) == 2
    assert paired["wins"] == sum(gain > 1e-9 for gain in gains)
    assert paired["mean"] == pytest.approx(sum(gains) / 2)
    assert min(gains) - 1e-9 <= paired["low"] <= paired["high"] <= max(gains) + 1e-9
    line = table_lines(result)[-2]
    assert line.startswith("Dice after 2 steps")
    assert f"ahead on {paired['wins']} of 2; 2 trainings of each, " in line
    assert sum(paired["by_training"]) / 2 == pytest.approx(paired["mean"])


def test_labels_are_carried_from_the_patient_that_was_learnt_from(finished):
    folder, result, _ = finished
    card = json.loads(
        (folder / "scratch" / "model" / "model.json").read_text(encoding="utf-8")
    )
    carried = result["carried"]
    assert [carried["source"]] == card["cases"]["train"]
    # One anatomy, bent: carried labels know most of it, a network of two steps nothing.
    assert carried["dice"]["grey"] > 0.5 > result["dice"]["scratch"]
    assert set(carried["dice"]) == set(carried["seconds"]) == {"grey", "features"}
    assert (
        f"Dice {carried['dice']['grey']:.3f} by grey values" in table_lines(result)[-1]
    )


def test_the_report_shows_pictures_and_needs_nothing_else(finished):
    folder, result, _ = finished
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 6
    assert "<svg" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert f"{result['dice']['pretrained']:.3f}" in text


def test_the_table_shows_both_columns(finished):
    _, result, _ = finished
    lines = table_lines(result)
    assert "not pretrained" in lines[0]
    assert f"{result['dice']['scratch']:.3f}" in lines[1]
    assert len(lines) == 9
    empty = {**result, "dice": {"scratch": None, "pretrained": 0.5}}
    assert re.search(r"-\s+0\.500$", table_lines(empty)[1])


def test_a_finished_demo_runs_through_again_without_learning(
    finished, monkeypatch, tmp_path
):
    folder, result, _ = finished
    # beside it, an encoder of the package: here the same one again
    shutil.copytree(folder / "pretrain" / "model", tmp_path / "twin")
    monkeypatch.setattr("homolog.model_files.library.ENCODERS", tmp_path)
    again = drain(job(TINY, folder))
    for name, value in again["shipped"]["twin"].items():
        assert value == result[name]["pretrained"]
    assert table_lines(again)[-3].startswith("twin (comes with the package")
    assert again["dice"] == result["dice"]
    assert again["same_organ_auc"] == result["same_organ_auc"]
