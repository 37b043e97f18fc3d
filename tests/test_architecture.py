"""The house holds: imports go down, heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

SOURCE = Path(__file__).parents[1] / "src" / "homolog"

# Rooms by floor, low to high. A file imports from lower floors and from its own room,
# wherever the import stands: at the top, in a function, or for types alone.
FLOORS = (
    "config errors events registry small_maps words __init__",
    "distributed geometry json_files label_names memory recipes writing",
    "metrics views",
    "losses scans runs",
    "backbones drawing index phantom",
    "nn store",
    "feed",
    "methods",
    "model_files",
    "tasks training",
    "finetune sliding",
    "tasks.segment",
    "features tasks.classify tasks.detect tasks.translate",
    "landmarks pretrain tasks.few_voxels use",
    "exporting probe propagation",
    "comparing",
    "reporting",
    "demo jobs machine",
    "cli gui.shared",
    "gui.beside",
    "gui.explore gui.files gui.learn gui.reading gui.runs",
    "gui.landmarks gui.models gui.segment",
    "gui.autosave",
    "gui.data",
    "gui.label gui.start",
    "gui",
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms.split()}

ONLY_IN = {
    "SimpleITK": (
        "scans/itk_decoder.py",
        "propagation/registration.py",
    ),
    "pydicom": ("scans/dicom/", "scans/itk_decoder.py"),
    "highdicom": ("scans/dicom/",),
    "napari": ("gui/",),
    "qtpy": ("gui/",),
    "magicgui": ("gui/",),
    "superqt": ("gui/",),
    "pyqtgraph": ("gui/",),
    "monai": ("backbones/", "nn/", "losses/", "metrics/", "tasks/"),
    "napari_plugin_engine": ("registry.py",),
    "torchvision": (),
    "timm": (),
}
MOST_FILES, MOST_LINES = 15, 50  # of a folder, of a function
# Folders that are registries hold one file an entry, as many as there are entries.
REGISTRIES = ("backbones", "jobs", "methods", "tasks")


def _name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {
    _name(path): path
    for path in sorted(SOURCE.rglob("*.py"))
    if "resources" not in path.parts
}


@functools.cache  # for all tests of this file, in the one process that runs them
def _trees() -> dict[str, ast.Module]:
    return {
        name: ast.parse(path.read_text(encoding="utf-8"))
        for name, path in FILES.items()
    }


@functools.cache
def _imports(name: str) -> set[str]:
    """Dotted names a file imports anywhere, in functions and for types too."""
    found = set()
    for node in ast.walk(_trees()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _file_of(dotted: str) -> str:
    """The project file that a dotted name lies in."""
    while dotted not in FILES:
        dotted = dotted.rpartition(".")[0]
    return dotted


@functools.cache
def _graph() -> dict[str, set[str]]:
    """File -> those of the project that it imports."""
    return {
        name: {_file_of(d) for d in _imports(name) if d.split(".")[0] == "homolog"}
        - {name}
        for name in FILES
    }


def _room(name: str) -> str:
    """``homolog.gui.files.reader`` -> ``gui.files``, ``homolog.words`` -> ``words``."""
    parts = name.split(".")[1:]
    if not parts:
        return "__init__"
    inner = parts[: -1 if FILES[name].name != "__init__.py" else None]
    return (
        ".".join(inner[:2] if inner[:1] in (["gui"], ["tasks"]) else inner[:1])
        or (parts[0])
    )


def test_imports_go_down_or_stay_in_the_room() -> None:
    for name, others in _graph().items():
        own = _room(name)
        assert own in FLOOR, f"{name} lies in a room without a floor: {own}"
        for other in others:
            room = _room(other)
            assert room == own or FLOOR[room] < FLOOR[own], (
                f"{name} ({own}) imports up: {other} ({room})"
            )


def test_no_file_imports_itself_through_others() -> None:
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(_graph()[name]):
                follow(other, (*path, name))
            done.add(name)

    for name in FILES:
        follow(name, ())


# Rooms whose files are found by their names.
_BY_NAME = {"backbones", "cli", "jobs", "methods", "nn.decoders", "scans.formats"}


def test_no_file_is_left_that_nothing_loads() -> None:
    """Imported, named in a string or in the manifest, or of a registry."""
    loaded = set().union(*_graph().values())
    for tree in _trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                loaded.add(node.value.partition(":")[0])
    manifest = (SOURCE / "napari.yaml").read_text(encoding="utf-8")
    lost = [
        name
        for name, path in FILES.items()
        if name not in loaded
        and not path.stem.startswith("__")
        and f"{name}:" not in manifest
        and name.removeprefix("homolog.").rpartition(".")[0] not in _BY_NAME
        and not (name.startswith("homolog.tasks.") and path.stem == "task")
    ]
    assert not lost, f"nothing loads {lost}: take them out."


def test_private_modules_stay_in_their_folder() -> None:
    for name, others in _graph().items():
        for other in others:
            folder, _, last = other.rpartition(".")
            if last.startswith("_") and FILES[other].name != "__init__.py":
                assert name.rpartition(".")[0] == folder or name == folder, (
                    f"{name} imports {other}, which is private to {folder}"
                )


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        first = function.body[0]
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def test_folders_and_functions_stay_small() -> None:
    for folder in {path.parent for path in FILES.values()}:
        if folder.parent == SOURCE and folder.name in REGISTRIES:
            continue
        files = [p for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(files) <= MOST_FILES, (
            f"{folder} holds {len(files)} files, more than {MOST_FILES}"
        )
    too_long = {
        f"{name.removeprefix('homolog.')}.{node.name}"
        for name, tree in _trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and _length(node) > MOST_LINES
    }
    assert not too_long, (
        f"functions of more than {MOST_LINES} lines, split them at their seams: "
        f"{sorted(too_long)}"
    )


def test_heavy_libraries_stay_in_their_rooms() -> None:
    for name, path in FILES.items():
        relative = path.relative_to(SOURCE).as_posix()
        for dotted in _imports(name):
            rooms = ONLY_IN.get(dotted.split(".")[0])
            assert rooms is None or (rooms and relative.startswith(rooms)), (
                f"{relative} imports {dotted}"
            )


def _moves_a_file(call: ast.Call) -> bool:
    """``os.replace(a, b)``, ``path.rename(b)``, ``path.replace(b)`` and their kind."""
    if not isinstance(call.func, ast.Attribute):
        return False
    module = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
    if module in ("os", "tempfile", "shutil"):
        return call.func.attr in (
            "replace",
            "rename",
            "fsync",
            "link",
            "mkstemp",
            "move",
        )
    alone = len(call.args) == 1 and not call.keywords  # text.replace has two
    return call.func.attr in ("rename", "replace") and alone


def test_files_get_their_names_in_one_place() -> None:
    for name, tree in _trees().items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        lines = [call.lineno for call in calls if _moves_a_file(call)]
        assert not lines or name == "homolog.writing", (
            f"{name}, lines {lines}: write it by homolog.writing, which replaces a "
            "file only when it is whole"
        )


def test_signals_are_passed_on_as_signals() -> None:
    """``clicked.connect(signal.emit)``: PySide6 calls it without the button's state."""
    for name, tree in _trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(
                node.func, ast.Attribute
            ):
                continue
            passed = [getattr(argument, "attr", "") for argument in node.args]
            assert node.func.attr != "connect" or "emit" not in passed, (
                f"{name}:{node.lineno} connects to emit; connect to the signal"
            )


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
        "pydicom",
        "highdicom",
        "scipy",
        "sklearn",
        "numpy",
    }
    assert not heavy & loaded


def test_what_the_gui_reads_with_loads_neither_torch_nor_monai() -> None:
    loaded = _loaded_after(
        "import homolog.gui.files.reader\n"
        "import homolog.scans.volume, homolog.scans.files\n"
        "import homolog.scans.inspect, homolog.store.store\n"
        "import homolog.runs.run, homolog.runs.launch"
    )
    assert not {"torch", "monai", "pydicom", "highdicom"} & loaded


def test_reading_a_nifti_loads_no_other_format(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.int16), np.eye(4)), path)
    loaded = _loaded_after(
        "import sys\nfrom homolog.scans.files import read_scan\n"
        "from homolog.scans.names import names_told\n"
        f"from pathlib import Path\npath = Path({str(path)!r})\n"
        "read_scan(path), names_told(path)"
    )
    assert "homolog.scans.files" in loaded
    formats = [m for m in loaded if m.startswith("homolog.scans.formats.")]
    assert formats == ["homolog.scans.formats.label_tables"]
    assert not [m for m in loaded if m.startswith("homolog.scans.dicom.")]


def test_the_engine_loads_neither_qt_nor_napari() -> None:
    loaded = _loaded_after(
        "import homolog.pretrain, homolog.tasks.segment.task, homolog.runs.worker"
    )
    assert not {"qtpy", "PyQt6", "napari", "magicgui"} & loaded
