"""Hundred Million: classes of whole scans, and several findings of one."""

from __future__ import annotations

import math

import pytest
import torch
from test_hundred_million import corpus, method_of, views_of

from homolog.methods.hundred_million import ClassHead, names_of

SEVERAL = {0: "effusion|nodule", 1: "no finding", 2: "nodule", 4: "effusion"}


def test_names_and_whether_a_scan_may_show_several() -> None:
    assert names_of(["ill", None, "well", "ill"]) == (["ill", "well"], False)
    assert names_of(["a|b", None, "no finding", "c"]) == (["a", "b", "c"], True)
    assert names_of([None]) == ([], False)


def test_targets_of_several_findings_are_rows() -> None:
    head = ClassHead(4, ["effusion", "nodule"], several=True)
    assert head.targets(["effusion|nodule", "no finding", "nodule", None]) == [
        [1, 1], [0, 0], [0, 1], [-1, -1],
    ]  # fmt: skip
    assert head.knows("no finding")
    assert not head.knows(None)
    one = ClassHead(4, ["ill", "well"], several=False)
    assert one.targets(["well", None, "else"]) == [1, -1, -1]
    assert not one.knows("else")


@pytest.mark.parametrize("several", [False, True])
def test_unknown_scans_cost_nothing_and_change_no_average(several: bool) -> None:
    rows = torch.randn(5, 2, 8)
    head = ClassHead(8, ["a", "b", "c"], several=several)
    texts = ["a", None, "b", None, "c"]
    some = ClassHead(8, ["a", "b", "c"], several=several)
    some.load_state_dict(head.state_dict())
    found = head(rows, torch.tensor(head.targets(texts)))
    alone = some(rows[::2], torch.tensor(some.targets(texts[::2])))
    for key in ("total", "labelled", "accuracy"):
        torch.testing.assert_close(found[key], alone[key])
    torch.testing.assert_close(head.standard.mean, some.standard.mean)
    none = head(rows, torch.tensor(head.targets([None] * 5)))
    assert float(none["total"].detach()) == 0.0
    assert float(none["labelled"]) == 0


@pytest.mark.parametrize("several", [False, True])
def test_a_uniform_prediction_costs_the_logarithm_of_the_classes(several: bool) -> None:
    head = ClassHead(8, ["a", "b", "c"], several=several)
    torch.nn.init.zeros_(head.linear.weight)
    torch.nn.init.zeros_(head.linear.bias)
    target = torch.tensor(head.targets(["a", "b", "c", "a"]))
    found = head(torch.randn(4, 2, 8), target)
    mean = float(found["total"].detach()) / 4
    assert mean == pytest.approx(math.log(2 if several else 3))


def test_several_findings_teach_the_encoder() -> None:
    cases = corpus("XXXXX", SEVERAL)
    method = method_of(cases)
    assert method.config.class_several
    assert method.config.class_names == ("effusion", "nodule")
    assert "findings that teach: effusion and nodule." in method.remarks({})
    assert method.learns_from_labels(cases[1].card)  # that it shows none is known
    assert not method.learns_from_labels(cases[3].card)
    views = views_of(method, cases)
    assert views["large"].target.shape == (6, 2)
    loss = method.losses(views, 0.5)["classes"]
    loss.backward()
    assert any(
        p.grad is not None and p.grad.abs().max() > 0
        for p in method.backbone.parameters()
    )
    assert 0 <= float(method.monitors()["class_accuracy"]) <= 1
