"""The papers against the code: makes docs/papers.md from markers in code and tests.

    python docs/papers.py          # writes the page
    python docs/papers.py --check  # says whether it is up to date

``docs/papers.csv`` lists what the papers say, item by item. What implements an item
says so in its docstring, or in a comment above it, with a line such as

    Paper: Joint Eq. 7; Joint Eq. 8.

and so does the test that holds it. An item is ``printed`` (as the paper has it),
``differs`` (the note says how, and so does a ``Differs from the paper:`` of the code)
or ``not yet``: then it needs no marker.
"""

from __future__ import annotations

import ast
import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE, TESTS = ROOT / "src" / "homolog", ROOT / "tests"
ITEMS, PAGE = ROOT / "docs" / "papers.csv", ROOT / "docs" / "papers.md"
VERDICTS = {
    "printed": "as printed",
    "differs": "differs, written down",
    "not yet": "not yet",
}
PAPERS = {
    "Joint": "Joint (AAAI 2023)",
    "Alice": "Alice (ICCV 2023)",
    "SAM": "SAM (TMI 2022), for Alice and landmarks",
    "S2DC": "S2DC (arXiv 2507.02581)",
    "Hundred Million": "Hundred Million (arXiv 2201.01283)",
    "MixCL": "MixCL (arXiv 2203.02114)",
    "All": "All of them",
}
_MARKER = re.compile(r"^\s*(?:# )?(?:\"\"\")?Paper: (.+?)\.?(?:\"\"\")?$")
_SAID = re.compile(r"Differs from the papers?:")
HEAD = (
    "# The papers, item by item\n\n"
    "What the five papers (and SAM) say, where the code does it, and the test that "
    "holds it. Made by `python docs/papers.py` from `docs/papers.csv` and from lines "
    "`Paper: ...` in code and tests; a test fails where this page is behind them. "
    "*Differs* means that the note, and the docstring at that place (`Differs from the "
    "paper:`), say how and why. *Not yet* is not built. Whether each number of a "
    "recipe `paper` is the paper's, its public code's or our own choice, `homolog "
    "methods METHOD` tells.\n"
)


@dataclass(frozen=True)
class Item:
    """A line of the list: ``name`` such as ``Joint Eq. 7``, what it says, a verdict."""

    name: str
    verdict: str
    what: str
    note: str

    @property
    def paper(self) -> str:
        """The paper it belongs to."""
        return next(paper for paper in PAPERS if self.name.startswith(paper))


def items() -> list[Item]:
    """All of them, in the order of the list."""
    with ITEMS.open(encoding="utf-8", newline="") as file:
        return [Item(**row) for row in csv.DictReader(file)]


def markers(root: Path) -> dict[str, list[str]]:
    """Item -> places below a folder that name it, as ``file:Class.function``."""
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "Paper: " not in text:
            continue
        tree = ast.parse(text)
        for number, line in enumerate(text.splitlines(), start=1):
            marker = _MARKER.match(line)
            if marker is None:
                continue
            place = f"{path.relative_to(root).as_posix()}:{_name_at(tree, number)}"
            for name in marker[1].split(";"):
                places = found.setdefault(name.strip(), [])
                if place not in places:
                    places.append(place)
    return found


def _name_at(tree: ast.Module, line: int) -> str:
    """The innermost function or class around a line, or what is assigned below it."""
    names = [name for first, last, name in _spans(tree) if first <= line <= last]
    if names:
        return max(names, key=len)
    below = [n for n in tree.body if n.lineno > line]
    first = below[0] if below else None
    if isinstance(first, ast.AnnAssign) and isinstance(first.target, ast.Name):
        return first.target.id
    if isinstance(first, ast.Assign) and isinstance(first.targets[0], ast.Name):
        return first.targets[0].id
    return getattr(first, "name", "")


def _spans(node: ast.AST, above: str = "") -> Iterator[tuple[int, int, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            name = f"{above}{child.name}"
            yield child.lineno, child.end_lineno or child.lineno, name
            yield from _spans(child, f"{name}.")


def problems() -> list[str]:
    """What is wrong with the list or the markers, in sentences."""
    known = {item.name: item for item in items()}
    code, tests = markers(CODE), markers(TESTS)
    found = [
        f"{places[0]} names {name!r}, which docs/papers.csv does not have."
        for marked in (code, tests)
        for name, places in marked.items()
        if name not in known
    ]
    for name, item in known.items():
        if item.verdict not in VERDICTS:
            found.append(f"{name}: no such verdict as {item.verdict!r}.")
        elif item.verdict == "not yet":
            if name in code and name in tests:
                found.append(f"{name} has code and a test: it is no longer 'not yet'.")
            continue
        if item.verdict == "differs":
            if not item.note:
                found.append(f"{name} differs, but its note does not say how.")
            files = {CODE / place.partition(":")[0] for place in code.get(name, [])}
            if not any(_SAID.search(f.read_text(encoding="utf-8")) for f in files):
                found.append(f"{name} differs, and no docstring of its code says so.")
        for what, marked in (("code", code), ("test", tests)):
            if name not in marked:
                found.append(f"{name}: no {what} is marked 'Paper: {name}'.")
    return found


def page() -> str:
    """The page."""
    code, tests = markers(CODE), markers(TESTS)
    rows = items()
    counts = [
        f"{sum(item.verdict == verdict for item in rows)} {told}"
        for verdict, told in VERDICTS.items()
    ]
    lines = [HEAD, f"{len(rows)} items: {', '.join(counts)}."]
    for paper, title in PAPERS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| item | | code | tests |",
            "|---|---|---|---|",
        ]
        for item in rows:
            if item.paper != paper:
                continue
            short = item.name.removeprefix(paper).strip() or item.name
            note = f" *{VERDICTS[item.verdict]}*" + f": {item.note}" * bool(item.note)
            lines.append(
                f"| {short[:1].upper()}{short[1:]} | {item.what}.{note} | "
                f"{_listed(code.get(item.name, []))} | "
                f"{_listed(tests.get(item.name, []))} |"
            )
    return "\n".join(lines) + "\n"


def _listed(places: list[str]) -> str:
    return "<br>".join(f"`{place}`" for place in places)


def main() -> int:
    """Write the page, or say whether it is as it should be."""
    wrong = problems()
    for sentence in wrong:
        sys.stderr.write(f"{sentence}\n")
    made = page()
    if "--check" in sys.argv[1:]:
        behind = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != made
        if behind:
            sys.stderr.write("docs/papers.md is behind: python docs/papers.py\n")
        return int(bool(wrong) or behind)
    PAGE.write_text(made, encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
