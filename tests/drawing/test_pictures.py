"""Pictures, charts and pages: what they show lies where it should."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from homolog.drawing.html import Page, bar_chart, curve_chart
from homolog.drawing.pictures import (
    LINE,
    Plane,
    as_bytes,
    beside,
    data_address,
    enlarge,
    grey,
    heat_colours,
    png_bytes,
    with_heat,
    with_labels,
    with_line,
    with_ring,
    words_on_black,
)
from homolog.geometry.affine import Affine
from homolog.label_names import colours_of


def test_png_keeps_every_pixel():
    picture = np.random.default_rng(0).integers(0, 256, (7, 11, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(png_bytes(picture))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(image), picture)
    assert data_address(picture).startswith("data:image/png;base64,")


def test_a_picture_that_is_no_block_of_memory_is_encoded_as_seen():
    picture = np.random.default_rng(1).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    turned = picture[::-1, ::2]
    with Image.open(io.BytesIO(png_bytes(turned))) as image:
        np.testing.assert_array_equal(np.asarray(image), turned)


def test_png_wants_three_bytes_per_pixel():
    with pytest.raises(ValueError, match=r"\(h, w, 3\) uint8"):
        png_bytes(np.zeros((4, 4), np.uint8))


def test_coronal_slices_have_the_head_on_top_and_the_right_on_the_left():
    data = np.zeros((4, 5, 6))
    data[3, 2, 0] = 1  # head, patient's right
    cut = Plane(1, 2).cut(data)
    assert cut.shape == (4, 6)
    assert cut[0, 0] == 1


def test_axial_slices_have_the_front_on_top():
    data = np.zeros((4, 5, 6))
    data[1, 0, 5] = 1  # front, patient's left
    assert Plane(0, 1).cut(data)[0, 5] == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_place_in_mm_falls_on_its_voxel_in_the_picture(axis):
    affine = Affine.of((3.0, 2.0, 1.5), (-50.0, 10.0, 30.0))
    data = np.zeros((9, 10, 11), np.float32)
    voxel = np.array([6, 3, 8])
    data[tuple(voxel)] = 1
    mm = affine.apply(voxel)
    plane = Plane.through(mm, affine, axis, factor=2.0)
    assert plane.index == voxel[axis]
    picture = enlarge(plane.cut(data), plane.zoom(affine.spacing_mm))
    row, column = plane.place(mm, affine, data.shape)
    peak = np.unravel_index(picture.argmax(), picture.shape)
    assert abs(peak[0] + 0.5 - row) <= 1.0
    assert abs(peak[1] + 0.5 - column) <= 1.0


def test_enlarging_keeps_the_mean_of_a_ramp():
    ramp = np.arange(12.0).reshape(1, 12).repeat(3, 0)
    large = enlarge(ramp, (2.0, 4.0))
    assert large.shape == (6, 48)
    assert large.mean() == pytest.approx(ramp.mean(), abs=1e-5)


def test_labels_colour_their_area_only():
    labels = np.zeros((8, 8), int)
    labels[:, 4:] = 2
    bare = grey(np.full((8, 8), -1000.0), (3.0, 3.0))
    colours = {2: (1.0, 0.0, 0.0)}
    shown = with_labels(bare, labels, (3.0, 3.0), colours, opacity=0.5)
    assert shown[12, 20, 0] == pytest.approx(0.5)
    assert shown[12, 2].max() == 0.0
    assert shown[12, 12, 0] == pytest.approx(0.95)  # the border is drawn fully


def test_known_organs_keep_their_colour_and_others_get_distinct_ones():
    colours = colours_of({1: "liver", 2: "something", 3: "else"})
    assert colours[1] == (0.80, 0.45, 0.30)
    assert len(set(colours.values())) == 3


def test_heat_is_nothing_at_the_low_end():
    bare = grey(np.full((4, 4), 40.0), (2.0, 2.0))
    values = np.zeros((4, 4))
    values[2:] = 1.0
    shown = with_heat(bare, values, (2.0, 2.0), 0.0, 1.0)
    np.testing.assert_allclose(shown[0, 0], bare[0, 0], atol=1e-6)
    assert np.abs(shown[-1, 0] - bare[-1, 0]).max() > 0.2
    brightness = heat_colours(np.linspace(0, 1, 50)).sum(-1)
    assert (np.diff(brightness) > 0).all()


def test_ring_lies_around_its_place():
    bare = np.zeros((40, 40, 3), np.float32)
    ringed = with_ring(bare, (20.0, 12.0), (0.0, 1.0, 0.0), radius=6.0)
    rows, columns = np.nonzero(ringed[..., 1] > 0.5)
    distance = np.hypot(rows + 0.5 - 20, columns + 0.5 - 12)
    assert distance.min() > 4.5
    assert distance.max() < 7.5


@pytest.mark.parametrize("stop", [(20.5, 35.5), (35.5, 9.5), (5.25, 30.75)])
def test_line_lies_between_its_ends(stop):
    start = np.array([20.5, 4.5])
    bare = np.zeros((40, 40, 3), np.float32)
    shown = with_line(bare, tuple(start), stop, (1.0, 0.5, 0.0), thickness=2.0)
    assert bare.max() == 0
    rows, columns = np.nonzero(shown[..., 0] > 0.5)
    y, x = rows + 0.5 - start[0], columns + 0.5 - start[1]
    way = np.array(stop) - start
    length = float(np.hypot(*way))
    along = (y * way[0] + x * way[1]) / length
    off = np.abs(y * way[1] - x * way[0]) / length
    assert off.max() < 1.5
    assert along.min() > -1.5
    assert along.max() < length + 1.5
    assert np.ptp(along) > length - 2
    assert len(rows) == pytest.approx(2 * length, rel=0.15)


def test_a_line_of_text_is_cut_at_its_width_and_in_its_colour():
    short = words_on_black("liver 0.87", 200, (1.0, 0.5, 0.0))
    assert short.shape == (LINE, 200, 3)
    assert short[..., 0].max() > 0.9
    np.testing.assert_allclose(short[..., 1], short[..., 0] / 2)
    assert short[..., 2].max() == 0
    assert short[:, -100:].max() == 0  # it ends where the text does
    np.testing.assert_array_equal(
        words_on_black("liver 0.87", 30, (1.0, 0.5, 0.0)), short[:, :30]
    )
    assert words_on_black("", 30).max() == 0


def test_pictures_stand_in_a_row():
    a, b = np.ones((4, 3, 3), np.float32), np.ones((8, 5, 3), np.float32)
    row = beside([a, b], gap=2)
    assert row.shape == (8, 10, 3)
    assert row[0, 0].max() == 0
    assert row[2, 0].min() == 1
    assert as_bytes(row).max() == 255


def test_curves_are_drawn_within_their_frame():
    svg = curve_chart(
        {"a < b": ([0, 1, 2, 3], [5.0, float("nan"), 2.0, 1.0])},
        x_title="step", y_title="loss", width=400, height=200,
    )  # fmt: skip
    tree = ElementTree.fromstring(svg)  # well-formed, so names were escaped
    lines = [e for e in tree.iter() if e.tag.endswith("polyline")]
    points = np.array(
        [[float(v) for v in p.split(",")] for p in lines[0].get("points").split()]
    )
    assert len(points) == 3
    assert (points > 0).all()
    assert (points[:, 0] < 400).all()
    assert (np.diff(points[:, 1]) > 0).all()  # the loss falls, so y goes down


def test_no_numbers_give_no_chart():
    assert curve_chart({"a": ([1.0], [float("nan")])}, x_title="", y_title="") == ""


def test_bars_are_as_long_as_their_values():
    svg = bar_chart({"liver": {"one": 0.4, "two": 0.8}}, title="Dice")
    widths = [float(w) for w in re.findall(r'<rect x="118"[^>]*width="([\d.]+)"', svg)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    ElementTree.fromstring(svg)


def test_page_needs_nothing_else(tmp_path):
    page = Page("A <title>", "lead")
    page.tiles([("Dice", "0.71", "of 4")])
    page.section("Heading", "5 < 6")
    page.figure(np.zeros((4, 4, 3), np.float32), "a picture", [("liver", (1.0, 0, 0))])
    page.table(["", "scratch", "pretrained"], [["Dice", "0.7", "0.8"]], [2])
    page.charts("", curve_chart({"a": ([0, 1], [1, 0])}, x_title="x", y_title="y"))
    page.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in text
    assert "5 &lt; 6" in text
    assert text.count("<section>") == text.count("</section>") == 1
    assert '<td class="n best">0.8</td>' in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", text)
