"""A scoring that is stopped says so, also where the stop came within its last case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from homolog.events import Job, Progress, Request
from homolog.use import evaluate


class Task:
    """Scores a case in three windows; a case that is stopped has no scores."""

    def usable(self, card: Any) -> bool:
        return True

    def score(self, model: Any, case: Any, **_: Any) -> Job[list[dict[str, Any]]]:
        for window in range(3):
            if (yield Progress("windows", window, 3)) is Request.STOP:
                return []
        return [{"dice": 1.0}]

    def summarise(self, rows: Any) -> dict[str, Any]:
        return {"cases": len(rows)}

    def columns(self, spec: Any) -> tuple[str, ...]:
        return ()

    def report(self, result: Any) -> list[str]:
        return []


def scored(monkeypatch: pytest.MonkeyPatch, stop_after: int | None) -> dict[str, Any]:
    """Two cases scored; asked to stop from an event on, as a worker asks."""
    monkeypatch.setattr(evaluate, "_check_recipe", lambda model, store: None)
    monkeypatch.setattr(evaluate, "_other_sizes", lambda model, cases: iter(()))
    cards = [SimpleNamespace(id=n, split="test", source_hash=n) for n in "ab"]
    store: Any = SimpleNamespace(cards=cards, path="store")
    model: Any = SimpleNamespace(card={}, spec={})
    task: Any = Task()
    job = evaluate.evaluate_store(task, model, store, "test")
    request, number = None, 0
    while True:
        try:
            job.send(request)
        except StopIteration as end:
            result: dict[str, Any] = end.value
            return result
        asked = stop_after is not None and number >= stop_after
        request, number = Request.STOP if asked else None, number + 1


@pytest.mark.parametrize(
    ("stop_after", "cases", "stopped"),
    [
        (None, 2, False),
        (2, 0, True),  # within the first case
        (6, 1, True),  # within the last one
        (8, 2, False),  # when all had been scored
    ],
)
def test_a_stop_within_the_last_case_is_a_stop(
    monkeypatch: pytest.MonkeyPatch, stop_after: int | None, cases: int, stopped: bool
) -> None:
    result = scored(monkeypatch, stop_after)
    assert (result["cases"], result["stopped"]) == (cases, stopped)
