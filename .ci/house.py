"""The house in figures: files, lines, circles, and what one task pulls in.

python .ci/house.py                 this checkout
python .ci/house.py --at 7a16592    another commit of this repository
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
import tempfile
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

TOP = Path(__file__).parents[1]

# What somebody wants to follow -> the modules it begins with; the first that exists of
# each group counts, so that older layouts can be measured too.
TASKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "reading one scan": (("scans.files", "data.scan_io"),),
    "one S2DC step": (("methods.s2dc",), ("training.stepping",)),
    "finetune segment": (
        ("finetune.job", "tasks._finetune"),
        ("tasks.segment.task", "tasks.segment"),
    ),
    "the Landmarks tab": (("gui.landmarks.panel",),),
}


class House:
    """The modules of a source tree and who imports whom, wherever the import stands."""

    def __init__(self, source: Path) -> None:
        self.files: dict[str, Path] = {}
        for path in sorted((source / "homolog").rglob("*.py")):
            if "resources" not in path.parts:
                parts = path.relative_to(source).with_suffix("").parts
                self.files[".".join(parts).removesuffix(".__init__")] = path
        self.at_run_time: dict[str, set[str]] = {}
        self.graph: dict[str, set[str]] = {}
        for name, path in self.files.items():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            everywhere = self._imports(ast.walk(tree))
            for_types = self._imports(
                inner
                for node in ast.walk(tree)
                if isinstance(node, ast.If)
                and ast.unparse(node.test) == "TYPE_CHECKING"
                for inner in ast.walk(node)
            )
            self.graph[name] = everywhere - {name}
            self.at_run_time[name] = everywhere - for_types - {name}

    def _imports(self, nodes: Iterable[ast.AST]) -> set[str]:
        dotted = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                dotted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                dotted |= {f"{node.module}.{alias.name}" for alias in node.names}
        return {self._file_of(d) for d in dotted if d.split(".")[0] == "homolog"}

    def _file_of(self, dotted: str) -> str:
        while dotted not in self.files:
            dotted = dotted.rpartition(".")[0]
        return dotted

    def circles(self) -> list[list[str]]:
        """Groups of files that import each other (strongly connected components)."""
        order: list[str] = []
        seen: set[str] = set()

        def visit(start: str, edges: dict[str, set[str]], into: list[str]) -> None:
            todo = [(start, iter(sorted(edges[start])))]
            seen.add(start)
            while todo:
                name, others = todo[-1]
                for other in others:
                    if other not in seen:
                        seen.add(other)
                        todo.append((other, iter(sorted(edges[other]))))
                        break
                else:
                    todo.pop()
                    into.append(name)

        for name in self.graph:
            if name not in seen:
                visit(name, self.graph, order)
        backwards: dict[str, set[str]] = defaultdict(set)
        for name, others in self.graph.items():
            for other in others:
                backwards[other].add(name)
        seen.clear()
        found = []
        for name in reversed(order):
            if name not in seen:
                group: list[str] = []
                visit(name, defaultdict(set, backwards), group)
                if len(group) > 1:
                    found.append(sorted(group))
        return found

    def pulled_in(self, starts: Iterable[str]) -> list[str]:
        """Files with code that these modules import, directly or through others.

        Imports for types alone do not count, nor ``__init__`` files that hold no more
        than a docstring.
        """
        seen: set[str] = set()
        todo = list(starts)
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += self.at_run_time[name]
        return sorted(name for name in seen if code_lines(self.files[name]))


def code_lines(path: Path) -> int:
    """Lines that hold code: no comments, blank lines or docstrings."""
    text = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (
            tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
            tokenize.DEDENT, tokenize.ENDMARKER,
        ):  # fmt: skip
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def report(house: House) -> list[str]:
    """The figures, a line each."""
    importers = Counter(other for others in house.graph.values() for other in others)
    folders = Counter(path.parent for path in house.files.values())
    largest = folders.most_common(1)[0]
    lengths = [
        len(path.read_text(encoding="utf-8").splitlines())
        for path in house.files.values()
    ]
    lines = [
        f"files                          {len(house.files)}",
        f"lines                          {sum(lengths)} (longest file {max(lengths)})",
        f"lines of code                  {sum(map(code_lines, house.files.values()))}",
        f"folders                        {len(folders)}, at most {largest[1]} files "
        f"({largest[0].name})",
        "modules with one importer      "
        f"{sum(importers[name] == 1 for name in house.files)}",
    ]
    circles = house.circles()
    lines.append(f"circles of imports             {len(circles)}")
    lines += [f"    {' <-> '.join(group)}" for group in circles]
    for words, groups in TASKS.items():
        known = [
            next(f"homolog.{m}" for m in group if f"homolog.{m}" in house.files)
            for group in groups
        ]
        count = len(house.pulled_in(known))
        lines.append(f"files for {words:<20} {count}  ({', '.join(known)})")
    return lines


def main() -> None:
    """Print the figures of this checkout, or of a commit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--at", metavar="COMMIT", help="of another commit")
    parser.add_argument("--files", metavar="TASK", help="list the files of one task")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = TOP / "src"
        if asked.at:
            packed = subprocess.run(
                ["git", "archive", asked.at, "src"],
                cwd=TOP, check=True, capture_output=True,
            ).stdout  # fmt: skip
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                archive.extractall(folder, filter="data")
            source = Path(folder) / "src"
        house = House(source)
        if asked.files:
            starts = [
                next(f"homolog.{m}" for m in group if f"homolog.{m}" in house.files)
                for group in TASKS[asked.files]
            ]
            print("\n".join(house.pulled_in(starts)))
        else:
            print("\n".join(report(house)))


if __name__ == "__main__":
    main()
