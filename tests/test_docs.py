"""What the pages say of the repository holds: links, drawing, settings.

``mkdocs build --strict`` (.ci/run) checks the links within the site; these run without
MkDocs.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from homolog.backbones import BACKBONES
from homolog.methods import METHODS

TOP = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", TOP / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_files_that_pages_name_exist(page: str) -> None:
    text = (TOP / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    own = [link for link in links if "://" not in link]
    assert own
    for link in own:
        assert (TOP / link).exists(), f"{page} links to {link}"


def test_examples_stand_whole_in_the_site(hooks: ModuleType) -> None:
    pages = {"docs/howto/python.md": "examples", "CONTRIBUTING.md": "docs/examples"}
    for page, folder in pages.items():
        shown = hooks.whole_examples((TOP / page).read_text(encoding="utf-8"))
        for path in (TOP / folder).glob("*.py"):
            assert f'--8<-- "{folder}/{path.name}"' in shown, f"{page}: {path.name}"


def test_the_drawing_shows_the_floors_of_today(hooks: ModuleType) -> None:
    drawn = (TOP / hooks.DRAWING).read_text(encoding="utf-8")
    assert drawn == hooks.drawing(), "draw it anew: python docs/hooks.py"


def test_methods_and_networks_are_all_in_their_tables(hooks: ModuleType) -> None:
    methods, networks = hooks.methods_table(), hooks.backbones_table()
    for name in METHODS.names():
        assert f"[`{name}`]" in methods
        assert METHODS.get(name).paper in methods
    for name in BACKBONES.names():
        assert f"[`{name}`]" in networks


def test_every_layout_of_weight_files_is_in_its_table(hooks: ModuleType) -> None:
    from homolog.model_files.layouts import LAYOUTS

    page = (hooks.TOP / "docs/howto/import.md").read_text(encoding="utf-8")
    assert "<!-- made by docs/hooks.py: layouts -->" in page
    table = hooks.layouts_table()
    assert all(one.title in table and one.published[0] in table for one in LAYOUTS)
    assert all(one.why_not in table for one in LAYOUTS if not one.backbone)


def test_every_setting_of_a_method_is_on_the_settings_page(hooks: ModuleType) -> None:
    page = hooks.settings_page()
    for name in METHODS.names():
        (section,) = re.findall(rf"^### {name}\n(.*?)(?=^###? |\Z)", page, re.M | re.S)
        shown = re.findall(r"^\| `(\w+)` \|", section, re.M)
        fields = METHODS.get(name).Config.__dataclass_fields__
        assert sorted(shown) == sorted(n for n, f in fields.items() if f.metadata)


def test_the_reference_shows_every_command(hooks: ModuleType) -> None:
    from homolog.cli import cli

    page = hooks.cli_page()
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        assert f"\n## homolog {name}\n" in page
        assert f"Usage: homolog {name} " in page
    assert "\n### homolog models import\n" in page
