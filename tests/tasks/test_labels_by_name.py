"""Labels of models, stores and files meet by their names, not by their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from homolog.errors import UnusableInput
from homolog.events import Note, drain
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.label_names import shared_labels
from homolog.losses.segmentation import dice_cross_entropy
from homolog.runs.jobs import job_of
from homolog.scans.names import names_beside, write_names
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store.store import Store
from homolog.tasks.base import Task
from homolog.tasks.classify.truth import slice_truth
from homolog.tasks.segment.network import classes_of, in_model, space_of
from homolog.use.evaluate import evaluate_folder, evaluate_pairs
from homolog.use.predict import predict_scans

AFFINE = Affine.of((1.0, 1.0, 1.0))
SHAPE = (8, 9, 10)


def labels(head: int, tail: int, *, moved: int = 0) -> np.ndarray:
    data = np.zeros(SHAPE, np.int16)
    data[1:4, 2:6, 2 + moved : 7 + moved], data[5:, 6:, 8:] = head, tail
    return data


def write(path: Path, data: np.ndarray, names: Mapping[int, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(LabelMap(data, AFFINE), path)
    write_names(path, names or {})
    return path


def dices(result: Mapping[str, Any]) -> dict[str, float]:
    return {row["name"]: row["dice"] for row in result["rows"]}


def test_predictions_are_scored_by_name(tmp_path: Path) -> None:
    write(tmp_path / "p" / "a.nii.gz", labels(1, 2), {1: "head", 2: "tail"})
    write(tmp_path / "t" / "labelsTr" / "a.nii.gz", labels(2, 1))
    told = {"labels": {"background": 0, "tail": 1, "Head": 2}}
    (tmp_path / "t" / "dataset.json").write_text(json.dumps(told))
    result = drain(evaluate_folder(tmp_path / "p", tmp_path / "t" / "labelsTr"))
    assert dices(result) == {"tail": 1.0, "Head": 1.0}
    assert [row["label"] for row in result["rows"]] == [1, 2]  # the truth's numbers


def test_a_segmentation_of_slicer_meets_the_label_map_of_its_case(tmp_path) -> None:
    names = {1: "head", 2: "tail"}
    write(tmp_path / "p" / "a.seg.nrrd", labels(1, 2), names)
    write(tmp_path / "t" / "a_seg.nii.gz", labels(2, 1), {1: "tail", 2: "head"})
    result = drain(evaluate_folder(tmp_path / "p", tmp_path / "t"))
    assert dices(result) == {"tail": 1.0, "head": 1.0}


def test_what_a_truth_does_not_mark_is_not_scored(tmp_path: Path) -> None:
    names = {1: "liver", 2: "head", 3: "tail"}
    guess = write(tmp_path / "a.nii.gz", labels(2, 3), names)
    right = write(tmp_path / "b.nii.gz", labels(1, 0), {1: "head"})
    guessed = labels(2, 3)
    guessed[0, 0] = 1
    write(guess, guessed, names)
    assert dices(drain(evaluate_pairs({"x": (guess, right)}))) == {"head": 1.0}


def test_names_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    guess = write(tmp_path / "a.nii.gz", labels(1, 0), {1: "tumour"})
    right = write(tmp_path / "b.nii.gz", labels(1, 0), {1: "liver"})
    sentence = r"label 1 is 'liver' in .*b.nii.gz but 'tumour' in .*a.nii.gz"
    with pytest.raises(UnusableInput, match=sentence):
        drain(evaluate_pairs({"x": (guess, right)}))
    (tmp_path / "a.labels.json").unlink()  # then only the number tells
    assert dices(drain(evaluate_pairs({"x": (guess, right)}))) == {"liver": 1.0}


def test_ignored_voxels_count_in_no_score(tmp_path: Path) -> None:
    guess = write(tmp_path / "a.nii.gz", labels(1, 1), {1: "head"})
    right = write(tmp_path / "b.nii.gz", labels(1, 2), {1: "head", 2: "ignore"})
    assert dices(drain(evaluate_pairs({"x": (guess, right)}))) == {"head": 1.0}


def test_shared_labels_of_tables_that_agree_change_nothing() -> None:
    shared = shared_labels(("a", {0: "none", 1: "x", 2: ""}), ("b", {1: "X "}))
    assert (shared.first, shared.second, shared.strangers) == ({}, {}, frozenset())
    assert shared.names == {1: "x"}


def store(names: dict[int, str], digest: str = "h") -> Any:
    return SimpleNamespace(path=Path("other"), hash=digest, label_names=names)


def spec(**names: int) -> dict[str, Any]:
    return {"label_names": {str(v): n for n, v in names.items()}, "label_spaces": []}


def test_a_model_of_one_store_meets_another_store_by_name() -> None:
    model = spec(head=1, tail=2)
    assert space_of(store({1: "Head", 2: "tail"}), model) is None
    assert space_of(store({1: "label 1", 2: "label 2"}), model) is None
    turned = space_of(store({1: "tail", 2: "head", 7: "new"}), model)
    assert turned is not None
    assert turned.values == {1: 2, 2: 1}
    data = np.array([[[0, 1, 2, 7, -1]]], np.int16)
    assert in_model(data, turned).ravel().tolist() == [0, 2, 1, 0, -1]
    with pytest.raises(UnusableInput, match=r"other \(tumour\) are none of the model"):
        space_of(store({1: "tumour"}), model)
    # the very store it learnt from may call them anew
    assert space_of(store({1: "tumour"}), model, learnt_from="h") is None


def test_an_old_store_with_ignore_for_a_class_is_not_learnt_from() -> None:
    card: Any = SimpleNamespace(label_values=(1, 2))
    old = store({1: "head", 2: "ignore"})
    with pytest.raises(UnusableInput, match="run the same prepare again"):
        classes_of([CaseRef(old, card)])


def test_unlabelled_voxels_send_no_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 2, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (1, 2, 4, 4))
    target[0, 0] = -1
    sum(dice_cross_entropy(logits, target)).backward()
    assert logits.grad is not None
    assert float(logits.grad[0, :, 0].abs().max()) == 0.0
    assert float(logits.grad[0, :, 1].abs().min()) > 0.0


def test_a_slice_with_unlabelled_voxels_is_not_known_to_show_nothing() -> None:
    data = np.zeros((4, 3, 3), np.int16)
    data[1, 0, 0], data[2, 0, 0], data[3, :2, 0] = 5, -1, (5, -1)
    card: Any = SimpleNamespace(id="a", has_label=True, shape=data.shape)
    kept: Any = SimpleNamespace(label=lambda _: data)
    found = slice_truth(CaseRef(kept, card))
    assert found is not None
    assert found.tolist() == [0, 1, -1, 1]


class _Fixed(Task):
    def run(self, volume: Volume, *_: Any) -> Any:
        yield Note("labelling")
        names = {1: "rib", 2: "rib", 3: "heart"}
        return LabelMap(labels(1, 2), volume.affine, names, volume.name, volume.meta)


def test_predicted_labels_keep_their_names(tmp_path: Path) -> None:
    scan = tmp_path / "a.nii.gz"
    write_volume(Volume(np.ones((1, *SHAPE), np.int16), AFFINE), scan)
    device = torch.device("cpu")
    model: Any = SimpleNamespace(
        learnt=SimpleNamespace(remark=""), spec={}, device=device
    )
    job = predict_scans(_Fixed.__new__(_Fixed), model, [scan], tmp_path / "out")
    (told,) = drain(job)["predicted"]
    assert told["voxels"] == {"rib": 60 + 18, "heart": 0}  # of both numbers together
    names = names_beside(tmp_path / "out" / "a.nii.gz")
    assert names == {1: "rib", 2: "rib", 3: "heart"}


def test_painted_scans_are_learnt_together_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scans, paints = [], []
    for number, (head, tail) in enumerate(((1, 2), (2, 1))):
        data = rng.normal(0, 5, SHAPE)
        data[labels(1, 0) > 0] += 200
        scan = tmp_path / f"s{number}.nii.gz"
        write_volume(Volume(data.astype(np.int16)[None], AFFINE), scan)
        names = {head: "head", tail: "tail", 3: "ignore"}
        painted = labels(head, tail)
        painted[0, 0, 0] = 3
        scans.append(str(scan))
        paint = write(tmp_path / "paint" / f"s{number}.nii.gz", painted, names)
        paints.append(str(paint))
    asked = {"scans": scans, "labels": paints, "score": False}
    result = drain(job_of("few_voxels")(asked, tmp_path))
    counts = {c["name"]: c["voxels"] for c in result["classes"]}
    assert counts == {"head": 120, "tail": 36}


def test_the_store_of_such_labels_opens(tmp_path: Path) -> None:
    from homolog.store.build import prepare_store

    scan = tmp_path / "scans" / "a.nii.gz"
    write(scan.parent / "labels" / "a.nii.gz", labels(1, 2), {1: "head", 2: "ignore"})
    data = np.random.default_rng(1).integers(0, 99, (1, *SHAPE)).astype(np.int16)
    write_volume(Volume(data, AFFINE), scan)
    drain(prepare_store([scan.parent], tmp_path / "store"))
    opened = Store.open(tmp_path / "store")
    classes = classes_of([CaseRef(opened, card) for card in opened.cards])
    assert classes.names == {1: "head"}
