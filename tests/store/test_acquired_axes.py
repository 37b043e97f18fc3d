"""Slices that keep together, however obliquely they lie in the body."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.index.datasets import CaseSource
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store.build import choose_axes, write_store
from homolog.store.cases import case_key
from homolog.store.preprocess import (
    Preprocessing,
    labels_on_grid,
    prepare_volume,
    restore_labels,
)
from homolog.store.store import Store

ACQUIRED = Preprocessing(axes="acquired")
ORDERS = list(itertools.permutations(range(3)))
SIGNS = list(itertools.product((1.0, -1.0), repeat=3))


def turned(seed: int) -> np.ndarray:
    """Any rotation."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


def stack(order, signs, seed: int, shape=(7, 9, 11)) -> Volume:
    """Slices of 6 mm along one array axis, each voxel its own number."""
    spacing = np.array((6.0, 1.0, 1.2))[list(order)]
    direction = (turned(seed) * np.array(signs))[:, list(order)]
    affine = Affine.of(spacing, (3.0, -20.0, 40.0), direction)
    own = tuple(shape[a] for a in order)
    data = np.arange(np.prod(own), dtype=np.int16).reshape(own)
    return Volume(data[None], affine, "stack", "MR")


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ORDERS), st.sampled_from(SIGNS), st.integers(0, 10**6))
def test_slices_become_z_and_every_voxel_keeps_its_place(order, signs, seed) -> None:
    volume = stack(order, signs, seed)
    prepared = prepare_volume(volume, ACQUIRED)
    assert prepared.affine.spacing_mm[0] == pytest.approx(6.0)
    assert prepared.data.shape[1] == 7
    assert prepared.flips == (False, False, False)
    rest = [a for a in prepared.axes if a != prepared.axes[0]]
    assert rest == sorted(rest)
    before = volume.data[0].ravel().argsort()
    after = prepared.data[0].ravel().argsort()
    where = [
        affine.apply(np.stack(np.indices(shape), -1).reshape(-1, 3))[index]
        for affine, shape, index in (
            (volume.affine, volume.shape, before),
            (prepared.affine, prepared.data.shape[1:], after),
        )
    ]
    np.testing.assert_allclose(*where, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ORDERS), st.sampled_from(SIGNS), st.integers(0, 10**6),
    st.sampled_from([None, (6.0, 0.8, 0.9), (4.0, 1.5, 1.5)]),
)  # fmt: skip
def test_labels_come_back_on_the_scans_own_grid(order, signs, seed, spacing) -> None:
    volume = stack(order, signs, seed)
    prepared = prepare_volume(volume, replace(ACQUIRED, spacing_mm=spacing))
    drawn = np.indices(volume.shape).sum(0) // 3
    array = labels_on_grid(LabelMap(drawn, volume.affine), prepared)
    restored = restore_labels(array, prepared, volume)
    assert restored.affine == volume.affine
    assert restored.shape == volume.shape
    apart = np.abs(restored.data - drawn)
    assert apart.max() <= (0 if spacing is None else 2)


def test_cubes_and_single_slices() -> None:
    cube = Affine.of((1.0, 1.0, 1.2), direction=turned(3))
    assert cube.acquired_axes((9, 9, 9)) == cube.closest_axes()
    slice_ = Affine.of((1.0, 1.0, 1.0), direction=turned(4))
    assert slice_.acquired_axes((9, 1, 9)) == ((1, 0, 2), (False,) * 3)


def oblique(angle: float, spacing=(8.0, 1.0, 1.0)) -> tuple[Affine, tuple]:
    """A stack whose normal lies between x and y of the body."""
    a = np.radians(angle)
    normal = np.array([0.1, np.sin(a), np.cos(a)])
    normal /= np.linalg.norm(normal)
    row = np.cross(normal, [1.0, 0, 0])
    row /= np.linalg.norm(row)
    direction = np.stack([normal, np.cross(normal, row), row], axis=1)
    return Affine.of(spacing, direction=direction), (12, 90, 90)


@pytest.mark.parametrize(
    ("angles", "spacing", "axes"),
    [
        ([30, 40, 50, 60, 35], (8.0, 1.0, 1.0), "acquired"),
        ([30, 31, 35, 40, 42], (8.0, 1.0, 1.0), "anatomical"),  # all nearest to x
        ([30, 40, 50, 60, 35], (2.0, 1.0, 1.0), "anatomical"),  # no thick slices
        ([0, 90, 2, 88, 1], (8.0, 1.0, 1.0), "anatomical"),  # not oblique
    ],
)
def test_oblique_stacks_that_disagree_are_kept_as_acquired(
    angles, spacing, axes
) -> None:
    found, why = choose_axes([oblique(angle, spacing) for angle in angles])
    assert found == axes
    assert bool(why) == (axes == "acquired")
    if why:
        assert "x in 3 and y in 2 of 5 scans" in why[0]


def sources(folder: Path, angles: list[float], first: int = 0) -> list[CaseSource]:
    cases = []
    for number, angle in enumerate(angles, first):
        affine, _ = oblique(angle)
        rng = np.random.default_rng(number)
        data = rng.integers(0, 300, (1, 6, 20, 24)).astype(np.int16)
        image, label = folder / f"p{number}.nii.gz", folder / f"l{number}.nii.gz"
        write_volume(Volume(data, affine, f"p{number}", "MR"), image)
        write_labels(LabelMap((data[0] > 150).astype(np.int32), affine), label)
        cases.append(CaseSource(f"p{number}", image, label, "MR", f"p{number}"))
    return cases


def test_a_store_keeps_slices_together_and_says_so(tmp_path: Path) -> None:
    cases = sources(tmp_path, [30, 40, 60, 50])
    result = drain(write_store(cases, tmp_path / "store", axes="auto"))
    assert any("z runs across the slices" in s for s in result["explanation"])
    store = Store.open(tmp_path / "store")
    assert store.preprocessing.axes == "acquired"
    assert {card.shape for card in store.cards} == {(6, 20, 24)}
    for card in store.cards:
        image, label = store.image(card.id)[:], store.label(card.id)
        assert label is not None
        values = np.asarray(image)[0] * card.scale + card.offset
        assert ((values > 150) == (np.asarray(label[:]) == 1)).all()
    # one more case follows; other axes are refused while these stay
    more = sources(tmp_path, [45], first=9)
    drain(write_store(more, tmp_path / "store", axes="auto"))
    assert Store.open(tmp_path / "store").preprocessing.axes == "acquired"
    with pytest.raises(UnusableInput, match="acquired axes, not anatomical"):
        drain(write_store(more, tmp_path / "store", axes="anatomical"))
    former = drain(write_store(cases, tmp_path / "body"))
    assert former["cases"] == 4
    assert Store.open(tmp_path / "body").preprocessing.axes == "anatomical"


def test_stores_prepared_before_there_was_a_choice_are_current(tmp_path: Path) -> None:
    (case,) = sources(tmp_path, [30])
    plain = case_key(case, Preprocessing())
    assert case_key(case, ACQUIRED) != plain
    assert len(plain) == len(case_key(case, ACQUIRED))
