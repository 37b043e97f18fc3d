"""Several images of a case: found together, checked for one grid, kept with names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.index.index import index_sources
from homolog.scans.channels import frames_of, grouped, read_channels
from homolog.scans.volume import Channel, Volume
from homolog.scans.write import write_volume
from homolog.store.build import prepare_store
from homolog.store.preprocess import (
    Preprocessing,
    in_network_units,
    in_units,
    prepare_volume,
)
from homolog.store.store import Store

SHAPE = (9, 10, 11)
GRID = Affine.of((3.0, 1.0, 1.0))


def values(seed: int, high: float = 900.0, low: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(int(low), int(high), SHAPE).astype(np.int16)


def put(path: Path, data: np.ndarray, affine: Affine = GRID) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data if data.ndim == 4 else data[None]
    write_volume(Volume(data, affine), path)
    return path


def dataset(root: Path, names: dict[str, str], key: str = "channel_names") -> None:
    raw = {key: names, "labels": {"background": 0, "a": 1}}
    (root / "dataset.json").write_text(json.dumps(raw))


def found(source: Path, **more: Any) -> Any:
    return drain(index_sources([source], **more))


def test_a_file_of_four_axes_is_one_case_or_a_scan_of_each(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    data = np.stack([values(1), values(2, 50)])
    put(tmp_path / "imagesTr" / "b_1.nii.gz", data)
    dataset(tmp_path, {"0": "T1w", "1": "FLAIR"}, key="modality")
    (case,) = found(tmp_path).cases
    assert [(c.name, c.modality, c.frame) for c in case.channels] == [
        ("T1w", "MR", 0), ("FLAIR", "MR", 1),
    ]  # fmt: skip
    assert case.modality == "MR"
    apart = found(tmp_path, channels="separate").cases
    assert [c.id for c in apart] == ["b_1_0000", "b_1_0001"]
    read = read_channels(apart[1].channels)
    assert np.array_equal(read.data[0], data[1])
    assert len({c.subject for c in apart}) == 1  # one person, one split
    drain(prepare_store([tmp_path], tmp_path / "apart", channels="separate"))
    store = Store.open(tmp_path / "apart")
    assert [card.channels for card in store.cards] == [1, 1]
    assert store.cards[0].source_hash != store.cards[1].source_hash


def test_a_time_series_stays_refused(tmp_path: Path) -> None:
    data = np.stack([values(i) for i in range(3)])
    path = put(tmp_path / "bold.nii.gz", data)
    assert frames_of(path) == 3
    put(tmp_path / "plain.nii.gz", values(5))
    (refused,) = found(tmp_path).rejected
    assert refused.code in ("4d", "vector")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Affine.of((3.0, 1.0, 1.0), (6.0, 0.0, 0.0)), "lies up to 6 mm away"),
        (None, "9 x 10 x 11"),
    ],
)
def test_channels_of_other_grids_are_told_case_by_case(
    tmp_path: Path, other: Affine | None, words: str
) -> None:
    for case in ("a", "b"):
        put(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", values(hash(case) % 97))
    put(tmp_path / "imagesTr" / "a_0001.nii.gz", values(3))
    moved = values(4) if other else values(4)[:5]
    put(tmp_path / "imagesTr" / "b_0001.nii.gz", moved, other or GRID)
    dataset(tmp_path, {"0": "T1", "1": "T2"})
    index = found(tmp_path)
    assert [c.id for c in index.cases] == ["a"]
    (refused,) = index.rejected
    assert refused.code == "channel_grid"
    assert words in refused.reason
    assert "T2" in refused.reason


def test_a_manifest_names_the_images_of_a_case(tmp_path: Path) -> None:
    put(tmp_path / "p1" / "t1.nii.gz", values(1))
    put(tmp_path / "p1" / "m.nii.gz", np.zeros(SHAPE, np.int16))  # an empty mask
    put(tmp_path / "p2" / "t1.nii.gz", values(2))
    (tmp_path / "cases.csv").write_text(
        "image,channels,id,class\n"
        "p1/t1.nii.gz|p1/m.nii.gz,T1|mask,one,yes\n"
        "p2/t1.nii.gz|p2/m.nii.gz,T1|mask,two,no\n"
    )
    index = found(tmp_path / "cases.csv")
    (case,) = index.cases
    assert (case.id, case.target, case.modality) == ("one", "yes", "MR")
    assert [c.name for c in case.channels] == ["T1", "mask"]
    assert [Path(r.path).name for r in index.rejected] == ["m.nii.gz"]


def test_each_channel_is_normalised_by_its_own_modality(tmp_path: Path) -> None:
    ct = np.random.default_rng(0).integers(-1100, 1500, SHAPE).astype(np.int16)
    pet = np.random.default_rng(1).random(SHAPE).astype(np.float32) * 7.0
    told = [{"name": "CT", "modality": "CT"}, {"name": "PET", "modality": "PET"}]
    both = np.stack([ct.astype(np.float32), pet])
    volume = Volume(both, GRID, "x", "OTHER", {"channels": told})
    whole = prepare_volume(volume, Preprocessing())
    assert whole.modality == "OTHER"
    for number, (data, kind) in enumerate(((ct, "CT"), (pet, "PET"))):
        alone = prepare_volume(Volume(data[None], GRID, "x", kind), Preprocessing())
        assert np.array_equal(alone.data[0], whole.data[number])
        assert alone.intensity == whole.levels[number].intensity
        assert np.array_equal(alone.normalised()[0], whole.normalised()[number])
    back = in_units(whole.data, whole.levels)
    canonical = np.abs(back[1].max() - pet.max())
    assert canonical < 1e-2
    assert in_network_units(whole.data, whole.levels)[0].max() == 1.0  # 1000 HU


def test_a_case_of_two_channels_in_a_store(tmp_path: Path) -> None:
    for case, seed in (("a", 1), ("b", 3)):
        put(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", values(seed))
        put(tmp_path / "imagesTr" / f"{case}_0001.nii.gz", values(seed + 1, 60))
        label = (values(seed) > 500).astype(np.uint8)
        put(tmp_path / "labelsTr" / f"{case}.nii.gz", label)
    dataset(tmp_path, {"0": "T1", "1": "T2"})
    drain(prepare_store([tmp_path], tmp_path / "store"))
    store = Store.open(tmp_path / "store")
    card = store.cards[0]
    assert card.channel_names == ("T1", "T2")
    assert [c.path.name for c in card.channel_sources] == [
        "a_0000.nii.gz", "a_0001.nii.gz",
    ]  # fmt: skip
    stored = in_units(np.asarray(store.image(card.id)[:]), card.levels)
    axes, flips = card.original["axes"], card.original["flips"]
    for number, seed in enumerate((1, 2)):
        given = np.transpose(values(seed, (900, 60)[number]), axes)
        given = np.flip(given, [i for i, f in enumerate(flips) if f])
        assert np.array_equal(stored[number], given)
    again = drain(prepare_store([tmp_path], tmp_path / "store"))
    assert (again["built"], again["reused"]) == (0, 2)
    put(tmp_path / "imagesTr" / "a_0001.nii.gz", values(9, 60))
    changed = drain(prepare_store([tmp_path], tmp_path / "store"))
    assert (changed["built"], changed["reused"]) == (1, 1)
    # taken apart, nothing of the joined cases stays, and the other way round
    apart = drain(prepare_store([tmp_path], tmp_path / "store", channels="separate"))
    assert apart["cases"] == 4
    joined = drain(prepare_store([tmp_path], tmp_path / "store"))
    assert (joined["cases"], joined["kept"]) == (2, [])


def test_files_are_grouped_into_cases(tmp_path: Path) -> None:
    names = ("T1", "T2")
    paths = [tmp_path / n for n in ("a_0000.nii", "a_0001.nii", "b_T1.nii", "b_t2.nii")]
    paths.append(tmp_path / "P9" / "T2.nii")
    cases = grouped(paths, names, 2)
    told = {p.name: [c.path.name for c in parts] for p, parts in cases.items()}
    assert told == {
        "a.nii": ["a_0000.nii", "a_0001.nii"],
        "b.nii": ["b_T1.nii", "b_t2.nii"],
        "P9.nii": ["T2.nii"],  # lacks the other
    }
    loose = [tmp_path / "x.nii", tmp_path / "y.nii"]
    (parts,) = grouped(loose, names, 2).values()
    assert [c.path for c in parts] == loose
    assert [c.name for c in parts] == ["T1", "T2"]
    whole = put(tmp_path / "w.nii.gz", np.stack([values(1), values(2)]))
    assert grouped([whole], names, 2)[whole] == (
        Channel(whole, "T1", frame=0), Channel(whole, "T2", frame=1),
    )  # fmt: skip
