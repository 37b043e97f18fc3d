"""Walking through folders ends, whatever lies in them, and waits for nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from homolog.cli import cli
from homolog.errors import UnusableInput
from homolog.gui.files.reader import get_reader
from homolog.gui.files.sources import sources_of
from homolog.index.index import find_cases
from homolog.index.tree import holds_dicom, list_series, walk
from homolog.json_files import read_object
from homolog.scans.inspect import inspect_scan
from homolog.scans.names import names_of_dataset
from homolog.scans.paths import is_scan_path
from scan_faults import dicom_series, nifti, put, values

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes, devices and links")

NAMES = ("p.nii", "p.nii.gz", "p.nrrd", "p.nhdr", "p.mhd", "p.dcm", "p.png", "p.hdr",
         "p.mgz", "p.csv", "p.json", "p", "p.dat")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One scan and one DICOM series among pipes, a socket, devices and loops."""
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    put(folder / "a.nii.gz", nifti(values(), srow=np.eye(3, 4)))
    dicom_series(folder / "series", 3)
    for name in NAMES:
        os.mkfifo(folder / name)
        os.mkfifo(folder / "series" / name)
    (folder / "zero.nii").symlink_to("/dev/zero")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "sub" / "here").symlink_to(".")
    (folder / "again").symlink_to("sub")
    (folder / "loop.nii").symlink_to("loop.nii")
    with socket.socket(socket.AF_UNIX) as plug:
        here = Path.cwd()
        os.chdir(folder)  # its name must be short
        plug.bind("s.nii")
        os.chdir(here)
    return folder


def test_a_walk_passes_over_what_is_no_file_and_ends(folder: Path) -> None:
    tree = walk(folder)
    assert [p.name for p in tree.files] == ["a.nii.gz", "loop.nii"]
    assert [p.name for p in tree.dicom_folders] == ["series"]
    assert holds_dicom(folder)
    assert [s.shape[0] for s in list_series(folder)] == [3]
    assert is_scan_path(folder / "series")
    assert not is_scan_path(folder / "sub")


def test_a_pipe_named_directly_is_one_sentence(folder: Path) -> None:
    for name in (*NAMES, "zero.nii", "s.nii"):
        path = folder / name
        found = inspect_scan(path).reason
        assert found is not None
        assert found.text == "a pipe, device or socket, not a file."
        assert not is_scan_path(path)
        assert get_reader(str(path)) is None
        assert "not a file" in sources_of([path])[0].trouble
        with pytest.raises(UnusableInput, match="a pipe, device or socket"):
            find_cases(path, (), inspect_scan)
    assert inspect_scan(folder / "loop.nii").reason.code == "missing"


def test_json_that_is_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "dataset.json")
    assert names_of_dataset(folder / "a.nii.gz") == {}
    assert walk(folder).datasets == []
    for name in ("p.json", "zero.nii"):
        with pytest.raises(UnusableInput, match="a pipe, device or socket"):
            read_object(folder / name)


def test_commands_end_among_pipes(folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(cli, ["info", str(folder)])
    assert run.exit_code == 0, run.output
    assert "a.nii.gz" in run.output
    assert "/p.nii" not in run.output
    store = str(tmp_path / "store")
    run = CliRunner().invoke(cli, ["prepare", str(folder), "--out", store])
    assert run.exit_code == 0, run.output
    assert "2 cases" in run.output
    labels = str(folder / "p.nii")
    command = ["prepare", str(folder / "a.nii.gz"), "--labels", labels, "--out", store]
    run = CliRunner().invoke(cli, command)
    assert "a pipe, device or socket" in str(run.exception) + run.output
