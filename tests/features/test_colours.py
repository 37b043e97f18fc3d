"""Main directions of features: the right ones, with signs that repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from homolog.features import of_scans
from homolog.features.of_scans import fit_colours


def test_directions_are_those_of_the_covariance_with_the_largest_entry_positive():
    """Paper: S2DC Fig. 6."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(7, 7)) * np.geomspace(1, 0.05, 7)[:, None]
    cells = (rng.normal(size=(500, 7)) @ mix + 40).T.reshape(7, 5, 10, 10)
    fitted = fit_colours([cells])
    values, vectors = np.linalg.eigh(np.cov(cells.reshape(7, -1)))
    for direction, expected in zip(fitted.directions, vectors.T[::-1], strict=False):
        assert abs(direction @ expected) == pytest.approx(1, abs=1e-5)
        assert direction[np.abs(direction).argmax()] > 0
    shares = values[::-1] / values.sum()
    np.testing.assert_allclose(fitted.explained, shares[:3], rtol=1e-4)
    mirrored = fit_colours([80 - cells])  # the same cloud, turned around its mean
    np.testing.assert_allclose(mirrored.directions, fitted.directions, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 4, 4, 4), (2, 4, 4, 4), (16, 1, 1, 1)])
@pytest.mark.parametrize("same", [True, False])
def test_few_features_or_cells_or_equal_ones_still_give_colours(shape, same):
    cells = np.random.default_rng(1).normal(size=shape)
    if same:
        cells[:] = 2.5
    fitted = fit_colours([cells])
    painted = fitted.paint(cells)
    assert painted.shape == (3, *shape[1:])
    assert np.isfinite(painted).all()
    assert np.isfinite(fitted.explained).all()
    assert fitted.explained.sum() <= 1 + 1e-6


def test_of_a_map_on_disk_a_sample_is_read_not_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_scans, "_CELLS_PER_SCAN", 100)
    values = np.random.default_rng(2).normal(size=(4, 10, 10, 10)).astype(np.float16)
    np.save(tmp_path / "map.npy", values)
    cells = np.load(tmp_path / "map.npy", mmap_mode="r")
    sizes = []
    spread = of_scans._spread

    def watched(*arguments):
        sample = spread(*arguments)
        sizes.append(len(sample))
        return sample

    monkeypatch.setattr(of_scans, "_spread", watched)
    fitted = fit_colours([cells, cells])
    assert sizes == [100, 100]
    every_tenth = values.reshape(4, -1)[:, ::10].astype(np.float64)
    np.testing.assert_allclose(fitted.mean, every_tenth.mean(axis=1), atol=1e-6)
