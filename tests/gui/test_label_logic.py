"""The Label tab without a window: classes, history, words, models in the lists."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from homolog.gui.label.hand_box import model_name
from homolog.gui.label.learning import BACKGROUND, LEVELS, ClassList, History, Packed
from homolog.gui.label.words import (
    score_line,
    state_line,
    unknown_line,
    warning_lines,
)
from homolog.gui.shared.choices import list_embedders, list_models
from homolog.gui.shared.models import read_model, uses


def test_classes_keep_their_colours_and_names_differ() -> None:
    classes = ClassList()
    second = classes.add()
    third = classes.add()
    assert (second.value, third.value, classes.current) == (2, 3, 3)
    assert len({c.colour for c in classes}) == 4
    assert classes.remove(2) == ""
    assert classes.get(3).colour == third.colour
    assert classes.add().value == 2
    assert classes.get(2).colour == second.colour
    assert "must differ" in classes.rename(2, "background")
    assert "needs a name" in classes.rename(2, "  ")
    classes.counts = {3: 7}
    assert "7 painted voxels" in classes.remove(3)
    assert classes.name_all([3, 9])
    assert classes.names[9] == "structure 9"
    assert [c.value for c in classes.painted([9, 3])] == [3, 9]


def test_classes_of_a_layer_painted_before() -> None:
    classes = ClassList()
    classes.adopt({1: "liver", 4: "Background"}, {1: "#102030"})
    assert classes.names == {1: "liver", 4: "Background"}
    assert classes.get(1).colour == "#102030"
    assert (classes.background, classes.current) == (4, 1)
    classes.counts = {1: 5}
    classes.adopt({1: "other", 2: "spleen", BACKGROUND: "background"})
    assert classes.names[1] == "liver"  # what is painted keeps its name
    assert classes.background == 4
    assert classes.get(BACKGROUND).background is False


def test_ten_rounds_can_be_undone() -> None:
    history = History()
    rounds = [np.full((2, 3, 4), n, np.uint8) for n in range(LEVELS + 3)]
    for labels in rounds:
        history.push({"a": Packed.of(labels)})
    assert history.levels == LEVELS
    target = np.zeros((2, 3, 4), np.uint8)
    history.before()["a"].into(target)
    assert (target == LEVELS + 1).all()
    for expected in range(LEVELS + 1, 1, -1):
        history.undo()["a"].into(target)
        assert (target == expected).all()
    assert history.undo() == {}
    history.push({"b": Packed.of(rounds[0])})
    assert set(history.now()) == {"a", "b"}
    with pytest.raises(ValueError, match="expected the shape"):
        history.now()["a"].into(np.zeros((1, 1, 1), np.uint8))


def test_words_are_plain() -> None:
    score = SimpleNamespace(
        accuracy=0.91, voxels=120, recall={"liver": 1.0, "spleen": 0.5},
        unscored=("aorta",), reason="",
    )  # fmt: skip
    line = score_line(score)
    assert "91% of 120 voxels" in line
    assert "Weakest: spleen 50%" in line
    assert "aorta" in line
    none = SimpleNamespace(accuracy=None, reason="only one class is painted.")
    assert "only one class" in score_line(none)
    assert state_line("", "no way.", "x") == "⚠ No way."
    assert "every voxel becomes" in warning_lines([], has_ground=False)
    assert warning_lines([]) == ""
    assert unknown_line(1234.5, wanted=True).startswith("Wine red: unknown, 1,234 ml")
    assert "second place" in unknown_line(None, wanted=True)
    assert "Nothing is unknown" in unknown_line(0.0, wanted=True)
    assert unknown_line(5.0, wanted=False) == ""


def test_a_painted_model_labels_but_is_no_encoder(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "head.safetensors").write_bytes(b"weights")
    card = {
        "kind": "few_voxels", "weights": "head.safetensors",
        "sha256": {"head.safetensors": "0"}, "label_names": {"1": "liver"},
        "preprocessing": {"spacing_mm": None}, "title": "Few",
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(card))
    (choice,) = list_models(tmp_path / "runs", tmp_path / "models")
    assert choice.title == "mine (1 class, painted, intensity)"
    assert list_embedders(tmp_path / "runs", tmp_path / "models") == []
    model = read_model(folder, folder)
    assert model.damaged == ""
    assert [tab for _, tab, _ in uses(model)] == ["Segment"]
    assert "already" in model_name("mine", tmp_path / "models")
    assert "letters" in model_name("../x", tmp_path / "models")
