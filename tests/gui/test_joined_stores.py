"""Several stores for one fine-tuning: what the form says is what the engine does."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homolog.gui.learn.control import (
    FinetuneWish,
    how_they_fit,
    joined_labels,
    labels_counted,
    teaching_problem,
    what_is_learnt,
)
from homolog.gui.shared.choices import ClassCount, StoreChoice, read_store
from homolog.store.preprocess import Preprocessing, differing_settings

RECIPE = Preprocessing(spacing_mm=(1.5, 1.5, 1.5))


def store(path: str, **classes: int) -> StoreChoice:
    """A store whose labels, numbered from 1, are so called and seen in so many."""
    found = tuple(
        ClassCount(value, name.replace("_", " "), cases, 10.0)
        for value, (name, cases) in enumerate(classes.items(), 1)
    )
    most = max(classes.values(), default=0)
    return StoreChoice(
        Path(path), most + 1, most, most, most, classes=found, preprocessing=RECIPE
    )


ABDOMEN = store("/data/abdomen", liver=8, spleen=7)
CHEST = store("/data/chest", lung=4, Liver=3)


def films(path: str, *classes: tuple[str, int], several: bool = False) -> StoreChoice:
    count = sum(n for _, n in classes)
    return StoreChoice(
        Path(path), count, scan_classes=classes, classed=count, class_teachable=count,
        several=several, preprocessing=RECIPE,
    )  # fmt: skip


def test_labels_that_choose_the_weights_are_counted() -> None:
    two = [replace(ABDOMEN, held_out=3), replace(CHEST, held_out=2)]
    told = labels_counted("segment", two, 1.0, 16)
    assert told == (
        "12 labelled scans to learn from and 5 more to choose the weights by "
        "(Validate cases): 17 in all."
    )
    assert "About 3 labelled scans" in labels_counted("segment", two, 0.25, 0)
    assert "and 2 more" in labels_counted("segment", two, 0.25, 2)
    assert "the last ones are kept" in labels_counted("segment", two, 1.0, None)
    assert "the last ones are kept" in labels_counted("segment", [ABDOMEN], 1.0, 16)
    assert labels_counted("segment", [], 1.0, 16) == ""
    some = labels_counted("segment", two, 1.0, 16, 3)
    assert some.startswith("Scans of 3 patients to learn from and 5 more")
    visits = [dataclasses.replace(s, label_patients=2) for s in two]
    told = labels_counted("segment", visits, 1.0, 16)
    assert told.startswith("12 labelled scans of 4 patients to learn from")


def test_labels_of_one_name_are_one_class_and_tell_their_stores() -> None:
    title, lines = what_is_learnt("segment", [ABDOMEN, CHEST])
    assert title == "3 classes, 12 labelled scans"
    assert lines.splitlines() == [
        "liver: 8 scans (abdomen), 3 scans (chest)",
        "spleen: 7 scans (abdomen)",
        "lung: 4 scans (chest)",
        "Where a store does not annotate a class, nothing is learnt about it there.",
    ]
    assert (
        how_they_fit("segment", [ABDOMEN, CHEST])
        == "Learnt from several stores, by name: liver."
    )


def test_one_store_is_told_as_ever() -> None:
    title, lines = what_is_learnt("segment", [ABDOMEN])
    assert title == "2 classes, 8 labelled scans"
    assert lines == "liver: 8 scans, 10.0 ml\nspleen: 7 scans, 10.0 ml"
    assert how_they_fit("segment", [ABDOMEN]) == ""
    assert what_is_learnt("segment", []) == ("", "")
    assert what_is_learnt("classify", [ABDOMEN]) == ("", "")


def test_labels_without_a_name_stay_apart_and_it_is_said() -> None:
    one, two = store("/a/store", label_1=4), store("/b/store", label_1=2)
    joined = joined_labels([one, two])
    assert [c.line for c in joined] == [
        "label 1 of a/store: 4 scans (a/store)",
        "label 1 of b/store: 2 scans (b/store)",
    ]
    assert how_they_fit("segment", [one, two]).startswith(
        "No class has the same name in two stores. Labels without a name stay apart;"
    )
    assert "(Data, Label names)" in how_they_fit("segment", [one, two])


def test_the_form_names_the_classes_that_the_engine_will_name(
    phantom_store: Any, three_patients: Any, tmp_path: Path
) -> None:
    """Through a link, too: the engine goes by the folder it leads to."""
    from homolog.feed.reading import CaseRef
    from homolog.store.store import Store
    from homolog.tasks.segment.network import classes_of

    opened = []
    for name, made in (("a", phantom_store), ("b", three_patients)):
        folder = tmp_path / name / "store"
        folder.mkdir(parents=True)
        (folder / "cases").symlink_to(made.path / "cases")
        contents = json.loads((made.path / "store.json").read_text())
        contents["label_names"] |= {"1": "label 1", "2": f"organ {name}"}
        (folder / "store.json").write_text(json.dumps(contents))
        (tmp_path / f"link_{name}").symlink_to(folder)
        opened.append(Store.open(folder))
    chosen = [read_store(tmp_path / name) for name in ("link_a", "link_b")]
    assert chosen[0].preprocessing == phantom_store.preprocessing
    engine = classes_of([CaseRef(s, card) for s in opened for card in s.cards])
    told = joined_labels(chosen)
    assert [c.name for c in told] == list(engine.names.values())
    assert {"label 1 of a/store", "label 1 of b/store", "organ b"} <= {
        c.name for c in told
    }
    for space, store in zip(engine.spaces, ("link_a", "link_b"), strict=True):
        taught = {engine.names[value] for value in space.values.values()}
        assert taught == {c.name for c in told if store in dict(c.scans)}


def test_stores_prepared_otherwise_are_told_with_the_one_that_counts() -> None:
    other = replace(
        CHEST,
        preprocessing=Preprocessing(
            spacing_mm=(3.0, 1.0, 1.0), window_hu=(-200.0, 300.0), modality="CT"
        ),
    )
    assert how_they_fit("segment", [other, ABDOMEN]).splitlines()[1] == (
        "⚠ The stores were prepared with different settings (voxel size and range of "
        "CT values): new scans will be prepared as those of chest, the store ticked "
        "first."
    )
    assert "those of abdomen" in how_they_fit("segment", [ABDOMEN, other])
    assert differing_settings([RECIPE, replace(RECIPE, modality="MR")]) == []
    assert differing_settings([RECIPE, RECIPE, replace(RECIPE, spacing_mm=None)]) == [
        "spacing_mm"
    ]


def test_each_of_several_stores_must_teach_something(tmp_path: Path) -> None:
    bare = StoreChoice(tmp_path / "bare", cases=3, learnable=3)
    assert FinetuneWish("segment", (ABDOMEN, CHEST)).problem() == ""
    told = FinetuneWish("segment", (ABDOMEN, bare)).problem()
    assert told == (
        "No scan of bare has labels. Build the store again with a folder of label "
        "maps, or untick it."
    )
    held = replace(CHEST, teachable=0)
    assert "none is left" in teaching_problem("segment", [ABDOMEN, held])
    (tmp_path / "link").symlink_to(tmp_path / "bare")
    twin = replace(ABDOMEN, path=tmp_path / "link")
    told = teaching_problem("segment", [replace(ABDOMEN, path=bare.path), twin])
    assert told.endswith("are the same store: untick one.")
    assert how_they_fit("segment", [ABDOMEN, held]) == ""  # the problem is told
    broken = StoreChoice(Path("broken"), problem="no store.json.")
    assert "no store.json" in teaching_problem("segment", [ABDOMEN, broken])


def test_classes_of_whole_scans_are_joined_too() -> None:
    one = films("/a/one", ("ill", 4), ("well", 2))
    two = films("/a/two", ("ill", 1), ("worse", 3))
    title, lines = what_is_learnt("classify", [one, two])
    assert title == "3 classes of whole scans"
    assert lines.splitlines() == [
        "ill: 4 scans (one), 1 scan (two)", "well: 2 scans (one)",
        "worse: 3 scans (two)",
    ]  # fmt: skip
    assert (
        how_they_fit("classify", [one, two])
        == "Learnt from several stores, by name: ill."
    )
    assert teaching_problem("classify", [one, two]) == ""
    marks = films("/a/marks", ("a", 2), ("no finding", 3), several=True)
    title, lines = what_is_learnt("classify", [marks, films("/a/b", ("None", 2))])
    assert title == "1 finding, any or none per scan"
    assert lines.splitlines()[-1] == "no finding: 3 scans (marks), 2 scans (b)"


def test_stores_of_one_class_each_are_joined_with_a_warning() -> None:
    ill, well = films("/a/ill", ("ill", 4)), films("/a/well", ("well", 2))
    assert "needs scans of two classes, ill has ill" in teaching_problem(
        "classify", [ill]
    )
    assert teaching_problem("classify", [ill, well]) == ""
    assert "tell the stores apart" in how_they_fit("classify", [ill, well])
    assert "No scan of abdomen has a class" in teaching_problem(
        "classify", [ill, ABDOMEN]
    )
    held = replace(well, class_teachable=0)
    assert "All scans of well" in teaching_problem("classify", [ill, held])


@pytest.mark.parametrize("count", [30, 31])
def test_long_lists_of_classes_end_with_a_number(count: int) -> None:
    many = store("/a/many", **{f"organ_{n}": 1 for n in range(count)})
    lines = what_is_learnt("segment", [many, ABDOMEN])[1].splitlines()
    assert lines[-2] == f"and {count + 2 - 30} more"
    assert len(lines) == 32
