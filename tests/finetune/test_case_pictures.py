"""Pictures of what a validation saw: labels, boxes and images that were made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from homolog.drawing.pictures import with_rectangle
from homolog.finetune.pictures import CasePicture

SHAPE = (5, 20, 30)


def case_of(name: str = "a", data: Any = None) -> Any:
    data = np.zeros((1, *SHAPE), np.int16) if data is None else data
    card = SimpleNamespace(
        id=name, shape=SHAPE, spacing_mm=(2.0, 1.0, 1.0), modality="MR", low=0.0,
        high=100.0, scale=1.0, offset=0.0,
    )  # fmt: skip
    return SimpleNamespace(card=card, store=SimpleNamespace(image=lambda _: data))


def test_a_rectangle_is_drawn_on_its_edges_and_its_words_are_inside() -> None:
    empty = np.zeros((200, 300, 3), np.float32)
    drawn = with_rectangle(empty, (5, 10, 15, 25), (10.0, 10.0), (1, 0, 0))
    red = drawn[..., 0] > 0.5
    rows, columns = np.nonzero(red)
    assert abs(rows.min() - 50) <= 2
    assert abs(rows.max() - 150) <= 2
    assert abs(columns.min() - 100) <= 2
    assert abs(columns.max() - 250) <= 2
    assert not red[60:140, 110:240].any()
    named = with_rectangle(empty, (0, 29, 20, 30), (10.0, 10.0), (1, 0, 0), "0.93")
    assert named.shape == empty.shape


def test_boxes_of_the_first_case_are_drawn_where_they_are() -> None:
    picture = CasePicture({})
    assert picture.draw(1, 0.0, 0.0) is None
    known = {
        "truth": [[1, 5, 5, 3, 15, 20]], "scores": [0.9, 0.01, 0.6],
        "boxes": [[1, 4, 6, 3, 14, 22], [0, 0, 0, 5, 20, 30], [4, 0, 0, 5, 3, 3]],
    }  # fmt: skip
    picture.boxes(case_of(), [known, {"truth": [], "scores": [], "boxes": []}])
    picture.boxes(case_of("b"), [])  # another case changes nothing
    drawn = picture.draw(30, 0.0, 0.0)
    assert drawn is not None
    values, title = drawn
    assert title.startswith("a after 30 steps: true boxes in white")
    zoom = values.shape[1] / SHAPE[2]
    white = (values > 200).all(-1)
    rows = np.nonzero(white[:, round(12 * zoom)])[0] / zoom
    assert {round(float(rows.min())), round(float(rows.max()))} == {5, 15}
    orange = (values[..., 0] > 180) & (values[..., 2] < 80)
    rows = np.nonzero(orange[:, round(18 * zoom)])[0] / zoom
    assert {round(float(rows.min())), round(float(rows.max()))} == {4, 14}
    assert not orange[: round(2 * zoom), : round(3 * zoom)].any()  # of another slice


def test_a_case_without_boxes_is_its_middle_slice() -> None:
    data = np.zeros((1, *SHAPE), np.int16)
    data[0, 2] = 100
    picture = CasePicture({})
    picture.boxes(case_of(data=data), [{"truth": [], "scores": [], "boxes": []}])
    drawn = picture.draw(1, 0.0, 0.0)
    assert drawn is not None
    assert drawn[0].min() > 250


def test_images_stand_side_by_side_in_one_window() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros(SHAPE, np.float32)
    truth[3] = rng.random(SHAPE[1:]) * 10
    picture = CasePicture({})
    picture.images(case_of(), truth * 100, truth * 0.5, truth)
    drawn = picture.draw(7, 0.0, 0.0)
    assert drawn is not None
    values, title = drawn
    assert "input, what was made of it, and the true image" in title
    third = (values.shape[1] - 16) // 3
    given, made, true = (
        values[:, i * (third + 8) : i * (third + 8) + third] for i in range(3)
    )
    assert abs(float(given.mean()) - float(true.mean())) < 3  # each input by itself
    assert float(made.mean()) < 0.7 * float(true.mean())  # half as bright, and so seen


def test_labels_are_drawn_as_before() -> None:
    truth = np.zeros(SHAPE, np.int32)
    truth[2:4, 5:15, 5:20] = 1
    picture = CasePicture({1: "liver"})
    picture(case_of(), np.zeros((1, *SHAPE), np.int16), truth, truth)
    drawn = picture.draw(3, 0.0, 0.0)
    assert drawn is not None
    assert "true labels on the left" in drawn[1]
    assert drawn[0].any()
