"""One figure of learning curves of several data sets, from made-up tables."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from homolog.comparing.report import colours_of, curves_figure, learning_curves
from homolog.drawing.html import GREY

SVG = "{http://www.w3.org/2000/svg}"
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "learning_curves.py"


def table(arms, counts=(1, 3), empty=()):
    """A comparison as ``comparison.json`` has it: what drawings read of it."""
    entries = [
        {
            "arm": arm, "patients": count, "mean": 0.5 + 0.1 * i + 0.05 * j,
            "low": 0.45 + 0.1 * i, "high": 0.6 + 0.1 * i,
        }
        for i, arm in enumerate(arms)
        for j, count in enumerate(counts)
        if arm not in empty
    ]  # fmt: skip
    told = [{"name": arm, "against": "scratch"} for arm in arms]
    return {"arms": told, "table": entries, "metric": "dice"}


TWO = {
    "LA <MR>": table(("scratch", "mae", "s2dc"), (2, 4, 8)),
    "CHAOS": table(("scratch", "s2dc", "carried"), (1, "all")),
}


def drawn(text):
    """Panels, and texts with their colours of the key."""
    root = ElementTree.fromstring(text)
    panels = root.findall(f"{SVG}svg")
    names = [t.text for t in root.findall(f"{SVG}text") if t.get("class") == "k"]
    boxes = [r.get("fill") for r in root.findall(f"{SVG}rect")]
    return root, panels, dict(zip(names, boxes[1:], strict=True))


def test_each_data_set_has_a_panel_and_each_arm_one_line_with_its_dots():
    root, panels, _ = drawn(curves_figure(TWO))
    assert [len(p.findall(f"{SVG}polyline")) for p in panels] == [3, 3]
    assert [len(p.findall(f"{SVG}circle")) for p in panels] == [9, 6]
    titles = [t.text for t in root.findall(f"{SVG}text") if t.get("class") == "h"]
    assert titles == ["LA <MR>", "CHAOS"]
    whole = root.find(f"{SVG}rect")
    assert whole.get("fill") == "#fff"
    assert (whole.get("width"), whole.get("height")) == (
        root.get("width"), root.get("height")
    )  # fmt: skip


def test_an_arm_has_one_colour_everywhere_and_the_control_is_grey():
    _, panels, key = drawn(curves_figure(TWO))
    assert list(key) == ["scratch", "mae", "s2dc", "carried"]
    assert key["scratch"] == GREY
    assert len(set(key.values())) == 4
    lines = [[x.get("stroke") for x in p.findall(f"{SVG}polyline")] for p in panels]
    assert lines[0] == [key["scratch"], key["mae"], key["s2dc"]]
    assert lines[1] == [key["scratch"], key["s2dc"], key["carried"]]


def test_panels_lie_beside_each_other_then_below():
    three = {**TWO, "ACDC": table(("scratch", "mae"))}
    root, panels, _ = drawn(curves_figure(three, width=300, height=200))
    places = [(float(p.get("x")), float(p.get("y"))) for p in panels]
    assert places[0][1] == places[1][1] < places[2][1]
    assert places[0][0] == places[2][0] < places[1][0]
    for p, (x, y) in zip(panels, places, strict=True):
        assert x + float(p.get("width")) <= float(root.get("width"))
        assert y + float(p.get("height")) <= float(root.get("height"))


def test_what_has_no_result_yet_is_left_out():
    some = table(("scratch", "mae", "s2dc"), empty=("mae",))
    _, panels, key = drawn(curves_figure({"A": some, "B": table(("scratch",), ())}))
    assert list(key) == ["scratch", "s2dc"]
    assert len(panels) == 1
    # The same colours as where it has one.
    assert key["s2dc"] == colours_of(table(("scratch", "mae", "s2dc")))["s2dc"]


def test_without_any_result_there_is_no_figure():
    assert curves_figure({"A": table(("scratch",), ())}) == ""


def test_many_arms_take_lines_of_the_key_below_each_other():
    many = table(("scratch", *(f"a method of long name {i}" for i in range(9))))
    root, _, key = drawn(curves_figure({"A": many}))
    assert len(key) == 10
    words = [t for t in root.findall(f"{SVG}text") if t.get("class") == "k"]
    places = {(w.get("x"), w.get("y")) for w in words}
    assert len(places) == 10
    assert max(float(w.get("y")) for w in words) < float(root.get("height"))


def test_the_reports_drawing_keeps_its_key():
    root = ElementTree.fromstring(learning_curves(TWO["CHAOS"]))
    texts = [t.text for t in root.findall(f"{SVG}text")]
    assert {"scratch", "s2dc", "carried"} <= set(texts)


def test_the_command_draws_files_and_refuses_others(tmp_path):
    good, other = tmp_path / "la_small.json", tmp_path / "other.json"
    good.write_text(json.dumps(TWO["LA <MR>"]), encoding="utf-8")
    other.write_text('{"rows": []}', encoding="utf-8")
    out = tmp_path / "curves.svg"

    def run(*words):
        return subprocess.run(
            (sys.executable, SCRIPT, *map(str, words), "--out", out),
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = run(good, f"Left atrium={good}")
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    assert "la small" in text
    assert "Left atrium" in text
    refused = run(other)
    assert refused.returncode == 2
    assert "other.json" in refused.stderr
    absent = run(tmp_path / "none.json")
    assert absent.returncode == 2
    assert "none.json" in absent.stderr


@pytest.mark.parametrize("columns", [1, 2])
def test_one_panel_is_as_wide_as_it_is(columns):
    one = dict(list(TWO.items())[:columns])
    root, panels, _ = drawn(curves_figure(one, width=320))
    assert len(panels) == columns
    assert float(root.get("width")) >= 320 * columns
