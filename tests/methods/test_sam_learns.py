"""SAM finds places again: the proof tests L-T7 and L-T9, on patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.backbones import build
from homolog.config import from_dict
from homolog.events import drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder, embed_scan
from homolog.features.search import body_of, match_points
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.landmarks.scores import deformed_copy
from homolog.methods.anatomical_embedding import (
    AnatomicalEmbedding,
    AnatomicalEmbeddingConfig,
)
from homolog.scans.files import read_scan
from homolog.scans.volume import FeatureMap, Volume
from homolog.store.store import Store

SIZE = (24, 24, 24)
STEPS = 60  # 19 mm; 70 mm untrained, 110 mm by intensities
SETTINGS = {
    "size": SIZE, "coarse_stride": 8, "width": 16, "dim": 16, "anchors": 64,
    "hardest": 256, "negatives": 64, "coarse_hardest": 16, "coarse_negatives": 8,
    "global_negatives": 16, "temperature": 0.2,
}  # fmt: skip


def new_method() -> AnatomicalEmbedding:
    torch.manual_seed(0)
    backbone = build("resunet", {"channels": [8, 16, 32]})
    return AnatomicalEmbedding(backbone, from_dict(AnatomicalEmbeddingConfig, SETTINGS))


def trained(store: Store, left_out: str) -> AnatomicalEmbedding:
    method = new_method()
    cases = [CaseRef(store, card) for card in store.cards if card.id != left_out]
    feed = Feed(cases, method.views(), batch_size=2, seed=0, threads=0)
    optimiser = torch.optim.AdamW(method.parameters(), 3e-3)
    for step in range(STEPS):
        views = feed.views(feed.batch(step), "cpu")
        loss = torch.stack(list(method.losses(views, step / STEPS).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(step / STEPS)
    return method


def dense(method: AnatomicalEmbedding, store: Store) -> DenseEncoder:
    return DenseEncoder(
        method.embedder().eval(), store.preprocessing, SIZE, "test",
        EmbedConfig(), torch.device("cpu"),
    )  # fmt: skip


def grey_patches(volume: Volume) -> FeatureMap:
    """Raw intensities: 3 x 3 x 3 voxels around each, of mean 0 and length 1."""
    padded = np.pad(volume.data[0].astype(np.float32), 1, mode="edge")
    d, h, w = volume.shape
    shifts = np.ndindex(3, 3, 3)
    rows = np.stack([padded[z : z + d, y : y + h, x : x + w] for z, y, x in shifts])
    rows -= rows.mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=0), 1e-3)
    return FeatureMap(rows, volume.affine)


def test_l_t9_places_of_an_unseen_patient_are_found_again(
    phantom_store: Store, phantom_folder: Path
) -> None:
    """Paper: SAM matching."""
    name = phantom_store.cards[-1].id
    scan = read_scan(phantom_folder / "imagesTr" / f"{name}_0000.nii.gz")
    copy, deformation = deformed_copy(scan, 1)

    def error_mm(source: FeatureMap, target: FeatureMap) -> float:
        found = match_points(source, target, points)
        true = deformation.to_copy(points)
        gaps = np.linalg.norm(np.array([m.mm for m in found]) - true, axis=1)
        return float(gaps.mean())

    def by(method: AnatomicalEmbedding) -> float:
        encoder = dense(method, phantom_store)
        maps = [drain(embed_scan(v, encoder)) for v in both]
        return error_mm(*maps)

    both = (scan, copy)
    grey = grey_patches(scan)
    cells = np.argwhere(body_of(scan, grey))
    chosen = np.random.default_rng(0).permutation(len(cells))[:60]
    points: NDArray[np.float64] = scan.affine.apply(cells[chosen].astype(np.float64))
    learnt, random = by(trained(phantom_store, name)), by(new_method())
    raw = error_mm(grey, grey_patches(copy))
    assert learnt < 0.7 * random
    assert learnt < 0.7 * raw


def test_l_t7_a_scan_matched_with_itself(
    phantom_store: Store, phantom_folder: Path
) -> None:
    name = phantom_store.cards[0].id
    scan = read_scan(phantom_folder / "imagesTr" / f"{name}_0000.nii.gz")
    encoder = dense(new_method(), phantom_store)
    features = drain(embed_scan(scan, encoder))
    cells = np.argwhere(body_of(scan, features))[::37].astype(np.float64)
    shift = np.random.default_rng(0).uniform(-0.2, 0.2, cells.shape)
    points = features.affine.apply(cells + shift)
    found = match_points(features, features, points)
    gaps = features.affine.inverse().apply(np.array([m.mm for m in found]))
    assert len(points) > 20
    assert (np.abs(gaps - cells - shift) <= 1.0 + 1e-6).all()
    at = match_points(features, features, features.affine.apply(cells))
    assert min(m.similarity for m in at) > 0.999
