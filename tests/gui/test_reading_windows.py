"""Window presets: HU for CT, percentiles for the rest, one choice for all of a kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.components import ViewerModel

from homolog.geometry.affine import Affine
from homolog.gui.reading.windows import (
    CT_WINDOWS,
    OTHER_WINDOWS,
    Windows,
    kind_of,
    windows_for,
)
from homolog.gui.shared.layers import CT_WINDOW_HU, volume_layer
from homolog.scans.volume import Volume


def add(viewer: Any, modality: str, low: float, high: float) -> Any:
    values = np.linspace(low, high, 4 * 5 * 6).reshape(1, 4, 5, 6).astype(np.float32)
    volume = Volume(values, Affine.of((3.0, 2.0, 1.0)), modality, modality)
    data, attributes, _ = volume_layer(volume)
    return viewer.add_image(data, **attributes)


def named(name: str) -> Any:
    return next(w for w in CT_WINDOWS if w.name == name)


def test_presets_are_those_that_radiologists_name() -> None:
    assert named("Soft tissue").limits(None) == CT_WINDOW_HU
    assert named("Lung").limits(None) == (-1350.0, 150.0)
    assert named("Bone").limits(None) == (-500.0, 1300.0)
    assert named("Brain").limits(None) == (0.0, 80.0)
    assert named("Lung").numbers == "W 1500, L -600 HU"
    for windows in (CT_WINDOWS, OTHER_WINDOWS):
        assert len({w.name for w in windows}) == len(windows) <= 9  # keys Alt+1 to 9


def test_a_window_applies_to_all_scans_of_a_kind_and_to_later_ones() -> None:
    viewer, other = ViewerModel(), ViewerModel()
    windows = Windows(viewer)
    windows.also(other)
    first, mr = add(viewer, "CT", -1000, 1500), add(viewer, "MR", 0, 800)
    beside = add(other, "CT", -900, 900)
    was = tuple(mr.contrast_limits)
    viewer.layers.selection.active = first
    assert windows.current() == named("Soft tissue")
    assert windows.show(named("Lung")) == 2
    for layer in (first, beside):
        assert tuple(layer.contrast_limits) == (-1350.0, 150.0)
    assert tuple(mr.contrast_limits) == was
    assert windows.current() == named("Lung")
    later = add(viewer, "CT", -1000, 1500)
    windows.opened(later)
    assert tuple(later.contrast_limits) == (-1350.0, 150.0)
    viewer.layers.selection.active = mr
    assert windows.kind == "MR"
    windows.show(OTHER_WINDOWS[4])
    assert tuple(mr.contrast_limits) == pytest.approx((40.0, 760.0), abs=4)
    assert windows.current() == OTHER_WINDOWS[4]
    assert tuple(first.contrast_limits) == (-1350.0, 150.0)


def test_what_has_no_air_is_no_ct_and_heat_is_no_scan() -> None:
    viewer = ViewerModel()
    assert kind_of(add(viewer, "CT", 0, 255)) == "OTHER"
    assert kind_of(add(viewer, "CT", -1000, 255)) == "CT"
    heat = add(viewer, "MR", 0, 1)
    heat.metadata = {"homolog": {**heat.metadata["homolog"], "derived": True}}
    assert kind_of(heat) == ""
    assert kind_of(viewer.add_labels(np.zeros((2, 2, 2), np.uint8))) == ""
    assert kind_of(viewer.add_image(np.zeros((2, 2, 3)), rgb=True)) == ""
    assert windows_for("CT") is not windows_for("OTHER")


def test_a_constant_scan_has_a_window_all_the_same() -> None:
    viewer = ViewerModel()
    layer = viewer.add_image(np.full((3, 4, 5), 7.0))
    for window in OTHER_WINDOWS:
        low, high = window.limits(layer)
        assert low < high
