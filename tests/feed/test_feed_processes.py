"""Processes make the same batches as threads, tell of errors, and end."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from homolog.feed.batches import Batch, Feed
from homolog.feed.partners import random_partners
from homolog.feed.reading import CaseRef
from homolog.views.view import Elsewhere, Matched, Phase, ViewSpec

SPECS = {
    "a": ViewSpec((8, 8, 8), 2, labels=True, rotate_deg=(9.0, 9.0, 9.0)),
    "b": ViewSpec((1, 12, 12), place=Elsewhere(), elastic_mm=1.0),
    "c": ViewSpec((8, 8, 8), place=Matched(partner=True)),
}


def feed_of(store: Any, processes: int, **more: Any) -> Feed:
    cases = [CaseRef(store, card) for card in store.cards]
    return Feed(
        cases, SPECS, batch_size=2, seed=3, partners=random_partners(cases, 0),
        processes=processes, share_power=0.5, **more,
    )  # fmt: skip


def tensors(value: Any) -> Iterator[tuple[str, Any]]:
    """Every array of a batch, by a name."""
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        parts = (
            found.items() if isinstance(found, dict)
            else enumerate(found) if isinstance(found, tuple) else [("", found)]
        )  # fmt: skip
        for key, part in parts:
            name = f"{field.name}.{key}"
            if dataclasses.is_dataclass(part):
                yield from ((f"{name}.{n}", t) for n, t in tensors(part))
            else:
                yield name, part


def assert_same(a: Batch, b: Batch) -> None:
    one, other = dict(tensors(a)), dict(tensors(b))
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[name].dtype
            assert torch.equal(value, other[name]), name
        elif hasattr(value, "tobytes"):
            assert value.tobytes() == other[name].tobytes(), name
        else:
            assert value == other[name], name


def readers() -> list[psutil.Process]:
    """Of this process; Python's own tracker of resources is none, and stays."""
    return [
        child for child in psutil.Process().children()
        if "resource_tracker" not in " ".join(child.cmdline())
    ]  # fmt: skip


def test_processes_make_the_bytes_of_threads(phantom_store: Any) -> None:
    phases = (Phase(0.5, ("a",)), Phase(0.5, ("a", "b", "c")))
    threads = feed_of(phantom_store, 0, phases=phases)
    others = feed_of(phantom_store, 1, phases=phases)
    of_other_tests = set(readers())
    try:
        begun = others.stream(0, 50)
        next(begun)
        running = set(readers()) - of_other_tests
        begun.close()  # broken off with batches on their way
        made = list(others.stream(2, 8))
        for a, b in zip(threads.stream(2, 8), made, strict=True):
            assert_same(a, b)
        assert [b.step for b in made] == [2, 3, 4, 5, 6, 7]
        larger = others.with_batch_size(3)
        for a, b in zip(
            threads.with_batch_size(3).stream(0, 2), larger.stream(0, 2), strict=True
        ):
            assert_same(a, b)
        views = others.views(made[-1], "cpu")
        assert views["c"].image.isfinite().all()
        assert running == set(readers()) - of_other_tests  # begun once
    finally:
        others.close()
    gone, alive = psutil.wait_procs(running, timeout=30)
    assert not alive
    assert gone


PROGRAM = """
import sys
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.store.store import Store
from homolog.views.view import ViewSpec

def main():
    store = Store.open(sys.argv[1])
    cases = [CaseRef(store, card) for card in store.cards]
    feed = Feed(cases, {"a": ViewSpec((8, 8, 8))}, batch_size=2, seed=0, processes=1)
    stream = feed.stream(0, 1000)
    next(stream)
    import psutil
    print(*(p.pid for p in psutil.Process().children(recursive=True)), flush=True)
    sys.stdin.readline()
    try:
        list(stream)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    sys.stdin.read()

if __name__ == "__main__":
    main()
"""


def test_they_tell_which_case_is_broken_and_end_with_a_killed_training(
    phantom_store: Any, tmp_path: Path
) -> None:
    program, store = tmp_path / "program.py", tmp_path / "store"
    program.write_text(PROGRAM)
    shutil.copytree(phantom_store.path, store)
    with subprocess.Popen(
        [sys.executable, str(program), str(store)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdin is not None
        pids = [int(word) for word in running.stdout.readline().split()]
        assert pids
        others = [psutil.Process(pid) for pid in pids]
        for image in store.glob("cases/*/image.b2nd"):
            image.unlink()
        running.stdin.write("go on\n")
        running.stdin.flush()
        told = running.stdout.readline()
        assert told.startswith(("JobError case '", "UnusableInput case '")), told
        running.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(others, timeout=60)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
