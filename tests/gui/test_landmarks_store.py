"""Cases of a store as scans to search: files, features, places. No Qt."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from explore_files import ENCODER, feature_map, unit_features, write_features
from landmark_scans import (
    BLOBS,
    CELLS,
    SHAPE,
    THERE,
    patient,
    place,
    show_blobs,
    store_of,
)

from homolog.errors import UnusableInput
from homolog.features.search import Search
from homolog.gui.landmarks.cohort import (
    CaseSides,
    case_file,
    case_volume,
    find_in_case,
    list_cases,
    source_of,
)
from homolog.gui.landmarks.searching import Side
from homolog.gui.shared.choices import ModelChoice
from homolog.scans.files import read_scan, scan_hash
from homolog.scans.points import NAN, Landmark
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume


@pytest.fixture
def encoder() -> ModelChoice:
    return ModelChoice(
        Path("/run"), "run", "encoder", "resunet", card={"encoder_id": ENCODER}
    )


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    """Three patients, the second with features."""
    found = [patient(tmp_path, number) for number in range(3)]
    show_blobs(tmp_path / "features", found[1], 1, THERE)
    return found


def asked() -> Side:
    """Patient 0 with its blobs, ready to be searched."""
    cells = unit_features(CELLS)
    for index, blob in enumerate(BLOBS):
        cells[blob] = np.eye(16)[index]
    features = feature_map(cells, place(0).coarsen((2, 2, 2)))
    return Side(Search(features), None, (place(0), SHAPE))


def test_cases_with_their_features_but_not_the_query(scans, encoder, tmp_path) -> None:
    store = store_of(scans, tmp_path / "store")
    folder = tmp_path / "features"
    cases = list_cases(store, encoder, folder, scan_hash(scans[0]))
    assert [c.card.id for c in cases] == ["scan_1", "scan_2"]
    assert [c.features is not None for c in cases] == [True, False]
    other = replace(encoder, card={"encoder_id": "another"})
    assert not any(c.features for c in list_cases(store, other, folder))
    with pytest.raises(UnusableInput, match="not a finished store"):
        list_cases(tmp_path, encoder, folder)

    a_mm = tuple(place(0).coarsen((2, 2, 2)).apply(BLOBS[2]))
    mark = Landmark(7, "apex", a_mm, None, NAN, NAN, NAN, False, "searching")
    sides = CaseSides()
    found, picture = find_in_case(sides, asked(), cases[0], mark, (0.0, 80.0))
    true = place(1).coarsen((2, 2, 2)).apply(THERE[2])
    assert np.linalg.norm(np.array(found.b_mm) - true) < 2.5
    assert found.accepted
    assert picture.shape == (64, 64)
    assert 20 < picture[32, 32] < 200  # soft tissue in the window that was given
    side = sides.of(cases[0].features, case_volume(cases[0]))
    assert sides.of(cases[0].features, case_volume(cases[0])) is side  # kept
    with pytest.raises(UnusableInput, match="scan_2 has no features"):
        find_in_case(sides, asked(), cases[1], mark, None)


def test_a_file_is_the_scan_itself_while_it_is_unchanged(
    scans, encoder, tmp_path, monkeypatch
) -> None:
    folder, scratch = tmp_path / "features", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.chdir(tmp_path)
    store = store_of([Path("scan_1.nii.gz"), Path("scan_2.nii.gz")], Path("store"))
    monkeypatch.chdir("/")  # the scans were named from their own folder
    cases = {c.card.id: c for c in list_cases(tmp_path / store, encoder, folder)}
    assert Path(cases["scan_1"].card.source).is_absolute()
    assert source_of(cases["scan_1"]) == scans[1]
    assert case_file(cases["scan_1"], scratch) == scans[1]

    # Gone, and changed: the stored voxels, at the same place.
    scans[1].unlink()
    data = np.zeros((1, *SHAPE), np.int16)
    write_volume(Volume(data, place(2), "scan_2", "CT"), scans[2])
    os.utime(scans[2], (1, 1))
    for case in cases.values():
        assert source_of(case) is None
        path = case_file(case, scratch)
        assert path.parent == scratch
        copy = read_scan(path)
        assert np.array_equal(copy.data, case_volume(case).data)
        assert np.allclose(copy.affine.matrix, case.card.affine.matrix, atol=1e-4)
    # Features of a written case are found again by its name, in another session, too.
    case = cases["scan_2"]
    path = case_file(case, scratch)
    made = write_features(
        folder, path, case.card.affine, case.card.shape, unit_features(CELLS)
    )
    again = {c.card.id: c for c in list_cases(tmp_path / store, encoder, folder)}
    assert again["scan_2"].features == made
    assert json.loads(made.read_text())["encoder_id"] == ENCODER


def test_stored_steps_become_values(scans, encoder, tmp_path) -> None:
    store = store_of(scans[:1], tmp_path / "store")
    (case,) = list_cases(store, encoder, tmp_path / "features")
    plain = case_volume(case)
    assert np.array_equal(plain.data, read_scan(scans[0]).data)
    card = replace(case.card, scale=0.5, offset=3.0)
    assert np.allclose(case_volume(replace(case, card=card)).data, plain.data / 2 + 3)
