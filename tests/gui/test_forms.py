"""Forms made from the engine's description."""

from __future__ import annotations

import pytest

pytest.importorskip("napari")

from learn_fakes import FIELDS, SCHEMA, unnamed
from qtpy.QtWidgets import QLabel, QLineEdit
from superqt import QCollapsible

from homolog.gui.learn.forms import Form
from homolog.gui.shared import engine

pytestmark = pytest.mark.usefixtures("qapp")


def test_a_late_form_says_the_same_before_and_after_it_is_made() -> None:
    forms = [Form(FIELDS, first=("size",)), Form(FIELDS, first=("size",), late=True)]
    told = []
    for form in forms:
        form.set_recipe({"size": [96, 96, 96]})
        form.show_values({"keep": "student", "size": "many", "nobody": 3})
        told.append(form.values())
    assert told[0] == told[1] == {"keep": "student"}
    late = forms[1]
    assert not late.findChildren(QLineEdit)
    late.set_recipe({"size": [64, 64, 64]})  # what was changed stays changed
    assert late.rows["keep"].value == "student"
    assert late.rows["size"].editor.text() == "64, 64, 64"
    assert late.values() == {"keep": "student"}
    late.set_fields(FIELDS)  # it is looked at: made anew at once
    assert late.findChildren(QLineEdit)
    again = Form(FIELDS, late=True)
    again.show_values({"keep": "student"})
    again.reset()
    assert again.values() == {}


def test_a_form_tells_only_what_differs_from_the_recipe() -> None:
    form = Form(FIELDS, first=("size",))
    form.set_recipe({"size": [96, 96, 96]})
    assert form.values() == {}
    form.rows["size"].editor.setText("64")
    form.rows["keep"].show_value("student")
    form.rows["shift_only"].show_value(True)
    assert form.values() == {
        "size": [64, 64, 64], "keep": "student", "shift_only": True
    }  # fmt: skip
    form.rows["size"].back.click()
    assert "size" not in form.values()
    form.reset()
    assert form.values() == {}
    assert form.rows["size"].editor.text() == "96, 96, 96"


def test_what_cannot_be_meant_is_marked_and_not_told() -> None:
    form = Form(FIELDS)
    heard = []
    form.changed.connect(lambda: heard.append(1))
    row = form.rows["size"]
    row.editor.setText("0")
    assert heard
    assert form.problem() == "Size (voxel) must be 1 to 512 voxel, not 0."
    assert form.values() == {}
    assert row.editor.styleSheet()
    assert row.editor.toolTip().startswith(form.problem())
    assert isinstance(row.editor, QLineEdit)
    assert len(row.editor.actions()) == 1  # the warning sign
    assert row.back.text() == "Reset"
    row.editor.setText("32")
    assert not form.problem()
    assert not row.editor.styleSheet()
    assert not row.editor.actions()


def test_another_recipe_keeps_what_the_user_changed() -> None:
    form = Form(FIELDS)
    form.rows["keep"].show_value("student")
    form.set_recipe({"size": [16, 16, 16]})
    assert form.values() == {"keep": "student"}
    assert form.rows["size"].value == [16, 16, 16]


def test_kept_values_of_another_version_are_passed_over() -> None:
    form = Form(FIELDS)
    form.show_values({"size": [999, 1, 1], "gone": 3, "keep": "neither"})
    assert form.values() == {}


def test_few_fields_are_seen_and_all_can_be_reached() -> None:
    form = Form(FIELDS, first=("size",))
    folds = [f.text() for f in form.findChildren(QCollapsible)]
    assert folds == ["More", "Advanced"]
    assert not any(f.isExpanded() for f in form.findChildren(QCollapsible))
    labels = [x for x in form.findChildren(QLabel) if x.buddy() is not None]
    assert {x.text() for x in labels} == {"Size (voxel)", "Keep", "Shift only"}
    assert unnamed(form) == []


def test_the_engines_own_description_fills_every_form() -> None:
    """The real schema, asked of a process of its own as the window does."""
    schema = engine.ask("schema")
    assert set(SCHEMA) - {"format"} <= set(schema)
    lists = [schema["training"], schema["embed"]]
    for group in ("methods", "tasks", "backbones"):
        lists += [d["fields"] for d in schema[group].values()]
    for plain in lists:
        form = Form(plain)
        assert form.problem() == ""
        assert form.values() == {}
        for name, row in form.rows.items():
            assert row.field.help, f"{name} has no help"
    for described in schema["methods"].values():
        form = Form(described["fields"])
        for recipe in described["recipes"].values():
            form.set_recipe(recipe.get("method"))
            assert form.problem() == ""
            assert form.values() == {}
