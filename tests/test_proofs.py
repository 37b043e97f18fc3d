"""Every proof of PROOFS.md stands where the table says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
ROW = re.compile(r"^\| (\S+) \| .+ \| (.+) \|$", re.MULTILINE)
# How many proofs each chapter has.
CHAPTERS = {"E": 12, "J": 13, "A": 12, "L": 9, "S": 12, "H": 10, "M": 12}


def _table() -> dict[str, list[str]]:
    """Proof -> its tests, as ``folder/file.py::name``."""
    rows = ROW.findall((TESTS / "PROOFS.md").read_text(encoding="utf-8"))
    return {proof: re.findall(r"`([^`]+::[^`]+)`", tests) for proof, tests in rows}


def _tests() -> set[str]:
    return {
        f"{path.relative_to(TESTS).as_posix()}::{node.name}"
        for path in TESTS.rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_proof_has_a_test_that_exists() -> None:
    table, tests = _table(), _tests()
    wanted = {f"{c}-T{i}" for c, n in CHAPTERS.items() for i in range(1, n + 1)}
    assert not wanted - table.keys(), f"not listed: {sorted(wanted - table.keys())}"
    for proof in wanted:
        assert table[proof], f"{proof} has no test"
    gone = {t for listed in table.values() for t in listed} - tests
    assert not gone, f"listed in PROOFS.md, but gone: {sorted(gone)}"


def test_every_test_named_after_a_proof_is_listed() -> None:
    table = _table()
    for test in _tests():
        name = test.partition("::")[2]
        named = re.match(r"test_([ejalshm])_t(\d+)[a-d]?_", name)
        if named:
            proof = f"{named[1].upper()}-T{named[2]}"
            assert test in table.get(proof, []), f"{test} is not listed under {proof}"
