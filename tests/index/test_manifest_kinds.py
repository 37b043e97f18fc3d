"""Manifests as people and their programs write them, and BIDS data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from each import each
from homolog.cli import cli
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.gui.data.control import name_for, rows_of
from homolog.gui.files.sources import few
from homolog.index.bids import same_run
from homolog.index.index import index_sources
from homolog.index.manifests import read_manifest
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume

AFFINE = Affine.of((1.0, 1.0, 1.0))
SHAPE = (9, 10, 11)


def scan(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng([seed, len(path.name)]).normal(size=(1, *SHAPE))
    write_volume(Volume(values.astype(np.float32), AFFINE, "", "MR"), path)
    return path


def mask(path: Path, value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.zeros(SHAPE, np.uint8)
    data[2:6, 3:7, 3:8] = value
    write_labels(LabelMap(data, AFFINE), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        scan(tmp_path / "images" / f"p{number}.nii.gz", number)
        mask(tmp_path / "labels" / f"p{number}.nii.gz")
    return tmp_path


def indexed(source: Path) -> tuple[Any, list[str]]:
    job = index_sources([source])
    notes = []
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return end.value, notes
        notes.append(str(getattr(event, "text", "")))


@each(
    "text",
    [
        "image,label\nimages\\p0.nii.gz,labels\\p0.nii.gz\n",
        "Image;Label\r\nimages/p0.nii.gz;labels/p0.nii.gz\r\n;\r\n",
        "image\tmask\nimages/p0.nii.gz\tlabels/p0.nii.gz\n",
    ],
)
@each("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_tables_of_any_program(folder: Path, encoding: str, text: str) -> None:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    (one,) = read_manifest(path).candidates
    assert one.image.resolve() == (folder / "images" / "p0.nii.gz").resolve()
    assert one.label is not None
    assert one.label.resolve() == (folder / "labels" / "p0.nii.gz").resolve()
    assert Path(one.name).name == "p0"


def test_names_that_are_not_utf_8(folder: Path) -> None:
    scan(folder / "Müller.nii.gz")
    (folder / "list.csv").write_bytes(
        "image,class\nMüller.nii.gz,größer\n".encode("cp1252")
    )
    found = read_manifest(folder / "list.csv")
    assert [(c.image.name, c.target) for c in found.candidates] == [
        ("Müller.nii.gz", "größer")
    ]
    assert found.notes == ["list.csv: not UTF-8 text; read as cp1252."]
    (folder / "list.csv").write_bytes(b"image\n\0\1\2\3")
    with pytest.raises(UnusableInput, match="must be text"):
        read_manifest(folder / "list.csv")


@each("nothing", ["", "NaN", "nan", "NA", "n/a", "null", "<NA>", " N/A "])
def test_cells_that_say_nothing(folder: Path, nothing: str) -> None:
    (folder / "list.csv").write_text(
        "image,label,class,subject,split,modality\n"
        + f"images/p0.nii.gz,{nothing},{nothing},{nothing},{nothing},{nothing}\n"
        + "images/p1.nii.gz,labels/p1.nii.gz,none,7,test,MR\n"
    )
    found = read_manifest(folder / "list.csv")
    assert found.rejected == []
    first, second = found.candidates
    assert (first.label, first.target, first.subject, first.split) == (
        None, None, "", None,
    )  # fmt: skip
    assert (second.target, second.subject, second.split) == ("none", "7", "test")


def test_records_that_are_missing_and_numbers_with_commas(folder: Path) -> None:
    (folder / "list.csv").write_text(
        "image;status;class;x;y;w;h\n"
        "images/p0.nii.gz;ok;cyst;1,5;2;3;4\n"
        "images/p9.nii.gz;missing;;;;;\n"
    )
    found = read_manifest(folder / "list.csv")
    (one,) = found.candidates
    assert one.boxes[0]["min"] == [0.0, 2.0, 1.5]
    assert found.notes == ["list.csv: 1 record of status missing left out."]
    assert found.rejected == []


def test_data_lists_of_monai(folder: Path) -> None:
    def entry(n: int, **more: Any) -> dict[str, Any]:
        return {"image": f"images/p{n}.nii.gz", "label": f"labels/p{n}.nii.gz", **more}

    path = folder / "datalist.json"
    path.write_text(
        json.dumps(
            {
                "labels": {"1": "liver"}, "training": [entry(0, fold=1)],
                "validation": [entry(1)], "testing": ["images/p2.nii.gz"],
            }
        )
    )  # fmt: skip
    found = read_manifest(path).candidates
    assert [c.split for c in found] == ["train", "val", "test"]
    assert [c.label is not None for c in found] == [True, True, False]
    assert found[0].label_names == {1: "liver"}
    path.write_text(json.dumps({"training": [entry(0, fold=0), entry(1, fold=1)]}))
    assert [c.split for c in read_manifest(path).candidates] == [None, None]
    path.write_text(json.dumps({"train": []}))
    with pytest.raises(UnusableInput, match="list of records"):
        read_manifest(path)


def test_info_and_the_window_read_a_manifest_as_prepare_does(folder: Path) -> None:
    path = folder / "list.csv"
    path.write_text(
        "image,label\nimages\\p0.nii.gz,labels\\p0.nii.gz\nimages/gone.nii.gz,\n"
        "images/p1.nii.gz,labels/p1.nii.gz\n"
    )
    result = CliRunner().invoke(cli, ["info", str(path), "--json"])
    assert result.exit_code == 0
    told = json.loads(result.stdout.strip().splitlines()[-1])["scans"]
    assert [(Path(t["path"]).name, t["usable"]) for t in told] == [
        ("p0.nii.gz", True), ("p1.nii.gz", True), ("gone.nii.gz", False),
    ]  # fmt: skip
    (row,) = rows_of(path)
    assert row.facts == "3 scans, 2 with labels"
    assert row.is_folder
    assert not few([path])
    assert name_for([row]) == "list"
    (folder / "other.json").write_text("[1]")
    result = CliRunner().invoke(cli, ["info", str(folder / "other.json"), str(path)])
    assert result.exit_code == 0
    assert "expected a list of records" in result.stdout


def test_files_lie_in_the_folders_of_a_data_set_beside_the_table(
    tmp_path: Path,
) -> None:
    scan(tmp_path / "imagesTr" / "p0.nii.gz")
    mask(tmp_path / "labelsTr" / "p0.nii.gz")
    scan(tmp_path / "imagesTs" / "p1.nii.gz", 1)
    table = tmp_path / "labels.csv"
    table.write_text("file,label\np0.nii.gz,p0.nii.gz\np1.nii.gz,\n")
    first, second = read_manifest(table).candidates
    assert first.image == tmp_path / "imagesTr" / "p0.nii.gz"
    assert first.label == tmp_path / "labelsTr" / "p0.nii.gz"
    assert second.image == tmp_path / "imagesTs" / "p1.nii.gz"
    table.write_text("file,label\np0.nii.gz,benign\np1.nii.gz,malignant\n")
    assert [c.target for c in read_manifest(table).candidates] == [
        "benign",
        "malignant",
    ]


@each(
    "label, image, same",
    [
        ("sub-01_ses-2_space-T1w_desc-manual_dseg", "sub-01_ses-2_T1w", True),
        ("sub-01_T2w_label-SC_seg", "sub-01_T2w", True),
        ("sub-01_T2w_label-SC_seg", "sub-01_T1w", False),
        ("sub-01_ses-1_dseg", "sub-01_ses-2_T1w", False),
        ("sub-01_run-1_dseg", "sub-01_run-2_T1w", False),
        ("sub-01_dseg", "sub-011_T1w", False),
        ("dseg", "sub-01_T1w", False),
    ],
)
def test_which_scan_a_bids_name_is_of(label: str, image: str, same: bool) -> None:
    assert same_run(label, image) is same


def test_label_maps_in_the_derivatives_of_a_bids_data_set(tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text("{}")
    for number, (subject, session) in enumerate((s, v) for s in "12" for v in "12"):
        place = Path(f"sub-0{subject}") / f"ses-{session}" / "anat"
        name = f"sub-0{subject}_ses-{session}"
        image = scan(tmp_path / place / f"{name}_T1w.nii.gz", number)
        made = tmp_path / "derivatives" / "manual" / place
        mask(made / f"{name}_space-orig_desc-expert_dseg.nii.gz")
        processed = made / f"{name}_desc-preproc_T1w.nii.gz"
        processed.write_bytes(image.read_bytes())
        scan(made / f"{name}_probseg.nii.gz", number + 9)
    index, notes = indexed(tmp_path)
    assert [(c.subject, c.label is not None) for c in index.cases] == [
        ("sub-01", True), ("sub-01", True), ("sub-02", True), ("sub-02", True),
    ]  # fmt: skip
    for case in index.cases:
        session = case.image.name.split("_T1w")[0]
        assert case.label.name.startswith(f"{session}_space")
    assert any("8 processed scans below derivatives left out" in n for n in notes)


def test_folders_that_link_to_themselves_are_looked_at_once(folder: Path) -> None:
    (folder / "images" / "again").symlink_to(folder)
    (folder / "images" / "self").symlink_to("self")
    index, _ = indexed(folder)
    assert [c.id for c in index.cases] == ["images__p0", "images__p1", "images__p2"]
