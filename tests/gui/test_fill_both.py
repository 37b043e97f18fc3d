"""Two scans side by side are as large as both views allow."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.components import ViewerModel

from homolog.gui.beside.second_view import body_box, fill_both


def shown(body: tuple[int, int, int], spacing: float, canvas: tuple[int, int]):
    """A viewer's model with a body of so many voxels in the middle of much air."""
    model = ViewerModel()
    data = np.full((40, 100, 120), -1000, np.int16)
    low = [(n - b) // 2 for n, b in zip(data.shape, body, strict=True)]
    data[tuple(slice(a, a + b) for a, b in zip(low, body, strict=True))] = 50
    data[:, 97, 60] = 300  # a wire
    layer = model.add_image(
        data, scale=(spacing,) * 3, contrast_limits=(-160, 240), units=("mm",) * 3
    )
    model.canvas.size = canvas
    return model, layer


def test_the_body_is_found_in_the_air_without_a_wire() -> None:
    _, layer = shown((20, 40, 60), 2.0, (800, 400))
    size = np.ptp(body_box(layer), axis=0)
    np.testing.assert_allclose(size, (20 * 2, 40 * 2, 60 * 2), atol=8)
    layer.contrast_limits = (-2000, 240)  # nothing is air
    np.testing.assert_allclose(np.ptp(body_box(layer), axis=0), (80, 200, 240))
    layer.contrast_limits = (1000, 2000)  # everything is
    np.testing.assert_allclose(np.ptp(body_box(layer), axis=0), (80, 200, 240))


def test_the_larger_body_fills_its_view_and_a_millimetre_is_as_long() -> None:
    one = shown((20, 40, 60), 2.0, (800, 400))
    two = shown((20, 40, 90), 2.0, (800, 400))
    zoom = fill_both([one, two])
    assert one[0].scene.camera.zoom == two[0].scene.camera.zoom == zoom
    np.testing.assert_allclose(zoom, 0.95 * 400 / 180, rtol=0.05)
    narrow = shown((20, 40, 60), 2.0, (800, 150))
    np.testing.assert_allclose(fill_both([one, narrow]), 0.95 * 150 / 120, rtol=0.05)
