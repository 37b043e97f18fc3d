from __future__ import annotations

import json

import pytest

from each import each
from homolog import events


@each(
    "event",
    [
        events.Started("training", 10, {"device": "cpu"}),
        events.Step(3, 10, {"p2p": 1.5}, {"tokens_std": 0.9}, 0.2, 1.4),
        events.Progress("scans", 1, 4, "a.nii.gz"),
        events.Validated(5, {"dice": 0.8}, is_best=True),
        events.Saved("model", "model"),
        events.Note("batch lowered to 1", "warning"),
        events.Finished({"steps": 10}),
        events.Stopped(4),
        events.Failed("disk full"),
    ],
)
def test_events_survive_json(event: events.Event) -> None:
    assert events.from_json(json.loads(json.dumps(events.to_json(event)))) == event


def test_unknown_fields_of_a_newer_version_are_dropped() -> None:
    data = {**events.to_json(events.Note("hello")), "colour": "red"}
    assert events.from_json(data) == events.Note("hello")


def test_an_unknown_event_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown event 'party'; known: failed"):
        events.from_json({"event": "party"})


def test_drain_returns_the_jobs_result() -> None:
    def job() -> events.Job[int]:
        yield events.Started("counting")
        return 7

    assert events.drain(job()) == 7
