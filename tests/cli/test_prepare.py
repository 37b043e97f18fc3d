"""``homolog prepare`` from a shell's point of view."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from homolog.cli import main
from homolog.geometry.affine import Affine
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume
from homolog.store.build import writing
from homolog.store.store import Store


@pytest.fixture
def run(monkeypatch, capfd):
    def call(*words):
        monkeypatch.setattr("sys.argv", ["homolog", "prepare", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        text = capfd.readouterr()
        return stop.value.code, text.out, text.err

    return call


def scan(path, seed=0, spacing=(1.0, 1.0, 1.0)):
    data = np.random.default_rng(seed).integers(0, 500, (1, 8, 9, 10)).astype(np.int16)
    write_volume(Volume(data, Affine.of(spacing)), path)


def test_a_dataset_becomes_a_store_and_the_last_line_says_so(
    run, phantom_folder, tmp_path
):
    out = tmp_path / "store"
    status, text, _ = run(phantom_folder, "--out", out, "--json")
    assert status == 0
    said = json.loads(text.splitlines()[-1])
    facts = {
        "cases": 8,
        "labelled": 8,
        "classed": 0,
        "boxed": 0,
        "channels": 1,
        "patients": 8,
        "rejected": [],
    }
    facts |= {"store": str(out)}
    assert said == {**facts, "kept": [], "removed": []}
    assert "8 cases (8 labelled), 0 rejected" in text
    assert "nothing is resampled" in text
    store = Store.open(out)
    assert {c.modality for c in store.cards} == {"CT"}
    assert "liver" in store.label_names.values()
    status, text, _ = run(phantom_folder, "--out", out)
    assert "0 prepared now, 8 were current" in text


def test_unsound_files_are_listed_with_their_reason_and_the_rest_goes_on(run, tmp_path):
    (tmp_path / "in").mkdir()
    scan(tmp_path / "in" / "good.nii.gz")
    scan(tmp_path / "in" / "torn.nii.gz", seed=1)
    whole = (tmp_path / "in" / "torn.nii.gz").read_bytes()
    (tmp_path / "in" / "torn.nii.gz").write_bytes(whole[: len(whole) // 2])
    status, text, _ = run(tmp_path / "in", "--out", tmp_path / "store", "--json")
    assert status == 0
    said = json.loads(text.splitlines()[-1])
    assert said["cases"] == 1
    assert said["labelled"] == 0
    (rejected,) = said["rejected"]
    assert rejected["path"].endswith("torn.nii.gz")
    assert rejected["reason"] in text
    assert json.loads((tmp_path / "store" / "rejected.json").read_text()) == [rejected]


def test_labels_are_called_as_given_and_stay_so(run, phantom_folder, tmp_path):
    out = tmp_path / "store"
    words = (phantom_folder, "--out", out)
    status, text, _ = run(*words, "--names", "1=my liver, 77=nothing there")
    assert status == 0
    assert "No label map holds 77 (nothing there)." in text
    before = Store.open(out)
    assert before.label_names[1] == "my liver"
    assert before.label_names[2] not in ("", "label 2")  # of the data set's own file
    status, text, _ = run(*words)
    assert status == 0
    assert "0 prepared now, 8 were current" in text
    assert "Label names given earlier were kept: 1 (my liver) and 77" in text
    assert Store.open(out).label_names == before.label_names


def test_help_tells_where_names_come_from_otherwise(run):
    status, text, _ = run("--help")
    assert status == 0
    told = " ".join(text.split())
    assert "Without --names, labels are called as dataset.json, a label_names" in told


def test_spacing_window_and_modality_reach_the_store(run, tmp_path):
    (tmp_path / "in").mkdir()
    scan(tmp_path / "in" / "a.nii.gz", spacing=(2.0, 1.0, 1.0))
    status, text, _ = run(
        tmp_path / "in", "--out", tmp_path / "store", "--spacing", "2,2,2",
        "--window-hu", "-160,240", "--modality", "ct",
    )  # fmt: skip
    assert status == 0
    assert "2 x 2 x 2 mm, as asked" in text
    store = Store.open(tmp_path / "store")
    (card,) = store.cards
    assert card.spacing_mm == pytest.approx((2.0, 2.0, 2.0))
    assert (card.modality, card.low, card.high) == ("CT", -160.0, 240.0)
    assert store.preprocessing.spacing_mm == (2.0, 2.0, 2.0)
    status, _, _ = run(
        tmp_path / "in", "--out", tmp_path / "store", "--spacing", "native"
    )
    assert Store.open(tmp_path / "store").cards[0].shape == (8, 9, 10)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "there is no such file or folder: nowhere"),
        (["in", "--spacing", "1,2"], "--spacing must be three numbers z,y,x"),
        (["in", "--spacing", "1,2,-3"], "spacing_mm must be in"),
        (["in", "--window-hu", "300,100"], "LO below HI"),
        (["in", "--modality", "xray"], "xray"),
        (["in", "--names", "1=liver, left"], "got 'left' in '1=liver, left'"),
        (["in", "--names", "0=air"], "0 is background"),
        (["in", "--names", "1=a,1=b"], "label 1 must have one name"),
        (["empty"], "no scans in this folder"),
        (["torn"], "no sound scan was found"),
    ],
)
def test_wrong_usage_and_unusable_input_end_with_one_sentence(
    run, tmp_path, monkeypatch, words, sentence
):
    monkeypatch.chdir(tmp_path)
    for name in ("in", "empty", "torn"):
        (tmp_path / name).mkdir()
    scan(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "torn" / "a.nii.gz").write_bytes(b"\x1f\x8b nonsense")
    status, _, error = run(*words, "--out", "store")
    assert status == 2
    assert sentence in error
    assert "Traceback" not in error


def test_a_full_disk_ends_with_one_sentence(run, tmp_path, monkeypatch):
    import errno

    from homolog.store import cases

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "in").mkdir()
    scan(tmp_path / "in" / "a.nii.gz")
    monkeypatch.setattr(cases, "write_array", full)
    status, _, error = run(tmp_path / "in", "--out", tmp_path / "store")
    assert status == 1
    assert "is full" in error


def test_pictures_keep_their_pixels(run, tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    for i in range(3):
        data = np.random.default_rng(i).integers(0, 255, (40, 50)).astype(np.uint8)
        Image.fromarray(data).save(tmp_path / "in" / f"x{i}.png")
    status, text, _ = run(tmp_path / "in", "--out", tmp_path / "s", "--modality", "XR")
    assert status == 0
    assert "each keeps its own pixels" in text
    assert {c.shape for c in Store.open(tmp_path / "s").cards} == {(1, 40, 50)}


@pytest.mark.kit
def test_the_real_hippocampi_are_all_sound(run, data_kit, tmp_path):
    source = data_kit / "msd_hippocampus"
    status, text, _ = run(source, "--out", tmp_path / "store", "--json")
    said = json.loads(text.splitlines()[-1])
    shutil.rmtree(tmp_path / "store")
    assert status == 0
    assert (said["cases"], said["labelled"], said["rejected"]) == (156, 156, [])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_whoever_ends_it_finds_whole_cases_and_a_free_store(tmp_path, number):
    (tmp_path / "in").mkdir()
    for i in range(3):
        scan(tmp_path / "in" / f"s{i}.nii.gz", seed=i)
    out, folder = tmp_path / "store", str(tmp_path / "in")
    code = f"""
        import os, signal, sys
        signal.signal(signal.{number}, signal.SIG_DFL)  # nohup would ignore it
        from homolog.store import cases
        real = cases.write_array
        def write(data, path):
            real(data, path)
            if "s1" in str(path):
                os.kill(os.getpid(), signal.{number})
        cases.write_array = write
        sys.argv = ["homolog", "prepare", {folder!r}, "--out", {str(out)!r}]
        from homolog.cli import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert "what is prepared stays" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(out / "cases") == ["s0"]
    with writing(out):
        pass
