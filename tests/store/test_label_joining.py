"""Labels of many files in one store: names win, ``ignore`` teaches nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from each import each
from homolog.events import Note
from homolog.geometry.affine import Affine
from homolog.index.datasets import CaseSource
from homolog.scans.files import read_labels
from homolog.scans.names import name_of_mask, names_beside, names_in_file
from homolog.scans.volume import LabelMap, ValueStats, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store.build import prepare_store
from homolog.store.label_joining import join_cases
from homolog.store.store import Store

SHAPE = (9, 10, 11)
AFFINE = Affine.of((1.0, 1.0, 1.0))


def write_scan(path: Path, seed: int) -> None:
    data = np.random.default_rng(seed).integers(0, 800, (1, *SHAPE)).astype(np.int16)
    write_volume(Volume(data, AFFINE), path)


def head_and_tail(head: int, tail: int) -> np.ndarray:
    """A head of 60 voxels and a tail of 6."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:7, 4:9], labels[7:, 7:, 9:10] = head, tail
    return labels


def write_slicer(path: Path, data: np.ndarray, segments: dict[str, Any]) -> None:
    """A segmentation as 3D Slicer names it."""
    z, y, x = data.shape
    lines = [
        "NRRD0004", "type: uint8", "dimension: 3",
        "space: left-posterior-superior", f"sizes: {x} {y} {z}",
        "space directions: (1,0,0) (0,1,0) (0,0,1)", "encoding: raw",
        "space origin: (0,0,0)",
    ]  # fmt: skip
    for number, (name, value) in enumerate(segments.items()):
        lines += [
            f"Segment{number}_ID:=Segment_{number + 1}",
            f"Segment{number}_LabelValue:={value}",
            f"Segment{number}_Layer:=0",
            f"Segment{number}_Name:={name}",
        ]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + data.tobytes())


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    (folder / "labels").mkdir(parents=True)
    for number in range(2):
        write_scan(folder / f"p{number}.nii.gz", number)
    return folder


def prepared(source: Path, out: Path, **asked: Any) -> tuple[Store, dict, list[str]]:
    """The store, the job's summary and its remarks."""
    job, remarks = prepare_store([source], out, **asked), []
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return Store.open(out), end.value, remarks
        if isinstance(event, Note):
            remarks.append(event.text)


def sizes(store: Store) -> list[dict[str, int]]:
    """Voxels of each class, by name, of every case."""
    found = []
    for card in store.cards:
        label = store.label(card.id)
        assert label is not None
        values, counts = np.unique(np.asarray(label[:]), return_counts=True)
        names = {**store.label_names, -1: "unlabelled", 0: ""}
        pairs = zip(values, counts, strict=True)
        found.append({names[int(v)]: int(n) for v, n in pairs})
    return found


def test_slicer_segmentations_are_joined_by_the_names_of_their_segments(
    scans: Path, tmp_path: Path
) -> None:
    labels = scans / "labels"
    own = {"Kopf – vorn": 1, "tail": 2}
    write_slicer(labels / "p0.seg.nrrd", head_and_tail(1, 2), own)
    assert names_in_file(labels / "p0.seg.nrrd") == {1: "Kopf – vorn", 2: "tail"}
    other = {"tail": 1, "kopf –  vorn": 2}
    write_slicer(labels / "p1.seg.nrrd", head_and_tail(2, 1), other)
    store, _, remarks = prepared(scans, tmp_path / "store")
    assert store.label_names == {1: "Kopf – vorn", 2: "tail"}
    for case in sizes(store):
        assert (case["Kopf – vorn"], case["tail"]) == (60, 6)
    assert store.card("p1").label_counts == {1: 60, 2: 6}
    assert store.card("p1").label_map == {1: 2, 2: 1}
    assert any("names win" in text and "p1.seg.nrrd" in text for text in remarks)
    again, result, _ = prepared(scans, tmp_path / "store")
    assert result["reused"] == 2
    assert again.hash == store.hash
    # a file that is numbered otherwise later is prepared again, though its voxels stay
    write_slicer(labels / "p1.seg.nrrd", head_and_tail(2, 1), {"tail": 2, "rest": 1})
    store, result, _ = prepared(scans, tmp_path / "store")
    assert result["built"] == 1
    assert store.label_names[store.card("p1").label_map.get(1, 1)] == "rest"


def test_a_word_of_the_user_renames_a_class_that_files_number_differently(
    scans: Path, tmp_path: Path
) -> None:
    labels = scans / "labels"
    write_slicer(labels / "p0.seg.nrrd", head_and_tail(1, 2), {"head": 1, "tail": 2})
    write_slicer(labels / "p1.seg.nrrd", head_and_tail(2, 1), {"tail": 1, "head": 2})
    store, result, _ = prepared(scans, tmp_path / "store", names={1: "front"})
    assert store.label_names == {1: "front", 2: "tail"}
    told = "Given names win over files: 1 is front, not head."
    assert told in result["explanation"]
    assert [case["front"] for case in sizes(store)] == [60, 60]


def test_ignore_is_no_class_and_its_voxels_are_unlabelled(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset001"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(2):
        write_scan(folder / "imagesTr" / f"c{number}_0000.nii.gz", number)
        label = LabelMap(head_and_tail(1, 2), AFFINE)
        write_labels(label, folder / "labelsTr" / f"c{number}.nii.gz")
    told = {"labels": {"background": 0, "head": 1, "ignore": 2}, "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps(told))
    store, _, remarks = prepared(folder, tmp_path / "store")
    assert store.label_names == {1: "head"}
    assert store.cards[0].label_values == (1,)
    assert {1} == set(store.label_points("c0"))
    assert [case["unlabelled"] for case in sizes(store)] == [6, 6]
    assert any("label 2 is called ignore" in text for text in remarks)


def test_two_data_sets_that_number_their_classes_differently(tmp_path: Path) -> None:
    for number, names in enumerate(({"head": 1, "tail": 2}, {"tail": 1, "head": 2})):
        folder = tmp_path / "all" / f"set{number}"
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir(parents=True)
        write_scan(folder / "imagesTr" / f"c{number}.nii.gz", number)
        data = head_and_tail(names["head"], names["tail"])
        write_labels(LabelMap(data, AFFINE), folder / "labelsTr" / f"c{number}.nii.gz")
        told = {"labels": {"background": 0, **names}, "numTraining": 1}
        (folder / "dataset.json").write_text(json.dumps(told))
    store, _, _ = prepared(tmp_path / "all", tmp_path / "store")
    assert [case["head"] for case in sizes(store)] == [60, 60]


def test_a_map_without_names_among_maps_that_disagree_is_put_aside(
    scans: Path, tmp_path: Path
) -> None:
    labels = scans / "labels"
    write_slicer(labels / "p0.seg.nrrd", head_and_tail(1, 2), {"head": 1, "tail": 2})
    write_slicer(labels / "p1.seg.nrrd", head_and_tail(2, 1), {"tail": 1, "head": 2})
    write_scan(scans / "p2.nii.gz", 2)
    path = labels / "p2.nii.gz"
    write_labels(LabelMap(head_and_tail(1, 2), AFFINE), path)
    store, result, _ = prepared(scans, tmp_path / "store")
    assert [card.id for card in store.cards] == ["p0", "p1"]
    assert result["rejected"] == [
        {
            "path": str(path),
            "reason": "label p2.nii.gz does not name its value 1, and 1 is 'head' in "
            "p0.seg.nrrd but 'tail' in p1.seg.nrrd; say what it is in a "
            "label_names.json beside it.",
        }
    ]
    names = {"p2": {"1": "head", "2": "tail"}}
    (labels / "label_names.json").write_text(json.dumps(names))
    store, _, _ = prepared(scans, tmp_path / "store")
    assert [case["head"] for case in sizes(store)] == [60, 60, 60]


def case(name: str, names: dict[int, str], held: set[int] | None = None) -> CaseSource:
    return CaseSource(
        name, Path(f"{name}.nii"), Path(f"{name}_seg.nii"), label_names=names,
        label_values=None if held is None else frozenset(held),
    )  # fmt: skip


def test_values_stay_where_files_agree() -> None:
    cases = [case("a", {1: "liver", 2: "spleen"}), case("b", {2: "Spleen"}, {1, 2})]
    joined = join_cases(cases, {})
    assert [c.label_map for c in joined.cases] == [{}, {}]
    assert joined.warnings == ()
    # what has no name is taken by number, and that is said
    assert joined.remarks == (
        "b_seg.nii does not name its labels: its 1 is taken for 'liver', as in "
        "a_seg.nii.",
    )


def test_the_more_frequent_number_of_a_name_is_kept() -> None:
    cases = [case("a", {1: "tail", 2: "head"})]
    cases += [case(name, {1: "head", 2: "tail"}) for name in "bcd"]
    joined = join_cases(cases, {})
    assert [c.label_map for c in joined.cases] == [{1: 2, 2: 1}, {}, {}, {}]


def test_two_names_of_one_number_are_two_classes_unless_a_user_joins_them() -> None:
    cases = [case("a", {1: "aorta"}, {1}), case("b", {1: "liver"}, {1})]
    joined = join_cases(cases, {})
    assert [c.label_names for c in joined.cases] == [{1: "aorta"}, {2: "liver"}]
    assert [c.label_map for c in joined.cases] == [{}, {1: 2}]
    (sentence,) = joined.warnings
    assert "'aorta' in a but 'liver' in b" in sentence
    joined = join_cases(cases, {1: "organ"})
    assert [c.label_map for c in joined.cases] == [{}, {}]
    assert joined.cases[1].label_names == {1: "organ"}


def test_a_user_may_call_a_label_ignore() -> None:
    (one,) = join_cases([case("a", {1: "liver"}, {1, 255})], {255: "Ignore"}).cases
    assert one.label_map == {255: -1}
    assert one.label_names == {1: "liver"}


def test_a_file_is_right_where_a_table_for_many_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.seg.nrrd"
    write_slicer(path, head_and_tail(2, 1), {"tail": 1, "Head": 2, "new": 3})
    (tmp_path / "label_names.json").write_text('{"1": "head", "2": "tail"}')
    assert names_beside(path) == {1: "tail", 2: "Head"}
    assert read_labels(path).shape == SHAPE


def write_layers(path: Path, layers: list[np.ndarray], names: list[str]) -> None:
    """A segmentation of 3D Slicer of one segment, of value 1, a layer."""
    data = np.stack(layers, -1).astype(np.uint8)
    write_slicer(path, data[..., 0], dict.fromkeys(names, 1))
    header = path.read_bytes().partition(b"\n\n")[0]
    for number in range(len(names)):
        old, new = (f"Segment{number}_Layer:={n}".encode() for n in (0, number))
        header = header.replace(old, new)
    for old, new in (
        (b"sizes: ", f"sizes: {len(layers)} ".encode()),
        (b"dimension: 3", b"dimension: 4"), (b"directions: ", b"directions: none "),
        (b"encoding", b"kinds: list domain domain domain\nencoding"),
    ):  # fmt: skip
        header = header.replace(old, new)
    path.write_bytes(header + b"\n\n" + data.tobytes())


def test_segments_in_layers_become_classes_and_the_smaller_one_stays(
    scans: Path, tmp_path: Path
) -> None:
    head, tail = (head_and_tail(1, 2) == v for v in (1, 2))
    both = head | tail
    # the large one last, and over the small one
    path = scans / "labels" / "p0.seg.nrrd"
    write_layers(path, [head, both], ["head", "all"])
    assert names_in_file(path) == {1: "head", 2: "all"}
    found = read_labels(path)
    assert np.array_equal(found.data, np.where(head, 1, np.where(tail, 2, 0)))
    write_layers(path.with_name("p1.seg.nrrd"), [both, head], ["all", "head"])
    store, result, notes = prepared(scans, tmp_path / "store")
    assert result["rejected"] == []
    assert [case["head"] for case in sizes(store)] == [int(head.sum())] * 2
    assert any("head" in note and "names win" in note for note in notes)
    assert any(f"{head.sum()} of 'all' to 'head'" in note for note in notes)


@pytest.mark.parametrize(
    "text",
    [
        '{"\u00b2": "liver"}', '{"%s": "liver"}' % ("9" * 5000), "[" * 100_000, "[1]",
        '{"1": ["liver"], "liver": 1.5, "spleen": true}', "{", "\x00",
    ],
    ids=range(7),
)  # fmt: skip
def test_a_table_of_names_that_is_none_names_nothing(
    scans: Path, tmp_path: Path, text: str
) -> None:
    label = scans / "labels" / "p0.nii.gz"
    write_labels(LabelMap(head_and_tail(1, 2), AFFINE), label)
    (scans / "labels" / "label_names.json").write_text(text, encoding="utf-8")
    assert names_beside(label) == {}


@each(
    "label, image, name",
    [
        ("ct_aorta.nii.gz", "ct.nii.gz", "aorta"),
        ("ts_ct_T12.nii.gz", "ts_ct.nii.gz", "t12"),
        ("liver.nii.gz", "scan.nii.gz", "liver"),
        ("liver07.png", "p07.png", "liver"),
        ("m07.png", "p07.png", None),
        ("seg17.png", "img17.png", None),
        ("other3.png", "case_12.png", None),
        ("mask_17.png", "img_17.png", None),
    ],
)
def test_a_mask_is_not_named_by_its_number(
    label: str, image: str, name: str | None
) -> None:
    stats = ValueStats()
    stats.update(np.array([0, 1], np.uint8))
    told = name_of_mask(Path(label), Path(image), stats)
    assert told == ({} if name is None else {1: name})
