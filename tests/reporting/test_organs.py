"""Separation of organs: against scikit-learn and against counting every pair."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, silhouette_samples

from homolog.reporting.organs import Tokens, drawn, part_of, pca, separation, tsne


def tokens(spread: float, *, seed: int = 0, each: int = 12) -> Tokens:
    """Three organs of four patients around three directions."""
    rng = np.random.default_rng(seed)
    organ = np.tile(np.repeat(np.arange(3), each), 4)
    patient = np.repeat(np.arange(4), 3 * each)
    middle = np.eye(8)[organ]
    vectors = middle + spread * rng.standard_normal((len(organ), 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Tokens(vectors.astype(np.float32), organ, patient, ("a", "b", "c"))


def test_figures_equal_those_of_all_pairs() -> None:
    own = tokens(0.4)
    found = separation(own)
    each = silhouette_samples(own.vectors, own.organ, metric="cosine")
    for k, name in enumerate(own.names):
        assert found.by_organ[name] == pytest.approx(each[own.organ == k].mean())
    assert found.silhouette == pytest.approx(np.mean(list(found.by_organ.values())))
    alike = (own.vectors @ own.vectors.T).astype(float)
    apart = own.patient[:, None] != own.patient[None]
    for a in range(3):
        for b in range(3):
            pairs = apart & (own.organ[:, None] == a) & (own.organ[None] == b)
            assert found.likeness[a, b] == pytest.approx(alike[pairs].mean(), abs=1e-5)
    assert found.within == pytest.approx(np.mean(np.diag(found.likeness)))
    off = found.likeness[~np.eye(3, dtype=bool)]
    assert found.between == pytest.approx(off.mean())
    same = own.organ[:, None] == own.organ[None]
    whole = roc_auc_score(same[apart], alike[apart])
    assert found.auc == pytest.approx(whole, abs=0.01)


def test_what_lies_apart_scores_higher_and_noise_scores_nothing() -> None:
    """Paper: S2DC Fig. 4, 5."""
    tight, loose = separation(tokens(0.05)), separation(tokens(0.8))
    assert tight.silhouette > 0.9 > loose.silhouette
    assert tight.auc > 0.999 > loose.auc
    own = tokens(0.4)
    shuffled = np.random.default_rng(1).permutation(own.organ)
    nothing = separation(Tokens(own.vectors, shuffled, own.patient, own.names))
    assert abs(nothing.auc - 0.5) < 0.03
    assert nothing.silhouette < 0.02


def test_an_organ_of_one_patient_alone_has_no_likeness_to_itself() -> None:
    own = tokens(0.3)
    kept = (own.organ != 2) | (own.patient == 0)
    found = separation(part_of(own, np.flatnonzero(kept)))
    assert np.isnan(found.likeness[2, 2])
    assert np.isfinite(found.likeness[0, 2])
    assert np.isfinite(found.within)
    assert found.to_dict()["likeness"][2][2] is None


def test_planes_keep_organs_together_and_all_organs_are_drawn() -> None:
    """Paper: S2DC Fig. 4, 5."""
    own = tokens(0.15, each=300)
    shown = part_of(own, drawn(own))
    assert len(shown.organ) == 1500
    assert np.bincount(shown.organ).tolist() == [500, 500, 500]
    few = part_of(own, np.arange(0, len(own.organ), 30))
    for places in (tsne(few), pca(few)[0]):
        middles = np.stack([places[few.organ == k].mean(axis=0) for k in range(3)])
        away = np.linalg.norm(places[:, None] - middles[None], axis=2)
        assert (away.argmin(axis=1) == few.organ).mean() > 0.95
    assert 0.0 < pca(few)[1] <= 1.0
    assert np.array_equal(tsne(few), tsne(few))
