"""The house holds: imports go down, heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "homolog"

FLOORS = {
    "geometry": 1, "losses": 1, "metrics": 1, "config": 1, "events": 1, "errors": 1,
    "registry": 1, "extensions": 1, "distributed": 1, "small_maps": 1, "drawing": 1,
    "json_files": 1, "memory": 1, "model_card": 1,
    "safe_text": 1, "private_files": 1,
    "views": 2, "data": 2, "backbones": 2, "nn": 2,
    "methods": 3, "checkpoint": 3, "model_files": 3, "foreign_weights": 3, "feed": 3,
    "training": 3.5, "pretrain": 4, "tasks": 4,
    "study": 5, "runs": 6, "cli": 7, "gui": 7,
}  # fmt: skip

# Rooms of one floor that may use each other: what passes from learning to use is one
# idea in three files.
NEIGHBOURS = {
    ("checkpoint", "model_files"),
    ("model_files", "foreign_weights"),
    ("checkpoint", "foreign_weights"),
    ("model_files", "methods"),
}

ONLY_IN = {
    "SimpleITK": ("data/itk_decoder.py",),
    "napari": ("gui/",),
    "qtpy": ("gui/",),
    "magicgui": ("gui/",),
    "superqt": ("gui/",),
    "pyqtgraph": ("gui/",),
    "monai": ("backbones/", "nn/", "losses/", "metrics/", "tasks/"),
    "napari_plugin_engine": ("extensions.py",),
    "torchvision": (),
    "timm": (),
}

FILES = sorted(p for p in SOURCE.rglob("*.py") if "resources" not in p.parts)


def _imports(path: Path) -> list[tuple[str, bool]]:
    """Dotted names a file imports, and whether at module level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(tree.body)
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [
                (f"{node.module}.{alias.name}", node in top) for alias in node.names
            ]
    return found


def _room(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "homolog" and len(parts) > 1 else None


def test_imports_go_down_or_stay_in_the_folder() -> None:
    for path in FILES:
        _check_floors(path)


def _check_floors(path: Path) -> None:
    relative = path.relative_to(SOURCE)
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for dotted, _ in _imports(path):
        room = _room(dotted)
        if room is None or room == own or room in ("__version__", "__init__"):
            continue
        if (own, room) == ("registry", "extensions"):
            continue  # the seam through which other distributions enter
        assert room in FLOORS, f"{relative} imports {dotted}, which has no floor"
        below = FLOORS[room] < FLOORS[own]
        floor_one = FLOORS[room] == FLOORS[own] == 1
        neighbours = (own, room) in NEIGHBOURS or (own, room) == (
            "training",
            "training",
        )
        assert below or floor_one or neighbours, f"{relative} imports up: {dotted}"


def test_heavy_libraries_stay_in_their_rooms() -> None:
    for path in FILES:
        _check_libraries(path)


def _check_libraries(path: Path) -> None:
    relative = path.relative_to(SOURCE).as_posix()
    for dotted, _ in _imports(path):
        library = dotted.split(".")[0]
        if library in ONLY_IN:
            assert (
                relative.startswith(ONLY_IN[library]) if ONLY_IN[library] else False
            ), f"{relative} imports {library}"


def _loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_the_command_lines_help_loads_no_heavy_library() -> None:
    loaded = _loaded_after(
        "import homolog\nfrom click.testing import CliRunner\n"
        "from homolog.cli import cli\n"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0"
    )
    heavy = {
        "torch",
        "monai",
        "napari",
        "qtpy",
        "SimpleITK",
        "scipy",
        "sklearn",
        "numpy",
    }
    assert not heavy & loaded


def test_what_the_gui_reads_with_loads_neither_torch_nor_monai() -> None:
    loaded = _loaded_after(
        "import homolog.gui.files.reader, homolog.gui.files.samples\n"
        "import homolog.data.volume, homolog.data.scan_io\n"
        "import homolog.data.inspect, homolog.data.store\n"
        "import homolog.runs.run, homolog.runs.launch"
    )
    assert not {"torch", "monai", "napari"} & loaded


def test_the_engine_loads_neither_qt_nor_napari() -> None:
    loaded = _loaded_after(
        "import homolog.pretrain, homolog.tasks.segment, homolog.runs.worker"
    )
    assert not {"qtpy", "PyQt6", "napari", "magicgui"} & loaded
