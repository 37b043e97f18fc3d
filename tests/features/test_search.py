"""The coarse-to-fine search against comparing with every cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from homolog.backbones import build
from homolog.config import to_dict
from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.search import Search, body_of, match_points, query_at
from homolog.geometry.affine import Affine
from homolog.model_files.encoder import load_encoder
from homolog.model_files.folder import save_model
from homolog.phantom.phantom import make_phantom
from homolog.scans.volume import FeatureMap


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two phantom patients, their features by random weights and their bodies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build("resunet", {"channels": [8, 16, 16]})
    card = {
        "kind": "encoder",
        "backbone": {"name": "resunet", "config": to_dict(backbone.config)},
        "embedding": {"maps": {"fine": 0, "features": 1}, "heads": []},
        "preprocessing": {"modality": "CT"},
        "window": [48, 48, 48],
    }
    folder = tmp_path_factory.mktemp("encoder") / "model"
    loaded = load_encoder(save_model(folder, backbone.state_dict(), card))
    encoder = DenseEncoder.of(loaded, EmbedConfig(overlap=0.0), torch.device("cpu"))
    found = []
    for seed in (1, 2):
        volume = make_phantom(seed).volume
        features = drain(embed_scan(volume, encoder))
        found.append((volume, features, body_of(volume, features)))
    return found


def smooth_map(shape, size, seed=0, width=2.0):
    rng = np.random.default_rng(seed)
    cells = rng.standard_normal((size, *shape), dtype=np.float32)
    cells = ndimage.gaussian_filter(cells, (0, width, width, width))
    cells /= np.linalg.norm(cells, axis=0)
    return FeatureMap(cells.astype(np.float16), Affine.of((2.0, 2.0, 2.0)))


def body_points(pair, count):
    _, features, body = pair
    rng = np.random.default_rng(3)
    cells = np.argwhere(body)
    chosen = cells[rng.choice(len(cells), count, replace=False)]
    return features.affine.apply(chosen + rng.uniform(-0.3, 0.3, chosen.shape))


def test_agrees_with_reading_everything_on_phantoms(pair):
    (_, source, _), (_, target, body) = pair
    queries = query_at(source, body_points(pair[0], 200))
    search = Search(target)
    assert np.prod(search._blocks) > 4 * 1024  # it really leaves most blocks out
    for where in (None, body):
        quick = search.find(queries, where=where)
        slow = search.find(queries, where=where, exhaustive=True)
        gap = np.array(
            [s.similarity - q.similarity for q, s in zip(quick, slow, strict=True)]
        )
        assert gap.min() > -1e-6  # never higher
        apart = np.linalg.norm(
            [np.subtract(q.mm, s.mm) for q, s in zip(quick, slow, strict=True)], axis=1
        )
        same = apart < 1e-3
        assert same.mean() >= 0.95
        margins = np.array(
            [q.margin - s.margin for q, s in zip(quick, slow, strict=True)]
        )[same]
        assert margins.min() > -1e-6
        assert (margins < 1e-3).mean() >= 0.95


def test_exhaustive_is_match_points(pair):
    (_, source, _), (_, target, _) = pair
    mm = body_points(pair[0], 5)
    found = Search(target).find(query_at(source, mm), apart_mm=30.0, exhaustive=True)
    assert found == match_points(source, target, mm, apart_mm=30.0)


def test_a_cell_finds_itself_wherever_it_lies():
    features = smooth_map((21, 22, 23), 16)
    search = Search(features)
    index = np.array([[0, 0, 0], [20, 21, 22], [3, 4, 8], [11, 7, 19], [20, 0, 12]])
    mm = features.affine.apply(index)
    found = search.find(query_at(features, mm))
    assert np.abs(np.array([m.mm for m in found]) - mm).max() < 1.01  # half a cell
    assert min(m.similarity for m in found) > 0.998


def test_nothing_is_found_outside_the_mask():
    features = smooth_map((20, 24, 28), 16)
    where = np.zeros((20, 24, 28), bool)
    where[:, :, 20:] = True
    queries = query_at(features, features.affine.apply([[5, 5, 5], [10, 12, 24]]))
    search = Search(features)
    quick = search.find(queries, where=where)
    slow = search.find(queries, where=where, exhaustive=True)
    for match, other in zip(quick, slow, strict=True):
        assert match.mm[2] >= 2.0 * 19.5
        assert match.similarity <= other.similarity + 1e-6
    assert quick[1].similarity > 0.998
    with pytest.raises(UnusableInput, match="some of them true"):
        search.find(queries, where=np.zeros_like(where))


def test_the_second_place_lies_apart():
    """Two equal bumps: the margin is nought only where both may be chosen."""
    affine = Affine.of((4.0, 4.0, 4.0))
    query = np.zeros(8, np.float32)
    query[0] = 1.0
    cells = np.zeros((8, 16, 16, 32), np.float32)
    cells[1] = 1.0
    for x, top in ((4, 1.0), (25, 0.9)):
        cells[:2, 8, 8, x] = top, np.sqrt(1 - top**2)
    search = Search(FeatureMap(cells, affine))
    near, far = (search.find(query[None], apart_mm=d)[0] for d in (20.0, 100.0))
    np.testing.assert_allclose(near.mm, affine.apply([8, 8, 4]), atol=1e-6)
    assert near.margin == pytest.approx(0.1, abs=1e-6)
    assert far.margin == pytest.approx(1.0, abs=1e-6)


def test_other_features_are_refused():
    with pytest.raises(UnusableInput, match="different encoders"):
        Search(smooth_map((8, 8, 8), 8)).find(np.ones((1, 6), np.float32))


def test_a_body_holds_its_lungs_but_no_air(pair):
    volume, _, body = pair[0]
    phantom = make_phantom(1)
    labels = phantom.labels.data[::2, ::2, ::2]
    lungs = np.isin(labels, (5, 6))
    assert body[lungs].mean() > 0.98
    air = ndimage.minimum_filter(volume.data[0] < -900, 5)[::2, ::2, ::2]
    corner = np.zeros_like(air)
    corner[:, :4, :4] = True
    assert not body[air & corner].any()
    assert 0.2 < body.mean() < 0.9
