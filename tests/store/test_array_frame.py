"""A stored array is judged by its bytes: foreign, forged or damaged ones never open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

from each import each
from homolog.errors import JobError, UnusableInput
from homolog.store import arrays
from homolog.store.arrays import (
    Frame,
    StoredArray,
    checksums_of,
    damage_of,
    read_frame,
    write_array,
)

SHAPE = (1, 23, 37, 41)


def random_array(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


def stored(path: Path, data: np.ndarray) -> StoredArray:
    write_array(data, path)
    return StoredArray(
        path, data.shape, path.stat().st_size, checksums_of(path, data.shape)
    )


ARRAYS = {
    "noise": random_array((1, 70, 140, 150)),
    "incompressible": np.random.default_rng(1)
    .integers(-32768, 32768, (1, 40, 60, 50))
    .astype(np.int16),
    "zeros": np.zeros((70, 140, 150), np.int16),
    "ones": np.ones((9, 10, 11), np.int16),
    "a cube in zeros": np.pad(np.ones((9, 9, 9), np.int16), 60),
    "a slice": random_array((1, 1, 1100, 1200)),
    "channels": random_array((3, 1, 60, 50)),
    "one voxel": random_array((1, 1, 1)),
}


@each("name", ARRAYS)
def test_what_is_written_passes_and_reads_back(tmp_path: Path, name: str) -> None:
    data = ARRAYS[name]
    array = stored(tmp_path / "image.b2nd", data)
    np.testing.assert_array_equal(np.asarray(array), data)
    assert damage_of(array.path, data.shape, array._size, array._checksums) == ""
    assert damage_of(array.path, data.shape, array._size, "") == ""


def lazy_expression(path: Path, folder: Path) -> None:
    blosc2.asarray(random_array(), urlpath=str(folder / "a.b2nd"), mode="w")
    operand = blosc2.open(str(folder / "a.b2nd"))
    blosc2.lazyexpr("a + 1", {"a": operand}).save(urlpath=str(path))


def saved_function(path: Path, folder: Path) -> None:
    """An array that carries a program beside its voxels, as blosc2 saved functions."""
    array = blosc2.asarray(
        random_array(), urlpath=str(path), mode="w", meta={"LazyArray": 1}
    )
    array.schunk.vlmeta["_LazyArray"] = {"UDF": "import os; os.system('touch mark')"}


def more_metalayers(path: Path, folder: Path) -> None:
    blosc2.asarray(random_array(), urlpath=str(path), mode="w", meta={"LazyArray": 0})


def more_of_variable_length(path: Path, folder: Path) -> None:
    array = blosc2.asarray(random_array(), urlpath=str(path), mode="w")
    saved = {"expression": "a", "operands": {"a": "a.b2nd"}}
    array.schunk.vlmeta["_LazyArray"] = saved


def another_type(path: Path, folder: Path) -> None:
    blosc2.asarray(random_array().astype(np.float32), urlpath=str(path), mode="w")


def another_codec(path: Path, folder: Path) -> None:
    blosc2.asarray(
        random_array(), urlpath=str(path), mode="w",
        cparams=blosc2.CParams(codec=blosc2.Codec.BLOSCLZ),
    )  # fmt: skip


def endless_zeros(path: Path, folder: Path) -> None:
    blosc2.zeros((1, 4000, 4000, 4000), dtype=np.int16, urlpath=str(path), mode="w")


def a_bare_chunk_list(path: Path, folder: Path) -> None:
    blosc2.SChunk(chunksize=2000, data=random_array(), urlpath=str(path), mode="w")


def a_text(path: Path, folder: Path) -> None:
    path.write_text("not an array at all, but long enough to be read as a header" * 9)


@each("forge", [
        lazy_expression, saved_function, more_metalayers, more_of_variable_length,
        another_type, another_codec,
        endless_zeros, a_bare_chunk_list, a_text,
    ])  # fmt: skip
def test_anything_but_a_plain_array_never_reaches_blosc2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forge: Any
) -> None:
    path = tmp_path / "image.b2nd"
    forge(path, tmp_path)

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("blosc2 was handed the file")

    monkeypatch.setattr(blosc2, "open", opened)
    monkeypatch.chdir(tmp_path)
    array = StoredArray(path, SHAPE, path.stat().st_size)
    with pytest.raises(JobError, match=r"image\.b2nd is damaged"):
        array[0]
    assert not (tmp_path / "mark").exists()


def test_another_shape_than_the_cards_is_refused(tmp_path: Path) -> None:
    array = stored(tmp_path / "image.b2nd", random_array())
    for shape in ((1, 23, 37, 42), (1, 23, 1517), (10**6, 10**6, 10**6)):
        other = StoredArray(array.path, shape, array._size)
        with pytest.raises(JobError, match="is damaged"):
            other[...]


def test_every_byte_of_a_header_counts(tmp_path: Path) -> None:
    """Refused with checksums; without, nothing crashes."""
    path = tmp_path / "image.b2nd"
    array = stored(path, random_array())
    good = path.read_bytes()
    frame = read_frame(path, SHAPE)
    rng = np.random.default_rng(3)
    for at in [*range(0, frame.header, 2), *range(frame.tail, len(good), 2)]:
        bad = bytearray(good)
        bad[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bad)
        wrong = damage_of(path, SHAPE, len(good), array._checksums)
        assert wrong, at
        damage_of(path, SHAPE, len(good), "")  # without checksums: no crash


def test_a_flipped_bit_never_gives_other_voxels(tmp_path: Path) -> None:
    data = random_array((1, 40, 64, 48), seed=2)
    path = tmp_path / "image.b2nd"
    array = stored(path, data)
    good = path.read_bytes()
    rng = np.random.default_rng(13)
    refused = 0
    for number, bit in enumerate(rng.integers(0, 8 * len(good), 60)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        copy = tmp_path / f"{number}.b2nd"
        copy.write_bytes(bad)
        read = StoredArray(copy, data.shape, len(bad), array._checksums)
        try:
            np.testing.assert_array_equal(np.asarray(read), data)
        except JobError:
            refused += 1
    assert refused == 60


def test_damage_is_named_by_chunk_and_only_where_it_is_read(tmp_path: Path) -> None:
    data = random_array((1, 70, 140, 150))
    path = tmp_path / "image.b2nd"
    array = stored(path, data)
    frame = read_frame(path, data.shape)
    start, length = frame.places[6]  # z 64.., y 128.., x 0..127
    bad = bytearray(path.read_bytes())
    bad[start + length // 2] ^= 1
    path.write_bytes(bad)
    np.testing.assert_array_equal(array[:, :64], data[:, :64])
    np.testing.assert_array_equal(array[0, 65, :, 130:], data[0, 65, :, 130:])
    with pytest.raises(
        JobError, match=r"chunk 7 of 8 \(voxels z 64\.\.69, y 128\.\.139, x 0\.\.127\)"
    ):
        array[:, 60:66, 130:, 5]


def test_chunks_are_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = stored(tmp_path / "image.b2nd", random_array((1, 70, 140, 150)))
    compared: list[int] = []
    real = arrays.Frame.check_chunk

    def counted(self: Any, file: Any, number: int, sums: str) -> bool:
        compared.append(number)
        return real(self, file, number, sums)

    monkeypatch.setattr(arrays.Frame, "check_chunk", counted)
    for _ in range(3):
        array[:, 3:9, 3:9, 3:9]
    assert compared == [0]
    for _ in range(2):
        np.asarray(array)
    assert compared == list(range(8))


def test_a_replaced_file_is_judged_anew(tmp_path: Path) -> None:
    path = tmp_path / "image.b2nd"
    array = stored(path, random_array())
    np.asarray(array)
    again = stored(path, random_array(seed=5))
    np.testing.assert_array_equal(np.asarray(again), random_array(seed=5))
    if again._checksums != array._checksums:
        with pytest.raises(JobError):
            np.asarray(array)


def test_an_old_blosc2_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = stored(tmp_path / "image.b2nd", random_array())
    for version, safe in (("4.13.2", False), ("3.12.0", False), ("4.14.0", True)):
        arrays.check_blosc2.cache_clear()
        arrays._LOCAL.open.clear()
        monkeypatch.setattr(blosc2, "__version__", version)
        if safe:
            np.asarray(array)
        else:
            with pytest.raises(UnusableInput, match=r"needs blosc2 4\.14 or newer"):
                np.asarray(array)
    arrays.check_blosc2.cache_clear()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_place_of_an_array_does_not_wait_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.b2nd")
    with pytest.raises(JobError, match="is damaged"):
        StoredArray(tmp_path / "image.b2nd", SHAPE, 0)[...]


def test_a_case_prepared_anew_in_mid_use_is_not_called_damaged(tmp_path: Path) -> None:
    array = stored(tmp_path / "image.b2nd", random_array())
    np.asarray(array)
    write_array(random_array(seed=7) // 2, tmp_path / "image.b2nd")
    array._size = array.path.stat().st_size  # as if it had the same
    with pytest.raises(JobError, match="prepared anew"):
        np.asarray(array)


KEYS = (
    0, -1, ..., slice(None), np.int64(0), (0, 5), (0, -3, 4), (..., 7), (0, ..., 129),
    (slice(None), slice(3, 70, 9)), (0, slice(64, 66), slice(None, None, -1), -1),
    (0, slice(9, 9)), (slice(0, 1), 69, slice(120, 300), slice(0, 2)),
)  # fmt: skip


@each("key", KEYS)
def test_an_index_compares_exactly_the_chunks_it_needs(key: Any) -> None:
    frame = _grid_frame()
    numbers = np.zeros(frame.shape, np.int64)
    for number in range(8):
        z, y, x = number // 4, number // 2 % 2, number % 2
        numbers[:, 64 * z : 64 * z + 64, 128 * y : 128 * y + 128, 128 * x :] = number
    wanted = set(np.unique(numbers[key]).tolist())
    assert set(frame.touched(key)) == wanted


def _grid_frame() -> Frame:
    places = tuple((200 + 40 * n, 40) for n in range(8))
    return Frame((1, 70, 140, 150), (1, 64, 128, 128), 200, places, 520, 600)


@each("key", [None, (0, None), np.array([0]), True, [0]])
def test_an_unusual_index_compares_all(key: Any) -> None:
    assert list(_grid_frame().touched(key)) == list(range(8))
