"""A store is complete, current, and says so when it is not."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from each import each
from homolog.errors import JobError, UnusableInput
from homolog.events import Progress, Request, Stopped, drain
from homolog.geometry.affine import Affine
from homolog.index.datasets import CaseSource
from homolog.scans.files import read_scan, scan_hash
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store import cases
from homolog.store.build import write_store
from homolog.store.card import Card
from homolog.store.cases import foreground_index
from homolog.store.crops import read_box
from homolog.store.preprocess import Preprocessing, prepare_volume, restore_labels
from homolog.store.store import Store


def case(folder: Path, name: str, *, affine=None, seed=0, **kwargs) -> CaseSource:
    """A tiny scan and label map on disk."""
    rng = np.random.default_rng(seed)
    affine = affine or Affine.of((1.0, 1.0, 1.0))
    data = rng.integers(0, 800, (1, 9, 10, 11)).astype(np.int16)
    labels = np.zeros((9, 10, 11), np.uint8)
    labels[2:6, 3:7, 4:9] = 1
    labels[7, 8, 9] = 3
    write_volume(Volume(data, affine), folder / f"{name}.nii.gz")
    write_labels(LabelMap(labels, affine), folder / f"{name}_label.nii.gz")
    fields = {
        "id": name, "image": folder / f"{name}.nii.gz",
        "label": folder / f"{name}_label.nii.gz", "modality": "MR", "subject": name,
        "split": None, "target": None, "boxes": (), "label_names": {1: "one"},
    }  # fmt: skip
    return CaseSource(**{**fields, **kwargs})


@pytest.fixture
def cohort(tmp_path):
    (tmp_path / "scans").mkdir()
    return [case(tmp_path / "scans", f"case_{i}", seed=i) for i in range(4)]


def events_of(job):
    """(events, result) of a job run to its end."""
    found = []
    while True:
        try:
            found.append(next(job))
        except StopIteration as stop:
            return found, stop.value


def test_the_store_tells_what_was_put_in(cohort, tmp_path):
    events, result = events_of(write_store(cohort, tmp_path / "store", seed=3))
    assert (result["cases"], result["labelled"], result["rejected"]) == (4, 4, [])
    assert result["store"] == str(tmp_path / "store")
    assert "nothing is resampled" in result["explanation"][0]
    assert [e.index for e in events if isinstance(e, Progress)] == [0, 1, 2, 3, 4]
    store = Store.open(tmp_path / "store")
    card = store.cards[2]
    assert card.id == "case_2"
    assert store.label_names == {1: "one", 3: "label 3"}
    assert store.preprocessing.modality == "MR"
    assert card.label_values == (1, 3)
    assert card.label_counts == {1: 80, 3: 1}
    assert card.source_hash == scan_hash(cohort[2].image)
    assert {c.split for c in store.cards} == {"train", "val", "test"}
    volume = read_scan(cohort[2].image)
    prepared = prepare_volume(volume, store.preprocessing)
    np.testing.assert_array_equal(np.asarray(store.image("case_2")), prepared.data)
    restored = restore_labels(np.asarray(store.label("case_2")), prepared, volume)
    assert restored.data.sum() == 80 + 3
    assert store.fingerprint["intensities"]["MR"]["cases"] == 4
    assert pickle.loads(pickle.dumps(store)).hash == store.hash


def test_a_card_survives_json(phantom_store):
    for card in phantom_store.cards:
        again = Card.from_dict(json.loads(json.dumps(card.to_dict())))
        assert again == card


def test_the_phantom_cohort_is_prepared_with_its_organs(phantom_store):
    assert len(phantom_store) == 8
    card = phantom_store.cards[0]
    assert card.modality == "CT"
    assert len(card.label_values) >= 5
    points = phantom_store.label_points(card.id)
    label = np.asarray(phantom_store.label(card.id))
    for value in card.label_values:
        z, y, x = points[value].T
        assert (label[z, y, x] == value).all()
        assert len(points[value]) == min(2000, card.label_counts[value])


def test_the_foreground_index_draws_evenly_and_never_twice():
    labels = np.zeros((40, 40, 40), np.int16)
    labels[:, :, 10:] = 4
    labels[0, 0, 0] = 9
    labels[1] = -1
    rows, counts = foreground_index(labels, seed=1)
    assert counts == {4: 39 * 40 * 30, 9: 1}
    four = rows[rows[:, 0] == 4, 1:]
    assert len(np.unique(four, axis=0)) == 2000
    assert np.abs(four.mean(axis=0) - (19.9, 19.5, 24.5)).max() < 1.0
    again, _ = foreground_index(labels, seed=1)
    np.testing.assert_array_equal(rows, again)
    empty, none = foreground_index(np.zeros((3, 3, 3), np.int16), seed=1)
    assert empty.shape == (0, 4)
    assert none == {}


def test_a_second_run_reads_nothing_again(cohort, tmp_path):
    drain(write_store(cohort, tmp_path / "store"))
    before = Store.open(tmp_path / "store").hash
    _, result = events_of(write_store(cohort, tmp_path / "store"))
    assert (result["built"], result["reused"]) == (0, 4)
    assert Store.open(tmp_path / "store").hash == before


def test_changed_contents_rebuild_one_case_and_a_changed_recipe_all(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort, out))
    first = Store.open(out)
    case(tmp_path / "scans", "case_1", seed=77)
    _, result = events_of(write_store(cohort, out))
    assert (result["built"], result["reused"]) == (1, 3)
    second = Store.open(out)
    assert second.hash != first.hash
    wanted = read_scan(cohort[1].image)
    got = np.asarray(second.image("case_1"))
    np.testing.assert_array_equal(
        got, prepare_volume(wanted, second.preprocessing).data
    )
    recipe = Preprocessing(percentiles=(1.0, 99.0))
    _, result = events_of(write_store(cohort, out, preprocessing=recipe))
    assert result["built"] == 4


def test_changed_code_rebuilds_all(cohort, tmp_path, monkeypatch):
    drain(write_store(cohort, tmp_path / "store"))
    monkeypatch.setattr(cases, "PREPARATION", "another version")
    _, result = events_of(write_store(cohort, tmp_path / "store"))
    assert result["built"] == 4


def test_what_the_source_says_of_a_case_is_taken_in_without_reading_it(
    cohort, tmp_path
):
    from dataclasses import replace

    drain(write_store(cohort, tmp_path / "store"))
    cohort[0] = replace(cohort[0], split="test", target="sick", subject="person")
    writing = write_store(cohort, tmp_path / "store", keep_identifiers=True)
    _, result = events_of(writing)
    assert result["built"] == 0
    card = Store.open(tmp_path / "store").card("case_0")
    assert (card.split, card.target, card.subject) == ("test", "sick", "person")


@pytest.mark.parametrize(
    "name", ["image.b2nd", "label.b2nd", "points.npy", "card.json"]
)
def test_a_shortened_item_is_told_on_reading_and_rebuilt(cohort, tmp_path, name):
    out = tmp_path / "store"
    drain(write_store(cohort, out))
    path = out / "cases" / "case_3" / name
    path.write_bytes(path.read_bytes()[:-20])
    if name.endswith(".b2nd"):
        store = Store.open(out)
        array = store.image if name.startswith("image") else store.label
        with pytest.raises(JobError, match="run prepare again"):
            np.asarray(array("case_3"))
    _, result = events_of(write_store(cohort, out))
    assert (result["built"], result["reused"]) == (1, 3)
    store = Store.open(out)
    assert store.label_points("case_3")[1].shape == (80, 3)
    assert np.asarray(store.image("case_3")).shape == (1, 9, 10, 11)


def test_an_unusable_case_is_put_aside_and_the_others_go_on(cohort, tmp_path):
    bad = cohort[1].label
    write_labels(LabelMap(np.zeros((9, 10, 12), np.uint8), Affine.identity()), bad)
    gone = case(tmp_path / "scans", "gone")
    gone.image.unlink()
    _, result = events_of(write_store([*cohort, gone], tmp_path / "store"))
    assert result["cases"] == 3
    told = {Path(r["path"]).name: r["reason"] for r in result["rejected"]}
    assert "(9, 10, 11), got (9, 10, 12)" in told["case_1.nii.gz"]
    assert "gone.nii.gz" in told
    written = json.loads((tmp_path / "store" / "rejected.json").read_text())
    assert written == result["rejected"]


def test_no_sound_case_is_an_error_with_the_first_reason(cohort, tmp_path):
    cohort[0].image.write_bytes(b"not a scan")
    with pytest.raises(UnusableInput, match=r"no sound scan.*case_0"):
        drain(write_store(cohort[:1], tmp_path / "store"))
    assert json.loads((tmp_path / "store" / "rejected.json").read_text())
    with pytest.raises(UnusableInput, match="no scan was found"):
        drain(write_store([], tmp_path / "empty"))


def test_a_stopped_run_keeps_what_is_done_and_goes_on(cohort, tmp_path):
    out = tmp_path / "store"
    job = write_store(cohort, out)
    event = next(job)
    while not (isinstance(event, Progress) and event.index == 2):
        event = next(job)
    assert isinstance(job.send(Request.STOP), Stopped)
    drain(job)
    with pytest.raises(UnusableInput, match="not a finished store"):
        Store.open(out)
    _, result = events_of(write_store(cohort, out))
    assert (result["built"], result["reused"]) == (2, 2)


def test_a_killed_run_leaves_whole_cases_only(cohort, tmp_path):
    out = tmp_path / "store"
    code = f"""
        import os, signal
        from pathlib import Path
        from homolog.store import cases as written
        from homolog.index.datasets import CaseSource
        from homolog.store.build import write_store
        from homolog.events import drain
        real = written.write_json
        def die(path, contents, **how):
            if contents["id"] == "case_2":
                os.kill(os.getpid(), signal.SIGKILL)
            real(path, contents, **how)
        written.write_json = die
        folder = Path({str(tmp_path / "scans")!r})
        cases = [CaseSource(id=f"case_{{i}}", image=folder / f"case_{{i}}.nii.gz",
                 label=folder / f"case_{{i}}_label.nii.gz", modality="MR",
                 subject=f"case_{{i}}", split=None, target=None, boxes=(),
                 label_names={{1: "one"}}) for i in range(4)]
        drain(write_store(cases, Path({str(out)!r})))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    _, result = events_of(write_store(cohort, out))
    assert (result["built"], result["reused"]) == (2, 2)
    assert sorted(os.listdir(out / "cases")) == [f"case_{i}" for i in range(4)]


def test_a_rerun_that_died_half_way_is_told_on_opening(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort, out))
    job = write_store(cohort, out, preprocessing=Preprocessing(percentiles=(2.0, 98.0)))
    event = next(job)
    while not (isinstance(event, Progress) and event.index == 1):
        event = next(job)
    with pytest.raises(UnusableInput, match="being prepared by another process"):
        Store.open(out)
    job.close()
    with pytest.raises(UnusableInput, match="run the same prepare again"):
        Store.open(out)


def test_a_full_disk_is_named_and_nothing_half_written_stays(
    cohort, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cases, "write_json", full)
    with pytest.raises(JobError, match=r"disk of .* is full"):
        drain(write_store(cohort, tmp_path / "store"))
    assert os.listdir(tmp_path / "store" / "cases") == []


def test_cases_no_longer_asked_for_leave_the_store_when_that_is_said(cohort, tmp_path):
    drain(write_store(cohort, tmp_path / "store"))
    drain(write_store(cohort[:3], tmp_path / "store", replace=True))
    assert len(Store.open(tmp_path / "store")) == 3
    assert not (tmp_path / "store" / "cases" / "case_3").exists()


def test_a_folder_with_other_things_is_left_alone(cohort, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    with pytest.raises(UnusableInput, match="holds other files"):
        drain(write_store(cohort, tmp_path / "thesis"))
    assert os.listdir(tmp_path / "thesis") == ["chapter.tex"]


@each("name", ["../evil", "", ".hidden", "a/b"])
def test_an_id_that_is_no_folder_name_is_refused(tmp_path, name):
    scan = case(tmp_path, "fine")
    from dataclasses import replace

    with pytest.raises(UnusableInput, match="plain file name"):
        drain(write_store([replace(scan, id=name)], tmp_path / "store"))


def test_a_missing_store_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(UnusableInput, match="homolog prepare"):
        Store.open(tmp_path / "nothing")


def test_threads_read_the_same_voxels_at_once(phantom_store):
    card = phantom_store.cards[0]
    image = phantom_store.image(card.id)
    whole = np.asarray(image)

    def check(seed):
        rng = np.random.default_rng(seed)
        for _ in range(25):
            start = rng.integers(-4, 20, 3)
            key = tuple(int(s) for s in start)
            got = read_box(image, key, (12, 12, 12), card.fill)
            np.testing.assert_array_equal(
                got, read_box(whole, key, (12, 12, 12), card.fill)
            )
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(8)))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    axes=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((1.0, -1.0))] * 3),
    tilt=st.floats(-0.6, 0.6),
    spacing=st.tuples(*[st.floats(0.4, 5.0)] * 3),
    seed=st.integers(0, 10_000),
)
def test_a_marked_voxel_keeps_its_place_from_file_to_crop_and_back(
    tmp_path_factory, axes, signs, tilt, spacing, seed
):
    folder = tmp_path_factory.mktemp("marked")
    rng = np.random.default_rng(seed)
    direction = np.zeros((3, 3))
    direction[list(axes), range(3)] = signs
    c, s = np.cos(tilt), np.sin(tilt)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    )
    affine = Affine.of(spacing, rng.uniform(-200, 200, 3), turn @ direction)
    shape = tuple(int(n) for n in rng.integers(4, 13, 3))
    voxel = tuple(int(rng.integers(n)) for n in shape)
    data = np.zeros((1, *shape), np.int16)
    data[(0, *voxel)] = 1000
    labels = (data[0] > 0).astype(np.uint8) * 5
    write_volume(Volume(data, affine), folder / "a.nii.gz")
    write_labels(LabelMap(labels, affine), folder / "a_label.nii.gz")
    source = CaseSource(
        id="a", image=folder / "a.nii.gz", label=folder / "a_label.nii.gz",
        modality="MR", subject="a", split=None, target=None, boxes=(), label_names={},
    )  # fmt: skip
    drain(write_store([source], folder / "store"))
    store = Store.open(folder / "store")
    card = store.cards[0]
    start = tuple(int(n) for n in rng.integers(-6, 1, 3))
    size = (24, 24, 24)
    crop = read_box(store.image("a"), start, size, card.fill)
    found = np.argwhere(crop[0] == 1000)
    assert len(found) == 1
    place = card.affine.crop(start).apply(found[0])
    np.testing.assert_allclose(place, affine.apply(np.array(voxel)), atol=2e-3)
    (point,) = store.label_points("a")[5]
    np.testing.assert_allclose(card.affine.apply(point), place, atol=1e-9)
    volume = read_scan(source.image)
    prepared = prepare_volume(volume, store.preprocessing)
    restored = restore_labels(np.asarray(store.label("a")), prepared, volume)
    np.testing.assert_array_equal(restored.data, labels)
    np.testing.assert_allclose(restored.affine.matrix, affine.matrix, atol=1e-4)


def names_in(store: Path) -> set[str]:
    return {path.name for path in (store / "cases").iterdir()}


def test_what_a_new_source_lacks_stays_until_replace_is_said(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort[:3], out))
    (tmp_path / "others").mkdir()
    other = case(tmp_path / "others", "other", seed=9)
    events, result = events_of(write_store([other], out))
    assert result["kept"] == ["case_0", "case_1", "case_2"]
    assert (result["built"], result["cases"], result["removed"]) == (1, 4, [])
    assert any("--replace lets them go" in getattr(e, "text", "") for e in events)
    assert {c.id for c in Store.open(out).cards} == {*result["kept"], "other"}
    events, result = events_of(write_store([other], out, replace=True))
    assert result["removed"] == ["case_0", "case_1", "case_2"]
    assert any(
        "3 cases left the store: case_0, case_1 and case_2." in getattr(e, "text", "")
        for e in events
    )
    assert names_in(out) == {"other"}
    assert len(Store.open(out)) == 1


def test_another_scan_of_a_name_the_store_has_is_refused(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort[:2], out))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    (tmp_path / "others").mkdir()
    other = case(tmp_path / "others", "case_1", seed=9)
    with pytest.raises(UnusableInput, match=r"has a case 'case_1' of .*--replace"):
        drain(write_store([other], out))
    before.pop(out / ".lock")
    assert all(path.read_bytes() == held for path, held in before.items())
    drain(write_store([other], out, replace=True))
    assert [c.source for c in Store.open(out).cards] == [str(other.image)]


def test_moved_scans_are_the_same_cases(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort[:2], out))
    (tmp_path / "scans").rename(tmp_path / "moved")
    moved = [case(tmp_path / "moved", f"case_{i}", seed=i) for i in range(2)]
    _, result = events_of(write_store(moved, out))
    assert (result["reused"], result["kept"], result["removed"]) == (2, [], [])
    assert "moved" in Store.open(out).cards[0].source


def test_one_scan_under_another_name_is_not_kept_twice(cohort, tmp_path):
    from dataclasses import replace

    out = tmp_path / "store"
    drain(write_store(cohort[:2], out))
    renamed = replace(cohort[0], id="other_name")
    _, result = events_of(write_store([renamed], out))
    assert (result["kept"], result["removed"]) == (["case_1"], ["case_0"])
    assert names_in(out) == {"case_1", "other_name"}


def test_new_scans_are_brought_to_the_voxel_size_of_cases_that_stay(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort[:2], out))
    assert Store.open(out).preprocessing.spacing_mm is None
    (tmp_path / "others").mkdir()
    thick = case(tmp_path / "others", "thick", affine=Affine.of((3.0, 1.0, 1.0)))
    _, result = events_of(write_store([thick], out, spacing="auto"))
    assert "2 cases that the store keeps" in result["explanation"][0]
    store = Store.open(out)
    assert store.preprocessing.spacing_mm == (1.0, 1.0, 1.0)
    assert {c.spacing_mm for c in store.cards} == {(1.0, 1.0, 1.0)}
    with pytest.raises(
        UnusableInput, match=r"the voxel size 1,1,1, not 2,2,2;.*--replace"
    ):
        drain(write_store([thick], out, spacing=(2.0, 2.0, 2.0)))
    wider = Preprocessing(percentiles=(2.0, 98.0))
    with pytest.raises(UnusableInput, match=r"the percentiles 0\.5,99\.5, not 2,98"):
        drain(write_store([thick], out, preprocessing=wider, spacing="auto"))
    assert len(Store.open(out)) == 3


def test_labels_of_new_scans_take_the_values_of_cases_that_stay(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort[:1], out))
    assert Store.open(out).label_names == {1: "one", 3: "label 3"}
    (tmp_path / "others").mkdir()
    names = {1: "two", 3: "one"}
    other = case(tmp_path / "others", "other", seed=9, label_names=names)
    with pytest.raises(UnusableInput, match=r"cannot be brought together .*--names"):
        drain(write_store([other], out, names={}))
    drain(write_store([other], out, names={3: "dot"}))
    store = Store.open(out)
    assert store.label_names[1] == "one"
    assert store.card("case_0").label_counts == {1: 80, 3: 1}
    assert store.card("other").label_counts[1] == 1  # its own 3
    two = next(v for v, n in store.label_names.items() if n == "two")
    assert store.card("other").label_counts[two] == 80


def test_a_case_whose_file_broke_since_stays(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort, out))
    cohort[2].image.unlink()
    _, result = events_of(write_store(cohort, out))
    assert result["cases"] == 4
    assert "case_2" in result["rejected"][0]["path"]
    assert np.asarray(Store.open(out).image("case_2")).shape == (1, 9, 10, 11)


def test_one_process_at_a_time_writes_into_a_store(cohort, tmp_path):
    out = tmp_path / "store"
    job = write_store(cohort, out)
    next(job)
    with pytest.raises(UnusableInput, match=r"another process \(process .* writing"):
        drain(write_store(cohort[:1], out))
    _, result = events_of(job)
    assert result["cases"] == 4
    assert len(Store.open(out)) == 4
    drain(write_store(cohort[:1], out))


def test_the_lock_of_a_killed_writer_is_free(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort[:1], out))
    code = f"""
        import os, signal
        from pathlib import Path
        from homolog.store.build import writing
        from homolog.writing import beside
        with writing(Path({str(out)!r})):
            (Path({str(out)!r}) / "cases" / ".new-x").mkdir()
            beside(Path({str(out)!r}) / "cases" / "y").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert ".new-x" in names_in(out)
    drain(write_store(cohort[:1], out))
    assert names_in(out) == {"case_0"}


def test_a_case_moved_aside_by_a_killed_writer_comes_back(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort[:2], out))
    for aside in (".case_1.old", ".old-case_1"):  # now, and by earlier versions
        (out / "cases" / "case_1").rename(out / "cases" / aside)
        _, result = events_of(write_store(cohort[:2], out))
        assert (result["built"], result["reused"]) == (0, 2)
        assert names_in(out) == {"case_0", "case_1"}


def test_an_unfinished_preparation_loses_nothing_to_another(cohort, tmp_path):
    out = tmp_path / "store"
    job = write_store(cohort[:3], out)
    event = next(job)
    while not (isinstance(event, Progress) and event.index == 2):
        event = next(job)
    job.close()
    _, result = events_of(write_store(cohort[3:], out))
    assert (result["cases"], result["kept"]) == (1, [])
    assert names_in(out) == {"case_0", "case_1", "case_3"}
    _, result = events_of(write_store(cohort[:3], out))
    assert (result["built"], result["reused"], result["cases"]) == (1, 2, 4)


def test_a_damaged_list_of_cases_is_written_anew(cohort, tmp_path):
    out = tmp_path / "store"
    drain(write_store(cohort, out))
    (out / "store.json").write_text('{"cases": 3')
    with pytest.raises(UnusableInput, match="damaged"):
        Store.open(out)
    _, result = events_of(write_store(cohort, out))
    assert result["reused"] == 4
    assert len(Store.open(out)) == 4


@pytest.mark.parametrize("name", ["cases", "cases/case_1", "pairs"])
def test_folders_that_are_links_are_not_written_into(cohort, tmp_path, name):
    out, mine = tmp_path / "gift", tmp_path / "mine"
    drain(write_store(cohort[:2], out))
    drain(write_store(cohort[2:], mine))
    before = {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()}
    if (out / name).exists():
        (out / name).rename(tmp_path / "aside")
    (out / name).symlink_to(mine / "cases", target_is_directory=True)
    with pytest.raises(UnusableInput, match="is a link to"):
        drain(write_store(cohort[:1], out, replace=True))
    assert {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()} == before
