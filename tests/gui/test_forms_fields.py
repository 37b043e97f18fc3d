"""Settings as texts and back, with reasons; no Qt here."""

from __future__ import annotations

import pytest

from each import each
from homolog.gui.learn.forms import (
    Field,
    Refused,
    arrange,
    base_values,
    differing,
    fields_of,
)

SIZE = Field("size", "tuple", [48, 48, 48], "crop size z, y, x", "voxel", 1, 512,
             item="int", length=3)  # fmt: skip
RATE = Field("learning_rate", "float", 0.001, "peak learning rate", low=0.0)
STRIDE = Field("token_stride", "int", 8, unit="voxel", choices=(2, 4, 8))
WINDOW = Field("window", "tuple", None, item="int", length=3, optional=True, low=1)


@each(
    "field, value",
    [
        (SIZE, [48, 64, 96]),
        (RATE, 3e-4),
        (RATE, 1e-12),
        (RATE, 1.0),
        (STRIDE, 4),
        (WINDOW, None),
        (Field("keep", "str", "teacher"), "student"),
        (Field("keep", "str", ""), ""),
        (Field("on", "bool", True), False),
        (Field("extra", "dict", {}), {"a": [1, 2]}),
        (Field("extra", "dict", {}), {}),
        (Field("blocks", "tuple", [], item="int"), []),
        (Field("parts", "tuple", [], item="tuple"), [[0, 1], [2, 3]]),
    ],
)
def test_a_value_survives_its_text(field: Field, value: object) -> None:
    assert field.read(field.text_of(value)) == value


@each("text", ["48 64 96", "48,64,96", "(48, 64, 96)", "48x64 x 96"])
def test_tuples_are_read_as_people_write_them(text: str) -> None:
    assert SIZE.read(text) == [48, 64, 96]


def test_one_number_holds_for_all_axes() -> None:
    assert SIZE.read("64") == [64, 64, 64]


@each(
    "field, text, reason",
    [
        (SIZE, "48, 64", "Size (voxel) must be 3 values separated by commas, not 2."),
        (SIZE, "48.5", "Size (voxel) must be a whole number, not '48.5'."),
        (SIZE, "0", "Size (voxel) must be 1 to 512 voxel, not 0."),
        (SIZE, "", "Size (voxel) must not be empty."),
        (RATE, "-1", "Learning rate must be 0 or more, not -1."),
        (RATE, "nan", "Learning rate must be 0 or more, not nan."),
        (RATE, "fast", "Learning rate must be a number, not 'fast'."),
        (Field("extra", "dict"), "[1]", 'Extra must look like {"name": value}.'),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_reason(
    field: Field, text: str, reason: str
) -> None:
    with pytest.raises(Refused) as refusal:
        field.read(text)
    assert str(refusal.value) == reason


def test_labels_name_the_unit_once() -> None:
    assert Field("rotate_deg", "float", unit="deg").label == "Rotate (deg)"
    assert Field("learning_rate", "float").label == "Learning rate"


def test_the_hint_tells_help_range_and_the_recipes_value() -> None:
    assert SIZE.hint([96, 96, 96]) == (
        "Crop size z, y, x. Allowed: 1 to 512 voxel. Recipe: 96, 96, 96."
    )


def test_only_what_differs_from_the_recipe_is_told() -> None:
    base = base_values([SIZE, RATE], {"size": [96, 96, 96], "unknown": 1})
    assert base == {"size": [96, 96, 96], "learning_rate": 0.001}
    values = {"size": (96, 96, 96), "learning_rate": 0.01}
    assert differing(values, base) == {"learning_rate": 0.01}
    assert differing({"on": True}, {"on": 1}) == {"on": True}


def test_fields_are_first_then_more_then_advanced() -> None:
    plain = [
        {"name": "a", "type": "int", "advanced": True},
        {"name": "b", "type": "int"},
        {"name": "c", "type": "int"},
        {"name": "steps", "type": "int"},
    ]
    parts = arrange(fields_of(plain), first=("c", "absent"), hidden=("steps",))
    assert [f.name for f in parts.first] == ["c"]
    assert [f.name for f in parts.more] == ["b"]
    assert [f.name for f in parts.advanced] == ["a"]
