"""Lists of models and of stores in a real window: what is at hand comes first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_runs import make_model, slow_run

pytest.importorskip("napari")

from learn_fakes import until
from named import nameless

from homolog.gui.shared import model_row, widgets
from homolog.gui.shared.choices import StoreChoice, labelled_words
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.model_row import ModelRow, StoreList
from homolog.model_files import library


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models that come with the package."""
    folder = tmp_path / "shipped"
    monkeypatch.setattr(library, "ENCODERS", folder)
    make_model(folder / "a-mr", modalities={"MR": 3})
    make_model(folder / "body-ct", modalities={"CT": 3})
    return folder


def scan(modality: str) -> Any:
    return SimpleNamespace(metadata={"homolog": {"modality": modality}})


def shown(qtbot: Any, row: ModelRow) -> ModelRow:
    qtbot.addWidget(row)
    row.show()
    row.read()
    until(lambda: row.model.count() > 1)
    return row


def test_a_new_users_list_begins_with_the_one_for_the_open_scan(
    qtbot: Any, home: Path, shipped: Path
) -> None:
    hub = Hub(SimpleNamespace(layers=[scan("CT")]))
    told: list[Any] = []
    row = ModelRow(hub, "hint")
    row.chosen.connect(told.append)
    shown(qtbot, row)
    assert [row.model.itemText(i) for i in range(2)] == [
        "a-mr (built in)",
        "body-ct (built in)",
    ]
    assert told[-1].name == "body-ct"
    make_model(shipped / "both", modalities={"CT": 3, "MR": 3})
    for kinds, name in ((["MR"], "a-mr"), (["CT", "OTHER"], "both")):
        hub.viewer.layers[:] = [scan(kind) for kind in kinds]
        row.read()
        until(lambda name=name: told[-1].name == name)
    (shipped / "both" / "model.json").unlink()
    hub.viewer.layers[:] = [scan("MR")]
    row.read()
    until(lambda: told[-1].name == "a-mr")
    count = len(told) + 1
    row.model.setCurrentIndex(1)
    row.model.activated.emit(1)  # the user's own choice stays
    row.read()
    until(lambda: len(told) > count)
    assert told[-1].name == "body-ct"
    assert nameless(row) == []


def test_ones_own_run_is_chosen_and_the_others_stand_before_it(
    qtbot: Any, home: Path, shipped: Path
) -> None:
    make_model(slow_run(home / "runs" / "mine").folder / "model")
    make_model(home / "models" / "theirs")
    row = shown(qtbot, ModelRow(Hub(SimpleNamespace(layers=[scan("CT")])), "hint"))
    names = [row.model.itemData(i).name for i in range(row.model.count())]
    assert names == ["a-mr", "body-ct", "theirs", "mine"]
    assert row.model.currentData().name == "mine"


def test_doing_without_a_model_stays_the_beginning(
    qtbot: Any, home: Path, shipped: Path
) -> None:
    row = shown(qtbot, ModelRow(Hub(None), "hint", no_model="Intensity only"))
    assert row.model.currentData() is None
    assert row.model.itemData(1).name == "a-mr"


def test_a_list_that_needs_no_model_may_begin_with_the_packages(
    qtbot: Any, home: Path, shipped: Path
) -> None:
    make_model(slow_run(home / "runs" / "mine").folder / "model")
    hub = Hub(SimpleNamespace(layers=[scan("CT")]))
    row = ModelRow(hub, "hint", no_model="Intensity only", shipped_first=True)
    told: list[Any] = []
    row.chosen.connect(told.append)
    shown(qtbot, row)
    assert row.model.currentData().name == "body-ct"
    assert row.by_default
    hub.viewer.layers[:] = [scan("PET")]  # no model of the package is made for it
    row.read()
    until(lambda: told[-1] is None)
    hub.viewer.layers[:] = [scan("MR")]
    row.read()
    until(lambda: told[-1] is not None)
    assert told[-1].name == "a-mr"
    row.model.setCurrentIndex(0)
    row.model.activated.emit(0)  # to do without is a choice, too
    assert not row.by_default
    count = len(told)
    row.read()
    until(lambda: len(told) > count)
    assert told[-1] is None


def test_the_folder_of_models_is_the_terminals(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(None)
    assert hub.models == home / "models"
    library.remember_library(hub.models)
    assert library.library_folder() == home / "models"
    monkeypatch.setenv("HOMOLOG_MODELS", str(tmp_path / "named"))
    assert hub.models == library.library_folder() == tmp_path / "named"


@pytest.fixture
def stores(
    qtbot: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, StoreChoice]:
    """What lies in the home folder, by name; a list also shows what it was told."""
    there = {"organs": StoreChoice(home / "stores" / "organs", labelled=5)}

    def found(_: Path, others: list[Path]) -> list[StoreChoice]:
        elsewhere = [
            StoreChoice(p, labelled=3, problem="" if p.name == "good" else "no store.")
            for p in others
        ]
        return [*there.values(), *elsewhere]

    monkeypatch.setattr(model_row, "list_stores", found)
    return there


def test_another_store_is_chosen_and_what_is_none_is_told(
    qtbot: Any, stores: dict[str, StoreChoice], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    box = StoreList(Hub(None), labelled_words)
    qtbot.addWidget(box)
    chosen: list[Any] = []
    told: list[str] = []
    box.chosen.connect(chosen.append)
    box.told.connect(told.append)
    box.read()
    until(lambda: box.count() == 2)
    assert box.currentText() == "organs (5 labelled scans)"
    answers = [tmp_path / "good", tmp_path / "bad"]
    monkeypatch.setattr(widgets, "ask_folder", lambda *a: a[-1](answers.pop(0)))
    box.activated.emit(1)
    assert box.currentText() == "organs (5 labelled scans)"  # until it is read
    until(lambda: box.store == tmp_path / "good")
    assert chosen == [tmp_path / "good"]
    box.activated.emit(2)
    until(lambda: told == ["no store."])
    assert box.count() == 3
    assert box.store == stores["organs"].path
    stores.clear()
    box.choose(tmp_path / "good")
    until(lambda: box.count() == 2)
    assert box.store == tmp_path / "good"


def test_a_first_entry_stands_for_no_store(
    qtbot: Any, stores: dict[str, StoreChoice], home: Path
) -> None:
    box = StoreList(Hub(None), labelled_words, first="all open scans")
    qtbot.addWidget(box)
    assert (box.store, box.currentText()) == (None, "all open scans")
    chosen: list[Any] = []
    box.chosen.connect(chosen.append)
    box.read()
    until(lambda: box.count() == 3)
    assert box.store is None
    for index in (1, 0):
        box.setCurrentIndex(index)
        box.activated.emit(index)
    assert chosen == [home / "stores" / "organs", None]
