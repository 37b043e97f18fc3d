"""A decoder that dies, hangs or lies costs one file, not the process."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dicom_writer import picture, tags_of, write
from homolog.errors import JobError
from homolog.scans import decoder
from homolog.scans.files import read_scan
from homolog.scans.inspect import inspect_scan
from homolog.scans.problems import Unsound
from scan_faults import dicom_series, image, values

# Does what the name of a file says, in the words of the real one.
FAKE = """
import faulthandler, json, os, signal, sys, time
tell = lambda told: (print(json.dumps(told), flush=True))
if os.path.exists(sys.argv[0] + ".dead"):
    sys.exit(3)
tell({"ready": True})
for line in sys.stdin:
    asked = json.loads(line)
    path = asked["path"]
    if "crash" in path:
        os.kill(os.getpid(), signal.SIGSEGV if os.name != "nt" else signal.SIGTERM)
        time.sleep(9)
    if "slow" in path:
        time.sleep(60)
    if "half" in path:
        tell({"shape": [4, 4, 4], "dtype": "<i2"})
        print("few", end="", flush=True)
        os._exit(0)
    if "huge" in path:
        tell({"shape": [100000, 100000, 100000], "dtype": "<i2"})
    elif asked["what"] == "pixels":
        tell({"shape": [1, 1, 4], "dtype": "|u1"})
        print("abcd", end="", flush=True)
    else:
        tell({"pid": os.getpid()})
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    helper = decoder._Helper()
    monkeypatch.setattr(decoder, "_SCRIPT", script)
    monkeypatch.setattr(decoder, "_helper", helper)
    for name in ("sound", "crash", "slow", "half", "huge"):
        (tmp_path / name).write_bytes(b"x")
    yield tmp_path
    helper.close()


@pytest.mark.parametrize("name", ["crash", "half"])
def test_a_file_that_ends_its_decoder_is_a_finding(fake: Path, name: str) -> None:
    before = decoder.information(fake / "sound")["pid"]
    with pytest.raises(Unsound, match="damaged in a way that ends its decoder") as told:
        decoder.pixels(fake / name)
    assert told.value.problem.code == "unreadable"
    assert ("SIGSEGV" in str(told.value)) == (name == "crash" and os.name != "nt")
    after = decoder.information(fake / "sound")["pid"]  # started again
    assert after != before
    assert decoder.pixels(fake / "sound").tobytes() == b"abcd"
    assert decoder.information(fake / "sound")["pid"] == after  # and kept


@pytest.mark.parametrize("bad", ["crash", "half", "huge"])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_one_of_many_files_that_is_bad_is_the_one_named(
    fake: Path, bad: str, place: int
) -> None:
    files = [fake / "sound"] * 3
    files.insert(place, fake / bad)
    with pytest.raises(Unsound) as told:
        decoder.pixels_of(files)
    assert str(fake / bad) in str(told.value)
    found = decoder.pixels_of([fake / "sound"] * 3)  # no answer is left over
    assert [one.tobytes() for one in found] == [b"abcd"] * 3
    assert decoder.information(fake / "sound")["pid"]


def test_a_decoder_that_never_answers_is_stopped(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_PATIENCE_S", 0.3)
    with pytest.raises(Unsound, match="not done after 0 s"):
        decoder.information(fake / "slow")
    monkeypatch.setattr(decoder, "_PATIENCE_S", 60.0)
    assert decoder.information(fake / "sound")


def test_values_beyond_the_memory_are_not_taken(fake: Path) -> None:
    with pytest.raises(Unsound, match="2000 TB of memory") as told:
        decoder.pixels(fake / "huge")
    assert told.value.problem.code == "too_large"
    assert decoder.pixels(fake / "sound").tolist() == [[[97, 98, 99, 100]]]


def test_no_decoder_at_all_is_no_fault_of_the_file(fake: Path) -> None:
    (fake / "fake.py.dead").touch()
    with pytest.raises(JobError, match="before its first file: exit status 3"):
        decoder.information(fake / "sound")


def test_a_decoder_killed_between_two_files_is_not_missed(fake: Path) -> None:
    decoder.information(fake / "sound")
    process = decoder._helper._process
    assert process is not None
    process.kill()
    process.wait()
    assert decoder.information(fake / "sound")


def test_an_interrupt_leaves_no_answer_behind(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_filled", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder.pixels(fake / "sound")
    assert "pid" in decoder.information(fake / "sound")


def test_threads_take_turns(tmp_path: Path) -> None:
    for number in range(4):
        picture = np.full((30 + number, 40), number + 1, np.uint8)
        picture[0] = 0
        sitk.WriteImage(image(picture), str(tmp_path / f"{number}.png"))
    wrong: list[int] = []

    def read(number: int) -> None:
        for _ in range(5):
            data = read_scan(tmp_path / f"{number}.png").data
            if data.shape != (1, 1, 30 + number, 40) or data.max() != number + 1:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_decoder_goes_with_its_parent_and_says_nothing(tmp_path: Path) -> None:
    dicom_series(tmp_path / "scan", 3)
    script = (
        "import os, sys\n"
        "from homolog.scans import decoder\n"
        "from homolog.scans.inspect import inspect_scan\n"
        "assert inspect_scan(sys.argv[1]).usable\n"
        "assert 'SimpleITK' not in sys.modules\n"
        "print(decoder._helper._process.pid, flush=True)\n"
        "os._exit(0)\n"  # as if killed: nothing is tidied up
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "scan")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stderr == ""
    pid = int(run.stdout)
    until = time.monotonic() + 20
    while time.monotonic() < until and _runs(pid):
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc").is_dir():
        return False
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
def test_a_damaged_length_takes_no_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = decoder._Helper()
    monkeypatch.setattr(decoder, "_helper", helper)
    path = write(tmp_path / "a.dcm", tags_of("CT"))
    element = struct.pack("<HHI", 0x8A31, 0x2F10, 3 << 29)
    path.write_bytes(path.read_bytes() + element + bytes(100))
    whole = decoder.pixels(path)  # GDCM gives up; pydicom does not look behind
    np.testing.assert_array_equal(whole[0], picture(0.0))
    assert helper._process is not None
    told = Path(f"/proc/{helper._process.pid}/status").read_text()
    peak_kb = int(told.partition("VmHWM:")[2].split()[0])
    helper.close()
    assert peak_kb < 1 << 20


def test_decoded_values_are_those_of_simpleitk(tmp_path: Path) -> None:
    kinds = ("u1", "u2", "i2", "f4")
    for number, kind in enumerate(kinds):
        data = values((1 + number, 20, 30), kind)
        path = tmp_path / f"{kind}.tif"
        sitk.WriteImage(image(data), str(path))
        found = decoder.pixels(path)
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_what_lies_around_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    (tmp_path / "SimpleITK.py").write_text("raise SystemExit(9)")
    sitk.WriteImage(image(values((20, 30), np.uint8)), str(tmp_path / "a.png"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoder, "_helper", decoder._Helper())
    assert inspect_scan(tmp_path / "a.png").usable
    decoder._helper.close()
