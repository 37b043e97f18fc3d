"""The manifest: valid, every command imports, settings stand where they are read."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

npe2 = pytest.importorskip("npe2")
pytest.importorskip("napari")

from homolog.gui import window  # noqa: E402
from homolog.gui.files import reader  # noqa: E402

TOP = Path(__file__).parents[2]
SETTINGS = {
    ("folders", "home"): "", ("compute", "device"): "auto",
    ("viewing", "offer_association"): True,
    ("viewing", "hide_patient_text"): True, ("session", "autosave_minutes"): 2,
    ("session", "close_answer"): "ask",
}  # fmt: skip
MANIFEST = npe2.PluginManifest.from_file(TOP / "napari.yaml")
COMMANDS = {c.id: c for c in MANIFEST.contributions.commands}


def test_the_manifest_is_valid() -> None:
    MANIFEST.validate_imports  # noqa: B018 - there, and used by npe2 validate
    assert MANIFEST.name == "napari-homolog"
    widgets = MANIFEST.contributions.widgets
    assert [w.display_name for w in widgets] == ["Homolog"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_imports(name: str) -> None:
    module, _, function = COMMANDS[name].python_name.partition(":")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not written yet")
    assert callable(getattr(importlib.import_module(module), function))
    assert COMMANDS[name].title


def test_menus_and_contributions_name_known_commands() -> None:
    c = MANIFEST.contributions
    used = [r.command for r in c.readers] + [w.command for w in c.writers]
    used += [s.command for s in c.sample_data] + [w.command for w in c.widgets]
    for entries in c.menus.values():
        used += [e.command for e in entries if getattr(e, "command", None)]
    assert set(used) <= set(COMMANDS)


def test_settings_are_those_that_are_read() -> None:
    found = {
        (category, name): prop.default
        for category, page in MANIFEST.contributions.configurations.items()
        for name, prop in page.properties.items()
    }
    assert found == SETTINGS
    page = MANIFEST.contributions.configurations["session"]
    assert page.properties["close_answer"].enum == ["ask", "keep", "stop"]


def test_associated_endings_are_ours() -> None:
    patterns = set(MANIFEST.contributions.readers[0].filename_patterns)
    assert set(reader.PATTERNS) <= patterns
    pictures = {"*.png", "*.jpg", "*.tif", "*.tiff"}
    assert not patterns & pictures


def test_commands_send_to_their_tabs(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, object]] = []
    monkeypatch.setattr(window, "_show", lambda *a: sent.append((a[0], a[1:])))
    for show in (window.show_data, window.show_runs, window.open_scans):
        show()
    assert [title for title, _ in sent] == ["Data", "Runs", "Data"]
    assert sent[2][1] == ({"ask": "files"},)
