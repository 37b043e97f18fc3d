"""What this machine and this installation can do: settings, devices, stores, checks."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import platform
import shutil
import sys
import tempfile
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from homolog import __version__
from homolog.config import to_dict
from homolog.errors import UnusableInput
from homolog.events import Job
from homolog.words import counted, human_bytes
from homolog.writing import flush

_NEEDED = (
    "torch", "monai", "numpy", "scipy", "SimpleITK", "safetensors", "blosc2",
    "scikit-learn", "napari-plugin-engine", "click", "rich",
)  # fmt: skip
_FOR_THE_WINDOW = ("napari", "magicgui", "qtpy", "superqt", "pyqtgraph")
_LITTLE_DISK = 5_000_000_000
_LITTLE_MEMORY = 4_000_000_000


def examine_stores(
    stores: Sequence[Path], *, repair: bool = False
) -> Job[dict[str, Any]]:
    """Compare every file of stores with its checksum; mend what can be.

    Args:
        stores: Folders.
        repair: Make damaged cases anew from their scans, add missing checksums.

    Returns:
        ``stores`` (fields of ``StoreReport``), ``problems``, ``lines`` as text,
        ``stopped``.

    Raises:
        UnusableInput: No store there, or one that is being written.
    """
    from homolog.store.care import care_for

    reports, lines, problems = [], [], []
    for store in stores:
        try:
            report = yield from care_for(store, repair=repair)
        except UnusableInput as error:
            if len(stores) == 1:
                raise
            problems.append(str(error))
            lines.append(f"PROBLEM: {error}")
            continue
        reports.append(dataclasses.asdict(report))
        many, size = counted(report.cases, "case"), human_bytes(report.bytes)
        lines.append(f"{store}: {many}, {size} read")
        lines += [
            f"  damaged: {d['case']}, {d['file']}: {d['what']}" for d in report.damaged
        ]
        if report.mended:
            lines.append(f"  made anew from their scans: {', '.join(report.mended)}")
        if report.sealed:
            lines.append(f"  {len(report.sealed)} were given checksums")
        lines += [f"  hint: {text}" for text in report.hints]
        lines += [f"  PROBLEM: {text}" for text in report.problems]
        if report.damaged and report.problems and not repair:
            lines.append(f"  mend it with: homolog doctor {store} --repair")
        if not report.problems:
            lines.append("  all is well" if not report.damaged else "  all is mended")
        problems += [f"{store}: {text}" for text in report.problems]
        if report.stopped:
            break
    stopped = any(report["stopped"] for report in reports)
    return {
        "stores": reports, "problems": problems, "lines": lines, "stopped": stopped,
    }  # fmt: skip


def examine() -> dict[str, Any]:
    """Versions, devices, precision, threads, disk, memory and display.

    A training step is run on every device, and a file is written. Libraries that are
    missing are told, not needed.

    Returns:
        What was found, by name; ``problems`` and ``advice``, one sentence each; and
        ``lines``, all of it as text.
    """
    found: dict[str, Any] = {}
    problems: list[str] = []
    advice: list[str] = []
    for check in (_python, _libraries, _device, _disk, _memory, _display, _models):
        check(found, problems, advice)
    lines = [f"{key}: {value}" for key, value in found.items()]
    lines += [f"hint: {text}" for text in advice]
    lines += [f"PROBLEM: {text}" for text in problems] or ["all is well"]
    return {**found, "problems": problems, "advice": advice, "lines": lines}


def _python(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    found["homolog"] = metadata.version("napari-homolog")
    found["python"] = f"{platform.python_version()} ({sys.executable})"
    found["system"] = platform.platform()
    if platform.system() == "Windows" and not _takes_long_paths():
        advice.append(
            "Windows here takes no paths above 260 letters: keep stores and runs near "
            "the top of a disk, or set LongPathsEnabled (see "
            "https://learn.microsoft.com/windows/win32/fileio/maximum-file-path-limitation)."
        )


def _takes_long_paths() -> bool:
    """Whether this Windows was told to take paths above 260 letters."""
    try:
        import winreg
    except ImportError:  # not Windows
        return True
    where = r"SYSTEM\CurrentControlSet\Control\FileSystem"
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, where) as key:  # type: ignore[attr-defined,unused-ignore]
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False


def _libraries(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    for name in _NEEDED + _FOR_THE_WINDOW:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in _NEEDED:
                problems.append(f"{name} is missing: pip install napari-homolog")
            elif name == "napari":
                advice.append(
                    "no napari: the terminal works, the window needs "
                    'pip install "napari-homolog[gui]"'
                )


def _device(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be loaded: {error}")
        return
    from homolog.distributed import usable_gpus
    from homolog.training.stepping import cpu_has_bf16

    found["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    found["instructions"] = f"{torch.backends.cpu.get_cpu_capability()}" + (
        ", native bf16" if cpu_has_bf16() else ", no native bf16"
    )
    devices = ["cpu", *(f"cuda:{i}" for i in range(usable_gpus()))]
    if len(devices) == 1:
        advice.append(_why_no_gpu(torch.__version__, torch.version.cuda))
    for device in devices:
        found[f"device {device}"] = _describe(device)
        try:
            _one_step(device)
        except (RuntimeError, ValueError) as error:
            problems.append(f"a training step on {device} failed: {error}")


# Where Linux tells of cards, and what a card of theirs is called there.
_PCI, _NVIDIA = Path("/sys/bus/pci/devices"), "0x10de"
_DRIVER = Path("/proc/driver/nvidia/version")


def _why_no_gpu(version: str, cuda: str | None) -> str:
    """What to do so that a GPU that may be there is used; no GPU is asked.

    Args:
        version: Of torch.
        cuda: What it was built for; None: the CPU alone, or another maker's GPUs.
    """
    usual = "training runs on the CPU (recipe cpu)"
    if platform.system() == "Darwin":
        return (
            f"{usual}: the GPU of a Mac (MPS) is not used, some 3D operations are "
            "missing there."
        )
    if not _has_nvidia_card():
        return f"no CUDA device: {usual}."
    if cuda is None:
        return (
            f"an NVIDIA card is here, but torch {version} is built without CUDA, so "
            f"{usual}. Install one with: {_install_line()}"
        )
    if _DRIVER.exists() or shutil.which("nvidia-smi"):
        return (
            f"an NVIDIA card and a driver are here, but torch {version} (CUDA {cuda}) "
            f"cannot use them, so {usual}. nvidia-smi names the CUDA version that the "
            f"driver is made for; below {cuda}, update the driver. In a container, "
            "start it with the GPU (--gpus all)."
        )
    return (
        f"an NVIDIA card is here, but no driver of it is loaded, so {usual}. Install "
        "NVIDIA's driver."
    )


def _has_nvidia_card() -> bool:
    """A display controller of NVIDIA's, whatever driver there is."""
    if platform.system() == "Windows":
        system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32"
        return (system / "nvml.dll").exists() or bool(shutil.which("nvidia-smi"))
    for device in _PCI.glob("*"):
        try:
            vendor = (device / "vendor").read_text(encoding="ascii").strip()
            kind = (device / "class").read_text(encoding="ascii").strip()
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith("0x03"):
            return True
    return _DRIVER.exists()  # containers may hide the bus


def _install_line() -> str:
    """A torch built for CUDA; the usual one on Linux is, the one for Windows is not."""
    line = "pip install --force-reinstall torch"
    if platform.system() == "Windows":
        return f"{line} --index-url https://download.pytorch.org/whl/cu126"
    return line


def _describe(device: str) -> str:
    import torch

    from homolog.training.stepping import gpu_precision

    if device == "cpu":
        return platform.processor() or platform.machine()
    told = torch.cuda.get_device_properties(device)
    narrow = gpu_precision(torch.device(device))
    return f"{told.name}, {human_bytes(told.total_memory)}, {narrow}"


def _one_step(device: str) -> None:
    """A 3D convolution forward and backward and one fused update; must be finite."""
    import torch

    layer = torch.nn.Conv3d(1, 4, 3, padding=1).to(device)
    optimiser = torch.optim.AdamW(layer.parameters(), fused=True)
    image = torch.ones(1, 1, 8, 8, 8, device=device)
    layer(image).square().mean().backward()
    optimiser.step()
    if not all(bool(p.isfinite().all()) for p in layer.parameters()):
        raise ValueError("the weights are no longer finite")


def _disk(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    found["disk"] = f"{human_bytes(free)} free in {here}"
    if free < _LITTLE_DISK:
        advice.append(f"only {human_bytes(free)} of disk are free in {here}.")
    try:
        with tempfile.NamedTemporaryFile(dir=here) as file:
            file.write(b"homolog")
            flush(file)
    except OSError as error:
        advice.append(f"{here} cannot be written ({error.strerror}).")


def _memory(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return
    found["memory"] = human_bytes(size)
    if size < _LITTLE_MEMORY:
        advice.append("less than 4 GB of memory: take small crops and batches.")


def _display(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    if sys.platform.startswith("linux"):
        names = ("WAYLAND_DISPLAY", "DISPLAY")
        shown = next((os.environ[n] for n in names if os.environ.get(n)), None)
        found["display"] = shown or "none"
        if shown is None:
            advice.append("no display: the terminal works, the window does not.")
    else:
        found["display"] = sys.platform


def _models(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    from homolog.model_files import library

    place = library.library_folder()
    own = len(list(library.models_below(place, library.LIBRARY)))
    found["models"] = f"{len(library.shipped_models())} built in, {own} in {place}"


# What the engine offers, as JSON, for a program that must not load torch itself.
#
# ``python -m homolog.machine schema`` tells every method, task and network with
# its settings; ``devices`` tells what can compute here; ``doctor`` whether all of it
# works. One line each.


FORMAT = 1
_TYPES = {int: "int", float: "float", bool: "bool", str: "str", dict: "dict"}


def schema() -> dict[str, Any]:
    """Methods, tasks, networks and the settings of training and embedding."""
    from homolog.backbones import BACKBONES
    from homolog.features.config import EmbedConfig
    from homolog.methods import METHODS
    from homolog.tasks import TASKS
    from homolog.training.config import TrainingConfig

    networks = {name: BACKBONES.get(name) for name in BACKBONES.names()}
    return {
        "format": FORMAT,
        "homolog": __version__,
        "methods": {
            name: _method(METHODS.get(name), networks) for name in METHODS.names()
        },
        "tasks": {
            name: _task(name, TASKS.get(name), networks) for name in TASKS.names()
        },
        "backbones": {name: _network(cls) for name, cls in networks.items()},
        "training": fields_of(TrainingConfig),
        "embed": fields_of(EmbedConfig),
    }


def devices() -> dict[str, Any]:
    """The CPU and every usable GPU, with what is free of their memory now."""
    import torch

    from homolog.distributed import choose_device, usable_gpus
    from homolog.memory import available_memory
    from homolog.training.stepping import cpu_has_bf16, gpu_precision

    free, total = available_memory()
    cores = _cores()
    found = [
        {
            "name": "cpu",
            "title": f"CPU, {counted(cores, 'core')}, {human_bytes(free)} free",
            "free_bytes": free,
            "total_bytes": total,
        }
    ]
    count = usable_gpus()
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        told = torch.cuda.get_device_name(index)
        found.append(
            {
                "name": f"cuda:{index}",
                "title": f"{told}, {human_bytes(free)} of {human_bytes(total)} free",
                "free_bytes": int(free),
                "total_bytes": int(total),
            }
        )
    best = choose_device("auto")
    on_gpu = best.type == "cuda"
    bf16 = gpu_precision(best) == "bf16" if on_gpu else cpu_has_bf16()
    return {
        "devices": found,
        "best": str(best),
        "torch": torch.__version__,
        "bf16": bool(bf16),
        "cores": cores,
        "system": platform.platform(),
    }


def fields_of(config: type) -> list[dict[str, Any]]:
    """A form's worth of facts about every setting of a Config dataclass.

    The default of what must be given is None.
    """
    hints, made = typing.get_type_hints(config), config()
    fields = dataclasses.fields(made)
    needed = {f.name: None for f in fields if getattr(made, f.name) is ...}
    defaults = to_dict(dataclasses.replace(made, **needed), whole=True)
    return [_field(f, hints[f.name], defaults[f.name]) for f in fields]


def _field(field: Any, hint: Any, default: Any) -> dict[str, Any]:
    meta = field.metadata
    choices = meta.get("choices")
    return {
        "name": field.name,
        **_shape(hint),
        "default": default,
        "help": meta.get("help", ""),
        "title": meta.get("title", ""),
        "unit": meta.get("unit", ""),
        "min": meta.get("min"),
        "max": meta.get("max"),
        "choices": None if choices is None else list(choices),
        "advanced": bool(meta.get("advanced", False)),
        "empty": meta.get("empty", "automatic"),
    }


def _shape(hint: Any) -> dict[str, Any]:
    """``type``, ``item``, ``length`` and ``optional`` of a type hint."""
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        optional = type(None) in options
        hint = next(o for o in options if o is not type(None))
    item, length = None, None
    if typing.get_origin(hint) is tuple:
        entries = typing.get_args(hint)
        inner = entries[0]
        item = "tuple" if typing.get_origin(inner) is tuple else _TYPES.get(inner)
        length = None if entries[-1] is Ellipsis else len(entries)
        kind = "tuple"
    else:
        kind = _TYPES.get(typing.get_origin(hint) or hint, "dict")
    return {"type": kind, "item": item, "length": length, "optional": optional}


def _method(cls: Any, networks: Mapping[str, Any]) -> dict[str, Any]:
    suited = list(cls.backbones) or list(networks)
    return {
        "title": cls.title,
        "paper": cls.paper,
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "backbones": list(cls.backbones),
        "uses_labels": cls.uses_labels,
        "spatial": sorted({networks[n].spatial_dims for n in suited if n in networks}),
        "recipes": _plain(cls.RECIPES),
        "fields": fields_of(cls.Config),
    }


def _task(name: str, cls: Any, networks: Mapping[str, Any]) -> dict[str, Any]:
    """A task; ``with`` of a recipe: network -> what it is fine-tuned with instead."""
    recipes = _plain(getattr(cls, "RECIPES", {}))
    for recipe, parts in recipes.items():
        own = {n: c.FINETUNE.get(name, {}).get(recipe) for n, c in networks.items()}
        special = {n: {"training": _plain(rates)} for n, rates in own.items() if rates}
        if special:
            parts["with"] = special
    return {
        "title": cls.title,
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "recipes": recipes,
        "fields": fields_of(cls.Config),
        "learned": bool(cls.learns),
    }


def _network(cls: Any) -> dict[str, Any]:
    return {
        "title": cls.title,
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "fields": fields_of(cls.Config),
        "small": _plain(cls.SMALL),
        "spatial_dims": cls.spatial_dims,
    }


def _plain(value: Any) -> Any:
    """Read-only mappings and tuples as JSON types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main(words: Sequence[str] | None = None) -> int:
    """Print one JSON line; exit status 2 for a word it does not know."""
    asked = list(sys.argv[1:] if words is None else words)
    answers = {"schema": schema, "devices": devices, "doctor": examine}
    if len(asked) != 1 or asked[0] not in answers:
        sys.stderr.write(f"expected one of {', '.join(answers)}, got {asked!r}.\n")
        return 2
    sys.stdout.write(json.dumps(answers[asked[0]]()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
