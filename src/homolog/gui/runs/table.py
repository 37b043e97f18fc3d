"""The table of the tab Runs: two lines per run and a small curve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QSizePolicy,
    QTableWidget,
)

from homolog.gui.runs.control import COLUMNS
from homolog.gui.runs.painted_chart import SparkDelegate

_TABLE_PX = 260


def runs_table(changed: Callable[[], Any], opened: Callable[[], Any]) -> QTableWidget:
    """An empty table.

    Args:
        changed: Called when another run is chosen.
        opened: Called by a double click or Enter.
    """
    table = QTableWidget(0, len(COLUMNS))
    table.setHorizontalHeaderLabels(list(COLUMNS))
    table.setAccessibleName("Runs")
    table.setToolTip("Double click or Enter shows a training")
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    table.setTabKeyNavigation(False)
    table.setWordWrap(False)
    table.setShowGrid(False)
    table.verticalHeader().setVisible(False)
    header = table.horizontalHeader()
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    header.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
    header.setSectionResizeMode(2, QHeaderView.ResizeMode.Fixed)
    table.setItemDelegateForColumn(2, SparkDelegate(table))
    table.setMinimumHeight(_TABLE_PX)
    table.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Expanding)
    table.itemSelectionChanged.connect(changed)
    table.itemActivated.connect(lambda _: opened())
    fit_table(table)
    return table


def fit_table(table: QTableWidget) -> None:
    """Rows of two lines and a column for the curve, in the font of the moment."""
    metrics = table.fontMetrics()
    rows = table.verticalHeader()
    height = 2 * metrics.lineSpacing() + 10
    if rows.defaultSectionSize() != height:
        rows.setDefaultSectionSize(height)
    wide = metrics.horizontalAdvance("dice 0.000") + 34
    if table.columnWidth(2) != wide:
        table.horizontalHeader().resizeSection(2, wide)
