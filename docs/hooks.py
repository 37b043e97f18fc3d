"""Pages that MkDocs makes from the sources, so that nothing is copied by hand.

The command line's reference comes from its help, the settings from the Configs, the
API pages from the docstrings (read, not imported), the drawing of the floors from
tests/test_architecture.py. ``python docs/hooks.py`` writes the drawing for GitHub.
"""

from __future__ import annotations

import ast
import html
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[1]
SOURCE = TOP / "src" / "homolog"
DRAWING = Path("docs/assets/floors.svg")
# Rooms that are described by the command line's reference and by the window itself.
NOT_API = {"cli", "gui"}


# --- what MkDocs calls -----------------------------------------------------------


def on_config(config: Any) -> Any:
    """Add the API pages to the navigation."""
    pages = [{title: uri} for title, uri, _ in api_pages()]
    config["nav"].append({"API": [{"Rooms": "reference/api/index.md"}, *pages]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures that are made from the sources."""
    from mkdocs.structure.files import File

    made = {
        "reference/cli.md": cli_page(),
        "reference/settings.md": settings_page(),
        "reference/api/index.md": rooms_page(),
        "contributing.md": (TOP / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "changelog.md": (TOP / "CHANGELOG.md").read_text(encoding="utf-8"),
        **{uri: text for _, uri, text in api_pages()},
    }
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    for picture in sorted((TOP / "resources").glob("*.png")):
        uri = f"resources/{picture.name}"
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links that work in the repository, made to work in the site; generated parts."""
    contributing = page.file.src_uri == "contributing.md"
    markdown = whole_examples(markdown, opened=not contributing)
    if contributing:
        markdown = markdown.replace("](docs/", "](")
    # ../resources/x.png lies beside docs/ in the repository, within the site here
    markdown = re.sub(r"\]\(((?:\.\./)*)\.\./resources/", r"](\1resources/", markdown)
    tables = {
        "methods": methods_table, "backbones": backbones_table,
        "layouts": layouts_table,
    }  # fmt: skip
    for name, make in tables.items():
        mark = f"<!-- made by docs/hooks.py: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def whole_examples(markdown: str, *, opened: bool = False) -> str:
    """Examples themselves, where a page of the repository links to them.

    Ruff formats code within Markdown, and so takes a snippet's mark for Python.
    """
    return re.sub(
        r"^Whole: \[`((?:docs/)?examples/[\w.]+)`\]\([^)]*\)$",
        lambda found: (
            f'???{"+" * opened} example "{Path(found[1]).name}"\n\n    ```python\n'
            f'    --8<-- "{found[1]}"\n    ```'
        ),
        markdown,
        flags=re.MULTILINE,
    )


# --- the command line ------------------------------------------------------------


def cli_page() -> str:
    """Every command's help, as the terminal shows it."""
    from homolog.cli import cli

    parts = [
        "# Command line\n",
        "Made from the help of every command. `-h` and `--help` show the same.\n",
    ]
    for words, text in _helps(cli, ("homolog",)):
        level = "#" * max(2, len(words))
        parts.append(f"{level} {' '.join(words)}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def _helps(command: Any, words: tuple[str, ...]) -> Iterator[tuple[Any, str]]:
    import click

    context = click.Context(
        command,
        info_name=" ".join(words),
        terminal_width=80,
        max_content_width=80,
        help_option_names=["-h", "--help"],
    )
    with context:
        yield words, command.get_help(context).rstrip()
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                if inner is not None and not inner.hidden:
                    yield from _helps(inner, (*words, name))


# --- the sources, read without importing them ------------------------------------


def _modules() -> dict[str, Path]:
    """Public modules of the engine: dotted name -> file, packages by their init."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        inner = parts[1:-1] if parts[-1] == "__init__" else parts[1:]
        private = any(p.startswith("_") for p in inner)
        if "resources" in parts or private or (inner and inner[0] in NOT_API):
            continue
        found[".".join(("homolog", *inner))] = path
    return found


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _first_line(path: Path) -> str:
    return (ast.get_docstring(_tree(path)) or "").split("\n")[0]


def _room(dotted: str) -> str:
    """``homolog.tasks.segment.task`` -> ``tasks.segment``; single files: ``.``."""
    parts = dotted.split(".")[1:]
    if not (SOURCE / parts[0]).is_dir():
        return "."
    folders = parts if (SOURCE.joinpath(*parts)).is_dir() else parts[:-1]
    return ".".join(folders)


def api_pages() -> list[tuple[str, str, str]]:
    """Title, address and text of one page a room."""
    rooms: dict[str, list[str]] = defaultdict(list)
    for dotted in _modules():
        if dotted != "homolog":
            rooms[_room(dotted)].append(dotted)
    pages = []
    for room, modules in sorted(rooms.items()):
        title = "single files" if room == "." else room
        head = (
            "Modules that lie beside the rooms."
            if room == "."
            else _first_line(SOURCE.joinpath(*room.split("."), "__init__.py"))
        )
        parts = [f"# {title}\n\n{head}\n"]
        for dotted in modules:
            package = dotted == f"homolog.{room}"
            if package and not _defines(SOURCE.joinpath(*room.split("."))):
                continue
            parts.append(f"::: {dotted}\n")
            if package:
                parts.append("    options:\n      show_submodules: false\n")
        name = "homolog" if room == "." else f"homolog.{room}"
        pages.append((title, f"reference/api/{name}.md", "\n".join(parts)))
    return pages


def _defines(package: Path) -> bool:
    """Whether a package's own file holds public functions or classes."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(
        isinstance(node, kinds) and not node.name.startswith("_")
        for node in _tree(package / "__init__.py").body
    )


def rooms_page() -> str:
    """What the rooms are for, with their floors."""
    rows = []
    for title, uri, _ in api_pages():
        if title == "single files":
            text = "modules that lie beside the rooms"
        else:
            text = _first_line(SOURCE.joinpath(*title.split("."), "__init__.py"))
        rows.append(f"| [`{title}`]({Path(uri).name}) | {text} |")
    return (
        "# Rooms\n\nOne page a folder of `src/homolog`, made from its docstrings. "
        "Arrays are `(C, D, H, W)`, z, y, x; places are millimetres in LPS.\n\n"
        "![Floors](../../assets/floors.svg)\n\n"
        "| room | what it holds |\n| --- | --- |\n" + "\n".join(rows) + "\n"
    )


# --- settings and registries -----------------------------------------------------


def _classes() -> dict[str, tuple[str, ast.ClassDef]]:
    """Class name -> its module and definition, private modules included."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if "gui" in path.parts:
            continue
        parts = path.relative_to(SOURCE).with_suffix("").parts
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = (".".join(parts), node)
    return found


def _options(name: str, classes: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The options of a Config, those of its bases first; later ones win."""
    if name not in classes:
        return {}
    _, node = classes[name]
    found: dict[str, dict[str, str]] = {}
    for base in node.bases:
        found |= _options(ast.unparse(base).rpartition(".")[2], classes)
    for line in node.body:
        call = getattr(line, "value", None)
        target = getattr(line, "target", None)
        if not isinstance(call, ast.Call) or not isinstance(target, ast.Name):
            continue
        given = {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg}
        kind = ast.unparse(call.func)
        if kind == "option":
            for key, value in zip(("default", "help"), call.args, strict=False):
                given[key] = ast.unparse(value)
            found[target.id] = given
        elif kind == "as_in":  # another Config's option, some of it changed
            config, name = ast.unparse(call.args[0]), ast.literal_eval(call.args[1])
            found[target.id] = _options(config, classes)[name] | given
    return found


def _limits(given: dict[str, str]) -> str:
    low, high = given.get("minimum"), given.get("maximum")
    if "choices" in given:
        try:
            choices = ast.literal_eval(given["choices"])
        except ValueError:
            return ""
        return ", ".join(f"`{c}`" for c in choices)
    if low and high:
        return f"{low} to {high}"
    return f"at least {low}" if low else f"at most {high}" if high else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _help_of(given: dict[str, str]) -> str:
    try:
        return str(ast.literal_eval(given.get("help", "''")))
    except ValueError:
        return given.get("help", "").strip("f'\"")


def _table(name: str, classes: dict[str, Any]) -> str:
    rows = []
    for key, given in _options(name, classes).items():
        unit = given.get("unit", "''").strip("'\"")
        default = f"`{_cell(given.get('default', ''))}` {unit}".rstrip()
        more = " (advanced)" if given.get("advanced") == "True" else ""
        rows.append(
            f"| `{key}` | {default} | {_cell(_help_of(given))}{more} | "
            f"{_cell(_limits(given))} |"
        )
    head = "| setting | default | what it is | allowed |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(rows) + "\n"


def _owners(classes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name of a Config -> the key of the registry's class that takes it."""
    for module, node in classes.values():
        if module.split(".")[-1] == "base":
            continue
        for line in node.body:
            value = getattr(line, "value", None)
            target = (
                getattr(line, "target", None) or getattr(line, "targets", [None])[0]
            )
            if getattr(target, "id", "") == "Config" and isinstance(value, ast.Name):
                yield value.id, module.split(".")[1]


def settings_page() -> str:
    """Every Config's options."""
    classes = _classes()
    bases = {ast.unparse(b) for _, node in classes.values() for b in node.bases}
    owners = dict(_owners(classes))
    shown: set[str] = set()
    parts = [
        "# Settings\n",
        "Made from the `Config` classes of the sources. A setting is changed by name: "
        "`--set method.size=64,64,64 --set training.batch_size=8` in "
        "`homolog pretrain`, `--set head_first=0.2` for a task's own; the forms of the "
        "window show the same. Recipes (`--recipe cpu`, `gpu`, `paper`, or a `.toml` "
        "or `.json` file) set several at once. What is not here is a flag of its "
        "[command](cli.md).\n",
    ]
    for title, prefix in (
        ("Methods: `--set method.KEY=VALUE`", "methods."),
        ("Networks: `--set backbone.KEY=VALUE`", "backbones."),
        ("Training: `--set training.KEY=VALUE`", "training."),
        ("Tasks: `--set KEY=VALUE`", "tasks."),
        ("Others", ""),
    ):
        parts.append(f"## {title}\n")
        sections: dict[str, str] = {}
        for name, (module, node) in classes.items():
            whole = name in owners or name not in bases
            if not (name.endswith("Config") and module.startswith(prefix) and whole):
                continue
            if name in shown or name == "Config" or not _options(name, classes):
                continue  # jobs call theirs Config; they are flags of their commands
            shown.add(name)
            heading = owners.get(name, module.replace(".", " / "))
            line = (ast.get_docstring(node) or "").split("\n")[0]
            sections[heading] = f"### {heading}\n\n{line}\n\n{_table(name, classes)}"
        parts += [text for _, text in sorted(sections.items())]
    return "\n".join(parts)


def _attributes(node: ast.ClassDef) -> dict[str, Any]:
    """Class attributes that are plain values."""
    found = {}
    for line in node.body:
        target = getattr(line, "target", None) or getattr(line, "targets", [None])[0]
        value = getattr(line, "value", None)
        if isinstance(target, ast.Name) and value is not None:
            try:
                found[target.id] = ast.literal_eval(value)
            except ValueError:
                continue
    return found


def _entries(folder: str, base: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """The registry's classes: name of the file, definition."""
    for path in sorted((SOURCE / folder).glob("*.py")):
        if path.stem.startswith("_") or path.stem == "base":
            continue
        for node in _tree(path).body:
            bases = [ast.unparse(b) for b in getattr(node, "bases", [])]
            if isinstance(node, ast.ClassDef) and any(b.endswith(base) for b in bases):
                if not node.name.startswith("_"):
                    yield path.stem, node


def methods_table() -> str:
    """What can be pretrained, from the classes of methods/."""
    rows = []
    for name, node in _entries("methods", "Method"):
        known = _attributes(node)
        title = str(known.get("title", "")).partition(": ")[2] or known.get("title", "")
        networks = ", ".join(known.get("backbones") or ()) or "any"
        labels = "used where there are some" if known.get("uses_labels") else "none"
        link = f"reference/api/homolog.methods.md#homolog.methods.{name}"
        rows.append(
            f"| [`{name}`]({link}) | {title} | {known.get('paper', '')} | "
            f"{networks} | {labels} |"
        )
    return (
        "| method | idea | paper | networks | labels |\n"
        "| --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    )


def layouts_table() -> str:
    """Every weight file that is recognised, and the network it becomes."""
    from homolog.model_files.layouts import LAYOUTS

    lines = ["| layout | published in it | network |", "| --- | --- | --- |"]
    lines += [
        f"| {one.title} | {', '.join(one.published)} | "
        + (f"`{one.backbone}`" if one.backbone else f"none: {one.why_not}")
        + " |"
        for one in LAYOUTS
    ]
    return "\n".join(lines)


def backbones_table() -> str:
    """What can be trained, from the classes of backbones/."""
    rows = []
    for name, node in _entries("backbones", "Backbone"):
        known = _attributes(node)
        line = (ast.get_docstring(node) or "").split("\n")[0]
        link = f"reference/api/homolog.backbones.md#homolog.backbones.{name}"
        kind = known.get("spatial_dims", 3)
        rows.append(f"| [`{name}`]({link}) | {known.get('title') or line} | {kind}D |")
    return "| network | what it is | |\n| --- | --- | --- |\n" + "\n".join(rows)


# --- the drawing of the floors ---------------------------------------------------


def floors() -> list[list[str]]:
    """Rooms by floor, low to high, as the test of the architecture holds them."""
    path = TOP / "tests" / "test_architecture.py"
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            found = [text.split() for text in ast.literal_eval(node.value)]
            break
    else:
        raise LookupError(f"{path} has no FLOORS.")
    below = [[r for r in rooms if r != "__init__"] for rooms in found]
    window = [r for rooms in below for r in rooms if r.split(".")[0] == "gui"]
    plain = [[r for r in rooms if r not in window] for rooms in below]
    tabs = [r.removeprefix("gui.") for r in window if r != "gui"]
    return [rooms for rooms in plain if rooms] + [["gui: " + ", ".join(tabs)]]


def drawing(width: int = 860, height: int = 30, gap: int = 7) -> str:
    """The floors as an SVG, highest on top."""
    rows = floors()[::-1]
    left, total = 34, len(rows) * (height + gap) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" '
        f'font-family="sans-serif" font-size="13">',
        "<title>Rooms of src/homolog by floor: imports go down only</title>",
        f'<rect width="{width}" height="{total}" fill="#ffffff"/>',
    ]
    for index, rooms in enumerate(rows):
        y = 6 + index * (height + gap)
        lengths = [len(room) + 3 for room in rooms]
        room_left = width - left - 6 - gap * (len(rooms) - 1)
        x = float(left)
        parts.append(
            f'<text x="8" y="{y + 20}" fill="#888">{len(rows) - index - 1}</text>'
        )
        for room, length in zip(rooms, lengths, strict=True):
            wide = room_left * length / sum(lengths)
            colour = "#d7ebe8" if index % 2 else "#c3e0dc"
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{wide:.0f}" height="{height}" '
                f'rx="4" fill="{colour}" stroke="#5c9c94"/>'
                f'<text x="{x + wide / 2:.0f}" y="{y + 20}" text-anchor="middle" '
                f'fill="#123">{html.escape(room)}</text>'
            )
            x += wide + gap
    parts.append(
        f'<text x="{left}" y="{total - 8}" fill="#555">Imports go down or stay in the '
        "room; tests/test_architecture.py holds it.</text></svg>"
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    os.chdir(TOP)
    DRAWING.parent.mkdir(parents=True, exist_ok=True)
    DRAWING.write_text(drawing(), encoding="utf-8")
