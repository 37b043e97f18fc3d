"""Every method and task that is offered says what it is best for."""

from __future__ import annotations

import pytest

from homolog.gui.learn.guide import METHODS, TASKS, guide_to


def test_all_that_can_be_chosen_is_described_for_users() -> None:
    pytest.importorskip("torch")
    from homolog.machine import schema

    told = schema()
    assert set(METHODS) == set(told["methods"])
    assert set(TASKS) == {n for n in told["tasks"] if n != "few_voxels"}
    for name in METHODS:
        lines = guide_to("methods", name).splitlines()
        assert [line.partition(" ")[0] for line in lines] == ["Best", "Data:", "Time:"]
    assert guide_to("methods", "of somebody else") == ""
