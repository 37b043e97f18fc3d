"""Small screens, large letters, both themes: every tab is looked at for its faults."""

from __future__ import annotations

import pytest

pytest.importorskip("napari")

from filled_window import filled  # noqa: F401 - a fixture
from learn_fakes import fake_engine, until
from looks import cut_texts, missing_letters, overlaps
from qtpy.QtWidgets import QLabel, QPushButton, QVBoxLayout, QWidget
from steady import places
from test_label_panel import settle

from homolog.gui.dock import PANELS, MainPanel

pytestmark = pytest.mark.usefixtures("workers")
FAULTS = (cut_texts, overlaps, missing_letters)


def rest(tab: QWidget, looks: int = 8) -> None:
    """Wait until nothing moves any more, however slow the machine is."""
    same, last = 0, None
    for _ in range(300):
        settle(0.02)
        now = (places(tab), tab.size(), tab.minimumSize(), tab.isVisible())
        same = same + 1 if now == last else 0
        last = now
        if same >= looks:
            return


def looked_at(panel: MainPanel, what: str) -> list[str]:
    """Faults of all tabs, one sentence each."""
    found = []
    for title, _ in PANELS:
        panel.show_tab(title)
        tab, area = panel.panels[title], panel._areas[title]
        rest(tab)
        for fault in FAULTS:
            found += [f"{what}, {title}, {fault.__name__}: {x}" for x in fault(tab)]
        if aside := area.horizontalScrollBar().maximum():
            found.append(f"{what}, {title}: {aside} px to the side")
    for part in (panel.tabs, panel.strip):
        found += [f"{what}, beside the tabs: {told}" for told in cut_texts(part)]
    return found


def test_nothing_is_cut_or_covered_on_a_small_screen(
    filled,  # noqa: F811
    monkeypatch,
) -> None:
    from napari.settings import get_settings

    fake_engine(monkeypatch)
    panel = filled()
    window, look = panel.window(), get_settings().appearance
    until(lambda: len(panel.hub.viewer.layers) == 3)
    found = []
    for theme in ("dark", "light"):
        for points in (9, 14):
            look.theme, look.font_size = theme, points
            window.resize(1280, 700)
            rest(panel)
            found += looked_at(panel, f"{theme}, {points} points")
            assert window.width() <= 1280
            assert window.height() <= 700
    assert not found, "\n".join(found)


def test_the_looks_find_what_is_wrong(qtbot) -> None:
    tab = QWidget()
    qtbot.addWidget(tab)
    column = QVBoxLayout(tab)
    narrow, fine = QPushButton("a text that is far too long"), QLabel("fine")
    narrow.setFixedWidth(20)
    column.addWidget(narrow)
    column.addWidget(fine)
    cover = QPushButton("over", tab)
    strange = QLabel("\U0010fffd")
    column.addWidget(strange)
    tab.show()
    qtbot.waitExposed(tab)
    cover.setGeometry(fine.geometry())
    assert [x for x in cut_texts(tab) if "far too long" in x]
    assert [x for x in overlaps(tab) if "over" in x]
    assert [x for x in missing_letters(tab) if "10fffd" in x]
