"""One test of many inputs tries them all and tells which of them fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from each import each


def test_all_are_tried_and_those_that_fail_are_named(tmp_path: Path) -> None:
    seen = []

    @each("number, word", [(1, "one"), (2, "two"), (3, "three")])
    def odd(number: int, word: str, tmp_path: Path) -> None:
        seen.append(tmp_path)
        assert number % 2, word

    with pytest.raises(AssertionError, match=r"1 of 3 fail:\nnumber=2, word='two'"):
        odd(tmp_path=tmp_path)
    assert len(set(seen)) == 3


def test_two_lists_make_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    @each("a", [1, 2])
    @each("b", "xyz")
    def pairs(a: int, b: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOMOLOG_EACH", f"{a}{b}")
        seen.append((a, b))

    pairs(monkeypatch=monkeypatch)
    assert seen == [(a, b) for a in (1, 2) for b in "xyz"]


@each("value", range(3))
def test_pytest_gives_the_other_fixtures(value: int, tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []
    (tmp_path / str(value)).touch()
