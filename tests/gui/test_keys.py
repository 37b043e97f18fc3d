"""Keys of our own: only with Shift, only while visible, nobody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")

from napari.components import ViewerModel
from napari.utils.key_bindings import coerce_keybinding
from qtpy.QtWidgets import QWidget

from homolog.gui.shared import keys
from homolog.gui.shared.hub import Hub

# What the design plans (anchors 5.6); panels add them as they are made.
PLANNED = ["Shift-F", "Shift-N", "Shift-M", "Shift-G", "Shift-H", "Shift-T", "Shift-R",
           "Shift-S"]  # fmt: skip


@pytest.fixture
def hub(qtbot, home: Path) -> Hub:
    return Hub(ViewerModel())


def press(hub: Hub, key: str) -> None:
    hub.viewer.keymap[coerce_keybinding(key)](hub.viewer)


def test_a_key_works_only_while_the_panel_is_visible(hub: Hub) -> None:
    done: list[str] = []
    keys.add(hub, "Shift-F", "find similar here", lambda: done.append("found"))
    assert not hub.viewer.keymap
    keys.keys_of(hub).set_active(True)
    press(hub, "Shift-F")
    assert done == ["found"]
    keys.add(hub, "Shift-F", "find again", lambda: done.append("again"))
    press(hub, "Shift-F")
    assert done == ["found", "again"]
    assert keys.keys_of(hub).lines() == [("Shift+F", "find again")]
    keys.keys_of(hub).set_active(False)
    assert not hub.viewer.keymap
    keys.keys_of(hub).set_active(True)
    keys.keys_of(hub).clear()
    assert not hub.viewer.keymap
    assert keys.keys_of(hub).lines() == []


def test_a_key_of_one_tab_waits_for_it(hub: Hub, qtbot) -> None:
    tab = QWidget()
    qtbot.addWidget(tab)
    keys.add(hub, "Shift-R", "segment", lambda: None, while_shown=tab)
    keys.keys_of(hub).set_active(True)
    assert not hub.viewer.keymap
    tab.show()
    keys.keys_of(hub).refresh()
    assert list(hub.viewer.keymap) == [coerce_keybinding("Shift-R")]
    tab.hide()
    keys.keys_of(hub).refresh()
    assert not hub.viewer.keymap


def test_two_tabs_may_share_a_key(hub: Hub, qtbot) -> None:
    done: list[str] = []
    tabs = [QWidget(), QWidget()]
    for number, tab in enumerate(tabs):
        qtbot.addWidget(tab)
        keys.add(
            hub, "Shift-N", f"next {number}", lambda n=number: done.append(f"{n}"),
            while_shown=tab,
        )  # fmt: skip
    keys.keys_of(hub).set_active(True)
    for shown, hidden in ((0, 1), (1, 0), (0, 1)):
        tabs[hidden].hide()
        tabs[shown].show()
        keys.keys_of(hub).refresh()
        press(hub, "Shift-N")
    assert done == ["0", "1", "0"]
    words = [line for _, line in keys.keys_of(hub).lines()]
    assert words == ["next 0", "next 1"]
    keys.keys_of(hub).remove("Shift-N")
    assert not hub.viewer.keymap


def test_a_key_of_another_plugin_stays_theirs(hub: Hub) -> None:
    def theirs(_: Any) -> None:
        pass

    hub.viewer.bind_key("Shift-H", theirs)
    keys.add(hub, "Shift-H", "hide", lambda: None)
    keys.add(hub, "Shift-V", "view", lambda: None)  # napari's own
    keys.keys_of(hub).set_active(True)
    assert hub.viewer.keymap[coerce_keybinding("Shift-H")] is theirs
    assert coerce_keybinding("Shift-V") not in hub.viewer.keymap
    lines = dict(keys.keys_of(hub).lines())
    assert "another plugin" in lines["Shift+H"]
    assert "toggle unselected visibility" in lines["Shift+V"]
    keys.keys_of(hub).set_active(False)
    assert hub.viewer.keymap[coerce_keybinding("Shift-H")] is theirs


def test_only_shift_and_a_letter_may_be_taken(hub: Hub) -> None:
    for key in ("F", "Control-F", "Shift-1", "Shift-Control-F", "1"):
        with pytest.raises(ValueError, match="Shift-LETTER"):
            keys.add(hub, key, "x", lambda: None)
    keys.add(hub, "Escape", "clear the query", lambda: None)


def test_an_error_becomes_a_message(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(hub, "say", lambda text, level="info": said.append(text))

    def fail() -> None:
        raise RuntimeError("no scan is open")

    keys.add(hub, "Shift-F", "find similar here", fail)
    keys.keys_of(hub).set_active(True)
    press(hub, "Shift-F")
    assert said == ["find similar here did not work: no scan is open"]


def test_no_planned_key_is_one_of_naparis() -> None:
    from napari.utils.shortcuts import default_shortcuts

    taken = {binding for keys_ in default_shortcuts.values() for binding in keys_}
    assert not {coerce_keybinding(key) for key in PLANNED} & taken
