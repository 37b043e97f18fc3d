"""Places as people read them: x, y, z named, and read back as they were."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from each import each
from homolog.geometry.places import named_numbers, place_numbers, place_text, voxel_text
from homolog.words import lengths_text, spacing_text

# z, y, x as everywhere inside; no two numbers alike.
PLACE = (3.0, 2.0, 1.0)


def test_a_place_is_told_as_x_y_z():
    assert place_text(PLACE) == "x 1.0, y 2.0, z 3.0 mm (LPS)"
    assert place_numbers(PLACE) == "1.0, 2.0, 3.0"
    assert place_text((-412.04, 0.0, -0.04)) == "x 0.0, y 0.0, z -412.0 mm (LPS)"
    assert place_text((0.1 + 0.2, 2, 1), None) == (
        "x 1.0, y 2.0, z 0.30000000000000004 mm (LPS)"
    )


def test_a_voxel_is_told_as_arrays_are_indexed():
    assert voxel_text((3, 2, 1)) == "z 3, y 2, x 1"
    assert voxel_text((3.25, 2.0, 1.0)) == "z 3.2, y 2.0, x 1.0"


def test_lengths_name_their_order_where_it_matters():
    assert lengths_text((1.5, 1.5, 1.5)) == "1.5 x 1.5 x 1.5 mm"
    assert spacing_text((1.5, 1.5, 1.5)) == "1.5 mm"
    assert spacing_text((5.0, 0.78125, 0.5)) == "0.5 x 0.781 x 5 mm (x, y, z)"
    assert lengths_text((5.0, 0.78125, 0.5)) == "0.5 x 0.781 x 5 mm (x, y, z)"
    assert lengths_text((300, 1024, 512), "voxels") == (
        "512 x 1024 x 300 voxels (x, y, z)"
    )


@given(st.tuples(*[st.floats(-1e9, 1e9, allow_subnormal=False)] * 3))
def test_what_is_written_is_read_back(place):
    assert named_numbers(place_text(place, None)) == place
    assert named_numbers(voxel_text(place)) is not None


@each("text", ["x=1,y=2,z=3", "z 3, y 2, x 1", "X 1.0 Y 2 Z:3e0", "y=2; x=1; z=+3 mm",
     "x 1.0, y 2.0, z 3.0 mm (LPS)", "x1,y2,z3 mm LPS"])  # fmt: skip
def test_axes_may_come_in_any_order(text):
    assert named_numbers(text) == PLACE


@each(
    "text",
    ["", "3,2,1", "x=1,y=2", "x=1,x=2,y=3", "x=1,y=2,z=3,z=4", "x=1,y=2,z=3,4",
     "x=1,y=2,w=3", "x=a,y=2,z=3", "x=1,y=2,z=3 mm (RAS)", "x=1,y=2,z=3 cm"],
)  # fmt: skip
def test_anything_else_is_no_place(text):
    assert named_numbers(text) is None


def test_what_is_unknown_is_told_too():
    assert place_numbers((math.nan, 2.0, 1.0)) == "1.0, 2.0, nan"
