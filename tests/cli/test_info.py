"""``homolog info``: the table, the JSON, the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from homolog.cli import main
from homolog.geometry.affine import Affine
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume


def run(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkey = pytest.MonkeyPatch()
    monkey.setattr(sys, "argv", ["homolog", "info", *arguments])
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        monkey.undo()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    data = np.random.default_rng(0).integers(0, 900, (1, 4, 5, 6)).astype(np.int16)
    path = tmp_path / "head_t1w.nii.gz"
    write_volume(Volume(data, Affine.of((3.0, 2.0, 1.0))), path)
    return path


def test_size_spacing_orientation_and_modality_are_shown(
    scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run([str(scan)], capsys)
    assert status == 0
    line = out.splitlines()[1]
    for cell in ("4 x 5 x 6", "3 x 2 x 1", "LPS", "MR", "nifti int16"):
        assert cell in line


def test_json_is_the_last_line(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run([str(scan), "--json"], capsys)
    record = json.loads(out.splitlines()[-1])["scans"][0]
    assert status == 0
    assert record["size"] == [4, 5, 6]
    assert record["spacing_mm"] == [3.0, 2.0, 1.0]
    assert record["usable"] is True
    assert record["problems"] == []
    assert record["modality"] == "MR"


def test_a_fault_is_told_and_no_deep_reads_only_headers(
    scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = scan.read_bytes()
    scan.write_bytes(content[:-20])
    status, out, err = run([str(scan)], capsys)
    assert status == 0
    assert "unusable: the gzip stream ends before its checksum." in out
    assert err == ""
    _, out, _ = run([str(scan), "--no-deep"], capsys)
    assert "unusable" not in out


def test_a_wrong_path_is_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run([str(tmp_path / "nope.nii")], capsys)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "nope.nii: no such file or folder." in err
    status, _, err = run([str(tmp_path)], capsys)
    assert status == 2
    assert "no scans in this folder" in err


def test_what_is_no_scan_at_all_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.nii.gz"
    path.write_text("not a scan")
    status, out, _ = run([str(path)], capsys)
    assert status == 2
    assert "unusable:" in out


def test_a_folder_shows_all_its_scans(
    scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sitk.WriteImage(
        sitk.GetImageFromArray(np.arange(600, dtype=np.uint8).reshape(20, 30)),
        str(scan.parent / "picture.png"),
    )
    (scan.parent / "notes.txt").write_text("nothing")
    status, out, _ = run([str(scan.parent)], capsys)
    assert status == 0
    assert "head_t1w.nii.gz" in out
    assert "picture.png" in out
    assert "notes" not in out


def test_help_loads_no_image_library() -> None:
    code = (
        "import sys; sys.argv = ['homolog', 'info', '--help']\n"
        "from homolog.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'SimpleITK' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
