"""The faults that ``benchmarks/seeded_faults.py`` puts in can still be put in."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _faults() -> list[tuple[str, ...]]:
    """The texts of each fault, read without loading what the script loads."""
    script = (ROOT / "benchmarks" / "seeded_faults.py").read_text(encoding="utf-8")
    return [
        tuple(ast.literal_eval(argument) for argument in node.args)
        for node in ast.walk(ast.parse(script))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Fault"
    ]


def test_each_seeded_fault_has_its_place_and_its_tests() -> None:
    stale = []
    for name, file, old, new, tests in _faults():
        source = (ROOT / "src/homolog" / file).read_text(encoding="utf-8")
        if source.count(old) != 1 or old == new:
            stale.append(f"{name}: not once in {file}")
        stale += [
            f"{name}: no {test}"
            for test in tests.split()
            if not (ROOT / "tests" / test).is_file()
        ]
    assert len(_faults()) >= 28
    assert stale == []
