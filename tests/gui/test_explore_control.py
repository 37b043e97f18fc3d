"""What Explore decides: hints, queries, answers in other patients. No Qt, no napari."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from explore_files import feature_map, tilted, unit_features

from each import each
from homolog.geometry.affine import Affine
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.feature_slices import Pins, export_pins
from homolog.gui.shared.layers import ScanRef
from homolog.gui.shared.scan_layers import (
    mark_size,
    match_marks,
    pin_marks,
    shown_of,
    slice_axis,
    slice_steps,
)
from homolog.gui.shared.scans import (
    IN_3D,
    INSTALL,
    NO_FEATURES,
    NO_MODEL,
    NO_SCAN,
    OUTSIDE,
    READY,
    ExploreControl,
    Ready,
    Scan,
    answer_of,
    labels_of,
)
from homolog.scans.points import read_points

SHAPE = (12, 16, 20)
CELLS = (6, 8, 10)
BLOB = np.ones(16) / 4


def model(name: str = "run") -> ModelChoice:
    return ModelChoice(Path("/models") / name, name, "encoder", "resunet")


def scan(
    key: str, origin=(0.0, 0.0, 0.0), degrees: float = 0.0, path: str = ""
) -> tuple[Scan, Affine]:
    """A scan of 2 mm voxels, and the true affine of its feature cells of 4 mm."""
    direction = tilted(degrees) if degrees else None
    true = Affine.of((2, 2, 2), origin, direction)
    grid = Affine.of((2, 2, 2), origin)
    ref = ScanRef(key, Path(path) if path else None, "CT", SHAPE, (2.0, 2.0, 2.0))
    return Scan(key, ref, true @ grid.inverse(), grid), true.coarsen((2, 2, 2))


def ready(scan: Scan, cells: Affine, seed: int, blob=None) -> Ready:
    data = unit_features(CELLS, seed=seed)
    if blob is not None:
        data[blob] = BLOB
    return Ready.of(feature_map(data, cells), scan.to_true)


@pytest.fixture
def pair() -> tuple[ExploreControl, Scan, Scan]:
    """Two patients far apart, the second tilted; a blob in a cell of each."""
    control = ExploreControl(encoder=model())
    (a, cells_a), (b, cells_b) = scan("a"), scan("b", (300.0, -80.0, 40.0), 20.0)
    control.set_scans([a, b])
    control.found("a", ready(a, cells_a, 1, (2, 3, 4)))
    control.found("b", ready(b, cells_b, 2, (4, 6, 2)))
    return control, a, b


def test_hints_instead_of_silence() -> None:
    control = ExploreControl()
    assert control.hint() == control.hint(3)
    assert control.hint().text == NO_MODEL
    assert control.hint().action == "pretrain"
    control.engine_missing = ("torch",)
    assert (control.hint().text, control.hint().action) == (INSTALL, "install")
    control.engine_missing = ()
    control.choose_encoder(model())
    assert (control.hint().text, control.hint().action) == (NO_SCAN, "data")
    one, cells = scan("a")
    control.set_scans([one])
    assert "Looking" in control.hint().text
    control.found("a", None)
    assert (control.hint().text, control.hint().action) == (NO_FEATURES, "compute")
    one.state = "computing"
    assert "go on working" in control.hint().text
    control.found("a", ready(one, cells, 0))
    assert control.hint(over=True).text == READY
    assert control.hint(over=False).text == OUTSIDE
    assert control.hint(ndisplay=3).text == IN_3D


def test_features_that_were_made_before_need_no_engine() -> None:
    control = ExploreControl(encoder=model(), engine_missing=("torch",))
    one, cells = scan("a")
    control.set_scans([one])
    control.found("a", ready(one, cells, 0))
    assert control.hint().text == READY


def test_a_marked_blob_is_found_in_the_other_patient(pair) -> None:
    control, a, b = pair
    at_blob = a.ready.shown.apply((2, 3, 4))
    query = control.ask(a, at_blob)
    assert np.allclose(query.mm, (9, 13, 17))  # cell centres lie between two voxels
    answer = answer_of(b, b.ready, query.vector, lambda: False)
    true = b.ready.features.affine.apply((4, 6, 2))
    assert np.linalg.norm(np.array(answer.mm) - true) < 2.0  # within half a cell
    assert answer.similarity == pytest.approx(1, abs=2e-3)
    assert answer.margin > 0.2
    assert answer.is_clear
    assert answer.whole.shape == CELLS
    shown = shown_of(b.to_true, answer.mm)
    assert b.holds(shown)
    assert np.linalg.norm(shown - (300 + 17, -80 + 25, 40 + 9)) < 2.0


def test_a_tilted_scan_is_asked_in_true_millimetres(pair) -> None:
    control, _, b = pair
    query = control.ask(b, b.ready.shown.apply((4, 6, 2)))
    assert np.allclose(query.mm, b.ready.features.affine.apply((4, 6, 2)))
    assert float(query.vector @ BLOB) == pytest.approx(1, abs=2e-3)
    assert np.abs(b.ready.shown.matrix[:3, :3] - np.eye(3) * 4).max() < 1e-9


def test_which_scan_is_meant(pair) -> None:
    control, a, b = pair
    c, cells = scan("c")  # lies where a lies
    control.set_scans([a, b, c])
    place = np.array([10.0, 10.0, 10.0])
    assert control.under(place, ["c", "b", "a"], None) is a  # c has no features
    control.found("c", ready(c, cells, 5))
    assert control.under(place, ["c", "b", "a"], None) is c
    assert control.under(place, ["c", "b", "a"], "a") is a  # the selected one
    assert control.under(place, ["c", "b"], "a") is c  # a is hidden
    assert control.under(place + 100, ["c", "b", "a"], None) is None


def test_the_cursor_is_told_how_like_the_pin_it_is(pair) -> None:
    control, a, _ = pair
    blob, other = a.ready.shown.apply((2, 3, 4)), a.ready.shown.apply((2, 5, 6))
    control.ask(a, blob)
    assert "under the mouse" in control.readout(blob, a)
    pin = control.pin(control.query, "left kidney")
    cut = control.cut(a, 0, blob[0])
    a.ready.buffer.show(cut, a.ready.cache.similarity(pin.query, cut))
    assert control.readout(blob, a) == "similarity 1.00 to 'left kidney'"
    told = control.readout(other, a)
    cell = np.moveaxis(a.ready.features.data, 0, -1)[2, 5, 6].astype(np.float32)
    assert told == f"similarity {float(cell @ pin.query):.2f} to 'left kidney'"
    control.ask(a, other)  # hovering: still told of the pin
    assert control.readout(other, a) == told
    assert control.readout(blob + 500, a) == told  # of the asked place, not the map


def test_closing_and_reopening_scans(pair) -> None:
    control, a, b = pair
    pin = control.pin(control.ask(a, a.ready.shown.apply((2, 3, 4))))
    pin.answers["b"] = answer_of(b, b.ready, pin.query, lambda: False)
    new, gone = control.set_scans([a])
    assert (new, gone) == ([], ["b"])
    assert not pin.answers
    again, _ = scan("b", (300.0, -80.0, 40.0), 20.0)
    new, gone = control.set_scans([a, again])
    assert new == [again]
    assert again.state == "looking"
    moved, _ = scan("a", (1.0, 0.0, 0.0))
    new, _ = control.set_scans([moved, again])
    assert new == [moved]


def test_another_encoder_asks_pins_anew(pair) -> None:
    control, a, _ = pair
    pin = control.pin(control.ask(a, a.ready.shown.apply((2, 3, 4))))
    before = pin.query
    assert not control.choose_encoder(model())
    assert control.choose_encoder(model("other"))
    assert a.state == "looking"
    assert control.query is None
    assert control.query_of_pin(pin) is None  # of the other encoder
    _, cells = scan("a")
    control.found("a", ready(a, cells, 9))
    assert control.query_of_pin(pin) is not None
    assert not np.allclose(before, pin.query)


def test_a_failed_scan_says_why_and_one_that_was_cancelled_does_not() -> None:
    control = ExploreControl(encoder=model())
    one, _ = scan("a")
    control.set_scans([one])
    control.failed(["a", "gone"], "the disk is full.")
    assert (one.state, one.line()) == ("failed", "the disk is full.")
    control.failed(["a"], "")
    assert one.line() == "no features yet"
    one.state, one.share, one.remaining_s = "computing", 0.34, 130
    assert one.line() == "computing 34%, 2 min left"


def test_labels_are_the_lit_voxels_of_the_scans_own_grid(pair) -> None:
    _control, a, _ = pair
    whole = np.zeros(CELLS, np.float32)
    whole[2, 3, 4] = 1.0
    labels = labels_of(a, a.ready, whole, 0.4, 1.0)
    assert labels.shape == SHAPE
    # A cell of 4 mm is worth 0.42 at its eight voxels, trilinear.
    assert sorted(map(tuple, np.argwhere(labels))) == sorted(
        (z, y, x) for z in (4, 5) for y in (6, 7) for x in (8, 9)
    )
    assert not labels_of(a, a.ready, whole, 0.43, 0.9).any()


def test_marks_stand_where_scans_are_shown(pair) -> None:
    control, a, b = pair
    pin = control.pin(control.ask(a, a.ready.shown.apply((2, 3, 4))))
    pin.answers["a"] = answer_of(a, a.ready, pin.query, lambda: False)
    pin.answers["b"] = answer_of(b, b.ready, pin.query, lambda: False)
    (mark,) = pin_marks(control, ["a", "b"])
    assert np.allclose(mark.shown_mm, (9, 13, 17))
    assert mark.text == "1"
    control.pins.rename(1, " spleen  tip ")
    (match,) = match_marks(control, ["a", "b"])
    assert match.text == "1 spleen tip (1.00)"
    assert b.holds(match.shown_mm)
    assert not match_marks(control, ["a"])
    assert not pin_marks(control, ["b"])
    pin.visible = False
    assert not pin_marks(control, ["a", "b"])
    assert mark_size([a]) == pytest.approx(40 / 30)
    assert slice_steps([a, b]) == (2.0, 2.0, 2.0)


def test_pins_are_renamed_deleted_and_never_renumbered() -> None:
    pins = Pins()
    for i in range(3):
        pins.add("a", "scan", (i, 0.0, 0.0), BLOB.astype(np.float32))
    assert [p.name for p in pins] == ["place 1", "place 2", "place 3"]
    assert pins.rename(2, "  ") == "place 2"
    pins.chosen = 2
    pins.delete(2)
    assert pins.chosen == 3
    pins.delete(3)
    assert pins.chosen == 1
    fourth = pins.add("a", "scan", (0.0, 0.0, 0.0), BLOB.astype(np.float32))
    assert fourth.number == 4
    looks = {(p.colour, p.symbol) for p in pins}
    assert len(looks) == 2
    pins.delete(1)
    pins.delete(4)
    assert pins.chosen is None
    assert len(pins) == 0


def test_exported_places_state_their_coordinates(pair, tmp_path: Path) -> None:
    control, a, b = pair
    pin = control.pin(control.ask(a, a.ready.shown.apply((2, 3, 4))), "blob")
    pin.answers["b"] = answer_of(b, b.ready, pin.query, lambda: False)
    export_pins(control.pins, tmp_path / "p.json", "run")
    content = json.loads((tmp_path / "p.json").read_text())
    assert "LPS" in content["coordinates"]
    assert content["encoder"] == "run"
    assert [r["kind"] for r in content["points"]] == ["query", "match"]
    export_pins(control.pins, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["coordinates"] == "LPS"
    assert rows[1]["scan"] == "b"
    points = read_points(tmp_path / "p.csv")
    assert np.allclose(points.mm[0], (9, 13, 17))
    assert points.names[0] == "blob"


@each(
    "ndim, ndisplay, hidden, axis",
    [(3, 2, (0,), 0), (3, 2, (2,), 2), (3, 3, (), None), (4, 2, (0, 2), 1),
     (4, 2, (1, 2), None), (2, 2, (), None), (4, 3, (0,), None)],
)  # fmt: skip
def test_which_axis_a_view_looks_along(ndim, ndisplay, hidden, axis) -> None:
    dims = SimpleNamespace(ndim=ndim, ndisplay=ndisplay, not_displayed=hidden)
    assert slice_axis(SimpleNamespace(dims=dims)) == axis


def test_a_scan_in_view_of_no_slice_has_no_cut(pair) -> None:
    control, a, b = pair
    assert control.cut(a, 0, 12.0) is not None
    assert control.cut(b, 0, 12.0) is None
    assert control.cut(SimpleNamespace(ready=None), 0, 12.0) is None
