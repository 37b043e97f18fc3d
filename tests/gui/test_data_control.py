"""What the Data panel decides: rows, badges, and the store asked for. No Qt here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from each import each
from homolog.config import from_dict
from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.gui.data.build_box import (
    Pace,
    build_config,
    fold_words,
    free_name,
    names_problem,
    parse_spacing,
    rejected_text,
    result_line,
)
from homolog.gui.data.control import (
    BAD,
    DOUBT,
    UNREAD,
    file_row,
    gather,
    labels_on,
    layer_row,
    pairs_of,
    rows_of,
    sources_to_build,
)
from homolog.gui.files import sources
from homolog.gui.files.opening import box, look_at, shared
from homolog.gui.shared.layers import KEY, derived_attributes, volume_layer
from homolog.jobs import prepare
from homolog.scans.files import read_labels
from homolog.scans.names import names_file
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume


class Image(SimpleNamespace):
    """What is looked at of napari's class of this name."""


class Labels(SimpleNamespace):
    """The same."""


def scan(
    spacing: tuple[float, ...] = (2, 1, 1), origin: tuple[float, ...] = (0, 0, 0)
) -> Volume:
    data = np.random.default_rng(3).integers(0, 900, (1, 8, 9, 10)).astype(np.int16)
    return Volume(data, Affine.of(spacing, origin), "a", "MR")


def layer_of(volume: Volume, number: int = 1) -> Any:
    data, attributes, _ = volume_layer(volume)
    return Image(data=data, unique_id=f"u{number}", visible=True, **attributes)


def labels_of(layer: Any, number: int = 9) -> Any:
    return Labels(
        data=(layer.data > 500).astype(np.int32), unique_id=f"u{number}", visible=True,
        **derived_attributes(layer, f"labels {number}"),
    )  # fmt: skip


def test_a_row_tells_size_spacing_orientation_modality_and_memory(
    tmp_path: Path,
) -> None:
    write_volume(scan((3, 1, 1)), tmp_path / "t1.nii")
    row = file_row(tmp_path / "t1.nii")
    assert row.facts == "10 x 9 x 8, 1 x 1 x 3 mm, LPS, MR, 1.4 kB"
    assert row.badge.level == UNREAD
    assert row.badge.text == "○ not yet read: its header is in order."
    deep = file_row(tmp_path / "t1.nii", deep=True)
    assert deep.badge.text == "✔ sound: all values read."
    assert deep.text.startswith("t1.nii\n10 x 9 x 8")


def test_badges_say_why(tmp_path: Path) -> None:
    write_volume(scan((8, 1, 1)), tmp_path / "thick.nii")
    (tmp_path / "torn.nii").write_bytes(b"x")
    nan = np.full((1, 4, 4, 4), np.nan, np.float32)
    write_volume(Volume(nan, Affine.identity()), tmp_path / "nan.nii")
    thick = file_row(tmp_path / "thick.nii").badge
    assert thick.text == "⚠ usable: thick slices: 8 mm apart, pixels of 1 mm."
    torn = file_row(tmp_path / "torn.nii").badge
    assert torn.level == BAD
    assert "348 bytes" in torn.reason
    assert file_row(tmp_path / "nan.nii").badge.level == UNREAD  # headers tell nothing
    assert file_row(tmp_path / "nan.nii", deep=True).badge.level == BAD


def test_more_than_half_of_the_memory_is_a_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(scan(), tmp_path / "big.nii")
    monkeypatch.setattr("homolog.gui.data.control.free_bytes", lambda: 2000)
    badge = file_row(tmp_path / "big.nii").badge
    assert (badge.level, badge.reason) == (
        DOUBT, "needs 1.4 kB of 2.0 kB free memory.",
    )  # fmt: skip


def test_a_folder_is_one_row_with_its_scans(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    (folder / "labels").mkdir(parents=True)
    write_volume(scan(), folder / "p1.nii")
    write_volume(scan(), folder / "p2.nii")
    write_labels(
        LabelMap((scan().data[0] > 500).astype(np.uint8), scan().affine),
        folder / "labels" / "p1.nii",
    )
    (folder / "p3.nii").write_bytes(b"x")
    (row,) = rows_of(folder)
    assert row.facts == "3 scans, 1 with labels"
    assert row.labelled == 1
    assert row.badge.level == DOUBT
    assert row.badge.reason.startswith("1 of 3 left out, first p3: ")
    assert [s.name for s in row.scans] == ["p1 + labels", "p2", "p3"]
    assert sources_to_build([row, row]) == [folder]
    (empty,) = rows_of(folder / "labels" / "..")  # any spelling of a folder
    assert empty.scans
    (tmp_path / "none").mkdir()
    (nothing,) = rows_of(tmp_path / "none")
    assert nothing.badge.level == BAD
    assert sources_to_build([nothing]) == []


def test_layers_are_rows_too() -> None:
    layer = layer_of(scan())
    row = layer_row(layer)
    assert row.is_layer
    assert row.path is None
    assert "a copy is written" in row.badge.reason
    assert layer_row(labels_of(layer)) is None


def test_the_config_of_a_store(tmp_path: Path) -> None:
    config = build_config([tmp_path], tmp_path / "stores", "my scans")
    assert config["out"] == str(tmp_path / "stores" / "my scans")
    assert (config["spacing"], config["names"]) == ("auto", "")
    called = build_config([tmp_path], tmp_path, "x", names="1=liver, 2=spleen")
    assert called["names"] == "1=liver, 2=spleen"
    own = build_config([tmp_path], tmp_path, "x", spacing="own", own_spacing="3, 1 1")
    assert own["spacing"] == [3, 1, 1]
    assert parse_spacing("1.5") == [1.5, 1.5, 1.5]
    more = {"subjects": "(p[0-9]+)", "axes": "acquired", "window_hu": [-100.0, 300.0]}
    made = build_config([tmp_path], tmp_path, "x", settings=more)
    known = from_dict(prepare.Config, made)
    assert (known.subjects, known.axes) == ("(p[0-9]+)", "acquired")
    assert known.window_hu == (-100, 300)


@each(
    "change, said",
    [
        ({"sources": []}, "scans first"),
        ({"name": "  "}, "Give the store a name"),
        ({"name": "../x"}, "Give the store a name"),
        ({"name": "taken"}, "is there already"),
        ({"labels": "/no/such"}, "no label folder"),
        ({"spacing": "own", "own_spacing": "thin"}, "Give the voxel size"),
        ({"spacing": "own", "own_spacing": "0"}, "Give the voxel size"),
        ({"names": "liver"}, "Label names must be VALUE=NAME"),
        ({"settings": {"subjects": "p[0-9]+"}}, "Patients by name must have a group"),
        (
            {"settings": {"subjects": "(p"}},
            "Patients by name must be a regular",
        ),
    ],
)
def test_what_is_missing_is_said(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    given = {"sources": [tmp_path], "stores": tmp_path, "name": "new", **change}
    with pytest.raises(UnusableInput, match=said):
        build_config(**given)


def test_label_names_are_checked_before_the_worker_starts() -> None:
    assert names_problem("") == names_problem("1=liver, 2=left kidney") == ""
    assert names_problem("0=air").startswith("A label value must be a whole number")


def test_a_stopped_store_goes_on_and_names_stay_free(tmp_path: Path) -> None:
    (tmp_path / "scans" / "cases").mkdir(parents=True)
    assert build_config([tmp_path], tmp_path, "scans")
    assert free_name(tmp_path) == "scans_v2"
    assert free_name(tmp_path, "a/b") == "a_b"


def test_pace_and_results_in_words() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.line("look", 0, 0, 0) == "Looking for scans ..."
    assert pace.line("prepare", 0, 10, 0) == "Preparing scan 1 of 10"
    now[0] = 2.0
    line = pace.line("prepare", 4, 10, 0)
    assert line == "Preparing scan 5 of 10, 2.0/s, about 3 s left"
    result = {
        "cases": 2, "labelled": 1, "bytes": 5e6, "explanation": ["1 mm was chosen."],
        "rejected": [{"path": "/x", "reason": "4D."}],
    }  # fmt: skip
    said = "2 scans prepared, 1 with labels, 1 left out (5.0 MB). 1 mm was chosen."
    assert result_line(result) == said
    assert fold_words(result, ["a", "b"]) == "Show 1 left out and 2 remarks"
    assert rejected_text(result, ["a"]) == "/x: 4D.\na"
    assert fold_words({}) == ""


def test_visible_labels_go_into_the_store_with_their_scan(tmp_path: Path) -> None:
    layer = layer_of(scan())
    labels = labels_of(layer)
    labels.metadata["label_names"] = {1: "bright"}
    far = layer_of(scan(origin=(500, 0, 0)), 2)
    assert pairs_of([layer, labels, far]) == [(layer, labels)]
    paths = gather([], [layer, far], [(layer, labels)], tmp_path)
    assert len(paths) == 2
    saved = tmp_path / "labels" / f"{paths[0].stem}.nii.gz"
    assert np.array_equal(read_labels(saved).data > 0, scan().data[0] > 500)
    assert json.loads(names_file(saved).read_text()) == {"1": "bright"}
    from homolog.index.index import index_sources

    index = drain(index_sources(paths, [tmp_path / "labels"]))
    (labelled,) = [case for case in index.cases if case.label]
    assert labelled.label_names == {1: "bright"}
    second = labels_of(layer, 10)
    with pytest.raises(UnusableInput, match="hide all but one"):
        pairs_of([layer, labels, second])
    second.visible = False
    assert labels_on(layer, [labels, second]) == [labels]


def test_scans_elsewhere_are_hidden_when_one_opens() -> None:
    a, same, far = (
        layer_of(scan()),
        layer_of(scan(), 2),
        layer_of(scan(origin=(90, 0, 0)), 3),
    )
    assert shared(a, same) == pytest.approx(1.0)
    assert shared(a, far) == 0.0
    low, high = box(a)
    assert low.tolist() == [-1, -0.5, -0.5]
    assert high.tolist() == [15, 8.5, 9.5]
    layers = [a, same, far]
    viewer = SimpleNamespace(
        layers=_Layers(layers), dims=SimpleNamespace(point=(0, 0, 0)),
        fit_to_view=lambda layers: None,
        canvas=SimpleNamespace(grid=SimpleNamespace(enabled=False)),
    )  # fmt: skip
    look_at(viewer, a)
    assert [x.visible for x in layers] == [True, True, False]
    assert viewer.dims.point == [7, 4, 4.5]


def test_another_picture_of_unknown_size_is_another_patient() -> None:
    """Both begin in the same corner; what belongs to the new one stays."""
    new, other, heat = (layer_of(scan(), i) for i in range(3))
    for layer, source in ((new, "a.png"), (other, "b.png"), (heat, "a.png")):
        layer.metadata[KEY] |= {"sized": False, "source": source}
    layers = [other, heat, new]
    viewer = SimpleNamespace(
        layers=_Layers(layers), dims=SimpleNamespace(point=(0, 0, 0)),
        fit_to_view=lambda layers: None,
        canvas=SimpleNamespace(grid=SimpleNamespace(enabled=False)),
    )  # fmt: skip
    look_at(viewer, new)
    assert [x.visible for x in layers] == [False, True, True]


class _Layers(list):
    selection = SimpleNamespace(active=None)


def test_paths_become_sources(tmp_path: Path) -> None:
    write_volume(scan(), tmp_path / "a.nii")
    (tmp_path / "b.txt").write_text("no scan")
    found = sources.sources_of([tmp_path / "a.nii", tmp_path / "b.txt", tmp_path / "c"])
    assert [bool(s.trouble) for s in found] == [False, True, True]
    assert found[1].trouble.startswith("b.txt cannot be opened: ")
    (inside,) = sources.sources_of([tmp_path])
    assert inside.path == tmp_path / "a.nii"


def test_scans_are_straightened_and_filled_on_request() -> None:
    from homolog.gui.data.build_box import more_fields

    by_name = {field["name"]: field for field in more_fields()}
    for name in ("straighten", "fill_nan"):
        assert by_name[name]["default"] is False
        assert by_name[name]["title"]
