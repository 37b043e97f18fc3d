"""Curves: few points with every peak, drawn seldom."""

from __future__ import annotations

import numpy as np

from homolog.gui.shared.runs import (
    MOST_POINTS,
    Curve,
    Series,
    decimated,
    hover_words,
    log_safe,
    smoothed,
)


def test_a_peak_survives_the_thinning() -> None:
    x = np.arange(100_000.0)
    y = np.sin(x / 5000)
    y[70_123], y[20_456] = 50.0, -50.0
    few_x, few_y = decimated(x, y)
    assert len(few_x) <= MOST_POINTS
    assert (np.diff(few_x) > 0).all()
    assert {50.0, -50.0} <= set(few_y)
    assert (few_x[0], few_x[-1]) == (0, 99_999)


def test_short_curves_stay_as_they_are() -> None:
    x, y = decimated(np.arange(5.0), np.array([1, np.nan, 3, 4, 5.0]))
    assert len(x) == 5
    assert np.isnan(y[1])


def test_a_resumed_session_overwrites_what_it_repeats() -> None:
    series = Series()
    for step in (1, 2, 3, 4):
        series.add(step, step * 1.0)
    series.add(3, 30.0)
    assert series.steps == [1, 2, 3]
    assert series.values == [1, 2, 30]


def test_smoothing_starts_at_the_first_value() -> None:
    y = np.array([4.0, 4.0, np.nan, 0.0])
    assert smoothed(y, 0.0)[3] == 0.0
    soft = smoothed(y, 0.5)
    assert soft[0] == soft[1] == 4.0
    assert 0 < soft[3] < 4
    assert np.isnan(log_safe(np.array([0.0, 1.0]))[0])


def test_values_under_the_mouse() -> None:
    curve = Curve("loss", np.array([10.0, 20.0]), np.array([1.5, 1.25]))
    assert hover_words([curve], 18.0) == "step 20: loss 1.25"
    assert hover_words([], 18.0) == ""


def test_a_chart_draws_only_when_seen_and_seldom(qtbot) -> None:
    from homolog.gui.runs.curves import CurveView

    view = CurveView("Training loss")
    qtbot.addWidget(view)
    points = Curve("loss", np.arange(1.0, 50), np.linspace(3, 0, 49))
    terms = Curve("a", points.x, points.y / 2, "part")
    earlier = Curve("before", points.x, points.y + 1, "earlier")
    view.show_curves([points])
    assert view.drawn == 0  # nobody looks
    assert view._chart is None
    view.resize(300, 260)
    view.show()
    qtbot.waitUntil(lambda: view.drawn == 1, timeout=5000)
    for _ in range(200):  # a flood between two drawings
        view.show_curves([points, terms], earlier)
    assert view.drawn == 1
    qtbot.waitUntil(lambda: view.drawn == 2, timeout=5000)
    assert "before" in view._legend.text()
    view._log.setChecked(True)
    view._smooth.setValue(0)
    view.say_values(10)
    assert view._readout.text().startswith("step 10: before")
    image = view.grab().toImage()
    colours = {image.pixel(x, y) for x in range(60, 290, 3) for y in range(60, 200, 2)}
    assert len(colours) > 3
    view.show_curves([])
    view._draw_if_stale()
    view.hide()
    count = view.drawn
    view.show_curves([points])
    assert view.drawn == count


def test_the_sparkline_delegate_paints(qtbot) -> None:
    from qtpy.QtWidgets import QTableWidgetItem

    from homolog.gui.runs.curves import SPARK_ROLE
    from homolog.gui.runs.panel import runs_table

    table = runs_table(lambda: None, lambda: None)
    qtbot.addWidget(table)
    table.setRowCount(1)
    item = QTableWidgetItem("0.5\ndice 0.8")
    item.setData(SPARK_ROLE, (3.0, 2.0, float("nan"), 1.0))
    table.setItem(0, 2, item)
    table.resize(320, 200)
    table.show()
    assert not table.grab().isNull()
