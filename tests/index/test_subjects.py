"""Who is one patient, where only names of files and folders tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homolog.config import ConfigError
from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.index.index import index_sources
from homolog.index.subjects import guess_subjects, person_of
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume

SAME = {
    "acdc_001": "acdc_001_ED acdc_001_ES acdc_001",
    "patient001": "patient001_frame01 patient001_frame12 patient001_4d patient001",
    "sub-01": "sub-01_ses-02_T1w sub-01_ses-01_run-2_bold sub-01",
    "BraTS20_Training_001": "BraTS20_Training_001_t1ce BraTS20_Training_001_flair",
    "BraTS-GLI-00005": "BraTS-GLI-00005-000-t1n BraTS-GLI-00005-001-t2f",
    "P01": "P01_t0 P01-t12 P01_visit2 P01_ses-02 P01.pre P01_post P01_T1_post P01_L",
    "case 7": "case 7 baseline,case 7 follow_up_1,case 7 scan2",
    "001": "001_SA_ED 001_LA_ES 001_SA",
    "IXI002-Guys-0828": "IXI002-Guys-0828-T1 IXI002-Guys-0828-T2 IXI002-Guys-0828-PD",
    "OAS2_0001": "OAS2_0001_MR1 OAS2_0001_MR2",
    "TCGA-02-0003": "TCGA-02-0003_1997.06.08 TCGA-02-0003_1998.01.02_t1Gd",
    "00000013": "00000013_000 00000013_005",
    "subject12": "subject12_C0 subject12_DE subject12_T2",
    "liver_12": "liver_12_arterial liver_12_portalvenous liver_12_phase3",
    "mouse3": "mouse3_week_04 mouse3_day12",
}
APART = """
    hippocampus_001 hippocampus_002 amos_0001 amos_0002 la_001 la_002 chaos_01 btcv_00
    btcv_04 mscmr_01 volume-0 volume-1 case_00000 case_00001 s0001 s0002 Case00 Case01
    prostate_00 BRATS_001 BRATS_002 LIDC-IDRI-0001 LIDC-IDRI-0002 scan1 scan2
    heart_scan12 phantom_000 phantom_001 study_01 study_02 site2_pet01 site2_pet02
    img0001 img0002
    ct_train_1001 ct_train_1002 mr_train_1001 T1 T2 ED m07 m08 lung_001 colon_002
""".split()


def named(text: str) -> list[str]:
    return text.split(",") if "," in text else text.split()


@pytest.mark.parametrize("person", SAME)
def test_names_that_differ_in_time_phase_sequence_or_side_are_one(person: str) -> None:
    names = [n for n in named(SAME[person]) if "follow_up" not in n]
    assert {person_of(name) for name in names} == {person}


def test_numbers_alone_are_persons() -> None:
    assert [person_of(name) for name in APART] == APART


@given(st.text("aP1_-. 0ES", max_size=24))
def test_what_is_cut_is_an_end_and_nothing_more_can_be_cut(name: str) -> None:
    person = person_of(name)
    assert name.startswith(person)
    assert person_of(person) == person
    assert bool(person) == bool(name)


def test_folders_called_like_a_visit_or_a_sequence_are_no_persons() -> None:
    root = Path("/data")

    def whose(*names: str) -> dict[str, str]:
        found = guess_subjects([root / f"{n}.nii.gz" for n in names], root)
        return {n: found.get(root / f"{n}.nii.gz", "") for n in names}

    found = whose("P01/visit1/T1", "P01/visit2/T1", "P02/visit1/T1", "P02/visit1/T2")
    assert list(found.values()) == ["P01", "P01", "P02", "P02"]
    found = whose("ED/p1", "ES/p1", "ED/p2", "ES/p2")
    assert list(found.values()) == ["p1", "p1", "p2", "p2"]
    found = whose("P01/T1", "P02/T1")
    assert list(found.values()) == ["P01", "P02"]


def write(folder: Path, *names: str) -> None:
    rng = np.random.default_rng(len(names))
    for name in names:
        data = rng.integers(0, 200, (1, 6, 8, 8)).astype(np.int16)
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(Volume(data, Affine.of((5, 1, 1)), name=name), path)


def subjects(found) -> dict[str, str]:
    return {case.id: case.subject for case in found.cases}


def test_an_index_says_how_many_patients_there_are_and_how_it_knows(tmp_path) -> None:
    write(tmp_path, "a_001_ED", "a_001_ES", "a_002_ED")
    found = drain(index_sources([tmp_path]))
    assert subjects(found) == {
        "a_001_ED": "a_001", "a_001_ES": "a_001", "a_002_ED": "a_002"
    }  # fmt: skip
    assert found.patients == (
        "3 scans of 2 patients (by their names; a_001_ED and a_001_ES are one); where "
        "that is wrong: --subjects."
    )


def test_a_pattern_wins_over_names_and_a_manifest_over_both(tmp_path) -> None:
    write(tmp_path, "x/a-17-1", "x/a-17-2", "x/b-18-1")
    pattern = r"([ab]-\d+)-\d"
    found = drain(index_sources([tmp_path], subjects=pattern))
    assert list(subjects(found).values()) == ["a-17", "a-17", "b-18"]
    table = tmp_path / "list.csv"
    table.write_text("image,subject\nx/a-17-1.nii.gz,Ann\nx/a-17-2.nii.gz,\n")
    found = drain(index_sources([table], subjects=pattern))
    assert sorted(subjects(found).values()) == ["Ann", "a-17"]
    assert "1 as the source states" in found.patients


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "regular expression"),
        ("patient", "a group in brackets"),
        ("(patient)", "matches no name"),
    ],
)
def test_patterns_that_cannot_be_meant(tmp_path, pattern: str, words: str) -> None:
    write(tmp_path, "a_1")
    with pytest.raises(ConfigError, match=words):
        drain(index_sources([tmp_path], subjects=pattern))


def test_names_that_a_pattern_misses_are_told(tmp_path) -> None:
    write(tmp_path, "a_1", "b_1")
    found = drain(index_sources([tmp_path], subjects="(a)_"))
    assert subjects(found) == {"a_1": "a", "b_1": "b_1"}
    assert any("does not match 1 name (b_1)" in note for note in found.notes)
