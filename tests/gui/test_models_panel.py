"""The tab Models: search, import by drop, export, delete."""

from __future__ import annotations

from pathlib import Path

import pytest
from dropping import drop
from named import nameless
from toy_runs import make_model, slow_run

pytest.importorskip("napari")


from homolog.gui.models import panel as module
from homolog.gui.models.panel import ModelsPanel
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.widgets import Answer
from homolog.model_files import library

pytestmark = pytest.mark.usefixtures("workers")


@pytest.fixture
def panel(qtbot, home: Path, monkeypatch: pytest.MonkeyPatch) -> ModelsPanel:
    hub = Hub(None)
    monkeypatch.setattr(hub, "engine_missing", list)
    monkeypatch.setattr(hub, "want_schema", lambda: None)
    panel = ModelsPanel(hub)
    hub.setParent(panel)
    qtbot.addWidget(panel)
    panel.resize(320, 700)
    panel.show()
    return panel


def filled(qtbot, panel: ModelsPanel, home: Path) -> None:
    make_model(slow_run(home / "runs" / "pre").folder / "model")
    make_model(
        slow_run(home / "runs" / "organs").folder / "model", kind="segment",
        label_names={"1": "liver"},
    )  # fmt: skip
    panel.shown()
    qtbot.waitUntil(lambda: len(panel.models) == 2, timeout=10_000)


def test_no_model_is_a_sentence_and_a_button(qtbot, panel: ModelsPanel) -> None:
    panel.shown()
    qtbot.waitUntil(panel._empty.isVisible, timeout=10_000)
    assert "needs no labels" in panel._empty.text()
    assert not panel.list.isVisible()


def test_cards_and_search(qtbot, panel: ModelsPanel, home: Path) -> None:
    filled(qtbot, panel, home)
    panel.search.setText("liver")
    assert [m.name for m in panel.shown_models] == ["organs"]
    assert "Labels: liver" in panel._card.text()
    panel.search.setText("nothing like that")
    assert panel._card.text() == "No model has these words."
    assert not panel.buttons["use"].isEnabled()
    panel.visit({"model": str(home / "runs" / "pre")})
    qtbot.waitUntil(
        lambda: (m := panel.chosen()) is not None and m.name == "pre", timeout=10_000
    )
    assert "Voxel size: 0.8 x 0.8 x 1.5 mm" in panel._card.text()
    assert nameless(panel) == []
    assert panel.minimumSizeHint().width() <= 320


def test_our_own_folders_are_imported_by_dropping(
    qtbot, panel: ModelsPanel, home: Path, tmp_path: Path
) -> None:
    theirs = make_model(tmp_path / "stick" / "lungs")
    assert drop(panel, theirs)
    qtbot.waitUntil(lambda: "Imported as lungs" in panel._news.text(), timeout=10_000)
    assert (home / "models" / "lungs" / "model.json").is_file()
    assert drop(panel, theirs)
    qtbot.waitUntil(lambda: "lungs_v2" in panel._news.text(), timeout=10_000)
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"")
    assert not drop(panel, scan)
    panel.visit({"import": str(scan)})
    assert "is no model" in panel._news.text()


def test_a_foreign_file_that_tells_its_network_is_imported_unasked(
    qtbot, panel: ModelsPanel, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "swin unetr.pt").write_bytes(b"x")
    assert drop(panel, tmp_path / "swin unetr.pt")
    assert not panel.form.isVisible()
    assert panel.helper is not None
    assert panel.helper._config["backbone"] is None
    qtbot.waitUntil(
        lambda: "Imported as swin-unetr, a swin" in panel._news.text(), timeout=30_000
    )
    assert not panel.form.isVisible()
    qtbot.waitUntil(
        lambda: (m := panel.chosen()) is not None and m.name == "swin-unetr",
        timeout=10_000,
    )


def test_a_foreign_file_that_does_not_tell_is_asked_about(
    qtbot, panel: ModelsPanel, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "odd net.pt").write_bytes(b"asks")
    assert drop(panel, tmp_path / "odd net.pt")
    qtbot.waitUntil(panel.form.isVisible, timeout=30_000)
    assert "in no layout that is known" in panel.form.about.text()
    assert "was not imported" in panel._news.text()
    assert panel.form.name.text() == "odd-net"
    assert nameless(panel) == []
    panel.form.settings.setText("feature_size")
    panel.form.go.click()
    assert panel.form.trouble.text().startswith("⚠")
    panel.form.settings.setText("feature_size=48")
    panel.form.network.setCurrentText("vit")
    panel.form.go.click()
    assert panel.helper is not None
    assert panel.helper._config["settings"] == {"feature_size": 48}
    assert panel.helper._config["backbone"] == "vit"
    qtbot.waitUntil(lambda: "Imported as odd-net" in panel._news.text(), timeout=30_000)
    assert not panel.form.isVisible()


def test_weights_and_folders_are_exported(
    qtbot, panel: ModelsPanel, home: Path, tmp_path: Path
) -> None:
    filled(qtbot, panel, home)
    model = panel.models[0]
    panel.export_folder(model, tmp_path / "out")
    qtbot.waitUntil(lambda: (tmp_path / "out" / "model.json").is_file(), timeout=10_000)
    panel.export_weights(model, tmp_path / "w")
    qtbot.waitUntil(lambda: "w.safetensors" in panel._news.text(), timeout=30_000)
    assert (tmp_path / "w.safetensors").is_file()


def test_other_programs_forms_are_offered_and_written(
    qtbot, panel: ModelsPanel, home: Path, tmp_path: Path
) -> None:
    """Each has its line in the menu, and goes to the worker."""
    filled(qtbot, panel, home)
    model = panel.models[0]
    menu = module.export_menu(panel, model)
    texts = " ".join(action.text() for action in menu.actions())
    for words in ("safetensors", "MONAI bundle", "ONNX", "TorchScript", "nnU-Net",
                  "Hugging Face"):  # fmt: skip
        assert words in texts
    usable = {action.text().split()[0]: action for action in menu.actions()[3:]}
    assert not usable["nnU-Net"].isEnabled()  # toy models are no resenc
    assert "own network" in usable["nnU-Net"].toolTip()
    assert usable["Card,"].isEnabled()
    menu.close()
    panel.export_as(model, tmp_path / "hub", "huggingface")
    assert panel.helper is not None
    assert panel.helper._config["kind"] == "huggingface"
    assert panel.helper._config["out"].endswith("hub")  # a folder: no suffix
    qtbot.waitUntil(lambda: "Saved" in panel._news.text(), timeout=30_000)


def test_without_the_engine_it_says_so(
    qtbot, panel: ModelsPanel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(qtbot, panel, home)
    monkeypatch.setattr(panel.hub, "engine_missing", lambda: ["torch"])
    panel.export_weights(panel.models[0], home / "w")
    assert "needs the training engine" in panel._news.text()
    assert panel.helper is None


def test_what_is_built_in_is_shown_and_stays(
    qtbot, panel: ModelsPanel, home: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(library, "ENCODERS", tmp_path / "shipped")
    own = make_model(tmp_path / "shipped" / "body-ct", licence="CC BY-NC 4.0")
    make_model(slow_run(home / "runs" / "pre").folder / "model")
    panel.shown()
    qtbot.waitUntil(lambda: len(panel.models) == 2, timeout=10_000)
    assert panel.list.item(0).text().splitlines()[::2] == [
        "body-ct (built in)", "⚠ Not commercial: CC BY-NC 4.0",
    ]  # fmt: skip
    assert "Licence: CC BY-NC 4.0 (not for commercial use)" in panel._card.text()
    assert panel.buttons["use"].isEnabled()
    assert not panel.buttons["delete"].isEnabled()
    panel.list.setCurrentRow(1)
    assert panel.buttons["delete"].isEnabled()
    panel.take_in(own)  # a copy gets a name of its own
    qtbot.waitUntil(lambda: (home / "models" / "body-ct_v2").is_dir(), timeout=10_000)


def test_deleting_a_model_asks_first(
    qtbot, panel: ModelsPanel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(qtbot, panel, home)
    binned: list[Path] = []
    monkeypatch.setattr(module, "to_trash", lambda x: binned.append(x) or "away")
    asked: list[str] = []

    def ask(parent: object, question: object) -> Answer:
        asked.append(str(question))
        return Answer("keep" if len(asked) == 1 else "delete")

    panel.ask = ask
    model = panel.chosen()
    slow_run(home / "runs" / "later", encoder=str(model.path))
    panel.act("delete")
    qtbot.waitUntil(lambda: len(asked) == 1, timeout=10_000)
    assert "What began with it keeps its own weights: later." in asked[0]
    assert binned == []
    panel.act("delete")
    qtbot.waitUntil(lambda: len(binned) == 1, timeout=10_000)
    assert binned[0].name == "model"
