"""Folds show all that is in them, however narrow the dock is."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("napari")

from qtpy.QtWidgets import QApplication, QVBoxLayout, QWidget

from homolog.gui.shared.widgets import fold_of, lay_out_again, sentence, tell


def test_an_open_fold_shows_every_line_of_its_words(qtbot: Any) -> None:
    dock = QWidget()
    qtbot.addWidget(dock)
    dock.setFixedWidth(240)
    column = QVBoxLayout(dock)
    words, fold = sentence("Words"), fold_of("Classes")
    fold.addWidget(words)
    column.addWidget(fold)
    column.addStretch(1)
    tell(words, "liver: 8 scans (abdomen)")
    dock.resize(240, 800)
    dock.show()
    QApplication.processEvents()
    assert fold.content().height() == 0
    fold.expand(animate=False)
    QApplication.processEvents()
    before = words.height()
    lines = [
        f"organ {n}: 8 scans (a store of long name), 4 scans (b)" for n in range(9)
    ]
    tell(words, "\n".join(lines))
    lay_out_again(fold)
    QApplication.processEvents()
    assert words.heightForWidth(words.width()) > 5 * before
    assert words.height() >= words.heightForWidth(words.width())
    fold.collapse(animate=False)
    QApplication.processEvents()
    assert fold.content().height() == 0
    lay_out_again(fold)
    assert not fold.isExpanded()
