"""Texts that act are made visible, and text in a table; quantities in words."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from each import each
from homolog import words
from homolog.cli._run import exit_status, follow, show
from homolog.errors import UnusableInput
from homolog.events import Finished, Note, Progress, Saved, Started
from homolog.index.manifests import read_manifest
from homolog.scans.points import (
    Landmark,
    read_landmark_points,
    read_landmarks,
    read_points,
    write_landmarks,
    write_points,
)
from homolog.scans.volume import Points
from homolog.tasks.classify.answer import ClassChances, write_classes
from homolog.use.evaluate import write_tables
from homolog.words import (
    as_csv,
    cell,
    cell_text,
    counted,
    duration,
    human_bytes,
    listed,
    times,
    visible,
)
from homolog.writing import write_table

EVIL = "a\x1b]0;owned\x07\x1b[31mb\x9b2J\u202ecod\r\x08.nii"
SHOWN = r"a\x1b]0;owned\x07\x1b[31mb\x9b2J\u202ecod\r\x08.nii"
FORMULA = "=cmd|' /C calc'!A0"


def acts(text: str) -> list[str]:
    return [c for c in text if c not in "\n\t" and not c.isprintable()]


@each(
    "text, shown",
    [
        ("liver, 3 mm", "liver, 3 mm"),
        ("Höcker – 左腎 µm³", "Höcker – 左腎 µm³"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        (EVIL, SHOWN),
        ("\udce9t\udce9", r"\xe9t\xe9"),  # bytes of a file's name that are no UTF-8
        ("a\u2028b\U000e0041\ufeff", r"a\u2028b\U000e0041\ufeff"),
        ("", ""),
    ],
)
def test_what_acts_on_a_terminal_is_spelt_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    visible(text).encode()
    assert visible("a\nb\tc", one_line=True) == r"a\nb\tc"


def test_every_control_character_is_spelt_out() -> None:
    controls = [*range(32), *range(0x7F, 0xA0)]
    for code in controls:
        if chr(code) not in "\n\t":
            assert visible(chr(code)).isprintable()


def test_nothing_that_is_printed_acts(capsys: pytest.CaptureFixture[str]) -> None:
    events = [
        Started(EVIL), Progress(EVIL, 1, 1, f"{EVIL}\nb"), Note(EVIL), Note(EVIL, EVIL),
        Saved(EVIL, EVIL), Finished(),
    ]  # fmt: skip
    follow(iter(events))
    show({"path": EVIL}, True, [EVIL])
    exit_status(UnusableInput(f"{EVIL}: no such file."))
    exit_status(FileNotFoundError(2, "No such file", EVIL))
    out, err = capsys.readouterr()
    assert acts(out + err) == []
    assert err.count(r"\x1b]0;owned") >= 6
    assert json.loads(out.splitlines()[-1]) == {"path": EVIL}  # exactly


def test_a_wrong_command_does_not_act(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from homolog.cli import main

    for typed in ([EVIL], ["info", f"--{EVIL}"], ["info", EVIL]):
        monkeypatch.setattr("sys.argv", ["homolog", *typed])
        with pytest.raises(SystemExit) as told:
            main()
        assert told.value.code == 2
        out, err = capsys.readouterr()
        assert acts(out + err) == []
        assert r"\x1b]0;owned" in err


def test_a_sentence_of_the_window_does_not_act(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from homolog.gui.shared import notices

    said: list[str] = []
    hub = SimpleNamespace(say=lambda text, level: said.append(text))
    window = SimpleNamespace(any_hub=lambda: hub)
    monkeypatch.setitem(sys.modules, "homolog.gui.shared.hub", window)
    notices.notify(f"{EVIL}: not read.")
    assert said == [f"{SHOWN}: not read."]


DANGEROUS = ["=1+1", "+cmd", "-cmd", "@SUM(A1)", "\t=1", "\r=1", FORMULA, "-1+2"]
PLAIN = ["liver", "-1.5", "+2e-3", "-inf", "nan", "-", "=", "", "a=b", "'quoted'", "5%"]


@each("text", [*DANGEROUS, *(f"'{t}" for t in DANGEROUS)])
def test_a_cell_that_would_be_computed_is_text(text: str) -> None:
    assert cell(text) == f"'{text}"
    assert cell_text(cell(text)) == text


@each("text", [*PLAIN, *(f"'{t}" for t in PLAIN)])
def test_other_cells_stay_or_come_back(text: str) -> None:
    assert cell_text(cell(text)) == text
    if not text.startswith("'"):
        assert cell(text) == text


def test_a_table_reads_back_exactly(tmp_path: Path) -> None:
    names = [*DANGEROUS, *PLAIN, "a\r\nb", 'with "quotes", and comma']
    rows = [{"name": n, "value": i, "further": 1} for i, n in enumerate(names)]
    write_table(tmp_path / "t.csv", ("name", "empty", "value"), rows)
    assert computed(tmp_path / "t.csv") == []
    text = (tmp_path / "t.csv").read_bytes().decode()
    assert "\r\n" not in text.replace("a\r\nb", "")
    back = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [cell_text(row["name"]) for row in back] == names
    assert [row["empty"] for row in back] == [""] * len(names)
    assert [int(row["value"]) for row in back] == list(range(len(names)))
    assert as_csv("ab", [(1.5, None)], "\t") == "a\tb\n1.5\t\n"


def test_numbers_stay_numbers() -> None:
    assert words.cells([-1.5, 3, None, True]) == [-1.5, 3, None, True]


def computed(path: Path) -> list[str]:
    """Cells of a table that a spreadsheet would compute."""
    rows = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
    found = [c for row in rows for c in row if len(c) > 1 and c[0] in "=+-@\t\r"]
    return [c for c in found if not words._NUMBER.fullmatch(c)]


def test_points_and_landmarks_come_back_exactly(tmp_path: Path) -> None:
    names = (*DANGEROUS, "'=x", "a\r\n=b", "plain")
    mm = np.arange(3.0 * len(names)).reshape(-1, 3) - 7
    write_points(Points(mm, names), tmp_path / "p.csv")
    assert computed(tmp_path / "p.csv") == []
    for read in (read_points, read_landmark_points):
        back = read(tmp_path / "p.csv")
        assert back.names == names
        assert np.array_equal(back.mm, mm)
    place = (1.0, -2.0, 3.0)
    marks = [
        Landmark(i, n, place, place, 0.5, 0.1, 2.0, True) for i, n in enumerate(names)
    ]
    write_landmarks(marks, tmp_path / "m.csv")
    assert computed(tmp_path / "m.csv") == []
    assert [m.name for m in read_landmarks(tmp_path / "m.csv")] == list(names)


def test_tables_of_classes_and_scores_compute_nothing(tmp_path: Path) -> None:
    scan = tmp_path / FORMULA.replace("/", "_")
    scan.write_bytes(b"")
    formula = "=1+1"
    told = ClassChances(scan.name, {formula: 0.75, "b": 0.25}).to_dict()
    write_classes(tmp_path / "classes.csv", [{"scan": scan.name, **told}])
    assert computed(tmp_path / "classes.csv") == []
    (row,) = csv.DictReader(io.StringIO((tmp_path / "classes.csv").read_text()))
    assert float(row[f"p_{formula}"]) == 0.75
    # it can be read as a manifest: the same scan, the same class
    (case,) = read_manifest(tmp_path / "classes.csv").candidates
    assert (case.image.name, case.target) == (scan.name, formula)
    rows = [{"case": "@x", "name": FORMULA, "label": 1, "dice": -0.5}]
    columns = ["case", "name", "label", "dice"]
    csv_path, json_path = write_tables({"rows": rows, "columns": columns}, tmp_path)
    assert computed(csv_path) == []
    assert csv_path.read_text().splitlines()[1].endswith(",1,-0.5")
    assert json.loads(json_path.read_text())["rows"] == rows


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.2, "0.2 s"), (3.14, "3.1 s"), (9.7, "10 s"), (89, "89 s"),
        (125, "2 min"), (3569, "59 min"), (3571, "1 h"), (4980, "1 h 23 min"),
        (3600 * 5 + 120, "5 h 2 min"), (3600 * 9.999, "10 h"), (3600 * 23.6, "1 day"),
        (3600 * 53, "2 days 5 h"), (86400 * 3, "3 days"),
        (float("nan"), "?"), (float("inf"), "?"), (-1, "?"),
    ],
)  # fmt: skip
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12, "12 bytes"), (3400, "3.4 kB"), (99e6, "99 MB"), (999.6e6, "1.0 GB"),
        (4.12e9, "4.1 GB"), (2.5e15, "2500 TB"),
    ],
)  # fmt: skip
def test_sizes_carry_their_unit(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_counts_lists_and_lengths_in_words() -> None:
    counts = [counted(n, w) for n, w in ((0, "case"), (1, "class"), (1200, "class"))]
    assert counts == ["0 cases", "1 class", "1,200 classes"]
    assert [listed(x) for x in ("", "a", "ab", "abc")] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert listed(range(9), "or", most=3) == "0, 1 or 7 more"
    assert listed("abc", most=3) == "a, b and c"
    assert times((64, np.int64(32), 1.5)) == "64 x 32 x 1.5"
    assert times((0.123456789, 1_234_567), digits=3) == "0.123 x 1234567"
