"""The page of the papers is what its markers say, and nothing is left open."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def papers() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "papers_page", ROOT / "docs" / "papers.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_every_item_has_code_and_a_test_or_says_not_yet(papers: ModuleType) -> None:
    assert not papers.problems()


def test_the_page_is_what_the_command_makes(papers: ModuleType) -> None:
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert page == papers.page(), "docs/papers.md is behind: python docs/papers.py"
    words = page.casefold()
    assert "silent" not in words
    assert "| missing" not in words


def test_items_have_one_line_each_and_all_papers_are_there(papers: ModuleType) -> None:
    names = [item.name for item in papers.items()]
    assert len(names) == len(set(names)) > 100
    assert {item.paper for item in papers.items()} == set(papers.PAPERS)


def test_markers_are_found_where_they_stand(papers: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        '# Paper: A 1; A 2.\nclass B:\n    def c(self):\n        """Does.\n\n'
        '        Paper: A 3.\n        """\n\n\n# Paper: A 4.\nRECIPES: dict = {}\n'
        'def d():\n    """Paper: A 3."""\n',
        encoding="utf-8",
    )
    assert papers.markers(tmp_path) == {
        "A 1": ["one.py:B"], "A 2": ["one.py:B"], "A 3": ["one.py:B.c", "one.py:d"],
        "A 4": ["one.py:RECIPES"],
    }  # fmt: skip
