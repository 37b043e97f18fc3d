"""Free memory: the machine's, a container's where that is less, and networks' share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from homolog import memory
from homolog.errors import UnusableInput


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a container's files; the machine has 100 bytes, 60 of them free."""
    machine = SimpleNamespace(available=60, total=100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)

    def write(limit: str, used: int, stat: str) -> None:
        for name, text in (("_LIMIT", limit), ("_USED", str(used)), ("_KINDS", stat)):
            path = tmp_path / name
            path.write_text(f"{text}\n")
            monkeypatch.setattr(memory, name, path)

    return write


@pytest.mark.parametrize(
    ("limit", "used", "stat", "expected"),
    [
        ("50", 30, "anon 25\nactive_file 2\ninactive_file 3", (25, 50)),
        ("50", 45, "anon 60", (5, 50)),
        ("90", 10, "anon 10", (60, 90)),  # the machine itself has less
        ("20", 40, "anon 40", (0, 20)),
        ("max", 30, "anon 30", (60, 100)),
        ("500", 30, "anon 30", (60, 100)),
    ],
)
def test_a_containers_limit_counts_where_it_is_lower(
    container, limit: str, used: int, stat: str, expected: tuple[int, int]
) -> None:
    container(limit, used, stat)
    assert memory.available_memory() == expected


def test_without_a_container_the_machine_is_asked(
    tmp_path: Path, container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_LIMIT", tmp_path / "none")
    assert memory.available_memory() == (60, 100)
    assert memory.free_bytes() == 60


def test_a_system_that_says_nothing_is_unknown_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> None:
        raise PermissionError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", silent)
    monkeypatch.setattr(memory, "_LIMIT", tmp_path / "none")
    assert memory.available_memory() == (0, 0)
    assert memory.free_bytes() == 0


def test_the_peak_grows_with_what_is_held() -> None:
    before = memory.peak_bytes()
    held = bytearray(64 << 20)
    held[::4096] = b"1" * len(held[::4096])
    grown = memory.peak_bytes()
    assert before > 1 << 20
    assert grown >= psutil.Process().memory_info().rss * 0.9
    assert grown >= before


def test_a_network_beyond_the_memory_is_refused_before_it_is_made(
    container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(memory, "_LIMIT", tmp_path / "none")
    with (
        pytest.raises(UnusableInput, match="a network needs more than"),
        memory.bounded("a network"),
    ):
        torch.nn.Linear(5, 6)  # 120 bytes of weights
    with memory.bounded("a network"):
        torch.nn.Linear(3, 4)
