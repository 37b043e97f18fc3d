"""Sliding-window features: exact where the network is local, joined, bounded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from each import each
from homolog.backbones import build
from homolog.backbones.base import Backbone, BackboneConfig
from homolog.errors import UnusableInput
from homolog.events import Note, Progress, Request, drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import (
    DenseEncoder,
    Scan,
    embed_scan,
    feature_grid,
    feature_rows,
    join_features,
    scan_of_case,
    slide,
    unit_of,
)
from homolog.features.of_scans import fit_colours
from homolog.geometry.affine import Affine
from homolog.methods.base import Embedder
from homolog.model_files.encoder import load_encoder
from homolog.scans.files import read_scan
from homolog.scans.volume import Volume
from homolog.store.learnt_spacing import KEY
from homolog.store.preprocess import ChannelLevels, Intensities


class Local(Backbone):
    """Cells that see their own voxels only: windows cannot change them."""

    def __init__(self) -> None:
        super().__init__(BackboneConfig())
        generator = torch.Generator().manual_seed(3)
        self.fine = nn.Conv3d(1, 5, (1, 2, 2), (1, 2, 2))
        self.coarse = nn.Conv3d(1, 7, (2, 4, 4), (2, 4, 4))
        for weight in self.parameters():
            weight.data.normal_(generator=generator)
        self.channels, self.strides = (5, 7), ((1, 2, 2), (2, 4, 4))
        self.size_divisor = (2, 4, 4)
        self.windows_seen = 0

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        self.windows_seen += len(image)
        return self.fine(image), self.coarse(image)


def scan_of(shape: tuple[int, int, int], seed: int = 0) -> Scan:
    rng = np.random.default_rng(seed)
    data = rng.integers(-900, 900, (1, *shape)).astype(np.int16)
    numbers = Intensities(-1000.0, 1000.0, 0.0, 1000.0)
    return Scan(data, (ChannelLevels("", "CT", 1.0, 0.0, numbers),), "noise")


def features_of(scan, embedder, window, overlap=0.5, batch=2):
    sliding = slide(scan.shape, window, unit_of(embedder), overlap)
    outputs = {
        name: np.zeros(
            (
                *feature_grid(scan.shape, embedder.stride(name)),
                embedder.backbone.channels[i],
            ),
            np.float16,
        )
        for name, i in embedder.maps.items()
    }
    counts = drain(
        feature_rows(scan, embedder, sliding, outputs, torch.device("cpu"), batch)
    )
    return outputs, counts


@each("shape", [(8, 24, 20), (7, 13, 30), (26, 9, 9), (3, 5, 2)])
@each("overlap", [0.0, 0.5])
def test_windows_give_what_the_whole_scan_gives(shape, overlap):
    scan, embedder = scan_of(shape), Embedder(Local(), {"fine": 0, "coarse": 1})
    outputs, _ = features_of(scan, embedder, (4, 8, 12), overlap)
    padded = tuple(-(-n // m) * m for n, m in zip(shape, (2, 4, 4), strict=True))
    whole = embedder(torch.from_numpy(scan.window((0, 0, 0), padded))[None])
    for name, array in outputs.items():
        d, h, w = array.shape[:3]
        expected = whole[name][0].detach().movedim(0, -1)[:d, :h, :w].numpy()
        np.testing.assert_allclose(array, expected, atol=2e-3)


def test_beyond_the_scan_lies_the_darkest_value():
    scan = scan_of((4, 4, 4))
    block = scan.window((2, 0, 0), (4, 4, 4))
    assert np.all(block[:, 2:] == -1.0)
    assert np.allclose(block[:, :2], scan.data[:, 2:] / 1000.0)


def test_constant_windows_are_computed_once():
    scan = scan_of((8, 16, 16))
    scan.data[:] = -1024
    scan.data[:, :, :8, :8] = scan_of((8, 8, 8), 1).data
    backbone = Local()
    embedder = Embedder(backbone, {"fine": 0})
    outputs, counts = features_of(scan, embedder, (8, 8, 8), overlap=0.0)
    assert counts == {"windows": 4, "constant": 3}
    assert (
        backbone.windows_seen == 2 + 0 * counts["constant"]
        or backbone.windows_seen <= 3
    )
    whole = embedder(torch.from_numpy(scan.window((0, 0, 0), (8, 16, 16)))[None])
    expected = whole["fine"][0].detach().movedim(0, -1).numpy()
    np.testing.assert_allclose(outputs["fine"], expected, atol=2e-3)


def test_progress_counts_windows_and_stop_is_obeyed():
    scan, embedder = scan_of((4, 16, 16)), Embedder(Local(), {"fine": 0})
    sliding = slide(scan.shape, (4, 8, 8), unit_of(embedder), 0.0)
    array = np.zeros((4, 8, 8, 5), np.float16)
    job = feature_rows(scan, embedder, sliding, {"fine": array}, torch.device("cpu"))
    first = next(job)
    assert isinstance(first, Progress)
    assert (first.index, first.total) == (1, 4)
    with pytest.raises(StopIteration) as end:
        job.send(Request.STOP)
    assert end.value.value is None


def test_wrong_number_of_channels_is_told():
    scan, embedder = scan_of((4, 8, 8)), Embedder(Local(), {"fine": 0})
    two = Scan(np.concatenate([scan.data] * 2), scan.levels * 2)
    with pytest.raises(UnusableInput, match="takes 1 channel"):
        features_of(two, embedder, (4, 8, 8))


def test_joined_cosine_is_the_mean_of_the_parts():
    rng = np.random.default_rng(0)

    def unit_cells(*shape):
        cells = rng.normal(size=shape)
        return (cells / np.linalg.norm(cells, axis=-1, keepdims=True)).astype(
            np.float16
        )

    a, b = unit_cells(4, 6, 6, 5), unit_cells(4, 6, 6, 3)
    joined = np.zeros((4, 6, 6, 8), np.float16)
    join_features([a, b], [(2, 2, 2), (2, 2, 2)], joined)
    cell, other = joined[1, 2, 3].astype(float), joined[3, 0, 5].astype(float)
    expected = (
        a[1, 2, 3].astype(float) @ a[3, 0, 5] + b[1, 2, 3].astype(float) @ b[3, 0, 5]
    ) / 2
    assert cell @ other == pytest.approx(expected, abs=2e-3)
    assert np.allclose(np.linalg.norm(joined.astype(float), axis=-1), 1, atol=3e-3)


def test_coarse_cells_are_read_at_the_fine_cells_centre():
    # A field linear in z, before the norm: the direction interpolates as its parts do.
    z = np.arange(4.0)
    coarse = np.stack([np.cos(z / 9), np.sin(z / 9)], -1)[:, None, None].astype(
        np.float16
    )
    fine = np.zeros((8, 1, 1, 1), np.float16) + np.float16(1)
    joined = np.zeros((8, 1, 1, 3), np.float16)
    join_features([fine, coarse], [(1, 1, 1), (2, 1, 1)], joined)
    angle = np.arctan2(
        joined[:, 0, 0, 2].astype(float), joined[:, 0, 0, 1].astype(float)
    )
    centre = (np.arange(8) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(angle, np.clip(centre, 0, 3) / 9, atol=2e-3)


def test_colours_repeat_and_share_their_meaning():
    rng = np.random.default_rng(1)
    tissue = rng.normal(size=(4, 16))
    maps = [
        tissue[rng.integers(0, 4, (5, 6, 7))].transpose(3, 0, 1, 2)
        + 0.01 * rng.normal(size=(16, 5, 6, 7))
        for _ in range(2)
    ]
    colours = fit_colours(maps)
    painted = [colours.paint(m) for m in maps]
    assert painted[0].shape == (3, 5, 6, 7)
    assert 0 <= painted[0].min() <= painted[0].max() <= 1
    again = fit_colours(maps).paint(maps[0])
    np.testing.assert_array_equal(again, painted[0])
    one = np.abs(maps[0] - tissue[2][:, None, None, None]).max(0) < 0.1
    two = np.abs(maps[1] - tissue[2][:, None, None, None]).max(0) < 0.1
    np.testing.assert_allclose(
        painted[0][:, one].mean(1), painted[1][:, two].mean(1), atol=0.03
    )
    assert colours.explained.sum() > 0.95
    np.testing.assert_allclose(
        colours.directions @ colours.directions.T, np.eye(3), atol=1e-5
    )


def test_a_2d_encoder_embeds_a_volume_slice_by_slice() -> None:
    torch.manual_seed(0)
    backbone = build(
        "resnet2d",
        {"widths": [8, 16], "stage_blocks": [1, 1], "block": "basic", "norm": "group"},
    ).eval()
    embedder, scan = Embedder(backbone, {"features": 1}), scan_of((3, 40, 24))
    whole, counts = features_of(scan, embedder, (1, 32, 16))
    assert counts["windows"] % 3 == 0
    for z in range(3):
        alone = Scan(scan.data[:, z : z + 1], scan.levels, "slice")
        found, _ = features_of(alone, embedder, (1, 32, 16))
        gap = np.abs(whole["features"][z] - found["features"][0]).max()
        assert gap < 2e-3  # float16
    with pytest.raises(ValueError, match="is 2D and needs views of one slice"):
        features_of(scan, embedder, (2, 32, 16))


def _knowing(path, mm):
    """An encoder whose card says the voxel size it learnt at."""
    loaded = load_encoder(path)
    told = {"smallest": [mm] * 3, "largest": [mm] * 3}
    return replace(loaded, card={**loaded.card, KEY: told if mm else None})


def test_scans_and_cases_are_brought_to_the_encoders_voxel_size(encoder, phantom_store):
    loaded = _knowing(encoder, 8.0)
    dense = DenseEncoder.of(loaded, EmbedConfig(), torch.device("cpu"))
    case = phantom_store.cards[0]
    own = read_scan(case.source)
    half = own.affine @ Affine.shift((-0.25,) * 3) @ Affine.scale((0.5, 0.5, 0.5))
    fine = own.data
    for axis in (1, 2, 3):
        fine = np.repeat(fine, 2, axis)
    fine = Volume(fine, half, "fine", "CT")
    expected = drain(embed_scan(own, dense))
    stream, notes = embed_scan(fine, dense), []
    while True:
        try:
            event = next(stream)
        except StopIteration as stop:
            found = stop.value
            break
        notes += [event.text] if isinstance(event, Note) else []
    assert notes == [
        "fine: its voxels of 4 mm were brought to 8 mm, the size the model learnt at."
    ]
    assert found.affine.close_to(expected.affine, found.data.shape[1:], 0.01)
    cosine = (found.data.astype(float) * expected.data).sum(0)
    assert np.median(cosine) > 0.9
    # a case that its store keeps at another size
    odd = replace(case, affine=case.affine @ Affine.scale((1.0, 2.0, 1.0)))
    scan, affine = scan_of_case(phantom_store, odd, dense.learnt)
    assert affine.spacing_mm == pytest.approx((8.0, 8.0, 8.0))
    assert scan.shape == (case.shape[0], 2 * case.shape[1], case.shape[2])
    same, affine = scan_of_case(phantom_store, case, dense.learnt)
    assert affine == case.affine
    assert same.shape == case.shape


def test_features_are_found_again_only_for_the_same_learnt_size(encoder):
    known = [_knowing(encoder, mm) for mm in (8.0, 4.0, None)]
    cpu, config = torch.device("cpu"), EmbedConfig()
    assert len({DenseEncoder.of(one, config, cpu).key for one in known}) == 3


def test_an_encoder_that_does_not_know_its_voxel_size_says_so_once(encoder):
    loaded = load_encoder(encoder)
    dense = DenseEncoder.of(loaded, EmbedConfig(), torch.device("cpu"))
    told = [*dense.warn(), *replace(dense, window=(32, 32, 32)).warn()]
    assert [note.level for note in told] == ["warning"]
    assert "does not say at which voxel size it learnt" in told[0].text
