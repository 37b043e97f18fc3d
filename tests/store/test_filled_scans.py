"""Scans with NaN borders: refused, or taken as asked and told."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from homolog.config import from_dict, to_dict
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.scans.volume import Volume
from homolog.store.build import prepare_store
from homolog.store.preprocess import Preprocessing, prepare_volume
from homolog.store.store import Store


def bordered(seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(100, 20, (12, 10, 10))
    values[:3] = np.nan
    values[-1, 0, 0] = np.inf
    return values.astype(np.float32)


def run(job):
    events = []
    try:
        while True:
            events.append(next(job))
    except StopIteration as end:
        return end.value, [str(getattr(e, "text", "")) for e in events]


def test_nan_is_filled_with_the_least_value_and_told() -> None:
    values = bordered()
    volume = Volume(values[None], Affine.of((1, 1, 1)), "a", "MR")
    with pytest.raises(UnusableInput, match="NaN or infinite"):
        prepare_volume(volume, Preprocessing())
    found = prepare_volume(volume, Preprocessing(fill_nan=True))
    least = float(values[np.isfinite(values)].min())
    assert found.note == f"301 values (25 %) were no numbers, now {least:g}"
    seen = found.levels[0].values(found.data)[0]
    lost = ~np.isfinite(values)
    step = found.scale
    assert np.abs(seen[lost] - least).max() <= step
    assert np.abs(seen[~lost] - values[~lost]).max() <= step
    empty = Volume(np.full((1, 4, 4, 4), np.nan), Affine.of((1, 1, 1)), "a", "MR")
    with pytest.raises(UnusableInput, match="no finite value"):
        prepare_volume(empty, Preprocessing(fill_nan=True))


def test_a_store_remembers_that_it_fills(tmp_path: Path) -> None:
    for n in range(2):
        image = nib.Nifti1Image(bordered(n).transpose(2, 1, 0), np.eye(4))
        nib.save(image, tmp_path / f"p{n}.nii.gz")
    empty = np.full((5, 5, 5), np.nan, np.float32)
    nib.save(nib.Nifti1Image(empty, np.eye(4)), tmp_path / "nan.nii.gz")
    with pytest.raises(UnusableInput, match="NaN or infinite"):
        run(prepare_store([tmp_path], tmp_path / "store"))
    recipe = Preprocessing(fill_nan=True)
    result, notes = run(
        prepare_store([tmp_path], tmp_path / "store", preprocessing=recipe)
    )
    assert result["cases"] == 2
    assert [Path(r["path"]).name for r in result["rejected"]] == ["nan.nii.gz"]
    assert sum("301 values (25 %) were no numbers" in note for note in notes) == 2
    assert Store.open(tmp_path / "store").preprocessing.fill_nan


def test_recipes_of_before_keep_their_hash() -> None:
    assert "fill_nan" not in Preprocessing().settings()
    plain = to_dict(Preprocessing())
    del plain["fill_nan"]
    assert from_dict(Preprocessing, plain, where="x") == Preprocessing()


@pytest.mark.parametrize(
    ("kind", "value"),
    [(np.float64, 1e300), (np.float64, -1e308), (np.float32, 3e38), (np.int32, 2**30)],
)
def test_huge_values_are_prepared_without_a_warning(kind, value) -> None:
    data = np.random.default_rng(0).integers(0, 100, (1, 8, 9, 10)).astype(kind)
    data[0, 0, 0, 0] = value
    if kind is np.float32:
        data[0, 1, 1, 1] = -value
    volume = Volume(data, Affine.of((1, 1, 1)), "a", "MR")
    for size in (None, (2.0, 2.0, 2.0)):  # warnings are errors here
        found = prepare_volume(volume, Preprocessing(spacing_mm=size))
        assert np.isfinite(found.normalised()).all()
